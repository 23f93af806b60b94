//! Converts protobuf requests into requests of the domain, without checks: [`crate::kv::check`] refuses what etcd refuses. Keys
//! and values are moved, never copied.

use super::proto::etcdserverpb as pb;
use crate::{
    auth::Caller,
    kv::{
        KeyRange,
        command::{
            Compare, DeleteRange, Operand, Put, RangeQuery, Relation, RevisionFilter, SortOrder,
            SortTarget, Txn, TxnOp,
        },
        watch::{Filters, WatchId, WatchSpec},
    },
    types::{LeaseId, Revision},
};
use bytes::Bytes;
use pb::{
    compare::{CompareResult, CompareTarget, TargetUnion},
    range_request as range_pb,
    request_op::Request,
    watch_create_request::FilterType,
};

pub fn range(request: pb::RangeRequest) -> RangeQuery {
    RangeQuery {
        sort_order: sort_order(request.sort_order),
        sort_target: sort_target(request.sort_target),
        key: request.key.into(),
        range_end: request.range_end.into(),
        limit: request.limit,
        revision: request.revision,
        serializable: request.serializable,
        keys_only: request.keys_only,
        count_only: request.count_only,
        filter: RevisionFilter {
            min_mod: request.min_mod_revision,
            max_mod: request.max_mod_revision,
            min_create: request.min_create_revision,
            max_create: request.max_create_revision,
        },
    }
}

/// The keys of a watch live much longer than its request, so they are copied: a slice would keep the request's whole buffer.
pub fn watch(request: &pb::WatchCreateRequest) -> WatchSpec {
    // etcd: the empty key means the smallest possible key.
    let key = match request.key.as_ref() {
        b"" => Bytes::from_static(b"\0"),
        key => Bytes::copy_from_slice(key),
    };
    let range_end = Bytes::copy_from_slice(&request.range_end);
    let filters = |unwanted: FilterType| request.filters.contains(&i32::from(unwanted));
    WatchSpec {
        id: WatchId(request.watch_id),
        range: KeyRange::from_wire(&key, &range_end),
        start: Revision(request.start_revision),
        filters: Filters {
            no_put: filters(FilterType::Noput),
            no_delete: filters(FilterType::Nodelete),
        },
        prev_kv: request.prev_kv,
        progress_notify: request.progress_notify,
        fragment: request.fragment,
        caller: Caller::Nobody,
    }
}

pub fn put(request: pb::PutRequest) -> Put {
    Put {
        key: request.key.into(),
        value: request.value.into(),
        lease: LeaseId(request.lease),
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

pub fn delete_range(request: pb::DeleteRangeRequest) -> DeleteRange {
    DeleteRange {
        key: request.key.into(),
        range_end: request.range_end.into(),
        prev_kv: request.prev_kv,
    }
}

/// Nesting is bounded by the decoder, which refuses messages nested deeper than 100 levels.
pub fn txn(request: pb::TxnRequest) -> Txn {
    Txn {
        compares: request.compare.into_iter().map(compare).collect(),
        success: request.success.into_iter().map(operation).collect(),
        failure: request.failure.into_iter().map(operation).collect(),
    }
}

fn operation(request: pb::RequestOp) -> TxnOp {
    match request.request {
        Some(Request::RequestRange(request)) => TxnOp::Range(range(request)),
        Some(Request::RequestPut(request)) => TxnOp::Put(put(request)),
        Some(Request::RequestDeleteRange(request)) => TxnOp::DeleteRange(delete_range(request)),
        Some(Request::RequestTxn(request)) => TxnOp::Txn(txn(request)),
        None => TxnOp::Empty,
    }
}

fn compare(request: pb::Compare) -> Compare {
    Compare {
        relation: relation(request.result),
        operand: operand(request.target, request.target_union),
        key: request.key.into(),
        range_end: request.range_end.into(),
    }
}

/// etcd: if the `oneof` has another variant than `target` names, the operand is zero or empty.
fn operand(target: i32, union: Option<TargetUnion>) -> Operand {
    match (CompareTarget::try_from(target), union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(operand))) => {
            Operand::Version(operand)
        }
        (Ok(CompareTarget::Version), _) => Operand::Version(0),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(operand))) => {
            Operand::Create(operand)
        }
        (Ok(CompareTarget::Create), _) => Operand::Create(0),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(operand))) => Operand::Mod(operand),
        (Ok(CompareTarget::Mod), _) => Operand::Mod(0),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(operand))) => {
            Operand::Value(operand.into())
        }
        (Ok(CompareTarget::Value), _) => Operand::Value("".into()),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(operand))) => Operand::Lease(operand),
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

fn sort_order(order: i32) -> SortOrder {
    match range_pb::SortOrder::try_from(order) {
        Ok(range_pb::SortOrder::None) => SortOrder::None,
        Ok(range_pb::SortOrder::Ascend) => SortOrder::Ascend,
        Ok(range_pb::SortOrder::Descend) => SortOrder::Descend,
        Err(_) => SortOrder::Unknown,
    }
}

fn sort_target(target: i32) -> SortTarget {
    match range_pb::SortTarget::try_from(target) {
        Ok(range_pb::SortTarget::Key) => SortTarget::Key,
        Ok(range_pb::SortTarget::Version) => SortTarget::Version,
        Ok(range_pb::SortTarget::Create) => SortTarget::Create,
        Ok(range_pb::SortTarget::Mod) => SortTarget::Mod,
        Ok(range_pb::SortTarget::Value) => SortTarget::Value,
        Err(_) => SortTarget::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message;

    #[test]
    fn every_field_of_a_range_arrives() {
        let request = pb::RangeRequest {
            key: "k".into(),
            range_end: "z".into(),
            limit: -3,
            revision: -4,
            sort_order: 2,
            sort_target: 3,
            serializable: true,
            keys_only: true,
            count_only: true,
            min_mod_revision: 5,
            max_mod_revision: 6,
            min_create_revision: 7,
            max_create_revision: 8,
        };
        let expected = RangeQuery {
            key: "k".into(),
            range_end: "z".into(),
            limit: -3,
            revision: -4,
            sort_order: SortOrder::Descend,
            sort_target: SortTarget::Mod,
            serializable: true,
            keys_only: true,
            count_only: true,
            filter: RevisionFilter {
                min_mod: 5,
                max_mod: 6,
                min_create: 7,
                max_create: 8,
            },
        };
        assert_eq!(range(request), expected);
    }

    #[test]
    fn every_field_of_a_write_arrives() {
        let request = pb::PutRequest {
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
        let request = pb::DeleteRangeRequest {
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
    fn numbers_outside_an_enum_become_unknown() {
        let request = pb::RangeRequest {
            sort_order: 3,
            sort_target: -1,
            ..Default::default()
        };
        let query = range(request);
        assert_eq!(query.sort_order, SortOrder::Unknown);
        assert_eq!(query.sort_target, SortTarget::Unknown);
        let request = pb::Compare {
            result: 4,
            target: 5,
            ..Default::default()
        };
        let compared = compare(request);
        assert_eq!(compared.relation, Relation::Any);
        assert_eq!(compared.operand, Operand::Unknown);
    }

    #[test]
    fn an_operand_counts_only_for_its_own_target() {
        let unions = [
            TargetUnion::Version(9),
            TargetUnion::CreateRevision(9),
            TargetUnion::ModRevision(9),
            TargetUnion::Value("9".into()),
            TargetUnion::Lease(9),
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
            assert_eq!(operand(target, None), unset[at], "no member set");
            for (set, union) in unions.iter().enumerate() {
                let expected = if set == at { &filled[at] } else { &unset[at] };
                assert_eq!(&operand(target, Some(union.clone())), expected, "{union:?}");
            }
        }
    }

    #[test]
    fn operations_keep_their_order_and_their_branch() {
        let op = |request| pb::RequestOp { request };
        let request = pb::TxnRequest {
            compare: vec![pb::Compare {
                key: "c".into(),
                ..Default::default()
            }],
            success: vec![
                op(Some(Request::RequestPut(pb::PutRequest::default()))),
                op(None),
                op(Some(Request::RequestTxn(pb::TxnRequest {
                    failure: vec![op(Some(Request::RequestRange(pb::RangeRequest::default())))],
                    ..Default::default()
                }))),
            ],
            failure: vec![op(Some(Request::RequestDeleteRange(
                pb::DeleteRangeRequest::default(),
            )))],
        };
        let inner = Txn {
            failure: vec![TxnOp::Range(RangeQuery::default())],
            ..Txn::default()
        };
        let expected = Txn {
            compares: vec![Compare {
                key: "c".into(),
                range_end: "".into(),
                relation: Relation::Equal,
                operand: Operand::Version(0),
            }],
            success: vec![TxnOp::Put(Put::default()), TxnOp::Empty, TxnOp::Txn(inner)],
            failure: vec![TxnOp::DeleteRange(DeleteRange::default())],
        };
        assert_eq!(txn(request), expected);
    }

    #[test]
    fn bytes_are_moved_not_copied() {
        let sent = pb::PutRequest {
            key: "key".into(),
            value: "value".into(),
            ..Default::default()
        };
        let wire = Bytes::from(sent.encode_to_vec());
        let decoded = put(pb::PutRequest::decode(wire.clone()).unwrap());
        let within = wire.as_ptr_range();
        assert!(
            within.contains(&decoded.key.as_ptr()),
            "the key is a slice of the message"
        );
        assert!(
            within.contains(&decoded.value.as_ptr()),
            "the value is a slice of the message"
        );
    }
}
