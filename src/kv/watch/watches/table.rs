//! All watchers, the state that each is in, and the only transitions between states.

use super::super::{
    events::{Events, HeldBytes},
    intervals::Intervals,
    recent::Recent,
    spec::{Body, HolderId, Outlet, Refusal, Response, StreamId, WatchId, WatchSpec, WatcherKey},
};
use super::groups::Groups;
use crate::types::Revision;
use std::{
    collections::{BTreeMap, VecDeque, btree_map::Entry},
    sync::Arc,
};

/// How much it may hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes of recent events.
    pub recent_bytes_max: usize,
    /// Watchers of all streams. The streams of one holder have no more than are free, so that others find room.
    pub watchers_max: usize,
}

/// Every watcher, by stream.
///
/// Invariants: a watcher is in `synced` exactly if its phase says so; the watchers of a stream are those in its `ids`;
/// `behind` of a stream counts those that are not synced; a queued watcher is in one of the two queues (which may also hold
/// keys of watchers that are gone).
#[derive(Debug)]
pub struct Watches {
    pub(super) recent: Recent,
    pub(super) synced: Intervals<WatcherKey>,
    pub(super) slots: Vec<Slot>,
    pub(super) free: Vec<u32>,
    pub(super) streams: BTreeMap<StreamId, Stream>,
    /// Those that recent events can serve.
    pub(super) queued_recent: VecDeque<WatcherKey>,
    /// Those that must read stored history.
    pub(super) queued_history: VecDeque<WatcherKey>,
    /// Empty between batches; kept for its memory.
    pub(super) groups: Groups,
    /// The bytes that passes have copied and that are still in memory.
    pub(super) held: HeldBytes,
    pub(super) watchers_max: usize,
    pub(super) count: usize,
    /// Those that have watchers, and how many.
    pub(super) holders: BTreeMap<HolderId, usize>,
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
            groups: Groups::default(),
            held: HeldBytes::default(),
            watchers_max: bounds.watchers_max,
            count: 0,
            holders: BTreeMap::new(),
        }
    }

    /// The newest revision that was published to it.
    pub fn newest(&self) -> Revision {
        self.recent.newest()
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many watchers count for the share of a holder.
    pub fn of_holders(&self) -> usize {
        self.holders.values().sum()
    }

    /// How many watchers are synced.
    pub fn synced(&self) -> usize {
        self.synced.len()
    }

    pub fn recent_bytes(&self) -> usize {
        self.recent.bytes()
    }
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) life: u32,
    pub(super) watcher: Option<Watcher>,
}

#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) stream: StreamId,
    pub(super) id: WatchId,
    pub(super) spec: WatchSpec,
    /// The first revision to send. Of a synced watcher this may be too low: everything up to the newest revision was sent.
    pub(super) next: Revision,
    pub(super) phase: WatcherPhase,
    /// Whether it was sent events since progress was last due.
    pub(super) active: bool,
    /// For revision `next` it needs a previous state that is not in memory: it must read stored history.
    pub(super) cold: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WatcherPhase {
    Synced,
    Queued,
    Reading,
    Starved,
}

#[derive(Debug, Default)]
pub(super) struct Stream {
    pub(super) ids: BTreeMap<WatchId, WatcherKey>,
    pub(super) next_id: i64,
    /// `None` for this program's own streams.
    pub(super) holder: Option<HolderId>,
    pub(super) behind: usize,
    pub(super) starved: Vec<WatcherKey>,
    /// A progress request that waits for room.
    pub(super) progress_owed: bool,
}

impl Watches {
    pub(super) fn add(&mut self, watcher: Watcher) -> WatcherKey {
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
            if let Some(holder) = opened.holder {
                *self.holders.entry(holder).or_default() += 1;
            }
        }
        key
    }

    pub(super) fn remove(&mut self, key: WatcherKey) {
        let slot = &mut self.slots[key.slot as usize];
        let Some(watcher) = slot.watcher.take_if(|_| slot.life == key.life) else {
            return;
        };
        slot.life = slot.life.wrapping_add(1);
        self.free.push(key.slot);
        self.count -= 1;
        if watcher.phase == WatcherPhase::Synced {
            self.synced.remove(&watcher.spec.range, key);
        }
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.ids.remove(&watcher.id);
            opened.behind -= usize::from(watcher.phase != WatcherPhase::Synced);
            if let Some(holder) = opened.holder
                && let Entry::Occupied(mut held) = self.holders.entry(holder)
            {
                *held.get_mut() -= 1;
                if *held.get() == 0 {
                    held.remove();
                }
            }
        }
    }

    /// Whether a stream of `holder` may have one more watcher.
    pub(super) fn has_room_for(&self, holder: Option<HolderId>) -> bool {
        let free = self.watchers_max.saturating_sub(self.count);
        let held = holder.and_then(|holder| self.holders.get(&holder).copied());
        free > held.unwrap_or_default()
    }

    pub(super) fn watcher(&self, key: WatcherKey) -> Option<&Watcher> {
        watcher(&self.slots, key)
    }

    /// Reading, or just created → synced.
    pub(super) fn sync(&mut self, key: WatcherKey) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            WatcherPhase::Reading,
            "only a read, or its start, syncs a watcher"
        );
        watcher.phase = WatcherPhase::Synced;
        self.synced.insert(&watcher.spec.range, key);
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.behind -= 1;
        }
    }

    /// Synced → on the way to being starved or queued, because it cannot be sent `revision` now.
    pub(super) fn unsync(&mut self, key: WatcherKey, revision: Revision) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            WatcherPhase::Synced,
            "only a synced watcher falls behind"
        );
        watcher.phase = WatcherPhase::Reading;
        watcher.next = watcher.next.max(revision);
        self.synced.remove(&watcher.spec.range, key);
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.behind += 1;
        }
    }

    pub(super) fn starve(&mut self, key: WatcherKey) {
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_ne!(
            watcher.phase,
            WatcherPhase::Synced,
            "a synced watcher leaves the intervals first"
        );
        watcher.phase = WatcherPhase::Starved;
        if let Some(opened) = self.streams.get_mut(&watcher.stream) {
            opened.starved.push(key);
        }
    }

    /// → queued.
    pub(super) fn enqueue(&mut self, key: WatcherKey) {
        let oldest = self.recent.oldest();
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_ne!(
            watcher.phase,
            WatcherPhase::Synced,
            "a synced watcher leaves the intervals first"
        );
        watcher.phase = WatcherPhase::Queued;
        if watcher.next >= oldest && !watcher.cold {
            self.queued_recent.push_back(key);
        } else {
            self.queued_history.push_back(key);
        }
    }

    /// Verifies the invariants; for tests.
    pub fn check(&self) {
        self.synced.check();
        let (mut synced, mut count) = (0, 0);
        let mut holders = BTreeMap::<HolderId, usize>::new();
        for (id, stream) in &self.streams {
            let mut behind = 0;
            for (watch, key) in &stream.ids {
                let watcher = self.watcher(*key);
                assert!(watcher.is_some(), "a stream has only watchers that exist");
                let Some(watcher) = watcher else { continue };
                assert_eq!(
                    (watcher.stream, watcher.id),
                    (*id, *watch),
                    "a watcher has its own stream and id"
                );
                count += 1;
                if let Some(holder) = stream.holder {
                    *holders.entry(holder).or_default() += 1;
                }
                match watcher.phase {
                    WatcherPhase::Synced => synced += 1,
                    WatcherPhase::Queued => {
                        let queued =
                            self.queued_recent.contains(key) || self.queued_history.contains(key);
                        assert!(queued, "a queued watcher is in a queue");
                    }
                    WatcherPhase::Starved => {
                        assert!(
                            stream.starved.contains(key),
                            "its stream lists starved watchers"
                        );
                    }
                    WatcherPhase::Reading => {}
                }
                behind += usize::from(watcher.phase != WatcherPhase::Synced);
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
        assert_eq!(holders, self.holders, "each holder's watchers are counted");
        let most = self.recent.bytes();
        assert!(
            most == 0 || self.recent.oldest() <= self.newest(),
            "{most} bytes of something"
        );
    }
}

/// The watcher of a key, unless it is gone.
pub(super) fn watcher(slots: &[Slot], key: WatcherKey) -> Option<&Watcher> {
    let slot = &slots[key.slot as usize];
    slot.watcher.as_ref().filter(|_| slot.life == key.life)
}

pub(super) fn watcher_mut(slots: &mut [Slot], key: WatcherKey) -> Option<&mut Watcher> {
    let slot = &mut slots[key.slot as usize];
    slot.watcher.as_mut().filter(|_| slot.life == key.life)
}

impl Watcher {
    pub(super) fn send(
        &mut self,
        events: Arc<Events>,
        revision: Revision,
        outlet: &mut dyn Outlet,
    ) {
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
    pub(super) fn admit(&mut self, spec: &WatchSpec, room: bool) -> Result<WatchId, Refusal> {
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

pub(super) fn compacted_response(watch: WatchId, oldest: Revision) -> Response {
    // etcd: the header of this response has no revision.
    Response {
        watch,
        revision: Revision(0),
        body: Body::Compacted { oldest },
    }
}
