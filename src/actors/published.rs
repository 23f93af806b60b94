//! What readers see: an immutable state of the store, published by the applier after every batch.
//!
//! Reading it takes no message to an actor. A short read of records that are in memory runs at once, between other requests; all
//! others must go to a thread that may block ([`Published::try_range`] decides).

use super::{members::Members, request_error::RequestError};
use crate::{
    auth::AuthState,
    kv::{
        KeyRange, KvError,
        command::{AlarmKind, RangeDone, RangeQuery, SortOrder, SortTarget, Txn, TxnDone, TxnOp},
        hash::{HistoryHash, HistoryHasher},
        records::ReadError,
        state_hash::StateHash,
        view::View,
    },
    storage::db::DbReader,
    types::{LogIndex, LogPosition, MemberId, Rev, Revision},
};
use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

/// A range over more keys than this, or with longer results, is read on a blocking thread, so that it does not delay other
/// requests.
const INLINE_KEYS_MAX: u64 = 512;
const INLINE_BYTES_MAX: usize = 128 * 1024;

/// What the applier publishes after every batch.
#[derive(Debug)]
pub struct Published {
    pub view: View,
    /// The log position of this state.
    pub applied: LogPosition,
    pub alarms: Arc<BTreeSet<(MemberId, AlarmKind)>>,
    /// The members of the cluster.
    pub members: Arc<Members>,
    /// Users, roles and tokens.
    pub auth: Arc<AuthState>,
    /// The rolling hash of this state; `None` in a store that an older version wrote.
    pub hash: Option<StateHash>,
    /// Reads the records that the view's tail does not hold.
    pub stored: DbReader,
    /// The database holds every record up to this revision.
    pub stored_through: Revision,
    /// The database holds the effects of the log's entries up to this one.
    pub stored_applied: LogIndex,
    /// Size of the database file, in bytes.
    pub file_bytes: u64,
    /// Bytes of it that hold records.
    pub used_bytes: u64,
    /// Bytes of applied records that it does not hold yet.
    pub unstored_bytes: u64,
}

impl Published {
    /// What counts against the quota: all applied records, history that is not compacted included, whether the database holds
    /// them yet or not. Space in the file that compactions have freed does not count, since it is used again. etcd: counts the
    /// file, with the pages around records, so for the same records it refuses no later than this does.
    pub fn quota_bytes(&self) -> u64 {
        self.used_bytes + self.unstored_bytes
    }

    /// Reads keys, if that is quick enough to be done between other requests. Never waits for the disk.
    pub fn try_range(&self, query: &RangeQuery) -> Result<Quick<RangeDone>, RequestError> {
        if !is_small(&self.view, query) {
            return Ok(Quick::Long);
        }
        let records = self.view.in_memory();
        Quick::of(self.view.range_within(&records, query, INLINE_BYTES_MAX))
    }

    /// Reads keys for which [`Published::try_range`] returned [`Quick::NotInMemory`]; `None` if the results are long. Blocks.
    pub fn short_range(&self, query: &RangeQuery) -> Result<Option<RangeDone>, RequestError> {
        let records = self.view.keeping();
        Ok(self
            .view
            .range_within(&records, query, INLINE_BYTES_MAX)??)
    }

    /// As [`Published::try_range`], for a transaction that only reads.
    pub fn try_read_txn(&self, txn: &Txn) -> Result<Quick<TxnDone>, RequestError> {
        let small = |op: &TxnOp| match op {
            TxnOp::Range(query) => is_small(&self.view, query),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) | TxnOp::Empty => true,
        };
        if !compares_are_small(&self.view, txn) || !txn.branches().all(small) {
            return Ok(Quick::Long);
        }
        let records = self.view.in_memory();
        Quick::of(self.view.read_txn_within(&records, txn, INLINE_BYTES_MAX))
    }

    /// As [`Published::short_range`], for a transaction that only reads.
    pub fn short_read_txn(&self, txn: &Txn) -> Result<Option<TxnDone>, RequestError> {
        let records = self.view.keeping();
        Ok(self
            .view
            .read_txn_within(&records, txn, INLINE_BYTES_MAX)??)
    }

    /// Feeds all records through a revision, first those in the database, to etcd's hash.
    pub fn hash_history(
        &self,
        through: Revision,
    ) -> Result<Result<HistoryHash, KvError>, ReadError> {
        let view = &self.view;
        let mut hasher = match HistoryHasher::new(view.window, &view.keys, through) {
            Ok(hasher) => hasher,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let from = Rev::default();
        let to = Rev::new(view.window.newest.next(), 0);
        let scanned = self.stored.scan(from..to, |record| {
            hasher.add(record.rev, record.kind, record.kv);
            ControlFlow::Continue(())
        });
        scanned.map_err(|error| ReadError {
            rev: from,
            source: Box::new(error),
        })?;
        // A record that the database holds can be in the tail as well.
        let rest = Rev::new(self.stored_through.next(), 0);
        for record in view.tail.iter_from(rest) {
            hasher.add(record.rev, record.kind, &record.kv);
        }
        Ok(Ok(hasher.finish()))
    }
}

/// The outcome of a read that must not hold up other requests.
#[derive(Debug)]
pub enum Quick<T> {
    Done(T),
    /// It is short, and needs records that only the database has.
    NotInMemory,
    /// It exceeds the bounds of a short read.
    Long,
}

impl<T> Quick<T> {
    /// Turns the result into another, if there is one.
    pub(crate) fn try_map<U, E>(self, map: impl FnOnce(T) -> Result<U, E>) -> Result<Quick<U>, E> {
        Ok(match self {
            Self::Done(done) => Quick::Done(map(done)?),
            Self::NotInMemory => Quick::NotInMemory,
            Self::Long => Quick::Long,
        })
    }

    /// The outcome of a read of what is in memory; `None` inside stands for results that are too long.
    fn of(read: Result<Result<Option<T>, KvError>, ReadError>) -> Result<Self, RequestError> {
        match read {
            Ok(done) => Ok(done?.map_or(Self::Long, Self::Done)),
            Err(error) if error.is_not_in_memory() => Ok(Self::NotInMemory),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether the compares of a transaction are quick enough to run between other requests.
fn compares_are_small(view: &View, txn: &Txn) -> bool {
    let ranges = txn
        .compares
        .iter()
        .filter(|compare| !compare.range_end.is_empty())
        .map(|compare| KeyRange::from_wire(&compare.key, &compare.range_end));
    let keys = KeyRange::disjoint(ranges.collect())
        .iter()
        .try_fold(0, |sum: u64, range| {
            Some(sum + view.keys.count(range)).filter(|sum| *sum <= INLINE_KEYS_MAX)
        });
    keys.is_some()
}

/// Whether a range is quick enough to run between other requests.
fn is_small(view: &View, query: &RangeQuery) -> bool {
    let range = KeyRange::from_wire(&query.key, &query.range_end);
    if range.is_single() {
        return true;
    }
    let head = query.revision <= 0 || query.revision == view.window.newest.0;
    let limited = query.limit > 0
        && query.limit.cast_unsigned() <= INLINE_KEYS_MAX
        && query.filter.is_off()
        && query.sort_order == SortOrder::None
        && query.sort_target == SortTarget::Key;
    head && (query.count_only || limited || view.keys.count(&range) <= INLINE_KEYS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{
            index::Index,
            range::RevisionWindow,
            record::{self, Fields},
            tail::Tail,
        },
        storage::{
            db::{CommitBatch, Db, DbOptions},
            sim_disk::SimDisk,
        },
        types::{ClusterId, Identity, LeaseId, Record, RecordKind, Term},
    };

    const NEWEST: Revision = Revision(2);

    fn open(disk: &SimDisk) -> Db {
        let identity = Identity {
            cluster: ClusterId(1),
            member: MemberId(1),
        };
        Db::open(disk, "db", DbOptions::default(), identity).unwrap()
    }

    /// A store whose key `k` was put at revision 2, and whose tail is empty.
    fn published(db: &Db) -> Published {
        let stored = db.reader().unwrap();
        let mut index = Index::new();
        index.put(b"k", Rev::new(NEWEST, 0), LeaseId(0));
        Published {
            view: View {
                window: RevisionWindow {
                    newest: NEWEST,
                    compacted: Revision::NEVER_COMPACTED,
                },
                keys: index.snapshot(),
                tail: Tail::default(),
                stored: Arc::new(stored.clone()),
            },
            applied: db.applied(),
            hash: None,
            alarms: Arc::default(),
            members: Arc::new(Members::default()),
            auth: Arc::default(),
            stored,
            stored_through: NEWEST,
            stored_applied: db.applied().index,
            file_bytes: db.size(),
            used_bytes: db.size_in_use(),
            unstored_bytes: 0,
        }
    }

    fn found(read: Result<Quick<RangeDone>, RequestError>) -> Option<usize> {
        match read.unwrap() {
            Quick::Done(done) => Some(done.kvs.len()),
            Quick::NotInMemory => None,
            Quick::Long => panic!("one key is short"),
        }
    }

    #[test]
    fn a_record_is_in_memory_once_it_was_committed_or_read() {
        let disk = SimDisk::new(1);
        let kv = record::encode(&Fields {
            key: b"k",
            mod_revision: NEWEST,
            ..Fields::default()
        });
        let record = Record {
            rev: Rev::new(NEWEST, 0),
            kind: RecordKind::Put,
            kv,
        };
        let mut db = open(&disk);
        let batch = CommitBatch {
            applied: LogPosition {
                index: LogIndex(1),
                term: Term(1),
            },
            records: vec![Arc::new([record])],
            ..CommitBatch::default()
        };
        let query = RangeQuery {
            key: "k".into(),
            ..RangeQuery::default()
        };
        let with_value = |published: &Published| found(published.try_range(&query));
        // Records of a commit are kept where somebody reads.
        assert_eq!(with_value(&published(&db)), None, "not committed yet");
        db.commit(&batch).unwrap();
        assert_eq!(with_value(&published(&db)), Some(1), "just committed");

        drop(db);
        let db = open(&disk);
        let published = published(&db);
        assert_eq!(with_value(&published), None, "after a restart");
        let keys_only = RangeQuery {
            keys_only: true,
            ..query.clone()
        };
        let keys_only = found(published.try_range(&keys_only));
        assert_eq!(keys_only, Some(1), "the index has keys");
        let read = published.short_range(&query).unwrap();
        assert_eq!(read.unwrap().kvs.len(), 1, "read from the database");
        assert_eq!(with_value(&published), Some(1), "just read");
    }
}
