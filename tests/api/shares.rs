//! One client against all: whatever it opens or sends, others find room, and what it takes is bounded.

use crate::support::{
    Client, Server, Setup, Wire, WireAnswer, frame,
    frames::{
        DATA, END_HEADERS, FrameConnection, FrameSender, GOAWAY, HEADERS, PING, SETTINGS,
        WINDOW_UPDATE, call_headers, encode,
    },
    get, only_quorate_has, put,
};
use bytes::Bytes;
use prost::Message as _;
use quorate::internals::api::proto::etcdserverpb as pb;
use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const WATCH: &str = "/etcdserverpb.Watch/Watch";
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";
const RESOURCE_EXHAUSTED: i32 = 8;
const MIB: u64 = 1024 * 1024;

/// Unfinished messages of 1.5 MB, and calls with a ping each.
const STREAMS: usize = 250;
const CALLS: u32 = 6_000;

/// Calls in tasks, of all connections together.
const CALLS_MAX: usize = 1 << 16;

fn create(key: &'static str) -> pb::WatchRequest {
    pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest {
                key: Bytes::from_static(key.as_bytes()),
                ..Default::default()
            },
        )),
    }
}

/// A client that watches a key, past the confirmation.
struct Watcher {
    client: Client,
    answers: Streaming<pb::WatchResponse>,
    _requests: mpsc::Sender<pb::WatchRequest>,
}

impl Watcher {
    async fn of(server: &Server, key: &'static str) -> Self {
        let client = server.client().await;
        let (requests, taken) = mpsc::channel(4);
        requests.send(create(key)).await.unwrap();
        let answers = client.watch.clone().watch(ReceiverStream::new(taken)).await;
        let mut answers = answers.unwrap().into_inner();
        let created = answers.message().await.unwrap().unwrap();
        assert!(created.created && !created.canceled, "{created:?}");
        Self {
            client,
            answers,
            _requests: requests,
        }
    }

    async fn sees_a_put(&mut self, key: &str) {
        self.client.must_put(key.to_owned(), "v").await;
        let event = self.answers.message().await.unwrap().unwrap();
        assert_eq!(event.events.len(), 1, "{event:?}");
    }
}

/// Opens as many streams as a connection may, without a message, and gives how many were refused at once. The connection
/// stays open for as long as the result lives.
async fn empty_streams(port: u16, count: u32) -> (usize, FrameSender) {
    let (mut sender, mut receiver) = FrameConnection::connect(port).await.split();
    let head = call_headers(WATCH, b"localhost");
    let sending = async {
        for chunk in (0..count).collect::<Vec<_>>().chunks(1_000) {
            let frames = chunk
                .iter()
                .map(|n| encode(HEADERS, END_HEADERS, n * 2 + 1, &head));
            sender
                .send(&frames.collect::<Vec<_>>().concat())
                .await
                .unwrap();
        }
    };
    let receiving = async {
        let (mut answered, mut refused) = (0, 0);
        while answered < count {
            let answer = receiver.next_of_all().await.expect("the connection lives");
            if answer.kind == HEADERS {
                answered += 1;
                refused += usize::from(answer.flags & 1 != 0);
            }
        }
        refused
    };
    let ((), refused) = tokio::join!(sending, receiving);
    // Whoever does not read has no right to more; nothing more is sent to these streams.
    drop(receiver);
    (refused, sender)
}

#[tokio::test]
async fn empty_watch_streams_lock_nobody_out() {
    if only_quorate_has("a bound on calls") {
        return;
    }
    let server = Server::start().await;
    let mut before = Watcher::of(&server, "k").await;
    let idle = server.peak_bytes();
    let count = u32::try_from(CALLS_MAX).unwrap();
    let first = empty_streams(server.client_port(), count).await;
    let opened = CALLS_MAX - first.0;
    assert!(
        (CALLS_MAX / 2 - 10..=CALLS_MAX / 2 + 10).contains(&opened),
        "half of all calls: {opened}"
    );
    let taken = server.peak_bytes() - idle;
    let each = taken / opened as u64;
    assert!(each < 16 * 1024, "an empty stream takes {each} bytes");
    let second = empty_streams(server.client_port(), count).await;
    let also = CALLS_MAX - second.0;
    assert!(also <= CALLS_MAX / 4 + 10, "half of what was left: {also}");
    before.sees_a_put("k").await;
    let mut watchers = Vec::new();
    for _ in 0..10 {
        watchers.push(Watcher::of(&server, "other").await);
    }
    for watcher in &mut watchers {
        watcher.client.must_put("unwatched", "v").await;
    }
    watchers[0].sees_a_put("other").await;
    // What was refused was refused alone.
    drop((first, second));
    Watcher::of(&server, "k").await.sees_a_put("k").await;
}

#[tokio::test]
async fn unfinished_messages_take_bounded_memory() {
    if only_quorate_has("a bound on the bytes of unfinished messages") {
        return;
    }
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let whole: Bytes = frame(&put("k", vec![b'v'; 1_500_000]).encode_to_vec()).into();
    let before = server.peak_bytes();
    let mut begun = Vec::new();
    for _ in 0..STREAMS {
        let (answer, mut send) = wire.begin(PUT).await;
        send.send_data(whole.slice(..whole.len() - 1), false)
            .unwrap();
        begun.push((answer, send));
    }
    // All have arrived when their ends are all that the client still has.
    let client = server.client().await;
    for (_, send) in &mut begun {
        timeout(Duration::from_mins(2), async {
            send.reserve_capacity(1);
            while send.capacity() == 0 {
                std::future::poll_fn(|context| send.poll_capacity(context)).await;
            }
        })
        .await
        .expect("flow control stays open");
        client.must_put("other", "v").await;
    }
    client.must_put("large", vec![b'v'; 1_500_000]).await;
    let taken = server.peak_bytes() - before;
    assert!(
        taken < 200 * MIB,
        "{} MiB for {} MiB that were sent",
        taken / MIB,
        STREAMS as u64 * whole.len() as u64 / MIB
    );
    let (mut done, mut refused) = (0, 0);
    for (answer, mut send) in begun {
        send.send_data(whole.slice(whole.len() - 1..), true)
            .unwrap();
        match WireAnswer::read(answer).await.grpc_status {
            0 => done += 1,
            RESOURCE_EXHAUSTED => refused += 1,
            other => panic!("status {other}"),
        }
    }
    assert!(
        done >= 30 && refused >= 50,
        "{done} done, {refused} refused"
    );
    let again = wire.call(PUT, whole.to_vec()).await;
    assert_eq!(again.grpc_status, 0, "the connection goes on");
}

#[tokio::test]
async fn messages_that_find_no_room_are_held_back_and_not_refused() {
    // The share of a connection is 128 MiB.
    const FIT: usize = 89;
    const MORE: usize = 15;
    if only_quorate_has("a bound on the bytes of unfinished messages") {
        return;
    }
    let server = Server::start().await;
    let wire = Wire::connect(server.client_port()).await;
    let whole: Bytes = frame(&put("k", vec![b'v'; 1_500_000]).encode_to_vec()).into();
    let mut begun = Vec::new();
    for _ in 0..FIT + MORE {
        let (answer, mut send) = wire.begin(PUT).await;
        send.send_data(whole.slice(..whole.len() - 1), false)
            .unwrap();
        begun.push((answer, send));
        if begun.len() == FIT {
            for (_, send) in &mut begun {
                send.reserve_capacity(1);
                while send.capacity() == 0 {
                    std::future::poll_fn(|context| send.poll_capacity(context)).await;
                }
            }
        }
    }
    let range = frame(&get("k").encode_to_vec());
    for _ in 0..10 {
        let read = wire.call(RANGE, range.clone()).await;
        assert_eq!(read.grpc_status, 0, "other calls of the connection go on");
    }
    for (answer, mut send) in begun {
        send.send_data(whole.slice(whole.len() - 1..), true)
            .unwrap();
        let answer = WireAnswer::read(answer).await;
        assert_eq!(answer.grpc_status, 0, "{}", answer.message);
    }
}

/// Sends frames until the server closes the connection; gives how many answers to them came.
async fn flood(server: &Server, frames: Vec<u8>, answer: u8) -> usize {
    let (mut sender, mut receiver) = FrameConnection::connect(server.client_port()).await.split();
    let closed = Arc::new(AtomicBool::new(false));
    let other = {
        let (client, closed) = (server.client().await, closed.clone());
        let puts = Arc::new(AtomicUsize::new(0));
        let count = puts.clone();
        let task = tokio::spawn(async move {
            while !closed.load(Ordering::Relaxed) {
                client.must_put("k", "v").await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        (task, puts)
    };
    let sending = tokio::spawn(async move {
        for _ in 0..100_000 {
            if sender.send(&frames).await.is_err() {
                return true;
            }
        }
        false
    });
    let mut answers = 0;
    while let Some(frame) = receiver.next_of_all().await {
        if frame.kind == GOAWAY {
            let reason = frame.payload.get(4..8).unwrap_or_default();
            assert_eq!(reason, 11_u32.to_be_bytes(), "enhance your calm");
            break;
        }
        answers += usize::from(frame.kind == answer && frame.flags & 1 != 0);
    }
    drop(receiver);
    assert!(sending.await.unwrap(), "the flood is never stopped");
    closed.store(true, Ordering::Relaxed);
    other.0.await.unwrap();
    assert!(
        other.1.load(Ordering::Relaxed) > 0,
        "other clients are served meanwhile"
    );
    answers
}

#[tokio::test]
async fn frames_without_calls_end_their_connection_soon() {
    if only_quorate_has("a budget for frames that carry no call") {
        return;
    }
    let server = Server::start().await;
    let new_window = [&[0, 4][..], &70_000_u32.to_be_bytes()].concat();
    let table = [
        ("SETTINGS", SETTINGS, encode(SETTINGS, 0, 0, &[])),
        ("settings", SETTINGS, encode(SETTINGS, 0, 0, &new_window)),
        ("PING", PING, encode(PING, 0, 0, b"pingpong")),
    ];
    for (name, answer, frame) in table {
        let answers = flood(&server, frame.repeat(1_000), answer).await;
        assert!(answers < 40_000, "{name}: {answers} were answered");
    }
    for frame in [
        encode(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()),
        encode(2, 0, 7, &[0, 0, 0, 0, 1]),
        encode(200, 0, 0, b""),
    ] {
        flood(&server, frame.repeat(1_000), PING).await;
    }
}

#[tokio::test]
async fn pings_and_settings_beside_calls_are_no_flood() {
    let server = Server::start().await;
    let (mut sender, mut receiver) = FrameConnection::connect(server.client_port()).await.split();
    // A watch lives on the same connection.
    let head = call_headers(WATCH, b"localhost");
    sender
        .send(&encode(HEADERS, END_HEADERS, 1, &head))
        .await
        .unwrap();
    let watch = frame(&create("watched").encode_to_vec());
    sender.send(&encode(DATA, 0, 1, &watch)).await.unwrap();
    let head = call_headers(RANGE, b"localhost");
    let range = frame(&get("k").encode_to_vec());
    let sending = async {
        for n in 1..=CALLS {
            let stream = n * 2 + 1;
            let mut call = encode(HEADERS, END_HEADERS, stream, &head);
            call.extend(encode(DATA, 1, stream, &range));
            call.extend(encode(PING, 0, 0, &u64::from(n).to_be_bytes()));
            call.extend(encode(WINDOW_UPDATE, 0, 0, &100_u32.to_be_bytes()));
            if n % 1_000 == 0 {
                call.extend(encode(SETTINGS, 0, 0, &[]));
            }
            sender.send(&call).await.unwrap();
            if n % 50 == 0 {
                // Honest clients have a bounded number of calls under way.
                tokio::task::yield_now().await;
            }
        }
        server.client().await.must_put("watched", "v").await;
    };
    let receiving = async {
        let (mut ended, mut events) = (0, 0);
        while ended < CALLS || events < 2 {
            let answer = receiver.next_of_all().await.expect("the connection lives");
            assert_ne!(answer.kind, GOAWAY, "after {ended} calls: {answer:?}");
            ended += u32::from(answer.kind == HEADERS && answer.flags & 1 != 0);
            events += usize::from(answer.kind == DATA && answer.stream == 1);
        }
    };
    tokio::join!(sending, receiving);
}

/// A connection from an address of this machine, which is not served yet.
async fn connect_from(port: u16, last: u8) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    let from = Ipv4Addr::new(127, 0, 0, last);
    socket.bind((from, 0).into()).unwrap();
    let to = (Ipv4Addr::LOCALHOST, port).into();
    socket.connect(to).await.ok()
}

/// The same, served; `None` if it was refused.
async fn served_from(port: u16, last: u8) -> Option<FrameConnection> {
    FrameConnection::begin(connect_from(port, last).await?).await
}

#[tokio::test]
async fn one_address_cannot_have_all_connections() {
    if only_quorate_has("a bound on connections") {
        return;
    }
    let slots = ("QUORATE_LIMITS_CONNECTIONS_MAX".to_owned(), "40".to_owned());
    let server = Server::start_with(Setup {
        env: vec![slots],
        ..Setup::default()
    })
    .await;
    let port = server.client_port();
    let mut first = Vec::new();
    while let Some(connection) = served_from(port, 2).await {
        first.push(connection);
        assert!(first.len() <= 40, "there is no bound");
    }
    assert!(
        (25..=30).contains(&first.len()),
        "three quarters: {}",
        first.len()
    );
    for other in [3, 4, 5] {
        assert!(served_from(port, other).await.is_some(), "127.0.0.{other}");
    }
    assert!(
        server
            .log()
            .contains("too many client connections from 127.0.0.2")
    );
    let warned = server.log().matches("too many client connections").count();
    assert_eq!(warned, 1, "once, however often it tries");
    // Its open connections are served, and it gets others for those that it closes.
    let mut open = first.pop().unwrap();
    let head = call_headers(RANGE, b"localhost");
    let range = frame(&get("k").encode_to_vec());
    let call = [
        encode(HEADERS, END_HEADERS, 1, &head),
        encode(DATA, 1, 1, &range),
    ];
    open.send(&call.concat()).await.unwrap();
    assert_eq!(open.next(1).await.unwrap().kind, HEADERS);
    first.truncate(10);
    let again = async { while served_from(port, 2).await.is_none() {} };
    timeout(Duration::from_mins(1), again)
        .await
        .expect("it gets in");
}

/// Idle connections, more than the process may open files.
async fn idle_connections(port: u16, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for n in 0..count {
        // From several addresses, so that none of them meets its share.
        let last = u8::try_from(10 + n % 100).unwrap();
        idle.extend(connect_from(port, last).await);
    }
    idle
}

#[tokio::test]
async fn idle_connections_cost_no_file() {
    if only_quorate_has("a reserve of file descriptors") {
        return;
    }
    let keep = (
        "QUORATE_STORAGE_LOG_KEEP_BYTES".to_owned(),
        "16777216".to_owned(),
    );
    let server = Server::start_with(Setup {
        env: vec![keep],
        open_files: Some(200),
        ..Setup::default()
    })
    .await;
    let client = server.client().await;
    let mut watcher = Watcher::of(&server, "k").await;
    let idle = idle_connections(server.client_port(), 400).await;
    watcher.sees_a_put("k").await;
    // More than four segments of 4 MiB, and what the log keeps.
    for n in 0..40 {
        client
            .must_put(format!("large/{}", n % 3), vec![b'v'; 1_000_000])
            .await;
    }
    let revision = client.must_put("other", "v").await;
    let compacted = client.compact_with(pb::CompactionRequest {
        revision,
        physical: true,
    });
    compacted.await.unwrap();
    watcher.sees_a_put("k").await;
    assert!(server.log().contains("limit on open files"), "it says so");
    assert!(
        !server.log().contains("Too many open files"),
        "{}",
        server.log()
    );
    drop(idle);
    let new = async {
        loop {
            if let Some(client) = Client::try_connect(server.client_port()).await
                && client.put(put("k", "v")).await.is_ok()
            {
                break;
            }
        }
    };
    timeout(Duration::from_mins(1), new)
        .await
        .expect("there is room again");
}
