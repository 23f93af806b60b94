//! Which writes to the WAL are durable, and the messages that must wait for one.
//!
//! A vote, or any reply in a new term, is a promise: it may be sent only when the term and vote behind it would survive a
//! crash. Acknowledgements of entries are held back elsewhere: a follower sends them only for what the log calls stable.

use super::message::{Envelope, Message};
use crate::types::{LogIndex, LogPosition, MemberId, Term};
use std::collections::VecDeque;

/// Messages that may wait for the hard state to become durable. More are dropped, as the network might drop them.
const HELD_MAX: usize = 64;

/// The writes handed to the caller. Invariant: `durable_seq <= last_seq`.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// The newest write handed to the caller.
    last_seq: u64,
    /// The newest write reported durable.
    durable_seq: u64,
    /// The write that contains, or will contain, the current term and vote.
    hard_state_seq: u64,
    /// Writes not yet durable, each with the last index it makes durable. That index is lowered when entries of the write
    /// are overwritten later: an entry that comes back in a later write is durable only with that one.
    in_flight: VecDeque<(u64, LogIndex)>,
    /// The next write resets the log to this snapshot position.
    reset: Option<LogPosition>,
    /// Messages held back, each with the write it waits for.
    held: Vec<(u64, Envelope)>,
}

impl Durability {
    /// The term or the vote changed: the next write contains them.
    pub(super) fn hard_state_changed(&mut self) {
        self.hard_state_seq = self.last_seq + 1;
    }

    /// Whether the current term and vote would survive a crash.
    pub(super) fn is_hard_state_durable(&self) -> bool {
        self.hard_state_seq <= self.durable_seq
    }

    /// Whether there is something to write besides entries.
    pub(super) fn needs_write(&self) -> bool {
        self.hard_state_seq > self.last_seq || self.reset.is_some()
    }

    /// Numbers the next write, which makes the log durable up to `last`. Returns the write's number and the position
    /// to which it resets the log first, if it does.
    pub(super) fn begin_write(&mut self, last: LogIndex) -> (u64, Option<LogPosition>) {
        self.last_seq += 1;
        self.in_flight.push_back((self.last_seq, last));
        (self.last_seq, self.reset.take())
    }

    /// The write `seq` and all before it are durable. Returns the last index that this makes durable, if any write ended.
    pub(super) fn persisted(&mut self, seq: u64) -> Option<LogIndex> {
        assert!(
            seq <= self.last_seq,
            "write {seq} is reported durable but only {} were handed out",
            self.last_seq
        );
        self.durable_seq = self.durable_seq.max(seq);
        let mut stable = None;
        while let Some((_, last)) = self.in_flight.pop_front_if(|(written, _)| *written <= seq) {
            stable = stable.max(Some(last));
        }
        stable
    }

    /// The log was truncated and now ends at `last`.
    pub(super) fn truncated(&mut self, last: LogIndex) {
        for (_, durable) in &mut self.in_flight {
            *durable = (*durable).min(last);
        }
    }

    /// A snapshot at `id` replaced the whole log; the next write passes that on to the WAL.
    pub(super) fn log_replaced(&mut self, id: LogPosition) {
        self.reset = Some(id);
        for (_, durable) in &mut self.in_flight {
            *durable = id.index;
        }
    }

    /// Holds back `message` until the current term and vote are durable. It replaces an older one of its kind.
    pub(super) fn hold(&mut self, to: MemberId, message: Message) {
        let kind = std::mem::discriminant(&message.body);
        self.held
            .retain(|(_, old)| old.to != to || std::mem::discriminant(&old.message.body) != kind);
        if self.held.len() < HELD_MAX {
            self.held
                .push((self.hard_state_seq, Envelope { to, message }));
        }
    }

    /// Moves the messages that may be sent now to `out`. Those of terms older than `term` are dropped.
    pub(super) fn release_held(&mut self, term: Term, out: &mut Vec<Envelope>) {
        let durable = self.durable_seq;
        for (_, envelope) in self.held.extract_if(.., |(seq, _)| *seq <= durable) {
            if envelope.message.term == term {
                out.push(envelope);
            }
        }
    }

    pub(super) fn check(&self) {
        assert!(
            self.durable_seq <= self.last_seq,
            "durable writes were handed out"
        );
        assert!(self.held.len() <= HELD_MAX, "held messages are bounded");
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::MessageBody;
    use super::*;

    fn vote(term: u64, granted: bool) -> Message {
        let body = MessageBody::Vote { granted };
        let term = Term(term);
        Message { term, body }
    }

    fn released(durability: &mut Durability, term: u64) -> Vec<Message> {
        let mut out = Vec::new();
        durability.release_held(Term(term), &mut out);
        out.into_iter().map(|sent| sent.message).collect()
    }

    #[test]
    fn a_vote_is_held_until_its_term_is_durable() {
        let mut durability = Durability::default();
        assert!(durability.is_hard_state_durable());
        durability.hard_state_changed();
        durability.hold(MemberId(2), vote(1, false));
        durability.hold(MemberId(2), vote(1, true));
        let (seq, reset) = durability.begin_write(LogIndex(0));
        assert_eq!(reset, None);
        assert_eq!(released(&mut durability, 1), []);
        durability.persisted(seq);
        assert!(durability.is_hard_state_durable());
        assert_eq!(released(&mut durability, 1), [vote(1, true)], "the newest");
        assert_eq!(released(&mut durability, 1), [], "once");
    }

    #[test]
    fn held_messages_of_older_terms_are_dropped() {
        let mut durability = Durability::default();
        durability.hard_state_changed();
        durability.hold(MemberId(2), vote(1, true));
        let (seq, _) = durability.begin_write(LogIndex(0));
        durability.persisted(seq);
        assert_eq!(released(&mut durability, 2), []);
    }

    #[test]
    fn an_overwritten_entry_is_durable_only_with_the_write_that_replaced_it() {
        let mut durability = Durability::default();
        let (first, _) = durability.begin_write(LogIndex(9));
        durability.truncated(LogIndex(6));
        let (second, _) = durability.begin_write(LogIndex(8));
        assert_eq!(durability.persisted(first), Some(LogIndex(6)));
        assert_eq!(durability.persisted(first), None, "reported already");
        assert_eq!(durability.persisted(second), Some(LogIndex(8)));
        durability.check();
    }

    #[test]
    fn held_messages_are_bounded() {
        let mut durability = Durability::default();
        durability.hard_state_changed();
        for to in 0..=u64::try_from(HELD_MAX).unwrap() {
            durability.hold(MemberId(to), vote(1, true));
        }
        durability.check();
    }
}
