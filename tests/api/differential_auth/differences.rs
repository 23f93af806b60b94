//! The deliberate differences that random steps avoid, a test for each: what etcd does, and what Quorate does.

use super::{
    Deliberate, Pair, comparable,
    side::Side,
    steps::{Step, Who, range, revival},
};
use quorate::internals::api::proto::{v3electionpb as ep, v3lockpb as lp};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::Code;

const LONG: Duration = Duration::from_secs(30);
const ROOT: Who = Who::User("root");
const A: Who = Who::User("a");

/// Both servers with authentication on, where `a` may read and write a range, and leases 1 and 2; `None` beside an old etcd.
async fn with_users(difference: Deliberate, range: (&'static str, &'static str)) -> Option<Pair> {
    if !comparable() {
        return None;
    }
    let mut pair = Pair::start().await;
    let steps = [
        Step::AddUser("a", "one", false),
        Step::AddRole("r"),
        Step::Grant("r", 2, Some(range)),
        Step::GrantRole("a", "r"),
        Step::GrantLease(1),
        Step::GrantLease(2),
    ];
    let steps = steps.into_iter().chain(revival());
    let steps = steps.chain([Step::LogIn("a", "one")]);
    let at = format!("{difference:?}");
    pair.all_same(steps.map(|step| (Who::Nobody, step)), &at)
        .await;
    Some(pair)
}

/// How many keys a range has at each.
async fn counts(pair: &mut Pair, key: &'static str, end: &'static str) -> (usize, usize) {
    let (our, their) = pair.answers(ROOT, &range(key, end)).await;
    let count = |answer: &str| answer.matches("KeyValue {").count();
    (count(&our), count(&their))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_permission_with_a_key_is_not_stored_twice() {
    let Some(mut pair) = with_users(Deliberate::TwinPermission, ("b", "d")).await else {
        return;
    };
    let grant = |kind| (ROOT, Step::Grant("r", kind, Some(("b", ""))));
    pair.all_same([grant(2), (ROOT, Step::GetRole("r"))], "twins")
        .await;
    // etcd looks at the first permission with the key alone.
    pair.all_same([grant(0)], "again").await;
    let (our, their) = pair.answers(ROOT, &Step::GetRole("r")).await;
    let count = |answer: &str| answer.matches("Permission {").count();
    assert_eq!((count(&our), count(&their)), (2, 3), "{our}\n{their}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_who_may_not_read_leaves_no_key() {
    let Some(mut pair) = with_users(Deliberate::CandidateWithoutRead, ("c/1/1", "")).await else {
        return;
    };
    let answer = pair.same(A, &Step::Lock("c/1", 1), "a lock").await;
    assert_eq!(answer, "Unknown: etcdserver: permission denied");
    // The key of the two is `c/1/1`: only the others in the queue are hidden.
    assert_eq!(counts(&mut pair, "c", "d").await, (0, 0), "a lock");
    let (our, their) = pair.answers(A, &Step::Campaign("c/1", 1)).await;
    assert_eq!(our, "Unknown: etcdserver: permission denied");
    assert_eq!(their, our, "etcd says the same");
    let left = counts(&mut pair, "c", "d").await;
    assert_eq!(left, (0, 1), "but the candidate stays in the queue");
}

/// How `Observe` by `a` ends: with an error, or without one.
async fn observed(side: &Side) -> Result<(), (Code, String)> {
    let mut elections = ep::election_client::ElectionClient::new(side.channel.clone());
    let request = ep::LeaderRequest { name: "e/2".into() };
    let shown = |status: tonic::Status| (status.code(), status.message().to_owned());
    let answers = elections.observe(side.by(A, request)).await;
    let first = answers.map_err(shown)?.into_inner().message().await;
    assert!(!matches!(first, Ok(Some(_))), "a leader: {first:?}");
    first.map(drop).map_err(shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_who_may_not_read_is_told_so() {
    let Some(mut pair) = with_users(Deliberate::ObserverWithoutRead, ("b", "d")).await else {
        return;
    };
    pair.same(ROOT, &Step::Campaign("e/2", 2), "a leader").await;
    let observing = async { tokio::join!(observed(&pair.ours), observed(&pair.theirs)) };
    let (our, their) = timeout(LONG, observing).await.expect("both end");
    let denied = (Code::Unknown, "etcdserver: permission denied".to_owned());
    assert_eq!(our, Err(denied));
    assert_eq!(their, Ok(()), "etcd ends the stream");
}

/// Waits for the lock `b/1` with lease 2.
async fn wait_for_lock(side: &Side) -> Result<(), (Code, String)> {
    let mut locks = lp::lock_client::LockClient::new(side.channel.clone());
    let (name, lease) = ("b/1".into(), 2);
    let waiting = locks.lock(side.by(A, lp::LockRequest { name, lease }));
    let outcome = timeout(LONG, waiting).await.expect("its turn comes");
    outcome
        .map(drop)
        .map_err(|status| (status.code(), status.message().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_who_may_not_write_gets_no_lock() {
    let Some(mut pair) = with_users(Deliberate::WaiterWithoutWrite, ("b", "d")).await else {
        return;
    };
    pair.same(ROOT, &Step::Lock("b/1", 1), "the holder").await;
    let waiters = async { tokio::join!(wait_for_lock(&pair.ours), wait_for_lock(&pair.theirs)) };
    // The sides are borrowed while the waiters wait, so others drive what happens meanwhile.
    let (mut ours, mut theirs) = (pair.ours.another(), pair.theirs.another());
    let meanwhile = async {
        for side in [&mut ours, &mut theirs] {
            let queue = range("b/1/", "b/10");
            while side.run(ROOT, &queue).await.matches("KeyValue {").count() < 2 {
                sleep(Duration::from_millis(20)).await;
            }
            side.run(ROOT, &Step::Grant("r", 0, Some(("b", "d")))).await;
            side.run(ROOT, &Step::Unlock("b/1/1")).await;
        }
    };
    let ((our, their), ()) = tokio::join!(waiters, meanwhile);
    let denied = (Code::Unknown, "etcdserver: permission denied".to_owned());
    assert_eq!(our, Err(denied));
    assert_eq!(their, Ok(()), "etcd gives it the lock");
    let left = counts(&mut pair, "b/1/", "b/10").await;
    assert_eq!(left, (0, 1), "it has left the queue");
}
