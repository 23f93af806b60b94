//! Changes of role. Each says which roles it may come from; nothing else assigns `role`.

use super::{
    candidate::Candidate,
    follower::Follower,
    leader::Leader,
    raft_core::{RaftCore, Role},
};
use crate::types::{MemberId, Term};

impl RaftCore {
    /// Puts reads that the current role has not answered back into the queue, for the next role to answer.
    fn leave_role(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.requeue_reads(&mut self.state),
            Role::Candidate(_) => {}
            Role::Leader(leader) => leader.requeue_reads(&mut self.state),
        }
    }

    /// Follows in `term`, which is the current one or newer.
    pub(super) fn become_follower(&mut self, term: Term, leader: Option<MemberId>) {
        self.leave_role();
        if term > self.state.term {
            self.state.enter_term(term);
        }
        assert_eq!(
            term, self.state.term,
            "a member never goes back to an older term"
        );
        self.role = Role::Follower(Follower::new(&mut self.state, leader));
    }

    /// Asks for pre-votes, in the current term.
    pub(super) fn become_pre_candidate(&mut self) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.leave_role();
        self.role = Role::Candidate(Candidate::new(&mut self.state, true));
    }

    /// Enters the next term as a candidate, and votes for itself.
    pub(super) fn become_candidate(&mut self) {
        assert!(!self.is_leader(), "a leader does not campaign");
        self.leave_role();
        self.state.enter_term(Term(self.state.term.0 + 1));
        self.state.vote_for(self.state.id());
        self.role = Role::Candidate(Candidate::new(&mut self.state, false));
    }

    /// Leads the term in which it was a candidate.
    pub(super) fn become_leader(&mut self) {
        assert!(
            matches!(&self.role, Role::Candidate(candidate) if !candidate.is_pre_candidate()),
            "only a candidate wins an election"
        );
        assert!(
            self.state.is_hard_state_durable(),
            "no vote is counted before this member's own is durable"
        );
        self.role = Role::Leader(Leader::new(&mut self.state));
    }

    /// Steps down, because this leader's removal from the cluster is committed.
    pub(super) fn resign(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.announce_resignation(&mut self.state);
            self.become_follower(self.state.term, None);
        }
    }
}
