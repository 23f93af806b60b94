//! A member whose database is damaged or suspect is refilled, and keeps its votes and acknowledgements.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    snapshot::{IN_PLACE, fill, follower, said},
    support::Cluster,
};
use std::fs;

const DATABASE: &str = "db/revisions.redb";

#[tokio::test]
async fn a_damaged_database_is_put_aside_and_replaced() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    fill(&ports, "k/", 300).await;
    same_history(&ports).await;
    let at = follower(&cluster).await;
    cluster.members[at].kill().await;
    let folder = cluster.members[at].data_dir();
    let mut bytes = fs::read(folder.join(DATABASE)).expect("the database");
    for byte in bytes.iter_mut().skip(4_096).step_by(512) {
        *byte ^= 0xff;
    }
    fs::write(folder.join(DATABASE), bytes).expect("it is damaged");
    let refusal = cluster.members[at].refusal().await;
    assert!(refusal.contains("is damaged"), "{refusal}");

    // It does not matter whether the leader's log still has what the others wrote meanwhile.
    let alive: Vec<u16> = ports.iter().copied().filter(|p| *p != ports[at]).collect();
    leader(&alive).await;
    fill(&alive, "while/", 300).await;
    fs::write(folder.join("refill"), "as the operator wishes").expect("the wish");
    cluster.members[at].start();
    said(&cluster.members[at], IN_PLACE, 1).await;
    same_history(&ports).await;
    assert!(!folder.join("refill").exists(), "the wish is granted");
    let aside = folder.join(format!("{DATABASE}.aside"));
    assert!(aside.exists(), "the old one is kept for inspection");
    assert_eq!(keys(ports[at], "while/").await, 300, "all of them");
    let written = eventually(&ports[at..=at], &["put", "at", "it"], |_| true).await;
    assert_eq!(written, "OK\n");

    cluster.members[at].kill().await;
    cluster.members[at].start();
    same_history(&ports).await;
    let log = cluster.members[at].log();
    assert_eq!(log.matches(IN_PLACE).count(), 1, "once is enough: {log}");
}

#[tokio::test]
async fn a_member_that_waits_for_a_snapshot_votes_and_serves_nobody() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    fill(&ports, "k/", 300).await;
    same_history(&ports).await;
    for member in &mut cluster.members {
        member.kill().await;
    }
    // One member awaits a snapshot, one other runs: the other needs the vote of the first to be elected, and then sends it the
    // snapshot.
    fs::write(cluster.members[0].data_dir().join("refill"), "").expect("the wish");
    cluster.members[0].start();
    said(&cluster.members[0], "this member has no state", 1).await;
    let refused = etcdctl(
        &ports[..1],
        &["--command-timeout=1s", "get", "k/", "--consistency=s"],
    );
    refused.await.refused();
    cluster.members[1].start();
    said(&cluster.members[0], IN_PLACE, 1).await;
    assert_eq!(leader(&ports[..2]).await, 1, "only it can lead at first");
    assert_eq!(keys(ports[0], "k/").await, 300, "all of them");
    cluster.members[2].start();
    same_history(&ports).await;
}

#[tokio::test]
async fn a_member_that_is_alone_cannot_be_refilled() {
    let mut cluster = Cluster::start(1).await;
    etcdctl(&cluster.ports(), &["put", "k", "v"]).await.ok();
    cluster.members[0].kill().await;
    let wish = cluster.members[0].data_dir().join("refill");
    fs::write(&wish, "").expect("the wish");
    let refusal = cluster.members[0].refusal().await;
    assert!(refusal.contains("it is the only member"), "{refusal}");
    fs::remove_file(&wish).expect("the wish is withdrawn");
    cluster.members[0].start();
    let got = eventually(&cluster.ports(), &["get", "k"], |text| text.contains('v')).await;
    assert_eq!(got, "k\nv\n", "the database is as it was");
}
