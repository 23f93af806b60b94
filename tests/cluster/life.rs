//! Members die and come back; nothing that was acknowledged is lost.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    support::Cluster,
};

#[tokio::test]
async fn the_others_go_on_without_their_leader_and_it_catches_up() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    for n in 0..20 {
        let port = ports[n % 3];
        etcdctl(&[port], &["put", &format!("before{n}"), "1"])
            .await
            .ok();
    }
    let dead = leader(&ports).await;
    cluster.members[dead].kill().await;
    let alive: Vec<u16> = ports
        .iter()
        .copied()
        .filter(|port| *port != ports[dead])
        .collect();
    leader(&alive).await;
    for n in 0..20 {
        let port = alive[n % 2];
        etcdctl(&[port], &["put", &format!("while{n}"), "1"])
            .await
            .ok();
    }
    cluster.members[dead].start();
    same_history(&ports).await;
    for prefix in ["before", "while"] {
        assert_eq!(keys(ports[dead], prefix).await, 20, "{prefix}");
    }
}

#[tokio::test]
async fn all_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    for n in 0..10 {
        etcdctl(&ports[n % 3..=n % 3], &["put", &format!("k{n}"), "1"])
            .await
            .ok();
    }
    for member in &mut cluster.members {
        member.kill().await;
    }
    for member in &mut cluster.members {
        member.start();
    }
    for port in &ports {
        assert_eq!(keys(*port, "k").await, 10);
    }
    same_history(&ports).await;
}

#[tokio::test]
async fn one_of_three_alone_serves_serializable_reads_only() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    same_history(&ports).await;
    cluster.members[1].kill().await;
    cluster.members[2].kill().await;
    let alone = &ports[..1];
    let local = eventually(alone, &["get", "k", "--consistency=s"], |text| {
        text.contains('v')
    });
    assert_eq!(local.await, "k\nv\n");
    let refused = etcdctl(alone, &["get", "k"]).await.refused();
    assert!(
        refused.contains("etcdserver: request timed out"),
        "{refused}"
    );
    etcdctl(alone, &["put", "k", "w"]).await.refused();
    cluster.members[1].start();
    eventually(alone, &["put", "k", "x"], |_| true).await;
}

#[tokio::test]
async fn a_member_behind_catches_up_from_members_that_restarted() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    same_history(&ports).await;
    cluster.members[2].kill().await;
    let two = &ports[..2];
    leader(two).await;
    for n in 0..10 {
        etcdctl(&two[n % 2..=n % 2], &["put", &format!("k{n}"), "1"])
            .await
            .ok();
    }
    for at in [0, 1] {
        cluster.members[at].kill().await;
    }
    for at in [0, 1] {
        cluster.members[at].start();
    }
    eventually(two, &["put", "more", "1"], |_| true).await;
    cluster.members[2].start();
    same_history(&ports).await;
}
