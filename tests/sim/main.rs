//! Whole clusters in simulation: the real actors, log, database and request handling of every member, on one thread under a
//! paused clock. One seed determines network, disks, time and randomness.
//!
//! | file | owns |
//! |---|---|
//! | `machine` | an event loop with a clock of its own: a node's, or the clients' |
//! | `network` | events in flight between machines |
//! | `hub` | the simulated peer hub |
//! | `cluster` | nodes and clients; steps; starts, crashes, pauses, clocks |
//! | `clients` | how a client reaches a node |
//! | `faults` | the faults that a seed draws |
//! | `operator` | changes of the membership, and repairs of damaged members |
//! | `interrupted` | the operator's work, cut short at any step and begun again |
//! | `waits` | how long clients wait while members stand still or are slow |
//! | `known` | failures that systems of this kind have had, a test each |
//! | `run` | one run: a workload, a storm, and what must hold after it |
//! | `mixed` | clients that use everything, and the checks of what they saw |
//! | `message_rules` | Raft's rules, checked on every message |
//! | `sent_log` | every log entry that was sent, and the log that was committed |
//! | `mutations` | deliberate bugs that must be found (feature `mutations`) |
//! | `scene` | a cluster that a test controls step by step |
//! | `trace` | a run's events, hashed and printed |
//!
//! `cargo test --release --test sim` runs a fixed set of seeds. `SEEDS=n` runs n fresh ones, `SIM_SECS=n` as many as fit into n
//! seconds; they begin with `SIM_FROM=n` or a random one. `SEED=n` replays one instead and prints every event. A failure prints
//! its seed and the command that replays it. `SIM_CUTS=n` cuts an operator's work short in `n` places, `SIM_CUT=n` at its `n`th
//! operation alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/history/mod.rs"]
mod history;

mod clients;
mod cluster;
mod faults;
mod hub;
mod interrupted;
mod known;
mod machine;
mod message_rules;
mod mixed;
#[cfg(feature = "mutations")]
mod mutations;
mod network;
mod operator;
mod run;
mod scene;
mod sent_log;
mod trace;
mod waits;

use mixed::Mixed;
use quorate::internals::clock;
use run::{Outcome, Plan, run};
use std::{
    collections::BTreeMap,
    env,
    panic::{catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// A fifth of a run's time went to the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The seeds that every `cargo test` runs.
const FIXED_SEEDS: std::ops::Range<u64> = 1..6;

#[expect(
    clippy::print_stdout,
    reason = "a reader of the log can run them again"
)]
fn announce(how_many: &str, first: u64) {
    println!("fresh seeds: {how_many}, from {first} on");
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Runs seeds, one at a time on each core, and prints a summary. The first failure ends it, once the other cores are done with
/// the seeds that they have begun.
fn run_all(seeds: impl Iterator<Item = u64> + Send) {
    let began = clock::now();
    let seeds = Mutex::new(seeds);
    let failed = AtomicBool::new(false);
    let some = || {
        let next = || {
            let mut seeds = seeds.lock().unwrap();
            (!failed.load(Ordering::Relaxed)).then(|| seeds.next())?
        };
        std::iter::from_fn(next)
            .map(|seed| {
                let one = || run(Plan::of(seed), &mut Mixed::default());
                catch_unwind(one).unwrap_or_else(|why| {
                    failed.store(true, Ordering::Relaxed);
                    resume_unwind(why)
                })
            })
            .collect::<Vec<Outcome>>()
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(some)).collect();
        let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .collect::<Vec<_>>()
            .into_iter()
            .flat_map(|outcomes| outcomes.unwrap_or_else(|why| resume_unwind(why)))
            .collect()
    });
    report(&outcomes, began);
}

#[expect(clippy::print_stdout, reason = "this is the result of a run")]
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn report(outcomes: &[Outcome], began: Instant) {
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let seconds = sum(|outcome| outcome.millis) as f64 / 1000.0;
    let wall = began.elapsed().as_secs_f64();
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    for (fault, times) in outcomes.iter().flat_map(|outcome| &outcome.faults) {
        *faults.entry(fault).or_default() += times;
    }
    println!("faults: {faults:?}");
    println!(
        "{} seeds, {seconds:.0} simulated seconds in {wall:.1} s ({:.0} a second), {} operations, {} faults",
        outcomes.len(),
        seconds / wall,
        sum(|outcome| outcome.operations),
        faults.values().sum::<u64>(),
    );
}

#[test]
fn clusters_live_through_storms() {
    if let Some(seed) = number("SEED") {
        return replay(seed);
    }
    let first = number("SIM_FROM").unwrap_or_else(|| clock::entropy() % 1_000_000_000);
    if let Some(count) = number("SEEDS") {
        announce(&count.to_string(), first);
        run_all(first..first + count);
    } else if let Some(secs) = number("SIM_SECS") {
        announce(&format!("as many as begin within {secs} s"), first);
        let over = clock::now() + Duration::from_secs(secs);
        run_all((first..).take_while(|_| clock::now() < over));
    } else {
        run_all(FIXED_SEEDS);
    }
}

/// Runs one seed, and prints every event.
fn replay(seed: u64) {
    let began = clock::now();
    let plan = Plan {
        shown: true,
        ..Plan::of(seed)
    };
    #[cfg(feature = "mutations")]
    if let Some(outcome) = mutations::replay(plan) {
        return report(&[outcome], began);
    }
    report(&[run(plan, &mut Mixed::default())], began);
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let short = |seed| {
        let plan = Plan {
            storm_millis: 15_000,
            ..Plan::of(seed)
        };
        run(plan, &mut Mixed::default())
    };
    let first = short(77);
    assert_eq!(short(77), first, "one seed gave two runs");
    assert_ne!(short(78).hash, first.hash, "two seeds gave one run");
}
