//! Requests between members: proposals that a follower forwards to the leader, and what a member serves for others.
//!
//! A follower keeps its callers; only bytes travel. It answers a caller when it applies the entry itself, so that a client reads
//! its own writes at the member that it wrote to. Proposals that the leader did not append are proposed again, to the next
//! leader. A proposal that may have been appended is never sent twice: after a change of leader its caller gets a time-out.

use super::{node::RaftNode, own_messages::ForwardAnswered, pending_proposals::ForwardedProposal};
use crate::{
    actors::{
        consensus::proposal_of,
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
use tokio::sync::oneshot;

impl Handler<ForwardAnswered> for RaftNode {
    type Result = ();

    fn handle(&mut self, answered: ForwardAnswered, _: &mut Self::Context) {
        let ForwardAnswered { batch, outcome } = answered;
        self.proposals.answered(&batch);
        match outcome.map(|bytes| decode_taken(&bytes)) {
            Ok(Some(all)) => {
                for (proposal, taken) in batch.into_iter().zip(all) {
                    self.forwarded(proposal, taken);
                }
            }
            Err(ForwardError::Unreachable(_)) => self.all_forwarded(batch, Taken::NotLeader),
            Err(
                ForwardError::Overloaded(_)
                | ForwardError::TooLarge(_)
                | ForwardError::PeerOverloaded,
            ) => self.all_forwarded(batch, Taken::TooMany),
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

/// Decodes the answer to a batch of proposals; one that does not decode is logged.
fn decode_taken(bytes: &[u8]) -> Option<Vec<Taken>> {
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
        if self.is_behind_applying() {
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

    /// Sends the leader the proposals that this turn has collected for it.
    pub(super) fn forward(&mut self) {
        let leader = self.raft.leader().filter(|id| *id != self.member.id);
        for batch in self.proposals.take_batches() {
            if let Some(leader) = leader {
                self.forward_batch(leader, batch);
            } else {
                self.proposals.answered(&batch);
                self.all_forwarded(batch, Taken::NotLeader);
            }
        }
    }

    fn forward_batch(&self, leader: MemberId, batch: Vec<ForwardedProposal>) {
        let proposals = batch.iter().map(|one| Blob(one.data.clone())).collect();
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

    fn all_forwarded(&mut self, batch: Vec<ForwardedProposal>, taken: Taken) {
        for proposal in batch {
            self.forwarded(proposal, taken);
        }
    }

    fn forwarded(&mut self, proposal: ForwardedProposal, taken: Taken) {
        match taken {
            Taken::Appended => {}
            Taken::NotLeader => self.proposals.park_forwarded(proposal),
            Taken::TooMany => {
                // Without a caller its time was up.
                if let Some(reply) = self.proposals.take(proposal.id) {
                    reply.send(Err(RequestError::TooManyRequests));
                }
            }
        }
    }
}
