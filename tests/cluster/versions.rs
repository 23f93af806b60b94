//! Members of two versions of the peer protocol, as in a rolling upgrade: each serves writes through a leader of the other
//! version.

use crate::{
    ctl::{etcdctl, leader, same_history},
    support::Cluster,
};

/// Makes a member behave as one that speaks version 1 only.
const FIRST_VERSION: &str = "first-peer-version=return";
/// A busy machine alone must not cause an election.
const ELECTION_MS: &str = "10000";

async fn all_serve(ports: &[u16], stage: &str) {
    for port in ports {
        for call in [
            ["put", stage, "v"].as_slice(),
            &["get", stage],
            &["lease", "grant", "600"],
            &["del", stage],
        ] {
            let output = etcdctl(&[*port], call).await;
            assert!(output.good, "{stage}: {call:?} at {port}: {output:?}");
        }
    }
}

#[tokio::test]
async fn members_of_two_versions_serve_through_each_other_and_are_upgraded_one_by_one() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.set("FAILPOINTS", FIRST_VERSION);
        member.set("QUORATE_RAFT_ELECTION_MS", ELECTION_MS);
        member.start();
    }
    let ports = cluster.ports();
    let led = leader(&ports).await;
    all_serve(&ports, "all are old").await;
    // The leader comes last, so that new followers have an old leader.
    for at in [(led + 1) % 3, (led + 2) % 3] {
        cluster.members[at].stop().await;
        cluster.members[at].unset("FAILPOINTS");
        cluster.members[at].start();
        assert_eq!(leader(&ports).await, led, "it stayed");
        all_serve(&ports, "the leader is old").await;
    }
    // The next leader is new, and this one comes back as an old follower first.
    cluster.members[led].stop().await;
    cluster.members[led].start();
    assert_ne!(leader(&ports).await, led, "a follower took over");
    all_serve(&ports, "a follower is old").await;
    cluster.members[led].stop().await;
    cluster.members[led].unset("FAILPOINTS");
    cluster.members[led].start();
    leader(&ports).await;
    all_serve(&ports, "all are new").await;
    same_history(&ports).await;
}
