//! The receiving side: a database in a file of its own, which is opened and verified before it replaces the old one.
//!
//! The entry with the file's format is written with the last batch: so an incomplete file cannot be opened, whatever its name.
//! The last batch is committed twice, so that redb cannot fall back to an incomplete commit.

use super::super::{
    Db, DbOptions,
    error::{DbError, from_io, from_redb},
    format::{KEY_BYTES, LEASES, REVISIONS, meta, parse_revision_key, revision_key, seal},
    put_meta,
    redb_file::open_redb,
    sync_mark::INCOMING,
    tracked_disk::TrackedDisk,
};
use super::{END_BYTES, SnapshotFault, SnapshotHeader, Totals, VALUE_BYTES_MAX, tag};
use crate::{
    codec,
    failpoint::{FailPoint, hit},
    storage::disk::{Disk, DiskFile},
    types::{Identity, LeaseId, Record, Rev},
};
use bytes::{Buf, Bytes, BytesMut};
use redb::{Database, WriteTransaction};
use std::{ops::Bound, sync::Arc};

/// Bytes of items that one commit makes durable.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Size of the page cache while a database is received, in bytes.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Where a member's database is, and its identity.
#[derive(Clone, Debug)]
pub struct DbSite {
    pub disk: Arc<dyn Disk>,
    pub name: &'static str,
    pub options: DbOptions,
    pub identity: Identity,
}

impl DbSite {
    fn incoming(&self) -> String {
        format!("{}{INCOMING}", self.name)
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &'static str {
        self.name.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Removes what an interrupted transfer left.
    pub fn discard_incoming(&self) -> Result<(), DbError> {
        remove_leftover(&*self.disk, self.name)
    }

    /// Installs a received database: one rename replaces the old file, durably. If the old one is open, it can still be read.
    pub fn switch(&self, mut received: Db) -> Result<Db, DbError> {
        let file: Arc<str> = self.name.into();
        let io = |source| from_io(&file, source);
        hit(FailPoint::BeforeSnapshotSwitch);
        let renamed = self.disk.rename(&self.incoming(), self.name);
        renamed.map_err(io)?;
        hit(FailPoint::AfterSnapshotRename);
        self.disk.sync_dir(self.dir()).map_err(io)?;
        hit(FailPoint::AfterSnapshotSwitch);
        received.file = file;
        Ok(received)
    }
}

/// Removes what an interrupted transfer left beside the database `name`.
pub(in super::super) fn remove_leftover(disk: &dyn Disk, name: &str) -> Result<(), DbError> {
    let leftover = format!("{name}{INCOMING}");
    let (dir, base) = leftover.rsplit_once('/').unwrap_or(("", &leftover));
    let file: Arc<str> = leftover.as_str().into();
    let io = |source| from_io(&file, source);
    if disk.list(dir).map_err(io)?.iter().any(|name| name == base) {
        disk.remove(&leftover).map_err(io)?;
    }
    Ok(())
}

/// A snapshot that is being received.
#[derive(Debug)]
pub struct Import {
    site: DbSite,
    header: SnapshotHeader,
    file: Arc<str>,
    redb: Database,
    disk_file: Arc<dyn DiskFile>,
    disk: TrackedDisk,
    /// Received bytes of items that are not complete yet.
    buffer: BytesMut,
    /// Number of bytes of complete items.
    taken: u64,
    batch: NextCommit,
    totals: Totals,
    last: Rev,
    ended: bool,
}

/// What the next commit stores.
#[derive(Debug, Default)]
struct NextCommit {
    blobs: Vec<(String, Bytes)>,
    leases: Vec<(LeaseId, Bytes)>,
    records: Vec<Record>,
    bytes: usize,
}

/// One item of the stream.
enum Item {
    Blob(String, Bytes),
    Lease(LeaseId, Bytes),
    Record(Record),
    End(Totals),
}

impl Import {
    /// Begins a file for the snapshot with this header; what an earlier attempt left is removed.
    pub fn begin(site: &DbSite, header: SnapshotHeader) -> Result<Self, SnapshotFault> {
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
            header,
            file,
            redb,
            disk_file,
            disk,
            buffer: BytesMut::new(),
            taken: 0,
            batch: NextCommit::default(),
            totals: Totals::default(),
            last: Rev::default(),
            ended: false,
        })
    }

    /// The header that the sender sent.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Takes the next chunk, and commits once enough bytes have arrived.
    pub fn take(&mut self, chunk: &[u8]) -> Result<(), SnapshotFault> {
        if self.ended && !chunk.is_empty() {
            return Err(self.malformed("bytes follow its end"));
        }
        self.buffer.extend_from_slice(chunk);
        while let Some((item, bytes)) = self.parse()? {
            match item {
                Item::End(said) => self.end(said)?,
                Item::Blob(name, value) => {
                    self.totals.blobs += 1;
                    self.batch.blobs.push((name, value));
                }
                Item::Lease(id, value) => {
                    self.totals.leases += 1;
                    self.batch.leases.push((id, value));
                }
                Item::Record(record) => {
                    if self.totals.records > 0 && record.rev <= self.last {
                        return Err(self.malformed("a record is out of order"));
                    }
                    self.last = record.rev;
                    self.totals.records += 1;
                    self.batch.records.push(record);
                }
            }
            self.taken += bytes as u64;
            self.batch.bytes += bytes;
            if self.batch.bytes >= BATCH_BYTES {
                self.commit()?;
            }
        }
        Ok(())
    }

    /// Completes the file, opens it and verifies all of it. `own` are the receiver's blobs, which replace the sender's.
    pub fn finish(mut self, own: &[(&'static str, Vec<u8>)]) -> Result<Db, SnapshotFault> {
        if !self.ended {
            let what = format!("it stops after {} bytes", self.taken);
            return Err(SnapshotFault::NotWhole(what));
        }
        for (name, value) in own {
            let blob = ((*name).to_owned(), Bytes::copy_from_slice(value));
            self.batch.blobs.push(blob);
        }
        self.commit()?;
        for _ in 0..2 {
            self.commit_identity()?;
        }
        let Self {
            site,
            redb,
            disk_file,
            disk,
            file,
            header,
            ..
        } = self;
        drop(redb);
        let io = |source| from_io(&file, source);
        disk_file.sync_data().map_err(io)?;
        disk.check().map_err(io)?;
        drop(disk_file);
        let db = Db::open_received(&*site.disk, &file, site.options, site.identity)?;
        if db.usage() != header.usage || db.applied() != header.applied {
            let what = format!(
                "the file holds {} at entry {}, the sender had {} at {}",
                db.usage(),
                db.applied().index,
                header.usage,
                header.applied.index
            );
            return Err(SnapshotFault::NotWhole(what));
        }
        Ok(db)
    }

    fn malformed(&self, what: &'static str) -> SnapshotFault {
        SnapshotFault::Malformed {
            at: self.taken,
            what,
        }
    }

    /// The next item and its length, if it is complete.
    fn parse(&mut self) -> Result<Option<(Item, usize)>, SnapshotFault> {
        let Some((&kind, rest)) = self.buffer.split_first() else {
            return Ok(None);
        };
        let head_bytes = match kind {
            tag::END => END_BYTES,
            tag::BLOB => 6,
            tag::LEASE => 12,
            tag::RECORD => KEY_BYTES + 4,
            _ => return Err(self.malformed("an item of an unknown kind")),
        };
        let Some(head) = rest.get(..head_bytes) else {
            return Ok(None);
        };
        if let (tag::END, Ok(end)) = (kind, head.try_into()) {
            let said = Totals::decode(end);
            self.buffer.advance(1 + END_BYTES);
            return Ok(Some((Item::End(said), 1 + END_BYTES)));
        }
        let value_bytes = (&head[head_bytes - 4..]).get_u32_le() as usize;
        let name_bytes = match kind {
            tag::BLOB => usize::from((&head[..2]).get_u16_le()),
            _ => 0,
        };
        if value_bytes > VALUE_BYTES_MAX {
            return Err(self.malformed("an item is too long"));
        }
        let bytes = 1 + head_bytes + name_bytes + value_bytes;
        if self.buffer.len() < bytes {
            return Ok(None);
        }
        let mut item = self.buffer.split_to(bytes).freeze();
        self.totals.crc = crc32c::crc32c_append(self.totals.crc, &item);
        let value = item.split_off(bytes - value_bytes);
        item.advance(1);
        self.read(kind, &item, name_bytes, value)
            .map(|item| Some((item, bytes)))
    }

    fn read(
        &self,
        kind: u8,
        head: &Bytes,
        name_bytes: usize,
        kv: Bytes,
    ) -> Result<Item, SnapshotFault> {
        if kind == tag::LEASE {
            return Ok(Item::Lease(LeaseId((&head[..8]).get_i64_le()), kv));
        }
        if kind == tag::BLOB {
            let name = head.slice(head.len() - name_bytes..);
            let name = str::from_utf8(&name)
                .ok()
                .filter(|name| !name.starts_with(meta::RESERVED));
            let name = name.ok_or_else(|| self.malformed("a blob's name is not allowed"))?;
            return Ok(Item::Blob(name.to_owned(), kv));
        }
        let key = head.first_chunk::<KEY_BYTES>().and_then(parse_revision_key);
        let (rev, kind) = key.ok_or_else(|| self.malformed("a record's key is malformed"))?;
        Ok(Item::Record(Record { rev, kind, kv }))
    }

    fn end(&mut self, said: Totals) -> Result<(), SnapshotFault> {
        if said != self.totals {
            let what = format!("sent as {said:?}, received as {:?}", self.totals);
            return Err(SnapshotFault::NotWhole(what));
        }
        if !self.buffer.is_empty() {
            return Err(self.malformed("bytes follow its end"));
        }
        self.ended = true;
        Ok(())
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
    fn commit_identity(&self) -> Result<(), DbError> {
        let transaction = self.begin_write()?;
        let entries = [
            (meta::IDENTITY, codec::encode(&self.site.identity)),
            (meta::APPLIED, codec::encode(&self.header.applied)),
            (meta::USAGE, codec::encode(&self.header.usage)),
            (meta::FORMAT, self.header.format.to_le_bytes().to_vec()),
        ];
        for (name, value) in &entries {
            put_meta(&self.file, &transaction, name, Some(value))?;
        }
        let compaction = self.header.compaction.as_deref();
        put_meta(&self.file, &transaction, meta::COMPACTION, compaction)?;
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
