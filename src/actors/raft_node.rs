//! Raft node: owns consensus, the proposals that wait for their outcome, and the reads that wait for an index.
//!
//! It feeds messages, ticks and reports into the pure core (`crate::raft`) and carries out what comes back: entries to the WAL
//! writer, committed ones to the applier, answers to the front ends. It looks at no command and touches no disk.
//!
//! A proposal that finds no leader waits for one until its time is up. One that entered the log waits for its entry to be
//! applied; if its time is up first the caller is told so, and the write may still happen.

use super::{
    applier::{ApplierProgress, ApplyEntries, CommittedEntry, PROPOSAL_HEADER_BYTES},
    fail_stop::Lifeline,
    requests::{Reply, RequestError, answer},
    wal_writer::{Persist, Persisted, ReleaseEntries},
};
use crate::{
    clock,
    raft::{self, Node, ProposeError, ReadLog, Ready, RoleName, Status},
    storage::wal::WalReader,
    types::{Entry, LogIndex, NodeId, Term},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
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

/// Timing of a Raft node.
#[derive(Clone, Copy, Debug)]
pub struct RaftPacing {
    /// Length of a tick.
    pub tick: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Committed entries that may wait to be applied before proposals are refused.
    pub apply_gap_max: u64,
}

/// Owns consensus.
#[derive(Debug)]
pub struct RaftNode {
    raft: Node,
    member: NodeId,
    pacing: RaftPacing,
    /// Callers whose proposals are in the log, by proposal id.
    waiting: HashMap<u64, Reply>,
    /// When their time is up; all proposals have the same time, so this is in order.
    deadlines: VecDeque<(Instant, u64)>,
    /// Proposals that wait for a leader, oldest first.
    parked: VecDeque<(Instant, Proposal)>,
    /// Entries up to here are applied.
    applied: LogIndex,
    reads: BTreeMap<u64, WaitingReads>,
    next_read: u64,
    /// What the WAL writer is to be told next, and the last sequence number of each message it has not answered.
    unsent_persists: Vec<raft::Persist>,
    persists: VecDeque<u64>,
    /// What the applier is to be told next, and the last index of each message it has not answered. The core bounds the bytes.
    unsent_entries: Vec<CommittedEntry>,
    applies: VecDeque<LogIndex>,
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
    /// Tells everyone who leads.
    pub status: watch::Sender<RaftStatus>,
}

/// What everyone may know of consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// Whether this member leads.
    pub leads: bool,
    /// The current term.
    pub term: Term,
    /// A committed entry; at most a tick behind the newest.
    pub commit: LogIndex,
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
        member: NodeId,
        pacing: RaftPacing,
        peers: RaftPeers,
        life: Lifeline,
    ) -> Self {
        let published = status_of(&raft);
        Self {
            applied: raft.commit(),
            raft,
            member,
            pacing,
            waiting: HashMap::new(),
            deadlines: VecDeque::new(),
            parked: VecDeque::new(),
            reads: BTreeMap::new(),
            next_read: 0,
            unsent_persists: Vec::new(),
            persists: VecDeque::new(),
            unsent_entries: Vec::new(),
            applies: VecDeque::new(),
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
        while self
            .persists
            .pop_front_if(|seq| *seq <= persisted.seq)
            .is_some()
        {}
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
        if progress.stored > self.released {
            self.released = progress.stored;
            self.raft.log_released(progress.stored);
            let release = ReleaseEntries {
                through: progress.stored,
            };
            self.life.deliver(&self.peers.release, release);
        }
        self.carry_out();
    }
}

impl RaftNode {
    fn tick(&mut self) {
        self.raft.tick();
        self.expire();
        self.carry_out();
        self.publish(status_of(&self.raft));
    }

    fn propose(&mut self, deadline: Instant, proposal: Proposal) {
        let gap = self.raft.commit().0.saturating_sub(self.applied.0);
        let waiting = self.waiting.len() + self.parked.len();
        if waiting >= WAITING_MAX || gap > self.pacing.apply_gap_max {
            answer(proposal.reply, RequestError::TooManyRequests);
            return;
        }
        match self.raft.propose(proposal.data.clone()) {
            Ok(_) => {
                self.waiting.insert(proposal.id, proposal.reply);
                self.deadlines.push_back((deadline, proposal.id));
            }
            Err(ProposeError::NotLeader { .. } | ProposeError::Transferring { .. }) => {
                self.parked.push_back((deadline, proposal));
            }
            Err(ProposeError::TooMuchUncommitted { .. }) => {
                answer(proposal.reply, RequestError::TooManyRequests);
            }
        }
    }

    /// Does all that the core asks for. Nothing the core asks for waits for another actor here.
    fn carry_out(&mut self) {
        while let Some(ready) = self.raft.ready() {
            self.carry_out_one(ready);
        }
        self.send_persists();
        self.send_entries();
    }

    fn send_persists(&mut self) {
        if self.unsent_persists.is_empty() || self.persists.len() >= PERSISTS_MAX {
            return;
        }
        let persists = std::mem::take(&mut self.unsent_persists);
        self.persists.extend(persists.last().map(|last| last.seq));
        self.life.deliver(&self.peers.wal, Persist(persists));
    }

    fn send_entries(&mut self) {
        if self.unsent_entries.is_empty() || self.applies.len() >= APPLIES_MAX {
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
        for entry in ready.committed {
            let committed = self.with_caller(entry);
            self.unsent_entries.push(committed);
        }
        for read in ready.reads {
            if let Some(reads) = self.reads.remove(&read.context) {
                for reply in reads.waiting {
                    let index = read.outcome.map_err(|_| RequestError::TimedOut);
                    // A caller that has gone away in the meantime does not matter.
                    drop(reply.send(index));
                }
            }
        }
        for read in ready.log_reads {
            self.read_log(read);
        }
        if let Some(status) = ready.status {
            self.status_changed(status);
        }
    }

    fn with_caller(&mut self, entry: Entry) -> CommittedEntry {
        let reply = proposal_of(&entry.data)
            .filter(|(member, _)| *member == self.member)
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
            leader = status.leader.map(NodeId::hex),
            "raft role"
        );
        self.publish(status_of(&self.raft));
        if status.role == RoleName::Leader {
            for (deadline, proposal) in std::mem::take(&mut self.parked) {
                self.propose(deadline, proposal);
            }
        }
    }

    fn publish(&mut self, status: RaftStatus) {
        if self.published != status {
            self.published = status;
            self.peers.status.send_replace(status);
        }
    }

    /// Tells those whose time is up.
    fn expire(&mut self) {
        let now = clock::now();
        while let Some((_, id)) = self
            .deadlines
            .pop_front_if(|(deadline, _)| *deadline <= now)
        {
            if let Some(reply) = self.waiting.remove(&id) {
                answer(reply, RequestError::TimedOut);
            }
        }
        while let Some((_, proposal)) = self.parked.pop_front_if(|(deadline, _)| *deadline <= now) {
            answer(proposal.reply, RequestError::DeadlineNoLeader);
        }
        let late = |reads: &WaitingReads| reads.deadline <= now;
        while let Some(first) = self.reads.first_entry().filter(|entry| late(entry.get())) {
            let reads = first.remove();
            reads
                .waiting
                .into_iter()
                .for_each(|reply| answer(reply, RequestError::TimedOut));
        }
    }
}

fn status_of(raft: &Node) -> RaftStatus {
    RaftStatus {
        leader: raft.leader(),
        leads: raft.is_leader(),
        term: raft.status().term,
        commit: raft.commit(),
    }
}

/// Who proposed a command, and its number there.
fn proposal_of(data: &Bytes) -> Option<(NodeId, u64)> {
    let header = data.get(..PROPOSAL_HEADER_BYTES)?;
    let (member, id) = header.split_at(PROPOSAL_HEADER_BYTES / 2);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
    Some((NodeId(number(member)?), number(id)?))
}
