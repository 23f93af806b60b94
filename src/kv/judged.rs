//! Judging a command apart from the machine, on a thread that may wait for the disk.
//!
//! A command whose stored values are not in memory, or that compares very many, must not be applied on a thread that serves
//! others. Another thread judges it then: it evaluates the compares on the keys and records as of the command's place in the log,
//! and it reads the values that puts keep. It holds one compared value at a time, so a compare can go over any number of keys.
//! [`Machine::apply_judged`](super::machine::Machine::apply_judged) does the rest without a record. Keys and records are the
//! same on every member at that place, and judging reads nothing else; so the outcome is that of applying the command at once.

use super::{
    command::{Command, EncodedKv, KeyCommand, Put, Txn, TxnOp},
    keys::Keys,
    records::{ReadError, Records},
    txn::Plan,
};
use crate::types::Rev;
use std::collections::BTreeMap;

/// What a command depends on, found out before it is applied. Nothing may be applied between.
#[derive(Debug, Default)]
pub struct Judged {
    /// Whether the compares held: of a transaction, then of those nested in the branch that runs, in order.
    succeeded: Vec<bool>,
    /// The records whose values its puts keep. Each put stores such a value anew, so these bytes are about as many as those of
    /// the records that it makes.
    kept: BTreeMap<Rev, EncodedKv>,
}

impl Judged {
    /// Judges the command that is applied next to `keys`. `records` has all records that the keys name. This can block.
    pub fn new(
        command: &Command,
        keys: &impl Keys,
        records: &dyn Records,
    ) -> Result<Self, ReadError> {
        let mut judged = Self::default();
        match command.on_keys() {
            Some(KeyCommand::Put(put)) => judged.keep(put, keys, records)?,
            Some(KeyCommand::Txn(txn)) => {
                let plan = Plan::new(txn, keys, records)?;
                judged.note(&plan, keys, records)?;
            }
            Some(KeyCommand::DeleteRange(_)) | None => {}
        }
        Ok(judged)
    }

    /// The plan of the transaction that was judged.
    pub(super) fn plan<'a>(&self, txn: &'a Txn) -> Plan<'a> {
        Plan::judged(txn, &mut self.succeeded.iter().copied())
    }

    fn note(
        &mut self,
        plan: &Plan<'_>,
        keys: &impl Keys,
        records: &dyn Records,
    ) -> Result<(), ReadError> {
        self.succeeded.push(plan.succeeded);
        for op in plan.ops {
            if let TxnOp::Put(put) = op {
                self.keep(put, keys, records)?;
            }
        }
        for nested in &plan.nested {
            self.note(nested, keys, records)?;
        }
        Ok(())
    }

    /// Reads the value that a put keeps. If an operation before it in the transaction changes the key, that is not needed.
    fn keep(
        &mut self,
        put: &Put,
        keys: &impl Keys,
        records: &dyn Records,
    ) -> Result<(), ReadError> {
        if put.ignore_value
            && let Some(meta) = keys.get(&put.key)
        {
            let kv = records.get(meta.modified)?;
            self.kept.insert(meta.modified, kv);
        }
        Ok(())
    }
}

impl Records for Judged {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        let kept = self.kept.get(&rev).cloned();
        kept.ok_or_else(|| ReadError::not_in_memory(rev))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::{
            command::{Compare, Operand, Relation},
            index::Index,
            machine::{LoadedState, Machine},
            record,
        },
        types::{LeaseId, LogIndex, LogPosition, Revision, Term},
    };
    use std::cell::Cell;

    const AT: LogPosition = LogPosition {
        index: LogIndex(1),
        term: Term(1),
    };

    /// A store of keys `000`, `001` and so on, each put at a revision of its own with the value `v`, which counts reads.
    struct Store {
        index: Index,
        keys: i64,
        reads: Cell<usize>,
    }

    impl Store {
        fn new(keys: i64) -> Self {
            let mut index = Index::new();
            for n in 0..keys {
                let rev = Rev::new(Revision(n + 2), 0);
                index.put(format!("{n:03}").as_bytes(), rev, LeaseId(0));
            }
            let reads = Cell::new(0);
            Self { index, keys, reads }
        }

        fn machine(&self) -> Machine {
            let loaded = LoadedState {
                revision: Revision(self.keys + 1),
                ..LoadedState::default()
            };
            Machine::new(loaded, self.index.snapshot())
        }

        /// Applies a command to the store, once in each way.
        fn both(&self, command: &Command) -> [Machine; 2] {
            let [mut at_once, mut later] = [self.machine(), self.machine()];
            let judged = Judged::new(command, later.keys(), self).expect("all is stored");
            let one = at_once.apply(command, AT, self, None);
            let one = one.expect("all is stored");
            let two = later.apply_judged(command, AT, &judged, None);
            let two = two.expect("what was judged needs no record");
            assert_eq!(one, two, "{command:?}");
            assert_eq!(at_once.state_hash(), later.state_hash(), "{command:?}");
            [at_once, later]
        }
    }

    impl Records for Store {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            self.reads.set(self.reads.get() + 1);
            let key = format!("{:03}", rev.major.0 - 2);
            Ok(record::encode(&record::Fields {
                key: key.as_bytes(),
                create_revision: rev.major,
                mod_revision: rev.major,
                version: 1,
                value: b"v",
                lease: LeaseId(0),
            }))
        }
    }

    fn compare(key: &'static str, range_end: &'static str, value: &'static str) -> Compare {
        Compare {
            key: key.into(),
            range_end: range_end.into(),
            relation: Relation::Equal,
            operand: Operand::Value(value.into()),
        }
    }

    fn keeps(key: &'static str) -> Put {
        Put {
            key: key.into(),
            ignore_value: true,
            ..Put::default()
        }
    }

    /// A transaction that keeps the value of another key for each way that its compares can go.
    fn nested(outer: Compare, inner: Compare) -> Command {
        let inner = Txn {
            compares: vec![inner],
            success: vec![TxnOp::Put(keeps("001"))],
            failure: vec![TxnOp::Put(keeps("002"))],
        };
        Command::Txn(Txn {
            compares: vec![outer],
            success: vec![TxnOp::Txn(inner.clone()), TxnOp::Put(keeps("003"))],
            failure: vec![TxnOp::Put(keeps("004")), TxnOp::Txn(inner)],
        })
    }

    #[test]
    fn a_judged_command_does_the_same_as_one_that_reads() {
        let store = Store::new(9);
        let commands = ["v", "w"].map(|outer| {
            ["v", "w"].map(|inner| {
                let all = compare("0", "1", outer);
                [
                    nested(all.clone(), compare("005", "", inner)),
                    // Two compares over ranges are judged together.
                    nested(all, compare("005", "007", inner)),
                ]
            })
        });
        for command in commands.iter().flatten().flatten() {
            let [_, mut later] = store.both(command);
            assert_eq!(later.take_changes().records.len(), 2, "{command:?}");
        }
        let [_, mut later] = store.both(&Command::Put(keeps("006")));
        let changes = later.take_changes();
        let kept = changes.records.first().expect("the put's record");
        let kept = record::KeyValue::decode(&kept.kv).expect("a record");
        assert_eq!(kept.value, "v");
        store.both(&Command::Put(keeps("missing")));
    }

    #[test]
    fn only_the_branch_that_runs_has_its_values_read() {
        let store = Store::new(9);
        let command = nested(compare("000", "", "v"), compare("000", "", "w"));
        let judged = Judged::new(&command, &store.index.snapshot(), &store);
        let judged = judged.expect("all is stored");
        assert_eq!(judged.succeeded, [true, false]);
        let kept: Vec<i64> = judged.kept.keys().map(|rev| rev.major.0).collect();
        assert_eq!(kept, [4, 5], "of the keys 002 and 003");
        assert_eq!(store.reads.get(), 4, "two are compared, two are kept");
    }

    #[test]
    fn applying_what_was_judged_reads_no_record() {
        let judged = Judged::default();
        let error = judged.get(Rev::new(Revision(2), 0));
        assert!(error.is_err_and(|error| error.is_not_in_memory()));
    }
}
