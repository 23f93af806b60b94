//! Why a node does not carry out a request.

use super::membership_change::ChangeRefusal;
use crate::{
    auth::AuthError,
    kv::{KvError, records::ReadError},
};
use tokio::sync::oneshot;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The data model refuses it, on every member.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// It is over the limit on the size of a replicated request.
    #[error("request is too large: {bytes} bytes, at most {max}")]
    TooLarge { bytes: usize, max: usize },
    /// It was carried out, and its answer is longer than one may be.
    #[error("the answer takes more than {bytes_max} bytes")]
    AnswerTooLarge { bytes_max: usize },
    /// Too many requests are in flight; try again later.
    #[error("too many requests")]
    TooManyRequests,
    /// There was no outcome in time; the request may still be carried out.
    #[error("request timed out")]
    TimedOut,
    /// As [`RequestError::TimedOut`], and the leader changed shortly after the request came.
    #[error("request timed out, possibly due to previous leader failure")]
    TimedOutLeaderFailed,
    /// As [`RequestError::TimedOut`], and the leader, or a quorum, is out of reach.
    #[error("request timed out, possibly due to connection lost")]
    TimedOutConnectionLost,
    /// There was no leader during all of its time; it was not carried out.
    #[error("deadline exceeded while there was no leader")]
    DeadlineNoLeader,
    /// There is no leader now, and the caller asked for an error in that case.
    #[error("no leader")]
    NoLeader,
    /// Only the leader can do this.
    #[error("not leader")]
    NotLeader,
    /// Leadership goes to voters only.
    #[error("bad leader transferee")]
    BadTransferee,
    /// The change of the membership is refused.
    #[error(transparent)]
    Change(#[from] ChangeRefusal),
    /// This member has no vote; it serves only serializable reads and its status.
    #[error("rpc not supported for learner")]
    Learner,
    /// The node is stopping; the request was not carried out, unless it was proposed before.
    #[error("server stopped")]
    Stopped,
    /// This member cannot read its own records.
    #[error(transparent)]
    Unreadable(#[from] ReadError),
}

impl From<AuthError> for RequestError {
    fn from(error: AuthError) -> Self {
        Self::Kv(KvError::Auth(error))
    }
}

/// Answers a caller. One that has gone away in the meantime does not matter.
pub(super) fn answer<T>(reply: oneshot::Sender<Result<T, RequestError>>, error: RequestError) {
    drop(reply.send(Err(error)));
}
