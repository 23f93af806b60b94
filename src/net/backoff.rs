//! Pauses between attempts to connect.

use crate::types::SplitMix64;
use std::time::Duration;

/// Pauses between attempts: they double from `least` up to `most`; each is drawn from the upper half of that span.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    next: Duration,
    random: SplitMix64,
}

impl Backoff {
    /// `seed` must differ from member to member, so that members that failed at the same time do not retry at the same time.
    pub(super) fn new(least: Duration, most: Duration, seed: u64) -> Self {
        Self {
            least,
            most,
            next: least,
            random: SplitMix64::new(seed),
        }
    }

    /// The wait before the next attempt.
    pub(super) fn wait(&mut self) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(self.most);
        let half = full / 2;
        let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
        half + Duration::from_nanos(self.random.next_u64() % nanos)
    }

    pub(super) fn reset(&mut self) {
        self.next = self.least;
    }

    pub(super) fn most(&self) -> Duration {
        self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_bound_and_differ_by_seed() {
        let (least, most) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut backoff = Backoff::new(least, most, 7);
        let waits: Vec<Duration> = (0..12).map(|_| backoff.wait()).collect();
        let mut full = least;
        for wait in &waits {
            assert!(*wait >= full / 2, "{wait:?} is at least half of {full:?}");
            assert!(*wait <= full, "{wait:?} is at most {full:?}");
            full = (full * 2).min(most);
        }
        backoff.reset();
        assert!(backoff.wait() <= least, "a success starts over");
        let mut other = Backoff::new(least, most, 8);
        assert_ne!(waits, (0..12).map(|_| other.wait()).collect::<Vec<_>>());
    }
}
