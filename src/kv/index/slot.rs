//! What the index knows about one key: its newest revision, and the older ones still stored.
//!
//! This is etcd's `key_index` with the generations flattened: a tombstone in the list ends one.

use crate::kv::runs::{Keyed, Runs};
use crate::types::{LeaseId, RecordKind, Rev, Revision};

/// What is known about a live key without reading its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The revision that created this incarnation of the key.
    pub create: Revision,
    /// The change that wrote it last.
    pub modified: Rev,
    /// How often it was put since it was created; the first put makes version 1.
    pub version: i64,
    /// The lease it hangs on; zero for none.
    pub lease: LeaseId,
}

impl Meta {
    /// What a put at `rev` makes of a key that was `before`.
    pub(super) fn of_put(before: Option<Self>, rev: Rev, lease: LeaseId) -> Self {
        Self {
            create: before.map_or(rev.major, |meta| meta.create),
            modified: rev,
            version: before.map_or(1, |meta| meta.version + 1),
            lease,
        }
    }

    /// A tombstone: version 0, which no put makes.
    pub(super) fn of_delete(rev: Rev) -> Self {
        Self {
            modified: rev,
            ..Self::default()
        }
    }

    pub(super) fn kind(&self) -> RecordKind {
        match self.version {
            0 => RecordKind::Tombstone,
            _ => RecordKind::Put,
        }
    }
}

/// An older change of a key. Its fields are those of a [`Rev`], flattened to fit 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Past {
    major: Revision,
    sub: u32,
    kind: RecordKind,
}

impl Keyed for Past {
    type Key = Rev;

    fn key(&self) -> Rev {
        Rev::new(self.major, self.sub)
    }
}

impl From<Meta> for Past {
    fn from(meta: Meta) -> Self {
        Self {
            major: meta.modified.major,
            sub: meta.modified.sub,
            kind: meta.kind(),
        }
    }
}

/// A key's entry in a leaf.
///
/// Invariant: `past` ascends and ends before `newest`.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// The newest change, be it a put or a tombstone.
    newest: Meta,
    past: Runs<Past>,
}

impl Slot {
    /// The entry of a key that went through `changes`: at least one, in ascending order.
    pub(super) fn new(changes: &[Meta]) -> Self {
        let mut slot = Self {
            newest: changes[0],
            past: Runs::default(),
        };
        slot.extend(&changes[1..]);
        slot
    }

    /// The key's metadata, unless it is deleted.
    pub(super) fn live(&self) -> Option<Meta> {
        match self.newest.kind() {
            RecordKind::Put => Some(self.newest),
            RecordKind::Tombstone => None,
        }
    }

    /// The newest change's place in history.
    pub(super) fn modified(&self) -> Rev {
        self.newest.modified
    }

    /// Whether the newest change is all that is stored.
    pub(super) fn is_lone(&self) -> bool {
        self.past.is_empty()
    }

    /// Adds newer changes, in ascending order.
    pub(super) fn extend(&mut self, newer: &[Meta]) {
        let Some((last, between)) = newer.split_last() else {
            return;
        };
        let before = between.last().unwrap_or(&self.newest);
        assert!(
            before.modified < last.modified,
            "changes of a key come in revision order: {:?} is not after {:?}",
            last.modified,
            before.modified
        );
        if between.is_empty() {
            self.past.push(Past::from(self.newest));
        } else {
            let past = std::iter::once(&self.newest).chain(between);
            let past: Vec<Past> = past.copied().map(Past::from).collect();
            self.past.append(&past);
        }
        self.newest = *last;
    }

    /// The newest change at revision `at` or before; within one revision the highest sub wins.
    pub(super) fn newest_at(&self, at: Revision) -> Option<(Rev, RecordKind)> {
        if self.newest.modified.major <= at {
            return Some((self.newest.modified, self.newest.kind()));
        }
        let past = self.past.last_at_or_before(Rev::new(at, u32::MAX))?;
        Some((past.key(), past.kind))
    }

    /// The change that wrote the value the key had at revision `at`, if it was alive then.
    pub(super) fn rev_at(&self, at: Revision) -> Option<Rev> {
        match self.newest_at(at)? {
            (rev, RecordKind::Put) => Some(rev),
            (_, RecordKind::Tombstone) => None,
        }
    }

    /// All stored changes, oldest first.
    pub(super) fn history(&self) -> impl Iterator<Item = (Rev, RecordKind)> {
        let newest = (self.newest.modified, self.newest.kind());
        let past = self.past.iter().map(|past| (past.key(), past.kind));
        past.chain(std::iter::once(newest))
    }

    /// The lowest revision at which a compaction drops something of this key: once the second change is visible
    /// the first is not, and a tombstone is only kept by a compaction at its own revision.
    pub(super) fn prunable_from(&self) -> Revision {
        let mut oldest = self.history();
        let first_goes = match oldest.next() {
            Some((rev, RecordKind::Tombstone)) => rev.major.next(),
            Some((_, RecordKind::Put)) | None => Revision(i64::MAX),
        };
        let second_shows = oldest.next().map_or(first_goes, |(rev, _)| rev.major);
        first_goes.min(second_shows)
    }

    /// Drops what a compaction at `at` drops. False means that nothing is left of the key.
    pub(super) fn prune(&mut self, at: Revision) -> bool {
        let Some((newest, kind)) = self.newest_at(at) else {
            return true;
        };
        let keep = kept_by_compaction(newest, kind, at);
        if newest == self.newest.modified {
            self.past = Runs::default();
            return keep;
        }
        if keep {
            self.past.drop_below(newest);
        } else {
            self.past.drop_through(newest);
        }
        true
    }

    /// Verifies the invariants; for tests.
    pub(super) fn check(&self) {
        self.past.check();
        assert!(
            self.past
                .last()
                .is_none_or(|past| past.key() < self.newest.modified),
            "past changes end before the newest"
        );
        assert!(self.newest.version >= 0, "versions count puts");
    }
}

/// Whether a compaction at `at` keeps a change that is its key's newest one at `at`.
// etcd: a deletion at exactly the compacted revision stays, so that a watch from there still sees it.
pub(super) fn kept_by_compaction(newest: Rev, kind: RecordKind, at: Revision) -> bool {
    match kind {
        RecordKind::Put => true,
        RecordKind::Tombstone => newest.major == at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rev(major: i64) -> Rev {
        Rev::new(Revision(major), 0)
    }

    #[test]
    fn stays_small() {
        assert_eq!(size_of::<Slot>(), 48);
        assert_eq!(size_of::<Past>(), 16);
    }

    #[test]
    fn prunable_from_is_the_first_compaction_that_drops_something() {
        let put = |major| Meta::of_put(None, rev(major), LeaseId(0));
        let gone = |major| Meta::of_delete(rev(major));
        let cases = [
            (vec![put(2)], i64::MAX),
            (vec![put(2), put(5)], 5),
            (vec![put(2), gone(5)], 5),
            (vec![gone(5)], 6),
            (vec![gone(5), put(9)], 6),
            (vec![put(2), put(5), put(7)], 5),
        ];
        for (changes, expected) in cases {
            let slot = Slot::new(&changes);
            assert_eq!(slot.prunable_from(), Revision(expected), "{changes:?}");
            for at in 1..12 {
                let mut pruned = slot.clone();
                let left = pruned.prune(Revision(at));
                let changed = !left || pruned.history().count() < changes.len();
                assert_eq!(changed, at >= expected, "{changes:?} compacted at {at}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "changes of a key come in revision order")]
    fn a_change_from_the_past_is_a_bug() {
        let mut slot = Slot::new(&[Meta::of_delete(rev(5))]);
        slot.extend(&[Meta::of_delete(rev(5))]);
    }
}
