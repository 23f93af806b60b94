//! Catching up: a watcher that is behind waits for a turn; each turn is one bounded pass over history or over recent events.

use super::{
    super::{
        catch_up::{CatchUp, Memory, ReadTask, Seeker},
        events::Events,
        spec::{Outlet, StreamId, WatcherKey},
    },
    table::{Watcher, WatcherPhase, Watches, compacted_response, watcher_mut},
};
use crate::types::Revision;
use std::{collections::VecDeque, sync::Arc};

/// Watchers that one pass over history serves.
const GROUP_MAX: usize = 128;
/// Queued watchers that are looked at to fill a group.
const GROUP_SEARCH_MAX: usize = 512;
/// A pass over stored history serves watchers that begin within so many revisions of the first.
const GROUP_REVISIONS: i64 = 10_000;

/// Bytes of matching events, counted once for each watcher, that one pass finds.
const PASS_BYTES_MAX: usize = 2 * 1024 * 1024;
/// The same if all of its watchers take fragments: their clients put a response together from messages that are small in any
/// case. etcd: a response has 1,000 revisions, whatever their size.
const FRAGMENTED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of events copied for responses that are still in memory, above which no pass finds more than [`PASS_BYTES_MAX`].
const HELD_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Watches {
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
                .is_some_and(|watcher| watcher.phase == WatcherPhase::Starved)
            {
                self.enqueue(key);
            }
        }
        if owed {
            self.request_progress(stream, outlet);
        }
    }

    /// Whether some watcher is queued to read.
    pub fn anyone_queued(&self) -> bool {
        !self.queued_recent.is_empty() || !self.queued_history.is_empty()
    }

    /// The next pass over stored history, if one is wanted. Its outcome goes to [`Watches::complete`].
    pub fn next_read(&mut self, outlet: &mut dyn Outlet) -> Option<ReadTask> {
        let mut queue = std::mem::take(&mut self.queued_history);
        let task = self.group(&mut queue, outlet, |watches, first, watcher| {
            // A watcher that recent events can serve by now gets its own turn.
            let next = watcher.next;
            (watcher.cold || next < watches.recent.oldest())
                && (first.0..first.0.saturating_add(GROUP_REVISIONS)).contains(&next.0)
        });
        queue.append(&mut self.queued_history);
        self.queued_history = queue;
        task
    }

    /// Makes a pass over recent events, if one is wanted; returns whether it did. A watcher that needs a previous state which is
    /// not in `memory` is queued to read stored history.
    pub fn read_recent(&mut self, memory: &dyn Memory, outlet: &mut dyn Outlet) -> bool {
        let mut queue = std::mem::take(&mut self.queued_recent);
        let task = self.group(&mut queue, outlet, |watches, _, watcher| {
            watcher.next >= watches.recent.oldest()
        });
        queue.append(&mut self.queued_recent);
        self.queued_recent = queue;
        let Some(task) = task else { return false };
        let (found, cold) = self.recent.read(&task, memory);
        for at in cold {
            if let Some(watcher) = watcher_mut(&mut self.slots, task.seekers[at].watcher) {
                watcher.cold = true;
            }
        }
        self.complete(&task, found, outlet);
        true
    }

    /// Takes a group of watchers from the front of a queue: the first one, and others that `fits` with it.
    fn group(
        &mut self,
        queue: &mut VecDeque<WatcherKey>,
        outlet: &mut dyn Outlet,
        fits: impl Fn(&Self, Revision, &Watcher) -> bool,
    ) -> Option<ReadTask> {
        let (mut seekers, mut passed) = (Vec::new(), Vec::new());
        let mut first = None;
        let mut fragmented = true;
        while seekers.len() < GROUP_MAX && passed.len() < GROUP_SEARCH_MAX {
            let Some(key) = queue.pop_front() else { break };
            let queued = self
                .watcher(key)
                .filter(|watcher| watcher.phase == WatcherPhase::Queued);
            let Some(watcher) = queued else { continue };
            let next = watcher.next;
            if !outlet.has_room(watcher.stream) {
                self.starve(key);
            } else if fits(self, first.unwrap_or(next), watcher) {
                first = first.or(Some(next));
                fragmented &= watcher.spec.fragment;
                seekers.extend(self.start_reading(key));
            } else if first.is_none() {
                // By now it belongs in the other queue.
                self.enqueue(key);
            } else {
                passed.push(key);
            }
        }
        for key in passed.into_iter().rev() {
            queue.push_front(key);
        }
        let bytes_max = if fragmented && self.held.get() < HELD_BYTES_MAX {
            FRAGMENTED_BYTES_MAX
        } else {
            PASS_BYTES_MAX
        };
        (!seekers.is_empty()).then(|| ReadTask {
            seekers,
            through: self.newest(),
            bytes_max,
            held: self.held.clone(),
        })
    }

    fn start_reading(&mut self, key: WatcherKey) -> Option<Seeker> {
        let watcher = watcher_mut(&mut self.slots, key)?;
        watcher.phase = WatcherPhase::Reading;
        watcher.cold = false;
        Some(Seeker {
            watcher: key,
            range: watcher.spec.range.clone(),
            next: watcher.next,
            filters: watcher.spec.filters,
            prev_kv: watcher.spec.prev_kv,
        })
    }

    /// Sends what a pass has found.
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
            WatcherPhase::Reading,
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
        events: Option<Arc<Events>>,
        outlet: &mut dyn Outlet,
    ) {
        let newest = self.newest();
        let Some(watcher) = watcher_mut(&mut self.slots, key) else {
            return;
        };
        assert_eq!(
            watcher.phase,
            WatcherPhase::Reading,
            "a watcher waits for its read"
        );
        if let Some(events) = events {
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
}
