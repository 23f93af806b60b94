//! Bounds on the bytes of answers that wait for their clients.
//!
//! An answer is in memory from the moment its records are read until the client has taken it, and a client may take its time.
//! Each API arbiter has a budget, and each connection a share of it:
//!
//! | answer | counts as | at the bound |
//! |---|---|---|
//! | up to [`SMALL_ANSWER_BYTES`] | unsent | the connection begins no further calls ([`Budget::is_behind`]) |
//! | longer | held: room for it is taken before it is read | the call waits for room, then gets `ResourceExhausted` |
//!
//! A long answer gives its room back as it is sent. While a call waits for room, long answers that their clients do not read are
//! cancelled soon, and whoever holds much must take much (`Demand`), so that one slow reader does not block the others.

use super::status::Status;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

/// Answers up to this size are handed to the HTTP/2 library at once; longer ones as the client's flow control allows.
pub const SMALL_ANSWER_BYTES: usize = 16 * 1024;

/// Bytes of long answers that one arbiter holds.
const HELD_BYTES_MAX: usize = 128 * 1024 * 1024;

/// The most bytes of long answers that one connection holds. A single longer answer takes this whole share, but counts with all
/// its bytes against the arbiter's budget.
const CONNECTION_HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of small answers that a connection has not sent, past which it begins no further calls.
const CONNECTION_UNSENT_MAX: usize = 1024 * 1024;

/// The same for all connections of an arbiter. At this bound, a connection begins no further calls unless it has less than
/// `CONNECTION_UNSENT_MIN`.
const UNSENT_MAX: usize = 64 * 1024 * 1024;
const CONNECTION_UNSENT_MIN: usize = 64 * 1024;

/// Requests of calls that wait for room, in bytes, past which a connection begins no further calls.
const WAITING_REQUESTS_MAX: usize = 8 * 1024 * 1024;

/// How long a call waits for room. etcd: its request time-out.
const ROOM_TIMEOUT: Duration = Duration::from_secs(7);

/// A client that takes less than [`STALL_BYTES`] of a long answer in this time loses it.
const STALL_MAX: Duration = Duration::from_mins(1);

/// The same while another call waits for room.
const STALL_MAX_SCARCE: Duration = Duration::from_secs(3);

/// How many bytes of a long answer a client must take in that time.
const STALL_BYTES: usize = 256 * 1024;

/// While another call waits for room, a client must take this part of what its answer holds, if that is more.
const STALL_PART_SCARCE: usize = 8;

/// The semaphores count in this unit, so that the counts fit into a `u32`.
const UNIT_BYTES: usize = 1024;

/// What the connections of one arbiter share.
#[derive(Debug)]
pub struct ArbiterBudget {
    held: Arc<Semaphore>,
    /// Calls that wait for room.
    waiting: AtomicUsize,
    unsent: AtomicUsize,
}

impl Default for ArbiterBudget {
    fn default() -> Self {
        Self {
            held: Arc::new(Semaphore::new(HELD_BYTES_MAX / UNIT_BYTES)),
            waiting: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
        }
    }
}

/// The budget of one connection.
#[derive(Debug)]
pub struct Budget {
    arbiter: Arc<ArbiterBudget>,
    held: Arc<Semaphore>,
    waiting: AtomicUsize,
    unsent: AtomicUsize,
    /// Bytes of the requests of calls that wait for room.
    requests: AtomicUsize,
}

/// Room for a long answer, until it is sent.
#[derive(Debug)]
pub struct Held {
    budget: Arc<Budget>,
    own: Option<OwnedSemaphorePermit>,
    shared: Option<OwnedSemaphorePermit>,
    /// The length of the answer.
    bytes: usize,
    /// How much of it is not sent.
    left: usize,
    /// When the client must have taken the answer; `None` if it may take its time.
    until: Option<Instant>,
}

/// What a client must take of a long answer: otherwise it loses the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    /// In any case.
    pub(super) always: Rate,
    /// In the time in which calls wait for room that answers of its connection hold.
    pub(super) scarce: Rate,
    /// Whether one waits now.
    pub(super) is_scarce: bool,
}

/// So many bytes in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) bytes: usize,
    within: Duration,
}

impl Rate {
    /// Whether a client that has taken so many bytes in `time` is too late.
    pub(super) fn is_missed(self, bytes: usize, time: Duration) -> bool {
        bytes < self.bytes && time >= self.within
    }
}

/// The budget that a payload's bytes count against, until they are sent or dropped.
#[derive(Debug)]
pub struct Charge(Kind);

#[derive(Debug)]
enum Kind {
    Unsent {
        bytes: usize,
        budget: Arc<Budget>,
    },
    Held {
        /// What it gives back. The last charge of the room gives back the rest.
        bytes: usize,
        held: Arc<Mutex<Held>>,
    },
}

impl Budget {
    /// The budget of a connection of the arbiter.
    pub fn new(arbiter: Arc<ArbiterBudget>) -> Self {
        Self {
            arbiter,
            held: Arc::new(Semaphore::new(CONNECTION_HELD_BYTES_MAX / UNIT_BYTES)),
            waiting: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
        }
    }

    /// Waits for room for an answer of `bytes` bytes.
    pub async fn hold(self: &Arc<Self>, bytes: usize) -> Result<Held, Status> {
        if let Some(held) = self.try_hold(bytes) {
            return Ok(held);
        }
        let _waiting = Counted::one(&self.waiting);
        let (own, shared) = units(bytes);
        let both = async {
            let own = self.held.clone().acquire_many_owned(own).await;
            // Only now: what a connection's own answers keep it from is no matter of the others.
            let _waiting = Counted::one(&self.arbiter.waiting);
            let shared = self.arbiter.held.clone().acquire_many_owned(shared).await;
            self.held(own.ok(), shared.ok(), bytes)
        };
        timeout(ROOM_TIMEOUT, both)
            .await
            .map_err(|_| Status::answers_wait())
    }

    /// Room for an answer of `bytes` bytes, if there is some now.
    pub fn try_hold(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let (own, shared) = units(bytes);
        let own = self.held.clone().try_acquire_many_owned(own).ok()?;
        let shared = self.arbiter.held.clone().try_acquire_many_owned(shared);
        Some(self.held(Some(own), Some(shared.ok()?), bytes))
    }

    fn held(
        self: &Arc<Self>,
        own: Option<OwnedSemaphorePermit>,
        shared: Option<OwnedSemaphorePermit>,
        bytes: usize,
    ) -> Held {
        Held {
            budget: self.clone(),
            own,
            shared,
            bytes,
            left: bytes,
            until: None,
        }
    }

    /// Counts an answer as unsent. For answers that are sent without waiting for room.
    pub fn unsent(self: &Arc<Self>, bytes: usize) -> Charge {
        self.unsent.fetch_add(bytes, Ordering::Relaxed);
        self.arbiter.unsent.fetch_add(bytes, Ordering::Relaxed);
        let budget = self.clone();
        Charge(Kind::Unsent { bytes, budget })
    }

    /// Counts the request of a call that waits for room, until the returned guard is dropped.
    pub fn waiting_request(&self, bytes: usize) -> Counted<'_> {
        Counted::new(&self.requests, bytes)
    }

    /// Whether so many bytes are unsent, or wait for room, that the connection begins no further calls.
    pub fn is_behind(&self) -> bool {
        let unsent = self.unsent.load(Ordering::Relaxed);
        unsent >= CONNECTION_UNSENT_MAX
            || unsent >= CONNECTION_UNSENT_MIN
                && self.arbiter.unsent.load(Ordering::Relaxed) >= UNSENT_MAX
            || self.requests.load(Ordering::Relaxed) >= WAITING_REQUESTS_MAX
    }

    /// Whether a call waits for room that answers of this connection hold.
    fn is_scarce(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 || self.arbiter.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Units of the connection's and of the arbiter's budget that an answer takes.
fn units(bytes: usize) -> (u32, u32) {
    let units = |max: usize| {
        let bytes = bytes.clamp(1, max);
        u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
    };
    (units(CONNECTION_HELD_BYTES_MAX), units(HELD_BYTES_MAX))
}

impl Held {
    /// Gives back what an answer of `bytes` bytes does not need.
    #[must_use]
    pub fn shrunk_to(mut self, bytes: usize) -> Self {
        (self.bytes, self.left) = (bytes, bytes);
        let (own, shared) = units(bytes);
        self.keep(own, shared);
        self
    }

    /// Gives back the part of `bytes` bytes that were sent. An answer that is longer than a whole budget gives back the same part
    /// of that, from its first byte on.
    fn sent(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
        let (own, shared) = units(self.bytes);
        let part = |units: u32| {
            let units = (units as usize * self.left).div_ceil(self.bytes.max(1));
            u32::try_from(units).unwrap_or(u32::MAX)
        };
        self.keep(part(own), part(shared));
    }

    fn keep(&mut self, own: u32, shared: u32) {
        for (permit, needed) in [(&mut self.own, own), (&mut self.shared, shared)] {
            if let Some(permit) = permit {
                let surplus = permit.num_permits().saturating_sub(needed as usize);
                drop(permit.split(surplus));
            }
        }
    }

    fn demand(&self) -> Demand {
        let is_over = self.until.is_some_and(|until| until <= Instant::now());
        let (bytes, within) = if is_over {
            (usize::MAX, Duration::ZERO)
        } else {
            (STALL_BYTES, STALL_MAX)
        };
        let units = self
            .shared
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        Demand {
            always: Rate { bytes, within },
            scarce: Rate {
                bytes: STALL_BYTES.max(units * UNIT_BYTES / STALL_PART_SCARCE),
                within: STALL_MAX_SCARCE,
            },
            is_scarce: self.budget.is_scarce(),
        }
    }
}

impl From<Held> for Charge {
    /// The charge of an answer that is in memory, which gives its room back as it is sent.
    fn from(held: Held) -> Self {
        let bytes = held.left;
        let held = Arc::new(Mutex::new(held));
        Self(Kind::Held { bytes, held })
    }
}

impl Charge {
    /// The charge of an answer that is made while it is sent: it keeps its room until its last part is gone. The client must have
    /// taken it at `until`.
    pub(super) fn of_parts(mut held: Held, until: Instant) -> Self {
        held.until = Some(until);
        let held = Arc::new(Mutex::new(held));
        Self(Kind::Held { bytes: 0, held })
    }

    /// What its client must take; `None` for a small answer.
    pub(super) fn demand(&self) -> Option<Demand> {
        match &self.0 {
            Kind::Held { held, .. } => Some(lock(held).demand()),
            Kind::Unsent { .. } => None,
        }
    }

    /// The charge of the first `len` bytes; this one keeps the rest.
    pub(super) fn split(&mut self, len: usize) -> Self {
        let (Kind::Held { bytes, .. } | Kind::Unsent { bytes, .. }) = &mut self.0;
        let taken = len.min(*bytes);
        *bytes -= taken;
        Self(match &self.0 {
            Kind::Held { held, .. } => Kind::Held {
                bytes: taken,
                held: held.clone(),
            },
            Kind::Unsent { budget, .. } => Kind::Unsent {
                bytes: taken,
                budget: budget.clone(),
            },
        })
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        match &self.0 {
            Kind::Held { held, .. } => Self(Kind::Held {
                bytes: 0,
                held: held.clone(),
            }),
            Kind::Unsent { bytes, budget } => budget.unsent(*bytes),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        match &self.0 {
            Kind::Unsent { bytes, budget } => {
                budget.unsent.fetch_sub(*bytes, Ordering::Relaxed);
                budget.arbiter.unsent.fetch_sub(*bytes, Ordering::Relaxed);
            }
            Kind::Held { bytes, held } => lock(held).sent(*bytes),
        }
    }
}

/// Adds to a count until it is dropped.
#[derive(Debug)]
pub struct Counted<'a> {
    count: &'a AtomicUsize,
    added: usize,
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize, added: usize) -> Self {
        count.fetch_add(added, Ordering::Relaxed);
        Self { count, added }
    }

    fn one(count: &'a AtomicUsize) -> Self {
        Self::new(count, 1)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(self.added, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::payload::Payload;
    use bytes::Bytes;

    const MIB: usize = 1024 * 1024;

    fn connections() -> [Arc<Budget>; 2] {
        let arbiter = Arc::<ArbiterBudget>::default();
        [(); 2].map(|()| Arc::new(Budget::new(arbiter.clone())))
    }

    #[test]
    fn a_connection_takes_no_more_than_its_share() {
        let [first, second] = connections();
        let held: Vec<Held> = std::iter::from_fn(|| first.try_hold(4 * MIB)).collect();
        assert_eq!(held.len(), 4);
        assert!(second.try_hold(4 * MIB).is_some(), "others have theirs");
        drop(held);
        assert!(first.try_hold(4 * MIB).is_some());
    }

    #[test]
    fn an_answer_longer_than_the_share_is_alone() {
        let [first, second] = connections();
        let whole = first.try_hold(1_000 * MIB).expect("nothing else is held");
        assert!(first.try_hold(1).is_none());
        assert!(
            second.try_hold(1).is_none(),
            "it takes the arbiter's budget"
        );
        let whole = whole.shrunk_to(5 * MIB);
        assert!(first.try_hold(11 * MIB).is_some(), "the rest is given back");
        assert!(second.try_hold(16 * MIB).is_some());
        drop(whole);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_room_and_then_gives_up() {
        let [first, second] = connections();
        let held = first.try_hold(16 * MIB).expect("room");
        assert!(!first.is_scarce());
        let waiting = tokio::spawn({
            let first = first.clone();
            async move { first.hold(MIB).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(first.is_scarce(), "others must hurry");
        assert!(!second.is_scarce(), "it waits for its own connection");
        drop(held);
        assert!(waiting.await.expect("no panic").is_ok());
        let _held = first.try_hold(16 * MIB).expect("room");
        let refused = first.hold(MIB).await.expect_err("there is no room");
        assert_eq!(refused, Status::answers_wait());
        assert!(!first.is_scarce(), "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waits_for_the_arbiters_room_makes_it_scarce_for_all() {
        let [first, second] = connections();
        let third = Arc::new(Budget::new(first.arbiter.clone()));
        let _held = first.try_hold(HELD_BYTES_MAX).expect("room");
        assert!(!second.is_scarce());
        let waiting = tokio::spawn({
            let third = third.clone();
            async move { third.hold(MIB).await.map(drop) }
        });
        tokio::task::yield_now().await;
        for connection in [&first, &second, &third] {
            assert!(connection.is_scarce());
        }
        assert!(waiting.await.expect("no panic").is_err());
        assert!(!second.is_scarce(), "nobody waits any more");
    }

    #[test]
    fn unsent_bytes_count_until_the_last_piece_is_gone() {
        let [first, second] = connections();
        let bytes = Bytes::from(vec![0; CONNECTION_UNSENT_MAX]);
        let mut payload = Payload::from(bytes).charged(first.unsent(CONNECTION_UNSENT_MAX));
        assert!(first.is_behind());
        assert!(!second.is_behind());
        let piece = payload.split_to(10);
        drop(payload);
        assert!(!first.is_behind());
        assert_eq!(first.unsent.load(Ordering::Relaxed), 10);
        drop(piece);
        assert_eq!(first.arbiter.unsent.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn waiting_requests_hold_further_calls_back() {
        let [first, _] = connections();
        let request = first.waiting_request(WAITING_REQUESTS_MAX);
        assert!(first.is_behind());
        drop(request);
        assert!(!first.is_behind());
    }

    fn long(bytes: usize, charge: Charge) -> Payload {
        Payload::from(Bytes::from(vec![0; bytes])).charged(charge)
    }

    #[test]
    fn a_long_answer_gives_its_room_back_as_it_is_sent() {
        let [first, second] = connections();
        let held = first.try_hold(16 * MIB).expect("room");
        let mut payload = long(16 * MIB, held.into());
        let piece = payload.split_to(MIB);
        assert!(first.try_hold(1).is_none(), "it may not be sent yet");
        drop(piece);
        let more = first.try_hold(MIB);
        assert!(more.is_some() && first.try_hold(1).is_none());
        drop((payload, more));
        // Longer than all there is: half of it is half of that.
        let mut payload = long(200 * MIB, first.try_hold(200 * MIB).expect("room").into());
        assert!(second.try_hold(1).is_none());
        drop(payload.split_to(100 * MIB));
        assert!(first.try_hold(8 * MIB).is_some());
        let others: Vec<_> = (0..4)
            .map(|_| Arc::new(Budget::new(first.arbiter.clone())))
            .collect();
        let rest = others
            .iter()
            .map(|other| other.try_hold(16 * MIB).expect("room"));
        let rest: Vec<Held> = rest.collect();
        assert!(second.try_hold(1).is_none());
        drop((payload, rest));
        assert_eq!(
            first.arbiter.held.available_permits(),
            HELD_BYTES_MAX / UNIT_BYTES
        );
        assert_eq!(
            first.held.available_permits(),
            CONNECTION_HELD_BYTES_MAX / UNIT_BYTES
        );
    }

    #[test]
    fn an_answer_in_parts_keeps_its_room_until_its_last_part_is_gone() {
        let [first, _] = connections();
        let held = first.try_hold(16 * MIB).expect("room");
        let charge = Charge::of_parts(held, Instant::now() + STALL_MAX);
        let mut part = long(MIB, charge.clone());
        drop((part.split_to(MIB / 2), part));
        assert!(first.try_hold(1).is_none());
        drop(charge);
        assert!(first.try_hold(16 * MIB).is_some());
    }
}
