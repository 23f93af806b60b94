//! Batches of committed entries that wait to be applied, and the stored values that the first of them needs.
//!
//! Entries are applied in log order. A batch whose commands compare or keep values that only the database holds waits until a
//! thread that may block has read them; later batches wait behind it. If that does not suffice for an entry, what comes before it
//! is published as a batch, and the entry waits, with all after it, until such a thread has judged it. All other work goes on
//! meanwhile: readers have the view that was published last; the Raft node sends heartbeats, votes and replicates entries;
//! earlier batches are published and stored.

use crate::{
    kv::{
        command::EncodedKv,
        records::{ReadError, Records},
    },
    types::Rev,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes of values that are read ahead for one batch. An entry that needs one that does not fit is judged on its own.
const PREFETCHED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a value takes in memory besides its bytes.
const VALUE_BYTES: usize = 64;

/// Values that were read for one batch.
#[derive(Debug, Default)]
pub(super) struct Prefetched {
    values: BTreeMap<Rev, EncodedKv>,
    bytes: usize,
}

impl Prefetched {
    /// Adds the records of `revs`, as far as there is room. This can block.
    pub(super) fn read(
        mut self,
        stored: &dyn Records,
        revs: BTreeSet<Rev>,
    ) -> Result<Self, ReadError> {
        for rev in revs {
            if self.is_full() {
                break;
            }
            let kv = stored.get(rev)?;
            self.bytes += kv.len() + VALUE_BYTES;
            self.values.insert(rev, kv);
        }
        Ok(self)
    }

    /// Whether no further value is read for the batch.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= PREFETCHED_BYTES_MAX
    }

    pub(super) fn get(&self, rev: Rev) -> Option<&EncodedKv> {
        self.values.get(&rev)
    }
}

/// Batches in log order. The Raft node sends no more than two before the first is applied.
#[derive(Debug)]
pub(super) struct Incoming<B> {
    waiting: VecDeque<B>,
    /// The batch that was taken last, while values are read for it.
    reading: Option<B>,
    /// An entry could not be applied: nothing follows it.
    stopped: bool,
}

impl<B> Default for Incoming<B> {
    fn default() -> Self {
        Self {
            waiting: VecDeque::new(),
            reading: None,
            stopped: false,
        }
    }
}

impl<B> Incoming<B> {
    pub(super) fn push(&mut self, batch: B) {
        self.waiting.push_back(batch);
    }

    /// The batch to apply next; `None` while values are read for the one before it.
    pub(super) fn next(&mut self) -> Option<B> {
        if self.reading.is_some() || self.stopped {
            return None;
        }
        self.waiting.pop_front()
    }

    /// The batch that [`next`](Self::next) would return.
    pub(super) fn first(&self) -> Option<&B> {
        if self.reading.is_some() || self.stopped {
            return None;
        }
        self.waiting.front()
    }

    /// The batch that was taken last waits for values.
    pub(super) fn begin_reading(&mut self, batch: B) {
        assert!(self.reading.is_none(), "one batch after the other is taken");
        self.reading = Some(batch);
    }

    /// The batch that waited, which is applied now.
    pub(super) fn end_reading(&mut self) -> Option<B> {
        assert!(self.reading.is_some(), "a read ends once");
        self.reading.take()
    }

    /// The rest of the batch that waited: it is applied next.
    pub(super) fn put_back(&mut self, rest: B) {
        assert!(self.reading.is_none(), "nothing is taken out of order");
        self.waiting.push_front(rest);
    }

    /// All batches that are not applied yet.
    pub(super) fn batches(&mut self) -> impl Iterator<Item = &mut B> {
        self.reading.iter_mut().chain(&mut self.waiting)
    }

    /// Returns no batch from now on, since an entry could not be applied.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether every batch was applied.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.reading.is_none() && !self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn batches_wait_behind_the_one_that_reads() {
        let mut incoming = Incoming::default();
        incoming.push(1);
        incoming.push(2);
        assert_eq!(incoming.first(), Some(&1));
        assert_eq!(incoming.next(), Some(1));
        incoming.begin_reading(1);
        assert_eq!(incoming.first(), None, "2 follows 1 in the log");
        assert_eq!(incoming.next(), None, "2 follows 1 in the log");
        incoming.push(3);
        assert!(!incoming.is_empty());
        let batches: Vec<i32> = incoming.batches().map(|batch| *batch).collect();
        assert_eq!(batches, [1, 2, 3], "none is applied");
        assert_eq!(incoming.end_reading(), Some(1));
        incoming.put_back(1);
        assert_eq!(incoming.next(), Some(1), "the rest of it comes first");
        assert_eq!(incoming.next(), Some(2));
        assert_eq!(incoming.next(), Some(3));
        assert!(incoming.is_empty());
        incoming.begin_reading(3);
        assert!(!incoming.is_empty(), "3 is not applied yet");
    }

    struct Values(usize);

    impl Records for Values {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            if rev.major.0 < 0 {
                let source = "no such record".into();
                return Err(ReadError { rev, source });
            }
            Ok(vec![0; self.0].into())
        }
    }

    fn revs(majors: std::ops::Range<i64>) -> BTreeSet<Rev> {
        majors.map(|major| Rev::new(Revision(major), 0)).collect()
    }

    #[test]
    fn values_are_read_up_to_a_number_of_bytes() {
        let quarter = Values(PREFETCHED_BYTES_MAX / 4);
        let none = Prefetched::default;
        let read = none().read(&quarter, revs(2..4)).expect("they exist");
        assert!(!read.is_full());
        let read = read.read(&quarter, revs(4..9)).expect("they exist");
        assert_eq!(read.values.len(), 4, "the bound");
        assert!(read.is_full());
        let first = Rev::new(Revision(2), 0);
        assert!(read.get(first).is_some(), "the first of the batch");
        let read = read.read(&quarter, revs(-1..9)).expect("nothing is read");
        assert_eq!(read.values.len(), 4, "the bound");
        let error = none().read(&quarter, revs(-1..9));
        assert!(error.is_err(), "a record that cannot be read");
    }
}
