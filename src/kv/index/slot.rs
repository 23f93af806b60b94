//! What the index holds for one key: its newest revision, and the older ones still stored.
//!
//! This is etcd's `key_index` with the generations flattened: a tombstone in the list ends one.

use crate::{
    kv::runs::{Keyed, Runs},
    types::{LeaseId, RecordKind, Rev, Revision},
};

/// What is known about a live key without reading its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The revision that created this incarnation of the key.
    pub create: Revision,
    /// The change that wrote it last.
    pub modified: Rev,
    /// How often it was put since it was created; the first put makes version 1.
    pub version: i64,
    /// The lease it is attached to; zero for none.
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
/// Invariant: `older` ascends and ends before `newest`.
#[derive(Clone, Debug, Default)]
pub(super) struct Slot {
    /// The newest change, be it a put or a tombstone.
    newest: Meta,
    older: Older,
}

/// The changes before the newest. Most keys of a large store have at most one older change; the slot stores it inline, so that
/// neither a write nor a copy of the slot follows a pointer.
///
/// Invariant: `Many` are two and more.
#[derive(Clone, Debug, Default)]
enum Older {
    #[default]
    None,
    One(Past),
    Many(Runs<Past>),
}

impl Older {
    fn append(&mut self, newer: &[Past]) {
        *self = match (std::mem::take(self), newer) {
            (older, []) => older,
            (Self::None, [only]) => Self::One(*only),
            (Self::None, newer) => Self::many(newer),
            (Self::One(first), [second]) => Self::many(&[first, *second]),
            (Self::One(first), newer) => Self::many(&[&[first], newer].concat()),
            (Self::Many(mut runs), newer) => {
                runs.append(newer);
                Self::Many(runs)
            }
        };
    }

    fn many(changes: &[Past]) -> Self {
        let mut runs = Runs::default();
        runs.append(changes);
        Self::Many(runs)
    }

    fn iter(&self) -> impl Iterator<Item = &Past> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(past) => (Some(past), None),
            Self::Many(runs) => (None, Some(runs)),
        };
        one.into_iter().chain(many.into_iter().flat_map(Runs::iter))
    }

    fn last_at_or_before(&self, at: Rev) -> Option<&Past> {
        match self {
            Self::None => None,
            Self::One(past) => Some(past).filter(|past| past.key() <= at),
            Self::Many(runs) => runs.last_at_or_before(at),
        }
    }

    /// Drops the changes for which `goes` holds: a front part.
    fn drop_front(&mut self, goes: impl Fn(&Past) -> bool) {
        match self {
            Self::None => {}
            Self::One(past) => {
                if goes(past) {
                    *self = Self::None;
                }
            }
            Self::Many(runs) => {
                runs.drop_front(goes);
                if runs.len() < 2 {
                    *self = runs.first().map_or(Self::None, |past| Self::One(*past));
                }
            }
        }
    }
}

impl Slot {
    /// The entry of a key that went through `changes`: at least one, in ascending order.
    pub(super) fn new(changes: &[Meta]) -> Self {
        let mut slot = Self {
            newest: changes[0],
            older: Older::None,
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

    /// Reads the slot; see [`prefetch`](super::prefetch).
    pub(super) fn touch(&self) -> usize {
        usize::from(self.newest.version == self.newest.create.0) + usize::from(self.is_lone())
    }

    /// Reads the reference counts of its parts.
    pub(super) fn touch_shared(&self) -> usize {
        match &self.older {
            Older::None => 0,
            Older::One(_) => 1,
            Older::Many(runs) => runs.touch(),
        }
    }

    /// The newest change's place in history.
    pub(super) fn modified(&self) -> Rev {
        self.newest.modified
    }

    /// Whether the newest change is all that is stored.
    pub(super) fn is_lone(&self) -> bool {
        matches!(self.older, Older::None)
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
            self.older.append(&[Past::from(self.newest)]);
        } else {
            let past = std::iter::once(&self.newest).chain(between);
            let past: Vec<Past> = past.copied().map(Past::from).collect();
            self.older.append(&past);
        }
        self.newest = *last;
    }

    /// The newest change at revision `at` or before; within one revision the highest sub wins.
    pub(super) fn newest_at(&self, at: Revision) -> Option<(Rev, RecordKind)> {
        if self.newest.modified.major <= at {
            return Some((self.newest.modified, self.newest.kind()));
        }
        let past = self.older.last_at_or_before(Rev::new(at, u32::MAX))?;
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
        let older = self.older.iter().map(|past| (past.key(), past.kind));
        older.chain(std::iter::once(newest))
    }

    /// The lowest revision at which a compaction drops something of this key: once the second change is visible
    /// the first is not, and a tombstone is only kept by a compaction at its own revision.
    pub(super) fn prunable_from(&self) -> Revision {
        let (first, second) = self.oldest_two();
        let first_goes = match first.kind {
            RecordKind::Tombstone => first.major.next(),
            RecordKind::Put => Revision(i64::MAX),
        };
        second.map_or(first_goes, |second| first_goes.min(second.major))
    }

    fn oldest_two(&self) -> (Past, Option<Past>) {
        let newest = Past::from(self.newest);
        match &self.older {
            Older::None => (newest, None),
            Older::One(past) => (*past, Some(newest)),
            Older::Many(runs) => {
                let mut oldest = runs.iter().copied();
                (oldest.next().unwrap_or(newest), oldest.next())
            }
        }
    }

    /// Drops the changes that a compaction at `at` removes. False means that the key has none left.
    pub(super) fn prune(&mut self, at: Revision) -> bool {
        let Some((newest, kind)) = self.newest_at(at) else {
            return true;
        };
        let keep = kept_by_compaction(newest, kind, at);
        if newest == self.newest.modified {
            self.older = Older::None;
            return keep;
        }
        self.older
            .drop_front(|past| past.key() < newest || (!keep && past.key() == newest));
        true
    }

    /// Verifies the invariants; for tests.
    pub(super) fn check(&self) {
        if let Older::Many(runs) = &self.older {
            runs.check();
            assert!(runs.len() > 1, "what has room in the slot is there");
        }
        assert!(
            self.older
                .iter()
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
        assert_eq!(size_of::<Slot>(), 56);
        assert_eq!(size_of::<Past>(), 16);
    }

    #[test]
    fn one_older_change_is_in_the_slot_itself() {
        let put = |major| Meta::of_put(None, rev(major), LeaseId(0));
        let older = |slot: &Slot| match &slot.older {
            Older::None => (0, "none"),
            Older::One(_) => (1, "in the slot"),
            Older::Many(runs) => (runs.len(), "elsewhere"),
        };
        let mut slot = Slot::new(&[put(2)]);
        assert_eq!(older(&slot), (0, "none"));
        slot.extend(&[put(3)]);
        assert_eq!(older(&slot), (1, "in the slot"));
        slot.extend(&[put(4), put(5)]);
        assert_eq!(older(&slot), (3, "elsewhere"));
        slot.check();
        assert!(slot.prune(Revision(4)), "the newest is left");
        assert_eq!(older(&slot), (1, "in the slot"));
        assert!(slot.prune(Revision(5)), "the newest is left");
        assert_eq!(older(&slot), (0, "none"));
        assert_eq!(
            older(&Slot::new(&[put(2), put(3), put(4)])),
            (2, "elsewhere")
        );
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
