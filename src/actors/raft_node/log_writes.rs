//! Writes to the write-ahead log: those that wait, those in flight, how long they take, and whether one stalls.

use crate::{actors::raft_status::DiskHealth, clock, raft, types::MemberId};
use std::{collections::VecDeque, time::Duration};
use tokio::time::Instant;

/// Messages to the WAL writer in flight. Writes that come meanwhile go together in the next one: a slow disk makes larger
/// writes, never a longer queue.
const IN_FLIGHT_MAX: usize = 4;

/// Slow syncs are logged at most this often.
const SLOW_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// The writes that wait, and those that the WAL writer has not reported.
#[derive(Debug)]
pub(super) struct LogWrites {
    waiting: Vec<raft::LogWrite>,
    /// The last sequence number of each message in flight, and when it was sent.
    in_flight: VecDeque<(u64, Instant)>,
    stall_after: Duration,
    slow_logged: Option<Instant>,
    /// The member to which leadership was last transferred because of a stall.
    yields_to: Option<MemberId>,
    pub(super) health: DiskHealth,
}

impl LogWrites {
    pub(super) fn new(stall_after: Duration) -> Self {
        Self {
            waiting: Vec::new(),
            in_flight: VecDeque::new(),
            stall_after,
            slow_logged: None,
            yields_to: None,
            health: DiskHealth::default(),
        }
    }

    /// Consensus has something to write.
    pub(super) fn push(&mut self, persist: Option<raft::LogWrite>) {
        self.waiting.extend(persist);
    }

    /// The next message to the WAL writer, if one may be sent now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Vec<raft::LogWrite>> {
        let seq = self.waiting.last()?.seq;
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        self.in_flight.push_back((seq, now));
        Some(std::mem::take(&mut self.waiting))
    }

    /// All writes up to `seq` are durable. Returns the duration of a slow sync, unless one was returned a moment ago.
    pub(super) fn end(&mut self, seq: u64, sync_micros: u64, now: Instant) -> Option<Duration> {
        while self
            .in_flight
            .pop_front_if(|(sent, _)| *sent <= seq)
            .is_some()
        {}
        self.health.took(sync_micros);
        let took = Duration::from_micros(sync_micros);
        let logged = self.slow_logged;
        let due = logged.is_none_or(|logged| now.duration_since(logged) >= SLOW_LOGGED_EVERY);
        if took < self.stall_after / 2 || !due {
            return None;
        }
        self.slow_logged = Some(now);
        Some(took)
    }

    /// For how many milliseconds the oldest write has been in flight, if that is a stall; notes it in `health`.
    pub(super) fn check_stall(&mut self, now: Instant) -> Option<u64> {
        let stalled = self
            .stalled(now)
            .map(|waited| clock::micros(waited) / 1_000);
        self.health.stalled_ms = stalled;
        stalled
    }

    /// Leadership is transferred to `to` because of a stall. True if that was not so before.
    pub(super) fn yields_to(&mut self, to: Option<MemberId>) -> bool {
        let changed = to.is_some() && to != self.yields_to;
        self.yields_to = to;
        changed
    }

    /// For how long the oldest write has been in flight, if that is a stall.
    fn stalled(&self, now: Instant) -> Option<Duration> {
        let (_, since) = self.in_flight.front()?;
        let waited = now.duration_since(*since);
        (waited >= self.stall_after).then_some(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::HardState;

    const STALL: Duration = Duration::from_secs(1);

    fn persist(seq: u64) -> raft::LogWrite {
        raft::LogWrite {
            seq,
            reset: None,
            entries: Vec::new(),
            hard_state: HardState::default(),
        }
    }

    fn send(writes: &mut LogWrites, seq: u64, now: Instant) {
        writes.push(Some(persist(seq)));
        assert!(writes.next(now).is_some());
    }

    #[test]
    fn writes_that_come_while_messages_are_in_flight_go_together() {
        let now = clock::now();
        let mut writes = LogWrites::new(STALL);
        assert!(writes.next(now).is_none(), "nothing waits");
        for seq in 1..=4 {
            send(&mut writes, seq, now);
        }
        writes.push(Some(persist(5)));
        writes.push(Some(persist(6)));
        assert!(writes.next(now).is_none(), "four are in flight");
        writes.end(2, 1, now);
        let together = writes.next(now).unwrap();
        let seqs: Vec<u64> = together.iter().map(|write| write.seq).collect();
        assert_eq!(seqs, [5, 6]);
    }

    #[test]
    fn the_oldest_write_stalls_until_it_ends() {
        let start = clock::now();
        let mut writes = LogWrites::new(STALL);
        assert_eq!(writes.stalled(start + STALL * 9), None, "nothing waits");
        send(&mut writes, 3, start);
        send(&mut writes, 5, start + STALL / 2);
        assert_eq!(writes.stalled(start + STALL / 2), None);
        assert_eq!(writes.stalled(start + STALL), Some(STALL));
        assert_eq!(writes.end(4, 1_000, start + STALL), None, "it was quick");
        assert_eq!(writes.stalled(start + STALL), None, "the other is younger");
        assert_eq!(writes.in_flight.len(), 1);
        assert_eq!(writes.stalled(start + STALL * 2), Some(STALL * 3 / 2));
    }

    #[test]
    fn latencies_are_remembered_and_slow_ones_logged_now_and_then() {
        let start = clock::now();
        let mut writes = LogWrites::new(STALL);
        assert_eq!(writes.end(1, 800, start), None);
        assert_eq!(writes.end(2, 600_000, start), Some(STALL * 3 / 5));
        assert_eq!(writes.end(3, 700_000, start), None, "one was just logged");
        let later = start + SLOW_LOGGED_EVERY;
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
