//! Outboxes: the queue of responses between the watch hub and one stream's front end, and the events by which front ends tell
//! the hub that a queue has room again.
//!
//! The hub never waits: it puts responses in, and sends no events to a stream without room. The front end takes responses out on
//! any thread. The bytes of all queues are bounded together as well: past that bound only empty queues have room.

use crate::kv::watch::{Response, StreamId};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::Notify;

/// Bytes queued for one stream before it has no room. The response that crosses the line is still taken.
pub(super) const STREAM_BYTES_MAX: usize = 1024 * 1024;
/// Bytes queued for all streams of a member before only empty queues have room.
pub(super) const ALL_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The responses of one watch stream that its front end has not taken yet.
#[derive(Debug)]
pub(super) struct WatchOutbox {
    stream: StreamId,
    state: Mutex<OutboxState>,
    /// There is something to take.
    filled: Notify,
    /// There is room for requests again.
    emptied: Notify,
    events: Arc<FrontEndEvents>,
}

#[derive(Debug, Default)]
struct OutboxState {
    queue: VecDeque<Response>,
    bytes: usize,
    /// The hub found no room and awaits a message when there is some.
    starved: bool,
    /// The client is gone.
    closed: bool,
    /// The node is stopping.
    ended: bool,
}

/// What front ends report to the hub; all outboxes share it, with the count of their bytes.
#[derive(Debug, Default)]
pub(super) struct FrontEndEvents {
    /// At most two for each stream: that it has room, and that it is gone.
    queue: Mutex<Vec<FrontEndEvent>>,
    woken: Notify,
    queued_bytes: AtomicUsize,
}

/// What the front end of a stream reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrontEndEvent {
    /// The queue has room again.
    HasRoom(StreamId),
    Closed(StreamId),
}

impl FrontEndEvents {
    /// Waits for an event, or for [`FrontEndEvents::wake`].
    pub(super) async fn wait(&self) {
        self.woken.notified().await;
    }

    /// Lets the next [`FrontEndEvents::wait`] return without an event.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Bytes queued for all streams.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self) -> Vec<FrontEndEvent> {
        std::mem::take(&mut *unpoisoned(&self.queue))
    }

    fn push(&self, event: FrontEndEvent) {
        unpoisoned(&self.queue).push(event);
        self.woken.notify_one();
    }
}

impl WatchOutbox {
    pub(super) fn new(stream: StreamId, events: Arc<FrontEndEvents>) -> Self {
        Self {
            stream,
            state: Mutex::default(),
            filled: Notify::new(),
            emptied: Notify::new(),
            events,
        }
    }

    pub(super) fn stream(&self) -> StreamId {
        self.stream
    }

    /// Whether there is room for events. If not, the hub gets a message once there is. A queue whose client is gone always has
    /// room: it drops what is put in.
    pub(super) fn has_room(&self) -> bool {
        let mut state = unpoisoned(&self.state);
        let crowded = self.events.queued_bytes.load(Ordering::Relaxed) >= ALL_BYTES_MAX;
        let full = state.bytes >= STREAM_BYTES_MAX || crowded && !state.queue.is_empty();
        let room = state.closed || !full;
        state.starved |= !room;
        room
    }

    pub(super) fn put(&self, response: Response) {
        let mut state = unpoisoned(&self.state);
        if state.closed || state.ended {
            return;
        }
        let bytes = response.bytes();
        state.bytes += bytes;
        self.events.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        state.queue.push_back(response);
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.filled.notify_one();
        }
    }

    /// Takes the next response; `None` once the node has stopped and everything is taken. For one task at a time.
    pub(super) async fn take(&self) -> Option<Response> {
        let mut taken = Vec::with_capacity(1);
        self.take_some(1, &mut taken).await;
        taken.pop()
    }

    /// Adds the next responses to `taken`: at least one, and no further ones once they have `bytes_max` bytes. None once the node
    /// has stopped and everything is taken. For one task at a time.
    pub(super) async fn take_some(&self, bytes_max: usize, taken: &mut Vec<Response>) {
        while self.try_take_some(bytes_max, taken) == Err(Empty::ForNow) {
            self.filled.notified().await;
        }
    }

    /// Takes the next response, if there is one.
    pub(super) fn try_take(&self) -> Result<Response, Empty> {
        let mut taken = Vec::with_capacity(1);
        self.try_take_some(1, &mut taken)?;
        taken.pop().ok_or(Empty::ForNow)
    }

    /// As [`WatchOutbox::take_some`], if there is something.
    fn try_take_some(&self, bytes_max: usize, taken: &mut Vec<Response>) -> Result<(), Empty> {
        let mut state = unpoisoned(&self.state);
        if state.queue.is_empty() {
            return Err(if state.ended {
                Empty::ForEver
            } else {
                Empty::ForNow
            });
        }
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(response) = state.queue.pop_front()
        {
            bytes += response.bytes();
            taken.push(response);
        }
        state.bytes -= bytes;
        self.events.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let drained = state.bytes <= STREAM_BYTES_MAX / 2;
        let starved = drained && std::mem::take(&mut state.starved);
        drop(state);
        if starved {
            self.events.push(FrontEndEvent::HasRoom(self.stream));
        }
        if drained {
            self.emptied.notify_waiters();
        }
        Ok(())
    }

    /// Waits until the client has taken enough that its requests may add to the queue; returns whether the stream goes on.
    pub(super) async fn room_for_requests(&self) -> bool {
        loop {
            let emptied = self.emptied.notified();
            let (goes_on, room) = {
                let state = unpoisoned(&self.state);
                (
                    !state.ended && !state.closed,
                    state.bytes < STREAM_BYTES_MAX,
                )
            };
            if !goes_on || room {
                return goes_on;
            }
            emptied.await;
        }
    }

    /// The client is gone: what is queued is dropped, and the hub gets a message.
    pub(super) fn close(&self) {
        let mut state = unpoisoned(&self.state);
        let first = !std::mem::replace(&mut state.closed, true);
        self.events
            .queued_bytes
            .fetch_sub(state.bytes, Ordering::Relaxed);
        state.bytes = 0;
        let dropped = std::mem::take(&mut state.queue);
        drop(state);
        drop(dropped);
        if first {
            self.events.push(FrontEndEvent::Closed(self.stream));
            self.emptied.notify_waiters();
        }
    }

    /// The node is stopping: nothing more comes.
    pub(super) fn end(&self) {
        unpoisoned(&self.state).ended = true;
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }
}

/// Why a queue has no response to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Empty {
    /// Responses may still arrive.
    ForNow,
    /// The stream has ended.
    ForEver,
}

/// No code panics while it holds one of these locks.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::watch::{Body, Event, Events, WatchId},
        types::{RecordKind, Rev, Revision},
    };
    use bytes::Bytes;

    fn response(bytes: usize) -> Response {
        let kv = Bytes::from(vec![0; bytes]);
        let rev = Rev::new(Revision(2), 0);
        let event = Arc::new(Event::new(rev, RecordKind::Put, &kv, None));
        let body = Body::Events {
            events: Events::new(&[event]),
            fragment: false,
        };
        Response {
            watch: WatchId(0),
            revision: Revision(2),
            body,
        }
    }

    #[test]
    fn a_full_outbox_rings_once_half_of_it_is_taken() {
        let events = Arc::new(FrontEndEvents::default());
        let outbox = WatchOutbox::new(StreamId(1), events.clone());
        let quarter = STREAM_BYTES_MAX / 4;
        for _ in 0..4 {
            assert!(outbox.has_room());
            outbox.put(response(quarter));
        }
        assert!(!outbox.has_room(), "four quarters and their overhead");
        assert!(outbox.try_take().is_ok());
        assert!(outbox.try_take().is_ok());
        assert_eq!(events.take(), [], "a little over half is left");
        assert!(outbox.try_take().is_ok());
        assert_eq!(events.take(), [FrontEndEvent::HasRoom(StreamId(1))]);
        assert!(outbox.try_take().is_ok());
        assert_eq!(events.take(), [], "it rings once");
        assert_eq!(outbox.try_take(), Err(Empty::ForNow));
        assert_eq!(events.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn when_all_queues_together_are_full_only_empty_ones_have_room() {
        let events = Arc::new(FrontEndEvents::default());
        let (quiet, busy) = (
            WatchOutbox::new(StreamId(1), events.clone()),
            WatchOutbox::new(StreamId(2), events.clone()),
        );
        busy.put(response(1));
        events
            .queued_bytes
            .fetch_add(ALL_BYTES_MAX, Ordering::Relaxed);
        assert!(quiet.has_room());
        assert!(!busy.has_room());
        assert!(busy.try_take().is_ok());
        assert_eq!(events.take(), [FrontEndEvent::HasRoom(StreamId(2))]);
    }

    #[test]
    fn one_that_was_left_keeps_nothing() {
        let events = Arc::new(FrontEndEvents::default());
        let outbox = WatchOutbox::new(StreamId(3), events.clone());
        outbox.put(response(STREAM_BYTES_MAX));
        assert!(!outbox.has_room());
        outbox.close();
        outbox.close();
        assert_eq!(events.take(), [FrontEndEvent::Closed(StreamId(3))]);
        assert!(outbox.has_room(), "whoever writes to it need not wait");
        outbox.put(response(1));
        assert_eq!(outbox.try_take(), Err(Empty::ForNow));
        assert_eq!(events.queued_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn some_are_taken_at_once_up_to_a_size() {
        let events = Arc::new(FrontEndEvents::default());
        let outbox = WatchOutbox::new(StreamId(5), events.clone());
        for _ in 0..5 {
            outbox.put(response(1_000));
        }
        let each = response(1_000).bytes();
        let mut taken = Vec::new();
        outbox.take_some(2 * each + 1, &mut taken).await;
        assert_eq!(taken.len(), 3, "the one that crosses the line is the last");
        assert_eq!(events.queued_bytes.load(Ordering::Relaxed), 2 * each);
        outbox.take_some(usize::MAX, &mut taken).await;
        assert_eq!(taken.len(), 5, "added to what is there");
        outbox.end();
        outbox.take_some(1, &mut taken).await;
        assert_eq!(taken.len(), 5, "nothing comes after the end");
    }

    #[tokio::test]
    async fn what_is_queued_at_the_end_is_still_taken() {
        let outbox = WatchOutbox::new(StreamId(4), Arc::new(FrontEndEvents::default()));
        outbox.put(response(1));
        outbox.end();
        assert!(outbox.take().await.is_some());
        assert!(outbox.take().await.is_none());
        assert!(!outbox.room_for_requests().await);
    }
}
