//! The body of a request on its HTTP/2 stream.
//!
//! The library counts the memory that small DATA frames take until they are read, and closes the connection beyond a budget. So
//! no frame may wait in the library for a call that is busy: the task of a call moves frames, as soon as they arrive, into a
//! [`Prefetched`] buffer, where small ones are joined. Flow control bounds the buffer: the client's window opens again only when
//! the call consumes bytes.

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http_body::{Body, Frame};
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

/// Frames shorter than this are joined. A longer one is not copied.
const JOINED_BYTES_MAX: usize = 1024;

/// A body that is read directly.
#[derive(Debug)]
pub(super) struct StreamBody(RecvStream);

impl StreamBody {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self(stream)
    }

    /// A body to read, and the buffer that must be filled for it.
    pub(super) fn prefetched(self) -> (PrefetchedBody, Prefetched) {
        let state = State {
            stream: self.0,
            pieces: VecDeque::new(),
            joined: BytesMut::new(),
            end: None,
            reader: None,
        };
        let shared = Prefetched(Arc::new(Mutex::new(state)));
        (PrefetchedBody(shared.clone()), shared)
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let data = ready!(poll_data(&mut self.0, context));
        if let Some(Ok(data)) = &data {
            release(&mut self.0, data.len());
        }
        Poll::Ready(data.map(|data| data.map(Frame::data)))
    }
}

/// A body that is read from its buffer.
#[derive(Debug)]
pub(super) struct PrefetchedBody(Prefetched);

/// Receives the frames of one request.
#[derive(Clone, Debug)]
pub(super) struct Prefetched(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    stream: RecvStream,
    /// Received bytes, of which `joined` are the last.
    pieces: VecDeque<Bytes>,
    joined: BytesMut,
    end: Option<End>,
    /// The task that waits for bytes.
    reader: Option<Waker>,
}

#[derive(Debug)]
enum End {
    Closed,
    Failed(h2::Error),
}

impl Prefetched {
    /// Takes all frames that have arrived. The task of `context` is woken when more arrive.
    pub(super) fn poll_fill(&self, context: &mut Context<'_>) {
        let mut state = self.lock();
        let mut filled = false;
        while state.end.is_none() {
            let Poll::Ready(data) = poll_data(&mut state.stream, context) else {
                break;
            };
            filled = true;
            match data {
                Some(Ok(data)) => state.push(data),
                Some(Err(error)) => state.end = Some(End::Failed(error)),
                None => state.end = Some(End::Closed),
            }
        }
        if filled && let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, data: Bytes) {
        if data.len() < JOINED_BYTES_MAX {
            self.joined.extend_from_slice(&data);
        } else {
            self.close_joined();
            self.pieces.push_back(data);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.pieces.is_empty() {
            self.close_joined();
        }
        self.pieces.pop_front()
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            let joined = std::mem::take(&mut self.joined);
            self.pieces.push_back(joined.freeze());
        }
    }
}

impl Body for PrefetchedBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let mut state = self.0.lock();
        if let Some(data) = state.pop() {
            release(&mut state.stream, data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match state.end.take() {
            Some(End::Failed(error)) => {
                state.end = Some(End::Closed);
                Poll::Ready(Some(Err(error)))
            }
            Some(End::Closed) => {
                state.end = Some(End::Closed);
                Poll::Ready(None)
            }
            None => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn poll_data(
    stream: &mut RecvStream,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, h2::Error>>> {
    Poll::Ready(match ready!(stream.poll_data(context)) {
        // A client that cancels its call sends no more.
        Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
            None
        }
        // At the end: a client's trailers carry no meaning in gRPC.
        data => data,
    })
}

/// Opens the client's flow control window again.
fn release(stream: &mut RecvStream, len: usize) {
    // This cannot fail, since at least `len` bytes were received.
    drop(stream.flow_control().release_capacity(len));
}
