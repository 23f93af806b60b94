//! The calls of `etcdserverpb.KV`: they take generated requests and return encoded responses, whatever the transport.
//!
//! Checks that need only the request are made here, before it is proposed or read. That includes its size: the length of the
//! generated message is known here, and etcd limits that of the log entry made of it.

use super::{
    Api, convert,
    frames::Encoded,
    message_reader::decode,
    proto::etcdserverpb as pb,
    reply::{self, Header},
    status::Status,
    txn_message,
};
use crate::{
    actors::{
        replies::{Answer, Reply},
        requests::{Published, RequestError},
    },
    kv::{
        KvError, check,
        command::{Command, Outcome, RangeDone, RangeQuery, Txn},
        record::varint_len,
    },
    types::Revision,
};
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// etcd: what a log entry contains besides the client's message, its tag and its length, in bytes.
const ENVELOPE_BYTES: usize = 14;

/// The calls that make up nearly all traffic. Each is begun and answered in steps that never block, so that a connection can have
/// many in flight without a task for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hot {
    /// `KV.Range`.
    Range,
    /// `KV.Put`.
    Put,
    /// `KV.DeleteRange`.
    DeleteRange,
    /// `KV.Txn`.
    Txn,
}

/// What a hot call needs next.
#[derive(Debug)]
pub enum Begun {
    /// Its outcome, which the reply receives; then [`Api::answer`].
    Proposed,
    /// A view from [`Api::view_for`]; then [`Api::read_now`] or [`Api::read`].
    Reads(Read),
    /// [`Api::propose`], which handles a database at its quota.
    AtQuota(Command),
}

/// What a call reads.
#[derive(Debug)]
pub enum Read {
    /// Keys.
    Range(RangeQuery),
    /// A transaction that only reads.
    Txn(Txn),
}

impl Read {
    /// Whether this member's newest view suffices, without a read index.
    pub fn is_serializable(&self) -> bool {
        match self {
            Self::Range(query) => query.serializable,
            Self::Txn(txn) => txn.is_serializable(),
        }
    }
}

impl Hot {
    /// The hot call with this path.
    pub fn of(path: &str) -> Option<Self> {
        match path.strip_prefix("/etcdserverpb.KV/")? {
            "Range" => Some(Self::Range),
            "Put" => Some(Self::Put),
            "DeleteRange" => Some(Self::DeleteRange),
            "Txn" => Some(Self::Txn),
            _ => None,
        }
    }
}

impl Api {
    /// Begins a hot call. If it proposes a command, `reply` receives the outcome.
    pub fn begin(
        &self,
        hot: Hot,
        message: Bytes,
        reply: impl FnOnce() -> Reply,
    ) -> Result<Begun, Status> {
        let command = match hot {
            Hot::Range => {
                let query = convert::range(decode(message)?);
                check::range(&query)?;
                return Ok(Begun::Reads(Read::Range(query)));
            }
            Hot::Put => {
                let request: pb::PutRequest = decode(message)?;
                let len = request.encoded_len();
                let put = convert::put(request);
                self.admit(len, || check::put(&put))?;
                check::put(&put)?;
                Command::Put(put)
            }
            Hot::DeleteRange => {
                let request: pb::DeleteRangeRequest = decode(message)?;
                let len = request.encoded_len();
                let delete = convert::delete_range(request);
                self.admit(len, || check::delete_range(&delete))?;
                check::delete_range(&delete)?;
                Command::DeleteRange(delete)
            }
            Hot::Txn => {
                let ops_max = self.requests.limits().txn_ops_max;
                let request = txn_message::decode(message, ops_max)?;
                let len = request.encoded_len();
                let txn = convert::txn(request);
                if txn.is_read_only() {
                    // It does not enter the log, so only the transport limits its size.
                    check::txn(&txn, ops_max)?;
                    return Ok(Begun::Reads(Read::Txn(txn)));
                }
                self.admit(len, || check::txn(&txn, ops_max))?;
                check::txn(&txn, ops_max)?;
                Command::Txn(txn)
            }
        };
        if command.takes_space() && self.requests.is_at_quota() {
            return Ok(Begun::AtQuota(command));
        }
        self.requests.propose_to(&command, reply)?;
        Ok(Begun::Proposed)
    }

    /// Performs a hot call.
    pub async fn call(&self, hot: Hot, message: Bytes) -> Result<Encoded, Status> {
        let (reply, outcome) = oneshot::channel();
        match self.begin(hot, message, || reply.into())? {
            Begun::Proposed => self.answer(outcome.await.unwrap_or(Err(RequestError::Stopped))),
            Begun::AtQuota(command) => self.propose(&command).await,
            Begun::Reads(read) => {
                let published = self.view_for(read.is_serializable()).await?;
                self.read(published, read).await
            }
        }
    }

    /// Proposes a command and waits for its outcome.
    pub async fn propose(&self, command: &Command) -> Result<Encoded, Status> {
        self.answer(self.requests.propose(command).await)
    }

    /// The response for an outcome.
    pub fn answer(&self, outcome: Answer) -> Result<Encoded, Status> {
        match outcome? {
            Outcome::Put(done) => reply::put(&self.header(done.revision), &done),
            Outcome::DeleteRange(done) => reply::delete_range(&self.header(done.revision), &done),
            Outcome::Txn(done) => reply::txn(&self.header(done.revision), &done),
            other => unreachable!("no hot call proposes a command with the outcome {other:?}"),
        }
    }

    /// The view for a read; see [`Requests::view_for`](crate::actors::requests::Requests::view_for).
    pub async fn view_for(&self, serializable: bool) -> Result<Arc<Published>, Status> {
        Ok(self.requests.view_for(serializable).await?)
    }

    /// This member's newest view: enough for a serializable read.
    pub fn newest_view(&self) -> Result<Arc<Published>, Status> {
        Ok(self.requests.newest_view()?)
    }

    /// The answer to a read; `None` if computing it would hold up other calls for too long.
    pub fn read_now(&self, published: &Published, read: &Read) -> Result<Option<Encoded>, Status> {
        Ok(match read {
            Read::Range(query) => match published.try_range(query)? {
                Some(done) => Some(reply::range(&self.header(done.revision), &done)?),
                None => None,
            },
            Read::Txn(txn) => match published.try_read_txn(txn)? {
                Some(done) => Some(reply::txn(&self.header(done.revision), &done)?),
                None => None,
            },
        })
    }

    /// The answer to a read. A long one is read and written on another thread.
    pub async fn read(&self, published: Arc<Published>, read: Read) -> Result<Encoded, Status> {
        if let Some(encoded) = self.read_now(&published, &read)? {
            return Ok(encoded);
        }
        let without_revision = self.header(Revision(0));
        let header = move |revision| Header {
            revision,
            ..without_revision
        };
        let reading = self.requests.read_in_background(move || {
            let view = &published.view;
            Ok(match &read {
                Read::Range(query) => view
                    .range(query)?
                    .map(|done| reply::range(&header(done.revision), &done)),
                Read::Txn(txn) => view
                    .read_txn(txn)?
                    .map(|done| reply::txn(&header(done.revision), &done)),
            })
        });
        reading.await?
    }

    /// `KV.Compact`.
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<Encoded, Status> {
        let revision = self
            .requests
            .compact(Revision(request.revision), request.physical)
            .await?;
        reply::header_only(&self.header(revision))
    }

    /// `KV.RangeStream`: sends each chunk when it was read. Ends early if the client has gone.
    pub async fn range_stream(
        &self,
        request: pb::RangeRequest,
        out: &mpsc::Sender<Result<Encoded, Status>>,
    ) -> Result<(), Status> {
        let query = convert::range(request);
        check::range(&query)?;
        let mut chunks = self.requests.range_stream(query)?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            let message = match chunk.end {
                None => reply::stream_chunk(&chunk.kvs)?,
                Some(end) => {
                    let (more, count) = (end.more, end.count);
                    let last = RangeDone {
                        revision: end.revision,
                        kvs: chunk.kvs,
                        more,
                        count,
                    };
                    reply::stream_end(&self.header(end.revision), &last)?
                }
            };
            if out.send(Ok(message)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Refuses a request whose log entry would be too large.
    ///
    /// etcd: a request that is invalid as well gets the error of `check`, which runs only for requests that are too large: the
    /// caller checks all others.
    fn admit(&self, len: usize, check: impl FnOnce() -> Result<(), KvError>) -> Result<(), Status> {
        let max = self.requests.limits().request_bytes_max;
        let bytes = replicated_len(len);
        if bytes <= max {
            return Ok(());
        }
        check()?;
        Err(RequestError::TooLarge { bytes, max }.into())
    }
}

/// The size that etcd limits: that of the log entry made of a request of `len` bytes.
fn replicated_len(len: usize) -> usize {
    len + 1 + varint_len(len as u64) + ENVELOPE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_may_be_as_large_as_etcds() {
        let put = |len: usize| pb::PutRequest {
            key: "key".into(),
            value: vec![0; len].into(),
            ..Default::default()
        };
        let replicated = |len: usize| replicated_len(put(len).encoded_len());
        assert!(replicated(1_572_834) <= 1_572_864, "etcd takes this one");
        assert!(replicated(1_572_839) > 1_572_864, "and refuses this one");
    }
}
