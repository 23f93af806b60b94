//! What can be seen of consensus from outside, on each member after each step, in each of its lives.
//!
//! The logs themselves are compared after every step by `src/raft/simulation.rs`, on the bare core. Here are the real nodes, so
//! what counts is what they act on: who leads in which term, what was committed, and which state each applied entry made.

use crate::{
    cluster::{Cluster, member},
    network::Slot,
};
use quorate::internals::types::{LogIndex, Revision, Term};
use std::collections::BTreeMap;

/// What applying an entry made: the same on every member, in each life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Applied {
    term: Term,
    revision: Revision,
    compacted: Revision,
}

/// What was seen of one process.
#[derive(Clone, Copy, Debug, Default)]
struct Process {
    commit: LogIndex,
    applied: LogIndex,
}

/// Remembers everything that must never change.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    leaders: BTreeMap<Term, Slot>,
    applied: BTreeMap<LogIndex, Applied>,
    processes: BTreeMap<Slot, Process>,
    committed: LogIndex,
}

impl Observer {
    /// Looks at every member.
    pub(crate) fn look(&mut self, cluster: &Cluster) {
        for slot in 0..cluster.nodes.len() {
            if cluster.requests(slot).is_none() {
                self.processes.remove(&slot);
            } else {
                self.look_at(cluster, slot);
            }
        }
        let network = cluster.network.borrow();
        let lies = network.spoken.lies();
        assert!(lies.is_empty(), "{lies:#?}");
    }

    fn look_at(&mut self, cluster: &Cluster, slot: Slot) {
        let Some(requests) = cluster.requests(slot) else {
            return;
        };
        let name = member(slot).name;
        let status = requests.status();
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
        let process = self.processes.entry(slot).or_default();
        assert!(
            status.commit >= process.commit && status.applied >= process.applied,
            "{name}'s commit index or state went back: {status:?} after {process:?}"
        );
        process.commit = status.commit;
        process.applied = status.applied;
        self.committed = self.committed.max(status.commit);
        let published = requests.published();
        let window = published.view.window;
        let made = Applied {
            term: published.applied.term,
            revision: window.newest,
            compacted: window.compacted,
        };
        let index = published.applied.index;
        let known = *self.applied.entry(index).or_insert(made);
        assert_eq!(known, made, "{name} applied another entry {index}");
        let mut network = cluster.network.borrow_mut();
        network.spoken.applied(index, made.term);
    }
}
