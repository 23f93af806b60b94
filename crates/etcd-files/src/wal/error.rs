//! What is wrong with the files of an etcd.

use prost::DecodeError;
use std::{io, path::PathBuf};

/// Why a log, a snapshot file or a data directory is not read. Reading again helps only after `Io` and `Running`.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// A process holds the lock on a file, as an etcd does while it runs.
    #[error("{} is locked by {}: stop the etcd first", file.display(), process(*pid))]
    Running { file: PathBuf, pid: Option<u32> },

    /// Neither a database nor a log is where an etcd has them.
    #[error(
        "{} is no etcd's data directory: it has neither member/snap/db nor member/wal",
        path.display()
    )]
    NotEtcd { path: PathBuf },
    #[error(
        "{} has an etcd's log, but no database: {} is missing",
        path.display(), database.display()
    )]
    NoDatabase { path: PathBuf, database: PathBuf },
    #[error(
        "{} has an etcd's database, but no log: {} has no file *.wal; if the log is elsewhere, name its directory",
        path.display(),
        wal.display()
    )]
    NoLog { path: PathBuf, wal: PathBuf },

    #[error("{} has no file *.wal", directory.display())]
    NoSegment { directory: PathBuf },
    /// A file of the log is gone, or there is one twice.
    #[error("{}: after the log's file {previous:#x}, {wanted:#x} must come", found.display())]
    MissingSegment {
        found: PathBuf,
        previous: u64,
        wanted: u64,
    },
    /// Without its head it is not known whose log it is.
    #[error("{} has no record of the member's and the cluster's id", directory.display())]
    NoMetadata { directory: PathBuf },

    #[error(
        "{}, offset {offset}: the file ends within a frame, but it is not the last one",
        file.display()
    )]
    CutShort { file: PathBuf, offset: u64 },
    #[error(
        "{}, offset {offset}: a frame of {bytes} bytes, at most {max} are read",
        file.display()
    )]
    FrameTooLong {
        file: PathBuf,
        offset: u64,
        bytes: u64,
        max: u64,
    },
    #[error(
        "{}, offset {offset}: a record of {bytes} bytes, where at most {max} are expected",
        file.display()
    )]
    PayloadTooLong {
        file: PathBuf,
        offset: u64,
        bytes: usize,
        max: usize,
    },
    #[error("{}, offset {offset}: not a valid {what}: {source}", file.display())]
    Malformed {
        file: PathBuf,
        offset: u64,
        what: &'static str,
        source: DecodeError,
    },
    /// The record is of a later etcd, or of another kind than it says.
    #[error(
        "{}, offset {offset}: the {what} has the field {number}, which is not known here",
        file.display()
    )]
    UnknownField {
        file: PathBuf,
        offset: u64,
        what: &'static str,
        number: u32,
    },
    #[error("{}, offset {offset}: a record of the unknown kind {kind}", file.display())]
    UnknownRecord {
        file: PathBuf,
        offset: u64,
        kind: i64,
    },
    #[error(
        "{}, offset {offset}: the checksum is {computed:#010x}, the record says {stored:#010x}",
        file.display()
    )]
    BadChecksum {
        file: PathBuf,
        offset: u64,
        stored: u32,
        computed: u32,
    },
    /// A file does not go on where the one before it ends, or an earlier part of the log is damaged.
    #[error(
        "{}, offset {offset}: the log goes on from checksum {stored:#010x}, but is at {computed:#010x}",
        file.display()
    )]
    BrokenChain {
        file: PathBuf,
        offset: u64,
        stored: u32,
        computed: u32,
    },
    #[error("{} does not begin with a checksum record", file.display())]
    NoHead { file: PathBuf },
    #[error("{}, offset {offset}: another member's or cluster's id than before", file.display())]
    MetadataConflict { file: PathBuf, offset: u64 },
    #[error("{}, offset {offset}: entry {found} follows entry {last}", file.display())]
    NotContiguous {
        file: PathBuf,
        offset: u64,
        last: u64,
        found: u64,
    },
    #[error(
        "{}, offset {offset}: another entry {index} although entries up to {commit} were committed",
        file.display()
    )]
    ReplacesCommitted {
        file: PathBuf,
        offset: u64,
        index: u64,
        commit: u64,
    },
    #[error(
        "{}, offset {offset}: the hard state's term is 0, or its term or commit is lower than before",
        file.display()
    )]
    StateGoesBack { file: PathBuf, offset: u64 },
    #[error(
        "{}, offset {offset}: entry {index} is of term {term}, but must be of term {min} or a later one",
        file.display()
    )]
    TermTooLow {
        file: PathBuf,
        offset: u64,
        index: u64,
        term: u64,
        min: u64,
    },
    #[error(
        "{}, offset {offset}: entry {index} is committed and of term {term}, but the hard state is of term {state}",
        file.display()
    )]
    CommittedTerm {
        file: PathBuf,
        offset: u64,
        index: u64,
        term: u64,
        state: u64,
    },
    /// The last entry is none, or the last hard states are lost.
    #[error(
        "{}: the last entry, {index}, is of term {term}, but the last hard state is of term {state}",
        directory.display()
    )]
    TermAhead {
        directory: PathBuf,
        index: u64,
        term: u64,
        state: u64,
    },
    /// No etcd does so a million times between two snapshots.
    #[error(
        "{}, offset {offset}: entries were replaced, or a term began, more than {max} times",
        file.display()
    )]
    TooManyReplacements {
        file: PathBuf,
        offset: u64,
        max: usize,
    },
    /// The member received a snapshot from its leader and had not yet put it in its database's place. Entries that the log has
    /// from before it may never have been committed.
    #[error(
        "{}: entry {first} is wanted, but the log goes on behind a snapshot of index {index} and term {term}: the database to \
         take is snap/{index:016x}.snap.db, or a later one",
        directory.display()
    )]
    BeforeSnapshot {
        directory: PathBuf,
        first: u64,
        index: u64,
        term: u64,
    },
    /// The log does not reach from the entry that is wanted first to the one that is wanted last.
    #[error(
        "{}: entries {first} to {last} are wanted, the log has {has_first} to {has_last}",
        directory.display()
    )]
    MissingEntries {
        directory: PathBuf,
        first: u64,
        last: u64,
        has_first: u64,
        has_last: u64,
    },
    /// The second pass over the log found other entries than the first.
    #[error("{} was changed while it was read", directory.display())]
    Changed { directory: PathBuf },
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"))
}
