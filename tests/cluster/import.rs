//! `quorate import`: the data directory of a real etcd, with the entries that only its log has. What comes of it is compared with
//! what the etcd says of itself after its own restart, which applies the same entries.

use crate::{
    children,
    ctl::{etcdctl, eventually, leader},
    etcd::Etcd,
    support::{free_port, quorate},
    tools,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Child,
    time::sleep,
};
use tonic::transport::Endpoint;

/// etcd writes entries into its database once an hour, unless a request makes it do so: a compaction does, turning
/// authentication on does, and defragmenting.
const LATE: [&str; 2] = [
    "--backend-batch-interval=1h",
    "--backend-batch-limit=1000000",
];

/// How long a test waits for something that must happen soon, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(100);

const ROOT: &str = "--user=root:secret";

/// A member of ours that was made of an etcd's data.
struct Imported {
    port: u16,
    child: Child,
    folder: TempDir,
    /// What the command printed.
    text: String,
}

impl Drop for Imported {
    fn drop(&mut self) {
        children::end(&mut self.child);
    }
}

async fn import(from: &Path, into: &Path, flags: &[&str]) -> Output {
    let mut run = quorate();
    run.arg("import").arg(from).arg("--data-dir").arg(into);
    run.args(["--name", "n1"]).args(flags);
    run.output().await.expect("the program starts")
}

/// Imports the directory and starts a member on the result; `user` is one that may ask for its status.
async fn imported(from: &Path, flags: &[&str], user: &[&str]) -> Imported {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let into = folder.path().join("n1");
    let before = contents(from);
    let done = import(from, &into, flags).await;
    assert!(done.status.success(), "{done:?}");
    assert!(before == contents(from), "the etcd's files are only read");
    let port = free_port();
    let child = quorate()
        .arg("--data-dir")
        .arg(&into)
        .args(["--name", "n1"])
        .arg(format!("--client-listen=127.0.0.1:{port}"))
        .spawn()
        .expect("the program starts");
    let status = [user, &["endpoint", "status"]].concat();
    eventually(&[port], &status, |_| true).await;
    Imported {
        port,
        child,
        folder,
        text: String::from_utf8_lossy(&done.stdout).into_owned(),
    }
}

/// All files below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = fs::read(&path).expect("a file");
            found.insert(path, bytes);
        }
    }
    found
}

/// How many entries only the log had, as the command says.
fn in_the_log(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("log  "));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no number of entries: {text}"))
}

async fn json(port: u16, flags: &[&str], args: &[&str]) -> Value {
    let args = [flags, args, &["-w", "json"]].concat();
    let output = eventually(&[port], &args, |_| true).await;
    serde_json::from_str(&output).expect("JSON")
}

async fn revision(port: u16, flags: &[&str]) -> i64 {
    let all = json(port, flags, &["get", "none"]).await;
    all["header"]["revision"].as_i64().expect("a revision")
}

/// Hash and compacted revision.
async fn hash(port: u16, flags: &[&str], revision: i64) -> (Value, Value) {
    let revision = format!("--rev={revision}");
    let output = json(port, flags, &["endpoint", "hashkv", &revision]).await;
    let hash = &output[0]["HashKV"];
    (hash["hash"].clone(), hash["compact_revision"].clone())
}

/// Every live key at a revision, with its revisions, version, lease and value.
async fn keys(port: u16, flags: &[&str], revision: i64) -> Value {
    let revision = format!("--rev={revision}");
    let all = json(port, flags, &["get", "", "--from-key", &revision]).await;
    all["kvs"].clone()
}

/// Both have the same keys in every revision from `oldest` on, the same hashes, and the same leases with the same keys.
async fn assert_same(theirs: u16, ours: u16, flags: &[&str], oldest: i64) {
    let newest = revision(theirs, flags).await;
    assert_eq!(revision(ours, flags).await, newest, "the revision");
    for revision in oldest..=newest {
        let expected = keys(theirs, flags, revision).await;
        let found = keys(ours, flags, revision).await;
        assert_eq!(found, expected, "keys at revision {revision}");
        let expected = hash(theirs, flags, revision).await;
        let found = hash(ours, flags, revision).await;
        assert_eq!(found, expected, "HashKV at revision {revision}");
    }
    let leases = async |port| {
        let list = json(port, flags, &["lease", "list"]).await;
        let mut ids: Vec<i64> = list["leases"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|lease| lease["ID"].as_i64().or(lease["id"].as_i64()))
            .collect();
        ids.sort_unstable();
        let mut found = Vec::new();
        for id in ids {
            let args = ["lease", "timetolive", &format!("{id:x}"), "--keys"];
            let lease = json(port, flags, &args).await;
            let mut keys: Vec<_> = lease["keys"].as_array().into_iter().flatten().collect();
            // etcd gives them in the order of a map.
            keys.sort_by_key(|key| key.as_str());
            let keys: Vec<Value> = keys.into_iter().cloned().collect();
            found.push((id, lease["granted-ttl"].clone(), keys));
        }
        found
    };
    let expected = leases(theirs).await;
    assert!(!expected.is_empty(), "the etcd has leases");
    assert_eq!(leases(ours).await, expected, "the leases");
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    let request = Some(request);
    pb::RequestOp { request }
}

fn put(key: &'static str, value: &'static str) -> pb::RequestOp {
    op(pb::request_op::Request::RequestPut(pb::PutRequest {
        key: key.into(),
        value: value.into(),
        ..pb::PutRequest::default()
    }))
}

/// A delete, a nested transaction that writes, and one that does not, in one revision.
async fn nested_transaction(port: u16) {
    let delete = pb::DeleteRangeRequest {
        key: "k0".into(),
        range_end: "k2".into(),
        ..pb::DeleteRangeRequest::default()
    };
    let exists = pb::Compare {
        result: pb::compare::CompareResult::Greater.into(),
        target: pb::compare::CompareTarget::Create.into(),
        key: "k3".into(),
        target_union: Some(pb::compare::TargetUnion::CreateRevision(0)),
        ..pb::Compare::default()
    };
    let inner = pb::TxnRequest {
        compare: vec![exists],
        success: vec![put("nested/yes", "1"), put("k3", "nested")],
        failure: vec![put("nested/no", "1")],
    };
    let txn = pb::TxnRequest {
        success: vec![
            op(pb::request_op::Request::RequestDeleteRange(delete)),
            op(pb::request_op::Request::RequestTxn(inner)),
            put("outer", "1"),
        ],
        ..pb::TxnRequest::default()
    };
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("a URI");
    let channel = endpoint.connect().await.expect("it serves");
    let answer = pb::kv_client::KvClient::new(channel).txn(txn).await;
    let answer = answer.expect("it is applied").into_inner();
    assert!(answer.succeeded, "its compares hold");
}

/// What an etcd says of its versions; nothing before it serves.
async fn versions(port: u16) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let asked = stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await;
    asked.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    serde_json::from_str(answer.split("\r\n\r\n").nth(1)?).ok()
}

/// Waits until an etcd serves, has agreed on a version, and has written it down: it would commit its database for that later.
async fn settled(port: u16) {
    eventually(&[port], &["endpoint", "health"], |_| true).await;
    let (major, minor) = tools::etcd_version();
    let own = format!("{major}.{minor}.");
    let is_own = |version: &Value| version.as_str().is_some_and(|text| text.starts_with(&own));
    let start = quorate::internals::clock::now();
    loop {
        let found = versions(port).await;
        let all = found.as_ref().and_then(Value::as_object);
        if all.is_some_and(|all| all.values().all(is_own)) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "still {found:?}");
        // It writes its version down only if the beginning is in the database, which this sees to.
        etcdctl(&[port], &["defrag"]).await.ok();
        sleep(POLL).await;
    }
}

/// A new lease, as etcdctl writes its id.
async fn grant(port: u16, flags: &[&str]) -> String {
    let args = [flags, &["lease", "grant", "5000"]].concat();
    let text = etcdctl(&[port], &args).await.ok();
    let id = text.split_whitespace().nth(1);
    id.expect("lease ID granted with …").to_owned()
}

/// Writes of all kinds, some of which are refused where they are applied; `kept` is a lease that stays.
async fn late_history(port: u16, kept: &str) {
    let revoked = grant(port, &[]).await;
    let port = [port];
    for key in ["revoked/1", "revoked/2"] {
        let lease = format!("--lease={revoked}");
        etcdctl(&port, &["put", key, "x", &lease]).await.ok();
    }
    // etcd commits at once what deletes a row of its database, so all that follows this is only in the log.
    etcdctl(&port, &["lease", "revoke", &revoked]).await.ok();
    etcdctl(&port, &["put", "k3", "late"]).await.ok();
    etcdctl(&port, &["del", "k4"]).await.ok();
    etcdctl(&port, &["del", "absent"]).await.ok();
    nested_transaction(port[0]).await;
    let late = grant(port[0], &[]).await;
    for (key, lease) in [
        ("late/1", late.as_str()),
        ("late/2", late.as_str()),
        ("leased/2", kept),
    ] {
        let lease = format!("--lease={lease}");
        etcdctl(&port, &["put", key, "x", &lease]).await.ok();
    }
    etcdctl(&port, &["put", "late/2", "moved"]).await.ok();
    let keep = ["put", "late/1", "--ignore-value", "--ignore-lease"];
    etcdctl(&port, &keep).await.ok();
    let refused = ["put", "k", "v", "--lease=123"];
    etcdctl(&port, &refused).await.refused();
    etcdctl(&port, &["compact", "3"]).await.refused();
    for n in 0..20 {
        etcdctl(&port, &["put", "last", &n.to_string()]).await.ok();
    }
}

#[tokio::test]
async fn what_only_the_log_of_a_killed_etcd_has_comes_along() {
    let mut etcd = Etcd::start_with(1, &LATE);
    let theirs = etcd.ports()[0];
    let port = [theirs];
    settled(theirs).await;
    for n in 0..10 {
        let key = format!("k{}", n % 5);
        etcdctl(&port, &["put", &key, &format!("v{n}")]).await.ok();
    }
    let kept = grant(theirs, &[]).await;
    let lease = format!("--lease={kept}");
    etcdctl(&port, &["put", "leased", "1", &lease]).await.ok();
    // This is the last that the database learns.
    etcdctl(&port, &["compact", "6"]).await.ok();
    late_history(theirs, &kept).await;
    etcd.kill(0).await;

    let ours = imported(&etcd.data_dir(0), &[], &[]).await;
    let late = in_the_log(&ours.text);
    assert!(late >= 30, "the test is about these: {}", ours.text);
    let other = ours.folder.path().join("other");
    let of = |what: &str, text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(what));
        line.expect("it is printed").trim().to_owned()
    };
    let cluster = |text: &str| of("cluster ", text);
    let id = of("restore id ", &ours.text);
    let again = import(&etcd.data_dir(0), &other, &["--restore-id", &id]).await;
    let again = String::from_utf8_lossy(&again.stdout).into_owned();
    // It follows from the whole state, and from that number.
    assert_eq!(cluster(&again), cluster(&ours.text), "the same everywhere");
    etcd.start_member(0);
    eventually(&port, &["endpoint", "health"], |_| true).await;
    assert_same(theirs, ours.port, &[], 6).await;
    let own = [ours.port];
    etcdctl(&own, &["put", "after", "1"]).await.ok();
    etcdctl(&own, &["lease", "revoke", &kept]).await.ok();
}

const EARLY: &str = "--user=early:pass";

/// Changes of users and roles, and requests of users, some of which are refused where they are applied.
async fn late_users(port: u16) {
    let lease = format!("--lease={}", grant(port, &[ROOT]).await);
    let port = [port];
    for args in [
        &["user", "grant-role", "early", "writer"] as &[&str],
        &["user", "grant-role", "early", "writer"],
        &["user", "add", "late:word"],
        &["user", "add", "gone:word"],
        &["user", "add", "--no-password", "cert"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "a", "z"],
        &["role", "grant-permission", "writer", "write", "x"],
        &["role", "revoke-permission", "writer", "x"],
        &["role", "add", "unused"],
        &["user", "grant-role", "late", "reader"],
        &["user", "grant-role", "cert", "unused"],
        &["role", "delete", "unused"],
        &["user", "delete", "gone"],
        &["put", "z1", "x", &lease],
    ] {
        let args = [&[ROOT] as &[&str], args].concat();
        etcdctl(&port, &args).await.ok();
    }
    etcdctl(&port, &[EARLY, "put", "a1", "x"]).await.ok();
    for args in [
        &[EARLY, "put", "z", "x"] as &[&str],
        &[EARLY, "put", "a2", "x", &lease],
        &[EARLY, "del", "a", "c"],
        &["--user=late:word", "put", "a3", "x"],
        &[EARLY, "role", "add", "mine"],
        &["put", "a4", "x"],
    ] {
        etcdctl(&port, args).await.refused();
    }
    etcdctl(&port, &[EARLY, "del", "a1"]).await.ok();
    etcdctl(&port, &[EARLY, "put", "a5", "last"]).await.ok();
}

#[tokio::test]
async fn users_and_their_refusals_come_along() {
    let mut etcd = Etcd::start_with(1, &LATE);
    let theirs = etcd.ports()[0];
    let port = [theirs];
    settled(theirs).await;
    for args in [
        &["user", "add", "root:secret"] as &[&str],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "early:pass"],
        &["role", "add", "writer"],
        &["role", "grant-permission", "writer", "readwrite", "a", "b"],
        // This is the last that the database learns.
        &["auth", "enable"],
    ] {
        etcdctl(&port, args).await.ok();
    }
    late_users(theirs).await;
    etcd.kill(0).await;

    let ours = imported(&etcd.data_dir(0), &[], &[ROOT]).await;
    assert!(in_the_log(&ours.text) >= 15, "{}", ours.text);
    etcd.start_member(0);
    eventually(&port, &[ROOT, "endpoint", "health"], |_| true).await;
    assert_same(theirs, ours.port, &[ROOT], 1).await;
    let own = [ours.port];
    for args in [
        &["user", "list"] as &[&str],
        &["user", "get", "early"],
        &["user", "get", "late"],
        &["user", "get", "cert"],
        &["role", "list"],
        &["role", "get", "writer"],
        &["role", "get", "reader"],
    ] {
        let args = [&[ROOT] as &[&str], args].concat();
        let expected = etcdctl(&port, &args).await.ok();
        let found = etcdctl(&own, &args).await.ok();
        assert_eq!(found, expected, "{args:?}");
    }
    etcdctl(&own, &["--user=late:word", "get", "a5"]).await.ok();
    let wrong = ["--user=late:other", "get", "a5"];
    etcdctl(&own, &wrong).await.refused();
    etcdctl(&own, &[EARLY, "put", "z", "x"]).await.refused();
    etcdctl(&own, &[EARLY, "put", "a", "x"]).await.ok();
}

#[tokio::test]
async fn an_etcd_that_was_stopped_has_all_in_its_database() {
    let mut etcd = Etcd::start(1);
    let theirs = etcd.ports()[0];
    eventually(&[theirs], &["endpoint", "health"], |_| true).await;
    let lease = grant(theirs, &[]).await;
    for n in 0..5 {
        let lease = format!("--lease={lease}");
        etcdctl(&[theirs], &["put", &format!("k{n}"), "v", &lease])
            .await
            .ok();
    }
    etcd.stop(0).await;
    let ours = imported(&etcd.data_dir(0), &[], &[]).await;
    assert!(in_the_log(&ours.text) <= 1, "{}", ours.text);
    etcd.start_member(0);
    eventually(&[theirs], &["endpoint", "health"], |_| true).await;
    assert_same(theirs, ours.port, &[], 1).await;
}

#[tokio::test]
async fn a_running_etcd_is_refused_and_a_server_names_the_command() {
    let mut etcd = Etcd::start(1);
    let theirs = etcd.ports()[0];
    eventually(&[theirs], &["endpoint", "health"], |_| true).await;
    let folder = tempfile::tempdir().expect("a temporary directory");
    let (from, into) = (etcd.data_dir(0), folder.path().join("n1"));
    let refused = |done: &Output| {
        assert!(!done.status.success(), "{done:?}");
        String::from_utf8_lossy(&done.stderr).into_owned()
    };
    let text = refused(&import(&from, &into, &[]).await);
    assert!(text.contains("stop the etcd first"), "{text}");
    assert!(!into.exists(), "nothing is made");
    etcd.kill(0).await;

    let mut server = quorate();
    server.args(["--name", "n1", "--data-dir"]).arg(&from);
    let done = server.output().await.expect("the program starts");
    let text = refused(&done);
    let command = format!("quorate import {} --data-dir", from.display());
    assert!(text.contains(&command), "{text}");

    for (path, expected) in [
        (folder.path().to_owned(), "no etcd's data directory"),
        (folder.path().join("absent"), "absent"),
    ] {
        let text = refused(&import(&path, &into, &[]).await);
        assert!(text.contains(expected), "{text}");
        assert!(!into.exists(), "nothing is made");
    }
    fs::remove_dir_all(from.join("member/wal")).expect("the log goes");
    let text = refused(&import(&from, &into, &[]).await);
    assert!(text.contains("has no file *.wal"), "{text}");
}

/// The log of one of several voters does not say that its last entry was committed.
#[tokio::test]
async fn what_may_not_have_been_committed_is_asked_about() {
    if tools::etcd_version() < (3, 5) {
        return;
    }
    let mut etcd = Etcd::start_with(3, &LATE);
    let ports = etcd.ports();
    for port in &ports {
        settled(*port).await;
    }
    let leads = leader(&ports).await;
    for key in ["first", "last"] {
        etcdctl(&ports[leads..=leads], &["put", key, "v"])
            .await
            .ok();
    }
    etcd.kill(leads).await;

    let from = etcd.data_dir(leads);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let into = folder.path().join("n1");
    let done = import(&from, &into, &[]).await;
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success(), "{done:?}");
    for words in ["last 1 entries", "--keep-uncommitted", "--drop-uncommitted"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert!(!into.exists(), "nothing is made");
    for (flag, expected) in [("--keep-uncommitted", 2), ("--drop-uncommitted", 1)] {
        let ours = imported(&from, &[flag], &[]).await;
        let all = json(ours.port, &[], &["get", "", "--from-key"]).await;
        let found = all["kvs"].as_array().map(Vec::len);
        assert_eq!(found, Some(expected), "{flag}: {all}");
    }
}
