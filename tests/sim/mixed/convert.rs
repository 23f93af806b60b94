//! Converts requests and answers between the history's types and the crate's.

use crate::{
    clients::Client,
    history::{self, Answer, KeyValue, Operand, Outcome, Refusal, Relation, Request, Revision},
    network::Slot,
};
use quorate::internals::{
    actors::requests::{RequestError, Requests},
    kv::{
        KvError,
        command::{
            Compare, DeleteRange, EncodedKv, OpDone, Operand as KvOperand, Put, RangeDone,
            RangeQuery, Relation as KvRelation, Txn, TxnDone, TxnOp,
        },
        record,
    },
    types::{LeaseId, Revision as KvRevision},
};
use std::time::Duration;

/// The answer that a client received.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) outcome: Outcome,
    /// A number of the process that answered; zero if there was no answer.
    pub(crate) process: u64,
    /// An error of a member that could not read a record it must have.
    pub(crate) unreadable: Option<String>,
}

impl Response {
    /// The revision and all keys, if this answers [`everything`].
    pub(crate) fn everything(&self) -> Option<(Revision, &[KeyValue])> {
        match &self.outcome {
            Outcome::Done {
                revision,
                answer: Answer::Range { kvs, .. },
            } => Some((*revision, kvs)),
            Outcome::Done { .. } | Outcome::Failed(_) | Outcome::Unknown => None,
        }
    }
}

/// All keys, as the asked member has them.
pub(crate) fn everything() -> Request {
    Request::Range(history::Range {
        key: b"\0".as_slice().into(),
        range_end: b"\0".as_slice().into(),
        serializable: true,
        ..history::Range::default()
    })
}

/// Sends a request to a member, below gRPC.
pub(crate) async fn ask(client: &Client, slot: Slot, patience: u64, request: &Request) -> Response {
    let request = request.clone();
    let answer = client.call(slot, patience, |requests| async move {
        (process(), run(&requests, request).await)
    });
    response(slot, answer.await)
}

/// As [`ask`], but the member cancels the request after `millis`, as it does for a client that has gone.
pub(crate) async fn ask_and_cancel(
    client: &Client,
    slot: Slot,
    patience: u64,
    millis: u64,
    request: &Request,
) -> Response {
    let request = request.clone();
    let answer = client.call(slot, patience, move |requests| async move {
        let within = Duration::from_millis(millis);
        let result = tokio::time::timeout(within, run(&requests, request)).await;
        result.ok().map(|result| (process(), result))
    });
    response(slot, answer.await.flatten())
}

/// The number of this event loop, which is unique to the process.
pub(super) fn process() -> u64 {
    let id = tokio::runtime::Handle::current().id().to_string();
    id.parse().expect("a number")
}

pub(super) type Answered = Result<(KvRevision, Answer), RequestError>;

/// What an answer means; `None` is no answer.
pub(super) fn response(slot: Slot, answer: Option<(u64, Answered)>) -> Response {
    let Some((process, result)) = answer else {
        return Response {
            outcome: Outcome::Unknown,
            process: 0,
            unreadable: None,
        };
    };
    let mut unreadable = None;
    let outcome = match result {
        Ok((revision, answer)) => Outcome::Done {
            revision: revision.0,
            answer,
        },
        Err(error) => {
            let text = error.to_string();
            if text.contains("not in the database") {
                unreadable = Some(format!("member {}: {text}", slot + 1));
            }
            outcome_of(&error)
        }
    };
    Response {
        outcome,
        process,
        unreadable,
    }
}

/// What an error says of its request's effect.
pub(crate) fn outcome_of(error: &RequestError) -> Outcome {
    match error {
        RequestError::Kv(KvError::Compacted { .. }) => Outcome::Failed(Refusal::Compacted),
        RequestError::Kv(KvError::FutureRevision { .. }) => Outcome::Failed(Refusal::Future),
        RequestError::Kv(_)
        | RequestError::TooLarge { .. }
        | RequestError::TooManyRequests
        | RequestError::DeadlineNoLeader
        | RequestError::NoLeader
        | RequestError::NotLeader
        | RequestError::Learner => Outcome::Failed(Refusal::NotDone),
        _ => Outcome::Unknown,
    }
}

/// Carries out a request at a member.
pub(super) async fn run(
    requests: &Requests,
    request: Request,
) -> Result<(KvRevision, Answer), RequestError> {
    Ok(match request {
        Request::Range(range) => {
            let done = requests.range(query(&range)).await?;
            (done.revision, range_answer(&done))
        }
        Request::Put(op) => {
            let done = requests.put(put(&op)).await?;
            let prev = done.prev.as_ref().map(key_value);
            (done.revision, Answer::Put { prev })
        }
        Request::DeleteRange(op) => {
            let done = requests.delete_range(delete(&op)).await?;
            let prevs = done.prevs.iter().map(key_value).collect();
            let deleted = usize::try_from(done.deleted).unwrap();
            (done.revision, Answer::DeleteRange { deleted, prevs })
        }
        Request::Txn(op) => {
            let done = requests.txn(txn(&op)).await?;
            (done.revision, txn_answer(&done))
        }
        Request::Compact(at) => (requests.compact(KvRevision(at), false).await?, Answer::Done),
        Request::RevokeLease(id) => (requests.revoke_lease(LeaseId(id)).await?, Answer::Done),
    })
}

fn query(range: &history::Range) -> RangeQuery {
    RangeQuery {
        key: range.key.clone().into(),
        range_end: range.range_end.clone().into(),
        limit: i64::try_from(range.limit).unwrap(),
        revision: range.revision,
        serializable: range.serializable,
        count_only: range.count_only,
        ..RangeQuery::default()
    }
}

fn put(op: &history::Put) -> Put {
    Put {
        key: op.key.clone().into(),
        value: op.value.clone().into(),
        lease: LeaseId(op.lease),
        prev_kv: op.prev_kv,
        ignore_value: op.ignore_value,
        ignore_lease: op.ignore_lease,
    }
}

fn delete(op: &history::DeleteRange) -> DeleteRange {
    DeleteRange {
        key: op.key.clone().into(),
        range_end: op.range_end.clone().into(),
        prev_kv: op.prev_kv,
    }
}

fn txn(op: &history::Txn) -> Txn {
    let ops = |ops: &[history::TxnOp]| ops.iter().map(txn_op).collect();
    Txn {
        compares: op.compares.iter().map(compare).collect(),
        success: ops(&op.success),
        failure: ops(&op.failure),
    }
}

fn txn_op(op: &history::TxnOp) -> TxnOp {
    match op {
        history::TxnOp::Range(op) => TxnOp::Range(query(op)),
        history::TxnOp::Put(op) => TxnOp::Put(put(op)),
        history::TxnOp::DeleteRange(op) => TxnOp::DeleteRange(delete(op)),
        history::TxnOp::Txn(op) => TxnOp::Txn(txn(op)),
    }
}

fn compare(compare: &history::Compare) -> Compare {
    Compare {
        key: compare.key.clone().into(),
        range_end: bytes::Bytes::new().into(),
        relation: match compare.relation {
            Relation::Equal => KvRelation::Equal,
            Relation::Greater => KvRelation::Greater,
            Relation::Less => KvRelation::Less,
            Relation::NotEqual => KvRelation::NotEqual,
        },
        operand: match &compare.operand {
            Operand::Version(to) => KvOperand::Version(*to),
            Operand::Create(to) => KvOperand::Create(*to),
            Operand::Mod(to) => KvOperand::Mod(*to),
            Operand::Lease(to) => KvOperand::Lease(*to),
            Operand::Value(to) => KvOperand::Value(to.clone().into()),
        },
    }
}

/// A stored key as the history has it.
pub(crate) fn key_value(encoded: &EncodedKv) -> KeyValue {
    from_record(record::KeyValue::decode(encoded).expect("members answer with whole records"))
}

pub(crate) fn from_record(kv: record::KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        create_revision: kv.create_revision.0,
        mod_revision: kv.mod_revision.0,
        version: kv.version,
        value: kv.value,
        lease: kv.lease.0,
    }
}

fn range_answer(done: &RangeDone) -> Answer {
    Answer::Range {
        kvs: done.kvs.iter().map(key_value).collect(),
        count: usize::try_from(done.count).unwrap(),
        more: done.more,
    }
}

fn txn_answer(done: &TxnDone) -> Answer {
    let answers = done.responses.iter().map(|response| match response {
        OpDone::Range(done) => range_answer(done),
        OpDone::Put(done) => Answer::Put {
            prev: done.prev.as_ref().map(key_value),
        },
        OpDone::DeleteRange(done) => Answer::DeleteRange {
            deleted: usize::try_from(done.deleted).unwrap(),
            prevs: done.prevs.iter().map(key_value).collect(),
        },
        OpDone::Txn(done) => txn_answer(done),
    });
    Answer::Txn {
        succeeded: done.succeeded,
        answers: answers.collect(),
    }
}
