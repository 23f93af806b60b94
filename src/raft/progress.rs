//! A leader's record of one other member: how far its log matches the leader's, and how entries are sent to it.
//!
//! ```text
//!            an acknowledgement arrives                 the entries it needs are released
//!   Probe ─────────────────────────────────▶ Replicate ─────────────────────────────────▶ Snapshot
//!     ▲ ▲──── rejected, unreachable ────────────┘  ▲─ acknowledges an entry that exists ──┘ │
//!     └───────────────── snapshot sent or failed ───────────────────────────────────────────┘
//! ```
//!
//! A test below has the whole table.

use crate::types::{LogIndex, LogPosition};
use std::collections::VecDeque;

/// How entries are sent to a follower.
#[derive(Debug)]
pub(super) enum ReplicationState {
    /// Where its log ends is unknown: one append at a time, at most one per heartbeat.
    Probe {
        /// An append was sent; the next one waits for its reply, or for the reply to a heartbeat.
        waiting: bool,
    },
    /// Its log matches the leader's: appends are sent ahead of replies, within a bound in bytes.
    Replicate(InflightAppends),
    /// The entries it needs are released: a snapshot is being sent, and no entries.
    Snapshot,
}

/// Appends sent to one follower that it has not acknowledged.
#[derive(Debug, Default)]
pub(super) struct InflightAppends {
    /// The last index and the bytes of each append, in order.
    sent: VecDeque<(LogIndex, usize)>,
    bytes: usize,
}

impl InflightAppends {
    fn push(&mut self, last: LogIndex, bytes: usize) {
        self.sent.push_back((last, bytes));
        self.bytes += bytes;
    }

    fn acknowledge(&mut self, matched: LogIndex) {
        while let Some(&(last, bytes)) = self.sent.front() {
            if last > matched {
                break;
            }
            self.sent.pop_front();
            self.bytes -= bytes;
        }
    }
}

/// Replication to one member. Invariant: `matched < next`; both only describe this leader's term.
#[derive(Debug)]
pub(super) struct Progress {
    /// Its log is durable, and equals the leader's, up to here.
    pub(super) matched: LogIndex,
    /// The next entry to send.
    pub(super) next: LogIndex,
    pub(super) replication: ReplicationState,
    /// A reply from it arrived since the last quorum check, which is what that check counts.
    pub(super) active: bool,
    /// The tick at which its last reply arrived; zero before the first.
    pub(super) replied_at: u64,
    /// The newest read round that it has confirmed.
    pub(super) round: u64,
    /// The newest commit index sent to it; never beyond what it had acknowledged.
    pub(super) commit_sent: LogIndex,
    /// Entries from here on were requested from the WAL, to be sent to it.
    pub(super) reading: Option<LogIndex>,
    /// It acknowledged something since its last heartbeat reply.
    acked_since_heartbeat: bool,
    /// Set for a removed member: for so many more ticks the leader tries to send it the entry that removed it.
    pub(super) removal_ticks: Option<u32>,
}

impl Progress {
    /// A member that has not replied yet; `last` is the end of the leader's log.
    pub(super) fn new(last: LogIndex) -> Self {
        Self {
            matched: LogIndex(0),
            next: last.next(),
            replication: ReplicationState::Probe { waiting: false },
            active: false,
            replied_at: 0,
            round: 0,
            commit_sent: LogIndex(0),
            reading: None,
            acked_since_heartbeat: false,
            removal_ticks: None,
        }
    }

    /// A reply from it arrived at tick `now`.
    pub(super) fn replied(&mut self, now: u64) {
        self.active = true;
        self.replied_at = now;
    }

    /// Whether it replied within the `ticks` before `now`. Not the same as `active`, which is false for every member right
    /// after a quorum check.
    pub(super) fn replied_within(&self, ticks: u32, now: u64) -> bool {
        self.replied_at > 0 && now - self.replied_at <= u64::from(ticks)
    }

    /// Whether it gets new entries as they are appended: it has replied, and needs neither entries from the WAL nor a snapshot.
    pub(super) fn is_current(&self) -> bool {
        self.is_replicating() && self.reading.is_none()
    }

    /// Whether an append may be sent now.
    pub(super) fn may_send(&self, inflight_bytes_max: usize) -> bool {
        self.reading.is_none()
            && match &self.replication {
                ReplicationState::Probe { waiting } => !waiting,
                ReplicationState::Replicate(inflight) => inflight.bytes < inflight_bytes_max,
                ReplicationState::Snapshot => false,
            }
    }

    /// Bytes of entries that were sent to it and not acknowledged.
    pub(super) fn in_flight_bytes(&self) -> usize {
        match &self.replication {
            ReplicationState::Replicate(inflight) => inflight.bytes,
            ReplicationState::Probe { .. } | ReplicationState::Snapshot => 0,
        }
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.replication, ReplicationState::Probe { .. })
    }

    pub(super) fn is_replicating(&self) -> bool {
        matches!(self.replication, ReplicationState::Replicate(_))
    }

    /// An append was sent. Its last entry is `last`; the entry before it, if it is empty.
    pub(super) fn sent(&mut self, last: LogIndex, bytes: usize) {
        match &mut self.replication {
            ReplicationState::Probe { waiting } => *waiting = true,
            ReplicationState::Replicate(inflight) => {
                if last >= self.next {
                    inflight.push(last, bytes);
                    self.next = last.next();
                }
            }
            ReplicationState::Snapshot => unreachable!("no entries are sent while a snapshot is"),
        }
    }

    /// It acknowledged everything up to `matched`. True if it had not acknowledged so much before.
    pub(super) fn acknowledged(&mut self, matched: LogIndex, log_start: LogIndex) -> bool {
        let new = matched > self.matched;
        if new {
            self.acked_since_heartbeat = true;
        }
        self.matched = self.matched.max(matched);
        match &mut self.replication {
            ReplicationState::Probe { .. } => self.replicate(),
            ReplicationState::Replicate(inflight) => {
                inflight.acknowledge(self.matched);
                self.next = self.next.max(self.matched.next());
            }
            ReplicationState::Snapshot if self.matched >= log_start => self.replicate(),
            // A late reply to an append that was sent before the snapshot.
            ReplicationState::Snapshot => self.next = self.next.max(self.matched.next()),
        }
        new
    }

    fn replicate(&mut self) {
        self.replication = ReplicationState::Replicate(InflightAppends::default());
        self.next = self.matched.next();
        self.reading = None;
    }

    /// It does not have the entry at `rejected`; `possible` is the last entry that both logs can have in common.
    pub(super) fn rejected(&mut self, rejected: LogIndex, possible: LogPosition) {
        let late = match &self.replication {
            ReplicationState::Probe { .. } => rejected.next() != self.next,
            ReplicationState::Replicate(_) => rejected <= self.matched,
            ReplicationState::Snapshot => true,
        };
        if late {
            return;
        }
        self.probe_from(possible.index.next().min(rejected));
    }

    /// Goes back to probing, from `next` or the first entry that it has not acknowledged, whichever is later.
    pub(super) fn probe_from(&mut self, next: LogIndex) {
        self.next = next.max(self.matched.next());
        self.replication = ReplicationState::Probe { waiting: false };
        self.reading = None;
    }

    /// Appends to it may be lost.
    pub(super) fn unreachable(&mut self) {
        if self.is_replicating() {
            self.probe_from(self.matched.next());
        }
    }

    /// It answered a heartbeat. True if an empty append should find out whether the appends sent before were lost.
    pub(super) fn heartbeat_answered(&mut self, round: u64) -> bool {
        self.round = self.round.max(round);
        let silent = !self.acked_since_heartbeat;
        self.acked_since_heartbeat = false;
        match &mut self.replication {
            ReplicationState::Probe { waiting } => {
                *waiting = false;
                false
            }
            ReplicationState::Replicate(inflight) => silent && !inflight.sent.is_empty(),
            ReplicationState::Snapshot => false,
        }
    }

    pub(super) fn check(&self, last: LogIndex) {
        assert!(
            self.matched < self.next,
            "acknowledged entries are not sent again"
        );
        assert!(
            self.matched <= last,
            "a follower cannot match entries that the leader does not have"
        );
        assert!(
            self.next <= last.next(),
            "nothing beyond the end of the log is sent"
        );
        if let ReplicationState::Replicate(inflight) = &self.replication {
            let bytes: usize = inflight.sent.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(bytes, inflight.bytes, "bytes in flight are counted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;
    use std::fmt::Write as _;

    #[test]
    fn appends_in_flight_are_bounded_until_acknowledged() {
        let mut progress = Progress::new(LogIndex(10));
        assert!(progress.may_send(100));
        progress.sent(LogIndex(10), 0);
        assert!(!progress.may_send(100), "a probe waits for its reply");
        progress.acknowledged(LogIndex(10), LogIndex(0));
        progress.sent(LogIndex(12), 60);
        progress.sent(LogIndex(14), 60);
        assert!(!progress.may_send(100));
        progress.acknowledged(LogIndex(12), LogIndex(0));
        assert!(progress.may_send(100));
        assert_eq!(progress.next, LogIndex(15));
        progress.check(LogIndex(14));
    }

    #[test]
    fn late_rejections_change_nothing() {
        let mut progress = Progress::new(LogIndex(10));
        progress.acknowledged(LogIndex(8), LogIndex(0));
        progress.rejected(LogIndex(7), LogPosition::new(Term(1), LogIndex(3)));
        assert!(progress.is_replicating());
        progress.rejected(LogIndex(12), LogPosition::new(Term(1), LogIndex(3)));
        assert!(progress.is_probing());
        assert_eq!(
            progress.next,
            LogIndex(9),
            "never below what was acknowledged"
        );
    }

    #[test]
    fn a_heartbeat_reply_without_acknowledgements_asks_for_a_probe() {
        let mut progress = Progress::new(LogIndex(10));
        progress.acknowledged(LogIndex(10), LogIndex(0));
        assert!(!progress.heartbeat_answered(1), "nothing is in flight");
        progress.sent(LogIndex(11), 10);
        assert!(
            progress.heartbeat_answered(2),
            "one heartbeat without an acknowledgement"
        );
        progress.acknowledged(LogIndex(11), LogIndex(0));
        assert!(!progress.heartbeat_answered(3));
    }

    const TABLE: &str = "\
state                | acknowledged         | … but released       | rejected             | unreachable          | heartbeat reply
probe                | replicate            | replicate            | probe                | probe                | probe
probe, waiting       | replicate            | replicate            | probe                | probe, waiting       | probe
replicate            | replicate            | replicate            | replicate            | probe                | replicate
replicate, in flight | replicate            | replicate            | probe                | probe                | in flight, asks
snapshot             | replicate            | snapshot             | snapshot             | snapshot             | snapshot
";

    fn shown(progress: &Progress) -> &'static str {
        match &progress.replication {
            ReplicationState::Probe { waiting: false } => "probe",
            ReplicationState::Probe { waiting: true } => "probe, waiting",
            ReplicationState::Replicate(inflight) if inflight.sent.is_empty() => "replicate",
            ReplicationState::Replicate(_) => "replicate, in flight",
            ReplicationState::Snapshot => "snapshot",
        }
    }

    /// A follower in each state, as seen by a leader whose log ends at entry 12.
    fn states() -> Vec<Progress> {
        let start = |steps: &[fn(&mut Progress)]| {
            let mut progress = Progress::new(LogIndex(10));
            for step in steps {
                step(&mut progress);
            }
            progress.acked_since_heartbeat = false;
            progress
        };
        let probe: fn(&mut Progress) = |progress| progress.sent(LogIndex(10), 0);
        let acknowledge: fn(&mut Progress) = |progress| {
            progress.acknowledged(LogIndex(10), LogIndex(0));
        };
        let send: fn(&mut Progress) = |progress| progress.sent(LogIndex(12), 10);
        let snapshot: fn(&mut Progress) =
            |progress| progress.replication = ReplicationState::Snapshot;
        vec![
            start(&[]),
            start(&[probe]),
            start(&[acknowledge]),
            start(&[acknowledge, send]),
            start(&[snapshot]),
        ]
    }

    #[test]
    fn every_event_in_every_state() {
        let events: [fn(&mut Progress) -> bool; 5] = [
            |progress| {
                progress.acknowledged(LogIndex(12), LogIndex(0));
                false
            },
            |progress| {
                progress.acknowledged(LogIndex(12), LogIndex(20));
                false
            },
            |progress| {
                let rejected = LogIndex(progress.next.0 - 1);
                progress.rejected(rejected, LogPosition::new(Term(1), LogIndex(3)));
                false
            },
            |progress| {
                progress.unreachable();
                false
            },
            |progress| progress.heartbeat_answered(1),
        ];
        let mut table = TABLE.lines().next().unwrap().to_owned() + "\n";
        for (row, state) in states().iter().enumerate() {
            write!(table, "{:<20}", shown(state)).unwrap();
            for event in events {
                let mut progress = states().remove(row);
                let asks = event(&mut progress);
                progress.check(LogIndex(12));
                let after = if asks {
                    "in flight, asks"
                } else {
                    shown(&progress)
                };
                write!(table, " | {after:<20}").unwrap();
            }
            table = table.trim_end().to_owned() + "\n";
        }
        assert_eq!(table, TABLE);
    }
}
