//! `Runs`: a sequence that grows at its end, shrinks at its front, and is cheap to clone.
//!
//! Two parts of the store need it: the older revisions of a key, and the tail of records that redb has not made
//! durable yet. Both are ordered by revision, both are read by snapshots while they grow, and both can reach
//! hundreds of thousands of items, so that neither may be copied whole for an append.
//!
//! Items lie in immutable runs, the newest run first in a linked list. An append makes a new run and merges it with
//! those before it whose size class (the power of two below their length) is not above its own. So size classes
//! fall strictly from old to new, there are at most log2(n) + 2 runs, and an item is copied at most log2(n) times:
//! each copy raises the class of its run. Pushing one at a time counts in binary:
//!
//! ```text
//! push 1    [1]
//! push 2    [1 2]
//! push 3    [1 2] [3]
//! push 4    [1 2 3 4]
//! push 5    [1 2 3 4] [5]
//! drop ≤ 2  [. . 3 4] [5]      the run is shared with other clones, so its front is skipped, not freed
//! drop ≤ 3  [4] [5]            more than half would be skipped: the rest is copied out
//! ```

use crate::types::{Record, Rev};
use std::sync::Arc;

/// An item that knows its place in the sequence.
pub trait Keyed {
    /// What the sequence is ordered by.
    type Key: Ord + Copy;

    /// The item's place.
    fn key(&self) -> Self::Key;
}

impl Keyed for Record {
    type Key = Rev;

    fn key(&self) -> Rev {
        self.rev
    }
}

/// A persistent sequence in strictly ascending key order. A clone costs one reference count and never changes.
#[derive(Debug)]
pub struct Runs<T> {
    newest: Option<Arc<Run<T>>>,
}

#[derive(Debug)]
struct Run<T> {
    items: Arc<[T]>,
    /// How many items at the front were dropped. Less than all, and at most half.
    skip: usize,
    older: Option<Arc<Run<T>>>,
}

impl<T> Run<T> {
    fn items(&self) -> &[T] {
        &self.items[self.skip..]
    }
}

impl<T> Clone for Runs<T> {
    fn clone(&self) -> Self {
        Self {
            newest: self.newest.clone(),
        }
    }
}

impl<T> Default for Runs<T> {
    fn default() -> Self {
        Self { newest: None }
    }
}

impl<T> Runs<T> {
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// How many items it holds. Costs one step a run.
    pub fn len(&self) -> usize {
        self.runs().map(<[T]>::len).sum()
    }

    /// The oldest item.
    pub fn first(&self) -> Option<&T> {
        self.runs().last()?.first()
    }

    /// The newest item.
    pub fn last(&self) -> Option<&T> {
        self.runs().next()?.last()
    }

    /// All items, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &T> {
        let runs: Vec<&[T]> = self.runs().collect();
        runs.into_iter().rev().flatten()
    }

    /// The runs, newest first.
    fn runs(&self) -> impl Iterator<Item = &[T]> {
        std::iter::successors(self.newest.as_deref(), |run| run.older.as_deref()).map(Run::items)
    }
}

impl<T: Keyed + Clone> Runs<T> {
    /// The item with this key.
    pub fn get(&self, key: T::Key) -> Option<&T> {
        self.last_at_or_before(key).filter(|item| item.key() == key)
    }

    /// The newest item whose key is not above `key`.
    pub fn last_at_or_before(&self, key: T::Key) -> Option<&T> {
        let run = self.runs().find(|run| run[0].key() <= key)?;
        Some(&run[run.partition_point(|item| item.key() <= key) - 1])
    }

    /// The items whose key is not below `key`, oldest first. Costs O(log n) before the first item.
    pub fn iter_from(&self, key: T::Key) -> impl DoubleEndedIterator<Item = &T> {
        let mut tails = Vec::new();
        for run in self.runs() {
            let start = run.partition_point(|item| item.key() < key);
            tails.push(&run[start..]);
            if start > 0 {
                break; // all older runs lie before `key`
            }
        }
        tails.into_iter().rev().flatten()
    }

    /// Adds one item. Its key must be above all others.
    pub fn push(&mut self, item: T) {
        self.append(vec![item]);
    }

    /// Adds items in strictly ascending key order, all above those already here.
    pub fn append(&mut self, batch: Vec<T>) {
        let Some(first) = batch.first() else { return };
        assert!(
            self.last().is_none_or(|last| last.key() < first.key()),
            "history only grows at its end: an append starts at or before the newest item"
        );
        assert!(
            batch.is_sorted_by(|a, b| a.key() < b.key()),
            "history is strictly ordered: an append is not"
        );
        let mut total = batch.len();
        let mut merged = Vec::new();
        let mut older = self.newest.take();
        while let Some(run) = older.take_if(|run| run.items().len().ilog2() <= total.ilog2()) {
            total += run.items().len();
            older.clone_from(&run.older);
            merged.push(run);
        }
        let items = if merged.is_empty() {
            batch
        } else {
            let mut items = Vec::with_capacity(total);
            for run in merged.iter().rev() {
                items.extend_from_slice(run.items());
            }
            items.extend(batch);
            items
        };
        self.newest = Some(Arc::new(Run {
            items: items.into(),
            skip: 0,
            older,
        }));
    }

    /// Drops all items whose key is below `key`.
    pub fn drop_below(&mut self, key: T::Key) {
        self.drop_front(|item| item.key() < key);
    }

    /// Drops all items whose key is not above `key`.
    pub fn drop_through(&mut self, key: T::Key) {
        self.drop_front(|item| item.key() <= key);
    }

    /// Drops the items for which `goes` holds: a front part of the sequence.
    fn drop_front(&mut self, goes: impl Fn(&T) -> bool) {
        if self.first().is_some_and(&goes) {
            self.newest = self.newest.as_ref().and_then(|run| trim(run, &goes));
        }
    }

    /// Verifies the invariants; for tests.
    pub fn check(&self) {
        let keys: Vec<T::Key> = self.iter().map(Keyed::key).collect();
        assert!(
            keys.is_sorted_by(|a, b| a < b),
            "keys ascend strictly from old to new"
        );
        let mut runs: Vec<&Run<T>> =
            std::iter::successors(self.newest.as_deref(), |run| run.older.as_deref()).collect();
        for run in &runs {
            assert!(!run.items().is_empty(), "a run without items is unlinked");
            assert!(
                run.skip * 2 <= run.items.len(),
                "at most half of a run is dead weight"
            );
        }
        runs.pop(); // the oldest may have shrunk below the class of the next
        let classes: Vec<u32> = runs.iter().map(|r| r.items().len().ilog2()).collect();
        assert!(
            classes.is_sorted_by(|a, b| a < b),
            "size classes rise strictly from new to old"
        );
    }
}

/// The list from `run` on without the items that go; all newer items stay.
fn trim<T: Keyed + Clone>(run: &Arc<Run<T>>, goes: &impl Fn(&T) -> bool) -> Option<Arc<Run<T>>> {
    let gone = run.items().partition_point(goes);
    if gone == run.items().len() {
        return None;
    }
    let older = match &run.older {
        Some(older) if gone == 0 => trim(older, goes),
        _ => None,
    };
    let skip = run.skip + gone;
    let (items, skip) = if skip * 2 > run.items.len() {
        (Arc::from(&run.items[skip..]), 0)
    } else {
        (Arc::clone(&run.items), skip)
    };
    Some(Arc::new(Run { items, skip, older }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Keyed for u32 {
        type Key = u32;

        fn key(&self) -> u32 {
            *self
        }
    }

    fn items(runs: &Runs<u32>) -> Vec<u32> {
        runs.iter().copied().collect()
    }

    #[test]
    fn pushes_stay_within_logarithmic_runs() {
        let mut runs = Runs::default();
        for key in 0..10_000 {
            runs.push(key);
            assert!(runs.runs().count() <= 14, "at {key}");
        }
        runs.check();
        assert_eq!(runs.len(), 10_000);
        assert_eq!(runs.first(), Some(&0));
        assert_eq!(runs.last(), Some(&9_999));
    }

    #[test]
    fn shrinking_batches_stay_within_logarithmic_runs() {
        let mut runs = Runs::default();
        let mut next = 0;
        for size in (1..200).rev() {
            runs.append((next..next + size).collect());
            next += size;
        }
        runs.check();
        assert!(runs.runs().count() <= 16);
    }

    #[test]
    #[should_panic(expected = "history only grows at its end")]
    fn an_append_before_the_end_is_a_bug() {
        let mut runs = Runs::default();
        runs.push(5);
        runs.push(5);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append(Vec<u32>),
        DropBelow(u32),
        DropThrough(u32),
        Clone,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => prop::collection::vec(1..4_u32, 0..12).prop_map(Op::Append),
            1 => (0..300_u32).prop_map(Op::DropBelow),
            1 => (0..300_u32).prop_map(Op::DropThrough),
            2 => Just(Op::Clone),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_sorted_vector(ops in prop::collection::vec(op(), 0..60)) {
            let (mut runs, mut model) = (Runs::default(), Vec::<u32>::new());
            let (mut next, mut clones) = (0, Vec::new());
            for op in ops {
                match op {
                    Op::Append(gaps) => {
                        let mut batch = Vec::new();
                        for gap in gaps {
                            next += gap;
                            batch.push(next);
                        }
                        model.extend(&batch);
                        runs.append(batch);
                    }
                    Op::DropBelow(key) => {
                        runs.drop_below(key);
                        model.retain(|item| *item >= key);
                    }
                    Op::DropThrough(key) => {
                        runs.drop_through(key);
                        model.retain(|item| *item > key);
                    }
                    Op::Clone => clones.push((runs.clone(), model.clone())),
                }
                runs.check();
                prop_assert_eq!(items(&runs), model.clone());
            }
            clones.push((runs, model));
            for (runs, model) in clones {
                prop_assert_eq!(items(&runs), model.clone());
                prop_assert_eq!(runs.len(), model.len());
                prop_assert_eq!(runs.is_empty(), model.is_empty());
                prop_assert_eq!(runs.first(), model.first());
                prop_assert_eq!(runs.last(), model.last());
                for key in 0..next + 2 {
                    let below = model.partition_point(|item| *item <= key);
                    prop_assert_eq!(runs.last_at_or_before(key), model[..below].last());
                    prop_assert_eq!(runs.get(key), model.iter().find(|item| **item == key));
                    let from: Vec<u32> = runs.iter_from(key).copied().collect();
                    prop_assert_eq!(&from[..], &model[model.partition_point(|i| *i < key)..]);
                }
            }
        }
    }
}
