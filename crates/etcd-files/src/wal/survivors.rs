//! Which entries of a log count, since later ones replace earlier ones of the same index.
//!
//! Entries come as runs of consecutive indices. An entry that does not follow the last one begins a new run and cuts the runs
//! before it. The runs that are left follow each other, by their indices and by their places in the log. So 16 bytes a run
//! suffice: where it begins in the log, and its last index. To find out whether an entry counts, take the last of these runs that
//! begins before it or with it: the entry counts if its index is at most the run's last. Entries that were cut from that run have
//! higher ones, and so have those behind it whose own run is gone.

/// Runs that are kept: 16 MiB of them.
pub(super) const RUNS_MAX: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// Number of the record that is its first entry.
    from_record: u64,
    last: u64,
}

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    NotContiguous,
    TooManyReplacements,
}

/// The log as it is after all records so far.
///
/// Invariants: `start < runs[0].last < runs[1].last < …`, and `from_record` ascends.
#[derive(Debug, Default)]
pub(super) struct Survivors {
    /// The index before the first entry.
    start: u64,
    runs: Vec<Run>,
    /// Whether an entry or a snapshot has set `start`.
    begun: bool,
    /// A snapshot beyond the last entry: the log may go on behind it.
    snapshot: Option<u64>,
}

impl Survivors {
    /// The index before the first entry.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The index of the last entry; that before the first if there is none.
    pub(super) fn last(&self) -> u64 {
        self.runs.last().map_or(self.start, |run| run.last)
    }

    /// Takes the log's next entry, the record of number `record`.
    pub(super) fn append(&mut self, index: u64, record: u64) -> Result<(), Refusal> {
        let before = index.checked_sub(1).ok_or(Refusal::NotContiguous)?;
        if !self.begun {
            self.restart(before);
        } else if before > self.last() {
            // A member that lagged behind has received a snapshot instead of the entries up to it.
            if self.snapshot != Some(before) {
                return Err(Refusal::NotContiguous);
            }
            self.restart(before);
        } else if before < self.last() {
            self.cut(before);
        } else if let Some(run) = self.runs.last_mut() {
            run.last = index;
            return Ok(());
        }
        if self.runs.len() == RUNS_MAX {
            return Err(Refusal::TooManyReplacements);
        }
        self.runs.push(Run {
            from_record: record,
            last: index,
        });
        Ok(())
    }

    /// Notes that the state up to `index` is in a snapshot.
    pub(super) fn snapshot(&mut self, index: u64) {
        if index > self.last() {
            self.snapshot = Some(index);
        }
    }

    /// Forgets all entries: the log goes on behind `start`.
    pub(super) fn restart(&mut self, start: u64) {
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
        self.start = self.start.min(last);
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
    use super::{Refusal, Survivors};
    use proptest::{collection::vec, prelude::Strategy, prop_assert_eq, proptest};

    fn log(indices: &[u64]) -> Survivors {
        let mut log = Survivors::default();
        for (record, index) in indices.iter().enumerate() {
            log.append(*index, record as u64).unwrap();
        }
        log
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
        assert_eq!((log.start(), log.last()), (0, 5));
    }

    #[test]
    fn a_log_may_begin_anywhere_and_be_replaced_from_before_its_beginning() {
        let indices = [7, 8, 9, 5, 6];
        let log = log(&indices);
        assert_eq!(counting(&log, &indices), [3, 4]);
        assert_eq!((log.start(), log.last()), (4, 6));
    }

    #[test]
    fn a_hole_needs_a_snapshot() {
        let mut log = log(&[1, 2, 3]);
        assert_eq!(log.append(5, 3), Err(Refusal::NotContiguous));
        log.snapshot(9);
        assert_eq!(log.append(12, 3), Err(Refusal::NotContiguous));
        log.append(10, 3).unwrap();
        assert_eq!((log.start(), log.last()), (9, 10));
        assert_eq!(counting(&log, &[1, 2, 3, 10]), [3]);
    }

    #[test]
    fn a_snapshot_of_what_the_log_has_changes_nothing() {
        let mut log = log(&[1, 2, 3]);
        log.snapshot(2);
        log.append(4, 3).unwrap();
        assert_eq!((log.start(), log.last()), (0, 4));
    }

    #[test]
    fn there_is_no_entry_0() {
        let refused = Survivors::default().append(0, 0);
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
