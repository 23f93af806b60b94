//! Lease manager: keeps the table of leases, counts their time down, and acts on the countdown while this member leads.
//!
//! Which leases exist is replicated state; the applier sends each change to this actor. It never deletes a key. An expiry becomes
//! a proposal for many leases, so that every member deletes the same keys at one log index, and so does a renewal, so that every
//! member restarts the countdown. The rules are those of [`LeaseClock`]; `docs/leases.md` explains them. A leader acts once it
//! has applied an entry of its own term: only then has it applied every lease, renewal, expiry and checkpoint that earlier
//! leaders got into the log.

use super::{
    answered::Answered,
    consensus::Consensus,
    expiry_pace::{self, ExpiryPace},
    fail_stop::Lifeline,
    latest,
    lease_messages::{AskLeases, CountdownAnswer, CountdownCall, PendingCall},
    raft_status::RaftStatus,
    replies::Answer,
    request_error::RequestError,
};
use crate::{
    clock,
    kv::{
        command::{Command, ExpireLeases, Outcome, RenewLeases},
        lease::{LeaseChange, LeaseMark, LeaseRow},
        lease_clock::{ClockSettings, LeaseClock, Renewal},
        machine::LoadedState,
    },
    mutation::{Mutation, mutated},
    types::{LeaseId, Millis, Term},
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

/// Messages that may wait: one for each batch of the applier, which does not wait for this actor, and one for each front end.
const MAILBOX_MAX: usize = 16_384;

/// How often the manager looks for leases whose time is up.
const SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// Leases in one entry with renewals, and in one with checkpoints, if requests may be large enough.
const RENEW_LEASES_MAX: usize = 4_096;
const CHECKPOINT_LEASES_MAX: usize = 1_000;

/// So many leases go into an entry, however small the limit on requests.
const ENTRY_LEASES_MIN: usize = 128;

/// Bytes that a lease takes in an entry at most: its id, its grant, and a time.
const LEASE_BYTES_MAX: usize = 27;

/// Owns the countdown of all leases.
#[derive(Debug)]
pub struct LeaseManager {
    clock: LeaseClock,
    began: Instant,
    /// The term of the newest applied entry.
    applied_term: Term,
    /// Renewals for the next entry. Each holds a place of a front end, which bounds them.
    renewals: Vec<PendingRenewal>,
    /// Calls that came after this member was elected and before it has applied an entry of its term.
    parked: Vec<PendingCall>,
    /// The term of the entry with renewals that is in flight.
    renewing: Option<Term>,
    /// The term of the entry with expiries that is in flight, or whose pause is not over.
    expiring: Option<Term>,
    pace: ExpiryPace,
    /// The term of the entry with checkpoints that is in flight.
    checkpointing: Option<Term>,
    /// Tells front ends how many leases there are.
    count: watch::Sender<usize>,
    peers: LeaseManagerPeers,
    _life: Lifeline,
}

/// A renewal that began.
#[derive(Debug)]
struct PendingRenewal {
    mark: LeaseMark,
    ttl_secs: i64,
    call: PendingCall,
}

/// The actors that the lease manager sends to, and what it reads.
#[derive(Debug)]
pub struct LeaseManagerPeers {
    /// Takes its proposals into the log.
    pub consensus: Consensus,
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
    pub fn of(loaded: &LoadedState, applied_term: Term) -> Self {
        let leases = loaded.leases.iter();
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
        count: watch::Sender<usize>,
        peers: LeaseManagerPeers,
        life: Lifeline,
    ) -> Self {
        let began = clock::now();
        Self {
            clock: LeaseClock::new(settings, state.leases, Millis(1)),
            began,
            applied_term: state.applied_term,
            renewals: Vec::new(),
            parked: Vec::new(),
            renewing: None,
            expiring: None,
            pace: ExpiryPace::default(),
            checkpointing: None,
            count,
            peers,
            _life: life,
        }
    }
}

/// What a batch did to leases, in order. Sent before readers see the batch, and whenever an entry of a new term is applied.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LeasesChanged {
    pub changes: Vec<LeaseChange>,
    /// The term of the batch's last entry.
    pub term: Term,
}

/// A snapshot replaced the state: these are the leases from now on. Sent before readers see it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LeasesReplaced(pub LeaseState);

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
        let now = self.stamp();
        self.applied_term = changed.term;
        // First, so that leases granted in this batch get their time and no more.
        self.follow_leadership();
        for change in &changed.changes {
            self.clock.applied(change, now);
        }
        self.publish_count();
        self.propose_renewals(ctx);
    }
}

impl Handler<LeasesReplaced> for LeaseManager {
    type Result = ();

    fn handle(&mut self, LeasesReplaced(state): LeasesReplaced, _: &mut Self::Context) {
        self.applied_term = state.applied_term;
        self.clock.replace(state.leases, self.stamp());
        self.publish_count();
        self.refuse_waiting();
        self.follow_leadership();
    }
}

impl Handler<AskLeases> for LeaseManager {
    type Result = ();

    fn handle(&mut self, ask: AskLeases, ctx: &mut Self::Context) {
        if !ask.lists.is_empty() {
            let ids: Arc<[LeaseId]> = self.clock.ids_by_due().into();
            for list in ask.lists {
                // One that has gone away in the meantime does not matter.
                drop(list.send(ids.clone()));
            }
        }
        self.follow_leadership();
        for call in ask.calls {
            self.run(call);
        }
        self.propose_renewals(ctx);
    }
}

impl LeaseManager {
    fn now(&self) -> Millis {
        clock::since(self.began)
    }

    /// The time from which a lease counts: rounded up, where [`LeaseManager::now`] rounds down.
    fn stamp(&self) -> Millis {
        Millis(self.now().0 + 1)
    }

    fn publish_count(&self) {
        let now = self.clock.len();
        self.count
            .send_if_modified(|count| std::mem::replace(count, now) != now);
    }

    fn scan(&mut self, ctx: &mut Context<Self>) {
        self.follow_leadership();
        self.propose_renewals(ctx);
        self.propose_checkpoints(ctx);
        self.propose_expiries(ctx);
    }

    /// Starts to act once this member leads and has applied an entry of its term, and stops when it does not lead any more.
    fn follow_leadership(&mut self) {
        let status = *self.peers.raft_status.borrow();
        let acts = status.leads && status.term == self.applied_term;
        if acts && self.clock.term() != Some(status.term) {
            self.clock.lead(status.term, self.now());
            self.refuse_waiting();
            for call in std::mem::take(&mut self.parked) {
                self.run(call);
            }
        } else if !acts && self.clock.term().is_some() && !mutated(Mutation::DeposedLeaseRevoke) {
            self.clock.follow();
            self.refuse_waiting();
        }
        if !status.leads {
            for call in self.parked.drain(..) {
                call.answer(CountdownAnswer::TryAgain);
            }
        }
    }

    /// Refuses the waiting renewals, whose term is over. Those in an entry that is in flight are answered with its outcome.
    fn refuse_waiting(&mut self) {
        for renewal in self.renewals.drain(..) {
            renewal.call.answer(CountdownAnswer::TryAgain);
        }
    }

    fn run(&mut self, call: PendingCall) {
        if self.clock.term().is_none() && self.peers.raft_status.borrow().leads {
            self.parked.push(call);
            return;
        }
        let now = self.now();
        match call.call {
            CountdownCall::Renew(id) => match self.clock.renew(id, now) {
                Renewal::Begun { mark, ttl_secs } => self.renewals.push(PendingRenewal {
                    mark,
                    ttl_secs,
                    call,
                }),
                Renewal::Unknown => call.answer(CountdownAnswer::Unknown),
                Renewal::Ending | Renewal::NotLeading => call.answer(CountdownAnswer::TryAgain),
            },
            CountdownCall::TimeLeft(id) => call.answer(match self.clock.time_left(id, now) {
                Some(left) => CountdownAnswer::Left(left),
                None if self.clock.term().is_some() => CountdownAnswer::Unknown,
                None => CountdownAnswer::TryAgain,
            }),
        }
    }

    /// Proposes all waiting renewals in one entry, unless an entry of renewals is in flight.
    fn propose_renewals(&mut self, ctx: &mut Context<Self>) {
        let Some(term) = self.clock.term() else {
            return;
        };
        if self.renewals.is_empty() || self.renewing == Some(term) {
            return;
        }
        let now = self.now();
        let count = self.renewals.len().min(self.entry_leases(RENEW_LEASES_MAX));
        let batch: Vec<PendingRenewal> = self.renewals.drain(..count).collect();
        let (abandoned, batch): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|renewal| renewal.call.is_abandoned());
        for renewal in abandoned {
            self.clock.settle(term, renewal.mark, false, now);
        }
        if batch.is_empty() {
            return;
        }
        let mut leases: Vec<LeaseMark> = batch.iter().map(|renewal| renewal.mark).collect();
        leases.sort_unstable();
        leases.dedup();
        self.renewing = Some(term);
        let submitted = self.submit(&Command::RenewLeases(RenewLeases { term, leases }));
        let waited = outcome(submitted).into_actor(self);
        ctx.spawn(waited.map(move |done, manager, ctx| {
            if manager.renewing == Some(term) {
                manager.renewing = None;
            }
            let refused = matches!(done, Err(RequestError::TooManyRequests));
            if refused && manager.clock.term() == Some(term) {
                // No log has the entry. They go first in the next one, and their leases do not end in the meantime.
                manager.renewals.splice(0..0, batch);
                return;
            }
            manager.renewed(term, batch, done);
            manager.propose_renewals(ctx);
        }));
    }

    /// Answers the callers whose renewals were in an entry.
    fn renewed(
        &mut self,
        term: Term,
        batch: Vec<PendingRenewal>,
        done: Result<Outcome, RequestError>,
    ) {
        let now = self.stamp();
        let gone = match done {
            Ok(Outcome::Renewals { gone, .. }) => gone,
            Ok(_) => unreachable!("the machine answers renewals in kind"),
            Err(error) => {
                tracing::debug!(
                    "{} renewals are to be asked for again: {error}",
                    batch.len()
                );
                None
            }
        };
        for PendingRenewal {
            mark,
            ttl_secs,
            call,
        } in batch
        {
            let ended = gone
                .as_ref()
                .map(|gone| gone.binary_search(&mark.id).is_ok());
            self.clock.settle(term, mark, ended == Some(false), now);
            call.answer(match ended {
                Some(false) => CountdownAnswer::Renewed { ttl_secs },
                Some(true) => CountdownAnswer::Ended,
                None => CountdownAnswer::TryAgain,
            });
        }
    }

    /// Goes on with the sweep for checkpoints. If a checkpoint is lost, a later sweep proposes it again.
    fn propose_checkpoints(&mut self, ctx: &mut Context<Self>) {
        if self.checkpointing.is_some() && self.checkpointing == self.clock.term() {
            return;
        }
        let visited = self
            .clock
            .sweep_step(Millis(clock::micros(SCAN_INTERVAL) / 1_000));
        let max = self.entry_leases(CHECKPOINT_LEASES_MAX);
        let Some(checkpoints) = self.clock.take_checkpoints(self.now(), visited, max) else {
            return;
        };
        let term = Some(checkpoints.term);
        self.checkpointing = term;
        let submitted = self.submit(&Command::CheckpointLeases(checkpoints));
        let waited = outcome(submitted).into_actor(self);
        ctx.spawn(waited.map(move |_, manager, _| {
            if manager.checkpointing == term {
                manager.checkpointing = None;
            }
        }));
    }

    /// How many leases fit into an entry within the limit on requests.
    fn entry_leases(&self, max: usize) -> usize {
        let fit = self.peers.consensus.request_bytes_max() / LEASE_BYTES_MAX;
        fit.clamp(ENTRY_LEASES_MIN, max)
    }

    /// Proposes the end of leases that are due, a bounded number at a time. The outcome of one proposal starts the next.
    fn propose_expiries(&mut self, ctx: &mut Context<Self>) {
        if self.expiring.is_some() && self.expiring == self.clock.term() {
            return;
        }
        let now = self.now();
        let Some(backlog) = self.clock.backlog(now) else {
            return;
        };
        let max = self.pace.leases(backlog).min(self.entry_leases(usize::MAX));
        let Some(expire) = self.clock.take_expired(now, max) else {
            return;
        };
        let term = Some(expire.term);
        self.expiring = term;
        let proposed = clock::now();
        let submitted = self.submit(&Command::ExpireLeases(expire.clone()));
        let waited = outcome(submitted).into_actor(self);
        ctx.spawn(waited.map(move |done, manager, ctx| {
            manager.expired(&expire, &done);
            let pause = expiry_pace::pause(proposed.elapsed());
            ctx.run_later(pause, move |manager, ctx| {
                manager.pace.took(proposed.elapsed());
                if manager.expiring == term {
                    manager.expiring = None;
                }
                // After a failure the next scan tries again.
                if done.is_ok() {
                    manager.propose_expiries(ctx);
                }
            });
        }));
    }

    fn expired(&mut self, expire: &ExpireLeases, done: &Result<Outcome, RequestError>) {
        match done {
            Ok(Outcome::Countdown { deleted, .. }) => {
                self.pace.deleted(*deleted, expire.leases.len());
            }
            Ok(_) => unreachable!("the machine answers an expiry in kind"),
            Err(error) => {
                tracing::debug!("{} leases are not ended yet: {error}", expire.leases.len());
                self.clock.expiry_unknown(expire);
            }
        }
    }

    /// Hands a proposal over at once, so that proposals enter the log in the order of these calls.
    fn submit(&self, command: &Command) -> Result<oneshot::Receiver<Answer>, RequestError> {
        self.peers.consensus.submit(command)
    }
}

async fn outcome(
    submitted: Result<oneshot::Receiver<Answer>, RequestError>,
) -> Result<Outcome, RequestError> {
    let answer = submitted?.await.unwrap_or(Err(RequestError::Stopped));
    match answer? {
        Answered::Complete(outcome) => Ok(outcome),
        Answered::Unread(_) => unreachable!("no command of this manager reads records"),
    }
}
