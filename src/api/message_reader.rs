//! Reads gRPC messages from a request body. Every call of the API reads its messages here.
//!
//! Each message has a prefix: one byte that says whether the message is compressed, and four bytes with its length. A message
//! that arrived in one piece shares the transport's buffer; one that arrived in several is copied together.
//!
//! A client that says so in `grpc-encoding` may compress its messages with gzip. The limit on a message's length counts after
//! decompression too. Responses are never compressed.
//!
//! etcd: malformed framing gets the codes and texts of etcd's gRPC library.

use super::{frames::PREFIX_BYTES, proto::wire_types, status::Status};
use bytes::{Buf, Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use http::{HeaderMap, HeaderValue};
use prost::Message;
use std::{
    future::poll_fn,
    io::Read,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

/// How much of a message that is too large is received and dropped before the client gets its error. An immediate answer would
/// reset the stream while the client still sends, and some clients then report a failed transport instead of the error.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How a client encodes the messages that it marks as compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// Compressed messages are an error.
    #[default]
    Identity,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// The encoding that a request's headers declare.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Status> {
        match headers.get("grpc-encoding").map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Ok(Self::Identity),
            Some(b"gzip") => Ok(Self::Gzip),
            Some(other) => Err(Status::unknown_encoding(&String::from_utf8_lossy(other))),
        }
    }

    /// The message that `compressed` contains, of at most `bytes_max` bytes.
    fn decompress(self, compressed: &[u8], bytes_max: usize) -> Result<Bytes, Status> {
        match self {
            Self::Identity => Err(Status::unexpected_compression()),
            Self::Gzip => {
                let mut message = Vec::new();
                // One byte more shows that the message is too large.
                MultiGzDecoder::new(compressed)
                    .take(bytes_max as u64 + 1)
                    .read_to_end(&mut message)
                    .map_err(|error| Status::malformed_compression(&error))?;
                if message.len() > bytes_max {
                    return Err(Status::decompressed_too_large(bytes_max));
                }
                Ok(message.into())
            }
        }
    }
}

/// Reads the messages of one request body. It keeps a partly received message when a read is cancelled.
#[derive(Debug)]
pub struct MessageReader<B> {
    body: B,
    /// Received from the body and not consumed yet.
    received: Bytes,
    state: State,
    encoding: Encoding,
    message_bytes_max: usize,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum State {
    /// A prefix; what has arrived of it is in `received`.
    Prefix,
    /// A message of which the first bytes have arrived.
    Message { begun: BytesMut, prefix: Prefix },
    /// A message that is too large, of which `left` bytes are still to be dropped.
    Discard { left: usize, refusal: Status },
    /// The body has ended, or an error was returned.
    Ended,
}

/// What a message's prefix says.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    compressed: bool,
    len: usize,
}

impl<B> MessageReader<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    /// Reads messages of at most `message_bytes_max` bytes from `body`.
    pub fn new(body: B, encoding: Encoding, message_bytes_max: usize) -> Self {
        Self {
            body,
            received: Bytes::new(),
            state: State::Prefix,
            encoding,
            message_bytes_max,
        }
    }

    /// Goes on reading from what `replace` makes of the body.
    pub(super) fn map_body<C>(self, replace: impl FnOnce(B) -> C) -> MessageReader<C> {
        MessageReader {
            body: replace(self.body),
            received: self.received,
            state: self.state,
            encoding: self.encoding,
            message_bytes_max: self.message_bytes_max,
        }
    }

    /// The next message, undecoded; `None` once the client has closed its side or an error was returned.
    pub fn poll_message(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Status>>> {
        loop {
            if let Some(read) = self.read_received() {
                if read.is_err() {
                    self.state = State::Ended;
                }
                return Poll::Ready(Some(read));
            }
            if matches!(self.state, State::Ended) {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    // A client's trailers carry no meaning in gRPC.
                    let data = frame.into_data().unwrap_or_default();
                    self.received = if self.received.is_empty() {
                        data
                    } else {
                        // What is left over is part of a prefix: four bytes at most.
                        [mem::take(&mut self.received), data].concat().into()
                    };
                }
                Some(Err(_)) => {
                    self.state = State::Ended;
                    return Poll::Ready(Some(Err(Status::canceled())));
                }
                None => return Poll::Ready(self.end().map(Err)),
            }
        }
    }

    /// The next message, decoded; `None` once the client has closed its side.
    pub async fn next<M: Message + Default + 'static>(&mut self) -> Result<Option<M>, Status> {
        match poll_fn(|context| self.poll_message(context)).await {
            Some(message) => decode(message?).map(Some),
            None => Ok(None),
        }
    }

    /// The message of a call that takes exactly one, undecoded.
    pub async fn only_bytes(&mut self) -> Result<Bytes, Status> {
        let message = poll_fn(|context| self.poll_message(context)).await;
        message.unwrap_or_else(|| Err(Status::no_message()))
    }

    /// The message of a call that takes exactly one, decoded.
    pub async fn only<M: Message + Default + 'static>(&mut self) -> Result<M, Status> {
        decode(self.only_bytes().await?)
    }

    /// Consumes what has arrived, until a message is complete or more bytes are needed (`None`).
    fn read_received(&mut self) -> Option<Result<Bytes, Status>> {
        loop {
            match &mut self.state {
                State::Prefix if self.received.len() < PREFIX_BYTES => return None,
                State::Prefix => {
                    let prefix = match Prefix::take(&mut self.received, self.encoding) {
                        Ok(prefix) => prefix,
                        Err(status) => return Some(Err(status)),
                    };
                    let len = prefix.len;
                    if len > self.message_bytes_max {
                        self.state = State::Discard {
                            left: len.min(DISCARD_BYTES_MAX),
                            refusal: Status::received_too_large(len, self.message_bytes_max),
                        };
                    } else if len <= self.received.len() {
                        let message = self.received.split_to(len);
                        return Some(self.finish(prefix, message));
                    } else {
                        let begun = BytesMut::with_capacity(len);
                        self.state = State::Message { begun, prefix };
                    }
                }
                State::Message { begun, prefix } => {
                    let prefix = *prefix;
                    let missing = prefix.len - begun.len();
                    let taken = self.received.len().min(missing);
                    begun.extend_from_slice(&self.received.split_to(taken));
                    if taken < missing {
                        return None;
                    }
                    let message = mem::take(begun).freeze();
                    self.state = State::Prefix;
                    return Some(self.finish(prefix, message));
                }
                State::Discard { left, refusal } => {
                    *left = left.saturating_sub(self.received.len());
                    self.received = Bytes::new();
                    return (*left == 0).then(|| Err(refusal.clone()));
                }
                State::Ended => return None,
            }
        }
    }

    /// A message whose bytes have all arrived.
    fn finish(&self, prefix: Prefix, message: Bytes) -> Result<Bytes, Status> {
        if prefix.compressed {
            self.encoding.decompress(&message, self.message_bytes_max)
        } else {
            Ok(message)
        }
    }

    /// The error, if any, of a body that ends here.
    fn end(&mut self) -> Option<Status> {
        match mem::replace(&mut self.state, State::Ended) {
            State::Prefix if self.received.is_empty() => None,
            State::Prefix
            | State::Message {
                begun: _,
                prefix: _,
            } => Some(Status::cut_message()),
            State::Discard { left: _, refusal } => Some(refusal),
            State::Ended => None,
        }
    }
}

pub(super) fn decode<M: Message + Default + 'static>(message: Bytes) -> Result<M, Status> {
    wire_types::decode(message).map_err(|error| Status::malformed_message(&error))
}

impl Prefix {
    /// Consumes a prefix and checks it.
    fn take(received: &mut impl Buf, encoding: Encoding) -> Result<Self, Status> {
        let compressed = match received.get_u8() {
            0 => false,
            1 if encoding == Encoding::Identity => return Err(Status::unexpected_compression()),
            1 => true,
            format => return Err(Status::unknown_format(format)),
        };
        let len = usize::try_from(received.get_u32()).unwrap_or(usize::MAX);
        Ok(Self { compressed, len })
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Request bodies for tests.

    use bytes::Bytes;
    use http_body::Frame;
    use std::{
        collections::VecDeque,
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    /// A request body that arrives in the given pieces.
    pub(in crate::api) struct Pieces(pub(in crate::api) VecDeque<Bytes>);

    impl Pieces {
        pub(in crate::api) fn of(bytes: &[u8], piece: usize) -> Self {
            Self(bytes.chunks(piece).map(Bytes::copy_from_slice).collect())
        }
    }

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    /// A message with its prefix.
    pub(in crate::api) fn frame(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[0], &len.to_be_bytes()[..], message].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{Pieces, frame},
        *,
    };
    use crate::api::{proto::etcdserverpb as pb, status::Code};
    use flate2::{Compression, write::GzEncoder};
    use std::{collections::VecDeque, io::Write};

    const BYTES_MAX: usize = 100;

    fn reader(bytes: &[u8], piece: usize) -> MessageReader<Pieces> {
        MessageReader::new(Pieces::of(bytes, piece), Encoding::Identity, BYTES_MAX)
    }

    async fn read_only(bytes: &[u8], piece: usize) -> Result<Bytes, Status> {
        reader(bytes, piece).only_bytes().await
    }

    #[tokio::test]
    async fn a_message_is_complete_however_it_is_cut() {
        let message: Vec<u8> = (0..100).collect();
        let mut sent = frame(&message);
        for piece in 1..=sent.len() {
            let read = read_only(&sent, piece).await.unwrap();
            assert_eq!(read, message, "in pieces of {piece}");
        }
        sent.extend(frame(b"a second one"));
        for piece in 1..=sent.len() {
            let read = read_only(&sent, piece).await.unwrap();
            assert_eq!(
                read, message,
                "what follows the message is left alone, in pieces of {piece}"
            );
        }
        let empty = read_only(&frame(b""), 2).await.unwrap();
        assert_eq!(empty, "", "an empty message is a message");
    }

    #[tokio::test]
    async fn a_message_in_one_piece_is_not_copied() {
        let sent = Bytes::from(frame(b"message"));
        let body = Pieces(VecDeque::from([sent.clone()]));
        let read = MessageReader::new(body, Encoding::Identity, BYTES_MAX)
            .only_bytes()
            .await;
        assert!(
            sent.as_ptr_range().contains(&read.unwrap().as_ptr()),
            "it shares the transport's buffer"
        );
    }

    #[tokio::test]
    async fn the_messages_of_a_stream_arrive_in_order() {
        let cancel = |watch_id| pb::WatchCancelRequest { watch_id };
        let sent = [cancel(1), cancel(0), cancel(i64::MIN)];
        let frames = sent.iter().map(|message| frame(&message.encode_to_vec()));
        let bytes: Vec<u8> = frames.flatten().collect();
        for piece in 1..=bytes.len() {
            let mut reader = reader(&bytes, piece);
            for message in &sent {
                assert_eq!(reader.next().await.unwrap().as_ref(), Some(message));
            }
            let end: Option<pb::WatchCancelRequest> = reader.next().await.unwrap();
            assert_eq!(end, None, "in pieces of {piece}");
        }
    }

    #[tokio::test]
    async fn a_stream_may_be_empty() {
        let end = reader(b"", 1).next::<pb::WatchCancelRequest>().await;
        assert_eq!(end, Ok(None));
    }

    #[tokio::test]
    async fn every_framing_error_has_its_status() {
        let long = frame(&[0; BYTES_MAX + 1]);
        let too_large = Status::received_too_large(BYTES_MAX + 1, BYTES_MAX);
        let claim = [0, 0xff, 0xff, 0xff, 0xff];
        let table: [(&[u8], Status); 9] = [
            (b"", Status::no_message()),
            (&[0, 0], Status::cut_message()),
            (&[0, 0, 0, 0, 3, b'c'], Status::cut_message()),
            (&frame(b"cut")[..7], Status::cut_message()),
            (&[1, 0, 0, 0, 0], Status::unexpected_compression()),
            (&[9, 0, 0, 0, 0], Status::unknown_format(9)),
            (&long, too_large.clone()),
            (&long[..50], too_large),
            (&claim, Status::received_too_large(4_294_967_295, BYTES_MAX)),
        ];
        for (bytes, expected) in table {
            for piece in 1..=bytes.len().max(1) {
                let mut reader = reader(bytes, piece);
                let refused = reader.only_bytes().await.unwrap_err();
                assert_eq!(refused, expected, "{bytes:?} in pieces of {piece}");
                let after = reader.next::<pb::WatchCancelRequest>().await;
                assert_eq!(after, Ok(None), "nothing follows an error");
            }
        }
    }

    fn gzip(message: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(message).unwrap();
        let mut framed = frame(&encoder.finish().unwrap());
        framed[0] = 1;
        framed
    }

    async fn read_gzip(bytes: &[u8], piece: usize) -> Result<Bytes, Status> {
        let body = Pieces::of(bytes, piece);
        MessageReader::new(body, Encoding::Gzip, BYTES_MAX)
            .only_bytes()
            .await
    }

    #[tokio::test]
    async fn gzip_is_decompressed_up_to_the_limit() {
        let message = vec![7; BYTES_MAX];
        let sent = gzip(&message);
        for piece in [1, 7, sent.len()] {
            let read = read_gzip(&sent, piece).await.unwrap();
            assert_eq!(read, message[..], "in pieces of {piece}");
        }
        let plain = read_gzip(&frame(b"plain"), 9).await.unwrap();
        assert_eq!(plain, "plain", "a message may be uncompressed all the same");
        let bomb = gzip(&vec![0; 50_000]);
        assert!(bomb.len() < BYTES_MAX, "it is small on the wire");
        let refused = read_gzip(&bomb, 50).await.unwrap_err();
        assert_eq!(refused, Status::decompressed_too_large(BYTES_MAX));
        let mut broken = gzip(b"message");
        // The checksum at the end.
        let end = broken.len();
        broken[end - 8] ^= 0xff;
        assert_eq!(
            read_gzip(&broken, 50).await.unwrap_err().code,
            Code::Internal
        );
    }

    #[tokio::test]
    async fn bytes_that_are_not_a_message_are_an_internal_error() {
        for bytes in [&b"\x0a\x7fa"[..], b"\x08\x80", b"\x00"] {
            let read: Result<pb::RangeRequest, _> = reader(&frame(bytes), 9).only().await;
            let status = read.unwrap_err();
            assert_eq!(status.code, Code::Internal, "{bytes:?}");
            let text = "grpc: error unmarshalling request: ";
            assert!(status.message.starts_with(text), "{status}");
        }
    }
}
