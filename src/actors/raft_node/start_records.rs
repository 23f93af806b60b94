//! The beginnings of members, as `beginning` says: asks others to record this member's, and records theirs.
//!
//! The file of starts is written in the background, one write at a time; a member's request is answered once it is durable.

use super::{
    node::RaftNode,
    own_messages::{Forwarded, StartsWritten},
};
use crate::{
    actors::{
        background::in_background,
        peer_ask::{PeerAsk, RecordedStart},
    },
    clock,
    failpoint::{self, FailPoint},
    mutation::{Mutation, mutated},
    net::{ForwardError, Responder},
    storage::{disk::Disk, starts},
    types::MemberId,
};
use actix::prelude::*;
use bytes::Bytes;
use std::sync::Arc;

impl Handler<StartsWritten> for RaftNode {
    type Result = ();

    fn handle(&mut self, StartsWritten(outcome): StartsWritten, _: &mut Self::Context) {
        match outcome {
            Ok(starts) => {
                failpoint::hit(FailPoint::AfterStartRecorded);
                for responder in self.beginning.written(starts).into_values() {
                    responder.answer(Bytes::new());
                }
                self.write_starts();
            }
            Err(error) => {
                let what = "cannot record which members have begun";
                self.life.fail_stop().because(what, &error);
            }
        }
    }
}

impl RaftNode {
    /// Once a tick: asks those that have not recorded yet that this member begins.
    pub(super) fn ask_for_records(&mut self) {
        if self.beginning.has_begun() {
            return;
        }
        let own = self.member.id;
        let voters = self.raft.membership().voters().map(|(id, _)| id);
        let others: Vec<MemberId> = voters.filter(|id| *id != own).collect();
        for id in self.beginning.next_to_ask(others.into_iter()) {
            self.ask_and_report(id, &PeerAsk::RecordStart, Forwarded::Start(id));
        }
        if let Some((recorded, needed)) = self.beginning.report(clock::now()) {
            tracing::warn!(
                recorded,
                needed,
                "this member does not vote yet: {needed} of the other members have to record that it has begun, and {recorded} \
                 have. It goes on once they can be reached"
            );
        }
    }

    /// A member was asked to record that this one begins.
    pub(super) fn start_answered(&mut self, by: MemberId, outcome: &Result<Bytes, ForwardError>) {
        let recorded = match outcome {
            // A member of an earlier version keeps no records; among such, a cluster begins as it did then.
            Ok(_) | Err(ForwardError::NotSpoken(_)) => true,
            Err(
                ForwardError::Unreachable(_)
                | ForwardError::Overloaded(_)
                | ForwardError::TooLarge(_)
                | ForwardError::PeerOverloaded
                | ForwardError::Lost
                | ForwardError::Abandoned,
            ) => false,
        };
        if self.beginning.answered(by, recorded) {
            tracing::info!("enough other members have recorded that this one begins");
            self.write_starts();
        }
    }

    /// A member begins, and asks this one to record that.
    pub(super) fn record_start(&mut self, of: MemberId, responder: Responder) {
        if self.beginning.record_of(of) == RecordedStart::Recorded {
            responder.answer(Bytes::new());
        } else if self.raft.membership().is_voter(of) {
            self.beginning.want(of, responder);
            self.write_starts();
        }
    }

    /// What a guest is told that asks for the record of a start.
    pub(super) fn record_for_guest(&self, id: MemberId) -> Bytes {
        if mutated(Mutation::ForgetBeginnings) {
            return RecordedStart::NotRecorded.encode();
        }
        self.beginning.record_of(id).encode()
    }

    pub(super) fn write_starts(&mut self) {
        let Some(starts) = self.beginning.next_write() else {
            return;
        };
        let disk: Arc<dyn Disk> = self.peers.starts_disk.clone();
        let writing = in_background(move || starts::write(&disk, &starts).map(|()| starts));
        let own = self.peers.starts_written.clone();
        let fail_stop = self.life.fail_stop().clone();
        actix_rt::spawn(async move {
            match writing.await {
                // A node that is gone answers nobody.
                Ok(outcome) => own.send(StartsWritten(outcome)).await.unwrap_or_default(),
                // The node is shutting down.
                Err(error) if error.is_cancelled() => {}
                Err(error) => fail_stop.because("the write of the file of starts failed", &error),
            }
        });
    }
}
