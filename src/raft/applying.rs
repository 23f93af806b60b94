//! Which entries the state machine was given to apply, and whether it may be given more.

use super::{
    interface::{ReadLog, Reader},
    log::{Log, Slice, entry_bytes},
};
use crate::types::{Entry, LogIndex};
use std::collections::VecDeque;

/// Progress of the state machine. Invariant: `applied <= delivered`.
#[derive(Debug)]
pub(super) struct Applying {
    applied: LogIndex,
    /// Entries up to here were given to the state machine.
    delivered: LogIndex,
    /// The last index and the bytes of each batch that is not applied yet.
    batches: VecDeque<(LogIndex, usize)>,
    bytes: usize,
    /// Entries from here on were requested from the WAL.
    reading: Option<LogIndex>,
    /// Entries that the WAL returned.
    read: Vec<Entry>,
    /// A snapshot is replacing the state machine: nothing may be applied.
    installing: bool,
    /// There is no state machine yet: nothing may be applied before a snapshot is installed.
    awaits_snapshot: bool,
}

impl Applying {
    /// A state machine that has applied everything up to `applied`.
    pub(super) fn new(applied: LogIndex, awaits_snapshot: bool) -> Self {
        Self {
            applied,
            delivered: applied,
            batches: VecDeque::new(),
            bytes: 0,
            reading: None,
            read: Vec::new(),
            installing: false,
            awaits_snapshot,
        }
    }

    pub(super) fn index(&self) -> LogIndex {
        self.applied
    }

    /// Bytes of entries that are delivered and not applied.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn awaits_snapshot(&self) -> bool {
        self.awaits_snapshot
    }

    pub(super) fn is_installing(&self) -> bool {
        self.installing
    }

    /// Whether entries can be applied: there is a state machine, and no snapshot is replacing it.
    pub(super) fn has_state_machine(&self) -> bool {
        !self.installing && !self.awaits_snapshot
    }

    /// Committed and durable entries that were not delivered yet, as many as fit `bytes_max` together with those that are
    /// not applied yet. Entries that `log` has evicted are requested in `log_reads` instead.
    pub(super) fn take_committed(
        &mut self,
        log: &Log,
        bytes_max: usize,
        log_reads: &mut Vec<ReadLog>,
    ) -> Vec<Entry> {
        if !self.has_state_machine() {
            return Vec::new();
        }
        if !self.read.is_empty() {
            let entries = std::mem::take(&mut self.read);
            self.deliver(&entries);
            return entries;
        }
        let to = log.commit().min(log.stable());
        let bytes_max = bytes_max.saturating_sub(self.bytes);
        if self.delivered >= to || bytes_max == 0 || self.reading.is_some() {
            return Vec::new();
        }
        let from = self.delivered.next();
        match log.slice(from, to, bytes_max) {
            Slice::InMemory(entries) => {
                self.deliver(&entries);
                entries
            }
            Slice::Evicted => {
                self.reading = Some(from);
                log_reads.push(ReadLog {
                    reader: Reader::Apply,
                    from,
                    to,
                    bytes_max,
                });
                Vec::new()
            }
            Slice::Released => unreachable!("entries are released only when applied"),
        }
    }

    fn deliver(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        assert_eq!(
            entries[0].index,
            self.delivered.next(),
            "entries apply in order, each once"
        );
        let bytes = entries.iter().map(entry_bytes).sum();
        self.delivered = last.index;
        self.batches.push_back((last.index, bytes));
        self.bytes += bytes;
    }

    /// Whether entries from `from` on were requested from the WAL and are still needed.
    pub(super) fn is_reading(&self, from: LogIndex) -> bool {
        self.reading == Some(from)
    }

    /// The WAL returned the entries that were requested.
    pub(super) fn log_read(&mut self, entries: Vec<Entry>) {
        self.reading = None;
        self.read = entries;
    }

    /// The state machine applied everything up to `index`.
    pub(super) fn applied(&mut self, index: LogIndex) {
        assert!(
            index <= self.delivered,
            "entry {index} is reported applied but only {} was delivered",
            self.delivered
        );
        self.applied = self.applied.max(index);
        while let Some((_, bytes)) = self.batches.pop_front_if(|(last, _)| *last <= index) {
            self.bytes -= bytes;
        }
    }

    /// Whether a snapshot at `index` is newer than what the state machine has or will get from the log, of which entries
    /// up to `commit` are committed.
    pub(super) fn is_newer(&self, index: LogIndex, commit: LogIndex) -> bool {
        if self.awaits_snapshot {
            index >= self.applied
        } else {
            index > commit
        }
    }

    pub(super) fn begin_install(&mut self) {
        self.installing = true;
    }

    /// The state machine stays as it was.
    pub(super) fn abandon_install(&mut self) {
        self.installing = false;
    }

    /// Asserts the invariants; entries up to `commit` are committed, those up to `released` gone from the log.
    pub(super) fn check(&self, commit: LogIndex, released: LogIndex) {
        assert!(
            self.applied <= self.delivered,
            "applied entries were delivered"
        );
        assert!(
            self.delivered <= commit,
            "only committed entries are delivered"
        );
        assert!(
            released <= self.applied,
            "only applied entries are released"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::index;
    use super::*;
    use crate::types::{EntryKind, LogPosition, Term};
    use bytes::Bytes;

    /// A log of `count` entries of 100 bytes, all durable and committed, and none in memory if `evicted`.
    fn log(count: u64, evicted: bool) -> Log {
        let cached_bytes_max = if evicted { 0 } else { 1 << 20 };
        let mut log = Log::new(LogPosition::default(), cached_bytes_max);
        for at in 1..=count {
            log.push(entry(at));
        }
        log.submit();
        log.stable_to(index(count));
        log.commit_to(index(count));
        log.evict();
        log
    }

    fn entry(at: u64) -> Entry {
        let data = Bytes::from(vec![0; 36]);
        Entry {
            term: Term(1),
            index: index(at),
            kind: EntryKind::Command,
            data,
        }
    }

    fn take(applying: &mut Applying, log: &Log) -> (Vec<u64>, Vec<ReadLog>) {
        let mut reads = Vec::new();
        let entries = applying.take_committed(log, 250, &mut reads);
        let indexes = entries.iter().map(|entry| entry.index.0).collect();
        applying.check(log.commit(), log.start().index);
        (indexes, reads)
    }

    #[test]
    fn deliveries_are_bounded_in_bytes_until_some_are_applied() {
        let (mut applying, log) = (Applying::new(index(0), false), log(5, false));
        assert_eq!(take(&mut applying, &log).0, [1, 2]);
        assert_eq!(take(&mut applying, &log).0, [3], "one always fits");
        assert_eq!(take(&mut applying, &log).0, [0; 0]);
        applying.applied(index(2));
        assert_eq!(take(&mut applying, &log).0, [4]);
    }

    #[test]
    fn evicted_entries_are_requested_once_and_delivered_when_they_come() {
        let (mut applying, log) = (Applying::new(index(0), false), log(3, true));
        let (entries, reads) = take(&mut applying, &log);
        assert_eq!((entries.len(), reads.len()), (0, 1));
        assert_eq!((reads[0].from, reads[0].to), (index(1), index(3)));
        assert!(applying.is_reading(index(1)));
        assert_eq!(take(&mut applying, &log), (vec![], vec![]), "one at a time");
        applying.log_read(vec![entry(1)]);
        assert!(!applying.is_reading(index(1)));
        assert_eq!(take(&mut applying, &log).0, [1]);
        assert_eq!(take(&mut applying, &log).1[0].from, index(2));
    }

    #[test]
    fn nothing_is_delivered_while_a_snapshot_is_installed_or_awaited() {
        let (mut applying, log) = (Applying::new(index(0), false), log(3, false));
        applying.begin_install();
        assert_eq!(take(&mut applying, &log).0, [0; 0]);
        applying.abandon_install();
        assert_eq!(take(&mut applying, &log).0, [1, 2]);
        let mut waiting = Applying::new(index(0), true);
        assert_eq!(take(&mut waiting, &log).0, [0; 0]);
    }

    #[test]
    fn a_snapshot_must_bring_something_new() {
        let running = Applying::new(index(3), false);
        assert!(!running.is_newer(index(5), index(5)), "the log has it");
        assert!(running.is_newer(index(6), index(5)));
        let waiting = Applying::new(index(3), true);
        assert!(waiting.is_newer(index(3), index(5)), "no state machine yet");
        assert!(!waiting.is_newer(index(2), index(5)));
    }
}
