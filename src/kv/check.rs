//! Checks a request before it enters the log, without the store's state: empty keys, contradictory options, the size of
//! transactions, and keys that a transaction writes twice. Both branches of a transaction are checked, and so are nested ones.
//!
//! etcd: the order of the checks decides which error a request with several faults gets, so it is kept.

use super::{
    KvError,
    command::{Compare, DeleteRange, Put, RangeQuery, SortOrder, SortTarget, Txn, TxnOp},
    write_set,
};
use bytes::Bytes;

pub fn range(query: &RangeQuery) -> Result<(), KvError> {
    not_empty(&query.key)?;
    let known = query.sort_order != SortOrder::Unknown && query.sort_target != SortTarget::Unknown;
    if known {
        Ok(())
    } else {
        Err(KvError::InvalidSortOption)
    }
}

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

pub fn delete_range(delete: &DeleteRange) -> Result<(), KvError> {
    not_empty(&delete.key)
}

/// Checks a transaction. At each level the longest of its three lists must fit the budget, which starts at `ops_max`; each nested
/// transaction may use all that is left of it. The bounds of `TxnSize` are on the sums over all of them.
pub fn txn(txn: &Txn, ops_max: usize) -> Result<(), KvError> {
    let mut size = TxnSize::new(ops_max);
    operations(txn, ops_max, 1, &mut size)?;
    write_set::check(txn)?;
    Ok(())
}

fn operations(txn: &Txn, budget: usize, level: usize, size: &mut TxnSize) -> Result<(), KvError> {
    let lists = [txn.compares.len(), txn.success.len(), txn.failure.len()];
    let longest = lists.into_iter().max().unwrap_or_default();
    let left = budget.checked_sub(longest).ok_or(size.too_many())?;
    size.add_level(level, lists)?;
    txn.compares
        .iter()
        .try_for_each(|compare: &Compare| not_empty(&compare.key))?;
    txn.branches().try_for_each(|op| match op {
        TxnOp::Range(query) => range(query),
        TxnOp::Put(op) => put(op),
        TxnOp::DeleteRange(delete) => delete_range(delete),
        TxnOp::Txn(inner) => operations(inner, left, level + 1, size),
        TxnOp::Empty => Err(KvError::KeyNotFound),
    })
}

/// How deep transactions may nest. etcd: with its default of 128 operations the budget of each level allows no more either.
pub const NESTING_MAX: usize = 128;

/// The most operations of a transaction in total, nested ones included; compares have the same bound. The budget of each level
/// alone would allow as many as fit into a request.
pub const OPERATIONS_MAX: usize = 65_536;

/// Counts the operations, compares and levels of a transaction against what is allowed in total.
#[derive(Clone, Copy, Debug)]
pub(super) struct TxnSize {
    ops_max: usize,
    operations: usize,
    compares: usize,
}

impl TxnSize {
    pub(super) fn new(ops_max: usize) -> Self {
        Self {
            ops_max,
            operations: 0,
            compares: 0,
        }
    }

    /// Counts one transaction: its compares, and the operations of its success and failure branches. The outermost is at level 1.
    pub(super) fn add_level(&mut self, level: usize, lists: [usize; 3]) -> Result<(), KvError> {
        let [compares, success, failure] = lists;
        self.compares += compares;
        self.operations += success + failure;
        // A flat transaction may use all that the configuration allows, in both branches.
        let total = OPERATIONS_MAX.max(2 * self.ops_max);
        let too_long = lists.into_iter().any(|len| len > self.ops_max);
        if too_long || level > NESTING_MAX || self.compares.max(self.operations) > total {
            return Err(self.too_many());
        }
        Ok(())
    }

    fn too_many(&self) -> KvError {
        KvError::TooManyOps { max: self.ops_max }
    }
}

fn not_empty(key: &Bytes) -> Result<(), KvError> {
    if key.is_empty() {
        Err(KvError::EmptyKey)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{delete_op, nested, put_op},
        *,
    };

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
    fn all_levels_together_are_bounded() {
        let puts = |count: usize| -> Vec<TxnOp> {
            std::iter::repeat_with(|| delete_op("a", ""))
                .take(count)
                .collect()
        };
        let lists = |count: usize| -> Vec<TxnOp> {
            std::iter::repeat_with(|| nested(puts(32), puts(31)))
                .take(count)
                .collect()
        };
        let large = |count: usize| -> Vec<TxnOp> {
            std::iter::repeat_with(|| nested(lists(32), vec![]))
                .take(count)
                .collect()
        };
        assert_eq!(check(large(31)), Ok(()), "63,519 operations");
        let total = Err(KvError::TooManyOps { max: 128 });
        assert_eq!(check(large(32)), total, "more than {OPERATIONS_MAX}");
        let chain =
            |levels: usize| (1..levels).fold(puts(1), |inner, _| vec![nested(inner, vec![])]);
        assert_eq!(check(chain(60)), Ok(()), "as etcd");
        assert_eq!(check(chain(128)), Ok(()));
        assert_eq!(check(chain(129)), total);
        let deep = Txn {
            success: chain(200),
            ..Txn::default()
        };
        assert_eq!(txn(&deep, 1_000), Err(KvError::TooManyOps { max: 1_000 }));
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
