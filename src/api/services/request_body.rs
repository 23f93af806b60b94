//! A request's body as tonic reads it: whole messages, each already checked by the [`MessageReader`].
//!
//! tonic would refuse malformed framing too, but with codes and texts of its own.

use crate::api::{frames::PREFIX_BYTES, message_reader::MessageReader, status::Status};
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// The messages of a request, framed again.
#[derive(Debug)]
pub(super) struct RequestBody<B> {
    messages: MessageReader<B>,
    /// A message whose prefix was already returned.
    unsent: Option<Bytes>,
    /// Whether an empty body is an error.
    needs_message: bool,
}

impl<B> RequestBody<B> {
    /// Passes on `messages`; `needs_message` says that the call takes exactly one.
    pub(super) fn new(messages: MessageReader<B>, needs_message: bool) -> Self {
        Self {
            messages,
            unsent: None,
            needs_message,
        }
    }
}

impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes, Error: Into<Status>> + Unpin,
{
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if let Some(message) = self.unsent.take() {
            return Poll::Ready(Some(Ok(Frame::data(message))));
        }
        let read = ready!(self.messages.poll_message(context));
        let needs_message = std::mem::take(&mut self.needs_message);
        let framed = match read {
            Some(Ok(message)) => prefix(&message).map(|prefix| {
                self.unsent = Some(message).filter(|message| !message.is_empty());
                Frame::data(prefix)
            }),
            Some(Err(status)) => Err(status),
            None if needs_message => Err(Status::no_message()),
            None => return Poll::Ready(None),
        };
        Poll::Ready(Some(framed.map_err(tonic::Status::from)))
    }
}

fn prefix(message: &Bytes) -> Result<Bytes, Status> {
    let len = u32::try_from(message.len())
        .map_err(|_| Status::received_too_large(message.len(), u32::MAX as usize))?;
    let mut prefix = BytesMut::with_capacity(PREFIX_BYTES);
    prefix.put_u8(0);
    prefix.put_u32(len);
    Ok(prefix.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{
        encoding::Encoding,
        message_reader::testing::{Pieces, frame},
    };
    use std::future::poll_fn;

    const BYTES_MAX: usize = 100;

    /// The bytes that tonic gets, and the status that ends them.
    async fn passed(
        bytes: &[u8],
        piece: usize,
        needs_message: bool,
    ) -> (Vec<u8>, Option<(i32, String)>) {
        let messages = MessageReader::new(Pieces::of(bytes, piece), Encoding::Identity, BYTES_MAX);
        let mut body = RequestBody::new(messages, needs_message);
        let mut passed = Vec::new();
        loop {
            let next = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
            match next {
                Some(Ok(frame)) => passed.extend_from_slice(frame.data_ref().unwrap()),
                Some(Err(status)) => {
                    let status = (status.code().into(), status.message().to_owned());
                    return (passed, Some(status));
                }
                None => return (passed, None),
            }
        }
    }

    fn parts(status: &Status) -> (i32, String) {
        (status.code as i32, status.message.to_string())
    }

    #[tokio::test]
    async fn messages_pass_unchanged_however_they_are_cut() {
        let sent = [frame(&[7; BYTES_MAX]), frame(b""), frame(b"third")].concat();
        for piece in 1..=sent.len() {
            let (received, status) = passed(&sent, piece, true).await;
            assert_eq!(received, sent, "in pieces of {piece}");
            assert_eq!(status, None, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn errors_of_the_reader_reach_tonic() {
        let long = frame(&[0; BYTES_MAX + 1]);
        let too_large = Status::received_too_large(BYTES_MAX + 1, BYTES_MAX);
        let (received, status) = passed(&long, 7, true).await;
        assert_eq!(received, b"", "no part of it");
        assert_eq!(status, Some(parts(&too_large)));
        let (_, status) = passed(b"", 1, true).await;
        assert_eq!(status, Some(parts(&Status::no_message())));
    }

    #[tokio::test]
    async fn a_stream_may_be_empty() {
        assert_eq!(passed(b"", 1, false).await, (Vec::new(), None));
    }
}
