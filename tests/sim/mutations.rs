//! Tests of the checkers: the simulator must find each deliberate bug within a bounded number of seeds.
//!
//! `docs/reliability.md` has the table; a test compares it with the one here.

use crate::{
    cluster::Cluster,
    faults::{Fault, Storm},
    known,
    mixed::Mixed,
    network::STEP_MILLIS,
    run::{Outcome, Plan, run, run_in, run_with},
};
use quorate::internals::mutation::{Mutation, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Each bug, and within how many seeds the simulator must find it.
const FOUND_WITHIN: [(Mutation, u64); 22] = [
    (Mutation::SkipSync, 4),
    (Mutation::AcknowledgeBeforeSync, 8),
    (Mutation::AcknowledgeBeforeCommit, 10),
    (Mutation::CommitOldTerm, 40),
    (Mutation::ForgetVote, 20),
    (Mutation::ApplyTwice, 3),
    (Mutation::DropWatchEvent, 3),
    (Mutation::ResumeOneLate, 3),
    (Mutation::ReadWithoutIndex, 3),
    (Mutation::CompactionOffByOne, 4),
    (Mutation::CompactBeforeState, 20),
    (Mutation::LoseTombstone, 4),
    (Mutation::DeposedLeaseRevoke, 20),
    (Mutation::StaleIndex, 8),
    (Mutation::DatabaseWithoutLastRecord, 4),
    (Mutation::SnapshotWithoutLastEntry, 25),
    (Mutation::TrustFirstAnswer, 2),
    (Mutation::RightsOfProposer, 6),
    (Mutation::StaleGrants, 4),
    (Mutation::TokenOutlivesUser, 6),
    (Mutation::RecentWithoutBound, 2),
    (Mutation::ForgetBeginnings, 2),
];

/// Runs a seed with the faults that bring out the bug.
fn run_mutated(mutation: Mutation, plan: Plan) -> Outcome {
    let often = |millis: u64, faults: &'static [Fault]| {
        move |cluster: &mut Cluster, storm: &mut Storm| {
            if cluster.now % millis < STEP_MILLIS {
                let at = usize::try_from(cluster.now / millis).unwrap() % faults.len();
                storm.inject(cluster, faults[at]);
            }
        }
    };
    match mutation {
        Mutation::SkipSync | Mutation::AcknowledgeBeforeSync => {
            let inject = often(500, &[Fault::DiskSlow, Fault::DiskSlow, Fault::Blackout]);
            run_with(plan, &mut Mixed::default(), &inject)
        }
        Mutation::ForgetVote => {
            let inject = often(350, &[Fault::Crash, Fault::Transfer, Fault::OneWay]);
            run_with(plan, &mut Mixed::default(), &inject)
        }
        Mutation::CommitOldTerm => {
            let inject = often(400, &[Fault::Transfer, Fault::Deaf, Fault::Crash]);
            run_with(plan, &mut Mixed::default(), &inject)
        }
        Mutation::DeposedLeaseRevoke => {
            let inject = often(700, &[Fault::DiskStall, Fault::Transfer, Fault::Pause]);
            run_with(plan, &mut Mixed::default(), &inject)
        }
        Mutation::RightsOfProposer => {
            let inject = often(600, &[Fault::DiskSlow, Fault::Transfer, Fault::OneWay]);
            run_with(plan, &mut Mixed::administered(), &inject)
        }
        Mutation::StaleGrants | Mutation::TokenOutlivesUser => {
            run(plan, &mut Mixed::administered())
        }
        Mutation::CompactionOffByOne => run(plan, &mut Mixed::compacting()),
        Mutation::CompactBeforeState => {
            let inject = often(1_500, &[Fault::CrashCutOff]);
            run_with(plan, &mut Mixed::compacting(), &inject)
        }
        Mutation::AcknowledgeBeforeCommit => {
            let inject = often(700, &[Fault::Partition, Fault::Crash]);
            run_with(plan, &mut Mixed::default(), &inject)
        }
        Mutation::ForgetBeginnings => {
            let storm = Storm::losing_a_disk_early;
            run_in(plan, &mut Mixed::default(), storm, &|_, _| {})
        }
        Mutation::TrustFirstAnswer => {
            // Storms bring this about too seldom.
            known::a_new_member_hears_only_a_stale_one(plan.seed);
            run(plan, &mut Mixed::default())
        }
        Mutation::ApplyTwice
        | Mutation::DropWatchEvent
        | Mutation::ResumeOneLate
        | Mutation::ReadWithoutIndex
        | Mutation::LoseTombstone
        | Mutation::StaleIndex
        | Mutation::DatabaseWithoutLastRecord
        | Mutation::SnapshotWithoutLastEntry
        | Mutation::RecentWithoutBound => run(plan, &mut Mixed::default()),
    }
}

/// The first seed, counted from one, that finds a bug, and what it found; `None` if no seed does.
fn seeds_to_find(mutation: Mutation, most: u64) -> Option<(u64, String)> {
    (1..=most).find_map(|seed| {
        mutate(Some(mutation));
        let outcome = catch_unwind(AssertUnwindSafe(|| run_mutated(mutation, Plan::of(seed))));
        mutate(None);
        let failure = outcome.err()?;
        let text = failure.downcast_ref::<String>().cloned();
        let text = text.or_else(|| failure.downcast_ref::<&str>().map(ToString::to_string));
        Some((seed, text.unwrap_or_default()))
    })
}

/// Replays a seed with the bug that `MUTATION` names, if it names one.
pub(crate) fn replay(plan: Plan) -> Option<Outcome> {
    let name = std::env::var("MUTATION").ok()?;
    let mut all = Mutation::ALL.into_iter();
    let found = all.find(|mutation| format!("{mutation:?}") == name);
    let mutation = found.unwrap_or_else(|| panic!("MUTATION={name} is no deliberate bug"));
    mutate(Some(mutation));
    Some(run_mutated(mutation, plan))
}

#[test]
fn every_deliberate_bug_is_found() {
    let only = std::env::var("MUTATION").ok();
    let mut blind = Vec::new();
    for (mutation, most) in FOUND_WITHIN {
        let name = format!("{mutation:?}");
        if only.as_ref().is_some_and(|only| *only != name) {
            continue;
        }
        match seeds_to_find(mutation, most) {
            Some((seeds, failure)) => {
                let first = failure.lines().next().unwrap_or_default();
                let shown: String = first.chars().take(120).collect();
                println!("mutation {name}: seed {seeds} of {most}: {shown}");
            }
            None => blind.push(format!("{name} is not found in {most} seeds")),
        }
    }
    assert!(blind.is_empty(), "{blind:#?}");
}

#[test]
fn every_deliberate_bug_is_in_the_table() {
    let listed: Vec<Mutation> = FOUND_WITHIN.iter().map(|(mutation, _)| *mutation).collect();
    assert_eq!(listed, Mutation::ALL, "the list of bugs is the one tested");
    let document = include_str!("../../docs/reliability.md");
    for (mutation, most) in FOUND_WITHIN {
        let row = format!("| `{mutation:?}` | {most} |");
        assert!(
            document.contains(&row),
            "docs/reliability.md lacks the row {row}"
        );
    }
}
