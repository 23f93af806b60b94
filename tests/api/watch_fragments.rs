//! Fragments of watch responses: a client that asks for them gets the messages that etcd sends, event by event.

use crate::support::{Client, Kind, Server, del_range, op_put, put, txn};
use pb::{WatchCreateRequest, WatchRequest, WatchResponse, watch_request::RequestUnion};
use quorate::internals::api::proto::etcdserverpb as pb;
use tokio_stream::StreamExt as _;
use tonic::Streaming;

const MIB: usize = 1024 * 1024;
/// The length from which messages are split, with the default limit of requests.
const MESSAGE_BYTES_MAX: usize = 2 * MIB;

/// One message: whether more fragments follow, and the revision and kind of each of its events.
type Fragment = (bool, Vec<(i64, i32)>);

async fn watch(client: &Client, request: WatchCreateRequest) -> Streaming<WatchResponse> {
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(request)),
    };
    // The stream of requests must not end before that of answers.
    let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
    let mut answers = client
        .watch
        .clone()
        .watch(requests)
        .await
        .unwrap()
        .into_inner();
    let created = answers.message().await.unwrap().unwrap();
    assert!(created.created, "{created:?}");
    answers
}

fn all(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: "k".into(),
        range_end: "l".into(),
        start_revision,
        fragment: true,
        ..WatchCreateRequest::default()
    }
}

/// Messages until there are `count` events, none of which is too long.
async fn fragments(answers: &mut Streaming<WatchResponse>, count: usize) -> Vec<Fragment> {
    let (messages, longest) = messages(answers, count).await;
    assert!(longest < MESSAGE_BYTES_MAX, "a message of {longest} bytes");
    messages
}

/// Messages until there are `count` events, and the most bytes of values in one of them.
async fn messages(answers: &mut Streaming<WatchResponse>, count: usize) -> (Vec<Fragment>, usize) {
    let (mut messages, mut events, mut longest) = (Vec::new(), 0, 0);
    while events < count {
        let answer = answers.message().await.unwrap().unwrap();
        events += answer.events.len();
        let bytes: usize = answer
            .events
            .iter()
            .map(|event| event.kv.as_ref().unwrap().value.len())
            .sum();
        longest = longest.max(bytes);
        let event = |event: &quorate::internals::api::proto::mvccpb::Event| {
            (event.kv.as_ref().unwrap().mod_revision, event.r#type)
        };
        messages.push((answer.fragment, answer.events.iter().map(event).collect()));
    }
    (messages, longest)
}

/// Puts values of these lengths, each with a key of its own.
async fn put_all(client: &Client, sizes: &[usize]) {
    for (n, size) in sizes.iter().enumerate() {
        client.must_put(format!("k{n:05}"), vec![b'v'; *size]).await;
    }
}

/// Watches that etcd gets to send the history in fragments.
const ETCD_TRIES: usize = 20;

/// What history in these sizes is sent as.
async fn of_history(kind: Kind, sizes: &[usize]) -> Vec<Fragment> {
    let server = Server::start_kind(kind).await;
    let client = server.client().await;
    put_all(&client, sizes).await;
    // etcd notes that a watch wants fragments after it has begun it: one that is quick gets its first answer whole.
    let tries = if kind == Kind::Etcd { ETCD_TRIES } else { 1 };
    for _ in 1..tries {
        let mut answers = watch(&client, all(2)).await;
        let (sent, longest) = messages(&mut answers, sizes.len()).await;
        if longest < MESSAGE_BYTES_MAX {
            return sent;
        }
    }
    fragments(&mut watch(&client, all(2)).await, sizes.len()).await
}

#[tokio::test]
async fn history_comes_in_the_fragments_that_etcd_sends() {
    let uneven: Vec<_> = (0..40).map(|n| (n * 7919) % 500_000).collect();
    let many = vec![10; 2500];
    let cases: [&[usize]; 5] = [
        &[MIB; 10],
        &[300_000; 12],
        &uneven,
        &many,
        &[1, MIB + 400_000, 1, MIB + 400_000, MIB + 400_000, 1, 1],
    ];
    for sizes in cases {
        let theirs = of_history(Kind::Etcd, sizes).await;
        let ours = of_history(Kind::Quorate, sizes).await;
        assert_eq!(ours, theirs, "for values of {sizes:?}");
    }
}

#[tokio::test]
async fn ten_large_events_are_one_response_in_ten_fragments() {
    let server = Server::start().await;
    let client = server.client().await;
    put_all(&client, &[MIB; 10]).await;
    let messages = fragments(&mut watch(&client, all(2)).await, 10).await;
    let expected: Vec<Fragment> = (0..10).map(|n| (n < 9, vec![(n + 2, 0)])).collect();
    assert_eq!(messages, expected);
}

#[tokio::test]
async fn without_fragments_responses_stay_small_enough_for_all_clients() {
    let server = Server::start_kind(Kind::Quorate).await;
    let client = server.client().await;
    put_all(&client, &[MIB; 10]).await;
    let request = WatchCreateRequest {
        fragment: false,
        ..all(2)
    };
    let mut answers = watch(&client, request).await;
    let mut events = 0;
    while events < 10 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(
            !answer.fragment && answer.events.len() <= 2,
            "{} events",
            answer.events.len()
        );
        events += answer.events.len();
    }
}

/// A revision of many events, as it happens: previous values make the response of a deletion as long as what it deletes.
async fn of_changes(kind: Kind) -> Vec<Fragment> {
    let server = Server::start_kind(kind).await;
    let client = server.client().await;
    let request = WatchCreateRequest {
        prev_kv: true,
        ..all(0)
    };
    let mut answers = watch(&client, request).await;
    let mut messages = Vec::new();
    for n in 0..8 {
        let op = |part: usize| op_put(put(format!("k{n}{part}"), vec![b'v'; 700_000]));
        client
            .txn(txn(Vec::new(), vec![op(0), op(1)], Vec::new()))
            .await
            .unwrap();
        messages.extend(fragments(&mut answers, 2).await);
    }
    client.delete(del_range("k", "l")).await.unwrap();
    messages.extend(fragments(&mut answers, 16).await);
    messages
}

#[tokio::test]
async fn changes_come_in_the_fragments_that_etcd_sends() {
    let theirs = of_changes(Kind::Etcd).await;
    assert!(
        theirs.iter().any(|(more, _)| *more),
        "some are split: {theirs:?}"
    );
    assert_eq!(of_changes(Kind::Quorate).await, theirs);
}
