//! Requests: the interface of a node for front ends and embedding programs.
//!
//! A [`Requests`] checks a request, proposes it or reads from a view, and waits for the answer. It owns no state of the store and
//! stores nothing.

use super::{
    background::in_turn,
    compaction_hashes::CompactionHashes,
    compactor::AwaitCompaction,
    consensus::{ChangeMembership, Consensus, MoveLeader},
    etcd_image::{ImageError, ImageMaker, ImageStream},
    held::HeldBytes,
    jwt_desk::{JwtDesk, JwtProof},
    jwt_keys::JwtKeys,
    latest,
    lease_desk::LeaseDesk,
    login_bounds::{LoginBounds, LoginCounts},
    members::Members,
    membership_change::{ChangeRefusal, MemberChange},
    passwords::Passwords,
    quota,
    raft_status::{DiskHealth, RaftStatus},
    replies::{Answer, Reply},
    short_reads::ShortReads,
    watch_calls::{WatchCalls, WatchCounts},
};
use crate::{
    auth::{AuthError, Caller},
    clock,
    kv::{
        KvError, authorize, check,
        command::{
            AlarmKind, Checked, Command, Compact, DeleteRange, DeleteRangeDone, Outcome, Put,
            PutDone, RangeDone, RangeQuery, SetAlarm, Txn, TxnDone,
        },
        hash::HistoryHash,
        records::ReadError,
        watch::HolderId,
    },
    mutation::{Mutation, mutated},
    types::{ClusterId, Identity, LogIndex, MemberId, Revision, Term},
};
use actix::prelude::*;
use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Semaphore, oneshot, watch};

pub use super::{
    published::{Published, Quick},
    request_error::RequestError,
};

/// The pause between two attempts to find the leader.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Background reads of one front end at once.
const BACKGROUND_READS_MAX: usize = 4;

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
    pub cluster: ClusterId,
    pub member: MemberId,
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    pub term: Term,
    /// The newest committed entry.
    pub commit: LogIndex,
    /// The newest applied entry.
    pub applied: LogIndex,
    pub revision: Revision,
    pub compacted: Revision,
    /// Size of the database file, in bytes.
    pub db_bytes: u64,
    /// Bytes of it that hold records.
    pub db_bytes_in_use: u64,
    /// The quota, in bytes; zero is none.
    pub quota_bytes: u64,
    /// Whether this member has no vote.
    pub learner: bool,
    pub alarms: Vec<(MemberId, AlarmKind)>,
    /// How fast the write-ahead log's disk is.
    pub disk: DiskHealth,
}

/// The interface of a node for front ends. Cheap to clone, and usable from any thread.
#[derive(Clone, Debug)]
pub struct Requests {
    shared: Arc<Shared>,
    caller: Caller,
    /// What makes the caller's token good, if it is a JWT.
    proof: Option<Arc<JwtProof>>,
    /// Whose watchers it creates; `None` for the program's own.
    holder: Option<HolderId>,
}

#[derive(Debug)]
struct Shared {
    identity: Identity,
    limits: RequestLimits,
    consensus: Consensus,
    background_reads: Arc<Semaphore>,
    short_reads: Arc<ShortReads>,
    views: latest::Receiver<Arc<Published>>,
    raft_status: latest::Receiver<RaftStatus>,
    disk: watch::Receiver<DiskHealth>,
    changes: Recipient<ChangeMembership>,
    moves: Recipient<MoveLeader>,
    compactor: Recipient<AwaitCompaction>,
    hashes: CompactionHashes,
    watches: WatchCalls,
    leases: Arc<LeaseDesk>,
    auth_on: Arc<AtomicBool>,
    passwords: Arc<Passwords>,
    logins: Arc<LoginBounds>,
    /// Signed tokens, if they are set.
    jwt: Option<JwtDesk>,
    images: ImageMaker,
}

/// What a [`Requests`] needs of its node.
#[derive(Clone, Debug)]
pub struct RequestPeers {
    /// Takes commands into the log, and confirms reads.
    pub consensus: Consensus,
    pub changes: Recipient<ChangeMembership>,
    pub moves: Recipient<MoveLeader>,
    /// Waits for the end of compactions.
    pub compactor: Recipient<AwaitCompaction>,
    /// The hashes of the last compactions.
    pub hashes: CompactionHashes,
    /// Sends events to watchers.
    pub watches: WatchCalls,
    /// Takes lease calls to the leader.
    pub leases: Arc<LeaseDesk>,
    pub views: latest::Receiver<Arc<Published>>,
    /// Leader, term and commit index.
    pub raft_status: latest::Receiver<RaftStatus>,
    /// How fast the write-ahead log's disk is.
    pub disk: watch::Receiver<DiskHealth>,
    /// Whether the newest view has authentication on.
    pub auth_on: Arc<AtomicBool>,
    /// Hashes and compares passwords.
    pub passwords: Arc<Passwords>,
    pub logins: Arc<LoginBounds>,
    /// The keys of signed tokens, if they are set.
    pub jwt: Option<Arc<JwtKeys>>,
    /// Makes images of the database.
    pub images: ImageMaker,
}

impl Requests {
    /// A front end of a node.
    pub(crate) fn new(identity: Identity, limits: RequestLimits, peers: RequestPeers) -> Self {
        let shared = Arc::new(Shared {
            identity,
            limits,
            consensus: peers.consensus,
            background_reads: Arc::new(Semaphore::new(BACKGROUND_READS_MAX)),
            short_reads: Arc::default(),
            views: peers.views,
            raft_status: peers.raft_status,
            disk: peers.disk,
            changes: peers.changes,
            moves: peers.moves,
            compactor: peers.compactor,
            hashes: peers.hashes,
            watches: peers.watches,
            leases: peers.leases,
            auth_on: peers.auth_on,
            passwords: peers.passwords,
            logins: peers.logins,
            jwt: peers.jwt.map(|keys| JwtDesk::new(keys, identity.cluster.0)),
            images: peers.images,
        });
        Self {
            shared,
            caller: Caller::Node,
            proof: None,
            holder: None,
        }
    }

    /// The same front end on behalf of a caller, with the caller's rights. Without this, requests are the node's own.
    #[must_use]
    pub(crate) fn on_behalf(&self, caller: Caller) -> Self {
        Self {
            shared: self.shared.clone(),
            caller,
            proof: None,
            holder: self.holder,
        }
    }

    /// The same front end, whose caller is good as long as a JWT is.
    #[must_use]
    pub(crate) fn proven_by(self, proof: Option<Arc<JwtProof>>) -> Self {
        Self { proof, ..self }
    }

    /// What makes the caller's token good, if it is a JWT.
    pub(super) fn proof(&self) -> Option<&JwtProof> {
        self.proof.as_deref()
    }

    /// The same front end for a holder, whose share of the member's watchers its watchers count for.
    #[must_use]
    pub(crate) fn held_by(self, holder: Option<HolderId>) -> Self {
        Self { holder, ..self }
    }

    /// Whose watchers it creates.
    pub(crate) fn holder(&self) -> Option<HolderId> {
        self.holder
    }

    /// On whose behalf requests are made.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Whether the newest view has authentication on.
    pub(crate) fn is_auth_on(&self) -> bool {
        self.shared.auth_on.load(Ordering::Acquire)
    }

    /// What the member holds in memory for others.
    pub(crate) fn held(&self) -> HeldBytes {
        self.shared.consensus.held().clone()
    }

    /// Hashes and compares passwords.
    pub(super) fn passwords(&self) -> &Passwords {
        &self.shared.passwords
    }

    pub(super) fn logins(&self) -> &Arc<LoginBounds> {
        &self.shared.logins
    }

    /// Logins of clients since the start, by how they ended.
    pub fn login_counts(&self) -> &LoginCounts {
        self.shared.logins.totals()
    }

    /// Signed tokens, if they are set.
    pub(super) fn jwt(&self) -> Option<&JwtDesk> {
        self.shared.jwt.as_ref()
    }

    /// Refuses a caller without the role root, by this member's newest state.
    pub(crate) fn require_root(&self) -> Result<(), AuthError> {
        self.published().auth.require_root(&self.caller)
    }

    /// Refuses a caller who has not said who it is, by this member's newest state.
    fn require_identity(&self) -> Result<(), AuthError> {
        self.published().auth.require_identity(&self.caller)
    }

    /// Refuses a read that the caller may not make, in the state that is read.
    pub(super) fn allow_read(
        &self,
        published: &Published,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), RequestError> {
        let rights = published.auth.rights(&self.caller)?;
        Ok(rights.read(key, range_end)?)
    }

    /// Refuses a caller who may not read a range, in a state that has every right that was granted before.
    pub(crate) async fn require_read(
        &self,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), RequestError> {
        let now = self.allow_read(&self.published(), key, range_end);
        if now.is_ok() || !self.is_auth_on() {
            return now;
        }
        // This member may be behind the one that acknowledged the grant.
        let published = self.view_for(false).await?;
        self.allow_read(&published, key, range_end)
    }

    /// Refuses a caller who may not write a key, by this member's newest state.
    pub(crate) fn require_write(&self, key: &[u8]) -> Result<(), RequestError> {
        let published = self.published();
        let rights = published.auth.rights(&self.caller)?;
        Ok(rights.write(key, &[])?)
    }

    /// The command with its caller, whose rights are checked when it is applied. A caller that cannot have any right is refused
    /// at once: entries without effect must not fill the log.
    pub(crate) fn sign<'a>(&self, command: &'a Command) -> Result<Cow<'a, Command>, RequestError> {
        let checked = || {
            let (caller, command) = (self.caller.clone(), Box::new(command.clone()));
            Ok(Cow::Owned(Command::Checked(Checked { caller, command })))
        };
        // Without a caller, these are the members' own, and allowed.
        let also_own = matches!(command, Command::Compact(_) | Command::SetAlarm(_));
        match &self.caller {
            _ if matches!(command, Command::Checked(_)) => Ok(Cow::Borrowed(command)),
            Caller::User(_) if mutated(Mutation::RightsOfProposer) && self.is_auth_on() => {
                authorize::allow_now(&self.published().auth, &self.caller, command)?;
                self.on_behalf(Caller::Node).sign(command)
            }
            Caller::User(_) | Caller::Jwt(_) => checked(),
            Caller::BadToken => Err(AuthError::InvalidToken.into()),
            Caller::Nobody if self.is_auth_on() => Err(AuthError::UserEmpty.into()),
            Caller::Nobody if also_own => checked(),
            Caller::Node if self.is_auth_on() => checked(),
            Caller::Nobody | Caller::Node => Ok(Cow::Borrowed(command)),
        }
    }

    /// The cluster and the member that answer.
    pub fn identity(&self) -> Identity {
        self.shared.identity
    }

    pub fn limits(&self) -> RequestLimits {
        self.shared.limits
    }

    pub fn term(&self) -> Term {
        self.shared.raft_status.borrow().term
    }

    /// Whether a leader is known.
    pub fn has_leader(&self) -> bool {
        self.shared.raft_status.borrow().leader.is_some()
    }

    /// Returns once no leader was known for all of `patience`.
    pub(crate) async fn leaderless(&self, patience: Duration) {
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
    pub(super) fn watch_calls(&self) -> &WatchCalls {
        &self.shared.watches
    }

    /// How many watches this member has, and the memory that they take.
    pub(crate) async fn count_watches(&self) -> Result<WatchCounts, RequestError> {
        self.shared.watches.count().await
    }

    /// Reads keys. Linearizable unless the query says otherwise.
    pub async fn range(&self, query: RangeQuery) -> Result<RangeDone, RequestError> {
        check::range(&query)?;
        let published = self.view_for(query.serializable).await?;
        self.allow_read(&published, &query.key, &query.range_end)?;
        match published.try_range(&query)? {
            Quick::Done(done) => return Ok(done),
            Quick::NotInMemory => {
                let (query, published) = (query.clone(), published.clone());
                let bytes = query.bytes();
                let read = self
                    .short_read(bytes, move || published.short_range(&query))
                    .await?;
                if let Some(done) = read? {
                    return Ok(done);
                }
            }
            Quick::Long => {}
        }
        self.read_in_background(move || published.view.range(&query))
            .await
    }

    pub async fn put(&self, put: Put) -> Result<PutDone, RequestError> {
        check::put(&put)?;
        match self.propose(&Command::Put(put)).await? {
            Outcome::Put(done) => Ok(done),
            other => unexpected(&other),
        }
    }

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

    /// The alarms that are raised, as of this member's applied index. Needs a user while authentication is on.
    pub fn alarms(&self) -> Result<Vec<(MemberId, AlarmKind)>, AuthError> {
        let published = self.published();
        published.auth.require_identity(&self.caller)?;
        Ok(published.alarms.iter().copied().collect())
    }

    /// Raises or clears an alarm; returns whether it was raised before.
    pub async fn set_alarm(&self, alarm: SetAlarm) -> Result<bool, RequestError> {
        match self.propose(&Command::SetAlarm(alarm)).await? {
            Outcome::Alarm { found, .. } => Ok(found),
            other => unexpected(&other),
        }
    }

    /// Proposes a command and waits for its outcome. The caller has checked the request itself.
    pub(crate) async fn propose(&self, command: &Command) -> Result<Outcome, RequestError> {
        let answered = self.propose_unread(command).await?;
        answered.complete(self.shared.limits.timeout).await
    }

    /// As [`Requests::propose`]; the caller reads what is missing of a long outcome.
    pub(crate) async fn propose_unread(&self, command: &Command) -> Answer {
        self.require_vote()?;
        if !matches!(command.unchecked(), Command::SetAlarm(_)) {
            self.require_same_state()?;
        }
        // Before the quota is looked at: a caller who may do nothing must not raise alarms.
        let signed = self.sign(command)?;
        if command.takes_space() {
            self.check_quota().await?;
        }
        let outcome = self.shared.consensus.propose_unread(&signed).await;
        let refused = matches!(
            outcome,
            Err(RequestError::Kv(KvError::Auth(AuthError::UserEmpty)))
        );
        if refused && self.caller == Caller::Node && matches!(signed, Cow::Borrowed(_)) {
            // Authentication was turned on meanwhile: the command had no effect, and the node itself needs no rights.
            let (caller, command) = (Caller::Node, Box::new(command.clone()));
            let signed = Command::Checked(Checked { caller, command });
            return self.shared.consensus.propose_unread(&signed).await;
        }
        outcome
    }

    /// Proposes a command whose outcome goes where `reply` says, without waiting for anything: so not while the database is at
    /// its quota, see [`Requests::is_at_quota`]. `reply` is called only if the proposal is taken.
    pub(crate) fn propose_to(
        &self,
        command: &Command,
        reply: impl FnOnce() -> Reply,
    ) -> Result<(), RequestError> {
        self.require_vote()?;
        if !matches!(command.unchecked(), Command::SetAlarm(_)) {
            self.require_same_state()?;
        }
        let signed = self.sign(command)?;
        self.shared.consensus.submit_to(&signed, reply)
    }

    /// This member's state. Leader, term and commit index may be out of date. Needs a user while authentication is on.
    pub fn status(&self) -> Result<NodeStatus, AuthError> {
        self.require_identity()?;
        Ok(self.own_status())
    }

    /// As [`Requests::status`], for the member itself.
    pub(crate) fn own_status(&self) -> NodeStatus {
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

    /// The members: as of every change acknowledged before now, or, if not linearizable, as of this member's applied index. Needs
    /// a user while authentication is on.
    pub async fn members(&self, linearizable: bool) -> Result<Arc<Members>, RequestError> {
        let published = self.view_of_any_state(!linearizable).await?;
        published.auth.require_identity(&self.caller)?;
        Ok(published.members.clone())
    }

    /// Changes the membership; answers with the members after the change. A member that does not lead asks the one that does.
    /// Needs the role root while authentication is on.
    pub async fn change_membership(&self, change: MemberChange) -> Result<Members, RequestError> {
        self.require_root()?;
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

    /// Hands leadership to another voter; only the leader can. Needs the role root while authentication is on.
    pub async fn move_leader(&self, to: MemberId) -> Result<(), RequestError> {
        self.require_root()?;
        let (reply, outcome) = oneshot::channel();
        let sent = self.shared.moves.send(MoveLeader { to, reply });
        sent.await.map_err(|_| RequestError::Stopped)?;
        outcome.await.unwrap_or(Err(RequestError::Stopped))
    }

    /// etcd's hash of this member's history through a revision; at that of one of the last compactions, the hash that was made
    /// during it. Needs the role root while authentication is on.
    pub async fn hash_kv(&self, through: Revision) -> Result<HistoryHash, RequestError> {
        let published = self.published();
        published.auth.require_root(&self.caller)?;
        if let Some(hash) = self.shared.hashes.at(through) {
            let newest = published.view.window.newest;
            return Ok(HistoryHash { newest, ..hash });
        }
        self.read_in_background(move || published.hash_history(through))
            .await
    }

    /// An image of this member's database in etcd's file format, which holds everything that was published before now. Needs the
    /// role root while authentication is on.
    pub(crate) async fn image(&self) -> Result<ImageStream, ImageError> {
        self.require_root()?;
        self.require_same_state()?;
        self.shared.images.begin(self.shared.views.clone()).await
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

    #[cfg(test)]
    pub(super) fn views(&self) -> latest::Receiver<Arc<Published>> {
        self.shared.views.clone()
    }

    /// The newest view, without any promise on how new it is.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.shared.views.borrow().clone()
    }

    /// Refuses all requests from now on. What was collected is still sent.
    pub(crate) fn close(&self) {
        self.shared.consensus.close();
    }

    async fn read_txn(&self, txn: Txn) -> Result<TxnDone, RequestError> {
        let published = self.view_for(txn.is_serializable()).await?;
        authorize::allow_reads(&published.auth, &self.caller, &txn)?;
        match published.try_read_txn(&txn)? {
            Quick::Done(done) => return Ok(done),
            Quick::NotInMemory => {
                let (txn, published) = (txn.clone(), published.clone());
                let bytes = txn.read_bytes();
                let read = self
                    .short_read(bytes, move || published.short_read_txn(&txn))
                    .await?;
                if let Some(done) = read? {
                    return Ok(done);
                }
            }
            Quick::Long => {}
        }
        self.read_in_background(move || published.view.read_txn(&txn))
            .await
    }

    /// This member's newest view: what a serializable read sees.
    pub(crate) fn newest_view(&self) -> Result<Arc<Published>, RequestError> {
        self.require_same_state()?;
        Ok(self.published())
    }

    /// A view that holds every write acknowledged before now, anywhere; or, for a serializable read, this member's newest.
    pub(crate) async fn view_for(
        &self,
        serializable: bool,
    ) -> Result<Arc<Published>, RequestError> {
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

    pub(super) fn raft_status(&self) -> latest::Receiver<RaftStatus> {
        self.shared.raft_status.clone()
    }

    /// Runs a long read as a blocking task. Only a few run at once; the others wait for their turn. A read whose caller has gone
    /// keeps its turn for as long as its thread runs.
    pub(crate) async fn read_in_background<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<Result<T, KvError>, ReadError> + Send + 'static,
    ) -> Result<T, RequestError> {
        let turns = self.shared.background_reads.clone();
        let done = in_turn(turns, read).await.ok_or(RequestError::Stopped)?;
        Ok(done??)
    }

    /// Runs a short read, whose request has `bytes` bytes, as a blocking task, within the time that a request may take.
    pub(crate) async fn short_read<T: Send + 'static>(
        &self,
        bytes: usize,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, RequestError> {
        let reading = self.shared.short_reads.run(bytes, read);
        let read = tokio::time::timeout(self.shared.limits.timeout, reading).await;
        read.map_err(|_| RequestError::TimedOut)?
    }

    /// Returns once this member's state differs from the others'.
    pub(crate) async fn taken_out(&self) {
        let mut status = self.raft_status();
        // An error means that the node is gone. Its callers get `Stopped` from the call itself.
        if status.wait_for(|status| status.out).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether a read would be answered now. A member without a vote answers this too.
    pub(crate) async fn probe(&self, serializable: bool) -> Result<(), RequestError> {
        self.require_same_state()?;
        self.view_of_anyone(serializable).await.map(drop)
    }

    /// Whether the database has reached its quota, so that writes that take space must raise the alarm first.
    pub(crate) fn is_at_quota(&self) -> bool {
        let bytes = self.shared.views.borrow().quota_bytes();
        quota::is_reached(self.shared.limits.quota_bytes, bytes)
    }

    /// A member at its quota raises an alarm, which stops such writes on all members until there is room again ([`quota`]), or
    /// an operator clears it.
    async fn check_quota(&self) -> Result<(), RequestError> {
        if !self.is_at_quota() {
            return Ok(());
        }
        let own = self.shared.identity.member;
        // Either refuses such writes. A second one of the kind that does not end by itself would outlast the first.
        let kinds = [AlarmKind::NoSpace, AlarmKind::QuotaReached];
        let raised = {
            let published = self.shared.views.borrow();
            kinds
                .iter()
                .any(|kind| published.alarms.contains(&(own, *kind)))
        };
        if !raised {
            let kind = self.shared.raft_status.borrow().quota_alarm;
            self.shared.consensus.raise_alarm(own, kind).await?;
        }
        Err(RequestError::Kv(KvError::NoSpace))
    }
}

fn unexpected<T>(outcome: &Outcome) -> Result<T, RequestError> {
    unreachable!("the machine answers each command in kind, not with {outcome:?}")
}
