//! What a node answers to a request that it does not carry out.

use super::membership_change::ChangeRefusal;
use crate::kv::{KvError, range::ReadError};
use tokio::sync::oneshot;

/// Why a request got no answer from the store, or which refusal it got.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The data model refuses it; every member would.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// It is over the limit on the size of a replicated request.
    #[error("request is too large: {bytes} bytes, at most {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too much is under way; try again later.
    #[error("too many requests")]
    TooManyRequests,
    /// It was not finished in time; it may still happen.
    #[error("request timed out")]
    TimedOut,
    /// As [`RequestError::TimedOut`], and the leader changed shortly after the request came.
    #[error("request timed out, possibly due to previous leader failure")]
    TimedOutLeaderFailed,
    /// As [`RequestError::TimedOut`], and the leader, or a quorum, is out of reach.
    #[error("request timed out, possibly due to connection lost")]
    TimedOutConnectionLost,
    /// There was no leader to take it for the whole of its time; it did not happen.
    #[error("deadline exceeded while there was no leader")]
    DeadlineNoLeader,
    /// There is no leader now, and the caller asked to be told.
    #[error("no leader")]
    NoLeader,
    /// Only the leader does this.
    #[error("not leader")]
    NotLeader,
    /// Leadership goes to voters only.
    #[error("bad leader transferee")]
    BadTransferee,
    /// The membership stays as it is.
    #[error(transparent)]
    Change(#[from] ChangeRefusal),
    /// This member has no vote, and serves little.
    #[error("rpc not supported for learner")]
    Learner,
    /// The leader changed while the request was under way.
    #[error("leader changed")]
    LeaderChanged,
    /// The node is stopping; the request did not happen, unless it was proposed before.
    #[error("server stopped")]
    Stopped,
    /// This member cannot read its own records.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

/// Answers a caller. One that has gone away in the meantime does not matter.
pub(super) fn answer<T>(reply: oneshot::Sender<Result<T, RequestError>>, error: RequestError) {
    drop(reply.send(Err(error)));
}
