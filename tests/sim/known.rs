//! Failures that systems of this kind have had, each as a storm that brings it about, under full load and full judgement.
//!
//! The usual storms draw all of this as well, among much else; here each has a name, and comes again and again.

use crate::{
    cluster::{Cluster, Crash},
    faults::{Disaster, Storm},
    mixed::Mixed,
    network::{STEP_MILLIS, Slot},
    run::{Plan, run_with},
};
use std::ops::Range;

/// Seeds of each test.
const SEEDS: Range<u64> = 1..4;
const STORM_MILLIS: u64 = 12_000;

/// Runs the usual clients while `strike` is called at each step.
fn live_through(clients: impl Fn() -> Mixed, strike: impl Fn(&mut Cluster, &mut Storm)) {
    for seed in SEEDS {
        let plan = Plan {
            storm_millis: STORM_MILLIS,
            ..Plan::of(seed)
        };
        run_with(plan, &mut clients(), &strike);
    }
}

/// Whether this is the step for something that happens every so often.
fn every(cluster: &Cluster, millis: u64) -> bool {
    cluster.now % millis < STEP_MILLIS
}

/// A member that has just accepted a compaction whose removal of records is still to come.
fn compacting(cluster: &Cluster) -> Option<Slot> {
    (0..cluster.nodes.len()).find(|&slot| {
        cluster.requests(slot).is_some_and(|requests| {
            let published = requests.published();
            let window = published.view.window;
            window.compacted.0 > 0 && published.stored_through < window.newest
        })
    })
}

#[test]
fn the_revision_is_the_same_everywhere_after_crashes_under_load() {
    live_through(Mixed::default, |cluster, storm| {
        if every(cluster, 1_500) {
            storm.strike_with(cluster, Disaster::Crash);
        }
    });
}

#[test]
fn no_single_member_loses_an_acknowledged_write() {
    live_through(Mixed::default, |cluster, storm| {
        if every(cluster, 1_000) {
            storm.strike_with(cluster, Disaster::PowerAtWrite);
        }
    });
}

#[test]
fn members_agree_when_leadership_moves_under_load() {
    live_through(Mixed::default, |cluster, storm| {
        if every(cluster, 700) {
            storm.strike_with(cluster, Disaster::Transfer);
        }
    });
}

#[test]
fn nothing_is_inconsistent_after_crashes_while_space_is_reclaimed() {
    live_through(Mixed::compacting, |cluster, _| {
        if every(cluster, 900)
            && let Some(slot) = compacting(cluster)
        {
            *cluster.faults.entry("Crash").or_default() += 1;
            cluster.crash(slot, Crash::Power);
            cluster.nodes[slot].restart_at = Some(cluster.now + 300);
        }
    });
}

#[test]
fn no_revision_goes_back_when_all_crash_in_a_compaction() {
    live_through(Mixed::compacting, |cluster, storm| {
        if every(cluster, 3_000) && compacting(cluster).is_some() {
            storm.strike_with(cluster, Disaster::Blackout);
        }
    });
}

#[test]
fn transactions_that_read_compacted_revisions_do_the_same_everywhere() {
    live_through(Mixed::compacting, |cluster, storm| {
        if every(cluster, 2_000) {
            storm.strike_with(cluster, Disaster::Pause);
        }
    });
}

#[test]
fn nothing_stale_is_read_after_the_leader_stood_still() {
    live_through(Mixed::default, |cluster, _| {
        let leader = cluster.leader().filter(|&slot| cluster.is_running(slot));
        if every(cluster, 5_000)
            && let Some(slot) = leader
        {
            *cluster.faults.entry("Pause").or_default() += 1;
            cluster.pause(slot, true);
        }
        if cluster.now % 5_000 / STEP_MILLIS == 3_000 / STEP_MILLIS {
            (0..cluster.nodes.len()).for_each(|slot| cluster.pause(slot, false));
        }
    });
}

#[test]
fn the_applied_index_is_never_ahead_of_the_data() {
    live_through(Mixed::default, |cluster, storm| {
        if every(cluster, 400) {
            storm.strike_with(cluster, Disaster::PowerAtWrite);
        }
    });
}
