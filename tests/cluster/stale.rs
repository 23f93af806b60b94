//! A member without data among members that are behind. `src/node/questions/mod.rs` has the other direction, and all sizes.

use crate::{
    ctl::{eventually, keys, leader},
    snapshot::said,
    support::Cluster,
};
use std::fs;

#[tokio::test]
async fn a_member_that_is_behind_does_not_start_one_that_lost_its_disk() {
    let mut cluster = Cluster::new(3).await;
    let ports = cluster.ports();
    // n1 stops as soon as the others elect, so it never learns that they run. They elect once all three have started.
    cluster.members[0].set("FAILPOINTS", "before-hard-state=return");
    for (member, election) in cluster.members.iter_mut().zip(["50000", "4000", "4000"]) {
        member.set("QUORATE_RAFT_ELECTION_MS", election);
        member.start();
    }
    cluster.members[0].stopped().await;
    cluster.members[0].unset("FAILPOINTS");
    cluster.members[0].unset("QUORATE_RAFT_ELECTION_MS");
    leader(&ports[1..]).await;
    for n in 0..20 {
        let put = ["put", &format!("k{n}"), "v"];
        eventually(&ports[1..], &put, |_| true).await;
    }
    for at in [1, 2] {
        cluster.members[at].kill().await;
    }
    // n3 and n2 acknowledged everything, and n3 loses its disk.
    fs::remove_dir_all(cluster.members[2].data_dir()).expect("the directory goes");
    cluster.members[0].start();
    cluster.members[2].start();
    said(
        &cluster.members[2],
        "not started yet: the other members have to say",
        1,
    )
    .await;
    assert!(cluster.members[2].runs(), "it waits");
    cluster.members[1].start();
    let status = cluster.members[2].stopped().await;
    assert!(!status.success(), "a quorum says that it has run");
    let log = cluster.members[2].log();
    assert!(
        log.contains("has been part of this cluster already"),
        "{log}"
    );
    assert_eq!(keys(ports[0], "k").await, 20, "nothing is lost");
}
