//! The only reader of the machine's clock and entropy.
//!
//! Time is tokio's, so that a test or a simulation can pause it. A thread that simulates nodes calls [`simulate`] with a seed:
//! from then on all entropy on this thread follows from the seed. Code that would hand work to another thread asks
//! [`is_simulated`], and then does the work itself.

use crate::types::{Millis, SplitMix64};
use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tokio::time::Instant;

/// A point in time of this process.
pub fn now() -> Instant {
    Instant::now()
}

/// Time since `start`, in milliseconds.
pub fn since(start: Instant) -> Millis {
    Millis(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Microseconds of a span, for logs and metrics.
pub fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

thread_local! {
    /// The source of this thread's randomness, if it follows from a seed.
    static SIMULATED: Cell<Option<SplitMix64>> = const { Cell::new(None) };
}

/// From now on all randomness on this thread follows from `seed`, and work for other threads is done on this one.
pub fn simulate(seed: u64) {
    SIMULATED.set(Some(SplitMix64::new(seed)));
}

/// Whether [`simulate`] was called on this thread.
pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// 64 random bits: from the operating system, or, in a simulation, from its seed.
pub fn entropy() -> u64 {
    if let Some(mut random) = SIMULATED.get() {
        let drawn = random.next_u64();
        SIMULATED.set(Some(random));
        return drawn;
    }
    // Each `RandomState` has keys from the system's entropy, so the hash of any value is random.
    RandomState::new().hash_one(0_u64)
}

/// Random bytes that nobody can guess, for secrets: from the operating system, or, in a simulation, from its seed.
pub fn secret<const BYTES: usize>() -> [u8; BYTES] {
    let mut secret = [0; BYTES];
    if is_simulated() {
        for byte in &mut secret {
            *byte = entropy().to_le_bytes()[0];
        }
        return secret;
    }
    let random = rustls::crypto::ring::default_provider().secure_random;
    let filled = random.fill(&mut secret);
    assert!(filled.is_ok(), "the operating system has random bytes");
    secret
}

/// Wall-clock time since 1970, for the validity of certificates. Nothing replicated depends on it.
pub fn unix_time() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the only reader of the machine's clock"
    )]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

/// For tests: a system on one thread, whose clock stands still unless every task waits for it.
#[cfg(test)]
pub(crate) fn paused_system() -> actix::SystemRunner {
    actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_all_that_a_thread_draws() {
        let drawn = |seed| {
            let drawing = std::thread::spawn(move || {
                assert!(!is_simulated(), "a thread begins with the machine's chance");
                simulate(seed);
                [entropy(), entropy(), entropy()]
            });
            drawing.join().unwrap()
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        assert_ne!(entropy(), entropy());
    }
}
