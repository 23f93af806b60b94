//! The database's errors, and the conversion of redb's.

use super::format::Usage;
use crate::types::{Identity, Rev};
use std::{io, sync::Arc};

/// Why an operation of the database failed. Retrying does not help: after any of these the member stops.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Bytes in the file are not those that were written. No read returned damaged bytes.
    #[error(
        "{file} is damaged: {damage}; keep the file for inspection, then restore this member from a snapshot, \
         or remove its data and let it join again"
    )]
    Damaged {
        /// The file, relative to the data directory.
        file: Arc<str>,
        /// What is wrong, and where.
        damage: Damage,
    },
    /// A newer Quorate wrote the file. Start that version, or a newer one.
    #[error(
        "{file} has database format {found}, this version reads up to {supported}; start a newer version"
    )]
    NewerFormat {
        /// The file, relative to the data directory.
        file: Arc<str>,
        /// The format the file has.
        found: u32,
        /// The newest format this version reads.
        supported: u32,
    },
    /// The file belongs to another member or another cluster.
    #[error("{file} belongs to {found}, not to {expected}")]
    ForeignIdentity {
        /// The file, relative to the data directory.
        file: Arc<str>,
        found: Identity,
        expected: Identity,
    },
    #[error("{file}: {source}")]
    Io {
        /// The file, relative to the data directory.
        file: Arc<str>,
        source: io::Error,
    },
    /// A batch's records are not in ascending order after all stored ones: a bug of the caller, or a log that does not belong to
    /// this database.
    #[error("{file}: revision {}.{} does not follow the revisions stored before it", rev.major, rev.sub)]
    OutOfOrder {
        /// The file, relative to the data directory.
        file: Arc<str>,
        /// The first record out of place.
        rev: Rev,
    },
    /// An earlier write failed, so what the file holds is unknown until it is opened again.
    #[error("{file}: an earlier write failed, nothing more is written")]
    Poisoned {
        /// The file, relative to the data directory.
        file: Arc<str>,
    },
    #[error("{file}: {source}")]
    Redb {
        /// The file, relative to the data directory.
        file: Arc<str>,
        source: Box<redb::Error>,
    },
}

/// What is wrong with a damaged file.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// A stored value does not match its checksum.
    #[error("table {table}, {entry}: the value does not match its checksum")]
    Checksum {
        table: &'static str,
        /// The entry, as text: `revision 7.0`, `lease 12`, `entry applied`.
        entry: String,
    },
    /// The checksum is right, but this version never writes such a key or value.
    #[error("table {table}, {entry}: not in the format this version writes")]
    Malformed { table: &'static str, entry: String },
    /// An entry that every database has is not there.
    #[error("table {table} lacks {entry}")]
    Missing { table: &'static str, entry: String },
    /// Number or size of the stored records differ from what the commits counted.
    #[error("table revisions holds {found}, but {counted} were written")]
    Count {
        /// What a full scan found.
        found: Usage,
        /// What the commits counted.
        counted: Usage,
    },
    /// A page, or the file's header, does not match its checksum or structure.
    #[error("{0}")]
    Pages(String),
}

/// Converts an error of redb.
pub(super) fn from_redb(file: &Arc<str>, error: impl Into<redb::Error>) -> DbError {
    let file = file.clone();
    match error.into() {
        redb::Error::Corrupted(text) => DbError::Damaged {
            file,
            damage: Damage::Pages(text),
        },
        redb::Error::Io(source) => from_io(&file, source),
        redb::Error::PreviousIo | redb::Error::TransactionPoisoned => DbError::Poisoned { file },
        // The tables exist and have our types in every file this program created.
        other @ (redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::UpgradeRequired(_)) => DbError::Damaged {
            file,
            damage: Damage::Pages(other.to_string()),
        },
        other => DbError::Redb {
            file,
            source: Box::new(other),
        },
    }
}

/// Converts an I/O error: invalid or missing data is damage, everything else a failure of the disk.
pub(super) fn from_io(file: &Arc<str>, source: io::Error) -> DbError {
    let file = file.clone();
    match source.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => DbError::Damaged {
            file,
            damage: Damage::Pages(source.to_string()),
        },
        _ => DbError::Io { file, source },
    }
}
