//! Events: a change as its watchers get it, encoded once for all of them.
//!
//! The bytes are field `events` of `etcdserverpb.WatchResponse`, tag and length included, so a response is made by
//! writing a small header and the bytes of its events behind each other. An event comes in two forms, with and without the
//! key's previous state; a [`WatchedChange`] makes each form when it is first wanted.

use super::super::{
    command::EncodedKv,
    record::{self, Fields, put_varint, varint_len},
};
use crate::types::{Record, RecordKind, Rev, Revision};
use bytes::Bytes;
use std::{ops::Range, sync::Arc};

/// Field `events` of a `WatchResponse`.
const EVENTS: u8 = 11 << 3 | 2;
/// Fields of an `Event`.
const TYPE: u8 = 1 << 3;
const KV: u8 = 2 << 3 | 2;
const PREV_KV: u8 = 3 << 3 | 2;
/// `Event.EventType.DELETE`; PUT is zero, which is not written.
const DELETE: u8 = 1;

/// What an event costs in memory besides its bytes.
pub(super) const EVENT_OVERHEAD_BYTES: usize = 160;

/// One change, in one form. All parts are in one buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in history.
    pub rev: Rev,
    pub kind: RecordKind,
    /// Field `events` of a `WatchResponse`.
    pub wire: Bytes,
    /// Where the states after and before the change are in `wire`.
    kv_at: Range<usize>,
    prev_at: Option<Range<usize>>,
}

impl Event {
    /// Encodes a change; `stored` is its record's `KeyValue`.
    pub fn new(rev: Rev, kind: RecordKind, stored: &EncodedKv, prev: Option<&EncodedKv>) -> Self {
        let tombstone;
        let kv = match kind {
            RecordKind::Put => stored,
            RecordKind::Tombstone => {
                let key = record::key_slice(stored);
                let fields = Fields {
                    key,
                    mod_revision: rev.major,
                    ..Fields::default()
                };
                tombstone = record::encode(&fields);
                &tombstone
            }
        };
        let field = |kv: &EncodedKv| 1 + varint_len(kv.len() as u64) + kv.len();
        let kind_len = if kind == RecordKind::Tombstone { 2 } else { 0 };
        let len = kind_len + field(kv) + prev.map_or(0, field);
        let mut wire = Vec::with_capacity(1 + varint_len(len as u64) + len);
        wire.push(EVENTS);
        put_varint(&mut wire, len as u64);
        if kind == RecordKind::Tombstone {
            wire.extend([TYPE, DELETE]);
        }
        let kv_at = put_kv(&mut wire, KV, kv);
        let prev_at = prev.map(|prev| put_kv(&mut wire, PREV_KV, prev));
        Self {
            rev,
            kind,
            wire: wire.into(),
            kv_at,
            prev_at,
        }
    }

    /// The key's state after the change; of a deletion, its key and the deletion's revision.
    pub fn kv(&self) -> EncodedKv {
        self.wire.slice(self.kv_at.clone())
    }

    /// The key's state before the change's revision, if the watcher asked for it, it existed, and it is not compacted. etcd: a
    /// put that creates its key has none, even if the same transaction deleted the key.
    pub fn prev_kv(&self) -> Option<EncodedKv> {
        let at = self.prev_at.clone()?;
        Some(self.wire.slice(at))
    }

    pub fn key(&self) -> &[u8] {
        record::key_slice(&self.wire[self.kv_at.clone()])
    }

    /// The same event in another buffer, which has its bytes.
    pub(super) fn moved_to(&self, wire: Bytes) -> Self {
        assert_eq!(wire.len(), self.wire.len(), "an event keeps its bytes");
        Self {
            wire,
            ..self.clone()
        }
    }
}

fn put_kv(out: &mut Vec<u8>, tag: u8, kv: &EncodedKv) -> Range<usize> {
    out.push(tag);
    put_varint(out, kv.len() as u64);
    let start = out.len();
    out.extend_from_slice(kv);
    start..out.len()
}

/// The previous value is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cold;

/// A change with the forms of its event that were needed so far.
#[derive(Clone, Debug)]
pub(super) struct WatchedChange {
    record: Record,
    plain: Option<Arc<Event>>,
    with_prev: Option<Arc<Event>>,
}

impl WatchedChange {
    pub(super) fn new(record: Record) -> Self {
        Self {
            record,
            plain: None,
            with_prev: None,
        }
    }

    pub(super) fn rev(&self) -> Rev {
        self.record.rev
    }

    pub(super) fn kind(&self) -> RecordKind {
        self.record.kind
    }

    pub(super) fn key(&self) -> &[u8] {
        record::key_slice(&self.record.kv)
    }

    /// Whether it has a state before it: a put that creates its key has none.
    pub(super) fn follows_another(&self) -> bool {
        self.kind() == RecordKind::Tombstone
            || record::create_revision_of(&self.record.kv) != self.rev().major
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Whether this form was made already.
    pub(super) fn has_form(&self, with_prev: bool) -> bool {
        let form = if with_prev {
            &self.with_prev
        } else {
            &self.plain
        };
        form.is_some()
    }

    /// The event in the form asked for. `before` finds the state of a key before a revision.
    pub(super) fn event<E>(
        &mut self,
        with_prev: bool,
        before: impl FnOnce(&[u8], Revision) -> Result<Option<EncodedKv>, E>,
    ) -> Result<Arc<Event>, E> {
        let known = if with_prev {
            &self.with_prev
        } else {
            &self.plain
        };
        if let Some(event) = known {
            return Ok(event.clone());
        }
        let Record { rev, kind, kv } = &self.record;
        let prev = if with_prev && self.follows_another() {
            before(record::key_slice(kv), rev.major)?
        } else {
            None
        };
        let event = match &self.plain {
            // Without a previous state both forms are the same bytes.
            Some(plain) if prev.is_none() => plain.clone(),
            _ => Arc::new(Event::new(*rev, *kind, kv, prev.as_ref())),
        };
        let form = if with_prev {
            &mut self.with_prev
        } else {
            &mut self.plain
        };
        *form = Some(event.clone());
        Ok(event)
    }

    /// What it holds, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let forms = [&self.plain, &self.with_prev];
        let forms = forms.into_iter().flatten();
        let built: usize = forms
            .map(|event| event.wire.len() + EVENT_OVERHEAD_BYTES)
            .sum();
        self.record.kv.len() + EVENT_OVERHEAD_BYTES + built
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    #[test]
    fn events_are_spliced_as_a_watch_responses_field() {
        let stored = Bytes::from_static(&[0x0a, 1, b'k', 0x18, 5]);
        let prev = Bytes::from_static(&[0x0a, 1, b'k', 0x18, 3]);
        let put = Event::new(Rev::new(Revision(5), 0), RecordKind::Put, &stored, None);
        assert_eq!(
            put.wire.as_ref(),
            [0x5a, 7, 0x12, 5, 0x0a, 1, b'k', 0x18, 5],
            "golden bytes"
        );
        assert_eq!((put.kv().as_ref(), put.prev_kv()), (stored.as_ref(), None));
        let tombstone = record::encode_tombstone(b"k");
        let rev = Rev::new(Revision(6), 0);
        let delete = Event::new(rev, RecordKind::Tombstone, &tombstone, Some(&prev));
        let expected = [
            0x5a, 16, 0x08, 1, 0x12, 5, 0x0a, 1, b'k', 0x18, 6, 0x1a, 5, 0x0a, 1, b'k', 0x18, 3,
        ];
        assert_eq!(
            delete.wire.as_ref(),
            expected,
            "a deletion names its key and its revision"
        );
        assert_eq!(delete.key(), b"k");
        assert_eq!(delete.prev_kv(), Some(prev));
    }
}
