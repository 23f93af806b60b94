//! How fast leases end where thousands of them are due at once: so many in one log entry, and a pause after it.
//!
//! An entry with expiries holds up the puts behind it for as long as it takes to apply, so it should be small; and all leases
//! should be gone soon after their time, so entries must be large where each takes long. Each entry therefore takes the share
//! of the backlog that its turn (the entry and the pause after it) takes of the time left. What came due while nobody led is
//! late already, and has no time left.

use crate::{clock, kv::lease_clock::Backlog, types::Millis};
use std::time::Duration;

/// A backlog is to be worked off in this time after its first lease was due.
const SPREAD: Millis = Millis(1_000);

/// Leases in an entry that is paced: an entry has its price, however few it ends.
const LEASES_MIN: usize = 16;

/// Leases in an entry.
const LEASES_MAX: usize = 1_024;

/// Leases in an entry of a backlog that is late.
const LATE_LEASES: usize = 128;

/// Keys that one entry should delete at most. One lease is never split.
const KEYS_AIM: usize = 1_000;

/// After an entry there is none for as long as it took, this long at most: the others have half of the log.
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// What is known of the entries before.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiryPace {
    /// How long the turn of the last one was, in microseconds.
    turn_micros: u64,
    /// Leases that the next one ends at most, so that it does not delete too many keys.
    leases_max: usize,
}

impl Default for ExpiryPace {
    fn default() -> Self {
        Self {
            turn_micros: 2_000,
            leases_max: LATE_LEASES,
        }
    }
}

/// The pause after an entry that took so long.
pub(super) fn pause(took: Duration) -> Duration {
    took.min(PAUSE_MAX)
}

impl ExpiryPace {
    /// Leases for the next entry.
    pub(super) fn leases(self, backlog: Backlog) -> usize {
        let waited = backlog.waited.map_or(SPREAD, |waited| waited.min(SPREAD));
        let left_micros = (SPREAD.0 - waited.0) * 1_000;
        let turns = (left_micros / self.turn_micros.max(1)).max(1);
        let turns = usize::try_from(turns).unwrap_or(usize::MAX);
        // Where there is no time left as much as makes good time: more in an entry only where entries are slow.
        let share = backlog.leases.div_ceil(turns);
        let most = if self.turn_micros > 20_000 {
            LEASES_MAX
        } else {
            LATE_LEASES
        };
        share.clamp(LEASES_MIN, most).min(self.leases_max)
    }

    /// The turn of the last entry took so long.
    pub(super) fn took(&mut self, turn: Duration) {
        self.turn_micros = clock::micros(turn);
    }

    /// The last entry ended so many leases and deleted so many keys.
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
