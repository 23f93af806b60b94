//! Clients that put, get, delete and compare-and-swap a few keys at all members until they are stopped.
//!
//! There are few keys, so that clients conflict; each value is written once, so that each history differs from any other. A
//! client whose request fails or takes too long goes to another member, as etcd's clients do, and does not ask again: the checker
//! finds out whether the request happened.

use crate::{
    client::Client,
    history::{
        Answer, Compare, DeleteRange, Operand, Outcome, Put, Range, Relation, Request, Revision,
        Txn, TxnOp,
    },
    record::Record,
};
use bytes::Bytes;
use fastrand::Rng;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::sleep};

const KEYS: usize = 8;
/// Requests on one connection before a client changes the member.
const STAY_MAX: u32 = 100;
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest pause between two requests: long enough not to saturate the machine.
const PAUSE_MICROS_MAX: u64 = 10_000;
/// How far back a client looks, in revisions.
const HISTORY: Revision = 20;
/// The pause after a refused connection.
const RETRY: Duration = Duration::from_millis(50);

/// The members that clients use, by position. May change while they run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Targets(Arc<Mutex<BTreeMap<usize, SocketAddr>>>);

impl Targets {
    pub(crate) fn new(members: &[SocketAddr]) -> Self {
        let all = members.iter().copied().enumerate().collect();
        Self(Arc::new(Mutex::new(all)))
    }

    pub(crate) fn add(&self, member: usize, address: SocketAddr) {
        self.change(|all| all.insert(member, address));
    }

    pub(crate) fn remove(&self, member: usize) {
        self.change(|all| all.remove(&member));
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<usize, SocketAddr>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn any(&self, random: &mut Rng) -> (usize, SocketAddr) {
        let found = self.change(|all| {
            let at = random.usize(..all.len());
            all.iter()
                .nth(at)
                .map(|(member, address)| (*member, *address))
        });
        found.expect("there is a member")
    }
}

#[derive(Debug)]
pub(crate) struct Workload {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
}

impl Workload {
    /// Starts `clients` clients; what each asks follows from the seed.
    pub(crate) fn start(record: &Arc<Record>, targets: &Targets, clients: u64, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = JoinSet::new();
        for n in 0..clients {
            let user = User {
                number: record.number(),
                record: Arc::clone(record),
                targets: targets.clone(),
                stop: Arc::clone(&stop),
                random: Rng::with_seed(seed ^ (n << 32)),
                written: 0,
                seen: vec![0; KEYS],
                newest: 0,
            };
            running.spawn(user.work());
        }
        Self {
            stop,
            clients: running,
        }
    }

    /// Lets each client finish its request.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("no client panics");
        }
    }
}

struct User {
    number: u64,
    record: Arc<Record>,
    targets: Targets,
    stop: Arc<AtomicBool>,
    random: Rng,
    written: u64,
    /// The revision of each key as this client saw it last.
    seen: Vec<Revision>,
    newest: Revision,
}

fn key(n: usize) -> Bytes {
    format!("key{n}").into()
}

impl User {
    async fn work(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let (member, address) = self.targets.any(&mut self.random);
            match Client::connect(address).await {
                Some(connection) => self.stay(member, &connection).await,
                None => sleep(RETRY).await,
            }
        }
    }

    /// Works with one member for a while, or until it fails.
    async fn stay(&mut self, member: usize, connection: &Client) {
        for _ in 0..self.random.u32(1..STAY_MAX) {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let n = self.random.usize(..KEYS);
            let request = self.request(n);
            let at = (member, connection);
            let (outcome, _) = self.record.ask(self.number, at, request, PATIENCE).await;
            match outcome {
                Outcome::Done { revision, answer } => self.learn(n, revision, &answer),
                Outcome::Failed(_) => {}
                Outcome::Unknown => return,
            }
            sleep(Duration::from_micros(self.random.u64(..PAUSE_MICROS_MAX))).await;
        }
    }

    fn learn(&mut self, n: usize, revision: Revision, answer: &Answer) {
        self.newest = self.newest.max(revision);
        match answer {
            Answer::Range { kvs, .. } => {
                let own = kvs.iter().find(|kv| kv.key == key(n));
                self.seen[n] = own.map_or(0, |kv| kv.mod_revision);
            }
            Answer::Put { .. }
            | Answer::Txn {
                succeeded: true, ..
            } => self.seen[n] = revision,
            Answer::DeleteRange { .. } => self.seen[n] = 0,
            Answer::Txn { answers, .. } => {
                for answer in answers {
                    self.learn(n, revision, answer);
                }
            }
            Answer::Done => {}
        }
    }

    fn value(&mut self) -> Bytes {
        self.written += 1;
        format!("{}-{}", self.number, self.written).into()
    }

    /// A random request, for key `n` or for all keys.
    fn request(&mut self, n: usize) -> Request {
        let one = Range {
            key: key(n),
            ..Range::default()
        };
        match self.random.u32(..100) {
            0..30 => Request::Put(Put {
                key: key(n),
                value: self.value(),
                prev_kv: self.random.bool(),
                ..Put::default()
            }),
            30..45 => Request::Range(one),
            45..55 => Request::Range(Range {
                serializable: true,
                ..one
            }),
            55..60 => Request::Range(Range {
                key: key(0),
                range_end: "kez".into(),
                serializable: self.random.bool(),
                ..Range::default()
            }),
            60..65 => Request::Range(Range {
                revision: (self.newest - self.random.i64(0..HISTORY)).max(1),
                ..one
            }),
            65..75 => Request::DeleteRange(DeleteRange {
                key: key(n),
                prev_kv: self.random.bool(),
                ..DeleteRange::default()
            }),
            _ => Request::Txn(self.swap(n, one)),
        }
    }

    /// Replaces the key's value if it is the one that this client knows, or else reads it.
    fn swap(&mut self, n: usize, look: Range) -> Txn {
        Txn {
            compares: vec![Compare {
                key: key(n),
                relation: Relation::Equal,
                operand: Operand::Mod(self.seen[n]),
            }],
            success: vec![TxnOp::Put(Put {
                key: key(n),
                value: self.value(),
                ..Put::default()
            })],
            failure: vec![TxnOp::Range(look)],
        }
    }
}
