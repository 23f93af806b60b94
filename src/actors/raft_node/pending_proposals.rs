//! Clients' proposals from their arrival until their entry is applied, or their time is up.
//!
//! A proposal that finds no leader is parked until there is one. At a follower it is forwarded to the leader; the caller waits
//! here, under the proposal's number, until this member applies the entry. Only the bytes travel.

use crate::actors::{consensus::Proposal, replies::Reply};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tokio::time::Instant;

/// Proposals that may wait for a leader or for their entry.
const WAITING_MAX: usize = 65_536;

/// Bytes of proposals that may be parked, or be in flight to the leader.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of proposals in one request to the leader.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A proposal for the leader; its caller waits under `id`.
#[derive(Debug)]
pub(super) struct ForwardedProposal {
    pub(super) deadline: Instant,
    pub(super) id: u64,
    pub(super) data: Bytes,
}

/// Callers whose time is up, each with the deadline it had.
#[derive(Debug, Default)]
pub(super) struct Expired {
    /// Their proposals were handed to consensus or to the leader: they may still be committed.
    pub(super) proposed: Vec<(Instant, Reply)>,
    /// Their proposals found no leader: they will not be committed.
    pub(super) parked: Vec<(Instant, Reply)>,
}

/// The proposals under way. Invariant: `held_bytes` is the size of those parked and in flight to the leader.
#[derive(Debug, Default)]
pub(super) struct PendingProposals {
    /// Callers that wait for their entry to be applied, by the number of their proposal.
    waiting: BTreeMap<u64, Reply>,
    /// Their deadlines, in order; some of them may have their answer.
    deadlines: VecDeque<(Instant, u64)>,
    /// Proposals that found no leader, in the order of their deadlines.
    parked: VecDeque<(Instant, Proposal)>,
    /// Proposals that go to the leader at the end of this turn.
    to_forward: Vec<ForwardedProposal>,
    held_bytes: usize,
}

impl PendingProposals {
    /// Whether another proposal may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() + self.parked.len() < WAITING_MAX
    }

    /// Whether `bytes` more may be parked or forwarded.
    pub(super) fn may_hold(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= HELD_BYTES_MAX
    }

    /// The caller of proposal `id` waits for its entry to be applied.
    pub(super) fn wait(&mut self, deadline: Instant, id: u64, reply: Reply) {
        self.waiting.insert(id, reply);
        // PendingProposals that were parked have earlier deadlines than the newest.
        let at = match self.deadlines.back() {
            Some((last, _)) if *last > deadline => self
                .deadlines
                .partition_point(|(other, _)| *other <= deadline),
            Some(_) | None => self.deadlines.len(),
        };
        self.deadlines.insert(at, (deadline, id));
    }

    /// The caller of proposal `id`, if it still waits.
    pub(super) fn take(&mut self, id: u64) -> Option<Reply> {
        self.waiting.remove(&id)
    }

    /// Keeps a proposal until there is a leader.
    pub(super) fn park(&mut self, deadline: Instant, proposal: Proposal) {
        self.held_bytes += proposal.data.len();
        let at = self.parked.partition_point(|(other, _)| *other <= deadline);
        self.parked.insert(at, (deadline, proposal));
    }

    /// Takes all parked proposals, to propose them again.
    pub(super) fn take_parked(&mut self) -> VecDeque<(Instant, Proposal)> {
        let parked = std::mem::take(&mut self.parked);
        let bytes: usize = parked.iter().map(|(_, proposal)| proposal.data.len()).sum();
        self.held_bytes -= bytes;
        parked
    }

    /// Adds a proposal to those that go to the leader at the end of this turn.
    pub(super) fn forward(&mut self, deadline: Instant, proposal: Proposal) {
        let Proposal { id, data, reply } = proposal;
        self.wait(deadline, id, reply);
        self.to_forward
            .push(ForwardedProposal { deadline, id, data });
    }

    /// Takes the proposals that go to the leader, in batches. They count as held until [`answered`](Self::answered).
    pub(super) fn take_batches(&mut self) -> Vec<Vec<ForwardedProposal>> {
        let mut batches: Vec<Vec<ForwardedProposal>> = Vec::new();
        let mut bytes = BATCH_BYTES_MAX;
        for proposal in std::mem::take(&mut self.to_forward) {
            if bytes >= BATCH_BYTES_MAX {
                batches.push(Vec::new());
                bytes = 0;
            }
            bytes += proposal.data.len();
            self.held_bytes += proposal.data.len();
            if let Some(batch) = batches.last_mut() {
                batch.push(proposal);
            }
        }
        batches
    }

    /// The request with `batch` has ended.
    pub(super) fn answered(&mut self, batch: &[ForwardedProposal]) {
        let bytes: usize = batch.iter().map(|proposal| proposal.data.len()).sum();
        self.held_bytes -= bytes;
    }

    /// The leader did not append `proposal`, nor will it: it waits for the next leader. A caller whose time is up is gone.
    pub(super) fn park_forwarded(&mut self, proposal: ForwardedProposal) {
        let ForwardedProposal { deadline, id, data } = proposal;
        if let Some(reply) = self.take(id) {
            self.park(deadline, Proposal { id, data, reply });
        }
    }

    /// Takes the callers whose deadline is not after `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Expired {
        let mut expired = Expired::default();
        while let Some((deadline, id)) = self
            .deadlines
            .pop_front_if(|(deadline, _)| *deadline <= now)
        {
            let reply = self.waiting.remove(&id);
            expired
                .proposed
                .extend(reply.map(|reply| (deadline, reply)));
        }
        while let Some((deadline, proposal)) =
            self.parked.pop_front_if(|(deadline, _)| *deadline <= now)
        {
            self.held_bytes -= proposal.data.len();
            expired.parked.push((deadline, proposal.reply));
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;
    use tokio::sync::oneshot;

    fn proposal(id: u64, bytes: usize) -> Proposal {
        let (reply, _) = oneshot::channel();
        Proposal {
            id,
            data: Bytes::from(vec![0; bytes]),
            reply: reply.into(),
        }
    }

    fn after(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn callers_expire_in_the_order_of_their_deadlines() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        for (id, millis) in [(1, 30), (2, 10), (3, 20)] {
            let Proposal { id, reply, .. } = proposal(id, 1);
            proposals.wait(after(start, millis), id, reply);
        }
        assert!(proposals.take(3).is_some(), "its entry is applied");
        let expired = proposals.expire(after(start, 25)).proposed;
        let deadlines: Vec<Instant> = expired.iter().map(|(deadline, _)| *deadline).collect();
        assert_eq!(deadlines, [after(start, 10)]);
        assert!(proposals.take(1).is_some());
    }

    #[test]
    fn parked_proposals_keep_their_order_and_count_as_held() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.park(after(start, 20), proposal(2, HELD_BYTES_MAX - 1));
        proposals.park(after(start, 10), proposal(1, 1));
        assert!(!proposals.may_hold(1));
        assert_eq!(proposals.expire(after(start, 10)).parked.len(), 1);
        assert!(proposals.may_hold(1));
        let parked = proposals.take_parked();
        assert_eq!(parked.iter().map(|(_, p)| p.id).collect::<Vec<_>>(), [2]);
        assert!(proposals.may_hold(HELD_BYTES_MAX));
    }

    #[test]
    fn forwarded_proposals_are_batched_by_bytes_and_held_until_answered() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        for id in 1..=3 {
            proposals.forward(start, proposal(id, BATCH_BYTES_MAX / 2));
        }
        let batches = proposals.take_batches();
        let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 1]);
        assert!(!proposals.may_hold(HELD_BYTES_MAX));
        for batch in &batches {
            proposals.answered(batch);
        }
        assert!(proposals.may_hold(HELD_BYTES_MAX));
        assert!(proposals.take_batches().is_empty());
    }

    #[test]
    fn a_proposal_that_the_leader_refused_waits_for_the_next_unless_its_caller_is_gone() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5));
        proposals.forward(start, proposal(2, 5));
        let batch = proposals.take_batches().remove(0);
        proposals.answered(&batch);
        drop(proposals.take(2));
        for forwarded in batch {
            proposals.park_forwarded(forwarded);
        }
        let parked = proposals.take_parked();
        assert_eq!(parked.iter().map(|(_, p)| p.id).collect::<Vec<_>>(), [1]);
    }
}
