//! Why a node does not start. Each text says what an operator can do about it.

use super::data_directory::DirectoryError;
use crate::{
    actors::restore::RestoreError,
    config::ConfigError,
    net::{NetError, TlsError},
    raft::{InitialStateError, MembershipError},
    storage::{db::DbError, member::MemberError, real_disk::DiskError, wal::WalError},
};
use std::io;

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be opened or locked.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The data directory holds something else than one member's complete data.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file `member` cannot be read or written.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The database cannot be opened.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The state in the database cannot be read.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The log cannot be opened.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log and the database do not fit together.
    #[error("the data directory cannot be continued: {0}")]
    Raft(#[from] InitialStateError),
    /// The stored membership is malformed.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The data directory is another member's.
    #[error(
        "the data directory belongs to member {holds:?}, not to {name:?}: give each member a data_dir of its own; a member's \
         name never changes"
    )]
    OtherMember {
        /// The name in the data directory.
        holds: String,
        /// This member's name.
        name: String,
    },
    /// The port for peers cannot be opened, or a peer cannot be asked.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The settings do not go with what the data directory holds.
    #[error(transparent)]
    Config(ConfigError),
    /// A member that joins knows no other member.
    #[error(
        "cannot join a cluster: cluster.initial names no other member that could be asked (and peer.cert, peer.key and peer.ca, \
         or peer.insecure, must be set)"
    )]
    NobodyToAsk,
    /// The cluster does not have this member. A quorum confirmed it.
    #[error(
        "cannot join the cluster: it has no member at {address}; add this member first (etcdctl member add {name} \
         --peer-urls={scheme}://{address}), then start it with cluster.state = \"existing\""
    )]
    NotAdded {
        /// This member's name.
        name: String,
        /// The address at which it says others reach it.
        address: String,
        /// `http` or `https`.
        scheme: &'static str,
    },
    /// The member has run before, and its directory is new. A quorum confirmed it.
    #[error(
        "member {name:?} has been part of this cluster already, and its data directory is gone or new: its vote and the \
         entries it acknowledged are lost with it. Remove the member, and add it anew"
    )]
    HasRun {
        /// This member's name.
        name: String,
    },
    /// The file `refill` cannot be read or removed, or the database cannot be renamed.
    #[error("cannot put the database aside: {0}")]
    Refill(io::Error),
    /// The membership is not known, so the members that could send a snapshot are not either.
    #[error(
        "this member's database is to be replaced by a snapshot, but it cannot be read and no member in cluster.initial answers: \
         start this member again once one can be reached"
    )]
    RefillUnknown,
    /// No other member could send a snapshot.
    #[error(
        "this member's database is to be replaced by a snapshot, but it is the only member: restore it from a backup, or remove \
         the file named refill from its data directory to start with the database as it is"
    )]
    RefillAlone,
    /// The log of a member that waits for a snapshot does not reach its commit index.
    #[error(
        "this member waits for a snapshot, but its log holds no entry of which it is known that it was committed: remove this \
         member, delete its data directory and add it anew"
    )]
    RefillLog,
    /// `quorate recover` was given a member whose state is elsewhere.
    #[error(
        "member {name} waits for a snapshot: its database was put aside as db/revisions.redb.aside, and the one it has now is \
         empty. Recover from another member"
    )]
    RecoveryWithoutState {
        /// The member's name.
        name: String,
    },
    /// The port for clients cannot be opened.
    #[error("cannot listen for clients on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The node's thread ended before the node was up.
    #[error("the node's thread ended while starting")]
    Thread,
}
