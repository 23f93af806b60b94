//! `Runs`: a sequence that grows at its end, shrinks at its front, and is cheap to clone.
//!
//! Two parts of the store need it: the older revisions of a key, and the batches of records that redb has not made
//! durable yet (see [`tail`](super::tail)). Both are ordered by revision, both are read by snapshots while they grow, and
//! both can grow long, so that neither may be copied whole for an append.
//!
//! Items lie in immutable runs, the newest run first in a linked list. Runs fall into size classes, each four times
//! the one below. An append makes a new run; it takes in the runs before it that are of a lower class, and when it
//! would be the fourth of its class, the other three. So there are at most three runs of each class, O(log n) in
//! all, and an item moves to a higher class whenever it is copied: at most log4(n) times, which matters for batches,
//! where each copy touches a reference count. Runs of the lowest class always merge, as long as they stay in it:
//! copying half a kilobyte is cheaper than a run of its own. With two items in the lowest class:
//!
//! ```text
//! push 1    [1]
//! push 2    [1 2]                    a run of class 1: two items and up
//! push 5    [1 2] [3 4] [5]
//! push 7    [1 2] [3 4] [5 6] [7]
//! push 8    [1 2 3 4 5 6 7 8]        the fourth pair takes in the three before it
//! push 9    [1 2 3 4 5 6 7 8] [9]
//! drop ≤ 2  [. . 3 4 5 6 7 8] [9]    the run is shared with other clones, so its front is skipped, not freed
//! drop ≤ 5  [6 7 8] [9]              more than half would be skipped: the rest is copied out
//! ```

use std::sync::Arc;

/// Runs up to this size are always merged.
const SMALL_BYTES: usize = 512;
/// Runs of one size class that may follow each other.
const RUNS_PER_CLASS: usize = 3;

/// An item of the sequence, with its key.
pub trait Keyed {
    /// What the sequence is ordered by.
    type Key: Ord + Copy;

    fn key(&self) -> Self::Key;
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
    pub fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// How many items it holds. Costs one step a run.
    pub fn len(&self) -> usize {
        self.runs().map(<[T]>::len).sum()
    }

    /// Reads the reference count of the newest run; see [`index`](super::index).
    pub fn touch(&self) -> usize {
        self.newest.as_ref().map_or(0, Arc::strong_count)
    }

    pub fn first(&self) -> Option<&T> {
        self.runs().last()?.first()
    }

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
        self.append(&[item]);
    }

    /// Adds items in strictly ascending key order, all above those already here.
    pub fn append(&mut self, batch: &[T]) {
        let Some(first) = batch.first() else { return };
        assert!(
            self.last().is_none_or(|last| last.key() < first.key()),
            "history only grows at its end: an append starts at or before the newest item"
        );
        assert!(
            batch.is_sorted_by(|a, b| a.key() < b.key()),
            "history is strictly ordered: an append is not"
        );
        let items = self.take_merged(batch);
        self.newest = Some(Arc::new(Run {
            items,
            skip: 0,
            older: self.newest.take(),
        }));
    }

    /// The items of a new run: those of the runs that it takes in, then the batch. Copied once into their place.
    fn take_merged(&mut self, batch: &[T]) -> Arc<[T]> {
        let batch_items = batch.iter().cloned();
        let merged = self.take_mergeable(batch.len());
        match &merged[..] {
            [] => batch_items.collect(),
            [run] => run.items().iter().cloned().chain(batch_items).collect(),
            runs => {
                let before = runs.iter().rev().flat_map(|run| run.items());
                before.cloned().chain(batch_items).collect()
            }
        }
    }

    /// Unlinks the runs that a new run of `len` items takes in, newest first.
    fn take_mergeable(&mut self, len: usize) -> Vec<Arc<Run<T>>> {
        let (mut total, mut merged) = (len, Vec::new());
        loop {
            let count = self.mergeable(total);
            if count == 0 {
                return merged;
            }
            for _ in 0..count {
                let Some(run) = self.newest.take() else { break };
                total += run.items().len();
                self.newest.clone_from(&run.older);
                merged.push(run);
            }
        }
    }

    /// How many of the newest runs a run of `len` items takes in at once.
    fn mergeable(&self, len: usize) -> usize {
        let mut next = self.runs().map(<[T]>::len).take(RUNS_PER_CLASS);
        let class = Self::class(len);
        match next.next() {
            None => 0,
            Some(first) if len + first <= Self::small() || Self::class(first) < class => 1,
            Some(first) => {
                let same = std::iter::once(first)
                    .chain(next)
                    .filter(|len| Self::class(*len) == class);
                if same.count() == RUNS_PER_CLASS {
                    RUNS_PER_CLASS
                } else {
                    0
                }
            }
        }
    }

    /// How many items fill a run of the lowest class.
    fn small() -> usize {
        (SMALL_BYTES / size_of::<T>().max(1)).max(1)
    }

    /// The size class of a run of `len` items: from 1 on, each spans a factor of four.
    fn class(len: usize) -> u32 {
        (len / Self::small())
            .checked_ilog2()
            .map_or(0, |log2| 1 + log2 / 2)
    }

    /// Drops the items for which `goes` holds: a front part of the sequence.
    pub(super) fn drop_front(&mut self, goes: impl Fn(&T) -> bool) {
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
        let classes: Vec<u32> = runs
            .iter()
            .map(|run| Self::class(run.items().len()))
            .collect();
        assert!(classes.is_sorted(), "size classes fall from old to new");
        assert!(
            classes
                .windows(RUNS_PER_CLASS + 1)
                .all(|four| four[0] != four[RUNS_PER_CLASS]),
            "the fourth run of a class is merged with the other three"
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

    /// 128 bytes wide, so that four make a small run, and few items many runs.
    #[derive(Clone, Debug, PartialEq)]
    struct Wide(u32, [u32; 31]);

    impl Keyed for Wide {
        type Key = u32;

        fn key(&self) -> u32 {
            self.0
        }
    }

    fn wide(key: u32) -> Wide {
        Wide(key, [key; 31])
    }

    fn keys<'a>(items: impl IntoIterator<Item = &'a Wide>) -> Vec<u32> {
        items.into_iter().map(Keyed::key).collect()
    }

    #[test]
    fn pushes_stay_within_logarithmic_runs() {
        let mut runs = Runs::default();
        for key in 0..10_000 {
            runs.push(wide(key));
            assert!(runs.runs().count() <= 21, "at {key}");
        }
        runs.check();
        assert_eq!(runs.len(), 10_000);
        assert_eq!(runs.first(), Some(&wide(0)));
        assert_eq!(runs.last(), Some(&wide(9_999)));
    }

    #[test]
    fn shrinking_batches_stay_within_logarithmic_runs() {
        let mut runs = Runs::default();
        let mut next = 0;
        for size in (1..200).rev() {
            runs.append(&(next..next + size).map(wide).collect::<Vec<_>>());
            runs.check();
            next += size;
        }
        assert!(runs.runs().count() <= 21);
    }

    #[test]
    fn an_item_is_copied_logarithmically_often() {
        #[derive(Debug)]
        struct Counted(u32, std::rc::Rc<std::cell::Cell<u32>>);

        impl Clone for Counted {
            fn clone(&self) -> Self {
                self.1.set(self.1.get() + 1);
                Self(self.0, std::rc::Rc::clone(&self.1))
            }
        }

        impl Keyed for Counted {
            type Key = u32;

            fn key(&self) -> u32 {
                self.0
            }
        }

        let copies = std::rc::Rc::default();
        let mut runs = Runs::default();
        for batch in 0..256 {
            let keys = batch * 64..(batch + 1) * 64;
            runs.append(
                &keys
                    .map(|key| Counted(key, std::rc::Rc::clone(&copies)))
                    .collect::<Vec<_>>(),
            );
        }
        assert_eq!(runs.len(), 64 * 256);
        assert!(
            copies.get() <= 4 * 64 * 256,
            "256 = 4^4 equal batches: {} copies",
            copies.get()
        );
    }

    #[test]
    #[should_panic(expected = "history only grows at its end")]
    fn an_append_before_the_end_is_a_bug() {
        let mut runs = Runs::default();
        runs.push(wide(5));
        runs.push(wide(5));
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
            let (mut runs, mut model) = (Runs::<Wide>::default(), Vec::<u32>::new());
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
                        runs.append(&batch.into_iter().map(wide).collect::<Vec<_>>());
                    }
                    Op::DropBelow(key) => {
                        runs.drop_front(|item| item.key() < key);
                        model.retain(|item| *item >= key);
                    }
                    Op::DropThrough(key) => {
                        runs.drop_front(|item| item.key() <= key);
                        model.retain(|item| *item > key);
                    }
                    Op::Clone => clones.push((runs.clone(), model.clone())),
                }
                runs.check();
                prop_assert_eq!(keys(runs.iter()), model.clone());
            }
            clones.push((runs, model));
            for (runs, model) in clones {
                prop_assert_eq!(keys(runs.iter()), model.clone());
                prop_assert_eq!(runs.len(), model.len());
                prop_assert_eq!(runs.is_empty(), model.is_empty());
                prop_assert_eq!(keys(runs.first()), model[..model.len().min(1)].to_vec());
                prop_assert_eq!(runs.last().map(Keyed::key), model.last().copied());
                for key in 0..next + 2 {
                    let below = model.partition_point(|item| *item <= key);
                    let newest = runs.last_at_or_before(key).map(Keyed::key);
                    prop_assert_eq!(newest, model[..below].last().copied());
                    let exact = runs.get(key).map(Keyed::key);
                    prop_assert_eq!(exact, model.iter().find(|item| **item == key).copied());
                    let from = keys(runs.iter_from(key));
                    prop_assert_eq!(&from[..], &model[model.partition_point(|i| *i < key)..]);
                }
            }
        }
    }
}
