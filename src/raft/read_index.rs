//! Linearizable reads that write nothing: which index must be applied before a read is served?
//!
//! A leader notes its commit index when a read arrives, and answers once a quorum has confirmed, by replying to a heartbeat
//! sent *after* that, that it still leads: then no other leader can have committed more before the read began. Many
//! reads share a round; those that arrive during a round wait for the next. A leader answers only after it
//! has committed an entry of its own term, since before that its commit index may be lower than what its predecessor
//! acknowledged. A follower sends the leader one query for all its waiting reads. Follows 6.4 of the thesis.
//!
//! ```text
//!   read a ──▶ round 1 opens, index 7 ──▶ heartbeats ──▶ quorum ──▶ a: 7
//!   read b, c        └─ wait ────────────────────────────▶ round 2 opens, index 9 ──▶ … ──▶ b, c: 9
//! ```

use super::interface::{ReadError, ReadLost, ReadState};
use crate::types::{LogIndex, MemberId};
use std::collections::{BTreeMap, VecDeque};

/// A read that a client of this member began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    context: u64,
    /// The tick at which it arrived.
    since: u64,
}

/// This member's reads. Invariant: `accepted` counts those that wait here and those that a role has taken.
#[derive(Debug)]
pub(super) struct ReadQueue {
    /// In order of arrival.
    waiting: VecDeque<Read>,
    accepted: usize,
    max: usize,
    /// The number of this member's next query to a leader. The first is random, so that it differs from all before a restart.
    next_round: u64,
}

impl ReadQueue {
    pub(super) fn new(max: usize, first_round: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            accepted: 0,
            max,
            next_round: first_round,
        }
    }

    pub(super) fn push(&mut self, context: u64, now: u64) -> Result<(), ReadError> {
        if self.accepted >= self.max {
            return Err(ReadError::TooMany(self.accepted));
        }
        self.accepted += 1;
        self.waiting.push_back(Read {
            context,
            since: now,
        });
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Read> {
        self.waiting.drain(..).collect()
    }

    /// Takes back reads that a role has not answered, in front of those that came later.
    pub(super) fn put_back(&mut self, reads: Vec<Read>) {
        for read in reads.into_iter().rev() {
            self.waiting.push_front(read);
        }
    }

    /// Answers reads that a role had taken.
    pub(super) fn answer(&mut self, reads: Vec<Read>, index: LogIndex, out: &mut Vec<ReadState>) {
        self.accepted -= reads.len();
        let state = |read: Read| ReadState {
            context: read.context,
            outcome: Ok(index),
        };
        out.extend(reads.into_iter().map(state));
    }

    /// Gives up the reads that arrived before tick `before`.
    pub(super) fn expire(&mut self, before: u64, out: &mut Vec<ReadState>) {
        while let Some(&Read { context, since }) = self.waiting.front() {
            if since >= before {
                break;
            }
            self.waiting.pop_front();
            self.accepted -= 1;
            out.push(ReadState {
                context,
                outcome: Err(ReadLost),
            });
        }
    }

    /// A number that no other query of this member has.
    pub(super) fn draw_round(&mut self) -> u64 {
        self.next_round = self.next_round.wrapping_add(1);
        self.next_round
    }
}

/// A follower's query to its leader, for the reads that it answers.
#[derive(Debug)]
pub(super) struct ReadIndexQuery {
    pub(super) round: u64,
    pub(super) reads: Vec<Read>,
    /// The tick at which it was sent.
    pub(super) since: u64,
}

/// A leader's rounds. Their numbers are valid in its term only.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    last: u64,
    open: Option<Round>,
    /// Followers that wait for the next round, each with the number of its newest query.
    followers: BTreeMap<MemberId, u64>,
}

/// A round that a quorum has not confirmed yet.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) index: LogIndex,
    pub(super) reads: Vec<Read>,
    pub(super) followers: BTreeMap<MemberId, u64>,
}

impl Rounds {
    /// The newest round, which heartbeats contain.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// A follower sent a query.
    pub(super) fn queried(&mut self, from: MemberId, round: u64) {
        self.followers.insert(from, round);
    }

    /// Opens a round for all reads and queries that wait, if none is open. True if it did: a heartbeat must be sent now.
    pub(super) fn open(&mut self, queue: &mut ReadQueue, index: LogIndex) -> bool {
        if self.open.is_some() || (queue.is_empty() && self.followers.is_empty()) {
            return false;
        }
        self.last += 1;
        let followers = std::mem::take(&mut self.followers);
        self.open = Some(Round {
            index,
            reads: queue.take(),
            followers,
        });
        true
    }

    /// The open round, if a quorum confirmed leadership in round `confirmed` or later.
    pub(super) fn close(&mut self, confirmed: u64) -> Option<Round> {
        assert!(confirmed <= self.last, "round {confirmed} was never opened");
        self.open.take_if(|_| confirmed == self.last)
    }

    /// Whether a round waits for confirmation.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// This member's own reads that were not answered.
    pub(super) fn into_reads(self) -> Vec<Read> {
        self.open.map(|round| round.reads).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_come_during_a_round_wait_for_the_next() {
        let mut queue = ReadQueue::new(2, 0);
        let mut rounds = Rounds::default();
        let mut out = Vec::new();
        queue.push(1, 0).unwrap();
        assert!(rounds.open(&mut queue, LogIndex(7)));
        queue.push(2, 0).unwrap();
        assert_eq!(queue.push(3, 0), Err(ReadError::TooMany(2)));
        assert!(!rounds.open(&mut queue, LogIndex(9)), "one round at a time");
        assert!(rounds.close(0).is_none());
        let round = rounds.close(1).unwrap();
        queue.answer(round.reads, round.index, &mut out);
        assert!(rounds.open(&mut queue, LogIndex(9)));
        let round = rounds.close(2).unwrap();
        queue.answer(round.reads, round.index, &mut out);
        let answers: Vec<_> = out
            .iter()
            .map(|state| (state.context, state.outcome))
            .collect();
        assert_eq!(answers, [(1, Ok(LogIndex(7))), (2, Ok(LogIndex(9)))]);
    }

    #[test]
    fn reads_nobody_confirms_expire_in_order() {
        let mut queue = ReadQueue::new(9, 0);
        let mut out = Vec::new();
        queue.push(1, 5).unwrap();
        queue.push(2, 6).unwrap();
        let taken = queue.take();
        queue.push(3, 7).unwrap();
        queue.put_back(taken);
        queue.expire(7, &mut out);
        assert_eq!(
            out.iter().map(|state| state.context).collect::<Vec<_>>(),
            [1, 2]
        );
        assert!(!queue.is_empty());
    }
}
