//! A read of the log that never ends: leadership stays, and every member but the follower that needs the entries goes on.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history, statuses},
    membership::id,
    snapshot::{fill, said},
    support::Cluster,
};

const STALLS: &str = "a read of the write-ahead log does not end";

/// Members that start keep no applied entry in memory but the last, so a follower that was away makes the leader read its log.
#[tokio::test]
async fn consensus_goes_on_while_a_read_of_the_log_stalls() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    cluster.members[2].kill().await;
    leader(&ports[..2]).await;
    fill(&ports[..2], "away/", 300).await;
    for member in &mut cluster.members[..2] {
        member.stop().await;
    }
    cluster.members[0].set("FAILPOINTS", "before-log-read=sleep(86400000)");
    for member in &mut cluster.members[..2] {
        // A loaded machine alone must not cause an election.
        member.set("QUORATE_RAFT_ELECTION_MS", "5000");
        member.start();
    }
    if leader(&ports[..2]).await != 0 {
        let first = id(&ports[..2], &cluster.members[0].name).await;
        etcdctl(&ports[..2], &["move-leader", &first]).await.ok();
        assert_eq!(leader(&ports[..2]).await, 0, "it was asked to lead");
    }
    let term = statuses(&ports[..1]).await[0]["raftTerm"].clone();

    cluster.members[2].set("QUORATE_RAFT_ELECTION_MS", "5000");
    cluster.members[2].start();
    said(&cluster.members[0], STALLS, 1).await;
    for n in 0..20 {
        let key = format!("during/{n}");
        etcdctl(&ports[..1], &["put", &key, "v"]).await.ok();
        let got = eventually(&ports[1..2], &["get", &key], |_| true).await;
        assert_eq!(got, format!("{key}\nv\n"), "at a follower, linearizable");
    }
    assert_eq!(
        leader(&ports).await,
        0,
        "also the one that waits follows it"
    );
    let after = statuses(&ports[..1]).await[0]["raftTerm"].clone();
    assert_eq!(after, term, "no election");

    // An election succeeds as well, and the disk of the new leader works.
    let second = id(&ports[..2], &cluster.members[1].name).await;
    etcdctl(&ports[..1], &["move-leader", &second]).await.ok();
    same_history(&ports).await;
    assert_eq!(leader(&ports).await, 1);
}
