//! Committed entries on their way to the applier.

use crate::{actors::apply_messages::CommittedEntry, types::LogIndex};
use std::collections::VecDeque;

/// Messages to the applier that it has not answered. Entries that are committed meanwhile go together in the next message.
const IN_FLIGHT_MAX: usize = 2;

/// The entries that wait, and the messages in flight. Consensus bounds the bytes of both.
#[derive(Debug)]
pub(super) struct Deliveries {
    waiting: Vec<CommittedEntry>,
    /// The last index of each message that the applier has not answered.
    in_flight: VecDeque<LogIndex>,
    applied: LogIndex,
}

impl Deliveries {
    /// The applier has applied everything up to `applied`.
    pub(super) fn new(applied: LogIndex) -> Self {
        Self {
            waiting: Vec::new(),
            in_flight: VecDeque::new(),
            applied,
        }
    }

    /// Entries up to here are applied.
    pub(super) fn applied(&self) -> LogIndex {
        self.applied
    }

    pub(super) fn push(&mut self, committed: CommittedEntry) {
        self.waiting.push(committed);
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
        std::mem::replace(self, Self::new(index)).waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Entry, EntryKind, Term};
    use bytes::Bytes;

    fn committed(index: u64) -> CommittedEntry {
        let entry = Entry {
            term: Term(1),
            index: LogIndex(index),
            kind: EntryKind::Command,
            data: Bytes::new(),
        };
        CommittedEntry { entry, reply: None }
    }

    fn next(deliveries: &mut Deliveries) -> Option<usize> {
        deliveries.next().map(|entries| entries.len())
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
