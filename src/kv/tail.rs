//! The tail of history that the database does not hold yet: records in the batches in which they were applied.
//!
//! A clone never changes and costs one increment of a reference count, so every published view has one. The tail, the next commit
//! and the watch hub share each batch: no record is copied, and sharing a batch costs one reference count, not one for each
//! record.

use super::runs::{Keyed, Runs};
use crate::types::{Record, Rev};
use std::sync::Arc;

/// Records that were applied together, in strictly ascending order.
pub type RecordBatch = Arc<[Record]>;

/// A persistent sequence of records, strictly ascending. Empty batches are not in it.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    batches: Runs<Filled>,
}

/// A batch with at least one record.
#[derive(Clone, Debug)]
struct Filled(RecordBatch);

impl Filled {
    fn last(&self) -> Rev {
        self.0[self.0.len() - 1].rev
    }
}

impl Keyed for Filled {
    type Key = Rev;

    fn key(&self) -> Rev {
        self.0[0].rev
    }
}

impl Tail {
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// The record of a revision.
    pub fn get(&self, rev: Rev) -> Option<&Record> {
        let Filled(batch) = self.batches.last_at_or_before(rev)?;
        find(batch, rev)
    }

    pub fn first(&self) -> Option<&Record> {
        self.batches.first()?.0.first()
    }

    /// All records, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.batches.iter().flat_map(|Filled(batch)| batch.iter())
    }

    /// The records from `rev` on, oldest first. Costs O(log n) before the first one.
    pub fn iter_from(&self, rev: Rev) -> impl Iterator<Item = &Record> {
        let start = self.batches.last_at_or_before(rev).map_or(rev, Keyed::key);
        let from = move |batch: &RecordBatch| batch.partition_point(|record| record.rev < rev);
        self.batches
            .iter_from(start)
            .flat_map(move |Filled(batch)| batch[from(batch)..].iter())
    }

    /// Adds a batch. All of it must follow what is here already.
    pub fn push(&mut self, batch: RecordBatch) {
        if batch.is_empty() {
            return;
        }
        assert!(
            batch.is_sorted_by(|a, b| a.rev < b.rev),
            "history is strictly ordered: a batch is not"
        );
        let batch = Filled(batch);
        assert!(
            self.batches
                .last()
                .is_none_or(|last| last.last() < batch.key()),
            "history only grows at its end: a batch starts at or before the newest record"
        );
        self.batches.push(batch);
    }

    /// Drops all records up to `rev`, with which a batch must end.
    pub fn drop_through(&mut self, rev: Rev) {
        self.batches.drop_front(|batch| batch.last() <= rev);
        assert!(
            self.first().is_none_or(|record| record.rev > rev),
            "batches are committed whole: one goes beyond {rev:?}"
        );
    }
}

/// The record of a revision in a batch.
pub fn find(batch: &RecordBatch, rev: Rev) -> Option<&Record> {
    let at = batch.binary_search_by_key(&rev, |record| record.rev).ok()?;
    batch.get(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{RecordKind, Revision};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn record(rev: Rev) -> Record {
        Record {
            rev,
            kind: RecordKind::Put,
            kv: Bytes::new(),
        }
    }

    fn batch(revs: &[Rev]) -> RecordBatch {
        revs.iter().copied().map(record).collect()
    }

    fn revs<'a>(records: impl Iterator<Item = &'a Record>) -> Vec<Rev> {
        records.map(|record| record.rev).collect()
    }

    proptest! {
        #[test]
        fn reads_like_one_sorted_list(
            sizes in prop::collection::vec(0..5_u32, 0..120),
            dropped in 0..120_usize,
        ) {
            let (mut tail, mut all, mut ends) = (Tail::default(), Vec::new(), vec![Rev::default()]);
            for (at, size) in sizes.iter().enumerate() {
                // Revisions of one to three records; some batches begin with the rest of none.
                let major = Revision(i64::try_from(at).unwrap() * 3 + 2);
                let new: Vec<Rev> = (0..*size).map(|n| Rev::new(Revision(major.0 + i64::from(n / 2)), n % 2)).collect();
                tail.push(batch(&new));
                all.extend(&new);
                ends.extend(new.last());
            }
            let before = (tail.clone(), all.clone());
            let end = ends[dropped.min(ends.len() - 1)];
            tail.drop_through(end);
            all.retain(|rev| *rev > end);
            for (tail, all) in [(tail, all), before] {
                prop_assert_eq!(revs(tail.iter()), all.clone());
                prop_assert_eq!(tail.first().map(|record| record.rev), all.first().copied());
                prop_assert_eq!(tail.is_empty(), all.is_empty());
                for major in 0..370 {
                    for sub in 0..2 {
                        let rev = Rev::new(Revision(major), sub);
                        let found = tail.get(rev).map(|record| record.rev);
                        prop_assert_eq!(found, all.contains(&rev).then_some(rev));
                        let from: Vec<Rev> = all.iter().copied().filter(|other| *other >= rev).collect();
                        prop_assert_eq!(revs(tail.iter_from(rev)), from);
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "batches are committed whole")]
    fn half_a_batch_is_never_dropped() {
        let mut tail = Tail::default();
        tail.push(batch(&[Rev::new(Revision(2), 0), Rev::new(Revision(3), 0)]));
        tail.drop_through(Rev::new(Revision(2), 0));
    }

    #[test]
    #[should_panic(expected = "history only grows at its end")]
    fn a_batch_before_the_end_is_a_bug() {
        let mut tail = Tail::default();
        tail.push(batch(&[Rev::new(Revision(2), 0), Rev::new(Revision(5), 0)]));
        tail.push(batch(&[Rev::new(Revision(4), 0)]));
    }
}
