//! A client of the whole API, with every field in reach, and short names for the common requests.

use bytes::Bytes;
use quorate::internals::api::proto::{etcdserverpb as pb, healthpb::health_client::HealthClient};
use std::fmt::Debug;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

pub(crate) type Outcome<T> = Result<T, Status>;

#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) kv: pb::kv_client::KvClient<Channel>,
    pub(crate) maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
    pub(crate) health: HealthClient<Channel>,
    pub(crate) watch: pb::watch_client::WatchClient<Channel>,
    pub(crate) auth: pb::auth_client::AuthClient<Channel>,
}

impl Client {
    pub(crate) async fn connect(port: u16) -> Self {
        Self::try_connect(port)
            .await
            .expect("the server accepts connections")
    }

    /// `None` while nothing listens there.
    pub(crate) async fn try_connect(port: u16) -> Option<Self> {
        let endpoint =
            Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a valid URI");
        Some(Self::over(endpoint.connect().await.ok()?))
    }

    fn over(channel: Channel) -> Self {
        Self {
            kv: pb::kv_client::KvClient::new(channel.clone())
                .max_decoding_message_size(usize::MAX)
                .max_encoding_message_size(usize::MAX),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel.clone()),
            watch: pb::watch_client::WatchClient::new(channel.clone())
                .max_decoding_message_size(usize::MAX),
            auth: pb::auth_client::AuthClient::new(channel.clone()),
            health: HealthClient::new(channel),
        }
    }

    pub(crate) async fn range(&self, request: pb::RangeRequest) -> Outcome<pb::RangeResponse> {
        self.kv
            .clone()
            .range(request)
            .await
            .map(Response::into_inner)
    }

    /// The chunks of a whole stream.
    pub(crate) async fn range_stream(
        &self,
        request: pb::RangeRequest,
    ) -> Outcome<Vec<pb::RangeResponse>> {
        let mut stream: Streaming<pb::RangeStreamResponse> =
            self.kv.clone().range_stream(request).await?.into_inner();
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.message().await? {
            chunks.push(
                chunk
                    .range_response
                    .expect("each chunk carries a range response"),
            );
        }
        Ok(chunks)
    }

    pub(crate) async fn put(&self, request: pb::PutRequest) -> Outcome<pb::PutResponse> {
        self.kv.clone().put(request).await.map(Response::into_inner)
    }

    pub(crate) async fn delete(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Outcome<pb::DeleteRangeResponse> {
        self.kv
            .clone()
            .delete_range(request)
            .await
            .map(Response::into_inner)
    }

    pub(crate) async fn txn(&self, request: pb::TxnRequest) -> Outcome<pb::TxnResponse> {
        self.kv.clone().txn(request).await.map(Response::into_inner)
    }

    pub(crate) async fn compact(&self, revision: i64) -> Outcome<pb::CompactionResponse> {
        self.compact_with(pb::CompactionRequest {
            revision,
            physical: false,
        })
        .await
    }

    pub(crate) async fn compact_with(
        &self,
        request: pb::CompactionRequest,
    ) -> Outcome<pb::CompactionResponse> {
        self.kv
            .clone()
            .compact(request)
            .await
            .map(Response::into_inner)
    }

    pub(crate) async fn status(&self) -> pb::StatusResponse {
        let answer = self.maintenance.clone().status(pb::StatusRequest {}).await;
        answer.expect("a status").into_inner()
    }

    /// Puts and returns the new revision.
    pub(crate) async fn must_put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> i64 {
        let answer = self.put(put(key, value)).await.expect("a put");
        answer.header.expect("a put has a header").revision
    }

    /// The store's current revision.
    pub(crate) async fn revision(&self) -> i64 {
        let answer = self.range(get("revision")).await.expect("a range");
        answer.header.expect("a range has a header").revision
    }

    /// Keys and values as text, in the order of the answer.
    pub(crate) async fn pairs(&self, request: pb::RangeRequest) -> Vec<(String, String)> {
        let answer = self.range(request).await.expect("a range");
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        answer
            .kvs
            .iter()
            .map(|kv| (text(&kv.key), text(&kv.value)))
            .collect()
    }

    /// Keys as text, in the order of the answer.
    pub(crate) async fn keys(&self, request: pb::RangeRequest) -> Vec<String> {
        self.pairs(request)
            .await
            .into_iter()
            .map(|(key, _)| key)
            .collect()
    }
}

/// The call must fail with exactly this code and text: clients of different languages look at either.
#[track_caller]
pub(crate) fn refused<T: Debug>(outcome: Outcome<T>, code: Code, message: &str) {
    match outcome {
        Ok(answer) => panic!("expected {code:?} `{message}`, was answered {answer:?}"),
        Err(status) => {
            assert_eq!(
                (status.code(), status.message()),
                (code, message),
                "code and text"
            );
        }
    }
}

pub(crate) fn get(key: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub(crate) fn get_range(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    }
}

pub(crate) fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..Default::default()
    }
}

pub(crate) fn del(key: impl Into<Bytes>) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        ..Default::default()
    }
}

pub(crate) fn del_range(
    key: impl Into<Bytes>,
    range_end: impl Into<Bytes>,
) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..Default::default()
    }
}

pub(crate) fn txn(
    compare: Vec<pb::Compare>,
    success: Vec<pb::RequestOp>,
    failure: Vec<pb::RequestOp>,
) -> pb::TxnRequest {
    pb::TxnRequest {
        compare,
        success,
        failure,
    }
}

/// `key <result> operand`, the target being the one the operand belongs to.
pub(crate) fn compare(
    key: impl Into<Bytes>,
    result: pb::compare::CompareResult,
    operand: pb::compare::TargetUnion,
) -> pb::Compare {
    use pb::compare::{CompareTarget, TargetUnion};
    let target = match operand {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        range_end: Bytes::new(),
        target_union: Some(operand),
    }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

pub(crate) fn op_get(request: pb::RangeRequest) -> pb::RequestOp {
    op(pb::request_op::Request::RequestRange(request))
}

pub(crate) fn op_put(request: pb::PutRequest) -> pb::RequestOp {
    op(pb::request_op::Request::RequestPut(request))
}

pub(crate) fn op_del(request: pb::DeleteRangeRequest) -> pb::RequestOp {
    op(pb::request_op::Request::RequestDeleteRange(request))
}

pub(crate) fn op_txn(request: pb::TxnRequest) -> pb::RequestOp {
    op(pb::request_op::Request::RequestTxn(request))
}
