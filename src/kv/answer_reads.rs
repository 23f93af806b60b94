//! The stored records that a caller's answer needs: noted while its command is applied, and read afterwards.
//!
//! No state depends on the results of ranges, nor on the previous values that a write returns: only the caller gets them. So a
//! member without a caller (a follower, or one that replays its log) skips them, and the member that has the caller notes which
//! records they are. It reads these once the write is visible, on a thread that may block, from the view that was published with
//! the write. That view has every record that was live when the command was applied, whatever is compacted later.
//!
//! An answer has a limit on its bytes, because nothing else bounds it: a short transaction can ask for the whole store many
//! times. Past the limit the caller gets an error. etcd: the write has happened nevertheless, as when an answer is longer than
//! gRPC allows (2 GiB). The notes have a limit too, and so has the number of index entries that are visited for them: both are
//! work of the thread that applies all commands.

use super::{
    KvError,
    command::{EncodedKv, OpDone, Outcome, RangeQuery, TxnDone},
    keys::Keys,
    pick::PickRoom,
    range::Picked,
    records::{RESULT_BYTES, ReadError, Records},
};
use crate::types::{Rev, Revision};
use std::collections::VecDeque;

/// Why an answer could not be completed.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The answer is longer than its limit.
    #[error("the answer takes more than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
}

impl AnswerError {
    /// Separates an answer that is too large, which the caller gets as an error, from a failed read, which is this member's
    /// fault.
    pub(super) fn split<T>(read: Result<T, Self>) -> Result<Result<T, KvError>, ReadError> {
        match read {
            Ok(done) => Ok(Ok(done)),
            Err(Self::TooLarge { bytes_max }) => Ok(Err(KvError::AnswerTooLarge { bytes_max })),
            Err(Self::Read(error)) => Err(error),
        }
    }
}

/// The most bytes of records in the answer to a transaction or a write: a short request can ask for an answer of any length.
/// etcd: its limit is gRPC's, 2 GiB.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bounds on the work for an answer, and on what it holds in memory before its records are read. Past them it is too large.
#[derive(Clone, Copy, Debug)]
pub struct AnswerLimits {
    /// Index entries that may be visited.
    pub steps: u64,
    /// Bytes of results that were picked from the index and are not read yet.
    pub picked_bytes: usize,
    pub bytes: usize,
}

impl AnswerLimits {
    /// For a write. Other requests wait while it is applied, and so while the index is searched for it: half a second at most.
    pub const WRITE: Self = Self {
        steps: 4_000_000,
        picked_bytes: 128 * 1024 * 1024,
        bytes: ANSWER_BYTES_MAX,
    };

    /// For a transaction that only reads: no other request waits for it.
    pub const READ: Self = Self {
        steps: 32_000_000,
        picked_bytes: 256 * 1024 * 1024,
        bytes: ANSWER_BYTES_MAX,
    };
}

/// The reads that an answer still needs, in the order of its operations. Invariant: once it is too large it holds none.
#[derive(Debug)]
pub struct AnswerReads {
    reads: VecDeque<(usize, OpRead)>,
    /// Puts, deletes and ranges seen so far.
    ops: usize,
    room: PickRoom,
    picked_bytes_max: usize,
    is_too_large: bool,
}

impl Default for AnswerReads {
    fn default() -> Self {
        Self::new(AnswerLimits::WRITE)
    }
}

#[derive(Debug)]
enum OpRead {
    /// The records before a put or a delete.
    Previous(Vec<Rev>),
    Range(Picked),
}

impl AnswerReads {
    pub fn new(limits: AnswerLimits) -> Self {
        Self {
            reads: VecDeque::new(),
            ops: 0,
            room: PickRoom::new(limits.steps, limits.picked_bytes),
            picked_bytes_max: limits.picked_bytes,
            is_too_large: false,
        }
    }

    /// Notes the records before the next operation, a put or a delete.
    pub(super) fn note_previous(&mut self, revs: impl Iterator<Item = Rev>) {
        if !self.is_too_large {
            let room = &self.room;
            let revs: Vec<Rev> = revs.take_while(|_| room.take(size_of::<Rev>())).collect();
            if !revs.is_empty() {
                self.reads.push_back((self.ops, OpRead::Previous(revs)));
            }
            self.check_room();
        }
        self.ops += 1;
    }

    /// Notes the results of the next operation, a range. If the answer is too large already, the index is not searched.
    pub(super) fn note_range(
        &mut self,
        keys: &impl Keys,
        query: &RangeQuery,
        at: Option<Revision>,
        now: Revision,
    ) {
        if !self.is_too_large {
            let picked = Picked::new(keys, query.clone(), at, now, &self.room);
            self.reads.push_back((self.ops, OpRead::Range(picked)));
            self.check_room();
        }
        self.ops += 1;
    }

    fn check_room(&mut self) {
        if self.room.is_used_up() {
            self.is_too_large = true;
            self.reads = VecDeque::new();
        }
    }

    /// Bytes of picked results that are still held.
    pub fn held_bytes(&self) -> usize {
        if self.is_too_large {
            return 0;
        }
        self.picked_bytes_max - self.room.bytes_left()
    }

    /// How many records and results it has, or `max` if there are more.
    pub fn count_up_to(&self, max: usize) -> usize {
        let mut count = 0;
        for (_, read) in &self.reads {
            count += match read {
                OpRead::Previous(revs) => revs.len(),
                OpRead::Range(picked) => picked.len(),
            };
            if count >= max {
                return max;
            }
        }
        count
    }

    /// Whether the answer is complete already.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty() && !self.is_too_large
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

    /// Reads the noted records into `outcome`, which must be that of the same command: up to `bytes_max` bytes of records.
    pub fn complete(
        self,
        mut outcome: Outcome,
        records: &dyn Records,
        bytes_max: usize,
    ) -> Result<Outcome, AnswerError> {
        if self.is_too_large {
            return Err(AnswerError::TooLarge { bytes_max });
        }
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
            | Outcome::Alarm { .. }
            | Outcome::Auth { .. } => {}
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

    fn previous(&mut self) -> Result<Vec<EncodedKv>, AnswerError> {
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

/// Takes the bytes of a result from what is left of `bytes_max`.
pub(super) fn take(left: &mut usize, bytes: usize, bytes_max: usize) -> Result<(), AnswerError> {
    *left = left
        .checked_sub(bytes.saturating_add(RESULT_BYTES))
        .ok_or(AnswerError::TooLarge { bytes_max })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{
        command::{Command, DeleteRange, Put, RevisionFilter, Txn, TxnOp},
        index::Index,
        machine::{LoadedState, Machine},
        range::RevisionWindow,
        record, txn,
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
        let loaded = LoadedState {
            revision: Revision(VALUES + 1),
            ..LoadedState::default()
        };
        Machine::new(loaded, index.snapshot())
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
        let all = usize::try_from(VALUES).expect("a small number") * (VALUE_BYTES + 60);
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

    const LIMITS: AnswerLimits = AnswerLimits {
        steps: 10_000,
        picked_bytes: 1_000_000,
        bytes: 1_000_000_000,
    };

    fn too_large(reads: AnswerReads, outcome: Outcome) -> bool {
        let complete = reads.complete(outcome, &Disk::default(), LIMITS.bytes);
        matches!(complete, Err(AnswerError::TooLarge { .. }))
    }

    /// Notes so many ranges, and gives the steps that were taken and the bytes that are held for them.
    fn noted(ranges: usize, query: &RangeQuery, limits: AnswerLimits) -> (AnswerReads, u64, usize) {
        let index = many_keys(1_000).snapshot();
        let mut reads = AnswerReads::new(limits);
        let now = Revision(1_001);
        for _ in 0..ranges {
            let at = (query.revision > 0).then_some(Revision(query.revision));
            reads.note_range(&index, query, at, now);
        }
        let (steps, bytes) = reads.room.taken(limits.steps, limits.picked_bytes);
        (reads, steps, bytes)
    }

    fn many_keys(count: i64) -> Index {
        let mut index = Index::new();
        for n in 0..count {
            let rev = Rev::new(Revision(n + 2), 0);
            index.put(format!("k{n:05}").as_bytes(), rev, LeaseId(0));
        }
        index
    }

    fn all() -> RangeQuery {
        RangeQuery {
            key: "k".into(),
            range_end: "l".into(),
            ..RangeQuery::default()
        }
    }

    #[test]
    fn the_index_is_asked_for_an_answer_up_to_a_limit_whatever_is_asked() {
        let old = RangeQuery {
            revision: 2,
            count_only: true,
            ..all()
        };
        let filtered = RangeQuery {
            filter: RevisionFilter {
                min_mod: 1_000_000,
                ..RevisionFilter::default()
            },
            ..all()
        };
        let keys_only = RangeQuery {
            keys_only: true,
            ..all()
        };
        for query in [all(), old, filtered, keys_only] {
            for ranges in [100, 200] {
                let (reads, steps, bytes) = noted(ranges, &query, LIMITS);
                assert!(steps <= LIMITS.steps, "{steps} for {query:?}");
                assert!(bytes <= LIMITS.picked_bytes, "{bytes} for {query:?}");
                assert_eq!(reads.revs().count(), 0, "nothing is held any more");
                assert!(!reads.is_empty(), "the caller is told");
                assert!(too_large(reads, Outcome::Txn(TxnDone::default())));
            }
        }
        let (reads, steps, _) = noted(5, &all(), LIMITS);
        assert_eq!((reads.revs().count(), steps), (5_000, 5_000));
    }

    #[test]
    fn counts_and_limited_ranges_are_cheap() {
        let count = RangeQuery {
            count_only: true,
            ..all()
        };
        let first = RangeQuery { limit: 1, ..all() };
        for query in [count, first] {
            let [one, two] = [1_000, 2_000].map(|ranges| noted(ranges, &query, LIMITS).1);
            assert!(one <= 4_000 && two == 2 * one, "{one} {two}: {query:?}");
        }
    }

    #[test]
    fn the_write_happens_although_its_answer_is_too_large() {
        let mut reads = AnswerReads::new(AnswerLimits {
            steps: 300,
            ..LIMITS
        });
        let mut machine = machine();
        let disk = Disk::default();
        let verdict = machine.apply(&poison(20), AT, &disk, Some(&mut reads));
        let outcome = verdict.expect("readable").expect("not refused");
        assert_eq!(machine.take_changes().records.len(), 1, "the put");
        assert!(too_large(reads, outcome));
    }

    #[test]
    fn a_transaction_that_reads_stops_at_its_limits() {
        let index = many_keys(200).snapshot();
        let window = RevisionWindow {
            newest: Revision(201),
            compacted: Revision::NEVER_COMPACTED,
        };
        let read = |ranges: usize, limits: AnswerLimits| {
            let disk = Disk::default();
            let ops = std::iter::repeat_with(|| TxnOp::Range(all())).take(ranges);
            let txn = Txn {
                success: ops.collect(),
                ..Txn::default()
            };
            let done = txn::read(&txn, &index, &disk, window, limits).expect("readable");
            (matches!(done, Ok(Some(_))), disk.bytes.get())
        };
        let one = 200 * (VALUE_BYTES + 60);
        let bytes = |bytes| AnswerLimits { bytes, ..LIMITS };
        assert!(read(3, bytes(3 * one)).0);
        for ranges in [20, 40] {
            let (fits, bytes) = read(ranges, bytes(3 * one));
            assert!(!fits && bytes <= 4 * one, "{ranges} ranges: {bytes}");
        }
        let steps = |steps| AnswerLimits { steps, ..LIMITS };
        assert!(read(3, steps(601)).0);
        let (fits, bytes) = read(20, steps(600));
        assert!(!fits && bytes <= 3 * one, "{bytes}");
        // What one range picks is not held while the next one is read.
        let picked_bytes = LIMITS.picked_bytes / 20;
        let small = AnswerLimits {
            picked_bytes,
            ..LIMITS
        };
        assert!(read(20, small).0);
    }
}
