//! A node inside this process: its messages, its restarts, and what it does when its disk fails or loses power.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use actix::{System, SystemRunner};
use quorate::{
    Config, LocalNode, Node,
    internals::{
        actors::{
            fail_stop::FailStop,
            requests::RequestError,
            store::{CompactHistory, DeleteKeys, PutKey, ReadRange, RunTxn},
        },
        config::EncryptionKey,
        kv::{
            KvError,
            command::{DeleteRange, Put, RangeQuery, Txn, TxnOp},
            record::KeyValue,
        },
        storage::{
            disk::Disk,
            sim_disk::{Fault, SimDisk},
        },
        types::Revision,
    },
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::sync::oneshot;

fn put(key: &str, value: &str) -> Put {
    Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Put::default()
    }
}

fn prefix(from: &str, to: &str) -> RangeQuery {
    RangeQuery {
        key: from.to_owned().into(),
        range_end: to.to_owned().into(),
        ..RangeQuery::default()
    }
}

fn config_in(dir: &tempfile::TempDir) -> Config {
    let mut config = Config {
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    // Small segments, since each member writes some in advance.
    config.storage.wal_segment_bytes = 4 << 20;
    config
}

/// A system whose clock stands still unless everybody waits for it.
fn paused_system() -> SystemRunner {
    System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    })
}

#[actix::test]
async fn the_store_answers_messages_with_the_guarantees_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(&config_in(&dir)).unwrap();
    let store = node.store();
    let done = store.send(PutKey(put("a", "1"))).await.unwrap().unwrap();
    assert_eq!(done.revision, Revision(2), "the first write of a store");
    let txn = Txn {
        success: vec![TxnOp::Put(put("a", "2")), TxnOp::Put(put("b", "1"))],
        ..Txn::default()
    };
    let done = store.send(RunTxn(txn)).await.unwrap().unwrap();
    assert_eq!(done.revision, Revision(3), "one revision for both puts");
    let delete = DeleteRange {
        key: "b".into(),
        ..DeleteRange::default()
    };
    let done = store.send(DeleteKeys(delete)).await.unwrap().unwrap();
    assert_eq!((done.deleted, done.revision), (1, Revision(4)));
    let read = store
        .send(ReadRange(prefix("a", "z")))
        .await
        .unwrap()
        .unwrap();
    let kv = KeyValue::decode(&read.kvs[0]).unwrap();
    assert_eq!(
        (read.count, kv.value.as_ref(), kv.version),
        (1, b"2".as_ref(), 2)
    );
    let compact = CompactHistory {
        revision: Revision(4),
        physical: true,
    };
    assert_eq!(store.send(compact).await.unwrap().unwrap(), Revision(4));
    let old = RangeQuery {
        revision: 2,
        ..prefix("a", "z")
    };
    let refused = store.send(ReadRange(old)).await.unwrap();
    assert!(
        matches!(refused, Err(RequestError::Kv(KvError::Compacted { .. }))),
        "{refused:?}"
    );
    let refused = store.send(PutKey(put("", "x"))).await.unwrap();
    assert!(
        matches!(refused, Err(RequestError::Kv(KvError::EmptyKey))),
        "{refused:?}"
    );
    node.stop().await;
}

#[tokio::test]
async fn a_restarted_node_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let config = config_in(&dir);
    let node = Node::start(&config).unwrap();
    for n in 0..500 {
        let done = node.requests().put(put(&format!("k{}", n % 10), "v")).await;
        assert_eq!(done.unwrap().revision, Revision(n + 2));
    }
    let before = node.requests().range(prefix("k", "l")).await.unwrap();
    let identity = node.identity();
    node.stop().await;
    let node = Node::start(&config).unwrap();
    assert_eq!(node.identity(), identity);
    assert_eq!(
        node.requests().range(prefix("k", "l")).await.unwrap(),
        before
    );
    let done = node.requests().put(put("k", "after")).await.unwrap();
    assert_eq!(done.revision, Revision(502), "revisions go on");
    node.stop().await;
}

#[test]
fn a_failed_disk_stops_the_member_and_nothing_is_acknowledged_after() {
    fail_disks(&Config::default(), 1..60);
}

#[test]
fn a_failed_disk_stops_an_encrypted_member_too() {
    let dir = tempfile::tempdir().unwrap();
    fail_disks(&encrypted(&dir), (1..60).step_by(3));
}

/// A member alone with encryption, whose key is in `dir`.
fn encrypted(dir: &tempfile::TempDir) -> Config {
    let key = dir.path().join("key");
    std::fs::write(&key, "5a".repeat(32)).unwrap();
    let mut config = Config::default();
    config.encryption.key = Some(EncryptionKey::File(key));
    config
}

fn fail_disks(config: &Config, operations: impl Iterator<Item = u64>) {
    for nth in operations {
        let disk = Arc::new(SimDisk::new(nth));
        let fault = if nth % 2 == 0 {
            Fault::Io
        } else {
            Fault::NoSpace
        };
        let (stopped, reason) = oneshot::channel::<String>();
        let stopped = Mutex::new(Some(stopped));
        let fail_stop = FailStop::new(move |reason| {
            if let Some(stopped) = stopped.lock().unwrap().take() {
                stopped.send(reason.to_owned()).unwrap_or_default();
            }
        });
        let shared: Arc<dyn Disk> = disk.clone();
        let acknowledged = paused_system().block_on(async move {
            let node = LocalNode::start(config, &shared, &fail_stop).unwrap();
            node.requests().put(put("first", "1")).await.unwrap();
            disk.fail_nth(nth, fault);
            let acknowledged = Arc::new(AtomicUsize::new(1));
            let (requests, count) = (node.requests().clone(), acknowledged.clone());
            actix::spawn(async move {
                while requests.put(put("k", "v")).await.is_ok() {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
            let reason = reason.await.unwrap();
            assert!(reason.starts_with("cannot "), "operation {nth}: {reason}");
            disk.kill_process();
            let acknowledged = acknowledged.load(Ordering::Relaxed);
            (acknowledged, shared)
        });
        let (acknowledged, shared) = acknowledged;
        paused_system().block_on(async move {
            let fail_stop = FailStop::new(|reason| panic!("the disk is well again: {reason}"));
            let node = LocalNode::start(config, &shared, &fail_stop).unwrap();
            let read = node.requests().range(prefix("a", "z")).await.unwrap();
            let acknowledged = i64::try_from(acknowledged).unwrap();
            assert!(
                read.revision.0 > acknowledged,
                "operation {nth}: {acknowledged} writes were acknowledged, the store is at {}",
                read.revision
            );
        });
    }
}

/// Writers during one run of a member: the acknowledged revisions, by key.
async fn write_until(
    node: &LocalNode,
    life: u64,
    writes: usize,
) -> BTreeMap<String, (String, i64)> {
    let acknowledged = Arc::new(Mutex::new(BTreeMap::new()));
    let enough = Arc::new(tokio::sync::Notify::new());
    for writer in 0..8 {
        let requests = node.requests().clone();
        let (acknowledged, enough) = (acknowledged.clone(), enough.clone());
        actix::spawn(async move {
            for n in 0.. {
                let (key, value) = (format!("w{writer}-{}", n % 7), format!("{life}.{n}"));
                let Ok(done) = requests.put(put(&key, &value)).await else {
                    return;
                };
                let mut all = acknowledged.lock().unwrap();
                all.insert(key, (value, done.revision.0));
                drop(all);
                if n >= writes {
                    enough.notify_one();
                }
            }
        });
    }
    enough.notified().await;
    let all = acknowledged.lock().unwrap();
    all.clone()
}

/// Asserts that acknowledged writes exist, at their revision or a later one: a write in flight at the crash may have happened
/// too.
async fn check(node: &LocalNode, acknowledged: &BTreeMap<String, (String, i64)>) -> i64 {
    let read = node.requests().range(prefix("w", "x")).await.unwrap();
    let found: BTreeMap<String, KeyValue> = read
        .kvs
        .iter()
        .map(|kv| KeyValue::decode(kv).unwrap())
        .map(|kv| (String::from_utf8(kv.key.to_vec()).unwrap(), kv))
        .collect();
    for (key, (value, revision)) in acknowledged {
        let kv = &found[key];
        let same = kv.mod_revision.0 == *revision && kv.value.as_ref() == value.as_bytes();
        assert!(
            same || kv.mod_revision.0 > *revision,
            "{key}={value} was acknowledged at {revision}, found {kv:?}"
        );
    }
    read.revision.0
}

#[test]
fn acknowledged_writes_survive_a_loss_of_power() {
    lose_power(&Config::default(), 0..12);
}

#[test]
fn acknowledged_writes_of_an_encrypted_member_survive_a_loss_of_power() {
    let dir = tempfile::tempdir().unwrap();
    lose_power(&encrypted(&dir), 0..6);
}

fn lose_power(config: &Config, seeds: std::ops::Range<u64>) {
    let seeds = std::env::var("SEED").map_or(seeds, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    for seed in seeds {
        let disk = Arc::new(SimDisk::new(seed));
        let mut acknowledged = BTreeMap::new();
        let mut newest = 1;
        for life in 0..6 {
            let shared: Arc<dyn Disk> = disk.clone();
            let before = acknowledged.clone();
            let (now, revision) = paused_system().block_on(async move {
                let fail_stop = FailStop::new(|reason| panic!("{reason}"));
                let node = LocalNode::start(config, &shared, &fail_stop)
                    .unwrap_or_else(|error| panic!("SEED={seed}, life {life}: {error}"));
                let revision = check(&node, &before).await;
                let writes = usize::try_from(seed * 31 + life * 57).unwrap() % 150 + 10;
                (write_until(&node, life, writes).await, revision)
            });
            assert!(
                revision >= newest,
                "SEED={seed}, life {life}: the revision went back"
            );
            newest = now.values().map(|(_, revision)| *revision).max().unwrap();
            assert!(
                now.values().all(|(_, given)| *given > revision),
                "SEED={seed}, life {life}: a revision was given twice"
            );
            acknowledged.extend(now);
            disk.crash();
        }
    }
}
