//! A member that hears no leader asks the others who the members are.
//!
//! Members let in only those they know. So one that was away while another was added, and that one leads now, would refuse its
//! leader for ever: what would tell it of the newcomer is in the very log that it does not get. It is told by whoever of those it
//! knows is connected, and keeps that beside its own membership until its log has come as far.

use super::RaftNode;
use crate::{
    actors::{
        members::Members,
        peer_ask::{KnownMembers, PeerAsk},
    },
    clock, codec,
    net::{ForwardError, PeerAddress},
    types::{LogIndex, MemberId},
};
use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

/// What is done without a leader.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    /// When the next member is asked, if there is no leader by then.
    ask_at: Option<Instant>,
    /// Who was asked last.
    asked: Option<MemberId>,
    answer: Option<oneshot::Receiver<Result<Bytes, ForwardError>>>,
    /// What was told, until the own log has come as far.
    told: Option<(LogIndex, Members)>,
}

impl Lookout {
    /// Addresses of members that only others know of.
    pub(super) fn addresses(&self) -> Vec<PeerAddress> {
        let told = self.told.as_ref();
        told.map_or_else(Vec::new, |(_, members)| members.addresses())
    }
}

impl RaftNode {
    /// Once a tick.
    pub(super) fn look_out(&mut self) {
        self.hear_of_members();
        let caught_up = |(commit, _): &mut (LogIndex, Members)| *commit <= self.raft.commit();
        if self.lookout.told.take_if(caught_up).is_some() {
            self.book_again();
        }
        let now = clock::now();
        let pause = self.pacing.election * 2;
        if self.raft.leader().is_some() {
            self.lookout.ask_at = None;
        } else if *self.lookout.ask_at.get_or_insert(now + pause) <= now {
            self.lookout.ask_at = Some(now + pause);
            self.ask_for_members();
        }
    }

    /// Asks the next of those that are connected.
    fn ask_for_members(&mut self) {
        let mut connected = self.connected();
        let after = self.lookout.asked.unwrap_or_default();
        connected.sort_by_key(|id| (*id <= after, *id));
        let Some(to) = connected.first().copied() else {
            return;
        };
        let (reply, answer) = oneshot::channel();
        self.lookout.asked = Some(to);
        self.lookout.answer = Some(answer);
        self.ask(to, PeerAsk::WhoIsMember.encode(), reply);
    }

    fn hear_of_members(&mut self) {
        let Some(answer) = &mut self.lookout.answer else {
            return;
        };
        let outcome = match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            Ok(Ok(bytes)) => known(&bytes),
            // Somebody else is asked next.
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => None,
        };
        self.lookout.answer = None;
        if let Some((commit, members)) = outcome
            && commit > self.raft.commit()
        {
            self.lookout.told = Some((commit, members));
            self.book_again();
        }
    }

    /// The answer to a member that looks out.
    pub(super) fn known_members(&self) -> Bytes {
        let known = KnownMembers {
            commit: self.raft.commit(),
            membership: self.raft.membership().encode().to_vec(),
        };
        codec::encode(&known).into()
    }
}

fn known(bytes: &[u8]) -> Option<(LogIndex, Members)> {
    let known: KnownMembers = codec::decode("answer about members", bytes)
        .inspect_err(|error| tracing::error!("an answer is dropped: {error}"))
        .ok()?;
    let members = Members::decode(&Bytes::from(known.membership))
        .inspect_err(|error| tracing::error!("an answer about members is dropped: {error}"))
        .ok()?;
    Some((known.commit, members))
}
