//! Clients that watch: they resume where they stopped, on any member, and record what they see.
//!
//! The historian watches all keys from the first revision on, and what it sees is the true history: [`Replay`] accepts it only if
//! no revision is missing, repeated or out of order. Requests, other watchers and members are checked against it.

use super::{ClientContext, convert::from_record};
use crate::{
    clients::Client,
    history::{Event, Replay, Revision},
    network::Slot,
};
use quorate::internals::{
    actors::{
        requests::Requests,
        watch_stream::{EventBatch, KeyEvent, WatchError},
    },
    kv::{KeyRange, watch::WatchSpec},
    mutation::{Mutation, mutated},
    types::{RecordKind, Revision as KvRevision},
};
use std::time::Duration;
use tokio::sync::mpsc;

/// Batches that may wait for a watcher.
const ROOM: usize = 16;
/// A watcher that receives nothing for so long resumes at another member.
const SILENT_MILLIS: u64 = 2_500;

/// How long a watch from an old revision lasts at most.
const OLD_MILLIS: u64 = 300;

/// What a stream delivers.
enum News {
    Batch(EventBatch),
    /// The next revision is compacted; this is the oldest that is not.
    Compacted(Revision),
}

/// What a watcher saw of the history in one piece.
pub(crate) struct Seen {
    who: String,
    range: (bytes::Bytes, bytes::Bytes),
    /// The first revision whose events it must have seen, …
    from: Revision,
    /// … and the last one.
    through: Revision,
    /// Each with its revision, and the previous state if the watch has it.
    events: Vec<(Revision, Event, Option<crate::history::KeyValue>)>,
    prev: bool,
}

impl Seen {
    /// Asserts that it saw exactly the events of its keys and revisions, in order.
    pub(crate) fn check(&self, truth: &Replay) {
        let (start, end) = &self.range;
        let mut expected = (self.from..=self.through).flat_map(|revision| {
            let events = truth.events(revision).iter().filter(move |event| {
                event.key() >= start && (end.as_ref() == b"\0" || event.key() < end)
            });
            events.map(move |event| (revision, event))
        });
        for (revision, event, prev) in &self.events {
            let due = expected.next();
            assert_eq!(
                due,
                Some((*revision, event)),
                "{} from {} through {}: an event is lost, repeated or wrong",
                self.who,
                self.from,
                self.through
            );
            if let (true, Some(prev)) = (self.prev, prev) {
                let before = truth.get(event.key(), revision - 1);
                assert_eq!(
                    Some(prev),
                    before,
                    "{}: the state before revision {revision}",
                    self.who
                );
            }
        }
        let missed = expected.next();
        assert!(
            missed.is_none(),
            "{} has seen through {}, but not {missed:?}",
            self.who,
            self.through
        );
    }

    /// Adds a batch: events of whole revisions, later than all before, or a progress notification.
    fn take(&mut self, batch: EventBatch) {
        let last = self.through;
        let progress = batch.events.is_empty();
        if progress {
            self.through = self.through.max(batch.revision.0);
        }
        for event in batch.events {
            let revision = event.rev.major.0;
            assert!(
                revision > last && revision >= self.through,
                "{} received revision {revision} after {}: split, repeated or out of order",
                self.who,
                self.through
            );
            self.through = revision;
            let (event, prev) = converted(event);
            self.events.push((revision, event, prev));
        }
    }
}

fn converted(event: KeyEvent) -> (Event, Option<crate::history::KeyValue>) {
    let prev = event.prev_kv.map(from_record);
    let event = match event.kind {
        RecordKind::Put => Event::Put(from_record(event.kv)),
        RecordKind::Tombstone => {
            assert_eq!(
                event.kv.mod_revision, event.rev.major,
                "a deletion names its revision"
            );
            Event::Delete(event.kv.key)
        }
    };
    (event, prev)
}

/// Watches everything for ever, and records the true history.
pub(crate) async fn historian(client: Client, context: ClientContext) {
    loop {
        // If the member does not run, the attempt ends at once.
        client.pause(20).await;
        let slot = context.any(&client);
        let start = context.newest() + 1;
        let spec = spec(KeyRange::all(), start, client.below(2) == 0);
        let mut news = follow(&client, slot, spec);
        while let Some(news) = next(&mut news).await {
            let News::Batch(batch) = news else {
                panic!("the history at {start} is compacted, which no client asked for");
            };
            add_to_history(&client, &context, batch);
        }
    }
}

fn add_to_history(client: &Client, context: &ClientContext, batch: EventBatch) {
    let mut shared = context.shared.borrow_mut();
    let shared = &mut *shared;
    let mut events = batch.events.into_iter().peekable();
    while let Some(first) = events.next() {
        let revision = first.rev.major;
        let mut changes = vec![converted(first).0];
        while let Some(event) = events.next_if(|event| event.rev.major == revision) {
            changes.push(converted(event).0);
        }
        shared.leases.saw(client.now(), &shared.truth, &changes);
        if let Err(violation) = shared.truth.push(revision.0, changes) {
            panic!("the watch of everything: {violation}");
        }
    }
}

/// Watches some keys, and resumes after each break at the revision after the last one it knows to be complete.
pub(crate) async fn watch(client: Client, context: ClientContext) {
    let some = client.below(2) == 0;
    let (start, end): (&'static str, &'static [u8]) =
        if some { ("k05", b"k15") } else { ("k", b"\0") };
    let range: (bytes::Bytes, bytes::Bytes) = (start.into(), end.into());
    let prev = client.below(2) == 0;
    let mut from = 2;
    while !context.ended() {
        client.pause(20).await;
        let slot = context.any(&client);
        let mut seen = Seen {
            who: format!("watcher {} on member {}", context.number, slot + 1),
            range: range.clone(),
            from,
            through: from - 1,
            events: Vec::new(),
            prev,
        };
        let keys = KeyRange::from_wire(&range.0, &range.1);
        let mut news = follow(&client, slot, spec(keys, from, prev));
        // The client ends some watches itself.
        let until = client.now() + 1_000 * client.below(10_000);
        while let Some(news) = next(&mut news).await {
            match news {
                News::Batch(batch) => seen.take(batch),
                News::Compacted(oldest) => {
                    assert!(oldest > seen.through, "{}: compacted at {oldest}", seen.who);
                    from = oldest;
                    break;
                }
            }
            if client.now() > until {
                break;
            }
        }
        from = from.max(seen.through + 1);
        context.shared.borrow_mut().watchers.push(seen);
    }
}

/// Watches the keys from an old revision on until it has seen what was there when it began, or for [`OLD_MILLIS`].
pub(crate) async fn watch_old(
    client: &Client,
    context: &ClientContext,
    slot: Slot,
    from: Revision,
) {
    let newest = context.newest();
    let mut seen = Seen {
        who: format!("watcher {} on member {}", context.number, slot + 1),
        range: ("k".into(), "l".into()),
        from,
        through: from - 1,
        events: Vec::new(),
        prev: false,
    };
    let keys = KeyRange::from_wire(&seen.range.0, &seen.range.1);
    let mut news = follow(client, slot, spec(keys, from, false));
    let until = client.now() + 1_000 * OLD_MILLIS;
    while seen.through < newest && client.now() < until {
        let next = tokio::time::timeout(Duration::from_millis(OLD_MILLIS), news.recv());
        match next.await {
            Ok(Some(News::Batch(batch))) => seen.take(batch),
            Ok(Some(News::Compacted(oldest))) => {
                assert!(oldest > seen.through, "{}: compacted at {oldest}", seen.who);
                break;
            }
            Ok(None) | Err(_) => break,
        }
    }
    context.shared.borrow_mut().watchers.push(seen);
}

/// Opens a watch of everything on a member and leaves it unread for `millis`.
pub(crate) async fn hold_unread(client: &Client, slot: Slot, from: Revision, millis: u64) {
    let spec = spec(KeyRange::all(), from.max(1), true);
    let mut ended = client.follow(
        slot,
        1,
        move |requests, open: mpsc::Sender<()>| async move {
            if let Ok(watch) = requests.watch(spec).await {
                open.closed().await;
                drop(watch);
            }
        },
    );
    let unread = Duration::from_millis(millis);
    // It ends early if the member refuses the watch or stops.
    drop(tokio::time::timeout(unread, ended.recv()).await);
}

fn spec(range: KeyRange, start: Revision, prev_kv: bool) -> WatchSpec {
    WatchSpec {
        start: KvRevision(start),
        prev_kv,
        progress_notify: true,
        ..WatchSpec::of(range)
    }
}

async fn next(news: &mut mpsc::Receiver<News>) -> Option<News> {
    let next = tokio::time::timeout(Duration::from_millis(SILENT_MILLIS), news.recv());
    next.await.ok().flatten()
}

/// Runs a watch on a member until either side ends it.
fn follow(client: &Client, slot: Slot, spec: WatchSpec) -> mpsc::Receiver<News> {
    client.follow(slot, ROOM, move |requests, news| async move {
        tokio::select! {
            biased;
            () = news.closed() => {}
            () = forward(&requests, spec, &news) => {}
        }
    })
}

async fn forward(requests: &Requests, mut spec: WatchSpec, news: &mpsc::Sender<News>) {
    if mutated(Mutation::ResumeOneLate) && spec.start.0 > 2 {
        spec.start = spec.start.next();
    }
    let Ok(mut watch) = requests.watch(spec).await else {
        return;
    };
    let mut quiet = 0;
    loop {
        // A watch without events asks for progress.
        let batch = tokio::time::timeout(Duration::from_millis(700), watch.next()).await;
        let next = match batch {
            Ok(Ok(batch)) => News::Batch(batch),
            Ok(Err(WatchError::Compacted { oldest })) => News::Compacted(oldest.0),
            Ok(Err(_)) => return,
            Err(_) => {
                quiet += 1;
                if quiet > 100 || watch.request_progress().await.is_err() {
                    return;
                }
                continue;
            }
        };
        if news.send(next).await.is_err() {
            return;
        }
    }
}
