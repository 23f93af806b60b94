//! Room for messages that have not arrived completely.
//!
//! All connections have a pool of it, and the connections of each address a share ([`shares`](super::shares)). What a message
//! takes, and what happens to one that finds no room:
//!
//! | a message | takes |
//! |---|---|
//! | that arrives in one piece | none: it is not unfinished |
//! | of which up to [`FIRST_BYTES`] have arrived | what has arrived |
//! | of which more has arrived | its whole length, so that messages that have begun do not wait for each other |
//! | without room | none more: it is held back |
//! | of a read that waits for its view or for room for its answer | its length, if it is longer than [`SMALL_BYTES`] |
//!
//! Held back means that nothing more is read of its stream, whose flow control then stops the client. What the client may send
//! until then counts for a pool of its own, and the window of the connection is opened by as much, up to [`WINDOW_EXTRA_MAX`],
//! so that its other calls go on. A message is held back for [`ROOM_TIMEOUT`] at most; then, or if there is no place among those
//! that are held back, its call gets `ResourceExhausted`. Room that is given back goes to the first that was held back.
//!
//! Bytes that have arrived and that no call has read yet count for a third pool, as large as that of the messages that are held
//! back: what is held back arrives, and waits there. A call that leaves more than [`UNCOUNTED_BYTES_MAX`] of them without room in
//! that pool gets `ResourceExhausted` too (`http2::request_stream`).
//!
//! While messages of other connections are held back because of what others hold, one that has room must go on: it loses its
//! room if less than [`STALL_BYTES`] of it arrive in [`STALL_MAX`], or less than [`FIRST_STALL_BYTES`] while it is at its first
//! [`FIRST_BYTES`]. A message that waits only for the share of its own address ends none of other addresses, and one that waits
//! only for its own connection's messages ends none. Without this rule the shares would not do: `n` addresses can leave one part
//! in 2^`n` of the pool.

use super::shares::{Freed, Held, Pool, Share};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// The memory for a message whose end has not arrived, before so much of it has. Then it gets room for all of it at once, so that
/// a prefix alone does not take the room of a large message.
pub(super) const FIRST_BYTES: usize = 16 * 1024;

/// Messages of reads up to this length take no room while they wait.
pub(super) const SMALL_BYTES: usize = 1024;

/// So much of what a call leaves unread needs no room if there is none, so that a call that is sent little goes on.
pub(super) const UNCOUNTED_BYTES_MAX: usize = 1024;

/// The window of a stream: what a client may send of a message before it is read.
pub(super) const STREAM_WINDOW_BYTES: u32 = 512 * 1024;

/// By how much a connection's window may be larger because of messages that are held back. A client keeps a window that it was
/// given, so this is memory that the connection may take from then on.
pub(super) const WINDOW_EXTRA_MAX: u32 = 8 * STREAM_WINDOW_BYTES;

/// What a message that is held back counts at least, so that their number is bounded too.
const HELD_BACK_BYTES_MIN: usize = 128 * 1024;

/// How long a message waits for room. etcd: its request time-out.
const ROOM_TIMEOUT: Duration = Duration::from_secs(7);

/// See the head of this file.
const STALL_MAX: Duration = Duration::from_secs(3);
const STALL_BYTES: usize = 64 * 1024;
const FIRST_STALL_BYTES: usize = 1024;

/// What the connections of one address have of the room.
#[derive(Debug)]
pub(super) struct AddressRoom {
    bytes: Arc<Share>,
    held_back: Arc<Share>,
    unread: Arc<Share>,
}

impl AddressRoom {
    /// The shares of a new address.
    pub(super) fn new(bytes: &Arc<Pool>, held_back: &Arc<Pool>, unread: &Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            bytes: Share::new(bytes),
            held_back: Share::new(held_back),
            unread: Share::new(unread),
        })
    }
}

/// What one connection has of the room.
#[derive(Debug)]
pub(super) struct MessageRoom {
    of: Arc<AddressRoom>,
    /// What its messages that are held back count.
    held_back: AtomicUsize,
    /// The connection's task, which opens its window.
    task: Waker,
}

impl MessageRoom {
    /// The room of a connection of this address with this task.
    pub(super) fn new(of: Arc<AddressRoom>, task: Waker) -> Arc<Self> {
        Arc::new(Self {
            of,
            held_back: AtomicUsize::new(0),
            task,
        })
    }

    /// Room for a whole message that its call keeps, if there is some.
    pub(super) fn hold(&self, bytes: usize) -> Option<Held> {
        self.of.bytes.take(bytes)
    }

    /// Room for bytes that a call does not read, of which it has none yet.
    pub(super) fn unread(&self) -> Held {
        Held::none_of(&self.of.unread)
    }

    /// By how much the connection's window must be larger because of messages that are held back.
    pub(super) fn window_extra(&self) -> u32 {
        let held_back = u32::try_from(self.held_back.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        held_back.min(WINDOW_EXTRA_MAX)
    }

    /// Whether messages of other connections are held back because of what this one may hold.
    fn others_wait(&self) -> bool {
        let of_address = self.of.held_back.held();
        of_address > self.held_back.load(Ordering::Relaxed) || self.of.bytes.others_wait()
    }
}

/// The room of one call's messages, of which one is unfinished at a time.
#[derive(Debug)]
pub(super) struct Room {
    of: Arc<MessageRoom>,
    held: Held,
    wait: Option<Box<Wait>>,
    pace: Option<Pace>,
}

/// A message that is held back.
#[derive(Debug)]
struct Wait {
    counts: Held,
    of: Arc<MessageRoom>,
    freed: Pin<Box<Freed>>,
    until: Pin<Box<Sleep>>,
}

impl Drop for Wait {
    fn drop(&mut self) {
        let counts = self.counts.amount();
        self.of.held_back.fetch_sub(counts, Ordering::Relaxed);
    }
}

/// How fast a message arrives.
#[derive(Debug)]
struct Pace {
    look: Pin<Box<Sleep>>,
    /// How much of it had arrived at the last look.
    arrived: usize,
}

/// The outcome of taking room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// The message is held back: see [`Room::poll_freed`].
    Waits,
    Refused,
}

/// A message gets no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl Room {
    pub(super) fn new(of: &Arc<MessageRoom>) -> Self {
        Self {
            of: of.clone(),
            held: Held::none_of(&of.of.bytes),
            wait: None,
            pace: None,
        }
    }

    /// Takes the room of a message of `len` bytes once `arrived` of them are to be kept.
    pub(super) fn take(&mut self, arrived: usize, len: usize) -> Taken {
        let all = if arrived > FIRST_BYTES { len } else { arrived };
        let more = all.saturating_sub(self.held.amount());
        // What it has already is not refused, however much of the rest others have taken meanwhile.
        if more == 0 || self.held.grow(more) {
            self.wait = None;
            return Taken::Yes;
        }
        // Noted before the next try: room that is given back after that one wakes this task.
        let freed = Box::pin(self.of.of.bytes.freed());
        if let Some(wait) = &mut self.wait {
            wait.freed = freed;
        } else {
            let window = STREAM_WINDOW_BYTES as usize;
            let counts = len.clamp(HELD_BACK_BYTES_MIN, window);
            let Some(counts) = self.of.of.held_back.take(counts) else {
                self.clear();
                return Taken::Refused;
            };
            self.of
                .held_back
                .fetch_add(counts.amount(), Ordering::Relaxed);
            self.wait = Some(Box::new(Wait {
                counts,
                of: self.of.clone(),
                freed,
                until: Box::pin(sleep(ROOM_TIMEOUT)),
            }));
            // Nothing of it is read meanwhile, however fast it arrives.
            self.pace = None;
            self.of.task.wake_by_ref();
        }
        if self.held.grow(more) {
            self.wait = None;
            return Taken::Yes;
        }
        self.held.wait_for(more);
        Taken::Waits
    }

    /// For a message that is held back: ready when it should try again, or has waited for too long. `None` for any other.
    pub(super) fn poll_freed(
        &mut self,
        context: &mut Context<'_>,
    ) -> Option<Poll<Result<(), NoRoom>>> {
        let wait = self.wait.as_mut()?;
        if wait.freed.as_mut().poll(context).is_ready() {
            return Some(Poll::Ready(Ok(())));
        }
        if wait.until.as_mut().poll(context).is_pending() {
            return Some(Poll::Pending);
        }
        self.clear();
        Some(Poll::Ready(Err(NoRoom)))
    }

    /// For a message of which `arrived` bytes have arrived and no more for now: ready when it loses its room.
    pub(super) fn poll_stalled(
        &mut self,
        context: &mut Context<'_>,
        arrived: usize,
    ) -> Poll<NoRoom> {
        if self.held.amount() == 0 {
            return Poll::Pending;
        }
        let pace = self.pace.get_or_insert_with(|| Pace {
            look: Box::pin(sleep(STALL_MAX)),
            arrived,
        });
        loop {
            ready!(pace.look.as_mut().poll(context));
            let is_begun = pace.arrived > FIRST_BYTES;
            let expected = if is_begun {
                STALL_BYTES
            } else {
                FIRST_STALL_BYTES
            };
            if arrived - pace.arrived < expected && self.of.others_wait() {
                self.clear();
                return Poll::Ready(NoRoom);
            }
            pace.arrived = arrived;
            pace.look.as_mut().reset(Instant::now() + STALL_MAX);
        }
    }

    /// The message is over.
    pub(super) fn clear(&mut self) {
        self.held.clear();
        (self.wait, self.pace) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::shares::Size;
    use std::future::poll_fn;

    const LONG: usize = 3 * FIRST_BYTES;
    /// So much of it that it takes room for all.
    const BEGUN: usize = FIRST_BYTES + 1;

    fn pool(total: usize) -> Arc<Pool> {
        Pool::new(Size { total, factor: 1 })
    }

    fn connection(address: &Arc<AddressRoom>) -> Arc<MessageRoom> {
        MessageRoom::new(address.clone(), Waker::noop().clone())
    }

    /// Begins messages until one is held back.
    fn greedy(connection: &Arc<MessageRoom>) -> Vec<Room> {
        std::iter::from_fn(|| {
            let mut room = Room::new(connection);
            (room.take(BEGUN, LONG) == Taken::Yes).then_some(room)
        })
        .collect()
    }

    async fn is_lost(room: &mut Room) -> bool {
        let stalled = poll_fn(|context| room.poll_stalled(context, BEGUN));
        tokio::time::timeout(10 * STALL_MAX, stalled).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_address_have_one_share_and_make_room_for_each_other() {
        let (bytes, held_back) = (pool(8 * LONG), pool(1 << 20));
        let [address, elsewhere] =
            [(); 2].map(|()| AddressRoom::new(&bytes, &held_back, &held_back));
        let [first, second] = [(); 2].map(|()| connection(&address));
        let mut begun = greedy(&first);
        assert_eq!(begun.len(), 4, "half");
        let other = connection(&elsewhere);
        let mut of_other = Room::new(&other);
        assert_eq!(of_other.take(BEGUN, LONG), Taken::Yes);
        let mut own = Room::new(&first);
        assert_eq!(own.take(BEGUN, LONG), Taken::Waits);
        assert!(
            !is_lost(&mut begun[0]).await,
            "its own connection ends none"
        );
        drop(own);
        let mut waits = Room::new(&second);
        assert_eq!(waits.take(BEGUN, LONG), Taken::Waits);
        assert_eq!((first.window_extra(), second.window_extra() > 0), (0, true));
        assert!(!is_lost(&mut of_other).await, "it is none of its business");
        assert!(is_lost(&mut begun[0]).await);
        assert_eq!(waits.take(BEGUN, LONG), Taken::Yes);
        assert!(!is_lost(&mut begun[1]).await, "nobody waits any more");
        assert_eq!((second.window_extra(), held_back.used()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn newcomers_do_not_overtake_a_message_that_is_held_back() {
        let (bytes, held_back) = (pool(8 * LONG), pool(1 << 20));
        let connections =
            [(); 6].map(|()| connection(&AddressRoom::new(&bytes, &held_back, &held_back)));
        let mut begun: Vec<Vec<Room>> = connections[..4].iter().map(greedy).collect();
        assert_eq!(bytes.used(), 8 * LONG);
        let mut honest = Room::new(&connections[4]);
        assert_eq!(honest.take(BEGUN, LONG), Taken::Waits);
        begun[3].clear();
        for connection in &connections[3..] {
            let mut newcomer = Room::new(connection);
            assert_ne!(newcomer.take(FIRST_BYTES, LONG), Taken::Yes);
        }
        assert_eq!(honest.take(BEGUN, LONG), Taken::Yes);
        begun[2].clear();
        let mut newcomer = Room::new(&connections[3]);
        assert_eq!(newcomer.take(FIRST_BYTES, LONG), Taken::Yes);
    }
}
