//! Requests for watches, and responses to them.

use super::{super::KeyRange, events::Events};
use crate::types::{RecordKind, Revision};
use std::{fmt, sync::Arc};

/// Names a watcher of this member. A slot is used again after its watcher has ended, with another `life`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherKey {
    pub(super) slot: u32,
    pub(super) life: u32,
}

/// Bytes that a response takes in a queue besides its events: header, ids, and the queue's own slot.
const RESPONSE_OVERHEAD_BYTES: usize = 128;

/// A stream of this member, numbered since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A watch on its stream, as its client knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub i64);

impl WatchId {
    /// Stands for no watch, or for all of a stream.
    pub const NONE: Self = Self(-1);
}

impl fmt::Display for WatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which kinds of events a watch does not want.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// No puts.
    pub no_put: bool,
    /// No deletions.
    pub no_delete: bool,
}

impl Filters {
    /// Whether events of this kind pass.
    pub fn admit(self, kind: RecordKind) -> bool {
        match kind {
            RecordKind::Put => !self.no_put,
            RecordKind::Tombstone => !self.no_delete,
        }
    }
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// The id on its stream; zero lets the stream choose.
    pub id: WatchId,
    /// The keys.
    pub range: KeyRange,
    /// The first revision of interest; zero stands for "from now on".
    pub start: Revision,
    /// Unwanted kinds.
    pub filters: Filters,
    /// Events carry the key's previous state.
    pub prev_kv: bool,
    /// Tell from time to time how far a quiet watch has come.
    pub progress_notify: bool,
    /// Large responses may be cut.
    pub fragment: bool,
}

impl WatchSpec {
    /// A watch of a range from now on.
    pub fn of(range: KeyRange) -> Self {
        Self {
            id: WatchId(0),
            range,
            start: Revision(0),
            filters: Filters::default(),
            prev_kv: false,
            progress_notify: false,
            fragment: false,
        }
    }
}

/// Why a watch is not created. Its stream lives on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another watch of the stream has this id.
    #[error("duplicate watch id on the stream")]
    DuplicateId,
    /// The id stands for no watch.
    #[error("watch id -1 is reserved")]
    ReservedId,
    /// The range ends at or before its start.
    #[error("watcher range is empty")]
    EmptyRange,
    /// The start is below zero.
    #[error("start revision is negative")]
    NegativeStart,
    /// This member has as many watchers as it takes.
    #[error("too many watchers")]
    TooManyWatchers,
}

/// A response on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Which watch it is about.
    pub watch: WatchId,
    /// The revision in its header.
    pub revision: Revision,
    /// Its content.
    pub body: Body,
}

/// The content of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The watch exists; without a start of its own, it sees what comes after the response's revision.
    Created,
    /// The watch is not created.
    Refused(Refusal),
    /// Changes of whole revisions, in order.
    Events {
        /// All watchers that are sent the same share them.
        events: Arc<Events>,
        /// Whether the response may be cut.
        fragment: bool,
    },
    /// Everything at or below the response's revision was sent: of this watch, or of all of the stream.
    Progress,
    /// The watch is gone, as asked.
    Cancelled,
    /// The watch is gone: what it should see next is compacted.
    Compacted {
        /// The compacted revision: a new watch from here on works.
        oldest: Revision,
    },
}

impl Response {
    /// About what it takes in a queue and on the wire.
    pub fn bytes(&self) -> usize {
        let events = match &self.body {
            Body::Events { events, .. } => events.bytes(),
            Body::Created
            | Body::Refused(_)
            | Body::Progress
            | Body::Cancelled
            | Body::Compacted { .. } => 0,
        };
        RESPONSE_OVERHEAD_BYTES + events
    }
}

/// Where responses go. A stream that is gone takes everything and keeps nothing.
pub trait Outlet {
    /// Whether a stream takes events now. If not, the outlet's owner calls
    /// [`Watches::drained`](super::Watches::drained) once it does.
    fn has_room(&mut self, stream: StreamId) -> bool;

    /// Queues a response, even where there is no room.
    fn send(&mut self, stream: StreamId, response: Response);
}
