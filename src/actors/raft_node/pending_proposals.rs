//! Clients' proposals from their arrival until their entry is committed, or their time is up.
//!
//! A proposal that finds no leader is parked until there is one. At a follower it is forwarded to the leader; the caller waits
//! here, under the proposal's number, until this member commits the entry. Only the bytes travel.
//!
//! **A proposal is handed over in a term, and only the leader of that term may append it**: this member itself, or the one that
//! it is forwarded to, which compares the terms. So an entry of a later term that is committed decides about every proposal that
//! was handed over before that term and is not committed yet: it never will be, even if it is in some log, since the terms in the
//! log only rise. Then it is proposed again, in the newer term. Before that its fate is open, and it is never in two terms at
//! once: so no proposal is applied twice.
//!
//! Within a term, `settling` does the same for what was forwarded and whose answer was lost. A leader that speaks version 1 of
//! the peer protocol does not compare terms: what went to it is never proposed again.

use crate::{
    actors::{
        apply_messages::Caller, consensus::Proposal, held, peer_ask::TermPart, replies::Reply,
    },
    types::Term,
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use tokio::time::Instant;

/// Proposals that may wait for a leader or for their entry.
const WAITING_MAX: usize = 65_536;

/// Bytes of proposals that may be parked, or forwarded and not committed.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of proposals in one request to the leader.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A proposal whose caller waits for its entry to be committed.
#[derive(Debug)]
struct Waiting {
    deadline: Instant,
    data: Bytes,
    reply: Reply,
    handed: Handed,
}

/// To whom a proposal was handed over. The bytes of those that went to another member count as held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handed {
    /// To this member's own core, in this term.
    Here(Term),
    /// To the leader of this term, in this part of it.
    InPart(TermPart),
    /// To the leader of this term, or of a later one: to a member that does not compare terms.
    Once(Term),
}

impl Handed {
    pub(super) fn term(self) -> Term {
        match self {
            Self::Here(term) | Self::Once(term) | Self::InPart(TermPart { term, .. }) => term,
        }
    }

    fn is_held(self) -> bool {
        match self {
            Self::Here(_) => false,
            Self::InPart(_) | Self::Once(_) => true,
        }
    }
}

/// Proposals that go to the leader in one request.
#[derive(Debug)]
pub(super) struct ForwardBatch {
    /// The numbers of its proposals, in order.
    pub(super) ids: Vec<u64>,
    pub(super) data: Vec<Bytes>,
}

/// Callers whose time is up, each with the deadline it had.
#[derive(Debug, Default)]
pub(super) struct Expired {
    /// Their proposals were handed to consensus or to the leader: they may still be committed.
    pub(super) proposed: Vec<(Instant, Reply)>,
    /// Their proposals found no leader: they will not be committed.
    pub(super) parked: Vec<(Instant, Reply)>,
}

/// The proposals under way. Invariant: `held_bytes` is the size of those parked, and of those forwarded that wait.
#[derive(Debug)]
pub(super) struct PendingProposals {
    /// Those that wait for their entry to be committed, by their number.
    waiting: BTreeMap<u64, Waiting>,
    /// Their deadlines, in order; some of them may have their answer.
    deadlines: VecDeque<(Instant, u64)>,
    /// Proposals that found no leader, in the order of their deadlines.
    parked: VecDeque<(Instant, Proposal)>,
    /// Proposals that go to the leader at the end of this turn, each in the part in which it was handed over.
    to_forward: Vec<(TermPart, u64, Bytes)>,
    held_bytes: usize,
    held_bytes_max: usize,
}

impl Default for PendingProposals {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            deadlines: VecDeque::new(),
            parked: VecDeque::new(),
            to_forward: Vec::new(),
            held_bytes: 0,
            held_bytes_max: held::bound(HELD_BYTES_MAX),
        }
    }
}

impl PendingProposals {
    /// Whether another proposal may wait.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() + self.parked.len() < WAITING_MAX
    }

    /// Whether `bytes` more may be parked or forwarded.
    pub(super) fn may_hold(&self, bytes: usize) -> bool {
        self.held_bytes + bytes <= self.held_bytes_max
    }

    /// Bytes of proposals that are parked, or forwarded and not committed.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// The bound on [`held_bytes`](Self::held_bytes).
    pub(super) fn held_bytes_max(&self) -> usize {
        self.held_bytes_max
    }

    /// This member appended the proposal in `term`: its caller waits for the entry to be committed.
    pub(super) fn wait(&mut self, deadline: Instant, proposal: Proposal, term: Term) {
        self.insert(deadline, proposal, Handed::Here(term));
    }

    fn insert(&mut self, deadline: Instant, proposal: Proposal, handed: Handed) {
        let Proposal { id, data, reply } = proposal;
        let waiting = Waiting {
            deadline,
            data,
            reply,
            handed,
        };
        self.waiting.insert(id, waiting);
        let entry = (deadline, id);
        match self.deadlines.back() {
            // A proposal that was parked has an earlier deadline than the newest, and is listed already.
            Some(last) if *last >= entry => {
                if let Err(at) = self.deadlines.binary_search(&entry) {
                    self.deadlines.insert(at, entry);
                }
            }
            Some(_) | None => self.deadlines.push_back(entry),
        }
    }

    /// The caller of proposal `id`, if it still waits for the entry.
    pub(super) fn take(&mut self, id: u64) -> Option<Caller> {
        self.remove(id).map(|waiting| Caller {
            deadline: waiting.deadline,
            reply: waiting.reply,
        })
    }

    fn remove(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if waiting.handed.is_held() {
            self.held_bytes -= waiting.data.len();
        }
        Some(waiting)
    }

    /// As [`remove`](Self::remove), unless the proposal was handed over again meanwhile.
    fn remove_of(&mut self, id: u64, handed: Handed) -> Option<Waiting> {
        let same = self.waiting.get(&id)?.handed == handed;
        if same { self.remove(id) } else { None }
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
    pub(super) fn forward(&mut self, deadline: Instant, proposal: Proposal, part: TermPart) {
        self.held_bytes += proposal.data.len();
        self.to_forward
            .push((part, proposal.id, proposal.data.clone()));
        self.insert(deadline, proposal, Handed::InPart(part));
    }

    /// The leader speaks version 1 of the peer protocol, so these were not sent. Gives those that go to it another way.
    pub(super) fn forward_once(&mut self, ids: Vec<u64>, handed: Handed) -> ForwardBatch {
        let mut batch = ForwardBatch {
            ids: Vec::new(),
            data: Vec::new(),
        };
        for id in ids {
            if let Some(waiting) = self.waiting.get_mut(&id)
                && waiting.handed == handed
            {
                waiting.handed = Handed::Once(handed.term());
                batch.ids.push(id);
                batch.data.push(waiting.data.clone());
            }
        }
        batch
    }

    /// Takes the proposals that go to the leader now, in batches. All of them were handed over in `part`: that is what they are
    /// sent with, so one of another part, which could then be appended in two, is parked instead. So are all if `part` is `None`.
    pub(super) fn take_batches(&mut self, part: Option<TermPart>) -> Vec<ForwardBatch> {
        let mut batches: Vec<ForwardBatch> = Vec::new();
        let mut bytes = BATCH_BYTES_MAX;
        for (handed, id, data) in std::mem::take(&mut self.to_forward) {
            if Some(handed) != part {
                self.park_forwarded(id, Handed::InPart(handed));
                continue;
            }
            if bytes >= BATCH_BYTES_MAX {
                batches.push(ForwardBatch {
                    ids: Vec::new(),
                    data: Vec::new(),
                });
                bytes = 0;
            }
            bytes += data.len();
            if let Some(batch) = batches.last_mut() {
                batch.ids.push(id);
                batch.data.push(data);
            }
        }
        batches
    }

    /// The leader did not append proposal `id`, nor will it: the proposal waits for the next leader. A caller whose time is up is
    /// gone.
    pub(super) fn park_forwarded(&mut self, id: u64, handed: Handed) {
        if let Some(waiting) = self.remove_of(id, handed) {
            let (deadline, proposal) = waiting.into_proposal(id);
            self.park(deadline, proposal);
        }
    }

    /// The leader refused proposal `id`. Gives the caller, unless its time was up.
    pub(super) fn refused(&mut self, id: u64, handed: Handed) -> Option<Reply> {
        self.remove_of(id, handed).map(|waiting| waiting.reply)
    }

    /// An entry of `term` is committed, and those before it: takes the proposals that were handed over in an earlier term, which
    /// will never be committed, in the order of their numbers.
    pub(super) fn take_overtaken(&mut self, term: Term) -> Vec<(Instant, Proposal)> {
        self.take_if(|handed| match handed {
            Handed::Here(handed) | Handed::InPart(TermPart { term: handed, .. }) => handed < term,
            Handed::Once(_) => false,
        })
    }

    /// Takes the proposals that were forwarded in earlier parts of the term of `part`, in the order of their numbers.
    pub(super) fn take_before(&mut self, part: TermPart) -> Vec<(Instant, Proposal)> {
        self.take_if(|handed| match handed {
            Handed::InPart(handed) => handed.term == part.term && handed.part < part.part,
            Handed::Here(_) | Handed::Once(_) => false,
        })
    }

    fn take_if(&mut self, wanted: impl Fn(Handed) -> bool) -> Vec<(Instant, Proposal)> {
        let wanted = self.waiting.iter().filter(|(_, one)| wanted(one.handed));
        let ids: Vec<u64> = wanted.map(|(id, _)| *id).collect();
        let taken = ids
            .into_iter()
            .filter_map(|id| Some(self.remove(id)?.into_proposal(id)));
        taken.collect()
    }

    /// Takes the callers of all proposals that were handed over: a snapshot may contain their entries, so their outcomes stay
    /// unknown.
    pub(super) fn take_unknown(&mut self) -> Vec<Reply> {
        let ids: Vec<u64> = self.waiting.keys().copied().collect();
        let callers = ids.into_iter().filter_map(|id| self.take(id));
        callers.map(|caller| caller.reply).collect()
    }

    /// Takes the callers whose deadline is not after `now`.
    pub(super) fn expire(&mut self, now: Instant) -> Expired {
        let mut expired = Expired::default();
        while let Some((deadline, id)) = self
            .deadlines
            .pop_front_if(|(deadline, _)| *deadline <= now)
        {
            let caller = self.take(id);
            expired
                .proposed
                .extend(caller.map(|caller| (deadline, caller.reply)));
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

impl Waiting {
    fn into_proposal(self, id: u64) -> (Instant, Proposal) {
        let Self {
            deadline,
            data,
            reply,
            ..
        } = self;
        (deadline, Proposal { id, data, reply })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::time::Duration;
    use tokio::sync::oneshot;

    const TERM: Term = Term(3);

    fn part(term: Term, part: u64) -> TermPart {
        TermPart { term, part }
    }

    /// In the first part of the term.
    const FIRST: Handed = Handed::InPart(TermPart {
        term: TERM,
        part: 0,
    });

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

    fn parked(proposals: &mut PendingProposals) -> Vec<u64> {
        let parked = proposals.take_parked();
        parked.iter().map(|(_, proposal)| proposal.id).collect()
    }

    #[test]
    fn callers_expire_in_the_order_of_their_deadlines() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        for (id, millis) in [(1, 30), (2, 10), (3, 20)] {
            proposals.wait(after(start, millis), proposal(id, 1), TERM);
        }
        assert!(proposals.take(3).is_some(), "its entry is committed");
        let expired = proposals.expire(after(start, 25)).proposed;
        let deadlines: Vec<Instant> = expired.iter().map(|(deadline, _)| *deadline).collect();
        assert_eq!(deadlines, [after(start, 10)]);
        assert!(proposals.take(1).is_some());
    }

    #[test]
    fn a_proposal_that_is_proposed_again_is_listed_once() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        for id in 0..100 {
            let part = part(TERM, 0);
            proposals.forward(after(start, id / 3), proposal(id, 1), part);
        }
        for again in 1..10 {
            for (deadline, proposal) in proposals.take_before(part(TERM, again)) {
                proposals.forward(deadline, proposal, part(TERM, again));
            }
            assert_eq!(proposals.deadlines.len(), 100, "part {again}");
        }
        assert!(proposals.deadlines.iter().is_sorted());
        assert_eq!(proposals.expire(after(start, 60)).proposed.len(), 100);
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
        assert_eq!(parked(&mut proposals), [2]);
        assert!(proposals.may_hold(HELD_BYTES_MAX));
    }

    #[test]
    fn forwarded_proposals_are_batched_by_bytes_and_held_until_they_are_committed() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        for id in 1..=3 {
            proposals.forward(start, proposal(id, BATCH_BYTES_MAX / 2), part(TERM, 0));
        }
        let batches = proposals.take_batches(Some(part(TERM, 0)));
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.ids.len()).collect();
        assert_eq!(sizes, [2, 1]);
        assert!(!proposals.may_hold(HELD_BYTES_MAX));
        for id in 1..=3 {
            drop(proposals.take(id));
        }
        assert!(proposals.may_hold(HELD_BYTES_MAX));
        assert!(proposals.take_batches(Some(part(TERM, 0))).is_empty());
    }

    #[test]
    fn what_was_handed_over_in_another_part_is_not_sent_in_this_one() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        let forward = |proposals: &mut PendingProposals| {
            proposals.forward(start, proposal(1, 5), part(TERM, 0));
            proposals.forward(start, proposal(2, 5), part(TERM, 1));
        };
        forward(&mut proposals);
        let batches = proposals.take_batches(Some(part(TERM, 1)));
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].ids, [2]);
        assert_eq!(parked(&mut proposals), [1], "it is proposed again");
        drop(proposals.take(2));
        forward(&mut proposals);
        assert!(proposals.take_batches(None).is_empty());
        assert_eq!(parked(&mut proposals), [1, 2]);
        assert!(proposals.may_hold(HELD_BYTES_MAX), "nothing is held");
    }

    #[test]
    fn a_proposal_that_the_leader_refused_waits_for_the_next_unless_its_caller_is_gone() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5), part(TERM, 0));
        proposals.forward(start, proposal(2, 5), part(TERM, 0));
        drop(proposals.take(2));
        for id in proposals.take_batches(Some(part(TERM, 0))).remove(0).ids {
            proposals.park_forwarded(id, FIRST);
        }
        assert_eq!(parked(&mut proposals), [1]);
    }

    #[test]
    fn what_a_later_term_has_overtaken_is_proposed_again_and_what_it_has_not_goes_on() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(2, 5), part(TERM, 0));
        proposals.wait(start, proposal(1, 5), TERM);
        proposals.wait(start, proposal(3, 5), Term(4));
        drop(proposals.take_batches(Some(part(TERM, 0))));
        assert!(proposals.take_overtaken(TERM).is_empty(), "its own term");
        let overtaken = proposals.take_overtaken(Term(4));
        let ids: Vec<u64> = overtaken.iter().map(|(_, one)| one.id).collect();
        assert_eq!(ids, [1, 2]);
        assert!(proposals.may_hold(HELD_BYTES_MAX), "nothing is held");
        assert!(proposals.take(3).is_some());
    }

    #[test]
    fn what_was_forwarded_in_earlier_parts_of_a_term_is_taken_and_nothing_else() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5), part(TERM, 0));
        proposals.forward(start, proposal(2, 5), part(TERM, 1));
        proposals.forward(start, proposal(3, 5), part(TERM, 2));
        proposals.forward(start, proposal(4, 5), part(Term(4), 0));
        proposals.wait(start, proposal(5, 5), TERM);
        let taken = proposals.take_before(part(TERM, 2));
        let ids: Vec<u64> = taken.iter().map(|(_, one)| one.id).collect();
        assert_eq!(ids, [1, 2]);
    }

    #[test]
    fn what_went_to_a_leader_of_the_first_version_is_never_proposed_again() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5), part(TERM, 0));
        proposals.forward(start, proposal(2, 5), part(TERM, 0));
        let ids = proposals.take_batches(Some(part(TERM, 0))).remove(0).ids;
        drop(proposals.take(2));
        let batch = proposals.forward_once(ids, FIRST);
        assert_eq!((batch.ids, batch.data.len()), (vec![1], 1));
        assert!(
            proposals.take_overtaken(Term(9)).is_empty(),
            "its leader may lead again"
        );
        assert!(proposals.take_before(part(TERM, 9)).is_empty());
        // Unless that leader says that it does not lead.
        proposals.park_forwarded(1, Handed::Once(TERM));
        assert_eq!(parked(&mut proposals), [1]);
        assert!(proposals.may_hold(HELD_BYTES_MAX));
    }

    #[test]
    fn the_answer_of_an_earlier_leader_does_not_concern_a_proposal_that_the_next_one_has() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5), part(TERM, 0));
        drop(proposals.take_batches(Some(part(TERM, 0))));
        for (deadline, again) in proposals.take_overtaken(Term(4)) {
            proposals.forward(deadline, again, part(Term(4), 0));
        }
        // The earlier leader was frozen; now it answers that it does not lead, or is overloaded.
        proposals.park_forwarded(1, FIRST);
        assert!(parked(&mut proposals).is_empty(), "it would be sent twice");
        assert!(proposals.refused(1, FIRST).is_none());
        let again = Handed::InPart(part(Term(4), 0));
        assert!(proposals.refused(1, again).is_some());
    }

    #[test]
    fn nobody_knows_what_a_snapshot_has_of_proposals() {
        let start = clock::now();
        let mut proposals = PendingProposals::default();
        proposals.forward(start, proposal(1, 5), part(TERM, 0));
        proposals.park(start, proposal(2, 5));
        assert_eq!(proposals.take_unknown().len(), 1);
        assert!(proposals.take_overtaken(Term(9)).is_empty(), "never again");
        assert_eq!(parked(&mut proposals), [2], "it is in no log");
    }
}
