//! Members that have not started, have no vote, or were removed: how they are listed, and what they serve.

use crate::{
    ctl::{etcdctl, eventually, leader},
    membership::{id, join, start_added},
    snapshot::said,
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::{net::Ipv4Addr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixDatagram},
    time::timeout,
};
use tonic::transport::Endpoint;

/// How long something that must happen soon is waited for: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);

#[tokio::test]
async fn a_new_cluster_of_three_begins_once_all_have_answered() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members[..2] {
        member.start();
    }
    // One of these two may have lost its disk, and then n3 is the only other one that has what the cluster acknowledged.
    for member in &cluster.members[..2] {
        said(member, "not started yet: the other members have to say", 1).await;
        said(member, "n3 at", 1).await;
        assert!(
            !member.data_dir().join("member").exists(),
            "nothing is written"
        );
    }
    let ports = cluster.ports();
    // Whoever asks is told the same.
    for path in ["/health", "/readyz"] {
        let answer = asked(ports[0], path).await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("not started yet: "), "{answer}");
        assert!(answer.contains("n3 at"), "{answer}");
    }
    let refused = etcdctl(&ports[..1], &["put", "k", "v"]).await.refused();
    assert!(refused.contains("code = Unavailable"), "{refused}");
    assert!(refused.contains("etcdserver: not started yet"), "{refused}");
    assert!(refused.contains("n3 at"), "{refused}");
    cluster.members[2].start();
    leader(&ports).await;
    let said = format!("http://127.0.0.1:{}, false", cluster.members[2].client);
    eventually(&ports[..2], &["member", "list"], |list| {
        list.contains(&said)
    })
    .await;
}

#[tokio::test]
async fn a_member_that_waits_for_others_tells_systemd_and_ends_at_a_signal() {
    let mut cluster = Cluster::new(3).await;
    let path = cluster.folder().join("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    let member = &mut cluster.members[0];
    member.set("NOTIFY_SOCKET", &path.display().to_string());
    member.start();
    let mut states = Vec::new();
    while !states.iter().any(|state: &String| state.contains("n3 at")) {
        states.push(notified(&systemd).await);
    }
    assert!(states[0].starts_with("STATUS=not started yet: the other members"));
    assert!(!states.iter().any(|state| state.contains("READY=1")));
    member.stop().await;
    assert!(member.log().contains("while starting"), "{}", member.log());
    assert!(!member.data_dir().join("member").exists(), "it never began");
}

#[tokio::test]
async fn a_member_says_that_it_is_ready_once_it_serves_and_not_before() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    for member in &mut cluster.members {
        member.kill().await;
    }
    let path = cluster.folder().join("notify.sock");
    let systemd = UnixDatagram::bind(&path).expect("a socket");
    let known = cluster.members[0].log().len();
    let member = &mut cluster.members[0];
    member.set("NOTIFY_SOCKET", &path.display().to_string());
    member.start();
    // Twice: it says so again and again.
    let log = |cluster: &Cluster| cluster.members[0].log()[known..].to_owned();
    let waits = "not ready: there is no leader; 2 of 3 voters";
    for _ in 0..2 {
        assert_eq!(
            notified(&systemd).await,
            "STATUS=not ready: there is no leader"
        );
    }
    let said = log(&cluster);
    assert!(said.matches(waits).count() >= 2, "{said}");
    assert!(!said.contains("ready: clients on"), "{said}");
    let answer = health(ports[0]).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("RAFT NO LEADER"), "{answer}");
    cluster.members[1].start();
    while notified(&systemd).await != "READY=1\nSTATUS=ready" {}
    let said = log(&cluster);
    assert_eq!(said.matches("ready: clients on").count(), 1, "{said}");
    assert!(health(ports[0]).await.starts_with("HTTP/1.1 200"));
    cluster.members[0].stop().await;
    assert_eq!(notified(&systemd).await, "STOPPING=1");
}

/// What a member tells systemd next.
async fn notified(systemd: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let read = timeout(PATIENCE, systemd.recv(&mut buffer)).await;
    let read = read.expect("it says something").expect("a message");
    String::from_utf8_lossy(&buffer[..read]).into_owned()
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
async fn a_promoted_member_serves_from_the_moment_that_its_promotion_is_acknowledged() {
    let mut cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    let id = join(&mut cluster, "n2", &ports, &["--learner"]).await;
    let learner = cluster.ports()[1];
    let channel = Endpoint::from_shared(format!("http://127.0.0.1:{learner}")).expect("a URI");
    let channel = channel.connect().await.expect("it listens");
    let mut kv = pb::kv_client::KvClient::new(channel);
    let put = || pb::PutRequest {
        key: "k".into(),
        ..pb::PutRequest::default()
    };
    let refused = kv.put(put()).await.expect_err("it is a learner");
    assert!(refused.message().contains("not supported for learner"));
    let leader = Endpoint::from_shared(format!("http://127.0.0.1:{}", ports[0])).expect("a URI");
    let leader = leader.connect().await.expect("it listens");
    let mut members = pb::cluster_client::ClusterClient::new(leader);
    let id = u64::from_str_radix(&id, 16).expect("an id");
    let promote = || pb::MemberPromoteRequest { id };
    while let Err(early) = members.member_promote(promote()).await {
        assert!(early.message().contains("in sync with leader"), "{early}");
    }
    for _ in 0..50 {
        kv.put(put()).await.expect("it has a vote");
    }
}

#[tokio::test]
async fn a_member_that_was_added_as_a_voter_never_says_that_it_has_no_vote() {
    let mut cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    let at = cluster.prepare("n2").await;
    let urls = format!("--peer-urls=http://127.0.0.1:{}", cluster.members[at].peer);
    let add = ["member", "add", "n2", &urls];
    eventually(&ports, &add, |text| text.contains(" added ")).await;
    start_added(&mut cluster, at);
    let address = format!("http://127.0.0.1:{}", cluster.members[at].client);
    let mut served = 0;
    let calls = async {
        while served < 50 {
            let endpoint = Endpoint::from_shared(address.clone()).expect("a URI");
            let Ok(channel) = endpoint.connect().await else {
                continue;
            };
            let mut kv = pb::kv_client::KvClient::new(channel);
            while served < 50 {
                let put = pb::PutRequest {
                    key: "k".into(),
                    ..pb::PutRequest::default()
                };
                match kv.put(put).await {
                    Ok(_) => served += 1,
                    Err(status) => {
                        assert!(!status.message().contains("learner"), "{status}");
                        break;
                    }
                }
            }
        }
    };
    timeout(PATIENCE, calls).await.expect("it serves");
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
        let refusal = etcdctl(&[learner], args).await.refused();
        assert!(
            refusal.contains("etcdserver: rpc not supported for learner"),
            "{args:?}: {refusal}"
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
    asked(port, "/health").await
}

/// The answer to a `GET`.
async fn asked(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .await
        .expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let sent = stream.write_all(request.as_bytes()).await;
    sent.expect("it is sent");
    let mut text = String::new();
    stream
        .read_to_string(&mut text)
        .await
        .expect("it is answered");
    text
}
