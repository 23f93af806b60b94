//! The only reader of the machine's clock and entropy.
//!
//! Time is tokio's, so that a test or a simulation can pause it; randomness comes from a seed where one is given.

use crate::types::Millis;
use std::{
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

/// 64 random bits from the operating system.
pub fn entropy() -> u64 {
    // The standard library keys each `RandomState` from the system's entropy; hashing nothing gives those bits away mixed.
    RandomState::new().hash_one(0_u64)
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
