//! Response bodies: one message or a stream of them with gRPC's trailers, or plain bytes for HTTP.

use super::{payload::Payload, reply::Encoded, services::Outgoing, status::Status};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Frame, SizeHint};
use std::{
    convert::Infallible,
    fmt::Write,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

/// The code of a gRPC answer, in decimal.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// The text of a gRPC error, percent-encoded.
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What is left to send of a response.
#[derive(Debug)]
pub enum Body {
    /// Nothing; also a gRPC error whose status went with the headers.
    Empty,
    /// Plain bytes.
    Plain(Bytes),
    /// One gRPC message, then the trailers.
    Message(Encoded),
    /// gRPC messages as they come; an error ends them.
    Stream(mpsc::Receiver<Result<Encoded, Status>>),
    /// Only the trailers.
    Trailers,
    /// What tonic answers.
    Tonic(Box<Outgoing>),
}

impl http_body::Body for Body {
    type Data = Payload;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Payload>, Infallible>>> {
        let frame = match &mut *self {
            Self::Stream(messages) => match ready!(messages.poll_recv(context)) {
                Some(Ok(message)) => Frame::data(message.into_frame()),
                Some(Err(status)) => {
                    *self = Self::Empty;
                    Frame::trailers(error_headers(&status))
                }
                None => {
                    *self = Self::Empty;
                    Frame::trailers(success_trailers())
                }
            },
            Self::Empty => return Poll::Ready(None),
            Self::Tonic(answer) => {
                let frame = ready!(answer.poll_frame(context));
                return Poll::Ready(frame.map(|frame| Ok(frame.map_data(Payload::from))));
            }
            Self::Plain(_) | Self::Message(_) | Self::Trailers => self.take_frame(),
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Tonic(answer) => answer.is_end_stream(),
            Self::Plain(_) | Self::Message(_) | Self::Stream(_) | Self::Trailers => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Plain(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Message(_) | Self::Stream(_) | Self::Trailers => SizeHint::default(),
            Self::Tonic(answer) => answer.size_hint(),
        }
    }
}

impl Body {
    /// The next frame of a body that waits for nothing.
    fn take_frame(&mut self) -> Frame<Payload> {
        match mem::replace(self, Self::Empty) {
            Self::Plain(bytes) => Frame::data(bytes.into()),
            Self::Message(message) => {
                *self = Self::Trailers;
                Frame::data(message.into_frame())
            }
            Self::Empty | Self::Trailers | Self::Stream(_) | Self::Tonic(_) => {
                Frame::trailers(success_trailers())
            }
        }
    }
}

/// The trailers of a call that succeeded.
pub(super) fn success_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// A failed call's status, as trailers or, when nothing was sent before, as headers.
pub fn error_headers(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(GRPC_STATUS, HeaderValue::from(status.code as u16));
    // Percent-encoding leaves printable ASCII only, which every header value may hold.
    if let Ok(text) = HeaderValue::from_str(&percent_encoded(&status.message)) {
        headers.insert(GRPC_MESSAGE, text);
    }
    headers
}

/// gRPC's encoding of a status text: printable ASCII stays, but for `%`.
fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(out, "%{byte:02X}").unwrap_or_default();
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::Code;
    use std::future::poll_fn;

    async fn frames(mut body: Body) -> Vec<Frame<Payload>> {
        let mut frames = Vec::new();
        while let Some(Ok(frame)) =
            poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await
        {
            frames.push(frame);
        }
        frames
    }

    fn message(text: &str) -> Encoded {
        let kv = crate::api::proto::mvccpb::KeyValue {
            key: text.to_owned().into(),
            ..Default::default()
        };
        Encoded::message(&kv).unwrap()
    }

    #[tokio::test]
    async fn a_message_is_followed_by_its_trailers() {
        let frames = frames(Body::Message(message("a"))).await;
        assert_eq!(frames.len(), 2);
        let expected: &[u8] = &[0, 0, 0, 0, 3, 0x0a, 1, b'a'];
        let data = frames[0].data_ref().unwrap().clone();
        assert_eq!(data.into_bytes(), expected);
        assert_eq!(frames[1].trailers_ref().unwrap()["grpc-status"], "0");
    }

    #[tokio::test]
    async fn an_error_ends_a_stream() {
        let (sender, receiver) = mpsc::channel(3);
        sender.try_send(Ok(message("a"))).unwrap();
        sender
            .try_send(Err(Status::new(Code::OutOfRange, "gone")))
            .unwrap();
        sender.try_send(Ok(message("b"))).unwrap();
        let frames = frames(Body::Stream(receiver)).await;
        assert_eq!(frames.len(), 2, "nothing follows the status");
        let trailers = frames[1].trailers_ref().unwrap();
        assert_eq!(trailers["grpc-status"], "11");
        assert_eq!(trailers["grpc-message"], "gone");
    }

    #[test]
    fn texts_are_percent_encoded() {
        assert_eq!(
            percent_encoded("etcdserver: key \"a\""),
            "etcdserver: key \"a\""
        );
        assert_eq!(percent_encoded("100%\n\u{fc}"), "100%25%0A%C3%BC");
    }
}
