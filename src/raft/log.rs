//! A member's log: which entries exist, which are durable and committed, and the newest of them in memory.
//!
//! All entries after `start` are in the WAL, or are being written to it; memory holds the newest of them, bounded
//! in bytes. Terms are kept as runs, one for each change of term, so that the term of every entry is known without the
//! entry: comparing logs never reads the WAL.
//!
//! ```text
//!        start          first                             last
//!  released │ in the WAL  │ in memory and in the WAL        │
//!           └─────────────┴──────┬─────────┬──────┬─────────┘
//!                              stable  submitted …          commit <= last; commit may pass stable
//! ```

use crate::types::{Entry, LogIndex, LogPosition, Term};
use std::collections::VecDeque;

/// What an entry takes in memory besides its data, in bytes.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 64;

/// The size of `entry` for every bound in bytes.
pub fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD_BYTES
}

/// The result of reading from the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Slice {
    /// Entries from the requested index on; empty if the log ends before it.
    InMemory(Vec<Entry>),
    /// They must be read from the WAL.
    Evicted,
    /// They, or the entry before them, are no longer in the WAL: a snapshot is needed.
    Released,
}

/// The log. Invariants: `start.index <= commit <= last.index`; `start.index <= stable <= submitted <= last.index`;
/// entries in memory are consecutive and end at `last`; terms never fall with rising index; entries that are not
/// in memory are both stable and committed.
#[derive(Debug)]
pub(super) struct Log {
    start: LogPosition,
    last: LogPosition,
    /// The first entry of each term after `start`; ascending in both fields.
    runs: VecDeque<LogPosition>,
    entries: VecDeque<Entry>,
    cached_bytes: usize,
    cached_bytes_max: usize,
    commit: LogIndex,
    /// Durable up to here.
    stable: LogIndex,
    /// Entries up to here were given to the caller to be made durable.
    submitted: LogIndex,
}

impl Log {
    /// An empty log that continues after `start`.
    pub(super) fn new(start: LogPosition, cached_bytes_max: usize) -> Self {
        Self {
            start,
            last: start,
            runs: VecDeque::new(),
            entries: VecDeque::new(),
            cached_bytes: 0,
            cached_bytes_max,
            commit: start.index,
            stable: start.index,
            submitted: start.index,
        }
    }

    /// Adds durable entries up to `last` without loading them; `runs` has their terms.
    pub(super) fn extend_evicted(&mut self, runs: &[LogPosition], last: LogPosition) {
        assert!(
            self.entries.is_empty(),
            "evicted entries lie before those in memory"
        );
        self.runs = runs.iter().copied().collect();
        self.last = last;
        (self.stable, self.submitted, self.commit) = (last.index, last.index, last.index);
    }

    /// All entries were read from the disk, and those up to `commit` are committed.
    pub(super) fn loaded(&mut self, commit: LogIndex) {
        (self.stable, self.submitted) = (self.last.index, self.last.index);
        self.commit_to(commit);
        self.evict();
    }

    /// The last entry that was released.
    pub(super) fn start(&self) -> LogPosition {
        self.start
    }

    pub(super) fn last(&self) -> LogPosition {
        self.last
    }

    /// Bytes of entries in memory.
    pub(super) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// Bytes of entries in memory beyond what is cached: they are not committed, or not durable here.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.cached_bytes.saturating_sub(self.cached_bytes_max)
    }

    pub(super) fn commit(&self) -> LogIndex {
        self.commit
    }

    pub(super) fn stable(&self) -> LogIndex {
        self.stable
    }

    /// The first index in memory; one past the end if none is.
    fn first(&self) -> LogIndex {
        let len = u64::try_from(self.entries.len()).expect("usize fits u64");
        LogIndex(self.last.index.0 + 1 - len)
    }

    /// The position of `index` in `entries`; it must be in memory or one past the end.
    fn position(&self, index: LogIndex) -> usize {
        let offset = index.0.checked_sub(self.first().0);
        let offset = offset.expect("the caller asks for an index in memory");
        usize::try_from(offset).expect("an offset into memory fits usize")
    }

    /// The term of the entry at `index`, which need not be in memory. None outside the log.
    pub(super) fn term(&self, index: LogIndex) -> Option<Term> {
        if index == self.last.index {
            return Some(self.last.term);
        }
        if index < self.start.index || index > self.last.index {
            return None;
        }
        Some(self.run_of(index).term)
    }

    /// The run that holds `index`, or `start` if no run does.
    fn run_of(&self, index: LogIndex) -> LogPosition {
        let after = self.runs.partition_point(|run| run.index <= index);
        after.checked_sub(1).map_or(self.start, |at| self.runs[at])
    }

    /// Whether this log has the entry `id`.
    pub(super) fn contains(&self, id: LogPosition) -> bool {
        self.term(id.index) == Some(id.term)
    }

    /// The last entry at or before `limit.index` whose term is at most `limit.term`: the last entry that this log and one
    /// with `limit` can have in common. Term zero if it lies before the start.
    pub(super) fn last_possible_match(&self, limit: LogPosition) -> LogPosition {
        let mut index = limit.index.min(self.last.index);
        while index > self.start.index {
            let run = self.run_of(index);
            if run.term <= limit.term {
                return LogPosition::new(run.term, index);
            }
            index = LogIndex(run.index.0 - 1);
        }
        if index == self.start.index && self.start.term <= limit.term {
            return self.start;
        }
        LogPosition::new(
            Term(0),
            index.min(LogIndex(self.start.index.0.saturating_sub(1))),
        )
    }

    /// Appends one entry at the end.
    pub(super) fn push(&mut self, entry: Entry) {
        assert_eq!(
            entry.index,
            self.last.index.next(),
            "entries append without a gap"
        );
        assert!(
            entry.term >= self.last.term,
            "terms never fall: {} after {}",
            entry.term,
            self.last.term
        );
        let id = entry.position();
        if self.runs.back().map_or(self.start.term, |run| run.term) != entry.term {
            self.runs.push_back(id);
        }
        self.last = id;
        self.cached_bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Drops the entries from `from` on, because the leader has others there.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        assert!(
            from > self.commit,
            "entry {from} is overwritten but {} is committed: a quorum lost entries it had acknowledged",
            self.commit
        );
        assert!(from >= self.first(), "uncommitted entries stay in memory");
        while self.last.index >= from {
            let gone = self
                .entries
                .pop_back()
                .expect("entries from `from` on are in memory");
            self.cached_bytes -= entry_bytes(&gone);
            if self.runs.back().is_some_and(|run| run.index == gone.index) {
                self.runs.pop_back();
            }
            let index = LogIndex(gone.index.0 - 1);
            self.last.index = index;
            self.last.term = self.run_of(index).term;
        }
        self.stable = self.stable.min(self.last.index);
        self.submitted = self.submitted.min(self.last.index);
    }

    /// Drops every entry: a snapshot at `start` replaced them.
    pub(super) fn reset(&mut self, start: LogPosition) {
        assert!(
            start.index >= self.commit,
            "a snapshot at {start} would undo the commit of {}",
            self.commit
        );
        *self = Self::new(start, self.cached_bytes_max);
    }

    /// The WAL dropped entries up to `through`, which are applied. Those that are not stable and committed stay.
    pub(super) fn release(&mut self, through: LogIndex) {
        let through = through.min(self.stable).min(self.commit);
        if through <= self.start.index {
            return;
        }
        let term = self.term(through).expect("between start and last");
        while self.first() <= through && !self.entries.is_empty() {
            self.pop_front();
        }
        self.start = LogPosition::new(term, through);
        while self.runs.get(1).is_some_and(|next| next.index <= through) {
            self.runs.pop_front();
        }
        if self.last.index == through {
            self.runs.clear();
        }
    }

    fn pop_front(&mut self) {
        if let Some(gone) = self.entries.pop_front() {
            self.cached_bytes -= entry_bytes(&gone);
        }
    }

    /// Drops the oldest entries from memory until it is within its bound. Entries that are not both durable and committed stay.
    pub(super) fn evict(&mut self) {
        if self.cached_bytes <= self.cached_bytes_max {
            return;
        }
        let evictable = self.stable.min(self.commit);
        while self.cached_bytes > self.cached_bytes_max && self.first() <= evictable {
            self.pop_front();
        }
    }

    /// Entries up to `index` are committed. True if they were not before.
    pub(super) fn commit_to(&mut self, index: LogIndex) -> bool {
        assert!(
            index <= self.last.index,
            "commit {index} past the end {}: no quorum can include this log",
            self.last.index
        );
        let new = index > self.commit;
        self.commit = self.commit.max(index);
        new
    }

    /// Submitted entries up to `index` are durable.
    pub(super) fn stable_to(&mut self, index: LogIndex) {
        assert!(
            index <= self.submitted,
            "entry {index} is reported durable but only {} was submitted",
            self.submitted
        );
        self.stable = self.stable.max(index);
    }

    /// Returns the entries that were not given to the caller yet, to be made durable.
    pub(super) fn submit(&mut self) -> Vec<Entry> {
        if self.submitted == self.last.index {
            return Vec::new();
        }
        let from = self.position(self.submitted.next());
        self.submitted = self.last.index;
        self.entries.range(from..).cloned().collect()
    }

    pub(super) fn has_unsubmitted(&self) -> bool {
        self.submitted < self.last.index
    }

    /// Entries from `from` on, up to `to` and `bytes_max` bytes, but at least one if there is one.
    pub(super) fn slice(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Slice {
        if from <= self.start.index {
            return Slice::Released;
        }
        if from > to.min(self.last.index) {
            return Slice::InMemory(Vec::new());
        }
        if from < self.first() {
            return Slice::Evicted;
        }
        let count = usize::try_from(to.min(self.last.index).0 - from.0 + 1);
        let count = count.expect("a count of entries in memory fits usize");
        let candidates = self.entries.range(self.position(from)..).take(count);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry_bytes(entry);
            bytes == entry_bytes(entry) || bytes <= bytes_max
        };
        Slice::InMemory(candidates.take_while(fits).cloned().collect())
    }

    /// The size in bytes of the entries after `from` up to `to`, which must be in memory.
    pub(super) fn bytes_between(&self, from: LogIndex, to: LogIndex) -> usize {
        if from >= to {
            return 0;
        }
        let (from, to) = (self.position(from.next()), self.position(to));
        self.entries.range(from..=to).map(entry_bytes).sum()
    }

    /// Whether `entries`, read from the WAL, are the entries of this log from `from` on, all of them committed and durable.
    pub(super) fn recognises_durable(&self, from: LogIndex, entries: &[Entry]) -> bool {
        let expected = (from.0..).map(LogIndex);
        entries.iter().zip(expected).all(|(entry, index)| {
            entry.index == index
                && index <= self.stable.min(self.commit)
                && self.contains(LogPosition::new(entry.term, index))
        })
    }

    /// Asserts the invariants in the type's doc.
    pub(super) fn check(&self) {
        assert!(self.start.index <= self.commit, "start is committed");
        assert!(self.commit <= self.last.index, "commit lies inside the log");
        assert!(
            self.start.index <= self.stable,
            "released entries were durable"
        );
        assert!(
            self.stable <= self.submitted,
            "durable entries were submitted"
        );
        assert!(
            self.submitted <= self.last.index,
            "submitted entries are in the log"
        );
        assert!(
            self.first() <= self.stable.min(self.commit).next(),
            "only durable and committed entries leave memory"
        );
        let expected = (self.first().0..).map(LogIndex);
        for (entry, index) in self.entries.iter().zip(expected) {
            assert_eq!(entry.index, index, "entries in memory are consecutive");
            assert_eq!(
                self.term(index),
                Some(entry.term),
                "the runs contain the term of {index}"
            );
        }
        let bytes: usize = self.entries.iter().map(entry_bytes).sum();
        assert_eq!(bytes, self.cached_bytes, "cached bytes are counted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::EntryKind;
    use bytes::Bytes;

    fn id(term: u64, index: u64) -> LogPosition {
        LogPosition::new(Term(term), LogIndex(index))
    }

    fn entry(term: u64, index: u64) -> Entry {
        let data = Bytes::from(vec![0; 36]);
        Entry {
            term: Term(term),
            index: LogIndex(index),
            kind: EntryKind::Command,
            data,
        }
    }

    /// A log that starts after 2@t1 and holds terms 1, 1, 3, 3, 3, 6 at 3..=8.
    fn sample(cached_bytes_max: usize) -> Log {
        let mut log = Log::new(id(1, 2), cached_bytes_max);
        for (index, term) in (3..).zip([1, 1, 3, 3, 3, 6]) {
            log.push(entry(term, index));
        }
        log.check();
        log
    }

    #[test]
    fn terms_are_known_without_entries() {
        let mut log = sample(0);
        log.submit();
        log.stable_to(LogIndex(8));
        log.commit_to(LogIndex(6));
        log.evict();
        log.check();
        assert_eq!(log.first(), LogIndex(7), "uncommitted entries stay");
        let terms: Vec<_> = (1..=9)
            .map(|index| log.term(LogIndex(index)).map(|t| t.0))
            .collect();
        let expected = [
            None,
            Some(1),
            Some(1),
            Some(1),
            Some(3),
            Some(3),
            Some(3),
            Some(6),
            None,
        ];
        assert_eq!(terms, expected);
        assert_eq!(log.slice(LogIndex(3), LogIndex(8), 1_000), Slice::Evicted);
        assert_eq!(log.slice(LogIndex(2), LogIndex(8), 1_000), Slice::Released);
        assert_eq!(
            log.slice(LogIndex(9), LogIndex(9), 1_000),
            Slice::InMemory(vec![])
        );
        let expected = Slice::InMemory(vec![entry(3, 7)]);
        assert_eq!(
            log.slice(LogIndex(7), LogIndex(8), 1),
            expected,
            "at least one"
        );
    }

    #[test]
    fn possible_matches_skip_whole_terms() {
        let log = sample(1_000);
        assert_eq!(log.last_possible_match(id(5, 100)), id(3, 7));
        assert_eq!(log.last_possible_match(id(2, 8)), id(1, 4));
        assert_eq!(log.last_possible_match(id(6, 8)), id(6, 8));
        assert_eq!(log.last_possible_match(id(0, 8)), id(0, 1));
        assert_eq!(log.last_possible_match(id(1, 1)), id(0, 1));
    }

    #[test]
    fn truncation_rolls_back_what_was_durable() {
        let mut log = sample(1_000);
        log.submit();
        log.stable_to(LogIndex(8));
        log.truncate(LogIndex(6));
        log.check();
        assert_eq!((log.last(), log.stable()), (id(3, 5), LogIndex(5)));
        log.truncate(LogIndex(5));
        assert_eq!(log.last(), id(1, 4));
        log.push(entry(7, 5));
        assert_eq!(log.submit(), vec![entry(7, 5)]);
        log.check();
    }

    #[test]
    fn release_keeps_the_term_at_the_start() {
        let mut log = sample(1_000);
        log.submit();
        log.stable_to(LogIndex(8));
        log.commit_to(LogIndex(8));
        log.release(LogIndex(6));
        log.check();
        assert_eq!(log.start(), id(3, 6));
        assert_eq!(
            (log.term(LogIndex(6)), log.term(LogIndex(5))),
            (Some(Term(3)), None)
        );
        log.release(LogIndex(8));
        log.check();
        assert_eq!((log.start(), log.last()), (id(6, 8), id(6, 8)));
        log.push(entry(6, 9));
        assert_eq!(log.term(LogIndex(9)), Some(Term(6)));
        log.check();
    }

    #[test]
    #[should_panic(expected = "a quorum lost entries it had acknowledged")]
    fn committed_entries_are_never_overwritten() {
        let mut log = sample(1_000);
        log.commit_to(LogIndex(6));
        log.truncate(LogIndex(6));
    }
}
