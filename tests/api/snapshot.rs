//! `Maintenance.Snapshot`, `quorate snapshot`, and etcd's tools on what they make.

use crate::{
    auth::{by, enabled, log_in, quick},
    support::{
        Client, Exit, Kind, Outcome, Server, Setup, del, del_range, etcd_version, etcdctl, etcdutl,
        get, get_range, note, op_put, put, refused, run_to_exit, txn,
    },
};
use quorate::internals::api::proto::etcdserverpb as pb;
use quorate_etcd_files::{
    bolt::Image,
    store::{Store, hash_kv},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{process::Command, time::sleep};
use tonic::{Code, Response, Streaming, transport::Channel};

/// The pause between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(20);

type Messages = Streaming<pb::SnapshotResponse>;

async fn begin(client: &Client) -> Outcome<Messages> {
    let mut maintenance = client.maintenance.clone();
    let answer = maintenance.snapshot(pb::SnapshotRequest {}).await;
    answer.map(Response::into_inner)
}

/// A snapshot that has begun: what arrived of it, and what is still to come.
struct UnderWay {
    file: Vec<u8>,
    messages: Messages,
}

async fn under_way(server: &Server) -> UnderWay {
    let mut messages = begin(&server.client().await).await.unwrap();
    let first = messages.message().await.unwrap().unwrap();
    UnderWay {
        file: first.blob.to_vec(),
        messages,
    }
}

/// The file that a client makes of a whole snapshot.
async fn rest(under_way: UnderWay) -> Outcome<Vec<u8>> {
    let UnderWay {
        mut file,
        mut messages,
    } = under_way;
    while let Some(message) = messages.message().await? {
        file.extend_from_slice(&message.blob);
    }
    Ok(file)
}

async fn snapshot(client: &Client) -> Outcome<Vec<u8>> {
    let (file, messages) = (Vec::new(), begin(client).await?);
    rest(UnderWay { file, messages }).await
}

/// What a file holds, once it was verified as a whole.
fn opened(file: Vec<u8>) -> Store<Vec<u8>> {
    let image = Image::open(file).unwrap();
    image.verify_hash().unwrap();
    image.check().unwrap();
    let store = Store::open(image).unwrap();
    store.verify_histories().unwrap();
    store
}

/// Quorate, also where others run against etcd: what is tested is its own.
async fn quorate(setup: Setup) -> Server {
    let mut server = Server::new(Kind::Quorate, setup);
    server.restart().await;
    server
}

/// One that sends snapshots at this pace.
async fn slow(bytes_per_sec: &str) -> Server {
    let pace = "QUORATE_STORAGE_SNAPSHOT_BYTES_PER_SEC".to_owned();
    quorate(Setup {
        env: vec![(pace, bytes_per_sec.to_owned())],
        ..Setup::default()
    })
    .await
}

async fn leases(server: &Server) -> pb::lease_client::LeaseClient<Channel> {
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let endpoint = Channel::from_shared(uri).unwrap();
    pb::lease_client::LeaseClient::new(endpoint.connect().await.unwrap())
}

async fn hash(client: &Client, revision: i64) -> (u32, i64) {
    let request = pb::HashKvRequest { revision };
    let answer = client.maintenance.clone().hash_kv(request).await;
    let answer = answer.unwrap().into_inner();
    (answer.hash, answer.compact_revision)
}

/// Versions, deletions, a transaction, values of several pages, a lease, and a compaction in the middle. Returns the compacted
/// revision and the newest.
async fn fill(server: &Server) -> (i64, i64) {
    let client = server.client().await;
    for round in 0..3_u8 {
        for key in 0..50_u8 {
            let value = vec![round; usize::from(key) * 40];
            client.must_put(format!("k{key:02}"), value).await;
        }
    }
    client.delete(del("k07")).await.unwrap();
    client.delete(del_range("k10", "k15")).await.unwrap();
    let compacted = client.revision().await;
    client.must_put("k07", "again").await;
    client.must_put("large", vec![7_u8; 1_000_000]).await;
    let both = vec![op_put(put("t1", "1")), op_put(put("t2", "2"))];
    client.txn(txn(vec![], both, vec![])).await.unwrap();
    let grant = pb::LeaseGrantRequest { id: 77, ttl: 3_000 };
    leases(server).await.lease_grant(grant).await.unwrap();
    let leased = pb::PutRequest {
        lease: 77,
        ..put("leased", "v")
    };
    client.put(leased).await.unwrap();
    let compact = pb::CompactionRequest {
        revision: compacted,
        // So that nothing is left to be done of it.
        physical: true,
    };
    client.compact_with(compact).await.unwrap();
    client.delete(del("k20")).await.unwrap();
    (compacted, client.must_put("last", "v").await)
}

#[tokio::test]
async fn messages_count_down_and_end_with_the_hash() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", vec![7_u8; 100_000]).await;
    let mut stream = begin(&client).await.unwrap();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        assert!(message.header.is_none(), "etcd sends none");
        if server.kind() == Kind::Quorate {
            assert_eq!(message.version, "3.6.0");
        }
        messages.push(message);
    }
    let hash = messages.pop().unwrap();
    let image: Vec<u8> = messages
        .iter()
        .flat_map(|message| message.blob.iter().copied())
        .collect();
    let mut left = image.len();
    for message in &messages {
        left -= message.blob.len();
        assert_eq!(message.remaining_bytes, left as u64);
        assert!(
            message.blob.len() == 32 * 1024 || left == 0,
            "blobs are full"
        );
    }
    assert_eq!(hash.remaining_bytes, 0);
    assert_eq!(hash.blob[..], Sha256::digest(&image)[..]);
}

#[tokio::test]
async fn a_snapshot_hashes_to_what_the_member_hashes_to() {
    let mut server = quorate(Setup::default()).await;
    let (compacted, newest) = fill(&server).await;
    // From here on its hash at the compacted revision is that of what is left, as for who opens the file.
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    let store = opened(snapshot(&client).await.unwrap());
    for revision in [compacted, compacted + 1, newest - 1, newest] {
        let of_file = hash_kv(&store, revision).unwrap();
        let found = (of_file.hash, of_file.compact_revision);
        assert_eq!(found, hash(&client, revision).await, "at {revision}");
        assert_eq!(of_file.current_revision, newest);
    }
    let leases: Vec<_> = store.leases().unwrap().map(Result::unwrap).collect();
    assert_eq!(leases.len(), 1);
    assert_eq!((leases[0].id, leases[0].ttl), (77, 3_000));
    let members = store.members().unwrap().map(|member| member.unwrap().id);
    let id = client.status().await.header.unwrap().member_id;
    assert_eq!(members.collect::<Vec<_>>(), [id]);
    let meta = store.meta().unwrap();
    assert_eq!(meta.conf_state.unwrap().voters, [id]);
    assert_eq!(meta.storage_version.as_deref(), Some("3.6.0"));
}

#[tokio::test]
async fn snapshots_of_an_empty_store_are_whole() {
    let server = quorate(Setup::default()).await;
    let store = opened(snapshot(&server.client().await).await.unwrap());
    assert_eq!(store.records().unwrap().count(), 0);
    let meta = store.meta().unwrap();
    assert_eq!(meta.compacted(), -1);
    assert!(meta.term.unwrap() > 0, "there is a leader");
    let auth = store.auth().unwrap();
    assert_eq!((auth.enabled, auth.revision), (Some(false), Some(1)));
}

/// What was acknowledged before the call is in it, each transaction is in it whole or not at all, and no revision is missing.
#[tokio::test]
async fn snapshots_under_writes_are_one_state_each() {
    let server = quorate(Setup::default()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let two = |value: u64| {
        let value = value.to_string();
        let both = ["a", "b"].map(|key| op_put(put(key, value.clone())));
        txn(vec![], both.into(), vec![])
    };
    let mut writers = Vec::new();
    for _ in 0..4 {
        let (client, stop) = (server.client().await, stop.clone());
        writers.push(tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                count += 1;
                client.txn(two(count)).await.unwrap();
            }
        }));
    }
    let client = server.client().await;
    for round in 0..6 {
        let done = client.txn(two(round)).await.unwrap();
        let acknowledged = done.header.unwrap().revision;
        let store = opened(snapshot(&client).await.unwrap());
        let revisions: Vec<_> = store
            .records()
            .unwrap()
            .map(|record| {
                let record = record.unwrap();
                (record.main, record.sub)
            })
            .collect();
        let (newest, sub) = *revisions.last().unwrap();
        assert!(newest >= acknowledged, "{newest} of {acknowledged}");
        assert_eq!(sub, 1, "the last transaction is whole");
        let found = hash_kv(&store, newest).unwrap();
        let found = (found.hash, found.compact_revision);
        assert_eq!(found, hash(&client, newest).await);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_third_snapshot_waits_and_then_is_refused() {
    let server = quorate(Setup::default()).await;
    let client = server.client().await;
    for key in 0..8 {
        client
            .must_put(format!("k{key}"), vec![7_u8; 1_000_000])
            .await;
    }
    // More than what connections buffer, so both stay under way while nobody reads.
    let first = under_way(&server).await;
    let second = under_way(&server).await;
    let mut third = begin(&server.client().await).await.unwrap();
    refused(
        third.message().await,
        Code::ResourceExhausted,
        "etcdserver: 2 snapshots are being made already",
    );
    client.must_put("k", "others are served meanwhile").await;
    drop(second);
    let next = opened(snapshot(&server.client().await).await.unwrap());
    let first = opened(rest(first).await.unwrap());
    let count = |store: &Store<Vec<u8>>| store.records().unwrap().count();
    assert_eq!((count(&first), count(&next)), (8, 9));
}

#[tokio::test]
async fn only_root_may_have_a_snapshot() {
    let server = quorate(quick()).await;
    let client = enabled(&server).await;
    let refused_as = async |token: Option<&str>, code, text| {
        let request = match token {
            Some(token) => by(token, pb::SnapshotRequest {}),
            None => tonic::Request::new(pb::SnapshotRequest {}),
        };
        let answer = client.maintenance.clone().snapshot(request).await;
        refused(answer.map(drop), code, text);
    };
    let user = log_in(&client, "u").await;
    refused_as(
        None,
        Code::InvalidArgument,
        "etcdserver: user name is empty",
    )
    .await;
    let denied = "etcdserver: permission denied";
    refused_as(Some(&user), Code::PermissionDenied, denied).await;
    let root = log_in(&client, "root").await;
    let request = by(&root, pb::SnapshotRequest {});
    let answer = client.maintenance.clone().snapshot(request).await.unwrap();
    let (file, messages) = (Vec::new(), answer.into_inner());
    let store = opened(rest(UnderWay { file, messages }).await.unwrap());
    assert_eq!(store.auth().unwrap().enabled, Some(true));
    let users = store.users().unwrap().map(|user| user.unwrap().name);
    assert_eq!(users.collect::<Vec<_>>(), ["root", "u"]);
}

/// Restores a snapshot with etcd's own tool, and starts an etcd from it; `None` where the tool is not there.
async fn etcd_from(file: &Path) -> Option<Server> {
    let Some(tool) = etcdutl() else {
        note("skipped: this machine has no etcdutl");
        return None;
    };
    if etcd_version() < (3, 6) {
        note("skipped: an older etcd does not start from what a newer etcdutl restores");
        return None;
    }
    let mut etcd = Server::new(Kind::Etcd, Setup::default());
    let peer = format!("http://127.0.0.1:{}", etcd.peer_port());
    let mut restore = Command::new(&tool);
    restore
        .args(["snapshot", "restore"])
        .arg(file)
        .arg("--data-dir")
        .arg(etcd.data_dir())
        .args(["--name", "n1", "--initial-cluster", &format!("n1={peer}")])
        .args(["--initial-advertise-peer-urls", &peer]);
    let Exit { status, output } = run_to_exit(restore).await;
    assert!(status.success(), "{output}");
    etcd.restart().await;
    Some(etcd)
}

#[tokio::test]
async fn etcd_starts_from_a_snapshot_with_the_same_state() {
    let mut server = quorate(Setup::default()).await;
    let (compacted, newest) = fill(&server).await;
    // From here on its hash at the compacted revision is that of what is left, as for who opens the file.
    server.kill().await;
    server.restart().await;
    let file = server.home().join("backup.db");
    let path = file.to_str().unwrap();
    etcdctl(&server, &["snapshot", "save", path], "").await.ok();
    let Some(etcd) = etcd_from(&file).await else {
        return;
    };
    let (ours, theirs) = (server.client().await, etcd.client().await);
    let everything = || get_range("a", "z");
    let (own, other) = (
        ours.range(everything()).await.unwrap(),
        theirs.range(everything()).await.unwrap(),
    );
    assert_eq!(own.kvs, other.kvs, "values, versions, revisions, leases");
    assert_eq!(other.header.unwrap().revision, newest);
    for revision in [compacted, compacted + 1, newest - 1, newest] {
        assert_eq!(
            hash(&ours, revision).await,
            hash(&theirs, revision).await,
            "at {revision}"
        );
    }
    let old = pb::RangeRequest {
        revision: compacted,
        ..get("k06")
    };
    let (own, other) = (
        ours.range(old.clone()).await.unwrap(),
        theirs.range(old.clone()).await.unwrap(),
    );
    assert_eq!(own.kvs, other.kvs);
    let older = pb::RangeRequest {
        revision: compacted - 1,
        ..old
    };
    let text = "etcdserver: mvcc: required revision has been compacted";
    refused(theirs.range(older).await, Code::OutOfRange, text);
    let asked = pb::LeaseTimeToLiveRequest { id: 77, keys: true };
    let lease = leases(&etcd).await.lease_time_to_live(asked).await;
    let lease = lease.unwrap().into_inner();
    assert_eq!(lease.granted_ttl, 3_000);
    assert!((1..=3_000).contains(&lease.ttl), "{lease:?}");
    assert_eq!(lease.keys, ["leased"]);
    assert_eq!(theirs.must_put("next", "v").await, newest + 1);
}

#[tokio::test]
async fn etcd_starts_from_a_snapshot_with_the_same_users() {
    let server = quorate(quick()).await;
    enabled(&server).await;
    let file = server.home().join("backup.db");
    let saved = cli(&[
        "snapshot",
        "save",
        file.to_str().unwrap(),
        "--endpoints",
        &format!("127.0.0.1:{}", server.client_port()),
        "--user",
        "root:root's secret",
    ])
    .await;
    assert!(saved.status.success(), "{saved:?}");
    let Some(etcd) = etcd_from(&file).await else {
        return;
    };
    let client = etcd.client().await;
    let token = log_in(&client, "u").await;
    let mut kv = client.kv.clone();
    kv.put(by(&token, put("a1", "v"))).await.unwrap();
    let outcome = kv.put(by(&token, put("b1", "v"))).await;
    let text = "etcdserver: permission denied";
    refused(outcome.map(drop), Code::PermissionDenied, text);
    let root = log_in(&client, "root").await;
    let asked = by(&root, pb::AuthUserListRequest {});
    let users = client.auth.clone().user_list(asked).await.unwrap();
    assert_eq!(users.into_inner().users, ["root", "u"]);
}

async fn cli(args: &[&str]) -> Exit {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quorate"));
    command.args(args);
    run_to_exit(command).await
}

async fn save(server: &Server, file: &Path, more: &[&str]) -> Exit {
    let endpoint = format!("127.0.0.1:{}", server.client_port());
    let mut args = vec!["snapshot", "save", file.to_str().unwrap()];
    args.extend(["--endpoints", &endpoint]);
    args.extend(more);
    cli(&args).await
}

#[tokio::test]
async fn the_command_saves_and_its_status_is_that_of_etcdutl() {
    let server = quorate(Setup::default()).await;
    fill(&server).await;
    let file = server.home().join("backup.db");
    let path = file.to_str().unwrap();
    let saved = save(&server, &file, &[]).await;
    assert!(saved.status.success(), "{saved:?}");
    assert!(saved.output.contains("version 3.6.0"), "{saved:?}");
    let before = fs::read(&file).unwrap();
    let shown = cli(&["snapshot", "status", path, "--json"]).await;
    assert!(shown.status.success(), "{shown:?}");
    let shown: Value = serde_json::from_str(&shown.output).unwrap();
    assert_eq!(shown["version"], json!("3.6.0"));
    let lines = cli(&["snapshot", "status", path]).await.output;
    let hash = format!("hash        {:08x}\n", shown["hash"].as_u64().unwrap());
    assert!(lines.contains(&hash), "{lines}");
    if let Some(tool) = etcdutl() {
        let mut command = Command::new(tool);
        command.args(["snapshot", "status", path, "-w", "json"]);
        let theirs = command.output().await.unwrap();
        let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
        assert_eq!(shown, theirs);
    }
    assert!(
        fs::read(&file).unwrap() == before,
        "looking changes nothing"
    );
    // An existing file is replaced only where that is asked for.
    let again = save(&server, &file, &[]).await;
    assert!(!again.status.success(), "{again:?}");
    assert!(again.output.contains("exists already"), "{again:?}");
    server.client().await.must_put("more", "v").await;
    let again = save(&server, &file, &["--overwrite"]).await;
    assert!(again.status.success(), "{again:?}");
    assert!(fs::read(&file).unwrap() != before, "it is the newer one");
    assert!(
        !server.home().join("backup.db.part").exists(),
        "none is left"
    );
}

#[tokio::test]
async fn a_bad_argument_is_named_and_leaves_no_file() {
    let server = quorate(quick()).await;
    enabled(&server).await;
    let file = server.home().join("backup.db");
    let secret = server.home().join("secret");
    fs::write(&secret, "wrong\n").unwrap();
    let secret = secret.to_str().unwrap();
    let table: [(&[&str], &str); 6] = [
        (&[], "user name is empty"),
        (&["--user", "u:u's secret"], "permission denied"),
        (&["--user", "root:x"], "invalid user ID or password"),
        (&["--user", "root"], "--password-file"),
        (
            &["--user", "root", "--password-file", secret],
            "invalid user ID or password",
        ),
        (&["--auth-jwt-token", "x"], "invalid auth token"),
    ];
    for (more, expected) in table {
        let refused = save(&server, &file, more).await;
        assert!(!refused.status.success(), "{refused:?}");
        assert!(refused.output.contains(expected), "{more:?}: {refused:?}");
    }
    for (endpoint, expected) in [
        ("127.0.0.1:1", "cannot connect to 127.0.0.1:1"),
        ("n1:2379,n2:2379", "must name one member"),
        ("n1", "it must be HOST:PORT"),
        ("https://n1:2379", "authority"),
    ] {
        let args = ["snapshot", "save", file.to_str().unwrap(), "--endpoints"];
        let refused = cli(&[&args[..], &[endpoint]].concat()).await;
        assert!(!refused.status.success(), "{refused:?}");
        assert!(refused.output.contains(expected), "{refused:?}");
    }
    let found: Vec<_> = fs::read_dir(server.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("backup"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

/// Starts to save a snapshot, and returns once some of it has arrived.
async fn saving(server: &Server, file: &Path) -> tokio::process::Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate"))
        .args(["snapshot", "save"])
        .arg(file)
        .arg("--endpoints")
        .arg(format!("127.0.0.1:{}", server.client_port()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let part = file.with_file_name("backup.db.part");
    while fs::metadata(&part).map_or(0, |part| part.len()) == 0 {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "it ends before anything has arrived");
        sleep(POLL).await;
    }
    child
}

#[tokio::test]
async fn a_server_or_a_command_that_is_killed_leaves_no_file() {
    // The values below take some seconds.
    let mut server = slow("1048576").await;
    let client = server.client().await;
    for key in 0..4 {
        client
            .must_put(format!("k{key}"), vec![7_u8; 1_000_000])
            .await;
    }
    let file = server.home().join("backup.db");
    let part = server.home().join("backup.db.part");

    let mut child = saving(&server, &file).await;
    child.kill().await.unwrap();
    assert!(!file.exists() && part.exists(), "it could not clean up");
    fs::remove_file(&part).unwrap();

    let child = saving(&server, &file).await;
    let second = save(&server, &file, &[]).await;
    assert!(second.output.contains("another process"), "{second:?}");
    server.kill().await;
    let ended = child.wait_with_output().await.unwrap();
    assert!(!ended.status.success(), "{ended:?}");
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(text.contains("the connection to"), "{text}");
    assert!(!file.exists() && !part.exists(), "nothing is left");

    server.restart().await;
    let saved = save(&server, &file, &[]).await;
    assert!(saved.status.success(), "{saved:?}");
    assert!(file.exists() && !part.exists(), "it has its final name");
}

#[tokio::test]
async fn the_status_of_what_is_no_snapshot_says_what_is_wrong() {
    let server = quorate(Setup::default()).await;
    server
        .client()
        .await
        .must_put("k", vec![7_u8; 20_000])
        .await;
    let whole = snapshot(&server.client().await).await.unwrap();
    let file = server.home().join("changed.db");
    let status = async |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        let shown = cli(&["snapshot", "status", file.to_str().unwrap()]).await;
        assert!(fs::read(&file).unwrap() == bytes, "looking changes nothing");
        shown
    };
    assert!(status(&whole).await.status.success(), "it is whole");
    let mut flipped = whole.clone();
    flipped[9_000] ^= 1;
    let without_hash = &whole[..whole.len() - 32];
    let table: [(&[u8], &str); 6] = [
        (&flipped, "the SHA-256 at offset"),
        (without_hash, "no SHA-256 follows the image"),
        (&whole[..whole.len() - 4_096], "truncated"),
        (&whole[..50], "too short"),
        (&[0; 8_192], "not a bbolt database"),
        (b"", "too short"),
    ];
    for (bytes, expected) in table {
        let shown = status(bytes).await;
        assert!(!shown.status.success(), "{shown:?}");
        assert!(shown.output.contains(expected), "{expected}: {shown:?}");
        assert!(shown.output.contains("changed.db"), "{shown:?}");
    }
    let absent = cli(&["snapshot", "status", "/no/such/file"]).await;
    assert!(absent.output.contains("/no/such/file"), "{absent:?}");
}
