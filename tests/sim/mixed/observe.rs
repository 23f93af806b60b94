//! Checks each member's published state after each step.
//!
//! `src/raft/simulation.rs` compares the logs themselves after every step, on the consensus core alone. These are whole nodes, so
//! the checks are of what they act on: who leads in which term, what is committed, and which state each applied entry made.

use crate::{
    cluster::{Cluster, Crash, member},
    network::Slot,
    scene::Scene,
};
use quorate::internals::{
    Inspect,
    kv::state_hash::StateHash,
    types::{LogIndex, Revision, Term},
};
use std::collections::BTreeMap;

/// The state after an applied entry: the same on every member, in each process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Applied {
    term: Term,
    revision: Revision,
    compacted: Revision,
    /// Of everything that the entries up to this one did: keys, leases, alarms, users.
    hash: Option<StateHash>,
}

/// A process: the machine it runs on, and which of the machine's starts it came from. A member that restarts between two looks is
/// another process, whose indexes may be lower.
type ProcessKey = (Slot, u64);

/// How far one process had come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    commit: LogIndex,
    applied: LogIndex,
}

/// Remembers what must never change.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    leaders: BTreeMap<Term, Slot>,
    applied: BTreeMap<LogIndex, Applied>,
    progress: BTreeMap<ProcessKey, Progress>,
}

impl Observer {
    /// The newest entry that any member has applied.
    pub(crate) fn applied(&self) -> u64 {
        let newest = self.applied.last_key_value();
        newest.map_or(0, |(index, _)| index.0)
    }

    /// Checks every member.
    pub(crate) fn look(&mut self, cluster: &Cluster) {
        for slot in 0..cluster.nodes.len() {
            self.look_at(cluster, slot);
        }
        let network = cluster.network.borrow();
        let violations = network.rules.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    fn look_at(&mut self, cluster: &Cluster, slot: Slot) {
        let Some(requests) = cluster.requests(slot) else {
            return;
        };
        let name = member(slot).name;
        let status = requests.status().unwrap();
        if status.leader == Some(status.member) {
            let leader = *self.leaders.entry(status.term).or_insert(slot);
            assert_eq!(
                leader,
                slot,
                "{name} leads in term {}, and so did n{}",
                status.term,
                leader + 1
            );
        }
        let start = cluster.nodes[slot].starts;
        let before = self.progress.entry((slot, start)).or_default();
        assert!(
            status.commit >= before.commit && status.applied >= before.applied,
            "{name}'s commit index or state went back: {status:?} after {before:?}"
        );
        before.commit = status.commit;
        before.applied = status.applied;
        if let Some(part) = requests.held().beyond_bound() {
            let (held, most, max) = (part.name(), part.most(), part.bytes_max());
            panic!("{name} held {most} bytes of {held}; the bound is {max}");
        }
        let published = requests.published();
        let window = published.view.window;
        let made = Applied {
            term: published.applied.term,
            revision: window.newest,
            compacted: window.compacted,
            hash: published.hash,
        };
        let index = published.applied.index;
        let known = *self.applied.entry(index).or_insert(made);
        assert_eq!(known, made, "{name} applied another entry {index}");
        let mut network = cluster.network.borrow_mut();
        network.rules.applied(index, made.term);
    }
}

/// A member crashed and restarted between two looks, and its lower commit index was taken for one that had gone back.
#[test]
fn a_process_that_restarts_between_two_looks_is_another_one() {
    let lower = (1..=20).filter(|seed| comes_back_with_less(*seed)).count();
    assert!(
        lower > 0,
        "a member that is cut off does not know what is committed"
    );
}

/// Restarts a member that is cut off, and looks at it before and after. Tells whether it has applied less than before.
fn comes_back_with_less(seed: u64) -> bool {
    let mut scene = Scene::of(seed, 3);
    let mut observer = Observer::default();
    let crashes = scene.follower();
    for n in 0..50 {
        scene.put(&[0, 1, 2], "k", &n.to_string());
    }
    scene.same_everywhere();
    observer.look(&scene.cluster);
    let applied = |cluster: &Cluster| Some(cluster.requests(crashes)?.status().ok()?.applied);
    let before = applied(&scene.cluster);
    scene.isolate(crashes, true);
    scene.cluster.crash(crashes, Crash::Power);
    scene.cluster.start(crashes);
    let serves = |cluster: &Cluster| cluster.requests(crashes).is_some();
    assert!(scene.cluster.run_until(10_000, serves), "it comes back");
    let less = applied(&scene.cluster) < before;
    observer.look(&scene.cluster);
    less
}
