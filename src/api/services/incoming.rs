//! A request's body on its way to tonic: passed on as it is, once its framing is found good.
//!
//! tonic would refuse bad framing too, with codes and texts of its own. The rules are those of [`grpc`].

use crate::api::{
    grpc::{self, DISCARD_BYTES_MAX},
    reply::PREFIX_BYTES,
    status::Status,
};
use bytes::Bytes;
use http_body::Frame;
use std::{
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// A body under check.
#[derive(Debug)]
pub(super) struct Incoming<B> {
    body: B,
    bytes_max: usize,
    /// Whether the call makes no sense without a message.
    needs_message: bool,
    expected: Expected,
}

/// What the next byte is.
#[derive(Debug)]
enum Expected {
    /// Part of a prefix of which `len` bytes are here.
    Prefix {
        bytes: [u8; PREFIX_BYTES],
        len: usize,
    },
    /// Part of a message of which this much is missing.
    Message { left: usize },
    /// Part of a message that is read over before it is refused.
    Discarded { left: usize, refusal: Status },
    /// Nothing that matters: the body has ended.
    Nothing,
}

impl Expected {
    const PREFIX: Self = Self::Prefix {
        bytes: [0; PREFIX_BYTES],
        len: 0,
    };
}

impl<B> Incoming<B> {
    /// Checks `body`, whose messages may have `bytes_max` bytes each.
    pub(super) fn new(body: B, bytes_max: usize, needs_message: bool) -> Self {
        Self {
            body,
            bytes_max,
            needs_message,
            expected: Expected::PREFIX,
        }
    }

    /// Follows the framing through what has arrived.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Status> {
        while !data.is_empty() {
            let taken = match &mut self.expected {
                Expected::Prefix { bytes, len } => {
                    let taken = data.len().min(PREFIX_BYTES - *len);
                    bytes[*len..*len + taken].copy_from_slice(&data[..taken]);
                    *len += taken;
                    if *len == PREFIX_BYTES {
                        let message_len = grpc::message_len(&mut &bytes[..])?;
                        self.begin(message_len);
                    }
                    taken
                }
                Expected::Message { left } => {
                    let taken = data.len().min(*left);
                    *left -= taken;
                    if *left == 0 {
                        self.expected = Expected::PREFIX;
                    }
                    taken
                }
                Expected::Discarded { left, refusal: _ } => {
                    *left = left.saturating_sub(data.len());
                    data.len()
                }
                Expected::Nothing => data.len(),
            };
            data = &data[taken..];
        }
        Ok(())
    }

    /// A prefix is complete.
    fn begin(&mut self, message_len: usize) {
        self.needs_message = false;
        self.expected = if message_len > self.bytes_max {
            Expected::Discarded {
                left: message_len.min(DISCARD_BYTES_MAX),
                refusal: Status::received_too_large(message_len, self.bytes_max),
            }
        } else if message_len == 0 {
            Expected::PREFIX
        } else {
            Expected::Message { left: message_len }
        };
    }

    /// The refusal of a message that has been read over.
    fn refusal(&mut self) -> Option<Status> {
        match mem::replace(&mut self.expected, Expected::Nothing) {
            Expected::Discarded { left: 0, refusal } => Some(refusal),
            expected => {
                self.expected = expected;
                None
            }
        }
    }

    /// What the body's end means here.
    fn end(&mut self) -> Option<Status> {
        match mem::replace(&mut self.expected, Expected::Nothing) {
            Expected::Prefix { bytes: _, len: 0 } => self.needs_message.then(Status::no_message),
            Expected::Prefix { bytes: _, len: _ } | Expected::Message { left: _ } => {
                Some(Status::cut_message())
            }
            Expected::Discarded { left: _, refusal } => Some(refusal),
            Expected::Nothing => None,
        }
    }
}

impl<B> http_body::Body for Incoming<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        loop {
            let data = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                // Trailers say nothing in a request.
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => return Poll::Ready(Some(Err(Status::canceled().into()))),
                None => return Poll::Ready(self.end().map(|status| Err(status.into()))),
            };
            if let Err(status) = self.follow(&data) {
                self.expected = Expected::Nothing;
                return Poll::Ready(Some(Err(status.into())));
            }
            if let Some(status) = self.refusal() {
                return Poll::Ready(Some(Err(status.into())));
            }
            let discarded = matches!(self.expected, Expected::Discarded { .. });
            if !discarded && !data.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::grpc::testing::{Pieces, frame};
    use std::future::poll_fn;

    const BYTES_MAX: usize = 100;

    /// What passes, and the status it ends with.
    async fn passed(
        bytes: &[u8],
        piece: usize,
        needs_message: bool,
    ) -> (Vec<u8>, Option<(i32, String)>) {
        let mut body = Incoming::new(Pieces::of(bytes, piece), BYTES_MAX, needs_message);
        let mut passed = Vec::new();
        loop {
            let next =
                poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await;
            match next {
                Some(Ok(frame)) => passed.extend_from_slice(frame.data_ref().unwrap()),
                Some(Err(status)) => {
                    return (
                        passed,
                        Some((status.code().into(), status.message().to_owned())),
                    );
                }
                None => return (passed, None),
            }
        }
    }

    fn parts(status: &Status) -> (i32, String) {
        (status.code as i32, status.message.to_string())
    }

    #[tokio::test]
    async fn good_messages_pass_however_they_are_cut() {
        let sent = [frame(&[7; BYTES_MAX]), frame(b""), frame(b"third")].concat();
        for piece in 1..=sent.len() {
            let (received, status) = passed(&sent, piece, true).await;
            assert_eq!(received, sent, "in pieces of {piece}");
            assert_eq!(status, None, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn bad_framing_is_refused_as_the_thin_layer_does() {
        let long = frame(&[0; BYTES_MAX + 1]);
        let too_large = Status::received_too_large(BYTES_MAX + 1, BYTES_MAX);
        let table: [(&[u8], Status); 6] = [
            (b"", Status::no_message()),
            (&[0, 0], Status::cut_message()),
            (&[0, 0, 0, 0, 3, b'c'], Status::cut_message()),
            (&[1, 0, 0, 0, 0], Status::unexpected_compression()),
            (&[9, 0, 0, 0, 0], Status::unknown_format(9)),
            (&long, too_large.clone()),
        ];
        for (bytes, expected) in table {
            for piece in 1..=bytes.len().max(1) {
                let (_, status) = passed(bytes, piece, true).await;
                assert_eq!(
                    status,
                    Some(parts(&expected)),
                    "{bytes:?} in pieces of {piece}"
                );
            }
        }
        let (_, status) = passed(&long[..50], 7, true).await;
        assert_eq!(status, Some(parts(&too_large)), "its end never comes");
    }

    #[tokio::test]
    async fn a_stream_may_be_empty() {
        assert_eq!(passed(b"", 1, false).await, (Vec::new(), None));
    }
}
