//! One HTTP/2 connection with calls that arrive slowly, are not read, or are cancelled: none of them delays the others.

use crate::support::{Difference, Server, Wire, WireAnswer, frame, get, get_range};
use bytes::Bytes;
use h2::Reason;
use prost::Message as _;
use quorate::internals::api::proto::etcdserverpb as pb;
use tokio::task::JoinSet;

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";

fn put(key: &str, value: &str) -> Bytes {
    let request = pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    };
    frame(&request.encode_to_vec()).into()
}

fn range(answer: &WireAnswer) -> pb::RangeResponse {
    assert_eq!(answer.grpc_status, 0, "{}", answer.message);
    pb::RangeResponse::decode(&answer.body[5..]).expect("a range response")
}

#[tokio::test]
async fn a_call_may_come_in_pieces() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let client = server.client().await;
    let message = put("k", "value");
    for piece in [1, 4, 5, 6, message.len() - 1] {
        let (answer, mut send) = wire.begin(PUT).await;
        for part in message.chunks(piece) {
            // The answer of another call shows that everything sent before it has arrived.
            send.send_data(Bytes::copy_from_slice(part), false).unwrap();
            client.must_put("other", "v").await;
        }
        // The message is complete, so the server may have answered and ended the stream already.
        drop(send.send_data(Bytes::new(), true));
        let answer = WireAnswer::read(answer).await;
        assert_eq!(
            answer.grpc_status, 0,
            "in pieces of {piece}: {}",
            answer.message
        );
    }
    let (answer, mut send) = wire.begin(PUT).await;
    send.send_data(message, false).unwrap();
    let answer = WireAnswer::read(answer).await;
    assert_eq!(
        answer.grpc_status, 0,
        "a whole message is enough, its stream need not end"
    );
    assert_eq!(client.range(get("k")).await.unwrap().kvs[0].version, 6);
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_nobody_else() {
    let server = Server::start().await;
    let client = server.client().await;
    for number in 0..10 {
        client
            .must_put(format!("large/{number}"), "x".repeat(100_000))
            .await;
    }
    let wire = Wire::connect(server.client_port()).await;
    let mut unread = Vec::new();
    for _ in 0..20 {
        let (answer, mut send) = wire.begin(RANGE).await;
        let message = frame(&get_range("large/", "large0").encode_to_vec());
        send.send_data(message.into(), true).unwrap();
        unread.push(answer);
    }
    for number in 0..20 {
        client.must_put(format!("k{number}"), "v").await;
    }
    // Concurrently: they share the connection's window, so one that is not read could stop the others.
    let mut reading: JoinSet<_> = unread.into_iter().map(WireAnswer::read).collect();
    while let Some(answer) = reading.join_next().await {
        let answer = range(&answer.unwrap());
        assert_eq!(answer.kvs.len(), 10);
        assert!(
            answer.kvs.iter().all(|kv| kv.value.len() == 100_000),
            "whole"
        );
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_the_others_alone() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    for number in 0..10 {
        let (given_up, mut send) = wire.begin(PUT).await;
        let (waited_for, mut other) = wire.begin(PUT).await;
        send.send_data(put("given-up", "v"), number % 2 == 0)
            .unwrap();
        other.send_data(put("waited-for", "v"), true).unwrap();
        send.send_reset(Reason::CANCEL);
        drop(given_up);
        assert_eq!(WireAnswer::read(waited_for).await.grpc_status, 0);
    }
    let asked = frame(&get("waited-for").encode_to_vec());
    assert_eq!(range(&wire.call(RANGE, asked).await).kvs[0].version, 10);
}

/// The tables of waiting calls move from one connection to the other whenever the first is idle.
#[tokio::test]
async fn connections_that_are_idle_in_turns_get_their_own_answers() {
    let server = Server::start().await;
    let first = Wire::connect(server.client_port()).await;
    let second = Wire::connect(server.client_port()).await;
    for turn in 0..6 {
        let wire = [&first, &second][turn % 2];
        let calls = [1, 80, 3][turn % 3];
        for path in [PUT, RANGE] {
            let mut answers = JoinSet::new();
            for number in 0..calls {
                let key = number.to_string();
                let value = format!("{number} of {turn}");
                let message = match path {
                    PUT => put(&key, &value),
                    _ => frame(&get(key).encode_to_vec()).into(),
                };
                let (answer, mut send) = wire.begin(path).await;
                send.send_data(message, true).unwrap();
                answers.spawn(async move { (value, WireAnswer::read(answer).await) });
            }
            for (value, answer) in answers.join_all().await {
                assert_eq!(answer.grpc_status, 0, "{}", answer.message);
                if path == RANGE {
                    assert_eq!(range(&answer).kvs[0].value, value);
                }
            }
        }
    }
}

#[tokio::test]
async fn plain_paths_are_answered_over_http2_as_well() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    if server.has(Difference::PlainHttp2) {
        assert_eq!(wire.get("/health").await.0, 415);
        return;
    }
    let (status, body) = wire.get("/health").await;
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"health":"true","reason":""}"#)
    );
    let (status, body) = wire.get("/version").await;
    assert!(
        status == 200 && body.contains("etcdserver"),
        "{status} {body}"
    );
    assert_eq!(wire.get("/nothing").await.0, 404);
}
