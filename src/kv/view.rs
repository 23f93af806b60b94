//! What readers get: an immutable state of the whole store at one revision.
//!
//! A view is the index's snapshot, the tail of records that are not yet in the database, and a read transaction of the database
//! that holds all others. It never changes, so readers neither wait for the applier nor hold it up, and a compaction that
//! runs meanwhile takes nothing away from it.

use super::{
    KeyRange, KvError,
    command::{EncodedKv, RangeDone, RangeQuery, Txn, TxnDone},
    index::Snapshot,
    keys::Keys,
    range::{self, ReadError, Records, Window},
    runs::Runs,
    txn,
};
use crate::types::{Record, Rev, Revision};
use std::{ops::ControlFlow, sync::Arc};

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

    /// Keys of a range at a revision; nothing stands for the newest.
    pub fn count(&self, range: &KeyRange, at: Option<Revision>) -> i64 {
        range::count(&self.keys, range, at)
    }

    /// The first `limit` results of a range at a revision inside the window, without counting the rest.
    pub fn page(
        &self,
        range: &KeyRange,
        at: Revision,
        limit: usize,
        keys_only: bool,
    ) -> Result<Page, ReadError> {
        let mut revs = Vec::new();
        let mut take = |rev: Rev| {
            revs.push(rev);
            if revs.len() > limit {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        if at == self.window.newest {
            self.keys.visit(range, &mut |_, meta| take(meta.modified));
        } else {
            self.keys.visit_at(range, at, &mut |_, rev| take(rev));
        }
        let more = revs.len() > limit;
        revs.truncate(limit);
        let read = |rev: Rev| {
            let kv = self.get(rev)?;
            if keys_only {
                range::without_value(rev, &kv)
            } else {
                Ok(kv)
            }
        };
        let kvs = revs.into_iter().map(read).collect::<Result<_, _>>()?;
        Ok(Page { kvs, more })
    }

    /// Runs a transaction that only reads.
    pub fn read_txn(&self, txn: &Txn) -> Result<Result<TxnDone, KvError>, ReadError> {
        txn::read(txn, &self.keys, self, self.window)
    }
}

/// A part of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The results.
    pub kvs: Vec<EncodedKv>,
    /// Whether more follow.
    pub more: bool,
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
        f.debug_struct("View")
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}
