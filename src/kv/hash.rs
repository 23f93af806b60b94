//! etcd's hash of the history: members with the same history have the same hash, whatever each has physically removed.
//!
//! Fed with every stored record in ascending order, it follows etcd byte for byte, so that the two can be compared. Compacted
//! records are skipped, whether they are still stored or not: up to the compacted revision, only those records are hashed that a
//! read can still see.

use super::{
    KvError,
    index::Snapshot,
    key_range::KeyRange,
    keys::{Keys, Steps},
    range::RevisionWindow,
};
use crate::types::{RecordKind, Rev, Revision};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryHash {
    /// CRC-32C.
    pub hash: u32,
    /// The newest revision that is in it.
    pub through: Revision,
    /// The compacted revision; hashes of different ones cannot be compared.
    pub compacted: Revision,
    /// The store's newest revision.
    pub newest: Revision,
}

/// Takes records one after the other.
#[derive(Debug)]
pub struct HistoryHasher {
    sum: u32,
    window: RevisionWindow,
    through: Revision,
    /// Records up to the compacted revision that some read can still see, in ascending order.
    kept: Vec<Rev>,
    /// Whether any key is alive at `through`.
    any_kept: bool,
}

impl HistoryHasher {
    /// A hash of the history through revision `asked`; through the newest if that is 0.
    pub fn new(window: RevisionWindow, keys: &Snapshot, asked: Revision) -> Result<Self, KvError> {
        let through = if asked == Revision(0) {
            window.newest
        } else {
            asked
        };
        // etcd: a negative revision is older than every record, and not compacted.
        if through < window.compacted && through >= Revision(0) {
            return Err(KvError::Compacted {
                asked: through,
                oldest: window.compacted,
            });
        }
        if through > window.newest {
            return Err(KvError::FutureRevision {
                asked: through,
                newest: window.newest,
            });
        }
        let (mut kept, mut any_kept) = (Vec::new(), false);
        keys.visit_at(
            &KeyRange::all(),
            through,
            &Steps::unlimited(),
            &mut |_, rev| {
                any_kept = true;
                if rev.major <= window.compacted {
                    kept.push(rev);
                }
                std::ops::ControlFlow::Continue(())
            },
        );
        kept.sort_unstable();
        Ok(Self {
            sum: empty(),
            window,
            through,
            kept,
            any_kept,
        })
    }

    pub fn add(&mut self, rev: Rev, kind: RecordKind, kv: &[u8]) {
        let compacted = self.window.compacted;
        let given_up =
            rev.major <= compacted && self.any_kept && self.kept.binary_search(&rev).is_err();
        let removal = rev.major == compacted && kind == RecordKind::Tombstone;
        if rev.major > self.through || given_up || removal {
            return;
        }
        self.sum = append(self.sum, rev, kind, kv);
    }

    /// The hash of what was taken.
    pub fn finish(self) -> HistoryHash {
        HistoryHash {
            hash: self.sum,
            through: self.through,
            compacted: self.window.compacted,
            newest: self.window.newest,
        }
    }
}

/// The hash that etcd makes while it compacts, of the history as the compaction before left it. Takes, in ascending order, every
/// record up to the compacted revision.
#[derive(Clone, Debug)]
pub struct CompactionHasher {
    through: Revision,
    /// The compaction before.
    compacted: Revision,
    sum: u32,
    /// etcd: if the compaction keeps no record, those that the one before gave up count as well.
    sum_if_none_is_kept: u32,
    any_kept: bool,
}

impl CompactionHasher {
    /// For the compaction at `through`, where the last one was at `compacted`.
    pub fn new(compacted: Revision, through: Revision) -> Self {
        Self {
            through,
            compacted,
            sum: empty(),
            sum_if_none_is_kept: empty(),
            any_kept: false,
        }
    }

    /// Takes a record, which this compaction keeps or removes.
    pub fn add(&mut self, rev: Rev, kind: RecordKind, kv: &[u8], kept: bool) {
        self.any_kept |= kept;
        if rev.major == self.compacted && kind == RecordKind::Tombstone {
            return;
        }
        if !self.any_kept {
            self.sum_if_none_is_kept = append(self.sum_if_none_is_kept, rev, kind, kv);
        }
        if kept || rev.major > self.compacted {
            self.sum = append(self.sum, rev, kind, kv);
        }
    }

    /// The hash of what was taken. It does not know what is newer.
    pub fn finish(&self) -> HistoryHash {
        let hash = if self.any_kept {
            self.sum
        } else {
            self.sum_if_none_is_kept
        };
        HistoryHash {
            hash,
            through: self.through,
            compacted: self.compacted,
            newest: self.through,
        }
    }
}

/// The hash of no record.
fn empty() -> u32 {
    crc32c::crc32c(b"key")
}

/// Adds a record with etcd's key of it.
fn append(sum: u32, rev: Rev, kind: RecordKind, kv: &[u8]) -> u32 {
    let mut key = [b'_'; 18];
    key[..8].copy_from_slice(&rev.major.0.to_be_bytes());
    key[9..17].copy_from_slice(&u64::from(rev.sub).to_be_bytes());
    key[17] = b't';
    let len = match kind {
        RecordKind::Put => 17,
        RecordKind::Tombstone => 18,
    };
    crc32c::crc32c_append(crc32c::crc32c_append(sum, &key[..len]), kv)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_compaction(compacted: i64, records: &[(i64, RecordKind, bool)]) -> u32 {
        let mut hasher = CompactionHasher::new(Revision(compacted), Revision(9));
        for &(major, kind, kept) in records {
            hasher.add(Rev::new(Revision(major), 0), kind, b"kv", kept);
        }
        let hash = hasher.finish();
        assert_eq!(
            (hash.through.0, hash.compacted.0),
            (9, compacted),
            "whose it is"
        );
        hash.hash
    }

    fn of(records: &[(i64, RecordKind)]) -> u32 {
        let add = |sum, &(major, kind): &(i64, RecordKind)| {
            append(sum, Rev::new(Revision(major), 0), kind, b"kv")
        };
        records.iter().fold(empty(), add)
    }

    #[test]
    fn a_compaction_hashes_what_the_one_before_left() {
        use RecordKind::{Put, Tombstone};
        let records = [
            (3, Put, false),
            (5, Tombstone, false),
            (6, Put, false),
            (8, Put, true),
        ];
        // Up to revision 5, only what stays; after it, what goes as well.
        assert_eq!(of_compaction(5, &records), of(&[(6, Put), (8, Put)]));
        let kept = [(3, Put, true), (6, Tombstone, false)];
        assert_eq!(of_compaction(5, &kept), of(&[(3, Put), (6, Tombstone)]));
        let first = [(3, Put), (5, Tombstone), (6, Put), (8, Put)];
        assert_eq!(of_compaction(-1, &records), of(&first));
        // Nothing stays.
        let none = [(3, Put, false), (5, Tombstone, false), (6, Put, false)];
        assert_eq!(of_compaction(5, &none), of(&[(3, Put), (6, Put)]));
        assert_eq!(of_compaction(5, &[]), empty());
    }
}
