//! Watch: the protocol on the wire, message by message.

use crate::support::{
    Client, Difference, Kind, Server, Setup, del, del_range, etcdctl, get, only_quorate_has,
    op_del, op_put, put, start_etcdctl, txn,
};
use pb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_create_request::FilterType, watch_request::RequestUnion,
};
use quorate::internals::api::proto::{etcdserverpb as pb, mvccpb};
use rustix::process::Signal;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

/// A stream of watches.
struct Watching {
    requests: Option<mpsc::Sender<WatchRequest>>,
    responses: Streaming<WatchResponse>,
}

fn create(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest {
        key: key.into(),
        ..WatchCreateRequest::default()
    }
}

fn prefix(key: &'static str, range_end: &'static str) -> WatchCreateRequest {
    WatchCreateRequest {
        range_end: range_end.into(),
        ..create(key)
    }
}

fn request(union: RequestUnion) -> WatchRequest {
    WatchRequest {
        request_union: Some(union),
    }
}

impl Watching {
    /// Opens a stream with its first watch. etcd sends the headers of the answer with the first message.
    async fn open(client: &Client, first: WatchCreateRequest) -> Self {
        let (requests, stream) = mpsc::channel(64);
        requests
            .send(request(RequestUnion::CreateRequest(first)))
            .await
            .unwrap();
        let answer = client
            .watch
            .clone()
            .watch(ReceiverStream::new(stream))
            .await;
        Self {
            requests: Some(requests),
            responses: answer.unwrap().into_inner(),
        }
    }

    /// A stream whose first watch is created; returns its id.
    async fn created(client: &Client, first: WatchCreateRequest) -> Self {
        let mut watching = Self::open(client, first).await;
        let created = watching.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        watching
    }

    async fn send(&self, union: RequestUnion) {
        let requests = self.requests.as_ref().expect("the client's side is open");
        requests.send(request(union)).await.unwrap();
    }

    async fn create(&mut self, create: WatchCreateRequest) -> WatchResponse {
        self.send(RequestUnion::CreateRequest(create)).await;
        self.next().await
    }

    async fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }))
            .await;
    }

    async fn ask_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}))
            .await;
    }

    async fn next(&mut self) -> WatchResponse {
        self.outcome().await.unwrap().expect("the stream goes on")
    }

    async fn outcome(&mut self) -> Result<Option<WatchResponse>, Status> {
        self.responses.message().await
    }

    /// The next response with events.
    async fn events(&mut self) -> Vec<mvccpb::Event> {
        let response = self.next().await;
        assert!(!response.events.is_empty(), "{response:?}");
        response.events
    }
}

fn revision(response: &WatchResponse) -> i64 {
    response
        .header
        .as_ref()
        .expect("every response has a header")
        .revision
}

/// A response without events: id, created, canceled, compact revision, reason, header's revision.
type Shape = (i64, bool, bool, i64, String, i64);

fn shape(response: &WatchResponse) -> Shape {
    assert!(
        response.events.is_empty() && !response.fragment,
        "{response:?}"
    );
    (
        response.watch_id,
        response.created,
        response.canceled,
        response.compact_revision,
        response.cancel_reason.clone(),
        revision(response),
    )
}

fn created_as(id: i64, revision: i64) -> Shape {
    (id, true, false, 0, String::new(), revision)
}

fn refused(reason: &str, revision: i64) -> Shape {
    (-1, true, true, 0, reason.to_owned(), revision)
}

fn canceled(id: i64, revision: i64) -> Shape {
    (id, false, true, 0, String::new(), revision)
}

fn progress(id: i64, revision: i64) -> Shape {
    (id, false, false, 0, String::new(), revision)
}

/// Type, key, value and revisions of an event.
fn fields(event: &mvccpb::Event) -> (i32, String, String, i64, i64) {
    let kv = event.kv.as_ref().expect("an event has its key");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        event.r#type,
        text(&kv.key),
        text(&kv.value),
        kv.create_revision,
        kv.mod_revision,
    )
}

#[tokio::test]
async fn ids_and_refusals_of_creation() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let mut watching = Watching::open(&client, create("k")).await;
    assert_eq!(
        shape(&watching.next().await),
        created_as(0, 2),
        "the first id is 0"
    );
    assert_eq!(shape(&watching.create(create("k")).await), created_as(1, 2));
    let seven = || WatchCreateRequest {
        watch_id: 7,
        ..create("k")
    };
    assert_eq!(shape(&watching.create(seven()).await), created_as(7, 2));
    let duplicate = refused("mvcc: duplicate watch ID provided on the WatchStream", 2);
    assert_eq!(shape(&watching.create(seven()).await), duplicate);
    let empty = refused("mvcc: watcher range is empty", 2);
    assert_eq!(shape(&watching.create(prefix("k", "a")).await), empty);
    assert_eq!(shape(&watching.create(prefix("k", "k")).await), empty);
    watching.cancel(0).await;
    assert_eq!(shape(&watching.next().await), canceled(0, 2));
    assert_eq!(
        shape(&watching.create(create("k")).await),
        created_as(2, 2),
        "ids never go back"
    );
    watching.cancel(7).await;
    assert_eq!(shape(&watching.next().await), canceled(7, 2));
    assert_eq!(
        shape(&watching.create(seven()).await),
        created_as(7, 2),
        "a given id is free again"
    );
    watching.cancel(99).await;
    watching
        .send(RequestUnion::CreateRequest(create("k")))
        .await;
    assert_eq!(
        shape(&watching.next().await),
        created_as(3, 2),
        "an unknown id has no answer"
    );
}

#[tokio::test]
async fn a_put_that_creates_its_key_has_no_previous_value() {
    let server = Server::start().await;
    if server.has(Difference::PrevKvOfCreation) {
        return;
    }
    let client = server.client().await;
    client.must_put("k", "old").await;
    let with_prev = |start_revision| WatchCreateRequest {
        prev_kv: true,
        start_revision,
        ..create("k")
    };
    let mut present = Watching::created(&client, with_prev(0)).await;
    // No other form of deletion is allowed beside a put of the same key.
    let ops = vec![op_del(del_range("k", "\0")), op_put(put("k", "new"))];
    client.txn(txn(vec![], ops, vec![])).await.unwrap();
    let mut past = Watching::created(&client, with_prev(3)).await;
    for watching in [&mut present, &mut past] {
        let events = watching.events().await;
        let prev: Vec<_> = events.iter().map(|event| &event.prev_kv).collect();
        assert_eq!(events.len(), 2, "{events:?}");
        assert_eq!(prev[0].as_ref().unwrap().value, "old");
        assert_eq!(prev[1], &None);
    }
}

#[tokio::test]
async fn a_start_below_zero_is_refused() {
    let server = Server::start().await;
    if server.has(Difference::NegativeStart) {
        return;
    }
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    let negative = WatchCreateRequest {
        start_revision: -1,
        ..create("k")
    };
    let reason = "etcdserver: mvcc: required revision has been compacted";
    let response = watching.create(negative).await;
    assert!(response.canceled, "{response:?}");
    assert_eq!(
        (response.cancel_reason.as_str(), response.compact_revision),
        (reason, 0)
    );
}

#[tokio::test]
async fn a_revision_is_one_response() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("a", "0").await;
    let with_prev = WatchCreateRequest {
        prev_kv: true,
        ..prefix("a", "c")
    };
    let mut watching = Watching::created(&client, with_prev).await;
    let success = vec![
        op_put(put("b", "1")),
        op_del(del("a")),
        op_put(put("z", "2")),
        op_put(put("a1", "3")),
    ];
    client.txn(txn(vec![], success, vec![])).await.unwrap();
    let response = watching.next().await;
    assert_eq!((response.watch_id, revision(&response)), (0, 3));
    let events: Vec<_> = response.events.iter().map(fields).collect();
    let expected = [
        (0, "b".to_owned(), "1".to_owned(), 3, 3),
        (1, "a".to_owned(), String::new(), 0, 3),
        (0, "a1".to_owned(), "3".to_owned(), 3, 3),
    ];
    assert_eq!(
        events, expected,
        "what matches, in the order of the transaction"
    );
    let prevs: Vec<_> = response
        .events
        .iter()
        .map(|event| event.prev_kv.clone())
        .collect();
    assert_eq!((&prevs[0], &prevs[2]), (&None, &None));
    assert_eq!(prevs[1].as_ref().unwrap().value, "0");
}

#[tokio::test]
async fn the_past_then_the_present() {
    let server = Server::start().await;
    let client = server.client().await;
    for n in 0..5 {
        client.must_put("k", n.to_string()).await;
    }
    let past = WatchCreateRequest {
        start_revision: 3,
        ..create("k")
    };
    let mut watching = Watching::created(&client, past).await;
    let response = watching.next().await;
    let revisions: Vec<i64> = response
        .events
        .iter()
        .map(|event| fields(event).4)
        .collect();
    assert_eq!(
        (revisions, revision(&response)),
        (vec![3, 4, 5, 6], 6),
        "history in one response"
    );
    client.must_put("k", "5").await;
    let response = watching.next().await;
    assert_eq!((fields(&response.events[0]).4, revision(&response)), (7, 7));
}

#[tokio::test]
async fn filters_drop_events_and_empty_responses() {
    let server = Server::start().await;
    let client = server.client().await;
    let filtered = |filter: FilterType| WatchCreateRequest {
        filters: vec![filter.into(), 77],
        ..create("k")
    };
    let mut watching = Watching::created(&client, filtered(FilterType::Noput)).await;
    watching.create(filtered(FilterType::Nodelete)).await;
    client.must_put("k", "1").await;
    client.delete(del("k")).await.unwrap();
    client.must_put("k", "2").await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let response = watching.next().await;
        seen.push((
            response.watch_id,
            fields(&response.events[0]).0,
            revision(&response),
        ));
    }
    seen.sort_unstable_by_key(|seen| (seen.0, seen.2));
    assert_eq!(seen, [(0, 1, 3), (1, 0, 2), (1, 0, 4)]);
}

#[tokio::test]
async fn a_compacted_start_is_created_then_canceled() {
    let server = Server::start().await;
    let client = server.client().await;
    for n in 0..5 {
        client.must_put("k", n.to_string()).await;
    }
    client.compact(4).await.unwrap();
    let start = |start_revision| WatchCreateRequest {
        start_revision,
        ..create("k")
    };
    let mut watching = Watching::open(&client, start(3)).await;
    assert_eq!(shape(&watching.next().await), created_as(0, 6));
    assert_eq!(
        shape(&watching.next().await),
        (0, false, true, 4, String::new(), 0)
    );
    assert_eq!(
        shape(&watching.create(start(4)).await),
        created_as(1, 6),
        "the stream lives on"
    );
    let revisions: Vec<i64> = watching
        .events()
        .await
        .iter()
        .map(|event| fields(event).4)
        .collect();
    assert_eq!(revisions, [4, 5, 6]);
}

#[tokio::test]
async fn progress_comes_behind_all_events() {
    let server = Server::start().await;
    if server.has(Difference::ProgressOfFutureWatch) {
        return;
    }
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    watching.create(create("other")).await;
    for n in 0..20 {
        client.must_put("k", n.to_string()).await;
        watching.ask_progress().await;
        loop {
            let response = watching.next().await;
            if response.events.is_empty() {
                assert_eq!(shape(&response), progress(-1, n + 2));
                break;
            }
            assert_eq!(fields(&response.events[0]).4, n + 2);
        }
    }
    // With a watch that starts at a future revision, no watch gets a progress notification.
    let future = WatchCreateRequest {
        start_revision: 23,
        ..create("k")
    };
    assert_eq!(shape(&watching.create(future).await), created_as(2, 21));
    watching.ask_progress().await;
    client.must_put("k", "22").await;
    assert_eq!(fields(&watching.events().await[0]).4, 22);
    watching.ask_progress().await;
    client.must_put("k", "23").await;
    let mut ids = [watching.next().await, watching.next().await].map(|response| {
        assert_eq!(fields(&response.events[0]).4, 23);
        response.watch_id
    });
    ids.sort_unstable();
    assert_eq!(ids, [0, 2], "the one from the future begins");
    watching.ask_progress().await;
    assert_eq!(shape(&watching.next().await), progress(-1, 23));
}

/// A server that notifies idle watches of their progress every 200 ms.
async fn with_frequent_progress() -> Server {
    let mut setup = Setup::default();
    match Kind::target() {
        Kind::Quorate => setup.env.push((
            "QUORATE_WATCH_PROGRESS_INTERVAL_MS".to_owned(),
            "200".to_owned(),
        )),
        Kind::Etcd if Difference::ExperimentalFlags.in_etcd() => setup
            .args
            .push("--experimental-watch-progress-notify-interval=200ms".to_owned()),
        Kind::Etcd => setup
            .args
            .push("--watch-progress-notify-interval=200ms".to_owned()),
    }
    Server::start_with(setup).await
}

#[tokio::test]
async fn quiet_watches_that_asked_are_told_of_progress_at_their_interval() {
    let server = with_frequent_progress().await;
    let client = server.client().await;
    let notify = |progress_notify, create| WatchCreateRequest {
        progress_notify,
        ..create
    };
    let mut watching = Watching::created(&client, notify(false, create("k"))).await;
    watching.create(notify(true, create("quiet"))).await;
    for revision in [1, 1] {
        assert_eq!(shape(&watching.next().await), progress(1, revision));
    }
    // Writes to other keys advance it. A notification that was sent earlier still has the earlier revision.
    client.must_put("x", "1").await;
    let moved = async {
        while revision(&watching.next().await) < 2 {}
        watching.next().await
    };
    assert_eq!(shape(&moved.await), progress(1, 2));
}

#[tokio::test]
async fn a_watch_from_the_future_is_not_notified() {
    let server = with_frequent_progress().await;
    if server.has(Difference::FutureWatchNotified) {
        return;
    }
    let client = server.client().await;
    let future = WatchCreateRequest {
        progress_notify: true,
        start_revision: 4,
        ..create("k")
    };
    let mut watching = Watching::created(&client, future).await;
    let now = WatchCreateRequest {
        progress_notify: true,
        ..create("other")
    };
    watching.create(now).await;
    for seen in 1..4 {
        // Three rounds of notifications at each revision: all belong to the other watch.
        for _ in 0..3 {
            let response = watching.next().await;
            assert_eq!((response.watch_id, response.events.len()), (1, 0));
        }
        assert_eq!(client.must_put("x", "1").await, seen + 1);
    }
    loop {
        let response = watching.next().await;
        if response.watch_id == 0 {
            assert_eq!(shape(&response), progress(0, 4));
            return;
        }
    }
}

#[tokio::test]
async fn a_stream_without_watches_has_no_progress() {
    let server = Server::start().await;
    if server.has(Difference::ProgressWithoutWatch) {
        return;
    }
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    watching.cancel(0).await;
    assert_eq!(shape(&watching.next().await), canceled(0, 1));
    watching.ask_progress().await;
    assert_eq!(shape(&watching.create(create("k")).await), created_as(1, 1));
}

#[tokio::test]
async fn half_close_ends_nothing_while_a_watch_lives() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    watching.requests = None;
    for n in 2..5 {
        client.must_put("k", "v").await;
        assert_eq!(fields(&watching.events().await[0]).4, n);
    }
}

#[tokio::test]
async fn half_close_without_a_watch_ends_the_stream() {
    if only_quorate_has("an end of streams that have nothing left to say") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    watching.cancel(0).await;
    watching.requests = None;
    assert_eq!(shape(&watching.next().await), canceled(0, 1));
    assert_eq!(watching.outcome().await.unwrap(), None, "ended with OK");
}

#[tokio::test]
async fn fragments_are_cut_below_the_limit() {
    let server = Server::start().await;
    let client = server.client().await;
    for n in 0..12 {
        client
            .must_put(format!("k{n:02}"), vec![b'v'; 400 * 1024])
            .await;
    }
    let fragment = |fragment| WatchCreateRequest {
        fragment,
        prev_kv: true,
        ..prefix("k", "l")
    };
    let mut watching = Watching::created(&client, fragment(true)).await;
    let mut whole = Watching::created(&client, fragment(false)).await;
    client.delete(del_range("k", "l")).await.unwrap();
    let (mut counts, mut flags) = (Vec::new(), Vec::new());
    while counts.iter().sum::<usize>() < 12 {
        let response = watching.next().await;
        assert_eq!((response.watch_id, revision(&response)), (0, 14));
        counts.push(response.events.len());
        flags.push(response.fragment);
    }
    assert_eq!((counts, flags), (vec![5, 5, 2], vec![true, true, false]));
    let response = whole.next().await;
    assert_eq!(
        (response.events.len(), response.fragment),
        (12, false),
        "unless asked for"
    );
}

#[tokio::test]
async fn an_empty_request_is_ignored() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    let requests = watching.requests.clone().unwrap();
    requests
        .send(WatchRequest {
            request_union: None,
        })
        .await
        .unwrap();
    assert_eq!(shape(&watching.create(create("k")).await), created_as(1, 1));
}

#[tokio::test]
async fn empty_key_and_open_end_watch_everything() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut watching = Watching::created(&client, prefix("", "\0")).await;
    watching.create(create("")).await;
    client.must_put("\0", "first").await;
    let mut ids = [
        watching.next().await.watch_id,
        watching.next().await.watch_id,
    ];
    ids.sort_unstable();
    assert_eq!(ids, [0, 1], "the empty key is the first key");
    client.must_put("zzz", "last").await;
    assert_eq!(watching.next().await.watch_id, 0);
}

#[tokio::test]
async fn a_stopping_server_says_unavailable() {
    if only_quorate_has("a status at the end, where etcd drops the connection") {
        return;
    }
    let mut server = Server::start().await;
    let client = server.client().await;
    let mut watching = Watching::created(&client, create("k")).await;
    server.signal(Signal::TERM);
    let status = watching.outcome().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(server.stopped().await.success());
}

#[tokio::test]
async fn a_client_that_never_reads_holds_nobody_up() {
    let server = Server::start().await;
    let client = server.client().await;
    // On a connection of its own, so that the stalled stream does not use up the window of the others.
    let stalled = server.client().await;
    let mut asleep = Watching::created(&stalled, prefix("k", "l")).await;
    let mut awake = Watching::created(&client, prefix("k", "l")).await;
    for n in 0..100_i64 {
        let revision = client.put(put("k", vec![b'v'; 256 * 1024])).await.unwrap();
        let revision = revision.header.unwrap().revision;
        assert_eq!(revision, n + 2);
        assert_eq!(fields(&awake.events().await[0]).4, revision);
    }
    let mut next = 2;
    while next < 102 {
        for event in asleep.events().await {
            assert_eq!(fields(&event).4, next, "not one is missing");
            next += 1;
        }
    }
    client.range(get("k")).await.unwrap();
}

#[tokio::test]
async fn etcdctl_watch_prints_events() {
    let server = Server::start().await;
    etcdctl(&server, &["put", "greeting", "hello"], "")
        .await
        .ok();
    let args = ["watch", "greet", "--prefix", "--rev=2", "--prev-kv"];
    let mut child = start_etcdctl(&server, &args);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut print = async |count: usize| {
        let mut printed = Vec::new();
        for _ in 0..count {
            printed.push(lines.next_line().await.unwrap().expect("etcdctl goes on"));
        }
        printed
    };
    assert_eq!(print(3).await, ["PUT", "greeting", "hello"]);
    etcdctl(&server, &["put", "greeting", "again"], "")
        .await
        .ok();
    assert_eq!(
        print(5).await,
        ["PUT", "greeting", "hello", "greeting", "again"]
    );
    etcdctl(&server, &["del", "greeting"], "").await.ok();
    assert_eq!(print(4).await, ["DELETE", "greeting", "again", "greeting"]);
    child.kill().await.unwrap();
}
