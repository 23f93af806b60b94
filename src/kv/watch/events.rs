//! What one response carries: events of whole revisions, and their bytes in one piece.
//!
//! Many watchers are sent the same events: those of one range, above all. They share one [`Events`], so a response for each of
//! them costs a small header and one copy, however many events it has.

use super::event::Event;
use bytes::Bytes;
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Counts the bytes of events that were copied for responses and are still in memory, be it in a queue or for a client that reads
/// slowly.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldBytes(Arc<AtomicUsize>);

impl HeldBytes {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// A buffer with the bytes of `wire`, which are counted until its last part is dropped.
    fn count(&self, wire: Vec<u8>) -> Bytes {
        self.0.fetch_add(wire.len(), Ordering::Relaxed);
        let held = self.clone();
        Bytes::from_owner(Counted { wire, held })
    }
}

struct Counted {
    wire: Vec<u8>,
    held: HeldBytes,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.wire
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.wire.len(), Ordering::Relaxed);
    }
}

/// Events of whole revisions, in order, at least one.
#[derive(Debug, PartialEq, Eq)]
pub struct Events {
    list: Vec<Event>,
    wire: Bytes,
}

impl Events {
    /// Several events get a buffer of their own, so that a queued response keeps nothing else in memory.
    pub fn new(events: &[Arc<Event>]) -> Arc<Self> {
        Self::joined(events, Bytes::from)
    }

    /// As [`Events::new`], and `held` counts that buffer.
    pub(super) fn counted(events: &[Arc<Event>], held: &HeldBytes) -> Arc<Self> {
        Self::joined(events, |wire| held.count(wire))
    }

    fn joined(events: &[Arc<Event>], into_bytes: impl FnOnce(Vec<u8>) -> Bytes) -> Arc<Self> {
        assert!(!events.is_empty(), "no response of events is empty");
        if let [event] = events {
            return Arc::new(Self {
                list: vec![Event::clone(event)],
                wire: event.wire.clone(),
            });
        }
        let mut wire = Vec::with_capacity(events.iter().map(|event| event.wire.len()).sum());
        for event in events {
            wire.extend_from_slice(&event.wire);
        }
        let wire = into_bytes(wire);
        let mut left = wire.clone();
        let moved = |event: &Arc<Event>| event.moved_to(left.split_to(event.wire.len()));
        let list = events.iter().map(moved).collect();
        Arc::new(Self { list, wire })
    }

    /// The field `events` of a `WatchResponse` for each of them, one after the other.
    pub fn wire(&self) -> &Bytes {
        &self.wire
    }

    /// What they take in memory.
    pub fn bytes(&self) -> usize {
        self.wire.len() + self.list.len() * size_of::<Event>()
    }
}

impl Deref for Events {
    type Target = [Event];

    fn deref(&self) -> &[Event] {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{RecordKind, Rev, Revision};

    fn event(major: i64, kv: &'static [u8], prev: Option<&'static [u8]>) -> Arc<Event> {
        let prev = prev.map(Bytes::from_static);
        let rev = Rev::new(Revision(major), 0);
        let kv = Bytes::from_static(kv);
        Arc::new(Event::new(rev, RecordKind::Put, &kv, prev.as_ref()))
    }

    #[test]
    fn several_events_are_the_same_in_one_buffer() {
        let parts = [
            event(5, &[0x0a, 1, b'k', 0x18, 5], None),
            event(
                6,
                &[0x0a, 1, b'l', 0x18, 6],
                Some(&[0x0a, 1, b'l', 0x18, 2]),
            ),
            event(7, &[0x0a, 2, b'm', b'm', 0x18, 7], None),
        ];
        for count in 1..=parts.len() {
            let parts = &parts[..count];
            let events = Events::new(parts);
            assert_eq!(events.len(), count);
            for (part, event) in parts.iter().zip(events.iter()) {
                assert_eq!(event, part.as_ref());
                assert_eq!((event.kv(), event.key()), (part.kv(), part.key()));
                assert_eq!(event.prev_kv(), part.prev_kv());
            }
            let wires: Vec<u8> = parts.iter().flat_map(|part| part.wire.to_vec()).collect();
            assert_eq!(events.wire(), &wires);
        }
    }

    #[test]
    fn what_was_copied_counts_until_its_last_part_is_gone() {
        let held = HeldBytes::default();
        let one = event(5, &[0x0a, 1, b'k', 0x18, 5], None);
        let alone = Events::counted(std::slice::from_ref(&one), &held);
        assert_eq!(held.get(), 0, "{alone:?} was not copied");
        let events = Events::counted(&[one.clone(), one.clone()], &held);
        let bytes = 2 * one.wire.len();
        assert_eq!(held.get(), bytes);
        let sent = events.wire().slice(1..2);
        drop(events);
        assert_eq!(held.get(), bytes, "a part of it waits for a client");
        drop(sent);
        assert_eq!(held.get(), 0);
    }

    #[test]
    #[should_panic(expected = "no response of events is empty")]
    fn there_is_no_response_without_events() {
        Events::new(&[]);
    }
}
