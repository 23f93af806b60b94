//! What a caller's answer needs from stored records, noted while its command is applied and read afterwards.
//!
//! Ranges and previous values in a write are for its caller alone: no state depends on them. So a member without a caller (a
//! follower, or one that replays its log) does not look at them at all, and the member that has the caller notes which records
//! they are. It reads them once the write is visible, on a thread that may block, from the view that was published with the
//! write. That view has every record that was live when the command was applied, whatever is compacted later.
//!
//! An answer has a limit on its bytes, because nothing else bounds it: a short transaction can ask for the whole store many
//! times. Past the limit the caller gets an error. etcd: the write has happened nevertheless, as when an answer is longer than
//! gRPC allows (2 GiB).

use super::{
    command::{OpDone, Outcome, TxnDone},
    range::Picked,
    records::{ReadError, Records},
};
use crate::types::Rev;
use std::collections::VecDeque;

/// Why an answer could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// A record cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The answer is longer than its limit.
    #[error("the answer takes more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
}

/// The reads that an answer still needs, in the order of its operations.
#[derive(Debug, Default)]
pub struct AnswerReads {
    reads: VecDeque<(usize, OpRead)>,
    /// Puts, deletes and ranges seen so far.
    ops: usize,
}

/// The reads of one operation.
#[derive(Debug)]
enum OpRead {
    /// The records before a put or a delete.
    Previous(Vec<Rev>),
    Range(Picked),
}

impl AnswerReads {
    /// Notes the records before the next operation, a put or a delete.
    pub(super) fn note_previous(&mut self, revs: Vec<Rev>) {
        if !revs.is_empty() {
            self.reads.push_back((self.ops, OpRead::Previous(revs)));
        }
        self.ops += 1;
    }

    /// Notes what the next operation, a range, has picked.
    pub(super) fn note_range(&mut self, picked: Picked) {
        self.reads.push_back((self.ops, OpRead::Range(picked)));
        self.ops += 1;
    }

    /// Whether the answer is complete already.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// The records that will be read.
    pub fn revs(&self) -> impl Iterator<Item = Rev> {
        self.reads.iter().flat_map(|(_, read)| {
            let (previous, picked) = match read {
                OpRead::Previous(revs) => (Some(revs.iter().copied()), None),
                OpRead::Range(picked) => (None, Some(picked.revs())),
            };
            let previous = previous.into_iter().flatten();
            previous.chain(picked.into_iter().flatten())
        })
    }

    /// Reads everything into `outcome`, for whose command it was noted, up to `bytes_max` bytes of records.
    pub fn complete(
        self,
        mut outcome: Outcome,
        records: &dyn Records,
        bytes_max: usize,
    ) -> Result<Outcome, AnswerError> {
        let mut reader = Reader {
            reads: self.reads,
            ops: 0,
            records,
            bytes_max,
            bytes_left: bytes_max,
        };
        match &mut outcome {
            Outcome::Put(done) => done.prev = reader.previous()?.pop(),
            Outcome::DeleteRange(done) => done.prevs = reader.previous()?,
            Outcome::Txn(done) => reader.txn(done)?,
            Outcome::Compact { .. }
            | Outcome::Lease { .. }
            | Outcome::Countdown { .. }
            | Outcome::Renewals { .. }
            | Outcome::Alarm { .. } => {}
        }
        Ok(outcome)
    }
}

struct Reader<'a> {
    reads: VecDeque<(usize, OpRead)>,
    ops: usize,
    records: &'a dyn Records,
    bytes_max: usize,
    bytes_left: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<OpRead> {
        let op = self.ops;
        self.ops += 1;
        let (_, read) = self.reads.pop_front_if(|(at, _)| *at == op)?;
        Some(read)
    }

    fn txn(&mut self, txn: &mut TxnDone) -> Result<(), AnswerError> {
        for done in &mut txn.responses {
            match done {
                OpDone::Put(done) => done.prev = self.previous()?.pop(),
                OpDone::DeleteRange(done) => done.prevs = self.previous()?,
                OpDone::Txn(inner) => self.txn(inner)?,
                OpDone::Range(done) => match self.next() {
                    Some(OpRead::Range(picked)) => {
                        let (left, bytes_max) = (&mut self.bytes_left, self.bytes_max);
                        let mut admit = |bytes| take(left, bytes, bytes_max);
                        *done = picked.read(self.records, &mut admit)?;
                    }
                    other => unreachable!("each range of an answer was noted, not {other:?}"),
                },
            }
        }
        Ok(())
    }

    fn previous(&mut self) -> Result<Vec<super::command::EncodedKv>, AnswerError> {
        let revs = match self.next() {
            None => return Ok(Vec::new()),
            Some(OpRead::Previous(revs)) => revs,
            Some(other) => unreachable!("a write does not pick a range: {other:?}"),
        };
        let mut found = Vec::with_capacity(revs.len());
        for rev in revs {
            let kv = self.records.get(rev)?;
            take(&mut self.bytes_left, kv.len(), self.bytes_max)?;
            found.push(kv);
        }
        Ok(found)
    }
}

fn take(left: &mut usize, bytes: usize, bytes_max: usize) -> Result<(), AnswerError> {
    *left = left
        .checked_sub(bytes)
        .ok_or(AnswerError::TooLarge { bytes_max })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{
        command::{Command, DeleteRange, EncodedKv, Put, RangeQuery, Txn, TxnOp},
        index::Index,
        machine::{Machine, Restored},
        record,
    };
    use super::*;
    use crate::types::{LeaseId, LogIndex, LogPosition, Revision, Term};
    use std::cell::Cell;

    const VALUES: i64 = 200;
    const VALUE_BYTES: usize = 1_000;

    /// Records of the same size, and the bytes that were read of them.
    #[derive(Default)]
    struct Disk {
        bytes: Cell<usize>,
    }

    impl Records for Disk {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            let kv = record::encode(&record::Fields {
                key: b"key",
                create_revision: rev.major,
                mod_revision: rev.major,
                version: 1,
                value: &[0; VALUE_BYTES],
                lease: LeaseId(0),
            });
            self.bytes.set(self.bytes.get() + kv.len());
            Ok(kv)
        }
    }

    fn machine() -> Machine {
        let mut index = Index::new();
        for n in 0..VALUES {
            let rev = Rev::new(Revision(n + 2), 0);
            index.put(format!("k{n:03}").as_bytes(), rev, LeaseId(0));
        }
        let restored = Restored {
            revision: Revision(VALUES + 1),
            ..Restored::default()
        };
        Machine::new(restored, index.snapshot())
    }

    /// Reads everything so many times, and puts a key.
    fn poison(ranges: usize) -> Command {
        let all = || {
            TxnOp::Range(RangeQuery {
                key: "k".into(),
                range_end: "l".into(),
                ..RangeQuery::default()
            })
        };
        let put = TxnOp::Put(Put {
            key: "put".into(),
            ..Put::default()
        });
        let ranges = std::iter::repeat_with(all).take(ranges);
        Command::Txn(Txn {
            success: ranges.chain([put]).collect(),
            ..Txn::default()
        })
    }

    const AT: LogPosition = LogPosition {
        index: LogIndex(1),
        term: Term(1),
    };

    #[test]
    fn without_a_caller_nothing_is_read_for_an_answer() {
        let disk = Disk::default();
        let prevs = Command::DeleteRange(DeleteRange {
            key: "k".into(),
            range_end: "l".into(),
            prev_kv: true,
        });
        for command in [poison(20), prevs] {
            let verdict = machine().apply(&command, AT, &disk, None);
            assert!(verdict.is_ok_and(|verdict| verdict.is_ok()));
        }
        assert_eq!(disk.bytes.get(), 0);
    }

    #[test]
    fn an_answer_is_read_up_to_its_limit() {
        let all = usize::try_from(VALUES).expect("a small number") * (VALUE_BYTES + 20);
        for (ranges, limit, fits) in [(1, all, true), (20, 2 * all, false), (20, 30 * all, true)] {
            let (disk, mut reads) = (Disk::default(), AnswerReads::default());
            let verdict = machine().apply(&poison(ranges), AT, &disk, Some(&mut reads));
            assert_eq!(disk.bytes.get(), 0, "nothing is read while applying");
            let outcome = verdict.expect("readable").expect("not refused");
            assert_eq!(reads.revs().count(), ranges * 200);
            let complete = reads.complete(outcome, &disk, limit);
            assert_eq!(complete.is_ok(), fits, "{ranges} ranges");
            let read = disk.bytes.get();
            assert!(read <= limit + 2 * VALUE_BYTES, "{read} bytes of {limit}");
        }
    }
}
