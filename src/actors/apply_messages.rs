//! What the Raft node and the applier tell each other: committed entries go one way, progress comes back.

use super::{replies::Reply, snapshot_messages::ReceivedSnapshot};
use crate::types::{Entry, LogIndex, LogPosition};
use actix::prelude::*;

/// A committed entry, with the caller that waits for it if it entered the log through this member.
#[derive(Debug)]
pub struct CommittedEntry {
    /// The entry.
    pub entry: Entry,
    /// Who waits for its outcome.
    pub reply: Option<Reply>,
}

/// Applies committed entries, which follow those applied before. Answered by [`ApplierProgress`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ApplyEntries {
    /// The entries, in log order.
    pub entries: Vec<CommittedEntry>,
}

/// How many entries this member has applied, and how many of them its database holds.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct ApplierProgress {
    /// Entries up to here are applied and visible, and there is room for more.
    pub applied: LogIndex,
    /// The database holds the effects of entries up to here: a restart does not need them.
    pub stored: LogIndex,
}

/// Installs a received snapshot as the state. No entries may follow before [`StateReplaced`] answers it; entries sent before
/// are applied first.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReplaceState {
    /// The snapshot, newer than all that was applied.
    pub received: Box<ReceivedSnapshot>,
}

/// The state is that of the snapshot, on disk and for readers.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StateReplaced {
    /// Its log position.
    pub applied: LogPosition,
}
