//! What readers get: an immutable state of the whole store at one revision.
//!
//! A view is the index's snapshot, the tail of records that are not yet in the database, and a read transaction of the database
//! that holds all others. It never changes, so readers neither wait for the applier nor hold it up, and a compaction that
//! runs meanwhile takes nothing away from it.

use super::{
    KvError,
    command::{EncodedKv, RangeDone, RangeQuery, Txn, TxnDone},
    index::Snapshot,
    range::{self, ReadError, Records, Window},
    runs::Runs,
    txn,
};
use crate::types::{Record, Rev};
use std::sync::Arc;

/// Records that a database holds, readable from any thread.
pub type Stored = Arc<dyn Records + Send + Sync>;

/// The store at one revision.
#[derive(Clone)]
pub struct View {
    /// The revisions that can be read.
    pub window: Window,
    /// The keys.
    pub keys: Snapshot,
    /// Records not yet in the database, or not yet in `stored`.
    pub tail: Runs<Record>,
    /// All other records.
    pub stored: Stored,
}

impl View {
    /// Runs a read. The inner result is the answer; the outer error says that this member cannot read its own records.
    pub fn range(&self, query: &RangeQuery) -> Result<Result<RangeDone, KvError>, ReadError> {
        match self.window.resolve(query.revision) {
            Ok(at) => range::range(&self.keys, self, query, at, self.window.newest).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    /// Runs a transaction that only reads.
    pub fn read_txn(&self, txn: &Txn) -> Result<Result<TxnDone, KvError>, ReadError> {
        txn::read(txn, &self.keys, self, self.window)
    }
}

impl Records for View {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.tail.get(rev) {
            Some(record) => Ok(record.kv.clone()),
            None => self.stored.get(rev),
        }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("window", &self.window).finish_non_exhaustive()
    }
}
