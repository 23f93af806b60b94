//! What all clients of a cluster asked and were told, with times of one clock, for the judge of histories.

use crate::client::{Client, certainly_not_done};
use crate::history::{Op, Outcome, Refusal, Request};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tonic::Status;

/// Lives of one member that a history can tell apart.
const LIVES_MAX: u64 = 1_000_000;

/// Every request of a test. Clients share it.
#[derive(Debug)]
pub(crate) struct Record {
    start: Instant,
    ops: Mutex<Vec<Op>>,
    /// How often each member was started anew: what it shows may go back to what its disk knows is committed.
    lives: Vec<AtomicU64>,
    next: AtomicU64,
}

impl Record {
    /// For a cluster of at most `members_max` members.
    pub(crate) fn new(members_max: usize) -> Self {
        Self {
            start: quorate::clock::now(),
            ops: Mutex::default(),
            lives: (0..members_max).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(0),
        }
    }

    /// A number that nobody else has, for a client.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Must be called after a member died and before it is started again.
    pub(crate) fn starts_again(&self, member: usize) {
        self.lives[member].fetch_add(1, Ordering::SeqCst);
    }

    fn life(&self, member: usize) -> u64 {
        let member_number = u64::try_from(member).expect("a few members");
        member_number * LIVES_MAX + self.lives[member].load(Ordering::SeqCst)
    }

    fn now(&self) -> u64 {
        quorate::clock::micros(self.start.elapsed())
    }

    /// Asks a member, waits no longer than `patience`, and notes all of it. An error without a status is the wait's end.
    pub(crate) async fn ask(
        &self,
        client: u64,
        (member, connection): (usize, &Client),
        request: Request,
        patience: Duration,
    ) -> (Outcome, Option<Status>) {
        let (called, life) = (self.now(), self.life(member));
        let answered = timeout(patience, connection.ask(&request)).await;
        let returned = self.now();
        let (outcome, status) = match answered {
            Ok(Ok((revision, answer))) => (Outcome::Done { revision, answer }, None),
            Ok(Err(status)) => (outcome_of(&status), Some(status)),
            Err(_) => (Outcome::Unknown, None),
        };
        // A connection that is made anew may have reached the next life: then it says nothing about either.
        let same = life == self.life(member);
        let op = Op {
            client,
            member: if same { life } else { u64::MAX - self.number() },
            called,
            returned,
            request,
            outcome: outcome.clone(),
        };
        self.ops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(op);
        (outcome, status)
    }

    /// Everything that has returned, in the order of the calls.
    pub(crate) fn ops(&self) -> Vec<Op> {
        let mut ops = self
            .ops
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        ops.sort_by_key(|op| op.called);
        ops
    }
}

fn outcome_of(status: &Status) -> Outcome {
    if status.message() == "etcdserver: mvcc: required revision is a future revision" {
        Outcome::Failed(Refusal::Future)
    } else if certainly_not_done(status) {
        Outcome::Failed(Refusal::NotDone)
    } else {
        Outcome::Unknown
    }
}
