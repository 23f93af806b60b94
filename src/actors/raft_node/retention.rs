//! How much of the log this member keeps for other members.
//!
//! Entries stay for members that do not have them, but only up to a bound in entries and bytes: entries past it are released
//! as soon as this member's database contains them, and a member that comes back later gets a snapshot. While a snapshot is sent,
//! and until its receiver has caught up, the entries after it stay, or the receiver would need the next snapshot at once.

use crate::types::LogIndex;

/// Entries that stay although every member has them, or the bound if that is less: a new leader has not learned yet how far the
/// others are, and must not send a snapshot to one that only lacks the newest entries.
const KEPT_ENTRIES: u64 = 5_000;

/// The log is measured, and a leader announces what every member has, once in so many ticks.
const MEASURE_TICKS: u32 = 10;

/// How much of the log stays for members that do not have it.
#[derive(Clone, Copy, Debug)]
pub struct LogBound {
    pub entries: u64,
    pub bytes: u64,
}

/// Which entries are released. Invariant: `released <= stored`.
#[derive(Debug)]
pub(super) struct Retention {
    bound: LogBound,
    /// There are no other members to keep entries for.
    alone: bool,
    /// A restart of this member does not need entries up to here: the database contains them.
    stored: LogIndex,
    /// Every member has entries up to here, durably.
    everybody_has: LogIndex,
    /// Entries up to here are past the bound.
    past_bound: LogIndex,
    released: LogIndex,
    /// The index up to which every member has entries, as last sent to the others.
    announced: LogIndex,
    ticks: u32,
}

impl Retention {
    pub(super) fn new(bound: LogBound, alone: bool) -> Self {
        Self {
            bound,
            alone,
            stored: LogIndex(0),
            everybody_has: LogIndex(0),
            past_bound: LogIndex(0),
            released: LogIndex(0),
            announced: LogIndex(0),
            ticks: 0,
        }
    }

    /// Once a tick: whether the log is to be measured, and progress to be announced, now.
    pub(super) fn is_due(&mut self) -> bool {
        self.ticks = self.ticks.wrapping_add(1);
        self.ticks.is_multiple_of(MEASURE_TICKS)
    }

    /// Every member has entries up to `through`: returns whether that was not announced yet.
    pub(super) fn announce(&mut self, through: LogIndex) -> bool {
        std::mem::replace(&mut self.announced, through) != through
    }

    pub(super) fn bound(&self) -> LogBound {
        self.bound
    }

    pub(super) fn stored(&self) -> LogIndex {
        self.stored
    }

    pub(super) fn released(&self) -> LogIndex {
        self.released
    }

    /// The database contains everything up to `through`. A report from before a snapshot was installed may come after it.
    pub(super) fn set_stored(&mut self, through: LogIndex) {
        self.stored = self.stored.max(through);
    }

    /// Every member has entries up to `through`, durably.
    pub(super) fn everybody_has(&mut self, through: LogIndex) {
        self.everybody_has = self.everybody_has.max(through);
    }

    /// Measures the log: entries up to `commit` are committed, those after `by_bytes` fit the bound in bytes.
    pub(super) fn measured(&mut self, commit: LogIndex, by_bytes: LogIndex) {
        let by_entries = LogIndex(commit.0.saturating_sub(self.bound.entries));
        let past = by_entries.max(by_bytes.min(commit));
        self.past_bound = self.past_bound.max(past);
    }

    /// Releases the entries that no member needs any more; those after `held` stay for the receivers of snapshots. Returns the
    /// last released index if it is a new one.
    pub(super) fn release(&mut self, held: Option<LogIndex>) -> Option<LogIndex> {
        let through = self.dispensable(held);
        if through <= self.released {
            return None;
        }
        self.released = through;
        Some(through)
    }

    fn dispensable(&self, held: Option<LogIndex>) -> LogIndex {
        if self.alone {
            return self.stored;
        }
        let kept = KEPT_ENTRIES.min(self.bound.entries);
        let everybody_has = LogIndex(self.everybody_has.0.saturating_sub(kept));
        let through = self.stored.min(everybody_has.max(self.past_bound));
        held.map_or(through, |held| held.min(through))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: LogBound = LogBound {
        entries: 100,
        bytes: 1_000,
    };

    #[test]
    fn a_member_without_others_releases_what_its_database_contains() {
        let mut alone = Retention::new(BOUND, true);
        alone.set_stored(LogIndex(7));
        assert_eq!(alone.release(None), Some(LogIndex(7)));
        assert_eq!(alone.release(None), None, "once");
    }

    #[test]
    fn entries_stay_until_every_member_has_them_and_some_longer() {
        let mut retention = Retention::new(BOUND, false);
        retention.set_stored(LogIndex(300));
        assert_eq!(retention.release(None), None, "others may not have them");
        retention.everybody_has(LogIndex(250));
        assert_eq!(retention.release(None), Some(LogIndex(150)));
        retention.everybody_has(LogIndex(200));
        assert_eq!(retention.release(None), None, "a late report");
    }

    #[test]
    fn entries_past_the_bound_go_once_the_database_contains_them() {
        let mut retention = Retention::new(BOUND, false);
        retention.set_stored(LogIndex(120));
        retention.measured(LogIndex(200), LogIndex(50));
        assert_eq!(retention.release(None), Some(LogIndex(100)), "by entries");
        retention.measured(LogIndex(200), LogIndex(180));
        assert_eq!(retention.release(None), Some(LogIndex(120)), "stored");
    }

    #[test]
    fn entries_after_a_snapshot_that_is_being_sent_stay() {
        let mut retention = Retention::new(BOUND, false);
        retention.set_stored(LogIndex(500));
        retention.measured(LogIndex(500), LogIndex(0));
        retention.set_stored(LogIndex(300));
        assert_eq!(retention.stored(), LogIndex(500), "a late report");
        let held = Some(LogIndex(350));
        assert_eq!(retention.release(held), Some(LogIndex(350)));
        assert_eq!(retention.release(None), Some(LogIndex(400)));
        assert_eq!(retention.released(), LogIndex(400));
    }
}
