//! Opening the database: creation in one rename, checks of identity and format.

use super::{
    Db, DbOptions,
    error::{Damage, DbError, from_io, from_redb},
    format::{
        CompactionProgress, FORMAT_VERSION, FORMAT_WITHOUT_ROWS, LEASES, REVISIONS, Usage, meta,
    },
    put_meta,
    reader::read_meta,
    record_cache::RecordCache,
    redb_file::open_redb,
    snapshot::remove_leftover,
};
use crate::{
    codec,
    storage::disk::Disk,
    types::{Identity, LogPosition},
};
use redb::{Database, ReadableDatabase};
use std::sync::Arc;

/// The suffix of a database's file name until it is complete.
const UNFINISHED: &str = ".new";

impl Db {
    /// Opens the database in file `name` of `disk`, or makes an empty one that belongs to `identity`.
    ///
    /// Reads and verifies the whole file, and repairs it after a crash. Fails if the file is damaged, has a newer format, or
    /// another identity. The caller must hold the lock of the data directory.
    pub fn open(
        disk: &dyn Disk,
        name: &str,
        options: DbOptions,
        identity: Identity,
    ) -> Result<Self, DbError> {
        let file: Arc<str> = name.into();
        let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
        let present = disk
            .list(dir)
            .map_err(|source| from_io(&file, source))?
            .iter()
            .any(|other| other == base);
        remove_leftover(disk, name)?;
        if present {
            // The process that gave the file this name may have ended before that was durable. After a loss of power the old
            // file would be back, without what was committed since.
            let synced = disk.sync_dir(dir);
            synced.map_err(|source| from_io(&file, source))?;
        } else {
            create(disk, &file, dir, options, identity)?;
        }
        Self::open_existing(disk, &file, options, identity, present)
    }

    /// Opens a received database, under the name that it has until it replaces the old one.
    pub(super) fn open_received(
        disk: &dyn Disk,
        file: &Arc<str>,
        options: DbOptions,
        identity: Identity,
    ) -> Result<Self, DbError> {
        Self::open_existing(disk, file, options, identity, true)
    }

    fn open_existing(
        disk: &dyn Disk,
        file: &Arc<str>,
        options: DbOptions,
        identity: Identity,
        present: bool,
    ) -> Result<Self, DbError> {
        let file = Arc::clone(file);
        let (redb, disk_file) = open_redb(disk, &file, &file, options, present)?;
        let state = OwnEntries::read(&redb, &file, identity)?;
        let file_bytes = disk_file.len().map_err(|source| from_io(&file, source))?;
        Ok(Self {
            redb,
            disk_file,
            file,
            created: !present,
            applied: state.applied,
            fallback: state.applied,
            usage: state.usage,
            compaction: state.compaction,
            format: state.format,
            file_bytes,
            poisoned: false,
            readers: Arc::default(),
            recent: Arc::new(RecordCache::new(options.record_cache_bytes)),
        })
    }
}

/// The database's own entries of table `meta`.
struct OwnEntries {
    applied: LogPosition,
    usage: Usage,
    compaction: Option<CompactionProgress>,
    format: u32,
}

impl OwnEntries {
    fn read(redb: &Database, file: &Arc<str>, identity: Identity) -> Result<Self, DbError> {
        let transaction = redb.begin_read().map_err(|error| from_redb(file, error))?;
        let required = |name: &'static str| {
            read_meta(&transaction, file, name)?
                .ok_or_else(|| damaged(file, name, MetaFault::Missing))
        };
        // First, since a newer format may have changed everything but the layout of this table.
        let format = required(meta::FORMAT)?;
        let format: [u8; 4] = format
            .as_slice()
            .try_into()
            .map_err(|_| damaged(file, meta::FORMAT, MetaFault::Malformed))?;
        let found = u32::from_le_bytes(format);
        if found > FORMAT_VERSION {
            return Err(DbError::NewerFormat {
                file: file.clone(),
                found,
                supported: FORMAT_VERSION,
            });
        }
        let owner: Identity = parse(file, meta::IDENTITY, &required(meta::IDENTITY)?)?;
        if owner != identity {
            return Err(DbError::ForeignIdentity {
                file: file.clone(),
                found: owner,
                expected: identity,
            });
        }
        let compaction = read_meta(&transaction, file, meta::COMPACTION)?.map(|bytes| {
            CompactionProgress::decode(&bytes)
                .ok_or_else(|| damaged(file, meta::COMPACTION, MetaFault::Malformed))
        });
        Ok(Self {
            applied: parse(file, meta::APPLIED, &required(meta::APPLIED)?)?,
            usage: parse(file, meta::USAGE, &required(meta::USAGE)?)?,
            compaction: compaction.transpose()?,
            format: found,
        })
    }
}

/// Makes an empty database under another name and renames it, so that a crash leaves either none or a complete one.
fn create(
    disk: &dyn Disk,
    file: &Arc<str>,
    dir: &str,
    options: DbOptions,
    identity: Identity,
) -> Result<(), DbError> {
    let unfinished = format!("{file}{UNFINISHED}");
    let (_, unfinished_base) = unfinished.rsplit_once('/').unwrap_or(("", &unfinished));
    let io = |source| from_io(file, source);
    let leftover = disk.list(dir).map_err(io)?;
    if leftover.iter().any(|other| other == unfinished_base) {
        disk.remove(&unfinished).map_err(io)?;
    }
    let (redb, disk_file) = open_redb(disk, &unfinished, file, options, false)?;
    let transaction = redb.begin_write().map_err(|error| from_redb(file, error))?;
    transaction
        .open_table(REVISIONS)
        .map_err(|error| from_redb(file, error))?;
    transaction
        .open_table(LEASES)
        .map_err(|error| from_redb(file, error))?;
    let entries = [
        (meta::FORMAT, FORMAT_WITHOUT_ROWS.to_le_bytes().to_vec()),
        (meta::IDENTITY, codec::encode(&identity)),
        (meta::APPLIED, codec::encode(&LogPosition::default())),
        (meta::USAGE, codec::encode(&Usage::default())),
    ];
    for (name, value) in entries {
        put_meta(file, &transaction, name, Some(&value))?;
    }
    transaction
        .commit()
        .map_err(|error| from_redb(file, error))?;
    drop(redb);
    // redb ignores errors when it closes a file. A file that was not closed cleanly is repaired, but must be durable.
    disk_file.sync_data().map_err(io)?;
    disk.rename(&unfinished, file).map_err(io)?;
    disk.sync_dir(dir).map_err(io)
}

/// What is wrong with an entry of table `meta`.
#[derive(Clone, Copy)]
enum MetaFault {
    Missing,
    Malformed,
}

fn damaged(file: &Arc<str>, name: &str, fault: MetaFault) -> DbError {
    let table = "meta";
    let entry = format!("entry {name}");
    DbError::Damaged {
        file: file.clone(),
        damage: match fault {
            MetaFault::Missing => Damage::Missing { table, entry },
            MetaFault::Malformed => Damage::Malformed { table, entry },
        },
    }
}

fn parse<T: bincode::Decode<()>>(
    file: &Arc<str>,
    name: &'static str,
    bytes: &[u8],
) -> Result<T, DbError> {
    codec::decode(name, bytes).map_err(|_| damaged(file, name, MetaFault::Malformed))
}
