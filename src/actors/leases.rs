//! Leases, as front ends and embedding programs ask for them.
//!
//! Grants and revokes go through the log. So do renewals, but many in an entry, which the leader makes; and the time that a lease
//! has left is the leader's count. A front end on the leader asks the lease manager beside it; on another member it sends its
//! calls to the leader, all that came in one turn together. A renewal is answered once its entry is applied; the time left after
//! a quorum has confirmed that whoever counts it still leads.

use super::{
    lease_manager::{AskLeases, CountdownAnswer, CountdownCall, LeaseManager, PendingCall},
    requests::{RequestError, Requests},
};
use crate::{
    clock,
    kv::{
        KvError,
        command::{Command, GrantLease, Outcome, RevokeLease},
        lease_clock::TimeLeft,
    },
    types::{LeaseId, MemberId, Revision, Term},
};
use actix::prelude::*;
use bincode::Encode;
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

/// The longest time to live that can be asked for, in seconds. etcd: the same.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

/// Renewals and questions that may wait in one front end; past it callers are told to come again.
const CALLS_MAX: usize = 16_384;

/// How long a call waits before it looks again for a leader that can answer, or for the end of a lease whose time is up.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Calls in one message to the leader: those that wait hold up no more than these.
const FORWARDED_CALLS_MAX: usize = 512;

/// What a front end needs for leases.
#[derive(Clone, Debug)]
pub struct LeasePeers {
    /// The countdown.
    pub manager: Addr<LeaseManager>,
    /// How many leases there are, as far as this member has applied.
    pub leases: watch::Receiver<usize>,
    /// From so many leases on no more are granted through this member.
    pub leases_max: usize,
    /// Knows the keys of leases.
    pub keys: LeaseKeysPeer,
    /// Carries calls to the leader; nothing on a member that has no peers.
    pub leader: Option<Recipient<ForwardLeaseCalls>>,
    /// The shortest time to live that is granted, in seconds.
    pub ttl_secs_min: i64,
    /// How long a call looks for a leader.
    pub timeout: Duration,
}

/// The applier, asked by a bounded number of front-end calls at a time: its mailbox is for the log.
#[derive(Clone, Debug)]
pub struct LeaseKeysPeer {
    applier: Recipient<ListLeaseKeys>,
    turns: Arc<Semaphore>,
}

impl LeaseKeysPeer {
    /// Asks `applier`. All front ends of a node share one of these.
    pub fn new(applier: Recipient<ListLeaseKeys>) -> Self {
        const AT_A_TIME: usize = 4;
        Self {
            applier,
            turns: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }

    async fn ask(&self, id: LeaseId) -> Result<Option<Vec<Bytes>>, RequestError> {
        let turn = self.turns.acquire().await;
        let _turn = turn.map_err(|_| RequestError::Stopped)?;
        let keys = self.applier.send(ListLeaseKeys { id }).await;
        keys.map_err(|_| RequestError::Stopped)
    }
}

/// Asks which keys are attached to a lease, as of the newest applied entry; nothing if there is no such lease.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Option<Vec<Bytes>>")]
pub struct ListLeaseKeys {
    /// Which lease.
    pub id: LeaseId,
}

/// What only the leader can answer, as it travels between members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, bincode::Decode)]
pub enum LeaseCall {
    /// Renew the lease.
    Renew(LeaseId),
    /// How much time has the lease left?
    TimeLeft(LeaseId),
}

/// The leader's answer to a [`LeaseCall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, bincode::Decode)]
pub enum LeaseAnswer {
    /// The lease lives on for so long.
    Renewed {
        /// In seconds.
        ttl_secs: i64,
    },
    /// The lease's time.
    Time {
        /// What is left, in whole seconds.
        left_secs: i64,
        /// What was granted, in seconds.
        ttl_secs: i64,
    },
    /// There is no such lease, or no more.
    NoLease,
    /// Whoever was asked does not lead, or cannot tell yet.
    TryAgain,
}

/// A lease's time, and its keys if they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTime {
    /// What is left, in whole seconds.
    pub left_secs: i64,
    /// What was granted, in seconds.
    pub ttl_secs: i64,
    /// The attached keys, ascending.
    pub keys: Vec<Bytes>,
}

/// Carries calls to the leader and its answers back, in the order of the calls. A call that finds no answer (the leader is out of
/// reach, or leads no more) is answered [`LeaseAnswer::TryAgain`]; the answer comes within the timeout of requests.
///
/// The member that receives them answers with [`Requests::serve_lease_calls`].
#[derive(Debug, Message)]
#[rtype(result = "Vec<LeaseAnswer>")]
pub struct ForwardLeaseCalls {
    /// Who leads, as far as the sender knows.
    pub leader: MemberId,
    /// The calls.
    pub calls: Vec<LeaseCall>,
}

/// A granted lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseGranted {
    /// Its id.
    pub id: LeaseId,
    /// Its time to live, in seconds: what was asked for, or the least that is granted.
    pub ttl_secs: i64,
    /// The store's revision.
    pub revision: Revision,
}

/// A front end's lease calls of this turn.
#[derive(Debug)]
pub(super) struct LeaseDesk {
    peers: LeasePeers,
    places: Arc<Semaphore>,
    turn: Mutex<Turn>,
    wake: Notify,
}

/// What a call does where as many wait as may.
#[derive(Clone, Copy, Debug)]
enum Crowd {
    /// It is told to come again.
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
    pub(super) fn new(peers: LeasePeers) -> Arc<Self> {
        Arc::new(Self {
            peers,
            places: Arc::new(Semaphore::new(CALLS_MAX)),
            turn: Mutex::new(Turn::default()),
            wake: Notify::new(),
        })
    }

    /// Sends what each turn of the event loop has collected, until the node stops.
    pub(super) async fn send_turns(self: Arc<Self>) {
        loop {
            self.wake.notified().await;
            let turn = std::mem::take(&mut *self.lock());
            for (leader, mut calls) in turn.forward {
                while !calls.is_empty() {
                    let batch = calls
                        .drain(..calls.len().min(FORWARDED_CALLS_MAX))
                        .collect();
                    // Apart: a slow leader must not hold up the calls for a new one.
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
                // Whoever asks from now on finds its place gone; whoever has asked, its channel.
                self.places.close();
                *self.lock() = Turn::default();
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn place(&self, crowd: Crowd) -> Result<OwnedSemaphorePermit, RequestError> {
        use tokio::sync::TryAcquireError;
        let places = self.places.clone();
        match (places.clone().try_acquire_owned(), crowd) {
            (Ok(place), _) => Ok(place),
            (Err(TryAcquireError::Closed), _) => Err(RequestError::Stopped),
            (Err(TryAcquireError::NoPermits), Crowd::Refuse) => Err(RequestError::TooManyRequests),
            (Err(TryAcquireError::NoPermits), Crowd::Wait) => {
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

    /// Asks the lease manager beside it. What it does not answer in time is to be asked again.
    async fn ask_for(
        &self,
        call: CountdownCall,
        crowd: Crowd,
    ) -> Result<CountdownAnswer, RequestError> {
        let place = self.place(crowd).await?;
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
        crowd: Crowd,
    ) -> Result<LeaseAnswer, RequestError> {
        let place = self.place(crowd).await?;
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

impl Requests {
    /// Creates a lease. Without an id one is chosen; a time to live below the minimum is raised to it. Where there are nearly as
    /// many as may be, those that are granted at the same moment may get a few over.
    pub async fn grant_lease(
        &self,
        id: Option<LeaseId>,
        ttl_secs: i64,
    ) -> Result<LeaseGranted, RequestError> {
        if ttl_secs > TTL_SECS_MAX {
            let max_secs = TTL_SECS_MAX;
            let asked_secs = ttl_secs;
            return Err(KvError::LeaseTtlTooLarge {
                asked_secs,
                max_secs,
            }
            .into());
        }
        let peers = &self.lease_desk().peers;
        let (leases, max) = (*peers.leases.borrow(), peers.leases_max);
        if leases >= max {
            return Err(KvError::TooManyLeases { max }.into());
        }
        let ttl_secs = ttl_secs.max(peers.ttl_secs_min);
        loop {
            let grant = GrantLease {
                id: id.unwrap_or_else(random_id),
                ttl_secs,
            };
            match self.propose(&Command::GrantLease(grant)).await {
                // Somebody has the id that was drawn; draw another.
                Err(RequestError::Kv(KvError::LeaseExists(_))) if id.is_none() => {}
                Ok(Outcome::Lease { revision, .. }) => {
                    return Ok(LeaseGranted {
                        id: grant.id,
                        ttl_secs,
                        revision,
                    });
                }
                Ok(other) => unreachable!("the machine answers a grant in kind, not {other:?}"),
                Err(error) => return Err(error),
            }
        }
    }

    /// Ends a lease and deletes its keys in one revision. Gives the store's revision.
    pub async fn revoke_lease(&self, id: LeaseId) -> Result<Revision, RequestError> {
        let revoke = Command::RevokeLease(RevokeLease { id });
        match self.propose(&revoke).await? {
            Outcome::Lease { revision, .. } => Ok(revision),
            other => unreachable!("the machine answers a revoke in kind, not {other:?}"),
        }
    }

    /// Gives a lease all of its time again, and that time in seconds; nothing if the lease is gone. A lease whose time is up is
    /// gone; the answer then comes soon after its keys are.
    pub async fn keep_alive(&self, id: LeaseId) -> Result<Option<i64>, RequestError> {
        self.renew(id, Crowd::Refuse).await
    }

    /// As [`Requests::keep_alive`], and where too many calls wait this one waits for a place among them. Whoever uses it bounds
    /// how many do.
    pub async fn keep_alive_in_turn(&self, id: LeaseId) -> Result<Option<i64>, RequestError> {
        self.renew(id, Crowd::Wait).await
    }

    async fn renew(&self, id: LeaseId, crowd: Crowd) -> Result<Option<i64>, RequestError> {
        match self.lease_call(LeaseCall::Renew(id), crowd).await? {
            LeaseAnswer::Renewed { ttl_secs } => Ok(Some(ttl_secs)),
            LeaseAnswer::NoLease => Ok(None),
            other @ (LeaseAnswer::Time { .. } | LeaseAnswer::TryAgain) => {
                unreachable!("a renewal is answered in kind, not with {other:?}")
            }
        }
    }

    /// A lease's time, and its keys if asked for; nothing if there is no such lease. The leader knows the time, every member the
    /// keys; they are those of every write acknowledged before this was asked.
    pub async fn time_to_live(
        &self,
        id: LeaseId,
        keys: bool,
    ) -> Result<Option<LeaseTime>, RequestError> {
        let call = LeaseCall::TimeLeft(id);
        let (left_secs, ttl_secs) = match self.lease_call(call, Crowd::Refuse).await? {
            LeaseAnswer::Time {
                left_secs,
                ttl_secs,
            } => (left_secs, ttl_secs),
            LeaseAnswer::NoLease => return Ok(None),
            other @ (LeaseAnswer::Renewed { .. } | LeaseAnswer::TryAgain) => {
                unreachable!("a question is answered in kind, not with {other:?}")
            }
        };
        let mut time = LeaseTime {
            left_secs,
            ttl_secs,
            keys: Vec::new(),
        };
        if keys {
            self.view_for(false).await?;
            let Some(attached) = self.lease_desk().peers.keys.ask(id).await? else {
                return Ok(None);
            };
            time.keys = attached;
        }
        Ok(Some(time))
    }

    /// All leases, ascending, as far as this member has applied. All who ask in one turn share the list.
    pub async fn leases(&self) -> Result<Arc<[LeaseId]>, RequestError> {
        let (reply, list) = oneshot::channel();
        let desk = self.lease_desk();
        let _place = desk.place(Crowd::Refuse).await?;
        desk.enqueue(list, |turn| turn.lists.push(reply)).await
    }

    /// Answers calls that another member has forwarded, in order.
    pub async fn serve_lease_calls(&self, calls: Vec<LeaseCall>) -> Vec<LeaseAnswer> {
        let mut serving = tokio::task::JoinSet::new();
        let mut answers = vec![LeaseAnswer::TryAgain; calls.len()];
        for (at, call) in calls.into_iter().enumerate() {
            let requests = self.clone();
            serving
                .spawn(async move { (at, requests.serve_lease_call(call, Crowd::Refuse).await) });
        }
        while let Some(served) = serving.join_next().await {
            if let Ok((at, Ok(answer))) = served {
                answers[at] = answer;
            }
        }
        answers
    }

    /// Takes a call to whoever leads, until it is answered or its time is up.
    async fn lease_call(&self, call: LeaseCall, crowd: Crowd) -> Result<LeaseAnswer, RequestError> {
        let desk = self.lease_desk();
        let deadline = clock::now() + desk.peers.timeout;
        let mut statuses = self.raft_status();
        loop {
            let status = *statuses.borrow_and_update();
            let answer = match status.leader {
                _ if status.leads => {
                    let served = self.serve_lease_call(call, crowd);
                    let served = timeout_at(deadline, served).await;
                    served.map_err(|_| RequestError::TimedOut)??
                }
                Some(leader) => {
                    // A leader that is cut off may never answer; whoever leads next does.
                    let mut changes = statuses.clone();
                    let deposed = changes.wait_for(|now| now.leader != Some(leader));
                    tokio::select! {
                        biased;
                        answer = desk.forward(leader, call, crowd) => answer?,
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
    async fn serve_lease_call(
        &self,
        call: LeaseCall,
        crowd: Crowd,
    ) -> Result<LeaseAnswer, RequestError> {
        let desk = self.lease_desk();
        let countdown = match call {
            LeaseCall::Renew(id) => CountdownCall::Renew(id),
            LeaseCall::TimeLeft(id) => CountdownCall::TimeLeft(id),
        };
        let mut answer = desk.ask_for(countdown, crowd).await?;
        if answer == CountdownAnswer::Unknown {
            // It may have been granted a moment ago through another member, and not be applied here yet.
            self.view_for(false).await?;
            answer = desk.ask_for(countdown, crowd).await?;
        }
        Ok(match answer {
            CountdownAnswer::Renewed { ttl_secs } => LeaseAnswer::Renewed { ttl_secs },
            CountdownAnswer::Left(left) if self.still_leads(left.term).await? => lease_time(left),
            CountdownAnswer::Ended | CountdownAnswer::Unknown => LeaseAnswer::NoLease,
            CountdownAnswer::Left(_) | CountdownAnswer::TryAgain => LeaseAnswer::TryAgain,
        })
    }

    /// Whether this member leads in `term`, by the word of a quorum given after this was asked.
    async fn still_leads(&self, term: Term) -> Result<bool, RequestError> {
        self.read_index().await?;
        let status = *self.raft_status().borrow();
        Ok(status.leads && status.term == term)
    }
}

fn lease_time(time: TimeLeft) -> LeaseAnswer {
    LeaseAnswer::Time {
        left_secs: i64::try_from(time.left.0 / 1_000).unwrap_or(i64::MAX),
        ttl_secs: time.ttl_secs,
    }
}

/// A positive id.
fn random_id() -> LeaseId {
    LeaseId((clock::entropy() >> 1).max(1).cast_signed())
}
