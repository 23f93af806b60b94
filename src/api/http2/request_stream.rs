//! The body of a request on its HTTP/2 stream.
//!
//! The library counts the memory that small DATA frames take until they are read, and closes the connection beyond a budget. So
//! no frame may wait in the library for a call that is busy: the task of a call moves frames, as soon as they arrive, into a
//! [`Prefetched`] buffer, where small ones are joined. Flow control bounds the buffer: the client's window opens again only when
//! the call consumes bytes.
//!
//! What a call leaves in its buffer counts as unread bytes ([`MessageRoom`]). If there is no room for it the call
//! loses its messages. What follows the last message that a call reads is dropped as it comes.

use crate::{
    actors::requests::RequestError,
    api::{message_room::MessageRoom, shares::Held, status::Status},
};
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
pub(super) struct StreamBody {
    stream: RecvStream,
    room: Option<Arc<MessageRoom>>,
}

impl StreamBody {
    pub(super) fn new(stream: RecvStream) -> Self {
        Self { stream, room: None }
    }

    /// From now on its buffer takes room.
    pub(super) fn within(mut self, room: &Arc<MessageRoom>) -> Self {
        self.room = Some(room.clone());
        self
    }

    /// A body to read, and the buffer that must be filled for it.
    pub(super) fn prefetched(self) -> (PrefetchedBody, Prefetched) {
        let state = PrefetchState {
            stream: Some(self.stream),
            room: self.room,
            pieces: VecDeque::new(),
            joined: BytesMut::new(),
            joined_room: None,
            lacks_room: false,
            end: None,
            reader: None,
        };
        let shared = Prefetched(Arc::new(Mutex::new(state)));
        (PrefetchedBody(shared.clone()), shared)
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let data = ready!(poll_data(&mut self.stream, context));
        if let Some(Ok(data)) = &data {
            release(&mut self.stream, data.len());
        }
        Poll::Ready(data.map(|data| Ok(Frame::data(data?))))
    }
}

/// A body that is read from its buffer.
#[derive(Debug)]
pub(super) struct PrefetchedBody(Prefetched);

/// Receives the frames of one request.
#[derive(Clone, Debug)]
pub(super) struct Prefetched(Arc<Mutex<PrefetchState>>);

#[derive(Debug)]
struct PrefetchState {
    /// `None` once nothing more of it is read; the library drops what arrives then.
    stream: Option<RecvStream>,
    room: Option<Arc<MessageRoom>>,
    /// Received bytes, of which `joined` are the last.
    pieces: VecDeque<Piece>,
    joined: BytesMut,
    joined_room: Option<Held>,
    /// Whether some of them found no room.
    lacks_room: bool,
    end: Option<End>,
    /// The task that waits for bytes.
    reader: Option<Waker>,
}

/// Received bytes with their room.
#[derive(Debug)]
struct Piece {
    bytes: Bytes,
    _room: Option<Held>,
}

#[derive(Debug)]
enum End {
    Closed,
    Failed(Failed),
}

/// Why a body has no more bytes, although its client has not ended it.
#[derive(Debug)]
pub(super) enum Failed {
    Stream,
    NoRoom,
}

impl From<Failed> for Status {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Stream => Self::canceled(),
            Failed::NoRoom => RequestError::TooManyRequests.into(),
        }
    }
}

impl Prefetched {
    /// Takes all frames that have arrived. The task of `context` is woken when more arrive.
    pub(super) fn poll_fill(&self, context: &mut Context<'_>) {
        let mut state = self.lock();
        // The call has run since these bytes came.
        let mut filled = std::mem::take(&mut state.lacks_room) && state.drop_unread();
        while state.end.is_none()
            && let Some(stream) = &mut state.stream
            && let Poll::Ready(data) = poll_data(stream, context)
        {
            filled = true;
            match data {
                Some(Ok(data)) => state.push(data),
                Some(Err(_)) => state.end = Some(End::Failed(Failed::Stream)),
                None => state.end = Some(End::Closed),
            }
        }
        if state.lacks_room {
            // It looks again after the call has run.
            context.waker().wake_by_ref();
        }
        if filled && let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, PrefetchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PrefetchState {
    fn push(&mut self, data: Bytes) {
        let is_short = data.len() < JOINED_BYTES_MAX;
        if !is_short {
            self.close_joined();
        }
        let mut room = self.joined_room.take();
        if let Some(of) = &self.room {
            let room = room.get_or_insert_with(|| of.unread());
            self.lacks_room |= !room.grow(data.len());
        }
        if is_short {
            self.joined.extend_from_slice(&data);
            self.joined_room = room;
        } else {
            self.pieces.push_back(Piece {
                bytes: data,
                _room: room,
            });
        }
    }

    fn pop(&mut self) -> Option<Piece> {
        if self.pieces.is_empty() {
            self.close_joined();
        }
        self.pieces.pop_front()
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.pieces.push_back(Piece {
                bytes: std::mem::take(&mut self.joined).freeze(),
                _room: self.joined_room.take(),
            });
        }
    }

    /// Drops what the call has not read, and all that comes after it. False if it has read everything.
    fn drop_unread(&mut self) -> bool {
        if self.pieces.is_empty() && self.joined.is_empty() {
            return false;
        }
        self.close();
        self.end = Some(End::Failed(Failed::NoRoom));
        true
    }

    fn close(&mut self) {
        while let Some(piece) = self.pop() {
            // The stream may stay open for long, and its bytes take the connection's window.
            if let Some(stream) = &mut self.stream {
                release(stream, piece.bytes.len());
            }
        }
        self.stream = None;
    }
}

/// The call reads no more messages.
impl Drop for PrefetchedBody {
    fn drop(&mut self) {
        self.0.lock().close();
    }
}

impl From<h2::Error> for Failed {
    fn from(_: h2::Error) -> Self {
        Self::Stream
    }
}

impl Body for PrefetchedBody {
    type Data = Bytes;
    type Error = Failed;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failed>>> {
        let mut state = self.0.lock();
        if let Some(piece) = state.pop() {
            if let Some(stream) = &mut state.stream {
                release(stream, piece.bytes.len());
            }
            return Poll::Ready(Some(Ok(Frame::data(piece.bytes))));
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
        None => {
            // A client's trailers carry no meaning in gRPC. The library keeps them until they are taken.
            drop(stream.poll_trailers(context));
            None
        }
        data => data,
    })
}

/// Opens the client's flow control window again.
fn release(stream: &mut RecvStream, len: usize) {
    // This cannot fail, since at least `len` bytes were received.
    drop(stream.flow_control().release_capacity(len));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shares::{Pool, Size};
    use ::http::{HeaderMap, HeaderValue, Request};
    use h2::{SendStream, client, server};
    use std::{future::poll_fn, time::Duration};
    use tokio::{io::duplex, time::timeout};

    /// The streams of a client and of its server: one after the other, with the same connection.
    struct Calls {
        requests: client::SendRequest<Bytes>,
        accepted: tokio::sync::mpsc::UnboundedReceiver<(RecvStream, server::SendResponse<Bytes>)>,
    }

    /// One call; its streams stay open until it is dropped.
    struct Call {
        send: SendStream<Bytes>,
        body: StreamBody,
        _answer: (client::ResponseFuture, server::SendResponse<Bytes>),
    }

    impl Calls {
        async fn new() -> Self {
            let (near, far) = duplex(1 << 20);
            let (requests, accepted) = tokio::join!(client::handshake(near), async {
                let mut connection = server::handshake(far).await.unwrap();
                let (accept, accepted) = tokio::sync::mpsc::unbounded_channel();
                tokio::spawn(async move {
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        drop(accept.send((request.into_body(), respond)));
                    }
                });
                accepted
            });
            let (requests, connection) = requests.unwrap();
            tokio::spawn(connection);
            Self { requests, accepted }
        }

        async fn begin(&mut self) -> Call {
            let request = Request::post("http://host/path").body(()).unwrap();
            let (answer, send) = self.requests.send_request(request, false).unwrap();
            let (stream, respond) = self.accepted.recv().await.unwrap();
            Call {
                send,
                body: StreamBody::new(stream),
                _answer: (answer, respond),
            }
        }
    }

    /// Room of a connection of which so many bytes may be unread if it is alone.
    fn room_for(bytes: usize) -> (Arc<Pool>, Arc<MessageRoom>) {
        let pool = |total| Pool::new(Size { total, factor: 1 });
        let unread = pool(2 * bytes);
        let of = crate::api::message_room::AddressRoom::new(&pool(0), &pool(0), &unread);
        let room = MessageRoom::new(of, Waker::noop().clone());
        (unread, room)
    }

    /// With a clock that stands still while anything can go on.
    async fn soon<T>(awaited: impl Future<Output = T>) -> T {
        let awaited = timeout(Duration::from_mins(1), awaited).await;
        awaited.expect("it goes on")
    }

    /// The bytes that a call reads, and why it reads no more.
    async fn read_all(
        body: &mut (impl Body<Data = Bytes, Error = Failed> + Unpin),
        buffer: Option<&Prefetched>,
    ) -> (usize, Option<Failed>) {
        let mut bytes = 0;
        let failed = poll_fn(|context| {
            if let Some(buffer) = buffer {
                buffer.poll_fill(context);
            }
            loop {
                match ready!(Pin::new(&mut *body).poll_frame(context)) {
                    Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
                    Some(Err(failed)) => return Poll::Ready(Some(failed)),
                    None => return Poll::Ready(None),
                }
            }
        });
        let failed = soon(failed).await;
        (bytes, failed)
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_are_not_kept() {
        let mut call = Calls::new().await.begin().await;
        call.send.send_data(vec![7; 100].into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("name", HeaderValue::from_static("value"));
        call.send.send_trailers(trailers).unwrap();
        let (bytes, failed) = read_all(&mut call.body, None).await;
        assert_eq!(bytes, 100);
        assert!(failed.is_none(), "{failed:?}");
        assert!(call.body.stream.is_end_stream(), "the library has no more");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_call_reads_as_it_comes_needs_no_room() {
        let (unread, room) = room_for(0);
        let mut call = Calls::new().await.begin().await;
        call.send.send_data(vec![7; 60_000].into(), true).unwrap();
        let (mut body, buffer) = call.body.within(&room).prefetched();
        let (bytes, failed) = read_all(&mut body, Some(&buffer)).await;
        assert_eq!(bytes, 60_000);
        assert!(failed.is_none(), "{failed:?}");
        assert_eq!(unread.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_call_leaves_counts_until_there_is_no_room() {
        let (unread, room) = room_for(30_000);
        let mut call = Calls::new().await.begin().await;
        let (mut body, buffer) = call.body.within(&room).prefetched();
        // Frames that are joined, and a long one.
        for _ in 0..10 {
            call.send.send_data(vec![7; 100].into(), false).unwrap();
        }
        call.send.send_data(vec![7; 10_000].into(), false).unwrap();
        soon(poll_fn(|context| {
            buffer.poll_fill(context);
            match unread.used() {
                11_000 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }))
        .await;
        call.send.send_data(vec![7; 30_000].into(), false).unwrap();
        soon(poll_fn(|context| {
            buffer.poll_fill(context);
            match unread.used() {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            }
        }))
        .await;
        let (bytes, failed) = read_all(&mut body, Some(&buffer)).await;
        assert_eq!(bytes, 0);
        assert!(matches!(failed, Some(Failed::NoRoom)), "{failed:?}");
    }

    /// The window of the connection, which is not larger than that of a stream here, tells whether bytes are kept.
    #[tokio::test(start_paused = true)]
    async fn what_comes_after_the_last_message_is_not_kept() {
        const BYTES: usize = 60_000;
        let (unread, room) = room_for(BYTES);
        let mut calls = Calls::new().await;
        let mut call = calls.begin().await;
        let (body, buffer) = call.body.within(&room).prefetched();
        call.send
            .send_data(vec![7; BYTES / 2].into(), false)
            .unwrap();
        soon(poll_fn(|context| {
            buffer.poll_fill(context);
            match unread.used() {
                used if used < BYTES / 2 => Poll::Pending,
                _ => Poll::Ready(()),
            }
        }))
        .await;
        drop(body);
        assert_eq!(unread.used(), 0);
        call.send
            .send_data(vec![7; BYTES / 2].into(), false)
            .unwrap();
        let mut next = calls.begin().await;
        next.send.reserve_capacity(BYTES);
        let room = poll_fn(|context| {
            poll_fill_of(&buffer, context);
            while next.send.capacity() < BYTES {
                ready!(next.send.poll_capacity(context)).unwrap().unwrap();
            }
            Poll::Ready(())
        });
        soon(room).await;
    }

    fn poll_fill_of(buffer: &Prefetched, context: &mut Context<'_>) {
        buffer.poll_fill(context);
        assert!(buffer.lock().pieces.is_empty(), "nothing is kept");
    }
}
