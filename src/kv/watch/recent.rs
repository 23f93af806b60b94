//! The newest revisions, whole ones only, up to a number of bytes; shared by all watchers.

use super::super::command::EncodedKv;
use super::{
    catch_up::{CatchUp, Collector, Memory, ReadTask},
    event::{Cold, WatchedChange},
};
use crate::types::{Rev, Revision};
use std::collections::VecDeque;

/// Recent events. Invariant: `revisions` follow each other without a gap, and end at the newest revision.
#[derive(Debug)]
pub(super) struct Recent {
    revisions: VecDeque<Revised>,
    newest: Revision,
    bytes: usize,
    bytes_max: usize,
}

/// All changes of a revision.
#[derive(Debug)]
struct Revised {
    changes: Vec<WatchedChange>,
    bytes: usize,
}

impl Revised {
    fn measure(changes: &[WatchedChange]) -> usize {
        changes.iter().map(WatchedChange::bytes).sum()
    }
}

impl Recent {
    pub(super) fn new(newest: Revision, bytes_max: usize) -> Self {
        Self {
            revisions: VecDeque::new(),
            newest,
            bytes: 0,
            bytes_max,
        }
    }

    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    /// From this revision on every change is here. It is after the newest if there is none.
    pub(super) fn oldest(&self) -> Revision {
        Revision(self.newest.0 + 1 - i64::try_from(self.revisions.len()).unwrap_or(i64::MAX))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, revision: Revision, changes: Vec<WatchedChange>) {
        assert_eq!(revision, self.newest.next(), "recent revisions have no gap");
        let bytes = Revised::measure(&changes);
        self.newest = revision;
        self.bytes += bytes;
        self.revisions.push_back(Revised { changes, bytes });
        self.evict();
    }

    /// Drops everything: revisions up to `newest` were missed.
    pub(super) fn restart(&mut self, newest: Revision) {
        assert!(newest >= self.newest, "history does not run backward");
        self.revisions.clear();
        self.bytes = 0;
        self.newest = newest;
    }

    /// A key's state before `revision`; `None` if it did not exist, or if that state is compacted. Looks here first, then in
    /// `memory`.
    pub(super) fn before(
        &self,
        key: &[u8],
        revision: Revision,
        memory: &dyn Memory,
    ) -> Result<Option<EncodedKv>, Cold> {
        if revision <= memory.compacted() {
            return Ok(None);
        }
        let Some(rev) = memory.change_before(key, revision) else {
            return Ok(None);
        };
        let here = self.change(rev).map(|change| change.record().kv.clone());
        here.or_else(|| memory.held(rev)).map(Some).ok_or(Cold)
    }

    fn change(&self, rev: Rev) -> Option<&WatchedChange> {
        let at = usize::try_from(rev.major.0 - self.oldest().0).ok()?;
        let changes = &self.revisions.get(at)?.changes;
        // Changes of a revision are numbered from zero.
        let change = changes.get(usize::try_from(rev.sub).ok()?)?;
        (change.rev() == rev).then_some(change)
    }

    /// The previous states for the changes of a revision: those that `collector` needs and that are not encoded in their events
    /// yet.
    fn befores(
        &self,
        revised: &Revised,
        collector: &mut Collector<'_>,
        memory: &dyn Memory,
    ) -> Result<Vec<Option<EncodedKv>>, Cold> {
        if !collector.any_wants_prev() {
            return Ok(Vec::new());
        }
        let before = |change: &WatchedChange| {
            let needed = !change.has_form(true) && change.follows_another();
            if !needed || !collector.wants_prev(change) {
                return Ok(None);
            }
            self.before(change.key(), change.rev().major, memory)
        };
        revised.changes.iter().map(before).collect()
    }

    /// Reads recent events for `task`, which must begin among them. The read ends before a revision that needs a record from
    /// disk; then the second value has those of the task's watchers that need this revision.
    pub(super) fn read(&mut self, task: &ReadTask, memory: &dyn Memory) -> (CatchUp, Vec<usize>) {
        let oldest = self.oldest();
        assert!(
            task.from() >= oldest,
            "a read of recent events begins where they are"
        );
        let skip = usize::try_from(task.from().0 - oldest.0).unwrap_or(usize::MAX);
        let mut collector = Collector::new(task);
        let mut cold = Vec::new();
        for at in skip..self.revisions.len() {
            let befores = self.befores(&self.revisions[at], &mut collector, memory);
            let Ok(befores) = befores else {
                cold = collector.stop();
                break;
            };
            let revised = &mut self.revisions[at];
            for (n, change) in revised.changes.iter_mut().enumerate() {
                let before = befores.get(n).and_then(Option::as_ref);
                if collector.visit(change, before).is_break() {
                    break;
                }
            }
            let bytes = Revised::measure(&revised.changes);
            self.bytes = self.bytes - revised.bytes + bytes;
            revised.bytes = bytes;
            if collector.is_done() {
                break;
            }
        }
        self.evict();
        (collector.finish(), cold)
    }

    fn evict(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.revisions.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes;
        }
    }
}
