//! What a transaction has deleted so far, so that it does not look for the same keys again.
//!
//! Deletes of a transaction may overlap. Each of them would pass all keys of its range, those that an earlier one has deleted
//! included: a transaction of 60,000 deletes of everything, a megabyte, would pass every key 60,000 times, on every member. So a
//! transaction remembers the ranges that it has deleted. In them only those keys are live that it has put since.

use super::{
    KeyRange,
    index::Meta,
    key_range::Stop,
    keys::{Keys, Steps},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

/// Ranges without live keys, apart from those put since. Invariant: the ranges neither overlap nor touch, and none is empty.
#[derive(Debug, Default)]
pub(super) struct Cleared {
    /// From the first key of each range to where it stops.
    ranges: BTreeMap<Bytes, Stop>,
    /// Live keys in them.
    put: BTreeSet<Bytes>,
}

/// Where live keys can be in a range.
#[derive(Debug)]
struct Uncleared {
    /// Parts of the range that were not cleared before, ascending.
    gaps: Vec<KeyRange>,
    /// Live keys in the other parts, ascending.
    put: Vec<Bytes>,
}

impl Cleared {
    /// `key` is live from now on.
    pub(super) fn put(&mut self, key: &Bytes) {
        let before = self.ranges.range::<Bytes, _>(..=key).next_back();
        if before.is_some_and(|(_, stop)| !stop.is_passed_by(key)) {
            self.put.insert(key.clone());
        }
    }

    /// The live keys of a range, ascending: the transaction deletes them now.
    pub(super) fn take_live(
        &mut self,
        range: &KeyRange,
        keys: &impl Keys,
        steps: &Steps,
    ) -> Vec<(Bytes, Meta)> {
        let live = |key: Bytes| Some((key.clone(), keys.get(&key)?));
        if range.is_single() {
            return live(range.start.clone()).into_iter().collect();
        }
        let Uncleared { gaps, put } = self.clear(range);
        let is_sorted = put.is_empty();
        let mut found: Vec<(Bytes, Meta)> = put.into_iter().filter_map(live).collect();
        for gap in gaps {
            keys.visit(&gap, steps, &mut |key, meta| {
                found.push((Bytes::copy_from_slice(key), meta));
                ControlFlow::Continue(())
            });
        }
        if !is_sorted {
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        found
    }

    /// All keys of a range, which is not a single key, are deleted now. Returns where those can be that were live.
    fn clear(&mut self, range: &KeyRange) -> Uncleared {
        let (mut gaps, mut put) = (Vec::new(), Vec::new());
        if range.is_empty_range() {
            return Uncleared { gaps, put };
        }
        while let Some(key) = self.put.range::<Bytes, _>(&range.start..).next()
            && range.contains(key)
        {
            let key = key.clone();
            self.put.remove(&key);
            put.push(key);
        }
        let (mut start, mut stop) = (range.start.clone(), range.stop());
        // The gaps before this place are found.
        let mut at = Stop::Before(start.clone());
        let before = self.ranges.range::<Bytes, _>(..&range.start).next_back();
        if let Some((first, until)) = before.filter(|(_, until)| until.is_at_or_after(&start)) {
            (at, start) = (until.clone(), first.clone());
        }
        while let Some((first, until)) = self.ranges.range::<Bytes, _>(&start..).next()
            && stop.is_at_or_after(first)
        {
            let (first, until) = (first.clone(), until.clone());
            self.ranges.remove(&first);
            gaps.extend(gap(&at, Stop::Before(first)));
            at = at.max(until);
        }
        gaps.extend(gap(&at, stop.clone()));
        stop = stop.max(at);
        self.ranges.insert(start, stop);
        Uncleared { gaps, put }
    }
}

fn gap(from: &Stop, to: Stop) -> Option<KeyRange> {
    match from {
        Stop::Before(start) if *from < to => Some(KeyRange::until(start.clone(), to)),
        Stop::Before(_) | Stop::Never => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{index::Index, keys::Pending};
    use super::*;
    use crate::types::{LeaseId, Rev, Revision};
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'f', 1..3).prop_map(Bytes::from)
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(Bytes),
        Clear(KeyRange),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let end = prop_oneof![4 => key(), 1 => Just(Bytes::from_static(b"\0"))];
        let clear =
            (key(), end).prop_map(|(key, end)| Step::Clear(KeyRange::from_wire(&key, &end)));
        prop::collection::vec(prop_oneof![key().prop_map(Step::Put), clear], 0..20)
    }

    /// Every key of one or two letters.
    fn all_keys() -> Vec<Bytes> {
        let letters = || b'a'..=b'f';
        let two = letters().flat_map(|one| letters().map(move |two| vec![one, two]));
        letters()
            .map(|one| vec![one])
            .chain(two)
            .map(Bytes::from)
            .collect()
    }

    proptest! {
        #[test]
        fn every_live_key_is_looked_for_and_no_cleared_one(steps in steps()) {
            let keys = all_keys();
            let mut live: BTreeSet<Bytes> = keys.iter().cloned().collect();
            let mut looked_for = BTreeSet::new();
            let mut cleared = Cleared::default();
            let (mut clears, mut searches) = (0, 0);
            for step in steps {
                match step {
                    Step::Put(key) => {
                        cleared.put(&key);
                        live.insert(key);
                    }
                    Step::Clear(range) => {
                        let Uncleared { gaps, put } = cleared.clear(&range);
                        (clears, searches) = (clears + 1, searches + gaps.len());
                        let in_gaps = |key: &&Bytes| gaps.iter().any(|gap| gap.contains(key));
                        let in_range: Vec<&Bytes> = keys.iter().filter(in_gaps).collect();
                        for key in &in_range {
                            prop_assert!(range.contains(key));
                            prop_assert!(looked_for.insert((*key).clone()), "twice: {key:?}");
                        }
                        for key in &put {
                            prop_assert!(range.contains(key) && live.contains(key));
                        }
                        let found: BTreeSet<Bytes> = in_range.into_iter().chain(&put).cloned().collect();
                        live.retain(|key| {
                            let deleted = range.contains(key);
                            assert!(!deleted || found.contains(key), "not looked for: {key:?}");
                            !deleted
                        });
                    }
                }
            }
            prop_assert!(searches <= 2 * clears, "{searches} searches for {clears} deletes");
        }
    }

    /// The steps that so many deletes of everything take in one transaction, each after a put, in a store of `keys` keys.
    fn steps_of(deletes: u32, keys: u32) -> u64 {
        let mut index = Index::new();
        for n in 0..keys {
            let rev = Rev::new(Revision(i64::from(n) + 2), 0);
            index.put(format!("{n:08}").as_bytes(), rev, LeaseId(0));
        }
        let (mut keys, mut cleared) = (Pending::new(index.snapshot()), Cleared::default());
        let (max, mut taken) = (1_000_000_000, 0);
        let steps = Steps::new(max);
        let mut revs = (0..).map(|sub| Rev::new(Revision(1_000_000), sub));
        let mut next = || revs.next().unwrap_or_default();
        for n in 0..deletes {
            let key = Bytes::from(format!("p{n:08}"));
            keys.put(&key, next(), LeaseId(0), None);
            cleared.put(&key);
            let found = cleared.take_live(&KeyRange::all(), &keys, &steps);
            for (key, _) in &found {
                keys.delete(key, next());
            }
            taken += found.len();
        }
        let all = index.live_keys() + u64::from(deletes);
        assert_eq!(taken as u64, all, "every key once");
        steps.taken(max)
    }

    #[test]
    fn twice_the_deletes_of_the_same_keys_take_no_more_steps() {
        let [one, two] = [100, 200].map(|deletes| steps_of(deletes, 1_000));
        assert_eq!(one, two);
        assert!(one < 1_100, "{one} for 1,000 keys");
        assert!(steps_of(100, 2_000) <= 2 * one);
    }

    #[test]
    fn touching_ranges_become_one() {
        let mut cleared = Cleared::default();
        let range = |key: &'static str, end: &'static str| {
            KeyRange::from_wire(&Bytes::from(key), &Bytes::from(end))
        };
        for n in 0..100 {
            let (key, end) = (format!("{n:03}"), format!("{:03}", n + 1));
            let uncleared = cleared.clear(&KeyRange::from_wire(&key.into(), &end.into()));
            assert_eq!(uncleared.gaps.len(), 1);
        }
        assert_eq!(cleared.ranges.len(), 1);
        assert!(cleared.clear(&range("000", "100")).gaps.is_empty());
        let around = cleared.clear(&range("0", "\0"));
        assert_eq!(around.gaps, [range("0", "000"), range("100", "\0")]);
        cleared.put(&Bytes::from("050"));
        let again = cleared.clear(&range("0", "\0"));
        assert_eq!((again.gaps.len(), again.put.len()), (0, 1));
    }
}
