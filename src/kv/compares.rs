//! Whether the compares of a transaction hold.
//!
//! A compare over a range holds if it holds for every key of the range. A request of less than a megabyte has room for 60,000 of
//! them; judged one after the other, they would visit every key of a store 60,000 times, on every member and again at every
//! restart. So if a transaction, with those nested in it, has more than one, they are judged together, in one pass over the keys.
//! A compare is in force from the first key of its range to the last. The compares in force are sorted by operand, so the pass
//! finds those that a key breaks without looking at the others. It drops each once, so n keys and m compares take n + m log m
//! steps.
//!
//! The outcome is the same as that of judging them one by one ([`holds`]), which etcd does and the log depends on. Only the work
//! differs: this pass also judges compares in branches that do not run, and it skips the compares of a transaction once one of
//! them has failed.

use super::{
    KeyRange,
    command::{Compare, Operand, Relation, Txn, TxnOp},
    index::Meta,
    key_range::Stop,
    keys::{Keys, Steps},
    range,
    records::{ReadError, Records},
};
use bytes::Bytes;
use std::{cmp::Ordering, collections::BTreeSet, ops::ControlFlow};

/// Whether a compare holds for its key, or for every key of its range. An empty range is like a missing key.
pub(super) fn holds(
    compare: &Compare,
    keys: &impl Keys,
    records: &dyn Records,
) -> Result<bool, ReadError> {
    let range = range_of(compare);
    let (mut any, mut all) = (false, Ok(true));
    if range.is_single() {
        return holds_for(compare, keys.get(&range.start), records);
    }
    if matches!(compare.operand, Operand::Unknown) {
        return holds_for(compare, None, records);
    }
    keys.visit(&range, &Steps::unlimited(), &mut |_, meta| {
        any = true;
        all = holds_for(compare, Some(meta), records);
        if matches!(all, Ok(true)) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    if any {
        all
    } else {
        holds_for(compare, None, records)
    }
}

/// Whether a compare holds for a key with this metadata; `None` is a missing key, for which no record is read.
fn holds_for(
    compare: &Compare,
    meta: Option<Meta>,
    records: &dyn Records,
) -> Result<bool, ReadError> {
    let order = if let Operand::Value(operand) = &compare.operand {
        let Some(meta) = meta else { return Ok(false) };
        let kv = range::decode(meta.modified, &records.get(meta.modified)?)?;
        kv.value.as_ref().cmp(operand.as_ref())
    } else if let Some((property, operand)) = number_of(&compare.operand) {
        meta.map_or(0, |meta| numbers(meta)[property]).cmp(&operand)
    } else {
        Ordering::Equal
    };
    Ok(match compare.relation {
        Relation::Equal => order.is_eq(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
        Relation::NotEqual => order.is_ne(),
        Relation::Any => true,
    })
}

/// The numbers of a key that compares can look at.
fn numbers(meta: Meta) -> [i64; 4] {
    [
        meta.version,
        meta.create.0,
        meta.modified.major.0,
        meta.lease.0,
    ]
}

/// Which of the [`numbers`] an operand is compared to, and the operand.
fn number_of(operand: &Operand) -> Option<(usize, i64)> {
    match operand {
        Operand::Version(number) => Some((0, *number)),
        Operand::Create(number) => Some((1, *number)),
        Operand::Mod(number) => Some((2, *number)),
        Operand::Lease(number) => Some((3, *number)),
        Operand::Value(_) | Operand::Unknown => None,
    }
}

fn range_of(compare: &Compare) -> KeyRange {
    KeyRange::from_wire(&compare.key, &compare.range_end)
}

/// Whether a compare goes over more than one key.
pub(super) fn is_ranged(compare: &Compare) -> bool {
    !compare.range_end.is_empty()
}

/// Judges the compares over ranges of `txn` and of all transactions nested in it. Returns for each transaction whether all of its
/// compares hold that were judged here, in this order: a transaction, then those in its success branch, then those in its failure
/// branch. `None` if there is at most one compare over a range: nothing was judged.
pub(super) fn judge_ranged(
    txn: &Txn,
    keys: &impl Keys,
    records: &dyn Records,
) -> Result<Option<Vec<bool>>, ReadError> {
    if !has_many(txn, &mut 0) {
        return Ok(None);
    }
    let mut lists = Lists::default();
    lists.collect(txn, keys, records)?;
    let Lists {
        mut held,
        numbers,
        values,
    } = lists;
    Sweep::new(numbers, &mut held).run(keys, records)?;
    Sweep::new(values, &mut held).run(keys, records)?;
    Ok(Some(held))
}

/// Whether a transaction has more than one compare over a range; `seen` of them were seen before.
fn has_many(txn: &Txn, seen: &mut usize) -> bool {
    *seen += txn
        .compares
        .iter()
        .filter(|compare| is_ranged(compare))
        .count();
    *seen > 1
        || txn.branches().any(|op| match op {
            TxnOp::Txn(inner) => has_many(inner, seen),
            TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => false,
        })
}

/// A compare over a range that the keys decide.
#[derive(Debug)]
struct Ranged<'a> {
    /// Which transaction it belongs to.
    list: usize,
    range: KeyRange,
    stop: Stop,
    compare: &'a Compare,
}

#[derive(Debug, Default)]
struct Lists<'a> {
    /// For each transaction: whether all of its compares hold that were judged so far.
    held: Vec<bool>,
    /// Compares with a number.
    numbers: Vec<Ranged<'a>>,
    /// Compares with a value: they read records, so those with numbers are judged first.
    values: Vec<Ranged<'a>>,
}

impl<'a> Lists<'a> {
    fn collect(
        &mut self,
        txn: &'a Txn,
        keys: &impl Keys,
        records: &dyn Records,
    ) -> Result<(), ReadError> {
        let list = self.held.len();
        let held = judge_alone(txn, keys, records)?;
        self.held.push(held);
        if held {
            txn.compares
                .iter()
                .filter(|compare| is_ranged(compare))
                .for_each(|compare| self.add(list, compare));
        }
        txn.branches().try_for_each(|op| match op {
            TxnOp::Txn(inner) => self.collect(inner, keys, records),
            TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => Ok(()),
        })
    }

    fn add(&mut self, list: usize, compare: &'a Compare) {
        let range = range_of(compare);
        let to = match &compare.operand {
            Operand::Unknown => return,
            Operand::Value(_) => &mut self.values,
            Operand::Version(_) | Operand::Create(_) | Operand::Mod(_) | Operand::Lease(_) => {
                &mut self.numbers
            }
        };
        if !range.is_empty_range() {
            let stop = range.stop();
            to.push(Ranged {
                list,
                range,
                stop,
                compare,
            });
        }
    }
}

/// Judges the compares of a transaction that need no pass over keys. If none of its compares needs one, nothing is judged here.
fn judge_alone(txn: &Txn, keys: &impl Keys, records: &dyn Records) -> Result<bool, ReadError> {
    if !txn.compares.iter().any(is_ranged) {
        return Ok(true);
    }
    for compare in &txn.compares {
        let alone = !is_ranged(compare)
            || range_of(compare).is_empty_range()
            || matches!(compare.operand, Operand::Unknown);
        if alone && !holds(compare, keys, records)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A pass over the keys of all ranges.
#[derive(Debug)]
struct Sweep<'a, 'h> {
    /// Sorted by the first keys of their ranges. Compares of transactions in which one had failed before are left out.
    compares: Vec<Ranged<'a>>,
    /// For each transaction: the places of its compares in `compares`.
    members: Vec<Vec<usize>>,
    held: &'h mut [bool],
    /// The place in `compares` of the first one that no key has reached.
    next: usize,
    in_force: InForce,
}

impl<'a, 'h> Sweep<'a, 'h> {
    fn new(mut compares: Vec<Ranged<'a>>, held: &'h mut [bool]) -> Self {
        compares.retain(|compare| held[compare.list]);
        compares.sort_by(|one, other| one.range.start.cmp(&other.range.start));
        let mut members = vec![Vec::new(); held.len()];
        for (at, compare) in compares.iter().enumerate() {
            members[compare.list].push(at);
        }
        Self {
            compares,
            members,
            held,
            next: 0,
            in_force: InForce::default(),
        }
    }

    fn run(mut self, keys: &impl Keys, records: &dyn Records) -> Result<(), ReadError> {
        for (end, stop) in self.groups() {
            while let Some(start) = self.skip_failed(end) {
                let mut read = Ok(());
                let mut broke = false;
                let range = KeyRange::until(start, stop.clone());
                keys.visit(&range, &Steps::unlimited(), &mut |key, meta| {
                    read = self.pass(key, meta, end, records);
                    broke = read.is_err() || self.in_force.is_empty();
                    if broke {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                });
                read?;
                if !broke {
                    // No key is left. The compares in force have held, and the ranges of the others have no keys.
                    self.in_force = InForce::default();
                    self.begin_until(end, None);
                }
            }
        }
        Ok(())
    }

    /// Groups compares whose ranges overlap or touch. Returns for each group the place after its last compare, and where its keys
    /// stop.
    fn groups(&self) -> Vec<(usize, Stop)> {
        let mut groups: Vec<(usize, Stop)> = Vec::new();
        for (at, compare) in self.compares.iter().enumerate() {
            let stop = compare.stop.clone();
            match groups.last_mut() {
                Some((end, last)) if last.is_at_or_after(&compare.range.start) => {
                    *end = at + 1;
                    if *last < stop {
                        *last = stop;
                    }
                }
                Some(_) | None => groups.push((at + 1, stop)),
            }
        }
        groups
    }

    /// The first key of the next compare before `end` that must be judged.
    fn skip_failed(&mut self, end: usize) -> Option<Bytes> {
        while self.next < end && !self.held[self.compares[self.next].list] {
            self.next += 1;
        }
        (self.next < end).then(|| self.compares[self.next].range.start.clone())
    }

    /// Judges the compares before `end` with the next key.
    fn pass(
        &mut self,
        key: &[u8],
        meta: Meta,
        end: usize,
        records: &dyn Records,
    ) -> Result<(), ReadError> {
        self.in_force.end_before(key, &self.compares);
        self.begin_until(end, Some(key));
        for (property, number) in numbers(meta).into_iter().enumerate() {
            while let Some(broken) = self.in_force.numbers[property].broken_by(&number) {
                self.fail(self.compares[broken].list);
            }
        }
        if !self.in_force.values.is_empty() {
            let kv = range::decode(meta.modified, &records.get(meta.modified)?)?;
            while let Some(broken) = self.in_force.values.broken_by(&kv.value) {
                self.fail(self.compares[broken].list);
            }
        }
        Ok(())
    }

    /// Puts in force the compares before `end` whose ranges start at or before `key`, the next existing key. `None`: no key is
    /// left.
    fn begin_until(&mut self, end: usize, key: Option<&[u8]>) {
        while self.next < end {
            let begun = &self.compares[self.next];
            let list = begun.list;
            if key.is_some_and(|key| begun.range.start.as_ref() > key) {
                return;
            }
            if self.held[list] {
                if key.is_some_and(|key| begun.range.contains(key)) {
                    self.in_force.begin(self.next, begun);
                } else if !holds_for_none(begun.compare) {
                    self.fail(list);
                }
            }
            self.next += 1;
        }
    }

    /// A compare of this transaction does not hold, so its others need not be judged.
    fn fail(&mut self, list: usize) {
        self.held[list] = false;
        for &member in &self.members[list] {
            self.in_force.end(member, &self.compares[member]);
        }
    }
}

/// Whether a compare holds for a missing key.
fn holds_for_none(compare: &Compare) -> bool {
    struct NoRecords;
    impl Records for NoRecords {
        fn get(&self, rev: crate::types::Rev) -> Result<super::command::EncodedKv, ReadError> {
            unreachable!("a missing key has no record, not even at {rev:?}")
        }
    }
    holds_for(compare, None, &NoRecords).unwrap_or_default()
}

/// The compares in force, by their places in the sweep's `compares`.
#[derive(Debug, Default)]
struct InForce {
    stops: BTreeSet<(Stop, usize)>,
    numbers: [Operands<i64>; 4],
    values: Operands<Bytes>,
}

impl InForce {
    fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    fn begin(&mut self, at: usize, compare: &Ranged<'_>) {
        self.stops.insert((compare.stop.clone(), at));
        let relation = compare.compare.relation;
        if let Some((property, operand)) = number_of(&compare.compare.operand) {
            if let Some(operands) = self.numbers[property].of(relation) {
                operands.insert((operand, at));
            }
        } else if let Operand::Value(operand) = &compare.compare.operand
            && let Some(operands) = self.values.of(relation)
        {
            operands.insert((operand.0.clone(), at));
        }
    }

    fn end(&mut self, at: usize, compare: &Ranged<'_>) {
        if !self.stops.remove(&(compare.stop.clone(), at)) {
            return;
        }
        let relation = compare.compare.relation;
        if let Some((property, operand)) = number_of(&compare.compare.operand) {
            if let Some(operands) = self.numbers[property].of(relation) {
                operands.remove(&(operand, at));
            }
        } else if let Operand::Value(operand) = &compare.compare.operand
            && let Some(operands) = self.values.of(relation)
        {
            operands.remove(&(operand.0.clone(), at));
        }
    }

    /// Ends those whose ranges stop at or before `key`: they have held.
    fn end_before(&mut self, key: &[u8], compares: &[Ranged<'_>]) {
        while let Some((stop, at)) = self.stops.first()
            && stop.is_passed_by(key)
        {
            let at = *at;
            self.end(at, &compares[at]);
        }
    }
}

/// Compares of one property, by their operands.
#[derive(Debug)]
struct Operands<O> {
    equal: BTreeSet<(O, usize)>,
    not_equal: BTreeSet<(O, usize)>,
    greater: BTreeSet<(O, usize)>,
    less: BTreeSet<(O, usize)>,
}

impl<O> Default for Operands<O> {
    fn default() -> Self {
        Self {
            equal: BTreeSet::new(),
            not_equal: BTreeSet::new(),
            greater: BTreeSet::new(),
            less: BTreeSet::new(),
        }
    }
}

impl<O: Ord + Clone> Operands<O> {
    /// `None` for the relation that nothing breaks.
    fn of(&mut self, relation: Relation) -> Option<&mut BTreeSet<(O, usize)>> {
        match relation {
            Relation::Equal => Some(&mut self.equal),
            Relation::NotEqual => Some(&mut self.not_equal),
            Relation::Greater => Some(&mut self.greater),
            Relation::Less => Some(&mut self.less),
            Relation::Any => None,
        }
    }

    fn is_empty(&self) -> bool {
        self.equal.is_empty()
            && self.not_equal.is_empty()
            && self.greater.is_empty()
            && self.less.is_empty()
    }

    /// A compare that does not hold for a key with this property.
    fn broken_by(&self, property: &O) -> Option<usize> {
        let unequal = |(operand, _): &&(O, usize)| operand != property;
        let equal = self.equal.first().filter(unequal);
        let equal = equal.or_else(|| self.equal.last().filter(unequal));
        let not_equal = || {
            let mut from = self.not_equal.range((property.clone(), 0)..);
            from.next().filter(|(operand, _)| operand == property)
        };
        let greater = || {
            self.greater
                .last()
                .filter(|(operand, _)| operand >= property)
        };
        let less = || self.less.first().filter(|(operand, _)| operand <= property);
        let broken = equal.or_else(not_equal).or_else(greater).or_else(less);
        broken.map(|(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{command::EncodedKv, index::Index, record, txn::Plan};
    use super::*;
    use crate::types::{LeaseId, Rev, Revision};
    use proptest::prelude::*;
    use std::cell::Cell;

    /// An index with values, which counts what is looked at.
    #[derive(Default)]
    struct Store {
        index: Index,
        values: Vec<Bytes>,
        visited: Cell<u64>,
        read: Cell<u64>,
    }

    impl Store {
        fn put(&mut self, key: &[u8], value: Bytes, lease: i64) {
            let rev = Rev::new(Revision(self.values.len().cast_signed() as i64 + 2), 0);
            self.index.put(key, rev, LeaseId(lease));
            self.values.push(value);
        }

        fn of(keys: u32) -> Self {
            let mut store = Self::default();
            for n in 0..keys {
                store.put(format!("{n:08}").as_bytes(), Bytes::from("v"), 0);
            }
            store
        }
    }

    impl Keys for Store {
        fn get(&self, key: &[u8]) -> Option<Meta> {
            self.index.get(key)
        }

        fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev> {
            self.index.rev_at(key, at)
        }

        fn visit(
            &self,
            range: &KeyRange,
            steps: &Steps,
            visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>,
        ) {
            self.visited.set(self.visited.get() + 1);
            self.index.snapshot().visit(range, steps, &mut |key, meta| {
                self.visited.set(self.visited.get() + 1);
                visit(key, meta)
            });
        }

        fn visit_at(
            &self,
            range: &KeyRange,
            at: Revision,
            steps: &Steps,
            visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
        ) {
            self.index.snapshot().visit_at(range, at, steps, visit);
        }

        fn count(&self, range: &KeyRange, _: &Steps) -> u64 {
            self.index.count(range)
        }
    }

    impl Records for Store {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            self.read.set(self.read.get() + 1);
            let at = usize::try_from(rev.major.0 - 2).expect("revisions begin at 2");
            Ok(record::encode(&record::Fields {
                key: b"key",
                create_revision: rev.major,
                mod_revision: rev.major,
                version: 1,
                value: &self.values[at],
                lease: LeaseId(0),
            }))
        }
    }

    fn compare(
        key: impl Into<Bytes>,
        end: impl Into<Bytes>,
        relation: Relation,
        operand: Operand,
    ) -> Compare {
        let (key, end): (Bytes, Bytes) = (key.into(), end.into());
        Compare {
            key: key.into(),
            range_end: end.into(),
            relation,
            operand,
        }
    }

    /// What judging the compares one after the other comes to: for each transaction that runs, whether its compares hold.
    fn one_by_one(txn: &Txn, store: &Store, found: &mut Vec<bool>) {
        let mut all = txn.compares.iter();
        let holds = all.all(|compare| holds(compare, store, store).expect("readable"));
        found.push(holds);
        let ops = if holds { &txn.success } else { &txn.failure };
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                one_by_one(inner, store, found);
            }
        }
    }

    fn planned(plan: &Plan<'_>, found: &mut Vec<bool>) {
        found.push(plan.succeeded);
        plan.nested.iter().for_each(|inner| planned(inner, found));
    }

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'e', 1..3).prop_map(Bytes::from)
    }

    fn any_compare() -> impl Strategy<Value = Compare> {
        let end = prop_oneof![
            1 => Just(Bytes::new()),
            1 => Just(Bytes::from_static(b"\0")),
            4 => key(),
        ];
        let relation = prop_oneof![
            Just(Relation::Equal),
            Just(Relation::NotEqual),
            Just(Relation::Greater),
            Just(Relation::Less),
            Just(Relation::Any),
        ];
        let number = 0_i64..4;
        let operand = prop_oneof![
            number.clone().prop_map(Operand::Version),
            (0_i64..20).prop_map(Operand::Create),
            (0_i64..20).prop_map(Operand::Mod),
            number.clone().prop_map(Operand::Lease),
            number.prop_map(|n| Operand::Value(Bytes::from(n.to_string()).into())),
            Just(Operand::Unknown),
        ];
        (key(), end, relation, operand)
            .prop_map(|(key, end, relation, operand)| compare(key, end, relation, operand))
    }

    fn any_txn() -> impl Strategy<Value = Txn> {
        let compares = || prop::collection::vec(any_compare(), 0..4);
        let leaf = compares().prop_map(|compares| Txn {
            compares,
            ..Txn::default()
        });
        leaf.prop_recursive(4, 24, 3, move |inner| {
            let list = || prop::collection::vec(inner.clone().prop_map(TxnOp::Txn), 0..4);
            (compares(), list(), list()).prop_map(|(compares, success, failure)| Txn {
                compares,
                success,
                failure,
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn together_they_come_to_what_they_come_to_one_by_one(
            puts in prop::collection::vec((key(), 0_i64..3), 0..12),
            txn in any_txn(),
        ) {
            let mut store = Store::default();
            for (key, n) in puts {
                store.put(&key, Bytes::from(n.to_string()), n);
            }
            let plan = Plan::new(&txn, &store, &store).expect("readable");
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            planned(&plan, &mut found);
            one_by_one(&txn, &store, &mut expected);
            prop_assert_eq!(found, expected);
        }
    }

    /// So many compares over everything, all of which hold.
    fn over_everything(count: u32) -> Vec<Compare> {
        let one = |n| {
            let operand = match n % 4 {
                0 => Operand::Version(0),
                1 => Operand::Lease(-i64::from(n)),
                2 => Operand::Mod(i64::from(n % 2)),
                _ => Operand::Value(Bytes::from("a").into()),
            };
            compare(format!("{:08}", n / 3), "\0", Relation::Greater, operand)
        };
        (0..count).map(one).collect()
    }

    /// The keys that are visited and the records that are read while a transaction is planned.
    fn work(txn: &Txn, store: &Store) -> (u64, u64) {
        let plan = Plan::new(txn, store, store).expect("readable");
        assert!(plan.succeeded, "every compare holds");
        assert!(plan.nested.iter().all(|inner| inner.succeeded));
        (store.visited.take(), store.read.take())
    }

    #[test]
    fn twice_the_compares_and_twice_the_keys_take_twice_the_visits() {
        let flat = |count: u32| Txn {
            compares: over_everything(count),
            ..Txn::default()
        };
        let nested = |count: u32| {
            let inner = |compare| {
                TxnOp::Txn(Txn {
                    compares: vec![compare],
                    ..Txn::default()
                })
            };
            Txn {
                success: over_everything(count).into_iter().map(inner).collect(),
                ..Txn::default()
            }
        };
        let shapes: [&dyn Fn(u32) -> Txn; 2] = [&flat, &nested];
        for shape in shapes {
            let [one, two] = [1, 2].map(|n| work(&shape(n * 500), &Store::of(n * 1_000)));
            assert!(one.0 <= 3 * 1_000 + 500, "{one:?}");
            assert!(two.0 * 10 <= one.0 * 21, "{one:?} {two:?}");
            assert!(one.1 <= 1_000 && two.1 <= 2_000, "{one:?} {two:?}");
        }
    }

    #[test]
    fn nothing_is_looked_at_for_a_list_that_fails() {
        let store = Store::of(1_000);
        let mut compares = over_everything(100);
        compares.push(compare("0", "1", Relation::Less, Operand::Version(1)));
        let txn = Txn {
            compares,
            ..Txn::default()
        };
        let plan = Plan::new(&txn, &store, &store).expect("readable");
        assert!(!plan.succeeded);
        assert_eq!((store.visited.get(), store.read.get()), (2, 0));
    }
}
