//! What a leader knows of one other member: how far its log matches, and at what pace to feed it.
//!
//! ```text
//!            a reply tells where logs match             entries it needs are gone
//!   Probe ─────────────────────────────────▶ Replicate ─────────────────────────▶ Snapshot
//!     ▲ ▲──── rejected, unreachable ────────────┘  ▲ its log reaches ours again ────┘ │
//!     └───────────────── snapshot sent or failed ──┴──────────────────────────────────┘
//! ```

use crate::types::{LogIndex, LogPosition};
use std::collections::VecDeque;

/// How entries are sent to a follower.
#[derive(Debug)]
pub(super) enum Pace {
    /// Its log's end is unknown: one append at a time, at most one per heartbeat.
    Probe {
        /// An append is out; wait for its reply or for a heartbeat's.
        waiting: bool,
    },
    /// Its log follows ours: appends are sent ahead of replies, as far as the window allows.
    Replicate(Window),
    /// The entries it needs are gone; a snapshot is being sent, no entries are.
    Snapshot,
}

/// Appends on their way to one follower, bounded in bytes.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The last index and the bytes of each append, in order.
    sent: VecDeque<(LogIndex, usize)>,
    bytes: usize,
}

impl Window {
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

/// What the leader knows of one member. Invariant: `matched < next`; both only describe this leader's term.
#[derive(Debug)]
pub(super) struct Progress {
    /// Its log is durable and equals ours up to here.
    pub(super) matched: LogIndex,
    /// The next entry to send.
    pub(super) next: LogIndex,
    pub(super) pace: Pace,
    /// It was heard from since the last quorum check.
    pub(super) active: bool,
    /// The newest read round it answered.
    pub(super) round: u64,
    /// The commit index it was told, clamped to what it had then.
    pub(super) commit_sent: LogIndex,
    /// Entries from here were asked from the WAL, for it.
    pub(super) reading: Option<LogIndex>,
    /// It acknowledged something since its last heartbeat reply.
    pub(super) stirred: bool,
    /// Ticks left to tell a removed member of its removal.
    pub(super) leaving_ticks: Option<u32>,
}

impl Progress {
    /// A member nothing is known of; `last` is the end of the leader's log.
    pub(super) fn new(last: LogIndex) -> Self {
        Self {
            matched: LogIndex(0),
            next: last.next(),
            pace: Pace::Probe { waiting: false },
            active: false,
            round: 0,
            commit_sent: LogIndex(0),
            reading: None,
            stirred: false,
            leaving_ticks: None,
        }
    }

    /// Whether an append may leave now.
    pub(super) fn may_send(&self, window_bytes_max: usize) -> bool {
        self.reading.is_none()
            && match &self.pace {
                Pace::Probe { waiting } => !waiting,
                Pace::Replicate(window) => window.bytes < window_bytes_max,
                Pace::Snapshot => false,
            }
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.pace, Pace::Probe { .. })
    }

    pub(super) fn is_replicating(&self) -> bool {
        matches!(self.pace, Pace::Replicate(_))
    }

    /// An append whose last entry is `last` (the one before it, if it is empty) leaves.
    pub(super) fn sent(&mut self, last: LogIndex, bytes: usize) {
        match &mut self.pace {
            Pace::Probe { waiting } => *waiting = true,
            Pace::Replicate(window) => {
                if last >= self.next {
                    window.push(last, bytes);
                    self.next = last.next();
                }
            }
            Pace::Snapshot => unreachable!("no entries are sent beside a snapshot"),
        }
    }

    /// It acknowledged everything up to `matched`. True if that is news.
    pub(super) fn acknowledged(&mut self, matched: LogIndex, log_start: LogIndex) -> bool {
        let news = matched > self.matched;
        if news {
            self.stirred = true;
        }
        self.matched = self.matched.max(matched);
        match &mut self.pace {
            Pace::Probe { .. } => self.replicate(),
            Pace::Replicate(window) => {
                window.acknowledge(self.matched);
                self.next = self.next.max(self.matched.next());
            }
            Pace::Snapshot if self.matched >= log_start => self.replicate(),
            Pace::Snapshot => {}
        }
        news
    }

    fn replicate(&mut self) {
        self.pace = Pace::Replicate(Window::default());
        self.next = self.matched.next();
        self.reading = None;
    }

    /// It lacks the entry at `rejected`; `possible` is the last entry that both logs can share.
    pub(super) fn rejected(&mut self, rejected: LogIndex, possible: LogPosition) {
        let late = match &self.pace {
            Pace::Probe { .. } => rejected.next() != self.next,
            Pace::Replicate(_) => rejected <= self.matched,
            Pace::Snapshot => true,
        };
        if late {
            return;
        }
        self.probe_from(possible.index.next().min(rejected));
    }

    /// Falls back to probing from `next`, which never goes below what it acknowledged.
    pub(super) fn probe_from(&mut self, next: LogIndex) {
        self.next = next.max(self.matched.next());
        self.pace = Pace::Probe { waiting: false };
        self.reading = None;
    }

    /// Appends to it may be lost.
    pub(super) fn unreachable(&mut self) {
        if self.is_replicating() {
            self.probe_from(self.matched.next());
        }
    }

    /// It answered a heartbeat. True if an empty append should find out whether what was sent got lost.
    pub(super) fn heartbeat_answered(&mut self, round: u64) -> bool {
        self.round = self.round.max(round);
        let silent = !self.stirred;
        self.stirred = false;
        match &mut self.pace {
            Pace::Probe { waiting } => {
                *waiting = false;
                false
            }
            Pace::Replicate(window) => silent && !window.sent.is_empty(),
            Pace::Snapshot => false,
        }
    }

    /// Asserts the invariants.
    pub(super) fn check(&self, last: LogIndex) {
        assert!(
            self.matched < self.next,
            "what is acknowledged is not sent again"
        );
        assert!(
            self.matched <= last,
            "a follower cannot match what we do not have"
        );
        assert!(self.next <= last.next(), "nothing beyond our end is sent");
        if let Pace::Replicate(window) = &self.pace {
            let bytes: usize = window.sent.iter().map(|(_, bytes)| bytes).sum();
            assert_eq!(bytes, window.bytes, "the window counts its bytes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Term;

    #[test]
    fn a_full_window_waits_for_acknowledgements() {
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
    fn silence_after_sending_asks_for_a_probe() {
        let mut progress = Progress::new(LogIndex(10));
        progress.acknowledged(LogIndex(10), LogIndex(0));
        assert!(!progress.heartbeat_answered(1), "nothing is out");
        progress.sent(LogIndex(11), 10);
        assert!(
            progress.heartbeat_answered(2),
            "one heartbeat without an acknowledgement"
        );
        progress.acknowledged(LogIndex(11), LogIndex(0));
        assert!(!progress.heartbeat_answered(3));
    }
}
