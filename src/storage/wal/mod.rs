//! The write-ahead log: makes entries and hard state durable before they are acknowledged.
//!
//! # How it works
//!
//! The log is a sequence of segments, files of one size that were filled with zeros in advance. Appends are encoded into one
//! aligned buffer; [`Wal::flush`] writes it as one batch, padded to whole 4 KiB blocks, and syncs once. Overwriting existing
//! bytes changes no metadata of the file system, so the sync is a single request to the device.
//!
//! ```text
//! wal/0000000000000007.seg   [header][batch 90: entries 311..340][batch 91: entry 341]........unused
//! wal/0000000000000008.seg   [header][batch 92: entries 342..700][batch 93: entries 699..710][seal]
//! wal/0000000000000009.seg   [header] prepared, waiting
//! wal/0000000000000005.free  waiting to be reused
//! ```
//!
//! Batch 93 starts with an entry that the log already had: it replaces 699 and 700, as Raft's truncation does. Once entries up to
//! 341 are released, segment 7 becomes a `.free` file, which is later reused with a new number; its old batches contain number 7,
//! so they are ignored from then on. Each batch header contains the hard state, so that the newest batch is enough to restore it.
//!
//! # Torn tail or damage
//!
//! A batch is written only once the one before it is durable. So a bad batch with a sound later one behind it was
//! durable once: the log is damaged, and refuses to open. A *seal* behind the last batch is such a later one; it is written
//! when the log is idle or stops, and at every start, and the next batch overwrites it.
//!
//! A bad batch with nothing behind it was torn by a crash, or written whole and damaged since. Each sector of a batch ends with a
//! tag that this place of the file never had before (`sectors`), which shows whether the sector was written. If a sector was not,
//! the batch was never synced, and it is cut off; if all were, the log is damaged.
//!
//! # What it never does
//!
//! It never retries a failed write or sync, never decodes an entry's data, and never decides what may be released.

mod batch;
mod buffer;
mod catalog;
#[cfg(test)]
mod crash_tests;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod options;
mod recovery;
mod sectors;
mod segment;
mod segment_id;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod torn_tests;

pub use catalog::WalReader;
pub use error::WalError;
pub use options::WalOptions;
pub use recovery::{Recovered, TornTail};
pub use segment_id::SegmentId;

use crate::{
    failpoint::{FailPoint, hit},
    storage::{
        disk::{DIRECT_ALIGN, Disk, OpenMode, aligned_zeros},
        encryption::KEYRING,
    },
    types::{Entry, HardState, LogIndex, LogPosition, Term},
};
use batch::{BatchHeader, BatchId, ENTRY_HEADER_BYTES};
use buffer::BatchBuffer;
use catalog::{Catalog, lock};
use recovery::{Segment, replay};
use sectors::Layout;
use segment::{BATCHES_START, SegmentHeader, layout_in};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

/// The largest batch, except one that holds a single larger entry. Bounds the buffer.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of zeros written at once when a segment is made.
const ZEROS_BYTES: usize = 1024 * 1024;
/// The name of a segment file until it is complete. After a crash it is removed.
const UNFINISHED: &str = "unfinished.tmp";

/// What to append, in this order: snapshot, hard state, entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Append<'a> {
    /// A snapshot up to this entry replaces the log: all entries so far are void, the next one follows this.
    pub snapshot: Option<LogPosition>,
    /// Replaces the hard state.
    pub hard_state: Option<HardState>,
    /// Consecutive entries. If the log already has the first one's index, that entry and all after it are replaced.
    pub entries: &'a [Entry],
}

/// Figures about a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalStats {
    /// Segment files the log needs, the prepared one among them.
    pub segments: usize,
    /// Files waiting to be reused.
    pub free_segments: usize,
    /// Batches written since the log was opened.
    pub batches: u64,
    /// Bytes written for them, padding included.
    pub batch_bytes: u64,
    /// Whether writes bypass the page cache.
    pub direct: bool,
}

/// What was appended since the last flush, besides the entries in the buffer.
#[derive(Debug, Default)]
struct Pending {
    base: LogIndex,
    entries: u32,
    reset: Option<Term>,
    hard_state: bool,
    dirty: bool,
}

/// The log's one writer.
///
/// Invariants: all batches before `offset` of the active segment are durable; no sound later batch follows `offset`, except a
/// seal numbered `next_batch`. `last` includes entries that are not durable yet, the catalog does not.
#[derive(Debug)]
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: String,
    options: WalOptions,
    salt: u64,
    older: VecDeque<Segment>,
    active: Segment,
    prepared: Option<Segment>,
    free: Vec<FreeFile>,
    offset: u64,
    next_batch: BatchId,
    previous_crc: u32,
    sealed: bool,
    poisoned: bool,
    hard_state: HardState,
    last: LogIndex,
    pending: Pending,
    buffer: BatchBuffer,
    /// Whether batches are encrypted.
    encrypts: bool,
    catalog: Arc<Mutex<Catalog>>,
    stats: WalStats,
}

impl Wal {
    /// Opens the log in `dir` of the data directory, or creates one.
    ///
    /// `after` is the last entry that the database contains: only later ones are returned, and the log must not start after the
    /// next one. When a snapshot is installed, its database must be durable before the snapshot's position is appended here.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &str,
        options: WalOptions,
        after: LogIndex,
    ) -> Result<(Self, Recovered), WalError> {
        options.check();
        let names = durable_names(&*disk, dir)?;
        let mut ids: Vec<SegmentId> = names
            .iter()
            .filter_map(|name| SegmentId::from_live_name(name))
            .collect();
        let sealer = disk.sealer().map_err(WalError::io("write", KEYRING))?;
        let encrypts = sealer.is_some();
        let created = ids.is_empty();
        let mut free = usable_free_files(&*disk, dir, &names, &options, encrypts)?;
        if created {
            let first = SegmentId(1);
            let maker = Maker::new(&*disk, dir, &options, options.salt, encrypts);
            maker.publish(maker.make(first, free.pop())?)?;
            ids.push(first);
        }
        let catalog = Arc::new(Mutex::new(Catalog::default()));
        let mut replay = replay(
            &*disk,
            dir,
            &ids,
            &options,
            after,
            sealer.as_ref(),
            &catalog,
        )?;
        replay.recovered.created = created;
        let tails = replay.torn_tails()?;
        replay.recovered.cut = tails.first().cloned();
        replay.rewrite_last_batch()?;
        let mut behind = replay.segments.split_off(replay.active + 1);
        let Some(active) = replay.segments.pop() else {
            unreachable!("the active segment is one of those that were read");
        };
        let mut wal = Self {
            prepared: (!behind.is_empty()).then(|| behind.remove(0)),
            older: replay.segments.into(),
            offset: replay.offset,
            next_batch: replay.next,
            previous_crc: replay.previous_crc,
            salt: replay.salt,
            sealed: false,
            poisoned: false,
            hard_state: replay.recovered.hard_state,
            last: replay.recovered.last,
            pending: Pending::default(),
            buffer: BatchBuffer::new(sealer),
            encrypts,
            stats: WalStats {
                direct: active.file.is_direct(),
                ..WalStats::default()
            },
            dir: dir.to_owned(),
            disk,
            options,
            active,
            free,
            catalog,
        };
        for extra in behind.into_iter().rev() {
            wal.retire(&extra)?;
        }
        wal.cut(&tails)?;
        // Batches go only into segments of the present format.
        let encrypts = wal.encrypts;
        if let Some(other) = wal.prepared.take_if(|next| !next.takes(encrypts)) {
            wal.retire(&other)?;
        }
        Ok((wal, replay.recovered))
    }

    /// Encodes into the pending batch, which is durable only once [`Wal::flush`] returns. Flushes by itself before entries that
    /// replace pending ones, before a snapshot, and before a batch becomes larger than 8 MiB.
    ///
    /// The entries must leave no gap after the log's last one; a gap is a bug of the caller.
    pub fn append(&mut self, append: &Append<'_>) -> Result<(), WalError> {
        self.refuse_if_poisoned()?;
        if let Some(mark) = append.snapshot {
            self.flush()?;
            self.pending.reset = Some(mark.term);
            self.pending.base = mark.index;
            self.pending.dirty = true;
            self.last = mark.index;
        }
        if let Some(hard_state) = append.hard_state
            && hard_state != self.hard_state
        {
            self.hard_state = hard_state;
            self.pending.dirty = true;
            self.pending.hard_state = true;
        }
        for entry in append.entries {
            self.append_entry(entry)?;
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: &Entry) -> Result<(), WalError> {
        assert!(
            entry.index <= self.last.next(),
            "entry {} leaves a gap after {}",
            entry.index,
            self.last
        );
        let bytes = ENTRY_HEADER_BYTES + entry.data.len();
        let replaces = entry.index <= self.last;
        let full = self.buffer.payload_len() + bytes > BATCH_BYTES_MAX;
        let splits = replaces && self.pending.reset.is_some();
        if splits || (self.pending.entries > 0 && (replaces || full)) {
            self.flush()?;
        }
        if replaces {
            assert!(
                entry.index > lock(&self.catalog).base(),
                "entry {} was released or is covered by a snapshot: it is committed and cannot be replaced",
                entry.index
            );
        }
        if self.pending.entries == 0 && self.pending.reset.is_none() {
            self.pending.base = LogIndex(entry.index.0 - 1);
        }
        self.buffer.push(entry);
        self.pending.entries += 1;
        self.pending.dirty = true;
        self.last = entry.index;
        Ok(())
    }

    /// Makes all appended entries and state durable, with one write and one sync. Does nothing if there are none.
    ///
    /// An error is final: the content of the disk is unknown, so every later call fails too.
    pub fn flush(&mut self) -> Result<(), WalError> {
        self.refuse_if_poisoned()?;
        if !self.pending.dirty {
            return Ok(());
        }
        // Reset below: every early return is an error, and leaves the log poisoned.
        self.poisoned = true;
        if self.pending.hard_state {
            hit(FailPoint::BeforeHardState);
        }
        hit(FailPoint::BeforeWalWrite);
        let header = self.write_batch()?;
        hit(FailPoint::AfterWalWrite);
        let file = &self.active.file;
        hit(FailPoint::BeforeWalSync);
        file.sync_data()
            .map_err(WalError::io("sync", &self.active.name))?;
        hit(FailPoint::AfterWalSync);
        if self.pending.hard_state {
            hit(FailPoint::AfterHardState);
        }
        self.poisoned = false;
        lock(&self.catalog).add(&header, self.offset);
        let span = header.span(self.active.layout);
        self.offset += span;
        self.active.len = self.active.len.max(self.offset);
        self.next_batch = BatchId(self.next_batch.0 + 1);
        self.sealed = false;
        self.pending = Pending::default();
        self.buffer.clear();
        self.stats.batches += 1;
        self.stats.batch_bytes += span;
        Ok(())
    }

    /// Writes the pending batch, into the next segment if this one has no room for it.
    fn write_batch(&mut self) -> Result<BatchHeader, WalError> {
        let bytes = self.buffer.span() as u64;
        // A batch larger than a segment makes an empty one grow.
        let is_full = self.offset + bytes > self.active.len && self.offset > BATCHES_START;
        if is_full || !self.active.takes(self.encrypts) {
            self.roll()?;
        }
        let Some(tag) = self.active.layout.tag() else {
            unreachable!("segments are made in the present format");
        };
        let base = match (self.pending.entries, self.pending.reset) {
            (0, None) => self.last,
            _ => self.pending.base,
        };
        let mut header = BatchHeader {
            base,
            reset: self.pending.reset,
            entries: self.pending.entries,
            ..self.blank_header(self.active.id)
        };
        let sealed = self.buffer.seal(&header.place());
        if sealed.map_err(WalError::io("encrypt a batch of", &self.active.name))? {
            header.encrypted = true;
            header.payload_crc = self.buffer.payload_crc();
        }
        let sectors = self.buffer.sectors(tag);
        self.previous_crc = header.encode(self.salt, sectors);
        self.active
            .file
            .write_at(self.offset, sectors)
            .map_err(WalError::io("write", &self.active.name))?;
        Ok(header)
    }

    /// The header of a batch with the buffer's payload, or of a seal.
    fn blank_header(&self, segment: SegmentId) -> BatchHeader {
        let payload_len = u32::try_from(self.buffer.payload_len());
        BatchHeader {
            segment,
            batch: self.next_batch,
            previous_crc: self.previous_crc,
            base: self.last,
            reset: None,
            hard_state: self.hard_state,
            seal: false,
            encrypted: false,
            entries: 0,
            payload_len: payload_len.expect("a batch is bounded far below 4 GiB"),
            payload_crc: self.buffer.payload_crc(),
        }
    }

    fn roll(&mut self) -> Result<(), WalError> {
        self.prepare_segment()?;
        let Some(next) = self.prepared.take() else {
            unreachable!("a segment was prepared the line before");
        };
        let file = Arc::clone(&next.file);
        lock(&self.catalog).add_file(next.id, next.name.clone(), file, next.layout);
        let full = std::mem::replace(&mut self.active, next);
        if self.offset > BATCHES_START {
            self.older.push_back(full);
        } else {
            // It has another format and holds no batch, so it is the log's first segment. The first batch is looked for only in
            // the oldest segment, so this one goes before there is a batch in the next.
            lock(&self.catalog).forget(full.id);
            self.retire(&full)?;
        }
        self.offset = BATCHES_START;
        Ok(())
    }

    /// Makes the next segment in advance, so that no flush has to. To be called when the log is idle.
    ///
    /// If it fails for lack of space, the log stays usable until the current segment is full; see [`Wal::is_poisoned`].
    pub fn prepare_spare(&mut self) -> Result<(), WalError> {
        self.refuse_if_poisoned()?;
        self.prepare_segment()
    }

    fn prepare_segment(&mut self) -> Result<(), WalError> {
        if self.prepared.is_some() {
            return Ok(());
        }
        let (disk, options) = (&*self.disk, &self.options);
        let maker = Maker::new(disk, &self.dir, options, self.salt, self.encrypts);
        let made = maker.make(self.active.id.next(), self.free.pop())?;
        let was_poisoned = std::mem::replace(&mut self.poisoned, true);
        self.prepared = Some(maker.publish(made)?);
        self.poisoned = was_poisoned;
        Ok(())
    }

    /// Releases the segments that hold only entries up to `through`, except the active one. Their files are reused.
    ///
    /// The database must contain those entries durably. Returns the number of released segments.
    pub fn release(&mut self, through: LogIndex) -> Result<usize, WalError> {
        self.refuse_if_poisoned()?;
        let mut released = 0;
        while let Some(oldest) = self.older.front()
            && lock(&self.catalog).holds_only_through(oldest.id, through)
        {
            let oldest = oldest.clone();
            self.older.pop_front();
            lock(&self.catalog).forget(oldest.id);
            self.poisoned = true;
            self.retire(&oldest)?;
            self.poisoned = false;
            released += 1;
        }
        Ok(released)
    }

    /// Removes a segment from the log, durably before it returns, so that a crash cannot leave a gap between segments.
    fn retire(&mut self, segment: &Segment) -> Result<(), WalError> {
        // One whose entries are not encrypted is removed once encryption was turned on.
        let is_needed = self.free.len() < self.options.free_segments_max
            && segment.len == self.options.segment_bytes
            && segment.encrypted == self.encrypts;
        let lives = segment.layout.lives_after().filter(|_| is_needed);
        if let Some(lives) = lives {
            let to = format!("{}/{}", self.dir, segment.id.free_name());
            let renamed = self.disk.rename(&segment.name, &to);
            renamed.map_err(WalError::io("rename", &segment.name))?;
            let id = segment.id;
            self.free.push(FreeFile { id, lives });
        } else {
            let removed = self.disk.remove(&segment.name);
            removed.map_err(WalError::io("remove", &segment.name))?;
        }
        let synced = self.disk.sync_dir(&self.dir);
        synced.map_err(WalError::io("sync", &self.dir))?;
        if self.encrypts && !segment.encrypted && self.plain_segments() == 0 {
            tracing::info!("the log has no segments from before encryption was turned on any more");
        }
        Ok(())
    }

    /// How many segments are from before encryption was turned on.
    pub fn plain_segments(&self) -> usize {
        let segments = self.older.iter().chain([&self.active]);
        segments
            .filter(|segment| self.encrypts && !segment.encrypted)
            .count()
    }

    /// Flushes, then writes a seal behind the last batch, which proves that this batch was durable: if it loses sectors later,
    /// that counts as damage. The seal is not synced, since nothing depends on it. For an idle log and a clean stop.
    pub fn seal(&mut self) -> Result<(), WalError> {
        self.flush()?;
        if !self.sealed {
            self.poisoned = true;
            self.write_seal()?;
            self.poisoned = false;
        }
        Ok(())
    }

    /// Writes a seal where the next batch will go, unless there is no block for it yet.
    fn write_seal(&mut self) -> Result<(), WalError> {
        let block = DIRECT_ALIGN as u64;
        let here = self.offset + block <= self.active.len;
        let place = if here {
            Some((&self.active, self.offset))
        } else {
            self.prepared.as_ref().map(|next| (next, BATCHES_START))
        };
        let Some((segment, offset)) = place else {
            return Ok(());
        };
        let header = BatchHeader {
            seal: true,
            ..self.blank_header(segment.id)
        };
        let (mut bytes, start) = aligned_zeros(DIRECT_ALIGN);
        let block = &mut bytes[start..start + DIRECT_ALIGN];
        header.encode(self.salt, block);
        let written = segment.file.write_at(offset, block);
        written.map_err(WalError::io("write", &segment.name))?;
        self.sealed = true;
        Ok(())
    }

    /// Overwrites torn tails durably, so that they never come back, and seals the log where it ends now.
    fn cut(&mut self, tails: &[TornTail]) -> Result<(), WalError> {
        for tail in tails {
            let torn_next = self.prepared.as_ref().filter(|next| next.name == tail.file);
            let segment = torn_next.unwrap_or(&self.active);
            write_zeros(segment, tail.offset, tail.bytes)?;
            let synced = segment.file.sync_data();
            synced.map_err(WalError::io("sync", &segment.name))?;
        }
        self.write_seal()?;
        for segment in [Some(&self.active), self.prepared.as_ref()]
            .into_iter()
            .flatten()
        {
            let synced = segment.file.sync_data();
            synced.map_err(WalError::io("sync", &segment.name))?;
        }
        Ok(())
    }

    /// A reader of durable entries, for any thread.
    pub fn reader(&self) -> WalReader {
        WalReader::new(Arc::clone(&self.catalog))
    }

    /// The index of the last appended entry, durable or not; the index before the first if there is none.
    pub fn last(&self) -> LogIndex {
        self.last
    }

    /// The hard state last appended, durable or not.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Bytes of entries that the next flush writes.
    pub fn pending_bytes(&self) -> usize {
        self.buffer.payload_len()
    }

    /// Whether the log refuses all operations after an error.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Figures for status and metrics.
    pub fn stats(&self) -> WalStats {
        WalStats {
            segments: self.older.len() + 1 + usize::from(self.prepared.is_some()),
            free_segments: self.free.len(),
            ..self.stats
        }
    }

    fn refuse_if_poisoned(&self) -> Result<(), WalError> {
        if self.poisoned {
            return Err(WalError::Poisoned);
        }
        Ok(())
    }
}

/// A released file that waits to be reused.
#[derive(Clone, Copy, Debug)]
struct FreeFile {
    /// The number of the last segment that used it.
    id: SegmentId,
    /// How often it was a segment.
    lives: u32,
}

struct Maker<'a> {
    disk: &'a dyn Disk,
    dir: &'a str,
    options: &'a WalOptions,
    salt: u64,
    encrypts: bool,
}

/// A complete segment file that still has another name.
struct Made {
    segment: Segment,
    present_name: String,
}

impl<'a> Maker<'a> {
    fn new(
        disk: &'a dyn Disk,
        dir: &'a str,
        options: &'a WalOptions,
        salt: u64,
        encrypts: bool,
    ) -> Self {
        Self {
            disk,
            dir,
            options,
            salt,
            encrypts,
        }
    }

    /// Makes segment `id` out of a waiting file, or of a new one. All its bytes are durable, its name is not.
    fn make(&self, id: SegmentId, free: Option<FreeFile>) -> Result<Made, WalError> {
        let present_name = match free {
            Some(free) => format!("{}/{}", self.dir, free.id.free_name()),
            None => format!("{}/{UNFINISHED}", self.dir),
        };
        let made = self.write(id, &present_name, free.map_or(0, |free| free.lives));
        if made.is_err() {
            // Frees its space, if possible; the first error is returned.
            let _ignored = self.disk.remove(&present_name).is_ok();
        }
        made
    }

    /// `lives` is how often the file was a segment before.
    fn write(&self, id: SegmentId, name: &str, lives: u32) -> Result<Made, WalError> {
        let is_new = lives == 0;
        let mode = OpenMode {
            create: is_new,
            direct: true,
        };
        let layout = Layout::Tagged { lives };
        let file = self.disk.open(name, mode);
        let segment = Segment {
            id,
            name: name.to_owned(),
            file: file.map_err(WalError::io("create", name))?,
            len: self.options.segment_bytes,
            layout,
            encrypted: self.encrypts,
        };
        if is_new {
            write_zeros(&segment, 0, segment.len)?;
        }
        let header = SegmentHeader {
            id,
            identity: self.options.identity,
            salt: self.salt,
            layout,
            encrypted: self.encrypts,
            bytes: segment.len,
        };
        let (mut bytes, start) = aligned_zeros(DIRECT_ALIGN);
        let block = &mut bytes[start..start + DIRECT_ALIGN];
        header.encode(block);
        let file = &segment.file;
        file.write_at(0, block)
            .map_err(WalError::io("write", name))?;
        file.sync_data().map_err(WalError::io("sync", name))?;
        Ok(Made {
            segment: Segment {
                name: format!("{}/{}", self.dir, id.live_name()),
                ..segment
            },
            present_name: name.to_owned(),
        })
    }

    /// Renames the file to its final name, durably: from then on it is part of the log.
    fn publish(&self, made: Made) -> Result<Segment, WalError> {
        let Made {
            segment,
            present_name,
        } = made;
        let renamed = self.disk.rename(&present_name, &segment.name);
        renamed.map_err(WalError::io("rename", &present_name))?;
        let synced = self.disk.sync_dir(self.dir);
        synced.map_err(WalError::io("sync", self.dir))?;
        Ok(segment)
    }
}

/// The names in the log's directory.
fn durable_names(disk: &dyn Disk, dir: &str) -> Result<Vec<String>, WalError> {
    let names = disk.list(dir).map_err(WalError::io("list", dir))?;
    if !names.is_empty() {
        // The process before may have died before its renames were durable.
        disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
    }
    Ok(names)
}

fn write_zeros(segment: &Segment, offset: u64, bytes: u64) -> Result<(), WalError> {
    let (zeros, start) = aligned_zeros(ZEROS_BYTES);
    let end = offset + bytes;
    let mut at = offset;
    while at < end {
        let part = usize::try_from(end - at).map_or(ZEROS_BYTES, |left| left.min(ZEROS_BYTES));
        let written = segment.file.write_at(at, &zeros[start..start + part]);
        written.map_err(WalError::io("write", &segment.name))?;
        at += part as u64;
    }
    Ok(())
}

/// The released files that can be reused. Removes the others: those above the maximum number, of another size, used as often as
/// there are tags, or with entries that are not encrypted although encryption is on; and an unfinished file.
fn usable_free_files(
    disk: &dyn Disk,
    dir: &str,
    names: &[String],
    options: &WalOptions,
    encrypts: bool,
) -> Result<Vec<FreeFile>, WalError> {
    let mut usable = Vec::new();
    for name in names {
        let path = format!("{dir}/{name}");
        if let Some(id) = SegmentId::from_free_name(name) {
            let lives = lives_of_free_file(disk, &path, options, encrypts)?;
            if let Some(lives) = lives.filter(|_| usable.len() < options.free_segments_max) {
                usable.push(FreeFile { id, lives });
                continue;
            }
        } else if name != UNFINISHED {
            continue;
        }
        disk.remove(&path).map_err(WalError::io("remove", &path))?;
    }
    Ok(usable)
}

/// How often a released file was a segment; `None` if it cannot be one again. After a crash its header may already be that of its
/// next life, which then counts although the file held no batch in it.
fn lives_of_free_file(
    disk: &dyn Disk,
    path: &str,
    options: &WalOptions,
    encrypts: bool,
) -> Result<Option<u32>, WalError> {
    let mode = OpenMode {
        create: false,
        direct: true,
    };
    let file = disk.open(path, mode).map_err(WalError::io("open", path))?;
    if file.len().map_err(WalError::io("read", path))? != options.segment_bytes {
        return Ok(None);
    }
    let (mut bytes, start) = aligned_zeros(DIRECT_ALIGN);
    let block = &mut bytes[start..start + DIRECT_ALIGN];
    file.read_at(0, block).map_err(WalError::io("read", path))?;
    let found = layout_in(block).filter(|(_, encrypted)| *encrypted == encrypts);
    Ok(found.and_then(|(layout, _)| layout.lives_after()))
}
