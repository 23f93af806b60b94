//! Takes messages from other members: the rules about terms and senders that hold in every role, and which role handles what.

use super::{
    interface::StepError,
    membership::Membership,
    message::{Message, MessageBody},
    raft_core::{RaftCore, Role},
};
use crate::types::{EntryKind, MemberId, Term};

impl RaftCore {
    /// Takes a message whose sender `from` the transport has authenticated. After an error the message had no
    /// effect beyond the sender's term; the error is worth a log line.
    pub fn step(&mut self, from: MemberId, message: Message) -> Result<(), StepError> {
        if from == self.state.id() || from == MemberId(0) {
            return Err(StepError::Sender(from));
        }
        let Message { term, body } = message;
        check_entries(term, &body)?;
        if !self.accept_term(from, term, &body) {
            return Ok(());
        }
        if body.is_from_leader() {
            self.accept_leader(from)?;
        }
        match body {
            MessageBody::PreVote { last } => self.on_pre_vote(from, term, last),
            MessageBody::PreVoteReply { asked, granted } => {
                self.on_pre_vote_reply(from, asked, granted);
            }
            MessageBody::RequestVote { last, .. } => self.on_request_vote(from, last),
            MessageBody::Vote { granted } => self.on_vote(from, granted),
            MessageBody::TimeoutNow => self.start_campaign(true),
            MessageBody::StaleTerm => {}
            MessageBody::Append { .. }
            | MessageBody::Commit { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::ReadIndexReply { .. } => return self.step_follower(from, body),
            MessageBody::AppendReply { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatReply { .. }
            | MessageBody::ReadIndex { .. } => return self.step_leader(from, &body),
        }
        Ok(())
    }

    /// Compares the sender's term with the current one. False if the message is to be dropped.
    fn accept_term(&mut self, from: MemberId, term: Term, body: &MessageBody) -> bool {
        if matches!(body, MessageBody::PreVote { .. }) {
            return true;
        }
        if term > self.state.term {
            // A member that is cut off from a live leader must not depose it.
            let disruptive = matches!(
                body,
                MessageBody::RequestVote {
                    transfer: false,
                    ..
                }
            );
            if disruptive && self.has_recent_leader() {
                return false;
            }
            self.become_follower(term, None);
            return true;
        }
        if term < self.state.term {
            if body.is_from_leader() {
                self.state.send(from, MessageBody::StaleTerm);
            } else if matches!(body, MessageBody::RequestVote { .. }) {
                self.state.send(from, MessageBody::Vote { granted: false });
            }
            return matches!(body, MessageBody::PreVoteReply { .. });
        }
        true
    }

    /// `from` sent a message that only the leader of the current term sends: follows it.
    fn accept_leader(&mut self, from: MemberId) -> Result<(), StepError> {
        match &mut self.role {
            Role::Follower(follower) => follower.accept_leader(&self.state, from),
            Role::Candidate(_) => {
                self.become_follower(self.state.term, Some(from));
                Ok(())
            }
            Role::Leader(_) => Err(StepError::SecondLeader {
                term: self.state.term,
                claims: from,
                leads: self.state.id(),
            }),
        }
    }

    fn step_follower(&mut self, from: MemberId, body: MessageBody) -> Result<(), StepError> {
        let Role::Follower(follower) = &mut self.role else {
            unreachable!("accept_leader() made this member a follower");
        };
        let state = &mut self.state;
        match body {
            MessageBody::Append {
                prev,
                commit,
                entries,
            } => follower.on_append(state, from, prev, commit, entries),
            MessageBody::Commit { commit } => follower.on_commit(state, commit)?,
            MessageBody::Heartbeat { commit, round } => {
                follower.on_commit(state, commit)?;
                state.send(from, MessageBody::HeartbeatReply { round });
            }
            MessageBody::ReadIndexReply { round, index } => {
                follower.on_read_index_reply(state, round, index);
            }
            MessageBody::PreVote { .. }
            | MessageBody::PreVoteReply { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::Vote { .. }
            | MessageBody::AppendReply { .. }
            | MessageBody::AppendRejected { .. }
            | MessageBody::HeartbeatReply { .. }
            | MessageBody::ReadIndex { .. }
            | MessageBody::TimeoutNow
            | MessageBody::StaleTerm => {
                unreachable!("step() passes only leaders' messages to a follower")
            }
        }
        Ok(())
    }

    fn step_leader(&mut self, from: MemberId, body: &MessageBody) -> Result<(), StepError> {
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let state = &mut self.state;
        match *body {
            MessageBody::AppendReply { matched } => {
                if leader.on_append_reply(state, from, matched)? {
                    self.resign();
                }
            }
            MessageBody::AppendRejected { rejected, hint } => {
                leader.on_append_rejected(state, from, rejected, hint);
            }
            MessageBody::HeartbeatReply { round } => leader.on_heartbeat_reply(state, from, round),
            MessageBody::ReadIndex { round } => leader.on_read_index(from, round),
            MessageBody::PreVote { .. }
            | MessageBody::PreVoteReply { .. }
            | MessageBody::RequestVote { .. }
            | MessageBody::Vote { .. }
            | MessageBody::Append { .. }
            | MessageBody::Commit { .. }
            | MessageBody::Heartbeat { .. }
            | MessageBody::ReadIndexReply { .. }
            | MessageBody::TimeoutNow
            | MessageBody::StaleTerm => unreachable!("step() passes only replies to a leader"),
        }
        Ok(())
    }

    /// Messages to `peer` may have been lost.
    pub fn unreachable(&mut self, peer: MemberId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_unreachable(peer);
        }
    }
}

/// Checks an append's entries: indexes are consecutive, terms do not fall and are not newer than the sender's, memberships
/// decode.
fn check_entries(term: Term, body: &MessageBody) -> Result<(), StepError> {
    let MessageBody::Append { prev, entries, .. } = body else {
        return Ok(());
    };
    let mut before = *prev;
    for entry in entries {
        let follows = before.index.0.checked_add(1) == Some(entry.index.0);
        let in_order = before.term <= entry.term && entry.term <= term;
        let sound = entry.kind != EntryKind::Membership || Membership::decode(&entry.data).is_ok();
        if !(follows && in_order && sound) {
            return Err(StepError::Entry { index: entry.index });
        }
        before = entry.position();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{
        Config, InitialState,
        testing::{index, opaque_entry as entry, voters},
    };
    use super::*;
    use crate::types::{Entry, LogPosition};

    fn started(size: u64) -> RaftCore {
        let state = InitialState {
            membership: voters(1..=size),
            ..InitialState::default()
        };
        RaftCore::new(Config::new(MemberId(1), 1), state).unwrap()
    }

    fn append(term: u64, entries: Vec<Entry>) -> Message {
        let prev = LogPosition::default();
        let commit = index(0);
        let body = MessageBody::Append {
            prev,
            commit,
            entries,
        };
        Message {
            term: Term(term),
            body,
        }
    }

    #[test]
    fn malformed_appends_are_refused_whole() {
        let mut node = started(3);
        let bad = [
            vec![entry(1, 2, EntryKind::Command)],
            vec![
                entry(2, 1, EntryKind::Command),
                entry(1, 2, EntryKind::Command),
            ],
            vec![entry(9, 1, EntryKind::Command)],
            vec![entry(1, 1, EntryKind::Membership)],
        ];
        for entries in bad {
            let refused = node.step(MemberId(2), append(3, entries.clone()));
            assert!(
                matches!(refused, Err(StepError::Entry { .. })),
                "{entries:?}"
            );
            assert_eq!(node.last(), LogPosition::default());
        }
    }

    #[test]
    fn impossible_senders_are_refused() {
        let mut node = started(3);
        for sender in [MemberId(0), MemberId(1)] {
            let refused = node.step(sender, append(1, Vec::new()));
            assert_eq!(refused, Err(StepError::Sender(sender)));
        }
        node.step(MemberId(2), append(1, Vec::new())).unwrap();
        let refused = node.step(MemberId(3), append(1, Vec::new()));
        let (term, claims, leads) = (Term(1), MemberId(3), MemberId(2));
        assert_eq!(
            refused,
            Err(StepError::SecondLeader {
                term,
                claims,
                leads
            })
        );
    }

    #[test]
    fn a_member_that_lost_what_it_acknowledged_notices() {
        let mut node = started(3);
        let body = MessageBody::Heartbeat {
            commit: index(7),
            round: 0,
        };
        let refused = node.step(
            MemberId(2),
            Message {
                term: Term(1),
                body,
            },
        );
        let (commit, last) = (index(7), index(0));
        assert_eq!(refused, Err(StepError::EntriesLost { commit, last }));
    }
}
