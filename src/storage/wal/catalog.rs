//! Where each durable entry is, and reading entries for followers that lag behind.
//!
//! The catalog is all that the log's writer shares with readers: the writer adds durable batches; readers on other threads look
//! entries up and then read files without holding its lock. It has one run for about [`RUN_BYTES`] of log, not one for each
//! entry.

use super::{
    batch::BatchHeader, error::WalError, sectors::Layout, segment::SegmentReader,
    segment_id::SegmentId,
};
use crate::{
    storage::{disk::DiskFile, encryption::Sealer},
    types::{Entry, LogIndex},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many bytes of log a run covers: finding one entry reads at most about this much.
const RUN_BYTES: u64 = 256 * 1024;

/// Entries with consecutive indexes in consecutive batches of one segment.
///
/// Invariants: `first <= last`, `start < end`; the batches from `start` to `end` hold all of `first..=last` in order,
/// and after them perhaps entries that were replaced since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    segment: SegmentId,
    start: u64,
    end: u64,
    first: LogIndex,
    last: LogIndex,
    /// Whether further batches may be added. False once its last entries were replaced.
    open: bool,
}

/// A segment as readers see it.
#[derive(Clone, Debug)]
struct SegmentFile {
    name: String,
    file: Arc<dyn DiskFile>,
    layout: Layout,
}

/// Which entries the log holds, and where.
///
/// Invariants: the runs cover `base + 1 ..= last` without a gap, in order.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    files: BTreeMap<SegmentId, SegmentFile>,
    runs: VecDeque<Run>,
    base: LogIndex,
    last: LogIndex,
    /// Counts replacements. If it changes while a reader reads, the entries that it has read may be void.
    replacements: u64,
    salt: u64,
    sealer: Option<Arc<Sealer>>,
}

impl Catalog {
    /// An empty log whose batch headers are checked with `salt`, and whose batches `sealer` decrypts.
    pub(super) fn new(salt: u64, sealer: Option<Arc<Sealer>>) -> Self {
        Self {
            salt,
            sealer,
            ..Self::default()
        }
    }

    /// The position before the first entry.
    pub(super) fn base(&self) -> LogIndex {
        self.base
    }

    /// The last entry's position; the base where there is none.
    pub(super) fn last(&self) -> LogIndex {
        self.last
    }

    /// Adds a segment's file. To be called before the first batch in it is added.
    pub(super) fn add_file(
        &mut self,
        id: SegmentId,
        name: String,
        file: Arc<dyn DiskFile>,
        layout: Layout,
    ) {
        let segment = SegmentFile { name, file, layout };
        self.files.insert(id, segment);
    }

    /// The first batch of the whole log says where the log starts.
    pub(super) fn start_after(&mut self, base: LogIndex) {
        assert!(
            self.runs.is_empty(),
            "only an empty log can be given a start"
        );
        self.base = base;
        self.last = base;
    }

    /// Adds a durable batch, which lies at offset `start` of its segment. Its base must not be past [`Self::last`].
    pub(super) fn add(&mut self, header: &BatchHeader, start: u64) {
        if header.reset.is_some() {
            self.replacements += 1;
            self.runs.clear();
            self.start_after(header.base);
        } else if header.base < self.last && header.entries > 0 {
            self.replace_after(header.base);
        }
        if header.entries == 0 {
            return;
        }
        assert!(
            header.base == self.last,
            "a batch after {} leaves a gap behind {}",
            header.base,
            self.last
        );
        self.last = header.last();
        let segment = self.files.get(&header.segment);
        let segment = segment.expect("a segment is known before a batch in it counts");
        let end = start + header.span(segment.layout);
        match self.runs.back_mut() {
            Some(run)
                if run.open && run.segment == header.segment && end - run.start <= RUN_BYTES =>
            {
                run.end = end;
                run.last = self.last;
            }
            _ => self.runs.push_back(Run {
                segment: header.segment,
                start,
                end,
                first: header.base.next(),
                last: self.last,
                open: true,
            }),
        }
    }

    fn replace_after(&mut self, base: LogIndex) {
        self.replacements += 1;
        while self.runs.back().is_some_and(|run| run.first > base) {
            self.runs.pop_back();
        }
        if let Some(run) = self.runs.back_mut() {
            run.last = run.last.min(base);
            run.open = false;
        }
        self.last = base;
        self.base = self.base.min(base);
    }

    /// Whether no entry after `through` lies in `id`.
    pub(super) fn holds_only_through(&self, id: SegmentId, through: LogIndex) -> bool {
        let mut inside = self.runs.iter().filter(|run| run.segment == id);
        inside.all(|run| run.last <= through)
    }

    /// Forgets the oldest segment and its entries.
    pub(super) fn forget(&mut self, id: SegmentId) {
        self.files.remove(&id);
        while let Some(run) = self.runs.front().filter(|run| run.segment == id) {
            self.base = run.last;
            self.runs.pop_front();
        }
    }

    /// The run that holds `index`.
    fn find(&self, index: LogIndex) -> Option<Run> {
        let at = self.runs.partition_point(|run| run.last < index);
        self.runs.get(at).copied().filter(|run| run.first <= index)
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut last = self.base;
        for run in &self.runs {
            assert!(run.first == last.next(), "a gap before {run:?}");
            assert!(run.first <= run.last, "an empty {run:?}");
            assert!(run.start < run.end, "no bytes in {run:?}");
            assert!(self.files.contains_key(&run.segment), "no file for {run:?}");
            last = run.last;
        }
        assert!(
            last == self.last,
            "runs end at {last}, log at {}",
            self.last
        );
    }
}

/// Locks the catalog. It is consistent even after a panic in another thread, since every change is made under one lock.
pub(super) fn lock(catalog: &Mutex<Catalog>) -> MutexGuard<'_, Catalog> {
    catalog.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads durable entries, from any thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WalReader {
    catalog: Arc<Mutex<Catalog>>,
}

impl WalReader {
    pub(super) fn new(catalog: Arc<Mutex<Catalog>>) -> Self {
        Self { catalog }
    }

    /// The first and last durable entry; `None` if the log is empty.
    pub fn bounds(&self) -> Option<(LogIndex, LogIndex)> {
        let catalog = lock(&self.catalog);
        (catalog.base < catalog.last).then(|| (catalog.base.next(), catalog.last))
    }

    /// The oldest position after which the log has at most `bytes` bytes, to the precision of a run.
    pub fn before_newest(&self, bytes: u64) -> LogIndex {
        let catalog = lock(&self.catalog);
        let mut left = bytes;
        for run in catalog.runs.iter().rev() {
            match left.checked_sub(run.end - run.start) {
                Some(rest) => left = rest,
                None => return run.last,
            }
        }
        catalog.base
    }

    /// Durable entries from `from` on, in order: as many as fit `bytes_max` bytes of data, but at least one.
    ///
    /// Empty when `from` is past the last durable entry; [`WalError::Released`] when it is before the first. The entries were in
    /// the log together at one moment; they may be replaced right after.
    pub fn read(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<Entry>, WalError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut full = false;
        let mut seen = lock(&self.catalog).replacements;
        loop {
            let next = entries.last().map_or(from, |last| last.index.next());
            let (run, segment, salt, sealer) = {
                let catalog = lock(&self.catalog);
                if catalog.replacements != seen {
                    seen = catalog.replacements;
                    entries.clear();
                    full = false;
                    continue;
                }
                if from <= catalog.base {
                    return Err(WalError::Released {
                        asked: from,
                        first: catalog.base.next(),
                    });
                }
                let Some(run) = catalog.find(next).filter(|_| !full) else {
                    return Ok(entries);
                };
                let Some(segment) = catalog.files.get(&run.segment) else {
                    return Ok(entries);
                };
                (run, segment.clone(), catalog.salt, catalog.sealer.clone())
            };
            match read_run(run, &segment, salt, sealer, next) {
                // Once full, the next turn only checks that nothing was replaced meanwhile.
                Ok(found) => full = take_within(&mut entries, found, bytes_max),
                // The segment may have been released, and even reused, while it was read.
                Err(_) if lock(&self.catalog).find(next) != Some(run) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Moves entries from `found` while all fit `bytes_max` bytes of data; the first always does. Returns whether it is full.
fn take_within(entries: &mut Vec<Entry>, found: Vec<Entry>, bytes_max: usize) -> bool {
    let mut bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
    for entry in found {
        bytes = bytes.saturating_add(entry.data.len());
        if !entries.is_empty() && bytes > bytes_max {
            return true;
        }
        entries.push(entry);
    }
    bytes >= bytes_max
}

/// The entries of a run from `from` on.
fn read_run(
    run: Run,
    segment: &SegmentFile,
    salt: u64,
    sealer: Option<Arc<Sealer>>,
    from: LogIndex,
) -> Result<Vec<Entry>, WalError> {
    let SegmentFile { name, file, layout } = segment;
    let window = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
    let reader = SegmentReader::new(Arc::clone(file), window, *layout, sealer);
    let mut reader = reader.map_err(WalError::io("read", name))?;
    let mut entries = Vec::new();
    let mut next = run.first;
    let mut offset = run.start;
    while offset < run.end && next <= run.last {
        let damaged = |what: String| WalError::Damaged {
            segment: run.segment,
            file: name.clone(),
            offset,
            what,
        };
        let batch = reader
            .batch(offset, salt)
            .map_err(WalError::io("read", name))?
            .map_err(|flaw| damaged(flaw.to_string()))?;
        if batch.header.segment != run.segment {
            return Err(damaged("a batch of another segment".to_owned()));
        }
        offset += batch.header.span(*layout);
        for entry in batch.entries {
            if entry.index == next && next <= run.last {
                next = next.next();
                if entry.index >= from {
                    entries.push(entry);
                }
            }
        }
    }
    if next <= run.last {
        return Err(WalError::Damaged {
            segment: run.segment,
            file: name.clone(),
            offset: run.start,
            what: format!("entry {next} is not where it was written"),
        });
    }
    Ok(entries)
}
