//! Connections: unknown services and methods, many concurrent calls, bytes that are not HTTP.

use crate::support::{Difference, Server, Wire, frame, get};
use prost::Message as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
};

const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const RANGE: &str = "/etcdserverpb.KV/Range";

#[tokio::test]
async fn unknown_services_and_methods_are_named() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    for (path, text) in [
        ("/no.such.Service/Call", "unknown service no.such.Service"),
        (
            "/etcdserverpb.KV/Increment",
            "unknown method Increment for service etcdserverpb.KV",
        ),
        (
            "/etcdserverpb.Maintenance/Explode",
            "unknown method Explode for service etcdserverpb.Maintenance",
        ),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            "unknown service grpc.reflection.v1.ServerReflection",
        ),
    ] {
        let answer = wire.call(path, frame(b"")).await;
        assert_eq!(
            (answer.grpc_status, answer.message.as_str()),
            (UNIMPLEMENTED, text),
            "{path}"
        );
    }
    assert_eq!(
        wire.call(RANGE, frame(&get("k").encode_to_vec()))
            .await
            .grpc_status,
        0
    );
}

#[tokio::test]
async fn bad_framing_is_refused_alike_by_all_services() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let mut compressed = frame(b"");
    compressed[0] = 1;
    let mut strange_flag = frame(b"");
    strange_flag[0] = 77;
    let mut cut = frame(b"cut");
    cut.pop();
    let too_large = frame(&vec![0; 3 << 20]);
    let malformed = frame(b"\x00");
    for body in [
        vec![],
        vec![0, 0],
        cut,
        compressed,
        strange_flag,
        too_large,
        malformed,
    ] {
        let expected = wire.call(RANGE, body.clone()).await;
        assert_ne!(expected.grpc_status, 0, "{expected:?}");
        for path in [
            "/etcdserverpb.Maintenance/Status",
            "/etcdserverpb.Cluster/MemberList",
            "/grpc.health.v1.Health/Check",
        ] {
            let answer = wire.call(path, body.clone()).await;
            assert_eq!(
                (answer.grpc_status, &answer.message),
                (expected.grpc_status, &expected.message),
                "{path}"
            );
        }
        let status = match expected.message.as_str() {
            "EOF" | "unexpected EOF" => INTERNAL,
            _ => expected.grpc_status,
        };
        let missing =
            "cardinality violation: received no request message from non-client-streaming RPC";
        let text = match expected.message.as_str() {
            "EOF" => missing.to_owned(),
            text => text.replace(
                "error unmarshalling request",
                "failed to unmarshal the received message",
            ),
        };
        if server.has(Difference::ServerStreamErrors) {
            continue;
        }
        for path in [
            "/grpc.health.v1.Health/Watch",
            "/etcdserverpb.KV/RangeStream",
            "/v3electionpb.Election/Observe",
        ] {
            let answer = wire.call(path, body.clone()).await;
            assert_eq!(
                (answer.grpc_status, &answer.message),
                (status, &text),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn one_connection_carries_many_calls_at_once() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut calls = JoinSet::new();
    for number in 0..500 {
        let client = client.clone();
        calls.spawn(async move { client.must_put(format!("k{number}"), "v").await });
    }
    let mut revisions = calls.join_all().await;
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        (2..502).collect::<Vec<_>>(),
        "each write has a revision of its own"
    );
}

#[tokio::test]
async fn many_connections_are_served() {
    let server = Server::start().await;
    let mut calls = JoinSet::new();
    for number in 0..100 {
        let port = server.client_port();
        calls.spawn(async move {
            let client = crate::support::Client::connect(port).await;
            client.must_put(format!("k{number}"), "v").await;
            client.range(get(format!("k{number}"))).await.unwrap().count
        });
    }
    assert_eq!(calls.join_all().await, vec![1; 100]);
}

#[tokio::test]
async fn noise_on_the_port_harms_nobody() {
    let server = Server::start().await;
    let client = server.client().await;
    let noises: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nthis is no frame at all, and it is long enough for one",
        b"GARBAGE / HTTP/9.9\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
    ];
    for noise in noises {
        let mut stream = TcpStream::connect(("127.0.0.1", server.client_port()))
            .await
            .unwrap();
        stream.write_all(noise).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The server may send an error or a reset, but it must close the connection.
        drop(stream.read_to_end(&mut answer).await);
        client.must_put("k", "v").await;
    }
}
