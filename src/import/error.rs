//! Why the data of an etcd are not imported. The etcd's directory is unchanged in every case.

use crate::{
    actors::load::LoadStateError,
    kv::{KvError, records::ReadError},
    storage::db::DbError,
};
use quorate_etcd_files::{messages::MessageError, store::StoreError, wal::WalError};
use std::{io, path::PathBuf};

/// What helps whatever an entry is: an etcd that stops in order has its whole log in its database.
const LET_ETCD_APPLY: &str = "let the etcd judge it: start it on a copy of this directory, stop it with SIGTERM, and import the \
                              copy, whose database has the entry then";

/// Why a data directory is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The log or the directory cannot be read, or an etcd runs on it.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The database cannot be read.
    #[error("{}: {source}", path.display())]
    Database {
        path: PathBuf,
        /// What is wrong with it.
        source: Box<StoreError>,
    },
    #[error("cannot read {}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The log is another member's, or its end is gone.
    #[error(
        "the database has the log's entries up to {applied}, but the log {} ends at {last}: it is not this database's, or a part \
         of it is lost. Import another member's directory, or restore a snapshot", directory.display()
    )]
    LogTooShort {
        directory: PathBuf,
        applied: u64,
        last: u64,
    },
    /// One member's log does not say whether its last entries were committed.
    #[error(
        "this member's log does not say whether its last {count} entries ({first} to {last}, the last of term {term}) were \
         committed, since the cluster had other voters: acknowledged writes may be among them. Import the member whose log has \
         the newest last term and index; then either --keep-uncommitted, which keeps everything that was acknowledged, or \
         --drop-uncommitted, if another member's log shows that they were replaced"
    )]
    Uncommitted {
        count: u64,
        first: u64,
        last: u64,
        term: u64,
    },
    /// The directory is not what it was when the import began.
    #[error(
        "{} was changed while it was read: an etcd ran on it meanwhile. Stop it, and run the command again", path.display()
    )]
    Changed { path: PathBuf },
    /// An entry of the log.
    #[error("entry {index} of the etcd's log: {fault}")]
    Entry {
        index: u64,
        /// What is wrong with it.
        fault: EntryFault,
    },
    /// The database that is being made cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadStateError),
    /// It cannot be written.
    #[error(transparent)]
    Db(#[from] DbError),
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why an entry of the log has no certain meaning here.
#[derive(Debug, thiserror::Error)]
pub enum EntryFault {
    /// It is of a later etcd, or damaged.
    #[error("{0}. It is not known what it does; {LET_ETCD_APPLY}")]
    Message(#[from] MessageError),
    /// A change of the members of a kind that no etcd proposes.
    #[error("it is a ConfChangeV2, which no etcd writes; {LET_ETCD_APPLY}")]
    ChangeV2,
    #[error("it asks for nothing; {LET_ETCD_APPLY}")]
    AsksNothing,
    #[error("it asks for {first} and for {second} at once; {LET_ETCD_APPLY}")]
    AsksTwice {
        first: &'static str,
        second: &'static str,
    },
    /// A field that is decoded and has no translation: a mistake in this program.
    #[error("it has a field beside {field} that is not translated; {LET_ETCD_APPLY}")]
    NotTranslated { field: &'static str },
    /// Such requests are refused before the log.
    #[error("its {field} is one that no etcd lets into its log ({source}); {LET_ETCD_APPLY}")]
    Impossible {
        field: &'static str,
        source: KvError,
    },
    #[error("its {field} has the unknown number {number}; {LET_ETCD_APPLY}")]
    UnknownNumber { field: &'static str, number: i32 },
    #[error("its {field} is no base64; {LET_ETCD_APPLY}")]
    Password { field: &'static str },
    /// Old versions stored a permission whose range makes no sense, later ones refuse it.
    #[error(
        "role_grant_permission (1203) for role {role:?} has an empty key or a range that ends before it begins, which versions \
         of etcd judge differently; {LET_ETCD_APPLY}"
    )]
    PermissionRange { role: String },
    /// A transaction that is refused now, and that old versions let pass.
    #[error(
        "a transaction of user {user:?} has nested requests, previous values or leases that the user has no permission for. \
         Versions of etcd before 2026 did not check these, later ones refuse it; {LET_ETCD_APPLY}"
    )]
    TxnPermissions { user: String },
    /// etcd up to 3.5 forgets permissions while an alarm is raised.
    #[error(
        "the request of user {user:?} is not permitted, but an alarm is raised, and an etcd up to 3.5 does not check \
         permissions then unless it was restarted since; {LET_ETCD_APPLY}"
    )]
    AlarmPermissions { user: String },
    /// etcd up to 3.5 forgets one alarm for another.
    #[error(
        "the alarm CORRUPT is raised, which an etcd up to 3.5 does not always heed; {LET_ETCD_APPLY}"
    )]
    CorruptUnsure,
    /// Patch versions judge it differently, and the patch version is not in the data.
    #[error(
        "a transaction has puts only in nested transactions while the alarm NOSPACE is raised. etcd up to 3.5.32, 3.6.13 and \
         3.7.0 carries it out, later ones refuse it: say which with --nested-puts-passed or --nested-puts-refused"
    )]
    NestedPuts,
}
