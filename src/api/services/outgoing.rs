//! An answer's body on its way from tonic: its frames as they come, until the caller's deadline.

use crate::api::{body::error_headers, status::Status};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;

/// What is left of an answer.
#[derive(Debug)]
pub struct Outgoing {
    /// Emptied at the end, which ends the call that fills it.
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Outgoing {
    /// Sends `body` until `deadline`.
    pub fn new(body: Body, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { body, deadline }
    }

    /// The next frame, or nothing at the end. The body is asked before the clock.
    pub fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame<Bytes>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(frame)),
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "an answer broke off");
                Poll::Ready(Some(self.end(&Status::broken_answer())))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending if self.is_late(context) => {
                Poll::Ready(Some(self.end(&Status::deadline_exceeded())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let deadline = self.deadline.as_mut();
        deadline.is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
    }

    /// Whether nothing is left.
    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// How many bytes are left.
    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn end(&mut self, status: &Status) -> Frame<Bytes> {
        self.body = Body::empty();
        self.deadline = None;
        Frame::trailers(error_headers(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{convert::Infallible, future::poll_fn, time::Duration};
    use tokio::sync::mpsc;

    /// A body without an end, but for its sender's.
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
        let mut outgoing = Outgoing::new(Body::new(Endless(endless)), Some(deadline));
        data.send(Bytes::from_static(b"a")).await.unwrap();
        let mut next = async || poll_fn(|context| outgoing.poll_frame(context)).await;
        assert_eq!(next().await.unwrap().into_data().unwrap(), "a");
        let end = next().await.unwrap().into_trailers().unwrap();
        assert_eq!(end["grpc-status"], "4");
        assert!(Instant::now() >= deadline, "not before its time");
        assert!(data.is_closed(), "the call sees that nobody listens");
        assert!(next().await.is_none(), "the status was the last");
    }
}
