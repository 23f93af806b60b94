//! What members are listed as, serve and do that have not started, have no vote, or were removed.

use crate::ctl::{etcdctl, eventually, leader};
use crate::membership::{id, join};
use crate::snapshot::said;
use crate::support::Cluster;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_new_cluster_of_three_begins_once_all_have_answered() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members[..2] {
        member.start();
    }
    // One of these two may have lost its disk, and n3 hold with it what the cluster acknowledged.
    for member in &cluster.members[..2] {
        said(member, "not started yet: the other members have to say", 1).await;
        said(member, "n3 at", 1).await;
        assert!(
            !member.data_dir().join("member").exists(),
            "nothing is written"
        );
    }
    cluster.members[2].start();
    let ports = cluster.ports();
    leader(&ports).await;
    let said = format!("http://127.0.0.1:{}, false", cluster.members[2].client);
    eventually(&ports[..2], &["member", "list"], |list| {
        list.contains(&said)
    })
    .await;
}

#[tokio::test]
async fn a_member_removed_while_it_was_down_stops_when_it_is_started() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let gone = id(&ports, "n3").await;
    cluster.members[2].kill().await;
    leader(&ports[..2]).await;
    eventually(&ports[..2], &["member", "remove", &gone], |_| true).await;
    cluster.members[2].start();
    let status = cluster.members[2].stopped().await;
    assert_eq!(status.code(), Some(3), "as docs/operations.md says");
    let log = cluster.members[2].log();
    assert!(
        log.contains("this member was removed from the cluster"),
        "{log}"
    );
    etcdctl(&ports[..2], &["put", "k", "v"]).await.ok();
}

#[tokio::test]
async fn a_learner_answers_what_etcds_does_and_refuses_the_rest() {
    let mut cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    join(&mut cluster, "n2", &ports, &["--learner"]).await;
    let learner = cluster.ports()[1];
    let value = |text: &str| text == "k\nv\n";
    eventually(&[learner], &["get", "k", "--consistency=s"], value).await;
    let refused: [&[&str]; 11] = [
        &["get", "k"],
        &["put", "k", "w"],
        &["del", "k"],
        &["compact", "1"],
        &["member", "list"],
        &["alarm", "list"],
        &["lease", "list"],
        &["lease", "grant", "10"],
        &["endpoint", "hashkv"],
        &["user", "list"],
        &["auth", "enable"],
    ];
    for args in refused {
        let told = etcdctl(&[learner], args).await.refused();
        assert!(
            told.contains("etcdserver: rpc not supported for learner"),
            "{args:?}: {told}"
        );
    }
    etcdctl(&[learner], &["endpoint", "status"]).await.ok();
    assert!(
        health(learner).await.starts_with("HTTP/1.1 200"),
        "a learner is healthy"
    );
}

/// The answer to `GET /health`.
async fn health(port: u16) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .expect("it listens");
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("it is sent");
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .await
        .expect("it is answered");
    text
}
