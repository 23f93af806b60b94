//! The hashes of the history that the last compactions went through, for `HashKV` at their revisions.

use crate::{kv::hash::HistoryHash, types::Revision};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// etcd: so many are remembered, until a restart.
const HASHES_MAX: usize = 10;

/// Clones share them.
#[derive(Clone, Debug, Default)]
pub struct CompactionHashes(Arc<Mutex<BTreeMap<Revision, HistoryHash>>>);

impl CompactionHashes {
    /// Adds that of a compaction which is complete. There is none at revision 0, which asks for the newest hash.
    pub(super) fn add(&self, hash: HistoryHash) {
        if hash.through <= Revision(0) {
            return;
        }
        let mut hashes = self.hashes();
        hashes.insert(hash.through, hash);
        if hashes.len() > HASHES_MAX {
            hashes.pop_first();
        }
    }

    /// That of the compaction at this revision.
    pub(super) fn at(&self, through: Revision) -> Option<HistoryHash> {
        self.hashes().get(&through).copied()
    }

    fn hashes(&self) -> MutexGuard<'_, BTreeMap<Revision, HistoryHash>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ten_are_remembered_and_none_at_revision_zero() {
        let hashes = CompactionHashes::default();
        for revision in 0..20 {
            hashes.add(HistoryHash {
                hash: 7,
                through: Revision(revision),
                compacted: Revision(revision - 1),
                newest: Revision(100),
            });
        }
        let known = (-1..25).filter(|revision| hashes.at(Revision(*revision)).is_some());
        assert_eq!(known.collect::<Vec<_>>(), (10..20).collect::<Vec<_>>());
        let first = CompactionHashes::default();
        first.add(HistoryHash {
            through: Revision(0),
            ..hashes.at(Revision(10)).unwrap()
        });
        assert_eq!(first.at(Revision(0)), None);
    }
}
