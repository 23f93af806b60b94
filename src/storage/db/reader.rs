//! Reading: an immutable view of one commit, usable from any thread.

use super::{
    error::{Damage, DbError, from_redb},
    format::{
        CompactionProgress, KEY_BYTES, LEASES, META, REVISIONS, lower_key, meta, revision_key,
        unseal,
    },
    record::{RecordRef, open_record},
    record_cache::RecordCache,
};
use crate::{
    codec,
    failpoint::{FailPoint, hit},
    types::{LeaseId, LogPosition, RecordKind, Rev},
};
use bytes::Bytes;
use redb::{ReadOnlyTable, ReadTransaction, ReadableTable};
use std::{
    ops::{ControlFlow, Range},
    sync::Arc,
};

/// The database as of one commit. Cloning is cheap. Later commits and compactions do not change it; pages that they free are not
/// reused before it is dropped. After the [`Db`](super::Db) was dropped, reads return cached pages or errors.
#[derive(Clone)]
pub struct DbReader {
    view: Arc<View>,
    on_damage: Option<OnDamage>,
}

/// Called when a read finds damage or the disk fails: then the member must stop serving.
#[derive(Clone)]
pub struct OnDamage(Arc<dyn Fn(&DbError) + Send + Sync>);

impl OnDamage {
    /// Calls `report` with the read's error.
    pub fn new(report: impl Fn(&DbError) + Send + Sync + 'static) -> Self {
        Self(Arc::new(report))
    }
}

impl std::fmt::Debug for OnDamage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnDamage")
    }
}

struct View {
    revisions: ReadOnlyTable<&'static [u8; KEY_BYTES], &'static [u8]>,
    transaction: ReadTransaction,
    file: Arc<str>,
    /// [`Db::has_readers`](super::Db::has_readers) counts these.
    _reads: Arc<()>,
    recent: Arc<RecordCache>,
}

impl std::fmt::Debug for DbReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DbReader")
            .field("file", &self.view.file)
            .finish_non_exhaustive()
    }
}

impl DbReader {
    pub(super) fn new(
        transaction: ReadTransaction,
        file: Arc<str>,
        reads: Arc<()>,
        recent: Arc<RecordCache>,
    ) -> Result<Self, DbError> {
        let revisions = transaction
            .open_table(REVISIONS)
            .map_err(|error| from_redb(&file, error))?;
        let view = View {
            revisions,
            transaction,
            file,
            _reads: reads,
            recent,
        };
        Ok(Self {
            view: Arc::new(view),
            on_damage: None,
        })
    }

    /// The same view, which also calls `on_damage` for each read that finds the file damaged or unreadable.
    #[must_use]
    pub fn with_on_damage(self, on_damage: OnDamage) -> Self {
        let on_damage = Some(on_damage);
        Self { on_damage, ..self }
    }

    /// Returns the result, and reports damage in it.
    fn report_damage<T>(&self, read: Result<T, DbError>) -> Result<T, DbError> {
        if let (Err(error @ (DbError::Damaged { .. } | DbError::Io { .. })), Some(on_damage)) =
            (&read, &self.on_damage)
        {
            on_damage.0(error);
        }
        read
    }

    /// The `KeyValue` that the put at `rev` stored, if it is in memory. Never waits for the disk. The put may be compacted by
    /// now.
    pub fn cached_put(&self, rev: Rev) -> Option<Bytes> {
        self.view.recent.get(rev)
    }

    /// Adds a record that was read to the record cache, for [`DbReader::cached_put`]. `kv` must be an allocation of its own.
    pub fn keep_put(&self, rev: Rev, kv: Bytes) {
        self.view.recent.insert(rev, kv);
    }

    /// The `KeyValue` that the put at `rev` stored; `None` if there is no such put (compacted, or never written).
    pub fn get_put(&self, rev: Rev) -> Result<Option<Bytes>, DbError> {
        self.visit_put(rev, Bytes::copy_from_slice)
    }

    /// Calls `seen` with the `KeyValue` that the put at `rev` stored, and returns its result; `None` if there is no such put.
    pub fn visit_put<T>(
        &self,
        rev: Rev,
        seen: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, DbError> {
        self.report_damage(self.find_put(rev, seen))
    }

    fn find_put<T>(&self, rev: Rev, seen: impl FnOnce(&[u8]) -> T) -> Result<Option<T>, DbError> {
        hit(FailPoint::BeforeStoredRead);
        let key = revision_key(rev, RecordKind::Put);
        let found = self
            .view
            .revisions
            .get(&key)
            .map_err(|error| from_redb(&self.view.file, error))?;
        let Some(sealed) = found else {
            return Ok(None);
        };
        let record = open_record(&self.view.file, &key, sealed.value())?;
        Ok(Some(seen(record.kv)))
    }

    /// Visits the records from `revs.start` up to, not including, `revs.end`, in order, until `visit` breaks. It holds
    /// one page at a time, whatever the range.
    pub fn scan(
        &self,
        revs: Range<Rev>,
        mut visit: impl FnMut(RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), DbError> {
        if revs.is_empty() {
            return Ok(());
        }
        let (from, to) = (lower_key(revs.start), lower_key(revs.end));
        let entries = self
            .view
            .revisions
            .range::<&[u8; KEY_BYTES]>(&from..&to)
            .map_err(|error| from_redb(&self.view.file, error));
        let visited = entries.and_then(|entries| self.visit(entries, &mut visit));
        self.report_damage(visited)
    }

    /// Visits every record, in order.
    pub fn for_each(&self, mut visit: impl FnMut(RecordRef<'_>)) -> Result<(), DbError> {
        let entries = self
            .view
            .revisions
            .iter()
            .map_err(|error| from_redb(&self.view.file, error));
        let visited = entries.and_then(|entries| {
            self.visit(entries, &mut |record| {
                visit(record);
                ControlFlow::Continue(())
            })
        });
        self.report_damage(visited)
    }

    /// The file it reads, for errors.
    pub(super) fn file(&self) -> Arc<str> {
        self.view.file.clone()
    }

    /// The blob that the newest commit with this name stored.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, DbError> {
        self.report_damage(read_meta(&self.view.transaction, &self.view.file, name))
    }

    /// The log position that this commit contains.
    pub fn applied(&self) -> Result<LogPosition, DbError> {
        self.own(meta::APPLIED)
    }

    /// The progress of the newest compaction, as of this commit.
    pub fn compaction(&self) -> Result<Option<CompactionProgress>, DbError> {
        let Some(bytes) = self.meta(meta::COMPACTION)? else {
            return Ok(None);
        };
        let progress = CompactionProgress::decode(&bytes);
        let progress = progress.ok_or_else(|| self.damaged_own(meta::COMPACTION, true));
        self.report_damage(progress).map(Some)
    }

    /// One of the database's own entries, which every database has.
    pub(super) fn own<T: bincode::Decode<()>>(&self, name: &'static str) -> Result<T, DbError> {
        let bytes = self.meta(name)?;
        let value = match &bytes {
            None => Err(self.damaged_own(name, false)),
            Some(bytes) => codec::decode(name, bytes).map_err(|_| self.damaged_own(name, true)),
        };
        self.report_damage(value)
    }

    /// The error for an entry of the database's own that is malformed, or missing.
    fn damaged_own(&self, name: &str, is_there: bool) -> DbError {
        let (table, entry) = ("meta", format!("entry {name}"));
        let damage = if is_there {
            Damage::Malformed { table, entry }
        } else {
            Damage::Missing { table, entry }
        };
        DbError::Damaged {
            file: self.file(),
            damage,
        }
    }

    /// Visits every blob, the database's own among them, in order of their names.
    pub fn for_each_meta(&self, visit: impl FnMut(&str, &[u8])) -> Result<(), DbError> {
        self.report_damage(self.visit_meta(visit))
    }

    fn visit_meta(&self, mut visit: impl FnMut(&str, &[u8])) -> Result<(), DbError> {
        let failed = |error| from_redb(&self.view.file, redb::Error::from(error));
        let table = self
            .view
            .transaction
            .open_table(META)
            .map_err(|error| from_redb(&self.view.file, error))?;
        for entry in table.iter().map_err(failed)? {
            let (name, sealed) = entry.map_err(failed)?;
            let name = name.value();
            match unseal(name.as_bytes(), sealed.value()) {
                Some(value) => visit(name, value),
                None => return Err(self.broken_seal("meta", format!("entry {name}"))),
            }
        }
        Ok(())
    }

    /// Visits every lease, in order of their ids.
    pub fn for_each_lease(&self, mut visit: impl FnMut(LeaseId, &[u8])) -> Result<(), DbError> {
        self.scan_leases(LeaseId(i64::MIN), |id, bytes| {
            visit(id, bytes);
            ControlFlow::Continue(())
        })
    }

    /// Visits the leases from `from` on, in order of their ids, until `visit` breaks.
    pub fn scan_leases(
        &self,
        from: LeaseId,
        visit: impl FnMut(LeaseId, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), DbError> {
        self.report_damage(self.visit_leases(from, visit))
    }

    fn visit_leases(
        &self,
        from: LeaseId,
        mut visit: impl FnMut(LeaseId, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), DbError> {
        let failed = |error| from_redb(&self.view.file, redb::Error::from(error));
        let table = self
            .view
            .transaction
            .open_table(LEASES)
            .map_err(|error| from_redb(&self.view.file, error))?;
        for entry in table.range(from.0..).map_err(failed)? {
            let (id, sealed) = entry.map_err(failed)?;
            let id = LeaseId(id.value());
            let Some(value) = unseal(&id.0.to_be_bytes(), sealed.value()) else {
                return Err(self.broken_seal("leases", format!("lease {id}")));
            };
            if visit(id, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn visit(
        &self,
        entries: redb::Range<'_, &'static [u8; KEY_BYTES], &'static [u8]>,
        visit: &mut impl FnMut(RecordRef<'_>) -> ControlFlow<()>,
    ) -> Result<(), DbError> {
        for entry in entries {
            let (key, sealed) = entry.map_err(|error| from_redb(&self.view.file, error))?;
            let record = open_record(&self.view.file, key.value(), sealed.value())?;
            if visit(record).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn broken_seal(&self, table: &'static str, entry: String) -> DbError {
        broken_seal(&self.view.file, table, entry)
    }
}

/// One entry of table `meta`.
pub(super) fn read_meta(
    transaction: &ReadTransaction,
    file: &Arc<str>,
    name: &str,
) -> Result<Option<Vec<u8>>, DbError> {
    let table = transaction
        .open_table(META)
        .map_err(|error| from_redb(file, error))?;
    let found = table.get(name).map_err(|error| from_redb(file, error))?;
    let Some(sealed) = found else {
        return Ok(None);
    };
    match unseal(name.as_bytes(), sealed.value()) {
        Some(value) => Ok(Some(value.to_vec())),
        None => Err(broken_seal(file, "meta", format!("entry {name}"))),
    }
}

fn broken_seal(file: &Arc<str>, table: &'static str, entry: String) -> DbError {
    DbError::Damaged {
        file: file.clone(),
        damage: Damage::Checksum { table, entry },
    }
}
