//! Opening the database: creation in one rename, whose it is, which format it has.

use super::error::{Damage, DbError, from_io, from_redb};
use super::format::{CompactionProgress, FORMAT_VERSION, LEASES, REVISIONS, Usage, meta};
use super::reader::read_meta;
use super::redb_file::open_redb;
use super::snapshot::remove_leftover;
use super::{Db, DbOptions, put_meta};
use crate::codec;
use crate::storage::disk::Disk;
use crate::types::{Identity, LogPosition};
use redb::{Database, ReadableDatabase};
use std::sync::Arc;

/// What a database under construction is called, after its name.
const UNFINISHED: &str = ".new";

impl Db {
    /// Opens the database in file `name` of `disk`, or makes an empty one that belongs to `identity`.
    ///
    /// Reads and verifies the whole file, and repairs what a crash left. Fails where the file is damaged, has a newer
    /// format, or belongs to someone else. The caller holds the lock of the data directory.
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
        if !present {
            create(disk, &file, dir, options, identity)?;
        }
        Self::open_existing(disk, &file, options, identity, present)
    }

    /// Opens a database that was received, under the name it has until it takes the place of the old one.
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
        let state = State::read(&redb, &file, identity)?;
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
            file_bytes,
            poisoned: false,
            readers: Arc::default(),
        })
    }
}

/// What the database's own entries in table `meta` say.
struct State {
    applied: LogPosition,
    usage: Usage,
    compaction: Option<CompactionProgress>,
}

impl State {
    fn read(redb: &Database, file: &Arc<str>, identity: Identity) -> Result<Self, DbError> {
        let transaction = redb.begin_read().map_err(|error| from_redb(file, error))?;
        let required = |name: &'static str| {
            read_meta(&transaction, file, name)?.ok_or_else(|| damaged(file, name, Fault::Missing))
        };
        // First of all, and from the one table whose layout never changes.
        let format = required(meta::FORMAT)?;
        let format: [u8; 4] = format
            .as_slice()
            .try_into()
            .map_err(|_| damaged(file, meta::FORMAT, Fault::Malformed))?;
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
                .ok_or_else(|| damaged(file, meta::COMPACTION, Fault::Malformed))
        });
        Ok(Self {
            applied: parse(file, meta::APPLIED, &required(meta::APPLIED)?)?,
            usage: parse(file, meta::USAGE, &required(meta::USAGE)?)?,
            compaction: compaction.transpose()?,
        })
    }
}

/// Makes an empty database under another name and renames it, so that a crash leaves none or a whole one.
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
        (meta::FORMAT, FORMAT_VERSION.to_le_bytes().to_vec()),
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
    // redb closes as well as it can and says nothing: what it left is repaired, but must be on disk.
    disk_file.sync_data().map_err(io)?;
    disk.rename(&unfinished, file).map_err(io)?;
    disk.sync_dir(dir).map_err(io)
}

/// What is wrong with an entry of table `meta`.
#[derive(Clone, Copy)]
enum Fault {
    Missing,
    Malformed,
}

fn damaged(file: &Arc<str>, name: &str, fault: Fault) -> DbError {
    let table = "meta";
    let entry = format!("entry {name}");
    DbError::Damaged {
        file: file.clone(),
        damage: match fault {
            Fault::Missing => Damage::Missing { table, entry },
            Fault::Malformed => Damage::Malformed { table, entry },
        },
    }
}

fn parse<T: bincode::Decode<()>>(
    file: &Arc<str>,
    name: &'static str,
    bytes: &[u8],
) -> Result<T, DbError> {
    codec::decode(name, bytes).map_err(|_| damaged(file, name, Fault::Malformed))
}
