//! A caller's deadline (`grpc-timeout`) ends a call that gets no answer, also on the server's fast path (the hot calls): here
//! there is no quorum to answer them.

use crate::{
    ctl::{etcdctl, eventually, leader},
    support::Cluster,
};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use prost::Message;
use quorate::internals::api::proto::etcdserverpb as pb;
use std::{future::poll_fn, time::Duration};
use tokio::{net::TcpStream, time::timeout};

const OK: &str = "0";
/// The answer to a caller whose time is up. When the server's own time was up, the answer would be `14`.
const DEADLINE_EXCEEDED: &str = "4";
/// How long a call may take before the test fails.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A connection whose calls are plain HTTP/2, so that no client library cancels them.
struct Connection(SendRequest<Bytes>);

impl Connection {
    async fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.expect("a connection");
        let (requests, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(async move {
            // The calls on the connection see its end.
            drop(connection.await);
        });
        Self(requests)
    }

    /// The code and the text that a call ends with. Its message is sent in this many pieces.
    async fn call(
        &self,
        method: &str,
        message: Vec<u8>,
        within: Option<&str>,
        pieces: usize,
    ) -> (String, String) {
        let request = Request::post(format!("http://127.0.0.1/etcdserverpb.KV/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = match within {
            Some(within) => request.header("grpc-timeout", within),
            None => request,
        };
        let request = request.body(()).expect("a valid request");
        let mut requests = self.0.clone().ready().await.expect("the connection lives");
        let (answer, mut send) = requests.send_request(request, false).expect("a new stream");
        let length = u32::try_from(message.len()).expect("a small message");
        let frame = [&[0], &length.to_be_bytes()[..], &message].concat();
        let mut rest = frame.chunks(frame.len().div_ceil(pieces)).peekable();
        while let Some(piece) = rest.next() {
            let last = rest.peek().is_none();
            let piece = Bytes::copy_from_slice(piece);
            send.send_data(piece, last).expect("the stream takes it");
            // Each piece is sent by itself.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answered = async {
            let (head, mut body) = answer.await.expect("an answer").into_parts();
            while let Some(data) = body.data().await {
                let data = data.expect("the whole answer");
                let all = body.flow_control().release_capacity(data.len());
                all.expect("as much as was received");
            }
            let trailers = body.trailers().await.expect("the end of the answer");
            (head.headers, trailers.unwrap_or_default())
        };
        let answered = timeout(ANSWER_MAX, answered).await;
        let (head, trailers) = answered.expect("an answer in time");
        let field = |name| text(&trailers, name).or_else(|| text(&head, name));
        let code = field("grpc-status").expect("a status");
        (code, field("grpc-message").unwrap_or_default())
    }

    /// Repeats a call until it succeeds: there is a quorum, and a leader soon.
    async fn serves(&self, method: &str, message: &[u8], within: Option<&str>) {
        let served = async {
            let called = || self.call(method, message.to_vec(), within, 1);
            while called().await.0 != OK {}
        };
        let served = timeout(ANSWER_MAX, served).await;
        served.unwrap_or_else(|_| panic!("{method} is served"));
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().expect("a readable header");
    Some(value.to_owned())
}

fn range(serializable: bool) -> Vec<u8> {
    let range = pb::RangeRequest {
        key: "k".into(),
        serializable,
        ..pb::RangeRequest::default()
    };
    range.encode_to_vec()
}

/// The four hot calls, each in a form that needs a quorum.
fn calls() -> [(&'static str, Vec<u8>); 4] {
    let put = pb::PutRequest {
        key: "k".into(),
        value: "v".into(),
        ..pb::PutRequest::default()
    };
    let delete = pb::DeleteRangeRequest {
        key: "k".into(),
        ..pb::DeleteRangeRequest::default()
    };
    let op = pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put.clone())),
    };
    let txn = pb::TxnRequest {
        success: vec![op],
        ..pb::TxnRequest::default()
    };
    [
        ("Range", range(false)),
        ("Put", put.encode_to_vec()),
        ("DeleteRange", delete.encode_to_vec()),
        ("Txn", txn.encode_to_vec()),
    ]
}

#[tokio::test]
async fn calls_whose_callers_gave_up_do_not_enter_the_log() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let alone = leader(&ports).await;
    let others = [(alone + 1) % 3, (alone + 2) % 3];
    for other in others {
        cluster.members[other].freeze();
    }
    let status = ["endpoint", "status", "-w", "json"];
    let leaderless = |text: &str| text.contains("etcdserver: no leader");
    eventually(&ports[alone..=alone], &status, leaderless).await;
    let put = |key: &'static str| {
        let put = pb::PutRequest {
            key: key.into(),
            ..pb::PutRequest::default()
        };
        put.encode_to_vec()
    };
    let connection = Connection::open(ports[alone]).await;
    // In one piece they are begun by the connection itself, in several by a task of their own.
    for (key, pieces) in [("late1", 1), ("late2", 3)] {
        let ended = connection.call("Put", put(key), Some("50m"), pieces).await;
        assert_eq!(ended.0, DEADLINE_EXCEEDED, "{key}");
    }
    for (key, pieces) in [("gone1", 1), ("gone2", 3)] {
        let leaving = Connection::open(ports[alone]).await;
        let call = leaving.call("Put", put(key), None, pieces);
        let ended = timeout(Duration::from_millis(200), call).await;
        assert!(ended.is_err(), "there is no leader: {ended:?}");
    }
    // The connection goes on after these.
    for (key, pieces) in [("reset1", 1), ("reset2", 3)] {
        let call = connection.call("Put", put(key), None, pieces);
        let ended = timeout(Duration::from_millis(200), call).await;
        assert!(ended.is_err(), "there is no leader: {ended:?}");
    }
    let waits = connection.call("Put", put("waits"), None, 1);
    let thaw = async {
        for other in others {
            cluster.members[other].thaw();
        }
    };
    let (ended, ()) = tokio::join!(waits, thaw);
    assert_eq!(ended.0, OK, "it is proposed to the next leader");
    let all = ["get", "", "--prefix", "--keys-only"];
    let keys = etcdctl(&ports[alone..=alone], &all).await.ok();
    assert_eq!(keys.trim(), "waits", "the others were given up");
}

#[tokio::test]
async fn hot_calls_end_when_their_callers_time_is_up() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let alone = leader(&ports).await;
    let connection = Connection::open(ports[alone]).await;
    for (method, message) in calls() {
        connection.serves(method, &message, Some("30S")).await;
    }
    let others = [(alone + 1) % 3, (alone + 2) % 3];
    for other in others {
        cluster.members[other].freeze();
    }
    let late = (DEADLINE_EXCEEDED.into(), "context deadline exceeded".into());
    // A message in one piece is handled by the connection itself, one in several by a task of its own.
    for pieces in [1, 3] {
        let [a, b, c, d] = calls();
        let call =
            |(method, message), within| connection.call(method, message, Some(within), pieces);
        let ended = tokio::join!(
            call(a, "700m"),
            call(b, "600m"),
            call(c, "500000u"),
            call(d, "1S"),
            connection.call("Range", range(true), Some("30S"), pieces),
        );
        assert_eq!(ended.0, late, "Range, {pieces} pieces");
        assert_eq!(ended.1, late, "Put, {pieces} pieces");
        assert_eq!(ended.2, late, "DeleteRange, {pieces} pieces");
        assert_eq!(ended.3, late, "Txn, {pieces} pieces");
        assert_eq!(ended.4.0, OK, "a serializable Range waits for nobody");
    }
    for (method, message) in calls() {
        let ended = connection.call(method, message, Some("1n"), 1).await;
        assert_eq!(ended, late, "{method} whose time is up as it comes");
    }
    for other in others {
        cluster.members[other].thaw();
    }
    // The connection still serves calls, and the places of those that ended are free again.
    for (method, message) in calls() {
        connection.serves(method, &message, None).await;
    }
}

/// Sends so many reads whose requests have so many bytes, until the first has its answer: each once the last was sent, or all
/// begun before any is sent.
async fn long_reads(port: u16, count: usize, bytes: usize, one_by_one: bool) {
    let connection = Connection::open(port).await;
    let range = pb::RangeRequest {
        key: vec![b'k'; bytes].into(),
        ..pb::RangeRequest::default()
    };
    let message = range.encode_to_vec();
    let length = u32::try_from(message.len()).expect("a small message");
    let frame = Bytes::from([&[0], &length.to_be_bytes()[..], &message].concat());
    let call = async || {
        let request = Request::post("http://127.0.0.1/etcdserverpb.KV/Range")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request.body(()).expect("a valid request");
        let mut requests = connection.0.clone().ready().await.expect("it lives");
        requests.send_request(request, false).expect("a new stream")
    };
    let (first, mut send) = call().await;
    send.send_data(frame.clone(), true).expect("it is sent");
    let sending = async {
        let mut begun = Vec::new();
        for _ in 1..count {
            let (answer, mut send) = call().await;
            if one_by_one {
                send.reserve_capacity(frame.len());
                while send.capacity() < frame.len() {
                    let room = poll_fn(|context| send.poll_capacity(context)).await;
                    room.expect("an open stream").expect("more room");
                }
                send.send_data(frame.clone(), true).expect("it is sent");
            }
            begun.push((answer, send));
        }
        if !one_by_one {
            for (_, send) in &mut begun {
                send.send_data(frame.clone(), true).expect("it is sent");
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = sending => {}
        first = timeout(ANSWER_MAX, first) => {
            first.expect("an answer in time").expect("an answer");
        }
    }
}

#[tokio::test]
async fn requests_of_reads_that_wait_for_a_leader_take_bounded_memory() {
    const MIB: u64 = 1024 * 1024;
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let alone = leader(&ports).await;
    for other in [(alone + 1) % 3, (alone + 2) % 3] {
        cluster.members[other].freeze();
    }
    let status = ["endpoint", "status", "-w", "json"];
    let leaderless = |text: &str| text.contains("etcdserver: no leader");
    eventually(&ports[alone..=alone], &status, leaderless).await;
    // Calls that begin one after the other wait for those before them. Those that have begun can only be refused: a connection
    // has half of the room.
    for (count, bytes, one_by_one, most) in [
        (2_500, 60_000, true, 64 * MIB),
        (5_000, 60_000, false, 200 * MIB),
    ] {
        let before = cluster.members[alone].peak_bytes();
        long_reads(ports[alone], count, bytes, one_by_one).await;
        let grown = cluster.members[alone].peak_bytes() - before;
        assert!(grown < most, "{} MiB for {count} of {bytes}", grown / MIB);
    }
}
