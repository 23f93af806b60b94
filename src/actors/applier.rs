//! Applier: turns committed log entries into revisions, in log order.
//!
//! It owns the state machine, the tail of revisions that the database does not hold yet, and the answers that wait for their
//! batch to become visible. One batch goes: apply every entry → tell the index the changes → the index publishes a snapshot
//! → publish the read view → answer. It reads no clock into the state, and waits for no disk: records go to the
//! committer in large batches behind its back.

use super::{
    committer::{CommitRevisions, Committed, Committer},
    compactor::CompactionAccepted,
    fail_stop::Lifeline,
    index::{Index, IndexPublished, UpdateIndex},
    lease_manager::LeasesChanged,
    requests::{Published, Reply},
};
use crate::{
    codec,
    kv::{
        command::{Command, EncodedKv, Verdict},
        index::Snapshot,
        machine::{Changes, Machine},
        range::{ReadError, Records, Window},
        runs::Runs,
        view::{Stored, View},
    },
    storage::db::{Applied, CommitBatch, DbReader},
    types::{Entry, EntryKind, LeaseId, LogIndex, Record, Rev, Revision},
};
use actix::prelude::*;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Messages that may wait: the Raft node keeps two batches under way; the index, the committer and the timer add one each.
const MAILBOX_MAX: usize = 64;

/// Bytes of records that may wait for the database. Past them the Raft node gets no more acknowledgements of applied batches,
/// so its bound on entries that are not applied yet pushes clients back.
const TAIL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Where the name of the entry's proposer and its number stand before the command.
pub const PROPOSAL_HEADER_BYTES: usize = 16;

/// When the applier hands its records to the committer.
#[derive(Clone, Copy, Debug)]
pub struct CommitPacing {
    /// After so long at the latest.
    pub interval: Duration,
    /// After so many records.
    pub records_max: usize,
    /// After so many bytes.
    pub bytes_max: usize,
}

/// Owns the replicated state. Invariant: `stored.applied <= applied`.
pub struct Applier {
    machine: Machine,
    applied: Applied,
    snapshot: Snapshot,
    tail: Runs<Record>,
    tail_bytes: usize,
    stored: DbReader,
    file_bytes: u64,
    used_bytes: u64,
    /// Applied batches whose snapshot is not published yet, oldest first.
    unpublished: VecDeque<Batch>,
    /// What the committer has not been given yet.
    uncommitted: CommitBatch,
    uncommitted_bytes: usize,
    /// Bytes that the committer is working on.
    committing: Option<usize>,
    pacing: CommitPacing,
    peers: Peers,
    life: Lifeline,
}

/// Whom the applier talks to.
pub struct Peers {
    /// Takes key changes.
    pub index: Addr<Index>,
    /// Takes records.
    pub committer: Addr<Committer>,
    /// Is told what was applied, and what the database holds.
    pub raft: Recipient<ApplierProgress>,
    /// Is told of compactions.
    pub compactor: Recipient<CompactionAccepted>,
    /// Is told of leases.
    pub leases: Recipient<LeasesChanged>,
    /// Readers' newest view.
    pub views: watch::Sender<Arc<Published>>,
}

/// One applied batch on its way to being visible.
struct Batch {
    through: Revision,
    applied: Applied,
    window: Window,
    records: Vec<Record>,
    answers: Vec<(Reply, Verdict)>,
    leases: LeasesChanged,
    compacted: Option<Revision>,
}

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

/// How far this member's state has come.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct ApplierProgress {
    /// Entries up to here are applied and visible, and there is room for more.
    pub applied: LogIndex,
    /// The database holds the effects of entries up to here: a restart does not need them.
    pub stored: LogIndex,
}

/// Time to hand over what waits for the committer.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct CommitDue;

/// Hands everything to the committer and answers when the database holds it; for a clean stop.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainTail;

impl Applier {
    /// An applier that goes on with `machine` where the database behind `stored` stands.
    pub fn new(
        machine: Machine,
        snapshot: Snapshot,
        applied: Applied,
        stored: DbReader,
        pacing: CommitPacing,
        peers: Peers,
        life: Lifeline,
    ) -> Self {
        Self {
            machine,
            applied,
            snapshot,
            tail: Runs::default(),
            tail_bytes: 0,
            stored,
            file_bytes: 0,
            used_bytes: 0,
            unpublished: VecDeque::new(),
            uncommitted: CommitBatch::default(),
            uncommitted_bytes: 0,
            committing: None,
            pacing,
            peers,
            life,
        }
    }
}
