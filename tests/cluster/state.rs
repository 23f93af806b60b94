//! A member whose state differs from the others' is found, stops serving, and can be refilled or replaced.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history, statuses},
    membership::{id, join},
    snapshot::{IN_PLACE, said},
    support::{Cluster, Member},
};
use quorate::internals::{
    codec,
    storage::{
        db::{CommitBatch, Db, DbOptions},
        member,
        real_disk::RealDisk,
    },
    types::Revision,
};
use std::fs;

const CORRUPT: &str = "etcdserver: corrupt cluster";

/// Changes the state of a stopped member, as bad memory or a bug would: its revisions continue from a higher one. All checksums
/// are valid, so its start finds nothing wrong.
fn alter(stopped: &Member) {
    const REVISION: &str = "store.revision";
    let disk = RealDisk::open(stopped.data_dir()).expect("nobody else has the directory");
    let whose = member::read(&disk).expect("the identity can be read");
    let whose = whose.expect("the member has run");
    let options = DbOptions::default();
    let mut db =
        Db::open(&disk, "db/revisions.redb", options, whose.identity).expect("the database opens");
    let stored = db.reader().expect("it can be read").meta(REVISION);
    let stored = stored
        .expect("it can be read")
        .expect("something was stored");
    let revision: Revision = codec::decode(REVISION, &stored).expect("a revision");
    let altered = codec::encode(&Revision(revision.0 + 1));
    let batch = CommitBatch {
        applied: db.applied(),
        meta: vec![(REVISION, Some(altered))],
        ..CommitBatch::default()
    };
    db.commit(&batch).expect("it can be written");
}

/// Stops a member, so that its database has all it applied, alters its state, and starts it again; returns when it follows a
/// leader.
async fn restart_altered(cluster: &mut Cluster, at: usize) {
    let member = &mut cluster.members[at];
    member.stop().await;
    alter(member);
    member.start();
    let port = cluster.members[at].client;
    let follows = |text: &str| !text.contains("\"leader\":0") && text.contains("\"leader\":");
    eventually(&[port], &["endpoint", "status", "-w", "json"], follows).await;
}

/// Three members, of which the follower with this number and id has an altered state.
async fn with_altered_follower() -> (Cluster, usize, String) {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    same_history(&ports).await;
    let at = (leader(&ports).await + 1) % 3;
    let own_id = id(&ports, &cluster.members[at].name.clone()).await;
    restart_altered(&mut cluster, at).await;
    (cluster, at, own_id)
}

/// As the list of alarms shows it.
fn alarm(id: &str) -> String {
    let id = u64::from_str_radix(id, 16).expect("an id");
    format!("memberID:{id} alarm:CORRUPT")
}

async fn serves_nothing(port: u16) {
    let refused = eventually_refused(port, &["get", "k", "--consistency=s"]).await;
    assert!(refused.contains(CORRUPT), "{refused}");
    let calls: [&[&str]; 5] = [
        &["get", "k"],
        &["put", "k", "x"],
        &["del", "k"],
        &["lease", "grant", "10"],
        &["compact", "2"],
    ];
    for args in calls {
        let refused = etcdctl(&[port], args).await.refused();
        assert!(refused.contains(CORRUPT), "{args:?}: {refused}");
    }
}

async fn eventually_refused(port: u16, args: &[&str]) -> String {
    for _ in 0..600 {
        let output = etcdctl(&[port], args).await;
        if !output.good && output.stderr.contains(CORRUPT) {
            return output.stderr;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{args:?} is still served")
}

#[tokio::test]
async fn a_follower_whose_state_differs_takes_itself_out_and_is_replaced() {
    let (mut cluster, at, own_id) = with_altered_follower().await;
    let ports = cluster.ports();
    let others: Vec<u16> = (0..3).filter(|n| *n != at).map(|n| ports[n]).collect();

    etcdctl(&others, &["put", "k", "w"]).await.ok();
    let listed = alarm(&own_id);
    eventually(&others, &["alarm", "list"], |text| text.contains(&listed)).await;
    serves_nothing(ports[at]).await;
    etcdctl(&others, &["put", "k", "x"]).await.ok();
    let list = etcdctl(&ports[at..=at], &["member", "list"]).await.ok();
    assert_eq!(list.lines().count(), 3, "operators are answered: {list}");
    let log = cluster.members[at].log();
    assert!(
        log.contains("the state of this member differs from that of the majority after entry"),
        "{log}"
    );

    cluster.members[at].kill().await;
    cluster.members[at].start();
    eventually_refused(ports[at], &["get", "k", "--consistency=s"]).await;

    eventually(&others, &["member", "remove", &own_id], |_| true).await;
    cluster.members[at].stopped().await;
    etcdctl(&others, &["alarm", "disarm"]).await.ok();
    let new = join(&mut cluster, "n4", &others, &[]).await;
    assert_ne!(new, own_id, "it is another member");
    let mut now = others.clone();
    now.push(cluster.ports()[3]);
    same_history(&now).await;
    let served = eventually(&now[2..], &["get", "k"], |text| text.contains('x'));
    assert_eq!(served.await, "k\nx\n");
}

#[tokio::test]
async fn a_member_whose_state_differs_is_refilled_from_the_others() {
    let (mut cluster, at, own_id) = with_altered_follower().await;
    let ports = cluster.ports();
    let others: Vec<u16> = (0..3).filter(|n| *n != at).map(|n| ports[n]).collect();
    etcdctl(&others, &["put", "k", "w"]).await.ok();
    let listed = alarm(&own_id);
    eventually(&others, &["alarm", "list"], |text| text.contains(&listed)).await;
    eventually_refused(ports[at], &["get", "k", "--consistency=s"]).await;

    // As docs/operations.md says.
    cluster.members[at].kill().await;
    fs::write(cluster.members[at].data_dir().join("refill"), "").expect("the refill request");
    cluster.members[at].start();
    said(&cluster.members[at], IN_PLACE, 1).await;
    eventually(&others, &["alarm", "disarm"], |_| true).await;
    eventually(&ports[at..=at], &["put", "k", "x"], |_| true).await;
    same_history(&ports).await;
    let served = eventually(&ports[at..=at], &["get", "k"], |text| text.contains('x'));
    assert_eq!(served.await, "k\nx\n", "by the member that was refilled");
}

#[tokio::test]
async fn a_leader_that_differs_from_a_majority_hands_on_its_leadership() {
    let (mut cluster, at, own_id) = with_altered_follower().await;
    let ports = cluster.ports();
    // It differs only once it applies something: the first entry of its own leadership.
    eventually(&ports, &["move-leader", &own_id], |_| true).await;
    let others: Vec<u16> = (0..3).filter(|n| *n != at).map(|n| ports[n]).collect();
    let listed = alarm(&own_id);
    eventually(&others, &["alarm", "list"], |text| text.contains(&listed)).await;
    let leads = leader(&ports).await;
    assert_ne!(leads, at, "it must not lead");
    serves_nothing(ports[at]).await;
    eventually(&others, &["put", "k", "w"], |_| true).await;
    let log = cluster.members[at].log();
    assert!(
        log.contains("the state of a member differs from that of the majority"),
        "it was the leader who found it out:\n{log}"
    );
    // The members with the right state are cut off: those that differ must not serve in their place.
    let (first, second) = ((at + 1) % 3, (at + 2) % 3);
    cluster.members[first].kill().await;
    cluster.members[second].kill().await;
    cluster.members[first].start();
    leader(&[ports[first], ports[at]]).await;
    let status = statuses(&ports[at..=at]).await;
    assert_ne!(
        status[0]["leader"], status[0]["header"]["member_id"],
        "it votes, and does not lead"
    );
}

#[tokio::test]
async fn one_against_one_nobody_writes_until_an_operator_decides() {
    let mut cluster = Cluster::start(2).await;
    let ports = cluster.ports();
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    same_history(&ports).await;
    let leads = leader(&ports).await;
    let at = 1 - leads;
    let mut ids = Vec::new();
    for member in &cluster.members {
        ids.push(id(&ports, &member.name).await);
    }
    restart_altered(&mut cluster, at).await;
    // They differ once they apply something.
    etcdctl(&ports[leads..=leads], &["put", "k", "x"])
        .await
        .ok();
    let both = |text: &str| ids.iter().all(|id| text.contains(&alarm(id)));
    eventually(&ports, &["alarm", "list"], both).await;
    for port in &ports {
        let refused = etcdctl(&[*port], &["put", "k", "w"]).await.refused();
        assert!(refused.contains(CORRUPT), "{refused}");
    }
    let logs: String = cluster.members.iter().map(Member::log).collect();
    assert!(logs.contains("no majority agrees"), "{logs}");
    let right = &ports[leads..=leads];
    eventually(right, &["member", "remove", &ids[at]], |_| true).await;
    eventually(right, &["alarm", "disarm"], |_| true).await;
    eventually(right, &["put", "k", "w"], |_| true).await;
}
