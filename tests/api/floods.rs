//! Hostile clients: other clients are served meanwhile, the member takes bounded memory, and whoever never stops is cut off.
//!
//! Each attack, those of `benches/attacks` among them, has bounds in some test, on memory here and in tests like these, and on
//! others' latency as the work that is done before theirs:
//!
//! | attack | memory | what others wait for |
//! |---|---|---|
//! | `reset`, `continuation` | here | a turn of each busy connection (`api::wire`), of so many frames (`api::frame_budget`) |
//! | `small` | here | the same |
//! | `settings`, `ping` | `shares` | the same |
//! | resets of ended streams, empty frames, trailers | here: their connection ends | the same |
//! | long paths, bytes behind a message | here, and `http2::request_stream` | nothing |
//! | requests to calls that read no more, answers of renewals that nobody takes | here | nothing |
//! | `nested` | the limit on a request | steps in proportion to its bytes (`kv::write_set`, `kv::encoded_txn`) |
//! | `large-reads`, `unread` | `slow_readers` | reads of 512 keys or 128 KiB at most (`actors::published`) |
//! | `many-ranges` | `write_answers`, `cluster::answers` | nothing: who does not have the caller reads none |
//! | `watch-streams` | `shares` | room that is left for them |

use crate::support::{
    Difference, Server, Setup, frame,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, FrameConnection, GOAWAY, HEADERS, PING,
        RST_STREAM, SETTINGS, call_headers, encode,
    },
    get, only_quorate_has,
};
use prost::Message as _;
use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tokio::time::timeout;

const RANGE: &str = "/etcdserverpb.KV/Range";
const KEEP_ALIVE: &str = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What a flood of one connection may cost a member of a debug build.
const GROWTH_MAX: u64 = 64 * 1024 * 1024;

/// Sends until the server closes the connection, and checks that it says why.
async fn flood(server: &Server, mut next: impl FnMut(u32) -> Vec<u8>) {
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let before = server.peak_bytes();
    for number in 0..1_000_000 {
        if connection.send(&next(number)).await.is_err() {
            break;
        }
        if number.is_multiple_of(1_000) {
            client.must_put("k", "v").await;
        }
        assert!(number < 900_000, "the flood is never stopped");
    }
    let said = connection.next(0).await;
    // A reset of the connection may overtake the frame.
    if let Some(frame) = said.filter(|frame| frame.kind == GOAWAY) {
        let reason = frame.payload.get(4..8).unwrap_or_default();
        assert_eq!(reason, 11_u32.to_be_bytes(), "enhance your calm");
    }
    client.must_put("k", "v").await;
    let grown = server.peak_bytes() - before;
    if !server.has(Difference::AnswerBound) {
        assert!(grown < GROWTH_MAX, "{grown} bytes");
    }
}

#[tokio::test]
async fn endless_cancelled_calls_end_their_connection() {
    let server = Server::start().await;
    if server.has(Difference::CancelledCalls) {
        return;
    }
    let head = call_headers(RANGE, b"localhost");
    flood(&server, |number| {
        let calls = (0..20).flat_map(|call| {
            let stream = (number * 20 + call) * 2 + 1;
            let reset = encode(RST_STREAM, 0, stream, &8_u32.to_be_bytes());
            [encode(HEADERS, END_HEADERS, stream, &head), reset]
        });
        calls.collect::<Vec<_>>().concat()
    })
    .await;
}

#[tokio::test]
async fn endless_headers_end_their_connection() {
    let server = Server::start().await;
    let head = call_headers(RANGE, b"localhost");
    flood(&server, |number| match number {
        0 => encode(HEADERS, 0, 1, &head),
        _ => encode(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']),
    })
    .await;
}

/// Frames of one byte. They are no flood, since a client may send its message as it likes; they cost what their bytes do.
#[tokio::test]
async fn a_message_in_frames_of_one_byte_takes_its_bytes() {
    const CONNECTIONS: usize = 4;
    const BYTES: u32 = 600_000;
    if only_quorate_has("a bound on the bytes of unfinished messages") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let before = server.peak_bytes();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = FrameConnection::connect(server.client_port()).await;
        let head = encode(HEADERS, END_HEADERS, 1, &call_headers(RANGE, b"localhost"));
        let prefix = [&[0][..], &(BYTES + 1).to_be_bytes()].concat();
        let prefix = encode(DATA, 0, 1, &prefix);
        connection.send(&[head, prefix].concat()).await.unwrap();
        connections.push(connection);
    }
    let frames = encode(DATA, 0, 1, b"x").repeat(10_000);
    let mut puts = 0;
    for _ in 0..BYTES / 10_000 {
        for connection in &mut connections {
            connection
                .send(&frames)
                .await
                .expect("the connection lives");
        }
        client.must_put("k", "v").await;
        puts += 1;
    }
    assert_eq!(puts, BYTES / 10_000);
    for connection in &mut connections {
        // The message is no range: its end is answered.
        connection.send(&encode(DATA, 1, 1, b"x")).await.unwrap();
        while connection.next(1).await.expect("an answer").kind != HEADERS {}
    }
    let grown = server.peak_bytes() - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes");
}

/// While the client takes no answers its calls do not begin, and it cancels them.
#[tokio::test]
async fn endless_cancelled_calls_that_wait_for_their_beginning_end_their_connection() {
    const ROUND: u32 = 1_000;
    let server = Server::start().await;
    if server.has(Difference::CancelledCalls) {
        return;
    }
    let client = server.client().await;
    client.must_put("k", vec![7; 10_000]).await;
    let mut connection = FrameConnection::connect(server.client_port()).await;
    // The initial window of a stream: no answer is taken.
    let no_window = encode(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    connection.send(&no_window).await.unwrap();
    let head = call_headers(RANGE, b"localhost");
    let message = frame(&get("k").encode_to_vec());
    let read = |stream| {
        let head = encode(HEADERS, END_HEADERS, stream, &head);
        [head, encode(DATA, END_STREAM, stream, &message)].concat()
    };
    // More than a connection may have unsent.
    let reads: Vec<_> = (0..200).map(|call| read(call * 2 + 1)).collect();
    connection.send(&reads.concat()).await.unwrap();
    let before = server.peak_bytes();
    let mut cancelled = 0;
    let mut said = None;
    while said.is_none() {
        assert!(cancelled < 100_000, "the flood is never stopped");
        let streams = (0..ROUND).map(|call| (200 + cancelled + call) * 2 + 1);
        let calls: Vec<_> = streams.clone().map(read).collect();
        let ping = encode(PING, 0, 0, b"12345678");
        let sent = connection.send(&[calls.concat(), ping].concat()).await;
        // The server has accepted the calls when it answers the ping. Their resets come later.
        said = answer_to_ping(&mut connection).await;
        said = said.or(sent.err().map(|_| None));
        let resets = streams.map(|stream| encode(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        let resets = resets.collect::<Vec<_>>().concat();
        if said.is_none() && connection.send(&resets).await.is_err() {
            said = Some(None);
        }
        cancelled += ROUND;
        client.must_put("other", "v").await;
    }
    if let Some(Some(frame)) = said {
        let reason = frame.payload.get(4..8).unwrap_or_default();
        assert_eq!(reason, 11_u32.to_be_bytes(), "enhance your calm");
    }
    assert!(cancelled > 10_000, "a burst is allowed: {cancelled}");
    let grown = server.peak_bytes() - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes");
}

/// What the client sends last is what costs too much: the server must not wait for more.
#[tokio::test]
async fn a_connection_that_has_cancelled_too_much_ends_without_further_input() {
    const BURST: u32 = 10_000;
    /// Resets of one turn.
    const TURN: u32 = 100;
    const CALLS: u32 = BURST + 60 * TURN;
    if only_quorate_has("its log") {
        return;
    }
    let server = Server::start_with(Setup {
        env: vec![("QUORATE_LOG_LEVEL".to_owned(), "debug".to_owned())],
        ..Setup::default()
    })
    .await;
    let client = server.client().await;
    client.must_put("k", vec![7; 10_000]).await;
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let no_window = encode(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    connection.send(&no_window).await.unwrap();
    let head = call_headers(RANGE, b"localhost");
    let message = frame(&get("k").encode_to_vec());
    let ping = encode(PING, 0, 0, b"12345678");
    // The first 200 have more unsent than a connection may have, so the others wait.
    for calls in (0..200 + CALLS).collect::<Vec<_>>().chunks(1_000) {
        let reads = calls.iter().flat_map(|call| {
            let stream = call * 2 + 1;
            let head = encode(HEADERS, END_HEADERS, stream, &head);
            [head, encode(DATA, END_STREAM, stream, &message)]
        });
        let reads = reads.collect::<Vec<_>>().concat();
        connection.send(&reads).await.unwrap();
        connection.send(&ping).await.unwrap();
        assert!(answer_to_ping(&mut connection).await.is_none(), "it lives");
    }
    let resets = |first: u32, count: u32| {
        let streams = (first..first + count).map(|call| (200 + call) * 2 + 1);
        let resets = streams.map(|stream| encode(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        resets.collect::<Vec<_>>().concat()
    };
    connection.send(&resets(0, BURST)).await.unwrap();
    connection.send(&ping).await.unwrap();
    assert!(answer_to_ping(&mut connection).await.is_none(), "a burst");
    let mut cancelled = BURST;
    while !server.log().contains("cancels calls without end") {
        assert!(cancelled < CALLS, "the flood is never stopped");
        if connection.send(&resets(cancelled, TURN)).await.is_err() {
            break;
        }
        cancelled += TURN;
        // The server has read them when it answers another client.
        client.range(get("other")).await.unwrap();
    }
    let ends = async {
        while let Some(frame) = connection.any().await
            && frame.kind != GOAWAY
        {}
    };
    let ended = timeout(Duration::from_secs(30), ends).await;
    assert!(ended.is_ok(), "it waits for further input");
}

/// Renewals of a lease, on streams of a client that takes no answers.
async fn stuck_keep_alives(server: &Server, streams: u32) -> FrameConnection {
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let no_window = encode(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    connection.send(&no_window).await.unwrap();
    let head = call_headers(KEEP_ALIVE, b"localhost");
    let heads = (0..streams).map(|call| encode(HEADERS, END_HEADERS, call * 2 + 1, &head));
    let heads = heads.collect::<Vec<_>>().concat();
    connection.send(&heads).await.unwrap();
    // All have begun to answer.
    for _ in 0..streams {
        while connection.any().await.expect("an answer").kind != HEADERS {}
    }
    // From now on the windows of its streams are those that the server has named.
    connection.send(&encode(SETTINGS, 1, 0, &[])).await.unwrap();
    connection
}

fn renewals(count: usize) -> Vec<u8> {
    frame(&pb::LeaseKeepAliveRequest { id: 1 }.encode_to_vec()).repeat(count)
}

/// They wait behind calls that read no more, because their client takes no answers.
#[tokio::test]
async fn requests_that_busy_calls_leave_take_bounded_memory() {
    const CONNECTIONS: usize = 64;
    const STREAMS: u32 = 15;
    /// The share of one address, and what the streams take themselves. 240 MB are sent.
    const BUSY_GROWTH_MAX: u64 = 2 * GROWTH_MAX;
    if only_quorate_has("a bound on bytes that are not read") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let renewals = renewals(36_000);
    let before = server.peak_bytes();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = stuck_keep_alives(&server, STREAMS).await;
        let frames = (0..STREAMS).flat_map(|call| {
            let parts = renewals.chunks(1_000);
            parts.map(move |part| encode(DATA, 0, call * 2 + 1, part))
        });
        let frames = frames.collect::<Vec<_>>().concat();
        // At once, so that much has arrived before the calls run.
        connection.send(&frames).await.unwrap();
        let ping = encode(PING, 0, 0, b"12345678");
        connection.send(&ping).await.unwrap();
        assert!(answer_to_ping(&mut connection).await.is_none(), "it lives");
        connections.push(connection);
        client.must_put("k", "v").await;
    }
    let grown = server.peak_bytes() - before;
    assert!(grown < BUSY_GROWTH_MAX, "{grown} bytes");
    // A stream of a neighbour goes on, although the address has no more room.
    let mut neighbour = FrameConnection::connect(server.client_port()).await;
    let head = call_headers(KEEP_ALIVE, b"localhost");
    let head = encode(HEADERS, END_HEADERS, 1, &head);
    let renewal = encode(DATA, 0, 1, &renewals[..renewals.len() / 36_000]);
    neighbour.send(&[head, renewal].concat()).await.unwrap();
    while neighbour.next(1).await.expect("an answer").kind != DATA {}
}

#[tokio::test]
async fn renewals_whose_answers_nobody_takes_take_bounded_memory() {
    const CONNECTIONS: usize = 4;
    const STREAMS: u32 = 500;
    /// What a stream takes, of which some kilobytes are its renewals.
    const STREAM_BYTES_MAX: u64 = 96 * 1024;
    if only_quorate_has("a bound on calls") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    // More than are in flight at a time.
    let renewals = renewals(140);
    let before = server.peak_bytes();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = stuck_keep_alives(&server, STREAMS).await;
        // A few at a time, so that they are done soon.
        for streams in (0..STREAMS).collect::<Vec<_>>().chunks(10) {
            let frames = streams
                .iter()
                .map(|call| encode(DATA, 0, call * 2 + 1, &renewals));
            let frames = frames.collect::<Vec<_>>().concat();
            connection.send(&frames).await.unwrap();
            client.must_put("k", "v").await;
        }
        connections.push(connection);
    }
    let grown = server.peak_bytes() - before;
    let each = grown / (CONNECTIONS as u64 * u64::from(STREAMS));
    assert!(each < STREAM_BYTES_MAX, "a stream takes {each} bytes");
}

/// Reads until the server answers a ping (`None`), or ends the connection, with its last frame if there was one.
async fn answer_to_ping(connection: &mut FrameConnection) -> Option<Option<Frame>> {
    loop {
        match connection.any().await {
            Some(frame) if frame.kind == GOAWAY => return Some(Some(frame)),
            Some(frame) if frame.kind == PING => return None,
            Some(_) => {}
            None => return Some(None),
        }
    }
}

/// No client of gRPC sends trailers.
#[tokio::test]
async fn long_trailers_end_their_connection() {
    if only_quorate_has("a bound on trailers") {
        return;
    }
    let server = Server::start().await;
    let head = call_headers(RANGE, b"localhost");
    let message = frame(&get("k").encode_to_vec());
    // `accept-encoding` of the static table, in one byte.
    let fields = |count| vec![0x90; count];
    let ends = END_HEADERS | END_STREAM;
    let table = [
        (encode(HEADERS, ends, 1, &fields(20)), HEADERS),
        (encode(HEADERS, ends, 1, &fields(1_000)), GOAWAY),
        // They go on in further frames.
        (encode(HEADERS, END_STREAM, 1, &fields(20)), GOAWAY),
    ];
    for (trailers, expected) in table {
        let mut connection = FrameConnection::connect(server.client_port()).await;
        // The server has received the preface by itself, so its last frame is no surprise.
        assert_eq!(connection.any().await.expect("settings").kind, SETTINGS);
        let head = encode(HEADERS, END_HEADERS, 1, &head);
        let data = encode(DATA, 0, 1, &message);
        let call = [head, data, trailers].concat();
        connection.send(&call).await.unwrap();
        if expected == GOAWAY {
            // A call that has begun may be answered before.
            while connection.next(1).await.expect("a last frame").kind != GOAWAY {}
        } else {
            let answer = connection.next(1).await.expect("an answer");
            assert_eq!(answer.kind, expected);
        }
    }
}

/// What a client puts behind the path of a call is kept neither while the call runs nor after it.
#[tokio::test]
async fn long_paths_are_not_kept() {
    const STREAMS: u32 = 2_000;
    const PATH_BYTES: usize = 60_000;
    if only_quorate_has("a bound on paths") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let path = format!("/etcdserverpb.Watch/Watch?{}", "x".repeat(PATH_BYTES));
    let block = call_headers(&path, b"localhost");
    let (first, rest) = block.split_at(16_000);
    let before = server.peak_bytes();
    let mut connection = FrameConnection::connect(server.client_port()).await;
    for call in 0..STREAMS {
        let stream = call * 2 + 1;
        let mut frames = encode(HEADERS, 0, stream, first);
        let mut rest = rest.chunks(16_000).peekable();
        while let Some(block) = rest.next() {
            let flags = if rest.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            frames.extend(encode(CONTINUATION, flags, stream, block));
        }
        connection.send(&frames).await.unwrap();
    }
    connection
        .send(&encode(PING, 0, 0, b"12345678"))
        .await
        .unwrap();
    assert!(answer_to_ping(&mut connection).await.is_none(), "it lives");
    let grown = server.peak_bytes() - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes");
}

#[tokio::test]
async fn endless_resets_of_streams_that_have_ended_end_their_connection() {
    if only_quorate_has("a bound on such resets") {
        return;
    }
    let server = Server::start().await;
    let head = call_headers(RANGE, b"localhost");
    let reset = encode(RST_STREAM, 0, 1, &8_u32.to_be_bytes());
    flood(&server, |number| match number {
        0 => encode(HEADERS, END_HEADERS, 1, &head),
        _ => reset.clone(),
    })
    .await;
}

#[tokio::test]
async fn empty_frames_of_a_message_are_ignored() {
    let server = Server::start().await;
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let head = encode(HEADERS, END_HEADERS, 1, &call_headers(RANGE, b"localhost"));
    let empty = encode(DATA, 0, 1, &[]).repeat(1_000);
    let message = encode(DATA, END_STREAM, 1, &frame(&get("k").encode_to_vec()));
    let call = [head, empty, message].concat();
    connection.send(&call).await.unwrap();
    let answer = connection.next(1).await.expect("an answer");
    assert_eq!(answer.kind, HEADERS);
}

#[tokio::test]
async fn endless_empty_frames_end_their_connection() {
    if only_quorate_has("a bound on empty frames") {
        return;
    }
    let server = Server::start().await;
    let head = call_headers(RANGE, b"localhost");
    flood(&server, |number| match number {
        0 => encode(HEADERS, END_HEADERS, 1, &head),
        _ => encode(DATA, 0, 1, &[]),
    })
    .await;
}

/// Bytes behind the only message of a call whose client takes no answer.
#[tokio::test]
async fn what_follows_the_message_of_a_call_is_not_kept() {
    const CONNECTIONS: usize = 32;
    const STREAMS: u32 = 8;
    if only_quorate_has("a bound on bytes that are not read") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", vec![7; 1_000]).await;
    let head = call_headers("/etcdserverpb.KV/RangeStream", b"localhost");
    let message = frame(&get("k").encode_to_vec());
    let before = server.peak_bytes();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = FrameConnection::connect(server.client_port()).await;
        let no_window = encode(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        connection.send(&no_window).await.unwrap();
        for call in 0..STREAMS {
            let stream = call * 2 + 1;
            let head = encode(HEADERS, END_HEADERS, stream, &head);
            let message = encode(DATA, 0, stream, &message);
            connection.send(&[head, message].concat()).await.unwrap();
        }
        connections.push(connection);
    }
    for connection in &mut connections {
        // All have begun to answer.
        for _ in 0..STREAMS {
            while connection.any().await.expect("an answer").kind != HEADERS {}
        }
        // From now on the windows of its streams are those that the server has named.
        connection.send(&encode(SETTINGS, 1, 0, &[])).await.unwrap();
        for call in 0..STREAMS {
            let rest = encode(DATA, 0, call * 2 + 1, &[0; 16_000]).repeat(30);
            connection.send(&rest).await.unwrap();
        }
        let ping = encode(PING, 0, 0, b"12345678");
        connection.send(&ping).await.unwrap();
        assert!(answer_to_ping(connection).await.is_none(), "it lives");
    }
    let grown = server.peak_bytes() - before;
    assert!(grown < GROWTH_MAX, "{grown} bytes");
}
