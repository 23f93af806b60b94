//! What readers see: an immutable state of the store, published by the applier after every batch.
//!
//! Reading it takes no message to an actor. A short read runs at once, between other requests; a long one must go to a blocking
//! thread ([`Published::try_range`] decides).

use super::{members::Members, request_error::RequestError};
use crate::{
    kv::{
        KeyRange, KvError,
        command::{AlarmKind, RangeDone, RangeQuery, SortOrder, SortTarget, Txn, TxnDone, TxnOp},
        hash::{HistoryHash, HistoryHasher},
        records::ReadError,
        view::View,
    },
    storage::db::DbReader,
    types::{LogIndex, LogPosition, MemberId, Rev, Revision},
};
use std::{collections::BTreeSet, ops::ControlFlow, sync::Arc};

/// A range over more keys than this is read on a blocking thread, so that it does not delay other requests.
const INLINE_KEYS_MAX: u64 = 512;

/// What the applier publishes after every batch.
#[derive(Debug)]
pub struct Published {
    /// The store.
    pub view: View,
    /// The log position of this state.
    pub applied: LogPosition,
    /// Raised alarms.
    pub alarms: Arc<BTreeSet<(MemberId, AlarmKind)>>,
    /// The members of the cluster.
    pub members: Arc<Members>,
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
}

impl Published {
    /// What counts against the quota: all records in the database, history that is not compacted included. Space in the file that
    /// compactions have freed does not count, since it is used again. etcd: counts the file, with the pages around records, as
    /// of its newest commit, so it refuses no later than this does. What the database does not hold yet does not count in either;
    /// here it has a bound of its own.
    pub fn quota_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// Reads keys, if that is quick enough to be done between other requests.
    pub fn try_range(&self, query: &RangeQuery) -> Result<Option<RangeDone>, RequestError> {
        if is_small(&self.view, query) {
            return Ok(Some(self.view.range(query)??));
        }
        Ok(None)
    }

    /// Runs a transaction that only reads, under the same condition.
    pub fn try_read_txn(&self, txn: &Txn) -> Result<Option<TxnDone>, RequestError> {
        let small = |op: &TxnOp| match op {
            TxnOp::Range(query) => is_small(&self.view, query),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) | TxnOp::Empty => true,
        };
        if txn.branches().all(small) {
            return Ok(Some(self.view.read_txn(txn)??));
        }
        Ok(None)
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
