//! A database that is made as a whole, in a file beside the one in use: from a leader's snapshot, or from another store's data.
//!
//! The entry with the file's format is written with the last batch: so an incomplete file cannot be opened, whatever its name.
//! The last batch is committed twice, so that redb cannot fall back to an incomplete commit. Then the file is opened and
//! verified.

use super::super::{
    Db, DbOptions,
    error::{DbError, from_io, from_redb},
    format::{
        CompactionProgress, FORMAT_VERSION, FORMAT_WITHOUT_ROWS, KEY_BYTES, LEASES, REVISIONS,
        Usage, meta, revision_key, seal,
    },
    put_meta,
    redb_file::open_redb,
    tracked_disk::TrackedDisk,
};
use super::site::DbSite;
use crate::{
    codec,
    storage::disk::DiskFile,
    types::{LeaseId, LogPosition, Record, Revision},
};
use bytes::Bytes;
use redb::{Database, WriteTransaction};
use std::{ops::Bound, sync::Arc};

/// Bytes of items that one commit makes durable.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Size of the page cache while a database is filled, in bytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// A database that is being filled. Records come in ascending order; blobs and leases in any.
#[derive(Debug)]
pub struct NewDb {
    site: DbSite,
    file: Arc<str>,
    redb: Database,
    disk_file: Arc<dyn DiskFile>,
    disk: TrackedDisk,
    batch: NextCommit,
    usage: Usage,
}

/// What the next commit stores.
#[derive(Debug, Default)]
struct NextCommit {
    blobs: Vec<(String, Bytes)>,
    leases: Vec<(LeaseId, Bytes)>,
    records: Vec<Record>,
    bytes: usize,
}

/// The database's own entries besides its identity.
pub(super) struct OwnEntries<'a> {
    pub(super) format: u32,
    pub(super) applied: LogPosition,
    pub(super) usage: Usage,
    pub(super) compaction: Option<&'a [u8]>,
}

impl NewDb {
    /// Begins a file beside the database of `site`; what an earlier attempt left is removed.
    pub fn begin(site: &DbSite) -> Result<Self, DbError> {
        site.discard_incoming()?;
        let name = site.incoming();
        let file: Arc<str> = name.as_str().into();
        let options = DbOptions {
            cache_bytes: CACHE_BYTES,
            record_cache_bytes: 0,
        };
        let disk = TrackedDisk::new(Arc::clone(&site.disk));
        let (redb, disk_file) = open_redb(&disk, &name, &file, options, false)?;
        Ok(Self {
            site: site.clone(),
            file,
            redb,
            disk_file,
            disk,
            batch: NextCommit::default(),
            usage: Usage::default(),
        })
    }

    /// Adds a blob; its name does not begin with `db.`.
    pub fn put_blob(&mut self, name: String, value: Bytes) -> Result<(), DbError> {
        assert!(
            !name.starts_with(meta::RESERVED),
            "blob {name} has a name that is reserved for the database"
        );
        let bytes = name.len() + value.len();
        self.batch.blobs.push((name, value));
        self.grown_by(bytes)
    }

    pub fn put_lease(&mut self, id: LeaseId, value: Bytes) -> Result<(), DbError> {
        let bytes = size_of::<LeaseId>() + value.len();
        self.batch.leases.push((id, value));
        self.grown_by(bytes)
    }

    /// Adds a record, which comes after all before it.
    pub fn put_record(&mut self, record: Record) -> Result<(), DbError> {
        let bytes = KEY_BYTES + record.kv.len();
        self.usage.add(record.kv.len());
        self.batch.records.push(record);
        self.grown_by(bytes)
    }

    /// Completes the file as that of a database which has applied the log through `applied`, opens it and verifies its pages.
    /// `has_rows`: there are rows of users or roles among the blobs. `compacted`: what a compaction at this revision removes is
    /// not among the records, so that it need not be carried out again.
    pub fn finish(
        self,
        applied: LogPosition,
        has_rows: bool,
        compacted: Option<Revision>,
    ) -> Result<Db, DbError> {
        let compaction = compacted.map(|through| {
            let done = CompactionProgress {
                through,
                next: None,
            };
            done.encode()
        });
        let own = OwnEntries {
            format: if has_rows {
                FORMAT_VERSION
            } else {
                FORMAT_WITHOUT_ROWS
            },
            applied,
            usage: self.usage,
            compaction: compaction.as_deref(),
        };
        self.finish_with(&own)
    }

    /// As [`NewDb::finish`], with these entries.
    pub(super) fn finish_with(mut self, own: &OwnEntries<'_>) -> Result<Db, DbError> {
        self.commit()?;
        for _ in 0..2 {
            self.commit_identity(own)?;
        }
        let Self {
            site,
            redb,
            disk_file,
            disk,
            file,
            ..
        } = self;
        drop(redb);
        let io = |source| from_io(&file, source);
        disk_file.sync_data().map_err(io)?;
        disk.check().map_err(io)?;
        drop(disk_file);
        Db::open_received(&*site.disk, &file, site.options, site.identity)
    }

    fn grown_by(&mut self, bytes: usize) -> Result<(), DbError> {
        self.batch.bytes += bytes;
        if self.batch.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.commit()
    }

    fn commit(&mut self) -> Result<(), DbError> {
        let batch = std::mem::take(&mut self.batch);
        let transaction = self.begin_write()?;
        self.put_records(&transaction, &batch.records)?;
        let mut leases = transaction
            .open_table(LEASES)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut sealed = Vec::new();
        for (id, value) in &batch.leases {
            seal(&id.0.to_be_bytes(), value, &mut sealed);
            let stored = leases.insert(id.0, sealed.as_slice());
            stored.map_err(|error| from_redb(&self.file, error))?;
        }
        drop(leases);
        for (name, value) in &batch.blobs {
            put_meta(&self.file, &transaction, name, Some(value))?;
        }
        self.end_write(transaction)
    }

    fn put_records(
        &self,
        transaction: &WriteTransaction,
        records: &[Record],
    ) -> Result<(), DbError> {
        let mut table = transaction
            .open_table(REVISIONS)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut cursor = table
            .upper_bound_mut(Bound::<&[u8; KEY_BYTES]>::Unbounded)
            .map_err(|error| from_redb(&self.file, error))?;
        let mut sealed = Vec::new();
        for record in records {
            let key = revision_key(record.rev, record.kind);
            seal(&key, &record.kv, &mut sealed);
            let stored = cursor.insert_before(&key, sealed.as_slice());
            stored.map_err(|error| from_redb(&self.file, error))?;
        }
        cursor.close().map_err(|error| from_redb(&self.file, error))
    }

    /// Writes the database's own entries, among them the format, without which the file cannot be opened.
    fn commit_identity(&self, own: &OwnEntries<'_>) -> Result<(), DbError> {
        let transaction = self.begin_write()?;
        let entries = [
            (meta::IDENTITY, codec::encode(&self.site.identity)),
            (meta::APPLIED, codec::encode(&own.applied)),
            (meta::USAGE, codec::encode(&own.usage)),
            (meta::FORMAT, own.format.to_le_bytes().to_vec()),
        ];
        for (name, value) in &entries {
            put_meta(&self.file, &transaction, name, Some(value))?;
        }
        put_meta(&self.file, &transaction, meta::COMPACTION, own.compaction)?;
        self.end_write(transaction)
    }

    fn begin_write(&self) -> Result<WriteTransaction, DbError> {
        self.redb
            .begin_write()
            .map_err(|error| from_redb(&self.file, error))
    }

    fn end_write(&self, transaction: WriteTransaction) -> Result<(), DbError> {
        transaction
            .commit()
            .map_err(|error| from_redb(&self.file, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        storage::{disk::Disk, sim_disk::SimDisk},
        types::{ClusterId, Identity, LogIndex, MemberId, RecordKind, Rev, Term},
    };

    const APPLIED: LogPosition = LogPosition {
        index: LogIndex(1),
        term: Term(1),
    };

    fn site(disk: &SimDisk) -> DbSite {
        DbSite {
            disk: Arc::new(disk.clone()),
            name: "db/revisions.redb",
            options: DbOptions::default(),
            identity: Identity {
                cluster: ClusterId(1),
                member: MemberId(2),
            },
        }
    }

    fn record(major: i64) -> Record {
        Record {
            rev: Rev::new(Revision(major), 0),
            kind: RecordKind::Put,
            kv: vec![7; 100_000].into(),
        }
    }

    #[test]
    fn many_batches_are_one_database_once_it_takes_its_place() {
        let disk = SimDisk::new(1);
        let site = site(&disk);
        let mut new = NewDb::begin(&site).unwrap();
        new.put_blob("a".to_owned(), Bytes::from_static(b"b"))
            .unwrap();
        new.put_lease(LeaseId(-3), Bytes::from_static(b"lease"))
            .unwrap();
        for major in 2..102 {
            new.put_record(record(major)).unwrap();
        }
        let db = new.finish(APPLIED, true, Some(Revision(2))).unwrap();
        let names = disk.list("db").unwrap();
        let place = |name: &String| name == "revisions.redb";
        assert!(!names.iter().any(place), "not yet: {names:?}");
        drop(site.switch(db).unwrap());
        disk.crash();
        let db = Db::open(&disk, site.name, site.options, site.identity).unwrap();
        assert_eq!((db.applied(), db.usage().records), (APPLIED, 100));
        let done = CompactionProgress {
            through: Revision(2),
            next: None,
        };
        assert_eq!(db.compaction(), Some(done));
        db.load(|_| {}).unwrap();
        assert_eq!(db.reader().unwrap().meta("a").unwrap(), Some(b"b".to_vec()));
    }

    #[test]
    fn a_record_out_of_order_is_refused() {
        let disk = SimDisk::new(1);
        let mut new = NewDb::begin(&site(&disk)).unwrap();
        new.put_record(record(3)).unwrap();
        new.put_record(record(2)).unwrap();
        assert!(new.finish(APPLIED, false, None).is_err());
    }
}
