//! A short transaction that asks for everything many times costs no member its memory: not the one that answers, nor those that
//! only apply it, nor any that replays it.

use crate::{
    ctl::{leader, same_history},
    memory_cap::MemoryCap,
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use tonic::{Code, transport::Channel};

const VALUES: usize = 50;
const VALUE_BYTES: usize = 1_000_000;
/// What a member of a debug build takes with 50 MB of values, and one answer of at most 256 MiB. All answers have 6 GB or more.
const PEAK_BYTES_MAX: u64 = 1_200_000_000;
/// What the kernel allows it, with the pages of files that it caches for it.
const CAP_BYTES: u64 = 1_600_000_000;

type Kv = pb::kv_client::KvClient<Channel>;

async fn connect(port: u16) -> Kv {
    let address = format!("http://127.0.0.1:{port}");
    let endpoint = Channel::from_shared(address).expect("a valid URI");
    Kv::new(endpoint.connect().await.expect("it listens"))
}

fn put(key: &str, len: usize) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: vec![b'v'; len].into(),
        ..pb::PutRequest::default()
    }
}

fn op(request: pb::request_op::Request) -> pb::RequestOp {
    pb::RequestOp {
        request: Some(request),
    }
}

/// So many reads of everything.
fn ranges(count: usize) -> Vec<pb::RequestOp> {
    let all = pb::RangeRequest {
        key: "k".into(),
        range_end: "l".into(),
        ..pb::RangeRequest::default()
    };
    let all = op(pb::request_op::Request::RequestRange(all));
    vec![all; count]
}

fn txn(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest {
        success,
        ..pb::TxnRequest::default()
    }
}

/// Puts `key` and asks for everything, in one list or in nested ones.
fn poison(key: &str, nested: usize) -> pb::TxnRequest {
    let mut ops = if nested == 0 {
        ranges(127)
    } else {
        let inner = op(pb::request_op::Request::RequestTxn(txn(ranges(20))));
        vec![inner; nested]
    };
    ops.push(op(pb::request_op::Request::RequestPut(put(key, 1))));
    txn(ops)
}

/// Gives each member's process a bound of its own, where that can be done.
fn cap(caps: &[Option<MemoryCap>], cluster: &Cluster) {
    for (cap, member) in caps.iter().zip(&cluster.members) {
        if let Some(cap) = cap {
            cap.hold(member.process());
        }
    }
}

fn assert_bounded(cluster: &mut Cluster, when: &str) {
    for member in &mut cluster.members {
        assert!(member.runs(), "{} was killed {when}", member.name);
        let peak = member.peak_bytes();
        assert!(
            peak < PEAK_BYTES_MAX,
            "{} {when}: {peak} bytes",
            member.name
        );
    }
}

#[tokio::test]
async fn a_transaction_of_many_long_ranges_costs_no_member_its_memory() {
    let caps = ["n1", "n2", "n3"].map(|name| MemoryCap::new(name, CAP_BYTES));
    let mut cluster = Cluster::start(3).await;
    cap(&caps, &cluster);
    let ports = cluster.ports();
    let led = leader(&ports).await;
    let mut kv = connect(ports[led]).await;
    for n in 0..VALUES {
        let value = put(&format!("k{n:03}"), VALUE_BYTES);
        kv.put(value).await.expect("a put");
    }
    for (at, key, nested) in [(led, "flat", 0), ((led + 1) % 3, "nested", 50)] {
        let answer = connect(ports[at]).await.txn(poison(key, nested)).await;
        let refused = answer.expect_err("the answer is too large");
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    }
    same_history(&ports).await;
    assert_bounded(&mut cluster, "after the transactions");
    for member in &mut cluster.members {
        member.kill().await;
    }
    for member in &mut cluster.members {
        member.start();
    }
    cap(&caps, &cluster);
    let led = leader(&ports).await;
    let mut kv = connect(ports[led]).await;
    for key in ["flat", "nested"] {
        let range = pb::RangeRequest {
            key: key.into(),
            ..pb::RangeRequest::default()
        };
        let found = kv.range(range).await.expect("a read").into_inner();
        assert_eq!(found.count, 1, "{key} was written, as in etcd");
    }
    same_history(&ports).await;
    assert_bounded(&mut cluster, "after its log was replayed");
    for member in &mut cluster.members {
        member.kill().await;
    }
}
