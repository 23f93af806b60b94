//! Requests between members: proposals that a follower forwards to the leader, and what a member serves for others.
//!
//! A follower keeps its callers; only bytes travel. It answers a caller when it applies the entry itself, so that a client reads
//! its own writes at the member that it wrote to. Proposals that the leader did not append are proposed again, to the next
//! leader. One that may have been appended is proposed again once it is certain that it is in no log: if an entry of a later term
//! is committed, and it is not, since it was handed over for one term and a leader of another term does not append it (see
//! `pending_proposals`); or, if the leader stayed and its answer was lost, once the leader has answered for it (see `settling`).
//!
//! A leader that speaks version 1 of the peer protocol knows neither terms nor questions: it is sent the older request
//! ([`PeerAsk::Propose`]), once. If its answer is lost, the caller waits until the entry comes or its time is up.

use super::{
    node::RaftNode,
    own_messages::{ForwardAnswered, Forwarded},
    pending_proposals::{ForwardBatch, Handed},
};
use crate::{
    actors::{
        consensus::proposal_of,
        lease_messages::{ForwardLeaseCalls, LeaseAnswer},
        peer_ask::{PeerAsk, Settled, Taken, TermPart},
        peer_hub::ServeRequests,
        request_error::RequestError,
    },
    codec::{self, Blob},
    failpoint::speaks_first_peer_version,
    log_gate::{self, LogGate},
    net::{ForwardError, PeerRequest, Responder},
    raft::ProposeError,
    types::{MemberId, Term},
};
use actix::prelude::*;
use bytes::Bytes;
use tokio::sync::oneshot;

/// Requests and answers of other members that do not decode.
static DROPPED: LogGate = LogGate::new();

impl Handler<ForwardAnswered> for RaftNode {
    type Result = ();

    fn handle(&mut self, answered: ForwardAnswered, _: &mut Self::Context) {
        let ForwardAnswered { forwarded, outcome } = answered;
        match forwarded {
            Forwarded::Proposals { handed, ids } => self.proposals_answered(handed, ids, outcome),
            Forwarded::Question(term) => self.question_answered(term, outcome),
            Forwarded::Start(by) => self.start_answered(by, &outcome),
        }
        self.carry_out();
    }
}

impl Handler<ForwardLeaseCalls> for RaftNode {
    type Result = ResponseFuture<Vec<LeaseAnswer>>;

    fn handle(&mut self, forward: ForwardLeaseCalls, _: &mut Self::Context) -> Self::Result {
        let (reply, outcome) = oneshot::channel();
        self.ask(forward.leader, &PeerAsk::Leases(forward.calls), reply);
        Box::pin(async move {
            // Without an answer the callers try again.
            let Ok(Ok(bytes)) = outcome.await else {
                return Vec::new();
            };
            let answers = codec::decode("answers about leases", &bytes);
            answers
                .inspect_err(|error| {
                    log_gate::error!(DROPPED, "the leader's answer is dropped: {error}");
                })
                .unwrap_or_default()
        })
    }
}

/// Decodes the leader's answer to what was forwarded; one that does not decode is logged.
fn decode_answer<T: bincode::Decode<()>>(bytes: &[u8]) -> Option<T> {
    let answer = codec::decode("answer to proposals", bytes);
    answer
        .inspect_err(|error| log_gate::error!(DROPPED, "the leader's answer is dropped: {error}"))
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
        if responder.is_cancelled() {
            // Whoever asked is gone, or asks again: nothing of this may enter the log.
            return;
        }
        match PeerAsk::decode(&body) {
            Ok(ask) if ask.version() > 1 && speaks_first_peer_version() => {}
            Ok(PeerAsk::Propose(proposals)) => {
                let term = self.raft.status().term;
                let part = self.parts.now(term, from);
                self.take_all_forwarded(from, TermPart { term, part }, proposals, responder);
            }
            Ok(PeerAsk::ProposeIn(part, proposals)) => {
                self.take_all_forwarded(from, part, proposals, responder);
            }
            Ok(PeerAsk::Settle(term)) => {
                let leads = self.raft.is_leader() && self.raft.status().term == term;
                let settled = leads.then(|| Settled {
                    part: self.parts.next(term, from),
                    through: self.raft.last().index,
                });
                responder.answer(codec::encode(&settled).into());
            }
            Ok(PeerAsk::RecordStart) => self.record_start(from, responder),
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
            Ok(PeerAsk::StateHash(index)) => self.answer_hash(index, responder),
            Ok(PeerAsk::StateDiffers(index, right)) => {
                if self.raft.leader() == Some(from) {
                    self.accused(index, right);
                }
                responder.answer(Bytes::new());
            }
            // A dropped responder tells the asker that there is no answer.
            Err(error) => {
                let from = from.hex();
                log_gate::error!(DROPPED, "a request of {from} is dropped: {error}");
            }
        }
    }

    /// Appends what was forwarded to the leader of a term. In another term, or another part of it, this member refuses it, even
    /// if it leads again: the sender may have proposed it anew meanwhile.
    fn take_all_forwarded(
        &mut self,
        from: MemberId,
        asked: TermPart,
        proposals: Vec<Blob>,
        responder: Responder,
    ) {
        let term = self.raft.status().term;
        let part = self.parts.now(term, from);
        let mut take = |data| {
            if asked.term != term {
                Taken::NotLeader
            } else if asked.part != part {
                Taken::OtherPart
            } else {
                self.take_forwarded(from, data)
            }
        };
        let taken: Vec<Taken> = proposals.into_iter().map(&mut take).collect();
        responder.answer(codec::encode(&taken).into());
    }

    fn take_forwarded(&mut self, from: MemberId, data: Blob) -> Taken {
        let forged = proposal_of(&data.0).is_none_or(|(member, _)| member != from);
        if forged {
            let from = from.hex();
            log_gate::error!(
                DROPPED,
                "a proposal of {from} in another member's name is refused"
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
        let part = leader.and_then(|_| self.settling.part_of(self.raft.status().term));
        let batches = self.proposals.take_batches(part);
        if let (Some(leader), Some(part)) = (leader, part) {
            for ForwardBatch { ids, data } in batches {
                let proposals = data.into_iter().map(Blob).collect();
                let handed = Handed::InPart(part);
                let ask = PeerAsk::ProposeIn(part, proposals);
                self.ask_and_report(leader, &ask, Forwarded::Proposals { handed, ids });
            }
        }
    }

    /// Asks another member; its answer comes back as a message.
    pub(super) fn ask_and_report(&self, to: MemberId, ask: &PeerAsk, forwarded: Forwarded) {
        let (reply, outcome) = oneshot::channel();
        self.ask(to, ask, reply);
        let own = self.peers.answered.clone();
        actix_rt::spawn(async move {
            let outcome = outcome.await.unwrap_or(Err(ForwardError::Lost));
            // A node that is gone has no callers left.
            own.send(ForwardAnswered { forwarded, outcome })
                .await
                .unwrap_or_default();
        });
    }

    fn proposals_answered(
        &mut self,
        handed: Handed,
        ids: Vec<u64>,
        outcome: Result<Bytes, ForwardError>,
    ) {
        match outcome.map(|bytes| decode_answer::<Vec<Taken>>(&bytes)) {
            Ok(Some(all)) => {
                for (id, taken) in ids.into_iter().zip(all) {
                    self.taken(id, handed, taken);
                }
            }
            // Nothing was sent. Many proposals at once, as after a lost connection, do not fit into the queue to the leader.
            Err(ForwardError::Unreachable(_) | ForwardError::Overloaded(_)) => {
                for id in ids {
                    self.taken(id, handed, Taken::NotLeader);
                }
            }
            Err(ForwardError::TooLarge(_) | ForwardError::PeerOverloaded) => {
                for id in ids {
                    self.taken(id, handed, Taken::TooMany);
                }
            }
            Err(ForwardError::NotSpoken(leader)) => self.forward_once(leader, handed, ids),
            // They may be in a log.
            Ok(None) | Err(ForwardError::Lost | ForwardError::Abandoned) => {
                if let Handed::InPart(part) = handed {
                    self.settling.lost(part);
                    self.settle();
                }
            }
        }
    }

    fn taken(&mut self, id: u64, handed: Handed, taken: Taken) {
        match taken {
            Taken::Appended => {}
            Taken::NotLeader => self.proposals.park_forwarded(id, handed),
            Taken::OtherPart => {
                self.proposals.park_forwarded(id, handed);
                if let Handed::InPart(part) = handed {
                    self.settling.lost(part);
                    self.settle();
                }
            }
            Taken::TooMany => {
                // Without a caller its time was up.
                if let Some(reply) = self.proposals.refused(id, handed) {
                    reply.send(Err(RequestError::TooManyRequests));
                }
            }
        }
    }

    /// The member `leader` speaks version 1 of the peer protocol, so it was not sent these proposals.
    fn forward_once(&mut self, leader: MemberId, handed: Handed, ids: Vec<u64>) {
        let now = (self.raft.leader(), self.raft.status().term);
        if now != (Some(leader), handed.term()) {
            for id in ids {
                self.proposals.park_forwarded(id, handed);
            }
            return;
        }
        let ForwardBatch { ids, data } = self.proposals.forward_once(ids, handed);
        if !ids.is_empty() {
            let handed = Handed::Once(handed.term());
            let ask = PeerAsk::Propose(data.into_iter().map(Blob).collect());
            self.ask_and_report(leader, &ask, Forwarded::Proposals { handed, ids });
        }
    }

    /// Asks the leader what of this member's proposals is in its log, if an answer was lost.
    pub(super) fn settle(&mut self) {
        let term = self.raft.status().term;
        let leader = self.raft.leader().filter(|id| *id != self.member.id);
        if let Some(leader) = leader
            && self.settling.ask(term)
        {
            self.ask_and_report(leader, &PeerAsk::Settle(term), Forwarded::Question(term));
        }
    }

    fn question_answered(&mut self, term: Term, outcome: Result<Bytes, ForwardError>) {
        // Without an answer, the next connection or tick asks again.
        let answer = outcome.ok().and_then(|bytes| decode_answer(&bytes));
        self.settling.answered(term, answer.flatten());
        self.propose_lost();
        self.propose_parked();
    }
}
