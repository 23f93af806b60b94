//! Counts the bytes that answers hold while they wait for their records: the keys and revisions picked from the index.
//!
//! Each has a bound of its own ([`AnswerLimits`]). Long answers are completed one at a time, so many can wait; this is the bound
//! on all of them together. The caller of an answer that does not fit gets the error "too large"; the write has happened.

use crate::{
    actors::held,
    kv::answer_reads::{AnswerLimits, AnswerReads},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes that all answers together may hold.
const NOTED_BYTES_MAX: usize = 512 * 1024 * 1024;

/// Bytes that each may hold even then: enough for a few keys.
const NOTED_BYTES_MIN: usize = 4 * 1024;

/// Answers that may wait: as many as there may be proposals.
const ANSWERS_MAX: usize = 65_536;

#[derive(Debug)]
pub(super) struct Noted {
    bytes_max: usize,
    bytes: Arc<AtomicUsize>,
}

impl Default for Noted {
    fn default() -> Self {
        Self::new(held::bound(NOTED_BYTES_MAX))
    }
}

/// The part of one answer, until it is dropped.
#[derive(Debug)]
pub(in crate::actors) struct NotedBytes {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl Noted {
    fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: Arc::default(),
        }
    }

    /// What all hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The bound on what all hold: each of the last ones may hold [`NOTED_BYTES_MIN`] beyond that of the sum.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max + held::bound(NOTED_BYTES_MIN * ANSWERS_MAX)
    }

    /// For the next answer.
    pub(super) fn begin(&self) -> AnswerReads {
        let held = self.bytes.load(Ordering::Relaxed);
        let left = self.bytes_max.saturating_sub(held).max(NOTED_BYTES_MIN);
        let limits = AnswerLimits::WRITE;
        AnswerReads::new(AnswerLimits {
            picked_bytes: limits.picked_bytes.min(left),
            ..limits
        })
    }

    /// Counts what an answer holds from now on; `None` if that is nothing.
    pub(super) fn count(&self, reads: &AnswerReads) -> Option<NotedBytes> {
        let bytes = reads.held_bytes();
        if bytes == 0 {
            return None;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let all = self.bytes.clone();
        Some(NotedBytes { bytes, all })
    }
}

impl Drop for NotedBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{
            command::{Command, Put, RangeQuery, Txn, TxnOp},
            index::Index,
            machine::{LoadedState, Machine},
            records::{ReadError, Records},
        },
        types::{LeaseId, LogIndex, LogPosition, Rev, Revision, Term},
    };
    use bytes::Bytes;

    struct Nothing;

    impl Records for Nothing {
        fn get(&self, rev: Rev) -> Result<Bytes, ReadError> {
            let source = "nothing is read while an entry is applied".into();
            Err(ReadError { rev, source })
        }
    }

    const KEYS: u32 = 1_000;
    const BYTES_MAX: usize = 16 * 1024 * 1024;

    fn machine() -> Machine {
        let mut index = Index::new();
        for n in 0..KEYS {
            let rev = Rev::new(Revision(i64::from(n) + 2), 0);
            index.put(format!("{n:05}").as_bytes(), rev, LeaseId(0));
        }
        let loaded = LoadedState {
            revision: Revision(i64::from(KEYS) + 1),
            ..LoadedState::default()
        };
        Machine::new(loaded, index.snapshot())
    }

    fn put(prev_kv: bool) -> Put {
        Put {
            key: "00000".into(),
            prev_kv,
            ..Put::default()
        }
    }

    /// What is noted for a command.
    fn noted(noted: &Noted, command: &Command) -> AnswerReads {
        let mut reads = noted.begin();
        let at = LogPosition {
            index: LogIndex(1),
            term: Term(1),
        };
        let verdict = machine().apply(command, at, &Nothing, Some(&mut reads));
        assert!(verdict.is_ok_and(|verdict| verdict.is_ok()));
        reads
    }

    #[test]
    fn answers_that_wait_hold_a_bounded_number_of_bytes_together() {
        let all = RangeQuery {
            key: "0".into(),
            range_end: "\0".into(),
            ..RangeQuery::default()
        };
        let ranges = std::iter::repeat_with(|| TxnOp::Range(all.clone())).take(10);
        let ranges = Command::Txn(Txn {
            success: ranges.chain([TxnOp::Put(put(false))]).collect(),
            ..Txn::default()
        });
        let (sum, mut waiting) = (Noted::new(BYTES_MAX), Vec::new());
        for _ in 0..30 {
            let reads = noted(&sum, &ranges);
            waiting.push((sum.count(&reads), reads));
            assert!(sum.bytes.load(Ordering::Relaxed) <= BYTES_MAX);
        }
        let held = waiting.iter().filter(|(held, _)| held.is_some()).count();
        assert!((4..25).contains(&held), "{held} of 30 fit");
        let (_, last) = waiting.pop().expect("30 wait");
        assert_eq!(
            last.revs().count(),
            0,
            "it does not fit, and its caller is told"
        );
        assert!(!last.is_empty());

        // What notes little is not refused for the others.
        let reads = noted(&sum, &Command::Put(put(false)));
        assert!(reads.is_empty() && sum.count(&reads).is_none());
        let reads = noted(&sum, &Command::Put(put(true)));
        assert_eq!(reads.revs().count(), 1);
        waiting.clear();
        assert_eq!(sum.bytes.load(Ordering::Relaxed), 0);
        assert!(
            noted(&sum, &ranges).revs().count() > 0,
            "there is room again"
        );
    }
}
