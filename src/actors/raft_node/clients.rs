//! Clients' proposals and reads: they are handed to consensus, parked or forwarded, and time out here.

use super::{leadership::LeaderContact, node::RaftNode, pending_reads::PendingRead};
use crate::{
    actors::{
        apply_messages::CommittedEntry,
        consensus::{AskReadIndex, Proposal, Propose, proposal_of},
        request_error::{RequestError, answer},
    },
    clock,
    raft::{ProposeError, ReadState},
    types::{Entry, MemberId, Term},
};
use actix::prelude::*;
use tokio::time::Instant;

impl Handler<Propose> for RaftNode {
    type Result = ();

    fn handle(&mut self, propose: Propose, _: &mut Self::Context) {
        let deadline = clock::now() + self.pacing.request_timeout;
        for proposal in propose.proposals {
            self.propose(deadline, proposal);
        }
        self.carry_out();
    }
}

impl Handler<AskReadIndex> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: AskReadIndex, _: &mut Self::Context) {
        let context = self.reads.next_context();
        if self.raft.read_index(context).is_err() {
            for reply in ask.waiting {
                answer(reply, RequestError::TooManyRequests);
            }
            return;
        }
        let (deadline, waiting) = (clock::now() + self.pacing.request_timeout, ask.waiting);
        self.reads
            .insert(context, PendingRead { deadline, waiting });
        self.carry_out();
    }
}

impl RaftNode {
    /// Whether so many committed entries wait to be applied that no more are proposed.
    pub(super) fn is_behind_applying(&self) -> bool {
        let gap = (self.raft.commit().0).saturating_sub(self.deliveries.applied().0);
        gap > self.pacing.apply_gap_max
    }

    fn propose(&mut self, deadline: Instant, proposal: Proposal) {
        if proposal.reply.is_unwanted() {
            // The caller is gone: nothing of the call may enter the log.
            return;
        }
        if self.changes.departure.is_removed() {
            // This member's log would not show what became of it.
            proposal.reply.send(Err(RequestError::Stopped));
            return;
        }
        if !self.proposals.has_room() || self.is_behind_applying() {
            proposal.reply.send(Err(RequestError::TooManyRequests));
            return;
        }
        let no_leader = match self.raft.propose(proposal.data.clone()) {
            Ok(appended) => {
                self.proposals.wait(deadline, proposal, appended.term);
                return;
            }
            Err(error) => error,
        };
        let may_hold = self.proposals.may_hold(proposal.data.len());
        match no_leader {
            ProposeError::NotLeader { leader: Some(_) } if may_hold => {
                let term = self.raft.status().term;
                match self.settling.part_of(term) {
                    Some(part) => self.proposals.forward(deadline, proposal, part),
                    None => self.proposals.park(deadline, proposal),
                }
            }
            ProposeError::NotLeader { leader: None } | ProposeError::Transferring { .. }
                if may_hold =>
            {
                self.proposals.park(deadline, proposal);
            }
            ProposeError::NotLeader { .. }
            | ProposeError::Transferring { .. }
            | ProposeError::TooMuchUncommitted { .. } => {
                proposal.reply.send(Err(RequestError::TooManyRequests));
            }
        }
    }

    /// Proposes again what found no leader, if there is one now that takes proposals.
    pub(super) fn propose_parked(&mut self) {
        if !self.leader_takes_proposals() {
            return;
        }
        for (deadline, proposal) in self.proposals.take_parked() {
            self.propose(deadline, proposal);
        }
    }

    /// Whether a proposal of now is handed over. If not, those that are parked stay so: there may be many, and each tick looks.
    fn leader_takes_proposals(&mut self) -> bool {
        match self.raft.leader() {
            None => false,
            Some(leader) if leader == self.member.id => true,
            Some(_) => self.settling.part_of(self.raft.status().term).is_some(),
        }
    }

    /// An entry of `term` is committed: what was handed over in earlier terms and is not committed never will be, so it is
    /// proposed again.
    pub(super) fn propose_overtaken(&mut self, term: Term) {
        for (deadline, proposal) in self.proposals.take_overtaken(term) {
            self.propose(deadline, proposal);
        }
        self.changes.overtaken(term);
    }

    /// Entries up to `committed` are committed. If the leader has named that index, what it had taken from this member before and
    /// is not committed is in no log: it is proposed again.
    pub(super) fn propose_lost(&mut self) {
        if let Some(part) = self.settling.take_decided(self.deliveries.committed()) {
            for (deadline, proposal) in self.proposals.take_before(part) {
                self.propose(deadline, proposal);
            }
        }
    }

    /// A read has its index. One that no leader confirmed is asked for again, for as long as its callers have time.
    pub(super) fn read_answered(&mut self, read: ReadState) {
        let Some(pending) = self.reads.take(read.context) else {
            return;
        };
        if read.outcome.is_err()
            && pending.deadline > clock::now()
            && self.raft.read_index(read.context).is_ok()
        {
            self.reads.insert(read.context, pending);
            return;
        }
        pending.answer(|| read.outcome.map_err(|_| RequestError::TimedOut));
    }

    /// Adds the caller that waits for `entry`, if it was proposed through this member.
    pub(super) fn with_caller(&mut self, entry: Entry) -> CommittedEntry {
        let caller = proposal_of(&entry.data)
            .filter(|(member, _)| *member == self.member.id)
            .and_then(|(_, id)| self.proposals.take(id));
        CommittedEntry { entry, caller }
    }

    pub(super) fn led_by(&mut self, leader: MemberId, term: Term) {
        self.leadership.led_by(leader, term, clock::now());
        self.changes.led_by(leader);
        self.propose_parked();
        self.drive_changes();
    }

    /// Answers those whose time is up.
    pub(super) fn expire(&mut self) {
        let now = clock::now();
        let expired = self.proposals.expire(now);
        for (deadline, reply) in expired.proposed {
            reply.send(Err(self.late(deadline)));
        }
        for caller in self.deliveries.expire(now) {
            let late = self.late(caller.deadline);
            caller.reply.send(Err(late));
        }
        for (deadline, reply) in expired.parked {
            let error = match self.raft.leader() {
                Some(_) => self.late(deadline),
                None => RequestError::DeadlineNoLeader,
            };
            reply.send(Err(error));
        }
        while let Some(read) = self.reads.take_expired(now) {
            let deadline = read.deadline;
            read.answer(|| Err(self.late(deadline)));
        }
        self.changes.expire(now);
    }

    /// Why a request with this deadline timed out.
    fn late(&self, deadline: Instant) -> RequestError {
        let began = deadline
            .checked_sub(self.pacing.request_timeout)
            .unwrap_or(deadline);
        let contact = match self.raft.leader() {
            None => LeaderContact::NoLeader,
            Some(leader) if self.has_contact_since(leader, began) => LeaderContact::Connected,
            Some(_) => LeaderContact::ConnectionLost,
        };
        self.leadership.late(began, self.pacing.election, contact)
    }

    /// Whether this member has been connected to `leader`, or as the leader to a quorum, since `then`.
    fn has_contact_since(&self, leader: MemberId, then: Instant) -> bool {
        if leader != self.member.id {
            return self.connections.is_connected_since(leader, then);
        }
        let voters = self.raft.membership().voters().map(|(id, _)| id);
        self.connections
            .has_quorum_since(self.member.id, voters, then)
    }
}
