//! Raft node: owns consensus, the proposals that wait for their outcome, and the reads that wait for an index.
//!
//! It feeds messages, ticks and reports into the pure core (`crate::raft`) and carries out what comes back: entries to the WAL
//! writer, committed ones to the applier, answers to the front ends. It looks at no command and touches no disk.
//!
//! The peers' side is in `links`, proposals that the leader of another member appends in `forwards`, changes of the membership
//! and of the leader in `changes`, snapshots and the length of the log in `snapshots`.
//!
//! A proposal that finds no leader waits for one until its time is up. One that entered the log waits for its entry to be
//! applied; if its time is up first the caller is told so, and the write may still happen.

mod changes;
mod disk;
mod forwards;
mod guard;
mod links;
mod lookout;
mod snapshots;

pub use changes::{ChangeMembership, ChangeReply, MoveLeader};
pub use disk::DiskHealth;
pub use forwards::ForwardAnswered;
pub use guard::HashTold;
pub use links::PeerLinks;
pub use snapshots::{InstallSnapshot, LogBound, TransferEnded};

use super::{
    applier::{ApplierProgress, ApplyEntries, CommittedEntry, PROPOSAL_HEADER_BYTES, ReplaceState},
    fail_stop::Lifeline,
    latest,
    members::Members,
    membership_change::ChangeRefusal,
    replies::Reply,
    requests::{RequestError, Requests, answer},
    snapshots::SendSnapshotTo,
    state_check::TellStateHash,
    wal_writer::{Persist, Persisted, ReleaseEntries},
};
use crate::{
    clock,
    raft::{self, Node, ProposeError, ReadLog, ReadState, Ready, Released, Status},
    storage::wal::{WalError, WalReader},
    types::{Entry, LogIndex, MemberId, Term},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Messages that may wait: one turn of each front end, and the reports of the other actors.
const MAILBOX_MAX: usize = 4_096;

/// Messages to the WAL writer under way. What comes meanwhile goes together in the next one: so a slow disk makes larger
/// writes, never a longer queue.
const PERSISTS_MAX: usize = 4;

/// Messages to the applier under way; as above.
const APPLIES_MAX: usize = 2;

/// Proposals that may wait for a leader or for their outcome.
const WAITING_MAX: usize = 65_536;

/// Bytes of proposals that may wait for a leader, or on their way to it.
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Timing of a Raft node.
#[derive(Clone, Copy, Debug)]
pub struct RaftPacing {
    /// Length of a tick.
    pub tick: Duration,
    /// How long a silent leader is waited for.
    pub election: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// How long a write to the log may be under way.
    pub disk_stall: Duration,
    /// Committed entries that may wait to be applied before proposals are refused.
    pub apply_gap_max: u64,
    /// How much of the log stays for members that lack it.
    pub log_bound: LogBound,
}

/// Owns consensus.
#[derive(Debug)]
pub struct RaftNode {
    raft: Node,
    member: SelfInfo,
    pacing: RaftPacing,
    /// Callers whose proposals are in the log, by proposal id.
    waiting: BTreeMap<u64, Reply>,
    /// When their time is up, in order.
    deadlines: VecDeque<(Instant, u64)>,
    /// Proposals that wait for a leader, oldest first.
    parked: VecDeque<(Instant, Proposal)>,
    /// What this turn has collected for the leader.
    forwarding: Vec<forwards::Held>,
    /// Bytes parked, and on their way to the leader.
    held_bytes: usize,
    /// Changes of the membership, and of the leader, under way.
    changes: VecDeque<changes::PendingChange>,
    moves: Vec<changes::PendingMove>,
    removals: Vec<changes::PassedRemoval>,
    publishing: Option<oneshot::Receiver<Result<Bytes, ChangeRefusal>>>,
    /// Whether a committed membership had this member.
    belonged: bool,
    /// When this member stops, since it was removed.
    leaves_at: Option<Instant>,
    leadership: Option<Leadership>,
    links: links::Peers,
    lookout: lookout::Lookout,
    transfers: snapshots::Transfers,
    guard: guard::Guard,
    /// Entries up to here are applied.
    applied: LogIndex,
    reads: BTreeMap<u64, WaitingReads>,
    next_read: u64,
    /// What the WAL writer is to be told next, and the messages that it has not answered.
    unsent_persists: Vec<raft::Persist>,
    persists: disk::Writes,
    /// To whom leadership is handed on, since the disk stalls.
    yields_to: Option<MemberId>,
    /// What the applier is to be told next, and the last index of each message it has not answered. The core bounds the bytes.
    unsent_entries: Vec<CommittedEntry>,
    applies: VecDeque<LogIndex>,
    /// A restart of this member does not need entries up to here.
    stored: LogIndex,
    /// Entries up to here were given up.
    released: LogIndex,
    published: RaftStatus,
    peers: RaftPeers,
    life: Lifeline,
}

/// Whom the Raft node talks to.
#[derive(Debug)]
pub struct RaftPeers {
    /// Makes entries durable.
    pub wal: Recipient<Persist>,
    /// Takes back what is no longer needed.
    pub release: Recipient<ReleaseEntries>,
    /// Reads entries that are no longer in memory.
    pub log: WalReader,
    /// Applies what is committed.
    pub applier: Recipient<ApplyEntries>,
    /// Puts a snapshot in place of the state.
    pub replace: Recipient<ReplaceState>,
    /// Sends snapshots.
    pub snapshots: Recipient<SendSnapshotTo>,
    /// Tells everyone who leads.
    pub status: latest::Sender<RaftStatus>,
    /// Tells everyone how the log's disk does.
    pub disk: watch::Sender<DiskHealth>,
    /// The way to the other members.
    pub links: PeerLinks,
    /// The members that were there when this one joined: whom it listens to until the log tells.
    pub seed: Members,
    /// The way in, for what other members ask.
    pub requests: Requests,
    /// This node itself, for what comes back from the leader.
    pub answered: Recipient<ForwardAnswered>,
    /// Knows the hashes of this member's state.
    pub hashes: Recipient<TellStateHash>,
    /// This node itself, for the hashes that it asked for.
    pub told: Recipient<HashTold>,
}

/// Who this member is.
#[derive(Clone, Debug)]
pub struct SelfInfo {
    /// Its id.
    pub id: MemberId,
    /// Its name.
    pub name: String,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// Who leads, since when.
#[derive(Clone, Copy, Debug)]
struct Leadership {
    leader: MemberId,
    term: Term,
    since: Instant,
    /// Whether there was another leadership before, which this member knew.
    changed: bool,
}

/// What everyone may know of consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// Whether this member leads.
    pub leads: bool,
    /// The current term.
    pub term: Term,
    /// A committed entry; at most a tick behind the newest.
    pub commit: LogIndex,
    /// Whether this member has no vote.
    pub learner: bool,
    /// Whether this member's state differs from the others', so that it serves nothing.
    pub out: bool,
}

/// A command on its way into the log.
#[derive(Debug)]
pub struct Proposal {
    /// Its number, which this member gives once.
    pub id: u64,
    /// Proposer and number, then the encoded command.
    pub data: Bytes,
    /// Who waits for the outcome.
    pub reply: Reply,
}

/// Proposes commands, in this order.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Propose {
    /// The commands.
    pub proposals: Vec<Proposal>,
}

/// Asks for an index that, once applied, makes a read see every write acknowledged before now. All who ask together share
/// one answer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AskReadIndex {
    /// Who asks.
    pub waiting: Vec<ReadReply>,
}

/// Who waits for a read index.
pub type ReadReply = oneshot::Sender<Result<LogIndex, RequestError>>;

#[derive(Debug)]
struct WaitingReads {
    deadline: Instant,
    waiting: Vec<ReadReply>,
}

impl RaftNode {
    /// A node that goes on with `raft`.
    pub fn new(
        raft: Node,
        member: SelfInfo,
        pacing: RaftPacing,
        peers: RaftPeers,
        life: Lifeline,
    ) -> Self {
        let published = status_of(&raft, member.id, false);
        Self {
            applied: raft.commit(),
            raft,
            member,
            pacing,
            waiting: BTreeMap::new(),
            deadlines: VecDeque::new(),
            parked: VecDeque::new(),
            forwarding: Vec::new(),
            held_bytes: 0,
            changes: VecDeque::new(),
            moves: Vec::new(),
            removals: Vec::new(),
            publishing: None,
            belonged: false,
            leaves_at: None,
            leadership: None,
            links: links::Peers::default(),
            lookout: lookout::Lookout::default(),
            transfers: snapshots::Transfers::default(),
            guard: guard::Guard::default(),
            reads: BTreeMap::new(),
            next_read: 0,
            unsent_persists: Vec::new(),
            persists: disk::Writes::new(pacing.disk_stall),
            yields_to: None,
            unsent_entries: Vec::new(),
            applies: VecDeque::new(),
            stored: LogIndex(0),
            released: LogIndex(0),
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
        self.update_book();
        self.carry_out();
    }
}

impl Handler<Propose> for RaftNode {
    type Result = ();

    fn handle(&mut self, propose: Propose, _: &mut Self::Context) {
        let deadline = clock::now() + self.pacing.request_timeout;
        for proposal in propose.proposals {
            self.propose(deadline, proposal);
        }
        self.carry_out();
    }
}

impl Handler<AskReadIndex> for RaftNode {
    type Result = ();

    fn handle(&mut self, ask: AskReadIndex, _: &mut Self::Context) {
        let context = self.next_read;
        self.next_read += 1;
        if self.raft.read_index(context).is_err() {
            ask.waiting
                .into_iter()
                .for_each(|reply| answer(reply, RequestError::TooManyRequests));
            return;
        }
        let deadline = clock::now() + self.pacing.request_timeout;
        self.reads.insert(
            context,
            WaitingReads {
                deadline,
                waiting: ask.waiting,
            },
        );
        self.carry_out();
    }
}

impl Handler<Persisted> for RaftNode {
    type Result = ();

    fn handle(&mut self, persisted: Persisted, _: &mut Self::Context) {
        let slow = self
            .persists
            .end(persisted.seq, persisted.sync_micros, clock::now());
        if let Some(took) = slow {
            let took_ms = clock::micros(took) / 1_000;
            tracing::warn!(took_ms, "a write to the write-ahead log was slow");
        }
        self.raft.persisted(persisted.seq);
        self.carry_out();
    }
}

impl Handler<ApplierProgress> for RaftNode {
    type Result = ();

    fn handle(&mut self, progress: ApplierProgress, _: &mut Self::Context) {
        self.applied = progress.applied;
        self.raft.applied(progress.applied);
        while self
            .applies
            .pop_front_if(|index| *index <= progress.applied)
            .is_some()
        {}
        self.stored = progress.stored;
        self.release();
        self.carry_out();
    }
}

impl RaftNode {
    fn tick(&mut self) {
        self.raft.tick();
        self.expire();
        self.leave();
        self.propose_parked();
        self.publish_self();
        self.drive_changes();
        self.promote_waiting();
        self.tend_disk();
        self.guard_state();
        self.tend_peers();
        self.carry_out();
        self.publish_status();
    }

    /// How far applying is behind committing.
    fn gap(&self) -> u64 {
        self.raft.commit().0.saturating_sub(self.applied.0)
    }

    fn propose(&mut self, deadline: Instant, proposal: Proposal) {
        let waiting = self.waiting.len() + self.parked.len();
        if waiting >= WAITING_MAX || self.gap() > self.pacing.apply_gap_max {
            proposal.reply.send(Err(RequestError::TooManyRequests));
            return;
        }
        match self.raft.propose(proposal.data.clone()) {
            Ok(_) => self.wait_for_entry(deadline, proposal.id, proposal.reply),
            Err(ProposeError::NotLeader { .. } | ProposeError::Transferring { .. })
                if self.held_bytes + proposal.data.len() > HELD_BYTES_MAX =>
            {
                proposal.reply.send(Err(RequestError::TooManyRequests));
            }
            Err(ProposeError::NotLeader { leader: Some(_) }) => {
                self.forward_later(deadline, proposal);
            }
            Err(ProposeError::NotLeader { leader: None } | ProposeError::Transferring { .. }) => {
                self.park(deadline, proposal);
            }
            Err(ProposeError::TooMuchUncommitted { .. }) => {
                proposal.reply.send(Err(RequestError::TooManyRequests));
            }
        }
    }

    fn wait_for_entry(&mut self, deadline: Instant, id: u64, reply: Reply) {
        self.waiting.insert(id, reply);
        // Those that were parked have less time left than the newest.
        let at = match self.deadlines.back() {
            Some((last, _)) if *last > deadline => self
                .deadlines
                .partition_point(|(other, _)| *other <= deadline),
            Some(_) | None => self.deadlines.len(),
        };
        self.deadlines.insert(at, (deadline, id));
    }

    /// Keeps a proposal until somebody leads.
    fn park(&mut self, deadline: Instant, proposal: Proposal) {
        self.held_bytes += proposal.data.len();
        let at = self.parked.partition_point(|(other, _)| *other <= deadline);
        self.parked.insert(at, (deadline, proposal));
    }

    /// Tries again what found no leader.
    fn propose_parked(&mut self) {
        if self.raft.leader().is_none() {
            return;
        }
        for (deadline, proposal) in std::mem::take(&mut self.parked) {
            self.held_bytes -= proposal.data.len();
            self.propose(deadline, proposal);
        }
    }

    /// Gives up the entries that nobody needs any more.
    fn release(&mut self) {
        let through = self.dispensable();
        if through > self.released {
            self.released = through;
            self.raft.log_released(through);
            self.life
                .deliver(&self.peers.release, ReleaseEntries { through });
        }
    }

    /// Does all that the core asks for. Nothing the core asks for waits for another actor here.
    fn carry_out(&mut self) {
        while let Some(ready) = self.raft.ready() {
            self.carry_out_one(ready);
        }
        self.forward();
        self.send_persists();
        self.send_entries();
    }

    fn send_persists(&mut self) {
        if self.unsent_persists.is_empty() || self.persists.len() >= PERSISTS_MAX {
            return;
        }
        let persists = std::mem::take(&mut self.unsent_persists);
        if let Some(newest) = persists.last() {
            self.persists.begin(newest.seq, clock::now());
        }
        self.life.deliver(&self.peers.wal, Persist(persists));
    }

    fn send_entries(&mut self) {
        let full = self.applies.len() >= APPLIES_MAX;
        if self.unsent_entries.is_empty() || full || self.transfers.is_installing() {
            return;
        }
        let entries = std::mem::take(&mut self.unsent_entries);
        self.applies
            .extend(entries.last().map(|last| last.entry.index));
        self.life
            .deliver(&self.peers.applier, ApplyEntries { entries });
    }

    fn carry_out_one(&mut self, ready: Ready) {
        self.unsent_persists.extend(ready.persist);
        if !ready.messages.is_empty() {
            self.send(ready.messages);
        }
        for entry in ready.committed {
            self.membership_committed(&entry);
            let committed = self.with_caller(entry);
            self.unsent_entries.push(committed);
        }
        for read in ready.reads {
            self.read_answered(read);
        }
        for snapshot in ready.snapshots {
            self.begin_snapshot(snapshot.to);
        }
        for read in ready.log_reads {
            self.read_log(read);
        }
        if let Some(status) = ready.status {
            self.status_changed(status);
        }
    }

    /// A read has its index. One that no leader confirmed is asked for again, for as long as its callers have time.
    fn read_answered(&mut self, read: ReadState) {
        let Some(reads) = self.reads.remove(&read.context) else {
            return;
        };
        if read.outcome.is_err()
            && reads.deadline > clock::now()
            && self.raft.read_index(read.context).is_ok()
        {
            self.reads.insert(read.context, reads);
            return;
        }
        for reply in reads.waiting {
            let index = read.outcome.map_err(|_| RequestError::TimedOut);
            // A caller that has gone away in the meantime does not matter.
            drop(reply.send(index));
        }
    }

    fn with_caller(&mut self, entry: Entry) -> CommittedEntry {
        let reply = proposal_of(&entry.data)
            .filter(|(member, _)| *member == self.member.id)
            .and_then(|(_, id)| self.waiting.remove(&id));
        CommittedEntry { entry, reply }
    }

    fn read_log(&mut self, read: ReadLog) {
        let entries = self.peers.log.read(read.from, read.bytes_max);
        let entries = entries.map(|mut entries| {
            entries.retain(|entry| entry.index <= read.to);
            entries
        });
        let taken = match entries {
            Ok(entries) => self.raft.log_read(read.reader, read.from, Ok(entries)),
            Err(WalError::Released { .. }) => {
                self.raft.log_read(read.reader, read.from, Err(Released))
            }
            Err(error) => {
                self.life
                    .fail_stop()
                    .because("cannot read the write-ahead log", &error);
                return;
            }
        };
        if let Err(error) = taken {
            self.life
                .fail_stop()
                .because("cannot trust the write-ahead log", &error);
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

    fn led_by(&mut self, leader: MemberId, term: Term) {
        let before = self.leadership;
        if before.is_none_or(|before| (before.leader, before.term) != (leader, term)) {
            self.leadership = Some(Leadership {
                leader,
                term,
                since: clock::now(),
                changed: before.is_some(),
            });
        }
        // etcd: reads that were under way are told, and asked again by their clients.
        if before.is_some_and(|before| before.leader != leader) {
            for reads in std::mem::take(&mut self.reads).into_values() {
                let waiting = reads.waiting.into_iter();
                waiting.for_each(|reply| answer(reply, RequestError::LeaderChanged));
            }
        }
        self.moves_done(leader);
        self.propose_parked();
        self.drive_changes();
    }

    fn publish_status(&mut self) {
        let status = status_of(&self.raft, self.member.id, self.guard.is_out());
        if self.published != status {
            self.published = status;
            self.peers.status.send_replace(status);
        }
    }

    /// Tells those whose time is up.
    fn expire(&mut self) {
        let now = clock::now();
        let began = |deadline: Instant| {
            deadline
                .checked_sub(self.pacing.request_timeout)
                .unwrap_or(deadline)
        };
        while let Some((deadline, id)) = self
            .deadlines
            .pop_front_if(|(deadline, _)| *deadline <= now)
        {
            if let Some(reply) = self.waiting.remove(&id) {
                reply.send(Err(self.late(began(deadline))));
            }
        }
        while let Some((deadline, proposal)) =
            self.parked.pop_front_if(|(deadline, _)| *deadline <= now)
        {
            self.held_bytes -= proposal.data.len();
            let error = match self.raft.leader() {
                Some(_) => self.late(began(deadline)),
                None => RequestError::DeadlineNoLeader,
            };
            proposal.reply.send(Err(error));
        }
        let late = |reads: &WaitingReads| reads.deadline <= now;
        while let Some(first) = self.reads.first_entry().filter(|entry| late(entry.get())) {
            let reads = first.remove();
            let error = || self.late(began(reads.deadline));
            for reply in reads.waiting {
                answer(reply, error());
            }
        }
        self.expire_changes(now);
    }
}

fn status_of(raft: &Node, member: MemberId, out: bool) -> RaftStatus {
    RaftStatus {
        leader: raft.leader(),
        leads: raft.is_leader(),
        term: raft.status().term,
        commit: raft.commit(),
        learner: raft.membership().is_learner(member),
        out,
    }
}

/// Who proposed a command, and its number there.
fn proposal_of(data: &Bytes) -> Option<(MemberId, u64)> {
    let header = data.get(..PROPOSAL_HEADER_BYTES)?;
    let (member, id) = header.split_at(PROPOSAL_HEADER_BYTES / 2);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    Some((MemberId(number(member)?), number(id)?))
}
