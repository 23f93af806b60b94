//! Differences between two servers that are both correct:
//!
//! - cluster id, member id and term: compared as "there" or "not there";
//! - the order of keys that tie under the sort target, and which of them a limit keeps: etcd's sort is not stable.
//!
//! Differences between etcd 3.4, which Debian has, and 3.7, which Quorate follows, are not generated at all: sort
//! options outside their enums, `RangeStream`, and leases on keys (`keys_only` leaves them out since 3.7).
//!
//! Nor are transactions with a delete of "all keys from this one on". etcd does not check puts for conflicts with it, so
//! the key of a put with `ignore_value` or `ignore_lease` may be deleted before the put runs, which ends the etcd process.

use super::generate::Operation;
use bytes::Bytes;
use quorate::internals::api::proto::{
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeResponse, PutResponse, RangeRequest,
        RangeResponse, ResponseHeader, TxnRequest, TxnResponse, range_request::SortTarget,
        request_op::Request, response_op::Response,
    },
    mvccpb::KeyValue,
};
use tonic::Code;

/// One server's answer, with only what both must agree on.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Range(RangeResponse),
    Put(PutResponse),
    Delete(DeleteRangeResponse),
    Txn(TxnResponse),
    Compact(CompactionResponse),
    Refused(Code, String),
}

impl Answer {
    pub(super) fn normalised(mut self, operation: &Operation) -> Self {
        match (&mut self, operation) {
            (Self::Range(answer), Operation::Range(request)) => range(answer, request),
            (Self::Put(answer), Operation::Put(_)) => header(&mut answer.header),
            (Self::Delete(answer), Operation::Delete(_)) => header(&mut answer.header),
            (Self::Txn(answer), Operation::Txn(request)) => txn(answer, request),
            (Self::Compact(answer), Operation::Compact(_)) => header(&mut answer.header),
            (Self::Refused(..), _) => {}
            (answer, _) => panic!("{answer:?} answers {operation:?}"),
        }
        self
    }

    /// Whether both are refusals that depend on the order in which a transaction's operations are checked.
    pub(super) fn refused_in_another_order(&self, other: &Self) -> bool {
        let checks = [
            "etcdserver: key not found",
            "etcdserver: requested lease not found",
            "etcdserver: mvcc: required revision has been compacted",
            "etcdserver: mvcc: required revision is a future revision",
        ];
        let checked = |answer: &Self| matches!(answer, Self::Refused(_, text) if checks.contains(&text.as_str()));
        checked(self) && checked(other)
    }

    pub(super) fn header(&self) -> Option<ResponseHeader> {
        match self {
            Self::Range(answer) => answer.header,
            Self::Put(answer) => answer.header,
            Self::Delete(answer) => answer.header,
            Self::Txn(answer) => answer.header,
            Self::Compact(answer) => answer.header,
            Self::Refused(..) => None,
        }
    }
}

fn header(header: &mut Option<ResponseHeader>) {
    if let Some(header) = header {
        header.cluster_id = header.cluster_id.min(1);
        header.member_id = header.member_id.min(1);
        header.raft_term = header.raft_term.min(1);
    }
}

fn txn(answer: &mut TxnResponse, request: &TxnRequest) {
    header(&mut answer.header);
    let branch = if answer.succeeded {
        &request.success
    } else {
        &request.failure
    };
    assert_eq!(
        branch.len(),
        answer.responses.len(),
        "one answer for each operation: {answer:?}"
    );
    for (op, answer) in branch.iter().zip(&mut answer.responses) {
        match (answer.response.as_mut(), op.request.as_ref()) {
            (Some(Response::ResponseRange(answer)), Some(Request::RequestRange(request))) => {
                range(answer, request);
            }
            (Some(Response::ResponseTxn(answer)), Some(Request::RequestTxn(request))) => {
                txn(answer, request);
            }
            (Some(Response::ResponsePut(answer)), Some(Request::RequestPut(_))) => {
                header(&mut answer.header);
            }
            (Some(Response::ResponseDeleteRange(answer)), Some(Request::RequestDeleteRange(_))) => {
                header(&mut answer.header);
            }
            (answer, request) => panic!("{answer:?} answers {request:?}"),
        }
    }
}

fn range(answer: &mut RangeResponse, request: &RangeRequest) {
    header(&mut answer.header);
    let by_value = request.sort_target() == SortTarget::Value;
    if by_value && request.keys_only {
        answer.kvs.sort_by(|left, right| left.key.cmp(&right.key));
        return;
    }
    if request.sort_target() == SortTarget::Key {
        return;
    }
    let rank = |kv: &KeyValue| rank(kv, request.sort_target());
    for ties in answer
        .kvs
        .chunk_by_mut(|left, right| rank(left) == rank(right))
    {
        ties.sort_by(|left, right| left.key.cmp(&right.key));
    }
    if answer.more {
        // It is undefined which of the items that tie at the limit are returned, but their number is defined.
        let Some(last) = answer.kvs.last().map(rank) else {
            return;
        };
        for kv in answer.kvs.iter_mut().filter(|kv| rank(kv) == last) {
            *kv = KeyValue {
                value: format!("a tie at {last:?}").into(),
                ..KeyValue::default()
            };
        }
    }
}

/// What keys are sorted by: a number, or a value.
fn rank(kv: &KeyValue, target: SortTarget) -> (i64, Bytes) {
    match target {
        SortTarget::Key => (0, kv.key.clone()),
        SortTarget::Version => (kv.version, Bytes::new()),
        SortTarget::Create => (kv.create_revision, Bytes::new()),
        SortTarget::Mod => (kv.mod_revision, Bytes::new()),
        SortTarget::Value => (0, kv.value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static str, version: i64) -> KeyValue {
        KeyValue {
            key: key.into(),
            version,
            ..KeyValue::default()
        }
    }

    fn answer(kvs: Vec<KeyValue>, more: bool) -> Answer {
        let header = ResponseHeader {
            cluster_id: 7,
            member_id: 8,
            revision: 3,
            raft_term: 9,
        };
        let request = RangeRequest {
            sort_target: SortTarget::Version.into(),
            ..Default::default()
        };
        Answer::Range(RangeResponse {
            header: Some(header),
            kvs,
            more,
            count: 3,
        })
        .normalised(&Operation::Range(request))
    }

    #[test]
    fn ties_may_be_in_any_order_and_others_may_not() {
        let left = answer(vec![kv("a", 1), kv("b", 1), kv("c", 2)], false);
        assert_eq!(
            left,
            answer(vec![kv("b", 1), kv("a", 1), kv("c", 2)], false)
        );
        assert_ne!(
            left,
            answer(vec![kv("c", 2), kv("a", 1), kv("b", 1)], false)
        );
        assert_ne!(
            left,
            answer(vec![kv("a", 1), kv("x", 1), kv("c", 2)], false)
        );
    }

    #[test]
    fn a_limit_may_keep_any_of_the_last_ties() {
        let left = answer(vec![kv("a", 1), kv("b", 2)], true);
        assert_eq!(left, answer(vec![kv("a", 1), kv("z", 2)], true));
        assert_ne!(left, answer(vec![kv("z", 1), kv("b", 2)], true));
        assert_ne!(left, answer(vec![kv("a", 1), kv("b", 3)], true));
        assert_ne!(left, answer(vec![kv("a", 1)], true));
    }

    #[test]
    fn ids_may_differ_and_the_revision_may_not() {
        let with = |cluster_id, revision| {
            let header = ResponseHeader {
                cluster_id,
                member_id: 1,
                revision,
                raft_term: 1,
            };
            let answer = Answer::Compact(CompactionResponse {
                header: Some(header),
            });
            let request = CompactionRequest::default();
            answer.normalised(&Operation::Compact(request))
        };
        assert_eq!(with(5, 2), with(6, 2));
        assert_ne!(with(5, 2), with(0, 2));
        assert_ne!(with(5, 2), with(5, 3));
    }
}
