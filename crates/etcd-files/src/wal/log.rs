//! A whole log: what it ends with, and its entries in order.

use super::{
    directory::{self, Segment},
    error::WalError,
    records::{Found, Kind, Records},
    running,
    survivors::{RUNS_MAX, Refusal, Survivors},
};
use crate::messages::{Entry, HardState, LogSnapshot, Metadata, wire::Fields};
use bytes::Bytes;
use prost::Message;
use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

/// Notes of snapshots that are kept. etcd keeps five files.
const SNAPSHOTS_MAX: usize = 1 << 16;

/// How far terms may be ahead of the last hard state: a crash may cut the log between entries of a new term and the hard state
/// that follows them. A record of another kind that passes for an entry has a member's id for a term.
const TERMS_AHEAD_MAX: u64 = 1 << 20;

/// The log's note of a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotMark {
    pub index: u64,
    pub term: u64,
}

/// Bytes at the end of the last file that are not zero and no record: a crash has cut a write there, or the file was damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub file: PathBuf,
    /// Where the log ends.
    pub offset: u64,
    pub lost_bytes: u64,
}

/// The log of an etcd that does not run, read once and verified.
#[derive(Debug)]
pub struct Wal {
    directory: PathBuf,
    segments: Vec<Segment>,
    ignored: Vec<String>,
    metadata: Metadata,
    end: End,
    torn_tail: Option<TornTail>,
}

/// What a log comes to.
#[derive(Debug, Default)]
struct End {
    metadata: Option<Bytes>,
    hard_state: HardState,
    survivors: Survivors,
    snapshots: VecDeque<SnapshotMark>,
}

impl Wal {
    /// Reads a log's directory, usually `member/wal`, from beginning to end. Refuses that of a running etcd; nobody must start
    /// one before the last entry is read.
    pub fn open(directory: &Path) -> Result<Self, WalError> {
        let listing = directory::list(directory)?;
        let paths = listing.segments.iter();
        running::refuse_running(paths.map(|segment| segment.path.as_path()))?;
        let mut end = End::default();
        let mut torn_tail = None;
        if let Some(mut records) = Records::open(&listing.segments)? {
            while let Some(found) = records.next()? {
                end.take(&found, records.path())?;
            }
            torn_tail = records.torn_tail().cloned();
        }
        end.finish(directory)?;
        let metadata = end.metadata.clone().map(Metadata::decode);
        // It was decoded when it was read, so it fails only where it is missing.
        let metadata = metadata.and_then(Result::ok);
        Ok(Self {
            directory: directory.to_owned(),
            segments: listing.segments,
            ignored: listing.ignored,
            metadata: metadata.ok_or_else(|| WalError::NoMetadata {
                directory: directory.to_owned(),
            })?,
            end,
            torn_tail,
        })
    }

    /// The member's and the cluster's id.
    pub fn metadata(&self) -> Metadata {
        self.metadata
    }

    /// The last one that was written. Its `commit` may lag behind what was applied: see the module.
    pub fn hard_state(&self) -> HardState {
        self.end.hard_state
    }

    /// The index of the first entry that the log has; one more than `last_index` if it has none.
    pub fn first_index(&self) -> u64 {
        self.end.survivors.start().index.saturating_add(1)
    }

    /// The index of the last entry, committed or not; that of the newest snapshot if no entry follows it.
    pub fn last_index(&self) -> u64 {
        self.end.survivors.last()
    }

    /// The term of the entry or snapshot at `last_index`.
    pub fn last_term(&self) -> u64 {
        self.end.survivors.last_term()
    }

    /// The notes of snapshots that are committed, oldest first. The file of a snapshot counts only with a note here; index 0 is
    /// that of an empty store.
    pub fn snapshots(&self) -> impl DoubleEndedIterator<Item = SnapshotMark> {
        self.end.committed_snapshots()
    }

    /// What a crash left at the end.
    pub fn torn_tail(&self) -> Option<&TornTail> {
        self.torn_tail.as_ref()
    }

    /// The names of the first 100 files beside the log's that are neither of it nor temporary, such as `*.wal.broken`.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Calls `visit` with the entries behind `index` up to the hard state's `commit`, in order. Fails if the log goes on behind
    /// a snapshot from the leader and `index` is before it: the database to take then is that of the snapshot.
    pub fn committed_after<E: From<WalError>>(
        &self,
        index: u64,
        visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        self.visit(index, self.hard_state().commit, visit)
    }

    /// Calls `visit` with all entries behind `index`, in order: those that a member which is the only voter commits when it
    /// starts.
    pub fn all_after<E: From<WalError>>(
        &self,
        index: u64,
        visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        let last = self.last_index().max(self.hard_state().commit);
        self.visit(index, last, visit)
    }

    fn visit<E: From<WalError>>(
        &self,
        after: u64,
        last: u64,
        mut visit: impl FnMut(Entry) -> Result<(), E>,
    ) -> Result<(), E> {
        if last <= after {
            return Ok(());
        }
        let mut next = after + 1;
        self.check_range(next, last)?;
        let mut cursor = self.end.survivors.cursor();
        let mut records = Records::open(&self.segments)?.ok_or_else(|| self.changed())?;
        while next <= last {
            let found = records.next()?.ok_or_else(|| self.changed())?;
            if found.kind != Kind::Entry {
                continue;
            }
            let entry = entry(&found, records.path())?;
            if entry.index < next || !cursor.counts(entry.index, found.number) {
                continue;
            }
            if entry.index != next {
                return Err(self.changed().into());
            }
            visit(entry)?;
            next += 1;
        }
        Ok(())
    }

    fn check_range(&self, first: u64, last: u64) -> Result<(), WalError> {
        let (has_first, has_last) = (self.first_index(), self.last_index());
        let start = self.end.survivors.start();
        if first < has_first && start.term > 0 {
            return Err(WalError::BeforeSnapshot {
                directory: self.directory.clone(),
                first,
                index: start.index,
                term: start.term,
            });
        }
        if first < has_first || last > has_last {
            return Err(WalError::MissingEntries {
                directory: self.directory.clone(),
                first,
                last,
                has_first,
                has_last,
            });
        }
        Ok(())
    }

    fn changed(&self) -> WalError {
        let directory = self.directory.clone();
        WalError::Changed { directory }
    }
}

impl End {
    fn take(&mut self, found: &Found, file: &Path) -> Result<(), WalError> {
        match found.kind {
            Kind::Metadata => self.take_metadata(found, file),
            Kind::Entry => self.take_entry(found, file),
            Kind::State => self.take_state(found, file),
            Kind::Snapshot => self.take_snapshot(found, file),
        }
    }

    fn take_metadata(&mut self, found: &Found, file: &Path) -> Result<(), WalError> {
        let _: Metadata = decode("record of the ids", 2, found, file)?;
        let before = self.metadata.get_or_insert_with(|| found.data.clone());
        if *before != found.data {
            return Err(WalError::MetadataConflict {
                file: file.to_owned(),
                offset: found.offset,
            });
        }
        Ok(())
    }

    fn take_entry(&mut self, found: &Found, file: &Path) -> Result<(), WalError> {
        let entry = entry(found, file)?;
        let commit = self.hard_state.commit;
        if (1..=commit).contains(&entry.index) {
            return Err(WalError::ReplacesCommitted {
                file: file.to_owned(),
                offset: found.offset,
                index: entry.index,
                commit,
            });
        }
        let last = self.survivors.last();
        let appended = self.survivors.append(entry.index, entry.term, found.number);
        let (file, offset) = (file.to_owned(), found.offset);
        appended.map_err(|refusal| match refusal {
            Refusal::NotContiguous => WalError::NotContiguous {
                file,
                offset,
                last,
                found: entry.index,
            },
            Refusal::TermTooLow { min } => WalError::TermTooLow {
                file,
                offset,
                index: entry.index,
                term: entry.term,
                min,
            },
            Refusal::TooManyRuns => WalError::TooManyReplacements {
                file,
                offset,
                max: RUNS_MAX,
            },
        })
    }

    /// A checksum does not cover the kind of its record. So that no record of another kind passes for a hard state, none may go
    /// back, and none may be of term 0; raft's never does. So that a hard state does not pass for an entry, what is committed
    /// must not be of a later term.
    fn take_state(&mut self, found: &Found, file: &Path) -> Result<(), WalError> {
        let state: HardState = decode("hard state", 3, found, file)?;
        let HardState { term, commit, .. } = self.hard_state;
        if state.term < term.max(1) || state.commit < commit {
            return Err(WalError::StateGoesBack {
                file: file.to_owned(),
                offset: found.offset,
            });
        }
        self.hard_state = state;
        self.survivors.commit(state.commit);
        let index = state.commit.min(self.survivors.last());
        match self.survivors.term(index) {
            Some(entry) if entry > state.term => Err(WalError::CommittedTerm {
                file: file.to_owned(),
                offset: found.offset,
                index,
                term: entry,
                state: state.term,
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn take_snapshot(&mut self, found: &Found, file: &Path) -> Result<(), WalError> {
        let snapshot: LogSnapshot = decode("note of a snapshot", 3, found, file)?;
        let mark = SnapshotMark {
            index: snapshot.index,
            term: snapshot.term,
        };
        self.survivors.snapshot(mark);
        if self.snapshots.len() == SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(mark);
        Ok(())
    }

    // etcd: a snapshot that is noted but not committed does not count, since the note is written before the hard state.
    fn committed_snapshots(&self) -> impl DoubleEndedIterator<Item = SnapshotMark> {
        let commit = self.hard_state.commit;
        let marks = self.snapshots.iter().copied();
        marks.filter(move |mark| mark.index <= commit)
    }

    fn finish(&mut self, directory: &Path) -> Result<(), WalError> {
        self.survivors.finish(self.hard_state.commit);
        let (term, state) = (self.survivors.last_term(), self.hard_state.term);
        if term > state.saturating_add(TERMS_AHEAD_MAX) {
            return Err(WalError::TermAhead {
                directory: directory.to_owned(),
                index: self.survivors.last(),
                term,
                state,
            });
        }
        Ok(())
    }
}

fn entry(found: &Found, file: &Path) -> Result<Entry, WalError> {
    decode("entry", 4, found, file)
}

/// Decodes a record's content, which has fields of the numbers 1 to `fields` and no other.
fn decode<M: Message + Default>(
    what: &'static str,
    fields: u32,
    found: &Found,
    file: &Path,
) -> Result<M, WalError> {
    let offset = found.offset;
    let malformed = |source| WalError::Malformed {
        file: file.to_owned(),
        offset,
        what,
        source,
    };
    for field in Fields::of(&found.data) {
        let number = field.map_err(malformed)?.number;
        if number > fields {
            return Err(WalError::UnknownField {
                file: file.to_owned(),
                offset,
                what,
                number,
            });
        }
    }
    M::decode(found.data.clone()).map_err(malformed)
}
