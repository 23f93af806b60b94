//! Requests for watches, and responses to them.

use super::{super::KeyRange, events::Events};
use crate::{
    auth::{AuthError, Caller},
    types::{RecordKind, Revision},
};
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

/// The holder of streams, for which the number of watchers is bounded: a connection of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(pub u64);

/// The id by which a client names a watch of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub i64);

impl WatchId {
    /// In a response: no watch, or all watches of the stream.
    pub const NONE: Self = Self(-1);
}

impl fmt::Display for WatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kinds of events that a watch leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub no_put: bool,
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

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// The id on its stream; zero lets the stream choose.
    pub id: WatchId,
    pub range: KeyRange,
    /// The first revision of interest; zero means "from now on".
    pub start: Revision,
    pub filters: Filters,
    /// Events carry the key's previous state.
    pub prev_kv: bool,
    /// Send a quiet watch its progress from time to time.
    pub progress_notify: bool,
    /// Large responses may be cut.
    pub fragment: bool,
    pub caller: Caller,
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
            caller: Caller::Node,
        }
    }
}

/// Why a watch is not created. Its stream stays open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another watch of the stream has this id.
    #[error("duplicate watch id on the stream")]
    DuplicateId,
    /// The id is [`WatchId::NONE`].
    #[error("watch id -1 is reserved")]
    ReservedId,
    /// The range ends at or before its start.
    #[error("watcher range is empty")]
    EmptyRange,
    #[error("start revision is negative")]
    NegativeStart,
    /// The caller may not read the range.
    #[error(transparent)]
    Denied(AuthError),
    /// This member has as many watchers as it admits, or the stream's holder has its share of them.
    #[error("too many watchers")]
    TooManyWatchers,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Which watch it is about.
    pub watch: WatchId,
    /// The revision in its header.
    pub revision: Revision,
    pub body: Body,
}

/// The content of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The watch exists; without a start of its own, it sees what comes after the response's revision.
    Created,
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
    /// The watch is gone: its caller may not read the range any more.
    Denied,
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
            | Body::Denied
            | Body::Compacted { .. } => 0,
        };
        RESPONSE_OVERHEAD_BYTES + events
    }
}

/// Where responses go. Those for a stream that is gone are dropped.
pub trait Outlet {
    /// Whether a stream takes events now. If not, the outlet's owner calls
    /// [`Watches::drained`](super::Watches::drained) once it does.
    fn has_room(&mut self, stream: StreamId) -> bool;

    /// Queues a response, even where there is no room.
    fn send(&mut self, stream: StreamId, response: Response);
}
