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

/// Starts the members again, with reads of the database that stall, but for the first `quick` of each member. No record is in
/// memory then.
async fn restart_with_stalls(cluster: &mut Cluster, quick: usize, stall: Duration) {
    all_stored(&cluster.ports()).await;
    for member in &mut cluster.members {
        member.stop().await;
    }
    let stall = format!(
        "before-stored-read={quick}*off->sleep({})",
        stall.as_millis()
    );
    for member in &mut cluster.members {
        member.set("FAILPOINTS", &stall);
        member.start();
    }
    leader(&cluster.ports()).await;
}

/// Three members whose databases have `key`, and whose reads of it stall. The key `other` is in memory.
async fn with_stalls(key: &str, value: &str, stall: Duration) -> Cluster {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        // All actors but those with the disks share one thread, with the client port.
        member.set("QUORATE_RUNTIME_SPREAD", "one");
        member.set("QUORATE_RAFT_ELECTION_MS", ELECTION_MS);
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    for (key, value) in [(key, value), ("other", "value")] {
        etcdctl(&ports, &["put", key, value]).await.ok();
    }
    same_history(&ports).await;
    restart_with_stalls(&mut cluster, 1, stall).await;
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
    restart_with_stalls(&mut cluster, 0, STALL).await;
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

#[tokio::test]
async fn heartbeats_elections_and_reads_go_on_while_a_value_is_read() {
    let cluster = with_stalls("k", "old", LONG_STALL).await;
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let mut clients = Vec::new();
    for port in &ports {
        clients.push(connect(*port).await);
    }

    let mut writer = clients[leads].clone();
    let writing = tokio::spawn(async move {
        let request = patient(compare_and_put("k", "old", "new"));
        writer.txn(request).await
    });
    read_while_stalled(&ports, &mut clients, "other").await;
    assert!(!writing.is_finished(), "reads while it stalled");
    elect_another(&ports).await;
    assert!(!writing.is_finished(), "an election while it stalled");

    let done = writing.await.expect("the task ends");
    // The leader changed meanwhile; its answer depends on when, what it did does not.
    if let Ok(done) = done {
        assert!(done.into_inner().succeeded);
    }
    let got = eventually(&ports, &["get", "k"], |text| text.contains("new")).await;
    assert_eq!(got, "k\nnew\n");
    same_history(&ports).await;
}

/// A client's read of a value that is not in memory waits for the disk, and nothing else does.
#[tokio::test]
async fn heartbeats_elections_and_other_reads_go_on_while_clients_read_stored_values() {
    let cluster = with_stalls("stored", "value", Duration::from_hours(1)).await;
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
