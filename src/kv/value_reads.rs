//! Which stored values the next commands depend on, so that they can be read before the commands are applied.
//!
//! Applying needs a stored value in two cases only: a compare of a value, and a put that keeps the value. All other reads are for
//! the caller's answer alone ([`answer_reads`](super::answer_reads)). The applier must not wait for a disk on its thread; so it
//! asks here which records the commands of a batch may read, and has them read on a thread that may block. The list is a
//! prediction from the keys as they are before the batch. A key that the batch itself changes first is in memory by then. Right
//! before such a command is applied, the applier asks whether all of its records are in memory: if the prediction missed one, or
//! if the command depends on many, another thread judges it ([`judged`](super::judged)). So results do not depend
//! on the prediction.

use super::{
    KeyRange,
    command::{Command, Compare, KeyCommand, Operand, Put, Txn, TxnOp},
    keys::{Keys, Steps},
};
use crate::types::Rev;
use std::{collections::BTreeSet, ops::ControlFlow};

/// Records that are read ahead for one batch. A compare can go over any number of keys; a command that depends on so many records
/// is judged on another thread, even if all of them are in memory.
const READS_MAX: usize = 4_096;

/// The records whose values `commands` depend on, ascending, as far as that is known before they are applied to `keys`. Those
/// that are not `allowed` depend on none; only commands that may depend on some are asked about.
pub fn value_reads<'a>(
    keys: &impl Keys,
    commands: impl Iterator<Item = &'a Command>,
    allowed: &dyn Fn(&Command) -> bool,
) -> BTreeSet<Rev> {
    let commands = commands.filter(|command| depends_on_values(command) && allowed(command));
    collect(keys, commands, &Steps::unlimited())
}

/// Whether a command depends on few stored values, and `has` finds each of them. `keys` are those that it is applied to next.
pub fn are_at_hand(keys: &impl Keys, command: &Command, has: &dyn Fn(Rev) -> bool) -> bool {
    let reads = collect(keys, std::iter::once(command), &Steps::unlimited());
    reads.len() < READS_MAX && reads.into_iter().all(has)
}

/// Whether there are keys with which a command depends on stored values.
pub fn depends_on_values(command: &Command) -> bool {
    match command.on_keys() {
        Some(KeyCommand::Put(put)) => put.ignore_value,
        Some(KeyCommand::Txn(txn)) => txn_may_depend(txn),
        Some(KeyCommand::DeleteRange(_)) | None => false,
    }
}

fn txn_may_depend(txn: &Txn) -> bool {
    let mut compares = txn.compares.iter();
    compares.any(|compare| matches!(compare.operand, Operand::Value(_)))
        || txn.branches().any(|op| match op {
            TxnOp::Put(put) => put.ignore_value,
            TxnOp::Txn(inner) => txn_may_depend(inner),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => false,
        })
}

fn collect<'a>(
    keys: &impl Keys,
    commands: impl Iterator<Item = &'a Command>,
    steps: &Steps,
) -> BTreeSet<Rev> {
    let mut reads = Reads {
        keys,
        revs: BTreeSet::new(),
        ranges: Vec::new(),
    };
    for command in commands {
        match command.on_keys() {
            Some(KeyCommand::Put(put)) => reads.put(put),
            Some(KeyCommand::Txn(txn)) => reads.txn(txn),
            Some(KeyCommand::DeleteRange(_)) | None => {}
        }
    }
    reads.ranges(steps);
    reads.revs
}

struct Reads<'k, K> {
    keys: &'k K,
    revs: BTreeSet<Rev>,
    /// Ranges with a compare of values. A key that is in several of them is visited once.
    ranges: Vec<KeyRange>,
}

impl<K: Keys> Reads<'_, K> {
    fn txn(&mut self, txn: &Txn) {
        txn.compares
            .iter()
            .for_each(|compare| self.compare(compare));
        for op in txn.branches() {
            match op {
                TxnOp::Put(put) => self.put(put),
                TxnOp::Txn(inner) => self.txn(inner),
                TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => {}
            }
        }
    }

    fn put(&mut self, put: &Put) {
        if put.ignore_value && self.revs.len() < READS_MAX {
            self.revs
                .extend(self.keys.get(&put.key).map(|meta| meta.modified));
        }
    }

    fn compare(&mut self, compare: &Compare) {
        if !matches!(compare.operand, Operand::Value(_)) {
            return;
        }
        let range = KeyRange::from_wire(&compare.key, &compare.range_end);
        if range.is_single() {
            if self.revs.len() < READS_MAX {
                self.revs
                    .extend(self.keys.get(&range.start).map(|meta| meta.modified));
            }
            return;
        }
        self.ranges.push(range);
    }

    fn ranges(&mut self, steps: &Steps) {
        let ranges = std::mem::take(&mut self.ranges);
        for range in KeyRange::disjoint(ranges) {
            self.keys.visit(&range, steps, &mut |_, meta| {
                if self.revs.len() >= READS_MAX {
                    return ControlFlow::Break(());
                }
                self.revs.insert(meta.modified);
                ControlFlow::Continue(())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{
            command::{DeleteRange, RangeQuery, Relation},
            index::Index,
        },
        types::{LeaseId, Revision},
    };

    fn index(keys: u32) -> Index {
        let mut index = Index::new();
        for n in 0..keys {
            let rev = Rev::new(Revision(i64::from(n) + 2), 0);
            index.put(format!("{n:05}").as_bytes(), rev, LeaseId(0));
        }
        index
    }

    fn compare(key: &'static str, range_end: &'static str, operand: Operand) -> Compare {
        Compare {
            key: key.into(),
            range_end: range_end.into(),
            relation: Relation::Equal,
            operand,
        }
    }

    fn put(key: &'static str, ignore_value: bool) -> Put {
        Put {
            key: key.into(),
            prev_kv: true,
            ignore_value,
            ..Put::default()
        }
    }

    fn majors(index: &Index, command: Command) -> Vec<i64> {
        let reads = value_reads(&index.snapshot(), [command].iter(), &|_| true);
        reads.into_iter().map(|rev| rev.major.0).collect()
    }

    #[test]
    fn values_that_are_compared_or_kept_are_read_and_no_others() {
        let index = index(10);
        assert_eq!(majors(&index, Command::Put(put("00003", true))), [5]);
        assert!(majors(&index, Command::Put(put("00003", false))).is_empty());
        assert!(majors(&index, Command::Put(put("missing", true))).is_empty());
        let delete = DeleteRange {
            key: "0".into(),
            range_end: "1".into(),
            prev_kv: true,
        };
        assert!(majors(&index, Command::DeleteRange(delete.clone())).is_empty());
        let value = || Operand::Value("v".into());
        let inner = Txn {
            compares: vec![compare("00001", "", value())],
            failure: vec![TxnOp::Put(put("00009", true))],
            ..Txn::default()
        };
        let txn = Txn {
            compares: vec![
                compare("00003", "00006", value()),
                compare("00008", "", Operand::Version(1)),
            ],
            success: vec![
                TxnOp::Range(RangeQuery {
                    key: "0".into(),
                    range_end: "1".into(),
                    ..RangeQuery::default()
                }),
                TxnOp::DeleteRange(delete),
            ],
            failure: vec![TxnOp::Txn(inner)],
        };
        assert_eq!(majors(&index, Command::Txn(txn)), [3, 5, 6, 7, 11]);
    }

    #[test]
    fn a_compare_of_all_keys_is_read_ahead_in_part() {
        let index = index(5_000);
        let txn = Txn {
            compares: vec![compare("0", "1", Operand::Value("v".into()))],
            ..Txn::default()
        };
        assert_eq!(majors(&index, Command::Txn(txn)).len(), READS_MAX);
    }

    #[test]
    fn values_are_at_hand_if_they_are_few_and_all_are_found() {
        let all = |keys: u32, has: &dyn Fn(Rev) -> bool| {
            let txn = Txn {
                compares: vec![compare("0", "1", Operand::Value("v".into()))],
                failure: vec![TxnOp::Put(put("00001", true))],
                ..Txn::default()
            };
            are_at_hand(&index(keys).snapshot(), &Command::Txn(txn), has)
        };
        let few = u32::try_from(READS_MAX - 1).expect("a small number");
        assert!(all(few, &|_| true));
        assert!(!all(few, &|rev| rev.major != Revision(9)), "one is not");
        assert!(!all(few + 1, &|_| true), "they are many");
        assert!(all(0, &|_| false), "it depends on none");
        let index = index(10).snapshot();
        let no_value = Command::Put(put("00003", false));
        assert!(are_at_hand(&index, &no_value, &|_| false));
        assert!(!depends_on_values(&no_value));
        assert!(depends_on_values(&Command::Put(put("missing", true))));
    }

    #[test]
    fn keys_that_many_compares_go_over_are_visited_once() {
        let index = index(1_000).snapshot();
        let steps_of = |count: usize| {
            let all = || compare("0", "1", Operand::Value("v".into()));
            let txn = Command::Txn(Txn {
                compares: std::iter::repeat_with(all).take(count).collect(),
                ..Txn::default()
            });
            let (max, commands) = (1_000_000_000, [txn.clone(), txn]);
            let steps = Steps::new(max);
            assert_eq!(collect(&index, commands.iter(), &steps).len(), 1_000);
            steps.taken(max)
        };
        assert_eq!([100, 200].map(steps_of), [1_000, 1_000]);
    }
}
