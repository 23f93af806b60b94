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
            sum: crc32c::crc32c(b"key"),
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
        let mut key = [b'_'; 18];
        key[..8].copy_from_slice(&rev.major.0.to_be_bytes());
        key[9..17].copy_from_slice(&u64::from(rev.sub).to_be_bytes());
        key[17] = b't';
        let len = match kind {
            RecordKind::Put => 17,
            RecordKind::Tombstone => 18,
        };
        self.sum = crc32c::crc32c_append(self.sum, &key[..len]);
        self.sum = crc32c::crc32c_append(self.sum, kv);
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
