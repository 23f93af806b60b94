//! Snapshots of a real etcd become clusters: with all that they hold, or not at all.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    etcd::Etcd,
    hashkv::hashes,
    support::{Cluster, Member, quorate},
};
use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};
use tokio::{process::Command, time::sleep};

/// How often a file or a log is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How many looks there are before something that must happen counts as missing.
const LOOKS_MAX: usize = 3_000;

/// As the commands for members after the first have it.
const SAME: [&str; 2] = ["--restore-id", "00000000000000a1"];

/// The command for one of the members, with its settings.
fn command(member: &Member, file: &Path) -> Command {
    let mut run = quorate();
    run.arg("restore")
        .arg(file)
        .args(["--name", &member.name])
        .arg("--data-dir")
        .arg(member.data_dir())
        .args(&member.args);
    run
}

async fn restore(member: &Member, file: &Path, more: &[&str]) -> Output {
    let mut run = command(member, file);
    run.args(more).output().await.expect("the program starts")
}

async fn restored(member: &Member, file: &Path, more: &[&str]) -> String {
    let done = restore(member, file, more).await;
    assert!(done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

async fn refused(member: &Member, file: &Path, more: &[&str]) -> String {
    let done = restore(member, file, more).await;
    assert!(!done.status.success(), "{done:?}");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// An etcd with some history, and the snapshot that it gave.
async fn saved(folder: &Path) -> (Etcd, PathBuf) {
    let etcd = Etcd::start(1);
    let ports = etcd.ports();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    for args in [
        &["put", "a", "1"][..],
        &["put", "b", "2"],
        &["put", "a", "3"],
        &["del", "b"],
        &["put", "b", "again"],
        &["compact", "--physical", "4"],
        &["put", "k1", "x"],
        &["put", "k2", ""],
        &["del", "k1"],
    ] {
        etcdctl(&ports, args).await.ok();
    }
    let granted = etcdctl(&ports, &["lease", "grant", "3600"]).await.ok();
    let id = granted
        .split_whitespace()
        .nth(1)
        .expect("its id")
        .to_owned();
    let leased = format!("--lease={id}");
    etcdctl(&ports, &["put", "k3", "leased", &leased])
        .await
        .ok();
    let file = folder.join("etcd.db");
    let path = file.display().to_string();
    etcdctl(&ports, &["snapshot", "save", &path]).await.ok();
    (etcd, file)
}

#[tokio::test]
async fn three_members_have_what_the_etcd_had_and_can_be_written_at_once() {
    let mut cluster = Cluster::new(3).await;
    let (mut etcd, file) = saved(cluster.folder()).await;
    // It forgets the hash that it made during the compaction: a restored member was not there.
    etcd.stop(0).await;
    etcd.start_member(0);
    eventually(&etcd.ports(), &["endpoint", "health"], |_| true).await;
    let bytes = fs::read(&file).expect("the snapshot");
    let mut given: Vec<String> = Vec::new();
    for member in &cluster.members {
        let more: Vec<&str> = given.iter().map(String::as_str).collect();
        let said = restored(member, &file, &more).await;
        let id = said
            .lines()
            .find_map(|line| line.strip_prefix("restore id "));
        given = vec!["--restore-id".to_owned(), id.expect("its id").to_owned()];
        assert!(said.contains(&given.join(" ")), "for the others: {said}");
        for words in ["(unchanged)", "compacted at 4", "1 leases"] {
            assert!(said.contains(words), "{words} in {said}");
        }
        for other in ["n1", "n2", "n3"] {
            let printed = said.contains(&format!("etcd.db --name {other} "));
            assert_eq!(printed, other != member.name, "{other} in {said}");
        }
    }
    assert_eq!(fs::read(&file).expect("it is there"), bytes, "only read");
    for member in &mut cluster.members {
        member.start();
    }
    let (ports, theirs) = (cluster.ports(), etcd.ports());
    leader(&ports).await;
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    for revision in [0, 4, 5, 7, 9] {
        let expected = hashes(&theirs, revision).await[0];
        assert_eq!(expected.1, 4, "compacted");
        let found = hashes(&ports, revision).await;
        assert_eq!(found, [expected; 3], "at revision {revision}");
    }
    let all = ["get", "", "--prefix", "-w", "json"];
    let kvs = async |port: u16| {
        let found = etcdctl(&[port], &all).await.json();
        (found["kvs"].clone(), found["header"]["revision"].clone())
    };
    assert_eq!(kvs(ports[1]).await, kvs(theirs[0]).await);
    let list = etcdctl(&theirs, &["lease", "list"]).await.ok();
    let id = list.lines().nth(1).expect("one lease").to_owned();
    let left = ["lease", "timetolive", &id, "--keys"];
    let left = etcdctl(&ports[..1], &left).await.ok();
    for words in ["granted with TTL(3600s)", "attached keys([k3])"] {
        assert!(left.contains(words), "{words} in {left}");
    }
    etcdctl(&ports[2..], &["put", "new", "1"]).await.ok();
    let old = etcdctl(&ports, &["get", "a", "--rev=3"]).await.refused();
    assert!(old.contains("has been compacted"), "{old}");
    same_history(&ports).await;
    let log = cluster.members[0].log();
    assert!(
        log.contains("this data directory was restored: from "),
        "{log}"
    );
}

#[tokio::test]
async fn users_and_roles_come_along() {
    let mut cluster = Cluster::new(1).await;
    let etcd = Etcd::start(1);
    let theirs = etcd.ports();
    eventually(&theirs, &["endpoint", "health"], |_| true).await;
    for args in [
        &["put", "a", "1"][..],
        &["user", "add", "root:secret"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "a"],
        &["user", "add", "eve:word"],
        &["user", "grant-role", "eve", "reader"],
        &["user", "add", "certificate", "--no-password"],
        &["auth", "enable"],
    ] {
        etcdctl(&theirs, args).await.ok();
    }
    let file = cluster.folder().join("etcd.db");
    let path = file.display().to_string();
    let save = ["--user=root:secret", "snapshot", "save", &path];
    etcdctl(&theirs, &save).await.ok();
    let said = restored(&cluster.members[0], &file, &[]).await;
    assert!(said.contains("3 users, "), "{said}");
    cluster.members[0].start();
    let ports = cluster.ports();
    let get = ["--user=eve:word", "get", "a"];
    eventually(&ports, &get, |found| found == "a\n1\n").await;
    let put = etcdctl(&ports, &["--user=eve:word", "put", "a", "2"]).await;
    assert!(put.refused().contains("permission denied"));
    let wrong = etcdctl(&ports, &["--user=eve:other", "get", "a"]).await;
    assert!(wrong.refused().contains("authentication failed"));
    let nobody = etcdctl(&ports, &["get", "a"]).await.refused();
    assert!(nobody.contains("user name is empty"), "{nobody}");
    for args in [
        &["user", "list"][..],
        &["user", "get", "eve"],
        &["role", "get", "reader"],
    ] {
        let args = [&["--user=root:secret"][..], args].concat();
        let expected = etcdctl(&theirs, &args).await.ok();
        assert_eq!(etcdctl(&ports, &args).await.ok(), expected, "{args:?}");
    }
}

#[tokio::test]
async fn the_revision_can_be_raised_and_the_past_marked_as_compacted() {
    let mut cluster = Cluster::new(1).await;
    let (etcd, file) = saved(cluster.folder()).await;
    let header = etcdctl(&etcd.ports(), &["get", "a", "-w", "json"])
        .await
        .json();
    let revision = header["header"]["revision"].as_i64().expect("a number");
    let more = ["--bump-revision", "1000000", "--mark-compacted"];
    restored(&cluster.members[0], &file, &more).await;
    cluster.members[0].start();
    let ports = cluster.ports();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    let put = ["put", "a", "after", "-w", "json"];
    let put = etcdctl(&ports, &put).await.json();
    let after = put["header"]["revision"].as_i64();
    assert_eq!(after, Some(revision + 1_000_001));
    let from = format!("--rev={revision}");
    let watch = etcdctl(&ports, &["watch", "a", &from]).await.refused();
    assert!(watch.contains("has been compacted"), "{watch}");
    assert_eq!(keys(ports[0], "k").await, 2, "k2 and k3");
}

#[tokio::test]
async fn bad_files_and_directories_are_refused_and_nothing_is_left() {
    let mut cluster = Cluster::new(1).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    let good = fs::read(&file).expect("the snapshot");
    let bad = cluster.folder().join("bad.db");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut other_hash = good.clone();
    *other_hash.last_mut().expect("a byte") ^= 1;
    let cut = good.len() - 4096;
    for (what, bytes, words) in [
        ("a flipped bit", &flipped[..], "the SHA-256 at offset"),
        ("another hash", &other_hash[..], "the SHA-256 at offset"),
        ("without its end", &good[..cut], "truncated"),
        ("no hash", &good[..good.len() - 32], "--skip-hash-check"),
        ("a text", &b"no snapshot at all"[..], "too short"),
        ("nothing", &b""[..], "too short"),
        ("zeros", &vec![0; 65_568][..], "not a bbolt database"),
    ] {
        fs::write(&bad, bytes).expect("a file");
        let said = refused(&cluster.members[0], &bad, &[]).await;
        assert!(said.contains(words), "{what}: {said}");
        assert!(said.contains("bad.db"), "{what}: {said}");
        assert_eq!(fs::read(&bad).expect("it is there"), bytes, "{what}");
        let dir = cluster.members[0].data_dir();
        assert!(!dir.exists(), "{what}: nothing is made");
    }
    let folder = cluster.folder().to_owned();
    let said = refused(&cluster.members[0], &folder, &[]).await;
    assert!(said.contains("is a directory"), "{said}");
    let said = refused(&cluster.members[0], &folder.join("none"), &[]).await;
    assert!(said.contains("none"), "{said}");
    let most = i64::MAX.to_string();
    let more = ["--bump-revision", &most];
    let said = refused(&cluster.members[0], &file, &more).await;
    assert!(said.contains("cannot be raised by"), "{said}");

    fs::write(&bad, &good[..good.len() - 32]).expect("a file");
    let said = restored(&cluster.members[0], &bad, &["--skip-hash-check"]).await;
    assert!(said.contains("was not compared"), "{said}");
    let said = refused(&cluster.members[0], &file, &[]).await;
    assert!(
        said.contains("restore into a directory that is empty"),
        "{said}"
    );
    cluster.members[0].start();
    let ports = cluster.ports();
    eventually(&ports, &["get", "a"], |found| found == "a\n3\n").await;
}

#[tokio::test]
async fn a_restore_that_is_killed_leaves_nothing_that_starts() {
    let mut cluster = Cluster::new(1).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    if interrupt(&cluster.members[0], &file, None).await {
        refuses(&mut cluster).await;
    }
    #[cfg(feature = "failpoints")]
    for point in [
        "after-unfinished-mark",
        "after-restore-fill",
        "before-snapshot-switch",
        "after-snapshot-switch",
        "before-restore-end",
    ] {
        let killed = interrupt(&cluster.members[0], &file, Some(point)).await;
        assert!(killed, "it comes to {point}");
        refuses(&mut cluster).await;
    }
    fs::remove_dir_all(cluster.members[0].data_dir()).ok();
    restored(&cluster.members[0], &file, &[]).await;
    cluster.members[0].start();
    eventually(&cluster.ports(), &["get", "b"], |found| {
        found == "b\nagain\n"
    })
    .await;
}

/// Runs the command into a directory that does not exist. It dies at a failpoint, or is killed once the directory has its mark.
/// Returns whether it was killed before its end.
async fn interrupt(member: &Member, file: &Path, point: Option<&str>) -> bool {
    let dir = member.data_dir();
    if dir.exists() {
        fs::remove_dir_all(&dir).expect("the directory goes");
    }
    let mut run = command(member, file);
    if let Some(point) = point {
        run.env("FAILPOINTS", format!("{point}=return"));
    }
    let mut child = run.spawn().expect("the program starts");
    if point.is_none() {
        while !dir.join("unfinished-restore").exists() && !dir.join("member").exists() {
            sleep(Duration::from_millis(1)).await;
        }
        child.kill().await.expect("it can be killed");
    }
    let status = child.wait().await.expect("it can be waited for");
    status.signal().is_some() && dir.join("unfinished-restore").exists()
}

async fn refuses(cluster: &mut Cluster) {
    for _ in 0..2 {
        let said = cluster.members[0].refusal_for_good().await;
        for words in ["is unfinished: `quorate restore ", "run that command again"] {
            assert!(said.contains(words), "{words} in {said}");
        }
    }
}

#[tokio::test]
async fn a_member_that_took_part_is_not_restored_once_more() {
    let mut cluster = Cluster::new(3).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    for member in &mut cluster.members {
        restored(member, &file, &SAME).await;
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    etcdctl(&ports, &["put", "new", "1"]).await.ok();
    cluster.members[1].kill().await;
    fs::remove_dir_all(cluster.members[1].data_dir()).expect("the directory goes");
    restored(&cluster.members[1], &file, &SAME).await;
    let said = cluster.members[1].refusal_for_good().await;
    assert!(
        said.contains("has been part of this cluster already"),
        "{said}"
    );
    etcdctl(&ports[..1], &["put", "new", "2"]).await.ok();
}

/// Waits until the log that the member has written since its first `from` bytes has a line for which this is true.
async fn line(member: &Member, from: usize, is_it: impl Fn(&str) -> bool) {
    for _ in 0..LOOKS_MAX {
        if member.log()[from..].lines().any(&is_it) {
            return;
        }
        sleep(POLL).await;
    }
    panic!("it does not say so:\n{}", member.log());
}

/// Together they would be a majority that lacks what they had acknowledged.
#[tokio::test]
async fn two_of_three_that_lost_their_disks_and_are_restored_once_more_wait_for_the_third() {
    let mut cluster = Cluster::new(3).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    for member in &mut cluster.members {
        restored(member, &file, &SAME).await;
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    etcdctl(&ports, &["put", "new", "1"]).await.ok();
    for lost in [0, 2] {
        cluster.members[lost].kill().await;
    }
    let mut before = Vec::new();
    for lost in [0, 2] {
        let member = &mut cluster.members[lost];
        fs::remove_dir_all(member.data_dir()).expect("the directory goes");
        restored(member, &file, &SAME).await;
        before.push((lost, member.log().len()));
        member.start();
    }
    for (lost, from) in before {
        let waits = |line: &str| {
            let for_n2 = line.contains("n2 has data, but no quorum of the cluster");
            for_n2 && !line.contains("does not answer")
        };
        line(&cluster.members[lost], from, waits).await;
    }
}

#[tokio::test]
async fn members_that_were_restored_with_other_options_refuse_each_other() {
    let mut cluster = Cluster::new(2).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    restored(&cluster.members[0], &file, &SAME).await;
    let more = [&SAME[..], &["--bump-revision", "1"]].concat();
    restored(&cluster.members[1], &file, &more).await;
    for member in &mut cluster.members {
        member.start();
    }
    for member in &cluster.members {
        line(member, 0, |line| {
            line.contains("belongs to another cluster")
        })
        .await;
    }
}

#[tokio::test]
async fn members_that_were_restored_apart_from_each_other_are_no_cluster() {
    let mut cluster = Cluster::new(2).await;
    let (_etcd, file) = saved(cluster.folder()).await;
    let bad = refused(&cluster.members[0], &file, &["--restore-id", "a1"]).await;
    assert!(bad.contains("16 hexadecimal digits"), "{bad}");
    for member in &mut cluster.members {
        restored(member, &file, &[]).await;
        member.start();
    }
    for member in &cluster.members {
        line(member, 0, |line| {
            line.contains("belongs to another cluster") && line.contains("--restore-id")
        })
        .await;
    }
}
