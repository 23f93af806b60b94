//! The newest revisions, whole ones only, up to a number of bytes; shared by all watchers.

use super::super::range::ReadError;
use super::{
    catch_up::{CatchUp, Collector, History, ReadTask},
    event::Change,
};
use crate::types::Revision;
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
    changes: Vec<Change>,
    bytes: usize,
}

impl Revised {
    fn measure(changes: &[Change]) -> usize {
        changes.iter().map(Change::bytes).sum()
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

    /// The newest revision.
    pub(super) fn newest(&self) -> Revision {
        self.newest
    }

    /// From this revision on every change is here. It is after the newest if there is none.
    pub(super) fn oldest(&self) -> Revision {
        Revision(self.newest.0 + 1 - i64::try_from(self.revisions.len()).unwrap_or(i64::MAX))
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the next revision.
    pub(super) fn push(&mut self, revision: Revision, changes: Vec<Change>) {
        assert_eq!(revision, self.newest.next(), "recent revisions have no gap");
        let bytes = Revised::measure(&changes);
        self.newest = revision;
        self.bytes += bytes;
        self.revisions.push_back(Revised { changes, bytes });
        self.evict();
    }

    /// Forgets everything: revisions up to `newest` were missed.
    pub(super) fn restart(&mut self, newest: Revision) {
        assert!(newest >= self.newest, "history does not run backward");
        self.revisions.clear();
        self.bytes = 0;
        self.newest = newest;
    }

    /// Reads for `task`, which begins inside.
    pub(super) fn read(
        &mut self,
        task: &ReadTask,
        history: &dyn History,
    ) -> Result<CatchUp, ReadError> {
        let oldest = self.oldest();
        assert!(
            task.from() >= oldest,
            "a read of recent events begins where they are"
        );
        let skip = usize::try_from(task.from().0 - oldest.0).unwrap_or(usize::MAX);
        let mut collector = Collector::new(task);
        for revised in self.revisions.iter_mut().skip(skip) {
            for change in &mut revised.changes {
                if collector.visit(change, history)?.is_break() {
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
        Ok(collector.finish())
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
