//! Unusual requests of well-behaved clients: each keeps its connection and is answered.

use crate::support::{
    Difference, Server, Wire, WireAnswer, frame,
    frames::{
        DATA, END_HEADERS, END_STREAM, FrameConnection, GOAWAY, HEADERS, RST_STREAM, call_headers,
        encode,
    },
    get, put,
};
use bytes::{Buf, Bytes};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use prost::Message;
use quorate::internals::api::proto::etcdserverpb as pb;
use rustix::process::Signal;
use std::{
    io::{Read as _, Write as _},
    time::Duration,
};
use tokio::{task::JoinSet, time::timeout};

const RANGE: &str = "/etcdserverpb.KV/Range";
const PUT: &str = "/etcdserverpb.KV/Put";
const WATCH: &str = "/etcdserverpb.Watch/Watch";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";
const RESOURCE_EXHAUSTED: i32 = 8;

fn framed(message: &impl Message) -> Bytes {
    frame(&message.encode_to_vec()).into()
}

/// A watch of one key: the request to create it.
fn create(key: &str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: key.to_owned().into(),
        ..Default::default()
    };
    pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    }
}

/// Reads the messages of a response stream.
struct Messages {
    stream: h2::RecvStream,
    received: Vec<u8>,
}

impl Messages {
    async fn of(answer: h2::client::ResponseFuture) -> Self {
        Self {
            stream: answer.await.expect("response headers").into_body(),
            received: Vec::new(),
        }
    }

    async fn next<M: Message + Default>(&mut self) -> M {
        loop {
            if let Some((mut prefix, rest)) = self.received.split_at_checked(5) {
                prefix.advance(1);
                let len = usize::try_from(prefix.get_u32()).unwrap();
                if let Some(message) = rest.get(..len) {
                    let message = M::decode(message).unwrap();
                    self.received.drain(..5 + len);
                    return message;
                }
            }
            let data = self.stream.data().await.expect("the stream goes on");
            let data = data.expect("the connection lives");
            self.received.extend_from_slice(&data);
            let flow = self.stream.flow_control();
            flow.release_capacity(data.len()).unwrap();
        }
    }
}

/// A watch and a keep-alive, as a client has them for long on the connection of its calls.
struct Streams {
    watched: Messages,
    _watch: h2::SendStream<Bytes>,
    renewed: Messages,
    renewals: h2::SendStream<Bytes>,
}

impl Streams {
    async fn on(wire: &Wire) -> Self {
        let (watched, mut watch) = wire.begin(WATCH).await;
        watch.send_data(framed(&create("watched")), false).unwrap();
        let mut watched = Messages::of(watched).await;
        let created: pb::WatchResponse = watched.next().await;
        assert!(created.created);
        let (renewed, mut renewals) = wire.begin(KEEP_ALIVE).await;
        // The head of the answer comes with the first message.
        renewals.send_data(renewal(), false).unwrap();
        let mut renewed = Messages::of(renewed).await;
        let first: pb::LeaseKeepAliveResponse = renewed.next().await;
        assert_eq!(first.id, 1);
        Self {
            watched,
            _watch: watch,
            renewed,
            renewals,
        }
    }

    /// Writes the watched key from another connection, and uses both.
    async fn go_on(&mut self, server: &Server, value: String) {
        let client = server.client().await;
        client.must_put("watched", value.clone()).await;
        let event: pb::WatchResponse = self.watched.next().await;
        assert_eq!(event.events[0].kv.as_ref().unwrap().value, value);
        self.renewals.send_data(renewal(), false).unwrap();
        let again: pb::LeaseKeepAliveResponse = self.renewed.next().await;
        assert_eq!(again.id, 1);
    }
}

fn renewal() -> Bytes {
    framed(&pb::LeaseKeepAliveRequest { id: 1 })
}

#[tokio::test]
async fn any_authority_is_accepted() {
    let server = Server::start().await;
    let authorities: [&[u8]; 8] = [
        b"localhost",
        b"http://127.0.0.1:2379",
        b"127.0.0.1:1,127.0.0.1:2",
        b"127.0.0.1:1%2C127.0.0.1:2",
        b"svc%2Ffoo",
        b"a b",
        "\u{fc}".as_bytes(),
        b"\xff",
    ];
    let mut connection = FrameConnection::connect(server.client_port()).await;
    for (number, authority) in authorities.into_iter().enumerate() {
        let stream = u32::try_from(number).unwrap() * 2 + 1;
        let head = encode(
            HEADERS,
            END_HEADERS,
            stream,
            &call_headers(RANGE, authority),
        );
        let body = encode(DATA, END_STREAM, stream, &framed(&get("k")));
        connection.send(&[head, body].concat()).await.unwrap();
        let answer = connection.next(stream).await.expect("the connection lives");
        let shown = String::from_utf8_lossy(authority);
        assert_eq!(answer.kind, HEADERS, "{shown}: {answer:?}");
        let answer = connection.next(stream).await.expect("the connection lives");
        assert_eq!(answer.kind, DATA, "{shown}: {answer:?}");
        let trailers = connection.next(stream).await.expect("the connection lives");
        assert_eq!(trailers.flags & END_STREAM, END_STREAM, "{shown}");
    }
}

#[tokio::test]
async fn a_burst_of_cancelled_calls_does_not_end_the_connection() {
    let server = Server::start().await;
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let head = call_headers(PUT, b"localhost");
    for burst in 0..3 {
        let mut sent = Vec::new();
        let first = burst * 4_002 + 1;
        for number in 0..2_000 {
            let stream = first + number * 2;
            sent.extend(encode(HEADERS, END_HEADERS, stream, &head));
            sent.extend(encode(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        }
        let stream = first + 4_000;
        sent.extend(encode(HEADERS, END_HEADERS, stream, &head));
        sent.extend(encode(DATA, END_STREAM, stream, &framed(&put("k", "v"))));
        connection.send(&sent).await.unwrap();
        let answer = connection.next(stream).await.expect("the connection lives");
        assert_ne!(answer.kind, GOAWAY, "{answer:?}");
        assert_eq!((answer.kind, answer.stream), (HEADERS, stream));
    }
}

/// Honest clients cancel many calls at once, and let the deadlines of many pass, on the connection of their watches and leases.
#[tokio::test]
async fn bursts_of_cancelled_calls_and_passed_deadlines_end_no_watch_and_no_keep_alive() {
    const CALLS: usize = 2_000;
    const DEADLINE_EXCEEDED: i32 = 4;
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let mut streams = Streams::on(&wire).await;
    for burst in 0..3 {
        let mut calls = Vec::new();
        for n in 0..CALLS {
            let (answer, mut send) = wire.begin(PUT).await;
            if n % 2 == 0 {
                send.send_data(framed(&put("k", "v")), true).unwrap();
            }
            calls.push((answer, send));
        }
        drop(calls);
        let mut late = Vec::new();
        for _ in 0..CALLS {
            let (answer, mut send) = wire.begin_with(PUT, &[("grpc-timeout", "1m")]).await;
            send.send_data(framed(&put("k", "v")), true).unwrap();
            late.push(answer);
        }
        for answer in late {
            let answer = WireAnswer::read(answer).await;
            assert!(
                [0, DEADLINE_EXCEEDED].contains(&answer.grpc_status),
                "{}: {}",
                answer.grpc_status,
                answer.message
            );
        }
        streams.go_on(&server, format!("{burst}")).await;
    }
}

/// As Go's client does it: the client cancels a call whose deadline has passed. The server finds all of them at once.
#[tokio::test]
async fn deadlines_that_pass_while_the_process_is_stopped_end_no_watch_and_no_keep_alive() {
    const CALLS: usize = 30;
    const DEADLINE: Duration = Duration::from_millis(500);
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let mut streams = Streams::on(&wire).await;
    server.signal(Signal::STOP);
    // One after the other they take a second.
    for _ in 0..2 {
        let mut calls = JoinSet::new();
        for _ in 0..CALLS {
            let (answer, mut send) = wire.begin_with(PUT, &[("grpc-timeout", "500m")]).await;
            send.send_data(framed(&put("k", "v")), true).unwrap();
            calls.spawn(timeout(DEADLINE, answer));
        }
        while let Some(call) = calls.join_next().await {
            assert!(call.unwrap().is_err(), "the process is stopped");
        }
    }
    server.signal(Signal::CONT);
    streams.go_on(&server, "on".to_owned()).await;
    let (answer, mut send) = wire.begin(PUT).await;
    send.send_data(framed(&put("k", "v")), true).unwrap();
    let answer = WireAnswer::read(answer).await;
    assert_eq!(answer.grpc_status, 0, "{}", answer.message);
}

#[tokio::test]
async fn many_small_messages_do_not_end_the_connection() {
    const MESSAGES: i64 = 20_000;
    /// Of twenty messages so many are followed by another watch, on one stream: 9,000 watches.
    const WATCHES: i64 = 9;
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let (watched, mut watch) = wire.begin(WATCH).await;
    let (renewed, mut renewals) = wire.begin(KEEP_ALIVE).await;
    for number in 0..MESSAGES {
        let renewal = pb::LeaseKeepAliveRequest { id: number + 1 };
        renewals.send_data(framed(&renewal), false).unwrap();
        if number % 20 < WATCHES {
            watch.send_data(framed(&create("watched")), false).unwrap();
        }
    }
    let read_renewals = async {
        let mut renewed = Messages::of(renewed).await;
        for number in 0..MESSAGES {
            let renewal: pb::LeaseKeepAliveResponse = renewed.next().await;
            assert_eq!((renewal.id, renewal.ttl), (number + 1, 0), "no such lease");
        }
    };
    let read_watches = async {
        let mut watched = Messages::of(watched).await;
        for _ in 0..MESSAGES / 20 * WATCHES {
            let response: pb::WatchResponse = watched.next().await;
            assert!(response.created, "{response:?}");
        }
        watched
    };
    // Concurrently: unread responses of one stream would use up the window of the connection.
    let ((), mut watched) = tokio::join!(read_renewals, read_watches);
    server.client().await.must_put("watched", "v").await;
    let event: pb::WatchResponse = watched.next().await;
    assert_eq!(event.events.len(), 1, "the watches live");
}

#[tokio::test]
async fn metadata_is_bounded_for_each_call_alone() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let (watched, mut watch) = wire.begin(WATCH).await;
    watch.send_data(framed(&create("k")), false).unwrap();
    let mut watched = Messages::of(watched).await;
    let created: pb::WatchResponse = watched.next().await;
    assert!(created.created);
    #[expect(
        clippy::async_yields_async,
        reason = "some answers are read and others are not"
    )]
    let call = async |bytes: usize| {
        let values = vec!["x".repeat(50_000); bytes / 50_000];
        let headers: Vec<_> = values
            .iter()
            .map(|value| ("token", value.as_str()))
            .collect();
        let (answer, mut send) = wire.begin_with(PUT, &headers).await;
        drop(send.send_data(framed(&put("k", "v")), true));
        answer
    };
    for bytes in [0, 50_000, 100_000, 200_000, 1_000_000] {
        let answer = WireAnswer::read(call(bytes).await).await;
        assert_eq!(answer.grpc_status, 0, "{bytes}: {}", answer.message);
        let event: pb::WatchResponse = watched.next().await;
        assert_eq!(event.events.len(), 1, "{bytes}");
    }
    if server.has(Difference::MetadataBound) {
        return;
    }
    let refused = WireAnswer::read(call(1_500_000).await).await;
    assert_eq!(refused.grpc_status, RESOURCE_EXHAUSTED);
    assert!(refused.message.contains("metadata"), "{}", refused.message);
    let status = call(2_300_000).await.await.expect("an answer").status();
    assert_eq!(status, 431, "HTTP's answer to far too long headers");
    let answer = WireAnswer::read(call(0).await).await;
    assert_eq!(answer.grpc_status, 0, "the connection lives");
    let event: pb::WatchResponse = watched.next().await;
    assert_eq!(event.events.len(), 1, "and so does the watch");
}

fn gzip(message: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(message).unwrap();
    let mut framed = frame(&encoder.finish().unwrap());
    framed[0] = 1;
    framed.into()
}

#[tokio::test]
async fn requests_may_be_compressed() {
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let call = async |path: &str, body: Bytes| {
        let headers = [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip")];
        let (answer, mut send) = wire.begin_with(path, &headers).await;
        drop(send.send_data(body, true));
        WireAnswer::read(answer).await
    };
    let long = put("k", "v".repeat(100_000)).encode_to_vec();
    let answer = call(PUT, gzip(&long)).await;
    assert_eq!(answer.grpc_status, 0, "{}", answer.message);
    let answer = call(RANGE, gzip(&get("k").encode_to_vec())).await;
    let mut message = answer.body[5..].to_vec();
    if server.has(Difference::CompressedAnswers) {
        message.clear();
        let mut compressed = GzDecoder::new(&answer.body[5..]);
        compressed.read_to_end(&mut message).unwrap();
    } else {
        assert_eq!(answer.body[0], 0, "the answer is not compressed");
    }
    let range = pb::RangeResponse::decode(&message[..]).unwrap();
    assert_eq!(range.kvs[0].value.len(), 100_000);
    let path = "/etcdserverpb.Cluster/MemberList";
    let answer = call(path, gzip(b"")).await;
    assert_eq!(
        answer.grpc_status, 0,
        "tonic's services too: {}",
        answer.message
    );
    let bomb = gzip(&vec![0; 50_000_000]);
    for path in [PUT, path] {
        let answer = call(path, bomb.clone()).await;
        let text = "grpc: received message after decompression larger than max 2097152";
        assert_eq!(
            (answer.grpc_status, answer.message.as_str()),
            (RESOURCE_EXHAUSTED, text),
            "{path}"
        );
    }
    let (answer, mut send) = wire.begin_with(PUT, &[("grpc-encoding", "zstd")]).await;
    drop(send.send_data(framed(&put("k", "v")), true));
    let answer = WireAnswer::read(answer).await;
    let text = "grpc: Decompressor is not installed for grpc-encoding \"zstd\"";
    assert_eq!((answer.grpc_status, answer.message.as_str()), (12, text));
}
