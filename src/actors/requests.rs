//! Requests: what front ends and embedding programs ask of a node.
//!
//! A [`Requests`] checks a request, takes it through the log or to a read view, and waits for the answer. It lasts
//! nothing and owns no state of the store. Within one turn of its event loop it collects all proposals, and all reads, into one
//! message each to the Raft node: across threads a message per request would cost more than the request.

use super::{
    aside::aside,
    compactor::{AwaitCompaction, Compactor},
    latest,
    leases::{LeaseDesk, LeasePeers},
    members::Members,
    membership_change::{ChangeRefusal, MemberChange},
    raft_node::{
        AskReadIndex, ChangeMembership, DiskHealth, MoveLeader, Proposal, Propose, RaftNode,
        RaftStatus,
    },
    range_chunks::{NotStreamable, RangeChunks},
    replies::{Answer, Reply},
    watch_hub::WatchHub,
};
use crate::{
    clock, codec,
    kv::{
        KvError, check,
        command::{
            AlarmKind, Command, Compact, DeleteRange, DeleteRangeDone, Outcome, Put, PutDone,
            RangeDone, RangeQuery, SetAlarm, Txn, TxnDone,
        },
        hash::HistoryHash,
        range::ReadError,
    },
    mutation::{Mutation, mutated},
    types::{ClusterId, Identity, LogIndex, MemberId, Revision, Term},
};
use actix::prelude::*;
use actix_rt::ArbiterHandle;
use bytes::{BufMut, Bytes};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::{Notify, Semaphore, oneshot, watch};

pub use super::{published::Published, request_error::RequestError};

/// Requests that may wait in one front end for the next turn; past it they are told to come again.
const WAITING_MAX: usize = 16_384;

/// Between two attempts to find the leader.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Long reads that one front end runs at once.
const ASIDE_MAX: usize = 4;

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Size of a replicated request, in bytes.
    pub request_bytes_max: usize,
    /// Operations of a transaction.
    pub txn_ops_max: usize,
    /// Size of the database past which writes that take space are refused, in bytes; nothing is no quota.
    pub quota_bytes: Option<u64>,
    /// How long a request may take.
    pub timeout: Duration,
    /// How long a stream that asked for a leader lives without one. etcd: three election timeouts.
    pub leader_patience: Duration,
}

/// A member's state, for operators.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// This member.
    pub member: MemberId,
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    /// The current term.
    pub term: Term,
    /// The newest committed entry.
    pub commit: LogIndex,
    /// The newest applied entry.
    pub applied: LogIndex,
    /// The newest revision.
    pub revision: Revision,
    /// The compacted revision.
    pub compacted: Revision,
    /// Size of the database file, in bytes.
    pub db_bytes: u64,
    /// Bytes of it that hold records.
    pub db_bytes_in_use: u64,
    /// The quota, in bytes; zero is none.
    pub quota_bytes: u64,
    /// Whether this member has no vote.
    pub learner: bool,
    /// Raised alarms.
    pub alarms: Vec<(MemberId, AlarmKind)>,
    /// How the write-ahead log's disk does.
    pub disk: DiskHealth,
}

/// The way into a node. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct Requests {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    limits: RequestLimits,
    queue: Mutex<Queue>,
    wake: Notify,
    /// Turns of long reads.
    aside: Semaphore,
    views: latest::Receiver<Arc<Published>>,
    raft_status: latest::Receiver<RaftStatus>,
    disk: watch::Receiver<DiskHealth>,
    raft: Addr<RaftNode>,
    compactor: Addr<Compactor>,
    watches: Addr<WatchHub>,
    leases: Arc<LeaseDesk>,
}

/// What this turn has collected.
#[derive(Debug, Default)]
struct Queue {
    next_id: u64,
    proposals: Vec<Proposal>,
    reads: Vec<oneshot::Sender<Result<LogIndex, RequestError>>>,
    closed: bool,
}

/// What a [`Requests`] needs of its node.
#[derive(Clone, Debug)]
pub struct RequestPeers {
    /// Orders proposals and reads.
    pub raft: Addr<RaftNode>,
    /// Knows when compactions end.
    pub compactor: Addr<Compactor>,
    /// Sends events to those who watch.
    pub watches: Addr<WatchHub>,
    /// What leases need.
    pub leases: LeasePeers,
    /// The newest view.
    pub views: latest::Receiver<Arc<Published>>,
    /// Leader, term and commit index.
    pub raft_status: latest::Receiver<RaftStatus>,
    /// How the write-ahead log's disk does.
    pub disk: watch::Receiver<DiskHealth>,
}

impl Requests {
    /// A way into a node, with a task on `arbiter` that sends what each of its turns has collected.
    ///
    /// Proposals are numbered from a random start: entries of an earlier life of this member, or of another front end, must
    /// not answer today's callers.
    pub fn start(
        arbiter: &ArbiterHandle,
        identity: Identity,
        limits: RequestLimits,
        peers: RequestPeers,
    ) -> Self {
        let shared = Arc::new(Shared {
            identity,
            limits,
            queue: Mutex::new(Queue {
                next_id: clock::entropy(),
                ..Queue::default()
            }),
            wake: Notify::new(),
            aside: Semaphore::new(ASIDE_MAX),
            views: peers.views,
            raft_status: peers.raft_status,
            disk: peers.disk,
            raft: peers.raft.clone(),
            compactor: peers.compactor,
            watches: peers.watches,
            leases: LeaseDesk::new(peers.leases),
        });
        let sending = arbiter.spawn(send_turns(shared.clone(), peers.raft))
            && arbiter.spawn(shared.leases.clone().send_turns());
        assert!(sending, "front ends start before their arbiter stops");
        Self { shared }
    }

    /// Who answers.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    /// Bounds on requests.
    pub fn limits(&self) -> RequestLimits {
        self.shared.limits
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.shared.raft_status.borrow().term
    }

    /// Whether a leader is known.
    pub fn has_leader(&self) -> bool {
        self.shared.raft_status.borrow().leader.is_some()
    }

    /// Returns once no leader was known for all of `patience`.
    pub async fn leaderless(&self, patience: Duration) {
        let mut status = self.raft_status();
        // An error means that the node is gone, and no leader will be known again.
        while status.wait_for(|now| now.leader.is_none()).await.is_ok() {
            let found = status.wait_for(|now| now.leader.is_some());
            if !matches!(tokio::time::timeout(patience, found).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// The actor behind [`Requests::watch_stream`].
    pub fn watch_hub(&self) -> &Addr<WatchHub> {
        &self.shared.watches
    }

    /// Reads keys. Linearizable unless the query says otherwise.
    pub async fn range(&self, query: RangeQuery) -> Result<RangeDone, RequestError> {
        check::range(&query)?;
        let published = self.view_for(query.serializable).await?;
        match published.try_range(&query)? {
            Some(done) => Ok(done),
            None => self.aside(move || published.view.range(&query)).await,
        }
    }

    /// Reads keys in parts, so that neither side holds the whole answer.
    pub fn range_stream(&self, query: RangeQuery) -> Result<RangeChunks, NotStreamable> {
        RangeChunks::new(self.clone(), query)
    }

    /// Writes one key.
    pub async fn put(&self, put: Put) -> Result<PutDone, RequestError> {
        check::put(&put)?;
        match self.propose(&Command::Put(put)).await? {
            Outcome::Put(done) => Ok(done),
            other => unexpected(&other),
        }
    }

    /// Deletes keys.
    pub async fn delete_range(&self, delete: DeleteRange) -> Result<DeleteRangeDone, RequestError> {
        check::delete_range(&delete)?;
        match self.propose(&Command::DeleteRange(delete)).await? {
            Outcome::DeleteRange(done) => Ok(done),
            other => unexpected(&other),
        }
    }

    /// Runs a transaction. One that only reads is served from a view, like a range.
    pub async fn txn(&self, txn: Txn) -> Result<TxnDone, RequestError> {
        check::txn(&txn, self.shared.limits.txn_ops_max)?;
        if txn.is_read_only() {
            return self.read_txn(txn).await;
        }
        match self.propose(&Command::Txn(txn)).await? {
            Outcome::Txn(done) => Ok(done),
            other => unexpected(&other),
        }
    }

    /// Gives up the history before `revision`. With `physical` it returns once this member has removed it. Returns the
    /// store's revision.
    pub async fn compact(
        &self,
        revision: Revision,
        physical: bool,
    ) -> Result<Revision, RequestError> {
        let outcome = self
            .propose(&Command::Compact(Compact { revision }))
            .await?;
        let Outcome::Compact { revision: now } = outcome else {
            return unexpected(&outcome);
        };
        if physical {
            let removed = self
                .shared
                .compactor
                .send(AwaitCompaction { revision })
                .await;
            removed.map_err(|_| RequestError::Stopped)?;
        }
        Ok(now)
    }

    /// Raised alarms.
    pub fn alarms(&self) -> Vec<(MemberId, AlarmKind)> {
        self.published().alarms.iter().copied().collect()
    }

    /// Raises an alarm or takes it back; tells whether it existed.
    pub async fn set_alarm(&self, alarm: SetAlarm) -> Result<bool, RequestError> {
        match self.propose(&Command::SetAlarm(alarm)).await? {
            Outcome::Alarm { found, .. } => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Proposes a command and waits for its outcome. The checks on the request alone are the caller's.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, RequestError> {
        self.require_vote()?;
        if !matches!(command, Command::SetAlarm(_)) {
            self.require_same_state()?;
        }
        if command.takes_space() {
            self.check_quota().await?;
        }
        self.submit(command)?
            .await
            .unwrap_or(Err(RequestError::Stopped))
    }

    /// Proposes a command whose outcome goes where `reply` says, without waiting for anything: so not while the database is at
    /// its quota, see [`Requests::is_at_quota`]. `reply` is called only if the proposal is taken.
    pub fn propose_to(
        &self,
        command: &Command,
        reply: impl FnOnce() -> Reply,
    ) -> Result<(), RequestError> {
        self.require_vote()?;
        if !matches!(command, Command::SetAlarm(_)) {
            self.require_same_state()?;
        }
        self.submit_to(command, reply)
    }

    /// This member's state, as it knows it itself.
    pub fn status(&self) -> NodeStatus {
        let published = self.published();
        let raft = *self.shared.raft_status.borrow();
        NodeStatus {
            cluster: self.shared.identity.cluster,
            member: self.shared.identity.member,
            leader: raft.leader,
            term: raft.term,
            commit: raft.commit.max(published.applied.index),
            applied: published.applied.index,
            revision: published.view.window.newest,
            compacted: published.view.window.compacted,
            db_bytes: published.file_bytes,
            db_bytes_in_use: published.used_bytes,
            quota_bytes: self.shared.limits.quota_bytes.unwrap_or(0),
            learner: raft.learner,
            alarms: published.alarms.iter().copied().collect(),
            disk: *self.shared.disk.borrow(),
        }
    }

    /// The members: as of every change acknowledged before now, or, if not linearizable, as this member knows them.
    pub async fn members(&self, linearizable: bool) -> Result<Arc<Members>, RequestError> {
        Ok(self.view_of_any_state(!linearizable).await?.members.clone())
    }

    /// Changes the membership; answers with the members after the change. A member that does not lead asks the one that does.
    pub async fn change_membership(&self, change: MemberChange) -> Result<Members, RequestError> {
        let deadline = clock::now() + self.shared.limits.timeout;
        loop {
            let (reply, outcome) = oneshot::channel();
            let change = change.clone();
            let sent = self.shared.raft.send(ChangeMembership { change, reply });
            sent.await.map_err(|_| RequestError::Stopped)?;
            let outcome = tokio::time::timeout_at(deadline, outcome).await;
            let outcome = outcome.map_err(|_| RequestError::TimedOut)?;
            match outcome.map_err(|_| RequestError::Stopped)? {
                Ok(bytes) => {
                    return Members::decode(&bytes)
                        .map_err(|_| RequestError::Change(ChangeRefusal::Unreadable));
                }
                Err(ChangeRefusal::NotLeader) if clock::now() + RETRY_PAUSE < deadline => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(ChangeRefusal::NotLeader | ChangeRefusal::TimedOut) => {
                    return Err(RequestError::TimedOut);
                }
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }

    /// Hands leadership to another voter; only the leader can.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), RequestError> {
        let (reply, outcome) = oneshot::channel();
        let sent = self.shared.raft.send(MoveLeader { to, reply });
        sent.await.map_err(|_| RequestError::Stopped)?;
        outcome.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// etcd's hash of the history through a revision, of what this member holds.
    pub async fn hash_kv(&self, through: Revision) -> Result<HistoryHash, RequestError> {
        let published = self.published();
        self.aside(move || published.hash_history(through)).await
    }

    /// Whether this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.shared.raft_status.borrow().learner
    }

    /// etcd: a member without a vote serves what it holds itself, and nothing that needs the others.
    fn require_vote(&self) -> Result<(), RequestError> {
        if self.is_learner() {
            return Err(RequestError::Learner);
        }
        Ok(())
    }

    /// A member whose state differs from the others' serves nothing of it.
    pub(super) fn require_same_state(&self) -> Result<(), RequestError> {
        if self.shared.raft_status.borrow().out {
            return Err(KvError::Corrupt.into());
        }
        Ok(())
    }

    /// Follows the newest view.
    pub fn views(&self) -> latest::Receiver<Arc<Published>> {
        self.shared.views.clone()
    }

    /// The newest view, without any promise on how new it is.
    pub fn published(&self) -> Arc<Published> {
        self.shared.views.borrow().clone()
    }

    /// Refuses everything from now on; what was collected still goes out.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_one();
    }

    async fn read_txn(&self, txn: Txn) -> Result<TxnDone, RequestError> {
        let published = self.view_for(txn.is_serializable()).await?;
        match published.try_read_txn(&txn)? {
            Some(done) => Ok(done),
            None => self.aside(move || published.view.read_txn(&txn)).await,
        }
    }

    /// This member's newest view: what a serializable read sees.
    pub fn newest_view(&self) -> Result<Arc<Published>, RequestError> {
        self.require_same_state()?;
        Ok(self.published())
    }

    /// A view that holds every write acknowledged before now, anywhere; or, for a serializable read, this member's newest.
    pub async fn view_for(&self, serializable: bool) -> Result<Arc<Published>, RequestError> {
        self.require_same_state()?;
        self.view_of_any_state(serializable).await
    }

    /// As [`Requests::view_for`], also where this member's state differs from the others'.
    async fn view_of_any_state(&self, serializable: bool) -> Result<Arc<Published>, RequestError> {
        if !serializable {
            self.require_vote()?;
        }
        self.view_of_anyone(serializable).await
    }

    pub(super) async fn view_of_anyone(
        &self,
        serializable: bool,
    ) -> Result<Arc<Published>, RequestError> {
        if serializable || mutated(Mutation::ReadWithoutIndex) {
            return Ok(self.published());
        }
        let index = self.read_index().await?;
        let newest = self.published();
        if newest.applied.index >= index {
            return Ok(newest);
        }
        let mut views = self.views();
        let reached = views.wait_for(|published| published.applied.index >= index);
        // A member that was cut off meanwhile does not get there by itself.
        let reached = tokio::time::timeout(self.shared.limits.timeout, reached).await;
        reached
            .map_err(|_| RequestError::TimedOut)?
            .map_err(|_| RequestError::Stopped)
    }

    /// An index that, once applied, makes a read see every write acknowledged before now. Whoever leads has confirmed since that
    /// it does.
    pub(super) async fn read_index(&self) -> Result<LogIndex, RequestError> {
        let (reply, index) = oneshot::channel();
        self.enqueue(|queue| queue.reads.push(reply))?;
        index.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// What front ends share for leases.
    pub(super) fn lease_desk(&self) -> &LeaseDesk {
        &self.shared.leases
    }

    /// Follows who leads.
    pub(super) fn raft_status(&self) -> latest::Receiver<RaftStatus> {
        self.shared.raft_status.clone()
    }

    /// Runs a long read on a thread of its own; only so many at once, the others wait for their turn.
    pub async fn aside<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<Result<T, KvError>, ReadError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let turn = self.shared.aside.acquire().await;
        let turn = turn.map_err(|_| RequestError::Stopped)?;
        let reading = aside(read).await;
        drop(turn);
        Ok(reading.map_err(|_| RequestError::Stopped)???)
    }

    /// Hands a proposal over: proposals of one caller enter the log in the order of these calls, if they enter it.
    pub(super) fn submit(
        &self,
        command: &Command,
    ) -> Result<oneshot::Receiver<Answer>, RequestError> {
        let (reply, outcome) = oneshot::channel();
        self.submit_to(command, || reply.into())?;
        Ok(outcome)
    }

    fn submit_to(
        &self,
        command: &Command,
        reply: impl FnOnce() -> Reply,
    ) -> Result<(), RequestError> {
        let mut data = Vec::with_capacity(encoded_size_hint(command));
        data.put_bytes(0, super::applier::PROPOSAL_HEADER_BYTES);
        codec::encode_into(command, &mut data);
        let max = self.shared.limits.request_bytes_max;
        if data.len() > max.saturating_add(ENVELOPE_SLACK_BYTES) {
            return Err(RequestError::TooLarge {
                bytes: data.len(),
                max,
            });
        }
        let member = self.shared.identity.member;
        self.enqueue(|queue| {
            let id = queue.next_id;
            queue.next_id = id.wrapping_add(1);
            data[..8].copy_from_slice(&member.0.to_le_bytes());
            data[8..16].copy_from_slice(&id.to_le_bytes());
            queue.proposals.push(Proposal {
                id,
                data: Bytes::from(data),
                reply: reply(),
            });
        })
    }

    fn enqueue(&self, add: impl FnOnce(&mut Queue)) -> Result<(), RequestError> {
        let mut queue = self.shared.lock();
        if queue.closed {
            return Err(RequestError::Stopped);
        }
        let waiting = queue.proposals.len() + queue.reads.len();
        if waiting >= WAITING_MAX {
            return Err(RequestError::TooManyRequests);
        }
        add(&mut queue);
        drop(queue);
        if waiting == 0 {
            self.shared.wake.notify_one();
        }
        Ok(())
    }

    /// Whether the database has reached its quota, so that writes that take space must raise the alarm first.
    pub fn is_at_quota(&self) -> bool {
        let quota = self.shared.limits.quota_bytes;
        quota.is_some_and(|quota| self.shared.views.borrow().file_bytes >= quota)
    }

    /// A member at its quota raises an alarm that stops such writes everywhere until an operator takes it back.
    async fn check_quota(&self) -> Result<(), RequestError> {
        if !self.is_at_quota() {
            return Ok(());
        }
        self.raise_own_alarm(AlarmKind::NoSpace).await?;
        Err(RequestError::Kv(KvError::NoSpace))
    }
}

/// The log's own encoding of a request may be a little larger than etcd's, by which the API judges the size.
const ENVELOPE_SLACK_BYTES: usize = 4_096;

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends what each turn of the event loop has collected. It waits until the Raft node has taken one turn before it sends the
/// next, so a busy node is sent fewer and larger messages, and its mailbox always has room.
async fn send_turns(shared: Arc<Shared>, raft: Addr<RaftNode>) {
    loop {
        shared.wake.notified().await;
        let (proposals, reads, closed) = {
            let mut queue = shared.lock();
            let queue = &mut *queue;
            let proposals = std::mem::take(&mut queue.proposals);
            let reads = std::mem::take(&mut queue.reads);
            (proposals, reads, queue.closed)
        };
        // A node that is gone drops the callers' replies, which tells them that it stopped.
        if !proposals.is_empty() {
            raft.send(Propose { proposals }).await.unwrap_or_default();
        }
        if !reads.is_empty() {
            let ask = AskReadIndex { waiting: reads };
            raft.send(ask).await.unwrap_or_default();
        }
        if closed {
            return;
        }
    }
}

/// Answers a caller. One that has gone away in the meantime does not matter.
pub(super) fn answer<T>(reply: oneshot::Sender<Result<T, RequestError>>, error: RequestError) {
    drop(reply.send(Err(error)));
}

fn encoded_size_hint(command: &Command) -> usize {
    const FIXED: usize = 64;
    match command {
        Command::Put(put) => put.key.len() + put.value.len() + FIXED,
        Command::DeleteRange(delete) => delete.key.len() + delete.range_end.len() + FIXED,
        Command::Txn(_) => 512,
        Command::Compact(_)
        | Command::GrantLease(_)
        | Command::RevokeLease(_)
        | Command::SetAlarm(_) => FIXED,
        Command::ExpireLeases(_) | Command::CheckpointLeases(_) | Command::RenewLeases(_) => 4_096,
    }
}

fn unexpected<T>(outcome: &Outcome) -> Result<T, RequestError> {
    unreachable!("the machine answers each command in kind, not with {outcome:?}")
}
