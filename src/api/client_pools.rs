//! What all connections of a member have together, and what each has of it.

use super::{
    message_room::MessageRoom,
    shares::{Pool, Share, Size},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Waker,
};

/// Calls of all clients that run in tasks of their own: all but those that are answered as they come. Each takes some kilobytes.
const CALLS_MAX: usize = 1 << 16;

/// Bytes of messages that have not arrived completely.
const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Bytes of messages that are held back until there is room among those.
const HELD_BACK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What all connections of a member share.
#[derive(Debug)]
pub(super) struct ClientPools {
    calls: Arc<Pool>,
    message_bytes: Arc<Pool>,
    held_back_bytes: Arc<Pool>,
    next_connection: AtomicUsize,
}

impl Default for ClientPools {
    fn default() -> Self {
        let half = |total| Pool::new(Size { total, factor: 1 });
        Self {
            calls: half(CALLS_MAX),
            message_bytes: half(MESSAGE_BYTES_MAX),
            held_back_bytes: half(HELD_BACK_BYTES_MAX),
            next_connection: AtomicUsize::new(0),
        }
    }
}

impl ClientPools {
    /// The shares of a connection, whose task is `task`, made with the first call that needs them.
    pub(super) fn connection(&self, task: &Waker) -> ConnectionShares {
        ConnectionShares {
            number: self.next_connection.fetch_add(1, Ordering::Relaxed),
            calls: Share::new(&self.calls),
            messages: MessageRoom::new(&self.message_bytes, &self.held_back_bytes, task.clone()),
        }
    }
}

/// What one connection has of the pools.
#[derive(Debug)]
pub(super) struct ConnectionShares {
    /// Tells this connection from all others since the start.
    pub(super) number: usize,
    pub(super) calls: Arc<Share>,
    pub(super) messages: Arc<MessageRoom>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_have_numbers_of_their_own() {
        let pools = ClientPools::default();
        let [first, second] = [(); 2].map(|()| pools.connection(Waker::noop()));
        assert_ne!(first.number, second.number);
    }
}
