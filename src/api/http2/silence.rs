//! How long the clients of an arbiter have been silent.
//!
//! A server has many idle connections, and none of them should wake only to see that it is still idle. So they have one clock
//! together, which ticks every few seconds: a connection notes the tick at which it received bytes, and a tick wakes those alone
//! that have been silent for too long. A tick with nobody to wake costs some nanoseconds for each connection.

use crate::api::{connection_shares::Slots, serving::ListenLimits};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    task::{Context, Waker},
    time::Duration,
};
use tokio::time::{MissedTickBehavior, interval};

/// Ticks in the shortest time after which a silent client is noticed. It is noticed at most one tick late.
const TICKS: u32 = 4;

/// The clock of one arbiter, and its connections.
#[derive(Debug)]
pub(super) struct Silence {
    tick: Duration,
    /// Ticks after which a client has been silent for long, and the same while connections are scarce.
    long: u64,
    long_scarce: u64,
    now: Cell<u64>,
    table: RefCell<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

#[derive(Debug, Default)]
struct Entry {
    /// When the client sent last.
    last: u64,
    task: Option<Waker>,
}

/// The place of one connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Place {
    at: usize,
    silence: Rc<Silence>,
    is_registered: bool,
}

impl Silence {
    /// A clock that stands still.
    pub(super) fn new(limits: &ListenLimits) -> Rc<Self> {
        let (interval, scarce) = (limits.keepalive_interval, limits.keepalive_scarce);
        let tick = (interval.min(scarce) / TICKS).max(Duration::from_millis(1));
        // The last tick may have been a moment after the client's bytes.
        let ticks = |span: Duration| {
            let ticks = span.as_nanos().div_ceil(tick.as_nanos());
            u64::try_from(ticks).unwrap_or(u64::MAX - 1) + 1
        };
        Rc::new(Self {
            tick,
            long: ticks(interval),
            long_scarce: ticks(scarce.min(interval)),
            now: Cell::new(0),
            table: RefCell::default(),
        })
    }

    /// Lets the clock tick for as long as it has other users.
    pub(super) fn run(self: &Rc<Self>, slots: Arc<Slots>) {
        let (clock, tick) = (Rc::downgrade(self), self.tick);
        tokio::task::spawn_local(async move {
            let mut ticks = interval(tick);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first one comes at once.
            ticks.tick().await;
            loop {
                ticks.tick().await;
                let Some(clock) = clock.upgrade() else { return };
                clock.advance(slots.is_scarce());
            }
        });
    }

    /// The next tick: wakes the connections whose clients have been silent for too long.
    pub(super) fn advance(&self, scarce: bool) {
        let now = self.now.get() + 1;
        self.now.set(now);
        let long = self.long(scarce);
        for entry in self.table.borrow().entries.iter().flatten() {
            if now - entry.last >= long
                && let Some(task) = &entry.task
            {
                task.wake_by_ref();
            }
        }
    }

    /// A place for a connection that has just received bytes.
    pub(super) fn enter(self: &Rc<Self>) -> Place {
        let mut table = self.table.borrow_mut();
        let entry = Entry {
            last: self.now.get(),
            task: None,
        };
        let at = if let Some(free) = table.free.pop() {
            table.entries[free] = Some(entry);
            free
        } else {
            table.entries.push(Some(entry));
            table.entries.len() - 1
        };
        Place {
            at,
            silence: self.clone(),
            is_registered: false,
        }
    }

    fn long(&self, scarce: bool) -> u64 {
        if scarce { self.long_scarce } else { self.long }
    }
}

impl Place {
    /// The client has sent bytes.
    pub(super) fn bytes_arrived(&self) {
        self.with(|entry| entry.last = self.silence.now.get());
    }

    /// Whether the client has been silent for too long.
    pub(super) fn is_silent(&self, scarce: impl Fn() -> bool) -> bool {
        let span = self.silence.now.get() - self.with(|entry| entry.last);
        span >= self.silence.long_scarce && span >= self.silence.long(scarce())
    }

    /// The task that is woken. A connection has the same one always.
    pub(super) fn register(&mut self, context: &Context<'_>) {
        if !self.is_registered {
            self.is_registered = true;
            self.with(|entry| entry.task = Some(context.waker().clone()));
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut table = self.silence.table.borrow_mut();
        // It is there until the place is dropped.
        change(table.entries[self.at].get_or_insert_default())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.silence.table.borrow_mut();
        table.entries[self.at] = None;
        table.free.push(self.at);
        if table.free.len() == table.entries.len() {
            *table = Table::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connection_shares::Slot;
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };
    use tokio::time::sleep;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_wake_only_to_be_asked() {
        const CONNECTIONS: usize = 1_000;
        let limits = ListenLimits::default();
        let address = |n: u8| IpAddr::from(Ipv4Addr::new(10, 0, 0, n));
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (silence, slots) = (Silence::new(&limits), Slots::new(10));
                silence.run(slots.clone());
                let count = Arc::<Wakes>::default();
                let waker = Waker::from(count.clone());
                let woken = || count.0.swap(0, Ordering::Relaxed);
                let mut places: Vec<Place> = std::iter::repeat_with(|| silence.enter())
                    .take(CONNECTIONS)
                    .collect();
                for place in &mut places {
                    place.register(&Context::from_waker(&waker));
                }
                sleep(limits.keepalive_interval).await;
                assert_eq!(
                    woken(),
                    0,
                    "for all of the time that they may be silent, which ends with a tick"
                );
                sleep(Duration::from_mins(1)).await;
                assert!(woken() >= CONNECTIONS, "then they are asked");
                for place in &places {
                    assert!(place.is_silent(|| false));
                    place.bytes_arrived();
                }
                let taken: Vec<Slot> = (0..10).filter_map(|n| slots.admit(address(n))).collect();
                assert!(slots.is_scarce());
                sleep(limits.keepalive_scarce / 2).await;
                assert_eq!(woken(), 0);
                places[0].bytes_arrived();
                sleep(limits.keepalive_scarce).await;
                assert!(woken() >= CONNECTIONS - 1, "sooner while they are scarce");
                assert!(places[1].is_silent(|| true));
                assert!(!places[1].is_silent(|| false));
                drop(taken);
                drop(places);
                assert_eq!(silence.table.borrow().entries.len(), 0);
            })
            .await;
    }

    #[test]
    fn a_place_is_used_again() {
        let silence = Silence::new(&ListenLimits::default());
        let (first, second) = (silence.enter(), silence.enter());
        drop(first);
        silence.advance(false);
        let third = silence.enter();
        assert_eq!((third.at, second.at), (0, 1));
        assert_eq!(
            third.with(|entry| entry.last),
            1,
            "it has just received bytes"
        );
    }
}
