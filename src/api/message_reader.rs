//! Reads gRPC messages from a request body. Every call of the API reads its messages here.
//!
//! A message that has not arrived completely needs room (`message_room`). One that finds none is held
//! back: no more is read of its stream until there is room, or until it has waited for too long and is refused.
//!
//! Each message has a prefix: one byte that says whether the message is compressed, and four bytes with its length. A message
//! that arrived in one piece shares the transport's buffer; one that arrived in several is copied together.
//!
//! etcd: malformed framing gets the codes and texts of etcd's gRPC library.

use super::{
    encoding::Encoding,
    frames::PREFIX_BYTES,
    message_room::{FIRST_BYTES, MessageRoom, NoRoom, Room, Taken},
    proto::wire_types,
    status::Status,
};
use crate::actors::requests::RequestError;
use bytes::{Buf, Bytes, BytesMut};
use prost::Message;
use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

/// How much of a message that is too large is received and dropped before the client gets its error. An immediate answer would
/// reset the stream while the client still sends, and some clients then report a failed transport instead of the error.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Reads the messages of one request body. It keeps a partly received message when a read is cancelled.
#[derive(Debug)]
pub struct MessageReader<B> {
    body: B,
    /// Received from the body and not consumed yet.
    received: Bytes,
    state: Reading,
    encoding: Encoding,
    message_bytes_max: usize,
    /// Where room is taken; `None` while its bytes do not count.
    pub(super) room: Option<Arc<MessageRoom>>,
    /// What was taken; `None` before a message needed any. Most readers never do.
    taken: Option<Box<Room>>,
}

/// What the next byte belongs to.
#[derive(Debug)]
enum Reading {
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
    B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
{
    /// Reads messages of at most `message_bytes_max` bytes from `body`.
    pub fn new(body: B, encoding: Encoding, message_bytes_max: usize) -> Self {
        Self {
            body,
            received: Bytes::new(),
            state: Reading::Prefix,
            encoding,
            message_bytes_max,
            room: None,
            taken: None,
        }
    }

    /// From now on the bytes of an unfinished message count, those that have arrived with the next read.
    pub(super) fn within(mut self, room: &Arc<MessageRoom>) -> Self {
        self.room = Some(room.clone());
        self
    }

    /// Replaces the body, and keeps the bytes that were received already.
    pub(super) fn map_body<C>(self, replace: impl FnOnce(B) -> C) -> MessageReader<C> {
        MessageReader {
            body: replace(self.body),
            received: self.received,
            state: self.state,
            encoding: self.encoding,
            message_bytes_max: self.message_bytes_max,
            room: self.room,
            taken: self.taken,
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
                    self.state = Reading::Ended;
                }
                return Poll::Ready(Some(read));
            }
            if matches!(self.state, Reading::Ended) {
                return Poll::Ready(None);
            }
            if let Some(room) = &mut self.taken
                && let Some(freed) = room.poll_freed(context)
            {
                if let Err(NoRoom) = ready!(freed) {
                    self.give_up();
                }
                continue;
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                if let (Reading::Message { begun, .. }, Some(room)) = (&self.state, &mut self.taken)
                    && let Poll::Ready(NoRoom) = room.poll_stalled(context, begun.len())
                {
                    self.give_up();
                    continue;
                }
                // The beginning of a prefix: in what it was received with it would keep much more memory.
                if !self.received.is_empty() {
                    self.received = Bytes::copy_from_slice(&self.received);
                }
                return Poll::Pending;
            };
            match frame {
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
                Some(Err(failed)) => {
                    self.state = Reading::Ended;
                    return Poll::Ready(Some(Err(failed.into())));
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
                Reading::Prefix if self.received.len() < PREFIX_BYTES => return None,
                Reading::Prefix => {
                    let prefix = match Prefix::take(&mut self.received, self.encoding) {
                        Ok(prefix) => prefix,
                        Err(status) => return Some(Err(status)),
                    };
                    let len = prefix.len;
                    if len > self.message_bytes_max {
                        self.state = Reading::Discard {
                            left: len.min(DISCARD_BYTES_MAX),
                            refusal: Status::received_too_large(len, self.message_bytes_max),
                        };
                    } else if len <= self.received.len() {
                        let message = self.received.split_to(len);
                        return Some(self.finish(prefix, message));
                    } else {
                        let begun = BytesMut::new();
                        self.state = Reading::Message { begun, prefix };
                    }
                }
                Reading::Message { begun, prefix } => {
                    let prefix = *prefix;
                    let missing = prefix.len - begun.len();
                    let taken = self.received.len().min(missing);
                    let taking = match &self.room {
                        Some(of) => {
                            let room = self.taken.get_or_insert_with(|| Box::new(Room::new(of)));
                            room.take(begun.len() + taken, prefix.len)
                        }
                        None => Taken::Yes,
                    };
                    match taking {
                        Taken::Yes => {}
                        Taken::Waits => return None,
                        Taken::Refused => {
                            self.give_up();
                            continue;
                        }
                    }
                    if begun.capacity() < begun.len() + taken {
                        let whole = begun.len() + taken > FIRST_BYTES;
                        let most = if whole { missing } else { FIRST_BYTES };
                        begun.reserve(missing.min(most));
                    }
                    begun.extend_from_slice(&self.received.split_to(taken));
                    if taken < missing {
                        return None;
                    }
                    let message = mem::take(begun).freeze();
                    self.state = Reading::Prefix;
                    if let Some(room) = &mut self.taken {
                        room.clear();
                    }
                    return Some(self.finish(prefix, message));
                }
                Reading::Discard { left, refusal } => {
                    *left = left.saturating_sub(self.received.len());
                    self.received = Bytes::new();
                    return (*left == 0).then(|| Err(refusal.clone()));
                }
                Reading::Ended => return None,
            }
        }
    }

    /// Drops the begun message, for which there is no room.
    fn give_up(&mut self) {
        if let Reading::Message { begun, prefix } = &self.state {
            self.state = Reading::Discard {
                left: prefix.len - begun.len(),
                refusal: RequestError::TooManyRequests.into(),
            };
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
        match mem::replace(&mut self.state, Reading::Ended) {
            Reading::Prefix if self.received.is_empty() => None,
            Reading::Prefix | Reading::Message { .. } => Some(Status::cut_message()),
            Reading::Discard { left: _, refusal } => Some(refusal),
            Reading::Ended => None,
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
    use crate::api::{
        message_room::{AddressRoom, WINDOW_EXTRA_MAX},
        proto::etcdserverpb as pb,
        shares::{Pool, Size},
        status::Code,
    };
    use flate2::{Compression, write::GzEncoder};
    use http_body::Frame;
    use std::{collections::VecDeque, convert::Infallible, io::Write, task::Waker};

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

    fn pool(total: usize) -> Arc<Pool> {
        Pool::new(Size { total, factor: 1 })
    }

    /// Room of a connection of which no message is held back.
    fn room_of(pool: &Arc<Pool>) -> Arc<MessageRoom> {
        room(pool, &self::pool(0))
    }

    /// Room of the only connection of an address.
    fn room(bytes: &Arc<Pool>, held_back: &Arc<Pool>) -> Arc<MessageRoom> {
        let of = AddressRoom::new(bytes, held_back, held_back);
        MessageRoom::new(of, Waker::noop().clone())
    }

    /// Reads what has arrived.
    fn poll<B>(reader: &mut MessageReader<B>) -> Poll<Option<Result<Bytes, Status>>>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
    {
        reader.poll_message(&mut Context::from_waker(Waker::noop()))
    }

    /// A body that is never complete.
    struct Unfinished(Pieces);

    impl http_body::Body for Unfinished {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match Pin::new(&mut self.0).poll_frame(context) {
                Poll::Ready(None) => Poll::Pending,
                data => data,
            }
        }
    }

    #[tokio::test]
    async fn unfinished_messages_take_no_more_than_their_share() {
        let pool = pool(1_000);
        let room = room_of(&pool);
        let message = frame(&[7; 90]);
        let reader_of = |len: usize| {
            let body = Unfinished(Pieces::of(&message[..len], 10));
            MessageReader::new(body, Encoding::Identity, BYTES_MAX).within(&room)
        };
        let mut begun = Vec::new();
        let refused = loop {
            let mut reader = reader_of(85);
            match poll(&mut reader) {
                Poll::Pending if matches!(reader.state, Reading::Message { .. }) => {
                    begun.push(reader);
                    assert!(begun.len() < 100, "there is no bound");
                }
                // Its bytes are dropped as they come; the client gets its error once it has sent all.
                Poll::Pending => break reader,
                Poll::Ready(read) => panic!("it is not complete: {read:?}"),
            }
        };
        assert_eq!(begun.len(), 500 / 80, "half of all, 80 bytes each");
        assert!(matches!(refused.state, Reading::Discard { .. }));
        drop(refused);
        assert_eq!(pool.used(), begun.len() * 80, "it takes no memory");
        let whole = MessageReader::new(Pieces::of(&message, 10), Encoding::Identity, BYTES_MAX);
        let read = whole.within(&room).only_bytes().await;
        assert_eq!(read, Err(RequestError::TooManyRequests.into()));
        let mut other = MessageReader::new(Pieces::of(&message, 10), Encoding::Identity, BYTES_MAX)
            .within(&room_of(&pool));
        assert_eq!(
            other.only_bytes().await.unwrap(),
            [7; 90][..],
            "others go on"
        );
        drop(other);
        begun.clear();
        assert_eq!(pool.used(), 0, "all is given back");
        let mut reader =
            MessageReader::new(Pieces::of(&message, 10), Encoding::Identity, BYTES_MAX)
                .within(&room);
        assert!(reader.only_bytes().await.is_ok());
        assert_eq!(pool.used(), 0, "a finished message is not held");
    }

    #[tokio::test]
    async fn bytes_that_came_before_there_was_a_share_count() {
        let message = frame(&[7; 90]);
        let begin = || {
            let body = Unfinished(Pieces::of(&message[..65], 13));
            let mut reader = MessageReader::new(body, Encoding::Identity, BYTES_MAX);
            assert!(poll(&mut reader).is_pending());
            reader
        };
        let pool = pool(150);
        let room = room_of(&pool);
        let [mut first, mut second] = [(); 2].map(|()| begin().within(&room));
        assert!(poll(&mut first).is_pending());
        assert_eq!(pool.used(), 60);
        assert!(poll(&mut second).is_pending());
        assert!(matches!(second.state, Reading::Discard { left: 30, .. }));
        drop(first);
        assert_eq!(pool.used(), 0);
    }

    /// A message so long that it takes room for all of it, of which all but the last bytes have arrived.
    const LONG: usize = 3 * FIRST_BYTES;

    fn long(left: usize) -> MessageReader<Unfinished> {
        let message = frame(&vec![7; LONG]);
        let arrived = &message[..message.len() - left];
        let body = Unfinished(Pieces::of(arrived, 1_000));
        MessageReader::new(body, Encoding::Identity, LONG)
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_held_back_until_there_is_room() {
        let (bytes, held_back) = (pool(2 * LONG), pool(1 << 20));
        let room = room(&bytes, &held_back);
        let mut first = long(1).within(&room);
        assert!(poll(&mut first).is_pending());
        assert_eq!(bytes.used(), LONG, "room for all of it");
        let mut second = long(0).within(&room);
        assert!(poll(&mut second).is_pending());
        assert!(
            matches!(second.state, Reading::Message { .. }),
            "it is not refused"
        );
        assert!(bytes.used() <= LONG + FIRST_BYTES);
        assert!(
            room.window_extra() > 0,
            "the connection's window makes up for it"
        );
        let waits = tokio::spawn(async move { second.only_bytes().await });
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        assert!(!waits.is_finished());
        drop(first);
        assert_eq!(waits.await.unwrap().unwrap(), vec![7; LONG]);
        assert_eq!((bytes.used(), held_back.used()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_not_held_back_for_ever() {
        let (bytes, held_back) = (pool(2 * LONG), pool(1 << 20));
        let room = room(&bytes, &held_back);
        let mut first = long(1).within(&room);
        assert!(poll(&mut first).is_pending());
        let began = tokio::time::Instant::now();
        let refused = long(0).within(&room).only_bytes().await;
        assert_eq!(refused, Err(RequestError::TooManyRequests.into()));
        assert_eq!(began.elapsed().as_secs(), 7);
        assert_eq!(held_back.used(), 0);
        assert!(
            matches!(first.state, Reading::Message { .. }),
            "a connection that is short of room ends none of its own messages"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_that_stops_makes_room_for_those_of_others() {
        // The first connection takes half, and the second needs more than half of the rest.
        let (bytes, held_back) = (pool(2 * LONG), pool(1 << 20));
        let [greedy, other] = [(); 2].map(|()| room(&bytes, &held_back));
        let mut stalled = long(1).within(&greedy);
        assert!(poll(&mut stalled).is_pending());
        let stalled = tokio::spawn(async move {
            let read = poll_fn(|context| {
                let read = stalled.poll_message(context);
                if matches!(stalled.state, Reading::Discard { .. }) {
                    return Poll::Ready(None);
                }
                read.map(Some)
            });
            (read.await, stalled)
        });
        tokio::time::sleep(std::time::Duration::from_mins(10)).await;
        assert!(
            !stalled.is_finished(),
            "it may take its time while nobody waits"
        );
        let small = MessageReader::new(Pieces::of(&frame(&[7; 90]), 10), Encoding::Identity, LONG);
        assert!(small.within(&other).only_bytes().await.is_ok());
        let read = long(0).within(&other).only_bytes().await;
        assert_eq!(read.unwrap(), vec![7; LONG]);
        let (read, stalled) = stalled.await.unwrap();
        assert!(read.is_none());
        assert!(matches!(stalled.state, Reading::Discard { left: 1, .. }));
    }

    /// Polls a reader until its message has lost its room.
    async fn loses_room(mut reader: MessageReader<Unfinished>) {
        poll_fn(|context| match reader.poll_message(context) {
            _ if matches!(reader.state, Reading::Discard { .. }) => Poll::Ready(()),
            Poll::Pending => Poll::Pending,
            Poll::Ready(read) => panic!("it is not complete: {read:?}"),
        })
        .await;
    }

    /// Fills `bytes` with messages of 20 connections, of which as much has arrived as takes no room for the whole, and then no
    /// more. Returns their connections and readers.
    fn idle(
        bytes: &Arc<Pool>,
        held_back: &Arc<Pool>,
    ) -> (Vec<Arc<MessageRoom>>, Vec<MessageReader<Unfinished>>) {
        let rooms: Vec<_> = (0..20).map(|_| room(bytes, held_back)).collect();
        let mut readers = Vec::new();
        for room in &rooms {
            loop {
                let mut reader = long(LONG - FIRST_BYTES).within(room);
                assert!(poll(&mut reader).is_pending());
                if room.window_extra() > 0 {
                    break;
                }
                readers.push(reader);
            }
        }
        assert!(
            readers.len() > 60,
            "they take nearly all: {}",
            readers.len()
        );
        assert_eq!(held_back.used(), 0);
        (rooms, readers)
    }

    #[tokio::test(start_paused = true)]
    async fn messages_that_stop_at_their_beginning_make_room_for_those_of_others() {
        let (bytes, held_back) = (pool(64 * FIRST_BYTES), pool(1 << 20));
        let (_rooms, readers) = idle(&bytes, &held_back);
        let tasks: Vec<_> = readers
            .into_iter()
            .map(|reader| tokio::spawn(loses_room(reader)))
            .collect();
        tokio::time::sleep(std::time::Duration::from_mins(10)).await;
        assert!(
            tasks.iter().all(|task| !task.is_finished()),
            "they may take their time while nobody waits"
        );
        let honest = room(&bytes, &held_back);
        let began = tokio::time::Instant::now();
        let read = long(0).within(&honest).only_bytes().await;
        assert_eq!(read.unwrap(), vec![7; LONG]);
        assert!(began.elapsed().as_secs() < 7, "the clock of the test");
        assert!(tasks.iter().any(tokio::task::JoinHandle::is_finished));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_has_its_share_ends_no_messages_of_others() {
        let (bytes, held_back) = (pool(8 * LONG), pool(1 << 20));
        let [greedy, slow] = [(); 2].map(|()| room(&bytes, &held_back));
        let mut begun: Vec<_> = (0..4).map(|_| long(1).within(&greedy)).collect();
        for reader in &mut begun {
            assert!(poll(reader).is_pending());
        }
        let mut stopped = long(1).within(&slow);
        assert!(poll(&mut stopped).is_pending());
        let stopped = tokio::spawn(loses_room(stopped));
        let refused = long(0).within(&greedy).only_bytes().await;
        assert_eq!(refused, Err(RequestError::TooManyRequests.into()));
        assert_eq!(bytes.used(), 5 * LONG, "the pool had room");
        assert!(!stopped.is_finished());
    }

    #[tokio::test]
    async fn messages_that_are_held_back_open_the_window_up_to_a_bound() {
        let (bytes, held_back) = (pool(0), pool(1 << 26));
        let room = room(&bytes, &held_back);
        let mut readers: Vec<_> = (0..40).map(|_| long(0).within(&room)).collect();
        for reader in &mut readers {
            assert!(poll(reader).is_pending());
            assert!(room.window_extra() > 0 && room.window_extra() <= WINDOW_EXTRA_MAX);
        }
        assert!(held_back.used() > WINDOW_EXTRA_MAX as usize);
        drop(readers);
        assert_eq!(room.window_extra(), 0);
    }

    #[test]
    fn a_prefix_alone_takes_no_room() {
        const LONG: usize = 2 * 1024 * 1024;
        let bytes = frame(&vec![7; LONG]);
        let capacity = |len: usize| {
            let body = Unfinished(Pieces::of(&bytes[..len], 10_000));
            let mut reader = MessageReader::new(body, Encoding::Identity, LONG);
            assert!(poll(&mut reader).is_pending());
            match reader.state {
                Reading::Message { begun, .. } => begun.capacity(),
                state => panic!("{state:?}"),
            }
        };
        assert_eq!(capacity(PREFIX_BYTES), 0);
        assert!(capacity(PREFIX_BYTES + 10) <= 2 * FIRST_BYTES);
        assert!(capacity(PREFIX_BYTES + FIRST_BYTES) <= 2 * FIRST_BYTES);
        assert!(capacity(100_000) >= LONG, "room for all of it at once");
    }

    #[test]
    fn the_beginning_of_a_prefix_keeps_no_other_memory() {
        let sent = Bytes::from(frame(b"message")).slice(..3);
        let body = Unfinished(Pieces(VecDeque::from([sent.clone()])));
        let mut reader = MessageReader::new(body, Encoding::Identity, BYTES_MAX);
        assert!(poll(&mut reader).is_pending());
        assert!(sent.is_unique());
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
        let mut reader = MessageReader::new(body, Encoding::Gzip, BYTES_MAX);
        reader.only_bytes().await
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
        let refused = read_gzip(&broken, 50).await.unwrap_err();
        assert_eq!(refused.code, Code::Internal);
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
