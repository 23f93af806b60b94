//! A leader that is about to stop, or was asked to remove itself, hands its leadership over first: then no call waits for an
//! election timeout.
//!
//! Meanwhile proposals are held, here and at the followers that forwarded them, and go to the next leader as soon as it is known.
//! The member goes on as a follower, so that the calls under way at its client port get their answers. It never leads again.

use super::{leadership::Stopping, node::RaftNode};
use crate::{actors::consensus::HandOver, clock, types::MemberId};
use actix::prelude::*;

/// For how many election timeouts a leader tries: a first successor may have died a moment ago.
const ELECTION_TIMEOUTS: u32 = 2;

impl Handler<HandOver> for RaftNode {
    type Result = ();

    fn handle(&mut self, HandOver { done }: HandOver, _: &mut Self::Context) {
        let led = self.raft.is_leader();
        self.raft.forbid_leading(true);
        let mut stopping = Stopping {
            until: clock::now() + self.pacing.election * ELECTION_TIMEOUTS,
            done: Some(done),
        };
        if led {
            let to = self.raft.yield_leadership();
            tracing::info!(to = to.map(MemberId::hex), "hands leadership over");
        } else {
            stopping.end();
        }
        self.stopping = Some(stopping);
        self.check_hand_over();
        self.carry_out();
    }
}

impl RaftNode {
    /// Once a tick, and when the leader changes: whether a member that is about to stop has a successor, or never will.
    pub(super) fn check_hand_over(&mut self) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        if stopping.done.is_none() {
            return;
        }
        let leads = self.raft.is_leader();
        if !leads && let Some(leader) = self.raft.leader() {
            tracing::info!(leader = leader.hex(), "leadership is handed over");
            stopping.end();
        } else if leads && self.raft.yield_leadership().is_none() {
            tracing::info!("no other member can take over leadership");
            stopping.end();
        } else if clock::now() >= stopping.until {
            tracing::warn!("no other member took over leadership in time");
            stopping.end();
        }
    }
}
