//! Response bodies: one gRPC message or a stream of them, followed by trailers, or plain bytes for HTTP.

use super::{
    deadline_body::DeadlineBody, frames::Encoded, payload::Payload, status::Status, trailers,
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

/// What is still to be sent of a response.
#[derive(Debug)]
pub enum ResponseBody {
    /// No bytes: the response has ended, or the headers have a gRPC error.
    Empty,
    Plain(Bytes),
    /// One gRPC message, then the trailers.
    Message(Encoded),
    /// gRPC messages that a call is still producing; an error ends them.
    Stream(mpsc::Receiver<Result<Encoded, Status>>),
    /// The trailers of a call that succeeded.
    Trailers,
    /// The response of a service that tonic serves.
    Tonic(Box<DeadlineBody>),
}

impl Body for ResponseBody {
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
                    Frame::trailers(trailers::failure(&status))
                }
                None => {
                    *self = Self::Empty;
                    Frame::trailers(trailers::success())
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

impl ResponseBody {
    /// The next frame of a body whose frames are all ready.
    fn take_frame(&mut self) -> Frame<Payload> {
        match mem::replace(self, Self::Empty) {
            Self::Plain(bytes) => Frame::data(bytes.into()),
            Self::Message(message) => {
                *self = Self::Trailers;
                Frame::data(message.into_frame())
            }
            Self::Empty | Self::Trailers | Self::Stream(_) | Self::Tonic(_) => {
                Frame::trailers(trailers::success())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{message_reader::testing::frame, status::Code};
    use std::future::poll_fn;

    async fn frames(mut body: ResponseBody) -> Vec<Frame<Payload>> {
        let mut frames = Vec::new();
        while let Some(Ok(frame)) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            frames.push(frame);
        }
        frames
    }

    fn message(text: &str) -> Encoded {
        Encoded::from_frame(Bytes::from(frame(text.as_bytes())).into())
    }

    #[tokio::test]
    async fn a_message_is_followed_by_its_trailers() {
        let frames = frames(ResponseBody::Message(message("a"))).await;
        assert_eq!(frames.len(), 2);
        let expected: &[u8] = &[0, 0, 0, 0, 1, b'a'];
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
        let frames = frames(ResponseBody::Stream(receiver)).await;
        assert_eq!(frames.len(), 2, "nothing follows the status");
        let trailers = frames[1].trailers_ref().unwrap();
        assert_eq!(trailers["grpc-status"], "11");
        assert_eq!(trailers["grpc-message"], "gone");
    }
}
