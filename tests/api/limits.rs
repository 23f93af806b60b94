//! Limits on the size of writes and messages; a connection survives a message that is too large.

use crate::support::{
    Client, Server, Wire, frame, get, get_range, op_get, op_put, put, refused, txn,
};
use prost::Message as _;
use tonic::Code;

const TOO_LARGE: &str = "etcdserver: request is too large";
/// The largest gRPC message a server reads by default: 1.5 MiB and 512 KiB.
const FRAME_MAX: usize = 2_097_152;
const RESOURCE_EXHAUSTED: i32 = 8;

async fn start() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    (server, client)
}

#[tokio::test]
async fn a_write_may_weigh_one_and_a_half_mebibytes() {
    let (_server, client) = start().await;
    client.must_put("key", vec![b'v'; 1_572_834]).await;
    for size in [1_572_839, 1_572_864, 2_000_000] {
        let outcome = client.put(put("key", vec![b'v'; size])).await;
        refused(outcome, Code::InvalidArgument, TOO_LARGE);
    }
    let kv = client.range(get("key")).await.unwrap().kvs.remove(0);
    assert_eq!((kv.value.len(), kv.version), (1_572_834, 1));
}

#[tokio::test]
async fn an_untaken_put_weighs_too_and_a_read_does_not() {
    let (_server, client) = start().await;
    let heavy = || put("key", vec![b'v'; 1_600_000]);
    let untaken = txn(vec![], vec![op_get(get("key"))], vec![op_put(heavy())]);
    refused(client.txn(untaken).await, Code::InvalidArgument, TOO_LARGE);
    let long_key = vec![b'k'; 2_000_000];
    assert_eq!(client.range(get(long_key.clone())).await.unwrap().count, 0);
    client
        .txn(txn(vec![], vec![op_get(get(long_key))], vec![]))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_frame_may_weigh_2_mebibytes_and_the_connection_survives_a_larger_one() {
    let (server, _client) = start().await;
    let wire = Wire::connect(server.client_port()).await;
    let path = "/etcdserverpb.KV/Range";
    let of_size = |size: usize| {
        let mut request = get(vec![b'k'; size]);
        while request.encoded_len() > size {
            request.key.truncate(request.key.len() - 1);
        }
        let message = request.encode_to_vec();
        assert_eq!(message.len(), size);
        frame(&message)
    };
    assert_eq!(wire.call(path, of_size(FRAME_MAX)).await.grpc_status, 0);
    for size in [FRAME_MAX + 1, 3_000_000, 9_000_000] {
        let answer = wire.call(path, of_size(size)).await;
        let text = format!("grpc: received message larger than max ({size} vs. {FRAME_MAX})");
        assert_eq!(
            (answer.grpc_status, answer.message),
            (RESOURCE_EXHAUSTED, text)
        );
    }
    let mut declared = frame(b"");
    declared[1..5].copy_from_slice(&u32::MAX.to_be_bytes());
    let answer = wire.call(path, declared).await;
    assert_eq!(
        answer.grpc_status, RESOURCE_EXHAUSTED,
        "a length alone is refused: {answer:?}"
    );
    assert_eq!(
        wire.call(path, of_size(100)).await.grpc_status,
        0,
        "the same connection still answers"
    );
}

#[tokio::test]
async fn answers_have_no_limit() {
    let (_server, client) = start().await;
    for number in 0..5 {
        client
            .must_put(format!("k{number}"), vec![b'v'; 1_000_000])
            .await;
    }
    let answer = client.range(get_range("k", "l")).await.unwrap();
    assert_eq!(
        answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>(),
        5_000_000
    );
}
