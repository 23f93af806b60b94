//! How often somebody may give a wrong password: by user, by address, and by both.
//!
//! Each count forgets with time, so it is stored as the moment at which it will be zero: a failure moves that moment by the pace
//! of the count. `docs/auth.md` has the table of counts and says why nobody can lock a user out. Counts are this member's own.
//! They are asked once for each login, which takes a thousand times as long itself.

use crate::{
    auth::AuthError,
    clock,
    log_gate::{self, LogGate},
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// The counts in memory, in bytes.
const TABLE_BYTES_MAX: usize = 1024 * 1024;

/// What one count takes, with its share of the table.
const COUNT_BYTES: usize = 2 * (size_of::<Key>() + size_of::<Instant>());

const COUNTS_MAX: usize = TABLE_BYTES_MAX / COUNT_BYTES;

/// In what time one failure is forgotten: of a user from an address, and of all others.
const PAIR_PACE: Duration = Duration::from_secs(10);
const PACE: Duration = Duration::from_secs(1);

/// How many times as many failures are free for an address, and for a user, as for a user from an address.
const FREE_FACTOR: u32 = 10;

static REFUSALS: LogGate = LogGate::new();

/// What a count is of: a digest, so that long names take no room.
type Key = [u8; 32];

/// Bounds failed logins. All front ends of a node share one.
#[derive(Debug)]
pub struct LoginBounds {
    /// Failures of a user from an address that are free; `None` if there is no bound.
    free: Option<u32>,
    counts: Mutex<HashMap<Key, Instant>>,
    totals: LoginCounts,
}

/// Logins since the start.
#[derive(Debug, Default)]
pub struct LoginCounts {
    succeeded: AtomicU64,
    failed: AtomicU64,
    refused: AtomicU64,
}

impl LoginCounts {
    /// The password was right.
    pub fn succeeded(&self) -> u64 {
        self.succeeded.load(Ordering::Relaxed)
    }

    /// It was wrong, or there is no such user.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// It was not compared, since too many had been wrong.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// The counts that a login is judged by.
struct Keys {
    pair: Key,
    address: Key,
    user: Key,
}

impl Keys {
    fn of(user: &str, origin: IpAddr) -> Self {
        let network = match origin.to_canonical() {
            // A client has a whole network of these.
            IpAddr::V6(address) => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)).to_string()
            }
            address @ IpAddr::V4(_) => address.to_string(),
        };
        let key = |kind: &str, network: &str, user: &str| {
            let mut digest = Sha256::new();
            for part in [kind, network, user] {
                digest.update(part.len().to_le_bytes());
                digest.update(part);
            }
            digest.finalize().into()
        };
        Self {
            pair: key("pair", &network, user),
            address: key("address", &network, ""),
            user: key("user", "", user),
        }
    }
}

impl LoginBounds {
    /// So many failures of a user from an address are free; without a number all are.
    pub fn new(free: Option<u32>) -> Self {
        Self {
            free,
            counts: Mutex::default(),
            totals: LoginCounts::default(),
        }
    }

    /// Logins since the start.
    pub fn totals(&self) -> &LoginCounts {
        &self.totals
    }

    /// Refuses a login before its password is compared, if too many were wrong.
    pub(super) fn admit(&self, user: &str, origin: IpAddr) -> Result<(), AuthError> {
        let Some(free) = self.free else {
            return Ok(());
        };
        let (keys, now) = (Keys::of(user, origin), clock::now());
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether the failures that are not forgotten are as many as are free.
        let used_up = |key: &Key, pace: Duration, free: u32| {
            let zero_at = counts.get(key).copied().unwrap_or(now);
            zero_at.saturating_duration_since(now) > pace * (free - 1)
        };
        let guessed = used_up(&keys.user, PACE, free * FREE_FACTOR);
        let refused = used_up(&keys.address, PACE, free * FREE_FACTOR)
            || used_up(&keys.pair, PAIR_PACE, if guessed { 1 } else { free });
        drop(counts);
        if !refused {
            return Ok(());
        }
        self.totals.refused.fetch_add(1, Ordering::Relaxed);
        // Without the user's name: some type their password there.
        log_gate::warn!(
            REFUSALS,
            "logins from {origin} are refused for now: too many wrong passwords (auth.failed_logins_max)"
        );
        Err(AuthError::TooManyFailedLogins)
    }

    /// Counts a wrong password.
    pub(super) fn failed(&self, user: &str, origin: IpAddr) {
        self.totals.failed.fetch_add(1, Ordering::Relaxed);
        let Some(free) = self.free else {
            return;
        };
        let (keys, now) = (Keys::of(user, origin), clock::now());
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let many = free * FREE_FACTOR;
        for (key, pace, free) in [
            (keys.pair, PAIR_PACE, free),
            (keys.address, PACE, many),
            (keys.user, PACE, many),
        ] {
            if !counts.contains_key(&key) && counts.len() >= COUNTS_MAX {
                make_room(&mut counts, now);
            }
            let zero_at = counts.entry(key).or_insert(now);
            // However many there were, they are forgotten in twice the time of those that are free.
            *zero_at = ((*zero_at).max(now) + pace).min(now + pace * free * 2);
        }
    }

    /// Notes a right password: what this user failed from there does not count any more.
    pub(super) fn succeeded(&self, user: &str, origin: IpAddr) {
        self.totals.succeeded.fetch_add(1, Ordering::Relaxed);
        let pair = Keys::of(user, origin).pair;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.remove(&pair);
    }
}

/// Removes what is forgotten; if that is nothing, what is forgotten next.
fn make_room(counts: &mut HashMap<Key, Instant>, now: Instant) {
    counts.retain(|_, zero_at| *zero_at > now);
    if counts.len() < COUNTS_MAX {
        return;
    }
    let next = counts.iter().min_by_key(|(_, zero_at)| **zero_at);
    if let Some(key) = next.map(|(key, _)| *key) {
        counts.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn address(number: u32) -> IpAddr {
        IpAddr::V4((0x0a01_0000 + number).into())
    }

    fn fail(bounds: &LoginBounds, user: &str, origin: IpAddr) -> bool {
        let admitted = bounds.admit(user, origin).is_ok();
        if admitted {
            bounds.failed(user, origin);
        }
        admitted
    }

    fn failures(bounds: &LoginBounds, user: &str, origin: IpAddr) -> usize {
        (0..1_000)
            .take_while(|_| fail(bounds, user, origin))
            .count()
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_passwords_of_a_user_from_an_address_are_few() {
        let bounds = LoginBounds::new(Some(10));
        assert_eq!(failures(&bounds, "u", HOME), 10);
        let refused = bounds.admit("u", HOME);
        assert_eq!(refused, Err(AuthError::TooManyFailedLogins));
        assert_eq!(bounds.admit("u", address(1)), Ok(()), "from elsewhere");
        assert_eq!(bounds.admit("v", HOME), Ok(()), "another user");
        advance(PAIR_PACE).await;
        assert_eq!(failures(&bounds, "u", HOME), 1, "one is forgotten");
        advance(PAIR_PACE * 10).await;
        assert_eq!(failures(&bounds, "u", HOME), 10, "all are");
        let totals = bounds.totals();
        assert_eq!((totals.failed(), totals.refused()), (21, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_right_password_begins_anew() {
        let bounds = LoginBounds::new(Some(10));
        for _ in 0..9 {
            assert!(fail(&bounds, "u", HOME));
        }
        bounds.succeeded("u", HOME);
        assert_eq!(failures(&bounds, "u", HOME), 10);
        assert_eq!(bounds.totals().succeeded(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_tries_many_users_is_stopped() {
        let bounds = LoginBounds::new(Some(10));
        let tried = (0..1_000).take_while(|number| fail(&bounds, &format!("user {number}"), HOME));
        assert_eq!(tried.count(), 100);
        assert!(bounds.admit("u", HOME).is_err(), "whoever it is");
        assert_eq!(bounds.admit("u", address(1)), Ok(()));
        advance(PACE).await;
        assert!(fail(&bounds, "u", HOME) && !fail(&bounds, "u", HOME));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_can_lock_a_user_out() {
        let bounds = LoginBounds::new(Some(10));
        let mut guesses = 0;
        for number in 1..2_000 {
            guesses += failures(&bounds, "u", address(number));
        }
        // The tenth address begins what is then one guess for each.
        assert_eq!(guesses, 100 + 1_989);
        assert_eq!(bounds.admit("u", HOME), Ok(()), "the user, from home");
        assert_eq!(bounds.admit("v", address(2_001)), Ok(()), "others");
        assert!(fail(&bounds, "u", HOME), "a typing error");
        assert!(bounds.admit("u", HOME).is_err(), "costs some seconds");
        advance(PAIR_PACE).await;
        assert_eq!(bounds.admit("u", HOME), Ok(()));
        advance(PACE * 200).await;
        assert_eq!(failures(&bounds, "u", HOME), 10, "the attack is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn networks_of_ipv6_count_as_one_address() {
        let bounds = LoginBounds::new(Some(3));
        let at = |text: &str| text.parse::<IpAddr>().unwrap();
        for host in 1..=3 {
            assert!(fail(&bounds, "u", at(&format!("2001:db8::{host}"))));
        }
        assert!(bounds.admit("u", at("2001:db8::ffff:1")).is_err());
        assert!(bounds.admit("u", at("2001:db8:0:1::1")).is_ok());
        for _ in 0..3 {
            assert!(fail(&bounds, "u", at("10.0.0.9")));
        }
        assert!(
            bounds.admit("u", at("::ffff:10.0.0.9")).is_err(),
            "the same"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_has_a_bound_and_keeps_what_refuses() {
        let bounds = LoginBounds::new(Some(10));
        assert_eq!(failures(&bounds, "u", HOME), 10);
        let count = u32::try_from(COUNTS_MAX).unwrap() / 3;
        for number in 1..count + 200 {
            bounds.failed(
                &format!("{}{number}", "long".repeat(1_000)),
                address(number),
            );
        }
        let stored = bounds.counts.lock().unwrap().len();
        assert_eq!(stored, COUNTS_MAX);
        assert!(
            bounds.admit("u", HOME).is_err(),
            "others were forgotten first"
        );
        advance(PAIR_PACE * 10).await;
        bounds.failed("one more", HOME);
        let stored = bounds.counts.lock().unwrap().len();
        assert_eq!(stored, 3, "what is zero makes room");
    }

    #[test]
    fn without_a_bound_nothing_is_kept() {
        let bounds = LoginBounds::new(None);
        assert_eq!(failures(&bounds, "u", HOME), 1_000);
        assert!(bounds.counts.lock().unwrap().is_empty());
        assert_eq!(bounds.totals().failed(), 1_000);
    }
}
