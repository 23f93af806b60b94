//! Locks and elections on a cluster: the queue has one order on all members, and outlives leaders and leases.

use crate::{
    clients::{Clients, PATIENCE, in_line, next_leader},
    ctl::{etcdctl, leader, start_etcdctl},
    support::Cluster,
};
use quorate::internals::api::proto::v3lockpb as lp;
use std::time::Duration;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    task::JoinHandle,
    time::timeout,
};
use tonic::{Code, Status};

/// A cluster, and clients of two members of which neither leads.
async fn start() -> (Cluster, usize, [Clients; 2]) {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let followers = [1, 2].map(|n| Clients::of(ports[(leads + n) % 3]));
    (cluster, leads, followers)
}

async fn soon<T>(waiting: JoinHandle<T>) -> T {
    let done = timeout(PATIENCE, waiting).await;
    done.expect("in time").expect("no panic")
}

async fn unlock(member: &Clients, key: bytes::Bytes) {
    let unlocked = member.locks.clone().unlock(lp::UnlockRequest { key }).await;
    unlocked.expect("the lock is given back");
}

#[tokio::test]
async fn a_lock_passes_in_the_order_of_the_line_though_the_leader_dies() {
    const WAITERS: i64 = 6;
    let (mut cluster, leads, followers) = start().await;
    let port = cluster.ports()[(leads + 1) % 3];
    let holder = followers[0].grant(100, 600).await;
    let mut held = followers[0].lock("L", holder).await.expect("it is free");
    let mut waiting = Vec::new();
    for id in 1..=WAITERS {
        // Through one follower and the other in turn.
        let member = followers[usize::from(id % 2 == 0)].clone();
        let lease = member.grant(id, 600).await;
        waiting.push(tokio::spawn(async move { member.lock("L", lease).await }));
        in_line(port, "L/", usize::try_from(id).expect("small") + 1).await;
    }
    cluster.members[leads].kill().await;
    leader(&[1, 2].map(|n| cluster.ports()[(leads + n) % 3])).await;
    let mut created = 0;
    for (id, next) in (1..=WAITERS).zip(waiting) {
        assert!(!next.is_finished(), "{id} waits for its turn");
        unlock(&followers[0], held.key).await;
        held = soon(next).await.expect("its turn");
        assert_eq!(held.key, format!("L/{id:x}"));
        let range = quorate::internals::api::proto::etcdserverpb::RangeRequest {
            key: held.key.clone(),
            ..Default::default()
        };
        let found = followers[1].kv.clone().range(range).await.expect("a range");
        let now = found.into_inner().kvs[0].create_revision;
        assert!(now > created, "each holder's key is younger: the fence");
        created = now;
    }
    // The member that died comes back and serves the same queue.
    cluster.members[leads].start();
    leader(&cluster.ports()).await;
    let member = Clients::of(cluster.ports()[leads]);
    let again = member
        .lock("L", WAITERS)
        .await
        .expect("it holds it already");
    assert_eq!(again.key, held.key);
}

#[tokio::test]
async fn a_lease_that_is_lost_while_waiting_or_holding_leaves_the_line() {
    let (cluster, leads, [one, other]) = start().await;
    let port = cluster.ports()[(leads + 1) % 3];
    let (holder, loser, next) = (0xa, 0xb, 0xc);
    for id in [holder, loser, next] {
        one.grant(id, 600).await;
    }
    one.lock("L", holder).await.expect("it is free");
    let line = |id| {
        let member = other.clone();
        tokio::spawn(async move { member.lock("L", id).await })
    };
    let waits = line(loser);
    in_line(port, "L/", 2).await;
    let third = line(next);
    in_line(port, "L/", 3).await;
    // The lease ends while its client waits: the call fails, and those behind it still wait for the owner.
    one.revoke(loser).await.expect("it is there");
    let refused = soon(waits).await.unwrap_err();
    let expected = (Code::Unknown, "mutex: session is expired");
    assert_eq!((refused.code(), refused.message()), expected);
    assert!(!third.is_finished());
    // The lease of the owner ends: the next one gets the lock.
    other.revoke(holder).await.expect("it is there");
    assert_eq!(soon(third).await.expect("its turn").key, "L/c");
    // The same when the lease expires instead of being revoked.
    let short = one.grant(0xd, 2).await;
    one.revoke(next).await.expect("it is there");
    match one.lock("L", short).await {
        Ok(locked) => assert_eq!(locked.key, "L/d"),
        // On a slow machine its two seconds are over before it asks.
        Err(gone) => assert_eq!(gone.message(), "etcdserver: requested lease not found"),
    }
    let next = other.grant(0xe, 600).await;
    let next = timeout(PATIENCE, other.lock("L", next)).await;
    assert_eq!(next.expect("in time").expect("its turn").key, "L/e");
}

#[tokio::test]
async fn an_election_goes_on_through_leader_changes_and_observers_see_it_all() {
    let (mut cluster, leads, [one, other]) = start().await;
    let port = cluster.ports()[(leads + 1) % 3];
    let (first, second) = (one.grant(0xa, 600).await, other.grant(0xb, 600).await);
    let leading = one.campaign("E", first, "1a").await.expect("nobody leads");
    // Observers at both members, beginning with the present leader.
    let mut observers = [one.observe("E").await, other.observe("E").await];
    let mut seen = [Vec::new(), Vec::new()];
    for (observer, seen) in observers.iter_mut().zip(&mut seen) {
        seen.push(next_leader(observer).await);
    }
    let waits = {
        let other = other.clone();
        tokio::spawn(async move { other.campaign("E", second, "2a").await })
    };
    in_line(port, "E/", 2).await;
    one.proclaim(&leading, "1b").await.expect("it leads");
    cluster.members[leads].kill().await;
    leader(&[1, 2].map(|n| cluster.ports()[(leads + n) % 3])).await;
    assert!(!waits.is_finished());
    other
        .proclaim(&leading, "1c")
        .await
        .expect("it still leads");
    one.resign(&leading).await.expect("it gives up");
    one.resign(&leading).await.expect("twice is no error");
    let late = one.proclaim(&leading, "1d").await.unwrap_err();
    let expected = (Code::Unknown, "election: not leader");
    assert_eq!((late.code(), late.message()), expected);
    let next = soon(waits).await.expect("its turn");
    assert_eq!(next.key, "E/b");
    assert!(next.rev > leading.rev, "the fence");
    one.proclaim(&next, "2b").await.expect("it leads");
    for (observer, seen) in observers.iter_mut().zip(&mut seen) {
        while seen.last().is_some_and(|last| last != "2b") {
            seen.push(next_leader(observer).await);
        }
        assert_eq!(seen, &["1a", "1b", "1c", "2a", "2b"]);
    }
    // Its lease ends: no member has a leader for the election.
    other.revoke(second).await.expect("it is there");
    let name = quorate::internals::api::proto::v3electionpb::LeaderRequest { name: "E".into() };
    let nobody = one.elections.clone().leader(name).await.unwrap_err();
    assert_eq!(
        (nobody.code(), nobody.message()),
        (Code::Unknown, "election: no leader")
    );
}

/// A process that was paused until its lease had ended still behaves as the owner. Its writes compare the creation revision of
/// the lock's key, and changes nothing.
#[tokio::test]
async fn a_fenced_write_of_a_former_holder_changes_nothing() {
    use quorate::internals::api::proto::etcdserverpb as pb;
    let (_cluster, _, [one, other]) = start().await;
    let guarded = async |member: &Clients, lock: &bytes::Bytes, created: i64, value: &str| {
        let compare = pb::Compare {
            result: pb::compare::CompareResult::Equal.into(),
            target: pb::compare::CompareTarget::Create.into(),
            key: lock.clone(),
            target_union: Some(pb::compare::TargetUnion::CreateRevision(created)),
            ..pb::Compare::default()
        };
        let put = pb::PutRequest {
            key: "config".into(),
            value: value.to_owned().into(),
            ..pb::PutRequest::default()
        };
        let txn = pb::TxnRequest {
            compare: vec![compare],
            success: vec![pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(put)),
            }],
            failure: Vec::new(),
        };
        let done = member.kv.clone().txn(txn).await.expect("a verdict");
        done.into_inner().succeeded
    };
    let created = async |key: &bytes::Bytes| {
        let key = key.clone();
        let range = pb::RangeRequest {
            key,
            ..pb::RangeRequest::default()
        };
        let found = one.kv.clone().range(range).await.expect("a range");
        found.into_inner().kvs.first().map(|kv| kv.create_revision)
    };
    let (first, second) = (one.grant(0xa, 600).await, other.grant(0xb, 600).await);
    let held = one.lock("L", first).await.expect("it is free").key;
    let token = created(&held).await.expect("the lock's key");
    assert!(
        guarded(&one, &held, token, "by the first").await,
        "it holds the lock"
    );
    // The first is paused; meanwhile its lease ends and another holds the lock.
    other.revoke(first).await.expect("it is there");
    let next = other.lock("L", second).await.expect("its turn").key;
    let newer = created(&next).await.expect("the lock's key");
    assert!(newer > token, "tokens grow from holder to holder");
    assert!(guarded(&other, &next, newer, "by the second").await);
    assert!(
        !guarded(&one, &held, token, "late").await,
        "it is fenced off"
    );
    // The same lease id in the queue again is another owner: its old token is invalid.
    one.grant(first, 600).await;
    unlock(&other, next).await;
    assert_eq!(one.lock("L", first).await.expect("its turn").key, held);
    assert!(
        !guarded(&one, &held, token, "later").await,
        "it is fenced off"
    );
    let range = pb::RangeRequest {
        key: "config".into(),
        ..pb::RangeRequest::default()
    };
    let config = other.kv.clone().range(range).await.expect("a range");
    assert_eq!(config.into_inner().kvs[0].value, "by the second");
}

/// Lines of a child's standard output.
async fn lines(
    lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    count: usize,
) -> Vec<String> {
    let mut all = Vec::new();
    for _ in 0..count {
        let line = timeout(PATIENCE, lines.next_line()).await;
        let line = line.expect("a line in time").expect("it can be read");
        all.push(line.expect("etcdctl goes on"));
    }
    all
}

#[tokio::test]
async fn etcdctl_locks_and_elects_at_followers() {
    let (cluster, leads, _) = start().await;
    let ports = cluster.ports();
    let [one, other] = [1, 2].map(|n| ports[(leads + n) % 3]);
    let (first, second) = ([one], [other]);
    let (a, b) = tokio::join!(
        etcdctl(&first, &["lock", "L", "echo", "a"]),
        etcdctl(&second, &["lock", "L", "echo", "b"]),
    );
    assert_eq!((a.ok().as_str(), b.ok().as_str()), ("a\n", "b\n"));
    in_line(one, "L/", 0).await;

    let mut first = start_etcdctl(one, &["elect", "E", "one"]);
    let mut output = BufReader::new(first.stdout.take().expect("a pipe")).lines();
    let won = lines(&mut output, 2).await;
    assert!(won[0].starts_with("E/") && won[1] == "one", "{won:?}");
    let mut observer = start_etcdctl(other, &["elect", "-l", "E"]);
    let mut sees = BufReader::new(observer.stdout.take().expect("a pipe")).lines();
    assert_eq!(lines(&mut sees, 2).await, won);
    let mut second = start_etcdctl(other, &["elect", "E", "two"]);
    let mut later = BufReader::new(second.stdout.take().expect("a pipe")).lines();
    in_line(one, "E/", 2).await;
    // The first one stops as a user would stop it, and resigns.
    let id = rustix::process::Pid::from_raw(first.id().expect("it runs").cast_signed());
    rustix::process::kill_process(id.expect("not zero"), rustix::process::Signal::INT)
        .expect("it takes signals");
    let won = lines(&mut later, 2).await;
    assert!(won[0].starts_with("E/") && won[1] == "two", "{won:?}");
    assert_eq!(lines(&mut sees, 2).await, won);
    first.wait().await.expect("it ends");
}

#[tokio::test]
async fn a_waiter_that_gives_up_leaves_the_line_at_any_member() {
    let (cluster, leads, [one, other]) = start().await;
    let port = cluster.ports()[(leads + 1) % 3];
    for id in [0xa, 0xb, 0xc] {
        one.grant(id, 600).await;
    }
    let held = one.lock("L", 0xa).await.expect("it is free");
    let mut bounded = tonic::Request::new(lp::LockRequest {
        name: "L".into(),
        lease: 0xb,
    });
    bounded.set_timeout(Duration::from_secs(1));
    let given_up: Result<_, Status> = other.locks.clone().lock(bounded).await;
    assert!(given_up.is_err(), "{given_up:?}");
    in_line(port, "L/", 1).await;
    let waits = {
        let other = other.clone();
        tokio::spawn(async move { other.lock("L", 0xc).await })
    };
    in_line(port, "L/", 2).await;
    waits.abort();
    in_line(port, "L/", 1).await;
    unlock(&other, held.key).await;
    in_line(port, "L/", 0).await;
}
