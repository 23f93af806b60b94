//! The checkers bite: the simulator finds each deliberate bug, within a bounded number of seeds.
//!
//! `docs/reliability.md` has the table. It is this one: a test compares them.

use crate::{
    cluster::Cluster,
    faults::{Disaster, Storm},
    mixed::Mixed,
    network::STEP_MILLIS,
    run::{Outcome, Plan, run, run_with},
};
use quorate::mutation::{Mutation, mutate};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Each bug, and how many seeds the simulator may need to find it.
const FOUND_WITHIN: [(Mutation, u64); 16] = [
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
];

/// Runs a seed, in the weather in which the bug shows.
fn hunt(mutation: Mutation, plan: Plan) -> Outcome {
    let often = |millis: u64, disasters: &'static [Disaster]| {
        move |cluster: &mut Cluster, storm: &mut Storm| {
            if cluster.now % millis < STEP_MILLIS {
                let at = usize::try_from(cluster.now / millis).unwrap() % disasters.len();
                storm.strike_with(cluster, disasters[at]);
            }
        }
    };
    match mutation {
        Mutation::SkipSync | Mutation::AcknowledgeBeforeSync => {
            let strike = often(
                500,
                &[Disaster::DiskSlow, Disaster::DiskSlow, Disaster::Blackout],
            );
            run_with(plan, &mut Mixed::default(), &strike)
        }
        Mutation::ForgetVote => {
            let strike = often(
                350,
                &[Disaster::Crash, Disaster::Transfer, Disaster::OneWay],
            );
            run_with(plan, &mut Mixed::default(), &strike)
        }
        Mutation::CommitOldTerm => {
            let strike = often(400, &[Disaster::Transfer, Disaster::Deaf, Disaster::Crash]);
            run_with(plan, &mut Mixed::default(), &strike)
        }
        Mutation::DeposedLeaseRevoke => {
            let strike = often(
                700,
                &[Disaster::DiskStall, Disaster::Transfer, Disaster::Pause],
            );
            run_with(plan, &mut Mixed::default(), &strike)
        }
        Mutation::CompactionOffByOne => run(plan, &mut Mixed::compacting()),
        Mutation::CompactBeforeState => {
            let strike = often(300, &[Disaster::Blackout, Disaster::Crash]);
            run_with(plan, &mut Mixed::compacting(), &strike)
        }
        Mutation::AcknowledgeBeforeCommit => {
            let strike = often(700, &[Disaster::Partition, Disaster::Crash]);
            run_with(plan, &mut Mixed::default(), &strike)
        }
        Mutation::ApplyTwice
        | Mutation::DropWatchEvent
        | Mutation::ResumeOneLate
        | Mutation::ReadWithoutIndex
        | Mutation::LoseTombstone
        | Mutation::StaleIndex
        | Mutation::DatabaseWithoutLastRecord
        | Mutation::SnapshotWithoutLastEntry => run(plan, &mut Mixed::default()),
    }
}

/// The first seed that finds a bug, counted from one, with what it found; nothing if none does.
fn seeds_to_find(mutation: Mutation, most: u64) -> Option<(u64, String)> {
    (1..=most).find_map(|seed| {
        mutate(Some(mutation));
        let outcome = catch_unwind(AssertUnwindSafe(|| hunt(mutation, Plan::of(seed))));
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
    Some(hunt(mutation, plan))
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
