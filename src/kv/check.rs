//! Checks on a request alone, before it enters the log: empty keys, contradictory options, the size and the double writes of
//! transactions. Both branches of a transaction are checked, and so are nested ones.
//!
//! etcd: the order of the checks decides which error a request with several faults gets, so it is kept.

use super::{
    KeyRange, KvError,
    command::{Compare, DeleteRange, Put, RangeQuery, SortOrder, SortTarget, Txn, TxnOp},
};
use bytes::Bytes;
use std::collections::BTreeSet;

/// Checks a read.
pub fn range(query: &RangeQuery) -> Result<(), KvError> {
    not_empty(&query.key)?;
    let known = query.sort_order != SortOrder::Unknown && query.sort_target != SortTarget::Unknown;
    if known {
        Ok(())
    } else {
        Err(KvError::InvalidSortOption)
    }
}

/// Checks a write.
pub fn put(put: &Put) -> Result<(), KvError> {
    not_empty(&put.key)?;
    if put.ignore_value && !put.value.is_empty() {
        return Err(KvError::ValueProvided);
    }
    if put.ignore_lease && put.lease.0 != 0 {
        return Err(KvError::LeaseProvided);
    }
    Ok(())
}

/// Checks a deletion.
pub fn delete_range(delete: &DeleteRange) -> Result<(), KvError> {
    not_empty(&delete.key)
}

/// Checks a transaction. At each level the longest of its three lists must fit the budget, which starts at `ops_max`; nested
/// transactions share what is left, each for itself.
pub fn txn(txn: &Txn, ops_max: usize) -> Result<(), KvError> {
    operations(txn, ops_max, ops_max)?;
    Writes::of(&txn.success)?;
    Writes::of(&txn.failure)?;
    Ok(())
}

fn operations(txn: &Txn, budget: usize, max: usize) -> Result<(), KvError> {
    let longest = txn
        .compares
        .len()
        .max(txn.success.len())
        .max(txn.failure.len());
    let left = budget
        .checked_sub(longest)
        .ok_or(KvError::TooManyOps { max })?;
    txn.compares
        .iter()
        .try_for_each(|compare: &Compare| not_empty(&compare.key))?;
    txn.branches().try_for_each(|op| match op {
        TxnOp::Range(query) => range(query),
        TxnOp::Put(op) => put(op),
        TxnOp::DeleteRange(delete) => delete_range(delete),
        TxnOp::Txn(inner) => operations(inner, left, max),
        TxnOp::Empty => Err(KvError::KeyNotFound),
    })
}

fn not_empty(key: &Bytes) -> Result<(), KvError> {
    if key.is_empty() {
        Err(KvError::EmptyKey)
    } else {
        Ok(())
    }
}

/// What a list of operations may write, nested transactions included.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<KeyRange>,
}

impl Writes {
    /// Collects the writes of a list, or finds two that touch one key. Deletes may overlap each other.
    ///
    /// etcd: a nested put is held against the deletes of this list and of earlier nested transactions only, so that
    /// `[txn{put k}, txn{del k}]` passes and `[txn{del k}, txn{put k}]` does not.
    fn of(ops: &[TxnOp]) -> Result<Self, KvError> {
        let mut writes = Self::default();
        for op in ops {
            // etcd: a delete "from key" on is not held against puts: `[put k, del --from-key k]` passes.
            if let TxnOp::DeleteRange(delete) = op
                && delete.range_end.as_ref() != b"\0"
            {
                writes
                    .deletes
                    .push(KeyRange::from_wire(&delete.key, &delete.range_end));
            }
        }
        for op in ops {
            if let TxnOp::Txn(inner) = op {
                writes.add_nested(Self::of(&inner.success)?, Self::of(&inner.failure)?)?;
            }
        }
        for op in ops {
            if let TxnOp::Put(put) = op {
                writes.add_put(put.key.0.clone())?;
            }
        }
        Ok(writes)
    }

    /// Adds both branches of a nested transaction; only one of them runs, so they may repeat each other's keys.
    fn add_nested(&mut self, then: Self, otherwise: Self) -> Result<(), KvError> {
        let both = then
            .puts
            .union(&otherwise.puts)
            .cloned()
            .collect::<Vec<_>>();
        for key in both {
            self.add_put(key)?;
        }
        self.deletes.extend(then.deletes);
        self.deletes.extend(otherwise.deletes);
        Ok(())
    }

    fn add_put(&mut self, key: Bytes) -> Result<(), KvError> {
        let deleted = self.deletes.iter().any(|range| range.contains(&key));
        if deleted || !self.puts.insert(key) {
            return Err(KvError::DuplicateKey);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str) -> TxnOp {
        TxnOp::Put(Put {
            key: key.into(),
            ..Put::default()
        })
    }

    fn delete_op(key: &'static str, range_end: &'static str) -> TxnOp {
        TxnOp::DeleteRange(DeleteRange {
            key: key.into(),
            range_end: range_end.into(),
            prev_kv: false,
        })
    }

    fn nested(success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnOp {
        TxnOp::Txn(Txn {
            compares: Vec::new(),
            success,
            failure,
        })
    }

    fn check(success: Vec<TxnOp>) -> Result<(), KvError> {
        txn(
            &Txn {
                success,
                ..Txn::default()
            },
            128,
        )
    }

    #[test]
    fn a_key_is_written_once_whatever_the_order() {
        let duplicate = Err(KvError::DuplicateKey);
        assert_eq!(check(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(check(vec![put_op("b"), delete_op("a", "c")]), duplicate);
        assert_eq!(check(vec![delete_op("a", "c"), put_op("b")]), duplicate);
        assert_eq!(check(vec![delete_op("a", "c"), put_op("c")]), Ok(()));
        assert_eq!(
            check(vec![delete_op("a", "c"), delete_op("b", "d")]),
            Ok(())
        );
    }

    #[test]
    fn nested_branches_may_repeat_each_other_but_not_their_surroundings() {
        let duplicate = Err(KvError::DuplicateKey);
        assert_eq!(
            check(vec![nested(vec![put_op("a")], vec![put_op("a")])]),
            Ok(())
        );
        assert_eq!(
            check(vec![nested(vec![put_op("a")], vec![]), put_op("a")]),
            duplicate
        );
        let put_then_delete = vec![
            nested(vec![put_op("a")], vec![]),
            nested(vec![delete_op("a", "")], vec![]),
        ];
        assert_eq!(check(put_then_delete.clone()), Ok(()), "etcd's asymmetry");
        assert_eq!(
            check(put_then_delete.into_iter().rev().collect()),
            duplicate
        );
    }

    #[test]
    fn the_budget_shrinks_by_level() {
        let level = |count: usize| -> Vec<TxnOp> {
            std::iter::repeat_with(|| delete_op("a", ""))
                .take(count)
                .collect()
        };
        assert_eq!(check(level(128)), Ok(()));
        assert_eq!(check(level(129)), Err(KvError::TooManyOps { max: 128 }));
        let two = |inner: usize| vec![nested(level(inner), vec![]), nested(level(inner), vec![])];
        assert_eq!(
            check(two(126)),
            Ok(()),
            "each nested transaction has the rest for itself"
        );
        assert_eq!(check(two(127)), Err(KvError::TooManyOps { max: 128 }));
    }

    #[test]
    fn faults_are_found_in_the_branch_not_taken_and_below() {
        let failure = vec![nested(vec![], vec![TxnOp::Empty])];
        let request = Txn {
            failure,
            ..Txn::default()
        };
        assert_eq!(txn(&request, 128), Err(KvError::KeyNotFound));
    }
}
