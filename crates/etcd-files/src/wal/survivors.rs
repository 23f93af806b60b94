//! Which entries of a log count, since later ones replace earlier ones of the same index.
//!
//! Entries come as runs of consecutive indices and of one term. An entry that does not follow the last one begins a new run
//! and cuts the runs before it. The runs that are left follow each other, by their indices and by their places in the log. So
//! 24 bytes a run suffice: where it begins in the log, its last index, and its term. To find out whether an entry counts,
//! take the last of these runs that begins before it or with it: the entry counts if its index is at most the run's last.
//! Entries that were cut from that run have higher ones, and so have those behind it whose own run is gone.
//!
//! Terms do not fall within a log. Compared with the entry that it replaces, an entry may have any term: that of the entry that
//! wins can be lower (Raft, figure 8), and etcd may write the same entry twice.

use super::log::SnapshotMark;

/// Runs that are kept: 24 MiB of them.
pub(super) const RUNS_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Number of the record that is its first entry.
    from_record: u64,
    last: u64,
    /// Of all its entries.
    term: u64,
}

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotContiguous,
    /// It must have this term at least.
    TermTooLow {
        min: u64,
    },
    TooManyRuns,
}

/// The log as it is after all records so far.
///
/// Invariants: `start.index < runs[0].last < runs[1].last < …`; `from_record` ascends, and no `term` is less than the one before.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    /// What comes before the first entry. Its term is 0 unless a snapshot told it.
    start: SnapshotMark,
    runs: Vec<Run>,
    /// Whether an entry or a snapshot has set `start`.
    begun: bool,
    /// A snapshot that the log does not lead to, so that it came from the leader. It counts once it is committed.
    received: Option<SnapshotMark>,
}

impl Survivors {
    /// What comes before the first entry. The term is 0 if it is not known.
    pub(super) fn start(&self) -> SnapshotMark {
        self.start
    }

    /// The index of the last entry; that before the first if there is none.
    pub(super) fn last(&self) -> u64 {
        self.runs.last().map_or(self.start.index, |run| run.last)
    }

    /// The term of what is at `last`, 0 if it is not known.
    pub(super) fn last_term(&self) -> u64 {
        self.runs.last().map_or(self.start.term, |run| run.term)
    }

    /// The term of the entry at this index, if the log has it.
    pub(super) fn term(&self, index: u64) -> Option<u64> {
        let run = self.runs.partition_point(|run| run.last < index);
        let run = self.runs.get(run).filter(|_| index > self.start.index);
        run.map(|run| run.term)
    }

    /// Takes the log's next entry, the record of number `record`.
    pub(super) fn append(&mut self, index: u64, term: u64, record: u64) -> Result<(), Refusal> {
        let before = index.checked_sub(1).ok_or(Refusal::NotContiguous)?;
        let received = self.received.filter(|mark| mark.index == before);
        let mut new_run = true;
        if let Some(mark) = received.filter(|mark| !self.leads_to(*mark)) {
            // A member that lagged behind has received a snapshot instead of the entries up to it.
            self.restart(mark);
        } else if !self.begun {
            self.restart(SnapshotMark {
                index: before,
                term: 0,
            });
        } else if before > self.last() {
            return Err(Refusal::NotContiguous);
        } else if before < self.last() {
            self.cut(before);
        } else {
            new_run = false;
        }
        let min = self.last_term().max(1);
        if term < min {
            return Err(Refusal::TermTooLow { min });
        }
        if let Some(run) = self.runs.last_mut()
            && !new_run
            && run.term == term
        {
            run.last = index;
            return Ok(());
        }
        if self.runs.len() == RUNS_MAX {
            return Err(Refusal::TooManyRuns);
        }
        self.runs.push(Run {
            from_record: record,
            last: index,
            term,
        });
        Ok(())
    }

    /// Takes a note of a snapshot.
    pub(super) fn snapshot(&mut self, mark: SnapshotMark) {
        let newer = self.received.is_none_or(|old| old.index <= mark.index);
        if newer && !self.leads_to(mark) {
            self.received = Some(mark);
        }
    }

    /// Learns that what is up to `commit` is committed. If a snapshot from the leader is, all entries so far are dead: raft
    /// drops them when it takes the snapshot.
    pub(super) fn commit(&mut self, commit: u64) {
        // Before the first entry it is not known whether the log lacks its beginning, so that the snapshot is an old one.
        if self.begun {
            self.settle(commit);
        }
    }

    /// The log has ended. A snapshot that no entry followed ends it.
    pub(super) fn finish(&mut self, commit: u64) {
        self.settle(commit);
    }

    fn settle(&mut self, commit: u64) {
        if let Some(mark) = self.received.take_if(|mark| mark.index <= commit)
            && !self.leads_to(mark)
        {
            self.restart(mark);
        }
    }

    /// Whether the log is the one that led to this snapshot: logs that have the same term at an index are the same up to there
    /// (Raft, 5.3, Log Matching).
    fn leads_to(&self, mark: SnapshotMark) -> bool {
        if mark.index > self.last() {
            return false;
        }
        // The log may lack the entry at an old snapshot; then later entries have its term at least.
        let term = self.term(mark.index);
        let later = self.runs.first().is_none_or(|run| run.term >= mark.term);
        term.map_or(later, |term| term == mark.term)
    }

    /// Forgets all entries: the log goes on behind `start`.
    fn restart(&mut self, start: SnapshotMark) {
        self.start = start;
        self.runs.clear();
        self.begun = true;
    }

    /// Removes the entries behind `last`.
    fn cut(&mut self, last: u64) {
        while self.runs.last().is_some_and(|run| run.last > last) {
            let run = self.runs.pop();
            let before = self.last();
            if let Some(run) = run.filter(|_| before < last) {
                self.runs.push(Run { last, ..run });
            }
        }
        if last < self.start.index {
            self.start = SnapshotMark {
                index: last,
                term: 0,
            };
        }
    }

    /// Goes through the log once more, from its first record.
    pub(super) fn cursor(&self) -> Cursor<'_> {
        Cursor {
            last: 0,
            runs: &self.runs,
        }
    }
}

/// Tells which entries count, in the order in which they stand in the log.
pub(super) struct Cursor<'a> {
    /// The last index of the run that was entered last.
    last: u64,
    /// The runs that begin later.
    runs: &'a [Run],
}

impl Cursor<'_> {
    /// Whether the entry in this record counts. Records must come in ascending order; an index is never 0.
    pub(super) fn counts(&mut self, index: u64, record: u64) -> bool {
        while let [next, rest @ ..] = self.runs
            && next.from_record <= record
        {
            self.last = next.last;
            self.runs = rest;
        }
        index <= self.last
    }
}

#[cfg(test)]
mod tests {
    use super::{Refusal, SnapshotMark, Survivors};
    use proptest::{collection::vec, prelude::Strategy, prop_assert_eq, proptest};

    fn log(indices: &[u64]) -> Survivors {
        let mut log = Survivors::default();
        for (record, index) in indices.iter().enumerate() {
            log.append(*index, 1, record as u64).unwrap();
        }
        log
    }

    fn mark(index: u64, term: u64) -> SnapshotMark {
        SnapshotMark { index, term }
    }

    /// The records that count.
    fn counting(log: &Survivors, indices: &[u64]) -> Vec<u64> {
        let mut cursor = log.cursor();
        let numbered = indices.iter().zip(0..);
        let counting = numbered.filter(|(index, record)| cursor.counts(**index, *record));
        counting.map(|(_, record)| record).collect()
    }

    #[test]
    fn later_entries_replace_earlier_ones() {
        let indices = [1, 2, 3, 4, 5, 4, 5, 6, 5];
        let log = log(&indices);
        assert_eq!(counting(&log, &indices), [0, 1, 2, 5, 8]);
        assert_eq!((log.start().index, log.last()), (0, 5));
    }

    #[test]
    fn a_log_may_begin_anywhere_and_be_replaced_from_before_its_beginning() {
        let indices = [7, 8, 9, 5, 6];
        let log = log(&indices);
        assert_eq!(counting(&log, &indices), [3, 4]);
        assert_eq!((log.start().index, log.last()), (4, 6));
    }

    #[test]
    fn a_hole_needs_a_snapshot() {
        let mut log = log(&[1, 2, 3]);
        assert_eq!(log.append(5, 1, 3), Err(Refusal::NotContiguous));
        log.snapshot(mark(9, 2));
        assert_eq!(log.append(12, 2, 3), Err(Refusal::NotContiguous));
        log.append(10, 2, 3).unwrap();
        assert_eq!((log.start(), log.last()), (mark(9, 2), 10));
        assert_eq!(counting(&log, &[1, 2, 3, 10]), [3]);
    }

    #[test]
    fn a_snapshot_of_what_the_log_has_changes_nothing() {
        let mut log = log(&[1, 2, 3]);
        log.snapshot(mark(2, 1));
        log.commit(3);
        log.append(4, 1, 3).unwrap();
        assert_eq!((log.start().index, log.last()), (0, 4));
    }

    #[test]
    fn a_snapshot_of_another_log_replaces_the_entries() {
        for dead in [&[1, 2, 3, 4, 5][..], &[4, 5]] {
            let mut log = log(dead);
            log.snapshot(mark(3, 2));
            log.commit(2);
            assert_eq!(log.last(), 5, "not yet");
            log.append(4, 2, 9).unwrap();
            assert_eq!((log.start(), log.last()), (mark(3, 2), 4));
            let mut ends = self::log(dead);
            ends.snapshot(mark(3, 2));
            ends.commit(3);
            assert_eq!((ends.start(), ends.last()), (mark(3, 2), 3));
            assert_eq!(ends.last_term(), 2);
        }
    }

    #[test]
    fn an_old_snapshot_before_the_first_entry_changes_nothing() {
        let mut log = Survivors::default();
        log.snapshot(mark(3, 1));
        log.commit(9);
        log.append(8, 1, 0).unwrap();
        log.snapshot(mark(5, 1));
        log.commit(9);
        log.append(9, 2, 1).unwrap();
        log.finish(9);
        assert_eq!((log.start().index, log.last()), (7, 9));
    }

    #[test]
    fn terms_do_not_fall() {
        let mut log = log(&[1, 2]);
        log.append(3, 4, 2).unwrap();
        let refused = log.append(4, 3, 3);
        assert_eq!(refused, Err(Refusal::TermTooLow { min: 4 }));
        // That of a replacement may be lower, but not than what precedes it.
        log.append(3, 2, 4).unwrap();
        assert_eq!(
            [1, 2, 3, 4].map(|index| log.term(index)),
            [Some(1), Some(1), Some(2), None]
        );
        let refused = log.append(1, 0, 5);
        assert_eq!(refused, Err(Refusal::TermTooLow { min: 1 }));
    }

    #[test]
    fn there_is_no_entry_0() {
        let refused = Survivors::default().append(0, 1, 0);
        assert_eq!(refused, Err(Refusal::NotContiguous));
    }

    /// Indices of a log: each at most one behind the last.
    fn logs() -> impl Strategy<Value = Vec<u64>> {
        vec((0_u64..4, 0_u64..12), 1..60).prop_map(|steps| {
            let mut last = 0_u64;
            let mut indices = Vec::new();
            for (replace, back) in steps {
                last = if replace == 0 {
                    (last + 1).saturating_sub(back).max(1)
                } else {
                    last + 1
                };
                indices.push(last);
            }
            indices
        })
    }

    proptest! {
        #[test]
        fn the_same_entries_count_as_in_a_list_that_is_cut(indices in logs()) {
            let mut list: Vec<(u64, u64)> = Vec::new();
            for (index, record) in indices.iter().zip(0..) {
                list.retain(|(kept, _)| kept < index);
                list.push((*index, record));
            }
            let expected: Vec<u64> = list.into_iter().map(|(_, record)| record).collect();
            prop_assert_eq!(counting(&log(&indices), &indices), expected);
        }
    }
}
