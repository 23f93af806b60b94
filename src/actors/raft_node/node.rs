//! The Raft node itself: the consensus core, the calls that wait for it, and the loop that carries out the core's output.

use super::{
    addresses::MemberAddresses,
    beginning::Beginning,
    connections::Connections,
    deliveries::Deliveries,
    guard_state::Guard,
    leadership::{Leadership, Stopping},
    log_reads::LogReads,
    log_writes::LogWrites,
    own_messages::{ForwardAnswered, HashReceived, LogReadEnded, StartsWritten},
    pending_changes::PendingChanges,
    pending_proposals::PendingProposals,
    pending_reads::PendingReads,
    retention::{LogBound, Retention},
    settling::{Parts, Settling},
    snapshot_transfers::SnapshotTransfers,
};
use crate::{
    actors::{
        apply_messages::{ApplyEntries, ReplaceState},
        consensus::Consensus,
        fail_stop::Lifeline,
        held::{HeldBytes, HeldPart},
        latest,
        lease_messages::LeaseServer,
        members::{ClusterMember, Members},
        peer_ask::QUOTA_ALARM_VERSION,
        peer_hub::{ForwardRequests, SendMessages, UpdatePeers},
        published::Published,
        raft_status::{DiskHealth, RaftStatus},
        snapshot_messages::SendSnapshotTo,
        state_check::ReportStateHash,
        wal_writer::{Persist, ReleaseEntries},
    },
    clock,
    kv::command::AlarmKind,
    raft::{RaftCore, Ready, Status},
    storage::{disk::Disk, starts::Starts, wal::WalReader},
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
    pub tick: Duration,
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

#[derive(Debug)]
pub struct RaftNode {
    pub(super) raft: RaftCore,
    pub(super) member: SelfInfo,
    pub(super) pacing: RaftPacing,
    /// When this member takes part, and which others it has seen begin.
    pub(super) beginning: Beginning,
    pub(super) proposals: PendingProposals,
    /// What this member knows of its proposals at the leader.
    pub(super) settling: Settling,
    /// The parts of the term, of each follower's proposals, if this member leads.
    pub(super) parts: Parts,
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
    /// This member is about to stop.
    pub(super) stopping: Option<Stopping>,
    pub(super) published: RaftStatus,
    held: Held,
    pub(super) peers: RaftPeers,
    pub(super) life: Lifeline,
}

/// The actors that the Raft node sends to, and what it reads from.
#[derive(Debug)]
pub struct RaftPeers {
    pub wal: Recipient<Persist>,
    /// Removes entries that are no longer needed.
    pub release: Recipient<ReleaseEntries>,
    /// Reads entries that are no longer in memory.
    pub log: WalReader,
    pub applier: Recipient<ApplyEntries>,
    /// Installs a snapshot as the state.
    pub replace: Recipient<ReplaceState>,
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
    pub leases: LeaseServer,
    /// Answers with the hashes of this member's state.
    pub hashes: Recipient<ReportStateHash>,
    /// What the file of starts holds.
    pub starts: Starts,
    /// The disk that has it.
    pub starts_disk: Arc<dyn Disk>,
    /// This node itself: the file of starts is written.
    pub starts_written: Recipient<StartsWritten>,
    /// This node itself: the leader answered forwarded proposals.
    pub answered: Recipient<ForwardAnswered>,
    /// This node itself: a member has sent the hash that it was asked for.
    pub hash_received: Recipient<HashReceived>,
    /// This node itself: a read of the log has ended.
    pub log_read: Recipient<LogReadEnded>,
    /// Counts what consensus and the proposals hold.
    pub held: HeldBytes,
}

/// The counts of what a Raft node holds.
#[derive(Debug)]
struct Held {
    proposals: Arc<HeldPart>,
    log: Arc<HeldPart>,
    applying: Arc<HeldPart>,
    in_flight: Arc<HeldPart>,
}

impl Held {
    fn new(raft: &RaftCore, proposals: &PendingProposals, peers: &RaftPeers) -> Self {
        let part = |name, bytes_max| peers.held.part(name, bytes_max);
        let max = raft.held_max(peers.consensus.entry_bytes_max());
        Self {
            proposals: part(
                "proposals that are parked or forwarded",
                proposals.held_bytes_max(),
            ),
            log: part("log entries in memory", max.log),
            applying: part("entries that are being applied", max.applying),
            in_flight: part("entries in flight to a follower", max.in_flight),
        }
    }
}

/// The connections to the other members.
#[derive(Debug)]
pub enum PeerLinks {
    /// There are none, and no socket: a cluster of one member.
    Alone,
    Hub {
        send: Recipient<SendMessages>,
        forward: Recipient<ForwardRequests>,
        addresses: Recipient<UpdatePeers>,
    },
}

impl PeerLinks {
    pub(super) fn is_alone(&self) -> bool {
        matches!(self, Self::Alone)
    }
}

#[derive(Clone, Debug)]
pub struct SelfInfo {
    pub id: MemberId,
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
        let connections = Connections::default();
        let published = status_of(&raft, member.id, &connections, false);
        let voters = if peers.links.is_alone() {
            1
        } else {
            raft.membership().voters().count()
        };
        // Only a member that takes part changes its term.
        let took_part = raft.status().term > peers.starts.origin.first_term();
        let proposals = PendingProposals::default();
        Self {
            held: Held::new(&raft, &proposals, &peers),
            deliveries: Deliveries::new(raft.commit()),
            beginning: Beginning::new(peers.starts.clone(), took_part, voters, clock::now()),
            raft,
            member,
            pacing,
            proposals,
            settling: Settling::default(),
            parts: Parts::default(),
            reads: PendingReads::default(),
            changes: PendingChanges::default(),
            leadership: Leadership::default(),
            connections,
            addresses: MemberAddresses::default(),
            transfers: SnapshotTransfers::default(),
            guard: Guard::default(),
            log_writes: LogWrites::new(pacing.disk_stall),
            log_reads: LogReads::default(),
            retention: Retention::new(pacing.log_bound, peers.links.is_alone()),
            stopping: None,
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
        self.write_starts();
        self.carry_out();
    }
}

impl RaftNode {
    fn tick(&mut self) {
        self.ask_for_records();
        if self.beginning.has_begun() {
            self.raft.tick();
        }
        self.expire();
        self.stop_if_removed();
        self.settle();
        self.propose_parked();
        self.publish_self();
        self.drive_changes();
        self.answer_promotions();
        self.check_hand_over();
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
        if self.published.learner {
            // This goes before the acknowledgement of the entry that makes it a voter, upon which the leader answers the caller.
            self.publish_status();
        }
        self.forward();
        self.send_persists();
        self.send_entries();
        self.begin_log_reads();
        self.count_held();
    }

    fn count_held(&self) {
        let held = self.raft.held();
        self.held.proposals.set(self.proposals.held_bytes());
        self.held.log.set(held.log);
        self.held.applying.set(held.applying);
        self.held.in_flight.set(held.in_flight);
    }

    fn carry_out_one(&mut self, ready: Ready) {
        self.log_writes.push(ready.persist);
        if !ready.messages.is_empty() {
            self.send(ready.messages);
        }
        for entry in ready.committed {
            self.membership_committed(&entry);
            let committed = self.with_caller(entry);
            if let Some(term) = self.deliveries.push(committed) {
                self.propose_overtaken(term);
            }
        }
        self.propose_lost();
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
        self.check_hand_over();
    }

    pub(super) fn publish_status(&mut self) {
        let out = self.guard.is_out();
        let status = status_of(&self.raft, self.member.id, &self.connections, out);
        if self.published != status {
            self.published = status;
            self.peers.status.send_replace(status);
        }
    }
}

fn status_of(
    raft: &RaftCore,
    member: MemberId,
    connections: &Connections,
    out: bool,
) -> RaftStatus {
    let members = raft.membership().ids();
    let quota_alarm = if connections.all_speak(QUOTA_ALARM_VERSION, member, members) {
        AlarmKind::QuotaReached
    } else {
        AlarmKind::NoSpace
    };
    RaftStatus {
        leader: raft.leader(),
        leads: raft.is_leader(),
        term: raft.status().term,
        commit: raft.commit(),
        learner: raft.membership().is_learner(member) && !awaits_vote(raft, member),
        out,
        quota_alarm,
    }
}

/// Whether this member was added as a voter and is a learner until it has caught up. It serves clients like a voter, through the
/// leader.
fn awaits_vote(raft: &RaftCore, member: MemberId) -> bool {
    let members = Members::of(raft.membership());
    members.is_ok_and(|members| {
        members
            .get(member)
            .is_some_and(ClusterMember::is_meant_to_vote)
    })
}
