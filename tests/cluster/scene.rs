//! A cluster under load, the faults injected into it, and the check of what its clients saw.

use crate::{
    client::{self, Client},
    history::{Event, Outcome, Put, Range, Replay, Request, Revision, check},
    record::Record,
    support::Cluster,
    workload::{Targets, Workload},
};
use fastrand::Rng;
use std::{env, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::Code;

/// Clients at a time.
const CLIENTS: u64 = 16;
/// Members that a test may ever have.
const MEMBERS_MAX: usize = 16;
/// Pause between two attempts to find out whether members serve again.
const PROBE: Duration = Duration::from_millis(20);
/// How long an attempt may take: a member without a leader answers once there is one.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// The longest a cluster may take to serve again.
const SERVE_MAX: Duration = Duration::from_mins(2);

/// Everything a test of faults needs.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) record: Arc<Record>,
    pub(crate) targets: Targets,
    pub(crate) random: Rng,
    name: &'static str,
    seed: u64,
    start: Instant,
    load: Option<Workload>,
    /// History that may be compacted by now.
    kept: Vec<(Revision, Vec<Event>)>,
    /// Attempts in flight. They belong to the history, whatever their outcome.
    probes: JoinSet<()>,
}

impl Scene {
    /// Puts the cluster under load once it serves.
    pub(crate) async fn begin(name: &'static str, cluster: Cluster) -> Self {
        let given = env::var("QUORATE_TEST_SEED").ok();
        let given = given.map(|seed| seed.parse().expect("QUORATE_TEST_SEED is a number"));
        let seed = given.unwrap_or_else(quorate::internals::clock::entropy);
        client::leader(&cluster.clients()).await;
        let record = Arc::new(Record::new(MEMBERS_MAX));
        let targets = Targets::new(&cluster.clients());
        let load = Workload::start(&record, &targets, CLIENTS, seed);
        let scene = Self {
            cluster,
            record,
            targets,
            random: Rng::with_seed(seed),
            name,
            seed,
            start: quorate::internals::clock::now(),
            load: Some(load),
            kept: Vec::new(),
            probes: JoinSet::new(),
        };
        scene.say(&format!("QUORATE_TEST_SEED={seed}"));
        scene
    }

    #[expect(clippy::print_stderr, reason = "a failed test shows its story")]
    pub(crate) fn say(&self, text: &str) {
        eprintln!(
            "{} {:6.2} s: {text}",
            self.name,
            self.start.elapsed().as_secs_f64()
        );
    }

    pub(crate) fn addresses(&self, members: &[usize]) -> Vec<SocketAddr> {
        let all = self.cluster.clients();
        members.iter().map(|member| all[*member]).collect()
    }

    /// The position of the leader all members follow.
    pub(crate) async fn leader(&self) -> usize {
        client::leader(&self.cluster.clients()).await
    }

    /// `kill -9`; also recorded for the checker.
    pub(crate) async fn kill(&mut self, member: usize) {
        self.cluster.members[member].kill().await;
    }

    /// Starts a member that was killed.
    pub(crate) fn restart(&mut self, member: usize) {
        self.record.starts_again(member);
        self.cluster.members[member].start();
    }

    fn put(&mut self) -> Request {
        Request::Put(Put {
            key: "probe".into(),
            value: format!("{}", self.random.u64(..)).into(),
            ..Put::default()
        })
    }

    /// The time until one of these members acknowledges a write that began after now.
    pub(crate) async fn until_served(&mut self, members: &[usize]) -> Duration {
        let start = quorate::internals::clock::now();
        let (sender, mut done) = mpsc::unbounded_channel();
        let addresses = self.cluster.clients();
        loop {
            for member in members {
                let (record, sender) = (Arc::clone(&self.record), sender.clone());
                let (member, address, request) = (*member, addresses[*member], self.put());
                self.probes.spawn(async move {
                    let Some(connection) = Client::connect(address).await else {
                        return;
                    };
                    let at = (member, &connection);
                    let (outcome, _) = record.ask(record.number(), at, request, PROBE_MAX).await;
                    if matches!(outcome, Outcome::Done { .. }) {
                        // Only the first one is waited for.
                        sender.send(start.elapsed()).unwrap_or_default();
                    }
                });
            }
            if let Ok(Some(time)) = timeout(PROBE, done.recv()).await {
                return time;
            }
            assert!(start.elapsed() < SERVE_MAX, "{members:?} do not serve");
        }
    }

    /// The revision after those that are kept.
    fn next_kept(&self) -> Revision {
        self.kept.last().map_or(1, |(at, _)| at + 1)
    }

    /// Reads history and then compacts it. Whether the compaction succeeds depends on the faults.
    #[cfg(feature = "failpoints")]
    pub(crate) async fn compact(&mut self, member: usize) {
        let Some(client) = Client::connect(self.addresses(&[member])[0]).await else {
            return;
        };
        let Ok(revision) = client.revision().await else {
            return;
        };
        let seen = client.events(self.next_kept(), revision).await;
        self.kept.extend(seen);
        // Clients that read slightly older revisions still find them.
        if let Err(status) = client.compact(revision - 100).await {
            self.say(&format!("compaction below {revision}: {status}"));
        }
    }

    /// Asserts what a minority does: it refuses writes and linearizable reads with etcd's errors, answers serializable reads.
    pub(crate) async fn refuses(&mut self, members: &[usize]) {
        let read = |serializable| {
            Request::Range(Range {
                key: "probe".into(),
                serializable,
                ..Range::default()
            })
        };
        let mut asked = JoinSet::new();
        for member in members {
            let address = self.cluster.clients()[*member];
            let requests = [
                ("write", self.put()),
                ("linearizable read", read(false)),
                ("serializable read", read(true)),
            ];
            for (what, request) in requests {
                let (record, member) = (Arc::clone(&self.record), *member);
                asked.spawn(async move {
                    let connection = Client::must_connect(address).await;
                    let (number, at) = (record.number(), (member, &connection));
                    let (outcome, status) = record.ask(number, at, request, client::PATIENCE).await;
                    (member, what, outcome, status)
                });
            }
        }
        for (member, what, outcome, status) in asked.join_all().await {
            let name = &self.cluster.members[member].name;
            let said = status.map(|status| (status.code(), status.message().to_owned()));
            self.say(&format!(
                "{name}, which is in the minority, to a {what}: {}",
                describe(&outcome, said.as_ref())
            ));
            if what == "serializable read" {
                assert!(
                    matches!(outcome, Outcome::Done { .. }),
                    "{name} answers from what it has"
                );
                continue;
            }
            // etcd: the second if it knew of no leader all the time; both begin so, with more about why.
            // etcd: the third if it was deposed while the read waited.
            let expected = [
                "etcdserver: request timed out",
                "context deadline exceeded",
                "etcdserver: leader changed",
            ];
            let (_, text) =
                said.unwrap_or_else(|| panic!("{name} serves a {what}, or says nothing"));
            assert!(
                expected.iter().any(|start| text.starts_with(start)),
                "{name}, {what}: {text}"
            );
        }
    }

    /// Lets the load run for a while.
    pub(crate) async fn pass(&self, time: Duration) {
        sleep(time).await;
    }

    /// Stops the load, waits until all members agree, and checks the history.
    pub(crate) async fn end(self) {
        let all: Vec<usize> = (0..self.cluster.members.len()).collect();
        self.end_with(&all).await;
    }

    /// The same, where these are the members that are left.
    pub(crate) async fn end_with(mut self, members: &[usize]) {
        let load = self.load.take().expect("it runs until here");
        load.stop().await;
        while let Some(ended) = self.probes.join_next().await {
            ended.expect("no probe panics");
        }
        self.judge(&self.addresses(members)).await;
    }

    /// Checks that no acknowledged write is missing, no read was stale, and every change was requested.
    async fn judge(&self, members: &[SocketAddr]) {
        let (revision, hash) = client::agreed(members).await;
        let ops = self.record.ops();
        let rest = Client::must_connect(members[0])
            .await
            .events(self.next_kept(), revision)
            .await;
        let events = self.kept.iter().cloned().chain(rest);
        let replay = Replay::new(events).unwrap_or_else(|bad| panic!("a watch received: {bad:?}"));
        let (name, seed) = (self.name, self.seed);
        match check(&ops, &replay) {
            Ok(checked) => self.say(&format!(
                "{} requests acknowledged, {} failed, {} unknown of which {} happened; {} members at revision {revision}, \
                 HashKV {hash}",
                checked.acknowledged, checked.failed, checked.unknown, checked.happened, members.len()
            )),
            Err(violations) => panic!(
                "{name}, QUORATE_TEST_SEED={seed}: {} violations, the first:\n{:#?}",
                violations.len(),
                violations.first(),
            ),
        }
    }
}

fn describe(outcome: &Outcome, said: Option<&(Code, String)>) -> String {
    match (outcome, said) {
        (Outcome::Done { revision, .. }, _) => format!("done at revision {revision}"),
        (_, Some((code, text))) => format!("{code:?} {text}"),
        (_, None) => "nothing".to_owned(),
    }
}
