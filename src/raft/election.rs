//! Elections: campaigning, by way of a pre-vote, and answering members that campaign.
//!
//! A candidate's own vote counts like any other: once it is durable.

use super::{
    message::MessageBody,
    quorum::VoteOutcome,
    raft_core::{RaftCore, Role},
};
use crate::types::{LogPosition, MemberId, Term};

impl RaftCore {
    /// Campaigns if this member may lead. A pre-vote comes first, unless `transfer`: then the leader asked for the campaign.
    pub(super) fn start_campaign(&mut self, transfer: bool) {
        let id = self.state.id();
        let may_lead = self.state.applying.has_state_machine() && !self.state.leading_forbidden;
        if !may_lead || !self.state.history.may_campaign(id) {
            if let Role::Follower(follower) = &mut self.role {
                follower.restart_timeout(&mut self.state);
            }
            return;
        }
        let sole_voter = self.state.membership().is_sole_voter(id);
        if self.state.config.pre_vote && !transfer && !sole_voter {
            self.request_pre_votes();
        } else {
            self.request_votes(transfer);
        }
    }

    fn request_pre_votes(&mut self) {
        self.become_pre_candidate();
        self.record_vote(self.state.id(), true);
        let last = self.state.log.last();
        for to in self.other_voters() {
            self.state.send_now(to, MessageBody::PreVote { last });
        }
        self.count_votes();
    }

    fn request_votes(&mut self, transfer: bool) {
        self.become_candidate();
        let last = self.state.log.last();
        for to in self.other_voters() {
            self.state
                .send(to, MessageBody::RequestVote { last, transfer });
        }
    }

    fn other_voters(&self) -> Vec<MemberId> {
        let own = self.state.id();
        let voters = self.state.membership().voters().map(|(id, _)| id);
        voters.filter(|&id| id != own).collect()
    }

    fn record_vote(&mut self, from: MemberId, granted: bool) -> bool {
        match &mut self.role {
            Role::Candidate(candidate) => candidate.record(from, granted),
            Role::Follower(_) | Role::Leader(_) => false,
        }
    }

    /// Counts the candidate's own vote if it is durable by now.
    pub(super) fn count_own_vote(&mut self) {
        let own = self.state.id();
        if let Role::Candidate(candidate) = &mut self.role
            && !candidate.is_pre_candidate()
            && self.state.is_hard_state_durable()
            && candidate.record(own, true)
        {
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        match (candidate.outcome(&self.state), candidate.is_pre_candidate()) {
            (VoteOutcome::Won, true) => self.request_votes(false),
            (VoteOutcome::Won, false) => self.become_leader(),
            (VoteOutcome::Lost, _) => self.become_follower(self.state.term, None),
            (VoteOutcome::Open, _) => {}
        }
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: MemberId, asked: Term, granted: bool) {
        let next_term = Term(self.state.term.0 + 1);
        if let Role::Candidate(candidate) = &mut self.role
            && candidate.is_pre_candidate()
            && asked == next_term
        {
            candidate.record(from, granted);
            self.count_votes();
        }
    }

    pub(super) fn on_vote(&mut self, from: MemberId, granted: bool) {
        if let Role::Candidate(candidate) = &mut self.role
            && !candidate.is_pre_candidate()
        {
            candidate.record(from, granted);
            self.count_votes();
        }
    }

    /// A member in `term` asks whether it would get this member's vote in the term after it.
    pub(super) fn on_pre_vote(&mut self, from: MemberId, term: Term, last: LogPosition) {
        let asked = Term(term.0.saturating_add(1));
        let granted =
            asked > self.state.term && last >= self.state.log.last() && !self.has_recent_leader();
        self.state
            .send_now(from, MessageBody::PreVoteReply { asked, granted });
    }

    /// A candidate of the current term asks for this member's vote.
    pub(super) fn on_request_vote(&mut self, from: MemberId, last: LogPosition) {
        let free = match self.state.vote {
            Some(given) => given == from,
            None => self.leader().is_none(),
        };
        let granted = free && last >= self.state.log.last();
        if granted {
            self.state.vote_for(from);
            if let Role::Follower(follower) = &mut self.role {
                follower.elapsed_ticks = 0;
            }
        }
        self.state.send(from, MessageBody::Vote { granted });
    }

    /// Whether this member leads, or received a message from its leader within the shortest election timeout. Then the
    /// leader is probably alive, and a member that campaigns is cut off from it.
    pub(super) fn has_recent_leader(&self) -> bool {
        self.state.config.check_quorum
            && match &self.role {
                Role::Leader(_) => true,
                Role::Candidate(_) => false,
                Role::Follower(follower) => {
                    follower.leader.is_some()
                        && follower.elapsed_ticks < self.state.config.election_ticks
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        interface::{Config, InitialState},
        message::Message,
        testing::voters,
    };
    use super::*;

    fn member_of(size: u64) -> RaftCore {
        let state = InitialState {
            membership: voters(1..=size),
            ..InitialState::default()
        };
        RaftCore::new(Config::new(MemberId(1), 1), state).unwrap()
    }

    /// How many messages it sends in 100 ticks without receiving any.
    fn messages_sent(node: &mut RaftCore) -> usize {
        let mut messages = 0;
        for _ in 0..100 {
            node.tick();
            while let Some(ready) = node.ready() {
                messages += ready.messages.len();
                if let Some(persist) = ready.persist {
                    node.persisted(persist.seq);
                }
            }
        }
        messages
    }

    #[test]
    fn a_member_that_must_not_lead_does_not_campaign_even_if_its_leader_asks() {
        let mut node = member_of(3);
        node.forbid_leading(true);
        assert_eq!(messages_sent(&mut node), 0, "it sends nothing");
        let timeout_now = Message {
            term: Term(1),
            body: MessageBody::TimeoutNow,
        };
        node.step(MemberId(2), timeout_now).unwrap();
        assert_eq!(messages_sent(&mut node), 0);
        assert_eq!(node.status().term, Term(1), "it began no term of its own");
        node.forbid_leading(false);
        assert!(messages_sent(&mut node) > 0, "it campaigns again");
    }

    #[test]
    fn a_member_that_must_not_lead_votes_and_a_sole_voter_leads_all_the_same() {
        let mut node = member_of(3);
        node.forbid_leading(true);
        let request = Message {
            term: Term(4),
            body: MessageBody::RequestVote {
                last: LogPosition::default(),
                transfer: false,
            },
        };
        node.step(MemberId(2), request).unwrap();
        assert_eq!(messages_sent(&mut node), 1, "a vote");
        let mut alone = member_of(1);
        alone.forbid_leading(true);
        messages_sent(&mut alone);
        assert!(alone.is_leader(), "there is nobody else");
    }
}
