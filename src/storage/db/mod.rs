//! The database of revisions: a redb file that holds every change of the store that was not compacted away.
//!
//! One writer ([`Db`], owned by the committer) and any number of readers ([`DbReader`]), on any threads. A batch of
//! records, the log position it brings the store to, leases and small named blobs become durable in one transaction, so
//! after a crash the database *is* the store at its applied index, and the log is replayed after it. Nothing here knows
//! what a record or a blob means.
//!
//! ```text
//! revisions   major 7, sub 0, put  → KeyValue, CRC32C      the history, in revision order
//! meta        "db.applied"         → (index, term), CRC32C the database's own entries, and the callers' blobs
//! leases      12                   → bytes, CRC32C
//! ```
//!
//! **Damage.** Every open verifies every page (see `guard.rs`); every value read is checked again against a checksum over its
//! key and itself; pages that change on disk while the database is open fail to read. Damage is an error that names
//! what is wrong, and ends the member. Where only the newest commit's pages are damaged, redb falls back to the commit
//! before, whose log position is [`Db::fallback`]: a log kept from there on replays the difference.
//!
//! **Space** that compaction frees is used again by later commits; the file does not shrink while it is open.

mod change_identity;
mod compact;
#[cfg(test)]
mod damage;
mod error;
mod format;
mod guard;
mod open;
mod reader;
mod record;
mod record_cache;
mod redb_file;
mod snapshot;
mod sync_mark;
#[cfg(test)]
mod testing;
mod tracked_disk;

pub use compact::{CompactSpan, CompactStep};
pub use error::{Damage, DbError};
pub use format::{CompactionProgress, FORMAT_VERSION, Usage};
pub use reader::{DbReader, OnDamage};
pub use record::RecordRef;
pub use snapshot::{
    DbSite, Export, Import, NewDb, SNAPSHOT_VERSION, SnapshotFault, SnapshotHeader,
};

use crate::{
    codec,
    storage::disk::DiskFile,
    types::{LeaseId, LogPosition, Record, RecordKind},
};
use error::{from_io, from_redb};
use format::{LEASES, META, REVISIONS, meta, revision_key, seal};
use record_cache::RecordCache;
use redb::{Database, ReadableDatabase, WriteTransaction};
use std::{collections::BTreeMap, ops::Bound, sync::Arc, thread};

/// A commit yields its core after this many records: no request waits for a commit, and otherwise the scheduler would keep other
/// threads waiting for milliseconds.
const YIELD_RECORDS: usize = 64;

/// The settings of a database.
#[derive(Clone, Copy, Debug)]
pub struct DbOptions {
    /// Size of redb's cache of pages, in bytes.
    pub cache_bytes: usize,
    /// Size of the cache of single records, in bytes.
    pub record_cache_bytes: usize,
}

impl Default for DbOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 16 * 1024 * 1024,
            record_cache_bytes: 16 * 1024 * 1024,
        }
    }
}

/// The changes that one commit makes durable.
#[derive(Debug, Default)]
pub struct CommitBatch {
    /// New records, in ascending order, after all stored ones. They may come in any number of pieces.
    pub records: Vec<Arc<[Record]>>,
    /// The log position that the batch brings the store to; never lower than before.
    pub applied: LogPosition,
    /// Named blobs to write, or to remove. No name begins with `db.`.
    pub meta: Vec<(&'static str, Option<Vec<u8>>)>,
    /// Leases to write, or to remove.
    pub leases: Vec<(LeaseId, Option<Vec<u8>>)>,
    /// Users, roles and tokens: blobs like those of `meta`, but under names that are made at run time.
    pub rows: BTreeMap<String, Option<Vec<u8>>>,
}

/// The database, open for writing. Each file has one writer at most.
///
/// Invariants: `fallback <= applied`; `usage` describes table `revisions`.
pub struct Db {
    redb: Database,
    disk_file: Arc<dyn DiskFile>,
    file: Arc<str>,
    created: bool,
    applied: LogPosition,
    fallback: LogPosition,
    usage: Usage,
    compaction: Option<CompactionProgress>,
    format: u32,
    file_bytes: u64,
    poisoned: bool,
    /// Every reader has a clone: its count says whether there are readers.
    readers: Arc<()>,
    recent: Arc<RecordCache>,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db")
            .field("file", &self.file)
            .field("applied", &self.applied)
            .field("usage", &self.usage)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}

impl Db {
    /// Makes `batch` durable, whole or not at all. After an error nothing more can be written: the content of the file is unknown
    /// until it is opened again.
    pub fn commit(&mut self, batch: &CommitBatch) -> Result<(), DbError> {
        assert!(
            self.applied.index <= batch.applied.index,
            "applied index falls from {} to {}: entries would be applied twice",
            self.applied.index,
            batch.applied.index
        );
        let mut usage = self.usage;
        let format = match batch.rows.len() {
            0 => self.format,
            _ => FORMAT_VERSION,
        };
        self.write(|db, transaction| {
            db.put_records(transaction, &batch.records, &mut usage)?;
            db.put_leases(transaction, &batch.leases)?;
            let blobs = batch.meta.iter().map(|(name, value)| (*name, value));
            let rows = batch
                .rows
                .iter()
                .map(|(name, value)| (name.as_str(), value));
            for (name, value) in blobs.chain(rows) {
                assert!(
                    !name.starts_with(meta::RESERVED),
                    "blob {name} has a name that is reserved for the database"
                );
                db.put_meta(transaction, name, value.as_deref())?;
            }
            if format != db.format {
                db.put_meta(transaction, meta::FORMAT, Some(&format.to_le_bytes()))?;
            }
            db.put_meta(transaction, meta::USAGE, Some(&codec::encode(&usage)))?;
            let applied = codec::encode(&batch.applied);
            db.put_meta(transaction, meta::APPLIED, Some(&applied))
        })?;
        self.keep_puts(&batch.records);
        self.fallback = self.applied;
        self.applied = batch.applied;
        self.usage = usage;
        self.format = format;
        Ok(())
    }

    /// An immutable view of the newest commit. Its pages are not reused before it is dropped.
    pub fn reader(&self) -> Result<DbReader, DbError> {
        let transaction = self
            .redb
            .begin_read()
            .map_err(|error| from_redb(&self.file, error))?;
        DbReader::new(
            transaction,
            self.file.clone(),
            self.readers.clone(),
            self.recent.clone(),
        )
    }

    /// Adds new records to the record cache if any record was read since the last commit: then they are likely to be read soon.
    fn keep_puts(&self, records: &[Arc<[Record]>]) {
        if !self.recent.take_was_read() {
            return;
        }
        for record in records.iter().flat_map(|piece| piece.iter()) {
            if record.kind == RecordKind::Put {
                self.recent.insert(record.rev, record.kv.clone());
            }
        }
    }

    /// Whether there are readers. Readers that outlive the database get errors.
    pub fn has_readers(&self) -> bool {
        Arc::strong_count(&self.readers) > 1
    }

    /// Visits every record once, in revision order, to build the index. Verifies each, and their number and size.
    pub fn load(&self, mut visit: impl FnMut(RecordRef<'_>)) -> Result<(), DbError> {
        let mut found = Usage::default();
        self.reader()?.for_each(|record| {
            found.add(record.kv.len());
            visit(record);
        })?;
        if found == self.usage {
            return Ok(());
        }
        Err(DbError::Damaged {
            file: self.file.clone(),
            damage: Damage::Count {
                found,
                counted: self.usage,
            },
        })
    }

    /// Whether this open found no file and made an empty one.
    pub fn created(&self) -> bool {
        self.created
    }

    /// The log position that the database contains.
    pub fn applied(&self) -> LogPosition {
        self.applied
    }

    /// The log position of the commit before the newest. If the newest commit is torn or damaged, the next open falls back to
    /// it: so log entries after it must be kept.
    pub fn fallback(&self) -> LogPosition {
        self.fallback
    }

    /// The progress of the newest compaction.
    pub fn compaction(&self) -> Option<CompactionProgress> {
        self.compaction
    }

    /// Size of the file in bytes, as of the newest commit.
    pub fn size(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of records in the file: without leases, blobs, inner pages of the trees, and free space.
    pub fn size_in_use(&self) -> u64 {
        self.usage.bytes
    }

    /// Number of records, with their bytes.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Runs `fill` in a durable transaction. After an error the database refuses all further writes.
    fn write<T>(
        &mut self,
        fill: impl FnOnce(&Self, &WriteTransaction) -> Result<T, DbError>,
    ) -> Result<T, DbError> {
        if self.poisoned {
            return Err(DbError::Poisoned {
                file: self.file.clone(),
            });
        }
        self.poisoned = true;
        let transaction = self
            .redb
            .begin_write()
            .map_err(|error| from_redb(&self.file, error))?;
        let value = fill(self, &transaction)?;
        transaction
            .commit()
            .map_err(|error| from_redb(&self.file, error))?;
        self.file_bytes = self
            .disk_file
            .len()
            .map_err(|source| from_io(&self.file, source))?;
        self.poisoned = false;
        Ok(value)
    }

    /// Appends records through a cursor, which fills pages far faster than single inserts.
    fn put_records(
        &self,
        transaction: &WriteTransaction,
        records: &[Arc<[Record]>],
        usage: &mut Usage,
    ) -> Result<(), DbError> {
        let mut table = transaction
            .open_table(REVISIONS)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut cursor = table
            .upper_bound_mut(Bound::<&[u8; format::KEY_BYTES]>::Unbounded)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut sealed = Vec::new();
        for (at, record) in records.iter().flat_map(|piece| piece.iter()).enumerate() {
            if at % YIELD_RECORDS == 0 {
                thread::yield_now();
            }
            let key = revision_key(record.rev, record.kind);
            seal(&key, &record.kv, &mut sealed);
            cursor
                .insert_before(&key, sealed.as_slice())
                .map_err(|error| match error {
                    redb::CursorError::UnorderedKey => DbError::OutOfOrder {
                        file: self.file.clone(),
                        rev: record.rev,
                    },
                    other => from_redb(&self.file, other),
                })?;
            usage.add(record.kv.len());
        }
        cursor.close().map_err(|error| from_redb(&self.file, error))
    }

    fn put_leases(
        &self,
        transaction: &WriteTransaction,
        leases: &[(LeaseId, Option<Vec<u8>>)],
    ) -> Result<(), DbError> {
        if leases.is_empty() {
            return Ok(());
        }
        let mut table = transaction
            .open_table(LEASES)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut sealed = Vec::new();
        for (id, value) in leases {
            let done = match value {
                Some(value) => {
                    seal(&id.0.to_be_bytes(), value, &mut sealed);
                    table.insert(id.0, sealed.as_slice()).map(drop)
                }
                None => table.remove(id.0).map(drop),
            };
            done.map_err(|error| from_redb(&self.file, error))?;
        }
        Ok(())
    }

    fn put_meta(
        &self,
        transaction: &WriteTransaction,
        name: &str,
        value: Option<&[u8]>,
    ) -> Result<(), DbError> {
        put_meta(&self.file, transaction, name, value)
    }
}

/// Writes or removes one entry of table `meta`.
fn put_meta(
    file: &Arc<str>,
    transaction: &WriteTransaction,
    name: &str,
    value: Option<&[u8]>,
) -> Result<(), DbError> {
    let mut table = transaction
        .open_table(META)
        .map_err(|error| from_redb(file, error))?;
    let done = match value {
        Some(value) => {
            let mut sealed = Vec::new();
            seal(name.as_bytes(), value, &mut sealed);
            table.insert(name, sealed.as_slice()).map(drop)
        }
        None => table.remove(name).map(drop),
    };
    done.map_err(|error| from_redb(file, error))
}

#[cfg(test)]
mod tests {
    use super::testing::{FILE, MemDisk, applied, batch, dump, expected, open, span, value};
    use super::*;
    use crate::types::{Rev, Revision};
    use std::ops::ControlFlow;

    fn filled(batches: u64, width: u32) -> (MemDisk, Db) {
        let disk = MemDisk::new();
        let mut db = open(&disk).unwrap();
        assert!(db.created(), "there was no file");
        for index in 1..=batches {
            db.commit(&batch(index, width)).unwrap();
        }
        (disk, db)
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let (disk, db) = filled(20, 3);
        assert_eq!(dump(&db).unwrap(), expected(20, 3));
        assert_eq!((db.applied(), db.fallback()), (applied(20), applied(19)));
        assert_eq!(db.size(), disk.contents().len() as u64);
        assert!(db.size_in_use() < db.size(), "values fit into their file");
        let usage = db.usage();
        drop(db);
        let db = open(&disk).unwrap();
        assert!(!db.created(), "the file was there");
        assert_eq!(dump(&db).unwrap(), expected(20, 3));
        assert_eq!((db.applied(), db.fallback()), (applied(20), applied(20)));
        assert_eq!(db.usage(), usage);
    }

    #[test]
    fn puts_are_found_and_tombstones_are_not_puts() {
        let (_, db) = filled(9, 2);
        let reader = db.reader().unwrap();
        let put = Rev::new(Revision(4), 1);
        let found = reader.get_put(put).unwrap().unwrap();
        assert_eq!(found, value(put.major, put.sub));
        for absent in [(5, 0), (4, 2), (11, 0), (i64::MAX, u32::MAX)] {
            let absent = Rev::new(Revision(absent.0), absent.1);
            assert_eq!(reader.get_put(absent).unwrap(), None, "{absent:?}");
        }
    }

    #[test]
    fn a_scan_covers_its_range_and_stops_when_told() {
        let (_, db) = filled(9, 3);
        let reader = db.reader().unwrap();
        let scan = |from: (i64, u32), to: (i64, u32), most: usize| {
            let mut seen = Vec::new();
            let revs = Rev::new(Revision(from.0), from.1)..Rev::new(Revision(to.0), to.1);
            reader
                .scan(revs, |record| {
                    seen.push((record.rev.major.0, record.rev.sub));
                    if seen.len() < most {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                })
                .unwrap();
            seen
        };
        assert_eq!(scan((3, 1), (4, 2), 99), [(3, 1), (3, 2), (4, 0), (4, 1)]);
        assert_eq!(scan((3, 1), (4, 2), 2), [(3, 1), (3, 2)]);
        assert_eq!(scan((0, 0), (2, 1), 99), [(2, 0)]);
        assert_eq!(scan((4, 0), (3, 0), 99), []);
        assert_eq!(scan((10, 2), (99, 0), 99), [(10, 2)]);
    }

    #[test]
    fn a_reader_sees_its_own_commit_whatever_follows() {
        let (_disk, mut db) = filled(10, 4);
        let reader = db.reader().unwrap();
        for index in 11..40 {
            db.commit(&batch(index, 4)).unwrap();
        }
        let step = db
            .compact_step(span(Rev::default(), Revision(30), 10_000), |_| false)
            .unwrap();
        assert_eq!((step.next, step.removed), (None, 29 * 4));
        let mut seen = Vec::new();
        reader.for_each(|record| seen.push(record.rev)).unwrap();
        let old: Vec<Rev> = expected(10, 4).records.iter().map(|r| r.rev).collect();
        assert_eq!(seen, old);
        let clone = reader.clone();
        let thread = thread::spawn(move || clone.get_put(Rev::new(Revision(3), 2)));
        assert!(thread.join().unwrap().unwrap().is_some(), "still there");
        let now = db.reader().unwrap();
        assert_eq!(now.get_put(Rev::new(Revision(3), 2)).unwrap(), None);
    }

    #[test]
    fn a_reader_that_outlives_the_database_ends_with_errors() {
        let (disk, db) = filled(300, 4);
        let reader = db.reader().unwrap();
        drop(db);
        let ended = reader.for_each(|record| {
            assert_eq!(record.kv, value(record.rev.major, record.rev.sub));
        });
        assert!(ended.is_err(), "the file is closed, the cache is too small");
        assert_eq!(dump(&open(&disk).unwrap()).unwrap(), expected(300, 4));
    }

    #[test]
    fn records_out_of_order_are_refused_for_good() {
        let (disk, mut db) = filled(5, 2);
        let mut late = batch(6, 2);
        late.records.reverse();
        let error = db.commit(&late).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{FILE}: revision 7.0 does not follow the revisions stored before it")
        );
        assert!(
            matches!(db.commit(&batch(6, 2)), Err(DbError::Poisoned { .. })),
            "an error poisons"
        );
        drop(db);
        assert_eq!(dump(&open(&disk).unwrap()).unwrap(), expected(5, 2));
    }

    #[test]
    fn an_empty_batch_moves_the_applied_index_alone() {
        let (disk, mut db) = filled(5, 2);
        let batch = CommitBatch {
            applied: applied(8),
            ..CommitBatch::default()
        };
        db.commit(&batch).unwrap();
        drop(db);
        let db = open(&disk).unwrap();
        assert_eq!(db.applied(), applied(8));
        assert_eq!(dump(&db).unwrap(), expected(5, 2));
    }

    #[test]
    #[should_panic(expected = "applied twice")]
    fn the_applied_index_never_falls() {
        let (_disk, mut db) = filled(5, 2);
        drop(db.commit(&batch(4, 2)));
    }
}
