//! Changes of the membership and of the leader that clients ask for, and what this member publishes of itself.
//!
//! The leader makes one change at a time and answers when it is committed; the others wait for their turn. A follower relays a
//! change to the leader.

use super::{
    node::RaftNode,
    pending_changes::{ChangeAsker, PendingChange},
};
use crate::{
    actors::{
        consensus::{ChangeMembership, ChangeReply, MoveLeader},
        members::{ClusterMember, Members},
        membership_change::{ChangeRefusal, ClusterState, MemberChange},
        peer_ask::{ChangeAnswer, PeerAsk},
        request_error::{RequestError, answer},
    },
    clock, codec,
    failpoint::never_publishes,
    log_gate::{self, LogGate},
    net::{ForwardError, Responder},
    raft::{
        ChangeError, Membership, MembershipChange, MembershipError, ProposeError, TransferError,
    },
    types::{Entry, EntryKind, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;
use std::collections::BTreeSet;
use tokio::sync::oneshot;

static UNHEALTHY: LogGate = LogGate::new();

/// A leader's decision on a requested change.
enum Judgement {
    Change(MembershipChange),
    /// It would pass if the members that have not replied yet were known to run.
    Wait,
    Refuse(ChangeRefusal),
}

impl Handler<ChangeMembership> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: ChangeMembership, _: &mut Self::Context) {
        self.change(ask.change, ChangeAsker::Client(ask.reply));
        self.carry_out();
    }
}

impl Handler<MoveLeader> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: MoveLeader, _: &mut Self::Context) {
        let deadline = clock::now() + self.pacing.request_timeout;
        match self.raft.transfer_leadership(ask.to) {
            Ok(()) if ask.to == self.member.id => drop(ask.reply.send(Ok(()))),
            Ok(()) => self.changes.push_move(ask.to, deadline, ask.reply),
            Err(TransferError::NotLeader { .. }) => answer(ask.reply, RequestError::NotLeader),
            Err(TransferError::NotVoter(_)) => answer(ask.reply, RequestError::BadTransferee),
        }
        self.carry_out();
    }
}

impl RaftNode {
    /// Another member relays a change.
    pub(super) fn change_for_peer(&mut self, change: MemberChange, responder: Responder) {
        let asker = ChangeAsker::Member(responder);
        if self.raft.is_leader() {
            self.change(change, asker);
        } else {
            asker.answer(Err(ChangeRefusal::NotLeader));
        }
    }

    fn change(&mut self, change: MemberChange, asker: ChangeAsker) {
        let adds = matches!(change, MemberChange::Add { .. });
        if adds && self.peers.links.is_alone() {
            asker.answer(Err(ChangeRefusal::NoPeers));
        } else if !self.changes.has_room() {
            asker.answer(Err(ChangeRefusal::TimedOut));
        } else {
            self.changes.push(PendingChange {
                deadline: clock::now() + self.pacing.request_timeout,
                change,
                asker,
                appended: None,
                judged_at: None,
                hands_over_since: None,
            });
            self.drive_changes();
        }
    }

    /// Makes the pending changes, or relays them to the leader.
    pub(super) fn drive_changes(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        match self.raft.leader() {
            Some(leader) if leader == self.member.id => self.make_changes(),
            Some(leader) => self.relay_changes(leader),
            None => {}
        }
    }

    fn make_changes(&mut self) {
        let now = self.raft.now();
        for mut pending in self.changes.take_unappended() {
            let asked_at = *pending.judged_at.get_or_insert(now);
            match self.judge(&pending.change, asked_at) {
                Judgement::Change(change) if self.hands_over_first(&mut pending, &change) => {
                    self.changes.push(pending);
                }
                Judgement::Change(change) => self.make_change(pending, &change),
                Judgement::Wait => self.changes.push(pending),
                Judgement::Refuse(refusal) => {
                    if refusal == ChangeRefusal::Unhealthy {
                        self.report_unhealthy(asked_at);
                    }
                    pending.asker.answer(Err(refusal));
                }
            }
        }
    }

    /// Says which voters do not certainly run: the answer to the client cannot.
    fn report_unhealthy(&self, asked_at: u64) {
        let (stable, peers) = (self.connections.stable(clock::now()), self.raft.peers());
        let members = Members::of(self.raft.membership()).unwrap_or_default();
        let others = members
            .iter()
            .filter(|one| one.is_meant_to_vote() && one.id != self.member.id);
        let doubts: Vec<String> = others
            .filter_map(|one| {
                let peer = peers.iter().find(|peer| peer.id == one.id);
                let doubt = if !self.connections.ids().any(|id| id == one.id) {
                    "is not connected"
                } else if !stable.contains(&one.id) {
                    "has been connected for less than 5 s"
                } else if peer.is_none_or(|peer| !peer.current) {
                    "has not caught up with the log"
                } else if peer.is_none_or(|peer| peer.replied_at <= asked_at) {
                    "has not replied since"
                } else {
                    return None;
                };
                let name = match one.info.name.as_str() {
                    "" => one.id.hex(),
                    name => name.to_owned(),
                };
                Some(format!("{name} {doubt}"))
            })
            .collect();
        log_gate::warn!(
            UNHEALTHY,
            "a membership change is refused as unhealthy: after it, a quorum of the voters would not certainly run. {}",
            doubts.join(", ")
        );
    }

    /// Whether this leader, which is to be removed, transfers its leadership before that. Then the next leader removes it, and
    /// no call waits for an election. A leader that finds no successor in time removes itself.
    fn hands_over_first(&mut self, pending: &mut PendingChange, change: &MembershipChange) -> bool {
        if *change != (MembershipChange::Remove { id: self.member.id }) {
            return false;
        }
        let now = self.raft.now();
        let since = *pending.hands_over_since.get_or_insert(now);
        let has_time = u128::from(now - since) <= self.election_ticks();
        has_time && self.raft.yield_leadership().is_some()
    }

    fn election_ticks(&self) -> u128 {
        self.pacing.election.as_millis() / self.pacing.tick.as_millis().max(1)
    }

    /// Judges a change that was first looked at in tick `asked_at`. Members that replied before may have stopped since then, so
    /// they are asked again: by the next heartbeats. For that a change waits for an election timeout at most.
    fn judge(&self, change: &MemberChange, asked_at: u64) -> Judgement {
        let outcome = |replied_after| {
            change.judge(&ClusterState {
                membership: self.raft.membership(),
                leader: self.member.id,
                healthy: &self.healthy_members(replied_after),
                strict: self.pacing.strict_reconfig,
            })
        };
        match (outcome(Some(asked_at)), outcome(None)) {
            (Ok(change), _) => Judgement::Change(change),
            (Err(ChangeRefusal::Unhealthy), Ok(_))
                if u128::from(self.raft.now() - asked_at) <= self.election_ticks() =>
            {
                Judgement::Wait
            }
            (Err(refusal), _) => Judgement::Refuse(refusal),
        }
    }

    /// Members with a stable connection whose logs keep up, and which have replied after that tick.
    fn healthy_members(&self, replied_after: Option<u64>) -> BTreeSet<MemberId> {
        let stable = self.connections.stable(clock::now());
        let peers = self.raft.peers().into_iter();
        peers
            .filter(|peer| stable.contains(&peer.id) && peer.current)
            .filter(|peer| replied_after.is_none_or(|tick| peer.replied_at > tick))
            .map(|peer| peer.id)
            .collect()
    }

    fn make_change(&mut self, mut pending: PendingChange, change: &MembershipChange) {
        match self.raft.propose_membership(change) {
            Ok(id) => {
                pending.appended = Some(id);
                self.changes.push(pending);
                self.update_addresses();
            }
            Err(error) => {
                if let Some(refusal) = refusal(error) {
                    pending.asker.answer(Err(refusal));
                } else {
                    // It waits for another change. Until then more members may stop, so that it is judged anew.
                    pending.judged_at = None;
                    self.changes.push(pending);
                }
            }
        }
    }

    /// Promotes a learner that was added to become a voter, once it has started and caught up.
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
            let change = MembershipChange::Promote { id: member.id };
            // If it has not caught up, or another change is not committed, the next tick tries again.
            if self.raft.propose_membership(&change).is_ok() {
                tracing::info!(
                    member = member.id.hex(),
                    name = member.info.name,
                    "becomes a voter"
                );
            }
        }
    }

    fn relay_changes(&mut self, leader: MemberId) {
        for pending in self.changes.take_unappended() {
            match pending.asker {
                ChangeAsker::Client(reply) => self.relay_change(leader, pending.change, reply),
                asker @ ChangeAsker::Member(_) => asker.answer(Err(ChangeRefusal::NotLeader)),
            }
        }
    }

    fn relay_change(&mut self, leader: MemberId, change: MemberChange, reply: ChangeReply) {
        let (asked, outcome) = oneshot::channel();
        let mut overtaken = self.changes.watch_relay(self.raft.status().term);
        let removal = if matches!(change, MemberChange::Remove { id } if id == leader) {
            let deadline = clock::now() + self.pacing.request_timeout;
            Some(self.changes.watch_removal(leader, deadline))
        } else {
            None
        };
        self.ask(leader, &PeerAsk::Change(change), asked);
        actix_rt::spawn(async move {
            let (outcome, settled) = tokio::select! {
                biased;
                outcome = outcome => (outcome, false),
                // The change is in the log by now, or the leader did not append it.
                _ = &mut overtaken => (Ok(Err(ForwardError::Abandoned)), true),
            };
            let answer = match (outcome, removal) {
                (Ok(Ok(bytes)), _) => codec::decode::<ChangeAnswer>("answer to a change", &bytes)
                    .unwrap_or(Err(ChangeRefusal::TimedOut))
                    .map(Bytes::from),
                (Ok(Err(ForwardError::Unreachable(_))), _) => Err(ChangeRefusal::NotLeader),
                (Ok(Err(_)) | Err(_), Some(mut removal)) if settled => {
                    removal.try_recv().map_err(|_| ChangeRefusal::TimedOut)
                }
                // The leader may have removed itself, and stopped: the log shows that.
                (Ok(Err(_)) | Err(_), Some(removal)) => tokio::select! {
                    biased;
                    removed = removal => removed.map_err(|_| ChangeRefusal::TimedOut),
                    _ = &mut overtaken => Err(ChangeRefusal::TimedOut),
                },
                (Ok(Err(_)) | Err(_), None) => Err(ChangeRefusal::TimedOut),
            };
            // A caller that has gone away in the meantime does not matter.
            drop(reply.send(answer));
        });
    }

    /// If `entry` is a membership entry, now committed, whoever asked for it gets the answer, and a removed member leaves.
    pub(super) fn membership_committed(&mut self, entry: &Entry) {
        if entry.kind != EntryKind::Membership {
            return;
        }
        let until = clock::now() + self.pacing.election;
        self.changes.committed(entry, until);
        self.answer_promotions();
        let membership = Membership::decode(&entry.data).ok();
        if let Some(membership) = &membership {
            self.changes.removed(membership, &entry.data);
        }
        self.update_departure(membership.is_some_and(|it| it.contains(self.member.id)));
    }

    /// Answers those who asked for a promotion that the promoted member knows of: from then on it serves all calls.
    pub(super) fn answer_promotions(&mut self) {
        if self.changes.awaits_promoted() {
            let peers = self.raft.peers();
            let knows = |id: MemberId, index| {
                let mut peers = peers.iter();
                peers.any(|peer| peer.id == id && peer.matched >= index)
            };
            self.changes.answer_promotions(knows, clock::now());
        }
    }

    /// A membership came with a snapshot.
    pub(super) fn membership_installed(&mut self) {
        self.update_departure(self.raft.membership().contains(self.member.id));
    }

    fn update_departure(&mut self, committed: bool) {
        let in_force = self.raft.membership().contains(self.member.id);
        let leaves_at = clock::now() + self.pacing.election;
        self.changes
            .departure
            .update(committed, in_force, leaves_at);
    }

    /// A member whose removal is committed stops, after it had time to send that to the others.
    pub(super) fn stop_if_removed(&self) {
        if self.changes.departure.is_due(clock::now()) {
            self.life.fail_stop().removed(
                "this member was removed from the cluster, as was asked for. Its data directory can be deleted",
            );
        }
    }

    /// Publishes this member's name and client URLs, if the membership does not have them yet.
    pub(super) fn publish_self(&mut self) {
        if self.changes.is_publishing() || self.raft.leader().is_none() || never_publishes() {
            return;
        }
        let Ok(members) = Members::of(self.raft.membership()) else {
            return;
        };
        let own = members.get(self.member.id);
        let published = own.is_none_or(|own| {
            own.info.name == self.member.name && own.info.client_urls == self.member.client_urls
        });
        if published {
            return;
        }
        let (reply, outcome) = oneshot::channel();
        self.changes.publishing(outcome);
        let change = MemberChange::Publish {
            id: self.member.id,
            name: self.member.name.clone(),
            client_urls: self.member.client_urls.clone(),
        };
        self.change(change, ChangeAsker::Client(reply));
    }
}

/// Why consensus refuses a change; None if it may accept the change a little later.
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
