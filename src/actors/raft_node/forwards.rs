//! Proposals that another member appends: a follower's way to the leader, and the leader's side of it.
//!
//! The follower keeps its callers; only bytes travel. It answers a caller when it applies the entry itself, so that who wrote
//! at a member reads it there. What the leader says it did not append is offered again, to whoever leads then. What may have
//! been appended is never offered twice: after a change of leader such a caller is told that its time is up.

use super::RaftNode;
use crate::{
    actors::{
        consensus::{Proposal, proposal_of},
        lease_messages::{ForwardLeaseCalls, LeaseAnswer},
        peer_ask::{PeerAsk, Taken},
        peer_hub::ServeRequests,
        request_error::RequestError,
    },
    codec::{self, Blob},
    net::{ForwardError, PeerRequest},
    raft::ProposeError,
    types::MemberId,
};
use actix::prelude::*;
use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

/// Bytes of proposals in one request.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A proposal on its way to the leader; its caller waits under its number.
#[derive(Debug)]
pub(super) struct Held {
    deadline: Instant,
    id: u64,
    data: Bytes,
}

/// What became of forwarded proposals.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForwardAnswered {
    batch: Vec<Held>,
    outcome: Result<Bytes, ForwardError>,
}

impl Handler<ForwardAnswered> for RaftNode {
    type Result = ();

    fn handle(&mut self, answered: ForwardAnswered, _: &mut Self::Context) {
        let bytes: usize = answered.batch.iter().map(|held| held.data.len()).sum();
        self.held_bytes -= bytes;
        let outcome = answered.outcome.map(|bytes| taken_of(&bytes));
        match outcome {
            Ok(Some(all)) => {
                for (held, taken) in answered.batch.into_iter().zip(all) {
                    self.settle_forwarded(held, taken);
                }
            }
            Err(ForwardError::Unreachable(_)) => {
                for held in answered.batch {
                    self.settle_forwarded(held, Taken::NotLeader);
                }
            }
            Err(
                ForwardError::Overloaded(_)
                | ForwardError::TooLarge(_)
                | ForwardError::PeerOverloaded,
            ) => {
                for held in answered.batch {
                    self.settle_forwarded(held, Taken::TooMany);
                }
            }
            // They may be in a log.
            Ok(None) | Err(ForwardError::Lost | ForwardError::Abandoned) => {}
        }
    }
}

impl Handler<ForwardLeaseCalls> for RaftNode {
    type Result = ResponseFuture<Vec<LeaseAnswer>>;

    fn handle(&mut self, forward: ForwardLeaseCalls, _: &mut Self::Context) -> Self::Result {
        let (reply, outcome) = oneshot::channel();
        self.ask(
            forward.leader,
            PeerAsk::Leases(forward.calls).encode(),
            reply,
        );
        Box::pin(async move {
            // Without an answer the callers try again.
            let Ok(Ok(bytes)) = outcome.await else {
                return Vec::new();
            };
            let answers = codec::decode("answers about leases", &bytes);
            answers
                .inspect_err(|error| tracing::error!("the leader's answer is dropped: {error}"))
                .unwrap_or_default()
        })
    }
}

/// The answer to a batch; nothing if it is none.
fn taken_of(bytes: &[u8]) -> Option<Vec<Taken>> {
    let taken = codec::decode("answer to proposals", bytes);
    taken
        .inspect_err(|error| tracing::error!("the leader's answer is dropped: {error}"))
        .ok()
}

impl Handler<ServeRequests> for RaftNode {
    type Result = ();

    fn handle(&mut self, serve: ServeRequests, _: &mut Self::Context) {
        for request in serve.requests {
            self.serve(request);
        }
        self.carry_out();
    }
}

impl RaftNode {
    fn serve(&mut self, request: PeerRequest) {
        let PeerRequest {
            from,
            body,
            responder,
        } = request;
        match PeerAsk::decode(&body) {
            Ok(PeerAsk::Propose(proposals)) => {
                let taken: Vec<Taken> = proposals
                    .into_iter()
                    .map(|data| self.take_forwarded(from, data))
                    .collect();
                responder.answer(codec::encode(&taken).into());
            }
            Ok(PeerAsk::Change(change)) => self.change_for_peer(change, responder),
            Ok(PeerAsk::Leases(calls)) => {
                let leases = self.peers.leases.clone();
                actix_rt::spawn(async move {
                    let answers = leases.serve(calls).await;
                    responder.answer(codec::encode(&answers).into());
                });
            }
            Ok(PeerAsk::EverybodyHas(through)) => {
                if self.raft.leader() == Some(from) {
                    self.everybody_has(through);
                }
                responder.answer(Bytes::new());
            }
            Ok(PeerAsk::WantSnapshot) => {
                if self.raft.is_leader() {
                    self.begin_snapshot(from);
                }
                responder.answer(Bytes::new());
            }
            Ok(PeerAsk::WhoIsMember) => responder.answer(self.known_members()),
            Ok(PeerAsk::StateHash(index)) => self.tell_hash(index, responder),
            Ok(PeerAsk::Differs(index, right)) => {
                if self.raft.leader() == Some(from) {
                    self.accused(index, right);
                }
                responder.answer(Bytes::new());
            }
            // A dropped responder tells the asker that there is no answer.
            Err(error) => tracing::error!(peer = from.hex(), "a request is dropped: {error}"),
        }
    }

    fn take_forwarded(&mut self, from: MemberId, data: Blob) -> Taken {
        let forged = proposal_of(&data.0).is_none_or(|(member, _)| member != from);
        if forged {
            tracing::error!(
                peer = from.hex(),
                "a proposal in another member's name is refused"
            );
            return Taken::TooMany;
        }
        if self.gap() > self.pacing.apply_gap_max {
            return Taken::TooMany;
        }
        match self.raft.propose(data.0) {
            Ok(_) => Taken::Appended,
            Err(ProposeError::NotLeader { .. } | ProposeError::Transferring { .. }) => {
                Taken::NotLeader
            }
            Err(ProposeError::TooMuchUncommitted { .. }) => Taken::TooMany,
        }
    }

    /// Sends what this turn has collected for the leader.
    pub(super) fn forward(&mut self) {
        if self.forwarding.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.forwarding);
        let Some(leader) = self.raft.leader().filter(|id| *id != self.member.id) else {
            for held in waiting {
                self.settle_forwarded(held, Taken::NotLeader);
            }
            return;
        };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for held in waiting {
            bytes += held.data.len();
            self.held_bytes += held.data.len();
            batch.push(held);
            if bytes >= BATCH_BYTES_MAX {
                self.forward_batch(leader, std::mem::take(&mut batch));
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            self.forward_batch(leader, batch);
        }
    }

    fn forward_batch(&self, leader: MemberId, batch: Vec<Held>) {
        let proposals = batch.iter().map(|held| Blob(held.data.clone())).collect();
        let (reply, outcome) = oneshot::channel();
        self.ask(leader, PeerAsk::Propose(proposals).encode(), reply);
        let own = self.peers.answered.clone();
        actix_rt::spawn(async move {
            let outcome = outcome.await.unwrap_or(Err(ForwardError::Lost));
            // A node that is gone has no callers left.
            own.send(ForwardAnswered { batch, outcome })
                .await
                .unwrap_or_default();
        });
    }

    /// Takes a proposal for the leader; its caller waits for the entry to be applied here.
    pub(super) fn forward_later(&mut self, deadline: Instant, proposal: Proposal) {
        let Proposal { id, data, reply } = proposal;
        self.wait_for_entry(deadline, id, reply);
        self.forwarding.push(Held { deadline, id, data });
    }

    fn settle_forwarded(&mut self, held: Held, taken: Taken) {
        if taken == Taken::Appended {
            return;
        }
        // Without a caller its time was up.
        let Some(reply) = self.waiting.remove(&held.id) else {
            return;
        };
        match taken {
            Taken::TooMany => reply.send(Err(RequestError::TooManyRequests)),
            Taken::NotLeader | Taken::Appended => {
                let Held { deadline, id, data } = held;
                self.park(deadline, Proposal { id, data, reply });
            }
        }
    }
}
