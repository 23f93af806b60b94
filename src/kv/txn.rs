//! Transactions: judged first, then run.
//!
//! All compares, those of nested transactions included, are judged against the state before the transaction. The resulting
//! [`Plan`] names the branches that will run; on these branches everything is checked for which the transaction could be refused,
//! before the first operation runs. So a transaction happens whole or not at all.

use super::{
    KvError,
    answer_reads::{ANSWER_BYTES_MAX, AnswerLimits},
    command::{OpDone, Put, RangeQuery, Txn, TxnDone, TxnOp},
    compares,
    keys::Keys,
    lease::LeaseTable,
    pick::PickRoom,
    range::{Picked, RevisionWindow},
    records::{ReadError, Records},
};
use crate::types::Revision;

/// A transaction with its branch chosen, and those of the transactions nested in that branch, in order.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Whether all compares held.
    pub succeeded: bool,
    pub ops: &'a [TxnOp],
    /// Plans of the [`TxnOp::Txn`]s in `ops`.
    pub nested: Vec<Plan<'a>>,
}

impl<'a> Plan<'a> {
    /// Judges the compares of `txn` and of what nests in the branches that will run.
    pub fn new(txn: &'a Txn, keys: &impl Keys, records: &dyn Records) -> Result<Self, ReadError> {
        let ranged = compares::judge_ranged(txn, keys, records)?.map(Vec::into_iter);
        let mut planner = Planner {
            keys,
            records,
            ranged,
        };
        planner.plan(txn)
    }

    /// The plan of a transaction that was judged before. `succeeded` begins with its own outcome and goes on with those of the
    /// transactions that nest in the branch that runs, in order.
    pub(super) fn judged(txn: &'a Txn, succeeded: &mut impl Iterator<Item = bool>) -> Self {
        let outcome = succeeded.next();
        assert!(
            outcome.is_some(),
            "there is an outcome for each transaction that runs"
        );
        let is_met = outcome == Some(true);
        let ops = if is_met { &txn.success } else { &txn.failure };
        let mut nested = Vec::new();
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                nested.push(Self::judged(inner, succeeded));
            }
        }
        Self {
            succeeded: is_met,
            ops,
            nested,
        }
    }

    /// Checks what could refuse the operations that will run, against the state before the transaction. etcd: the first
    /// operation with a fault decides the error, nested ones in their place.
    pub fn check(
        &self,
        keys: &impl Keys,
        leases: &LeaseTable,
        window: RevisionWindow,
    ) -> Result<(), KvError> {
        let mut nested = self.nested.iter();
        for op in self.ops {
            match op {
                TxnOp::Put(put) => check_put(put, keys, leases)?,
                TxnOp::Range(query) => check_range(query, window)?,
                TxnOp::Txn(_) => planned(&mut nested).check(keys, leases, window)?,
                TxnOp::DeleteRange(_) | TxnOp::Empty => {}
            }
        }
        Ok(())
    }
}

struct Planner<'k, K> {
    keys: &'k K,
    records: &'k dyn Records,
    /// The results of [`compares::judge_ranged`] for the next transaction and those after it.
    ranged: Option<std::vec::IntoIter<bool>>,
}

impl<K: Keys> Planner<'_, K> {
    fn plan<'a>(&mut self, txn: &'a Txn) -> Result<Plan<'a>, ReadError> {
        let ranged = self.ranged.as_mut().and_then(Iterator::next);
        let mut succeeded = ranged.unwrap_or(true);
        for compare in &txn.compares {
            let is_judged = ranged.is_some() && compares::is_ranged(compare);
            succeeded =
                succeeded && (is_judged || compares::holds(compare, self.keys, self.records)?);
        }
        let (ops, other) = if succeeded {
            (&txn.success, &txn.failure)
        } else {
            (&txn.failure, &txn.success)
        };
        // The success branch comes first.
        if !succeeded {
            self.pass_over(other);
        }
        let nested = self.plan_nested(ops)?;
        if succeeded {
            self.pass_over(other);
        }
        Ok(Plan {
            succeeded,
            ops,
            nested,
        })
    }

    fn plan_nested<'a>(&mut self, ops: &'a [TxnOp]) -> Result<Vec<Plan<'a>>, ReadError> {
        let mut nested = Vec::new();
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                nested.push(self.plan(inner)?);
            }
        }
        Ok(nested)
    }

    /// Skips the results for the transactions of a branch that does not run.
    fn pass_over(&mut self, ops: &[TxnOp]) {
        for op in ops {
            if let (TxnOp::Txn(inner), Some(ranged)) = (op, &mut self.ranged) {
                ranged.next();
                self.pass_over(&inner.success);
                self.pass_over(&inner.failure);
            }
        }
    }
}

/// The plan of the next nested transaction.
pub(crate) fn planned<'p, 'a>(plans: &mut std::slice::Iter<'p, Plan<'a>>) -> &'p Plan<'a> {
    let plan = plans.next();
    assert!(
        plan.is_some(),
        "a plan holds one nested plan for each nested transaction"
    );
    plan.unwrap_or_else(|| unreachable!())
}

/// A put may attach only to a lease that exists, and keep only what exists. etcd: in this order.
pub(crate) fn check_put(put: &Put, keys: &impl Keys, leases: &LeaseTable) -> Result<(), KvError> {
    leases.check(put.lease)?;
    if (put.ignore_value || put.ignore_lease) && keys.get(&put.key).is_none() {
        return Err(KvError::KeyNotFound);
    }
    Ok(())
}

/// etcd: inside a transaction a negative revision is judged literally, not as "newest".
fn check_range(query: &RangeQuery, window: RevisionWindow) -> Result<(), KvError> {
    if query.revision == 0 {
        Ok(())
    } else {
        window.check(Revision(query.revision))
    }
}

/// Runs a transaction that only reads, on a view. `None` if its results take more bytes than `limits` has.
pub fn read(
    txn: &Txn,
    keys: &impl Keys,
    records: &dyn Records,
    window: RevisionWindow,
    limits: AnswerLimits,
) -> Result<Result<Option<TxnDone>, KvError>, ReadError> {
    let plan = Plan::new(txn, keys, records)?;
    if let Err(refusal) = plan.check(keys, &LeaseTable::default(), window) {
        return Ok(Err(refusal));
    }
    let room = PickRoom::new(limits.steps, limits.picked_bytes);
    let mut bytes_left = limits.bytes;
    let mut responses = Vec::with_capacity(plan.ops.len());
    for op in plan.ops {
        if let TxnOp::Range(query) = op {
            let at = (query.revision > 0 && query.revision != window.newest.0)
                .then_some(Revision(query.revision));
            let picked = Picked::new(keys, query.clone(), at, window.newest, &room);
            if room.is_used_up() {
                let bytes_max = ANSWER_BYTES_MAX;
                return Ok(Err(KvError::AnswerTooLarge { bytes_max }));
            }
            let Some(done) = picked.read_within(records, &mut bytes_left)? else {
                return Ok(Ok(None));
            };
            responses.push(OpDone::Range(done));
            room.refill(limits.picked_bytes);
        }
    }
    Ok(Ok(Some(TxnDone {
        revision: window.newest,
        succeeded: plan.succeeded,
        responses,
    })))
}
