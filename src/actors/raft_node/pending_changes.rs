//! Changes of the membership and of the leader that were asked for and are not answered yet.

use crate::{
    actors::{
        consensus::ChangeReply,
        membership_change::{ChangeRefusal, MemberChange},
        peer_ask::ChangeAnswer,
        request_error::{RequestError, answer},
    },
    codec,
    net::Responder,
    raft::Membership,
    types::{Entry, LogIndex, LogPosition, MemberId, Term},
};
use bytes::Bytes;
use std::collections::VecDeque;
use tokio::{sync::oneshot, time::Instant};

/// Changes, and transfers of leadership, that may be pending.
const PENDING_MAX: usize = 64;

/// Who asked for a change.
#[derive(Debug)]
pub(super) enum ChangeAsker {
    /// A client of this member.
    Client(ChangeReply),
    /// Another member, for a client of its own.
    Member(Responder),
}

impl ChangeAsker {
    pub(super) fn answer(self, outcome: Result<Bytes, ChangeRefusal>) {
        match self {
            // A caller that has gone away in the meantime does not matter.
            Self::Client(reply) => drop(reply.send(outcome)),
            Self::Member(responder) => {
                let outcome: ChangeAnswer = outcome.map(|bytes| bytes.to_vec());
                responder.answer(codec::encode(&outcome).into());
            }
        }
    }
}

/// A change of the membership that is not committed yet.
#[derive(Debug)]
pub(super) struct PendingChange {
    pub(super) deadline: Instant,
    pub(super) change: MemberChange,
    pub(super) asker: ChangeAsker,
    /// Its entry, once this member has appended it as the leader.
    pub(super) appended: Option<LogPosition>,
    /// The tick in which this member, as the leader, judged it first.
    pub(super) judged_at: Option<u64>,
    /// The tick in which this member began to hand over its leadership, since the change removes this member.
    pub(super) hands_over_since: Option<u64>,
}

/// A transfer of leadership under way.
#[derive(Debug)]
struct PendingMove {
    deadline: Instant,
    to: MemberId,
    reply: oneshot::Sender<Result<(), RequestError>>,
}

/// The leader was asked by this member to remove itself. It may stop before it answers; then the committed entry shows that
/// it was removed.
#[derive(Debug)]
struct RelayedRemoval {
    deadline: Instant,
    id: MemberId,
    done: oneshot::Sender<Bytes>,
}

/// A change that a leader was asked for by this member. Dropping `overtaken` tells its task that the outcome will stay unknown.
#[derive(Debug)]
struct Relay {
    term: Term,
    overtaken: oneshot::Sender<()>,
}

/// A promotion that is committed. Its caller is answered once the promoted member has it, or at `until`.
#[derive(Debug)]
struct Promotion {
    id: MemberId,
    index: LogIndex,
    until: Instant,
    asker: ChangeAsker,
    membership: Bytes,
}

/// All of them, and this member's own removal.
#[derive(Debug, Default)]
pub(super) struct PendingChanges {
    changes: VecDeque<PendingChange>,
    moves: Vec<PendingMove>,
    removals: Vec<RelayedRemoval>,
    relays: Vec<Relay>,
    promotions: Vec<Promotion>,
    /// The outcome of publishing this member's name and client URLs, while that is pending.
    publication: Option<oneshot::Receiver<Result<Bytes, ChangeRefusal>>>,
    pub(super) departure: Departure,
}

impl PendingChanges {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Whether another change may be pending.
    pub(super) fn has_room(&self) -> bool {
        self.changes.len() < PENDING_MAX
    }

    pub(super) fn push(&mut self, pending: PendingChange) {
        self.changes.push_back(pending);
    }

    /// Takes the changes that are not in the log, oldest first.
    pub(super) fn take_unappended(&mut self) -> VecDeque<PendingChange> {
        let (appended, unappended) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|pending| pending.appended.is_some());
        self.changes = appended;
        unappended
    }

    /// The membership entry `entry` is committed: answers whoever asked for it. A promotion waits for the promoted member, until
    /// `until`.
    pub(super) fn committed(&mut self, entry: &Entry, until: Instant) {
        for pending in std::mem::take(&mut self.changes) {
            match (pending.appended, &pending.change) {
                (Some(at), MemberChange::Promote { id }) if at == entry.position() => {
                    self.promotions.push(Promotion {
                        id: *id,
                        index: at.index,
                        until,
                        asker: pending.asker,
                        membership: entry.data.clone(),
                    });
                }
                (Some(at), _) if at.index == entry.index => {
                    let same = at.term == entry.term;
                    pending.asker.answer(if same {
                        Ok(entry.data.clone())
                    } else {
                        Err(ChangeRefusal::TimedOut)
                    });
                }
                (Some(_) | None, _) => self.changes.push_back(pending),
            }
        }
    }

    /// Whether a promotion is committed that the promoted member may not have yet.
    pub(super) fn awaits_promoted(&self) -> bool {
        !self.promotions.is_empty()
    }

    /// Answers the promotions whose members have the entry, and those past their deadline.
    pub(super) fn answer_promotions(
        &mut self,
        knows: impl Fn(MemberId, LogIndex) -> bool,
        now: Instant,
    ) {
        let done = |it: &mut Promotion| it.until <= now || knows(it.id, it.index);
        for promotion in self.promotions.extract_if(.., done) {
            promotion.asker.answer(Ok(promotion.membership));
        }
    }

    /// Notes that the leader `id` was asked to remove itself. The receiver gets the encoded membership without it once that is
    /// committed; it is closed if that does not happen in time.
    pub(super) fn watch_removal(
        &mut self,
        id: MemberId,
        deadline: Instant,
    ) -> oneshot::Receiver<Bytes> {
        let (done, removed) = oneshot::channel();
        if self.removals.len() < PENDING_MAX {
            self.removals.push(RelayedRemoval { deadline, id, done });
        }
        removed
    }

    /// The leader of `term` is asked for a change. The receiver is closed once an entry of a later term is committed: from then
    /// on that leader appends nothing, so the change is in the log already or will not be made by it.
    pub(super) fn watch_relay(&mut self, term: Term) -> oneshot::Receiver<()> {
        let (overtaken, watched) = oneshot::channel();
        self.relays.retain(|relay| !relay.overtaken.is_closed());
        if self.relays.len() < PENDING_MAX {
            self.relays.push(Relay { term, overtaken });
        }
        watched
    }

    /// An entry of `term` is committed.
    pub(super) fn overtaken(&mut self, term: Term) {
        self.relays.retain(|relay| relay.term >= term);
    }

    /// `membership` is committed; `encoded` is the same.
    pub(super) fn removed(&mut self, membership: &Membership, encoded: &Bytes) {
        let gone = |removal: &mut RelayedRemoval| !membership.contains(removal.id);
        for removal in self.removals.extract_if(.., gone) {
            // The leader may have answered.
            drop(removal.done.send(encoded.clone()));
        }
    }

    /// Waits until `to` leads, to answer who asked for that.
    pub(super) fn push_move(
        &mut self,
        to: MemberId,
        deadline: Instant,
        reply: oneshot::Sender<Result<(), RequestError>>,
    ) {
        if self.moves.len() < PENDING_MAX {
            self.moves.push(PendingMove {
                deadline,
                to,
                reply,
            });
        } else {
            answer(reply, RequestError::TooManyRequests);
        }
    }

    /// `leader` leads: transfers to it have succeeded.
    pub(super) fn led_by(&mut self, leader: MemberId) {
        let done = self.moves.extract_if(.., |pending| pending.to == leader);
        for pending in done {
            // A caller that has gone away in the meantime does not matter.
            drop(pending.reply.send(Ok(())));
        }
    }

    /// This member asks for its own name and client URLs to be published; the outcome arrives at `outcome`.
    pub(super) fn publishing(&mut self, outcome: oneshot::Receiver<Result<Bytes, ChangeRefusal>>) {
        self.publication = Some(outcome);
    }

    /// Whether a publication is pending. A refused one is logged, and may be tried again.
    pub(super) fn is_publishing(&mut self) -> bool {
        let Some(outcome) = &mut self.publication else {
            return false;
        };
        match outcome.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return true,
            Ok(Err(refusal)) => tracing::debug!("not published yet: {refusal}"),
            Ok(Ok(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
        }
        self.publication = None;
        false
    }

    /// Answers those whose deadline is not after `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        for pending in std::mem::take(&mut self.changes) {
            if pending.deadline <= now {
                pending.asker.answer(Err(ChangeRefusal::TimedOut));
            } else {
                self.changes.push_back(pending);
            }
        }
        self.removals.retain(|removal| removal.deadline > now);
        let late = self.moves.extract_if(.., |pending| pending.deadline <= now);
        for pending in late {
            answer(pending.reply, RequestError::TimedOut);
        }
    }
}

/// When this member stops because it was removed from the cluster.
#[derive(Debug, Default)]
pub(super) struct Departure {
    /// A committed membership contained this member.
    belonged: bool,
    leaves_at: Option<Instant>,
}

impl Departure {
    /// A membership is committed, or came with a snapshot: it contains this member if `committed`, and so does the one in
    /// force if `in_force`. A member that was removed stops at `leaves_at`: until then it lets the others know.
    /// Entries from before this member was added are committed again when it starts, so it must have belonged first.
    pub(super) fn update(&mut self, committed: bool, in_force: bool, leaves_at: Instant) {
        self.belonged |= committed;
        let removed = self.belonged && !in_force;
        self.leaves_at = removed.then_some(leaves_at);
    }

    /// Whether this member has found that it was removed.
    pub(super) fn is_removed(&self) -> bool {
        self.leaves_at.is_some()
    }

    /// Whether it is time to stop.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.leaves_at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, types::EntryKind};
    use std::time::Duration;

    type Outcome = oneshot::Receiver<Result<Bytes, ChangeRefusal>>;

    fn pending(deadline: Instant, appended: Option<LogPosition>) -> (PendingChange, Outcome) {
        let (reply, outcome) = oneshot::channel();
        let pending = PendingChange {
            deadline,
            change: MemberChange::Remove { id: MemberId(3) },
            asker: ChangeAsker::Client(reply),
            appended,
            judged_at: None,
            hands_over_since: None,
        };
        (pending, outcome)
    }

    fn entry(term: u64, index: u64) -> Entry {
        Entry {
            term: Term(term),
            index: LogIndex(index),
            kind: EntryKind::Membership,
            data: Bytes::from_static(b"after"),
        }
    }

    #[test]
    fn a_change_is_answered_when_its_own_entry_is_committed() {
        let now = clock::now();
        let mut changes = PendingChanges::default();
        let id = |index| Some(LogPosition::new(Term(2), LogIndex(index)));
        let (first, mut done) = pending(now, id(5));
        let (second, mut overwritten) = pending(now, id(6));
        let (third, mut waits) = pending(now, None);
        for pending in [first, second, third] {
            changes.push(pending);
        }
        changes.committed(&entry(2, 5), now);
        changes.committed(&entry(3, 6), now);
        assert_eq!(done.try_recv(), Ok(Ok(Bytes::from_static(b"after"))));
        assert_eq!(overwritten.try_recv(), Ok(Err(ChangeRefusal::TimedOut)));
        assert!(waits.try_recv().is_err(), "it is not in the log");
        assert_eq!(changes.take_unappended().len(), 1);
        assert!(changes.is_empty());
    }

    #[test]
    fn changes_expire_wherever_they_are_in_the_queue() {
        let now = clock::now();
        let mut changes = PendingChanges::default();
        let (first, mut has_time) = pending(now + Duration::from_secs(1), None);
        let (second, mut late) = pending(now, None);
        changes.push(first);
        changes.push(second);
        changes.expire(now);
        assert_eq!(late.try_recv(), Ok(Err(ChangeRefusal::TimedOut)));
        assert!(has_time.try_recv().is_err());
    }

    #[test]
    fn a_promotion_is_answered_once_the_promoted_member_knows_or_takes_too_long() {
        let now = clock::now();
        let later = now + Duration::from_secs(1);
        let mut changes = PendingChanges::default();
        let mut promote = |at: u64| {
            let at = LogPosition::new(Term(2), LogIndex(at));
            let (mut pending, outcome) = pending(later, Some(at));
            pending.change = MemberChange::Promote { id: MemberId(3) };
            changes.push(pending);
            changes.committed(&entry(2, at.index.0), later);
            outcome
        };
        let (mut first, mut second) = (promote(5), promote(9));
        assert!(first.try_recv().is_err(), "it may not know");
        changes.answer_promotions(|id, index| id == MemberId(3) && index.0 <= 7, now);
        assert!(matches!(first.try_recv(), Ok(Ok(_))));
        assert!(second.try_recv().is_err(), "it has the log up to 7");
        changes.answer_promotions(|_, _| false, later);
        assert!(matches!(second.try_recv(), Ok(Ok(_))));
        assert!(!changes.awaits_promoted());
    }

    #[test]
    fn a_relayed_change_is_given_up_once_a_later_term_has_an_entry() {
        let mut changes = PendingChanges::default();
        let mut relay = changes.watch_relay(Term(2));
        changes.overtaken(Term(2));
        let state = relay.try_recv();
        assert_eq!(state, Err(oneshot::error::TryRecvError::Empty));
        changes.overtaken(Term(3));
        let state = relay.try_recv();
        assert_eq!(state, Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn a_leaders_own_removal_is_known_from_the_log() {
        let now = clock::now();
        let mut changes = PendingChanges::default();
        let mut removed = changes.watch_removal(MemberId(1), now);
        let of = |ids: &[u64]| {
            Membership::of_voters(ids.iter().map(|id| (MemberId(*id), Bytes::new()))).unwrap()
        };
        changes.removed(&of(&[1, 2]), &Bytes::new());
        assert!(removed.try_recv().is_err());
        changes.removed(&of(&[2]), &Bytes::new());
        assert!(removed.try_recv().is_ok());
    }

    #[test]
    fn a_member_leaves_only_a_cluster_that_it_belonged_to() {
        let now = clock::now();
        let mut departure = Departure::default();
        departure.update(false, false, now);
        assert!(
            !departure.is_removed(),
            "its log is from before it was added"
        );
        departure.update(true, true, now);
        departure.update(false, true, now);
        assert!(!departure.is_removed(), "a newer entry adds it again");
        departure.update(false, false, now + Duration::from_secs(1));
        assert!(departure.is_removed());
        assert!(!departure.is_due(now), "the others must learn of it first");
        assert!(departure.is_due(now + Duration::from_secs(1)));
    }
}
