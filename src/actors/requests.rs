//! Requests: what front ends and embedding programs ask of a node.
//!
//! A [`Requests`] checks a request, proposes it or reads from a view, and waits for the answer. It owns no state of the store and
//! stores nothing.

use super::{
    background::in_background,
    compactor::AwaitCompaction,
    consensus::{ChangeMembership, Consensus, MoveLeader},
    latest,
    lease_desk::LeaseDesk,
    members::Members,
    membership_change::{ChangeRefusal, MemberChange},
    raft_status::{DiskHealth, RaftStatus},
    replies::Reply,
    watch_hub::WatchHub,
};
use crate::{
    clock,
    kv::{
        KvError, check,
        command::{
            AlarmKind, Command, Compact, DeleteRange, DeleteRangeDone, Outcome, Put, PutDone,
            RangeDone, RangeQuery, SetAlarm, Txn, TxnDone,
        },
        hash::HistoryHash,
        records::ReadError,
    },
    types::{ClusterId, Identity, LogIndex, MemberId, Revision, Term},
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, oneshot, watch};

pub use super::{published::Published, request_error::RequestError};

/// The pause between two attempts to find the leader.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Background reads of one front end at once.
const BACKGROUND_READS_MAX: usize = 4;

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Size of a replicated request, in bytes.
    pub request_bytes_max: usize,
    /// Operations of a transaction.
    pub txn_ops_max: usize,
    /// Bytes of records past which writes that take space are refused; `None` is no quota.
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
    /// How fast the write-ahead log's disk is.
    pub disk: DiskHealth,
}

/// The interface of a node for front ends. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct Requests {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    limits: RequestLimits,
    consensus: Consensus,
    background_reads: Semaphore,
    views: latest::Receiver<Arc<Published>>,
    raft_status: latest::Receiver<RaftStatus>,
    disk: watch::Receiver<DiskHealth>,
    changes: Recipient<ChangeMembership>,
    moves: Recipient<MoveLeader>,
    compactor: Recipient<AwaitCompaction>,
    watches: Addr<WatchHub>,
    leases: Arc<LeaseDesk>,
}

/// What a [`Requests`] needs of its node.
#[derive(Clone, Debug)]
pub struct RequestPeers {
    /// Takes commands into the log, and confirms reads.
    pub consensus: Consensus,
    /// Changes the membership.
    pub changes: Recipient<ChangeMembership>,
    /// Hands on leadership.
    pub moves: Recipient<MoveLeader>,
    /// Knows when compactions end.
    pub compactor: Recipient<AwaitCompaction>,
    /// Sends events to watchers.
    pub watches: Addr<WatchHub>,
    /// Takes lease calls to the leader.
    pub leases: Arc<LeaseDesk>,
    /// The newest view.
    pub views: latest::Receiver<Arc<Published>>,
    /// Leader, term and commit index.
    pub raft_status: latest::Receiver<RaftStatus>,
    /// How fast the write-ahead log's disk is.
    pub disk: watch::Receiver<DiskHealth>,
}

impl Requests {
    /// A front end of a node.
    pub fn new(identity: Identity, limits: RequestLimits, peers: RequestPeers) -> Self {
        let shared = Arc::new(Shared {
            identity,
            limits,
            consensus: peers.consensus,
            background_reads: Semaphore::new(BACKGROUND_READS_MAX),
            views: peers.views,
            raft_status: peers.raft_status,
            disk: peers.disk,
            changes: peers.changes,
            moves: peers.moves,
            compactor: peers.compactor,
            watches: peers.watches,
            leases: peers.leases,
        });
        Self { shared }
    }

    /// The cluster and the member that answer.
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
            None => {
                self.read_in_background(move || published.view.range(&query))
                    .await
            }
        }
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

    /// Compacts the history before `revision`. With `physical` it returns once this member has removed the records. Returns
    /// the store's revision.
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

    /// Raises or clears an alarm; returns whether it was raised before.
    pub async fn set_alarm(&self, alarm: SetAlarm) -> Result<bool, RequestError> {
        match self.propose(&Command::SetAlarm(alarm)).await? {
            Outcome::Alarm { found, .. } => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Proposes a command and waits for its outcome. The caller has checked the request itself.
    pub async fn propose(&self, command: &Command) -> Result<Outcome, RequestError> {
        self.require_vote()?;
        if !matches!(command, Command::SetAlarm(_)) {
            self.require_same_state()?;
        }
        if command.takes_space() {
            self.check_quota().await?;
        }
        self.shared.consensus.propose(command).await
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
        self.shared.consensus.submit_to(command, reply)
    }

    /// This member's state, as far as it knows.
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
            let sent = self.shared.changes.send(ChangeMembership { change, reply });
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
        let sent = self.shared.moves.send(MoveLeader { to, reply });
        sent.await.map_err(|_| RequestError::Stopped)?;
        outcome.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// etcd's hash of this member's history through a revision.
    pub async fn hash_kv(&self, through: Revision) -> Result<HistoryHash, RequestError> {
        let published = self.published();
        self.read_in_background(move || published.hash_history(through))
            .await
    }

    /// Whether this member has no vote.
    pub fn is_learner(&self) -> bool {
        self.shared.raft_status.borrow().learner
    }

    fn require_vote(&self) -> Result<(), RequestError> {
        self.shared.raft_status.borrow().require_vote()
    }

    pub(super) fn require_same_state(&self) -> Result<(), RequestError> {
        self.shared.raft_status.borrow().require_same_state()
    }

    /// Follows the newest view.
    pub fn views(&self) -> latest::Receiver<Arc<Published>> {
        self.shared.views.clone()
    }

    /// The newest view, without any promise on how new it is.
    pub fn published(&self) -> Arc<Published> {
        self.shared.views.borrow().clone()
    }

    /// Refuses all requests from now on. What was collected is still sent.
    pub fn close(&self) {
        self.shared.consensus.close();
    }

    async fn read_txn(&self, txn: Txn) -> Result<TxnDone, RequestError> {
        let published = self.view_for(txn.is_serializable()).await?;
        match published.try_read_txn(&txn)? {
            Some(done) => Ok(done),
            None => {
                self.read_in_background(move || published.view.read_txn(&txn))
                    .await
            }
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

    /// As [`Requests::view_for`], but also if this member's state differs from the others'.
    async fn view_of_any_state(&self, serializable: bool) -> Result<Arc<Published>, RequestError> {
        if !serializable {
            self.require_vote()?;
        }
        self.view_of_anyone(serializable).await
    }

    async fn view_of_anyone(&self, serializable: bool) -> Result<Arc<Published>, RequestError> {
        if serializable {
            return Ok(self.published());
        }
        self.shared
            .consensus
            .linearizable_view(&self.shared.views)
            .await
    }

    /// What front ends share for leases.
    pub(super) fn lease_desk(&self) -> &Arc<LeaseDesk> {
        &self.shared.leases
    }

    /// Follows who leads.
    pub(super) fn raft_status(&self) -> latest::Receiver<RaftStatus> {
        self.shared.raft_status.clone()
    }

    /// Runs a long read as a blocking task. Only a few run at once; the others wait for their turn.
    pub async fn read_in_background<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<Result<T, KvError>, ReadError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let turn = self.shared.background_reads.acquire().await;
        let turn = turn.map_err(|_| RequestError::Stopped)?;
        let reading = in_background(read).await;
        drop(turn);
        Ok(reading.map_err(|_| RequestError::Stopped)???)
    }

    /// Returns once this member's state differs from the others'.
    pub async fn taken_out(&self) {
        let mut status = self.raft_status();
        // An error means that the node is gone, which its callers learn otherwise.
        if status.wait_for(|status| status.out).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a read would be answered now. A member without a vote answers this too.
    pub async fn probe(&self, serializable: bool) -> Result<(), RequestError> {
        self.require_same_state()?;
        self.view_of_anyone(serializable).await.map(drop)
    }

    /// Whether the database has reached its quota, so that writes that take space must raise the alarm first.
    pub fn is_at_quota(&self) -> bool {
        let quota = self.shared.limits.quota_bytes;
        quota.is_some_and(|quota| self.shared.views.borrow().quota_bytes() >= quota)
    }

    /// A member at its quota raises an alarm, which stops such writes on all members until an operator clears it.
    async fn check_quota(&self) -> Result<(), RequestError> {
        if !self.is_at_quota() {
            return Ok(());
        }
        let (consensus, member) = (&self.shared.consensus, self.shared.identity.member);
        consensus.raise_alarm(member, AlarmKind::NoSpace).await?;
        Err(RequestError::Kv(KvError::NoSpace))
    }
}

fn unexpected<T>(outcome: &Outcome) -> Result<T, RequestError> {
    unreachable!("the machine answers each command in kind, not with {outcome:?}")
}
