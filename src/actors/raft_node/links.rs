//! The other members: messages, connections and requests, their addresses, and how much of the log all of them have.

use super::node::{PeerLinks, RaftNode};
use crate::{
    actors::{
        members::{Members, url_address},
        peer_ask::{GuestInfo, KnownMembers, PeerAsk, RecordedStart},
        peer_hub::{
            ForwardRequests, MessagesDropped, PeerConnected, PeerDisconnected, PeerMessages,
            RefusedByPeer, SendMessages, ServeGuest, UpdatePeers,
        },
    },
    clock, codec,
    log_gate::{self, LogGate},
    net::{ForwardError, ForwardReply, GuestQuestion, Refusal},
    raft::{Envelope, StepError},
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{collections::BTreeSet, time::Duration};
use tokio::sync::oneshot;

/// How long a quorum has to confirm the answer to a guest; the guest waits for a second.
const CONFIRM_WITHIN: Duration = Duration::from_millis(600);

/// Messages of other members that are malformed.
static DROPPED: LogGate = LogGate::new();
/// How long a member that was removed stays connected: twice as long as it takes to stop once it has found that out.
const LEAVING_ELECTION_TIMEOUTS: u32 = 2;

impl Handler<PeerMessages> for RaftNode {
    type Result = ();

    fn handle(&mut self, received: PeerMessages, _: &mut Self::Context) {
        if !self.beginning.has_begun() {
            // Consensus repeats what gets lost.
            return;
        }
        for message in received.messages {
            match self.raft.step(received.from, message) {
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
                ) => {
                    let peer = received.from.hex();
                    log_gate::error!(DROPPED, "a message from {peer} was dropped: {error}");
                }
            }
        }
        self.carry_out();
    }
}

impl Handler<PeerConnected> for RaftNode {
    type Result = ();

    fn handle(&mut self, up: PeerConnected, _: &mut Self::Context) {
        self.connections.connected(up.id, up.version, clock::now());
        self.settle();
    }
}

impl Handler<PeerDisconnected> for RaftNode {
    type Result = ();

    fn handle(&mut self, down: PeerDisconnected, _: &mut Self::Context) {
        self.connections.disconnected(down.id);
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

    /// A member that was removed while it was away gets that from the others.
    fn handle(&mut self, refused: RefusedByPeer, _: &mut Self::Context) {
        if self.changes.departure.is_removed() {
            // It has found that out already, and answers the client that asked for its removal before it stops.
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
        let voters = self.raft.membership().voters().map(|(id, _)| id);
        if self.connections.unknown_at(refused.by, voters) {
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
        if let Some(id) = RecordedStart::asked(&serve.question.question) {
            let answer = self.record_for_guest(id);
            return serve.question.responder.answer(answer);
        }
        let (consensus, views) = (self.peers.consensus.clone(), self.peers.views.clone());
        let confirmed = async move {
            let view =
                tokio::time::timeout(CONFIRM_WITHIN, consensus.linearizable_view(&views)).await;
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
        // A dropped responder means to the guest that there is no answer.
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
    /// Sends messages of consensus, which repeats those that get lost.
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

    /// Sends a request to a member. If it cannot be sent, the error comes at once.
    pub(super) fn ask(&self, to: MemberId, ask: &PeerAsk, reply: ForwardReply) {
        let unreachable = Err(ForwardError::Unreachable(to));
        let PeerLinks::Hub { forward, .. } = &self.peers.links else {
            // The caller may have given up.
            drop(reply.send(unreachable));
            return;
        };
        let forwarded = forward.try_send(ForwardRequests {
            to,
            version: ask.version(),
            requests: vec![(ask.encode(), reply)],
        });
        if let Err(SendError::Full(lost)) = forwarded {
            for (_, reply) in lost.requests {
                drop(reply.send(Err(ForwardError::Overloaded(to))));
            }
        }
    }

    /// Sends a request whose answer does not matter.
    pub(super) fn notify(&self, to: MemberId, ask: &PeerAsk) {
        let (reply, _) = oneshot::channel();
        self.ask(to, ask, reply);
    }

    /// Once a tick: addresses, snapshots and the length of the log.
    pub(super) fn check_peers(&mut self) {
        if self.peers.links.is_alone() {
            return;
        }
        self.ask_for_members();
        self.update_addresses();
        self.request_state();
        if self.retention.is_due() {
            self.announce_progress();
            self.bound_log();
        }
    }

    /// Asks a connected member who the members are, if there has been no leader for a while.
    fn ask_for_members(&mut self) {
        self.addresses.update(self.raft.commit());
        let to = self.addresses.next_to_ask(
            self.raft.leader().is_some(),
            self.connections.ids(),
            clock::now(),
            self.pacing.election * 2,
        );
        if let Some(to) = to {
            let (reply, answer) = oneshot::channel();
            self.ask(to, &PeerAsk::WhoIsMember, reply);
            self.addresses.asked(answer);
        }
    }

    /// The answer to a member that asks who the members are.
    pub(super) fn known_members(&self) -> Bytes {
        let known = KnownMembers {
            commit: self.raft.commit(),
            membership: self.raft.membership().encode().to_vec(),
        };
        codec::encode(&known).into()
    }

    /// Sends the peer hub the members' addresses, if they changed.
    pub(super) fn update_addresses(&mut self) {
        let PeerLinks::Hub { addresses, .. } = &self.peers.links else {
            return;
        };
        let membership = self.raft.membership();
        let now = clock::now();
        if !self.addresses.is_outdated(membership, now) {
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
        let known = if joining {
            self.peers.known_members.addresses()
        } else {
            members.addresses()
        };
        let until = now + self.pacing.election * LEAVING_ELECTION_TIMEOUTS;
        let known = self.addresses.with_leaving(known, now, until);
        let peers = self.addresses.with_learned(known);
        // If the hub's mailbox is full, the next tick tries again.
        if !matches!(
            addresses.try_send(UpdatePeers { peers }),
            Err(SendError::Full(_))
        ) {
            self.addresses.sent(membership.clone());
        }
    }

    /// Only the leader has each member's match index, and any other member may lead next. So it sends that to all of them, and
    /// none releases entries that a member still needs.
    fn announce_progress(&mut self) {
        if !self.raft.is_leader() {
            return;
        }
        let peers = self.raft.peers();
        let commit = self.raft.commit();
        let slowest = peers.iter().map(|peer| peer.matched).min();
        let through = slowest.map_or(commit, |matched| matched.min(commit));
        self.everybody_has(through);
        if self.retention.announce(through) {
            let ask = PeerAsk::EverybodyHas(through);
            for peer in peers {
                self.notify(peer.id, &ask);
            }
        }
    }

    /// Every member has entries up to `through`, durably.
    pub(super) fn everybody_has(&mut self, through: LogIndex) {
        self.retention.everybody_has(through);
        self.release();
    }
}
