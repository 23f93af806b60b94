//! Finds out whether a transaction writes a key twice, in time proportional to n log² n for n operations.
//!
//! etcd refuses a transaction that puts a key twice, or puts a key that it also deletes. It looks at both branches of every
//! transaction, nested ones included, and asymmetrically: see [`check`]. Comparing each put with each delete takes quadratic
//! time; a request of 1.5 MB then kept a member from working for a minute. So each level keeps its puts and its deletes
//! sorted, the deleted ranges merged where they overlap, and when two levels are joined, the smaller one is looked up in the
//! larger one and moved into it. An operation is moved only into a set at least as large as the one it was in, hence at most
//! log n times.

use super::{
    KeyRange, KvError, RangeEnd,
    command::{Txn, TxnOp},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Included, Unbounded},
};

/// Refuses a transaction in which two writes meet. Deletes may overlap each other. The two branches of one transaction may
/// repeat each other's keys, for only one of them runs. Returns the number of look-ups and insertions that the check took.
///
/// etcd: a nested put is compared with the deletes of the surrounding list and of earlier nested transactions only, so
/// that `[txn{put k}, txn{del k}]` passes and `[txn{del k}, txn{put k}]` does not.
pub(super) fn check(txn: &Txn) -> Result<u64, KvError> {
    let mut steps = 0;
    WriteSet::of(&txn.success, &mut steps)?;
    WriteSet::of(&txn.failure, &mut steps)?;
    Ok(steps)
}

/// What a list of operations may write, nested transactions included.
#[derive(Debug, Default)]
struct WriteSet {
    puts: BTreeSet<Bytes>,
    deletes: DeletedKeys,
}

impl WriteSet {
    fn of(ops: &[TxnOp], steps: &mut u64) -> Result<Self, KvError> {
        let mut all = Self::default();
        for op in ops {
            // etcd: a delete "from key" is not compared with puts: `[put k, del --from-key k]` passes.
            if let TxnOp::DeleteRange(delete) = op
                && delete.range_end.as_ref() != b"\0"
            {
                let range = KeyRange::from_wire(&delete.key, &delete.range_end);
                all.deletes.insert(range, steps);
            }
        }
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                let mut either = Self::of(&inner.success, steps)?;
                let otherwise = Self::of(&inner.failure, steps)?;
                union(&mut either.puts, otherwise.puts, steps);
                either.deletes.extend(otherwise.deletes, steps);
                all.add_nested(either, steps)?;
            }
        }
        for op in ops {
            if let TxnOp::Put(put) = op {
                *steps += 2;
                let key = put.key.0.clone();
                if all.deletes.contains(&key) || !all.puts.insert(key) {
                    return Err(KvError::DuplicateKey);
                }
            }
        }
        Ok(all)
    }

    fn add_nested(&mut self, nested: Self, steps: &mut u64) -> Result<(), KvError> {
        if self.deletes.meet(&nested.puts, steps) {
            return Err(KvError::DuplicateKey);
        }
        let count = self.puts.len() + nested.puts.len();
        union(&mut self.puts, nested.puts, steps);
        if self.puts.len() < count {
            return Err(KvError::DuplicateKey);
        }
        self.deletes.extend(nested.deletes, steps);
        Ok(())
    }
}

/// Adds the smaller set to the larger one.
fn union(to: &mut BTreeSet<Bytes>, mut other: BTreeSet<Bytes>, steps: &mut u64) {
    if to.len() < other.len() {
        std::mem::swap(to, &mut other);
    }
    *steps += other.len() as u64;
    to.extend(other);
}

/// The union of deleted ranges. Invariant: `ranges` neither overlap nor touch, and none is empty.
#[derive(Debug, Default)]
struct DeletedKeys {
    single: BTreeSet<Bytes>,
    /// From the first key of each range to the key before which it ends.
    ranges: BTreeMap<Bytes, Bytes>,
}

impl DeletedKeys {
    fn len(&self) -> usize {
        self.single.len() + self.ranges.len()
    }

    fn contains(&self, key: &[u8]) -> bool {
        let mut before = self.ranges.range::<[u8], _>((Unbounded, Included(key)));
        let before = before.next_back();
        self.single.contains(key) || before.is_some_and(|(_, end)| key < end.as_ref())
    }

    fn insert(&mut self, range: KeyRange, steps: &mut u64) {
        match range.end {
            RangeEnd::Single => {
                *steps += 1;
                self.single.insert(range.start);
            }
            RangeEnd::Before(end) if range.start < end => {
                self.insert_range(range.start, end, steps);
            }
            RangeEnd::Before(_) => {}
            RangeEnd::Unbounded => unreachable!("a delete without an end is not compared"),
        }
    }

    fn insert_range(&mut self, mut start: Bytes, mut end: Bytes, steps: &mut u64) {
        *steps += 1;
        let before = self.ranges.range::<Bytes, _>(..=&start).next_back();
        if let Some((first, until)) = before.filter(|(_, until)| **until >= start) {
            start = first.clone();
            end = end.max(until.clone());
        }
        while let Some((first, until)) = self.ranges.range::<Bytes, _>(&start..=&end).next() {
            *steps += 1;
            end = end.max(until.clone());
            let first = first.clone();
            self.ranges.remove(&first);
        }
        self.ranges.insert(start, end);
    }

    /// Adds the smaller of the two to the larger one.
    fn extend(&mut self, mut other: Self, steps: &mut u64) {
        union(&mut self.single, other.single, steps);
        if self.ranges.len() < other.ranges.len() {
            std::mem::swap(&mut self.ranges, &mut other.ranges);
        }
        for (start, end) in other.ranges {
            self.insert_range(start, end, steps);
        }
    }

    /// Whether one of `keys` is deleted. Goes through whichever side is shorter.
    fn meet(&self, keys: &BTreeSet<Bytes>, steps: &mut u64) -> bool {
        *steps += keys.len().min(self.len()) as u64;
        if keys.len() <= self.len() {
            return keys.iter().any(|key| self.contains(key));
        }
        let in_range = |(start, end)| keys.range::<Bytes, _>(start..end).next().is_some();
        self.single.iter().any(|key| keys.contains(key)) || self.ranges.iter().any(in_range)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{delete_op, nested, put_op},
        *,
    };
    use proptest::prelude::*;

    fn of(success: Vec<TxnOp>) -> Txn {
        Txn {
            success,
            ..Txn::default()
        }
    }

    /// The rule as etcd writes it down, each put compared with each delete, and the number of comparisons.
    #[derive(Default)]
    struct Naive {
        puts: Vec<Bytes>,
        deletes: Vec<KeyRange>,
    }

    impl Naive {
        fn of(ops: &[TxnOp], compared: &mut u64) -> Option<Self> {
            let mut all = Self::default();
            for op in ops {
                if let TxnOp::DeleteRange(delete) = op
                    && delete.range_end.as_ref() != b"\0"
                {
                    let range = KeyRange::from_wire(&delete.key, &delete.range_end);
                    all.deletes.push(range);
                }
            }
            for op in ops {
                if let TxnOp::Txn(inner) = op {
                    let then = Self::of(&inner.success, compared)?;
                    let otherwise = Self::of(&inner.failure, compared)?;
                    let both: BTreeSet<_> = then.puts.into_iter().chain(otherwise.puts).collect();
                    both.into_iter()
                        .try_for_each(|key| all.put(key, compared))?;
                    all.deletes.extend(then.deletes);
                    all.deletes.extend(otherwise.deletes);
                }
            }
            for op in ops {
                if let TxnOp::Put(put) = op {
                    all.put(put.key.0.clone(), compared)?;
                }
            }
            Some(all)
        }

        fn put(&mut self, key: Bytes, compared: &mut u64) -> Option<()> {
            *compared += (self.puts.len() + self.deletes.len()) as u64;
            let deleted = self.deletes.iter().any(|range| range.contains(&key));
            let twice = deleted || self.puts.contains(&key);
            self.puts.push(key);
            (!twice).then_some(())
        }
    }

    fn naive(txn: &Txn) -> (bool, u64) {
        let mut compared = 0;
        let passes = Naive::of(&txn.success, &mut compared).is_some()
            && Naive::of(&txn.failure, &mut compared).is_some();
        (passes, compared)
    }

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'f', 1..3).prop_map(Bytes::from)
    }

    fn txn() -> impl Strategy<Value = Txn> {
        let range_end = prop_oneof![
            Just(Bytes::new()),
            Just(Bytes::from_static(b"\0")),
            key(),
            key()
        ];
        let leaf = prop_oneof![
            2 => key().prop_map(put_op),
            1 => (key(), range_end).prop_map(|(key, end)| delete_op(key, end)),
        ];
        let list = |op| prop::collection::vec(op, 0..4);
        let op = leaf.prop_recursive(3, 24, 4, move |op| {
            (list(op.clone().boxed()), list(op.boxed())).prop_map(|(a, b)| nested(a, b))
        });
        prop::collection::vec(op, 0..6).prop_map(of)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn it_refuses_what_comparing_each_with_each_refuses(txn in txn()) {
            prop_assert_eq!(check(&txn).is_ok(), naive(&txn).0);
        }
    }

    /// Nested lists of 64 puts and deletes each, four levels deep, as in the request that stopped a member.
    fn large(lists: u32) -> Txn {
        let key = |n: u32, part: &str| Bytes::from(format!("{part}{n:08}"));
        let list = |at: u32| {
            let numbers = at * 64..at * 64 + 64;
            let puts = numbers.clone().map(|n| put_op(key(n, "p")));
            let deletes = numbers.map(|n| {
                let end = if n % 2 == 0 {
                    key(n, "d~")
                } else {
                    Bytes::new()
                };
                delete_op(key(n, "d"), end)
            });
            nested(puts.chain(deletes).collect(), Vec::new())
        };
        let quarter = |q: u32| {
            nested(
                (q * lists / 4..(q + 1) * lists / 4).map(list).collect(),
                vec![],
            )
        };
        of((0..4).map(quarter).collect())
    }

    /// A chain of transactions, each with a put, a delete and the next one.
    fn deep(levels: u32, ops: u32) -> Txn {
        let key = |n: u32| Bytes::from(format!("{n:08}"));
        let mut inner: Vec<TxnOp> = (0..ops).map(|n| put_op(key(n))).collect();
        for level in 0..levels {
            let (put, delete) = (ops + 2 * level, ops + 2 * level + 1);
            inner = vec![
                put_op(key(put)),
                delete_op(key(delete), Bytes::new()),
                nested(inner, vec![]),
            ];
        }
        of(inner)
    }

    #[test]
    fn twice_the_size_takes_hardly_more_than_twice_the_steps() {
        type Sized = fn(u32) -> Txn;
        let cases: [(&str, Sized); 3] = [
            ("flat lists", |n| large(n * 8)),
            ("deep", |n| deep(30, n * 400)),
            ("overlapping deletes", |n| {
                let key = |n: u32| Bytes::from(format!("{n:08}"));
                let deletes = (0..n * 500).map(|at| delete_op(key(at), key(at + 400)));
                let puts = (0..n * 500).map(|at| put_op(format!("p{at}")));
                of(deletes.chain(puts).collect())
            }),
        ];
        for (name, make) in cases {
            let steps = [1, 2, 4].map(|n| check(&make(n)).expect("no key is written twice"));
            for (one, two) in [(steps[0], steps[1]), (steps[1], steps[2])] {
                assert!(two * 10 <= one * 23, "{name}: {steps:?}");
            }
            let compared = [1, 2].map(|n| naive(&make(n)).1);
            assert!(compared[1] * 10 > compared[0] * 35, "{name}: {compared:?}");
            assert!(
                steps[1] * 20 < compared[1],
                "{name}: {steps:?} {compared:?}"
            );
        }
    }
}
