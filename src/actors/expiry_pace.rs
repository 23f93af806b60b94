//! The pace at which leases end when thousands are due at once: how many one log entry ends, and the length of the pause after
//! it.
//!
//! An entry with expiries delays the puts behind it while it is applied, so it should be small. But all leases should end soon
//! after their time, so entries must be large if each takes long. A round is one entry and the pause after it; the time left
//! until the backlog should be gone is divided into rounds, and each entry ends its round's share of the backlog. Leases that
//! came due while there was no leader are late already: for them no time is left.

use crate::{clock, kv::lease_clock::Backlog, types::Millis};
use std::time::Duration;

/// A backlog should be gone so long after its first lease was due.
const SPREAD: Millis = Millis(1_000);

/// The fewest leases in an entry: each entry has a fixed cost.
const LEASES_MIN: usize = 16;

/// The most leases in an entry.
const LEASES_MAX: usize = 1_024;

/// The most leases in an entry, unless entries are slow.
const LATE_LEASES: usize = 128;

/// Keys that one entry should delete at most. All keys of one lease go in one entry.
const KEYS_AIM: usize = 1_000;

/// The pause after an entry is as long as the entry took, and this at most: so other writes get half of the log.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// How long the last entries took, and how many keys they deleted.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiryPace {
    /// How long the last round was, in microseconds.
    round_micros: u64,
    /// The most leases for the next entry, so that it does not delete too many keys.
    leases_max: usize,
}

impl Default for ExpiryPace {
    fn default() -> Self {
        Self {
            round_micros: 2_000,
            leases_max: LATE_LEASES,
        }
    }
}

/// The pause after an entry.
pub(super) fn pause(took: Duration) -> Duration {
    took.min(PAUSE_MAX)
}

impl ExpiryPace {
    /// Leases for the next entry.
    pub(super) fn leases(self, backlog: Backlog) -> usize {
        let waited = backlog.waited.map_or(SPREAD, |waited| waited.min(SPREAD));
        let left_micros = (SPREAD.0 - waited.0) * 1_000;
        let rounds = (left_micros / self.round_micros.max(1)).max(1);
        let rounds = usize::try_from(rounds).unwrap_or(usize::MAX);
        let share = backlog.leases.div_ceil(rounds);
        // Small entries end leases as fast as large ones, unless each entry is slow.
        let most = if self.round_micros > 20_000 {
            LEASES_MAX
        } else {
            LATE_LEASES
        };
        share.clamp(LEASES_MIN, most).min(self.leases_max)
    }

    /// Notes how long the last round was.
    pub(super) fn took(&mut self, round: Duration) {
        self.round_micros = clock::micros(round);
    }

    /// Notes how many keys the last entry deleted, and how many leases it ended.
    pub(super) fn deleted(&mut self, keys: usize, leases: usize) {
        self.leases_max = if keys > KEYS_AIM {
            (leases / 2).max(1)
        } else {
            (self.leases_max * 2).min(LEASES_MAX)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(leases: usize, waited: u64) -> Backlog {
        let waited = Some(Millis(waited));
        Backlog { leases, waited }
    }

    fn paced(turn_millis: u64) -> ExpiryPace {
        let mut pace = ExpiryPace::default();
        for _ in 0..8 {
            pace.deleted(0, 1);
        }
        pace.took(Duration::from_millis(turn_millis));
        pace
    }

    #[test]
    fn a_backlog_is_spread_over_the_time_that_is_left() {
        let pace = paced(2);
        assert_eq!(pace.leases(backlog(20_000, 0)), 40);
        assert_eq!(pace.leases(backlog(10_000, 500)), 40);
        assert_eq!(pace.leases(backlog(10_000, 900)), 128);
        assert_eq!(pace.leases(backlog(10_000, 5_000)), 128);
        assert_eq!(pace.leases(backlog(3, 0)), LEASES_MIN);
    }

    #[test]
    fn where_an_entry_takes_long_it_takes_more() {
        assert_eq!(paced(50).leases(backlog(20_000, 0)), 1_000);
        assert_eq!(paced(50).leases(backlog(20_000, 900)), LEASES_MAX);
    }

    #[test]
    fn what_came_due_while_nobody_led_is_late_already() {
        let late = Backlog {
            leases: 7_000,
            waited: None,
        };
        assert_eq!(paced(2).leases(late), LATE_LEASES);
    }

    #[test]
    fn large_leases_make_small_entries() {
        let mut pace = paced(2);
        let late = backlog(7_000, 1_000);
        pace.deleted(20_000, 128);
        assert_eq!(pace.leases(late), 64);
        pace.deleted(20_000, 1);
        assert_eq!(pace.leases(late), 1);
        for _ in 0..7 {
            pace.deleted(1_000, 64);
        }
        assert_eq!(pace.leases(late), 128);
    }
}
