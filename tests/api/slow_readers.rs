//! Clients that do not take their answers: what they cost is bounded, and others get theirs.

use crate::support::{
    Client, Difference, Server,
    frames::{DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, call_headers, encode},
    get, get_range, op_get, put, refused, txn,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use tonic::Code;

const VALUE_BYTES: usize = 1_000_000;
const VALUES: usize = 100;
/// Streams that read everything and take nothing, on each of several connections.
const CONNECTIONS: usize = 4;
const STREAMS: u32 = 16;
/// What a member of a debug build takes with 100 MB of values (each is in memory once in its page cache and once until it is
/// stored), and the bytes of answers that an arbiter may hold. Without a bound the streams below take 6.4 GB.
const PEAK_BYTES_MAX: u64 = 1_200_000_000;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const WINDOW: u16 = 4;

async fn fill(client: &Client) {
    for n in 0..VALUES {
        let value = vec![u8::try_from(n % 251).unwrap(); VALUE_BYTES];
        client.must_put(format!("k{n:03}"), value).await;
    }
}

fn everything() -> pb::RangeRequest {
    get_range("k", "l")
}

/// A call with one message, as frames.
fn call(stream: u32, path: &str, message: &impl prost::Message) -> Vec<u8> {
    let head = call_headers(path, b"localhost");
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&message);
    let mut frames = encode(HEADERS, END_HEADERS, stream, &head);
    frames.extend(encode(DATA, END_STREAM, stream, &body));
    frames
}

/// A connection with so many calls, of whose answers the client takes `window` bytes each at most.
async fn hoard(
    server: &Server,
    window: u32,
    calls: impl Iterator<Item = Vec<u8>>,
) -> FrameConnection {
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let mut settings = WINDOW.to_be_bytes().to_vec();
    settings.extend_from_slice(&window.to_be_bytes());
    connection.send(&encode(4, 0, 0, &settings)).await.unwrap();
    for call in calls {
        connection.send(&call).await.unwrap();
    }
    connection
}

#[tokio::test]
async fn answers_that_nobody_takes_are_bounded_and_others_get_theirs() {
    let server = Server::start().await;
    if server.has(Difference::AnswerBound) {
        return;
    }
    let client = server.client().await;
    fill(&client).await;
    let paths = ["/etcdserverpb.KV/Range", "/etcdserverpb.KV/RangeStream"];
    let mut hoarders = Vec::new();
    for connection in 0..CONNECTIONS {
        let path = paths[connection % paths.len()];
        let calls = (0..STREAMS).map(|stream| call(stream * 2 + 1, path, &everything()));
        hoarders.push(hoard(&server, 0, calls).await);
    }
    // A short answer, and a long one, which waits for room until a hoarder has lost its own.
    client.must_put("a", "b").await;
    assert_eq!(client.pairs(get("a")).await.len(), 1);
    let all = client.range(everything()).await.unwrap();
    assert_eq!(all.kvs.len(), VALUES);
    drop(hoarders);
    let peak = server.peak_bytes();
    assert!(peak < PEAK_BYTES_MAX, "{peak} bytes");
}

/// Clients that read everything over and over, and take it: they wait for each other's room, and others get short answers
/// meanwhile.
#[tokio::test]
async fn many_long_answers_take_bounded_memory_and_leave_time_for_others() {
    const CLIENTS: usize = 4;
    const READS: usize = 3;
    let server = Server::start().await;
    if server.has(Difference::AnswerBound) {
        return;
    }
    let client = server.client().await;
    fill(&client).await;
    let mut readers = Vec::new();
    for _ in 0..CLIENTS {
        let reader = server.client().await;
        readers.push(tokio::spawn(async move {
            for _ in 0..READS {
                let all = reader.range(everything()).await.unwrap();
                assert_eq!(all.kvs.len(), VALUES);
            }
        }));
    }
    let mut short = 0;
    while !readers.iter().all(tokio::task::JoinHandle::is_finished) {
        client.must_put("a", "b").await;
        assert_eq!(client.pairs(get("a")).await.len(), 1);
        short += 1;
    }
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(
        short >= CLIENTS * READS,
        "{short} short answers beside {} long ones",
        CLIENTS * READS
    );
    let peak = server.peak_bytes();
    assert!(peak < PEAK_BYTES_MAX, "{peak} bytes");
}

#[tokio::test]
async fn small_answers_that_nobody_takes_hold_calls_back() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", vec![7; 10_000]).await;
    let range = |stream: u32| call(stream * 2 + 1, "/etcdserverpb.KV/Range", &get("k"));
    let before = server.peak_bytes();
    let mut hoarders = Vec::new();
    for _ in 0..4 {
        // 80 MB of answers on each.
        hoarders.push(hoard(&server, 0, (0..8_000).map(range)).await);
    }
    // Its calls are accepted after theirs, on one thread.
    for _ in 0..200 {
        client.must_put("a", "b").await;
    }
    let grown = server.peak_bytes() - before;
    drop(hoarders);
    if !server.has(Difference::AnswerBound) {
        assert!(grown < 150_000_000, "{grown} bytes");
    }
}

#[tokio::test]
async fn deferred_calls_are_answered_once_the_client_takes_answers() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", vec![7; 10_000]).await;
    let path = "/etcdserverpb.KV/Range";
    let calls = (0..1_000).map(|stream| call(stream * 2 + 1, path, &get("k")));
    let mut connection = hoard(&server, 100_000, calls).await;
    // Room for everything on the connection.
    let room = encode(8, 0, 0, &1_000_000_000_u32.to_be_bytes());
    connection.send(&room).await.unwrap();
    let mut ended = 0;
    while ended < 1_000 {
        let frame = connection.any().await.expect("an open connection");
        ended += usize::from(frame.kind == HEADERS && frame.flags & END_STREAM != 0);
    }
}

#[tokio::test]
async fn long_answers_are_complete() {
    let server = Server::start().await;
    let client = server.client().await;
    fill(&client).await;
    let check = |kvs: &[quorate::internals::api::proto::mvccpb::KeyValue]| {
        assert_eq!(kvs.len(), VALUES);
        for (n, kv) in kvs.iter().enumerate() {
            assert_eq!(kv.key, format!("k{n:03}"));
            assert_eq!(kv.value.len(), VALUE_BYTES);
            assert_eq!(usize::from(kv.value[VALUE_BYTES - 1]), n % 251);
        }
    };
    let all = client.range(everything()).await.unwrap();
    check(&all.kvs);
    assert_eq!((all.count, all.more), (100, false));

    let mut limited = everything();
    limited.limit = 60;
    let some = client.range(limited).await.unwrap();
    assert_eq!((some.kvs.len(), some.count, some.more), (60, 100, true));

    let mut by_value = everything();
    by_value.sort_target = pb::range_request::SortTarget::Value.into();
    by_value.sort_order = pb::range_request::SortOrder::Descend.into();
    let sorted = client.range(by_value).await.unwrap();
    let mut kvs = sorted.kvs;
    kvs.reverse();
    check(&kvs);

    let read = client
        .txn(txn(vec![], vec![op_get(everything())], vec![]))
        .await;
    let response = read.unwrap().responses.remove(0).response.unwrap();
    let pb::response_op::Response::ResponseRange(range) = response else {
        panic!("a range is answered by one");
    };
    check(&range.kvs);

    let old = put("k000", "short");
    client.put(old).await.unwrap();
    let mut before = everything();
    before.revision = all.header.unwrap().revision;
    check(&client.range(before).await.unwrap().kvs);
}

#[tokio::test]
async fn a_read_only_transaction_of_many_long_ranges_is_refused() {
    let server = Server::start().await;
    if server.has(Difference::AnswerBound) {
        return;
    }
    let client = server.client().await;
    fill(&client).await;
    let ops = (0..5).map(|_| op_get(everything())).collect();
    let answer = client.txn(txn(vec![], ops, vec![])).await;
    let text = "etcdserver: answer is too large";
    refused(answer, Code::ResourceExhausted, text);
}
