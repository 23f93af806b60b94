//! The body of a request on its HTTP/2 stream.
//!
//! The library counts the memory that small DATA frames take until they are read, and closes the connection beyond a budget. So
//! no frame may wait in the library for a call that is busy: the task of a call moves frames, as soon as they arrive, into a
//! [`Prefetched`] buffer. Flow control bounds the buffer: the client's window opens again only when the call consumes bytes.
//!
//! What a call reads as it comes is not copied. What it leaves ([`Prefetched::settle`]) is, if it is short: a slice of what the
//! library has received keeps all of that in memory.
//!
//! What a call leaves in its buffer counts as unread bytes ([`MessageRoom`]), and so does the piece that it has begun: its reader
//! has it, and asks for the next one when it has read this one. If there is no room for it the call loses its messages. What
//! follows the last message that a call reads is dropped as it comes.

use crate::{
    actors::requests::RequestError,
    api::{
        message_room::{MessageRoom, UNCOUNTED_BYTES_MAX},
        shares::Held,
        status::Status,
    },
};
use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http_body::{Body, Frame};
use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

/// Shorter frames are copied when a call leaves them. The library reads some 16 KiB at a time, so a longer one keeps little else
/// in memory.
const COPIED_BYTES_MAX: usize = 8 * 1024;

/// The most memory of a piece that joins such frames. It is kept until the call has read all of the piece.
const JOINED_BYTES_MAX: usize = 64 * 1024;

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
        let room = self.room.as_deref().map(MessageRoom::unread);
        let shared = Prefetched::new(Some(self.stream), room);
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
    /// Received bytes: these pieces, then `joined`, then `last`.
    pieces: VecDeque<Bytes>,
    joined: BytesMut,
    /// As the library has received it, so that a call that reads it at once costs nothing.
    last: Option<Bytes>,
    /// The length of the piece that the call reads: what is left of it is in the call's reader.
    current: usize,
    /// The length of all these together.
    unread: usize,
    /// Room for them, as far as there is some; `None` if they do not count.
    room: Option<Held>,
    end: Option<End>,
    /// The task that waits for bytes.
    reader: Option<Waker>,
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
    fn new(stream: Option<RecvStream>, room: Option<Held>) -> Self {
        Self(Arc::new(Mutex::new(PrefetchState {
            stream,
            pieces: VecDeque::new(),
            joined: BytesMut::new(),
            last: None,
            current: 0,
            unread: 0,
            room,
            end: None,
            reader: None,
        })))
    }

    /// Takes all frames that have arrived. The task of `context` is woken when more arrive. [`Prefetched::settle`] must follow
    /// before that task yields.
    pub(super) fn poll_fill(&self, context: &mut Context<'_>) {
        let mut state = self.lock();
        let mut filled = false;
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
        if filled && let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// After the call has run, or if it runs in another task: what it has not read so far stays, if there is room for it.
    pub(super) fn settle(&self) {
        let mut state = self.lock();
        if let Some(last) = state.last.take() {
            state.keep(last);
        }
        if state.stream.is_some() && state.lacks_room() {
            state.close();
            state.end = Some(End::Failed(Failed::NoRoom));
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, PrefetchState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PrefetchState {
    fn push(&mut self, data: Bytes) {
        if let Some(before) = self.last.take() {
            self.keep(before);
        }
        self.unread += data.len();
        self.take_room();
        self.last = Some(data);
    }

    /// Keeps what the call has not read at once.
    fn keep(&mut self, data: Bytes) {
        let is_long = data.len() >= COPIED_BYTES_MAX;
        if is_long || self.joined.len() + data.len() > JOINED_BYTES_MAX {
            self.close_joined();
        }
        if is_long {
            return self.pieces.push_back(data);
        }
        let len = self.joined.len() + data.len();
        if len > self.joined.capacity() {
            // By itself it would grow beyond the bound. Most calls leave one short frame at a time, which needs no more.
            let is_first = self.joined.is_empty();
            let capacity = if is_first { len } else { 2 * len };
            let mut grown = BytesMut::with_capacity(capacity.min(JOINED_BYTES_MAX));
            grown.extend_from_slice(&self.joined);
            self.joined = grown;
        }
        self.joined.extend_from_slice(&data);
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            let joined = mem::take(&mut self.joined);
            self.pieces.push_back(joined.freeze());
        }
    }

    /// The next piece for the call, which has read the one before.
    fn pop(&mut self) -> Option<Bytes> {
        self.end_current();
        let piece = if let Some(piece) = self.pieces.pop_front() {
            piece
        } else if self.joined.is_empty() {
            self.last.take()?
        } else {
            mem::take(&mut self.joined).freeze()
        };
        self.current = piece.len();
        Some(piece)
    }

    /// Nothing is left of the piece that the call has read: the client may send as much again.
    fn end_current(&mut self) {
        let read = mem::take(&mut self.current);
        if read == 0 {
            return;
        }
        if let Some(stream) = &mut self.stream {
            release(stream, read);
        }
        self.unread -= read;
        self.take_room();
    }

    /// Takes room for what is unread, if there is some, and gives back what is not needed.
    fn take_room(&mut self) {
        let Some(room) = &mut self.room else { return };
        let held = room.amount();
        room.give_back(held.saturating_sub(self.unread));
        if self.unread > held {
            room.grow(self.unread - held);
        }
    }

    fn lacks_room(&self) -> bool {
        let held = self.room.as_ref().map(Held::amount);
        held.is_some_and(|held| self.unread > held + UNCOUNTED_BYTES_MAX)
    }

    /// Drops what the call has not begun to read, and all that comes after it.
    fn close(&mut self) {
        self.pieces = VecDeque::new();
        self.joined = BytesMut::new();
        self.last = None;
        // The stream may stay open for long, and its bytes take the connection's window.
        if let Some(mut stream) = self.stream.take() {
            release(&mut stream, self.unread);
        }
        self.unread = self.current;
        self.take_room();
    }
}

/// The call reads no more messages.
impl Drop for PrefetchedBody {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.end_current();
        state.close();
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
            return Poll::Ready(Some(Ok(Frame::data(piece))));
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
    use crate::api::{
        encoding::Encoding,
        message_reader::{MessageReader, testing::frame},
        shares::{Pool, Size},
    };
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

    impl Prefetched {
        /// A turn of a task that leaves all that arrives to a call in another one.
        fn poll_leave(&self, context: &mut Context<'_>) {
            self.poll_fill(context);
            self.settle();
        }
    }

    /// Leaves what arrives until so many bytes are unread.
    async fn leave_until(buffer: &Prefetched, unread: &Pool, bytes: usize) {
        let left = poll_fn(|context| {
            buffer.poll_leave(context);
            if unread.used() == bytes {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        soon(left).await;
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
        leave_until(&buffer, &unread, 11_000).await;
        call.send.send_data(vec![7; 30_000].into(), false).unwrap();
        leave_until(&buffer, &unread, 0).await;
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
        leave_until(&buffer, &unread, BYTES / 2).await;
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
        buffer.poll_leave(context);
        assert_eq!(buffer.lock().unread, 0, "nothing is kept");
    }

    /// It was given back with the whole piece when its first message was read, and a call that is busy kept the rest.
    #[tokio::test(start_paused = true)]
    async fn a_piece_counts_until_its_last_message_is_read() {
        const LEN: usize = 95;
        let (unread, room) = room_for(30_000);
        let mut call = Calls::new().await.begin().await;
        let (body, buffer) = call.body.within(&room).prefetched();
        let sent = frame(&[7; LEN]).repeat(10);
        call.send.send_data(sent.into(), false).unwrap();
        leave_until(&buffer, &unread, 1_000).await;
        let unreleased = || {
            let mut state = buffer.lock();
            let stream = state.stream.as_mut().expect("it is open");
            stream.flow_control().used_capacity()
        };
        let mut messages = MessageReader::new(body, Encoding::Identity, LEN);
        for _ in 0..10 {
            assert_eq!(soon(messages.only_bytes()).await.unwrap().len(), LEN);
            assert_eq!((unread.used(), unreleased()), (1_000, 1_000));
        }
        let context = &mut Context::from_waker(Waker::noop());
        assert!(messages.poll_message(context).is_pending());
        assert_eq!((unread.used(), unreleased()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_little_needs_no_room() {
        let (unread, room) = room_for(0);
        let mut call = Calls::new().await.begin().await;
        let (mut body, buffer) = call.body.within(&room).prefetched();
        let mut left = 0;
        for (bytes, stays) in [(UNCOUNTED_BYTES_MAX, true), (1, false)] {
            call.send.send_data(vec![7; bytes].into(), false).unwrap();
            left += bytes;
            let arrives = poll_fn(|context| {
                buffer.poll_leave(context);
                let state = buffer.lock();
                if state.unread == left || state.end.is_some() {
                    Poll::Ready(state.end.is_none())
                } else {
                    Poll::Pending
                }
            });
            assert_eq!(soon(arrives).await, stays, "{left} bytes");
        }
        let (bytes, failed) = read_all(&mut body, Some(&buffer)).await;
        assert_eq!((bytes, unread.used()), (0, 0));
        assert!(matches!(failed, Some(Failed::NoRoom)), "{failed:?}");
    }

    #[test]
    fn what_is_read_at_once_is_not_copied_and_what_is_left_is_if_it_is_short() {
        let buffer = Prefetched::new(None, None);
        let frames = [100, COPIED_BYTES_MAX - 1, 16_000].map(|len| Bytes::from(vec![7; len]));
        for frame in &frames {
            buffer.lock().push(frame.clone());
            let read = buffer.lock().pop().unwrap();
            assert_eq!(read.as_ptr(), frame.as_ptr(), "{} bytes", frame.len());
        }
        for frame in &frames {
            buffer.lock().push(frame.clone());
            buffer.settle();
        }
        let own_memory = frames.each_ref().map(Bytes::is_unique);
        assert_eq!(own_memory, [true, true, false]);
        let read = std::iter::from_fn(|| buffer.lock().pop().map(|piece| piece.len()));
        let read: Vec<_> = read.collect();
        assert_eq!(read, [100 + COPIED_BYTES_MAX - 1, 16_000], "in their order");
    }

    #[test]
    fn joined_pieces_have_a_bound() {
        let buffer = Prefetched::new(None, None);
        for _ in 0..200 {
            buffer.lock().push(vec![7; 1_000].into());
            assert!(buffer.lock().joined.capacity() <= JOINED_BYTES_MAX);
        }
        buffer.settle();
        let pieces: Vec<_> = std::iter::from_fn(|| buffer.lock().pop()).collect();
        assert!(pieces.iter().all(|piece| piece.len() <= JOINED_BYTES_MAX));
        assert_eq!(pieces.len(), 4);
        assert_eq!(pieces.concat().len(), 200_000);
    }
}
