//! What streams ask for: to open and close, to create and cancel watches, and to get progress responses.

use super::{
    super::spec::{
        Body, HolderId, Outlet, Refusal, Response, StreamId, WatchId, WatchSpec, WatcherKey,
    },
    table::{Stream, Watcher, WatcherPhase, Watches, compacted_response, watcher_mut},
};
use crate::types::Revision;

impl Watches {
    /// Opens a stream of this program itself, for which no share bounds the watchers.
    pub fn open(&mut self, stream: StreamId) {
        self.open_for(stream, None);
    }

    /// Opens a stream. All streams of one `holder` together have its share of watchers at most.
    pub fn open_for(&mut self, stream: StreamId, holder: Option<HolderId>) {
        let opened = Stream {
            holder,
            ..Stream::default()
        };
        let before = self.streams.insert(stream, opened);
        assert!(before.is_none(), "stream ids are never used twice");
    }

    /// Removes a stream and its watchers.
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

    /// Creates a watch, or sends its stream the refusal.
    pub fn create(
        &mut self,
        stream: StreamId,
        spec: WatchSpec,
        compacted: Revision,
        outlet: &mut dyn Outlet,
    ) {
        let newest = self.newest();
        let Some(holder) = self.streams.get(&stream).map(|opened| opened.holder) else {
            return;
        };
        let room = self.has_room_for(holder);
        let Some(opened) = self.streams.get_mut(&stream) else {
            return;
        };
        let id = match opened.admit(&spec, room) {
            Ok(id) => id,
            Err(refusal) => return self.refuse(stream, refusal, outlet),
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
            phase: WatcherPhase::Reading,
            active: true,
            cold: false,
        };
        let key = self.add(watcher);
        if next > newest {
            self.sync(key);
        } else {
            self.enqueue(key);
        }
    }

    /// Sends a stream the response that a watch is not created.
    pub fn refuse(&self, stream: StreamId, refusal: Refusal, outlet: &mut dyn Outlet) {
        let response = Response {
            watch: WatchId::NONE,
            revision: self.newest(),
            body: Body::Refused(refusal),
        };
        outlet.send(stream, response);
    }

    /// Ends a watch. An unknown id gets no answer.
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

    /// Ends the watches that are not `allowed` any more, each alone.
    pub fn deny(&mut self, allowed: impl Fn(&WatchSpec) -> bool, outlet: &mut dyn Outlet) {
        let revision = self.newest();
        let keys = self.streams.values().flat_map(|opened| opened.ids.values());
        let over = keys.filter(|key| {
            let watcher = self.watcher(**key);
            watcher.is_some_and(|watcher| !allowed(&watcher.spec))
        });
        for key in over.copied().collect::<Vec<_>>() {
            let Some(watcher) = self.watcher(key) else {
                continue;
            };
            let (stream, watch) = (watcher.stream, watcher.id);
            self.remove(key);
            let body = Body::Denied;
            outlet.send(
                stream,
                Response {
                    watch,
                    revision,
                    body,
                },
            );
        }
    }

    /// Sends a stream the revision that all of its watches have reached; sends nothing if one of them is behind or has not
    /// started, or if there is none.
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

    /// Sends progress for the watches of a stream that asked for it and have had no events since it was last due.
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
            let wants_progress = watcher.spec.progress_notify
                && quiet
                && watcher.phase == WatcherPhase::Synced
                && watcher.spec.start <= newest;
            if wants_progress && outlet.has_room(stream) {
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
}

#[cfg(test)]
mod tests {
    use super::{
        super::{super::super::KeyRange, Bounds},
        *,
    };

    /// Counts the watches that are created, and those that are refused.
    #[derive(Default)]
    struct Counting {
        created: usize,
        refused: usize,
    }

    impl Outlet for Counting {
        fn has_room(&mut self, _: StreamId) -> bool {
            true
        }

        fn send(&mut self, _: StreamId, response: Response) {
            match response.body {
                Body::Created => self.created += 1,
                Body::Refused(_) => self.refused += 1,
                Body::Events { .. }
                | Body::Progress
                | Body::Cancelled
                | Body::Denied
                | Body::Compacted { .. } => {
                    panic!("nothing was written: {response:?}")
                }
            }
        }
    }

    /// Creates watches until one is refused; how many were created.
    fn greedy(watches: &mut Watches, stream: StreamId) -> usize {
        let mut outlet = Counting::default();
        while outlet.refused == 0 {
            let spec = WatchSpec::of(KeyRange::all());
            watches.create(stream, spec, Revision::NEVER_COMPACTED, &mut outlet);
        }
        watches.check();
        outlet.created
    }

    #[test]
    fn a_holder_has_no_more_watchers_than_are_free() {
        let bounds = Bounds {
            recent_bytes_max: 1_000,
            watchers_max: 120,
        };
        let mut watches = Watches::new(Revision(1), bounds, 7);
        let (first, second) = (Some(HolderId(1)), Some(HolderId(2)));
        let opened = [(1, first), (2, first), (3, second), (4, None)];
        for (stream, holder) in opened {
            watches.open_for(StreamId(stream), holder);
        }
        assert_eq!(greedy(&mut watches, StreamId(1)), 60, "half of all");
        assert_eq!(greedy(&mut watches, StreamId(2)), 0, "on all its streams");
        assert_eq!(greedy(&mut watches, StreamId(3)), 30, "half of the rest");
        watches.close(StreamId(1));
        assert_eq!(watches.len(), 30);
        assert_eq!(greedy(&mut watches, StreamId(2)), 45, "what ended is free");
        let own = greedy(&mut watches, StreamId(4));
        assert_eq!(own, 45, "this program's own streams may have the rest");
        assert_eq!(greedy(&mut watches, StreamId(3)), 0);
        for (stream, _) in opened {
            watches.close(StreamId(stream));
        }
        watches.check();
        assert!(watches.holders.is_empty(), "nobody is remembered");
    }
}
