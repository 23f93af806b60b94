//! What is asked about leases: of the lease manager beside a front end, of the leader by another member, and of the applier.

use crate::{
    auth::{AuthError, Caller, grants::Right},
    kv::lease_clock::TimeLeft,
    types::{LeaseId, MemberId},
};
use actix::prelude::*;
use bincode::Encode;
use bytes::Bytes;
use std::{fmt, pin::Pin, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// What only the lease manager of the leader can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountdownCall {
    /// Start the lease's countdown again, from its whole time to live.
    Renew(LeaseId),
    /// Read the time that the lease has left.
    TimeLeft(LeaseId),
}

/// The outcome of a [`CountdownCall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountdownAnswer {
    /// An applied entry renewed the lease.
    Renewed {
        /// Its time to live, in seconds.
        ttl_secs: i64,
    },
    /// The time that the lease has left, if this member still leads in the term that the answer names.
    Left(TimeLeft),
    Ended,
    /// There is none as far as this member has applied.
    Unknown,
    /// This member does not lead, or cannot tell yet.
    TryAgain,
}

/// A call that waits for its answer. It holds its place among the calls that may wait at all.
#[derive(Debug)]
pub struct PendingCall {
    pub call: CountdownCall,
    pub reply: oneshot::Sender<CountdownAnswer>,
    /// Given back with the answer.
    pub place: OwnedSemaphorePermit,
}

impl PendingCall {
    /// Whether the caller no longer waits for the answer.
    pub fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    /// Gives the answer. A caller that has gone away in the meantime does not matter.
    pub fn answer(self, answer: CountdownAnswer) {
        self.reply.send(answer).unwrap_or_default();
    }
}

/// Questions of a front end, as many as came in one turn.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AskLeases {
    /// Renewals, and questions for the time left.
    pub calls: Vec<PendingCall>,
    /// Callers who ask which leases exist. The answer holds what was visible when they asked.
    pub lists: Vec<oneshot::Sender<Arc<[LeaseId]>>>,
}

/// Asks whether a caller may do something to every key that is attached to a lease, and maybe which keys those are, as of the
/// newest applied entry. Nothing if there is no such lease. etcd: that needs no right.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Option<Vec<Bytes>>, AuthError>")]
pub struct AskLeaseKeys {
    pub id: LeaseId,
    pub caller: Caller,
    pub right: Right,
    /// Without this the list is empty: a lease may have very many keys.
    pub list: bool,
}

/// What only the leader can answer, as it travels between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, bincode::Decode)]
pub enum LeaseCall {
    Renew(LeaseId),
    /// How much time has the lease left?
    TimeLeft(LeaseId),
}

/// The leader's answer to a [`LeaseCall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, bincode::Decode)]
pub enum LeaseAnswer {
    Renewed {
        /// Its time to live, in seconds.
        ttl_secs: i64,
    },
    Time {
        /// What is left, in whole seconds.
        left_secs: i64,
        /// What was granted, in seconds.
        ttl_secs: i64,
    },
    /// There is no such lease, or it has ended.
    NoLease,
    /// The member that was asked does not lead, or cannot tell yet.
    TryAgain,
}

/// Carries calls to the leader and its answers back, in the order of the calls. A call that finds no answer (the leader is out of
/// reach, or leads no more) is answered [`LeaseAnswer::TryAgain`]; the answer comes within the timeout of requests.
///
/// The member that receives them has its [`LeaseServer`] answer.
#[derive(Debug, Message)]
#[rtype(result = "Vec<LeaseAnswer>")]
pub struct ForwardLeaseCalls {
    /// Who leads, as far as the sender knows.
    pub leader: MemberId,
    pub calls: Vec<LeaseCall>,
}

type Serving = Pin<Box<dyn Future<Output = Vec<LeaseAnswer>> + Send>>;

/// Answers the calls that other members have forwarded: the lease desk of a front end, as the Raft node knows it.
#[derive(Clone)]
pub struct LeaseServer(Arc<dyn Fn(Vec<LeaseCall>) -> Serving + Send + Sync>);

impl LeaseServer {
    pub fn new<F>(serve: impl Fn(Vec<LeaseCall>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<LeaseAnswer>> + Send + 'static,
    {
        Self(Arc::new(move |calls| -> Serving { Box::pin(serve(calls)) }))
    }

    /// The answers, in the order of the calls.
    pub(super) async fn serve(&self, calls: Vec<LeaseCall>) -> Vec<LeaseAnswer> {
        (self.0)(calls).await
    }
}

impl fmt::Debug for LeaseServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseServer")
    }
}
