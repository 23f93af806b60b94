//! Quorum recovery: a majority is lost for good, and one member's data becomes a cluster of its own, which grows again.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    membership::join,
    support::{Cluster, quorate},
};
use std::{fs, path::Path, process::Output};

pub(crate) async fn recover(from: &Path, into: &Path) -> Output {
    let mut run = quorate();
    run.arg("recover")
        .arg("--data-dir")
        .arg(from)
        .arg("--into")
        .arg(into);
    run.output().await.expect("the program starts")
}

#[tokio::test]
async fn one_member_goes_on_alone_with_all_it_has_and_grows_back_to_three() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    for n in 0..30 {
        etcdctl(&ports[n % 3..=n % 3], &["put", &format!("k{n}"), "v"])
            .await
            .ok();
    }
    etcdctl(&ports, &["compact", "10"]).await.ok();
    etcdctl(&ports, &["del", "k5"]).await.ok();
    same_history(&ports).await;
    let hash = hash_at(ports[0]).await;
    for member in &mut cluster.members {
        member.kill().await;
    }
    fs::remove_dir_all(cluster.members[2].data_dir()).expect("the directory goes");
    let (old, new) = (
        cluster.members[0].data_dir(),
        cluster.folder().join("alone"),
    );
    let before = cluster.members[0].log().len();

    let done = recover(&old, &new).await;
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{done:?}");
    for words in [
        "(unchanged)",
        "left out   member n2",
        "left out   member n3",
        "all of it kept",
    ] {
        assert!(text.contains(words), "{words} in {text}");
    }
    let again = recover(&old, &new).await;
    let refused = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(refused.contains("is not empty"), "{refused}");

    let own = &mut cluster.members[0];
    own.args.push(format!("--data-dir={}", new.display()));
    own.start();
    let alone = &ports[..1];
    eventually(alone, &["endpoint", "health"], |_| true).await;
    assert_eq!(hash_at(ports[0]).await, hash, "the same history");
    assert_eq!(keys(ports[0], "k").await, 29);
    let list = etcdctl(alone, &["member", "list"]).await.ok();
    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(list.contains(", n1, "), "{list}");

    // A member of the old cluster starts again.
    cluster.members[1].start();
    join(&mut cluster, "n4", alone, &[]).await;
    join(&mut cluster, "n5", alone, &[]).await;
    let ports = cluster.ports();
    let now = [ports[0], ports[3], ports[4]];
    leader(&now).await;
    for port in &now {
        // A new voter begins as a learner, which serves no writes.
        let put = ["put", &format!("after{port}"), "1"];
        eventually(&[*port], &put, |_| true).await;
    }
    same_history(&now).await;
    assert_eq!(keys(now[2], "k").await, 29);
    let logs = cluster.members[0].log()[before..].to_owned() + &cluster.members[1].log();
    assert!(logs.contains("belongs to cluster"), "{logs}");
}

#[tokio::test]
async fn what_is_no_members_data_or_in_use_is_refused() {
    let cluster = Cluster::start(1).await;
    let into = cluster.folder().join("new");
    let done = recover(&cluster.folder().join("nothing"), &into).await;
    let refused = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(refused.contains("holds no member's data"), "{refused}");
    let done = recover(&cluster.members[0].data_dir(), &into).await;
    let refused = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(
        refused.contains("is in use by another process"),
        "{refused}"
    );
    assert!(!done.status.success() && !into.exists(), "nothing is made");
}

async fn hash_at(port: u16) -> String {
    let output = eventually(&[port], &["endpoint", "hashkv", "-w", "json"], |_| true).await;
    let output: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    output[0]["HashKV"]["hash"].to_string()
}
