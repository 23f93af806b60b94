//! A follower: appends the leader's entries, acknowledges those that are durable, and asks the leader for read indexes.

use super::{
    interface::StepError, message::MessageBody, read_index::ReadIndexQuery, state::CoreState,
};
use crate::types::{Entry, LogIndex, LogPosition, MemberId};

/// What only a follower has. All of it concerns one term.
#[derive(Debug)]
pub(super) struct Follower {
    /// The leader of the term, once a message of its has arrived.
    pub(super) leader: Option<MemberId>,
    /// Ticks since the leader's last message, or since this member voted.
    pub(super) elapsed_ticks: u32,
    timeout_ticks: u32,
    /// This log equals the leader's up to here.
    matched: LogIndex,
    /// The last index acknowledged. While only part of `matched` is durable, a reply must acknowledge more than this.
    acked: LogIndex,
    /// The leader waits for an acknowledgement.
    ack_due: bool,
    /// The read-index query that the leader has not answered.
    query: Option<ReadIndexQuery>,
}

impl Follower {
    pub(super) fn new(state: &mut CoreState, leader: Option<MemberId>) -> Self {
        Self {
            leader,
            elapsed_ticks: 0,
            timeout_ticks: state.draw_timeout(),
            // Committed entries are in the log of every later leader.
            matched: state.log.commit(),
            acked: state.log.stable(),
            ack_due: false,
            query: None,
        }
    }

    /// One tick passed. True if it is time to campaign.
    pub(super) fn tick(&mut self, state: &mut CoreState) -> bool {
        self.elapsed_ticks = self.elapsed_ticks.saturating_add(1);
        let retry_ticks = u64::from(state.config.heartbeat_ticks) * 2 + 1;
        if self
            .query
            .as_ref()
            .is_some_and(|query| query.since + retry_ticks < state.now)
        {
            self.requeue_reads(state);
        }
        self.elapsed_ticks >= self.timeout_ticks
    }

    /// Starts the election timeout again, since this member must not campaign now.
    pub(super) fn restart_timeout(&mut self, state: &mut CoreState) {
        self.elapsed_ticks = 0;
        self.timeout_ticks = state.draw_timeout();
    }

    /// Gives up the query to the leader, which may be lost: its reads go into the next one.
    pub(super) fn requeue_reads(&mut self, state: &mut CoreState) {
        if let Some(query) = self.query.take() {
            state.reads.put_back(query.reads);
        }
    }

    /// A message proves that `from` leads the term.
    pub(super) fn accept_leader(
        &mut self,
        state: &CoreState,
        from: MemberId,
    ) -> Result<(), StepError> {
        let leads = *self.leader.get_or_insert(from);
        if leads != from {
            let term = state.term;
            return Err(StepError::SecondLeader {
                term,
                claims: from,
                leads,
            });
        }
        self.elapsed_ticks = 0;
        Ok(())
    }

    /// Appends the leader's entries and overwrites those of this log that differ.
    pub(super) fn on_append(
        &mut self,
        state: &mut CoreState,
        from: MemberId,
        prev: LogPosition,
        commit: LogIndex,
        mut entries: Vec<Entry>,
    ) {
        let committed = state.log.commit();
        let mut base = prev;
        if prev.index < committed {
            // Committed entries are equal in the leader's log, and may be released from this one.
            entries.retain(|entry| entry.index > committed);
            let term = state
                .log
                .term(committed)
                .expect("the commit index lies in the log");
            base = LogPosition::new(term, committed);
        }
        if !state.log.contains(base) {
            let hint = state.log.last_possible_match(prev);
            state.send(
                from,
                MessageBody::AppendRejected {
                    rejected: prev.index,
                    hint,
                },
            );
            return;
        }
        let end = entries.last().map_or(base.index, |entry| entry.index);
        self.append_entries(state, entries);
        self.matched = self.matched.max(end);
        self.ack_due = true;
        state.commit_to(commit.min(self.matched));
    }

    fn append_entries(&mut self, state: &mut CoreState, entries: Vec<Entry>) {
        for entry in entries {
            match state.log.term(entry.index) {
                Some(term) if term == entry.term => continue,
                Some(_) => {
                    state.truncate(entry.index);
                    self.matched = self.matched.min(state.log.last().index);
                }
                None => {}
            }
            state.append_received(entry);
        }
    }

    /// The leader says that `commit`, which this member has acknowledged to it, is committed.
    pub(super) fn on_commit(
        &mut self,
        state: &mut CoreState,
        commit: LogIndex,
    ) -> Result<(), StepError> {
        let last = state.log.last().index;
        if commit > last {
            return Err(StepError::EntriesLost { commit, last });
        }
        self.matched = self.matched.max(commit);
        state.commit_to(commit);
        Ok(())
    }

    /// A snapshot that contains everything up to `through` was installed.
    pub(super) fn snapshot_installed(&mut self, through: LogIndex) {
        self.matched = self.matched.max(through);
        self.ack_due = true;
    }

    /// The leader answered a read-index query.
    pub(super) fn on_read_index_reply(
        &mut self,
        state: &mut CoreState,
        round: u64,
        index: LogIndex,
    ) {
        if let Some(query) = self.query.take_if(|query| query.round == round) {
            state
                .reads
                .answer(query.reads, index, &mut state.effects.reads);
        }
    }

    /// Adds to the next `Ready` one acknowledgement for all that became durable, and one query for all reads that wait.
    pub(super) fn prepare_ready(&mut self, state: &mut CoreState) {
        let Some(leader) = self.leader else { return };
        self.acknowledge(state, leader);
        if self.query.is_none() && !state.reads.is_empty() {
            let round = state.reads.draw_round();
            self.query = Some(ReadIndexQuery {
                round,
                reads: state.reads.take(),
                since: state.now,
            });
            state.send(leader, MessageBody::ReadIndex { round });
        }
    }

    fn acknowledge(&mut self, state: &mut CoreState, leader: MemberId) {
        let durable = self.matched.min(state.log.stable());
        let whole = durable == self.matched;
        let due = self.ack_due && (whole || durable > self.acked);
        if due && state.is_hard_state_durable() {
            state.send(leader, MessageBody::AppendReply { matched: durable });
            self.acked = durable;
            self.ack_due = !whole;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Config, InitialState, Message, RaftCore,
        testing::{index, voters},
    };
    use super::*;
    use crate::types::{EntryKind, Term};
    use bytes::Bytes;

    /// What the leader of `term` sends after `prev`.
    fn append(node: &mut RaftCore, term: u64, prev: LogPosition, commit: u64, count: u64) {
        let (term, kind, data) = (Term(term), EntryKind::Command, Bytes::new());
        let entry = |at| Entry {
            term,
            index: index(at),
            kind,
            data: data.clone(),
        };
        let entries = (prev.index.0 + 1..=prev.index.0 + count).map(entry);
        let body = MessageBody::Append {
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
        let mut node = RaftCore::new(Config::new(MemberId(1), 1), state).unwrap();
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
