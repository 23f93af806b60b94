//! Elections: asking whether one could win (pre-vote), standing, and answering those who do.
//!
//! A candidate's own vote counts like anybody else's: once it is durable.

use super::common::Common;
use super::message::Body;
use super::node::{Node, Role};
use super::quorum::{Outcome, tally};
use crate::types::{LogPosition, MemberId, Term};
use std::collections::BTreeMap;

/// What only a candidate has.
#[derive(Debug)]
pub(super) struct Candidate {
    /// Only asking: no term was entered and no vote given.
    pub(super) pre: bool,
    votes: BTreeMap<MemberId, bool>,
    elapsed: u32,
    timeout: u32,
}

impl Candidate {
    fn new(common: &mut Common, pre: bool) -> Self {
        Self {
            pre,
            votes: BTreeMap::new(),
            elapsed: 0,
            timeout: common.draw_timeout(),
        }
    }

    /// One tick passed. True if it is time to try again.
    pub(super) fn tick(&mut self) -> bool {
        self.elapsed += 1;
        self.elapsed >= self.timeout
    }

    fn outcome(&self, common: &Common) -> Outcome {
        tally(
            common
                .membership()
                .voters()
                .map(|(id, _)| self.votes.get(&id).copied()),
        )
    }
}

impl Node {
    /// Stands for election, by way of a pre-vote unless `transfer`: then the leader wants it.
    pub(super) fn stand(&mut self, transfer: bool) {
        let id = self.common.id();
        let applying = &self.common.applying;
        let stateless = applying.installing || applying.awaiting;
        let barred = stateless || self.common.barred;
        if barred || !self.common.history.may_campaign(id) {
            if let Role::Follower(follower) = &mut self.role {
                follower.restart_timeout(&mut self.common);
            }
            return;
        }
        let alone = self.common.membership().is_sole_voter(id);
        if self.common.config.pre_vote && !transfer && !alone {
            self.become_pre_candidate();
        } else {
            self.become_candidate(transfer);
        }
    }

    fn become_pre_candidate(&mut self) {
        self.leave_role();
        let mut candidate = Candidate::new(&mut self.common, true);
        candidate.votes.insert(self.common.id(), true);
        self.role = Role::Candidate(candidate);
        let last = self.common.log.last();
        for to in self.other_voters() {
            self.common.send_now(to, Body::PreVote { last });
        }
        self.count_votes();
    }

    fn become_candidate(&mut self, transfer: bool) {
        assert!(!self.is_leader(), "a leader need not stand");
        self.leave_role();
        self.common.enter_term(Term(self.common.term.0 + 1));
        self.common.vote_for(self.common.id());
        self.role = Role::Candidate(Candidate::new(&mut self.common, false));
        let last = self.common.log.last();
        for to in self.other_voters() {
            self.common.send(to, Body::RequestVote { last, transfer });
        }
    }

    fn other_voters(&self) -> Vec<MemberId> {
        let own = self.common.id();
        self.common
            .membership()
            .voters()
            .map(|(id, _)| id)
            .filter(|&id| id != own)
            .collect()
    }

    /// The candidate's own vote is durable, and counts.
    pub(super) fn own_vote_durable(&mut self) {
        let own = self.common.id();
        if let Role::Candidate(candidate) = &mut self.role
            && !candidate.pre
            && self.common.hard_state_durable()
            && candidate.votes.insert(own, true).is_none()
        {
            self.count_votes();
        }
    }

    fn count_votes(&mut self) {
        let Role::Candidate(candidate) = &self.role else {
            return;
        };
        match (candidate.outcome(&self.common), candidate.pre) {
            (Outcome::Won, true) => self.become_candidate(false),
            (Outcome::Won, false) => self.become_leader(),
            (Outcome::Lost, _) => self.become_follower(self.common.term, None),
            (Outcome::Open, _) => {}
        }
    }

    pub(super) fn on_pre_vote_reply(&mut self, from: MemberId, asked: Term, granted: bool) {
        let due = Term(self.common.term.0 + 1);
        if let Role::Candidate(candidate) = &mut self.role
            && candidate.pre
            && asked == due
        {
            candidate.votes.insert(from, granted);
            self.count_votes();
        }
    }

    pub(super) fn on_vote(&mut self, from: MemberId, granted: bool) {
        if let Role::Candidate(candidate) = &mut self.role
            && !candidate.pre
        {
            candidate.votes.insert(from, granted);
            self.count_votes();
        }
    }

    /// Somebody at `term` asks whether it would get our vote in the next.
    pub(super) fn on_pre_vote(&mut self, from: MemberId, term: Term, last: LogPosition) {
        let asked = Term(term.0.saturating_add(1));
        let granted =
            asked > self.common.term && last >= self.common.log.last() && !self.leader_is_fresh();
        self.common
            .send_now(from, Body::PreVoteReply { asked, granted });
    }

    /// A candidate of our term asks for our vote.
    pub(super) fn on_request_vote(&mut self, from: MemberId, last: LogPosition) {
        let free = match self.common.vote {
            Some(given) => given == from,
            None => self.leader().is_none(),
        };
        let granted = free && last >= self.common.log.last();
        if granted {
            self.common.vote_for(from);
            if let Role::Follower(follower) = &mut self.role {
                follower.elapsed = 0;
            }
        }
        self.common.send(from, Body::Vote { granted });
    }

    /// Whether a leader was heard within the shortest election timeout: then it probably lives, and whoever
    /// wants to replace it is cut off from it.
    pub(super) fn leader_is_fresh(&self) -> bool {
        self.common.config.check_quorum
            && match &self.role {
                Role::Leader(_) => true,
                Role::Candidate(_) => false,
                Role::Follower(follower) => {
                    follower.leader.is_some()
                        && follower.elapsed < self.common.config.election_ticks
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::super::interface::{Config, InitialState};
    use super::super::message::Message;
    use super::super::testing::voters;
    use super::*;

    fn member_of(size: u64) -> Node {
        let state = InitialState {
            membership: voters(1..=size),
            ..InitialState::default()
        };
        Node::new(Config::new(MemberId(1), 1), state).unwrap()
    }

    /// What it says to others while it hears nobody.
    fn said(node: &mut Node) -> usize {
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
    fn a_barred_member_does_not_stand_also_when_told_to() {
        let mut node = member_of(3);
        node.bar(true);
        assert_eq!(said(&mut node), 0, "it leaves elections to others");
        let told = Message {
            term: Term(1),
            body: Body::TimeoutNow,
        };
        node.step(MemberId(2), told).unwrap();
        assert_eq!(said(&mut node), 0);
        assert_eq!(node.status().term, Term(1), "it began no term of its own");
        node.bar(false);
        assert!(said(&mut node) > 0, "it stands again");
    }

    #[test]
    fn a_barred_member_votes_and_a_sole_voter_is_not_barred() {
        let mut node = member_of(3);
        node.bar(true);
        let asked = Message {
            term: Term(4),
            body: Body::RequestVote {
                last: LogPosition::default(),
                transfer: false,
            },
        };
        node.step(MemberId(2), asked).unwrap();
        assert_eq!(said(&mut node), 1, "a vote");
        let mut alone = member_of(1);
        alone.bar(true);
        said(&mut alone);
        assert!(alone.is_leader(), "there is nobody else");
    }
}
