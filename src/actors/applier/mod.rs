//! Applier: turns committed log entries into revisions, in log order.
//!
//! One batch of entries goes through these steps: wait for the stored values that its commands depend on (`incoming`) → apply
//! every entry (`state`) → send the index the changes → the index publishes a snapshot → publish the read view (`visible`) → send
//! the answers (`answers`). The records gather for the committer, which writes them to the database in large batches (`storing`).
//!
//! The applier reads no clock into the state. It never waits for the disk: values that commands depend on are read ahead on
//! another thread, and what only an answer needs is read after the entry is visible. Reading ahead can miss values: an entry
//! depends on more than are read ahead, its caller may give it only because of entries of the same batch, or the database has
//! stored a value meanwhile and memory has it no longer. So each entry that may depend on values is checked once more when it is
//! its turn. If some are missing, the batch is split before it, and another thread judges the entry (`kv::judged`) on the keys
//! and records as of then, while nothing is applied.

mod answers;
mod batch;
mod incoming;
pub(super) mod noted;
mod state;
#[cfg(test)]
mod stored_values;
mod storing;
#[cfg(test)]
mod testing;
mod visible;

pub use state::ApplyError;
pub use storing::CommitPacing;

use answers::{Answer, Answers};
use batch::IncomingBatch;
use incoming::{Incoming, Prefetched};
use state::{AppliedState, DecodedEntry, Past, Recent, Shared, Values, WholePast};
use storing::Storing;
use visible::{Database, Visible};

use super::{
    apply_messages::{ApplierProgress, ApplyEntries, ReplaceState, StateReplaced},
    background::in_background,
    committer::{CommitRevisions, Committed, DatabaseReplaced, ForgetRecords, ReplaceDatabase},
    compactor::{CompactionAccepted, CompactionState, Decision, HistoryReplaced},
    fail_stop::Lifeline,
    held::{self, HeldBytes, HeldPart},
    index::{IndexPublished, ReplaceTree, UpdateIndex},
    installation::Installation,
    latest,
    lease_manager::{LeaseState, LeasesChanged, LeasesReplaced},
    lease_messages::AskLeaseKeys,
    load::store_meta,
    members::Members,
    published::Published,
    request_error::RequestError,
    state_check::{HashDesk, ReportStateHash},
    watch_hub::EventsApplied,
};
use crate::{
    auth::AuthError,
    clock,
    failpoint::{FailPoint, hit},
    kv::{
        authorize::allow_lease,
        index::Snapshot,
        judged::Judged,
        machine::Machine,
        range::RevisionWindow,
        records::ReadError,
        tail::{self, Tail},
    },
    mutation::{Mutation, mutated},
    storage::db::DbReader,
    types::{LogIndex, LogPosition, Rev, Revision},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Messages that may wait: the Raft node keeps two batches under way; the index, the committer and the timer add one each, and
/// questions for the keys of leases four.
const MAILBOX_MAX: usize = 64;

/// Records of entries that were delivered to the applier already: twice what consensus delivers at once, since a record has more
/// bytes than its command.
const DELIVERED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How often it looks for callers whose time is up.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(250);

/// Owns the replicated state. Invariant: `visible.applied <= state.applied`.
pub struct Applier {
    /// Batches that are not applied yet.
    incoming: Incoming<IncomingBatch>,
    /// The state after the newest applied entry.
    state: AppliedState,
    /// Applied batches whose snapshot is not published yet, oldest first.
    unpublished: VecDeque<AppliedBatch>,
    visible: Visible,
    answers: Answers,
    /// What the database does not hold yet.
    storing: Storing,
    installation: Installation,
    /// What other members may compare.
    hashes: HashDesk,
    /// The watch hub's mailbox was full for some batch.
    watches_behind: bool,
    held: Held,
    peers: ApplierPeers,
    life: Lifeline,
}

/// The actors that the applier sends to.
pub struct ApplierPeers {
    pub index: Recipient<UpdateIndex>,
    pub committer: Recipient<CommitRevisions>,
    /// Frees the memory of records that the database holds.
    pub forget: Recipient<ForgetRecords>,
    /// Learns what was applied, and what the database holds.
    pub raft: Recipient<ApplierProgress>,
    pub compactor: Recipient<CompactionAccepted>,
    pub leases: Recipient<LeasesChanged>,
    pub watches: Recipient<EventsApplied>,
    pub views: latest::Sender<Arc<Published>>,
    /// Tells front ends, without a lock, whether the newest view has authentication on.
    pub auth_on: Arc<AtomicBool>,
    /// Counts what the applier holds.
    pub held: HeldBytes,
    /// The largest entry of the log, in bytes.
    pub entry_bytes_max: usize,
    pub replace: ReplacePeers,
}

/// The actors that replace their part of the state when a snapshot is installed.
pub struct ReplacePeers {
    pub committer: Recipient<ReplaceDatabase>,
    pub index: Recipient<ReplaceTree>,
    pub leases: Recipient<LeasesReplaced>,
    /// Begins with another history.
    pub compactor: Recipient<HistoryReplaced>,
    /// Learns when the installation is complete.
    pub raft: Recipient<StateReplaced>,
}

/// The counts of what an applier holds.
struct Held {
    unstored: Arc<HeldPart>,
    noted: Arc<HeldPart>,
}

impl Held {
    fn new(storing: &Storing, state: &AppliedState, peers: &ApplierPeers) -> Self {
        // What was delivered before the bound was reached is applied all the same. A deletion of many keys counts by its records,
        // a change of users and roles by its rows.
        let delivered = held::bound(DELIVERED_BYTES_MAX) + 2 * peers.entry_bytes_max;
        let unstored = storing.waiting_bytes_max() + delivered;
        Self {
            unstored: peers
                .held
                .part("records and rows that the database does not hold", unstored),
            noted: peers
                .held
                .part("notes for answers", state.noted_bytes_max()),
        }
    }
}

/// One applied batch on its way to being visible.
struct AppliedBatch {
    applied: LogPosition,
    window: RevisionWindow,
    shared: Shared,
    records: tail::RecordBatch,
    answers: Vec<Answer>,
    leases: LeasesChanged,
    compacted: Option<Revision>,
    /// Whether users, roles or tokens changed.
    auth_changed: bool,
}

/// Hands everything to the committer and answers when the database holds it; for a clean stop.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DrainTail;

/// What an applier begins with.
#[derive(Debug)]
pub struct ApplierState {
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
    pub fn new(
        state: ApplierState,
        pacing: CommitPacing,
        peers: ApplierPeers,
        life: Lifeline,
    ) -> Self {
        let (machine, applied) = (state.machine, state.applied);
        let hashes = HashDesk::new(applied.index, machine.state_hash());
        let database = Database {
            reader: state.stored,
            file_bytes: state.file_bytes,
            used_bytes: state.used_bytes,
        };
        let (keys, begun) = (state.snapshot, state.begun_compaction);
        let state = AppliedState::new(machine, applied, state.members, begun);
        let storing = Storing::new(pacing, applied, LogIndex(0), state.machine.revision());
        Self {
            held: Held::new(&storing, &state, &peers),
            incoming: Incoming::default(),
            unpublished: VecDeque::new(),
            visible: Visible::new(&state, keys, database),
            answers: Answers::default(),
            storing,
            state,
            installation: Installation::None,
            hashes,
            watches_behind: false,
            peers,
            life,
        }
    }
}

impl Actor for Applier {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
        ctx.run_interval(self.storing.pacing().interval, |applier, _| {
            applier.commit();
            if applier.watches_behind {
                let published = applier.peers.views.borrow().clone();
                applier.notify_watches(tail::RecordBatch::default(), published);
            }
        });
        ctx.run_interval(EXPIRY_INTERVAL, |applier, _| applier.expire());
        self.publish();
    }
}

impl Handler<ApplyEntries> for Applier {
    type Result = ();

    fn handle(&mut self, apply: ApplyEntries, ctx: &mut Self::Context) {
        let entries = apply.entries.into_iter().map(DecodedEntry::new);
        let entries: Result<VecDeque<_>, _> = entries.collect();
        match entries {
            Ok(entries) => {
                for batch in IncomingBatch::of(entries) {
                    self.incoming.push(batch);
                }
            }
            Err(error) => return self.cannot_apply(&error),
        }
        self.apply_incoming(ctx);
    }
}

impl Handler<IndexPublished> for Applier {
    type Result = ();

    fn handle(&mut self, published: IndexPublished, ctx: &mut Self::Context) {
        let machine = &mut self.state.machine;
        machine.published(published.snapshot.clone(), published.through);
        let stale = mutated(Mutation::StaleIndex) && published.through.0 % 41 == 0;
        if !stale {
            self.visible.keys = published.snapshot;
        }
        let batch = self.unpublished.pop_front();
        assert!(batch.is_some(), "the index publishes once for each batch");
        let Some(batch) = batch else { return };
        let compacts = batch.compacted.is_some() && !mutated(Mutation::CompactBeforeState);
        self.make_visible(batch);
        self.report_progress();
        self.count_held();
        // A compaction goes on once the database holds the entry that decided it.
        if compacts || self.storing.is_due() {
            self.commit();
        }
        self.apply_incoming(ctx);
        self.replace_database();
    }
}

impl Handler<Committed> for Applier {
    type Result = ();

    fn handle(&mut self, committed: Committed, ctx: &mut Self::Context) {
        self.visible.database = Database {
            reader: committed.reader,
            file_bytes: committed.file_bytes,
            used_bytes: committed.used_bytes,
        };
        self.storing.stored(committed.applied.index);
        let mut spent = Tail::default();
        if let Some(through) = committed.through {
            spent = self.visible.stored(through);
            self.storing.committed(through, committed.log_needed_after);
            if self.storing.is_drained() || !self.commit() {
                self.storing.drained();
            }
            self.report_progress();
        }
        self.count_held();
        self.publish();
        if !spent.is_empty() {
            let forget = ForgetRecords { records: spent };
            self.life.deliver(&self.peers.forget, forget);
        }
        self.apply_incoming(ctx);
        self.replace_database();
    }
}

impl Handler<ReplaceState> for Applier {
    type Result = ();

    fn handle(&mut self, replace: ReplaceState, ctx: &mut Self::Context) {
        self.installation = Installation::wanted(replace.received, self.state.applied);
        self.apply_incoming(ctx);
        self.replace_database();
    }
}

impl Handler<DatabaseReplaced> for Applier {
    type Result = ();

    fn handle(&mut self, replaced: DatabaseReplaced, _: &mut Self::Context) {
        self.replace_state(replaced);
    }
}

impl Handler<AskLeaseKeys> for Applier {
    type Result = Result<Option<Vec<Bytes>>, AuthError>;

    fn handle(&mut self, ask: AskLeaseKeys, _: &mut Self::Context) -> Self::Result {
        let (auth, leases) = (self.state.machine.auth(), self.state.machine.leases());
        allow_lease(auth, leases, &ask.caller, ask.id, ask.right)?;
        let lease = leases.get(ask.id);
        Ok(lease.map(|lease| {
            if ask.list {
                lease.keys.iter().cloned().collect()
            } else {
                Vec::new()
            }
        }))
    }
}

impl Handler<ReportStateHash> for Applier {
    type Result = ();

    fn handle(&mut self, asked: ReportStateHash, _: &mut Self::Context) {
        self.hashes.answer(asked.index, asked.reply);
    }
}

impl Handler<DrainTail> for Applier {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: DrainTail, _: &mut Self::Context) -> Self::Result {
        if !self.storing.is_committing() && !self.commit() {
            return Box::pin(async {});
        }
        let waiting = self.storing.drain();
        Box::pin(async move { waiting.await.unwrap_or_default() })
    }
}

impl Applier {
    /// Answers the callers whose time is up while a read of the database stalls. Their entries are applied all the same.
    fn expire(&mut self) {
        let now = clock::now();
        let batches = self.incoming.batches();
        let entries = batches.flat_map(|batch| batch.entries.iter_mut());
        for caller in entries.filter_map(|entry| entry.committed.take_expired(now)) {
            caller.reply.send(Err(RequestError::TimedOut));
        }
        self.answers.expire(now);
    }

    /// Stops the member. A program that embeds it may go on: then nothing more is applied, for the state is incomplete.
    fn cannot_apply(&mut self, error: &ApplyError) {
        self.incoming.stop();
        let fail_stop = self.life.fail_stop();
        fail_stop.because("cannot apply a committed entry", error);
    }

    /// Applies what can be applied now: all that waits, up to an entry that needs values from the database, or to a batch that
    /// has to wait for the one before it.
    fn apply_incoming(&mut self, ctx: &mut Context<Self>) {
        while self.may_go_on()
            && let Some(batch) = self.incoming.next()
        {
            let reads = self.stored_reads(&batch);
            if reads.is_empty() {
                self.apply_batch(batch, ctx);
            } else {
                self.read_ahead(batch, reads, ctx);
            }
        }
    }

    /// Whether the next batch may be applied. One whose entries may depend on stored values comes once the one before it is
    /// published, so that other actors of this thread have their turn, and once the database is not too far behind, since its
    /// records can be much longer than its entries.
    fn may_go_on(&mut self) -> bool {
        let reads = |batch: &IncomingBatch| batch.reading > 0;
        if !self.incoming.first().is_some_and(reads) {
            return true;
        }
        if !self.unpublished.is_empty() {
            return false;
        }
        // What a snapshot replaces is not stored any more.
        if self.storing.has_room() || self.installation.is_under_way() {
            return true;
        }
        self.commit();
        false
    }

    /// The records that applying `batch` needs and that are not in memory.
    fn stored_reads(&self, batch: &IncomingBatch) -> BTreeSet<Rev> {
        if batch.values.is_full() {
            return BTreeSet::new();
        }
        let entries = batch.entries.iter().filter(|entry| entry.reads_values);
        let commands = entries.filter_map(|entry| entry.command.as_ref());
        let mut reads = self.state.machine.value_reads(commands);
        if !reads.is_empty() {
            let past = past(&self.visible, &self.unpublished, &batch.values);
            reads.retain(|rev| past.in_memory(*rev).is_none());
        }
        reads
    }

    fn read_ahead(
        &mut self,
        mut batch: IncomingBatch,
        reads: BTreeSet<Rev>,
        ctx: &mut Context<Self>,
    ) {
        let stored = self.visible.database.reader.clone();
        let values = std::mem::take(&mut batch.values);
        let read = move || values.read(&stored, reads);
        let apply =
            |applier: &mut Self, mut batch: IncomingBatch, values, ctx: &mut Context<Self>| {
                batch.values = values;
                applier.apply_batch(batch, ctx);
            };
        self.read_elsewhere(batch, read, apply, ctx);
    }

    /// Applies a batch up to an entry whose values are not all in memory; then has that entry judged.
    fn apply_batch(&mut self, mut batch: IncomingBatch, ctx: &mut Context<Self>) {
        match self.apply(&mut batch) {
            Ok(()) if batch.entries.is_empty() => {}
            Ok(()) => self.judge_first(batch, ctx),
            Err(error) => self.cannot_apply(&error),
        }
    }

    /// Has another thread judge the first entry of a batch. Everything before it is applied, and nothing else meanwhile.
    fn judge_first(&mut self, batch: IncomingBatch, ctx: &mut Context<Self>) {
        let first = batch.entries.front();
        let command = first.and_then(|entry| entry.command.clone());
        assert!(command.is_some(), "only a command depends on values");
        let Some(command) = command else { return };
        let keys = self.state.machine.keys().clone();
        let records = WholePast {
            recent: recent(&self.visible, &self.unpublished),
            stored: self.visible.database.reader.clone(),
        };
        let judge = move || Judged::new(&command, &keys, &records);
        let apply =
            |applier: &mut Self, batch: IncomingBatch, judged: Judged, _: &mut Context<Self>| {
                applier.apply_judged(batch, &judged);
            };
        self.read_elsewhere(batch, judge, apply, ctx);
    }

    /// Reads on a thread that may wait for the disk. Meanwhile `batch` waits, and all batches behind it; `then` goes on with it.
    fn read_elsewhere<T: Send + 'static>(
        &mut self,
        batch: IncomingBatch,
        read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
        then: impl FnOnce(&mut Self, IncomingBatch, T, &mut Context<Self>) + 'static,
        ctx: &mut Context<Self>,
    ) {
        self.incoming.begin_reading(batch);
        let reading = in_background(read);
        ctx.spawn(reading.into_actor(self).map(move |read, applier, ctx| {
            let batch = applier.incoming.end_reading().unwrap_or_default();
            match read {
                Ok(Ok(found)) => then(applier, batch, found, ctx),
                Ok(Err(error)) => return applier.cannot_apply(&error.into()),
                // The thread panicked, or the process ends.
                Err(_) => {
                    applier.incoming.stop();
                    let fail_stop = applier.life.fail_stop();
                    return fail_stop.now("the thread that reads stored values ended early");
                }
            }
            applier.apply_incoming(ctx);
            applier.replace_database();
        }));
    }

    /// Applies the entries of a batch up to one whose values are not all in memory. That one and those after it stay in it.
    fn apply(&mut self, batch: &mut IncomingBatch) -> Result<(), ApplyError> {
        hit(FailPoint::BeforeApply);
        let entries = batch.entries.iter();
        let commands = entries.filter_map(|entry| entry.command.as_ref());
        self.state.machine.prefetch_keys(commands);
        let (mut answers, before) = (Vec::new(), self.state.applied);
        let past = past(&self.visible, &self.unpublished, &batch.values);
        while let Some(entry) = batch
            .entries
            .pop_front_if(|entry| self.state.can_apply(entry, &past))
        {
            let membership = entry.membership().cloned();
            answers.extend(self.state.apply(entry, Values::InMemory(&past))?);
            if let Some(membership) = membership {
                self.storing.add_membership(&membership);
            }
            let hash = self.state.machine.state_hash();
            self.hashes.applied(self.state.applied.index, hash);
        }
        hit(FailPoint::AfterApply);
        if self.state.applied != before {
            self.hashes.settle();
            self.send_to_index(answers);
        }
        Ok(())
    }

    /// Applies the first entry of a batch, which is judged, as a batch of its own. The rest is next.
    fn apply_judged(&mut self, mut batch: IncomingBatch, judged: &Judged) {
        hit(FailPoint::BeforeApply);
        let first = batch.entries.pop_front();
        assert!(first.is_some(), "the entry that was judged still waits");
        let Some(first) = first else { return };
        match self.state.apply(first, Values::Judged(judged)) {
            Ok(answer) => {
                let hash = self.state.machine.state_hash();
                self.hashes.applied(self.state.applied.index, hash);
                hit(FailPoint::AfterApply);
                self.hashes.settle();
                self.send_to_index(answer.into_iter().collect());
            }
            Err(error) => return self.cannot_apply(&error),
        }
        if !batch.entries.is_empty() {
            self.incoming.put_back(batch);
        }
    }

    /// Sends the changes of the batch that was just applied.
    fn send_to_index(&mut self, answers: Vec<Answer>) {
        let (changes, applied) = (self.state.take_changes(), self.state.applied);
        let auth_changed = !changes.auth.is_empty();
        self.storing.add_rows(changes.auth);
        let records: tail::RecordBatch = changes.records.into();
        self.storing.add(&records, &changes.leases, applied);
        self.unpublished.push_back(AppliedBatch {
            applied,
            window: self.state.window(),
            shared: self.state.shared.clone(),
            records,
            answers,
            leases: LeasesChanged {
                changes: changes.leases,
                term: applied.term,
            },
            compacted: changes.compacted,
            auth_changed,
        });
        let update = UpdateIndex {
            changes: changes.keys,
            through: self.state.machine.revision(),
        };
        self.life.deliver(&self.peers.index, update);
        self.count_held();
    }

    fn count_held(&self) {
        self.held.unstored.set(self.storing.waiting_bytes());
        self.held.noted.set(self.state.noted_bytes());
    }

    /// Publishes a batch whose keys are in the index's newest snapshot, and answers its callers.
    fn make_visible(&mut self, batch: AppliedBatch) {
        let term_changed = batch.applied.term != self.visible.applied.term;
        let records = batch.records;
        self.visible
            .add(batch.applied, batch.window, records.clone(), batch.shared);
        // Before readers see the batch: a question for one of its leases then comes after this message.
        if term_changed || !batch.leases.changes.is_empty() {
            self.life.deliver(&self.peers.leases, batch.leases);
        }
        hit(FailPoint::BeforePublish);
        let published = self.publish();
        hit(FailPoint::AfterPublish);
        self.answers.send(batch.answers, &published);
        // A right that was taken away ends watches.
        if !records.is_empty() || batch.auth_changed {
            self.notify_watches(records, published);
        }
        if let Some(revision) = batch.compacted {
            let decision = Decision {
                revision,
                index: self.visible.applied.index,
            };
            self.life
                .deliver(&self.peers.compactor, CompactionAccepted(decision));
        }
    }

    fn publish(&mut self) -> Arc<Published> {
        let on = self.visible.shared.auth.is_enabled();
        if on {
            self.peers.auth_on.store(true, Ordering::Release);
        }
        let published = self.visible.publish(&self.storing, &self.peers.views);
        if !on {
            self.peers.auth_on.store(false, Ordering::Release);
        }
        published
    }

    /// Sends the watch hub a batch. If its mailbox is full, the hub reads the batch from history once it gets a newer
    /// revision.
    fn notify_watches(&mut self, records: tail::RecordBatch, published: Arc<Published>) {
        let sent = self
            .peers
            .watches
            .try_send(EventsApplied { records, published });
        self.watches_behind = matches!(sent, Err(SendError::Full(_)));
    }

    /// Acknowledges the visible entries, unless too much waits for the database.
    fn report_progress(&self) {
        if self.storing.has_room() {
            let progress = ApplierProgress {
                applied: self.visible.applied.index,
                stored: self.storing.stored_index(),
            };
            self.life.deliver(&self.peers.raft, progress);
        }
    }

    /// Hands what has gathered to the committer, unless it is busy; returns whether it has something to do now.
    fn commit(&mut self) -> bool {
        // What a snapshot replaces is not stored any more: the snapshot holds all of it.
        if self.installation.is_under_way() {
            return self.storing.is_committing();
        }
        let machine = &self.state.machine;
        let through = machine.revision();
        let batch = self.storing.take_commit(|| store_meta(machine));
        if let Some(batch) = batch {
            self.life
                .deliver(&self.peers.committer, CommitRevisions { batch, through });
        }
        self.storing.is_committing()
    }
}

impl Applier {
    /// Once every batch is applied and visible, the database can be replaced.
    fn replace_database(&mut self) {
        if self.incoming.is_empty()
            && self.unpublished.is_empty()
            && let Some(db) = self.installation.begin()
        {
            self.life
                .deliver(&self.peers.replace.committer, ReplaceDatabase { db });
        }
    }

    /// The database is the snapshot's: everything else becomes the snapshot's too. Each actor that has a share of the state gets
    /// its new share before readers see the new state.
    fn replace_state(&mut self, replaced: DatabaseReplaced) {
        let (state, applied) = self.installation.end();
        let (loaded, tree) = (state.loaded, state.tree);
        let keys = tree.snapshot();
        let peers = &self.peers.replace;
        self.life.deliver(&peers.index, ReplaceTree { tree });
        let leases = LeasesReplaced(LeaseState::of(&loaded, applied.term));
        self.life.deliver(&peers.leases, leases);
        let history = CompactionState {
            wanted: Decision {
                revision: loaded.compacted,
                index: applied.index,
            },
            stored: replaced.compaction,
        };
        self.life
            .deliver(&peers.compactor, HistoryReplaced(history));
        let machine = Machine::new(loaded, keys.clone());
        let begun = begun_compaction(replaced.compaction);
        self.state = AppliedState::new(machine, applied, Arc::new(state.members), begun);
        let database = Database {
            reader: replaced.reader,
            file_bytes: replaced.file_bytes,
            used_bytes: replaced.used_bytes,
        };
        self.visible = Visible::new(&self.state, keys, database);
        let machine = &self.state.machine;
        self.storing.replaced(applied, machine.revision());
        self.hashes.applied(applied.index, machine.state_hash());
        let published = self.publish();
        // Watchers read what they missed from history, or learn that it is compacted.
        self.notify_watches(tail::RecordBatch::default(), published);
        self.life
            .deliver(&self.peers.replace.raft, StateReplaced { applied });
    }
}

/// The records before the batch that is applied next, as far as they are in memory.
fn past<'a>(
    visible: &Visible,
    unpublished: &VecDeque<AppliedBatch>,
    prefetched: &'a Prefetched,
) -> Past<'a> {
    Past {
        recent: recent(visible, unpublished),
        prefetched,
    }
}

fn recent(visible: &Visible, unpublished: &VecDeque<AppliedBatch>) -> Recent {
    let records = |batch: &AppliedBatch| batch.records.clone();
    Recent {
        tail: visible.tail.clone(),
        unpublished: unpublished.iter().map(records).collect(),
    }
}

/// The revision of a compaction in a database, whether it is complete or not.
pub fn begun_compaction(stored: Option<(Revision, Option<Rev>)>) -> Revision {
    if mutated(Mutation::CompactBeforeState) {
        return Revision::NEVER_COMPACTED;
    }
    stored.map_or(Revision::NEVER_COMPACTED, |(through, _)| through)
}
