//! gRPC clients of any of several members: requests go to the next one until one answers.

use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// How long one member may take before the request goes to the next.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long requests are repeated in all: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(2);
const PAUSE: Duration = Duration::from_millis(50);

/// Connections to members, made when they are first used, and again after they broke.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    channels: Vec<Channel>,
    /// The position of the member that is asked first.
    pub(crate) first: usize,
}

impl Members {
    pub(crate) fn at(ports: &[u16], first: usize) -> Self {
        let channel = |port: &u16| {
            let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
            let endpoint = endpoint.expect("a valid URI").connect_timeout(ANSWER_MAX);
            endpoint.connect_lazy()
        };
        Self {
            channels: ports.iter().map(channel).collect(),
            first: first % ports.len(),
        }
    }

    /// The member asked first.
    pub(crate) fn kv(&self) -> pb::kv_client::KvClient<Channel> {
        pb::kv_client::KvClient::new(self.channels[self.first].clone())
            .max_decoding_message_size(usize::MAX)
    }

    pub(crate) fn watch(&self) -> pb::watch_client::WatchClient<Channel> {
        pb::watch_client::WatchClient::new(self.channels[self.first].clone())
            .max_decoding_message_size(usize::MAX)
    }

    /// From now on another one is asked first.
    pub(crate) fn move_on(&mut self) {
        self.first = (self.first + 1) % self.channels.len();
    }

    /// Waits until the member asked first answers.
    pub(crate) async fn serves(&self) {
        let start = quorate::internals::clock::now();
        let request = pb::RangeRequest {
            key: "any".into(),
            ..pb::RangeRequest::default()
        };
        loop {
            let mut kv = self.kv();
            match timeout(ANSWER_MAX, kv.range(request.clone())).await {
                Ok(Ok(_)) => return,
                failed => assert!(start.elapsed() < PATIENCE, "it does not serve: {failed:?}"),
            }
            sleep(PAUSE).await;
        }
    }

    /// One attempt, at one member.
    pub(crate) async fn try_txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let answer = timeout(ANSWER_MAX, async { self.kv().txn(request).await });
        let answer = answer.await.map_err(|_| Status::unavailable("no answer"))?;
        Ok(answer?.into_inner())
    }

    /// Repeats a request until a member answers.
    pub(crate) async fn range(&mut self, request: pb::RangeRequest) -> pb::RangeResponse {
        let start = quorate::internals::clock::now();
        loop {
            let mut kv = self.kv();
            match timeout(ANSWER_MAX, kv.range(request.clone())).await {
                Ok(Ok(answer)) => return answer.into_inner(),
                failed => assert!(start.elapsed() < PATIENCE, "nobody answers: {failed:?}"),
            }
            self.move_on();
            sleep(PAUSE).await;
        }
    }

    /// Repeats a write until a member acknowledges it. A write whose first outcome is unknown may happen twice.
    pub(crate) async fn txn(&mut self, request: pb::TxnRequest) -> pb::TxnResponse {
        let start = quorate::internals::clock::now();
        loop {
            match self.try_txn(request.clone()).await {
                Ok(answer) => return answer,
                Err(status) => assert!(start.elapsed() < PATIENCE, "nobody writes: {status}"),
            }
            self.move_on();
            sleep(PAUSE).await;
        }
    }

    /// Repeats a compaction until `revision` is compacted.
    pub(crate) async fn compact(&mut self, revision: i64) {
        let start = quorate::internals::clock::now();
        loop {
            let request = pb::CompactionRequest {
                revision,
                physical: false,
            };
            let mut kv = self.kv();
            match timeout(ANSWER_MAX, kv.compact(request)).await {
                Ok(Ok(_)) => return,
                Ok(Err(status)) if status.message().contains("has been compacted") => return,
                failed => assert!(start.elapsed() < PATIENCE, "nobody compacts: {failed:?}"),
            }
            self.move_on();
            sleep(PAUSE).await;
        }
    }

    /// The newest revision, by a linearizable read.
    pub(crate) async fn revision(&mut self) -> i64 {
        let request = pb::RangeRequest {
            key: "revision".into(),
            ..pb::RangeRequest::default()
        };
        revision(self.range(request).await.header.as_ref())
    }
}

/// The revision in an answer's header.
pub(crate) fn revision(header: Option<&pb::ResponseHeader>) -> i64 {
    header.expect("every answer has a header").revision
}

pub(crate) fn put(key: impl Into<bytes::Bytes>, value: impl Into<bytes::Bytes>) -> pb::RequestOp {
    let put = pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..pb::PutRequest::default()
    };
    pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put)),
    }
}

pub(crate) fn delete(
    key: impl Into<bytes::Bytes>,
    range_end: impl Into<bytes::Bytes>,
) -> pb::RequestOp {
    let delete = pb::DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        ..pb::DeleteRangeRequest::default()
    };
    pb::RequestOp {
        request: Some(pb::request_op::Request::RequestDeleteRange(delete)),
    }
}

/// A transaction that always does all of this.
pub(crate) fn all_of(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest {
        success,
        ..pb::TxnRequest::default()
    }
}
