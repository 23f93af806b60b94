//! What all clients of a cluster asked and received, with times of one clock, for the checker of histories.

use crate::{
    client::{Client, certainly_not_done},
    history::{Op, Outcome, Recorder, Refusal, Request},
};
use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};
use tonic::Status;

/// Lives of one member that a history distinguishes.
const LIVES_MAX: u64 = 1_000_000;

/// Every request of a test. Clients share it.
#[derive(Debug)]
pub(crate) struct Record {
    start: Instant,
    ops: Mutex<Recorder>,
    /// How often each member was started: after a restart it may show an older state, the one that its disk has as committed.
    lives: Vec<AtomicU64>,
    next: AtomicU64,
}

impl Record {
    /// For a cluster of at most `members_max` members.
    pub(crate) fn new(members_max: usize) -> Self {
        Self {
            start: quorate::internals::clock::now(),
            ops: Mutex::default(),
            lives: (0..members_max).map(|_| AtomicU64::new(0)).collect(),
            next: AtomicU64::new(0),
        }
    }

    /// A unique number for a client.
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
        quorate::internals::clock::micros(self.start.elapsed())
    }

    /// Sends a request to a member, waits at most `patience`, and records it. Without a status it timed out.
    pub(crate) async fn ask(
        &self,
        client: u64,
        (member, connection): (usize, &Client),
        request: Request,
        patience: Duration,
    ) -> (Outcome, Option<Status>) {
        let life = self.life(member);
        let id = self
            .recorder()
            .call(client, life, self.now(), request.clone());
        let answered = timeout(patience, connection.ask(&request)).await;
        let (outcome, status) = match answered {
            Ok(Ok((revision, answer))) => (Outcome::Done { revision, answer }, None),
            Ok(Err(status)) => (outcome_of(&status), Some(status)),
            Err(_) => (Outcome::Unknown, None),
        };
        let mut recorder = self.recorder();
        recorder.returned(id, self.now(), outcome.clone());
        if life != self.life(member) {
            // A new connection may have reached the member after a restart: then the answer shows nothing about either process.
            recorder.answered_by(id, u64::MAX - self.number());
        }
        (outcome, status)
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.ops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that was asked.
    pub(crate) fn ops(&self) -> Vec<Op> {
        self.recorder().ops().to_vec()
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
