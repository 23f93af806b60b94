//! Lease manager: knows which leases exist, and counts them down while this member leads.
//!
//! What exists is replicated state: it learns of it from the applier, after the fact. It never deletes a key. An expiry becomes a
//! proposal, many leases in one, so that every member drops the same keys at one place of the log. The rules are those of
//! [`LeaseClock`]; `docs/leases.md` explains them. A member counts from the moment it has applied an entry of the term in which
//! it leads: only then it knows every lease, and every expiry and checkpoint that earlier leaders got into the log.

use super::{
    fail_stop::Lifeline,
    latest,
    raft_node::RaftStatus,
    requests::{RequestError, Requests},
};
use crate::{
    clock,
    kv::{
        command::{CheckpointLeases, Command, ExpireLeases, Outcome},
        lease::{ALL_TIME, LeaseChange, LeaseRow},
        lease_clock::{ClockSettings, LeaseClock, Renewal, TimeLeft},
        machine::Restored,
    },
    types::{LeaseId, Millis, Term},
};
use actix::prelude::*;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

/// Messages that may wait: at most one a batch of the applier, which waits for nobody here, and one a front end.
const MAILBOX_MAX: usize = 16_384;

/// How often the countdown looks for leases whose time is up. etcd: the same.
const SCAN_INTERVAL: Duration = Duration::from_millis(500);

/// Leases that end in one log entry.
const EXPIRE_LEASES_MAX: usize = 128;

/// Keys that one entry should delete at most: more would hold up the puts behind it. One lease is never split.
const EXPIRE_KEYS_AIM: usize = 1_000;

/// After an entry with expiries there is none for as long as it took, this long at most: the others have half of the log.
const EXPIRE_PAUSE_MAX: Duration = Duration::from_millis(5);

/// Leases in one entry with checkpoints.
const CHECKPOINT_LEASES_MAX: usize = 1_000;

/// Owns the countdown.
#[derive(Debug)]
pub struct LeaseManager {
    clock: LeaseClock,
    began: Instant,
    /// The term of the newest applied entry.
    applied_term: Term,
    /// Renewals whose lease ends, or whose checkpoint is to be taken back, until an entry decides.
    waiting: BTreeMap<LeaseId, Vec<PendingCall>>,
    /// Calls that came after this member was elected and before it has applied an entry of its term.
    parked: Vec<PendingCall>,
    /// Whether an entry with expiries is on its way, or the pause after it is not over.
    expiring: bool,
    /// Leases that the next expiry ends at most.
    expire_leases: usize,
    peers: LeaseManagerPeers,
    _life: Lifeline,
}

/// Whom the lease manager talks to.
#[derive(Debug)]
pub struct LeaseManagerPeers {
    /// Takes its proposals through the log.
    pub requests: Requests,
    /// Who leads.
    pub raft_status: latest::Receiver<RaftStatus>,
}

/// What a lease manager begins with.
#[derive(Clone, Debug)]
pub struct LeaseState {
    /// The leases that exist.
    pub leases: Vec<(LeaseId, LeaseRow)>,
    /// The term of the newest applied entry.
    pub applied_term: Term,
}

impl LeaseState {
    /// The leases of a state that was read from disk, applied up to an entry of `applied_term`.
    pub fn of(restored: &Restored, applied_term: Term) -> Self {
        let leases = restored.leases.iter();
        Self {
            leases: leases.map(|(id, lease)| (id, lease.row)).collect(),
            applied_term,
        }
    }
}

impl LeaseManager {
    /// A manager of the leases that exist at start.
    pub fn new(
        state: LeaseState,
        settings: ClockSettings,
        peers: LeaseManagerPeers,
        life: Lifeline,
    ) -> Self {
        Self {
            clock: LeaseClock::new(settings, state.leases),
            began: clock::now(),
            applied_term: state.applied_term,
            waiting: BTreeMap::new(),
            parked: Vec::new(),
            expiring: false,
            expire_leases: EXPIRE_LEASES_MAX,
            peers,
            _life: life,
        }
    }
}

/// What a batch did to leases, in order. Sent before readers see the batch, and whenever an entry of a new term is applied.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LeasesChanged {
    /// The changes.
    pub changes: Vec<LeaseChange>,
    /// The term of the batch's last entry.
    pub term: Term,
}

/// A snapshot replaced the state: these are the leases from now on. Sent before readers see it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LeasesReplaced(pub LeaseState);

/// What only the leader's countdown can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountdownCall {
    /// Start it again.
    Renew(LeaseId),
    /// Read it.
    TimeLeft(LeaseId),
}

/// What came of a [`CountdownCall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountdownAnswer {
    /// The countdown started again, if this member still leads in `term`.
    Renewed {
        /// All of its time, in seconds.
        ttl_secs: i64,
        /// The term it is counted in.
        term: Term,
    },
    /// What the lease has left, if this member still leads in its term.
    Left(TimeLeft),
    /// The lease has ended.
    Ended,
    /// There is none as far as this member has applied.
    Unknown,
    /// This member does not lead.
    NotLeading,
}

/// A call that waits for its answer. It holds its place among the calls that may wait at all.
#[derive(Debug)]
pub struct PendingCall {
    /// What is asked.
    pub call: CountdownCall,
    /// Who asks.
    pub reply: oneshot::Sender<CountdownAnswer>,
    /// Given back with the answer.
    pub place: OwnedSemaphorePermit,
}

/// Questions of a front end, as many as came in one turn.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AskLeases {
    /// Those for the countdown.
    pub calls: Vec<PendingCall>,
    /// Those who ask which leases exist. The answer holds what was visible when they asked.
    pub lists: Vec<oneshot::Sender<Arc<[LeaseId]>>>,
}

impl Actor for LeaseManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        ctx.run_interval(SCAN_INTERVAL, Self::scan);
    }
}

impl Handler<LeasesChanged> for LeaseManager {
    type Result = ();

    fn handle(&mut self, changed: LeasesChanged, ctx: &mut Self::Context) {
        let now = self.now();
        self.applied_term = changed.term;
        // First, so that leases granted in this batch get their time and no more.
        self.follow_leadership();
        for change in &changed.changes {
            self.clock.applied(change, now);
            self.decided(change);
        }
        self.propose_clears(ctx);
    }
}

impl Handler<LeasesReplaced> for LeaseManager {
    type Result = ();

    fn handle(&mut self, LeasesReplaced(state): LeasesReplaced, _: &mut Self::Context) {
        self.applied_term = state.applied_term;
        self.clock.replace(state.leases);
        self.refuse_waiting();
        self.follow_leadership();
    }
}

impl Handler<AskLeases> for LeaseManager {
    type Result = ();

    fn handle(&mut self, ask: AskLeases, ctx: &mut Self::Context) {
        if !ask.lists.is_empty() {
            let ids: Arc<[LeaseId]> = self.clock.ids().collect();
            for list in ask.lists {
                // One that has gone away in the meantime does not matter.
                drop(list.send(ids.clone()));
            }
        }
        self.follow_leadership();
        for call in ask.calls {
            self.run(call);
        }
        self.propose_clears(ctx);
    }
}

impl LeaseManager {
    fn now(&self) -> Millis {
        clock::since(self.began)
    }

    fn scan(&mut self, ctx: &mut Context<Self>) {
        self.follow_leadership();
        // Checkpoints before what takes them back: the log keeps this order.
        let checkpoints = self
            .clock
            .take_checkpoints(self.now(), CHECKPOINT_LEASES_MAX);
        if let Some(checkpoints) = checkpoints {
            // One that gets lost is made up for by the next.
            drop(self.submit(&Command::CheckpointLeases(checkpoints)));
        }
        self.propose_clears(ctx);
        self.propose_expiries(ctx);
    }

    /// Counts if, and only if, this member leads and has applied an entry of its term.
    fn follow_leadership(&mut self) {
        let status = *self.peers.raft_status.borrow();
        let counts = status.leads && status.term == self.applied_term;
        if counts && self.clock.term() != Some(status.term) {
            self.clock.lead(status.term, clock::since(self.began));
            self.refuse_waiting();
            for call in std::mem::take(&mut self.parked) {
                self.run(call);
            }
        } else if !counts && self.clock.term().is_some() {
            self.clock.follow();
            self.refuse_waiting();
        }
        if !status.leads {
            for call in self.parked.drain(..) {
                call.answer(CountdownAnswer::NotLeading);
            }
        }
    }

    fn refuse_waiting(&mut self) {
        for call in std::mem::take(&mut self.waiting).into_values().flatten() {
            call.answer(CountdownAnswer::NotLeading);
        }
    }

    fn run(&mut self, pending: PendingCall) {
        if self.clock.term().is_none() && self.peers.raft_status.borrow().leads {
            self.parked.push(pending);
            return;
        }
        let now = self.now();
        match pending.call {
            CountdownCall::Renew(id) => match self.clock.renew(id, now) {
                Renewal::Renewed { ttl_secs, term } => {
                    pending.answer(CountdownAnswer::Renewed { ttl_secs, term });
                }
                Renewal::AfterClear | Renewal::Ending => {
                    self.waiting.entry(id).or_default().push(pending);
                }
                Renewal::Unknown => pending.answer(CountdownAnswer::Unknown),
                Renewal::NotLeading => pending.answer(CountdownAnswer::NotLeading),
            },
            CountdownCall::TimeLeft(id) => match self.clock.time_left(id, now) {
                Some(left) => pending.answer(CountdownAnswer::Left(left)),
                None if self.clock.term().is_some() => pending.answer(CountdownAnswer::Unknown),
                None => pending.answer(CountdownAnswer::NotLeading),
            },
        }
    }

    /// An applied entry decides the renewals that waited for it.
    fn decided(&mut self, change: &LeaseChange) {
        match *change {
            LeaseChange::Granted { .. } => {}
            LeaseChange::Checkpointed { id, row } => {
                if row.remaining_secs == ALL_TIME {
                    let waiting = self.waiting.remove(&id);
                    waiting
                        .into_iter()
                        .flatten()
                        .for_each(|call| self.run(call));
                }
            }
            LeaseChange::Revoked { id } => {
                for call in self.waiting.remove(&id).into_iter().flatten() {
                    call.answer(CountdownAnswer::Ended);
                }
            }
        }
    }

    /// Takes back the checkpoints of renewed leases.
    fn propose_clears(&mut self, ctx: &mut Context<Self>) {
        while let Some(clears) = self.clock.take_clears(CHECKPOINT_LEASES_MAX) {
            let submitted = self.submit(&Command::CheckpointLeases(clears.clone()));
            let waited = outcome(submitted).into_actor(self);
            ctx.spawn(waited.map(move |done, manager, _| manager.cleared(&clears, &done)));
        }
    }

    fn cleared(&mut self, clears: &CheckpointLeases, done: &Result<Outcome, RequestError>) {
        if let Err(error) = done {
            tracing::debug!("checkpoints of leases are not taken back yet: {error}");
            self.clock.clears_unknown(clears);
        }
    }

    /// Ends what is due, a bounded number of leases at a time; the outcome of one proposal sets off the next.
    fn propose_expiries(&mut self, ctx: &mut Context<Self>) {
        if self.expiring {
            return;
        }
        let now = self.now();
        let Some(expire) = self.clock.take_expired(now, self.expire_leases) else {
            return;
        };
        self.expiring = true;
        let proposed = clock::now();
        let submitted = self.submit(&Command::ExpireLeases(expire.clone()));
        let waited = outcome(submitted).into_actor(self);
        ctx.spawn(waited.map(move |done, manager, ctx| {
            manager.expired(&expire, &done);
            let pause = proposed.elapsed().min(EXPIRE_PAUSE_MAX);
            ctx.run_later(pause, move |manager, ctx| {
                manager.expiring = false;
                // What failed waits for the next scan.
                if done.is_ok() {
                    manager.propose_expiries(ctx);
                }
            });
        }));
    }

    fn expired(&mut self, expire: &ExpireLeases, done: &Result<Outcome, RequestError>) {
        match done {
            Ok(Outcome::Countdown { deleted, .. }) => {
                self.expire_leases = next_batch(self.expire_leases, *deleted);
            }
            Ok(_) => unreachable!("the machine answers an expiry in kind"),
            Err(error) => {
                tracing::debug!("{} leases are not ended yet: {error}", expire.leases.len());
                self.clock.expiry_unknown(expire);
            }
        }
    }

    /// Hands a proposal over at once, so that proposals enter the log in the order of these calls.
    fn submit(
        &self,
        command: &Command,
    ) -> Result<oneshot::Receiver<Result<Outcome, RequestError>>, RequestError> {
        self.peers.requests.submit(command)
    }
}

async fn outcome(
    submitted: Result<oneshot::Receiver<Result<Outcome, RequestError>>, RequestError>,
) -> Result<Outcome, RequestError> {
    submitted?.await.unwrap_or(Err(RequestError::Stopped))
}

/// Leases for the next expiry, after one of `leases` at most deleted so many keys.
fn next_batch(leases: usize, deleted: usize) -> usize {
    if deleted > EXPIRE_KEYS_AIM {
        (leases / 2).max(1)
    } else {
        (leases * 2).min(EXPIRE_LEASES_MAX)
    }
}

impl PendingCall {
    fn answer(self, answer: CountdownAnswer) {
        // A caller that has gone away in the meantime does not matter.
        self.reply.send(answer).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_leases_make_small_batches() {
        assert_eq!(next_batch(128, 20_000), 64);
        assert_eq!(next_batch(1, 20_000), 1);
        assert_eq!(next_batch(64, 64), 128);
        assert_eq!(next_batch(128, 128), 128);
    }
}
