//! Messages that the Raft node sends itself when a task that it started has ended.

use super::pending_proposals::Handed;
use crate::{
    kv::state_hash::StateHash,
    net::ForwardError,
    raft::ReadLog,
    storage::{starts::Starts, value_file::ValueFileError, wal::WalError},
    types::{Entry, LogIndex, MemberId, Term},
};
use actix::prelude::*;
use bytes::Bytes;

/// The leader has answered what was forwarded to it in a term, or it cannot.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardAnswered {
    pub(super) forwarded: Forwarded,
    pub(super) outcome: Result<Bytes, ForwardError>,
}

/// What was asked of another member.
#[derive(Debug)]
pub(super) enum Forwarded {
    /// Proposals, by their numbers.
    Proposals { handed: Handed, ids: Vec<u64> },
    /// The question, in this term, what of them is in the log.
    Question(Term),
    /// That this member begins, to this one, which may not be a leader.
    Start(MemberId),
}

/// The file of starts is written, or it cannot be.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StartsWritten(pub(super) Result<Starts, ValueFileError>);

/// A member has sent the hash of its state after an entry.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct HashReceived {
    pub(super) by: MemberId,
    pub(super) index: LogIndex,
    pub(super) hash: StateHash,
}

/// A read of the log has ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LogReadEnded {
    pub(super) read: ReadLog,
    pub(super) outcome: Result<Vec<Entry>, WalError>,
}
