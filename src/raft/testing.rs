//! Hosts for the tests: a [`RaftCore`] with a disk that keeps what was reported durable, a state machine that
//! remembers what it applied, and a checker that observes all of them.

use super::*;
use crate::types::{Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

pub(super) fn index(index: u64) -> LogIndex {
    LogIndex(index)
}

pub(super) fn voters(ids: impl IntoIterator<Item = u64>) -> Membership {
    Membership::of_voters(ids.into_iter().map(|id| (MemberId(id), Bytes::new()))).unwrap()
}

pub(super) fn entry(at: u64, term: u64) -> Entry {
    Entry {
        term: Term(term),
        index: index(at),
        kind: EntryKind::Command,
        data: Bytes::new(),
    }
}

/// An entry whose bytes are no membership.
pub(super) fn opaque_entry(term: u64, at: u64, kind: EntryKind) -> Entry {
    Entry {
        term: Term(term),
        index: index(at),
        kind,
        data: Bytes::from_static(b"not a membership"),
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) hard_state: HardState,
    pub(super) start: LogPosition,
    pub(super) entries: Vec<Entry>,
    /// The state machine, as its own disk has it.
    pub(super) applied: LogPosition,
    pub(super) membership: Membership,
}

impl Disk {
    pub(super) fn new(membership: Membership) -> Self {
        Self {
            membership,
            ..Self::default()
        }
    }

    pub(super) fn last(&self) -> LogPosition {
        self.entries.last().map_or(self.start, Entry::position)
    }

    fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.entries
            .iter()
            .find(|entry| entry.index == index)
            .map(|entry| entry.term)
    }

    /// Writes all of `persist`, or only some of its entries.
    pub(super) fn write(&mut self, persist: &LogWrite, entries_max: Option<usize>) {
        if let Some(start) = persist.reset {
            self.start = start;
            self.entries.clear();
        }
        let count = entries_max.unwrap_or(persist.entries.len());
        for entry in persist.entries.iter().take(count) {
            self.entries.retain(|old| old.index < entry.index);
            assert_eq!(self.last().index.next(), entry.index, "the WAL has no gaps");
            self.entries.push(entry.clone());
        }
        if entries_max.is_none() {
            self.hard_state = persist.hard_state;
        }
    }

    pub(super) fn read(&self, read: ReadLog) -> Result<Vec<Entry>, Released> {
        if read.from <= self.start.index {
            return Err(Released);
        }
        let mut bytes = 0;
        let range = self
            .entries
            .iter()
            .filter(|e| e.index >= read.from && e.index <= read.to);
        let fits = |entry: &&Entry| {
            bytes += entry_bytes(entry);
            bytes == entry_bytes(entry) || bytes <= read.bytes_max
        };
        Ok(range.take_while(fits).cloned().collect())
    }

    pub(super) fn release(&mut self, through: LogIndex) {
        let through = through.min(self.applied.index).min(self.last().index);
        if through > self.start.index {
            let term = self.term(through).expect("released entries were written");
            self.start = LogPosition::new(term, through);
            self.entries.retain(|entry| entry.index > through);
        }
    }

    /// What a member finds when it starts: the entries to apply, and at most `tail` entries before them.
    pub(super) fn recover(&mut self, tail: usize) -> InitialState {
        if self.last().index < self.applied.index
            || self.start.index > self.applied.index
            || self
                .term(self.applied.index)
                .is_some_and(|term| term != self.applied.term)
        {
            self.start = self.applied;
            self.entries.clear();
        }
        let unapplied = self
            .entries
            .iter()
            .filter(|e| e.index > self.applied.index)
            .count();
        let from = self.entries.len() - unapplied;
        let from = from
            .saturating_sub(tail)
            .min(self.entries.len().saturating_sub(1));
        let mut evicted_terms = Vec::new();
        let mut term = self.start.term;
        for entry in &self.entries[..from] {
            if entry.term != term {
                term = entry.term;
                evicted_terms.push(LogPosition::new(term, entry.index));
            }
        }
        let (from, evicted_terms) = if evicted_terms.is_empty() {
            (0, evicted_terms)
        } else {
            (from, evicted_terms)
        };
        InitialState {
            hard_state: self.hard_state,
            applied: self.applied.index,
            membership: self.membership.clone(),
            start: self.start,
            evicted_terms,
            entries: self.entries[from..].to_vec(),
            awaits_snapshot: false,
        }
    }
}

/// A member with its disk.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) node: RaftCore,
    pub(super) disk: Disk,
    /// Writes that are not durable yet.
    pub(super) writes: VecDeque<LogWrite>,
    pub(super) log_reads: VecDeque<ReadLog>,
    /// The state machine in memory.
    pub(super) applied: LogPosition,
    pub(super) membership: Membership,
    /// Committed entries that are not applied yet.
    pub(super) to_apply: VecDeque<Entry>,
    pub(super) commit: LogIndex,
}

impl Host {
    pub(super) fn start(config: Config, mut disk: Disk, tail: usize) -> Self {
        let node =
            RaftCore::new(config, disk.recover(tail)).expect("the disk keeps what was written");
        Self {
            node,
            writes: VecDeque::new(),
            log_reads: VecDeque::new(),
            applied: disk.applied,
            membership: disk.membership.clone(),
            to_apply: VecDeque::new(),
            commit: LogIndex(0),
            disk,
        }
    }

    /// The oldest write becomes durable. True if there was one.
    pub(super) fn persist_one(&mut self) -> bool {
        let Some(write) = self.writes.pop_front() else {
            return false;
        };
        self.disk.write(&write, None);
        self.node.persisted(write.seq);
        true
    }

    pub(super) fn read_log_one(&mut self) -> bool {
        let Some(read) = self.log_reads.pop_front() else {
            return false;
        };
        let result = self.disk.read(read);
        self.node
            .log_read(read.reader, read.from, result)
            .expect("the disk keeps its entries");
        true
    }

    /// Applies one entry, which it returns.
    pub(super) fn apply_one(&mut self) -> Option<Entry> {
        let entry = self.to_apply.pop_front()?;
        assert_eq!(
            entry.index,
            self.applied.index.next(),
            "entries apply in order, each once"
        );
        self.applied = entry.position();
        if entry.kind == EntryKind::Membership {
            self.membership = Membership::decode(&entry.data).unwrap();
        }
        self.node.applied(entry.index);
        Some(entry)
    }

    /// The state machine's disk catches up with it.
    pub(super) fn checkpoint(&mut self) {
        self.disk.applied = self.applied;
        self.disk.membership = self.membership.clone();
    }

    /// Replaces the state machine. False if the node refuses.
    pub(super) fn install(&mut self, at: LogPosition, membership: &Membership) -> bool {
        if self.node.snapshot_starts(at).is_err() {
            return false;
        }
        self.to_apply.clear();
        self.applied = at;
        self.membership = membership.clone();
        self.checkpoint();
        self.node.snapshot_installed(at, membership.clone());
        true
    }
}

/// Observes all members, and fails the test when one breaks a rule.
#[derive(Debug, Default)]
pub(super) struct Judge {
    pub(super) leaders: BTreeMap<Term, MemberId>,
    /// Every entry that any member applied, with the term of the first member that did: the entry was committed in that term
    /// or before.
    pub(super) history: BTreeMap<LogIndex, (Entry, Term)>,
    /// Reads that wait, each with the newest index applied anywhere when it began.
    pub(super) reads: BTreeMap<u64, LogIndex>,
    pub(super) reads_served: u64,
}

impl Judge {
    /// The newest index that any member has applied, and so may have acknowledged.
    pub(super) fn acknowledged(&self) -> LogIndex {
        self.history
            .last_key_value()
            .map_or(LogIndex(0), |(&index, _)| index)
    }

    pub(super) fn saw_status(&mut self, id: MemberId, host: &Host) {
        let status = host.node.status();
        if status.role != RoleName::Leader {
            return;
        }
        let leader = *self.leaders.entry(status.term).or_insert(id);
        assert_eq!(leader, id, "one leader a term, here {}", status.term);
        for (&index, (entry, committed)) in self.history.iter().rev().take(20) {
            if *committed >= status.term {
                continue;
            }
            if let Some(term) = host.node.term_at(index) {
                assert_eq!(term, entry.term, "leader completeness at {index}");
            } else {
                assert!(
                    index < host.node.last().index,
                    "leader completeness: {index} is missing"
                );
            }
        }
    }

    pub(super) fn saw_applied(&mut self, entry: &Entry, term: Term) {
        let (first, _) = self
            .history
            .entry(entry.index)
            .or_insert_with(|| (entry.clone(), term));
        assert_eq!(first, entry, "state machine safety at {}", entry.index);
    }

    pub(super) fn saw_read(&mut self, read: ReadState) {
        let due = self.reads.remove(&read.context);
        let due = due.unwrap_or_else(|| panic!("read {} was answered twice", read.context));
        if let Ok(index) = read.outcome {
            assert!(
                index >= due,
                "stale read: {index}, but {due} was acknowledged before"
            );
            self.reads_served += 1;
        }
    }

    pub(super) fn saw_commit(host: &mut Host) {
        assert!(
            host.node.commit() >= host.commit,
            "the commit index never falls"
        );
        host.commit = host.node.commit();
    }

    /// Two logs that agree at an entry agree before it.
    pub(super) fn compare_logs(one: &Host, other: &Host) {
        let mut index = one.node.last().index.min(other.node.last().index);
        let mut agreed = false;
        while let (Some(a), Some(b)) = (one.node.term_at(index), other.node.term_at(index)) {
            assert!(
                !agreed || a == b,
                "log matching at {index}: terms {a} and {b}"
            );
            agreed |= a == b;
            if index == LogIndex(0) {
                break;
            }
            index = LogIndex(index.0 - 1);
        }
    }
}
