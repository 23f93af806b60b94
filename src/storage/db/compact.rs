//! Compaction, in steps that are short enough to run between commits.
//!
//! The caller decides which records are removed (the index has the revisions that later ones replaced). Each step is a
//! transaction of its own that also stores the progress, so an interrupted compaction continues after a restart. A step that is
//! repeated after a crash removes nothing that it would have kept before.

use super::{
    Damage, Db,
    error::{DbError, from_redb},
    format::{
        CompactionProgress, KEY_BYTES, REVISIONS, Usage, lower_key, meta, parse_revision_key,
    },
    record::{RecordRef, open_record},
};
use crate::{
    codec,
    types::{LogIndex, Rev, Revision},
};
use redb::{ReadableTable, Table};

/// The bounds of one step of a compaction.
#[derive(Clone, Copy, Debug)]
pub struct CompactSpan {
    /// The first place in history: `Rev::default()` for a new compaction, then [`CompactStep::next`].
    pub from: Rev,
    pub through: Revision,
    /// The log entry with the compaction command, or a later one. Its effects must be stored already.
    pub decided_at: LogIndex,
    /// Records to visit at most.
    pub records_max: usize,
}

/// What one step of a compaction did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactStep {
    /// Where the next step starts; `None` when the compaction is complete.
    pub next: Option<Rev>,
    /// How many records the step visited.
    pub visited: usize,
    /// How many of them it removed.
    pub removed: u64,
}

/// The first place in history after revision `through`.
fn end_of(through: Revision) -> Rev {
    Rev::new(Revision(through.0.saturating_add(1)), 0)
}

type Revisions<'a> = Table<'a, &'static [u8; KEY_BYTES], &'static [u8]>;

impl Db {
    /// Visits a bounded number of records of a span; removes, durably, those that `keep` refuses.
    ///
    /// A compaction starts at `Rev::default()` and continues at [`CompactStep::next`], or after a restart at [`Db::compaction`].
    /// After an error the database refuses all further writes, as in [`Db::commit`].
    pub fn compact_step(
        &mut self,
        span: CompactSpan,
        keep: impl FnMut(RecordRef<'_>) -> bool,
    ) -> Result<CompactStep, DbError> {
        let CompactSpan { from, through, .. } = span;
        let budget = span.records_max;
        assert!(budget > 0, "a step must visit at least one record");
        assert!(
            span.decided_at <= self.applied.index,
            "records go before entry {} is stored, which decided so (stored: {}): after a loss of power the member would \
             answer reads of revisions up to {through} without them",
            span.decided_at,
            self.applied.index
        );
        let mut usage = self.usage;
        let mut progress = CompactionProgress {
            through,
            next: None,
        };
        let step = self.write(|db, transaction| {
            let mut table = transaction
                .open_table(REVISIONS)
                .map_err(|error| from_redb(&db.file, error))?;
            let (visited, next) = db.measure(&table, from, through, budget)?;
            let to = next.unwrap_or(end_of(through));
            let removed = db.remove(&mut table, from, to, keep)?;
            drop(table);
            usage = usage.minus(removed).ok_or_else(|| db.miscounted(removed))?;
            progress.next = next;
            db.put_meta(transaction, meta::USAGE, Some(&codec::encode(&usage)))?;
            db.put_meta(transaction, meta::COMPACTION, Some(&progress.encode()))?;
            Ok(CompactStep {
                next,
                visited,
                removed: removed.records,
            })
        })?;
        self.usage = usage;
        self.fallback = self.applied;
        self.compaction = Some(progress);
        Ok(step)
    }

    /// How many records a step that starts at `from` visits, and where the one after it starts.
    fn measure(
        &self,
        table: &Revisions<'_>,
        from: Rev,
        through: Revision,
        budget: usize,
    ) -> Result<(usize, Option<Rev>), DbError> {
        let end = end_of(through);
        if from >= end {
            return Ok((0, None));
        }
        let entries = table
            .range::<&[u8; KEY_BYTES]>(&lower_key(from)..&lower_key(end))
            .map_err(|error| from_redb(&self.file, error))?;
        let mut visited = 0;
        for entry in entries {
            let (key, _) = entry.map_err(|error| from_redb(&self.file, error))?;
            if visited == budget {
                let (rev, _) =
                    parse_revision_key(key.value()).ok_or_else(|| self.malformed(key.value()))?;
                return Ok((visited, Some(rev)));
            }
            visited += 1;
        }
        Ok((visited, None))
    }

    /// Removes the records in `from..to` that `keep` refuses, and returns how many and how large they were.
    fn remove(
        &self,
        table: &mut Revisions<'_>,
        from: Rev,
        to: Rev,
        mut keep: impl FnMut(RecordRef<'_>) -> bool,
    ) -> Result<Usage, DbError> {
        let mut removed = Usage::default();
        let mut damage = None;
        if from >= to {
            return Ok(removed);
        }
        table
            .retain_in::<&[u8; KEY_BYTES], _>(&lower_key(from)..&lower_key(to), |key, sealed| {
                match open_record(&self.file, key, sealed) {
                    Ok(record) if keep(record) => true,
                    Ok(record) => {
                        removed.add(record.kv.len());
                        false
                    }
                    Err(error) => {
                        damage.get_or_insert(error);
                        true
                    }
                }
            })
            .map_err(|error| from_redb(&self.file, error))?;
        damage.map_or(Ok(removed), Err)
    }

    fn miscounted(&self, removed: Usage) -> DbError {
        DbError::Damaged {
            file: self.file.clone(),
            damage: Damage::Count {
                found: removed,
                counted: self.usage,
            },
        }
    }

    fn malformed(&self, key: &[u8; KEY_BYTES]) -> DbError {
        DbError::Damaged {
            file: self.file.clone(),
            damage: Damage::Malformed {
                table: "revisions",
                entry: format!("key {key:02x?}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{MemDisk, batch, dump, expected, open, span};
    use super::*;
    use crate::types::SplitMix64;

    /// Keeps what has an odd position.
    fn odd(record: RecordRef<'_>) -> bool {
        record.rev.sub % 2 == 1
    }

    /// What is left of the batches 1 to `last` once revisions up to `through` are compacted by [`odd`].
    fn compacted(last: u64, through: i64) -> Vec<Rev> {
        let all = expected(last, 4).records.into_iter().map(|r| r.rev);
        all.filter(|rev| rev.major.0 > through || rev.sub % 2 == 1)
            .collect()
    }

    fn revs(db: &Db) -> Vec<Rev> {
        dump(db).unwrap().records.iter().map(|r| r.rev).collect()
    }

    #[test]
    fn steps_visit_each_record_once_and_stop_at_the_revision() {
        let disk = MemDisk::new();
        let mut db = open(&disk).unwrap();
        for index in 1..=20 {
            db.commit(&batch(index, 4)).unwrap();
        }
        let before = db.usage();
        let mut seen = Vec::new();
        let (mut from, mut steps, mut removed) = (Rev::default(), 0, 0);
        loop {
            let keep = |record: RecordRef<'_>| {
                seen.push(record.rev);
                odd(record)
            };
            let step = db.compact_step(span(from, Revision(15), 7), keep).unwrap();
            assert!(step.visited <= 7, "{step:?} is over budget");
            steps += 1;
            removed += step.removed;
            match step.next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert_eq!(
            (steps, removed),
            (8, 28),
            "revisions 2 to 15, four records each"
        );
        assert_eq!(seen.len(), 56);
        assert!(seen.is_sorted_by(|a, b| a < b), "each once, in order");
        assert_eq!(revs(&db), compacted(20, 15));
        assert_eq!(db.usage().records, before.records - 28);
        let again = db.compact_step(span(Rev::default(), Revision(1), 7), |_| false);
        assert_eq!(again.unwrap().visited, 0, "nothing is as old");
    }

    #[test]
    fn an_interrupted_compaction_goes_on_where_it_was() {
        for seed in 0..20 {
            let mut random = SplitMix64::new(seed);
            let mut disk = MemDisk::new();
            let mut db = open(&disk).unwrap();
            for index in 1..=30 {
                db.commit(&batch(index, 4)).unwrap();
            }
            assert_eq!(db.compaction(), None);
            let mut from = Rev::default();
            loop {
                if random.below(3) == 0 {
                    disk = disk.crash(&mut random);
                    db = open(&disk).unwrap();
                    let progress = db.compaction();
                    let stored = progress.and_then(|progress| progress.next);
                    assert_eq!(stored.unwrap_or_default(), from, "seed {seed}");
                }
                match db
                    .compact_step(span(from, Revision(25), 9), odd)
                    .unwrap()
                    .next
                {
                    Some(next) => from = next,
                    None => break,
                }
            }
            drop(db);
            let db = open(&disk).unwrap();
            let done = CompactionProgress {
                through: Revision(25),
                next: None,
            };
            assert_eq!(db.compaction(), Some(done));
            assert_eq!(revs(&db), compacted(30, 25), "seed {seed}");
        }
    }

    #[test]
    #[should_panic(expected = "records go before entry 21 is stored")]
    fn no_record_goes_before_the_entry_that_decided_so_is_stored() {
        let disk = MemDisk::new();
        let mut db = open(&disk).unwrap();
        for index in 1..=20 {
            db.commit(&batch(index, 4)).unwrap();
        }
        let early = CompactSpan {
            decided_at: LogIndex(21),
            ..span(Rev::default(), Revision(15), 7)
        };
        drop(db.compact_step(early, |_| false));
    }

    #[test]
    fn freed_space_is_used_again() {
        let disk = MemDisk::new();
        let mut db = open(&disk).unwrap();
        let mut largest = 0;
        for index in 1..=400 {
            db.commit(&batch(index, 40)).unwrap();
            let through = Revision(i64::try_from(index).unwrap() - 20);
            db.compact_step(span(Rev::default(), through, 1000), |_| false)
                .unwrap();
            if index == 100 {
                largest = db.size();
            }
        }
        assert_eq!(db.size(), largest, "the file stopped growing");
    }
}
