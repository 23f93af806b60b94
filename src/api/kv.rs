//! The calls of `etcdserverpb.KV`: generated requests in, encoded answers out. Nothing here knows which transport carries them.
//!
//! The checks on a request alone are made behind [`Requests`](crate::actors::requests::Requests); only the size check is made
//! here, where the size etcd judges by is known.

use super::{Api, convert, proto::etcdserverpb as pb, reply, reply::Encoded, status::Status};
use crate::{
    actors::requests::RequestError,
    kv::{KvError, check, command::RangeDone, record::varint_len},
    types::Revision,
};
use prost::Message;
use tokio::sync::mpsc;

/// What etcd's replicated request holds besides the client's message, its tag and its length.
const ENVELOPE_BYTES: usize = 14;

/// Chunks of a streamed range that wait for a slow client before reading stops.
pub const STREAM_CHUNKS_MAX: usize = 2;

impl Api {
    /// `KV.Range`.
    pub async fn range(&self, request: pb::RangeRequest) -> Result<Encoded, Status> {
        let done = self.requests.range(convert::range(request)).await?;
        reply::range(&self.header(done.revision), &done)
    }

    /// `KV.Put`.
    pub async fn put(&self, request: pb::PutRequest) -> Result<Encoded, Status> {
        let len = request.encoded_len();
        let put = convert::put(request);
        self.admit(len, || check::put(&put))?;
        let done = self.requests.put(put).await?;
        reply::put(&self.header(done.revision), &done)
    }

    /// `KV.DeleteRange`.
    pub async fn delete_range(&self, request: pb::DeleteRangeRequest) -> Result<Encoded, Status> {
        let len = request.encoded_len();
        let delete = convert::delete_range(request);
        self.admit(len, || check::delete_range(&delete))?;
        let done = self.requests.delete_range(delete).await?;
        reply::delete_range(&self.header(done.revision), &done)
    }

    /// `KV.Txn`. One that only reads is not replicated, so only the transport limits its size.
    pub async fn txn(&self, request: pb::TxnRequest) -> Result<Encoded, Status> {
        let len = request.encoded_len();
        let txn = convert::txn(request);
        if !txn.is_read_only() {
            self.admit(len, || check::txn(&txn, self.requests.limits().txn_ops_max))?;
        }
        let done = self.requests.txn(txn).await?;
        reply::txn(&self.header(done.revision), &done)
    }

    /// `KV.Compact`.
    pub async fn compact(&self, request: pb::CompactionRequest) -> Result<Encoded, Status> {
        let revision = self
            .requests
            .compact(Revision(request.revision), request.physical)
            .await?;
        reply::header_only(&self.header(revision))
    }

    /// `KV.RangeStream`: sends the chunks as they are read. Ends early when the client has gone.
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

    /// Refuses a request whose replicated form would be over the limit.
    ///
    /// etcd: checks on the request alone come before the size check, so a request with both faults gets theirs; `check` is
    /// asked only then, because what is let through is checked on its way into the log.
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

/// The size etcd judges a request of `len` bytes by: that of the entry its log would carry.
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
