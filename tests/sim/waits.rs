//! How long clients wait while members stand still or are slow.
//!
//! Two rules, looked at after each step for every call that has no answer yet:
//!
//! 1. **No call takes longer than a request may take** (five seconds and two election timeouts, as in etcd), counted while its
//!    member runs. A process that stands still answers nobody, and its client ends the call itself; once it goes on, the time
//!    counts from then.
//! 2. **No call takes longer than two seconds where a leader can be had**, counted from when that became so. A member has such a
//!    leader ([`Watched::is_led`]) while it runs, follows the leader of the newest term or is it, is connected to it, has applied
//!    nearly all that it has committed, and no disk of theirs stalls; and while the leader has the same with a majority.
//!
//! Both hold with [`SLACK_MILLIS`]: the way to the member and back, and the intervals at which a member looks at deadlines.
//! When a leader is stopped in good order, no write waits for an election at all: the last test.
//! What clients of a real member see besides, above `Requests`, is in `tests/cluster/frozen.rs` and `deadlines.rs`.

use crate::{
    clients::Client,
    cluster::{Cluster, Crash, DISK_TAKES, ELECTION_MILLIS},
    network::Slot,
    scene::{SEEDS, Scene, of},
};
use quorate::internals::{
    actors::requests::RequestError,
    kv::command::{Put, Txn, TxnOp},
    types::LeaseId,
};
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

const SIZE: usize = 3;
/// How long a request may take.
const TIME_OUT_MILLIS: u64 = 5_000 + 2 * ELECTION_MILLIS;
/// How long a request may take where a leader can be had.
const LED_MILLIS: u64 = 2_000;
/// A member looks at deadlines every 250 ms or more often, and a call is under way for 16 ms at most.
const SLACK_MILLIS: u64 = 300;
/// A client's own bound, which is never needed.
const PATIENCE_MILLIS: u64 = 60_000;
/// Clients of each member: each has one call under way.
const CLIENTS: u64 = 6;
/// The longest pause of a client between two calls.
const PAUSE_MILLIS: u64 = 20;
/// The kinds of calls, of which puts are the first.
const KINDS: u64 = 6;
const PUT: u64 = 0;
/// A member that has so many entries less applied than the leader has committed is behind: it may need a snapshot.
const BEHIND_ENTRIES: u64 = 100;
/// How long a process stands still, and how long a stalled write takes: one is long enough for an election, the other longer
/// than a request may take.
const STANDS_MILLIS: u64 = 5_000;
const STALLS_MILLIS: u64 = 10_000;
/// Writes of so long a time begin during a stall.
const STALL_BEGINS_MILLIS: u64 = 500;
/// How long a write takes at most on a slow disk.
const SLOW: Duration = Duration::from_millis(150);
/// The cluster has so much time for itself after each trouble.
const QUIET_MILLIS: u64 = 3_000;
/// How long it may take until every member has a leader again: one that stood still may need a snapshot.
const HEALED_MILLIS: u64 = 20_000;

/// What happens to the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    LeaderStands,
    FollowerStands,
    LeaderStalls,
    FollowerStalls,
    /// So no write can be committed.
    MajorityStalls,
    AllDisksAreSlow,
    LeaderIsCutOff,
}

const TROUBLES: [Trouble; 7] = [
    Trouble::LeaderStands,
    Trouble::FollowerStands,
    Trouble::LeaderStalls,
    Trouble::FollowerStalls,
    Trouble::MajorityStalls,
    Trouble::AllDisksAreSlow,
    Trouble::LeaderIsCutOff,
];

/// Calls under way, and how the others ended.
#[derive(Default)]
struct Calls {
    /// Each with its member, its kind, and when it began.
    open: BTreeMap<u64, (Slot, u64, u64)>,
    next: u64,
    failed: u64,
    /// The kinds that succeeded.
    succeeded: BTreeSet<u64>,
    /// A member that is about to stop, or does not run: clients go elsewhere.
    leaving: Option<Slot>,
    over: bool,
}

impl Calls {
    fn begin(&mut self, slot: Slot, kind: u64, client: &Client) -> u64 {
        self.next += 1;
        let began = client.now() / 1_000;
        self.open.insert(self.next, (slot, kind, began));
        self.next
    }

    fn end(&mut self, id: u64, kind: u64, outcome: Option<&Result<(), RequestError>>) {
        self.open.remove(&id);
        match outcome {
            Some(Ok(())) => {
                self.succeeded.insert(kind);
            }
            Some(Err(_)) => self.failed += 1,
            None => panic!("call {id} of kind {kind} has no answer"),
        }
    }

    fn any_at(&self, slot: Slot) -> bool {
        self.open.values().any(|(other, ..)| *other == slot)
    }
}

/// What the rules need to know of the members: it is brought up to date after each step.
struct Watched {
    calls: Rc<RefCell<Calls>>,
    /// Since when each member's process runs; `None` while it stands still.
    runs: Vec<Option<u64>>,
    /// Since when each member has a leader that can be had.
    led: Vec<Option<u64>>,
    /// Until when each member's disk may stall, or its links are bad.
    troubled: Vec<u64>,
}

impl Watched {
    fn new(calls: Rc<RefCell<Calls>>) -> Self {
        Self {
            calls,
            runs: vec![Some(0); SIZE],
            led: vec![None; SIZE],
            troubled: vec![0; SIZE],
        }
    }

    fn trouble(&mut self, slot: Slot, until: u64) {
        self.troubled[slot] = until.max(self.troubled[slot]);
    }

    fn run(&mut self, cluster: &mut Cluster, millis: u64) {
        let until = cluster.now + millis;
        while cluster.now < until {
            cluster.step();
            self.look(cluster);
        }
    }

    /// Runs until every member has a leader that can be had.
    fn run_until_led(&mut self, cluster: &mut Cluster) {
        let until = cluster.now + HEALED_MILLIS;
        while self.led.contains(&None) {
            assert!(cluster.now < until, "not all have one: {:?}", self.led);
            cluster.step();
            self.look(cluster);
        }
    }

    fn look(&mut self, cluster: &Cluster) {
        let now = cluster.now;
        for slot in 0..SIZE {
            let keep = |since: &mut Option<u64>, holds: bool| {
                *since = holds.then(|| since.unwrap_or(now));
            };
            let led = self.is_led(cluster, slot);
            keep(&mut self.runs[slot], cluster.is_running(slot));
            keep(&mut self.led[slot], led);
        }
        for (slot, kind, began) in self.calls.borrow().open.values() {
            let waited =
                |since: Option<u64>| since.map(|since| now.saturating_sub(since.max(*began)));
            let rules = [
                ("its member runs", waited(self.runs[*slot]), TIME_OUT_MILLIS),
                ("there is a leader", waited(self.led[*slot]), LED_MILLIS),
            ];
            for (rule, waited, most) in rules {
                assert!(
                    waited.is_none_or(|waited| waited <= most + SLACK_MILLIS),
                    "at {now} ms a call of kind {kind} at n{}, which began at {began} ms, has waited for {waited:?} ms \
                     while {rule}",
                    slot + 1
                );
            }
        }
    }

    /// Whether the member on `slot` has a leader that can answer it and that can commit.
    fn is_led(&self, cluster: &Cluster, slot: Slot) -> bool {
        let Some(leader) = cluster.leader() else {
            return false;
        };
        let follow = (0..SIZE).filter(|other| self.follows(cluster, *other, leader));
        follow.count() > SIZE / 2
            && self.follows(cluster, leader, leader)
            && self.follows(cluster, slot, leader)
    }

    fn follows(&self, cluster: &Cluster, slot: Slot, leader: Slot) -> bool {
        let status = |slot| cluster.requests(slot).and_then(|it| it.status().ok());
        let (Some(own), Some(leaders)) = (status(slot), status(leader)) else {
            return false;
        };
        let connected = slot == leader || cluster.network.borrow().connected(slot, leader);
        connected
            && cluster.is_running(slot)
            && self.troubled[slot] < cluster.now
            && own.leader == Some(leaders.member)
            && own.term == leaders.term
            && own.applied.0 + BEHIND_ENTRIES >= leaders.commit.0
    }
}

/// Calls a member all the time.
async fn keep_calling(client: Client, slot: Slot, calls: Rc<RefCell<Calls>>) {
    while !calls.borrow().over {
        let kind = client.below(KINDS);
        let id = calls.borrow_mut().begin(slot, kind, &client);
        let outcome = call(&client, slot, kind).await;
        calls.borrow_mut().end(id, kind, outcome.as_ref());
        client.pause(client.below(PAUSE_MILLIS)).await;
    }
}

/// Writes at a member all the time, and at the next one while that member is leaving.
async fn keep_writing(client: Client, own: Slot, calls: Rc<RefCell<Calls>>) {
    while !calls.borrow().over {
        let leaves = calls.borrow().leaving == Some(own);
        let slot = if leaves { (own + 1) % SIZE } else { own };
        let id = calls.borrow_mut().begin(slot, PUT, &client);
        let outcome = call(&client, slot, PUT).await;
        calls.borrow_mut().end(id, PUT, outcome.as_ref());
        client.pause(client.below(PAUSE_MILLIS)).await;
    }
}

/// A call of one of the kinds that need a leader.
async fn call(client: &Client, slot: Slot, kind: u64) -> Option<Result<(), RequestError>> {
    let put = Put {
        key: format!("k{kind}").into(),
        value: "v".into(),
        ..Put::default()
    };
    let answer = client.call(slot, PATIENCE_MILLIS, move |requests| async move {
        match kind {
            PUT => requests.put(put).await.map(drop),
            1 => requests.range(of("k0")).await.map(drop),
            2 => {
                let txn = Txn {
                    success: vec![TxnOp::Range(of("k0")), TxnOp::Put(put)],
                    ..Txn::default()
                };
                requests.txn(txn).await.map(drop)
            }
            3 => requests.members(true).await.map(drop),
            4 => requests.grant_lease(None, 600).await.map(drop),
            _ => requests.time_to_live(LeaseId(1), false).await.map(drop),
        }
    });
    answer.await
}

/// One trouble, from its beginning until the cluster has had some time for itself.
fn go_through(scene: &mut Scene, watched: &mut Watched, trouble: Trouble) {
    let leader = scene.leader();
    let follower = (leader + 1) % SIZE;
    let cluster = &mut scene.cluster;
    match trouble {
        Trouble::LeaderStands => stand(cluster, watched, leader),
        Trouble::FollowerStands => stand(cluster, watched, follower),
        Trouble::LeaderStalls => stall(cluster, watched, &[leader]),
        Trouble::FollowerStalls => stall(cluster, watched, &[follower]),
        Trouble::MajorityStalls => stall(cluster, watched, &[leader, follower]),
        Trouble::AllDisksAreSlow => {
            for slot in 0..SIZE {
                cluster.nodes[slot].disk.take_up_to(SLOW);
            }
            watched.run(cluster, STANDS_MILLIS);
            for slot in 0..SIZE {
                cluster.nodes[slot].disk.take_up_to(DISK_TAKES);
            }
        }
        Trouble::LeaderIsCutOff => {
            // A request that was on the way is given up for lost by the time-out alone.
            for slot in 0..SIZE {
                watched.trouble(slot, cluster.now + STANDS_MILLIS + TIME_OUT_MILLIS);
            }
            scene.isolate(leader, true);
            watched.run(&mut scene.cluster, STANDS_MILLIS);
            scene.isolate(leader, false);
            watched.run(&mut scene.cluster, TIME_OUT_MILLIS);
        }
    }
    watched.run(&mut scene.cluster, QUIET_MILLIS);
}

fn stand(cluster: &mut Cluster, watched: &mut Watched, slot: Slot) {
    cluster.pause(slot, true);
    watched.run(cluster, STANDS_MILLIS);
    cluster.pause(slot, false);
}

fn stall(cluster: &mut Cluster, watched: &mut Watched, slots: &[Slot]) {
    let least = Duration::from_millis(STALLS_MILLIS);
    for slot in slots {
        cluster.nodes[*slot].disk.stall(least);
        // The writes that have begun by the end of the stall take as long as it says.
        let until = cluster.now + STALL_BEGINS_MILLIS + STALLS_MILLIS + SLACK_MILLIS;
        watched.trouble(*slot, until);
    }
    watched.run(cluster, STALL_BEGINS_MILLIS);
    for slot in slots {
        cluster.nodes[*slot].disk.stall(Duration::ZERO);
    }
    watched.run(cluster, STALLS_MILLIS + SLACK_MILLIS);
}

#[test]
fn no_call_takes_longer_than_a_request_may_nor_than_two_seconds_where_there_is_a_leader() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, SIZE);
        scene.put(&[0, 1, 2], "k0", "v");
        let calls: Rc<RefCell<Calls>> = Rc::default();
        for slot in 0..SIZE {
            for _ in 0..CLIENTS {
                let calls = calls.clone();
                let cluster = &scene.cluster;
                cluster.client(move |client| keep_calling(client, slot, calls));
            }
        }
        let mut watched = Watched::new(calls.clone());
        watched.run(&mut scene.cluster, QUIET_MILLIS);
        for trouble in TROUBLES {
            let count = || (calls.borrow().next, calls.borrow().failed);
            let (made, failed) = count();
            go_through(&mut scene, &mut watched, trouble);
            watched.run_until_led(&mut scene.cluster);
            let (made, failed) = (count().0 - made, count().1 - failed);
            assert!(made > 100, "{made} calls in {trouble:?}");
            let must_fail = trouble == Trouble::MajorityStalls;
            assert!(!must_fail || failed > 0, "there was no majority");
        }
        calls.borrow_mut().over = true;
        watched.run(&mut scene.cluster, LED_MILLIS + SLACK_MILLIS);
        let calls = calls.borrow();
        assert!(calls.open.is_empty(), "all end: {:?}", calls.open);
        let kinds = calls.succeeded.len() as u64;
        assert_eq!(kinds, KINDS, "each kind succeeds: {:?}", calls.succeeded);
        drop(calls);
        scene.same_everywhere();
    }
}

/// Runs until `reached` holds; meanwhile no write may wait for longer than an election timeout.
fn without_an_election(
    cluster: &mut Cluster,
    calls: &Rc<RefCell<Calls>>,
    reached: impl Fn(&Cluster) -> bool,
) {
    let until = cluster.now + HEALED_MILLIS;
    while !reached(cluster) {
        let now = cluster.now;
        assert!(now < until, "it takes {HEALED_MILLIS} ms");
        cluster.step();
        for (slot, _, began) in calls.borrow().open.values() {
            let waited = now.saturating_sub(*began);
            assert!(
                waited < ELECTION_MILLIS,
                "at {now} ms a write at n{} has waited for {waited} ms",
                slot + 1
            );
        }
    }
}

/// As in a rolling restart: a leader hands over, answers what is under way, and ends. A leader that was just killed costs the
/// others one to two election timeouts.
#[test]
fn no_write_waits_for_an_election_when_leaders_are_stopped_one_after_the_other() {
    for seed in SEEDS {
        let mut scene = Scene::of(seed, SIZE);
        scene.put(&[0, 1, 2], "k0", "v");
        let calls: Rc<RefCell<Calls>> = Rc::default();
        for slot in 0..SIZE {
            for _ in 0..CLIENTS {
                let calls = calls.clone();
                let cluster = &scene.cluster;
                cluster.client(move |client| keep_writing(client, slot, calls));
            }
        }
        let watched = Watched::new(calls.clone());
        for _ in 0..2 * SIZE {
            let led = scene.leader();
            let cluster = &mut scene.cluster;
            let quiet = cluster.now + QUIET_MILLIS;
            without_an_election(cluster, &calls, |cluster| cluster.now >= quiet);
            let done = cluster.hand_over(led);
            without_an_election(cluster, &calls, |_| done.get());
            assert_ne!(cluster.leader(), Some(led), "another one leads");
            calls.borrow_mut().leaving = Some(led);
            without_an_election(cluster, &calls, |_| !calls.borrow().any_at(led));
            cluster.crash(led, Crash::Process);
            let quiet = cluster.now + QUIET_MILLIS;
            without_an_election(cluster, &calls, |cluster| cluster.now >= quiet);
            cluster.start(led);
            without_an_election(cluster, &calls, |cluster| {
                let leader = cluster.leader();
                leader.is_some_and(|leader| watched.follows(cluster, led, leader))
            });
            calls.borrow_mut().leaving = None;
        }
        let calls = calls.borrow();
        assert_eq!(calls.failed, 0, "no write is refused");
        assert!(calls.next > 1_000, "{} writes", calls.next);
    }
}
