//! Snapshots: sending one to a member that needs released entries, installing a received one, and the bound on the log.

use super::{
    node::RaftNode,
    snapshot_transfers::{Installing, TransferStart},
};
use crate::{
    actors::{
        apply_messages::{ReplaceState, StateReplaced},
        peer_ask::PeerAsk,
        request_error::RequestError,
        snapshot_messages::{
            InstallSnapshot, ReceivedSnapshot, SendSnapshotTo, TransferEnded, TransferError,
        },
    },
    clock,
    log_gate::{self, LogGate},
    types::MemberId,
};
use actix::prelude::*;

/// Snapshots that were sent and not installed.
static FAILED: LogGate = LogGate::new();

impl Handler<TransferEnded> for RaftNode {
    type Result = ();

    fn handle(&mut self, TransferEnded { to, outcome }: TransferEnded, _: &mut Self::Context) {
        let now = clock::now();
        match outcome {
            Ok(through) => {
                self.raft.snapshot_sent(to, through);
                let target = self.raft.commit();
                self.transfers.succeeded(to, through, target, now);
            }
            Err(error) => {
                if !matches!(error, TransferError::Busy(_)) {
                    let to = to.hex();
                    log_gate::warn!(FAILED, "a snapshot to {to} did not arrive: {error}");
                }
                self.raft.snapshot_failed(to);
                self.transfers.failed(to, now);
            }
        }
        self.carry_out();
    }
}

impl Handler<InstallSnapshot> for RaftNode {
    type Result = ();

    fn handle(&mut self, install: InstallSnapshot, _: &mut Self::Context) {
        let InstallSnapshot { received, done } = install;
        if let Err(refusal) = self.begin_install(&received) {
            // The file is closed before its receiver removes it. Nobody may be waiting.
            drop(received);
            drop(done.send(Err(refusal)));
            return;
        }
        self.transfers.install(Installing {
            id: received.db.applied(),
            membership: received.membership.clone(),
            done,
        });
        self.life
            .deliver(&self.peers.replace, ReplaceState { received });
        self.carry_out();
    }
}

impl Handler<StateReplaced> for RaftNode {
    type Result = ();

    /// The database is this snapshot, durably, and the log follows. If this member dies before, its start does the same.
    fn handle(&mut self, replaced: StateReplaced, _: &mut Self::Context) {
        let Installing {
            id,
            membership,
            done,
        } = self.transfers.installed();
        assert_eq!(
            id.index, replaced.applied.index,
            "the snapshot that was asked for is the one that is in place"
        );
        // The snapshot contains the entries that were not delivered. They are committed, but their outcome is not known here.
        for committed in self.deliveries.replaced(id.index) {
            if let Some(caller) = committed.caller {
                caller.reply.send(Err(RequestError::TimedOut));
            }
        }
        // So may the entries of proposals that this member has not seen committed.
        for reply in self.proposals.take_unknown() {
            reply.send(Err(RequestError::TimedOut));
        }
        self.retention.set_stored(id.index);
        self.raft.snapshot_installed(id, membership);
        tracing::info!(index = id.index.0, "a snapshot took the place of the state");
        self.membership_installed();
        // Nobody may be waiting.
        drop(done.send(Ok(())));
        self.carry_out();
    }
}

impl RaftNode {
    fn begin_install(&mut self, received: &ReceivedSnapshot) -> Result<(), String> {
        if !self.beginning.has_begun() {
            return Err("this member has not begun".to_owned());
        }
        if self.raft.is_leader() {
            return Err("this member leads: it has every committed entry".to_owned());
        }
        if self.transfers.is_installing() {
            return Err("another snapshot is being installed".to_owned());
        }
        self.raft
            .snapshot_starts(received.db.applied())
            .map_err(|refused| refused.to_string())
    }

    /// A member needs entries that this one has released, or has no state: sends it a snapshot.
    pub(super) fn begin_snapshot(&mut self, to: MemberId) {
        let stored = self.retention.stored();
        match self.transfers.start(to, stored, clock::now()) {
            TransferStart::Running => {}
            TransferStart::TooSoon => self.raft.snapshot_failed(to),
            TransferStart::Now => {
                let sent = self.peers.snapshots.try_send(SendSnapshotTo { to });
                if let Err(SendError::Full(_)) = sent {
                    self.transfers.cancel(to);
                    self.raft.snapshot_failed(to);
                }
            }
        }
    }

    /// A member without a state asks the leader for a snapshot: the log cannot show that it needs one.
    pub(super) fn request_state(&mut self) {
        if let Some(leader) = self.raft.leader()
            && self.raft.awaits_snapshot()
            && self.transfers.should_request(clock::now())
        {
            self.notify(leader, &PeerAsk::WantSnapshot);
        }
    }

    /// Releases entries past the log's bound, and logs which members need them.
    pub(super) fn bound_log(&mut self) {
        let by_bytes = self.peers.log.before_newest(self.retention.bound().bytes);
        self.retention.measured(self.raft.commit(), by_bytes);
        self.transfers.update(&self.raft.peers(), clock::now());
        self.release();
        let released = self.retention.released();
        for peer in self
            .transfers
            .newly_too_far_behind(self.raft.peers(), released)
        {
            tracing::info!(
                member = peer.id.hex(),
                has = peer.matched.0,
                log_begins_after = released.0,
                "a member needs entries that the log has released: it needs a snapshot"
            );
        }
    }
}
