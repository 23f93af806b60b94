//! The read side: an immutable view of the index at one moment.

use super::{
    keys::Key,
    node::{Child, TreeNode},
    slot::{Meta, Slot, kept_by_compaction},
    walk::Walk,
};
use crate::{
    kv::key_range::{KeyRange, RangeEnd},
    types::{RecordKind, Rev, Revision},
};

/// "At the head", as a revision: no change is newer.
const HEAD: Revision = Revision(i64::MAX);

/// The index as it was at one moment. It never changes; a clone costs one reference count.
///
/// Reads `at` a revision are right for all revisions from the last compaction on. It is the caller's duty to refuse
/// older ones, and those that do not exist yet.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) root: Child,
}

impl Snapshot {
    /// The metadata of `key`, if it is live at the head.
    pub fn get(&self, key: &[u8]) -> Option<Meta> {
        self.root.slot(key)?.live()
    }

    /// The change that wrote the value `key` had at revision `at`, if it was alive then.
    pub fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev> {
        self.root.slot(key)?.rev_at(at)
    }

    /// All stored changes of `key`, oldest first; those a compaction dropped are gone.
    pub fn history(&self, key: &[u8]) -> impl Iterator<Item = (Rev, RecordKind)> {
        self.root.slot(key).into_iter().flat_map(Slot::history)
    }

    /// The live keys in `range` at the head, ascending. Lazy: it costs what is taken of it, plus O(log n).
    pub fn live(&self, range: &KeyRange) -> impl Iterator<Item = (Key<'_>, Meta)> {
        self.live_while(range, || true)
    }

    /// As [`Self::live`], for as long as `step` allows: it is asked before each key that is passed, live or not.
    pub fn live_while<'a>(
        &'a self,
        range: &KeyRange,
        mut step: impl FnMut() -> bool + 'a,
    ) -> impl Iterator<Item = (Key<'a>, Meta)> {
        Walk::new(&self.root, range, HEAD)
            .take_while(move |_| step())
            .filter_map(|(key, slot)| Some((key, slot.live()?)))
    }

    /// The keys in `range` that were alive at revision `at`, ascending, with the change that wrote their value.
    /// Lazy like [`Self::live`], but it also visits keys that were dead at `at` and changed since.
    pub fn live_at(&self, range: &KeyRange, at: Revision) -> impl Iterator<Item = (Key<'_>, Rev)> {
        self.live_at_while(range, at, || true)
    }

    /// As [`Self::live_at`], for as long as `step` allows: it is asked before each key that is passed, alive then or not.
    pub fn live_at_while<'a>(
        &'a self,
        range: &KeyRange,
        at: Revision,
        mut step: impl FnMut() -> bool + 'a,
    ) -> impl Iterator<Item = (Key<'a>, Rev)> {
        Walk::new(&self.root, range, at)
            .take_while(move |_| step())
            .filter_map(move |(key, slot)| Some((key, slot.rev_at(at)?)))
    }

    /// How many keys in `range` are live at the head. O(log n).
    pub fn count(&self, range: &KeyRange) -> u64 {
        self.count_at(range, HEAD)
    }

    /// How many keys in `range` were alive at revision `at`. Visits only the parts of the tree that changed since.
    pub fn count_at(&self, range: &KeyRange, at: Revision) -> u64 {
        let start = Some(range.start.as_ref());
        match &range.end {
            _ if range.is_empty_range() => 0,
            RangeEnd::Single => u64::from(self.rev_at(&range.start, at).is_some()),
            RangeEnd::Before(end) => count(&self.root, start, Some(end), at),
            RangeEnd::Unbounded => count(&self.root, start, None, at),
        }
    }

    pub fn live_keys(&self) -> u64 {
        self.root.summary.live
    }

    /// Whether a physical compaction at `at` must keep the stored change `rev` of `key`.
    ///
    /// The answer is the same before, while and after the index itself is pruned at `at`, but not after it is
    /// pruned at a later revision. The change must be one of this key.
    pub fn needed_at_compaction(
        &self,
        key: &[u8],
        rev: Rev,
        kind: RecordKind,
        at: Revision,
    ) -> bool {
        if rev.major > at {
            return true;
        }
        let newest = self.root.slot(key).and_then(|slot| slot.newest_at(at));
        newest.is_some_and(|(newest, _)| newest == rev) && kept_by_compaction(rev, kind, at)
    }
}

/// Counts the keys from `low` on and below `high`, where given, that were alive at `at`.
fn count(child: &Child, low: Option<&[u8]>, high: Option<&[u8]>, at: Revision) -> u64 {
    if low.is_none() && high.is_none() && child.summary.newest <= at {
        return child.summary.live;
    }
    match &*child.node {
        TreeNode::Leaf(leaf) => {
            let start = low.map_or(0, |low| leaf.keys.below(low));
            let end = high.map_or(leaf.slots.len(), |high| leaf.keys.below(high));
            leaf.count(start, end, at)
        }
        TreeNode::Inner(inner) => {
            let first = low.map_or(0, |low| inner.route(low));
            let last = high.map_or(inner.children.len() - 1, |high| inner.route(high));
            let part = |i| {
                let low = low.filter(|_| i == first);
                let high = high.filter(|_| i == last);
                count(&inner.children[i], low, high, at)
            };
            (first..=last).map(part).sum()
        }
    }
}
