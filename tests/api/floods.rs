//! Hostile clients: other clients are served meanwhile, the member takes bounded memory, and whoever never stops is cut off.
//!
//! Each attack of `benches/attacks` has bounds in some test, on memory here and in tests like these, and on others' latency as
//! the work that is done before theirs:
//!
//! | attack | memory | what others wait for |
//! |---|---|---|
//! | `reset`, `continuation` | here | a turn of each busy connection (`api::wire`), of so many frames (`api::frame_budget`) |
//! | `small` | here | the same |
//! | `settings`, `ping` | `shares` | the same |
//! | `nested` | the limit on a request | steps in proportion to its bytes (`kv::write_set`, `kv::encoded_txn`) |
//! | `large-reads`, `unread` | `slow_readers` | reads of 512 keys or 128 KiB at most (`actors::published`) |
//! | `many-ranges` | `write_answers`, `cluster::answers` | nothing: who does not have the caller reads none |
//! | `watch-streams` | `shares` | room that is left for them |

use crate::support::{
    Difference, Server,
    frames::{
        CONTINUATION, DATA, END_HEADERS, FrameConnection, GOAWAY, HEADERS, RST_STREAM,
        call_headers, encode,
    },
    only_quorate_has,
};

const RANGE: &str = "/etcdserverpb.KV/Range";

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
