//! Transactions: judged first, then run.
//!
//! All compares, those of nested transactions included, are judged against the state before the transaction. The [`Plan`]
//! that comes of it names the branches that will run; what could refuse the transaction is checked along them before
//! the first operation runs, so a transaction happens whole or not at all.

use super::{
    KeyRange, KvError,
    command::{Compare, OpDone, Operand, Put, RangeQuery, Relation, Txn, TxnDone, TxnOp},
    index::Meta,
    keys::Keys,
    lease::LeaseTable,
    range::{self, RevisionWindow},
    records::{ReadError, Records},
};
use crate::types::Revision;
use std::{cmp::Ordering, ops::ControlFlow};

/// A transaction with its branch chosen, and those of the transactions nested in that branch, in order.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Whether all compares held.
    pub succeeded: bool,
    /// The branch that runs.
    pub ops: &'a [TxnOp],
    /// Plans of the [`TxnOp::Txn`]s in `ops`.
    pub nested: Vec<Plan<'a>>,
}

impl<'a> Plan<'a> {
    /// Judges the compares of `txn` and of what nests in the branches that will run.
    pub fn new(txn: &'a Txn, keys: &impl Keys, records: &dyn Records) -> Result<Self, ReadError> {
        let mut succeeded = true;
        for compare in &txn.compares {
            succeeded = succeeded && holds(compare, keys, records)?;
        }
        let ops = if succeeded {
            &txn.success
        } else {
            &txn.failure
        };
        let mut nested = Vec::new();
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                nested.push(Self::new(inner, keys, records)?);
            }
        }
        Ok(Self {
            succeeded,
            ops,
            nested,
        })
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

/// Runs a transaction that only reads, on a view.
pub fn read(
    txn: &Txn,
    keys: &impl Keys,
    records: &dyn Records,
    window: RevisionWindow,
) -> Result<Result<TxnDone, KvError>, ReadError> {
    let plan = Plan::new(txn, keys, records)?;
    if let Err(refusal) = plan.check(keys, &LeaseTable::default(), window) {
        return Ok(Err(refusal));
    }
    let mut responses = Vec::with_capacity(plan.ops.len());
    for op in plan.ops {
        if let TxnOp::Range(query) = op {
            let at = (query.revision > 0 && query.revision != window.newest.0)
                .then_some(Revision(query.revision));
            let done = range::range(keys, records, query, at, window.newest)?;
            responses.push(OpDone::Range(done));
        }
    }
    Ok(Ok(TxnDone {
        revision: window.newest,
        succeeded: plan.succeeded,
        responses,
    }))
}

/// Whether a compare holds for its key, or for every key of its range. An empty range is like a missing key.
fn holds(compare: &Compare, keys: &impl Keys, records: &dyn Records) -> Result<bool, ReadError> {
    let range = KeyRange::from_wire(&compare.key, &compare.range_end);
    let (mut any, mut all) = (false, Ok(true));
    let mut judge = |meta: Meta| {
        any = true;
        all = holds_for(compare, Some(meta), records);
        if matches!(all, Ok(true)) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    if range.is_single() {
        if let Some(meta) = keys.get(&range.start) {
            return holds_for(compare, Some(meta), records);
        }
    } else {
        keys.visit(&range, &mut |_, meta| judge(meta));
    }
    if any {
        all
    } else {
        holds_for(compare, None, records)
    }
}

fn holds_for(
    compare: &Compare,
    meta: Option<Meta>,
    records: &dyn Records,
) -> Result<bool, ReadError> {
    let number = |of: fn(Meta) -> i64, operand: &i64| meta.map_or(0, of).cmp(operand);
    let order = match &compare.operand {
        Operand::Version(operand) => number(|meta| meta.version, operand),
        Operand::Create(operand) => number(|meta| meta.create.0, operand),
        Operand::Mod(operand) => number(|meta| meta.modified.major.0, operand),
        Operand::Lease(operand) => number(|meta| meta.lease.0, operand),
        Operand::Unknown => Ordering::Equal,
        Operand::Value(operand) => {
            let Some(meta) = meta else { return Ok(false) };
            let kv = range::decode(meta.modified, &records.get(meta.modified)?)?;
            kv.value.as_ref().cmp(operand.as_ref())
        }
    };
    Ok(match compare.relation {
        Relation::Equal => order.is_eq(),
        Relation::Greater => order.is_gt(),
        Relation::Less => order.is_lt(),
        Relation::NotEqual => order.is_ne(),
        Relation::Any => true,
    })
}
