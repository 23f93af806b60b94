//! Why nothing was restored. Whatever was written by then is removed, or marked as unfinished.

use crate::{
    actors::load::LoadStateError,
    import::ImportError,
    node::{data_directory::DirectoryError, error::StartError},
    storage::db::DbError,
};
use quorate_etcd_files::store::{REVISION_MAX, StoreError};
use std::{io, path::PathBuf};

/// Why a snapshot file cannot become a member's data. The file is unchanged, and no start accepts what was made of it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file cannot be opened.
    #[error("cannot read {}: {source}", path.display())]
    Open {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    #[error("{} is a directory: name the file of a snapshot, as `etcdctl snapshot save` writes it", path.display())]
    IsDirectory { path: PathBuf },
    /// It is not a snapshot, or damaged.
    #[error("cannot restore {}: {source}", path.display())]
    Source {
        path: PathBuf,
        /// What is wrong, and where.
        source: Box<StoreError>,
    },
    /// The same, where the file is not known.
    #[error(transparent)]
    Store(Box<StoreError>),
    #[error(
        "{} has no SHA-256 at its end, as a snapshot's file has: it was cut off, or it is a copy of an etcd's member/snap/db. \
         If you are sure that it is whole, run the command again with --skip-hash-check", path.display()
    )]
    NoHash { path: PathBuf },
    /// The file was written to meanwhile.
    #[error("{} changed while it was read: copy it, and restore the copy", path.display())]
    Changed { path: PathBuf },
    /// Names are texts in the API, so that no client could use this one.
    #[error("the name of a {what} is not UTF-8: \"{name}\"")]
    Name { what: &'static str, name: String },
    #[error(
        "lease {id:x} has a time to live of {ttl} seconds, and only 1 to 9000000000 are possible"
    )]
    LeaseTime { id: i64, ttl: i64 },
    #[error("a lease has the id 0, which stands for no lease")]
    LeaseId,
    /// Whether the data are right is doubtful.
    #[error(
        "the alarm CORRUPT was raised for member {member:x}: its data may differ from those of the other members. Restore a \
         snapshot of another member; or run the command again with --ignore-corrupt-alarm, and this snapshot counts as right"
    )]
    Corrupt { member: u64 },
    #[error(
        "revision {newest} cannot be raised by {by}: the newest revision may be {REVISION_MAX} at most, so that changes are \
         possible after it"
    )]
    Revision { newest: i64, by: u64 },
    /// There is something in the directory.
    #[error(
        "{} holds {found:?}: restore into a directory that is empty or does not exist yet", path.display()
    )]
    NotEmpty {
        path: PathBuf,
        /// The first name in it.
        found: String,
    },
    /// An earlier run into the directory did not finish.
    #[error(
        "{} holds the result of a `quorate restore` or `quorate import` that did not finish: delete it, and run the command \
         again", path.display()
    )]
    Unfinished { path: PathBuf },
    #[error("cannot look into {}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// A fault of this machine, or of this program.
    #[error(
        "the database that was written holds {written}, but {read} was read: the disk or the memory of this machine may be at \
         fault"
    )]
    Differs {
        /// Hashes of all records, leases, users and roles.
        written: String,
        read: String,
    },
    /// The log of an etcd, or what it does, is not clear.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The data directory cannot be made.
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Db(#[from] DbError),
    /// No start could load what was restored.
    #[error("what was restored cannot be loaded: {0}")]
    Load(#[from] LoadStateError),
}

impl From<StoreError> for RestoreError {
    fn from(source: StoreError) -> Self {
        Self::Store(Box::new(source))
    }
}
