//! Reads of the database that stall while entries wait for them: the core thread goes on. Compiled with the feature `failpoints`.

use crate::ctl::{etcdctl, eventually, leader, same_history};
use crate::support::Cluster;
use quorate::internals::api::proto::etcdserverpb as pb;
use serde_json::Value;
use std::time::Duration;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// How long each read stalls: many election timeouts.
const STALL: Duration = Duration::from_secs(10);
/// Reads that go on meanwhile, at each member.
const READS: usize = 50;

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
    let put = pb::PutRequest {
        key: key.to_owned().into(),
        value: new.to_owned().into(),
        ..pb::PutRequest::default()
    };
    let op = pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put)),
    };
    pb::TxnRequest {
        compare: vec![compare],
        success: vec![op],
        ..pb::TxnRequest::default()
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

#[tokio::test]
async fn heartbeats_elections_and_reads_go_on_while_a_value_is_read() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        let stall = format!("before-stored-read=sleep({})", STALL.as_millis());
        member.set("FAILPOINTS", &stall);
        // Everything shares one thread but the disks.
        member.set("QUORATE_RUNTIME_SPREAD", "one");
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    etcdctl(&ports, &["put", "k", "old"]).await.ok();
    etcdctl(&ports, &["put", "other", "value"]).await.ok();
    same_history(&ports).await;
    // Once the database holds the record of `k`, memory does not.
    for port in &ports {
        let status = ["endpoint", "status", "-w", "json"];
        eventually(&[*port], &status, |text| {
            let status: Result<Value, _> = serde_json::from_str(text);
            let used = |status: Value| status[0]["Status"]["dbSizeInUse"].as_u64();
            status.is_ok_and(|status| used(status).is_some_and(|used| used > 0))
        })
        .await;
    }
    let leads = leader(&ports).await;
    let term = term_at(ports[leads]).await;
    let mut clients = Vec::new();
    for port in &ports {
        clients.push(connect(*port).await);
    }

    let mut writer = clients[leads].clone();
    let writing = tokio::spawn(async move {
        let mut request = Request::new(compare_and_put("k", "old", "new"));
        request.set_timeout(Duration::from_mins(1));
        writer.txn(request).await
    });
    let mut turns = 0;
    for _ in 0..READS {
        for client in &mut clients {
            let read = client.range(get("other", true)).await;
            assert_eq!(read.expect("an answer").into_inner().kvs.len(), 1);
            turns += 1;
        }
    }
    assert_eq!(term_at(ports[leads]).await, term, "heartbeats went on");
    assert!(!writing.is_finished(), "{turns} reads while it stalled");

    // An election meanwhile: leadership is handed over, and entries are replicated to the successor and by it.
    let next = (leads + 1) % 3;
    let id = etcdctl(&[ports[next]], &["endpoint", "status", "-w", "json"]).await;
    let id = id.json()[0]["Status"]["header"]["member_id"]
        .as_u64()
        .expect("an id");
    let all = [ports[leads]];
    let moved = etcdctl(&all, &["move-leader", &format!("{id:x}")]).await;
    assert!(moved.good, "{moved:?}");
    assert!(term_at(ports[next]).await > term, "a new leader");
    assert!(!writing.is_finished(), "an election while it stalled");

    let done = writing.await.expect("the task ends");
    // The leader changed meanwhile; what it was told depends on when, what it did does not.
    if let Ok(done) = done {
        assert!(done.into_inner().succeeded);
    }
    let got = eventually(&ports, &["get", "k"], |text| text.contains("new")).await;
    assert_eq!(got, "k\nnew\n");
    same_history(&ports).await;
}
