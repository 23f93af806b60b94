//! Pauses between attempts to connect, and a filter for repeated log lines.

use crate::types::SplitMix64;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;

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

    /// Starts over at `least`.
    pub(super) fn reset(&mut self) {
        self.next = self.least;
    }

    /// The longest wait.
    pub(super) fn most(&self) -> Duration {
        self.most
    }
}

/// Texts that a filter remembers at once.
const TEXTS_MAX: usize = 64;

/// Lets each text pass once a minute, so that a failure that repeats with every attempt does not fill the log.
#[derive(Debug, Default)]
pub(super) struct LogGate {
    passed: BTreeMap<String, Instant>,
}

impl LogGate {
    const QUIET: Duration = Duration::from_mins(1);

    /// Whether to log this now.
    pub(super) fn passes(&mut self, now: Instant, text: &str) -> bool {
        self.passed
            .retain(|_, at| now.duration_since(*at) < Self::QUIET);
        if self.passed.contains_key(text) {
            return false;
        }
        if self.passed.len() >= TEXTS_MAX {
            return false;
        }
        self.passed.insert(text.to_owned(), now);
        true
    }

    /// The texts that passed within the last minute.
    #[cfg(test)]
    pub(super) fn texts(&self) -> Vec<String> {
        self.passed.keys().cloned().collect()
    }

    /// Lets texts that begin with `start` pass again.
    pub(super) fn forget(&mut self, start: &str) {
        self.passed.retain(|text, _| !text.starts_with(start));
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

    #[test]
    fn a_text_passes_once_a_minute() {
        let (mut gate, start) = (LogGate::default(), crate::clock::now());
        assert!(
            gate.passes(start, "n1: refused"),
            "the first time it is news"
        );
        assert!(
            !gate.passes(start, "n1: refused"),
            "the second time it is not"
        );
        assert!(gate.passes(start, "n2: refused"), "another text is news");
        gate.forget("n1");
        assert!(
            gate.passes(start, "n1: refused"),
            "after a success it is news again"
        );
        let later = start + LogGate::QUIET;
        assert!(
            gate.passes(later, "n2: refused"),
            "after a minute it is news again"
        );
        for n in 0..2 * TEXTS_MAX {
            gate.passes(later, &format!("x{n}"));
        }
        assert!(gate.passed.len() <= TEXTS_MAX, "the memory is bounded");
    }
}
