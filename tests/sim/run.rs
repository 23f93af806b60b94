//! One run of the simulator: a cluster with clients goes through a storm of faults, and must be healthy afterwards.
//!
//! A [`Workload`] starts the clients and checks what they saw. The run itself checks what every workload needs: after the storm
//! there is a leader, every member accepts writes within a few election timeouts, and all members converge to the same state.

use crate::{
    cluster::{Cluster, ELECTION_MILLIS, member},
    faults::Storm,
    network::Slot,
};
use quorate::internals::{
    Inspect, actors::requests::RequestError, kv::command::Put, types::Revision,
};
use std::{
    cell::RefCell,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
};

/// After the storm, the cluster must have a leader and accept writes through every member within so many election timeouts.
const LIVE_ELECTIONS: u64 = 10;
/// How long after that the members may take to apply the same entries.
const CONVERGE_MILLIS: u64 = 20_000;
/// How long the operator may take until every machine has an undamaged voter.
const SETTLE_MILLIS: u64 = 60_000;
/// How long the cluster may take to form.
const FORM_MILLIS: u64 = 20_000;

/// Clients, and the checks of what they saw.
pub(crate) trait Workload {
    /// Starts the clients. The cluster has a leader.
    fn begin(&mut self, cluster: &mut Cluster);
    /// Called after each step of the storm.
    fn watch(&mut self, cluster: &Cluster);
    /// The storm is over and the cluster is healthy: ends the clients.
    fn end(&mut self, cluster: &mut Cluster);
    /// All members hold the same state: checks what the clients saw. Panics at a violation.
    fn judge(&mut self, cluster: &mut Cluster);
}

/// How a run is shaped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// How many members.
    pub(crate) size: usize,
    /// How long the storm lasts.
    pub(crate) storm_millis: u64,
    /// Print every event.
    pub(crate) shown: bool,
}

impl Plan {
    /// The usual shape of a seed's run: mostly three members, at times five.
    pub(crate) fn of(seed: u64) -> Self {
        let size = if seed.is_multiple_of(5) { 5 } else { 3 };
        Self {
            seed,
            size,
            storm_millis: 40_000,
            shown: false,
        }
    }
}

/// Figures of a finished run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The trace's hash: equal for two runs of one seed.
    pub(crate) hash: u64,
    pub(crate) millis: u64,
    pub(crate) operations: u64,
    /// How often each fault was injected.
    pub(crate) faults: BTreeMap<&'static str, u64>,
}

/// Runs a seed. A failure prints the seed, the command that replays it, and the latest events.
pub(crate) fn run(plan: Plan, workload: &mut dyn Workload) -> Outcome {
    run_in(plan, workload, Storm::new, &|_, _| {})
}

/// As [`run`], but without random faults: `inject` is called at each step and chooses them.
pub(crate) fn run_with(
    plan: Plan,
    workload: &mut dyn Workload,
    inject: &dyn Fn(&mut Cluster, &mut Storm),
) -> Outcome {
    run_in(plan, workload, Storm::silent, inject)
}

/// As [`run_with`], in a storm that may have faults of its own.
pub(crate) fn run_in(
    plan: Plan,
    workload: &mut dyn Workload,
    storm: fn(&mut Cluster) -> Storm,
    inject: &dyn Fn(&mut Cluster, &mut Storm),
) -> Outcome {
    let mut cluster = Cluster::new(plan.seed, plan.size, plan.shown);
    let whole = AssertUnwindSafe(|| run_phases(plan, &mut cluster, workload, storm, inject));
    match catch_unwind(whole) {
        Ok(()) => Outcome {
            hash: cluster.hash(),
            millis: cluster.now,
            operations: cluster.operations(),
            faults: cluster.faults.clone(),
        },
        Err(failure) => {
            report_failure(plan, &cluster);
            resume_unwind(failure)
        }
    }
}

#[expect(clippy::print_stderr, reason = "a failure is printed to the terminal")]
fn report_failure(plan: Plan, cluster: &Cluster) {
    let (seed, at) = (plan.seed, cluster.now);
    let story = cluster.network.borrow().trace.newest();
    eprintln!(
        "seed {seed} failed at {at} ms; what happened last:\n{story}\
         replay: SEED={seed} cargo test --release --test sim storms -- --nocapture"
    );
}

fn run_phases(
    plan: Plan,
    cluster: &mut Cluster,
    workload: &mut dyn Workload,
    storm: fn(&mut Cluster) -> Storm,
    inject: &dyn Fn(&mut Cluster, &mut Storm),
) {
    let formed = cluster.run_until(FORM_MILLIS, |cluster| cluster.leader().is_some());
    assert!(formed, "the cluster does not form");
    workload.begin(cluster);
    let mut storm = storm(cluster);
    let over = cluster.now + plan.storm_millis;
    while cluster.now < over {
        storm.step(cluster);
        inject(cluster, &mut storm);
        workload.watch(cluster);
    }
    storm.end(cluster);
    assert_live(cluster, &storm.undisturbed(cluster));
    settle(cluster, &mut storm, workload);
    let all: Vec<Slot> = (0..cluster.nodes.len()).collect();
    assert_live(cluster, &all);
    workload.end(cluster);
    assert_converged(cluster);
    workload.judge(cluster);
}

/// Waits until the operator has finished: every machine has an undamaged voter.
fn settle(cluster: &mut Cluster, storm: &mut Storm, workload: &mut dyn Workload) {
    let until = cluster.now + SETTLE_MILLIS;
    while !storm.is_settled(cluster) {
        assert!(
            cluster.now < until,
            "{SETTLE_MILLIS} ms after the storm some member is still missing, damaged or without a vote: {}",
            storm.describe(cluster)
        );
        storm.step_without_faults(cluster);
        workload.watch(cluster);
    }
    let snapshots = cluster.network.borrow().snapshots;
    cluster.faults.insert("snapshot taken", snapshots);
}

/// Asserts that there is a leader and that a write succeeds through each of these members.
fn assert_live(cluster: &mut Cluster, slots: &[Slot]) {
    let size = slots.len();
    let written: Rc<RefCell<Vec<Slot>>> = Rc::default();
    for slot in slots.iter().copied() {
        let written = written.clone();
        cluster.client(move |client| async move {
            loop {
                let done = client.call(slot, ELECTION_MILLIS, |requests| async move {
                    let put = Put {
                        key: "alive".into(),
                        value: "yes".into(),
                        ..Put::default()
                    };
                    // A learner refuses writes; it is promoted later.
                    match requests.put(put).await {
                        Ok(_) | Err(RequestError::Learner) => true,
                        Err(_) => false,
                    }
                });
                if done.await == Some(true) {
                    written.borrow_mut().push(slot);
                    return;
                }
                client.pause(50).await;
            }
        });
    }
    let live = LIVE_ELECTIONS * ELECTION_MILLIS;
    cluster.run_until(live, |_| written.borrow().len() == size);
    let silent: Vec<String> = slots
        .iter()
        .filter(|slot| !written.borrow().contains(slot))
        .map(|slot| member(*slot).name)
        .collect();
    assert!(
        silent.is_empty(),
        "{live} ms after the storm no write succeeds through {silent:?}; the leader is {:?}",
        cluster.leader().map(|slot| member(slot).name)
    );
}

/// Asserts that all members apply the same entries and then hold the same history.
fn assert_converged(cluster: &mut Cluster) {
    let same = |cluster: &Cluster| {
        let applied = (0..cluster.nodes.len()).map(|slot| {
            let status = cluster.requests(slot)?.status().ok()?;
            (status.commit == status.applied).then_some(status.applied)
        });
        let applied: std::collections::BTreeSet<_> = applied.collect();
        applied.len() == 1 && !applied.contains(&None)
    };
    assert!(
        cluster.run_until(CONVERGE_MILLIS, same),
        "the members do not come to the same applied entry"
    );
    let hashes: Rc<RefCell<Vec<String>>> = Rc::default();
    let size = cluster.nodes.len();
    for slot in 0..size {
        let hashes = hashes.clone();
        cluster.client(move |client| async move {
            let asked = client.call(slot, 10_000, |requests| async move {
                requests.hash_kv(Revision(0)).await
            });
            let hash = asked.await.map(|hash| format!("{hash:?}"));
            hashes.borrow_mut().push(hash.unwrap_or_default());
        });
    }
    cluster.run_until(10_000, |_| hashes.borrow().len() == size);
    let hashes = hashes.borrow();
    let agree = hashes.len() == size && hashes.iter().all(|hash| *hash == hashes[0]);
    assert!(agree, "the members' histories differ: {hashes:#?}");
    let members = |slot: Slot| {
        let published = cluster.requests(slot)?.published();
        Some(published.members.clone())
    };
    for slot in 1..size {
        let name = member(slot).name;
        assert_eq!(members(slot), members(0), "{name} knows other members");
    }
}
