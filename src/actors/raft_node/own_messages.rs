//! Messages that the Raft node sends itself when a task that it started has ended.

use super::pending_proposals::ForwardedProposal;
use crate::{
    kv::state_hash::StateHash,
    net::ForwardError,
    raft::ReadLog,
    storage::wal::WalError,
    types::{Entry, LogIndex, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;

/// The leader has answered forwarded proposals, or it cannot.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardAnswered {
    pub(super) batch: Vec<ForwardedProposal>,
    pub(super) outcome: Result<Bytes, ForwardError>,
}

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
