//! What streams ask for: to open and close, to create and cancel watches, and to be told about progress.

use super::{
    super::spec::{Body, Outlet, Response, StreamId, WatchId, WatchSpec, WatcherKey},
    table::{Stream, Watcher, WatcherPhase, Watches, compacted_response, watcher_mut},
};
use crate::types::Revision;

impl Watches {
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

    /// Creates a watch, or sends its stream the refusal.
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

    /// Sends progress for the watches of a stream that want it and have had no events since it was last due.
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
                && watcher.phase == WatcherPhase::Synced
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
}
