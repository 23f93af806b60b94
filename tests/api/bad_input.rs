//! Invalid requests: each gets the exact error that clients look for.

use crate::support::{Server, Wire, del, frame, get, put, refused};
use prost::Message as _;
use quorate::internals::api::proto::etcdserverpb::{PutRequest, RangeResponse};
use tonic::Code;

const RANGE: &str = "/etcdserverpb.KV/Range";
const INTERNAL: i32 = 13;

#[tokio::test]
async fn an_empty_key_is_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    let text = "etcdserver: key is not provided";
    refused(client.range(get("")).await, Code::InvalidArgument, text);
    refused(client.put(put("", "v")).await, Code::InvalidArgument, text);
    refused(client.delete(del("")).await, Code::InvalidArgument, text);
}

#[tokio::test]
async fn contradictory_puts_are_refused() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let cases = [
        (
            PutRequest {
                ignore_value: true,
                ..put("k", "v")
            },
            "etcdserver: value is provided",
        ),
        (
            PutRequest {
                ignore_lease: true,
                lease: 9,
                ..put("k", "v")
            },
            "etcdserver: lease is provided",
        ),
        (
            PutRequest {
                ignore_value: true,
                ..put("absent", "")
            },
            "etcdserver: key not found",
        ),
        (
            PutRequest {
                ignore_lease: true,
                ..put("absent", "v")
            },
            "etcdserver: key not found",
        ),
    ];
    for (request, text) in cases {
        refused(client.put(request).await, Code::InvalidArgument, text);
    }
    let text = "etcdserver: requested lease not found";
    refused(
        client
            .put(PutRequest {
                lease: 123,
                ..put("k", "v")
            })
            .await,
        Code::NotFound,
        text,
    );
    refused(
        client
            .put(PutRequest {
                lease: -1,
                ..put("k", "v")
            })
            .await,
        Code::NotFound,
        text,
    );
    // etcd: a plain put checks its lease first; inside a transaction it checks its key first.
    let both = PutRequest {
        lease: 123,
        ignore_value: true,
        ..put("absent", "")
    };
    refused(client.put(both).await, Code::NotFound, text);
    assert_eq!(client.revision().await, 2, "none of them wrote");
}

/// Malformed protobuf: a length past the end, wire types that do not exist, a varint without an end.
const MALFORMED: [&[u8]; 5] = [
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0a\x05ab",
    b"\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x00",
];

#[tokio::test]
async fn malformed_protobuf_is_an_internal_error_and_the_connection_survives() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    for path in ["Range", "Put", "DeleteRange", "Txn", "Compact"] {
        for bytes in MALFORMED {
            let answer = wire
                .call(&format!("/etcdserverpb.KV/{path}"), frame(bytes))
                .await;
            assert_eq!(
                answer.grpc_status, INTERNAL,
                "{path} with {bytes:x?}: {answer:?}"
            );
            assert!(
                !answer.message.is_empty(),
                "{path} with {bytes:x?}: the message says what is wrong"
            );
        }
    }
    let answer = wire.call(RANGE, frame(&get("k").encode_to_vec())).await;
    assert_eq!(answer.grpc_status, 0, "{answer:?}");
    let range = RangeResponse::decode(&answer.body[5..]).unwrap();
    assert_eq!(range.header.unwrap().revision, 1);
}

#[tokio::test]
async fn malformed_grpc_framing_is_an_error_and_the_connection_survives() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let good = get("k").encode_to_vec();
    let mut compressed = frame(&good);
    compressed[0] = 1;
    let mut strange_flag = frame(&good);
    strange_flag[0] = 77;
    let mut cut = frame(&good);
    cut.pop();
    for body in [compressed, strange_flag, cut, vec![], vec![0, 0]] {
        let answer = wire.call(RANGE, body.clone()).await;
        assert_ne!(answer.grpc_status, 0, "{body:x?}: {answer:?}");
    }
    assert_eq!(wire.call(RANGE, frame(&good)).await.grpc_status, 0);
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let server = Server::start().await;
    server.client().await.must_put("k", "v").await;
    let wire = Wire::connect(server.client_port()).await;
    let mut request = get("k").encode_to_vec();
    // Field 900: a varint; field 901: bytes.
    request.extend_from_slice(b"\xa0\x38\x07\xaa\x38\x03abc");
    let answer = wire.call(RANGE, frame(&request)).await;
    assert_eq!(answer.grpc_status, 0, "{answer:?}");
    assert_eq!(RangeResponse::decode(&answer.body[5..]).unwrap().count, 1);
}

#[tokio::test]
async fn deeply_nested_txns_are_refused_not_crashed_on() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    // TxnRequest { success: [RequestOp { request_txn: TxnRequest { … } }] }, 20,000 deep.
    let mut message: Vec<u8> = Vec::new();
    let mut reversed: Vec<Vec<u8>> = Vec::new();
    let mut length = 0;
    for _ in 0..20_000 {
        for tag in [0x22_u8, 0x12] {
            let mut head = vec![tag];
            prost::encoding::encode_varint(length, &mut head);
            length += u64::try_from(head.len()).unwrap();
            reversed.push(head);
        }
    }
    reversed
        .iter()
        .rev()
        .for_each(|head| message.extend_from_slice(head));
    let answer = wire.call("/etcdserverpb.KV/Txn", frame(&message)).await;
    assert_ne!(answer.grpc_status, 0, "{answer:?}");
    assert_eq!(
        wire.call(RANGE, frame(&get("k").encode_to_vec()))
            .await
            .grpc_status,
        0
    );
}
