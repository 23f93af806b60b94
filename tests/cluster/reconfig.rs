//! Which membership changes are accepted: a quorum of the voters after it must certainly run.

use crate::{
    ctl::{etcdctl, eventually, leader},
    membership::id,
    support::{Cluster, free_port},
};

const UNHEALTHY: &str = "etcdserver: unhealthy cluster";

fn others(of: usize, count: usize) -> Vec<usize> {
    (0..count).filter(|n| *n != of).collect()
}

fn urls() -> String {
    format!("--peer-urls=https://127.0.0.1:{}", free_port())
}

/// Two of five are down. The third has just come back: without it the cluster would be stuck.
#[tokio::test]
async fn a_member_that_has_just_come_back_is_not_removed_if_the_quorum_needs_it() {
    let mut cluster = Cluster::new(5).await;
    for member in &mut cluster.members {
        // The leader goes on leading while no quorum answers.
        member.set("QUORATE_RAFT_ELECTION_MS", "5000");
        member.start();
    }
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let [back, down, gone, _] = others(leads, 5)[..] else {
        unreachable!("four of five do not lead")
    };
    let back_id = id(&ports, &cluster.members[back].name).await;
    for member in [down, gone] {
        cluster.members[member].kill().await;
    }
    // In good order, so that the leader notices at once that this connection has ended.
    cluster.members[back].stop().await;
    cluster.members[back].start();
    eventually(&ports[back..=back], &["put", "k", "v"], |_| true).await;
    let at_leader = &ports[leads..=leads];
    let refused = etcdctl(at_leader, &["member", "remove", &back_id]).await;
    assert!(refused.refused().contains(UNHEALTHY), "it is needed");
    let log = cluster.members[leads].log();
    let back = &cluster.members[back].name;
    for why in [
        "a membership change is refused as unhealthy".to_owned(),
        format!("{back} has been connected for less than 5 s"),
    ] {
        assert!(log.contains(&why), "{why}:\n{log}");
    }
    eventually(at_leader, &["put", "k", "w"], |_| true).await;
}

#[tokio::test]
async fn a_member_that_was_just_killed_does_not_count_as_running() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let [needed, killed] = others(leads, 3)[..] else {
        unreachable!("two of three do not lead")
    };
    // Another voter is accepted only if all three certainly run. It never starts.
    let at_leader = &ports[leads..=leads];
    let add = ["member", "add", "n4", &urls()];
    eventually(at_leader, &add, |_| true).await;
    let needed = id(at_leader, &cluster.members[needed].name).await;
    cluster.members[killed].kill().await;
    let refused = etcdctl(at_leader, &["member", "remove", &needed]).await;
    assert!(refused.refused().contains(UNHEALTHY), "two would be left");
    let (log, killed) = (cluster.members[leads].log(), &cluster.members[killed].name);
    // A connection that broke is noticed after some seconds.
    let whys = ["is not connected", "has not replied since"];
    let said = whys.map(|why| log.contains(&format!("{killed} {why}")));
    assert!(said.contains(&true), "{killed}:\n{log}");
    eventually(at_leader, &["put", "k", "v"], |_| true).await;
}

#[tokio::test]
async fn a_learner_is_added_while_one_of_four_is_down() {
    let mut cluster = Cluster::start(4).await;
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let down = others(leads, 4)[0];
    cluster.members[down].kill().await;
    let add = ["member", "add", "n5", &urls(), "--learner"];
    eventually(&ports[leads..=leads], &add, |_| true).await;
}

#[tokio::test]
async fn a_learner_that_never_started_is_not_in_sync() {
    let cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    let add = ["member", "add", "n2", &urls(), "--learner"];
    let added = eventually(&ports, &add, |_| true).await;
    let learner = added.split_whitespace().nth(1).expect("Member ID added …");
    let refused = etcdctl(&ports, &["member", "promote", learner]).await;
    let expected = "etcdserver: can only promote a learner member which is in sync with leader";
    assert!(refused.refused().contains(expected));
}

#[tokio::test]
async fn without_the_strict_check_a_needed_member_can_be_removed() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.set("QUORATE_CLUSTER_STRICT_RECONFIG_CHECK", "false");
        // The leader goes on leading while no quorum answers.
        member.set("QUORATE_RAFT_ELECTION_MS", "5000");
        member.start();
    }
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let [gone, back] = others(leads, 3)[..] else {
        unreachable!("two of three do not lead")
    };
    let gone = id(&ports, &cluster.members[gone].name).await;
    // One of the two that are to be left has just come back: with the check a cluster refuses this. In good order, so that the
    // leader notices at once that the connection has ended.
    cluster.members[back].stop().await;
    cluster.members[back].start();
    let removed = etcdctl(&ports[leads..=leads], &["member", "remove", &gone]).await;
    removed.ok();
}
