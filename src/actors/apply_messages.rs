//! The messages between the Raft node and the applier: committed entries go one way, progress comes back.

use super::{replies::Reply, snapshot_messages::ReceivedSnapshot};
use crate::types::{Entry, LogIndex, LogPosition};
use actix::prelude::*;
use tokio::time::Instant;

/// A committed entry, with the caller that waits for it if it entered the log through this member.
#[derive(Debug)]
pub struct CommittedEntry {
    pub entry: Entry,
    /// Who waits for its outcome.
    pub caller: Option<Caller>,
}

/// Who waits for the outcome of an entry, and for how long.
#[derive(Debug)]
pub struct Caller {
    /// When it gets an error instead of the answer.
    pub deadline: Instant,
    /// Where the outcome goes.
    pub reply: Reply,
}

impl CommittedEntry {
    /// Takes the caller if its deadline is not after `now`.
    pub fn take_expired(&mut self, now: Instant) -> Option<Caller> {
        self.caller.take_if(|caller| caller.deadline <= now)
    }
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
    pub applied: LogPosition,
}
