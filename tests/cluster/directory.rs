//! Data directories of real processes that were killed in the middle of a change, and directories that are not a member's.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    quorum_recovery::recover,
    snapshot::fill,
    support::{Cluster, quorate},
};
use std::{fs, os::unix::process::ExitStatusExt as _, path::Path};

#[tokio::test]
async fn an_interrupted_quorum_recovery_is_refused_and_can_be_run_again() {
    let mut cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    fill(&ports, "k/", 300).await;
    cluster.members[0].kill().await;
    let old = cluster.members[0].data_dir();
    let new = cluster.folder().join("new");
    // What a killed command leaves behind: at a random moment, and at each of its steps.
    if interrupt(&old, &new, None).await {
        refuses(&mut cluster, &new).await;
    }
    #[cfg(feature = "failpoints")]
    for point in [
        "after-unfinished-mark",
        "after-recovery-copy",
        "before-recovery-end",
    ] {
        let killed = interrupt(&old, &new, Some(point)).await;
        assert!(killed, "it comes to {point}");
        refuses(&mut cluster, &new).await;
    }
    fs::remove_dir_all(&new).ok();
    let done = recover(&old, &new).await;
    assert!(done.status.success(), "{done:?}");
    let member = &mut cluster.members[0];
    member.args.push(format!("--data-dir={}", new.display()));
    member.start();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    assert_eq!(keys(ports[0], "k/").await, 300, "all of them");
}

/// Runs the command into a directory that does not exist. It dies at a failpoint, or is killed once the directory has its mark.
/// Returns whether it was killed before its end.
async fn interrupt(old: &Path, new: &Path, point: Option<&str>) -> bool {
    if new.exists() {
        fs::remove_dir_all(new).expect("the directory goes");
    }
    let mut run = quorate();
    run.arg("recover").arg("--data-dir").arg(old);
    run.arg("--into").arg(new);
    if let Some(point) = point {
        run.env("FAILPOINTS", format!("{point}=return"));
    }
    let mut child = run.spawn().expect("the program starts");
    if point.is_none() {
        while !new.join("unfinished-recovery").exists() && !new.join("member").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        child.kill().await.expect("it can be killed");
    }
    let status = child.wait().await.expect("it can be waited for");
    status.signal().is_some() && new.join("unfinished-recovery").exists()
}

/// Asserts that the member does not start on the directory, logs why, and does not change it.
async fn refuses(cluster: &mut Cluster, new: &Path) {
    let member = &mut cluster.members[0];
    member.args.push(format!("--data-dir={}", new.display()));
    for _ in 0..2 {
        let said = member.refusal().await;
        for words in [
            "is unfinished: `quorate recover --data-dir",
            "run that command again",
        ] {
            assert!(said.contains(words), "{words} in {said}");
        }
    }
    member.args.pop();
    let again = recover(&member.data_dir(), new).await;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("did not finish: delete it"), "{said}");
}

#[tokio::test]
async fn a_directory_that_lost_a_part_is_refused_each_time() {
    let mut cluster = Cluster::start(1).await;
    fill(&cluster.ports(), "k/", 50).await;
    cluster.members[0].kill().await;
    let folder = cluster.members[0].data_dir();
    let kept = cluster.folder().join("kept");
    for (part, words) in [
        ("wal", "its log is missing"),
        ("db", "its database is missing"),
        ("member", "but no file named member"),
    ] {
        fs::rename(folder.join(part), &kept).expect("the part goes");
        for _ in 0..2 {
            let said = cluster.members[0].refusal_for_good().await;
            assert!(said.contains(words), "{words} in {said}");
        }
        assert!(!folder.join(part).exists(), "a refused start makes nothing");
        fs::rename(&kept, folder.join(part)).expect("the part is back");
    }
    cluster.members[0].start();
    eventually(&cluster.ports(), &["endpoint", "health"], |_| true).await;
    assert_eq!(keys(cluster.ports()[0], "k/").await, 50);
}

#[tokio::test]
async fn a_directory_of_another_program_is_left_as_it_was() {
    let mut cluster = Cluster::new(1).await;
    let folder = cluster.members[0].data_dir();
    fs::create_dir_all(folder.join("member/snap")).expect("a directory");
    fs::create_dir_all(folder.join("member/wal")).expect("a directory");
    let said = cluster.members[0].refusal_for_good().await;
    assert!(said.contains("the data of an etcd member"), "{said}");
    let names: Vec<_> = fs::read_dir(&folder)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(names, ["member"], "nothing was written into it");
}

#[tokio::test]
async fn a_first_start_that_fails_forms_no_member() {
    let mut cluster = Cluster::new(3).await;
    let good = cluster.members[0].args.clone();
    let other = cluster.members[1].args.clone();
    // Paths that do not exist, and another member's certificate.
    cluster.members[0].args = good
        .iter()
        .map(|arg| arg.replace("n1.pem", "none.pem"))
        .collect();
    let said = cluster.members[0].refusal().await;
    assert!(said.contains("none.pem"), "{said}");
    cluster.members[0].args = other;
    let said = cluster.members[0].refusal().await;
    assert!(said.contains("not of member \"n1\""), "{said}");
    let folder = cluster.members[0].data_dir();
    assert!(!folder.exists(), "nothing was written");
    // The start succeeds once the settings are corrected.
    cluster.members[0].args = good;
    let ports = cluster.ports();
    for member in &mut cluster.members {
        member.start();
    }
    same_history(&ports).await;
    let list = etcdctl(&ports, &["member", "list"]).await.ok();
    assert_eq!(list.lines().count(), 3, "{list}");
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_first_start_that_is_killed_at_each_step_goes_on() {
    for point in [
        "after-unfinished-mark",
        "before-member-write",
        "after-member-write",
        "after-start-recorded",
        "1*off->after-start-recorded",
    ] {
        let mut cluster = Cluster::new(3).await;
        // It is passed so many times before.
        let (passes, name) = point.split_once("->").unwrap_or(("", point));
        let action = if passes.is_empty() {
            format!("{name}=return")
        } else {
            format!("{name}={passes}->return")
        };
        cluster.members[0].set("FAILPOINTS", &action);
        for member in &mut cluster.members {
            member.start();
        }
        let member = &mut cluster.members[0];
        let status = member.stopped().await;
        assert!(!status.success(), "{}", member.log());
        let crash = format!("failpoint {name}: crash");
        assert!(member.log().contains(&crash), "{}", member.log());
        member.unset("FAILPOINTS");
        member.start();
        same_history(&cluster.ports()).await;
        let marked = cluster.members[0].data_dir().join("unfinished-start");
        assert!(!marked.exists(), "{point}: it is complete");
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_refill_that_is_killed_at_each_step_goes_on() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    fill(&ports, "k/", 100).await;
    for point in ["after-database-aside", "after-refill-database"] {
        let member = &mut cluster.members[2];
        member.kill().await;
        fs::write(member.data_dir().join("refill"), "a test").expect("the request");
        member.set("FAILPOINTS", &format!("{point}=return"));
        let said = member.refusal().await;
        let crash = format!("failpoint {point}: crash");
        assert!(said.contains(&crash), "{crash}: {said}");
        member.unset("FAILPOINTS");
        member.start();
        same_history(&ports).await;
        let folder = cluster.members[2].data_dir();
        assert!(!folder.join("refill").exists(), "{point}: it is done");
        let aside = fs::metadata(folder.join("db/revisions.redb.aside"));
        assert!(
            aside.is_ok_and(|file| file.len() > 0),
            "{point}: it is kept"
        );
    }
    assert_eq!(keys(ports[2], "k/").await, 100);
}

/// A voter acknowledges a write, and loses its disk before the log says that it has started. To all others it looks like a member
/// that never ran; if it began again, it could elect a leader that lacks what it acknowledged.
#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_voter_that_loses_its_disk_before_it_is_known_to_have_started_does_not_begin_again() {
    let mut cluster = Cluster::new(3).await;
    let ports = cluster.ports();
    cluster.members[2].set("FAILPOINTS", "never-publishes=return");
    for member in &mut cluster.members {
        // Another leader than n3.
        let election = if member.name == "n3" { "50000" } else { "2000" };
        member.set("QUORATE_RAFT_ELECTION_MS", election);
        member.start();
    }
    let led = leader(&ports).await;
    assert_ne!(led, 2, "it waits longest");
    // Acknowledged by the leader and n3.
    cluster.members[1 - led].freeze();
    let put = ["put", "k", "v"];
    eventually(&[ports[led], ports[2]], &put, |_| true).await;
    cluster.members[2].kill().await;
    cluster.members[1 - led].thaw();
    fs::remove_dir_all(cluster.members[2].data_dir()).expect("the directory goes");
    let listed = eventually(&[ports[led]], &["member", "list"], |_| true).await;
    let own = format!("http://127.0.0.1:{}", ports[2]);
    assert!(!listed.contains(&own), "the log says so: {listed}");
    cluster.members[2].unset("FAILPOINTS");
    let said = cluster.members[2].refusal_for_good().await;
    assert!(
        said.contains("has been part of this cluster already"),
        "{said}"
    );
    assert!(!cluster.members[2].data_dir().join("member").exists());
    assert_eq!(keys(ports[led], "k").await, 1);
}
