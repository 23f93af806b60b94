//! HashKV, byte for byte: after the same writes and compactions every member gives the hash that a real etcd gives.

use crate::{
    ctl::{etcdctl, eventually, same_history},
    etcd::Etcd,
    support::Cluster,
};
use serde_json::Value;
use std::time::Duration;
use tokio::time::sleep;

/// How often members are asked for a hash that they make soon, and how many times before it counts as missing.
const POLL: Duration = Duration::from_millis(20);
const LOOKS_MAX: usize = 1_500;

/// Hash and compacted revision at the revision asked for (0: the newest), of each member.
pub(crate) async fn hashes(ports: &[u16], revision: u64) -> Vec<(u64, i64)> {
    let revision = format!("--rev={revision}");
    let args = ["endpoint", "hashkv", "--cluster", "-w", "json", &revision];
    let output = eventually(ports, &args, |_| true).await;
    let output: Value = serde_json::from_str(&output).expect("JSON");
    let of = |member: &Value| {
        let hash = &member["HashKV"];
        let hashed = hash["hash"].as_u64().expect("a hash");
        (hashed, hash["compact_revision"].as_i64().unwrap_or(0))
    };
    output.as_array().expect("a list").iter().map(of).collect()
}

/// As [`hashes`] at a compacted revision, once each member has carried out the compaction, which followed that at `previous`.
async fn hashes_of_compaction(ports: &[u16], revision: u64, previous: i64) -> Vec<(u64, i64)> {
    let mut found = Vec::new();
    for _ in 0..LOOKS_MAX {
        found = hashes(ports, revision).await;
        if found.iter().all(|(_, compacted)| *compacted == previous) {
            return found;
        }
        sleep(POLL).await;
    }
    panic!("no hash of the compaction at {revision} that followed {previous}: {found:?}");
}

#[tokio::test]
async fn members_and_a_real_etcd_have_the_same_hash_after_the_same_history() {
    let mut etcd = Etcd::start(1);
    let theirs = etcd.ports()[0];
    let mut cluster = Cluster::start(3).await;
    let ours = cluster.ports();
    eventually(&[theirs], &["endpoint", "health"], |_| true).await;
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ours, &["member", "list"], all).await;

    let steps: [&[&[&str]]; 4] = [
        &[&["put", "a", "1"], &["put", "b", "2"], &["put", "a", "3"]],
        &[
            &["del", "b"],
            &["put", "dir/1", "x"],
            &["put", "dir/2", ""],
            &["put", "b", "again"],
        ],
        &[
            &["compact", "5"],
            &["del", "dir/", "--prefix"],
            &["put", "a", "4"],
        ],
        &[&["put", "z", "last"], &["compact", "10"], &["del", "z"]],
    ];
    for (n, step) in steps.into_iter().enumerate() {
        for args in step {
            etcdctl(&[theirs], args).await.ok();
            etcdctl(&ours[n % 3..=n % 3], args).await.ok();
        }
        same_history(&ours).await;
        let expected = hashes(&[theirs], 0).await[0];
        assert_eq!(hashes(&ours, 0).await, [expected; 3], "after step {n}");
    }
    // At the revisions of compactions, with the hashes that were made while they ran.
    for (revision, previous) in [(5, -1), (10, 5)] {
        let expected = hashes_of_compaction(&[theirs], revision, previous).await[0];
        let answered = hashes_of_compaction(&ours, revision, previous).await;
        assert_eq!(answered, [expected; 3], "the compaction at {revision}");
    }
    // In the past, and at the compacted revision. After a restart these hashes are forgotten.
    etcd.kill(0).await;
    etcd.start_member(0);
    for member in &mut cluster.members {
        member.kill().await;
        member.start();
    }
    same_history(&ours).await;
    for revision in [10, 11] {
        let expected = hashes(&[theirs], revision).await[0];
        let answered = hashes(&ours, revision).await;
        assert_eq!(answered, [expected; 3], "at revision {revision}");
        assert_eq!(expected.1, 10, "compacted");
    }
}
