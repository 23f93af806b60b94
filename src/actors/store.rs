//! Store: the node as an actor, for programs that embed one and build on it in messages.
//!
//! It is a front end like the client port: each message takes the same way through [`Requests`], with the same checks, order and
//! durability, and is answered once its outcome is known. It owns nothing, so several may run, on any arbiter.

use super::requests::{RequestError, Requests};
use crate::{
    kv::command::{
        DeleteRange, DeleteRangeDone, Put, PutDone, RangeDone, RangeQuery, Txn, TxnDone,
    },
    types::Revision,
};
use actix::prelude::*;

/// Messages that may wait. The requests they become are bounded by [`Requests`].
const MAILBOX_MAX: usize = 1_024;

/// A front end that speaks messages.
#[derive(Debug)]
pub struct Store {
    requests: Requests,
}

impl Store {
    /// A front end of the node behind `requests`.
    pub fn new(requests: Requests) -> Self {
        Self { requests }
    }
}

/// Writes one key. Answered when a quorum has it on disk and reads see it.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<PutDone, RequestError>")]
pub struct PutKey(pub Put);

/// Deletes the keys of a range, in one revision. Answered as [`PutKey`] is.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<DeleteRangeDone, RequestError>")]
pub struct DeleteKeys(pub DeleteRange);

/// Compares and then reads or writes, atomically. Answered as [`PutKey`] is, or, if it only reads, as [`ReadRange`].
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<TxnDone, RequestError>")]
pub struct RunTxn(pub Txn);

/// Reads keys. Unless the query says otherwise, the answer holds every write acknowledged, anywhere, before this was sent.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<RangeDone, RequestError>")]
pub struct ReadRange(pub RangeQuery);

/// Gives up the history before a revision. Answered with the store's revision.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Revision, RequestError>")]
pub struct CompactHistory {
    /// Reads below it fail from now on.
    pub revision: Revision,
    /// Answer only once this member has removed the data.
    pub physical: bool,
}

impl Actor for Store {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<PutKey> for Store {
    type Result = ResponseFuture<Result<PutDone, RequestError>>;

    fn handle(&mut self, PutKey(put): PutKey, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.put(put).await })
    }
}

impl Handler<DeleteKeys> for Store {
    type Result = ResponseFuture<Result<DeleteRangeDone, RequestError>>;

    fn handle(&mut self, DeleteKeys(delete): DeleteKeys, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.delete_range(delete).await })
    }
}

impl Handler<RunTxn> for Store {
    type Result = ResponseFuture<Result<TxnDone, RequestError>>;

    fn handle(&mut self, RunTxn(txn): RunTxn, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.txn(txn).await })
    }
}

impl Handler<ReadRange> for Store {
    type Result = ResponseFuture<Result<RangeDone, RequestError>>;

    fn handle(&mut self, ReadRange(query): ReadRange, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.range(query).await })
    }
}

impl Handler<CompactHistory> for Store {
    type Result = ResponseFuture<Result<Revision, RequestError>>;

    fn handle(&mut self, compact: CompactHistory, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.compact(compact.revision, compact.physical).await })
    }
}
