//! The Raft node among its peers: what they say, who can be reached, where they are, and how much of the log all of them have.

use super::RaftNode;
use crate::{
    actors::{
        members::{Members, url_address},
        peer_ask::{GuestInfo, PeerAsk},
        peer_hub::{
            ForwardRequests, MessagesDropped, PeerConnected, PeerDisconnected, PeerMessages,
            RefusedByPeer, SendMessages, ServeGuest, UpdatePeers,
        },
        requests::RequestError,
    },
    clock, codec,
    net::{ForwardError, ForwardReply, GuestQuestion, Refusal},
    raft::{Envelope, Membership, StepError},
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// A peer counts as connected for good after so long, as in etcd.
const CONNECTED_FOR: Duration = Duration::from_secs(5);

/// How long a quorum has to confirm what a guest is answered; the guest waits for a second.
const CONFIRM_WITHIN: Duration = Duration::from_millis(600);

/// The leader tells how much of the log everybody has once in so many ticks.
const TELL_TICKS: u32 = 10;

/// The way to the other members.
#[derive(Debug)]
pub enum PeerLinks {
    /// There are none, and no socket: one member alone.
    Alone,
    /// Through the peer hub.
    Hub {
        /// Carries consensus.
        send: Recipient<SendMessages>,
        /// Carries requests.
        forward: Recipient<ForwardRequests>,
        /// Knows addresses.
        book: Recipient<UpdatePeers>,
    },
}

/// What the Raft node knows of its peers' connections.
#[derive(Debug, Default)]
pub(super) struct Peers {
    connected: BTreeMap<MemberId, Instant>,
    /// Who says that this member is unknown to the cluster.
    unknown_at: BTreeSet<MemberId>,
    /// The membership that the address book has.
    booked: Option<Membership>,
    /// Every member has the log durably up to here.
    everybody_has: LogIndex,
    told: LogIndex,
    ticks: u32,
}

impl Peers {
    /// Members that have been connected for a while.
    pub(super) fn connected_for_good(&self) -> BTreeSet<MemberId> {
        let now = clock::now();
        let stable = |since: &Instant| now.duration_since(*since) >= CONNECTED_FOR;
        self.connected
            .iter()
            .filter(|(_, since)| stable(since))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Every member has the log durably up to here.
    pub(super) fn everybody_has(&self) -> LogIndex {
        self.everybody_has
    }

    fn connected_since(&self, id: MemberId, then: Instant) -> bool {
        self.connected.get(&id).is_some_and(|since| *since <= then)
    }
}

impl PeerLinks {
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }
}

impl Handler<PeerMessages> for RaftNode {
    type Result = ();

    fn handle(&mut self, said: PeerMessages, _: &mut Self::Context) {
        for message in said.messages {
            match self.raft.step(said.from, message) {
                Ok(()) => {}
                Err(error @ StepError::EntriesLost { .. }) => {
                    let what = "this member lost entries it had acknowledged; remove it, delete its data directory and add \
                                it anew";
                    self.life.fail_stop().because(what, &error);
                    return;
                }
                Err(
                    error @ (StepError::Sender(_)
                    | StepError::Entry { .. }
                    | StepError::SecondLeader { .. }
                    | StepError::BeyondEnd { .. }),
                ) => tracing::error!(peer = said.from.hex(), "a message was dropped: {error}"),
            }
        }
        self.carry_out();
    }
}

impl Handler<PeerConnected> for RaftNode {
    type Result = ();

    fn handle(&mut self, up: PeerConnected, _: &mut Self::Context) {
        self.links.unknown_at.remove(&up.id);
        self.links.connected.insert(up.id, clock::now());
    }
}

impl Handler<PeerDisconnected> for RaftNode {
    type Result = ();

    fn handle(&mut self, down: PeerDisconnected, _: &mut Self::Context) {
        self.links.connected.remove(&down.id);
        self.raft.unreachable(down.id);
        self.carry_out();
    }
}

impl Handler<MessagesDropped> for RaftNode {
    type Result = ();

    fn handle(&mut self, dropped: MessagesDropped, _: &mut Self::Context) {
        self.raft.unreachable(dropped.id);
        self.carry_out();
    }
}

impl Handler<RefusedByPeer> for RaftNode {
    type Result = ();

    /// A member that was removed while it was away learns it from the others. One of them may be behind, a majority is not.
    fn handle(&mut self, refused: RefusedByPeer, _: &mut Self::Context) {
        if self.leaves_at.is_some() {
            // It knows, and answers who asked for that before it goes.
            return;
        }
        let unknown = Refusal::UnknownMember {
            id: self.member.id,
            name: String::new(),
        };
        let removed = Refusal::Removed(self.member.id);
        if ![unknown.code(), removed.code()]
            .map(u64::from)
            .contains(&refused.code)
        {
            return;
        }
        self.links.unknown_at.insert(refused.by);
        let membership = self.raft.membership();
        let voters = membership.voters().count();
        let unknown_at = &self.links.unknown_at;
        let agree = membership
            .voters()
            .filter(|(id, _)| unknown_at.contains(id))
            .count();
        if agree > voters / 2 {
            self.life.fail_stop().removed(
                "this member was removed from the cluster: the others do not know it any more. Its data directory can be deleted",
            );
        }
    }
}

impl Handler<ServeGuest> for RaftNode {
    type Result = ();

    /// A starting process asks which member it is, by its address. What this member has applied may be old, so it asks for a read
    /// index first, and says in its answer whether a quorum confirmed it.
    fn handle(&mut self, serve: ServeGuest, ctx: &mut Self::Context) {
        let requests = self.peers.requests.clone();
        let confirmed = async move {
            let view = tokio::time::timeout(CONFIRM_WITHIN, requests.view_of_anyone(false)).await;
            Some(view.ok()?.ok()?.members.clone())
        };
        let answered = confirmed.into_actor(self).map(|members, node, _| {
            node.answer_guest(serve.question, members.as_deref());
        });
        ctx.spawn(answered);
    }
}

impl RaftNode {
    /// `confirmed` is the membership that a quorum confirmed.
    fn answer_guest(&self, question: GuestQuestion, confirmed: Option<&Members>) {
        let asked = String::from_utf8_lossy(&question.question).into_owned();
        let membership = self.raft.membership();
        // A dropped responder tells the guest that there is no answer.
        let Ok(own) = Members::of(membership) else {
            return;
        };
        let found = confirmed.unwrap_or(&own).iter().find(|member| {
            let mut urls = member.info.peer_urls.iter();
            urls.any(|url| url_address(url) == Some(&asked))
        });
        let answer = GuestInfo {
            id: found.map(|member| member.id),
            started: found.is_some_and(|member| member.info.is_started()),
            membership: membership.encode().to_vec(),
            confirmed: confirmed.is_some(),
            last: self.raft.last().index,
        };
        question.responder.answer(codec::encode(&answer).into());
    }
}

impl RaftNode {
    /// Sends what consensus says. Consensus repeats what gets lost.
    pub(super) fn send(&mut self, messages: Vec<Envelope>) {
        let PeerLinks::Hub { send, .. } = &self.peers.links else {
            return;
        };
        if let Err(SendError::Full(lost)) = send.try_send(SendMessages { messages }) {
            let receivers: BTreeSet<MemberId> = lost.messages.iter().map(|m| m.to).collect();
            for id in receivers {
                self.raft.unreachable(id);
            }
        }
    }

    /// Asks a member. What cannot be sent is answered at once.
    pub(super) fn ask(&self, to: MemberId, request: Bytes, reply: ForwardReply) {
        let unreachable = Err(ForwardError::Unreachable(to));
        let PeerLinks::Hub { forward, .. } = &self.peers.links else {
            // The asker may have given up.
            drop(reply.send(unreachable));
            return;
        };
        let forwarded = forward.try_send(ForwardRequests {
            to,
            requests: vec![(request, reply)],
        });
        if let Err(SendError::Full(lost)) = forwarded {
            for (_, reply) in lost.requests {
                drop(reply.send(Err(ForwardError::Overloaded(to))));
            }
        }
    }

    /// What is due to the others once a tick.
    pub(super) fn tend_peers(&mut self) {
        if self.peers.links.is_alone() {
            return;
        }
        self.look_out();
        self.update_book();
        self.ask_for_state();
        self.links.ticks += 1;
        if self.links.ticks.is_multiple_of(TELL_TICKS) {
            self.tell_what_everybody_has();
            self.bound_log();
        }
    }

    /// Members that are connected.
    pub(super) fn connected(&self) -> Vec<MemberId> {
        self.links.connected.keys().copied().collect()
    }

    /// The address book is to be written anew.
    pub(super) fn book_again(&mut self) {
        self.links.booked = None;
    }

    /// Tells the peer hub where the members are, if that changed.
    pub(super) fn update_book(&mut self) {
        let PeerLinks::Hub { book, .. } = &self.peers.links else {
            return;
        };
        let membership = self.raft.membership();
        if self.links.booked.as_ref() == Some(membership) {
            return;
        }
        let members = match Members::of(membership) {
            Ok(members) => members,
            Err(error) => {
                let what = "the membership in the log cannot be read";
                self.life.fail_stop().because(what, &error);
                return;
            }
        };
        let joining = membership.ids().next().is_none();
        let mut peers = if joining {
            self.peers.seed.addresses()
        } else {
            members.addresses()
        };
        let known: BTreeSet<MemberId> = peers.iter().map(|peer| peer.id).collect();
        let told = self.lookout.addresses().into_iter();
        peers.extend(told.filter(|peer| !known.contains(&peer.id)));
        // A hub whose mailbox is full is told at the next tick.
        if !matches!(
            book.try_send(UpdatePeers { peers }),
            Err(SendError::Full(_))
        ) {
            self.links.booked = Some(membership.clone());
        }
    }

    /// The leader alone knows how far each member is, and any of the others may lead next: so it tells them, and nobody gives up
    /// entries that a member still lacks.
    fn tell_what_everybody_has(&mut self) {
        if !self.raft.is_leader() {
            return;
        }
        let peers = self.raft.peers();
        let commit = self.raft.commit();
        let slowest = peers.iter().map(|peer| peer.matched).min();
        let through = slowest.map_or(commit, |matched| matched.min(commit));
        self.everybody_has(through);
        if self.links.told == through {
            return;
        }
        self.links.told = through;
        let ask = PeerAsk::EverybodyHas(through).encode();
        for peer in peers {
            // Nobody waits for an answer.
            let (reply, _) = oneshot::channel();
            self.ask(peer.id, ask.clone(), reply);
        }
    }

    pub(super) fn everybody_has(&mut self, through: LogIndex) {
        self.links.everybody_has = self.links.everybody_has.max(through);
        self.release();
    }

    /// Why a request that began `began` was not over in time, as etcd tells it.
    pub(super) fn late(&self, began: Instant) -> RequestError {
        let Some(leadership) = self.leadership else {
            return RequestError::TimedOut;
        };
        let lost = leadership
            .since
            .checked_sub(self.pacing.election * 2)
            .unwrap_or(leadership.since);
        if began > lost && began < leadership.since && leadership.changed {
            return RequestError::TimedOutLeaderFailed;
        }
        match self.raft.leader() {
            Some(leader) if leader == self.member.id => {
                if self.has_quorum_since(began) {
                    RequestError::TimedOut
                } else {
                    RequestError::TimedOutConnectionLost
                }
            }
            Some(leader) if !self.links.connected_since(leader, began) => {
                RequestError::TimedOutConnectionLost
            }
            Some(_) | None => RequestError::TimedOut,
        }
    }

    fn has_quorum_since(&self, then: Instant) -> bool {
        let voters: Vec<MemberId> = self.raft.membership().voters().map(|(id, _)| id).collect();
        let reached =
            |id: &&MemberId| **id == self.member.id || self.links.connected_since(**id, then);
        voters.iter().filter(reached).count() > voters.len() / 2
    }
}
