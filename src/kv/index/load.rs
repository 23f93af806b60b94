//! Building the index from the store's records at start.
//!
//! Records come in revision order, but the tree is built in key order. So they are collected, sorted by key and written in
//! ascending order, which leaves nearly full nodes and walks memory forwards; one record after the other would miss the cache at
//! every step. The collected records are bounded: past a million records, or 128 MiB of keys, the loader writes what it has and
//! goes on.

use super::{
    Index,
    slot::{Meta, Slot},
};
use crate::types::{LeaseId, RecordKind, Rev, Revision};
use std::ops::Range;

/// Records that wait to be sorted: about 100 MB with short keys.
const PENDING_RECORDS_MAX: usize = 1 << 20;
/// Key bytes that wait to be sorted.
const PENDING_KEY_BYTES_MAX: usize = 128 << 20;

/// One stored change, as the store returns it at startup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredChange<'a> {
    pub key: &'a [u8],
    /// Its place in history.
    pub rev: Rev,
    /// What it did. The fields below count for puts only.
    pub kind: RecordKind,
    pub create: Revision,
    pub version: i64,
    pub lease: LeaseId,
}

/// Why no index can be built from stored changes. The store is damaged; a retry reads the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A change does not come after the one before it.
    #[error("stored revision {}.{} follows {}.{}", .rev.major, .rev.sub, .before.major, .before.sub)]
    OutOfOrder {
        /// The change before it.
        before: Rev,
        rev: Rev,
    },
    /// A put's version is not positive.
    #[error("stored revision {}.{} has version {version}", .rev.major, .rev.sub)]
    BadVersion { rev: Rev, version: i64 },
    /// A put says that its key was created after it, or before any revision.
    #[error("stored revision {}.{} has create revision {create}", .rev.major, .rev.sub)]
    BadCreate { rev: Rev, create: Revision },
}

/// Builds an [`Index`] from stored changes in ascending [`Rev`] order.
#[derive(Debug, Default)]
pub struct Loader {
    index: Index,
    last: Option<Rev>,
    batch: UnsortedBatch,
}

impl Loader {
    pub fn new() -> Self {
        Self::default()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn with_fanout(fanout: usize) -> Self {
        Self {
            index: Index::with_fanout(fanout),
            ..Self::default()
        }
    }

    pub fn add(&mut self, change: StoredChange<'_>) -> Result<(), LoadError> {
        let meta = self.checked(change)?;
        self.last = Some(change.rev);
        self.batch.push(change.key, meta);
        if self.batch.is_full() {
            self.flush();
        }
        Ok(())
    }

    /// The index that holds all changes taken.
    pub fn finish(mut self) -> Index {
        self.flush();
        self.index
    }

    fn checked(&self, change: StoredChange<'_>) -> Result<Meta, LoadError> {
        let StoredChange {
            rev,
            create,
            version,
            ..
        } = change;
        if let Some(before) = self.last.filter(|before| *before >= rev) {
            return Err(LoadError::OutOfOrder { before, rev });
        }
        match change.kind {
            RecordKind::Tombstone => Ok(Meta::of_delete(rev)),
            RecordKind::Put if version < 1 => Err(LoadError::BadVersion { rev, version }),
            RecordKind::Put if create > rev.major || create < Revision(0) => {
                Err(LoadError::BadCreate { rev, create })
            }
            RecordKind::Put => Ok(Meta {
                create,
                modified: rev,
                version,
                lease: change.lease,
            }),
        }
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let order = batch.sorted();
        let mut changes = Vec::new();
        for same_key in order.chunk_by(|a, b| a.0 == b.0 && batch.key(a.1) == batch.key(b.1)) {
            changes.clear();
            changes.extend(same_key.iter().map(|(_, i)| batch.pending[*i].meta));
            let key = batch.key(same_key[0].1);
            self.index.write(key, |slot| match slot {
                None => Slot::new(&changes),
                Some(mut slot) => {
                    slot.extend(&changes);
                    slot
                }
            });
        }
    }
}

/// Changes that wait to be sorted.
#[derive(Debug, Default)]
struct UnsortedBatch {
    /// The keys of all of them, one after the other.
    keys: Vec<u8>,
    pending: Vec<Pending>,
    /// How long a prefix all keys share.
    shared: usize,
}

#[derive(Debug)]
struct Pending {
    key: Range<usize>,
    meta: Meta,
}

impl UnsortedBatch {
    fn push(&mut self, key: &[u8], meta: Meta) {
        self.shared = match self.pending.first() {
            None => key.len(),
            Some(first) => {
                let first = &self.keys[first.key.clone()][..self.shared];
                first.iter().zip(key).take_while(|(a, b)| a == b).count()
            }
        };
        let start = self.keys.len();
        self.keys.extend_from_slice(key);
        let key = start..self.keys.len();
        self.pending.push(Pending { key, meta });
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_RECORDS_MAX || self.keys.len() >= PENDING_KEY_BYTES_MAX
    }

    fn key(&self, i: usize) -> &[u8] {
        &self.keys[self.pending[i].key.clone()]
    }

    /// Each change's place in `pending`, with its key's lead: ordered by key, then as they came.
    fn sorted(&self) -> Vec<(u128, usize)> {
        let mut order: Vec<_> = (0..self.pending.len()).map(|i| (self.lead(i), i)).collect();
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| self.key(a.1).cmp(self.key(b.1)))
                .then(a.1.cmp(&b.1))
        });
        order
    }

    /// The first bytes of a key after the prefix that all keys share. Most comparisons need no more of the key.
    fn lead(&self, i: usize) -> u128 {
        let rest = &self.key(i)[self.shared..];
        let mut lead = [0; 16];
        let len = rest.len().min(lead.len());
        lead[..len].copy_from_slice(&rest[..len]);
        u128::from_be_bytes(lead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], major: i64) -> StoredChange<'_> {
        StoredChange {
            key,
            rev: Rev::new(Revision(major), 0),
            kind: RecordKind::Put,
            create: Revision(major),
            version: 1,
            lease: LeaseId(0),
        }
    }

    #[test]
    fn nothing_makes_an_empty_index() {
        let index = Loader::new().finish();
        index.check();
        assert_eq!(index.live_keys(), 0);
    }

    #[test]
    fn a_key_whose_put_was_compacted_away_starts_with_its_tombstone() {
        let mut loader = Loader::new();
        let gone = StoredChange {
            kind: RecordKind::Tombstone,
            version: 0,
            ..put(b"k", 5)
        };
        loader.add(gone).unwrap();
        let mut index = loader.finish();
        assert_eq!(index.get(b"k"), None);
        assert_eq!(index.history(b"k").count(), 1);
        assert!(index.prune_step(Revision(6), 10));
        assert_eq!(index.history(b"k").count(), 0);
    }

    #[test]
    fn damaged_records_are_named() {
        let mut loader = Loader::new();
        loader.add(put(b"a", 5)).unwrap();
        let again = loader.add(put(b"b", 5)).unwrap_err();
        assert_eq!(again.to_string(), "stored revision 5.0 follows 5.0");
        let unborn = loader
            .add(StoredChange {
                version: 0,
                ..put(b"b", 6)
            })
            .unwrap_err();
        assert_eq!(unborn.to_string(), "stored revision 6.0 has version 0");
        let future = loader
            .add(StoredChange {
                create: Revision(9),
                ..put(b"b", 6)
            })
            .unwrap_err();
        assert_eq!(
            future.to_string(),
            "stored revision 6.0 has create revision 9"
        );
        assert_eq!(loader.finish().live_keys(), 1);
    }

    #[test]
    fn a_million_records_flush_on_the_way() {
        let mut loader = Loader::new();
        let total = i64::try_from(PENDING_RECORDS_MAX).unwrap() + 1_000;
        for i in 0..total {
            // The multiplier is odd, so the 2^21 keys are distinct, and far from sorted.
            let key = format!("/registry/pods/{:07}", (i * 987_654_321) & 0x1f_ffff);
            loader.add(put(key.as_bytes(), i + 2)).unwrap();
        }
        let index = loader.finish();
        index.check();
        assert_eq!(index.live_keys(), u64::try_from(total).unwrap());
    }
}
