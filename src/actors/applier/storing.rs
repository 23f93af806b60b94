//! Which applied records the database does not hold yet, and when they are committed to it.
//!
//! Records gather here until a batch is due, by its size or by time. The committer takes one batch at a time. Invariant:
//! `stored_index <= stored_applied <= committed_index`, and the next commit holds what later entries did.

use super::super::{held, load::membership_meta};
use crate::{
    auth::Row,
    codec,
    kv::{lease::LeaseChange, tail},
    storage::db::CommitBatch,
    types::{LeaseId, LogIndex, LogPosition, Revision},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::oneshot;

/// Bytes of records and rows that may wait for the database. Past them the Raft node gets no more acknowledgements of applied
/// batches, so its bound on entries that are not applied yet pushes clients back.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// When the applier hands its records to the committer.
#[derive(Clone, Copy, Debug)]
pub struct CommitPacing {
    /// After so long at the latest.
    pub interval: Duration,
    /// After so many records.
    pub records_max: usize,
    /// After so many bytes.
    pub bytes_max: usize,
}

/// What a commit has, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Weight {
    records: usize,
    /// Of leases, users, roles and tokens.
    rows: usize,
}

impl Weight {
    fn sum(self) -> usize {
        self.records + self.rows
    }
}

/// What the database holds, what the committer works on, and what gathers for the next commit.
#[derive(Debug)]
pub(super) struct Storing {
    pacing: CommitPacing,
    waiting_bytes_max: usize,
    /// Records up to here are in the database.
    stored_through: Revision,
    /// Effects of entries up to here are in the database.
    stored_applied: LogIndex,
    /// Entries up to here are in the database for good.
    stored_index: LogIndex,
    /// Entries up to here were handed to the committer.
    committed_index: LogIndex,
    next: CommitBatch,
    next_records: usize,
    next_bytes: Weight,
    /// What the committer is working on.
    committing: Option<Weight>,
    /// Who waits until everything is stored.
    draining: Vec<oneshot::Sender<()>>,
}

impl Storing {
    /// The database holds the state at `applied` and `revision`. Whether it does so for good (`stored_index`) is not known yet at
    /// a start.
    pub(super) fn new(
        pacing: CommitPacing,
        applied: LogPosition,
        stored_index: LogIndex,
        revision: Revision,
    ) -> Self {
        Self {
            pacing,
            waiting_bytes_max: held::bound(WAITING_BYTES_MAX),
            stored_through: revision,
            stored_applied: applied.index,
            stored_index,
            committed_index: applied.index,
            next: CommitBatch::default(),
            next_records: 0,
            next_bytes: Weight::default(),
            committing: None,
            draining: Vec::new(),
        }
    }

    /// A snapshot with the state at `applied` and `revision` is the database now; what waited for the old one is in it.
    pub(super) fn replaced(&mut self, applied: LogPosition, revision: Revision) {
        let new = Self::new(self.pacing, applied, applied.index, revision);
        std::mem::replace(self, new).drained();
    }

    /// Adds what the entries up to `applied` did.
    pub(super) fn add(
        &mut self,
        records: &tail::RecordBatch,
        leases: &[LeaseChange],
        applied: LogPosition,
    ) {
        self.next_bytes.records += records.iter().map(|record| record.kv.len()).sum::<usize>();
        self.next_records += records.len();
        self.next.records.push(records.clone());
        for (id, row) in leases.iter().filter_map(lease_row) {
            self.next_bytes.rows += size_of::<LeaseId>() + row.as_ref().map_or(0, Vec::len);
            self.next.leases.push((id, row));
        }
        self.next.applied = applied;
    }

    /// Adds changed parts of users, roles and tokens; they become durable with the entries that changed them. Only the newest row
    /// of a name is kept: a small change may write a long row anew.
    pub(super) fn add_rows(&mut self, rows: Vec<Row>) {
        for (name, row) in rows {
            let name_bytes = name.len();
            self.next_bytes.rows += name_bytes + row.as_ref().map_or(0, Vec::len);
            if let Some(older) = self.next.rows.insert(name, row) {
                self.next_bytes.rows -= name_bytes + older.map_or(0, |older| older.len());
            }
        }
    }

    /// Adds the membership after a change; it becomes durable with the log position of the change.
    pub(super) fn add_membership(&mut self, encoded: &Bytes) {
        self.next.meta = membership_meta(encoded);
    }

    /// Past so many [`waiting_bytes`](Self::waiting_bytes) nothing further is applied than what was delivered already.
    pub(super) fn waiting_bytes_max(&self) -> usize {
        self.waiting_bytes_max
    }

    pub(super) fn pacing(&self) -> CommitPacing {
        self.pacing
    }

    /// Whether enough has gathered for a commit before its time.
    pub(super) fn is_due(&self) -> bool {
        self.next_records >= self.pacing.records_max
            || self.next_bytes.sum() >= self.pacing.bytes_max
    }

    /// Whether the committer is at work.
    pub(super) fn is_committing(&self) -> bool {
        self.committing.is_some()
    }

    /// Bytes of records and rows that the database does not hold yet.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.next_bytes.sum() + self.committing.unwrap_or_default().sum()
    }

    /// Bytes of records alone: rows do not count against the quota.
    pub(super) fn waiting_record_bytes(&self) -> usize {
        self.next_bytes.records + self.committing.unwrap_or_default().records
    }

    /// Whether applied entries may be reported to the Raft node: the database is not too far behind.
    pub(super) fn has_room(&self) -> bool {
        self.waiting_bytes() <= self.waiting_bytes_max
    }

    /// Takes the next commit, unless the committer is at work or nothing was applied since the last one. `meta` describes the
    /// state after it.
    pub(super) fn take_commit(
        &mut self,
        meta: impl FnOnce() -> Vec<(&'static str, Option<Vec<u8>>)>,
    ) -> Option<CommitBatch> {
        if self.is_committing() || self.next.applied.index <= self.committed_index {
            return None;
        }
        let mut batch = std::mem::take(&mut self.next);
        batch.meta.extend(meta());
        self.committed_index = batch.applied.index;
        self.next_records = 0;
        self.committing = Some(std::mem::take(&mut self.next_bytes));
        Some(batch)
    }

    /// The committer is done: the database holds all records up to `through`, and entries up to `stored_index` for good.
    pub(super) fn committed(&mut self, through: Revision, stored_index: LogIndex) {
        self.committing = None;
        self.stored_through = through;
        self.stored_index = stored_index;
    }

    /// The database has the effects of entries up to `applied`.
    pub(super) fn stored(&mut self, applied: LogIndex) {
        self.stored_applied = applied;
    }

    /// Effects of entries up to here are in the database.
    pub(super) fn stored_applied(&self) -> LogIndex {
        self.stored_applied
    }

    /// Records up to here are in the database.
    pub(super) fn stored_through(&self) -> Revision {
        self.stored_through
    }

    /// Entries up to here are in the database for good.
    pub(super) fn stored_index(&self) -> LogIndex {
        self.stored_index
    }

    /// Resolves once [`Storing::drained`] was called.
    pub(super) fn drain(&mut self) -> oneshot::Receiver<()> {
        let (done, waiting) = oneshot::channel();
        self.draining.push(done);
        waiting
    }

    /// Whether nobody waits until everything is stored.
    pub(super) fn is_drained(&self) -> bool {
        self.draining.is_empty()
    }

    /// Answers those who wait until everything is stored.
    pub(super) fn drained(&mut self) {
        for waiting in self.draining.drain(..) {
            // One that has given up does not matter.
            waiting.send(()).unwrap_or_default();
        }
    }
}

/// What a change does to the stored row of its lease, if anything.
fn lease_row(change: &LeaseChange) -> Option<(LeaseId, Option<Vec<u8>>)> {
    match change {
        LeaseChange::Granted { id, row }
        | LeaseChange::Checkpointed { id, row }
        | LeaseChange::Renewed {
            id,
            row,
            cleared: true,
        } => Some((*id, Some(codec::encode(row)))),
        LeaseChange::Renewed { cleared: false, .. } => None,
        LeaseChange::Revoked { id } => Some((*id, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::lease::LeaseRow,
        types::{Record, RecordKind, Rev, Term},
    };

    const PACING: CommitPacing = CommitPacing {
        interval: Duration::from_secs(1),
        records_max: 3,
        bytes_max: 100,
    };

    fn at(index: u64) -> LogPosition {
        LogPosition {
            index: LogIndex(index),
            term: Term(1),
        }
    }

    fn records(majors: std::ops::Range<i64>, bytes: usize) -> tail::RecordBatch {
        let record = |major| Record {
            rev: Rev::new(Revision(major), 0),
            kind: RecordKind::Put,
            kv: vec![0; bytes].into(),
        };
        majors.map(record).collect()
    }

    fn storing() -> Storing {
        Storing::new(PACING, at(10), LogIndex(0), Revision(5))
    }

    fn commit(storing: &mut Storing) -> Option<CommitBatch> {
        storing.take_commit(Vec::new)
    }

    #[test]
    fn the_committer_has_one_batch_at_a_time_and_nothing_twice() {
        let mut storing = storing();
        assert!(commit(&mut storing).is_none(), "nothing was applied");
        storing.add(&records(6..7, 10), &[], at(11));
        storing.add(&records(7..8, 10), &[], at(12));
        let batch = commit(&mut storing).expect("two entries were applied");
        assert_eq!((batch.records.len(), batch.applied), (2, at(12)));
        storing.add(&records(8..9, 10), &[], at(13));
        assert!(commit(&mut storing).is_none(), "it is at work");
        assert_eq!(storing.stored_through(), Revision(5), "not done yet");
        storing.committed(Revision(7), LogIndex(11));
        assert_eq!(storing.stored_through(), Revision(7));
        assert_eq!(storing.stored_index(), LogIndex(11));
        let batch = commit(&mut storing).expect("one entry is left");
        assert_eq!((batch.records.len(), batch.applied), (1, at(13)));
        storing.committed(Revision(8), LogIndex(12));
        assert!(commit(&mut storing).is_none(), "all is handed over");
    }

    #[test]
    fn records_or_bytes_make_a_commit_due() {
        let mut storing = storing();
        storing.add(&records(6..8, 10), &[], at(11));
        assert!(!storing.is_due());
        storing.add(&records(8..9, 10), &[], at(12));
        assert!(storing.is_due(), "three records");
        commit(&mut storing).expect("due");
        assert!(!storing.is_due());
        storing.add(&records(9..10, 100), &[], at(13));
        assert!(storing.is_due(), "a hundred bytes");
    }

    #[test]
    fn what_is_being_committed_counts_until_it_is_stored() {
        let mut storing = storing();
        storing.add(&records(6..7, WAITING_BYTES_MAX), &[], at(11));
        assert!(storing.has_room(), "up to the bound");
        commit(&mut storing).expect("due");
        storing.add(&records(7..8, 1), &[], at(12));
        assert!(!storing.has_room(), "one byte more");
        storing.committed(Revision(6), LogIndex(11));
        assert!(storing.has_room());
    }

    #[test]
    fn rows_count_until_they_are_stored_and_older_ones_of_a_name_are_dropped() {
        let mut storing = storing();
        let row = |name: &str, bytes: usize| (name.to_owned(), Some(vec![0; bytes]));
        let removed = ("auth.role/a".to_owned(), None);
        storing.add_rows(vec![row("auth.role/a", 50)]);
        assert_eq!(storing.waiting_bytes(), 61);
        for _ in 0..100 {
            storing.add_rows(vec![removed.clone(), row("auth.role/a", 60)]);
        }
        assert_eq!(storing.waiting_bytes(), 71, "one row is left");
        assert!(!storing.is_due());
        storing.add_rows(vec![row("auth.user/b", 18)]);
        assert!(storing.is_due(), "a hundred bytes");
        storing.add(&records(6..7, 5), &[], at(11));
        assert_eq!(storing.waiting_record_bytes(), 5);
        let batch = commit(&mut storing).expect("due");
        let stored = [row("auth.role/a", 60), row("auth.user/b", 18)];
        assert_eq!(batch.rows, stored.into());
        let waiting = (storing.waiting_bytes(), storing.waiting_record_bytes());
        assert_eq!(waiting, (105, 5), "until they are stored");
        storing.add_rows(vec![row("auth.role/a", WAITING_BYTES_MAX)]);
        assert!(!storing.has_room());
        storing.committed(Revision(5), LogIndex(11));
        storing.add_rows(vec![removed.clone()]);
        assert_eq!(storing.waiting_bytes(), removed.0.len());
    }

    #[test]
    fn rows_of_leases_count_too() {
        let mut storing = storing();
        let (id, row) = (LeaseId(7), LeaseRow::new(60, LogIndex(11)));
        storing.add(
            &records(6..6, 0),
            &[LeaseChange::Granted { id, row }],
            at(11),
        );
        let bytes = size_of::<LeaseId>() + codec::encode(&row).len();
        assert_eq!(storing.waiting_bytes(), bytes);
        storing.add(&records(6..6, 0), &[LeaseChange::Revoked { id }], at(12));
        assert_eq!(storing.waiting_bytes(), bytes + size_of::<LeaseId>());
    }

    #[test]
    fn membership_and_leases_go_with_their_entries() {
        let mut storing = storing();
        storing.add_membership(&Bytes::from_static(b"members"));
        let (id, row) = (LeaseId(7), LeaseRow::new(60, LogIndex(11)));
        let renewed = |cleared| LeaseChange::Renewed { id, row, cleared };
        let changes = [
            LeaseChange::Granted { id, row },
            renewed(false),
            renewed(true),
            LeaseChange::Revoked { id },
        ];
        storing.add(&records(6..6, 0), &changes, at(11));
        let state = || vec![("state", None)];
        let batch = storing.take_commit(state).expect("applied");
        assert_eq!(batch.meta.len(), 2, "the membership and the state");
        let rows: Vec<bool> = batch.leases.iter().map(|(_, row)| row.is_some()).collect();
        assert_eq!(rows, [true, true, false], "a mere renewal changes no row");
    }

    #[test]
    fn a_snapshot_takes_the_place_of_all_that_waited() {
        let mut storing = storing();
        storing.add(&records(6..7, 10), &[], at(11));
        commit(&mut storing).expect("applied");
        storing.add(&records(7..8, 10), &[], at(12));
        let mut waiting = storing.drain();
        storing.replaced(at(20), Revision(15));
        assert_eq!(waiting.try_recv(), Ok(()), "all of it is in the snapshot");
        assert!(!storing.is_committing());
        assert!(commit(&mut storing).is_none(), "nothing is left to store");
        assert_eq!(storing.stored_index(), LogIndex(20));
        assert_eq!(storing.stored_through(), Revision(15));
        storing.add(&records(16..17, 10), &[], at(21));
        assert!(commit(&mut storing).is_some());
    }
}
