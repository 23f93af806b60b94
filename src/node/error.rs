//! The errors of a start. Each text says what an operator can do about it.

use super::data_directory::DirectoryError;
use crate::{
    actors::{jwt_keys::KeyFileError, load::LoadStateError},
    audit::AuditError,
    config::ConfigError,
    net::NetError,
    raft::{InitialStateError, MembershipError},
    storage::{
        db::DbError,
        encryption::{EncryptionError, KeySourceError, KeyringError},
        real_disk::DiskError,
        value_file::ValueFileError,
        wal::WalError,
    },
    tls::TlsError,
};
use std::{io, path::PathBuf};

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be opened or locked.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Whoever began the start has cancelled it.
    #[error("the start was cancelled")]
    Cancelled,
    /// The data directory holds something else than one member's complete data.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file `member` or `starts` cannot be read or written.
    #[error(transparent)]
    ValueFile(#[from] ValueFileError),
    /// The database cannot be opened.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The state in the database cannot be read.
    #[error(transparent)]
    Load(#[from] LoadStateError),
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
        name: String,
    },
    /// The port for peers cannot be opened, or a peer cannot be asked.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A key of JWT cannot be used.
    #[error(transparent)]
    Jwt(#[from] KeyFileError),
    /// There is no key to decrypt or encrypt the data directory with.
    #[error(transparent)]
    EncryptionKey(#[from] KeySourceError),
    /// The data directory cannot be used with encryption, or without it.
    #[error(transparent)]
    Encryption(#[from] EncryptionError),
    /// Others can read the key, and the settings refuse that.
    #[error(
        "others can read the key of encryption.key_file, which tls.refuse_readable_keys refuses: chmod 600 {}", path.display()
    )]
    ReadableEncryptionKey { path: PathBuf },
    /// The audit log cannot begin.
    #[error(transparent)]
    Audit(#[from] AuditError),
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
        name: String,
        /// The address at which it says others reach it.
        address: String,
        /// `http` or `https`.
        scheme: &'static str,
    },
    /// The member has run before, and its directory is new. A quorum confirmed it.
    #[error(
        "member {name:?} has been part of this cluster already, and its data directory is gone or new: its vote and the \
         entries it acknowledged are lost with it. If it has been removed and added anew since, only cluster.state is \
         wrong: start it with \"existing\". Otherwise remove the member (etcdctl member remove), add it anew (etcdctl \
         member add), and start it so"
    )]
    HasRun { name: String },
    /// The member is to join a cluster, and is one of those that form it.
    #[error(
        "member {name:?} is one of those that form this cluster: start it with cluster.state = \"new\". If that is refused \
         because its data directory is lost, remove the member, add it anew, and start it with cluster.state = \"existing\""
    )]
    FormsCluster { name: String },
    /// A restored member of several does not know whom to ask whether it has taken part before.
    #[error(
        "member {name:?} was restored as one of {members}, and cluster.initial does not name all of them: its first start needs \
         the cluster.initial (and peer.cert, peer.key and peer.ca, or peer.insecure) that `quorate restore` was given"
    )]
    RestoredAlone { name: String, members: usize },
    /// A restored member has not asked yet whether it has taken part before, and who the others are cannot be read.
    #[error(
        "member {name:?} was restored, and its first start has to ask the other members whether it has taken part before, but \
         its database, which says who they are, cannot be read: delete the data directory, and restore this member again with \
         the same command. A refill does not help"
    )]
    RestoredUnreadable { name: String },
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
    RecoveryWithoutState { name: String },
    /// The port for clients cannot be opened.
    #[error("cannot listen for clients on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The node's thread ended before the node was up.
    #[error("the node's thread ended while starting")]
    Thread,
}

impl StartError {
    /// Whether a start is refused again until an operator has changed the settings, the data directory or the cluster. Bad
    /// certificates are no such reason: what issues them may replace them, and then the next start succeeds.
    pub fn needs_operator(&self) -> bool {
        match self {
            Self::OtherMember { .. }
            | Self::HasRun { .. }
            | Self::FormsCluster { .. }
            | Self::NobodyToAsk
            | Self::RestoredAlone { .. }
            | Self::RestoredUnreadable { .. }
            | Self::Config(_)
            | Self::Raft(_)
            | Self::Membership(_)
            | Self::RefillAlone
            | Self::RefillLog
            | Self::RecoveryWithoutState { .. } => true,
            Self::Directory(error) => unusable_directory(error),
            Self::ValueFile(error) => unusable_file(error),
            Self::Encryption(error) => match error {
                EncryptionError::KeyringMissing { .. }
                | EncryptionError::NoKey { .. }
                | EncryptionError::NotEncrypted
                | EncryptionError::NothingEncrypted
                | EncryptionError::NoSpace { .. }
                | EncryptionError::Unreadable { .. }
                | EncryptionError::Keyring(
                    KeyringError::Damaged(_)
                    | KeyringError::NewerFormat(_)
                    | KeyringError::WrongKey { .. },
                ) => true,
                EncryptionError::Keyring(KeyringError::Random(_))
                | EncryptionError::Stopped
                | EncryptionError::Io { .. } => false,
            },
            Self::Db(error) => unusable_database(error),
            Self::Load(error) => match error {
                LoadStateError::Db(error) => unusable_database(error),
                LoadStateError::Codec(_)
                | LoadStateError::Members(_)
                | LoadStateError::Record { .. }
                | LoadStateError::Load(_) => true,
            },
            Self::Wal(error) => unusable_log(error),
            // The network, other processes and other members may come round; the disk may be mounted.
            Self::Disk(_)
            | Self::Cancelled
            | Self::Net(_)
            | Self::Tls(_)
            | Self::EncryptionKey(_)
            | Self::ReadableEncryptionKey { .. }
            | Self::Jwt(_)
            | Self::Audit(_)
            | Self::NotAdded { .. }
            | Self::Refill(_)
            | Self::RefillUnknown
            | Self::Listen { .. }
            | Self::Signals(_)
            | Self::Thread => false,
        }
    }
}

fn unusable_directory(error: &DirectoryError) -> bool {
    match error {
        DirectoryError::NotOurs { .. }
        | DirectoryError::Etcd { .. }
        | DirectoryError::UnfinishedRecovery { .. }
        | DirectoryError::UnfinishedRestore { .. }
        | DirectoryError::NoMember { .. }
        | DirectoryError::Incomplete { .. } => true,
        DirectoryError::ValueFile(error) => unusable_file(error),
        DirectoryError::Io { .. } => false,
    }
}

fn unusable_file(error: &ValueFileError) -> bool {
    match error {
        ValueFileError::NewerFormat { .. }
        | ValueFileError::Damaged { .. }
        | ValueFileError::Codec(_) => true,
        ValueFileError::Io { .. } => false,
    }
}

fn unusable_database(error: &DbError) -> bool {
    match error {
        DbError::Damaged { .. }
        | DbError::NewerFormat { .. }
        | DbError::ForeignIdentity { .. }
        | DbError::OutOfOrder { .. } => true,
        DbError::Io { .. } | DbError::Poisoned { .. } | DbError::Redb { .. } => false,
    }
}

fn unusable_log(error: &WalError) -> bool {
    match error {
        WalError::Damaged { .. }
        | WalError::MissingSegment { .. }
        | WalError::NewerFormat { .. }
        | WalError::Foreign { .. }
        | WalError::StartsTooLate { .. } => true,
        WalError::Io { .. } | WalError::Poisoned | WalError::Released { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyring_that_cannot_be_used_needs_an_operator() {
        for (error, needs) in [
            (KeyringError::Damaged("its checksum is wrong"), true),
            (KeyringError::NewerFormat(2), true),
            (KeyringError::Random(io::ErrorKind::Other.into()), false),
        ] {
            let text = error.to_string();
            let error = StartError::Encryption(error.into());
            assert_eq!(error.needs_operator(), needs, "{text}");
        }
    }
}
