//! Store: the node as an actor, for programs that embed one and build on it in messages.
//!
//! It is a front end like the client port: each message goes through [`Requests`], with the same checks, order and durability,
//! and is answered once its outcome is known. It owns no state, so several can run, on any arbiter.

use super::{
    leases::{LeaseGranted, LeaseTime},
    request_error::RequestError,
    requests::Requests,
};
use crate::{
    kv::command::{
        DeleteRange, DeleteRangeDone, Put, PutDone, RangeDone, RangeQuery, Txn, TxnDone,
    },
    types::{LeaseId, Revision},
};
use actix::prelude::*;
use std::sync::Arc;

/// Messages that may wait. The requests they become are bounded by [`Requests`].
const MAILBOX_MAX: usize = 1_024;

/// A front end for actors: it takes requests as messages.
#[derive(Debug)]
pub struct Store {
    requests: Requests,
}

impl Store {
    /// A front end of the node behind `requests`.
    pub fn new(requests: Requests) -> Self {
        Self { requests }
    }

    /// The requests that it makes, for handlers of messages that are defined elsewhere.
    pub(crate) fn requests(&self) -> Requests {
        self.requests.clone()
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

/// Compacts the history before a revision. Answered with the store's revision.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Revision, RequestError>")]
pub struct CompactHistory {
    /// Reads below it fail from now on.
    pub revision: Revision,
    /// Answer only once this member has removed the data.
    pub physical: bool,
}

/// Creates a lease; see [`Requests::grant_lease`]. Answered as [`PutKey`] is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<LeaseGranted, RequestError>")]
pub struct GrantLease {
    /// Its id; without one the store chooses it.
    pub id: Option<LeaseId>,
    /// Its time to live, in seconds.
    pub ttl_secs: i64,
}

/// Ends a lease and deletes its keys. Answered with the store's revision, as [`PutKey`] is.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Revision, RequestError>")]
pub struct RevokeLease {
    pub id: LeaseId,
}

/// Renews a lease. Answered with its time to live in seconds, which counts from when this was sent; with `None` if the lease is
/// gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Option<i64>, RequestError>")]
pub struct KeepLeaseAlive {
    pub id: LeaseId,
}

/// How much time a lease has left, and which keys are attached to it; `None` if there is no such lease.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Option<LeaseTime>, RequestError>")]
pub struct ReadLeaseTime {
    pub id: LeaseId,
    /// Whether to list its keys.
    pub keys: bool,
}

/// Which leases exist, ascending, as far as this member has applied.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Result<Arc<[LeaseId]>, RequestError>")]
pub struct ListLeases;

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

impl Handler<GrantLease> for Store {
    type Result = ResponseFuture<Result<LeaseGranted, RequestError>>;

    fn handle(&mut self, grant: GrantLease, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.grant_lease(grant.id, grant.ttl_secs).await })
    }
}

impl Handler<RevokeLease> for Store {
    type Result = ResponseFuture<Result<Revision, RequestError>>;

    fn handle(&mut self, revoke: RevokeLease, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.revoke_lease(revoke.id).await })
    }
}

impl Handler<KeepLeaseAlive> for Store {
    type Result = ResponseFuture<Result<Option<i64>, RequestError>>;

    fn handle(&mut self, keep: KeepLeaseAlive, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.keep_alive(keep.id).await })
    }
}

impl Handler<ReadLeaseTime> for Store {
    type Result = ResponseFuture<Result<Option<LeaseTime>, RequestError>>;

    fn handle(&mut self, read: ReadLeaseTime, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.time_to_live(read.id, read.keys).await })
    }
}

impl Handler<ListLeases> for Store {
    type Result = ResponseFuture<Result<Arc<[LeaseId]>, RequestError>>;

    fn handle(&mut self, _: ListLeases, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests.clone();
        Box::pin(async move { requests.leases().await })
    }
}
