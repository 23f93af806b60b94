//! HashKV, byte for byte: after the same writes and compactions every member tells what a real etcd tells.

use crate::ctl::{etcdctl, eventually, same_history};
use crate::support::{Cluster, free_port};
use crate::tools;
use serde_json::Value;
use std::env;
use std::process::Stdio;
use tokio::process::{Child, Command};

/// A real etcd of one member, and its client port.
fn etcd(data: &std::path::Path) -> (Child, u16) {
    let (client, peer) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let mut command = Command::new(tools::etcd());
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    let child = command
        .arg("--data-dir")
        .arg(data)
        .arg(format!("--listen-client-urls={}", url(client)))
        .arg(format!("--advertise-client-urls={}", url(client)))
        .arg(format!("--listen-peer-urls={}", url(peer)))
        .arg(format!("--initial-advertise-peer-urls={}", url(peer)))
        .arg(format!("--initial-cluster=default={}", url(peer)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    (child.expect("etcd starts"), client)
}

/// Hash and compacted revision at the revision asked for (0: the newest), of each member.
async fn hashes(ports: &[u16], revision: u64) -> Vec<(u64, i64)> {
    let revision = format!("--rev={revision}");
    let args = ["endpoint", "hashkv", "--cluster", "-w", "json", &revision];
    let told = eventually(ports, &args, |_| true).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let of = |member: &Value| {
        let hash = &member["HashKV"];
        let hashed = hash["hash"].as_u64().expect("a hash");
        (hashed, hash["compact_revision"].as_i64().unwrap_or(0))
    };
    told.as_array().expect("a list").iter().map(of).collect()
}

#[tokio::test]
async fn members_and_a_real_etcd_have_the_same_hash_after_the_same_history() {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (_etcd, theirs) = etcd(data.path());
    let cluster = Cluster::start(3).await;
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
    // In the past, but not at the compacted revision itself, where versions of etcd differ.
    let expected = hashes(&[theirs], 11).await[0];
    assert_eq!(hashes(&ours, 11).await, [expected; 3], "at revision 11");
    assert_eq!(expected.1, 10, "compacted");
}
