//! The send queues of one connection: one for each lane, each bounded in bytes.

use super::{
    codec::{Lane, WireRequest, push_message, push_request},
    frame::FrameBatch,
};
use crate::raft::{self, Body, Message};
use bytes::Bytes;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};
use tokio::sync::Notify;

/// What a frame without payload counts towards a queue's bound.
const FRAME_BYTES: usize = 64;
/// Bytes written at once; a longer item is written alone.
const BATCH_BYTES: usize = 1024 * 1024;
/// Bytes of heartbeats and votes that may wait: some thousand of them, sent within seconds.
const VOTES_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
enum Item {
    Message(Message),
    Request(WireRequest, Bytes),
}

impl Item {
    fn bytes(&self) -> usize {
        let payload = match self {
            Self::Message(Message {
                body: Body::Append { entries, .. },
                ..
            }) => entries.iter().map(raft::entry_bytes).sum(),
            Self::Message(_) => 0,
            Self::Request(_, payload) => payload.len(),
        };
        FRAME_BYTES + payload
    }
}

/// The queues of one connection. Invariant: each lane's `bytes` is the sum over its items, and over `bytes_max` by at most one
/// item.
#[derive(Debug)]
pub(super) struct SendQueues {
    lanes: [LaneQueue; Lane::ALL.len()],
}

#[derive(Debug)]
struct LaneQueue {
    items: RefCell<VecDeque<Item>>,
    bytes: Cell<usize>,
    bytes_max: usize,
    filled: Notify,
}

impl SendQueues {
    /// Empty queues. Those for the log and for requests hold up to `bytes_max` each.
    pub(super) fn new(bytes_max: usize) -> Self {
        let lanes = Lane::ALL.map(|lane| LaneQueue {
            items: RefCell::default(),
            bytes: Cell::new(0),
            bytes_max: match lane {
                Lane::Votes => VOTES_BYTES_MAX,
                Lane::Log | Lane::Requests => bytes_max,
            },
            filled: Notify::new(),
        });
        Self { lanes }
    }

    /// Queues a message. False if there is no room: Raft sends it again.
    pub(super) fn message(&self, message: Message) -> bool {
        let lane = Lane::of(&message.body);
        self.put(lane, Item::Message(message), false)
    }

    /// Queues a request frame with a payload. False if there is no room.
    pub(super) fn request(&self, header: WireRequest, payload: Bytes) -> bool {
        self.put(Lane::Requests, Item::Request(header, payload), false)
    }

    /// Queues a request frame whatever the bound. There are few of them: at most some per request in flight.
    pub(super) fn notice(&self, header: WireRequest) {
        self.put(Lane::Requests, Item::Request(header, Bytes::new()), true);
    }

    fn put(&self, lane: Lane, item: Item, always: bool) -> bool {
        let queue = &self.lanes[lane.index()];
        let (waiting, bytes) = (queue.bytes.get(), item.bytes());
        if !always && waiting > 0 && waiting + bytes > queue.bytes_max {
            return false;
        }
        queue.bytes.set(waiting + bytes);
        queue.items.borrow_mut().push_back(item);
        queue.filled.notify_one();
        true
    }

    /// Takes all that waits on `lane`, up to [`BATCH_BYTES`], for one write. Waits until there is something.
    pub(super) async fn batch(&self, lane: Lane) -> Vec<Bytes> {
        let queue = &self.lanes[lane.index()];
        while queue.items.borrow().is_empty() {
            queue.filled.notified().await;
        }
        let (mut frames, mut taken) = (FrameBatch::default(), 0);
        let mut items = queue.items.borrow_mut();
        while let Some(item) = items.front() {
            if taken > 0 && taken + item.bytes() > BATCH_BYTES {
                break;
            }
            taken += item.bytes();
            match item {
                Item::Message(message) => push_message(&mut frames, message),
                Item::Request(header, payload) => push_request(&mut frames, header, payload),
            }
            items.pop_front();
        }
        queue.bytes.set(queue.bytes.get() - taken);
        frames.into_chunks()
    }

    /// Bytes that wait, in all queues.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes.get()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::frame::FrameBuffer,
        types::{Entry, EntryKind, LogIndex, LogPosition, Term},
    };

    fn append(bytes: usize) -> Message {
        let data = vec![1; bytes].into();
        let entry = Entry {
            term: Term(1),
            index: LogIndex(1),
            kind: EntryKind::Command,
            data,
        };
        let body = Body::Append {
            prev: LogPosition::default(),
            commit: LogIndex(0),
            entries: vec![entry],
        };
        Message {
            term: Term(1),
            body,
        }
    }

    fn heartbeat() -> Message {
        Message {
            term: Term(1),
            body: Body::Heartbeat {
                commit: LogIndex(0),
                round: 1,
            },
        }
    }

    #[tokio::test]
    async fn the_bound_holds_for_each_lane_and_one_item_always_fits() {
        let queues = SendQueues::new(10_000);
        assert!(
            queues.message(append(20_000)),
            "an empty queue takes any one item"
        );
        assert!(!queues.message(append(1)), "then it is full");
        assert!(
            queues.message(heartbeat()),
            "heartbeats have room of their own"
        );
        assert!(
            queues.request(WireRequest::Ping, Bytes::new()),
            "and so have requests"
        );
        queues.batch(Lane::Log).await;
        assert!(queues.message(append(1)), "what was written makes room");
        let fits = (0..100_000)
            .take_while(|_| queues.message(heartbeat()))
            .count();
        assert!(
            fits < VOTES_BYTES_MAX / FRAME_BYTES,
            "heartbeats are bounded too"
        );
        queues.batch(Lane::Votes).await;
        queues.batch(Lane::Log).await;
        queues.batch(Lane::Requests).await;
        assert_eq!(queues.waiting_bytes(), 0);
    }

    #[tokio::test]
    async fn what_waits_leaves_in_order_and_in_batches() {
        let queues = SendQueues::new(usize::MAX);
        for _ in 0..100 {
            assert!(queues.message(append(100)), "there is room");
        }
        assert!(queues.message(append(BATCH_BYTES)), "there is room");
        let mut counts = Vec::new();
        while queues.waiting_bytes() > 0 {
            let mut buffer = FrameBuffer::default();
            buffer
                .bytes
                .extend_from_slice(&queues.batch(Lane::Log).await.concat());
            counts.push(std::iter::from_fn(|| buffer.next().unwrap()).count());
        }
        assert_eq!(
            counts,
            [100, 1],
            "one write for many small, another for the large"
        );
    }
}
