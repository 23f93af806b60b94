//! Requests for keys, from the messages of an etcd to those of the state machine. Keys and values are shared, not copied.
//!
//! Ranges in a transaction change nothing, but they are checked: for permission, and for the revision that they read. What only
//! shapes their answer is left out, since nobody waits for it, and old versions accept there what later ones refuse.

use crate::{
    kv::command::{Compare, DeleteRange, Operand, Put, RangeQuery, Relation, Txn, TxnOp},
    types::LeaseId,
};
use quorate_etcd_files::messages::{
    self, CompareResult, CompareTarget, DeleteRangeRequest, Operation, PutRequest, RangeRequest,
    RequestOp, TxnRequest,
};

pub(super) fn put(request: PutRequest) -> Put {
    let PutRequest {
        key,
        value,
        lease,
        prev_kv,
        ignore_value,
        ignore_lease,
    } = request;
    Put {
        key: key.into(),
        value: value.into(),
        lease: LeaseId(lease),
        prev_kv,
        ignore_value,
        ignore_lease,
    }
}

pub(super) fn delete_range(request: DeleteRangeRequest) -> DeleteRange {
    let DeleteRangeRequest {
        key,
        range_end,
        prev_kv,
    } = request;
    DeleteRange {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    }
}

/// Nesting is bounded by the decoder, which refuses messages nested deeper than 100 levels.
pub(super) fn txn(request: TxnRequest) -> Txn {
    let TxnRequest {
        compare: compares,
        success,
        failure,
    } = request;
    Txn {
        compares: compares.into_iter().map(compare).collect(),
        success: success.into_iter().map(operation).collect(),
        failure: failure.into_iter().map(operation).collect(),
    }
}

fn range(request: RangeRequest) -> RangeQuery {
    RangeQuery {
        key: request.key.into(),
        range_end: request.range_end.into(),
        revision: request.revision,
        ..RangeQuery::default()
    }
}

fn operation(request: RequestOp) -> TxnOp {
    match request.request {
        Some(Operation::Range(request)) => TxnOp::Range(range(request)),
        Some(Operation::Put(request)) => TxnOp::Put(put(request)),
        Some(Operation::DeleteRange(request)) => TxnOp::DeleteRange(delete_range(request)),
        Some(Operation::Txn(request)) => TxnOp::Txn(txn(request)),
        None => TxnOp::Empty,
    }
}

fn compare(request: messages::Compare) -> Compare {
    Compare {
        relation: relation(request.result),
        operand: operand(request.target, request.operand),
        key: request.key.into(),
        range_end: request.range_end.into(),
    }
}

/// etcd: if another operand is set than that of the target, the operand is zero or empty.
fn operand(target: i32, given: Option<messages::Operand>) -> Operand {
    use messages::Operand as Given;
    match (CompareTarget::try_from(target), given) {
        (Ok(CompareTarget::Version), Some(Given::Version(operand))) => Operand::Version(operand),
        (Ok(CompareTarget::Version), _) => Operand::Version(0),
        (Ok(CompareTarget::Create), Some(Given::CreateRevision(operand))) => {
            Operand::Create(operand)
        }
        (Ok(CompareTarget::Create), _) => Operand::Create(0),
        (Ok(CompareTarget::Mod), Some(Given::ModRevision(operand))) => Operand::Mod(operand),
        (Ok(CompareTarget::Mod), _) => Operand::Mod(0),
        (Ok(CompareTarget::Value), Some(Given::Value(operand))) => Operand::Value(operand.into()),
        (Ok(CompareTarget::Value), _) => Operand::Value("".into()),
        (Ok(CompareTarget::Lease), Some(Given::Lease(operand))) => Operand::Lease(operand),
        (Ok(CompareTarget::Lease), _) => Operand::Lease(0),
        (Err(_), _) => Operand::Unknown,
    }
}

fn relation(result: i32) -> Relation {
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => Relation::Equal,
        Ok(CompareResult::Greater) => Relation::Greater,
        Ok(CompareResult::Less) => Relation::Less,
        Ok(CompareResult::NotEqual) => Relation::NotEqual,
        Err(_) => Relation::Any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_write_arrives() {
        let request = PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: -1,
            prev_kv: true,
            ignore_value: true,
            ignore_lease: true,
        };
        let expected = Put {
            key: "k".into(),
            value: "v".into(),
            lease: LeaseId(-1),
            prev_kv: true,
            ignore_value: true,
            ignore_lease: true,
        };
        assert_eq!(put(request), expected);
        let request = DeleteRangeRequest {
            key: "k".into(),
            range_end: "z".into(),
            prev_kv: true,
        };
        let expected = DeleteRange {
            key: "k".into(),
            range_end: "z".into(),
            prev_kv: true,
        };
        assert_eq!(delete_range(request), expected);
    }

    #[test]
    fn of_a_range_only_what_is_checked_arrives() {
        let request = RangeRequest {
            key: "k".into(),
            range_end: "z".into(),
            limit: 3,
            revision: 4,
            sort_order: 9,
            sort_target: 9,
            keys_only: true,
            ..RangeRequest::default()
        };
        let expected = RangeQuery {
            key: "k".into(),
            range_end: "z".into(),
            revision: 4,
            ..RangeQuery::default()
        };
        assert_eq!(range(request), expected);
    }

    #[test]
    fn an_operand_counts_only_for_its_own_target() {
        let given = [
            messages::Operand::Version(9),
            messages::Operand::CreateRevision(9),
            messages::Operand::ModRevision(9),
            messages::Operand::Value("9".into()),
            messages::Operand::Lease(9),
        ];
        let filled = [
            Operand::Version(9),
            Operand::Create(9),
            Operand::Mod(9),
            Operand::Value("9".into()),
            Operand::Lease(9),
        ];
        let unset = [
            Operand::Version(0),
            Operand::Create(0),
            Operand::Mod(0),
            Operand::Value("".into()),
            Operand::Lease(0),
        ];
        for target in 0..5 {
            let at = usize::try_from(target).unwrap();
            assert_eq!(operand(target, None), unset[at]);
            for (set, given) in given.iter().enumerate() {
                let expected = if set == at { &filled[at] } else { &unset[at] };
                assert_eq!(&operand(target, Some(given.clone())), expected, "{given:?}");
            }
        }
        assert_eq!(operand(5, None), Operand::Unknown);
        assert_eq!(relation(4), Relation::Any);
    }

    #[test]
    fn operations_keep_their_order_and_their_branch() {
        let op = |request| RequestOp { request };
        let inner = TxnRequest {
            failure: vec![op(Some(Operation::Range(RangeRequest::default())))],
            ..TxnRequest::default()
        };
        let request = TxnRequest {
            compare: vec![messages::Compare {
                key: "c".into(),
                range_end: "d".into(),
                result: CompareResult::NotEqual.into(),
                ..messages::Compare::default()
            }],
            success: vec![
                op(Some(Operation::Put(PutRequest::default()))),
                op(None),
                op(Some(Operation::Txn(inner))),
            ],
            failure: vec![op(Some(Operation::DeleteRange(
                DeleteRangeRequest::default(),
            )))],
        };
        let inner = Txn {
            failure: vec![TxnOp::Range(RangeQuery::default())],
            ..Txn::default()
        };
        let expected = Txn {
            compares: vec![Compare {
                key: "c".into(),
                range_end: "d".into(),
                relation: Relation::NotEqual,
                operand: Operand::Version(0),
            }],
            success: vec![TxnOp::Put(Put::default()), TxnOp::Empty, TxnOp::Txn(inner)],
            failure: vec![TxnOp::DeleteRange(DeleteRange::default())],
        };
        assert_eq!(txn(request), expected);
    }
}
