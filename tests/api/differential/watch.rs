//! The same random watches, and writes between them, at Quorate and at a real etcd: each watch must get the same.
//!
//! The test compares the responses about each watch, field by field, with the events of successive responses put together: how
//! many revisions of history go into one response depends on time. It does not generate cases where etcd 3.4 differs: negative
//! starts and the id -1 (refused since 3.5), a start exactly at the compacted revision (3.4 loses a deletion there), and progress
//! requests on streams that have no watch or one from the future (unanswered since 3.4.25). After the end of a watch whose
//! start is compacted etcd keeps its id until it is cancelled, so that is done there.
//!
//! `QUORATE_DIFF_WATCH_OPS` operations from `SEED`, which a failure prints.

use super::setting;
use crate::support::{Client, Kind, Server, del_range, note, op_del, op_put, put, txn};
use bytes::Bytes;
use fastrand::Rng;
use pb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_request::RequestUnion,
};
use quorate::internals::api::proto::{etcdserverpb as pb, mvccpb::Event};
use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

const OPERATIONS: usize = 1_500;
const STREAMS: usize = 3;
const KEYS: [&str; 7] = ["a", "aa", "b", "ba", "c", "d", "\u{ff}"];
/// Expected responses arrive within this time: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// etcd serves watches that begin in the past every 100 ms, and sends no response if there is no event.
const ETCD_LOOKS: Duration = Duration::from_millis(400);

/// A server's responses about a watch.
#[derive(Clone, Debug, PartialEq)]
enum Note {
    Created { revision: i64 },
    Refused { reason: String, revision: i64 },
    Event(Event),
    Cancelled { revision: i64 },
    Compacted { oldest: i64, revision: i64 },
    Progress { revision: i64 },
}

/// Every note of a stream, with the watch it is about.
type Log = Vec<(i64, Note)>;

#[derive(Debug)]
struct Stream {
    asking: mpsc::Sender<WatchRequest>,
    log: Arc<Mutex<Log>>,
    grown: Arc<Notify>,
}

impl Stream {
    /// A stream, which begins with a watch of nothing that happens: etcd opens no stream without one.
    async fn open(client: &Client, kind: Kind, first: WatchCreateRequest) -> Self {
        let (asking, requests) = mpsc::channel(16);
        let stream = Self {
            asking,
            log: Arc::default(),
            grown: Arc::default(),
        };
        stream.send(RequestUnion::CreateRequest(first)).await;
        let mut client = client.watch.clone();
        let answer = client.watch(ReceiverStream::new(requests)).await;
        let responses = answer.unwrap().into_inner();
        let listener = Listener {
            kind,
            asking: stream.asking.clone(),
            log: stream.log.clone(),
            grown: stream.grown.clone(),
        };
        tokio::spawn(listener.listen(responses));
        stream
    }

    async fn send(&self, union: RequestUnion) {
        let request = WatchRequest {
            request_union: Some(union),
        };
        self.asking.send(request).await.unwrap();
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// Waits until the log is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&Log) -> bool) {
        let there = async {
            loop {
                let grown = self.grown.notified();
                if wanted(&self.log()) {
                    return;
                }
                grown.await;
            }
        };
        let there = timeout(PATIENCE, there).await;
        assert!(there.is_ok(), "{what} never came; got: {:?}", self.log());
    }
}

/// The end of a stream where responses come in.
struct Listener {
    kind: Kind,
    asking: mpsc::Sender<WatchRequest>,
    log: Arc<Mutex<Log>>,
    grown: Arc<Notify>,
}

impl Listener {
    async fn listen(self, mut responses: Streaming<WatchResponse>) {
        let mut forgotten = Vec::new();
        while let Ok(Some(response)) = responses.message().await {
            let id = response.watch_id;
            if response.canceled && forgotten.contains(&id) {
                forgotten.retain(|other| *other != id);
                continue;
            }
            if response.compact_revision != 0 && self.kind == Kind::Etcd {
                forgotten.push(id);
                let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id });
                let request_union = Some(cancel);
                // An error means that the test is over.
                drop(self.asking.send(WatchRequest { request_union }).await);
            }
            let notes = notes(response).into_iter().map(|note| (id, note));
            self.log.lock().unwrap().extend(notes);
            self.grown.notify_waiters();
        }
    }
}

fn notes(response: WatchResponse) -> Vec<Note> {
    let revision = response
        .header
        .expect("every response has a header")
        .revision;
    if !response.events.is_empty() {
        let last = response.events.last().and_then(|event| event.kv.as_ref());
        assert!(
            last.is_some_and(|kv| kv.mod_revision <= revision),
            "{response:?}"
        );
        return response.events.into_iter().map(Note::Event).collect();
    }
    let reason = response.cancel_reason;
    let note = match (
        response.created,
        response.canceled,
        response.compact_revision,
    ) {
        (true, false, 0) => Note::Created { revision },
        (true, true, 0) => Note::Refused { reason, revision },
        (false, true, 0) => Note::Cancelled { revision },
        (false, true, oldest) => Note::Compacted { oldest, revision },
        (false, false, 0) => Note::Progress { revision },
        other => panic!("{other:?} makes no sense"),
    };
    vec![note]
}

/// A watch that both have.
#[derive(Clone, Debug)]
struct Watcher {
    stream: usize,
    id: i64,
    request: WatchCreateRequest,
    /// The first revision it gets.
    from: i64,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().expect("an event has its key");
        let (start, end) = (&self.request.key, &self.request.range_end);
        let inside = match end.as_ref() {
            b"" => kv.key == start,
            b"\0" => kv.key >= start,
            end => kv.key >= start && kv.key.as_ref() < end,
        };
        // A filter has the number of the kind it drops.
        inside && kv.mod_revision >= self.from && !self.request.filters.contains(&event.r#type)
    }
}

struct Side {
    client: Client,
    streams: Vec<Stream>,
    all: Stream,
    _server: Server,
}

impl Side {
    async fn start(kind: Kind) -> Self {
        let server = Server::start_kind(kind).await;
        let client = server.client().await;
        let everything = WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: 1,
            ..WatchCreateRequest::default()
        };
        let all = Stream::open(&client, kind, everything).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let nothing = WatchCreateRequest {
                key: "nothing".into(),
                ..WatchCreateRequest::default()
            };
            streams.push(Stream::open(&client, kind, nothing).await);
        }
        Self {
            client,
            streams,
            all,
            _server: server,
        }
    }
}

struct Pair {
    sides: [Side; 2],
    random: Rng,
    watchers: Vec<Watcher>,
    newest: i64,
    compacted: i64,
    /// When the last watch that begins in the past was created.
    looked_back: Instant,
    /// How often each kind of step was done: proof that the test covers them.
    done: std::collections::BTreeMap<&'static str, usize>,
    context: String,
}

impl Pair {
    async fn start(seed: u64) -> Self {
        let sides = [
            Side::start(Kind::target()).await,
            Side::start(Kind::Etcd).await,
        ];
        let nothing = |stream| Watcher {
            stream,
            id: 0,
            request: WatchCreateRequest {
                key: "nothing".into(),
                ..WatchCreateRequest::default()
            },
            from: 2,
        };
        let mut pair = Self {
            sides,
            random: Rng::with_seed(seed),
            watchers: (0..STREAMS).map(nothing).collect(),
            newest: 1,
            compacted: 0,
            looked_back: Instant::now(),
            done: std::collections::BTreeMap::new(),
            context: String::new(),
        };
        for stream in 0..STREAMS {
            pair.await_responses(stream, "a watch", |log| log.len() == 1)
                .await;
        }
        pair.write().await;
        pair
    }

    async fn step(&mut self) {
        match self.random.u8(..100) {
            0..55 => self.write().await,
            55..78 => self.create().await,
            78..88 => self.cancel().await,
            88..97 => self.progress().await,
            _ => self.compact().await,
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn key(&mut self) -> &'static str {
        KEYS[self.random.usize(..KEYS.len())]
    }

    /// Waits until both sides' logs of a stream are as wanted.
    async fn await_responses(&self, stream: usize, what: &str, wanted: impl Fn(&Log) -> bool) {
        for (side, name) in self.sides.iter().zip(["target", "etcd"]) {
            let what = format!("{}: {what} at {name}", self.context);
            side.streams[stream].until(&what, &wanted).await;
        }
    }

    async fn write(&mut self) {
        let (key, other) = (self.key(), self.key());
        let value = format!("{}", self.random.u32(..));
        let request = match self.random.u8(..8) {
            0 => txn(vec![], vec![op_del(del_range(key, ""))], vec![]),
            1 => txn(vec![], vec![op_del(del_range("a", "c"))], vec![]),
            2 | 3 if key != other => {
                let ops = vec![op_put(put(key, value)), op_del(del_range(other, ""))];
                txn(vec![], ops, vec![])
            }
            _ => txn(vec![], vec![op_put(put(key, value))], vec![]),
        };
        let mut revisions = Vec::new();
        for side in &self.sides {
            let answer = side.client.txn(request.clone()).await.unwrap();
            revisions.push(answer.header.unwrap().revision);
        }
        assert_eq!(revisions[0], revisions[1], "{}", self.context);
        self.newest = revisions[0];
        self.count("write");
    }

    fn request(&mut self) -> WatchCreateRequest {
        let start_revision = match self.random.u8(..10) {
            0..4 => 0,
            4..7 => self.random.i64(1..=self.newest),
            7 => self.random.i64((self.newest - 20).max(1)..=self.newest),
            8 => self.newest + 1,
            _ => self.newest + self.random.i64(2..20),
        };
        let range_end = match self.random.u8(..8) {
            0..3 => "",
            3 => "\0",
            _ => self.key(),
        };
        let mut filters = Vec::new();
        for filter in [0, 1, 7] {
            if self.random.u8(..10) == 0 {
                filters.push(filter);
            }
        }
        let empty = self.random.u8(..30) == 0;
        WatchCreateRequest {
            key: if empty {
                Bytes::new()
            } else {
                self.key().into()
            },
            range_end: range_end.into(),
            start_revision: if start_revision == self.compacted {
                0
            } else {
                start_revision
            },
            progress_notify: self.random.bool(),
            filters,
            prev_kv: self.random.bool(),
            watch_id: if self.random.u8(..3) == 0 {
                self.random.i64(1..9)
            } else {
                0
            },
            fragment: self.random.bool(),
        }
    }

    async fn create(&mut self) {
        let (stream, request) = (self.random.usize(..STREAMS), self.request());
        let answered = |log: &Log| {
            let answer = |(_, note): &&(i64, Note)| {
                matches!(note, Note::Created { .. } | Note::Refused { .. })
            };
            log.iter().filter(answer).count()
        };
        let before = answered(&self.sides[0].streams[stream].log());
        for side in &self.sides {
            let create = RequestUnion::CreateRequest(request.clone());
            side.streams[stream].send(create).await;
        }
        self.await_responses(stream, "an answer", |log| answered(log) > before)
            .await;
        let answer = |side: &Side| {
            let log = side.streams[stream].log();
            let answers = log
                .iter()
                .filter(|(_, note)| matches!(note, Note::Created { .. } | Note::Refused { .. }));
            answers.last().cloned().expect("it just came")
        };
        let answers = [answer(&self.sides[0]), answer(&self.sides[1])];
        assert_eq!(answers[0], answers[1], "{}: {request:?}", self.context);
        let [(id, Note::Created { revision }), _] = answers else {
            self.count("refused");
            return;
        };
        let start = request.start_revision;
        if start > 0 && start < self.compacted {
            let over = |log: &Log| {
                let last = log.iter().rfind(|(of, _)| *of == id);
                matches!(last, Some((_, Note::Compacted { .. })))
            };
            self.await_responses(stream, "the end of a watch of compacted history", over)
                .await;
            self.count("compacted");
            return;
        }
        if start > 0 {
            self.looked_back = Instant::now();
        }
        self.count(match start {
            0 => "now",
            start if start > self.newest => "future",
            _ => "past",
        });
        let from = if start == 0 { revision + 1 } else { start };
        self.watchers.push(Watcher {
            stream,
            id,
            request,
            from,
        });
    }

    /// Waits until every watch has received all events so far.
    async fn settle(&self) {
        let newest = self.newest;
        let revision = |note: &Note| match note {
            Note::Event(event) => event.kv.as_ref().map_or(0, |kv| kv.mod_revision),
            _ => 0,
        };
        for side in &self.sides {
            // The first writes may all have deleted nothing.
            let everything = |log: &Log| {
                newest == 1 || log.last().is_some_and(|(_, note)| revision(note) >= newest)
            };
            side.all.until(&self.context, everything).await;
        }
        for watcher in &self.watchers {
            let all = self.sides[0].all.log().clone();
            let owed = all
                .iter()
                .filter(|(_, note)| matches!(note, Note::Event(event) if watcher.wants(event)));
            let owed = owed.count();
            let what = format!("{owed} events of {watcher:?}");
            let enough = |log: &Log| {
                let of_watch = log.iter().rev().filter(|(id, _)| *id == watcher.id);
                let since = of_watch.take_while(|(_, note)| !matches!(note, Note::Created { .. }));
                since
                    .filter(|(_, note)| matches!(note, Note::Event(_)))
                    .count()
                    >= owed
            };
            self.await_responses(watcher.stream, &what, enough).await;
        }
    }

    async fn cancel(&mut self) {
        self.settle().await;
        let unknown = self.watchers.len() <= STREAMS || self.random.u8(..5) == 0;
        let (stream, watch_id) = if unknown {
            (self.random.usize(..STREAMS), 1_000)
        } else {
            let at = self.random.usize(STREAMS..self.watchers.len());
            let watcher = self.watchers.remove(at);
            (watcher.stream, watcher.id)
        };
        for side in &self.sides {
            let cancel = RequestUnion::CancelRequest(WatchCancelRequest { watch_id });
            side.streams[stream].send(cancel).await;
        }
        if unknown {
            self.count("unknown");
            return;
        }
        let over = |log: &Log| {
            let last = log.iter().rfind(|(of, _)| *of == watch_id);
            matches!(last, Some((_, Note::Cancelled { .. })))
        };
        self.await_responses(stream, "the end of a watch", over)
            .await;
        self.count("cancel");
    }

    async fn progress(&mut self) {
        let stream = self.random.usize(..STREAMS);
        let newest = self.newest;
        let future =
            |watcher: &Watcher| watcher.stream == stream && watcher.request.start_revision > newest;
        if self.watchers.iter().any(future) {
            return;
        }
        self.settle().await;
        // etcd answers only if no watch of the stream is still on its way through the past.
        sleep_until(self.looked_back + ETCD_LOOKS).await;
        let progress = |log: &Log| {
            let progress = |(_, note): &&(i64, Note)| matches!(note, Note::Progress { .. });
            log.iter().filter(progress).count()
        };
        let before = progress(&self.sides[0].streams[stream].log());
        for side in &self.sides {
            let ask = RequestUnion::ProgressRequest(WatchProgressRequest {});
            side.streams[stream].send(ask).await;
        }
        self.await_responses(stream, "progress", |log| progress(log) > before)
            .await;
        self.count("progress");
    }

    async fn compact(&mut self) {
        self.settle().await;
        sleep_until(self.looked_back + ETCD_LOOKS).await;
        let revision = self.random.i64(self.compacted + 1..=self.newest);
        // Leave enough to watch.
        let revision = self.compacted + (revision - self.compacted + 3) / 4;
        if revision <= self.compacted {
            return;
        }
        for side in &self.sides {
            side.client.compact(revision).await.unwrap();
        }
        self.compacted = revision;
        self.count("compaction");
    }

    /// The responses about each watch are the same.
    fn compare(&self) {
        for stream in 0..STREAMS {
            let logs = self.sides.each_ref().map(|side| {
                let mut log = side.streams[stream].log().clone();
                log.sort_by_key(|(id, _)| *id);
                log
            });
            for (ours, theirs) in logs[0].iter().zip(&logs[1]) {
                assert_eq!(
                    ours, theirs,
                    "left: target, right: etcd; {}, stream {stream}",
                    self.context
                );
            }
            assert_eq!(
                logs[0].len(),
                logs[1].len(),
                "{}, stream {stream}",
                self.context
            );
        }
    }
}

#[tokio::test]
async fn random_watches_are_told_what_etcd_tells() {
    let operations = setting("QUORATE_DIFF_WATCH_OPS").unwrap_or(OPERATIONS);
    let seed = setting("SEED").unwrap_or_else(|| fastrand::u64(..));
    note(&format!(
        "differential test of watches: SEED={seed} QUORATE_DIFF_WATCH_OPS={operations}"
    ));
    let mut pair = Pair::start(seed).await;
    for number in 0..operations {
        pair.context = format!("operation {number} of SEED={seed}");
        pair.step().await;
    }
    pair.settle().await;
    pair.compare();
    if operations >= OPERATIONS {
        for what in [
            "write",
            "refused",
            "compacted",
            "now",
            "future",
            "past",
            "cancel",
            "unknown",
            "progress",
            "compaction",
        ] {
            assert!(pair.done.contains_key(what), "no {what}: {:?}", pair.done);
        }
    }
}
