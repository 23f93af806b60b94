//! Watches on a node in this process: what a watcher sees is the true history, whoever writes, compacts, stops or is slow.
//!
//! Expected events come from reads at each revision. Situations that once broke watches elsewhere have a test each, named for it.

#![expect(
    clippy::unwrap_used,
    clippy::missing_assert_message,
    reason = "this crate is all tests, of which clippy sees only the functions marked so"
)]

mod bounds;
mod messages;

use quorate::{
    Config, Node,
    internals::{
        Inspect,
        actors::{
            requests::{RequestError, Requests},
            watch_calls::{WatchCounts, WatchRequest},
            watch_stream::{KeyEvent, Watch, WatchError, WatchStream},
        },
        kv::{
            KeyRange,
            command::{DeleteRange, Put, RangeQuery, Txn, TxnOp},
            record::KeyValue,
            watch::{Body, Response, WatchId, WatchSpec},
        },
        types::{RecordKind, Revision},
    },
};
use std::{collections::BTreeMap, time::Duration};

/// A node on a data directory of its own.
struct Home {
    config: Config,
    _dir: tempfile::TempDir,
}

fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    // Small segments, since each member writes some in advance.
    config.storage.wal_segment_bytes = 4 << 20;
    Home { config, _dir: dir }
}

impl Home {
    fn start(&self) -> Node {
        Node::start(&self.config).unwrap()
    }
}

fn put(key: &str, value: impl Into<Vec<u8>>) -> Put {
    let value = bytes::Bytes::from(value.into());
    Put {
        key: key.to_owned().into(),
        value: value.into(),
        ..Put::default()
    }
}

fn delete(key: &str, end: &str) -> DeleteRange {
    DeleteRange {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..DeleteRange::default()
    }
}

fn range(key: &'static str, end: &'static str) -> KeyRange {
    KeyRange::from_wire(&key.into(), &end.into())
}

fn all() -> WatchSpec {
    WatchSpec::of(KeyRange::all())
}

fn from(start: Revision) -> WatchSpec {
    WatchSpec { start, ..all() }
}

/// A change in a form that reads and events share: revision, key, new state, state before.
type Change = (Revision, Vec<u8>, Option<KeyValue>, Option<KeyValue>);

async fn state_at(requests: &Requests, at: Revision) -> BTreeMap<Vec<u8>, KeyValue> {
    let query = RangeQuery {
        key: "\0".to_owned().into(),
        range_end: "\0".to_owned().into(),
        revision: at.0,
        ..RangeQuery::default()
    };
    let kvs = requests.range(query).await.unwrap().kvs;
    let kvs = kvs.iter().map(|kv| KeyValue::decode(kv).unwrap());
    kvs.map(|kv| (kv.key.to_vec(), kv)).collect()
}

/// The changes of the revisions after `after` up to `through`, by revision and key.
async fn truth(requests: &Requests, after: Revision, through: Revision) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut before = state_at(requests, after).await;
    for revision in after.0 + 1..=through.0 {
        let revision = Revision(revision);
        let now = state_at(requests, revision).await;
        let mut keys: Vec<_> = before.keys().chain(now.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        for key in keys {
            let (old, new) = (before.get(&key).cloned(), now.get(&key).cloned());
            if old != new {
                changes.push((revision, key, new, old));
            }
        }
        before = now;
    }
    changes
}

fn change(event: &KeyEvent) -> Change {
    let new = (event.kind == RecordKind::Put).then(|| event.kv.clone());
    (
        event.rev.major,
        event.kv.key.to_vec(),
        new,
        event.prev_kv.clone(),
    )
}

/// Takes events until one at `through` or later was taken.
async fn events_through(watch: &mut Watch, through: Revision) -> Vec<KeyEvent> {
    let mut events: Vec<KeyEvent> = Vec::new();
    while events.last().is_none_or(|event| event.rev.major < through) {
        let batch = watch.next().await.unwrap();
        let (last, first) = (events.last(), batch.events.first());
        if let (Some(last), Some(first)) = (last, first) {
            assert!(
                last.rev.major < first.rev.major,
                "a revision comes in one batch"
            );
        }
        assert!(
            batch.events.is_sorted_by(|a, b| a.rev < b.rev),
            "events come in order, once"
        );
        events.extend(batch.events);
    }
    events
}

fn assert_true(events: &[KeyEvent], truth: &[Change], range: &KeyRange) {
    let mut seen: Vec<Change> = events.iter().map(change).collect();
    seen.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    let wanted: Vec<Change> = truth
        .iter()
        .filter(|change| range.contains(&change.1))
        .cloned()
        .collect();
    assert_eq!(seen, wanted);
}

/// Writes to keys `name/0` … `name/6`: puts, deletions, and transactions of several changes.
async fn write(requests: Requests, name: &'static str, rounds: usize) {
    for round in 0..rounds {
        let key = |n: usize| format!("{name}/{}", (round + n) % 7);
        match round % 5 {
            0 => {
                requests.delete_range(delete(&key(3), "")).await.unwrap();
            }
            1 => {
                let puts = (0..3).map(|n| TxnOp::Put(put(&key(n), format!("{round}.{n}"))));
                let delete = TxnOp::DeleteRange(delete(&key(4), ""));
                let success = puts.chain([delete]).collect();
                requests
                    .txn(Txn {
                        success,
                        ..Txn::default()
                    })
                    .await
                    .unwrap();
            }
            _ => {
                requests.put(put(&key(0), round.to_string())).await.unwrap();
            }
        }
    }
}

async fn write_together(requests: &Requests, rounds: usize) {
    let names = ["a", "b", "c", "d"];
    let writers = names.map(|name| tokio::spawn(write(requests.clone(), name, rounds)));
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Puts a last key, which every watcher sees; returns its revision.
async fn mark(requests: &Requests) -> Revision {
    requests.put(put("mark", "mark")).await.unwrap().revision
}

async fn counts(requests: &Requests) -> WatchCounts {
    requests.count_watches().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ordered_unique_reliable_atomic_with_concurrent_writers() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    write_together(requests, 20).await;
    let half = mark(requests).await;
    let ranges = [
        KeyRange::all(),
        range("a/", "a0"),
        range("b/3", ""),
        range("b/", "d/2"),
        range("c/5", "\0"),
    ];
    let mut watches = Vec::new();
    for range in &ranges {
        for start in [
            Revision(0),
            Revision(2),
            Revision(half.0 / 2),
            Revision(half.0 + 10),
        ] {
            for prev_kv in [false, true] {
                let spec = WatchSpec {
                    start,
                    prev_kv,
                    ..WatchSpec::of(range.clone())
                };
                let watch = requests.watch(spec).await.unwrap();
                let from = if start.0 == 0 {
                    watch.created_at().next()
                } else {
                    start
                };
                watches.push((watch, range.clone(), from, prev_kv));
            }
        }
    }
    write_together(requests, 40).await;
    let mut end = mark(requests).await;
    for key in ["a/0", "b/3", "c/5"] {
        end = requests.put(put(key, "end")).await.unwrap().revision;
    }
    let history = truth(requests, Revision(1), end).await;
    for (mut watch, range, from, prev_kv) in watches {
        let last = history
            .iter()
            .rev()
            .find(|change| range.contains(&change.1))
            .unwrap()
            .0;
        let events = events_through(&mut watch, last).await;
        let wanted = history.iter().filter(|change| change.0 >= from).cloned();
        let wanted: Vec<Change> = wanted
            .map(|(rev, key, new, old)| (rev, key, new, old.filter(|_| prev_kv)))
            .collect();
        assert_true(&events, &wanted, &range);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resumable_at_the_last_seen_revision_across_restarts() {
    let home = home();
    let node = home.start();
    let mut watch = node.requests().watch(from(Revision(2))).await.unwrap();
    write_together(node.requests(), 30).await;
    let first = mark(node.requests()).await;
    let mut events = events_through(&mut watch, Revision(first.0 / 2)).await;
    node.stop().await;
    // What was queued is still delivered; then the end.
    let ended = loop {
        match watch.next().await {
            Ok(batch) => events.extend(batch.events),
            Err(error) => break error,
        }
    };
    assert!(
        matches!(ended, WatchError::Request(RequestError::Stopped)),
        "{ended:?}"
    );

    let node = home.start();
    let seen = events.last().unwrap().rev.major;
    let mut watch = node.requests().watch(from(seen.next())).await.unwrap();
    write_together(node.requests(), 10).await;
    let end = mark(node.requests()).await;
    events.extend(events_through(&mut watch, end).await);
    let history = truth(node.requests(), Revision(1), end).await;
    let plain: Vec<Change> = history
        .into_iter()
        .map(|(rev, key, new, _)| (rev, key, new, None))
        .collect();
    assert_true(&events, &plain, &KeyRange::all());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarkable_progress_is_in_step_with_its_stream() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let WatchStream {
        requests: asking,
        mut responses,
    } = requests.watch_stream().await.unwrap();
    for _ in 0..3 {
        asking.ask(WatchRequest::Create(all())).await.unwrap();
    }
    let writing = tokio::spawn({
        let requests = requests.clone();
        async move { write_together(&requests, 60).await }
    });
    // Each round reads linearizably, then asks: the answer is at or after what was read, and everything before it has come.
    let mut seen: BTreeMap<WatchId, Vec<Revision>> = BTreeMap::new();
    let mut bookmarks = Vec::new();
    while !writing.is_finished() || bookmarks.is_empty() {
        let read = requests.range(RangeQuery {
            key: "x".to_owned().into(),
            ..RangeQuery::default()
        });
        let read = read.await.unwrap().revision;
        asking.ask(WatchRequest::Progress).await.unwrap();
        while let Some(response) = responses.try_next() {
            note(&mut seen, &mut bookmarks, response);
        }
        if let Some(newest) = bookmarks.last() {
            assert!(*newest >= read, "asked after reading {read}, got {newest}");
        }
    }
    writing.await.unwrap();
    let end = mark(requests).await;
    while seen
        .values()
        .any(|revisions| revisions.last() != Some(&end))
        || seen.len() < 3
    {
        let response = responses.next().await.unwrap();
        note(&mut seen, &mut bookmarks, response);
    }
    let mut wanted: Vec<Revision> = truth(requests, Revision(1), end)
        .await
        .iter()
        .map(|change| change.0)
        .collect();
    wanted.dedup();
    for revisions in seen.values() {
        assert_eq!(revisions, &wanted, "every revision, each in one response");
    }
    node.stop().await;
}

/// Takes a response of a stream of watches that all see everything.
fn note(
    seen: &mut BTreeMap<WatchId, Vec<Revision>>,
    bookmarks: &mut Vec<Revision>,
    response: Response,
) {
    match response.body {
        Body::Events { events, .. } => {
            let mut revisions: Vec<Revision> = events.iter().map(|event| event.rev.major).collect();
            revisions.dedup();
            assert!(
                bookmarks.last() < revisions.first(),
                "an event at or below a bookmark"
            );
            seen.entry(response.watch).or_default().extend(revisions);
        }
        Body::Progress => {
            assert_eq!(response.watch, WatchId::NONE);
            for revisions in seen.values() {
                assert_eq!(
                    revisions.last(),
                    Some(&response.revision),
                    "all of it was sent"
                );
            }
            bookmarks.push(response.revision);
        }
        Body::Created => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_lost_when_a_stream_starves() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let mut slow = requests.watch(all()).await.unwrap();
    let mut quick = requests.watch(all()).await.unwrap();
    let mut wanted = Vec::new();
    // 40 MiB: far more than a stream's queue and the recent events hold.
    for n in 0..640_usize {
        let value = vec![u8::try_from(n % 251).unwrap(); 64 * 1024];
        let done = requests
            .put(put(&format!("k{}", n % 10), value))
            .await
            .unwrap();
        wanted.push(done.revision);
        let seen = events_through(&mut quick, done.revision).await;
        assert_eq!(
            seen.len(),
            1,
            "a stalled stream costs its neighbours nothing"
        );
    }
    let held = counts(requests).await;
    assert!(held.recent_bytes <= 16 * 1024 * 1024, "{held:?}");
    assert_eq!(
        (held.watchers, held.synced),
        (2, 1),
        "the slow one has fallen behind"
    );
    let seen = events_through(&mut slow, *wanted.last().unwrap()).await;
    let seen: Vec<Revision> = seen.iter().map(|event| event.rev.major).collect();
    assert_eq!(seen, wanted);
    let last = mark(requests).await;
    assert_eq!(
        events_through(&mut slow, last).await.len(),
        1,
        "and goes on"
    );
    assert_eq!(counts(requests).await.synced, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_watcher_overtaken_by_compaction_is_told() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let mut slow = requests.watch(all()).await.unwrap();
    let mut last = Revision(0);
    for _ in 0..640 {
        last = requests
            .put(put("k", vec![7; 64 * 1024]))
            .await
            .unwrap()
            .revision;
    }
    requests.compact(last, true).await.unwrap();
    let mut next = Revision(2);
    let error = loop {
        match slow.next().await {
            Ok(batch) => {
                for event in batch.events {
                    assert_eq!(event.rev.major, next, "no event is skipped before the end");
                    next = next.next();
                }
            }
            Err(error) => break error,
        }
    };
    let WatchError::Compacted { oldest } = error else {
        panic!("{error:?}")
    };
    assert_eq!(oldest, last);
    assert!(next < last, "it was overtaken");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicate_event_from_a_transaction() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let mut watch = requests
        .watch(WatchSpec {
            prev_kv: true,
            ..all()
        })
        .await
        .unwrap();
    let twice = || {
        let inner = Txn {
            success: vec![TxnOp::Put(put("b", "2"))],
            ..Txn::default()
        };
        Txn {
            success: vec![
                TxnOp::Put(put("a", "1")),
                TxnOp::Txn(inner),
                TxnOp::Put(put("c", "3")),
            ],
            ..Txn::default()
        }
    };
    for _ in 0..2 {
        requests.txn(twice()).await.unwrap();
    }
    for revision in [Revision(2), Revision(3)] {
        let batch = watch.next().await.unwrap();
        let keys: Vec<&[u8]> = batch
            .events
            .iter()
            .map(|event| event.kv.key.as_ref())
            .collect();
        assert_eq!(
            keys,
            [b"a", b"b", b"c"],
            "each change once, all in one batch"
        );
        assert!(batch.events.iter().all(|event| event.rev.major == revision));
        assert!(
            batch
                .events
                .iter()
                .all(|e| e.prev_kv.is_some() == (revision.0 == 3))
        );
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn event_dropped_when_compacting_at_a_delete() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    requests.put(put("k", "1")).await.unwrap();
    let mut watch = requests.watch(from(Revision(2))).await.unwrap();
    let deleted = requests
        .delete_range(delete("k", ""))
        .await
        .unwrap()
        .revision;
    requests.compact(deleted, true).await.unwrap();
    let again = requests.put(put("k", "2")).await.unwrap().revision;
    let seen = events_through(&mut watch, again).await;
    let kinds: Vec<RecordKind> = seen.iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [RecordKind::Put, RecordKind::Tombstone, RecordKind::Put]
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_missing_on_a_watch_opened_at_the_compacted_revision() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    requests.put(put("k", "1")).await.unwrap();
    let deleted = requests
        .delete_range(delete("k", ""))
        .await
        .unwrap()
        .revision;
    mark(requests).await;
    requests.compact(deleted, true).await.unwrap();
    let spec = WatchSpec {
        prev_kv: true,
        ..from(deleted)
    };
    let mut watch = requests.watch(spec.clone()).await.unwrap();
    let first = watch.next().await.unwrap().events.remove(0);
    assert_eq!(
        (first.kind, first.rev.major),
        (RecordKind::Tombstone, deleted)
    );
    assert_eq!(
        first.kv.mod_revision, deleted,
        "a deletion names its revision"
    );
    assert_eq!(first.prev_kv, None, "the state before it is compacted");
    node.stop().await;

    // The same from the database alone: a new process has no recent events.
    let node = home.start();
    let mut watch = node.requests().watch(spec).await.unwrap();
    let first = watch.next().await.unwrap().events.remove(0);
    assert_eq!(
        (first.kind, first.rev.major),
        (RecordKind::Tombstone, deleted)
    );
    let before = WatchSpec {
        start: Revision(2),
        ..all()
    };
    let mut watch = node.requests().watch(before).await.unwrap();
    let error = watch.next().await.unwrap_err();
    assert!(
        matches!(error, WatchError::Compacted { oldest } if oldest == deleted),
        "{error:?}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn future_watch_gets_neither_notifications_nor_old_events() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let WatchStream {
        requests: asking,
        mut responses,
    } = requests.watch_stream().await.unwrap();
    let future = Revision(8);
    asking
        .ask(WatchRequest::Create(from(future)))
        .await
        .unwrap();
    let created = responses.next().await.unwrap();
    assert_eq!(
        (created.body, created.revision),
        (Body::Created, Revision(1))
    );
    for n in 2..8 {
        asking.ask(WatchRequest::Progress).await.unwrap();
        requests.put(put("k", n.to_string())).await.unwrap();
    }
    asking.ask(WatchRequest::Progress).await.unwrap();
    requests.put(put("k", "8")).await.unwrap();
    let first = responses.next().await.unwrap();
    assert_eq!(first.revision, future, "nothing comes before it: {first:?}");
    asking.ask(WatchRequest::Progress).await.unwrap();
    let progress = responses.next().await.unwrap();
    assert_eq!((progress.body, progress.revision), (Body::Progress, future));
    node.stop().await;
}

/// Each watch of the stream begins far behind, and progress is asked for while it catches up.
#[tokio::test(flavor = "multi_thread")]
async fn progress_out_of_step_with_its_stream() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    for n in 0..500 {
        let put = put(&format!("k{}", n % 10), vec![7; 1024]);
        requests.put(put).await.unwrap();
    }
    let WatchStream {
        requests: asking,
        mut responses,
    } = requests.watch_stream().await.unwrap();
    let mut seen: BTreeMap<WatchId, Revision> = BTreeMap::new();
    for _ in 0..8 {
        let past = WatchRequest::Create(from(Revision(2)));
        asking.ask(past).await.unwrap();
        let last = mark(requests).await;
        loop {
            // One that is behind answers nothing: it is asked again after whatever comes, or does not come.
            asking.ask(WatchRequest::Progress).await.unwrap();
            let next = tokio::time::timeout(Duration::from_secs(1), responses.next());
            let Ok(response) = next.await else { continue };
            let response = response.unwrap();
            match response.body {
                Body::Created => drop(seen.insert(response.watch, Revision(1))),
                Body::Events { events, .. } => {
                    let seen = seen.get_mut(&response.watch).unwrap();
                    for event in events.iter() {
                        assert_eq!(event.rev.major, seen.next(), "each revision, once");
                        *seen = event.rev.major;
                    }
                }
                Body::Progress => {
                    for (watch, seen) in &seen {
                        assert_eq!(*seen, response.revision, "all of watch {watch} came before");
                    }
                    if response.revision >= last {
                        break;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(seen.len(), 8);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_dropped_is_forgotten() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let keep = requests.watch(all()).await.unwrap();
    for _ in 0..100 {
        requests
            .watch(WatchSpec::of(range("a", "b")))
            .await
            .unwrap();
    }
    // A stream that is opened now is served after the end of those that left.
    while counts(requests).await.streams > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(counts(requests).await.watchers, 1);
    drop(keep);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_watchers_from_the_past_all_catch_up() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    for n in 0..100 {
        requests.put(put(&format!("k{n:02}"), "v")).await.unwrap();
    }
    let mut streams = Vec::new();
    for _ in 0..10 {
        let WatchStream {
            requests: asking,
            responses,
        } = requests.watch_stream().await.unwrap();
        for n in 0..1_000 {
            let key = bytes::Bytes::from(format!("k{:02}", n % 100));
            let spec = WatchSpec {
                start: Revision(2),
                ..WatchSpec::of(KeyRange::single(key))
            };
            asking.ask(WatchRequest::Create(spec)).await.unwrap();
        }
        streams.push((asking, responses));
    }
    for (_, responses) in &mut streams {
        let (mut created, mut events) = (0, 0);
        while created < 1_000 || events < 1_000 {
            match responses.next().await.unwrap().body {
                Body::Created => created += 1,
                Body::Events { events: seen, .. } => events += seen.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((created, events), (1_000, 1_000));
    }
    node.stop().await;
}
