//! The same random requests about leases, locks and elections against Quorate and a real etcd: every answer, each error's code
//! and text, and every revision must agree. What may differ: the ids that a server chooses, the order of a list of leases, and
//! a few seconds of what a lease has left.
//!
//! `QUORATE_DIFF_OPS` steps from `SEED`, which a failure prints. A lock that has to wait is asked for at both, and its answers
//! are compared when its turn comes; of one that lost its lease while it waits only ours is compared, since etcd answers it
//! that it holds the lock.

mod side;
mod steps;

use crate::support::{Difference, Kind, note};
use quorate::internals::api::proto::mvccpb::KeyValue;
use side::{Answer, Side, key_of};
use std::{collections::BTreeMap, env, time::Duration};
use steps::{FIXED, Generator, InLine, Step};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tonic::Code;

const STEPS: usize = 700;
/// A run may take this many times its steps until every kind of answer has occurred.
const OVERTIME: usize = 10;
/// How long a candidate may take to answer once it is the first in the queue.
const TURN_MAX: Duration = Duration::from_secs(30);

/// A call that waits in the queue at both servers.
struct Waiting {
    step: Step,
    place: InLine,
    calls: [JoinHandle<Answer>; 2],
}

struct Pair {
    sides: [Side; 2],
    waiting: Vec<Waiting>,
    outcomes: BTreeMap<String, usize>,
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let value = text.parse();
    Some(value.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

impl Pair {
    /// The candidates in the queue of `name`, in order; both servers must agree.
    async fn line(&self, name: &'static str) -> Vec<InLine> {
        let mut found = Vec::new();
        for side in &self.sides {
            let mut keys = side.keys(&format!("{name}/")).await;
            keys.sort_by_key(|kv| kv.create_revision);
            found.push(keys);
        }
        let (ours, theirs) = (&found[0], &found[1]);
        assert_eq!(ours.len(), theirs.len(), "the line of {name:?}");
        let place = |(our, their): (&KeyValue, &KeyValue)| {
            assert_eq!(
                our.create_revision, their.create_revision,
                "the line of {name:?}"
            );
            let text = |key: &bytes::Bytes| String::from_utf8_lossy(key).into_owned();
            let lease = self.sides[0].ids.iter().position(|id| *id == our.lease);
            InLine {
                name,
                key: [text(&our.key), text(&their.key)],
                created: our.create_revision,
                // A lease that the server granted is revoked before it can be observed.
                lease: lease.expect("a lease of the test"),
            }
        };
        ours.iter().zip(theirs).map(place).collect()
    }

    /// Whether a candidate would have to wait behind others.
    async fn has_to_wait(&self, name: &'static str, lease: usize) -> bool {
        let ask = Step::TimeToLive { lease, keys: false };
        let time = self.sides[0].clone().run(&ask).await;
        let lives = matches!(time, Answer::Given { left, .. } if left[0] >= 0);
        let own = key_of(name, self.sides[0].ids[lease]);
        let line = self.line(name).await;
        lives && line.first().is_some_and(|first| first.key[0] != own)
    }

    /// Adds a candidate to the queue at both servers.
    async fn wait(&mut self, step: Step, name: &'static str, lease: usize) {
        let calls = self.sides.clone().map(|mut side| {
            let step = step.clone();
            tokio::spawn(async move { side.wait(&step).await })
        });
        let key = [0, 1].map(|at| key_of(name, self.sides[at].ids[lease]));
        let entered = async {
            loop {
                let ours = self.sides[0].has(&key[0]).await;
                let theirs = self.sides[1].has(&key[1]).await;
                if let (Some(created), Some(_)) = (ours, theirs) {
                    return created;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        let created = timeout(TURN_MAX, entered).await;
        let created = created.unwrap_or_else(|_| panic!("{step:?} does not get in line"));
        // A candidate that was in the queue before, with another value, proclaims its own first.
        sleep(Duration::from_millis(50)).await;
        let place = InLine {
            name,
            key,
            created,
            lease,
        };
        self.waiting.push(Waiting { step, place, calls });
    }

    /// Takes the answers of those whose turn has come, or whose place is gone.
    async fn settle(&mut self, context: &str) {
        let mut at = 0;
        while at < self.waiting.len() {
            let place = self.waiting[at].place.clone();
            let line = self.line(place.name).await;
            if line.iter().any(|other| other.created < place.created) {
                at += 1;
                continue;
            }
            let kept = line
                .first()
                .is_some_and(|first| first.created == place.created);
            let Waiting { step, calls, .. } = self.waiting.remove(at);
            let mut answers = Vec::new();
            for call in calls {
                let answer = timeout(TURN_MAX, call).await;
                let answer =
                    answer.unwrap_or_else(|_| panic!("{context}: {step:?} waits for ever"));
                answers.push(answer.unwrap());
            }
            if kept {
                Self::compare(&answers[0], &answers[1], &step, context);
            } else if Kind::target() == Kind::Quorate || !Difference::LostPlaceLeads.in_etcd() {
                let text = match step {
                    Step::Lock { .. } => "mutex: session is expired",
                    _ => "election: not leader",
                };
                assert_eq!(
                    answers[0],
                    Answer::Refused(Code::Unknown, text.to_owned()),
                    "{context}"
                );
            }
            *self
                .outcomes
                .entry(format!("waited, kept: {kept}"))
                .or_default() += 1;
        }
    }

    fn compare(ours: &Answer, theirs: &Answer, step: &Step, context: &str) {
        assert!(
            ours.agrees(theirs),
            "{context}: {step:?}\nours: {ours:?}\netcd: {theirs:?}"
        );
    }

    async fn step(&mut self, step: Step, context: &str) {
        match step {
            Step::Lock { name, lease } | Step::Campaign { name, lease, .. } => {
                let own =
                    |waiting: &Waiting| waiting.place.name == name && waiting.place.lease == lease;
                if self.waiting.iter().any(own) {
                    return;
                }
                if self.has_to_wait(name, lease).await {
                    return self.wait(step, name, lease).await;
                }
            }
            Step::LockAlone { name } | Step::Observe { name } => {
                let free = self.line(name).await.is_empty();
                if free != matches!(step, Step::LockAlone { .. }) {
                    return;
                }
            }
            _ => {}
        }
        let ours = self.sides[0].run(&step).await;
        let theirs = self.sides[1].run(&step).await;
        Self::compare(&ours, &theirs, &step, context);
        let words = format!("{step:?}");
        let kind = words.split([' ', '{']).next().unwrap_or_default();
        let outcome = match ours {
            Answer::Given { .. } => kind.to_owned(),
            Answer::Refused(_, text) => text,
        };
        *self.outcomes.entry(outcome).or_default() += 1;
    }

    /// One of the kinds of answers and errors that these steps can meet, and have not met yet.
    fn unseen(&self) -> Option<&'static str> {
        let all = [
            "Grant",
            "Brief",
            "Revoke",
            "TimeToLive",
            "Renew",
            "List",
            "Put",
            "Txn",
            "Delete",
            "Lock",
            "LockAlone",
            "Unlock",
            "Campaign",
            "Proclaim",
            "Resign",
            "Leader",
            "Observe",
            "waited, kept: true",
            "etcdserver: lease already exists",
            "etcdserver: too large lease TTL",
            "etcdserver: requested lease not found",
            "etcdserver: key is not provided",
            "election: no leader",
            "election: not leader",
            "\"leader\" field must be provided",
        ];
        all.into_iter()
            .find(|name| !self.outcomes.contains_key(*name))
    }
}

#[tokio::test]
async fn random_leases_locks_and_elections_get_the_answers_of_etcd() {
    let steps = setting("QUORATE_DIFF_OPS").unwrap_or(STEPS);
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    note(&format!(
        "differential test of leases: SEED={seed} QUORATE_DIFF_OPS={steps}"
    ));
    let (_ours, first) = side::start(Kind::target(), &FIXED).await;
    let (_theirs, mut second) = side::start(Kind::Etcd, &FIXED).await;
    second.second = true;
    let mut pair = Pair {
        sides: [first, second],
        waiting: Vec::new(),
        outcomes: BTreeMap::new(),
    };
    let mut generator = Generator::new(seed);
    for number in 0..steps * OVERTIME {
        // Some answers are rare: a seed without one of them goes on until it comes.
        if number >= steps && (steps < STEPS || pair.unseen().is_none()) {
            break;
        }
        let mut line = Vec::new();
        for name in Generator::names() {
            line.extend(pair.line(name).await);
        }
        let step = generator.next(pair.sides[0].ids.len(), &line);
        let context = format!("step {number} of SEED={seed}");
        pair.step(step, &context).await;
        pair.settle(&context).await;
        if number % 50 == 0 {
            let stores = [pair.sides[0].store().await, pair.sides[1].store().await];
            assert_eq!(stores[0], stores[1], "left: target, right: etcd; {context}");
        }
    }
    if steps >= STEPS {
        let unseen = pair.unseen();
        assert!(
            unseen.is_none(),
            "{unseen:?} was never seen: {:?}",
            pair.outcomes
        );
    }
    for waiting in pair.waiting {
        waiting.calls.iter().for_each(JoinHandle::abort);
    }
}
