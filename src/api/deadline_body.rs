//! A response body that tonic produces, ended by the caller's deadline.

use super::{status::Status, trailers};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;

/// What is still to be sent of a response.
#[derive(Debug)]
pub struct DeadlineBody {
    /// At the deadline an empty body replaces it: that drops the receiver of the call's messages, which ends the call.
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl DeadlineBody {
    /// Sends `body` until `deadline`.
    pub fn new(body: Body, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { body, deadline }
    }

    /// The next frame, or `None` at the end. A frame that is ready is sent even after the deadline.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(frame)),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "a response ended with an error of its body");
                Poll::Ready(Some(self.end(&Status::incomplete_response())))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.is_past_deadline(context) => {
                Poll::Ready(Some(self.end(&Status::deadline_exceeded())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_past_deadline(&mut self, context: &mut Context<'_>) -> bool {
        let deadline = self.deadline.as_mut();
        deadline.is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
    }

    /// Whether every frame was returned.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// How many bytes are still to be sent.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.body = Body::empty();
        self.deadline = None;
        Frame::trailers(trailers::failure(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, future::poll_fn, time::Duration};
    use tokio::sync::mpsc;

    /// A body that ends when its sender is dropped.
    struct Endless(mpsc::Receiver<Bytes>);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .poll_recv(context)
                .map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_body_and_the_call() {
        let (data, endless) = mpsc::channel(1);
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut body = DeadlineBody::new(Body::new(Endless(endless)), Some(deadline));
        data.send(Bytes::from_static(b"a")).await.unwrap();
        let mut next = async || poll_fn(|context| body.poll_frame(context)).await;
        assert_eq!(next().await.unwrap().into_data().unwrap(), "a");
        let end = next().await.unwrap().into_trailers().unwrap();
        assert_eq!(end["grpc-status"], "4");
        assert!(Instant::now() >= deadline, "not before the deadline");
        assert!(data.is_closed(), "the call sees that its receiver is gone");
        assert!(next().await.is_none(), "the status was the last");
    }
}
