//! What a write answers besides its revision: ranges and previous values. Only its caller waits for them.

use crate::support::{
    Client, Difference, Server, del_range, get, get_range, op_del, op_get, op_put, op_txn, put,
    refused, txn,
};
use quorate::internals::api::proto::etcdserverpb::{TxnRequest, response_op::Response};
use tonic::Code;

const VALUE_BYTES: usize = 1_000_000;
const VALUES: usize = 200;
const RANGES: usize = 20;
/// What a member of a debug build with 200 MB of values takes, and one answer of at most 256 MiB.
const PEAK_BYTES_MAX: u64 = 1_200_000_000;

async fn fill(client: &Client, values: usize) {
    for n in 0..values {
        let value = vec![u8::try_from(n % 251).unwrap(); VALUE_BYTES];
        client.must_put(format!("k{n:03}"), value).await;
    }
}

/// Reads everything so many times, and puts a key.
fn poison(ranges: usize) -> TxnRequest {
    let all = || op_get(get_range("k", "l"));
    let mut ops: Vec<_> = std::iter::repeat_with(all).take(ranges).collect();
    ops.push(op_put(put("put", "yes")));
    txn(vec![], ops, vec![])
}

#[tokio::test]
async fn ranges_of_everything_in_a_write_cost_no_more_than_one_answer() {
    let mut server = Server::start().await;
    if server.has(Difference::AnswerBound) {
        return;
    }
    let client = server.client().await;
    fill(&client, VALUES).await;
    let answer = client.txn(poison(RANGES)).await;
    let text = "etcdserver: answer is too large";
    refused(answer, Code::ResourceExhausted, text);
    let kv = client.range(get("put")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.value, "yes", "the write has happened, as in etcd");
    let one = client.txn(poison(1)).await.unwrap();
    assert_eq!(one.responses.len(), 2, "one range of everything fits");
    assert!(
        server.peak_bytes() < PEAK_BYTES_MAX,
        "{}",
        server.peak_bytes()
    );

    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    let kv = client.range(get("put")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.version, 2, "both writes are there");
    let replayed = server.peak_bytes();
    assert!(
        replayed < PEAK_BYTES_MAX,
        "{replayed} bytes to replay the log"
    );

    // A transaction that only reads can ask for as much.
    let all = || op_get(get_range("k", "l"));
    let reads = |count| {
        txn(
            vec![],
            std::iter::repeat_with(all).take(count).collect(),
            vec![],
        )
    };
    refused(
        client.txn(reads(RANGES)).await,
        Code::ResourceExhausted,
        text,
    );
    let one = client.txn(reads(1)).await.unwrap();
    assert_eq!(one.responses.len(), 1, "one range of everything fits");
    assert!(
        server.peak_bytes() < PEAK_BYTES_MAX,
        "{}",
        server.peak_bytes()
    );
}

/// What a member of a debug build takes with a few small values, and what it notes for one answer.
const PEAK_OF_NOTES_MAX: u64 = 500_000_000;

#[tokio::test]
async fn thousands_of_ranges_in_a_write_note_a_bounded_number_of_keys() {
    let server = Server::start().await;
    if server.has(Difference::AnswerBound) {
        return;
    }
    let client = server.client().await;
    for list in 0..15 {
        let puts = (0..100).map(|n| op_put(put(format!("k{list:02}{n:02}"), "v")));
        client
            .txn(txn(vec![], puts.collect(), vec![]))
            .await
            .unwrap();
    }
    // 4,000 ranges of 1,500 keys, in 40 KB.
    let ranges = || std::iter::repeat_with(|| op_get(get_range("k", "l"))).take(66);
    let list = || op_txn(txn(vec![], ranges().collect(), vec![]));
    let lists = std::iter::repeat_with(list).take(61);
    let ops = lists.chain([op_put(put("put", "yes"))]);
    refused(
        client.txn(txn(vec![], ops.collect(), vec![])).await,
        Code::ResourceExhausted,
        "etcdserver: answer is too large",
    );
    let kv = client.range(get("put")).await.unwrap().kvs.remove(0);
    assert_eq!(kv.value, "yes", "the write has happened");
    let peak = server.peak_bytes();
    assert!(peak < PEAK_OF_NOTES_MAX, "{peak} bytes");
}

#[tokio::test]
async fn answers_from_disk_are_complete() {
    let mut server = Server::start().await;
    let client = server.client().await;
    fill(&client, 3).await;
    // After a restart no record is in memory.
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    let mut with_prev = put("k001", "new");
    with_prev.prev_kv = true;
    let old = client.put(with_prev).await.unwrap().prev_kv.unwrap();
    assert_eq!((old.value.len(), old.value[0]), (VALUE_BYTES, 1));

    let mut kept = put("k000", "");
    kept.ignore_value = true;
    client.put(kept).await.unwrap();
    let mut delete = del_range("k001", "k003");
    delete.prev_kv = true;
    let ops = vec![
        op_get(get_range("k", "l")),
        op_put(put("k009", "late")),
        op_get(get_range("k", "l")),
        op_del(delete),
        op_get(get_range("k", "l")),
    ];
    let done = client.txn(txn(vec![], ops, vec![])).await.unwrap();
    let mut answered: Vec<Vec<usize>> = Vec::new();
    for response in done.responses {
        match response.response.unwrap() {
            Response::ResponseRange(range) => {
                answered.push(range.kvs.iter().map(|kv| kv.value.len()).collect());
            }
            Response::ResponseDeleteRange(deleted) => {
                answered.push(deleted.prev_kvs.iter().map(|kv| kv.value.len()).collect());
            }
            Response::ResponsePut(_) | Response::ResponseTxn(_) => answered.push(Vec::new()),
        }
    }
    let expected: [&[usize]; 5] = [
        &[VALUE_BYTES, 3, VALUE_BYTES],
        &[],
        &[VALUE_BYTES, 3, VALUE_BYTES, 4],
        &[3, VALUE_BYTES],
        &[VALUE_BYTES, 4],
    ];
    assert_eq!(answered, expected);
}
