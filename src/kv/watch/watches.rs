//! All watchers of a member, and the rules by which they move from state to state.

use super::super::range::ReadError;
use super::{
    catch_up::{CatchUp, History, ReadTask, Seeker},
    event::{Change, Event},
    intervals::Intervals,
    recent::Recent,
    spec::{Body, Outlet, Refusal, Response, StreamId, WatchId, WatchSpec},
};
use crate::types::{Record, Revision};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

/// Watchers that one pass over history serves.
const GROUP_MAX: usize = 128;
/// Queued watchers that are looked at to fill a group.
const GROUP_SEARCH_MAX: usize = 512;
/// A pass over stored history serves watchers that begin within so many revisions of the first.
const GROUP_REVISIONS: i64 = 10_000;

/// How much it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of recent events.
    pub recent_bytes_max: usize,
    /// Watchers of all streams.
    pub watchers_max: usize,
}

/// A watcher of this member. Never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherKey {
    slot: u32,
    life: u32,
}

/// Every watcher, by stream.
///
/// Invariants: a watcher is in `synced` exactly if its phase says so; the watchers of a stream are those in its `ids`;
/// `behind` of a stream counts those that are not synced; a queued watcher is in one of the two queues (which may also hold
/// keys of watchers that are gone).
#[derive(Debug)]
pub struct Watches {
    recent: Recent,
    synced: Intervals<WatcherKey>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    streams: BTreeMap<StreamId, Stream>,
    /// Those that recent events can serve.
    queued_recent: VecDeque<WatcherKey>,
    /// Those that must read stored history.
    queued_history: VecDeque<WatcherKey>,
    watchers_max: usize,
    count: usize,
}

#[derive(Debug, Default)]
struct Slot {
    life: u32,
    watcher: Option<Watcher>,
}

#[derive(Debug)]
struct Watcher {
    stream: StreamId,
    id: WatchId,
    spec: WatchSpec,
    /// Of one that is synced, at most this: it was sent everything up to the newest revision.
    next: Revision,
    phase: Phase,
    /// Whether it was sent events since progress was last due.
    active: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Synced,
    Queued,
    Reading,
    Starved,
}

#[derive(Debug, Default)]
struct Stream {
    ids: BTreeMap<WatchId, WatcherKey>,
    next_id: i64,
    behind: usize,
    starved: Vec<WatcherKey>,
    /// A progress request waits for room.
    progress_owed: bool,
}

impl Watches {
    /// Without streams, at revision `newest`. The seed shapes the interval structure, nothing else.
    pub fn new(newest: Revision, bounds: Bounds, seed: u64) -> Self {
        Self {
            recent: Recent::new(newest, bounds.recent_bytes_max),
            synced: Intervals::new(seed),
            slots: Vec::new(),
            free: Vec::new(),
            streams: BTreeMap::new(),
            queued_recent: VecDeque::new(),
            queued_history: VecDeque::new(),
            watchers_max: bounds.watchers_max,
            count: 0,
        }
    }

    /// The newest revision it was told of.
    pub fn newest(&self) -> Revision {
        self.recent.newest()
    }

    /// How many watchers there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no watcher.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many watchers are synced.
    pub fn synced(&self) -> usize {
        self.synced.len()
    }

    /// Bytes of recent events.
    pub fn recent_bytes(&self) -> usize {
        self.recent.bytes()
    }

    /// A new stream, without watchers.
    pub fn open(&mut self, stream: StreamId) {
        let before = self.streams.insert(stream, Stream::default());
        assert!(before.is_none(), "stream ids are never used twice");
    }

    /// A stream is gone, with its watchers.
    pub fn close(&mut self, stream: StreamId) {
        let Some(closed) = self.streams.get(&stream) else {
            return;
        };
        let keys: Vec<WatcherKey> = closed.ids.values().copied().collect();
        for key in keys {
            self.remove(key);
        }
        self.streams.remove(&stream);
    }

    /// Creates a watch, or tells its stream why not.
    pub fn create(
        &mut self,
        stream: StreamId,
        spec: WatchSpec,
        compacted: Revision,
        outlet: &mut dyn Outlet,
    ) {
        let newest = self.newest();
        let Some(opened) = self.streams.get_mut(&stream) else {
            return;
        };
        let room = self.count < self.watchers_max;
        let id = match opened.admit(&spec, room) {
            Ok(id) => id,
            Err(refusal) => {
                let body = Body::Refused(refusal);
                outlet.send(
                    stream,
                    Response {
                        watch: WatchId::NONE,
                        revision: newest,
                        body,
                    },
                );
                return;
            }
        };
        outlet.send(
            stream,
            Response {
                watch: id,
                revision: newest,
                body: Body::Created,
            },
        );
        let start = spec.start;
        if start > Revision(0) && start < compacted {
            outlet.send(stream, compacted_response(id, compacted));
            return;
        }
        let next = if start == Revision(0) {
            newest.next()
        } else {
            start
        };
        let watcher = Watcher {
            stream,
            id,
            spec,
            next,
            phase: Phase::Reading,
            active: true,
        };
        let key = self.add(watcher);
        if next > newest {
            self.sync(key);
        } else {
            self.enqueue(key);
        }
    }

    /// Ends a watch. An id that the stream does not know gets no answer.
    pub fn cancel(&mut self, stream: StreamId, id: WatchId, outlet: &mut dyn Outlet) {
        let known = self
            .streams
            .get(&stream)
            .and_then(|opened| opened.ids.get(&id).copied());
        let Some(key) = known else { return };
        self.remove(key);
        let revision = self.newest();
        outlet.send(
            stream,
            Response {
                watch: id,
                revision,
                body: Body::Cancelled,
            },
        );
    }

    /// Tells a stream how far all of its watches have come; nothing if one of them is behind or has not started, or if there
    /// is none.
    pub fn request_progress(&mut self, stream: StreamId, outlet: &mut dyn Outlet) {
        let newest = self.newest();
        let Some(opened) = self.streams.get(&stream) else {
            return;
        };
        let started = |key: &WatcherKey| {
            self.watcher(*key)
                .is_some_and(|watcher| watcher.spec.start <= newest)
        };
        if opened.ids.is_empty() || opened.behind > 0 || !opened.ids.values().all(started) {
            return;
        }
        if outlet.has_room(stream) {
            let body = Body::Progress;
            outlet.send(
                stream,
                Response {
                    watch: WatchId::NONE,
                    revision: newest,
                    body,
                },
            );
        } else if let Some(opened) = self.streams.get_mut(&stream) {
            opened.progress_owed = true;
        }
    }

    /// Tells of the quiet watches of a stream that want to hear of progress, now that it is due.
    pub fn progress_due(&mut self, stream: StreamId, outlet: &mut dyn Outlet) {
        let newest = self.newest();
        let Some(opened) = self.streams.get(&stream) else {
            return;
        };
        for (&id, &key) in &opened.ids {
            let Some(watcher) = watcher_mut(&mut self.slots, key) else {
                continue;
            };
            let quiet = !std::mem::replace(&mut watcher.active, false);
            let told = watcher.spec.progress_notify
                && quiet
                && watcher.phase == Phase::Synced
                && watcher.spec.start <= newest;
            if told && outlet.has_room(stream) {
                outlet.send(
                    stream,
                    Response {
                        watch: id,
                        revision: newest,
                        body: Body::Progress,
                    },
                );
            }
        }
    }

    /// Takes the changes of an applied batch, whole revisions in order, after which `newest` is the newest revision. `history`
    /// is the store after the batch. If revisions are missing before the batch, all watchers read history.
    pub fn publish(
        &mut self,
        records: Vec<Record>,
        newest: Revision,
        history: &dyn History,
        outlet: &mut dyn Outlet,
    ) -> Result<(), ReadError> {
        let first = records.first().map(|record| record.rev.major);
        if newest <= self.newest() {
            return Ok(());
        }
        if first != Some(self.newest().next()) {
            self.skip_to(newest);
            return Ok(());
        }
        let mut changes: Vec<Change> = Vec::new();
        for record in records {
            let last = changes.last().map(|change| change.rev().major);
            if let Some(revision) = last.filter(|&last| last != record.rev.major) {
                let whole = std::mem::take(&mut changes);
                self.publish_revision(revision, whole, history, outlet)?;
            }
            changes.push(Change::new(record));
        }
        if let Some(revision) = changes.last().map(|change| change.rev().major) {
            self.publish_revision(revision, changes, history, outlet)?;
        }
        assert_eq!(
            self.newest(),
            newest,
            "a batch ends at the revision it says it ends at"
        );
        Ok(())
    }

    fn publish_revision(
        &mut self,
        revision: Revision,
        mut changes: Vec<Change>,
        history: &dyn History,
        outlet: &mut dyn Outlet,
    ) -> Result<(), ReadError> {
        let mut hits = Vec::new();
        for (at, change) in changes.iter().enumerate() {
            self.synced
                .find(change.key(), &mut |key: WatcherKey| hits.push((key, at)));
        }
        hits.retain(|&(key, at)| {
            self.watcher(key).is_some_and(|watcher| {
                revision >= watcher.next && watcher.spec.filters.admit(changes[at].kind())
            })
        });
        if changes.len() > 1 {
            hits.sort_unstable();
        }
        for of_watcher in hits.chunk_by(|a, b| a.0 == b.0) {
            let key = of_watcher[0].0;
            let Some(watcher) = watcher_mut(&mut self.slots, key) else {
                continue;
            };
            if !outlet.has_room(watcher.stream) {
                self.unsync(key, revision);
                self.starve(key);
                continue;
            }
            let prev_kv = watcher.spec.prev_kv;
            let events = of_watcher
                .iter()
                .map(|&(_, at)| changes[at].event(prev_kv, history));
            let events = events.collect::<Result<Vec<_>, _>>()?;
            watcher.send(events, revision, outlet);
        }
        self.recent.push(revision, changes);
        Ok(())
    }

    /// Revisions up to `newest` were missed.
    fn skip_to(&mut self, newest: Revision) {
        let missed = self.newest().next();
        self.recent.restart(newest);
        let slots = (0..).zip(&self.slots);
        let keys: Vec<WatcherKey> = slots
            .filter(|(_, slot)| {
                slot.watcher
                    .as_ref()
                    .is_some_and(|w| w.phase == Phase::Synced)
            })
            .map(|(at, slot)| WatcherKey {
                slot: at,
                life: slot.life,
            })
            .collect();
        for key in keys {
            if self
                .watcher(key)
                .is_some_and(|watcher| watcher.next <= newest)
            {
                self.unsync(key, missed);
                self.enqueue(key);
            }
        }
    }

    /// A stream that had no room has some again.
    pub fn drained(&mut self, stream: StreamId, outlet: &mut dyn Outlet) {
        let Some(opened) = self.streams.get_mut(&stream) else {
            return;
        };
        let starved = std::mem::take(&mut opened.starved);
        let owed = std::mem::take(&mut opened.progress_owed);
        for key in starved {
            if self
                .watcher(key)
                .is_some_and(|watcher| watcher.phase == Phase::Starved)
            {
                self.enqueue(key);
            }
        }
        if owed {
            self.request_progress(stream, outlet);
        }
    }

    /// Whether some watcher waits for its turn to read.
    pub fn anyone_queued(&self) -> bool {
        !self.queued_recent.is_empty() || !self.queued_history.is_empty()
    }

    /// The next pass over stored history, if one is wanted. Its outcome goes to [`Watches::complete`].
    pub fn next_read(&mut self, outlet: &mut dyn Outlet) -> Option<ReadTask> {
        let mut queue = std::mem::take(&mut self.queued_history);
        let task = self.group(&mut queue, outlet, |watches, first, next| {
            // A watcher that recent events can serve by now gets its own turn.
            next < watches.recent.oldest()
                && (first.0..first.0.saturating_add(GROUP_REVISIONS)).contains(&next.0)
        });
        queue.append(&mut self.queued_history);
        self.queued_history = queue;
        task
    }

    /// Makes a pass over recent events, if one is wanted; tells whether it did.
    pub fn read_recent(
        &mut self,
        history: &dyn History,
        outlet: &mut dyn Outlet,
    ) -> Result<bool, ReadError> {
        let mut queue = std::mem::take(&mut self.queued_recent);
        let task = self.group(&mut queue, outlet, |watches, _, next| {
            next >= watches.recent.oldest()
        });
        queue.append(&mut self.queued_recent);
        self.queued_recent = queue;
        let Some(task) = task else { return Ok(false) };
        let found = self.recent.read(&task, history)?;
        self.complete(&task, found, outlet);
        Ok(true)
    }

    /// Takes a group of watchers from the front of a queue: the first one, and others that `fits` with it.
    fn group(
        &mut self,
        queue: &mut VecDeque<WatcherKey>,
        outlet: &mut dyn Outlet,
        fits: impl Fn(&Self, Revision, Revision) -> bool,
    ) -> Option<ReadTask> {
        let (mut seekers, mut passed) = (Vec::new(), Vec::new());
        let mut first = None;
        while seekers.len() < GROUP_MAX && passed.len() < GROUP_SEARCH_MAX {
            let Some(key) = queue.pop_front() else { break };
            let queued = self
                .watcher(key)
                .filter(|watcher| watcher.phase == Phase::Queued);
            let Some((stream, next)) = queued.map(|watcher| (watcher.stream, watcher.next)) else {
                continue;
            };
            if !outlet.has_room(stream) {
                self.starve(key);
            } else if fits(self, first.unwrap_or(next), next) {
                first = first.or(Some(next));
                seekers.extend(self.start_reading(key));
            } else if first.is_none() {
                // It belongs into the other queue by now.
                self.enqueue(key);
            } else {
                passed.push(key);
            }
        }
        for key in passed.into_iter().rev() {
            queue.push_front(key);
        }
        let through = self.newest();
        (!seekers.is_empty()).then_some(ReadTask { seekers, through })
    }

    fn start_reading(&mut self, key: WatcherKey) -> Option<Seeker> {
        let watcher = watcher_mut(&mut self.slots, key)?;
        watcher.phase = Phase::Reading;
        Some(Seeker {
            watcher: key,
            range: watcher.spec.range.clone(),
            next: watcher.next,
            filters: watcher.spec.filters,
            prev_kv: watcher.spec.prev_kv,
        })
    }

    /// Deals out what a pass has found.
    pub fn complete(&mut self, task: &ReadTask, found: CatchUp, outlet: &mut dyn Outlet) {
        match found {
            CatchUp::Compacted { oldest } => {
                for seeker in &task.seekers {
                    self.read_compacted(seeker.watcher, oldest, outlet);
                }
            }
            CatchUp::Read { through, events } => {
                for (seeker, events) in task.seekers.iter().zip(events) {
                    self.read_done(seeker.watcher, through, events, outlet);
                }
            }
        }
    }

    fn read_compacted(&mut self, key: WatcherKey, oldest: Revision, outlet: &mut dyn Outlet) {
        let Some(watcher) = self.watcher(key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            Phase::Reading,
            "a watcher waits for its read"
        );
        if watcher.next >= oldest {
            self.enqueue(key);
            return;
        }
        let (stream, id) = (watcher.stream, watcher.id);
        self.remove(key);
        outlet.send(stream, compacted_response(id, oldest));
    }

    fn read_done(
        &mut self,
        key: WatcherKey,
        through: Revision,
        events: Vec<Arc<Event>>,
        outlet: &mut dyn Outlet,
    ) {
        let newest = self.newest();
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            Phase::Reading,
            "a watcher waits for its read"
        );
        if !events.is_empty() {
            if !outlet.has_room(watcher.stream) {
                self.starve(key);
                return;
            }
            watcher.send(events, newest, outlet);
        }
        watcher.next = watcher.next.max(through.next());
        if watcher.next > newest {
            self.sync(key);
        } else {
            self.enqueue(key);
        }
    }

    fn add(&mut self, watcher: Watcher) -> WatcherKey {
        let (stream, id) = (watcher.stream, watcher.id);
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[at as usize];
        slot.watcher = Some(watcher);
        let key = WatcherKey {
            slot: at,
            life: slot.life,
        };
        self.count += 1;
        if let Some(opened) = self.streams.get_mut(&stream) {
            opened.ids.insert(id, key);
            opened.behind += 1;
        }
        key
    }

    fn remove(&mut self, key: WatcherKey) {
        let slot = &mut self.slots[key.slot as usize];
        let Some(watcher) = slot.watcher.take_if(|_| slot.life == key.life) else {
            return;
        };
        slot.life = slot.life.wrapping_add(1);
        self.free.push(key.slot);
        self.count -= 1;
        if watcher.phase == Phase::Synced {
            self.synced.remove(&watcher.spec.range, key);
        }
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.ids.remove(&watcher.id);
            opened.behind -= usize::from(watcher.phase != Phase::Synced);
        }
    }

    fn watcher(&self, key: WatcherKey) -> Option<&Watcher> {
        let slot = &self.slots[key.slot as usize];
        slot.watcher.as_ref().filter(|_| slot.life == key.life)
    }

    /// Reading, or just created → synced.
    fn sync(&mut self, key: WatcherKey) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            Phase::Reading,
            "only a read, or its start, syncs a watcher"
        );
        watcher.phase = Phase::Synced;
        self.synced.insert(&watcher.spec.range, key);
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.behind -= 1;
        }
    }

    /// Synced → on the way to being starved or queued, because it cannot be sent `revision` now.
    fn unsync(&mut self, key: WatcherKey, revision: Revision) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            Phase::Synced,
            "only a synced watcher falls behind"
        );
        watcher.phase = Phase::Reading;
        watcher.next = watcher.next.max(revision);
        self.synced.remove(&watcher.spec.range, key);
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.behind += 1;
        }
    }

    /// → starved.
    fn starve(&mut self, key: WatcherKey) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_ne!(
            watcher.phase,
            Phase::Synced,
            "a synced watcher leaves the intervals first"
        );
        watcher.phase = Phase::Starved;
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.starved.push(key);
        }
    }

    /// → queued.
    fn enqueue(&mut self, key: WatcherKey) {
        let oldest = self.recent.oldest();
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_ne!(
            watcher.phase,
            Phase::Synced,
            "a synced watcher leaves the intervals first"
        );
        watcher.phase = Phase::Queued;
        if watcher.next >= oldest {
            self.queued_recent.push_back(key);
        } else {
            self.queued_history.push_back(key);
        }
    }

    /// Verifies the invariants; for tests.
    pub fn check(&self) {
        self.synced.check();
        let (mut synced, mut count) = (0, 0);
        for (id, stream) in &self.streams {
            let mut behind = 0;
            for (watch, key) in &stream.ids {
                let watcher = self.watcher(*key);
                assert!(watcher.is_some(), "a stream knows only watchers that exist");
                let Some(watcher) = watcher else { continue };
                assert_eq!(
                    (watcher.stream, watcher.id),
                    (*id, *watch),
                    "a watcher knows its place"
                );
                count += 1;
                match watcher.phase {
                    Phase::Synced => synced += 1,
                    Phase::Queued => {
                        let queued =
                            self.queued_recent.contains(key) || self.queued_history.contains(key);
                        assert!(queued, "a queued watcher is in a queue");
                    }
                    Phase::Starved => {
                        assert!(
                            stream.starved.contains(key),
                            "its stream knows who is starved"
                        );
                    }
                    Phase::Reading => {}
                }
                behind += usize::from(watcher.phase != Phase::Synced);
            }
            assert_eq!(
                behind, stream.behind,
                "a stream counts those that are not synced"
            );
        }
        assert_eq!(
            (synced, count),
            (self.synced.len(), self.count),
            "all watchers are counted"
        );
        let most = self.recent.bytes();
        assert!(
            most == 0 || self.recent.oldest() <= self.newest(),
            "{most} bytes of something"
        );
    }
}

/// The watcher of a key, unless it is gone.
fn watcher_mut(slots: &mut [Slot], key: WatcherKey) -> Option<&mut Watcher> {
    let slot = &mut slots[key.slot as usize];
    slot.watcher.as_mut().filter(|_| slot.life == key.life)
}

fn compacted_response(watch: WatchId, oldest: Revision) -> Response {
    // etcd: the header of this response has no revision.
    Response {
        watch,
        revision: Revision(0),
        body: Body::Compacted { oldest },
    }
}

impl Watcher {
    fn send(&mut self, events: Vec<Arc<Event>>, revision: Revision, outlet: &mut dyn Outlet) {
        self.active = true;
        let body = Body::Events {
            events,
            fragment: self.spec.fragment,
        };
        outlet.send(
            self.stream,
            Response {
                watch: self.id,
                revision,
                body,
            },
        );
    }
}

impl Stream {
    /// The id of a new watch, or why there is none.
    fn admit(&mut self, spec: &WatchSpec, room: bool) -> Result<WatchId, Refusal> {
        if spec.range.is_empty_range() {
            return Err(Refusal::EmptyRange);
        }
        if spec.start < Revision(0) {
            return Err(Refusal::NegativeStart);
        }
        if spec.id == WatchId::NONE {
            return Err(Refusal::ReservedId);
        }
        if self.ids.contains_key(&spec.id) && spec.id != WatchId(0) {
            return Err(Refusal::DuplicateId);
        }
        if !room {
            return Err(Refusal::TooManyWatchers);
        }
        if spec.id != WatchId(0) {
            return Ok(spec.id);
        }
        while self.ids.contains_key(&WatchId(self.next_id)) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(WatchId(self.next_id - 1))
    }
}
