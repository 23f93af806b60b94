//! A history's requests and answers, as the API spells them.

use crate::history::{
    Answer, Compare, DeleteRange, Event, KeyValue, Operand, Put, Range, Relation, Txn, TxnOp,
};
use quorate::internals::api::proto::{etcdserverpb as pb, mvccpb};

pub(crate) fn range(asked: &Range) -> pb::RangeRequest {
    pb::RangeRequest {
        key: asked.key.clone(),
        range_end: asked.range_end.clone(),
        limit: i64::try_from(asked.limit).expect("a small limit"),
        revision: asked.revision,
        serializable: asked.serializable,
        count_only: asked.count_only,
        ..pb::RangeRequest::default()
    }
}

pub(crate) fn put(asked: &Put) -> pb::PutRequest {
    pb::PutRequest {
        key: asked.key.clone(),
        value: asked.value.clone(),
        lease: asked.lease,
        prev_kv: asked.prev_kv,
        ignore_value: asked.ignore_value,
        ignore_lease: asked.ignore_lease,
    }
}

pub(crate) fn delete(asked: &DeleteRange) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: asked.key.clone(),
        range_end: asked.range_end.clone(),
        prev_kv: asked.prev_kv,
    }
}

pub(crate) fn txn(asked: &Txn) -> pb::TxnRequest {
    let ops = |ops: &[TxnOp]| ops.iter().map(txn_op).collect();
    pb::TxnRequest {
        compare: asked.compares.iter().map(compare).collect(),
        success: ops(&asked.success),
        failure: ops(&asked.failure),
    }
}

fn txn_op(op: &TxnOp) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        TxnOp::Range(asked) => Request::RequestRange(range(asked)),
        TxnOp::Put(asked) => Request::RequestPut(put(asked)),
        TxnOp::DeleteRange(asked) => Request::RequestDeleteRange(delete(asked)),
        TxnOp::Txn(asked) => Request::RequestTxn(txn(asked)),
    };
    pb::RequestOp {
        request: Some(request),
    }
}

fn compare(asked: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let (target, union) = match asked.operand.clone() {
        Operand::Version(version) => (CompareTarget::Version, TargetUnion::Version(version)),
        Operand::Create(at) => (CompareTarget::Create, TargetUnion::CreateRevision(at)),
        Operand::Mod(at) => (CompareTarget::Mod, TargetUnion::ModRevision(at)),
        Operand::Lease(lease) => (CompareTarget::Lease, TargetUnion::Lease(lease)),
        Operand::Value(value) => (CompareTarget::Value, TargetUnion::Value(value)),
    };
    let result = match asked.relation {
        Relation::Equal => CompareResult::Equal,
        Relation::Greater => CompareResult::Greater,
        Relation::Less => CompareResult::Less,
        Relation::NotEqual => CompareResult::NotEqual,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: asked.key.clone(),
        target_union: Some(union),
        ..pb::Compare::default()
    }
}

fn key_value(kv: mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

fn count(number: i64) -> usize {
    usize::try_from(number).expect("a count is not negative")
}

pub(crate) fn ranged(answer: pb::RangeResponse) -> Answer {
    Answer::Range {
        kvs: answer.kvs.into_iter().map(key_value).collect(),
        count: count(answer.count),
        more: answer.more,
    }
}

pub(crate) fn stored(answer: pb::PutResponse) -> Answer {
    Answer::Put {
        prev: answer.prev_kv.map(key_value),
    }
}

pub(crate) fn deleted(answer: pb::DeleteRangeResponse) -> Answer {
    Answer::DeleteRange {
        deleted: count(answer.deleted),
        prevs: answer.prev_kvs.into_iter().map(key_value).collect(),
    }
}

pub(crate) fn decided(answer: pb::TxnResponse) -> Answer {
    Answer::Txn {
        succeeded: answer.succeeded,
        answers: answer.responses.into_iter().map(txn_answer).collect(),
    }
}

fn txn_answer(answer: pb::ResponseOp) -> Answer {
    use pb::response_op::Response;
    match answer.response.expect("each operation is answered") {
        Response::ResponseRange(answer) => ranged(answer),
        Response::ResponsePut(answer) => stored(answer),
        Response::ResponseDeleteRange(answer) => deleted(answer),
        Response::ResponseTxn(answer) => decided(answer),
    }
}

pub(crate) fn event(event: mvccpb::Event) -> Event {
    let kind = event.r#type();
    let kv = key_value(event.kv.expect("an event has its key"));
    match kind {
        mvccpb::event::EventType::Put => Event::Put(kv),
        mvccpb::event::EventType::Delete => Event::Delete(kv.key),
    }
}
