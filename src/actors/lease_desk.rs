//! A front end's lease calls: collects what comes in one turn of its event loop and takes it to the leader's lease manager.
//!
//! On the leader that is the lease manager beside it; on another member the calls of a turn travel to the leader together. A
//! renewal is answered once its entry is applied; the time left is returned after a quorum has confirmed that the member which
//! counts it still leads.

use super::{
    consensus::Consensus,
    latest,
    lease_messages::{
        AskLeaseKeys, AskLeases, CountdownAnswer, CountdownCall, ForwardLeaseCalls, LeaseAnswer,
        LeaseCall, LeaseServer, PendingCall,
    },
    published::Published,
    raft_status::RaftStatus,
    request_error::RequestError,
};
use crate::{
    clock,
    kv::lease_clock::TimeLeft,
    types::{LeaseId, MemberId, Term},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::{sleep_until, timeout, timeout_at},
};

/// Calls that may wait in one front end; further ones are refused.
const CALLS_MAX: usize = 16_384;

/// The pause before a call is sent again, while there is no leader that can answer, or an expired lease has not ended yet.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Calls in one message to the leader. A call that takes long delays the others of its message only.
const FORWARDED_CALLS_MAX: usize = 512;

/// What a front end needs for leases.
#[derive(Clone, Debug)]
pub struct LeasePeers {
    pub manager: Recipient<AskLeases>,
    /// How many leases there are, as far as this member has applied.
    pub leases: watch::Receiver<usize>,
    /// The most leases there may be for this member to grant another.
    pub leases_max: usize,
    /// Judges callers by the keys of a lease, and lists those.
    pub keys: LeaseKeysPeer,
    /// Carries calls to the leader; `None` on a member without peers.
    pub leader: Option<Recipient<ForwardLeaseCalls>>,
    /// The shortest time to live that is granted, in seconds.
    pub ttl_secs_min: i64,
    /// How long a call looks for a leader.
    pub timeout: Duration,
    /// Confirms that this member leads.
    pub consensus: Consensus,
    pub views: latest::Receiver<Arc<Published>>,
    pub raft_status: latest::Receiver<RaftStatus>,
}

/// Asks the applier about the keys of leases: a few calls at a time, since its mailbox is meant for the log.
#[derive(Clone, Debug)]
pub struct LeaseKeysPeer {
    applier: Recipient<AskLeaseKeys>,
    turns: Arc<Semaphore>,
}

impl LeaseKeysPeer {
    /// Asks `applier`. All front ends of a node share one of these.
    pub fn new(applier: Recipient<AskLeaseKeys>) -> Self {
        const AT_A_TIME: usize = 4;
        Self {
            applier,
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }

    pub(super) async fn ask(&self, ask: AskLeaseKeys) -> Result<Option<Vec<Bytes>>, RequestError> {
        let turn = self.turns.acquire().await;
        let _turn = turn.map_err(|_| RequestError::Stopped)?;
        let keys = self.applier.send(ask).await;
        Ok(keys.map_err(|_| RequestError::Stopped)??)
    }
}

/// A front end's lease calls of this turn.
#[derive(Debug)]
pub struct LeaseDesk {
    peers: LeasePeers,
    places: Arc<Semaphore>,
    turn: Mutex<Turn>,
    wake: Notify,
}

/// What a call does if as many calls wait as are allowed.
#[derive(Clone, Copy, Debug)]
pub(super) enum WhenFull {
    Refuse,
    /// It waits for a place.
    Wait,
}

#[derive(Debug, Default)]
struct Turn {
    ask: Vec<PendingCall>,
    lists: Vec<oneshot::Sender<Arc<[LeaseId]>>>,
    forward: BTreeMap<MemberId, Vec<Forwarded>>,
}

#[derive(Debug)]
struct Forwarded {
    call: LeaseCall,
    reply: oneshot::Sender<LeaseAnswer>,
    _place: OwnedSemaphorePermit,
}

impl LeaseDesk {
    /// A desk with a task on `arbiter` that sends what each of its turns has collected.
    pub fn start(arbiter: &ArbiterHandle, peers: LeasePeers) -> Arc<Self> {
        let desk = Arc::new(Self {
            peers,
            places: Arc::new(Semaphore::new(CALLS_MAX)),
            turn: Mutex::new(Turn::default()),
            wake: Notify::new(),
        });
        let sending = arbiter.spawn(desk.clone().send_turns());
        assert!(sending, "front ends start before their arbiter stops");
        desk
    }

    /// What a front end needs for leases.
    pub(super) fn peers(&self) -> &LeasePeers {
        &self.peers
    }

    /// Which leases exist as far as this member has applied, those that are due first in front.
    pub(super) async fn list(&self) -> Result<Arc<[LeaseId]>, RequestError> {
        let (reply, list) = oneshot::channel();
        let _place = self.place(WhenFull::Refuse).await?;
        self.enqueue(list, |turn| turn.lists.push(reply)).await
    }

    /// Sends what each turn of the event loop has collected, until the node stops.
    async fn send_turns(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let turn = std::mem::take(&mut *self.lock());
            for (leader, mut calls) in turn.forward {
                while !calls.is_empty() {
                    let batch = calls
                        .drain(..calls.len().min(FORWARDED_CALLS_MAX))
                        .collect();
                    // In a task of its own: a slow leader must not delay the calls for a new one.
                    drop(tokio::spawn(forward(
                        self.peers.leader.clone(),
                        leader,
                        batch,
                    )));
                }
            }
            let (calls, lists) = (turn.ask, turn.lists);
            if calls.is_empty() && lists.is_empty() {
                continue;
            }
            if self
                .peers
                .manager
                .send(AskLeases { calls, lists })
                .await
                .is_err()
            {
                // New calls find the semaphore closed; waiting ones find their channel closed.
                self.places.close();
                *self.lock() = Turn::default();
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place(&self, when_full: WhenFull) -> Result<OwnedSemaphorePermit, RequestError> {
        use tokio::sync::TryAcquireError;
        let places = self.places.clone();
        match (places.clone().try_acquire_owned(), when_full) {
            (Ok(place), _) => Ok(place),
            (Err(TryAcquireError::Closed), _) => Err(RequestError::Stopped),
            (Err(TryAcquireError::NoPermits), WhenFull::Refuse) => {
                Err(RequestError::TooManyRequests)
            }
            (Err(TryAcquireError::NoPermits), WhenFull::Wait) => {
                let place = places.acquire_owned().await;
                place.map_err(|_| RequestError::Stopped)
            }
        }
    }

    async fn enqueue<T>(
        &self,
        reply: oneshot::Receiver<T>,
        add: impl FnOnce(&mut Turn),
    ) -> Result<T, RequestError> {
        add(&mut self.lock());
        self.wake.notify_one();
        reply.await.map_err(|_| RequestError::Stopped)
    }

    /// Asks the lease manager of this member. Without an answer in time the caller has to ask again.
    async fn ask_for(
        &self,
        call: CountdownCall,
        when_full: WhenFull,
    ) -> Result<CountdownAnswer, RequestError> {
        let place = self.place(when_full).await?;
        let (reply, answer) = oneshot::channel();
        let pending = PendingCall { call, reply, place };
        let answer = self.enqueue(answer, |turn| turn.ask.push(pending));
        let answered = timeout(self.peers.timeout, answer).await;
        answered.unwrap_or(Ok(CountdownAnswer::TryAgain))
    }

    async fn forward(
        &self,
        leader: MemberId,
        call: LeaseCall,
        when_full: WhenFull,
    ) -> Result<LeaseAnswer, RequestError> {
        let place = self.place(when_full).await?;
        let (reply, answer) = oneshot::channel();
        let forwarded = Forwarded {
            call,
            reply,
            _place: place,
        };
        self.enqueue(answer, |turn| {
            turn.forward.entry(leader).or_default().push(forwarded);
        })
        .await
    }
}

async fn forward(
    link: Option<Recipient<ForwardLeaseCalls>>,
    leader: MemberId,
    forwarded: Vec<Forwarded>,
) {
    let calls = forwarded.iter().map(|forwarded| forwarded.call).collect();
    let answers = match link {
        Some(link) => link.send(ForwardLeaseCalls { leader, calls }).await,
        None => Ok(Vec::new()),
    };
    let missing = std::iter::repeat(LeaseAnswer::TryAgain);
    let answers = answers.unwrap_or_default().into_iter().chain(missing);
    for (forwarded, answer) in forwarded.into_iter().zip(answers) {
        // A caller that has gone away in the meantime does not matter.
        forwarded.reply.send(answer).unwrap_or_default();
    }
}

impl LeaseDesk {
    /// Answers the calls that other members forward to this one.
    pub fn server(self: &Arc<Self>) -> LeaseServer {
        let desk = self.clone();
        LeaseServer::new(move |calls| {
            let desk = desk.clone();
            async move { desk.serve(calls).await }
        })
    }

    /// Answers calls that another member has forwarded, in order.
    async fn serve(self: &Arc<Self>, calls: Vec<LeaseCall>) -> Vec<LeaseAnswer> {
        let mut serving = tokio::task::JoinSet::new();
        let mut answers = vec![LeaseAnswer::TryAgain; calls.len()];
        for (at, call) in calls.into_iter().enumerate() {
            let desk = self.clone();
            serving.spawn(async move { (at, desk.serve_one(call, WhenFull::Refuse).await) });
        }
        while let Some(served) = serving.join_next().await {
            if let Ok((at, Ok(answer))) = served {
                answers[at] = answer;
            }
        }
        answers
    }

    /// Sends a call to the leader, again and again until it is answered or its time is up.
    pub(super) async fn call(
        &self,
        call: LeaseCall,
        when_full: WhenFull,
    ) -> Result<LeaseAnswer, RequestError> {
        let deadline = clock::now() + self.peers.timeout;
        let mut statuses = self.peers.raft_status.clone();
        loop {
            let status = *statuses.borrow_and_update();
            let answer = match status.leader {
                _ if status.leads => {
                    let served = self.serve_one(call, when_full);
                    let served = timeout_at(deadline, served).await;
                    served.map_err(|_| RequestError::TimedOut)??
                }
                Some(leader) => {
                    // A leader that lost its connections may never answer; the next leader does.
                    let mut changes = statuses.clone();
                    let deposed = changes.wait_for(|now| now.leader != Some(leader));
                    tokio::select! {
                        biased;
                        answer = self.forward(leader, call, when_full) => answer?,
                        _ = deposed => LeaseAnswer::TryAgain,
                        () = sleep_until(deadline) => LeaseAnswer::TryAgain,
                    }
                }
                None => LeaseAnswer::TryAgain,
            };
            if answer != LeaseAnswer::TryAgain {
                return Ok(answer);
            }
            if clock::now() >= deadline {
                return Err(match status.leader {
                    Some(_) => RequestError::TimedOut,
                    None => RequestError::NoLeader,
                });
            }
            // A closed channel means that the node is stopping; the next round finds out.
            let changed = timeout(RETRY_INTERVAL, statuses.changed()).await;
            if let Ok(Err(_)) = changed {
                return Err(RequestError::Stopped);
            }
        }
    }

    /// Answers a call as the leader, if this member is it.
    async fn serve_one(
        &self,
        call: LeaseCall,
        when_full: WhenFull,
    ) -> Result<LeaseAnswer, RequestError> {
        let countdown = match call {
            LeaseCall::Renew(id) => CountdownCall::Renew(id),
            LeaseCall::TimeLeft(id) => CountdownCall::TimeLeft(id),
        };
        let mut answer = self.ask_for(countdown, when_full).await?;
        if answer == CountdownAnswer::Unknown {
            // The lease may have been granted a moment ago through another member, in an entry that is not applied here yet.
            self.peers.raft_status.borrow().require_same_state()?;
            self.peers
                .consensus
                .linearizable_view(&self.peers.views)
                .await?;
            answer = self.ask_for(countdown, when_full).await?;
        }
        Ok(match answer {
            CountdownAnswer::Renewed { ttl_secs } => LeaseAnswer::Renewed { ttl_secs },
            CountdownAnswer::Left(left) if self.still_leads(left.term).await? => lease_time(left),
            CountdownAnswer::Ended | CountdownAnswer::Unknown => LeaseAnswer::NoLease,
            CountdownAnswer::Left(_) | CountdownAnswer::TryAgain => LeaseAnswer::TryAgain,
        })
    }

    /// Whether this member leads in `term`, confirmed by a quorum after this call.
    async fn still_leads(&self, term: Term) -> Result<bool, RequestError> {
        self.peers.consensus.read_index().await?;
        let status = *self.peers.raft_status.borrow();
        Ok(status.leads && status.term == term)
    }
}

fn lease_time(time: TimeLeft) -> LeaseAnswer {
    LeaseAnswer::Time {
        left_secs: i64::try_from(time.left.0 / 1_000).unwrap_or(i64::MAX),
        ttl_secs: time.ttl_secs,
    }
}
