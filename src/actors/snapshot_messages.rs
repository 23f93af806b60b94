//! The messages between the Raft node and the actor [`Snapshots`](super::snapshots::Snapshots): which member needs a snapshot,
//! how its transfer ended, and which received snapshot is to be installed.

use super::members::Members;
use crate::{
    kv::{index::Index as Tree, machine::LoadedState},
    net::SnapshotError,
    raft::Membership,
    storage::db::{Db, DbError},
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use std::time::Duration;
use tokio::sync::oneshot;

/// Sends a snapshot of the newest commit to a member. Answered by [`TransferEnded`], always.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct SendSnapshotTo {
    pub to: MemberId,
}

/// How the transfer of a snapshot ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct TransferEnded {
    pub to: MemberId,
    /// The log position that the receiver has now.
    pub outcome: Result<LogIndex, TransferError>,
}

/// Why a snapshot did not reach its receiver.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The stream ended, or the receiver refused it.
    #[error(transparent)]
    Stream(#[from] SnapshotError),
    /// This member's database cannot be read.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The other side neither sent nor took a chunk for too long.
    #[error("the other side was silent for {}s", .0.as_secs())]
    Silent(Duration),
    /// As many transfers as are allowed at once are under way.
    #[error("{0} snapshots are on their way already")]
    Busy(usize),
    /// There is no connection to the receiver, or the node is stopping.
    #[error("this member has no connections")]
    NoPeers,
}

/// Installs a received snapshot as this member's state. The reply comes when it is installed, or says why it is not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct InstallSnapshot {
    pub received: Box<ReceivedSnapshot>,
    pub done: oneshot::Sender<Result<(), String>>,
}

/// A received snapshot: a database that is open and verified, under a temporary name, and the state loaded from it.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    pub db: Db,
    /// The state besides keys and records.
    pub loaded: LoadedState,
    /// The index of its records.
    pub tree: Tree,
    /// The membership at its log position.
    pub membership: Membership,
    /// The same, as front ends want it.
    pub members: Members,
}
