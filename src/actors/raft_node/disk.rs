//! This member's disk, as its Raft node sees it: how long the log's syncs take, and a leader that hands on its leadership while
//! one does not end.
//!
//! Nothing here waits for the disk: the WAL writer has a thread to itself, so heartbeats go on while it is stuck in a sync, and
//! with them the leadership of a member that can make nothing durable. A write under way for longer than `raft.disk_stall_ms`
//! is a stall. A leader with a stalled disk asks consensus at every tick to hand leadership to the voter that is closest to it.
//! Such a member cannot be elected again meanwhile: nobody's vote counts before it is durable, its own included.

use super::RaftNode;
use crate::{actors::raft_status::DiskHealth, clock, types::MemberId};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Slow syncs are told of once in so long.
const SLOW_TOLD_EVERY: Duration = Duration::from_secs(10);

/// The writes that the WAL writer was given and has not reported, with the time each was given.
#[derive(Debug)]
pub(super) struct Writes {
    under_way: VecDeque<(u64, Instant)>,
    stall_after: Duration,
    slow_told: Option<Instant>,
    pub(super) health: DiskHealth,
}

impl Writes {
    pub(super) fn new(stall_after: Duration) -> Self {
        Self {
            under_way: VecDeque::new(),
            stall_after,
            slow_told: None,
            health: DiskHealth::default(),
        }
    }

    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    /// One was given to the writer; it ends with sequence number `seq`.
    pub(super) fn begin(&mut self, seq: u64, now: Instant) {
        self.under_way.push_back((seq, now));
    }

    /// All up to `seq` are durable. Gives the time of a sync that was slow, if that was not said lately.
    pub(super) fn end(&mut self, seq: u64, sync_micros: u64, now: Instant) -> Option<Duration> {
        while self
            .under_way
            .pop_front_if(|(given, _)| *given <= seq)
            .is_some()
        {}
        self.health.took(sync_micros);
        let took = Duration::from_micros(sync_micros);
        let told = self.slow_told;
        let due = told.is_none_or(|told| now.duration_since(told) >= SLOW_TOLD_EVERY);
        if took < self.stall_after / 2 || !due {
            return None;
        }
        self.slow_told = Some(now);
        Some(took)
    }

    /// For how long the oldest write has been under way, if that is too long.
    fn stalled(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.under_way.front()?;
        let waited = now.duration_since(*since);
        (waited >= self.stall_after).then_some(waited)
    }
}

impl RaftNode {
    /// Looks after the disk, once a tick.
    pub(super) fn tend_disk(&mut self) {
        let stalled = self.persists.stalled(clock::now());
        let before = self.persists.health.stalled_ms;
        self.persists.health.stalled_ms = stalled.map(|waited| clock::micros(waited) / 1_000);
        match (before, stalled) {
            (None, Some(waited)) => tracing::warn!(
                waited_ms = clock::micros(waited) / 1_000,
                "the disk stalls: a write to the write-ahead log does not end"
            ),
            (Some(waited_ms), None) => tracing::info!(waited_ms, "the disk goes on"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if stalled.is_some() {
            self.yield_leadership();
        }
        let health = self.persists.health;
        self.peers.disk.send_if_modified(|told| {
            let news = *told != health;
            *told = health;
            news
        });
    }

    fn yield_leadership(&mut self) {
        let to = self.raft.report_disk_stall();
        if to.is_some() && to != self.yields_to {
            tracing::warn!(
                to = to.map(MemberId::hex),
                "hands leadership to a member whose disk works"
            );
        }
        self.yields_to = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(1);

    #[test]
    fn the_oldest_write_tells_of_a_stall_until_it_ends() {
        let start = clock::now();
        let mut writes = Writes::new(STALL);
        assert_eq!(writes.stalled(start + STALL * 9), None, "nothing waits");
        writes.begin(3, start);
        writes.begin(5, start + STALL / 2);
        assert_eq!(writes.stalled(start + STALL / 2), None);
        assert_eq!(writes.stalled(start + STALL), Some(STALL));
        assert_eq!(writes.end(4, 1_000, start + STALL), None, "it was quick");
        assert_eq!(writes.stalled(start + STALL), None, "the other is younger");
        assert_eq!(writes.len(), 1);
        assert_eq!(writes.stalled(start + STALL * 2), Some(STALL * 3 / 2));
    }

    #[test]
    fn latencies_are_remembered_and_slow_ones_told_now_and_then() {
        let start = clock::now();
        let mut writes = Writes::new(STALL);
        assert_eq!(writes.end(1, 800, start), None);
        assert_eq!(writes.end(2, 600_000, start), Some(STALL * 3 / 5));
        assert_eq!(writes.end(3, 700_000, start), None, "it was just told");
        let later = start + SLOW_TOLD_EVERY;
        assert_eq!(writes.end(4, 500_000, later), Some(STALL / 2));
        assert_eq!(writes.end(5, 1_600, later), None);
        let health = writes.health;
        assert_eq!(
            (health.sync_micros, health.sync_micros_max),
            (1_600, 700_000)
        );
        assert!(
            (1_600..600_000).contains(&health.sync_micros_mean),
            "{health:?}"
        );
    }
}
