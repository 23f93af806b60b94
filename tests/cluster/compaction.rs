//! A member that dies in the middle of a compaction comes back with the whole history, or knows that it is compacted.
//!
//! Compiled with the feature `failpoints`, which the members then have too.

use crate::{
    clients::{Clients, PATIENCE},
    ctl::{etcdctl, eventually, leader},
    support::Cluster,
};
use quorate::internals::{api::proto::etcdserverpb as pb, failpoint::FailPoint};
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;
use tonic::Status;

const KEYS: usize = 50;
const ROUNDS: usize = 3;
/// Bytes of a value: with them the size of the database shows how many records it holds.
const VALUE_BYTES: usize = 1_000;

#[tokio::test]
async fn a_member_that_dies_in_a_compaction_has_the_whole_history_or_says_that_it_is_compacted() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        // The database takes all writes first, so the commit of the compaction after them has nothing else in it.
        let records = (KEYS * ROUNDS).to_string();
        member.set("QUORATE_STORAGE_COMMIT_RECORDS_MAX", &records);
        member.set("QUORATE_STORAGE_COMMIT_INTERVAL_MS", "60000");
        member.set(
            "FAILPOINTS",
            &format!("{}=return", FailPoint::AfterCompactStep.name()),
        );
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    let value = "v".repeat(VALUE_BYTES);
    for _ in 0..ROUNDS {
        for key in 0..KEYS {
            eventually(&ports, &["put", &format!("k/{key:02}"), &value], |_| true).await;
        }
    }
    for port in &ports {
        let stored = |text: &str| {
            let found: serde_json::Value = serde_json::from_str(text).expect("JSON");
            let bytes = found[0]["Status"]["dbSizeInUse"].as_u64();
            bytes.is_some_and(|bytes| bytes >= (KEYS * ROUNDS * VALUE_BYTES) as u64)
        };
        eventually(&[*port], &["endpoint", "status", "-w", "json"], stored).await;
    }
    let newest = newest_revision(ports[0]).await;
    let (compacted, before) = ((newest - 2).to_string(), (newest - 3).to_string());
    // It may get an answer or not: the member that answers dies as well.
    drop(etcdctl(&ports, &["compaction", &compacted]).await);
    for member in &mut cluster.members {
        member.stopped().await;
        member.unset("FAILPOINTS");
    }

    // Without the others it has nothing but its own disk.
    cluster.members[0].start();
    let watching = tokio::spawn(watched(ports[0], newest));
    let args = [
        "get",
        "k/",
        "--prefix",
        "--keys-only",
        "--consistency=s",
        "--rev",
        &before,
    ];
    let mut answer = etcdctl(&ports[..1], &args).await;
    let start = quorate::internals::clock::now();
    while !answer.good && !answer.stderr.contains("compacted") {
        assert!(start.elapsed().as_secs() < 60, "{answer:?}");
        answer = etcdctl(&ports[..1], &args).await;
    }
    if answer.good {
        let keys = answer.stdout.lines().filter(|line| !line.is_empty());
        assert_eq!(keys.count(), KEYS, "of {KEYS} keys at revision {before}");
    }
    let now = ["get", "k/", "--prefix", "--keys-only", "--consistency=s"];
    let all = etcdctl(&ports[..1], &now).await.ok();
    assert_eq!(all.lines().filter(|line| !line.is_empty()).count(), KEYS);
    let (revisions, compacted) = watching.await.expect("no panic");
    let written: Vec<u64> = (2..=newest).collect();
    assert!(written.starts_with(&revisions), "a gap: {revisions:?}");
    if revisions != written {
        assert_eq!(compacted, Some(newest - 2), "why the watch ended early");
    }
}

/// The revisions of the events that a watch from the first write on receives, and the compaction that ended it, if one did.
type Watched = (Vec<u64>, Option<u64>);

/// Watches from the first write on, as soon as the member answers.
async fn watched(port: u16, newest: u64) -> Watched {
    let start = quorate::internals::clock::now();
    loop {
        match watch_once(port, newest).await {
            Ok(watched) => return watched,
            Err(status) => assert!(start.elapsed() < PATIENCE, "{status}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

async fn watch_once(port: u16, newest: u64) -> Result<Watched, Status> {
    let create = pb::WatchCreateRequest {
        key: "k/".into(),
        range_end: "k0".into(),
        start_revision: 2,
        ..pb::WatchCreateRequest::default()
    };
    let create = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    };
    let requests = tokio_stream::iter([create]).chain(tokio_stream::pending());
    let mut watch = Clients::of(port).watch;
    let mut answers = watch.watch(requests).await?.into_inner();
    let mut revisions = Vec::new();
    while revisions.last() != Some(&newest) {
        let next = timeout(PATIENCE, answers.message()).await;
        let answer = next.expect("events or a refusal")?;
        let answer = answer.ok_or_else(|| Status::unavailable("it ended"))?;
        if answer.canceled {
            let compacted = u64::try_from(answer.compact_revision);
            return Ok((revisions, compacted.ok()));
        }
        let kvs = answer.events.iter().filter_map(|event| event.kv.as_ref());
        revisions.extend(kvs.map(|kv| u64::try_from(kv.mod_revision).unwrap_or_default()));
    }
    Ok((revisions, None))
}

async fn newest_revision(port: u16) -> u64 {
    let status = &crate::ctl::statuses(&[port]).await[0];
    let revision = status["header"]["revision"].as_u64();
    revision.expect("every status has a revision")
}
