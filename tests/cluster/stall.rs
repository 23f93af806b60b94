//! A disk whose syncs do not end: the leader keeps sending heartbeats, and transfers its leadership.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    snapshot::said,
    support::Cluster,
};
use serde_json::Value;
use std::{fs, path::PathBuf};
use tokio::process::Command;

/// Builds the library that stalls syncs, and lets every member run with it; returns the file that stalls each.
async fn stallable(cluster: &mut Cluster) -> Vec<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/stall.c");
    let library = cluster.folder().join("stall.so");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .args([source, "-ldl"])
        .output();
    let made = made.await.expect("cc links Rust's programs, so it is here");
    assert!(made.status.success(), "{made:?}");
    let folder = cluster.folder().to_owned();
    let mut files = Vec::new();
    for member in &mut cluster.members {
        let file = folder.join(format!("{}.stalls", member.name));
        member.env = vec![
            ("LD_PRELOAD".to_owned(), library.display().to_string()),
            ("STALL_WHILE".to_owned(), file.display().to_string()),
            // A busy machine alone must not cause an election.
            ("QUORATE_RAFT_ELECTION_MS".to_owned(), "5000".to_owned()),
        ];
        files.push(file);
    }
    files
}

#[tokio::test]
async fn a_leader_whose_disk_stalls_hands_on_its_leadership_and_comes_back() {
    let mut cluster = Cluster::new(3).await;
    let files = stallable(&mut cluster).await;
    for member in &mut cluster.members {
        member.start();
    }
    let ports = cluster.ports();
    let stuck = leader(&ports).await;
    etcdctl(&ports, &["put", "k", "before"]).await.ok();
    same_history(&ports).await;
    let term = term_at(ports[stuck]).await;

    fs::write(&files[stuck], "").expect("the file is made");
    let others: Vec<u16> = ports
        .iter()
        .copied()
        .filter(|port| *port != ports[stuck])
        .collect();
    // It waits at the stalled leader, or goes to its successor: either way the two members whose disks work acknowledge it.
    etcdctl(&others[..1], &["put", "k", "during"]).await.ok();
    leader(&others).await;
    for line in [
        "the disk stalls",
        "hands leadership to a member whose disk works",
    ] {
        said(&cluster.members[stuck], line, 1).await;
    }
    assert!(term_at(others[0]).await > term, "another election");
    let shown = eventually(
        &ports[stuck..=stuck],
        &["endpoint", "status", "-w", "json"],
        |text| text.contains("the disk stalls: a write is under way for"),
    );
    shown.await;

    fs::remove_file(&files[stuck]).expect("the file goes");
    same_history(&ports).await;
    said(&cluster.members[stuck], "the disk goes on", 1).await;
    let got = eventually(&ports[stuck..=stuck], &["get", "k"], |text| {
        text.contains("during")
    });
    assert_eq!(got.await, "k\nduring\n");
}

#[tokio::test]
async fn a_follower_whose_disk_stalls_disturbs_nobody() {
    let mut cluster = Cluster::new(3).await;
    let files = stallable(&mut cluster).await;
    for member in &mut cluster.members {
        member.start();
    }
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let stuck = (leads + 1) % 3;
    let term = term_at(ports[leads]).await;
    fs::write(&files[stuck], "").expect("the file is made");
    for n in 0..20 {
        etcdctl(&ports[leads..=leads], &["put", &format!("k{n}"), "v"])
            .await
            .ok();
    }
    eventually(
        &ports[stuck..=stuck],
        &["endpoint", "status", "-w", "json"],
        |text| text.contains("the disk stalls"),
    )
    .await;
    assert_eq!(term_at(ports[leads]).await, term, "no election");
    fs::remove_file(&files[stuck]).expect("the file goes");
    same_history(&ports).await;
    assert_eq!(leader(&ports).await, leads, "the same leader");
}

async fn term_at(port: u16) -> u64 {
    let status = etcdctl(&[port], &["endpoint", "status", "-w", "json"]).await;
    let status: Value = status.json();
    status[0]["Status"]["raftTerm"].as_u64().expect("a term")
}
