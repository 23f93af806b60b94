//! Committed entries: how far consensus has handed them out, and their way to the applier.

use crate::{
    actors::apply_messages::{Caller, CommittedEntry},
    types::{LogIndex, Term},
};
use std::collections::VecDeque;
use tokio::time::Instant;

/// Messages to the applier that it has not answered. Entries that are committed meanwhile go together in the next message.
const IN_FLIGHT_MAX: usize = 2;

/// The entries that wait, and the messages in flight. Consensus bounds the bytes of both.
#[derive(Debug)]
pub(super) struct Deliveries {
    /// The newest entry that consensus has handed out.
    committed: LogIndex,
    /// The newest term of which an entry was handed out.
    committed_term: Term,
    waiting: Vec<CommittedEntry>,
    /// The last index of each message that the applier has not answered.
    in_flight: VecDeque<LogIndex>,
    applied: LogIndex,
}

impl Deliveries {
    /// The applier has applied everything up to `applied`.
    pub(super) fn new(applied: LogIndex) -> Self {
        Self {
            committed: LogIndex(0),
            committed_term: Term(0),
            waiting: Vec::new(),
            in_flight: VecDeque::new(),
            applied,
        }
    }

    /// The newest entry that consensus has handed out as committed since this member started.
    pub(super) fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Entries up to here are applied.
    pub(super) fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Adds an entry that consensus has handed out. Returns its term if it is the first one of a newer term.
    pub(super) fn push(&mut self, committed: CommittedEntry) -> Option<Term> {
        let entry = &committed.entry;
        let (index, term) = (entry.index, entry.term);
        self.waiting.push(committed);
        self.committed = index;
        let is_newer = term > self.committed_term;
        self.committed_term = self.committed_term.max(term);
        is_newer.then_some(term)
    }

    /// The entries of the next message, if one may be sent now.
    pub(super) fn next(&mut self) -> Option<Vec<CommittedEntry>> {
        let last = self.waiting.last()?.entry.index;
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            return None;
        }
        self.in_flight.push_back(last);
        Some(std::mem::take(&mut self.waiting))
    }

    /// Takes the callers of entries that wait, if their deadlines are not after `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Caller> {
        let waiting = self.waiting.iter_mut();
        waiting
            .filter_map(|entry| entry.take_expired(now))
            .collect()
    }

    /// The applier reports that entries up to `applied` are applied.
    pub(super) fn progressed(&mut self, applied: LogIndex) {
        self.applied = applied;
        while self
            .in_flight
            .pop_front_if(|last| *last <= applied)
            .is_some()
        {}
    }

    /// A snapshot that contains everything up to `index` replaced the applier's state. Returns the entries that are not
    /// delivered any more: the snapshot contains them.
    pub(super) fn replaced(&mut self, index: LogIndex) -> Vec<CommittedEntry> {
        let new = Self {
            committed: self.committed,
            committed_term: self.committed_term,
            ..Self::new(index)
        };
        std::mem::replace(self, new).waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock,
        types::{Entry, EntryKind, Term},
    };
    use bytes::Bytes;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn committed(index: u64) -> CommittedEntry {
        let entry = Entry {
            term: Term(1),
            index: LogIndex(index),
            kind: EntryKind::Command,
            data: Bytes::new(),
        };
        CommittedEntry {
            entry,
            caller: None,
        }
    }

    fn next(deliveries: &mut Deliveries) -> Option<usize> {
        deliveries.next().map(|entries| entries.len())
    }

    #[test]
    fn the_first_entry_of_each_term_is_told_apart() {
        let mut deliveries = Deliveries::new(LogIndex(7));
        assert_eq!(deliveries.committed(), LogIndex(0), "none is handed out");
        let terms = [(8, 2), (9, 2), (10, 5), (11, 5)].map(|(index, term)| {
            let mut next = committed(index);
            next.entry.term = Term(term);
            deliveries.push(next)
        });
        assert_eq!(terms, [Some(Term(2)), None, Some(Term(5)), None]);
        assert_eq!(deliveries.committed(), LogIndex(11));
        deliveries.replaced(LogIndex(20));
        assert_eq!(deliveries.committed(), LogIndex(11), "as handed out");
        let mut next = committed(21);
        next.entry.term = Term(5);
        assert_eq!(deliveries.push(next), None, "it is not the first");
    }

    #[test]
    fn entries_that_come_while_messages_are_in_flight_go_together() {
        let mut deliveries = Deliveries::new(LogIndex(0));
        for index in 1..=2 {
            deliveries.push(committed(index));
            assert_eq!(next(&mut deliveries), Some(1));
        }
        deliveries.push(committed(3));
        deliveries.push(committed(4));
        assert_eq!(next(&mut deliveries), None, "two are in flight");
        deliveries.progressed(LogIndex(1));
        assert_eq!(next(&mut deliveries), Some(2));
        deliveries.progressed(LogIndex(4));
        assert_eq!(deliveries.applied(), LogIndex(4));
        assert_eq!(next(&mut deliveries), None, "nothing waits");
    }

    #[test]
    fn callers_expire_while_their_entries_wait_for_the_applier() {
        let start = clock::now();
        let mut deliveries = Deliveries::new(LogIndex(0));
        for index in 1..=4 {
            let mut entry = committed(index);
            let (reply, _) = oneshot::channel();
            entry.caller = Some(Caller {
                deadline: start + Duration::from_secs(index),
                reply: reply.into(),
            });
            deliveries.push(entry);
            if index <= 2 {
                assert_eq!(next(&mut deliveries), Some(1), "the applier has them");
            }
        }
        assert!(deliveries.expire(start).is_empty());
        let expired = deliveries.expire(start + Duration::from_secs(3));
        assert_eq!(expired.len(), 1, "3, not 4; 1 and 2 are delivered");
        assert!(deliveries.expire(start + Duration::from_secs(3)).is_empty());
        deliveries.progressed(LogIndex(2));
        let entries = deliveries.next().expect("two wait");
        let waits: Vec<bool> = entries.iter().map(|entry| entry.caller.is_some()).collect();
        assert_eq!(waits, [false, true], "the entry is applied nevertheless");
    }

    #[test]
    fn a_snapshot_replaces_what_was_to_be_delivered() {
        let mut deliveries = Deliveries::new(LogIndex(0));
        deliveries.push(committed(1));
        assert_eq!(next(&mut deliveries), Some(1));
        deliveries.push(committed(2));
        assert_eq!(deliveries.replaced(LogIndex(9)).len(), 1);
        assert_eq!(deliveries.applied(), LogIndex(9));
        deliveries.push(committed(10));
        assert_eq!(next(&mut deliveries), Some(1), "nothing is in flight");
    }
}
