//! A member that dies in the middle of a compaction comes back with the whole history, or knows that it is compacted.
//!
//! Compiled with the feature `failpoints`, which the members then have too.

use crate::{
    ctl::{etcdctl, eventually, leader},
    support::Cluster,
};
use quorate::internals::failpoint::FailPoint;

const KEYS: usize = 50;
const ROUNDS: usize = 3;
/// Bytes of a value: with them the size of the database shows how many records it holds.
const VALUE_BYTES: usize = 1_000;

#[tokio::test]
async fn a_member_that_dies_in_a_compaction_answers_old_reads_whole_or_not_at_all() {
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
}

async fn newest_revision(port: u16) -> u64 {
    let status = &crate::ctl::statuses(&[port]).await[0];
    let revision = status["header"]["revision"].as_u64();
    revision.expect("every status has a revision")
}
