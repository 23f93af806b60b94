//! Reads of the database that stall while entries or clients wait for them: the core thread goes on. Compiled with the feature
//! `failpoints`.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use serde_json::Value;
use std::time::Duration;
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

/// How long each read stalls: longer than a member takes to end the request.
const STALL: Duration = Duration::from_secs(10);
/// The election timeout where a busy machine alone must not cause elections, and a stall that is longer than such a member takes
/// to end a request.
const ELECTION_MS: &str = "5000";
const LONG_STALL: Duration = Duration::from_secs(30);
/// Reads that must complete meanwhile, at each member.
const READS: usize = 50;
/// Reads of stored values that stall, at each member: more than it has threads for them.
const STALLED_READS: usize = 6;
/// Records that a member reads ahead for a batch, and keys that are more.
const READ_AHEAD: usize = 4_096;
const MANY_KEYS: usize = 5_000;
/// Puts in one transaction, while there are many keys to put.
const PUTS: usize = 100;

type Kv = pb::kv_client::KvClient<Channel>;

async fn connect(port: u16) -> Kv {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
    let connected = endpoint.expect("a valid URI").connect().await;
    Kv::new(connected.expect("the member listens"))
}

/// Puts `key` if its value is `old`: applying it reads the value.
fn compare_and_put(key: &str, old: &str, new: &str) -> pb::TxnRequest {
    let compare = pb::Compare {
        key: key.to_owned().into(),
        target: pb::compare::CompareTarget::Value.into(),
        result: pb::compare::CompareResult::Equal.into(),
        target_union: Some(pb::compare::TargetUnion::Value(old.to_owned().into())),
        ..pb::Compare::default()
    };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![put_op(key, new)],
        ..pb::TxnRequest::default()
    }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..pb::PutRequest::default()
    };
    pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put)),
    }
}

fn get(key: &str, serializable: bool) -> pb::RangeRequest {
    pb::RangeRequest {
        key: key.to_owned().into(),
        serializable,
        ..pb::RangeRequest::default()
    }
}

async fn term_at(port: u16) -> u64 {
    let status = etcdctl(&[port], &["endpoint", "status", "-w", "json"]).await;
    let status: Value = status.json();
    status[0]["Status"]["raftTerm"].as_u64().expect("a term")
}

/// Waits until the databases hold the records of all members: then memory does not.
async fn all_stored(ports: &[u16]) {
    for port in ports {
        let status = ["endpoint", "status", "-w", "json"];
        eventually(&[*port], &status, |text| {
            let status: Result<Value, _> = serde_json::from_str(text);
            let used = |status: Value| status[0]["Status"]["dbSizeInUse"].as_u64();
            status.is_ok_and(|status| used(status).is_some_and(|used| used > 0))
        })
        .await;
    }
}

/// Which reads of the database stall, at each member.
#[derive(Clone, Copy)]
struct Stalls {
    /// So many at first do not.
    quick: usize,
    /// So many after those do.
    count: usize,
    time: Duration,
}

impl Stalls {
    /// All but the first `quick`.
    fn after(quick: usize, time: Duration) -> Self {
        let count = 1_000_000;
        Self { quick, count, time }
    }
}

/// Starts the members again, with reads of the database that stall. No record is in memory then.
async fn restart_with_stalls(cluster: &mut Cluster, stalls: Stalls) {
    all_stored(&cluster.ports()).await;
    for member in &mut cluster.members {
        member.stop().await;
    }
    let Stalls { quick, count, time } = stalls;
    let stall = format!(
        "before-stored-read={quick}*off->{count}*sleep({})",
        time.as_millis()
    );
    for member in &mut cluster.members {
        member.set("FAILPOINTS", &stall);
        member.start();
    }
    leader(&cluster.ports()).await;
}

/// Three members whose databases have `keys`, and whose reads of them stall. The key `other` is in memory: the first read of
/// each member is that of `other`.
async fn with_stalls(keys: &[String], value: &str, stalls: Stalls) -> Cluster {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        // All actors but those with the disks share one thread, with the client port.
        member.set("QUORATE_RUNTIME_SPREAD", "one");
        member.set("QUORATE_RAFT_ELECTION_MS", ELECTION_MS);
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    etcdctl(&ports, &["put", "other", "value"]).await.ok();
    let mut client = connect(ports[0]).await;
    for keys in keys.chunks(PUTS) {
        let puts = keys.iter().map(|key| put_op(key, value));
        let request = pb::TxnRequest {
            success: puts.collect(),
            ..pb::TxnRequest::default()
        };
        client.txn(request).await.expect("a leader");
    }
    same_history(&ports).await;
    restart_with_stalls(&mut cluster, stalls).await;
    for port in ports {
        // The one read that does not stall; the record is in memory from now on.
        let read = connect(port).await.range(get("other", true)).await;
        read.expect("it does not stall");
    }
    cluster
}

/// Reads `key` so often at each member, and checks that the term stays.
async fn read_while_stalled(ports: &[u16], clients: &mut [Kv], key: &str) {
    let leads = leader(ports).await;
    let term = term_at(ports[leads]).await;
    for _ in 0..READS {
        for client in &mut *clients {
            let read = client.range(get(key, true)).await;
            let found = read.expect("an answer").into_inner().kvs.len();
            assert_eq!(found, 1, "{key} is in memory");
        }
    }
    assert_eq!(term_at(ports[leads]).await, term, "heartbeats went on");
}

/// Hands leadership to the next member: entries are replicated to the successor and by it.
async fn elect_another(ports: &[u16]) {
    let leads = leader(ports).await;
    let next = (leads + 1) % ports.len();
    let term = term_at(ports[leads]).await;
    let id = etcdctl(&[ports[next]], &["endpoint", "status", "-w", "json"]).await;
    let id = id.json()[0]["Status"]["header"]["member_id"]
        .as_u64()
        .expect("an id");
    let moved = etcdctl(&[ports[leads]], &["move-leader", &format!("{id:x}")]).await;
    assert!(moved.good, "{moved:?}");
    assert!(term_at(ports[next]).await > term, "a new leader");
}

/// A request whose client waits for longer than the member does.
fn patient<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_mins(1));
    request
}

#[tokio::test]
async fn callers_are_told_that_their_time_is_up_while_a_value_is_read() {
    let mut cluster = Cluster::new(1).await;
    cluster.members[0].start();
    let ports = cluster.ports();
    leader(&ports).await;
    // In one entry, so that the database has both or none.
    let both = ["k", "other"].map(|key| put_op(key, "old"));
    let both = pb::TxnRequest {
        success: both.into(),
        ..pb::TxnRequest::default()
    };
    let txn = connect(ports[0]).await.txn(both).await;
    txn.expect("a leader");
    restart_with_stalls(&mut cluster, Stalls::after(0, STALL)).await;
    let client = connect(ports[0]).await;
    let (mut one, mut two, mut three) = (client.clone(), client.clone(), client);

    // It is applied at once; only its answer waits for the value.
    let with_answer = pb::PutRequest {
        key: "other".into(),
        value: "new".into(),
        prev_kv: true,
        ..pb::PutRequest::default()
    };
    let answered = one.put(patient(with_answer));
    let behind = pb::PutRequest {
        key: "behind".into(),
        value: "new".into(),
        ..pb::PutRequest::default()
    };
    let applied = two.txn(patient(compare_and_put("k", "old", "new")));
    let (answered, applied) = tokio::join!(answered, applied);
    let late = [
        answered.expect_err("its answer stalls"),
        applied.expect_err("its entry stalls"),
    ];
    for status in late {
        assert_eq!(status.message(), "etcdserver: request timed out");
        assert_eq!(status.code(), Code::Unavailable);
    }
    // What comes next is neither lost nor out of order.
    three
        .put(patient(behind))
        .await
        .expect("it waits behind it");
    for key in ["k", "other", "behind"] {
        let got = eventually(&ports, &["get", key], |text| text.contains("new")).await;
        assert_eq!(
            got,
            format!("{key}\nnew\n"),
            "it is carried out all the same"
        );
    }
}

/// Sends a request that puts `k` and whose entry waits for a stored value at each member. Everything else must go on meanwhile.
async fn others_go_on_while(ports: &[u16], request: pb::TxnRequest) {
    let leads = leader(ports).await;
    let mut clients = Vec::new();
    for port in ports {
        clients.push(connect(*port).await);
    }

    let mut writer = clients[leads].clone();
    let writing = tokio::spawn(async move { writer.txn(patient(request)).await });
    read_while_stalled(ports, &mut clients, "other").await;
    assert!(!writing.is_finished(), "reads while it stalled");
    elect_another(ports).await;
    assert!(!writing.is_finished(), "an election while it stalled");

    let done = writing.await.expect("the task ends");
    // The leader changed meanwhile; its answer depends on when, what it did does not.
    if let Ok(done) = done {
        assert!(done.into_inner().succeeded, "its compares hold");
    }
    let got = eventually(ports, &["get", "k"], |text| text.contains("new")).await;
    assert_eq!(got, "k\nnew\n", "the last write");
    same_history(ports).await;
}

#[tokio::test]
async fn heartbeats_elections_and_reads_go_on_while_a_value_is_read() {
    let keys = ["k".to_owned()];
    let cluster = with_stalls(&keys, "old", Stalls::after(1, LONG_STALL)).await;
    others_go_on_while(&cluster.ports(), compare_and_put("k", "old", "new")).await;
}

/// The values that are read ahead do not stall. The first one that is not among them does, and it is not read ahead.
#[tokio::test]
async fn heartbeats_elections_and_reads_go_on_while_many_values_are_compared() {
    let keys: Vec<String> = (0..MANY_KEYS).map(|n| format!("m/{n:05}")).collect();
    let stalls = Stalls {
        quick: 1 + READ_AHEAD,
        count: 1,
        time: LONG_STALL,
    };
    let cluster = with_stalls(&keys, "old", stalls).await;
    let mut request = compare_and_put("m/", "old", "");
    request.compare[0].range_end = "m0".into();
    request.success = vec![put_op("k", "new")];
    others_go_on_while(&cluster.ports(), request).await;
}

/// A client's read of a value that is not in memory waits for the disk, and nothing else does.
#[tokio::test]
async fn heartbeats_elections_and_other_reads_go_on_while_clients_read_stored_values() {
    let keys = ["stored".to_owned()];
    let stalls = Stalls::after(1, Duration::from_hours(1));
    let cluster = with_stalls(&keys, "value", stalls).await;
    let ports = cluster.ports();

    let mut clients = Vec::new();
    let mut stalled = Vec::new();
    for port in &ports {
        let client = connect(*port).await;
        for n in 0..STALLED_READS {
            let mut client = client.clone();
            let read = patient(get("stored", n % 2 == 0));
            stalled.push(tokio::spawn(async move { client.range(read).await }));
        }
        let mut client = client.clone();
        let compare = pb::TxnRequest {
            success: Vec::new(),
            ..compare_and_put("stored", "value", "")
        };
        stalled.push(tokio::spawn(async move {
            let read = client.txn(patient(compare)).await;
            read.map(|_| tonic::Response::new(pb::RangeResponse::default()))
        }));
        clients.push(connect(*port).await);
    }
    read_while_stalled(&ports, &mut clients, "other").await;
    elect_another(&ports).await;
    read_while_stalled(&ports, &mut clients, "other").await;
    for read in stalled {
        let status = read.await.expect("the task ends");
        let status = status.expect_err("its disk does not answer");
        assert_eq!(status.message(), "etcdserver: request timed out");
    }
}
