//! The Raft node itself: the consensus core, what waits for it, and the loop that carries out what the core asks for.

use super::{
    addresses::MemberAddresses,
    connections::Connections,
    deliveries::Deliveries,
    guard_state::Guard,
    leadership::Leadership,
    log_reads::LogReads,
    log_writes::LogWrites,
    own_messages::{ForwardAnswered, HashReceived, LogReadEnded},
    pending_changes::PendingChanges,
    pending_proposals::PendingProposals,
    pending_reads::PendingReads,
    retention::{LogBound, Retention},
    snapshot_transfers::SnapshotTransfers,
};
use crate::{
    actors::{
        apply_messages::{ApplyEntries, ReplaceState},
        consensus::Consensus,
        fail_stop::Lifeline,
        latest,
        lease_desk::LeaseDesk,
        members::Members,
        peer_hub::{ForwardRequests, SendMessages, UpdatePeers},
        published::Published,
        raft_status::{DiskHealth, RaftStatus},
        snapshot_messages::SendSnapshotTo,
        state_check::TellStateHash,
        wal_writer::{Persist, ReleaseEntries},
    },
    raft::{RaftCore, Ready, Status},
    storage::wal::WalReader,
    types::MemberId,
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Messages that may wait: one turn of each front end, and the reports of the other actors.
const MAILBOX_MAX: usize = 4_096;

/// Timing and bounds of a Raft node.
#[derive(Clone, Copy, Debug)]
pub struct RaftPacing {
    /// Length of a tick.
    pub tick: Duration,
    /// The election timeout.
    pub election: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// A write to the log that takes longer than this is a stall.
    pub disk_stall: Duration,
    /// Committed entries that may wait to be applied before proposals are refused.
    pub apply_gap_max: u64,
    /// Refuse membership changes after which the voters may have no quorum.
    pub strict_reconfig: bool,
    /// How much of the log stays for members that do not have it.
    pub log_bound: LogBound,
}

/// Owns consensus.
#[derive(Debug)]
pub struct RaftNode {
    pub(super) raft: RaftCore,
    pub(super) member: SelfInfo,
    pub(super) pacing: RaftPacing,
    pub(super) proposals: PendingProposals,
    pub(super) reads: PendingReads,
    pub(super) changes: PendingChanges,
    pub(super) leadership: Leadership,
    pub(super) connections: Connections,
    pub(super) addresses: MemberAddresses,
    pub(super) transfers: SnapshotTransfers,
    pub(super) guard: Guard,
    pub(super) log_writes: LogWrites,
    pub(super) log_reads: LogReads,
    pub(super) retention: Retention,
    pub(super) deliveries: Deliveries,
    pub(super) published: RaftStatus,
    pub(super) peers: RaftPeers,
    pub(super) life: Lifeline,
}

/// The actors that the Raft node sends to, and what it reads from.
#[derive(Debug)]
pub struct RaftPeers {
    /// Makes entries durable.
    pub wal: Recipient<Persist>,
    /// Removes entries that are no longer needed.
    pub release: Recipient<ReleaseEntries>,
    /// Reads entries that are no longer in memory.
    pub log: WalReader,
    /// Applies committed entries.
    pub applier: Recipient<ApplyEntries>,
    /// Installs a snapshot as the state.
    pub replace: Recipient<ReplaceState>,
    /// Sends snapshots.
    pub snapshots: Recipient<SendSnapshotTo>,
    /// Publishes role, term and leader.
    pub status: latest::Sender<RaftStatus>,
    /// Publishes the condition of the log's disk.
    pub disk: watch::Sender<DiskHealth>,
    /// The connections to the other members.
    pub links: PeerLinks,
    /// The members that were known when this one joined: it accepts connections from them until it has received the log.
    pub known_members: Members,
    /// Takes this member's own alarms through the log.
    pub consensus: Consensus,
    /// The newest view, which has the alarms.
    pub views: latest::Receiver<Arc<Published>>,
    /// Serves other members' requests about leases.
    pub leases: Arc<LeaseDesk>,
    /// Knows the hashes of this member's state.
    pub hashes: Recipient<TellStateHash>,
    /// This node itself: the leader answered forwarded proposals.
    pub answered: Recipient<ForwardAnswered>,
    /// This node itself: a member has sent the hash that it was asked for.
    pub hash_received: Recipient<HashReceived>,
    /// This node itself: a read of the log has ended.
    pub log_read: Recipient<LogReadEnded>,
}

/// The connections to the other members.
#[derive(Debug)]
pub enum PeerLinks {
    /// There are none, and no socket: a cluster of one member.
    Alone,
    /// Through the peer hub.
    Hub {
        /// Sends messages of consensus.
        send: Recipient<SendMessages>,
        /// Sends requests.
        forward: Recipient<ForwardRequests>,
        /// Knows addresses.
        addresses: Recipient<UpdatePeers>,
    },
}

impl PeerLinks {
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }
}

/// This member.
#[derive(Clone, Debug)]
pub struct SelfInfo {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// The URLs at which clients reach it.
    pub client_urls: Vec<String>,
}

impl RaftNode {
    /// A node that drives `raft`.
    pub fn new(
        raft: RaftCore,
        member: SelfInfo,
        pacing: RaftPacing,
        peers: RaftPeers,
        life: Lifeline,
    ) -> Self {
        let published = status_of(&raft, member.id, false);
        Self {
            deliveries: Deliveries::new(raft.commit()),
            raft,
            member,
            pacing,
            proposals: PendingProposals::default(),
            reads: PendingReads::default(),
            changes: PendingChanges::default(),
            leadership: Leadership::default(),
            connections: Connections::default(),
            addresses: MemberAddresses::default(),
            transfers: SnapshotTransfers::default(),
            guard: Guard::default(),
            log_writes: LogWrites::new(pacing.disk_stall),
            log_reads: LogReads::default(),
            retention: Retention::new(pacing.log_bound, peers.links.is_alone()),
            published,
            peers,
            life,
        }
    }
}

impl Actor for RaftNode {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        ctx.run_interval(self.pacing.tick, |node, _| node.tick());
        self.update_addresses();
        self.carry_out();
    }
}

impl RaftNode {
    fn tick(&mut self) {
        self.raft.tick();
        self.expire();
        self.stop_if_removed();
        self.propose_parked();
        self.publish_self();
        self.drive_changes();
        self.promote_waiting();
        self.check_disk();
        self.guard_state();
        self.check_peers();
        self.carry_out();
        self.publish_status();
    }

    /// Does all that the core asks for. Everything here is sent or begun: nothing waits for another actor or for a disk.
    pub(super) fn carry_out(&mut self) {
        while let Some(ready) = self.raft.ready() {
            self.carry_out_one(ready);
        }
        self.forward();
        self.send_persists();
        self.send_entries();
        self.begin_log_reads();
    }

    fn carry_out_one(&mut self, ready: Ready) {
        self.log_writes.push(ready.persist);
        if !ready.messages.is_empty() {
            self.send(ready.messages);
        }
        for entry in ready.committed {
            self.membership_committed(&entry);
            let committed = self.with_caller(entry);
            self.deliveries.push(committed);
        }
        for read in ready.reads {
            self.read_answered(read);
        }
        for snapshot in ready.snapshots {
            self.begin_snapshot(snapshot.to);
        }
        for read in ready.log_reads {
            self.log_reads.request(read);
        }
        if let Some(status) = ready.status {
            self.status_changed(status);
        }
    }

    fn status_changed(&mut self, status: Status) {
        tracing::info!(
            role = ?status.role,
            term = status.term.0,
            leader = status.leader.map(MemberId::hex),
            "raft role"
        );
        self.publish_status();
        if let Some(leader) = status.leader {
            self.led_by(leader, status.term);
        }
    }

    pub(super) fn publish_status(&mut self) {
        let status = status_of(&self.raft, self.member.id, self.guard.is_out());
        if self.published != status {
            self.published = status;
            self.peers.status.send_replace(status);
        }
    }
}

fn status_of(raft: &RaftCore, member: MemberId, out: bool) -> RaftStatus {
    RaftStatus {
        leader: raft.leader(),
        leads: raft.is_leader(),
        term: raft.status().term,
        commit: raft.commit(),
        learner: raft.membership().is_learner(member),
        out,
    }
}
