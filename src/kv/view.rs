//! What readers get: an immutable state of the whole store at one revision.
//!
//! A view is the index's snapshot, the tail of records that are not yet in the database, and a read transaction of the database
//! that holds all others. It never changes, so readers neither wait for the applier nor delay it, and a compaction that
//! runs meanwhile removes nothing from it.

use super::{
    KeyRange, KvError,
    command::{EncodedKv, RangeDone, RangeQuery, Txn, TxnDone},
    index::Snapshot,
    keys::Keys,
    range::{self, RevisionWindow},
    records::{ReadError, Records},
    tail::Tail,
    txn,
    watch::{History, Memory, Visit},
};
use crate::types::{Rev, Revision};
use std::{ops::ControlFlow, sync::Arc};

/// Records that a database holds, readable from any thread.
pub type Stored = Arc<dyn StoredRecords + Send + Sync>;

/// Records that can also be read in the order of their revisions.
pub trait StoredRecords: Records {
    /// Visits the records from `from` up to, not including, `to`, in order, until `visit` breaks.
    fn scan(&self, from: Rev, to: Rev, visit: &mut Visit<'_>) -> Result<(), ReadError>;
}

/// The store at one revision.
#[derive(Clone)]
pub struct View {
    /// The revisions that can be read.
    pub window: RevisionWindow,
    /// The keys.
    pub keys: Snapshot,
    /// Records not yet in the database, or not yet in `stored`.
    pub tail: Tail,
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

    /// Keys of a range at a revision; `None` is the newest.
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

    fn visit(&self, rev: Rev, seen: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        match self.tail.get(rev) {
            Some(record) => {
                seen(&record.kv);
                Ok(())
            }
            None => self.stored.visit(rev, seen),
        }
    }
}

impl Memory for View {
    fn compacted(&self) -> Revision {
        self.window.compacted
    }

    fn change_before(&self, key: &[u8], revision: Revision) -> Option<Rev> {
        self.keys.rev_at(key, Revision(revision.0 - 1))
    }

    fn held(&self, rev: Rev) -> Option<EncodedKv> {
        self.tail.get(rev).map(|record| record.kv.clone())
    }
}

impl History for View {
    fn before(&self, key: &[u8], revision: Revision) -> Result<Option<EncodedKv>, ReadError> {
        if revision <= self.window.compacted {
            return Ok(None);
        }
        let change = self.change_before(key, revision);
        change.map(|rev| self.get(rev)).transpose()
    }

    fn scan(
        &self,
        from: Revision,
        through: Revision,
        visit: &mut Visit<'_>,
    ) -> Result<(), ReadError> {
        let (from, to) = (Rev::new(from, 0), Rev::new(through.next(), 0));
        // What is in the tail may be in the database as well by now.
        let tail_from = self.tail.first().map_or(to, |record| record.rev.min(to));
        let mut stopped = false;
        self.stored.scan(from, tail_from, &mut |rev, kind, kv| {
            let flow = visit(rev, kind, kv);
            stopped = flow.is_break();
            flow
        })?;
        for record in self
            .tail
            .iter_from(from)
            .take_while(|record| record.rev < to)
        {
            if stopped || visit(record.rev, record.kind, &record.kv).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View")
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}
