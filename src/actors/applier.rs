//! Applier: turns committed log entries into revisions, in log order.
//!
//! It owns the state machine, the tail of revisions that the database does not hold yet, and the answers that wait for their
//! batch to become visible. One batch goes: apply every entry → tell the index the changes → the index publishes a snapshot
//! → publish the read view → answer. It reads no clock into the state, and waits for no disk: records go to the
//! committer in large batches behind its back.

use super::{
    committer::{CommitRevisions, Committed, DatabaseReplaced, ForgetRecords, ReplaceDatabase},
    compactor::{CompactionAccepted, CompactionState, Decision, HistoryReplaced},
    fail_stop::Lifeline,
    index::{IndexPublished, ReplaceTree, UpdateIndex},
    latest,
    lease_manager::{LeaseState, LeasesChanged, LeasesReplaced},
    leases::ListLeaseKeys,
    members::{Members, MembersError},
    replacement::Replacement,
    replies::Reply,
    requests::{Published, RequestError},
    restore::{membership_meta, store_meta},
    snapshots::Received,
    state_check::HashDesk,
    watch_hub::EventsApplied,
};
use crate::failpoint::{FailPoint, hit};
use crate::mutation::{Mutation, mutated};
use crate::{
    codec::{self, CodecError},
    kv::{
        command::{AlarmKind, Command, EncodedKv, Verdict},
        index::Snapshot,
        lease::LeaseChange,
        machine::Machine,
        range::{ReadError, Records, Window},
        tail::{self, Tail},
        view::View,
    },
    storage::db::{CommitBatch, DbReader},
    types::{Entry, EntryKind, LogIndex, LogPosition, MemberId, Rev, Revision},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::sync::oneshot;

/// Messages that may wait: the Raft node keeps two batches under way; the index, the committer and the timer add one each, and
/// questions for the keys of leases four.
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
    applied: LogPosition,
    snapshot: Snapshot,
    tail: Tail,
    tail_bytes: usize,
    stored: DbReader,
    file_bytes: u64,
    used_bytes: u64,
    /// What readers see; behind `applied` by the batches not published yet.
    visible: LogPosition,
    visible_window: Window,
    alarms: Arc<BTreeSet<(MemberId, AlarmKind)>>,
    members: Arc<Members>,
    /// Records up to here are in the database.
    stored_through: Revision,
    /// Effects of entries up to here are in the database.
    stored_applied: LogIndex,
    /// The newest compaction that the database was found to have begun. Earlier versions could remove records before they
    /// stored that the log had decided so: such a database lacks history that its state does not know to be compacted.
    begun_compaction: Revision,
    /// Entries up to here are in the database for good.
    stored_index: LogIndex,
    /// Entries up to here were handed to the committer.
    handed_over: LogIndex,
    draining: Vec<oneshot::Sender<()>>,
    /// Applied batches whose snapshot is not published yet, oldest first.
    unpublished: VecDeque<Batch>,
    /// What the committer has not been given yet.
    uncommitted: CommitBatch,
    uncommitted_records: usize,
    uncommitted_bytes: usize,
    /// Bytes that the committer is working on.
    committing: Option<usize>,
    pacing: CommitPacing,
    /// The watch hub was not told of some batch.
    watches_behind: bool,
    replacement: Replacement,
    /// What other members may compare.
    pub(super) hashes: HashDesk,
    peers: Peers,
    life: Lifeline,
}

/// Whom the applier talks to.
pub struct Peers {
    /// Takes key changes.
    pub index: Recipient<UpdateIndex>,
    /// Takes records.
    pub committer: Recipient<CommitRevisions>,
    /// Frees the memory of records that the database holds.
    pub forget: Recipient<ForgetRecords>,
    /// Is told what was applied, and what the database holds.
    pub raft: Recipient<ApplierProgress>,
    /// Is told of compactions.
    pub compactor: Recipient<CompactionAccepted>,
    /// Is told of leases.
    pub leases: Recipient<LeasesChanged>,
    /// Is told of changes.
    pub watches: Recipient<EventsApplied>,
    /// Readers' newest view.
    pub views: latest::Sender<Arc<Published>>,
    /// Whom a snapshot concerns.
    pub replace: ReplacePeers,
}

/// Whom the applier tells that a snapshot takes the place of the state.
pub struct ReplacePeers {
    /// Switches the database.
    pub committer: Recipient<ReplaceDatabase>,
    /// Switches the tree.
    pub index: Recipient<ReplaceTree>,
    /// Forgets its leases.
    pub leases: Recipient<LeasesReplaced>,
    /// Begins with another history.
    pub compactor: Recipient<HistoryReplaced>,
    /// Is told when it is done.
    pub raft: Recipient<StateReplaced>,
}

/// One applied batch on its way to being visible.
struct Batch {
    applied: LogPosition,
    window: Window,
    records: tail::Batch,
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

/// Puts a received snapshot in place of the state. No entries may follow before [`StateReplaced`] answers it; what was asked for
/// before is done first.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReplaceState {
    /// The snapshot, newer than all that was applied.
    pub received: Box<Received>,
}

/// The state is that of the snapshot, on disk and for readers.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StateReplaced {
    /// Its log position.
    pub applied: LogPosition,
}

/// Hands everything to the committer and answers when the database holds it; for a clean stop.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainTail;

/// What an applier begins with.
#[derive(Debug)]
pub struct ApplierState {
    /// The replicated state.
    pub machine: Machine,
    /// The index at that state.
    pub snapshot: Snapshot,
    /// The log position of that state.
    pub applied: LogPosition,
    /// The newest compaction that the database has begun.
    pub begun_compaction: Revision,
    /// The members at that position.
    pub members: Arc<Members>,
    /// Reads the database, which holds all of that state.
    pub stored: DbReader,
    /// Size of the database file, in bytes.
    pub file_bytes: u64,
    /// Bytes of it that hold records.
    pub used_bytes: u64,
}

impl Applier {
    /// An applier that goes on where `state` stands.
    pub fn new(state: ApplierState, pacing: CommitPacing, peers: Peers, life: Lifeline) -> Self {
        let (machine, applied) = (state.machine, state.applied);
        let window = Window {
            newest: machine.revision(),
            compacted: machine.compacted().max(state.begun_compaction),
        };
        Self {
            visible: applied,
            visible_window: window,
            alarms: Arc::new(machine.alarms().clone()),
            members: state.members,
            stored_through: window.newest,
            stored_applied: applied.index,
            begun_compaction: state.begun_compaction,
            stored_index: LogIndex(0),
            handed_over: applied.index,
            draining: Vec::new(),
            applied,
            snapshot: state.snapshot,
            tail: Tail::default(),
            tail_bytes: 0,
            stored: state.stored,
            file_bytes: state.file_bytes,
            used_bytes: state.used_bytes,
            unpublished: VecDeque::new(),
            uncommitted: CommitBatch::default(),
            uncommitted_records: 0,
            uncommitted_bytes: 0,
            committing: None,
            pacing,
            watches_behind: false,
            replacement: Replacement::None,
            hashes: HashDesk::new(applied.index, machine.state_hash()),
            machine,
            peers,
            life,
        }
    }
}

/// Why an entry cannot be applied. Every one of them ends the member: going on would make its state differ.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The entry does not hold what a proposer puts in it.
    #[error("log entry {index} holds no command")]
    Entry {
        /// Which entry.
        index: LogIndex,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The entry does not hold a membership.
    #[error("log entry {index} holds no membership: {source}")]
    Membership {
        /// Which entry.
        index: LogIndex,
        /// What is wrong with it.
        source: MembersError,
    },
    /// A record this member stored cannot be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The command in an entry that has one.
fn decode_command(committed: &CommittedEntry) -> Result<Option<Command>, ApplyError> {
    let entry = &committed.entry;
    if entry.kind != EntryKind::Command {
        return Ok(None);
    }
    let start = PROPOSAL_HEADER_BYTES.min(entry.data.len());
    codec::decode_shared("log command", &entry.data.slice(start..))
        .map(Some)
        .map_err(|source| ApplyError::Entry {
            index: entry.index,
            source,
        })
}

impl Actor for Applier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        ctx.run_interval(self.pacing.interval, |applier, _| {
            applier.commit();
            if applier.watches_behind {
                let published = applier.peers.views.borrow().clone();
                applier.tell_watches(tail::Batch::default(), published);
            }
        });
        self.publish(self.machine_window());
    }
}

impl Handler<ApplyEntries> for Applier {
    type Result = ();

    fn handle(&mut self, apply: ApplyEntries, _: &mut Self::Context) {
        hit(FailPoint::BeforeApply);
        let commands: Result<Vec<_>, _> = apply.entries.iter().map(decode_command).collect();
        let commands = match commands {
            Ok(commands) => commands,
            Err(error) => return self.cannot_apply(&error),
        };
        self.machine.expect(commands.iter().flatten());
        let mut answers = Vec::with_capacity(apply.entries.len());
        for (committed, command) in apply.entries.into_iter().zip(commands) {
            match self.apply(&committed.entry, command) {
                Ok(verdict) => answers.extend(committed.reply.zip(verdict)),
                Err(error) => return self.cannot_apply(&error),
            }
        }
        hit(FailPoint::AfterApply);
        self.hashes.settle();
        let changes = self.machine.take_changes();
        let records: tail::Batch = changes.records.into();
        self.keep_for_commit(&records, &changes.leases, changes.alarms);
        let through = self.machine.revision();
        self.unpublished.push_back(Batch {
            applied: self.applied,
            window: self.machine_window(),
            records,
            answers,
            leases: LeasesChanged {
                changes: changes.leases,
                term: self.applied.term,
            },
            compacted: changes.compacted,
        });
        let update = UpdateIndex {
            changes: changes.keys,
            through,
        };
        self.life.deliver(&self.peers.index, update);
    }
}

impl Handler<IndexPublished> for Applier {
    type Result = ();

    fn handle(&mut self, published: IndexPublished, _: &mut Self::Context) {
        self.machine
            .published(published.snapshot.clone(), published.through);
        let stale = mutated(Mutation::StaleIndex) && published.through.0 % 41 == 0;
        if !stale {
            self.snapshot = published.snapshot;
        }
        let batch = self.unpublished.pop_front();
        assert!(batch.is_some(), "the index publishes once for each batch");
        let Some(batch) = batch else { return };
        self.tail.push(batch.records.clone());
        let term_changed = batch.applied.term != self.visible.term;
        self.visible = batch.applied;
        // Before readers see the batch: who then asks for a lease of it is behind this message.
        if term_changed || !batch.leases.changes.is_empty() {
            self.life.deliver(&self.peers.leases, batch.leases);
        }
        hit(FailPoint::BeforePublish);
        let published = self.publish(batch.window);
        hit(FailPoint::AfterPublish);
        for (reply, verdict) in batch.answers {
            reply.send(verdict.map_err(RequestError::Kv));
        }
        if !batch.records.is_empty() {
            self.tell_watches(batch.records, published);
        }
        let compacts = batch.compacted.is_some();
        if let Some(revision) = batch.compacted {
            let decision = Decision {
                revision,
                index: batch.applied.index,
            };
            self.life
                .deliver(&self.peers.compactor, CompactionAccepted(decision));
        }
        self.report_progress();
        // A compaction goes on once the database knows of it.
        if compacts
            || self.uncommitted_records >= self.pacing.records_max
            || self.uncommitted_bytes >= self.pacing.bytes_max
        {
            self.commit();
        }
        self.replace_database();
    }
}

impl Handler<Committed> for Applier {
    type Result = ();

    fn handle(&mut self, committed: Committed, _: &mut Self::Context) {
        self.stored = committed.reader;
        self.stored_applied = committed.applied.index;
        self.file_bytes = committed.file_bytes;
        self.used_bytes = committed.used_bytes;
        let mut spent = Tail::default();
        if let Some(through) = committed.through {
            spent = self.tail.clone();
            self.tail.drop_through(Rev::new(through, u32::MAX));
            self.tail_bytes -= self.committing.take().unwrap_or_default();
            self.stored_through = through;
            self.stored_index = committed.log_needed_after;
            for waiting in self.draining.drain(..) {
                waiting.send(()).unwrap_or_default();
            }
            self.report_progress();
        }
        let window = self.visible_window;
        self.publish(window);
        if !spent.is_empty() {
            let forget = ForgetRecords { records: spent };
            self.life.deliver(&self.peers.forget, forget);
        }
    }
}

impl Handler<ReplaceState> for Applier {
    type Result = ();

    fn handle(&mut self, replace: ReplaceState, _: &mut Self::Context) {
        self.replacement = Replacement::wanted(replace.received, self.applied);
        self.replace_database();
    }
}

impl Handler<DatabaseReplaced> for Applier {
    type Result = ();

    fn handle(&mut self, replaced: DatabaseReplaced, _: &mut Self::Context) {
        self.replace_state(replaced);
    }
}

impl Handler<ListLeaseKeys> for Applier {
    type Result = Option<Vec<Bytes>>;

    fn handle(&mut self, list: ListLeaseKeys, _: &mut Self::Context) -> Self::Result {
        let lease = self.machine.leases().get(list.id)?;
        Some(lease.keys.iter().cloned().collect())
    }
}

impl Handler<DrainTail> for Applier {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DrainTail, _: &mut Self::Context) -> Self::Result {
        if self.committing.is_none() && !self.commit() {
            return Box::pin(async {});
        }
        let (done, waiting) = oneshot::channel();
        self.draining.push(done);
        Box::pin(async move { waiting.await.unwrap_or_default() })
    }
}

impl Applier {
    fn cannot_apply(&self, error: &ApplyError) {
        let fail_stop = self.life.fail_stop();
        fail_stop.because("cannot apply a committed entry", error);
    }

    /// Applies one entry, with the command in it. The verdict is there for commands alone.
    fn apply(
        &mut self,
        entry: &Entry,
        command: Option<Command>,
    ) -> Result<Option<Verdict>, ApplyError> {
        assert_eq!(
            entry.index,
            self.applied.index.next(),
            "entries are applied in log order, each once"
        );
        self.applied = entry.position();
        let at = entry.position();
        let verdict = command
            .map(|command| self.apply_command(&command, at))
            .transpose()?;
        match entry.kind {
            EntryKind::Noop => self.machine.pass(at),
            EntryKind::Membership => {
                self.machine.pass(at);
                self.take_membership(entry)?;
            }
            EntryKind::Command => {}
        }
        self.hashes.applied(entry.index, self.machine.state_hash());
        Ok(verdict)
    }

    fn apply_command(&mut self, command: &Command, at: LogPosition) -> Result<Verdict, ApplyError> {
        let past = Past {
            tail: &self.tail,
            unpublished: &self.unpublished,
            stored: &self.stored,
        };
        if mutated(Mutation::ApplyTwice) && at.index.0.is_multiple_of(61) {
            drop(self.machine.apply(command, at, &past)?);
        }
        Ok(self.machine.apply(command, at, &past)?)
    }

    /// The membership after a change; it becomes durable with the log position of the change.
    fn take_membership(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        hit(FailPoint::BeforeMembershipApply);
        let members = Members::decode(&entry.data).map_err(|source| ApplyError::Membership {
            index: entry.index,
            source,
        })?;
        self.members = Arc::new(members);
        self.uncommitted.meta = membership_meta(&entry.data);
        hit(FailPoint::AfterMembershipApply);
        Ok(())
    }

    fn machine_window(&self) -> Window {
        Window {
            newest: self.machine.revision(),
            compacted: self.machine.compacted().max(self.begun_compaction),
        }
    }

    fn publish(&mut self, window: Window) -> Arc<Published> {
        self.visible_window = window;
        let view = View {
            window,
            keys: self.snapshot.clone(),
            tail: self.tail.clone(),
            stored: Arc::new(self.stored.clone()),
        };
        let published = Published {
            view,
            applied: self.visible,
            alarms: self.alarms.clone(),
            members: self.members.clone(),
            stored: self.stored.clone(),
            stored_through: self.stored_through,
            stored_applied: self.stored_applied,
            file_bytes: self.file_bytes,
            used_bytes: self.used_bytes,
        };
        let published = Arc::new(published);
        self.peers.views.send_replace(published.clone());
        published
    }

    /// Tells the watch hub of a batch. It is not waited for: what does not fit its mailbox it will read from history, once it
    /// is told that there is something new.
    fn tell_watches(&mut self, records: tail::Batch, published: Arc<Published>) {
        let told = self
            .peers
            .watches
            .try_send(EventsApplied { records, published });
        self.watches_behind = matches!(told, Err(SendError::Full(_)));
    }

    /// Acknowledges what is visible, unless too much waits for the database.
    fn report_progress(&self) {
        if self.tail_bytes > TAIL_BYTES_MAX {
            return;
        }
        let progress = ApplierProgress {
            applied: self.visible.index,
            stored: self.stored_index,
        };
        self.life.deliver(&self.peers.raft, progress);
    }

    fn keep_for_commit(&mut self, records: &tail::Batch, leases: &[LeaseChange], alarms: bool) {
        let bytes: usize = records.iter().map(|record| record.kv.len()).sum();
        self.uncommitted_bytes += bytes;
        self.tail_bytes += bytes;
        self.uncommitted_records += records.len();
        self.uncommitted.records.push(records.clone());
        let rows = &mut self.uncommitted.leases;
        for change in leases {
            match change {
                LeaseChange::Granted { id, row }
                | LeaseChange::Checkpointed { id, row }
                | LeaseChange::Renewed {
                    id,
                    row,
                    cleared: true,
                } => rows.push((*id, Some(codec::encode(row)))),
                LeaseChange::Renewed { cleared: false, .. } => {}
                LeaseChange::Revoked { id } => rows.push((*id, None)),
            }
        }
        if alarms {
            self.alarms = Arc::new(self.machine.alarms().clone());
        }
        self.uncommitted.applied = self.applied;
    }

    /// Hands what has gathered to the committer, unless it is busy; tells whether it has now something to do.
    fn commit(&mut self) -> bool {
        let nothing_new = self.uncommitted.applied.index <= self.handed_over
            // What a snapshot replaces is not stored any more: it holds all of it.
            || self.replacement.is_under_way();
        if self.committing.is_some() || nothing_new {
            return self.committing.is_some();
        }
        let mut batch = std::mem::take(&mut self.uncommitted);
        let through = self.machine.revision();
        batch.meta.extend(store_meta(&self.machine));
        self.handed_over = batch.applied.index;
        self.uncommitted_records = 0;
        self.committing = Some(std::mem::take(&mut self.uncommitted_bytes));
        self.life
            .deliver(&self.peers.committer, CommitRevisions { batch, through });
        true
    }
}

impl Applier {
    /// Once every applied batch is visible, the database can go.
    fn replace_database(&mut self) {
        if self.unpublished.is_empty()
            && let Some(db) = self.replacement.begin()
        {
            self.life
                .deliver(&self.peers.replace.committer, ReplaceDatabase { db });
        }
    }

    /// The database holds the snapshot: so does everything else from now on. Each actor that has a share of the state gets the
    /// new one before readers see it.
    fn replace_state(&mut self, replaced: DatabaseReplaced) {
        let (state, applied) = self.replacement.end();
        let (restored, tree) = (state.restored, state.tree);
        self.snapshot = tree.snapshot();
        let peers = &self.peers.replace;
        self.life.deliver(&peers.index, ReplaceTree { tree });
        let leases = LeasesReplaced(LeaseState::of(&restored, applied.term));
        self.life.deliver(&peers.leases, leases);
        let history = CompactionState {
            wanted: Decision {
                revision: restored.compacted,
                index: applied.index,
            },
            stored: replaced.compaction,
        };
        self.life
            .deliver(&peers.compactor, HistoryReplaced(history));
        self.machine = Machine::new(restored, self.snapshot.clone());
        let hash = self.machine.state_hash();
        self.hashes.applied(applied.index, hash);
        self.alarms = Arc::new(self.machine.alarms().clone());
        self.members = Arc::new(state.members);
        (self.applied, self.visible) = (applied, applied);
        (self.stored_index, self.handed_over) = (applied.index, applied.index);
        self.stored_through = self.machine.revision();
        self.stored_applied = applied.index;
        self.begun_compaction = begun_compaction(replaced.compaction);
        self.tail = Tail::default();
        self.tail_bytes = 0;
        self.uncommitted = CommitBatch::default();
        self.uncommitted_records = 0;
        self.uncommitted_bytes = 0;
        self.committing = None;
        self.stored = replaced.reader;
        self.file_bytes = replaced.file_bytes;
        self.used_bytes = replaced.used_bytes;
        for waiting in self.draining.drain(..) {
            waiting.send(()).unwrap_or_default();
        }
        let published = self.publish(self.machine_window());
        // Watchers read what they missed from history, or learn that it is compacted.
        self.tell_watches(tail::Batch::default(), published);
        self.life
            .deliver(&self.peers.replace.raft, StateReplaced { applied });
    }
}

/// The revision of a compaction in a database, whether it is complete or not.
pub fn begun_compaction(stored: Option<(Revision, Option<Rev>)>) -> Revision {
    stored.map_or(Revision::NEVER_COMPACTED, |(through, _)| through)
}

/// Records the machine has given out: applied but not published, published but not in the database, in the database.
struct Past<'a> {
    tail: &'a Tail,
    unpublished: &'a VecDeque<Batch>,
    stored: &'a DbReader,
}

impl Records for Past<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        if let Some(record) = self.tail.get(rev) {
            return Ok(record.kv.clone());
        }
        let mut batches = self.unpublished.iter();
        match batches.find_map(|batch| tail::find(&batch.records, rev)) {
            Some(record) => Ok(record.kv.clone()),
            None => self.stored.get(rev),
        }
    }
}
