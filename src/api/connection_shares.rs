//! Decides which client connections are accepted, and how long they may be silent. TLS handshakes have slots of the same kind.
//!
//! The slots are a pool that the clients' addresses share (see [`shares`](super::shares)): an address may hold up to three times
//! as many as are free. So all clients behind one address together get three quarters of the slots if no other client needs any,
//! and an attacker with a few addresses leaves room for others. A connection beyond its address's share is closed at once; open
//! ones stay. When slots are scarce, silent clients are pinged much sooner, and a new connection on which no bytes arrive is
//! closed sooner.

use super::{
    serving::SILENCE_MAX,
    shares::{Held, Pool, Share, Size},
};
use crate::log_gate::LogGate;
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{error::Elapsed, timeout};

/// How many slots an address may hold for each one that is free.
const SLOTS_FOR_EACH_FREE: usize = 3;

/// How long a new connection may stay silent when slots are scarce.
pub(super) const SCARCE_SILENCE_MAX: Duration = Duration::from_secs(10);

/// Warnings about connections that are not accepted.
static GATE: LogGate = LogGate::new();

/// The clients that share slots: an IPv4 address, or the network of an IPv6 address, since one machine has a whole network of
/// those.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                let network = address.to_bits() >> 64 << 64;
                Ipv6Addr::from_bits(network).into()
            }
            address => address,
        })
    }
}

/// The slots for client connections.
#[derive(Debug)]
pub(super) struct Slots {
    /// What the slots are for, as log lines call it.
    what: &'static str,
    pool: Arc<Pool>,
    /// The shares of the addresses that hold slots.
    shares: Mutex<HashMap<Origin, Arc<Share>>>,
}

/// The slot of one connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot {
    /// `None` once it was given back.
    held: Option<Held>,
    origin: Origin,
    slots: Arc<Slots>,
}

impl Slots {
    pub(super) fn new(connections_max: usize) -> Arc<Self> {
        Self::of("client connections", connections_max)
    }

    /// Makes `max` slots for `what`.
    pub(super) fn of(what: &'static str, max: usize) -> Arc<Self> {
        let size = Size {
            total: max,
            factor: SLOTS_FOR_EACH_FREE,
        };
        Arc::new(Self {
            what,
            pool: Pool::new(size),
            shares: Mutex::default(),
        })
    }

    /// Takes a slot for a connection from `address`; `None` if its share is used up, which is logged once a minute for each
    /// address.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let origin = Origin::from(address);
        let mut shares = self.lock();
        let share = shares
            .entry(origin)
            .or_insert_with(|| Share::new(&self.pool))
            .clone();
        let held = share.take(1);
        if held.is_none() {
            let of_address = share.held();
            if of_address == 0 {
                shares.remove(&origin);
            }
            drop(shares);
            self.report(address, of_address);
            return None;
        }
        Some(Slot {
            held,
            origin,
            slots: self.clone(),
        })
    }

    fn report(&self, address: IpAddr, of_address: usize) {
        let (open, limit) = (self.pool.used(), self.pool.total());
        let (full, what) = (open >= limit, self.what);
        let text = if full {
            format!("too many {what}: new ones are closed until some end")
        } else {
            format!("too many {what} from {address}: its new ones are closed")
        };
        if GATE.passes(&text) {
            tracing::warn!(open, limit, %address, of_address, "{text}");
        }
    }

    /// Whether more than half of them are taken.
    pub(super) fn is_scarce(&self) -> bool {
        self.pool.is_scarce()
    }

    /// Waits for the first bytes of a new connection.
    pub(super) async fn wait_for<F: Future>(&self, first: F) -> Result<F::Output, Elapsed> {
        let mut first = pin!(first);
        let mut waited = Duration::ZERO;
        loop {
            match timeout(SCARCE_SILENCE_MAX, first.as_mut()).await {
                Err(silent) => {
                    waited += SCARCE_SILENCE_MAX;
                    if waited >= self.silence_max() {
                        return Err(silent);
                    }
                }
                said => return said,
            }
        }
    }

    /// How long a new connection may stay silent now.
    pub(super) fn silence_max(&self) -> Duration {
        if self.is_scarce() {
            SCARCE_SILENCE_MAX
        } else {
            SILENCE_MAX
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Arc<Share>>> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut shares = self.slots.lock();
        self.held = None;
        if shares
            .get(&self.origin)
            .is_some_and(|share| share.held() == 0)
        {
            shares.remove(&self.origin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    /// Connects until it is refused.
    fn greedy(slots: &Arc<Slots>, address: IpAddr) -> Vec<Slot> {
        std::iter::from_fn(|| slots.admit(address)).collect()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let slots = Slots::new(160);
        assert!(!slots.is_scarce());
        let first = greedy(&slots, address(1));
        assert_eq!(first.len(), 120, "three quarters");
        assert!(slots.is_scarce());
        let second = greedy(&slots, address(2));
        assert_eq!(second.len(), 30, "three quarters of the rest");
        assert!(slots.admit(address(1)).is_none());
        assert!(slots.admit(address(3)).is_some(), "and others get in");
        drop(first);
        assert!(!slots.is_scarce());
        assert!(
            slots.admit(address(2)).is_some(),
            "whoever has its share gets more once slots are free"
        );
    }

    #[test]
    fn all_slots_can_be_used() {
        let slots = Slots::new(10);
        let open: Vec<Slot> = (0..10)
            .map(|n| slots.admit(address(n)).expect("a slot"))
            .collect();
        assert!(slots.admit(address(11)).is_none(), "all are taken");
        assert_eq!(
            slots.lock().len(),
            10,
            "an address that is refused takes no memory"
        );
        drop(open);
        assert_eq!(
            (slots.lock().len(), slots.pool.used()),
            (0, 0),
            "nothing is kept of addresses that have left"
        );
    }

    #[test]
    fn addresses_of_one_machine_are_one_origin() {
        let origin = |text: &str| Origin::from(text.parse::<IpAddr>().unwrap());
        let same = [
            ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7", true),
            ("2001:db8:1:2::1", "2001:db8:1:3::1", false),
            ("::ffff:10.0.0.1", "10.0.0.1", true),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.2", false),
            ("::1", "::2", false),
        ];
        for (a, b, same) in same {
            assert_eq!(origin(a) == origin(b), same, "{a} and {b}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_shorter_when_slots_are_scarce() {
        let waited = async |slots: &Arc<Slots>| {
            let began = tokio::time::Instant::now();
            let said = slots.wait_for(std::future::pending::<()>()).await;
            assert!(said.is_err());
            began.elapsed()
        };
        let slots = Slots::new(10);
        assert_eq!(waited(&slots).await, SILENCE_MAX);
        let open = greedy(&slots, address(1));
        assert_eq!(waited(&slots).await, SCARCE_SILENCE_MAX);
        drop(open);
        assert_eq!(slots.wait_for(async { 7 }).await, Ok(7));
    }
}
