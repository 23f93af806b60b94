//! Peers with a valid certificate that send wrong bytes: the connection ends with a clear error, and the member goes on.

use super::members::{Authority, Member, pacing, run};
use crate::{
    net::{
        PeerAddress, Refusal, VERSION_HIGH, Versions,
        hello::{self, Hello},
        settings::{server_config, transport},
        tls::SERVER_NAME,
    },
    types::{ClusterId, Identity, MemberId},
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use quinn::{Connection, Endpoint};
use std::sync::Arc;

/// Connects to `member` as `name`, without a hub.
async fn connect(authority: &Authority, name: &str, member: &Member) -> (Endpoint, Connection) {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = authority.member(name).load(name).unwrap();
    let config = quinn::ClientConfig::new(tls.client);
    let connecting = endpoint.connect_with(config, member.address.parse().unwrap(), SERVER_NAME);
    let connection = connecting.unwrap().await.unwrap();
    (endpoint, connection)
}

/// As [`connect`], and completes the hello, as member 3.
async fn introduced(authority: &Authority, member: &Member) -> (Endpoint, Connection) {
    let (endpoint, connection) = connect(authority, "n3", member).await;
    let ours = Hello::new(
        Identity {
            cluster: ClusterId(1),
            member: MemberId(3),
        },
        VERSION_HIGH,
        crate::clock::entropy(),
        "n3".to_owned(),
    );
    hello::initiate(&connection, &ours, async |_| Ok(()))
        .await
        .unwrap();
    (endpoint, connection)
}

/// A member with two known peers: a healthy one, and the hostile one, which does not listen.
async fn members(authority: &Authority) -> (Member, Member) {
    let one = Member::start(1, authority.member("n1"));
    let two = Member::start(2, authority.member("n2"));
    let three = PeerAddress {
        id: MemberId(3),
        name: "n3".to_owned(),
        addresses: Vec::new(),
    };
    one.hub.update(vec![two.entry(), three]);
    two.knows(&[&one]);
    one.reaches(&two).await;
    (one, two)
}

/// Why the other side closed the connection.
async fn close_reason(connection: &Connection) -> (u64, String) {
    match connection.closed().await {
        quinn::ConnectionError::ApplicationClosed(close) => (
            close.error_code.into_inner(),
            String::from_utf8_lossy(&close.reason).into_owned(),
        ),
        other => panic!("not closed on purpose: {other}"),
    }
}

#[test]
fn bytes_that_are_no_frame_end_the_connection() {
    let cases: [(&[u8], &str); 7] = [
        (&[9, 1], "a stream of kind 9, version 1"),
        (&[2, 7], "a stream of kind 2, version 7"),
        (&[2, 1, 255, 255, 255, 255], "a frame of 4294967295 bytes"),
        (
            &[2, 1, 8, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            "a header of 5 bytes in a frame of 8",
        ),
        (
            &[2, 1, 5, 0, 0, 0, 1, 0, 0, 0, 255],
            "cannot decode peer message",
        ),
        (
            &[2, 1, 6, 0, 0, 0, 2, 0, 0, 0, 1, 12],
            "a TimeoutNow came over stream log",
        ),
        (
            &[3, 1, 5, 0, 0, 0, 1, 0, 0, 0, 77],
            "cannot decode forwarded request",
        ),
    ];
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        for (bytes, expected) in cases {
            let (_endpoint, connection) = introduced(&authority, &one).await;
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let (code, text) = close_reason(&connection).await;
            assert_eq!(code, 10, "{text}");
            assert!(text.contains(expected), "{text:?} names {expected:?}");
            one.reports(expected).await;
            one.reaches(&two).await;
        }
    });
}

#[test]
fn truncated_and_repeated_streams_end_the_connection() {
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        let (_endpoint, connection) = introduced(&authority, &one).await;
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&[2, 1, 5, 0, 0, 0, 1]).await.unwrap();
        stream.finish().unwrap();
        let (_, text) = close_reason(&connection).await;
        assert!(text.contains("the peer ended stream log"), "{text}");
        let (_endpoint, connection) = introduced(&authority, &one).await;
        for _ in 0..2 {
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(&[1, 1]).await.unwrap();
            // Dropping a stream would end it.
            std::mem::forget(stream);
        }
        let (_, text) = close_reason(&connection).await;
        assert!(text.contains("a second stream votes"), "{text}");
        one.reaches(&two).await;
    });
}

#[test]
fn a_bad_hello_is_refused_with_the_reason() {
    let mut future = b"QRT-PEER\x09\x00\x0a\x00\x00\x00".to_vec();
    future.extend_from_slice(&[0; 40]);
    let cases: [(&[u8], u64, &str); 4] = [
        (
            &future,
            2,
            "no common peer protocol version: the other side speaks 9 to 10, member \"n1\" speaks 1 to 3; upgrade member \"n1\"",
        ),
        (b"GET / HTTP/1.1\r\n\r\n", 10, "does not begin with a hello"),
        (
            b"QRT-PEER\x01\x00\x01\x00\xff\xff",
            10,
            "a hello of 65535 bytes",
        ),
        (
            b"QRT-PEER\x01\x00\x01\x00\x02\x00ab",
            10,
            "the hello ends too early",
        ),
    ];
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        for (bytes, code, expected) in cases {
            let (_endpoint, connection) = connect(&authority, "n3", &one).await;
            let (mut stream, _answer) = connection.open_bi().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let (found, text) = close_reason(&connection).await;
            assert_eq!(found, code, "{text}");
            assert!(text.contains(expected), "{text}");
            one.reports(expected).await;
        }
        one.reaches(&two).await;
    });
}

/// What a member of a later version says of itself.
fn later() -> Hello {
    let identity = Identity {
        cluster: ClusterId(1),
        member: MemberId(3),
    };
    let mut later = Hello::new(identity, VERSION_HIGH, 7, "n3".to_owned());
    (later.low, later.high) = (9, 10);
    later
}

const LATER: &str = "no common peer protocol version: member \"n3\" speaks 9 to 10, member \"n1\" speaks 1 to 3; \
                     upgrade member \"n1\"";

#[test]
fn a_later_version_that_dials_is_told_the_versions() {
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        for _ in 0..3 {
            let (_endpoint, connection) = connect(&authority, "n3", &one).await;
            let (mut stream, _answer) = connection.open_bi().await.unwrap();
            stream.write_all(&later().encode()).await.unwrap();
            assert_eq!(close_reason(&connection).await, (2, LATER.to_owned()));
        }
        logged_once(&one, LATER).await;
        one.reaches(&two).await;
    });
}

#[test]
fn a_later_version_that_is_dialled_is_told_the_versions_and_tells_them() {
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        let tls = authority.member("n3").load("n3").unwrap();
        let config = server_config(&tls, &Arc::new(transport(&pacing())));
        let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let three = PeerAddress {
            id: MemberId(3),
            name: "n3".to_owned(),
            addresses: vec![endpoint.local_addr().unwrap().to_string()],
        };
        one.hub.update(vec![two.entry(), three]);
        for _ in 0..3 {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, _receive) = connection.accept_bi().await.unwrap();
            send.write_all(&later().encode()).await.unwrap();
            assert_eq!(close_reason(&connection).await, (2, LATER.to_owned()));
        }
        logged_once(&one, LATER).await;
        let versions = |name: &str, low, high| Versions {
            name: name.to_owned(),
            low,
            high,
        };
        let refusal = Refusal::Version {
            theirs: versions("n1", 1, 1),
            ours: versions("n3", 9, 10),
        };
        let text = format!("refused by the peer: {refusal}");
        assert!(text.ends_with("; upgrade member \"n1\""), "{text}");
        let connection = endpoint.accept().await.unwrap().await.unwrap();
        hello::refuse(&connection, refusal);
        logged_once(&one, &text).await;
        one.reaches(&two).await;
    });
}

/// Waits for a line of the log, which is one for all attempts.
async fn logged_once(member: &Member, text: &str) {
    member.reports(text).await;
    let reported = member.hub.reported();
    let lines = reported.iter().filter(|line| line.ends_with(text));
    assert_eq!(lines.count(), 1, "{reported:?}");
}

#[test]
fn a_damaged_snapshot_is_refused_and_the_connection_stays() {
    run(async {
        let authority = Authority::new();
        let (one, _two) = members(&authority).await;
        let (_endpoint, connection) = introduced(&authority, &one).await;
        let cases: [(&[u8], &str); 3] = [
            (
                &[4, 0, 0, 0, 0, 1, 0, 0, 0, 9, 9, 9, 9, b'x'],
                "chunk at offset 0 is damaged",
            ),
            (&[4, 255, 255, 255, 255], "4294967295 bytes cannot be sent"),
            (
                &[4, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0],
                "at offset 0 is damaged",
            ),
        ];
        for (bytes, expected) in cases {
            let (mut stream, mut answer) = connection.open_bi().await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let answer = answer.read_to_end(10_000).await.unwrap();
            let text = String::from_utf8_lossy(&answer[1..]).into_owned();
            assert_eq!(answer[0], 1, "{text}");
            assert!(text.contains(expected), "{text}");
        }
        assert!(
            connection.close_reason().is_none(),
            "the connection is not to blame"
        );
    });
}

#[test]
fn random_bytes_on_every_stream_never_stop_a_member() {
    run(async {
        let authority = Authority::new();
        let (one, two) = members(&authority).await;
        let mut runner = TestRunner::deterministic();
        let garbage = prop::collection::vec(any::<u8>(), 1..64);
        for lane in [1, 2, 3, 4] {
            for _ in 0..8 {
                let (_endpoint, connection) = introduced(&authority, &one).await;
                let bytes = garbage.new_tree(&mut runner).unwrap().current();
                let mut all = vec![lane, 1];
                all.extend_from_slice(&bytes);
                // The other side may have closed the connection before all was written.
                if lane == 4 {
                    let (mut stream, _answer) = connection.open_bi().await.unwrap();
                    stream.write_all(&all).await.unwrap_or_default();
                } else {
                    let mut stream = connection.open_uni().await.unwrap();
                    stream.write_all(&all).await.unwrap_or_default();
                }
            }
        }
        one.reaches(&two).await;
        two.reaches(&one).await;
    });
}
