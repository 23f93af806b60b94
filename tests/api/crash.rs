//! Kills the server at random moments while eight writers write. After each restart every acknowledged write exists with
//! its revision, and revisions neither repeat nor decrease.

use crate::support::{Client, Server, compare, del, get, note, op_del, op_put, put, txn};
use fastrand::Rng;
use quorate::internals::api::proto::etcdserverpb::{
    RangeRequest, ResponseHeader,
    compare::{CompareResult::Greater, TargetUnion::Version},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
};
use tokio::{sync::watch, task::JoinSet};

const WRITERS: usize = 8;
const ROUNDS: usize = 24;
/// Keys of one writer: few, so that they are overwritten and deleted often.
const KEYS: usize = 6;

/// One write a writer asks for: what its keys hold once it has taken effect.
#[derive(Clone, Debug)]
struct Write {
    /// Key → value, `None` for a deletion. A transaction has several.
    changes: BTreeMap<String, Option<String>>,
}

/// What one writer expects of its own keys.
#[derive(Debug)]
struct Writer {
    number: usize,
    random: Rng,
    sequence: u64,
    /// Acknowledged state of each key that exists: its value, and the revision that wrote it.
    state: BTreeMap<String, (String, i64)>,
    /// Acknowledged writes and their revisions, the oldest first.
    acknowledged: Vec<(Write, i64)>,
    /// The write without an answer, which may or may not have taken effect.
    unanswered: Option<Write>,
}

impl Writer {
    fn new(number: usize, seed: u64) -> Self {
        Self {
            number,
            random: Rng::with_seed(seed.wrapping_add(number as u64)),
            sequence: 0,
            state: BTreeMap::new(),
            acknowledged: Vec::new(),
            unanswered: None,
        }
    }

    fn key(&self, number: usize) -> String {
        format!("w{}/{number}", self.number)
    }

    fn next(&mut self) -> Write {
        self.sequence += 1;
        let value = Some(format!("{}#{}", self.number, self.sequence));
        let key = self.random.usize(..KEYS);
        let mut changes = BTreeMap::new();
        match self.random.u8(..10) {
            0 | 1 => {
                changes.insert(self.key(key), None);
            }
            2 | 3 => {
                changes.insert(self.key(key), value.clone());
                changes.insert(self.key((key + 1) % KEYS), value);
                changes.insert(self.key((key + 2) % KEYS), None);
            }
            _ => {
                changes.insert(self.key(key), value);
            }
        }
        Write { changes }
    }

    /// Writes until the server is gone, and counts what was acknowledged.
    async fn write(&mut self, client: &Client, count: &watch::Sender<u64>) {
        loop {
            let write = self.next();
            let effective = write
                .changes
                .iter()
                .any(|(key, value)| value.is_some() || self.state.contains_key(key));
            let Some(header) = send(client, &write).await else {
                self.unanswered = Some(write);
                return;
            };
            if effective {
                self.apply(&write, header.revision);
                self.acknowledged.push((write, header.revision));
            }
            count.send_modify(|count| *count += 1);
        }
    }

    fn apply(&mut self, write: &Write, revision: i64) {
        for (key, value) in &write.changes {
            match value {
                Some(value) => self.state.insert(key.clone(), (value.clone(), revision)),
                None => self.state.remove(key),
            };
        }
    }

    /// Compares the writer's keys with the server's, after a restart.
    async fn check(&mut self, client: &Client, revisions: &mut BTreeSet<i64>) {
        let actual = self.read(client, 0).await;
        if actual != self.state {
            self.settle(&actual, revisions);
        }
        self.unanswered = None;
        for (write, revision) in std::mem::take(&mut self.acknowledged) {
            assert!(
                revisions.insert(revision),
                "revision {revision} twice, now for {write:?}"
            );
            let then = self.read(client, revision).await;
            for (key, value) in &write.changes {
                let expected = value.as_ref().map(|value| (value.clone(), revision));
                assert_eq!(
                    then.get(key),
                    expected.as_ref(),
                    "{key} at {revision}, from {write:?}"
                );
            }
        }
    }

    /// Accepts one difference: the unanswered write took effect, completely and in one revision.
    fn settle(&mut self, actual: &BTreeMap<String, (String, i64)>, revisions: &mut BTreeSet<i64>) {
        let expected = self.state.clone();
        let Some(write) = self.unanswered.take() else {
            panic!("lost or invented: acknowledged {expected:?}, found {actual:?}");
        };
        let written = write.changes.iter().filter(|(_, value)| value.is_some());
        let found: BTreeSet<i64> = written
            .filter_map(|(key, _)| actual.get(key).map(|(_, revision)| *revision))
            .collect();
        assert!(
            found.len() <= 1,
            "half of a transaction: {write:?} in {actual:?}"
        );
        self.apply(&write, found.first().copied().unwrap_or_default());
        assert_eq!(
            self.state, *actual,
            "acknowledged {expected:?}, unanswered {write:?}"
        );
        if let Some(revision) = found.first() {
            assert!(
                revisions.insert(*revision),
                "revision {revision} twice, now for {write:?}"
            );
        }
    }

    async fn read(&self, client: &Client, revision: i64) -> BTreeMap<String, (String, i64)> {
        let mine = get(format!("w{}/", self.number));
        let request = RangeRequest {
            range_end: format!("w{}0", self.number).into(),
            revision,
            ..mine
        };
        let answer = client.range(request).await.expect("history is kept");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        answer
            .kvs
            .iter()
            .map(|kv| (text(&kv.key), (text(&kv.value), kv.mod_revision)))
            .collect()
    }
}

/// The header of the answer, or `None` if none came.
async fn send(client: &Client, write: &Write) -> Option<ResponseHeader> {
    let mut changes = write.changes.iter();
    if let (Some((key, value)), None) = (changes.next(), changes.next()) {
        return match value {
            Some(value) => {
                client
                    .put(put(key.clone(), value.clone()))
                    .await
                    .ok()?
                    .header
            }
            None => client.delete(del(key.clone())).await.ok()?.header,
        };
    }
    let operations = write.changes.iter().map(|(key, value)| match value {
        Some(value) => op_put(put(key.clone(), value.clone())),
        None => op_del(del(key.clone())),
    });
    // A comparison that holds, so that the whole path of a transaction runs.
    let always = compare("never/written", Greater, Version(-1));
    client
        .txn(txn(vec![always], operations.collect(), vec![]))
        .await
        .ok()?
        .header
}

/// Lets all writers write, and kills the server once they have `target` acknowledgements together.
async fn round(server: &mut Server, writers: Vec<Writer>, target: u64) -> Vec<Writer> {
    let (count, mut counted) = watch::channel(0);
    let mut tasks = JoinSet::new();
    for mut writer in writers {
        let client = server.client().await;
        let count = count.clone();
        tasks.spawn(async move {
            writer.write(&client, &count).await;
            writer
        });
    }
    counted
        .wait_for(|count| *count >= target)
        .await
        .expect("writers are at work");
    server.kill().await;
    let mut writers = tasks.join_all().await;
    writers.sort_by_key(|writer| writer.number);
    writers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9_at_random_moments() {
    let seed = env::var("SEED").map_or_else(
        |_| fastrand::u64(..),
        |text| text.parse().expect("SEED is a number"),
    );
    let rounds = env::var("QUORATE_CRASH_ROUNDS").map_or(ROUNDS, |text| {
        text.parse().expect("QUORATE_CRASH_ROUNDS is a number")
    });
    note(&format!("crash test: SEED={seed}, {rounds} rounds"));
    let mut random = Rng::with_seed(seed);
    let mut server = Server::start().await;
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|number| Writer::new(number, seed))
        .collect();
    let mut revisions = BTreeSet::new();
    let mut highest = 1;
    for _ in 0..rounds {
        writers = round(&mut server, writers, random.u64(1..400)).await;
        let acknowledged = writers.iter().flat_map(|writer| &writer.acknowledged);
        let (mut lowest_new, mut highest_new) = (i64::MAX, highest);
        for (_, revision) in acknowledged {
            lowest_new = lowest_new.min(*revision);
            highest_new = highest_new.max(*revision);
        }
        assert!(
            lowest_new > highest,
            "revision {lowest_new} after {highest} was seen: SEED={seed}"
        );
        server.restart().await;
        let client = server.client().await;
        let current = client.revision().await;
        assert!(
            current >= highest_new,
            "{highest_new} went back to {current}: SEED={seed}"
        );
        highest = current;
        for writer in &mut writers {
            writer.check(&client, &mut revisions).await;
        }
    }
    let last = revisions.last().copied().unwrap_or_default();
    assert!(last <= highest, "{last} is beyond the store's {highest}");
}
