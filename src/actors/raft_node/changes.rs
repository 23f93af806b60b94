//! Changes of the membership and of the leader that clients ask for, and what this member says of itself.
//!
//! The leader makes one change at a time and answers when it is committed; the others wait their turn. A follower passes a
//! change on to the leader.

use super::RaftNode;
use crate::{
    actors::{
        members::{ClusterMember, Members},
        membership_change::{ChangeRefusal, MemberChange, Standing},
        peer_ask::{ChangeAnswer, PeerAsk},
        requests::{RequestError, answer},
    },
    clock, codec,
    net::Responder,
    raft::{Change, ChangeError, MembershipError, ProposeError, TransferError},
    types::{Entry, EntryKind, LogPosition, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

/// Changes that may wait for their turn.
const CHANGES_MAX: usize = 64;

/// Who waits for a change: gets the membership after it.
pub type ChangeReply = oneshot::Sender<Result<Bytes, ChangeRefusal>>;

/// Changes the membership. The reply comes when the change is committed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ChangeMembership {
    /// The change.
    pub change: MemberChange,
    /// Who asks.
    pub reply: ChangeReply,
}

/// Hands leadership to a voter; only the leader can. The reply comes when the other leads.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct MoveLeader {
    /// The next leader.
    pub to: MemberId,
    /// Who asks.
    pub reply: oneshot::Sender<Result<(), RequestError>>,
}

#[derive(Debug)]
enum Asker {
    Here(ChangeReply),
    Peer(Responder),
}

impl Asker {
    fn tell(self, outcome: Result<Bytes, ChangeRefusal>) {
        match self {
            // A caller that has gone away in the meantime does not matter.
            Self::Here(reply) => drop(reply.send(outcome)),
            Self::Peer(responder) => {
                let outcome: ChangeAnswer = outcome.map(|bytes| bytes.to_vec());
                responder.answer(codec::encode(&outcome).into());
            }
        }
    }
}

/// A change under way.
#[derive(Debug)]
pub(super) struct PendingChange {
    deadline: Instant,
    change: MemberChange,
    asker: Asker,
    appended: Option<LogPosition>,
}

/// A leader was asked to remove itself. It may go before it can answer; that it is removed comes by the log as well.
#[derive(Debug)]
pub(super) struct PassedRemoval {
    deadline: Instant,
    id: MemberId,
    done: oneshot::Sender<Bytes>,
}

/// A transfer of leadership under way.
#[derive(Debug)]
pub(super) struct PendingMove {
    deadline: Instant,
    to: MemberId,
    reply: oneshot::Sender<Result<(), RequestError>>,
}

impl Handler<ChangeMembership> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: ChangeMembership, _: &mut Self::Context) {
        self.change(ask.change, Asker::Here(ask.reply));
        self.carry_out();
    }
}

impl Handler<MoveLeader> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: MoveLeader, _: &mut Self::Context) {
        match self.raft.transfer_leadership(ask.to) {
            Ok(()) if ask.to == self.member.id => drop(ask.reply.send(Ok(()))),
            Ok(()) if self.moves.len() < CHANGES_MAX => self.moves.push(PendingMove {
                deadline: clock::now() + self.pacing.request_timeout,
                to: ask.to,
                reply: ask.reply,
            }),
            Ok(()) => answer(ask.reply, RequestError::TooManyRequests),
            Err(TransferError::NotLeader { .. }) => answer(ask.reply, RequestError::NotLeader),
            Err(TransferError::NotVoter(_)) => answer(ask.reply, RequestError::BadTransferee),
        }
        self.carry_out();
    }
}

impl RaftNode {
    pub(super) fn change_for_peer(&mut self, change: MemberChange, responder: Responder) {
        if self.raft.is_leader() {
            self.change(change, Asker::Peer(responder));
        } else {
            Asker::Peer(responder).tell(Err(ChangeRefusal::NotLeader));
        }
    }

    fn change(&mut self, change: MemberChange, asker: Asker) {
        let adds = matches!(change, MemberChange::Add { .. });
        if adds && self.peers.links.is_alone() {
            asker.tell(Err(ChangeRefusal::NoPeers));
        } else if self.changes.len() >= CHANGES_MAX {
            asker.tell(Err(ChangeRefusal::TimedOut));
        } else {
            self.changes.push_back(PendingChange {
                deadline: clock::now() + self.pacing.request_timeout,
                change,
                asker,
                appended: None,
            });
            self.drive_changes();
        }
    }

    /// Makes the next change, or passes changes on, if it is time for it.
    pub(super) fn drive_changes(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        match self.raft.leader() {
            Some(leader) if leader == self.member.id => self.make_changes(),
            Some(leader) => self.pass_changes(leader),
            None => {}
        }
    }

    fn make_changes(&mut self) {
        let connected = self.links.connected_for_good();
        let mut waiting = std::mem::take(&mut self.changes);
        while let Some(mut pending) = waiting.pop_front() {
            if pending.appended.is_some() {
                self.changes.push_back(pending);
                continue;
            }
            let judged = pending.change.judge(&Standing {
                membership: self.raft.membership(),
                leader: self.member.id,
                connected: &connected,
            });
            let made = judged.map(|change| self.raft.propose_membership(&change));
            match made {
                Ok(Ok(id)) => {
                    pending.appended = Some(id);
                    self.changes.push_back(pending);
                    self.update_book();
                }
                Ok(Err(error)) => match refusal(error) {
                    Some(refusal) => pending.asker.tell(Err(refusal)),
                    None => self.changes.push_back(pending),
                },
                Err(refusal) => pending.asker.tell(Err(refusal)),
            }
        }
    }

    /// Gives the vote to those who were added for one, run, and have caught up.
    pub(super) fn promote_waiting(&mut self) {
        if !self.raft.is_leader() || self.raft.membership().learners().next().is_none() {
            return;
        }
        let Ok(members) = Members::of(self.raft.membership()) else {
            return;
        };
        let ready = |member: &&ClusterMember| {
            member.learner && member.info.awaits_vote && member.info.is_started()
        };
        if let Some(member) = members.iter().find(ready) {
            let change = Change::Promote { id: member.id };
            // One that lags, or comes while another change is under way, is tried again at the next tick.
            if self.raft.propose_membership(&change).is_ok() {
                tracing::info!(
                    member = member.id.hex(),
                    name = member.info.name,
                    "gets its vote"
                );
            }
        }
    }

    fn pass_changes(&mut self, leader: MemberId) {
        let waiting = std::mem::take(&mut self.changes);
        for pending in waiting {
            match pending.asker {
                Asker::Here(reply) if pending.appended.is_none() => {
                    self.pass_change(leader, pending.change, reply);
                }
                asker @ Asker::Peer(_) if pending.appended.is_none() => {
                    asker.tell(Err(ChangeRefusal::NotLeader));
                }
                asker @ (Asker::Here(_) | Asker::Peer(_)) => {
                    self.changes.push_back(PendingChange { asker, ..pending });
                }
            }
        }
    }

    fn pass_change(&mut self, leader: MemberId, change: MemberChange, reply: ChangeReply) {
        let (asked, outcome) = oneshot::channel();
        let (done, removed) = oneshot::channel();
        if matches!(change, MemberChange::Remove { id } if id == leader)
            && self.removals.len() < CHANGES_MAX
        {
            self.removals.push(PassedRemoval {
                deadline: clock::now() + self.pacing.request_timeout,
                id: leader,
                done,
            });
        }
        self.ask(leader, PeerAsk::Change(change).encode(), asked);
        actix_rt::spawn(async move {
            let told = match outcome.await {
                Ok(Ok(bytes)) => codec::decode::<ChangeAnswer>("answer to a change", &bytes)
                    .unwrap_or(Err(ChangeRefusal::TimedOut))
                    .map(Bytes::from),
                Ok(Err(crate::net::ForwardError::Unreachable(_))) => Err(ChangeRefusal::NotLeader),
                // It is known at the latest when its time is up.
                Ok(Err(_)) | Err(_) => removed.await.map_err(|_| ChangeRefusal::TimedOut),
            };
            // A caller that has gone away in the meantime does not matter.
            drop(reply.send(told));
        });
    }

    /// A membership entry is committed: whoever asked for it gets its answer, and a member that is no longer one leaves.
    pub(super) fn membership_committed(&mut self, entry: &Entry) {
        if entry.kind != EntryKind::Membership {
            return;
        }
        let waiting = std::mem::take(&mut self.changes);
        for pending in waiting {
            match pending.appended {
                Some(id) if id.index == entry.index => {
                    let same = id.term == entry.term;
                    pending.asker.tell(if same {
                        Ok(entry.data.clone())
                    } else {
                        Err(ChangeRefusal::TimedOut)
                    });
                }
                Some(_) | None => self.changes.push_back(pending),
            }
        }
        if let Ok(membership) = crate::raft::Membership::decode(&entry.data) {
            self.belonged |= membership.contains(self.member.id);
            let gone = |removal: &mut PassedRemoval| !membership.contains(removal.id);
            for removal in self.removals.extract_if(.., gone) {
                // The leader may have answered.
                drop(removal.done.send(entry.data.clone()));
            }
        }
        self.leave_if_removed();
    }

    /// A membership came with a snapshot.
    pub(super) fn membership_in_force(&mut self) {
        self.belonged |= self.raft.membership().contains(self.member.id);
        self.leave_if_removed();
    }

    fn leave_if_removed(&mut self) {
        // Entries from before this member was added are committed again when it starts.
        let removed = self.belonged && !self.raft.membership().contains(self.member.id);
        self.leaves_at = removed.then(|| clock::now() + self.pacing.election);
    }

    /// A member whose removal is committed stops, once it has told the others.
    pub(super) fn leave(&self) {
        if self.leaves_at.is_some_and(|at| at <= clock::now()) {
            self.life.fail_stop().removed(
                "this member was removed from the cluster, as was asked for. Its data directory can be deleted",
            );
        }
    }

    /// Tells those whose time is up, or whose leader leads.
    pub(super) fn expire_changes(&mut self, now: Instant) {
        while self.changes.iter().any(|pending| pending.deadline <= now) {
            let late = self.changes.iter().position(|p| p.deadline <= now);
            if let Some(pending) = late.and_then(|at| self.changes.remove(at)) {
                pending.asker.tell(Err(ChangeRefusal::TimedOut));
            }
        }
        self.removals.retain(|removal| removal.deadline > now);
        let late = self.moves.extract_if(.., |pending| pending.deadline <= now);
        for pending in late {
            answer(pending.reply, RequestError::TimedOut);
        }
    }

    /// Somebody leads.
    pub(super) fn moves_done(&mut self, leader: MemberId) {
        let done = self.moves.extract_if(.., |pending| pending.to == leader);
        for pending in done {
            // A caller that has gone away in the meantime does not matter.
            drop(pending.reply.send(Ok(())));
        }
    }

    /// Says what this member is called and where clients reach it, if the membership does not say so yet.
    pub(super) fn publish_self(&mut self) {
        if let Some(outcome) = &mut self.publishing {
            match outcome.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => return,
                Ok(Err(refusal)) => tracing::debug!("not published yet: {refusal}"),
                Ok(Ok(_)) | Err(oneshot::error::TryRecvError::Closed) => {}
            }
            self.publishing = None;
        }
        if self.raft.leader().is_none() {
            return;
        }
        let Ok(members) = Members::of(self.raft.membership()) else {
            return;
        };
        let own = members.get(self.member.id);
        let said = own.is_none_or(|own| {
            own.info.name == self.member.name && own.info.client_urls == self.member.client_urls
        });
        if said {
            return;
        }
        let (reply, outcome) = oneshot::channel();
        self.publishing = Some(outcome);
        let change = MemberChange::Publish {
            id: self.member.id,
            name: self.member.name.clone(),
            client_urls: self.member.client_urls.clone(),
        };
        self.change(change, Asker::Here(reply));
    }
}

/// Why consensus does not make a change; nothing if it may a little later.
fn refusal(error: ChangeError) -> Option<ChangeRefusal> {
    Some(match error {
        ChangeError::Unsettled
        | ChangeError::Propose(
            ProposeError::TooMuchUncommitted { .. } | ProposeError::Transferring { .. },
        ) => return None,
        ChangeError::Propose(ProposeError::NotLeader { .. }) => ChangeRefusal::NotLeader,
        ChangeError::LearnerNotReady(_) => ChangeRefusal::LearnerNotReady,
        ChangeError::Membership(error) => match error {
            MembershipError::NotFound(_) => ChangeRefusal::NotFound,
            MembershipError::NotLearner(_) => ChangeRefusal::NotLearner,
            MembershipError::LastVoter(_) => ChangeRefusal::NotEnoughStarted,
            MembershipError::TooMany | MembershipError::Exists(_) | MembershipError::ZeroId => {
                ChangeRefusal::TooMany
            }
            MembershipError::ContextTooLong(_) => ChangeRefusal::BadUrls,
            MembershipError::Malformed => ChangeRefusal::Unreadable,
        },
    })
}
