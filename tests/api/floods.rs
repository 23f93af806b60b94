//! Hostile clients: each loses its connection, and other clients are served meanwhile.

use crate::support::frames::{
    CONTINUATION, END_HEADERS, FrameConnection, GOAWAY, HEADERS, RST_STREAM, call_headers, encode,
};
use crate::support::{Difference, Server};

const RANGE: &str = "/etcdserverpb.KV/Range";

/// Sends until the server closes the connection, and checks that it says why.
async fn flood(server: &Server, mut next: impl FnMut(u32) -> Vec<u8>) {
    let mut connection = FrameConnection::connect(server.client_port()).await;
    let client = server.client().await;
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
