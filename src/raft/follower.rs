//! A follower: accepts the leader's entries, acknowledges what is durable, and asks the leader for its readers.

use super::common::Common;
use super::interface::StepError;
use super::message::Body;
use super::read_index::Asked;
use crate::types::{Entry, LogIndex, LogPosition, MemberId};

/// What only a follower has. All of it concerns one term.
#[derive(Debug)]
pub(super) struct Follower {
    /// Who leads the term, once heard.
    pub(super) leader: Option<MemberId>,
    /// Ticks since the leader was heard, or a vote given.
    pub(super) elapsed: u32,
    timeout: u32,
    /// Our log equals the leader's up to here.
    matched: LogIndex,
    /// A reply that says no more than this is not worth sending before all of `matched` is durable.
    acked: LogIndex,
    /// The leader waits for an acknowledgement.
    ack_due: bool,
    asked: Option<Asked>,
}

impl Follower {
    pub(super) fn new(common: &mut Common, leader: Option<MemberId>) -> Self {
        Self {
            leader,
            elapsed: 0,
            timeout: common.draw_timeout(),
            // Committed entries are in every later leader's log.
            matched: common.log.commit(),
            acked: common.log.stable(),
            ack_due: false,
            asked: None,
        }
    }

    /// One tick passed. True if it is time to stand for election.
    pub(super) fn tick(&mut self, common: &mut Common) -> bool {
        self.elapsed = self.elapsed.saturating_add(1);
        let patience = u64::from(common.config.heartbeat_ticks) * 2 + 1;
        if self
            .asked
            .as_ref()
            .is_some_and(|asked| asked.since + patience < common.now)
        {
            self.ask_again(common);
        }
        self.elapsed >= self.timeout
    }

    /// It stood aside for a reason; wait anew.
    pub(super) fn restart_timeout(&mut self, common: &mut Common) {
        self.elapsed = 0;
        self.timeout = common.draw_timeout();
    }

    /// The question to the leader may be lost: its readers ask again.
    pub(super) fn ask_again(&mut self, common: &mut Common) {
        if let Some(asked) = self.asked.take() {
            common.reads.put_back(asked.reads);
        }
    }

    /// A message proves that `from` leads the term.
    pub(super) fn heard_leader(
        &mut self,
        common: &Common,
        from: MemberId,
    ) -> Result<(), StepError> {
        let leads = *self.leader.get_or_insert(from);
        if leads != from {
            let term = common.term;
            return Err(StepError::SecondLeader {
                term,
                claims: from,
                leads,
            });
        }
        self.elapsed = 0;
        Ok(())
    }

    /// Takes the leader's entries, overwriting what differs.
    pub(super) fn append(
        &mut self,
        common: &mut Common,
        from: MemberId,
        prev: LogPosition,
        commit: LogIndex,
        mut entries: Vec<Entry>,
    ) {
        let committed = common.log.commit();
        let mut base = prev;
        if prev.index < committed {
            // What is committed is equal in the leader's log, and may be gone from ours.
            entries.retain(|entry| entry.index > committed);
            let term = common
                .log
                .term(committed)
                .expect("the commit index lies in the log");
            base = LogPosition::new(term, committed);
        }
        if !common.log.contains(base) {
            let hint = common.log.last_possible_match(prev);
            common.send(
                from,
                Body::AppendRejected {
                    rejected: prev.index,
                    hint,
                },
            );
            return;
        }
        let end = entries.last().map_or(base.index, |entry| entry.index);
        self.take(common, entries);
        self.matched = self.matched.max(end);
        self.ack_due = true;
        common.commit_to(commit.min(self.matched));
    }

    fn take(&mut self, common: &mut Common, entries: Vec<Entry>) {
        for entry in entries {
            match common.log.term(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => {
                    common.truncate(entry.index);
                    self.matched = self.matched.min(common.log.last().index);
                }
                None => {}
            }
            common.append_received(entry);
        }
    }

    /// The leader says that `commit`, which we once acknowledged to it, is committed.
    pub(super) fn committed(
        &mut self,
        common: &mut Common,
        commit: LogIndex,
    ) -> Result<(), StepError> {
        let last = common.log.last().index;
        if commit > last {
            return Err(StepError::EntriesLost { commit, last });
        }
        self.matched = self.matched.max(commit);
        common.commit_to(commit);
        Ok(())
    }

    /// Entries up to `through` came as a snapshot.
    pub(super) fn restored(&mut self, through: LogIndex) {
        self.matched = self.matched.max(through);
        self.ack_due = true;
    }

    /// The leader answered the readers' question.
    pub(super) fn read_answered(&mut self, common: &mut Common, round: u64, index: LogIndex) {
        if let Some(asked) = self.asked.take_if(|asked| asked.round == round) {
            common
                .reads
                .answer(asked.reads, index, &mut common.out.reads);
        }
    }

    /// Prepares what goes out with the next `Ready`: one acknowledgement for all that became durable, and
    /// one question for all readers.
    pub(super) fn settle(&mut self, common: &mut Common) {
        let Some(leader) = self.leader else { return };
        self.acknowledge(common, leader);
        if self.asked.is_none() && !common.reads.is_empty() {
            let round = common.reads.draw_round();
            let (reads, since) = (common.reads.take(), common.now);
            self.asked = Some(Asked {
                round,
                reads,
                since,
            });
            common.send(leader, Body::ReadIndex { round });
        }
    }

    fn acknowledge(&mut self, common: &mut Common, leader: MemberId) {
        let durable = self.matched.min(common.log.stable());
        let whole = durable == self.matched;
        let due = self.ack_due && (whole || durable > self.acked);
        if due && common.hard_state_durable() {
            common.send(leader, Body::AppendReply { matched: durable });
            self.acked = durable;
            self.ack_due = !whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{index, voters};
    use super::super::{Config, InitialState, Message, Node};
    use super::*;
    use crate::types::{EntryKind, Term};
    use bytes::Bytes;

    /// What the leader of `term` sends after `prev`.
    fn append(node: &mut Node, term: u64, prev: LogPosition, commit: u64, count: u64) {
        let (term, kind, data) = (Term(term), EntryKind::Command, Bytes::new());
        let entry = |at| Entry {
            term,
            index: index(at),
            kind,
            data: data.clone(),
        };
        let entries = (prev.index.0 + 1..=prev.index.0 + count).map(entry);
        let body = Body::Append {
            prev,
            commit: index(commit),
            entries: entries.collect(),
        };
        let leader = MemberId(term.0 + 1);
        node.step(leader, Message { term, body }).unwrap();
    }

    #[test]
    fn a_tail_the_leader_did_not_confirm_is_not_committed() {
        let state = InitialState {
            membership: voters(1..=3),
            ..InitialState::default()
        };
        let mut node = Node::new(Config::new(MemberId(1), 1), state).unwrap();
        append(&mut node, 1, LogPosition::default(), 1, 3);
        assert_eq!((node.last().index, node.commit()), (index(3), index(1)));
        let base = LogPosition::new(Term(1), index(1));
        append(&mut node, 2, base, 3, 0);
        assert_eq!(
            node.commit(),
            index(1),
            "2 and 3 may differ from what the leader has"
        );
        append(&mut node, 2, base, 3, 2);
        assert_eq!(
            (node.last(), node.commit()),
            (LogPosition::new(Term(2), index(3)), index(3))
        );
        node.check();
    }
}
