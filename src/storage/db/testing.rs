//! What the database's tests share: a disk in memory that crashes and fails, and a small history to store.

use super::{CommitBatch, CompactSpan, Db, DbError, DbOptions};
use crate::{
    storage::{
        disk::{Disk, DiskFile, OpenMode},
        encryption,
    },
    types::{
        ClusterId, Identity, LeaseId, LogIndex, LogPosition, MemberId, Record, RecordKind, Rev,
        Revision, SplitMix64, Term,
    },
};
use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

pub(super) const FILE: &str = "db/revisions.redb";
pub(super) const OWNER: Identity = Identity {
    cluster: ClusterId(0xc1),
    member: MemberId(0xa),
};
/// Small enough that pages are read again from the disk.
pub(super) const TINY_CACHE: DbOptions = DbOptions {
    cache_bytes: 16 * 1024,
    record_cache_bytes: 0,
};

/// A step of a compaction whose entry the database holds already.
pub(super) fn span(from: Rev, through: Revision, records_max: usize) -> CompactSpan {
    CompactSpan {
        from,
        through,
        decided_at: LogIndex(0),
        records_max,
    }
}

#[derive(Clone, Debug)]
enum FileChange {
    Write(usize, Vec<u8>),
    SetLen(usize),
}

impl FileChange {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Write(offset, data) => {
                let end = offset + data.len();
                bytes.resize(bytes.len().max(end), 0);
                bytes[*offset..end].copy_from_slice(data);
            }
        }
    }
}

/// A file in memory that records which of its changes were synced.
#[derive(Debug)]
pub(super) struct MemFile {
    contents: Mutex<Contents>,
    calls_left: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<FileChange>,
}

impl MemFile {
    /// Takes one of the writes and syncs that still succeed.
    fn spend(&self) -> io::Result<()> {
        self.calls_left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            })
            .map(drop)
            .map_err(|_| io::Error::other("injected failure"))
    }

    fn change(&self, change: FileChange) -> io::Result<()> {
        self.spend()?;
        let mut contents = self.contents.lock().unwrap();
        change.apply(&mut contents.now);
        contents.unsynced.push(change);
        Ok(())
    }
}

impl DiskFile for MemFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        self.change(FileChange::Write(offset, data.to_vec()))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let contents = self.contents.lock().unwrap();
        let found = contents.now.get(offset..offset + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.spend()?;
        let mut contents = self.contents.lock().unwrap();
        contents.synced = contents.now.clone();
        contents.unsynced.clear();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.lock().unwrap().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(FileChange::SetLen(usize::try_from(len).unwrap()))
    }

    fn is_direct(&self) -> bool {
        false
    }
}

/// A disk in memory. Names are durable at once; contents once they are synced.
#[derive(Clone, Debug)]
pub(super) struct MemDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<MemFile>>>>,
    calls_left: Arc<AtomicU64>,
}

impl MemDisk {
    pub(super) fn new() -> Self {
        Self {
            files: Arc::default(),
            calls_left: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }

    /// A disk with this one file.
    pub(super) fn with_file(bytes: Vec<u8>) -> Self {
        let disk = Self::new();
        disk.add(FILE, bytes);
        disk
    }

    fn add(&self, name: &str, bytes: Vec<u8>) {
        let file = MemFile {
            contents: Mutex::new(Contents {
                now: bytes.clone(),
                synced: bytes,
                unsynced: Vec::new(),
            }),
            calls_left: self.calls_left.clone(),
        };
        let mut files = self.files.lock().unwrap();
        files.insert(name.to_owned(), Arc::new(file));
    }

    /// Lets this many writes and syncs succeed, then none.
    pub(super) fn fail_after(&self, calls: u64) {
        self.calls_left.store(calls, Ordering::SeqCst);
    }

    /// The disk after a crash now: of what was not synced, any sectors may have reached it, in any order.
    pub(super) fn crash(&self, random: &mut SplitMix64) -> Self {
        let after = Self::new();
        for (name, file) in self.files.lock().unwrap().iter() {
            let contents = file.contents.lock().unwrap();
            let mut bytes = contents.synced.clone();
            for change in &contents.unsynced {
                for piece in sectors(change) {
                    if random.below(2) == 0 {
                        piece.apply(&mut bytes);
                    }
                }
            }
            after.add(name, bytes);
        }
        after
    }

    /// The contents of the database's file, synced or not.
    pub(super) fn contents(&self) -> Vec<u8> {
        let file = self.files.lock().unwrap()[FILE].clone();
        file.contents.lock().unwrap().now.clone()
    }

    /// Flips one bit of the database's file.
    pub(super) fn flip(&self, bit: usize) {
        let file = self.files.lock().unwrap()[FILE].clone();
        let mut contents = file.contents.lock().unwrap();
        contents.now[bit / 8] ^= 1 << (bit % 8);
        contents.synced[bit / 8] ^= 1 << (bit % 8);
    }
}

/// The parts of a change that can reach the disk independently.
fn sectors(change: &FileChange) -> Vec<FileChange> {
    match change {
        FileChange::SetLen(_) => vec![change.clone()],
        FileChange::Write(offset, data) => data
            .chunks(512)
            .enumerate()
            .map(|(at, piece)| FileChange::Write(offset + at * 512, piece.to_vec()))
            .collect(),
    }
}

impl Disk for MemDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        if !self.files.lock().unwrap().contains_key(name) {
            if !mode.create {
                return Err(io::ErrorKind::NotFound.into());
            }
            self.add(name, Vec::new());
        }
        Ok(self.files.lock().unwrap()[name].clone())
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let prefix = format!("{dir}/");
        let files = self.files.lock().unwrap();
        let names = files.keys().filter_map(|name| name.strip_prefix(&prefix));
        Ok(names.map(str::to_owned).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut files = self.files.lock().unwrap();
        files
            .remove(name)
            .map(drop)
            .ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn open(disk: &MemDisk) -> Result<Db, DbError> {
    let disk = encryption::testing::share(Arc::new(disk.clone()));
    Db::open(&*disk, FILE, TINY_CACHE, OWNER)
}

/// The batch that log entry `index` becomes: revision `index + 1` with `width` records, the first a tombstone in every
/// fifth, a lease, and a blob that is removed in every third.
pub(super) fn batch(index: u64, width: u32) -> CommitBatch {
    let major = Revision(i64::try_from(index).unwrap() + 1);
    let record = |sub| Record {
        rev: Rev::new(major, sub),
        kind: match (index % 5, sub) {
            (4, 0) => RecordKind::Tombstone,
            _ => RecordKind::Put,
        },
        kv: value(major, sub).into(),
    };
    CommitBatch {
        records: (0..width).map(|sub| [record(sub)].into()).collect(),
        applied: applied(index),
        meta: vec![(
            "blob",
            (!index.is_multiple_of(3)).then(|| index.to_le_bytes().to_vec()),
        )],
        leases: vec![
            (LeaseId(i64::try_from(index).unwrap()), Some(vec![7; 20])),
            (LeaseId(i64::try_from(index).unwrap() - 4), None),
        ],
        rows: BTreeMap::new(),
    }
}

pub(super) fn applied(index: u64) -> LogPosition {
    LogPosition {
        index: LogIndex(index),
        term: Term(index / 10),
    }
}

pub(super) fn value(major: Revision, sub: u32) -> Vec<u8> {
    format!("value of {major}.{sub} ").repeat(8).into_bytes()
}

/// Everything the database holds, as text that can be compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dump {
    pub(super) records: Vec<Record>,
    pub(super) leases: Vec<(LeaseId, Vec<u8>)>,
    pub(super) blob: Option<Vec<u8>>,
}

pub(super) fn dump(db: &Db) -> Result<Dump, DbError> {
    let mut records = Vec::new();
    db.load(|record| {
        records.push(Record {
            rev: record.rev,
            kind: record.kind,
            kv: record.kv.to_vec().into(),
        });
    })?;
    let reader = db.reader()?;
    let mut leases = Vec::new();
    reader.for_each_lease(|id, bytes| leases.push((id, bytes.to_vec())))?;
    let blob = reader.meta("blob")?;
    reader.for_each_meta(|_, _| ())?;
    Ok(Dump {
        records,
        leases,
        blob,
    })
}

/// What the database holds after the batches 1 to `last`, each `width` wide.
pub(super) fn expected(last: u64, width: u32) -> Dump {
    let mut leases = BTreeMap::new();
    let mut blob = None;
    let mut records = Vec::new();
    for batch in (1..=last).map(|index| batch(index, width)) {
        records.extend(batch.records.iter().flat_map(|piece| piece.iter().cloned()));
        for (id, value) in batch.leases {
            match value {
                Some(value) => leases.insert(id, value),
                None => leases.remove(&id),
            };
        }
        blob = batch.meta[0].1.clone();
    }
    Dump {
        records,
        leases: leases.into_iter().collect(),
        blob,
    }
}
