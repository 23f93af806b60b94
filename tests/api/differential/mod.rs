//! The same random operations against Quorate and a real etcd: every field of every answer, every error's code and
//! text, and every revision must agree. See [`normalise`] for the few things that may differ.
//!
//! `QUORATE_DIFF_OPS` operations from `SEED`, which a failure prints. Half-way both are stopped and started again.

mod generate;
mod normalise;
mod watch;

use crate::support::{Client, Difference, Kind, Outcome, Server, get_range, note};
use generate::{Generator, Operation};
use normalise::Answer;
use quorate::internals::api::proto::etcdserverpb::{RangeRequest, ResponseHeader};
use rustix::process::Signal;
use std::{collections::BTreeMap, env};
use tonic::Code;

const OPERATIONS: usize = 4_000;

async fn run(client: &Client, operation: &Operation) -> Answer {
    fn answer<T>(outcome: Outcome<T>, wrap: impl FnOnce(T) -> Answer) -> Answer {
        outcome.map_or_else(
            |status| Answer::Refused(status.code(), status.message().to_owned()),
            wrap,
        )
    }
    let raw = match operation {
        Operation::Range(request) => answer(client.range(request.clone()).await, Answer::Range),
        Operation::Put(request) => answer(client.put(request.clone()).await, Answer::Put),
        Operation::Delete(request) => answer(client.delete(request.clone()).await, Answer::Delete),
        Operation::Txn(request) => answer(client.txn(request.clone()).await, Answer::Txn),
        Operation::Compact(request) => answer(client.compact_with(*request).await, Answer::Compact),
    };
    raw.normalised(operation)
}

/// Two servers that get the same operations one by one.
struct Pair {
    servers: [Server; 2],
    clients: [Client; 2],
}

impl Pair {
    async fn start() -> Self {
        let servers = [
            Server::start_kind(Kind::target()).await,
            Server::start_kind(Kind::Etcd).await,
        ];
        let clients = [servers[0].client().await, servers[1].client().await];
        Self { servers, clients }
    }

    /// Kills Quorate and stops etcd. `kill -9` is not used for etcd: 3.4 sometimes applies writes a second time after it, and
    /// then its answers cannot be compared with.
    async fn restart(&mut self) {
        for (server, client) in self.servers.iter_mut().zip(&mut self.clients) {
            match server.kind() {
                Kind::Quorate => server.kill().await,
                Kind::Etcd => {
                    server.signal(Signal::TERM);
                    server.stopped().await;
                }
            }
            server.restart().await;
            *client = server.client().await;
        }
    }

    /// The answer of both servers. A failure prints `context`, which names the operation.
    async fn agree(&self, operation: &Operation, context: &str) -> Answer {
        let ours = run(&self.clients[0], operation).await;
        let theirs = run(&self.clients[1], operation).await;
        let in_another_order = || {
            matches!(operation, Operation::Txn(_))
                && ours.refused_in_another_order(&theirs)
                && Difference::TxnChecks.in_etcd()
        };
        let same = ours == theirs || in_another_order();
        assert!(
            same,
            "{context}: {operation:#?}\nours: {ours:#?}\netcd: {theirs:#?}"
        );
        ours
    }
}

/// How often each outcome occurred: proof that the test covers them.
#[derive(Debug, Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    fn add(&mut self, answer: &Answer) {
        let name = match answer {
            Answer::Refused(code, text) => {
                assert!(
                    !matches!(code, Code::Unavailable | Code::Unknown),
                    "{code:?} {text}"
                );
                text.clone()
            }
            Answer::Range(_) => "range".to_owned(),
            Answer::Put(_) => "put".to_owned(),
            Answer::Delete(_) => "delete".to_owned(),
            Answer::Txn(_) => "txn".to_owned(),
            Answer::Compact(_) => "compact".to_owned(),
        };
        *self.0.entry(name).or_default() += 1;
    }

    /// Every kind of answer and each error that these operations can meet.
    fn check(&self) {
        for name in [
            "range",
            "put",
            "delete",
            "txn",
            "compact",
            "etcdserver: key is not provided",
            "etcdserver: key not found",
            "etcdserver: value is provided",
            "etcdserver: lease is provided",
            "etcdserver: requested lease not found",
            "etcdserver: duplicate key given in txn request",
            "etcdserver: mvcc: required revision has been compacted",
            "etcdserver: mvcc: required revision is a future revision",
        ] {
            assert!(
                self.0.contains_key(name),
                "`{name}` was never seen: {:?}",
                self.0
            );
        }
    }
}

fn setting<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[tokio::test]
async fn random_operations_get_the_answers_of_etcd() {
    let operations = setting("QUORATE_DIFF_OPS").unwrap_or(OPERATIONS);
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    note(&format!(
        "differential test: SEED={seed} QUORATE_DIFF_OPS={operations}"
    ));
    let mut pair = Pair::start().await;
    let mut generator = Generator::new(seed);
    let mut outcomes = Seen::default();
    for number in 0..operations {
        if number == operations / 2 {
            pair.restart().await;
        }
        let operation = generator.next();
        let context = format!("operation {number} of SEED={seed}");
        let answer = pair.agree(&operation, &context).await;
        if let Some(ResponseHeader { revision, .. }) = answer.header() {
            generator.learn(&operation, revision);
        }
        outcomes.add(&answer);
    }
    if operations >= OPERATIONS {
        outcomes.check();
    }
    history_agrees(&pair, &generator, seed).await;
}

/// All keys at every revision that can still be read.
async fn history_agrees(pair: &Pair, generator: &Generator, seed: u64) {
    for revision in generator.readable() {
        let request = RangeRequest {
            revision,
            ..get_range("\0", "\0")
        };
        pair.agree(&Operation::Range(request), &format!("history, SEED={seed}"))
            .await;
    }
}
