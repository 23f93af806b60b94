//! Watch hub: owns all watchers of this member, and sends their events to their streams.
//!
//! The applier sends it changes and never waits for it. A watcher that is behind reads stored history; such reads are
//! bounded blocking tasks, so the hub's own thread never reads the disk. The rules are those of
//! [`kv::watch`](crate::kv::watch); `docs/watch.md` describes how the parts work together.

use super::{
    background::in_background,
    fail_stop::Lifeline,
    held::{self, HeldBytes, HeldPart},
    latest,
    published::Published,
    request_error::RequestError,
    watch_calls::{
        CountWatches, OpenStream, StreamOpened, StreamRequest, WatchCounts, WatchRequest,
    },
    watch_clock::ProgressClock,
    watch_outbox::{ALL_BYTES_MAX, FrontEndEvent, FrontEndEvents, WatchOutbox},
};
use crate::{
    auth::AuthState,
    clock,
    kv::{
        records::ReadError,
        tail::RecordBatch,
        watch::{
            Bounds, CatchUp, Outlet, ReadTask, Refusal, Response, StreamId, WatchSpec, Watches,
        },
    },
    mutation::{Mutation, mutated},
    types::{Rev, Revision},
};
use actix::prelude::*;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{sync::oneshot, time::Instant};

/// Messages that may wait. Front ends wait until there is room; the applier does not, see [`EventsApplied`].
const MAILBOX_MAX: usize = 16_384;
/// Bytes of recent events.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes that are queued for all streams: past the first bound, each stream may get one more response.
const QUEUED_BYTES_MAX: usize = ALL_BYTES_MAX + 64 * 1024 * 1024;
/// Watchers of this member.
const WATCHERS_MAX: usize = 1 << 20;
/// Streams of this member.
const STREAMS_MAX: usize = 1 << 16;
/// Reads of stored history at once.
const HISTORY_READS_MAX: usize = 2;
/// Reads of recent events between two messages.
const RECENT_READS_PER_TURN: usize = 4;

pub struct WatchHub {
    watches: Watches,
    outboxes: Outboxes,
    clock: ProgressClock,
    /// The timer for the stream that is due next, and when that is.
    timer: Option<(Instant, SpawnHandle)>,
    /// Requests that came while a view newer than the hub's last batch was visible; they wait for that batch. Oldest first.
    parked: VecDeque<(Revision, StreamRequest, oneshot::Sender<()>)>,
    next_stream: u64,
    history_reads: usize,
    /// Auth revision, and whether authentication is on, when watches were last checked.
    checked: (u64, bool),
    ended: bool,
    events: Arc<FrontEndEvents>,
    views: latest::Receiver<Arc<Published>>,
    progress_interval: Duration,
    held_recent: Arc<HeldPart>,
    held_queued: Arc<HeldPart>,
    life: Lifeline,
}

#[derive(Default)]
struct Outboxes(BTreeMap<StreamId, Arc<WatchOutbox>>);

impl Outlet for Outboxes {
    fn has_room(&mut self, stream: StreamId) -> bool {
        self.0.get(&stream).is_none_or(|outbox| outbox.has_room())
    }

    fn send(&mut self, stream: StreamId, response: Response) {
        if let Some(outbox) = self.0.get(&stream) {
            outbox.put(response);
        }
    }
}

impl WatchHub {
    /// A hub without streams, which reads history from the newest of `views`.
    pub fn new(
        views: latest::Receiver<Arc<Published>>,
        progress_interval: Duration,
        held: &HeldBytes,
        life: Lifeline,
    ) -> Self {
        let recent_bytes_max = held::bound(RECENT_BYTES_MAX);
        let bounds = Bounds {
            recent_bytes_max: if mutated(Mutation::RecentWithoutBound) {
                usize::MAX
            } else {
                recent_bytes_max
            },
            watchers_max: WATCHERS_MAX,
        };
        let newest = views.borrow().view.window.newest;
        Self {
            watches: Watches::new(newest, bounds, clock::entropy()),
            outboxes: Outboxes::default(),
            clock: ProgressClock::default(),
            timer: None,
            parked: VecDeque::new(),
            next_stream: 0,
            history_reads: 0,
            checked: (0, false),
            ended: false,
            events: Arc::default(),
            views,
            progress_interval,
            held_recent: held.part("recent events", recent_bytes_max),
            held_queued: held.part("events queued for watch streams", QUEUED_BYTES_MAX),
            life,
        }
    }
}

/// A batch was applied and is visible. The applier may skip a batch, if it sends a later one: the hub sees the gap by the
/// revisions, and reads the missed events from history.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct EventsApplied {
    /// The batch's changes, whole revisions in order.
    pub records: RecordBatch,
    /// The store's state after it.
    pub published: Arc<Published>,
}

/// Ends all streams; for a clean stop.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct EndStreams;

impl Actor for WatchHub {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        self.listen(ctx);
    }
}

impl Handler<EventsApplied> for WatchHub {
    type Result = ();

    fn handle(&mut self, mut applied: EventsApplied, ctx: &mut Self::Context) {
        if mutated(Mutation::DropWatchEvent) {
            let lost = |rev: Rev| rev.major.0 % 5 == 0 && rev.sub == 1;
            let kept = applied.records.iter();
            applied.records = kept.filter(|record| !lost(record.rev)).cloned().collect();
        }
        self.check(&applied.published.auth);
        let view = &applied.published.view;
        let newest = view.window.newest;
        self.watches
            .publish(&applied.records, newest, view, &mut self.outboxes);
        self.unpark();
        self.held_recent.set(self.watches.recent_bytes());
        self.read_on(ctx);
        self.held_queued.set(self.events.queued_bytes());
    }
}

impl Handler<OpenStream> for WatchHub {
    type Result = Result<StreamOpened, RequestError>;

    fn handle(&mut self, open: OpenStream, ctx: &mut Self::Context) -> Self::Result {
        if self.ended {
            return Err(RequestError::Stopped);
        }
        if self.outboxes.0.len() >= STREAMS_MAX {
            return Err(RequestError::TooManyRequests);
        }
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        let outbox = Arc::new(WatchOutbox::new(stream, self.events.clone()));
        self.outboxes.0.insert(stream, outbox.clone());
        self.watches.open_for(stream, open.holder);
        let interval = jittered(self.progress_interval);
        self.clock.add(stream, interval, clock::now());
        self.set_timer(ctx);
        Ok(StreamOpened { outbox })
    }
}

impl Handler<StreamRequest> for WatchHub {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, request: StreamRequest, ctx: &mut Self::Context) -> Self::Result {
        let visible = self.views.borrow().view.window.newest;
        if self.parked.is_empty() && self.watches.newest() >= visible {
            self.perform(request);
            self.read_on(ctx);
            return Box::pin(std::future::ready(()));
        }
        let (done, performed) = oneshot::channel();
        self.parked.push_back((visible, request, done));
        Box::pin(async move { performed.await.unwrap_or_default() })
    }
}

impl Handler<EndStreams> for WatchHub {
    type Result = ();

    fn handle(&mut self, _: EndStreams, ctx: &mut Self::Context) {
        self.ended = true;
        for (&stream, outbox) in &self.outboxes.0 {
            outbox.end();
            self.watches.close(stream);
        }
        self.outboxes.0.clear();
        self.clock = ProgressClock::default();
        if let Some((_, timer)) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        self.parked.clear();
    }
}

impl Handler<CountWatches> for WatchHub {
    type Result = WatchCounts;

    fn handle(&mut self, _: CountWatches, _: &mut Self::Context) -> Self::Result {
        WatchCounts {
            streams: self.outboxes.0.len(),
            watchers: self.watches.len(),
            of_holders: self.watches.of_holders(),
            synced: self.watches.synced(),
            recent_bytes: self.watches.recent_bytes(),
            queued_bytes: self.events.queued_bytes(),
        }
    }
}

impl WatchHub {
    /// Wakes up when the next stream is due.
    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let Some(next) = self.clock.next() else {
            return;
        };
        if let Some((at, timer)) = self.timer {
            if at <= next {
                return;
            }
            ctx.cancel_future(timer);
        }
        let wait = next.saturating_duration_since(clock::now());
        let timer = ctx.run_later(wait, |hub, ctx| {
            hub.timer = None;
            for stream in hub.clock.take_due(clock::now()) {
                hub.watches.progress_due(stream, &mut hub.outboxes);
            }
            hub.set_timer(ctx);
        });
        self.timer = Some((next, timer));
    }

    /// Receives the reports of front ends until the hub stops.
    fn listen(&mut self, ctx: &mut Context<Self>) {
        let events = self.events.clone();
        let woken = async move { events.wait().await };
        let then = woken.into_actor(self).map(|(), hub, ctx| {
            hub.take_events(ctx);
            hub.listen(ctx);
        });
        ctx.spawn(then);
    }

    fn take_events(&mut self, ctx: &mut Context<Self>) {
        for event in self.events.take() {
            match event {
                FrontEndEvent::HasRoom(stream) => self.watches.drained(stream, &mut self.outboxes),
                FrontEndEvent::Closed(stream) => {
                    self.watches.close(stream);
                    self.outboxes.0.remove(&stream);
                    self.clock.remove(stream);
                }
            }
        }
        self.read_on(ctx);
    }

    fn unpark(&mut self) {
        let newest = self.watches.newest();
        while self
            .parked
            .front()
            .is_some_and(|(visible, ..)| *visible <= newest)
        {
            let Some((_, request, done)) = self.parked.pop_front() else {
                return;
            };
            self.perform(request);
            // The caller may be gone.
            done.send(()).unwrap_or_default();
        }
    }

    fn perform(&mut self, StreamRequest { stream, request }: StreamRequest) {
        match request {
            WatchRequest::Create(spec) => {
                let published = self.views.borrow().clone();
                let compacted = published.view.window.compacted;
                if let Err(refusal) = may_create(&published.auth, &spec) {
                    self.watches.refuse(stream, refusal, &mut self.outboxes);
                    return;
                }
                self.watches
                    .create(stream, spec, compacted, &mut self.outboxes);
            }
            WatchRequest::Cancel(id) => self.watches.cancel(stream, id, &mut self.outboxes),
            WatchRequest::Progress => self.watches.request_progress(stream, &mut self.outboxes),
        }
    }

    /// Once users, roles or permissions have changed, ends the watches whose callers may not go on: before they are sent anything
    /// that was written after the change.
    fn check(&mut self, auth: &AuthState) {
        // Ascending with the log. A batch that was sent before the newest view was looked at may be behind it.
        let now = (auth.revision(), auth.is_enabled());
        if now <= self.checked {
            return;
        }
        self.checked = now;
        let allowed = |spec: &WatchSpec| {
            let (key, range_end) = spec.range.wire();
            auth.may_go_on_watching(&spec.caller, key, range_end)
        };
        self.watches.deny(allowed, &mut self.outboxes);
    }

    /// Serves watchers that are behind: from recent events here, from stored history in blocking tasks.
    fn read_on(&mut self, ctx: &mut Context<Self>) {
        if !self.watches.anyone_queued() {
            return;
        }
        let published = self.views.borrow().clone();
        self.check(&published.auth);
        for turn in 0.. {
            if turn == RECENT_READS_PER_TURN {
                self.events.wake();
                break;
            }
            let view = &published.view;
            if !self.watches.read_recent(view, &mut self.outboxes) {
                break;
            }
        }
        while self.history_reads < HISTORY_READS_MAX {
            let Some(task) = self.watches.next_read(&mut self.outboxes) else {
                return;
            };
            self.history_reads += 1;
            self.read_history(task, published.clone(), ctx);
        }
    }

    fn read_history(&mut self, task: ReadTask, published: Arc<Published>, ctx: &mut Context<Self>) {
        let reading = in_background(move || {
            let found = task.run(&published.view);
            (task, found)
        });
        let then = reading.into_actor(self).map(|read, hub, ctx| match read {
            Ok((task, found)) => hub.history_was_read(&task, found, ctx),
            Err(error) if error.is_panic() => {
                hub.life
                    .fail_stop()
                    .because("reading history for watches", &error);
            }
            // The runtime is stopping.
            Err(_) => {}
        });
        ctx.spawn(then);
    }

    fn history_was_read(
        &mut self,
        task: &ReadTask,
        found: Result<CatchUp, ReadError>,
        ctx: &mut Context<Self>,
    ) {
        self.history_reads -= 1;
        if let Some(found) = self.or_stop(found) {
            let published = self.views.borrow().clone();
            self.check(&published.auth);
            self.watches.complete(task, found, &mut self.outboxes);
            self.read_on(ctx);
        }
    }

    /// Stops the member if it cannot read its own records.
    fn or_stop<T>(&self, read: Result<T, ReadError>) -> Option<T> {
        read.inspect_err(|error| {
            self.life
                .fail_stop()
                .because("cannot read history for watches", error);
        })
        .ok()
    }
}

impl Drop for WatchHub {
    fn drop(&mut self) {
        self.outboxes.0.values().for_each(|outbox| outbox.end());
    }
}

/// Whether a watch may begin, as of the newest state that is visible here. etcd: the start is looked at first.
fn may_create(auth: &AuthState, spec: &WatchSpec) -> Result<(), Refusal> {
    if spec.start < Revision(0) {
        return Err(Refusal::NegativeStart);
    }
    let (key, range_end) = spec.range.wire();
    auth.note_use(&spec.caller);
    let rights = auth.rights(&spec.caller);
    let allowed = rights.and_then(|rights| rights.read(key, range_end));
    allowed.map_err(Refusal::Denied)
}

/// Up to a tenth longer, so that streams opened together do not send progress together. etcd: the same.
fn jittered(interval: Duration) -> Duration {
    let tenth = u64::try_from(interval.as_millis() / 10)
        .unwrap_or(u64::MAX)
        .max(1);
    interval + Duration::from_millis(clock::entropy() % tenth)
}
