//! What all connections of a member have together, and what each has of it.

use super::{
    connection_shares::Origin,
    message_room::{AddressRoom, MessageRoom},
    shares::{Pool, Share, Size},
};
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
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

/// Bytes that have arrived and that no call has read: those of the messages that are held back, and those of busy calls.
const UNREAD_BYTES_MAX: usize = HELD_BACK_BYTES_MAX;

/// What all connections of a member share.
#[derive(Debug)]
pub(super) struct ClientPools {
    calls: Arc<Pool>,
    message_bytes: Arc<Pool>,
    held_back_bytes: Arc<Pool>,
    unread_bytes: Arc<Pool>,
    addresses: Mutex<Addresses>,
    next_connection: AtomicUsize,
}

/// The addresses whose connections have room for messages.
#[derive(Debug, Default)]
struct Addresses {
    rooms: HashMap<Origin, Weak<AddressRoom>>,
    /// How many there may be before those that have left are removed.
    sweep_at: usize,
}

impl Default for ClientPools {
    fn default() -> Self {
        let half = |total| Pool::new(Size { total, factor: 1 });
        Self {
            calls: half(CALLS_MAX),
            message_bytes: half(MESSAGE_BYTES_MAX),
            held_back_bytes: half(HELD_BACK_BYTES_MAX),
            unread_bytes: half(UNREAD_BYTES_MAX),
            addresses: Mutex::default(),
            next_connection: AtomicUsize::new(0),
        }
    }
}

impl ClientPools {
    /// The shares of a connection from `address`, whose task is `task`, made with the first call that needs them.
    pub(super) fn connection(&self, address: IpAddr, task: &Waker) -> ConnectionShares {
        ConnectionShares {
            number: self.next_connection.fetch_add(1, Ordering::Relaxed),
            calls: Share::new(&self.calls),
            messages: MessageRoom::new(self.room_of(address.into()), task.clone()),
        }
    }

    fn room_of(&self, origin: Origin) -> Arc<AddressRoom> {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let Addresses { rooms, sweep_at } = &mut *addresses;
        if let Some(room) = rooms.get(&origin).and_then(Weak::upgrade) {
            return room;
        }
        if rooms.len() >= *sweep_at {
            rooms.retain(|_, room| room.strong_count() > 0);
            *sweep_at = 2 * rooms.len() + 1;
        }
        let room = AddressRoom::new(
            &self.message_bytes,
            &self.held_back_bytes,
            &self.unread_bytes,
        );
        rooms.insert(origin, Arc::downgrade(&room));
        room
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
    use crate::api::message_room::{FIRST_BYTES, Room, Taken};
    use std::net::Ipv4Addr;

    fn address(n: u32) -> IpAddr {
        Ipv4Addr::from_bits(n).into()
    }

    #[test]
    fn connections_have_numbers_of_their_own() {
        let pools = ClientPools::default();
        let [first, second] = [1, 1].map(|n| pools.connection(address(n), Waker::noop()));
        assert_ne!(first.number, second.number);
    }

    /// What is held back arrives: if it counted in the same pool again, it would find no room there.
    #[tokio::test]
    async fn unread_bytes_find_room_however_much_is_held_back() {
        const LONG: usize = 1024 * 1024;
        let pools = ClientPools::default();
        let ConnectionShares { messages, .. } = pools.connection(address(1), Waker::noop());
        let mut rooms = Vec::new();
        loop {
            let mut room = Room::new(&messages);
            if room.take(FIRST_BYTES + 1, LONG) == Taken::Refused {
                break;
            }
            rooms.push(room);
        }
        let held_back = pools.held_back_bytes.used();
        assert_eq!(
            held_back,
            HELD_BACK_BYTES_MAX / 2,
            "the share of an address"
        );
        let mut unread = messages.unread();
        assert!(unread.grow(LONG), "it has a pool of its own");
        assert_eq!(pools.held_back_bytes.used(), held_back);
        assert_eq!(pools.unread_bytes.used(), LONG);
    }

    #[test]
    fn connections_of_an_address_share_its_room_and_nothing_is_kept_of_those_that_have_left() {
        let pools = ClientPools::default();
        let [first, same, other] = [1, 1, 2].map(|n| pools.room_of(address(n).into()));
        assert!(Arc::ptr_eq(&first, &same) && !Arc::ptr_eq(&first, &other));
        for n in 3..1_000 {
            drop(pools.connection(address(n), Waker::noop()));
        }
        assert!(pools.addresses.lock().unwrap().rooms.len() < 10);
        let again = pools.room_of(address(1).into());
        assert!(Arc::ptr_eq(&first, &again));
    }
}
