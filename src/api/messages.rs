//! The messages of a client's stream, one after the other.

use super::{grpc, status::Status};
use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

/// Reads gRPC messages from a request's body.
#[derive(Debug)]
pub struct Messages<B> {
    body: B,
    /// Received and not read yet.
    received: BytesMut,
    message_bytes_max: usize,
}

impl<B> Messages<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    /// The messages in `body`, of at most so many bytes each.
    pub fn new(body: B, message_bytes_max: usize) -> Self {
        Self {
            body,
            received: BytesMut::new(),
            message_bytes_max,
        }
    }

    /// The next message; nothing when the client has said that there are no more. One that arrived in part is kept if this
    /// is dropped before it returns.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Status> {
        while self.received.len() < super::reply::PREFIX_BYTES {
            if !self.receive().await? {
                return if self.received.is_empty() {
                    Ok(None)
                } else {
                    Err(Status::cut_message())
                };
            }
        }
        let mut prefix = &self.received[..];
        let len = grpc::message_len(&mut prefix)?;
        if len > self.message_bytes_max {
            return Err(Status::received_too_large(len, self.message_bytes_max));
        }
        while self.received.len() < super::reply::PREFIX_BYTES + len {
            if !self.receive().await? {
                return Err(Status::cut_message());
            }
        }
        self.received.advance(super::reply::PREFIX_BYTES);
        let message = self.received.split_to(len).freeze();
        M::decode(message)
            .map(Some)
            .map_err(|error| Status::malformed_message(&error))
    }

    /// Waits for more bytes; tells whether there are some.
    async fn receive(&mut self) -> Result<bool, Status> {
        let data = grpc::next_data(&mut self.body).await?;
        if let Some(data) = &data {
            self.received.extend_from_slice(data);
        }
        Ok(data.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{grpc::testing::Pieces, proto::etcdserverpb as pb, status::Code};

    fn messages(bytes: &[u8], piece: usize) -> Messages<Pieces> {
        Messages::new(Pieces::of(bytes, piece), 100)
    }

    fn frame(message: &impl Message) -> Vec<u8> {
        grpc::testing::frame(&message.encode_to_vec())
    }

    fn cancel(watch_id: i64) -> pb::WatchCancelRequest {
        pb::WatchCancelRequest { watch_id }
    }

    #[tokio::test]
    async fn messages_come_whole_however_they_are_cut() {
        let sent = [cancel(1), cancel(0), cancel(i64::MIN)];
        let bytes: Vec<u8> = sent.iter().flat_map(frame).collect();
        for piece in 1..=bytes.len() {
            let mut messages = messages(&bytes, piece);
            for message in &sent {
                assert_eq!(messages.next().await.unwrap().as_ref(), Some(message));
            }
            let end: Option<pb::WatchCancelRequest> = messages.next().await.unwrap();
            assert_eq!(end, None, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn bad_framing_is_named() {
        let refused = async |bytes: &[u8]| {
            messages(bytes, 3)
                .next::<pb::WatchCancelRequest>()
                .await
                .unwrap_err()
        };
        assert_eq!(refused(&[0, 0]).await, Status::cut_message());
        assert_eq!(
            refused(&frame(&cancel(5))[..6]).await,
            Status::cut_message()
        );
        assert_eq!(
            refused(&[1, 0, 0, 0, 0]).await,
            Status::unexpected_compression()
        );
        let long = [0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            refused(&long).await,
            Status::received_too_large(4_294_967_295, 100)
        );
        assert_eq!(
            refused(&[0, 0, 0, 0, 2, 0x08, 0x80]).await.code,
            Code::Internal
        );
    }
}
