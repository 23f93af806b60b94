//! Opening a log: reads it, distinguishes a torn tail from damage, and cuts the tail off.
//!
//! Batches are read in order until one is not sound. The log writes a batch only once the one before it is durable. So if a sound
//! later batch follows the unsound one, the unsound one was durable once: it is damaged, and the open fails. If none follows, the
//! tags at the ends of its sectors decide (see `sectors`): a batch with a sector that was not written was never synced, and so
//! never acknowledged; it is cut off as a whole. A batch whose sectors were all written is damaged.

use super::{
    batch::{BatchHeader, BatchId, Flaw},
    catalog::{Catalog, lock},
    error::WalError,
    options::WalOptions,
    sectors::{Layout, SECTOR_BYTES},
    segment::{BATCHES_START, SegmentHeader, SegmentReader, StoredBatch},
    segment_id::SegmentId,
};
use crate::{
    storage::{
        disk::{DIRECT_ALIGN, Disk, DiskFile, OpenMode, aligned_zeros},
        encryption::Sealer,
    },
    types::{Entry, HardState, LogIndex, LogPosition},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

/// Bytes read at once.
const WINDOW_BYTES: usize = 1024 * 1024;

/// A batch that was cut off because its write was interrupted. None of it was ever acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub file: String,
    /// Where the tail started.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What was wrong with it.
    pub what: String,
}

/// What a log held when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The newest hard state. Its `commit` is never past the last entry.
    pub hard_state: HardState,
    /// The entries after the caller's `after`, without a gap, up to the last one.
    pub entries: Vec<Entry>,
    /// The position before the first entry in the log.
    pub base: LogIndex,
    /// The last entry's index; `base` if there is none. The database may be ahead of it.
    pub last: LogIndex,
    /// The newest snapshot that replaced the log, while the log still has the batch with its position.
    pub snapshot: Option<LogPosition>,
    /// What was cut off, if a crash tore the last write.
    pub cut: Option<TornTail>,
    /// Whether there was no log, so that one was created.
    pub created: bool,
}

/// A segment file in use.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) id: SegmentId,
    pub(super) name: String,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) len: u64,
    pub(super) layout: Layout,
    /// Whether its batches may be encrypted.
    pub(super) encrypted: bool,
}

impl Segment {
    /// Whether new batches go into it: it has the present format.
    pub(super) fn takes(&self, encrypted: bool) -> bool {
        self.layout.tag().is_some() && self.encrypted == encrypted
    }
}

/// Where reading ended, and the result so far.
pub(super) struct Replay {
    /// The live segments, oldest first.
    pub(super) segments: Vec<Segment>,
    /// The segment that the next batch goes to, as a position in `segments`.
    pub(super) active: usize,
    /// Where in it the next batch goes.
    pub(super) offset: u64,
    /// The number of the next batch, and of a seal in its place.
    pub(super) next: BatchId,
    /// The header checksum of the last batch.
    pub(super) previous_crc: u32,
    pub(super) salt: u64,
    pub(super) recovered: Recovered,
    /// Place and length of the last batch, if there is one: it ends in the active segment.
    last_batch: Option<(u64, u64)>,
    readers: Vec<SegmentReader>,
    /// By position in `segments`: where the last block ends, behind the last batch, that has a sector written in this life of the
    /// file.
    written_to: BTreeMap<usize, u64>,
}

/// Reads the log in `names`, the live segment files of `dir`, oldest first; there must be one.
pub(super) fn replay(
    disk: &dyn Disk,
    dir: &str,
    ids: &[SegmentId],
    options: &WalOptions,
    after: LogIndex,
    sealer: Option<&Arc<Sealer>>,
    catalog: &Mutex<Catalog>,
) -> Result<Replay, WalError> {
    let mut replay = open_segments(disk, dir, ids, options, sealer)?;
    *lock(catalog) = Catalog::new(replay.salt, sealer.cloned());
    for segment in &replay.segments {
        let (file, layout) = (Arc::clone(&segment.file), segment.layout);
        lock(catalog).add_file(segment.id, segment.name.clone(), file, layout);
    }
    let mut any = false;
    let flaw = loop {
        match replay.next_batch(any)? {
            Ok((at, offset, batch)) => {
                replay.count(at, offset, batch, any, after, catalog)?;
                any = true;
            }
            Err(flaw) => break flaw,
        }
    };
    replay.refuse_damage(&flaw)?;
    let catalog = lock(catalog);
    replay.recovered.base = catalog.base();
    replay.recovered.last = catalog.last();
    let hard_state = &mut replay.recovered.hard_state;
    hard_state.commit = hard_state.commit.min(catalog.last());
    if catalog.base() > after {
        return Err(WalError::StartsTooLate {
            first: catalog.base().next(),
            needed: after.next(),
        });
    }
    Ok(replay)
}

fn open_segments(
    disk: &dyn Disk,
    dir: &str,
    ids: &[SegmentId],
    options: &WalOptions,
    sealer: Option<&Arc<Sealer>>,
) -> Result<Replay, WalError> {
    let mut replay = Replay {
        segments: Vec::new(),
        active: 0,
        offset: BATCHES_START,
        next: BatchId(0),
        previous_crc: 0,
        salt: 0,
        recovered: Recovered::default(),
        last_batch: None,
        readers: Vec::new(),
        written_to: BTreeMap::new(),
    };
    let mode = OpenMode {
        create: false,
        direct: true,
    };
    for (at, id) in ids.iter().enumerate() {
        let name = format!("{dir}/{}", id.live_name());
        if let Some(expected) = at.checked_sub(1).map(|before| ids[before].next())
            && *id != expected
        {
            return Err(WalError::MissingSegment {
                segment: expected,
                file: format!("{dir}/{}", expected.live_name()),
            });
        }
        let io = |action| WalError::io(action, &name);
        let file = disk.open(&name, mode).map_err(io("open"))?;
        let unknown = Layout::Plain { reused: true };
        let reader = SegmentReader::new(Arc::clone(&file), WINDOW_BYTES, unknown, sealer.cloned());
        let mut reader = reader.map_err(io("read"))?;
        let block = reader.bytes(0, DIRECT_ALIGN).map_err(io("read"))?;
        let header = SegmentHeader::decode(block.unwrap_or_default(), *id, &name)?;
        if header.identity != options.identity {
            return Err(WalError::Foreign {
                file: name,
                found: header.identity,
                expected: options.identity,
            });
        }
        if at > 0 && header.salt != replay.salt {
            return Err(WalError::Damaged {
                segment: *id,
                file: name,
                offset: 0,
                what: "it belongs to another log of the same member".to_owned(),
            });
        }
        replay.salt = header.salt;
        let len = reader.len();
        refuse_lost_end(&header, &name, len)?;
        replay.readers.push(reader.with_layout(header.layout));
        replay.segments.push(Segment {
            id: *id,
            name,
            file,
            len,
            layout: header.layout,
            encrypted: header.encrypted,
        });
    }
    Ok(replay)
}

/// Refuses a file that is shorter than when it was made.
fn refuse_lost_end(header: &SegmentHeader, name: &str, len: u64) -> Result<(), WalError> {
    if len >= header.bytes {
        return Ok(());
    }
    Err(WalError::Damaged {
        segment: header.id,
        file: name.to_owned(),
        offset: len,
        what: format!(
            "the file ends here, and was made with {} bytes",
            header.bytes
        ),
    })
}

impl Replay {
    /// The next batch: it is either right behind the last one, or at the start of the next segment. `any`: whether a batch was
    /// read before; the first one is at the start of the oldest segment.
    fn next_batch(
        &mut self,
        any: bool,
    ) -> Result<Result<(usize, u64, StoredBatch), Flaw>, WalError> {
        let here = self.batch_at(self.active, self.offset, any)?;
        let is_seal = matches!(&here, Ok(batch) if batch.header.seal);
        if here.is_ok() && !is_seal {
            return Ok(here.map(|batch| (self.active, self.offset, batch)));
        }
        if any
            && self.active + 1 < self.segments.len()
            && let Ok(batch) = self.batch_at(self.active + 1, BATCHES_START, any)?
            && !batch.header.seal
        {
            return Ok(Ok((self.active + 1, BATCHES_START, batch)));
        }
        match here {
            // A seal has the hard state of the batch before it, which is known already.
            Ok(_) => Ok(Err(Flaw::NoBatch)),
            Err(flaw) => Ok(Err(flaw)),
        }
    }

    /// The batch at a place, if it is sound and the expected one.
    fn batch_at(
        &mut self,
        at: usize,
        offset: u64,
        any: bool,
    ) -> Result<Result<StoredBatch, Flaw>, WalError> {
        let id = self.segments[at].id;
        let found = self.readers[at].batch(offset, self.salt);
        let batch = match found.map_err(WalError::io("read", &self.segments[at].name))? {
            Ok(batch) => batch,
            Err(flaw) => return Ok(Err(flaw)),
        };
        let header = &batch.header;
        // If the log's first segments were released, the first batch can have any number.
        if header.segment != id || (any && header.batch != self.next) {
            return Ok(Err(Flaw::OutOfPlace {
                found: header.batch,
                segment: header.segment,
                expected: self.next,
            }));
        }
        if any && header.previous_crc != self.previous_crc {
            return Ok(Err(Flaw::BrokenChain(header.batch)));
        }
        Ok(Ok(batch))
    }

    fn count(
        &mut self,
        at: usize,
        offset: u64,
        batch: StoredBatch,
        any: bool,
        after: LogIndex,
        catalog: &Mutex<Catalog>,
    ) -> Result<(), WalError> {
        let header = batch.header;
        let mut catalog = lock(catalog);
        if !any {
            catalog.start_after(header.base);
        }
        if header.base > catalog.last() && header.reset.is_none() {
            return Err(WalError::Damaged {
                segment: header.segment,
                file: self.segments[at].name.clone(),
                offset,
                what: format!(
                    "the log jumps from entry {} to {}",
                    catalog.last(),
                    header.base.next()
                ),
            });
        }
        catalog.add(&header, offset);
        let entries = &mut self.recovered.entries;
        if let Some(term) = header.reset {
            entries.clear();
            self.recovered.snapshot = Some(LogPosition {
                index: header.base,
                term,
            });
        }
        if !batch.entries.is_empty() {
            entries.truncate(entries.partition_point(|entry| entry.index <= header.base));
        }
        entries.extend(
            batch
                .entries
                .into_iter()
                .filter(|entry| entry.index > after),
        );
        self.recovered.hard_state = header.hard_state;
        self.active = at;
        let span = header.span(self.segments[at].layout);
        self.last_batch = Some((offset, span));
        self.offset = offset + span;
        self.next = BatchId(header.batch.0 + 1);
        self.previous_crc = batch.header_crc;
        Ok(())
    }

    /// Searches all blocks behind the place where reading ended: a sound later batch proves that this place is damaged.
    fn refuse_damage(&mut self, flaw: &Flaw) -> Result<(), WalError> {
        // The checksums are right, but no version writes such content, so a crash cannot be the cause.
        if matches!(
            flaw,
            Flaw::BrokenChain(_)
                | Flaw::HeaderContent
                | Flaw::Entry(..)
                | Flaw::Encrypted(..)
                | Flaw::NoKey(_)
        ) {
            let active = &self.segments[self.active];
            return Err(WalError::Damaged {
                segment: active.id,
                file: active.name.clone(),
                offset: self.offset,
                what: flaw.to_string(),
            });
        }
        for at in self.active..self.segments.len() {
            let mut offset = if at == self.active {
                self.offset
            } else {
                BATCHES_START
            };
            while offset < self.segments[at].len {
                self.note_written(at, offset)?;
                let found = self.readers[at].header(offset, self.salt);
                let found = found.map_err(WalError::io("read", &self.segments[at].name))?;
                if let Ok((later, _)) = found
                    && later.segment == self.segments[at].id
                    && later.batch > self.next
                {
                    return Err(self.damage(flaw, &later, at, offset));
                }
                offset += DIRECT_ALIGN as u64;
            }
        }
        self.refuse_whole_write(self.active, self.offset)?;
        self.refuse_whole_write(self.active + 1, BATCHES_START)
    }

    /// Notes whether a sector of the block at `offset` was written in this life of the file.
    fn note_written(&mut self, at: usize, offset: u64) -> Result<(), WalError> {
        let block = DIRECT_ALIGN as u64;
        for sector in (offset..offset + block).step_by(SECTOR_BYTES) {
            if self.is_written(at, sector)? {
                self.written_to.insert(at, offset + block);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether this sector was written to its end in this life of the file, as far as its layout shows.
    fn is_written(&mut self, at: usize, offset: u64) -> Result<bool, WalError> {
        let Segment { name, layout, .. } = &self.segments[at];
        let sector = self.readers[at].bytes(offset, SECTOR_BYTES);
        let sector = sector.map_err(WalError::io("read", name))?;
        Ok(sector.and_then(|sector| layout.is_written(sector)) == Some(true))
    }

    /// Fails if the last batch was written completely and is not sound: a crash cannot be the cause, and the batch may have been
    /// synced.
    fn refuse_whole_write(&mut self, at: usize, offset: u64) -> Result<(), WalError> {
        if at >= self.segments.len() || !self.is_written(at, offset)? {
            return Ok(());
        }
        let (id, name) = (self.segments[at].id, self.segments[at].name.clone());
        let read = |source| WalError::io("read", &name)(source);
        let flaw = match self.readers[at].header(offset, self.salt).map_err(read)? {
            Err(flaw) => flaw,
            Ok((header, _)) => {
                let follows = header.batch == self.next && header.previous_crc == self.previous_crc;
                let any = self.last_batch.is_some();
                if header.segment != id || header.seal || (any && !follows) {
                    return Ok(());
                }
                let end = offset + header.span(self.segments[at].layout);
                for sector in (offset..end).step_by(SECTOR_BYTES) {
                    if !self.is_written(at, sector)? {
                        return Ok(());
                    }
                }
                match self.readers[at].batch(offset, self.salt).map_err(read)? {
                    Err(flaw) => flaw,
                    Ok(_) => return Ok(()),
                }
            }
        };
        Err(WalError::Damaged {
            segment: id,
            file: name,
            offset,
            what: format!("{flaw}, although all of it was written"),
        })
    }

    fn damage(&self, flaw: &Flaw, later: &BatchHeader, at: usize, offset: u64) -> WalError {
        // The damaged batch is either right behind the last sound one or at the start of a later segment. It is at that start if
        // the first sound batch found is behind it in the same segment.
        let (bad, bad_offset) = if at > self.active && offset > BATCHES_START {
            (&self.segments[at], BATCHES_START)
        } else {
            (&self.segments[self.active], self.offset)
        };
        WalError::Damaged {
            segment: bad.id,
            file: bad.name.clone(),
            offset: bad_offset,
            what: format!(
                "{flaw}, although batch {} at byte {offset} of {} was written after it",
                later.batch, self.segments[at].name
            ),
        }
    }

    /// Writes the last batch once more and syncs it, before anything depends on it. It can be read, but if the process died
    /// before its sync, or because its sync failed, its bytes may be in the page cache only.
    pub(super) fn rewrite_last_batch(&mut self) -> Result<(), WalError> {
        let segment = &self.segments[self.active];
        if let Some((offset, bytes)) = self.last_batch {
            let io = |action| WalError::io(action, &segment.name);
            // The file may end inside the padding if the write that would have made it longer was torn.
            let there = bytes.min(self.readers[self.active].len() - offset);
            let Ok(there) = usize::try_from(there) else {
                unreachable!("the batch was in memory before");
            };
            let found = self.readers[self.active].bytes(offset, there);
            let found = found.map_err(io("read"))?.unwrap_or_default();
            let (mut copy, start) = aligned_zeros(there.next_multiple_of(DIRECT_ALIGN));
            let copy = &mut copy[start..start + there.next_multiple_of(DIRECT_ALIGN)];
            copy[..found.len()].copy_from_slice(found);
            segment.file.write_at(offset, copy).map_err(io("write"))?;
        }
        let synced = segment.file.sync_data();
        synced.map_err(WalError::io("sync", &segment.name))
    }

    /// The torn batches at the end of the log, as far as they can be recognized.
    pub(super) fn torn_tails(&mut self) -> Result<Vec<TornTail>, WalError> {
        let places = [(self.active, self.offset), (self.active + 1, BATCHES_START)];
        let mut tails = Vec::new();
        for (at, offset) in places {
            if at >= self.segments.len() || offset >= self.segments[at].len {
                continue;
            }
            tails.extend(match self.segments[at].layout {
                Layout::Tagged { lives } => match self.tagged_tail(at, offset)? {
                    None => self.plain_tail(at, offset, lives > 0)?,
                    tail => tail,
                },
                Layout::Plain { reused } => self.plain_tail(at, offset, reused)?,
            });
        }
        Ok(tails)
    }

    /// All that was written behind the last batch. It must be overwritten: its sectors have the tag of this life, so they would
    /// count as written if the next batch were torn there. The tail includes one block more, since the write may have ended
    /// inside a sector.
    fn tagged_tail(&mut self, at: usize, offset: u64) -> Result<Option<TornTail>, WalError> {
        let Some(end) = self.written_to.get(&at).copied() else {
            return Ok(None);
        };
        let block = DIRECT_ALIGN as u64;
        let end = (end + block).min(self.readers[at].len().next_multiple_of(block));
        let name = &self.segments[at].name;
        let found = self.readers[at].batch(offset, self.salt);
        let flaw = found.map_err(WalError::io("read", name))?.err();
        Ok(Some(TornTail {
            file: name.clone(),
            offset,
            bytes: end - offset,
            what: flaw.unwrap_or(Flaw::NoBatch).to_string(),
        }))
    }

    /// A torn batch without any tag, recognized by its header or first block. In a reused file a torn header cannot be
    /// distinguished from leftovers.
    fn plain_tail(
        &mut self,
        at: usize,
        offset: u64,
        reused: bool,
    ) -> Result<Option<TornTail>, WalError> {
        let name = self.segments[at].name.clone();
        let reader = &mut self.readers[at];
        let found = reader.batch(offset, self.salt);
        let Err(flaw) = found.map_err(WalError::io("read", &name))? else {
            return Ok(None); // a seal
        };
        let header = reader.header(offset, self.salt);
        let bytes = match header.map_err(WalError::io("read", &name))? {
            Ok((header, _)) if header.segment == self.segments[at].id => {
                header.span(self.segments[at].layout)
            }
            Ok(_) => return Ok(None),
            Err(_) if reused => return Ok(None),
            Err(_) => match reader.bytes(offset, DIRECT_ALIGN) {
                Ok(Some(block)) if block.iter().any(|byte| *byte != 0) => DIRECT_ALIGN as u64,
                _ => return Ok(None),
            },
        };
        Ok(Some(TornTail {
            file: name,
            offset,
            // A torn write may have left a file that ends inside a block.
            bytes: bytes
                .min(reader.len() - offset)
                .next_multiple_of(DIRECT_ALIGN as u64),
            what: flaw.to_string(),
        }))
    }
}
