//! Committer: owns the database's one write transaction.
//!
//! It commits batches of applied revisions after the applier has published them, and removes compacted records in small steps. It
//! blocks on the disk, so it has an arbiter to itself. No request waits for it: the WAL already holds what it has not committed
//! yet.

use super::fail_stop::{FailStop, Lifeline};
use crate::{
    clock,
    failpoint::{FailPoint, hit},
    kv::{
        command::EncodedKv,
        hash::CompactionHasher,
        index::Snapshot,
        record,
        records::{ReadError, Records},
        tail::Tail,
        view::StoredRecords,
        watch::Visit,
    },
    mutation::{Mutation, mutated},
    storage::db::{CommitBatch, CompactSpan, Db, DbError, DbReader, DbSite, OnDamage},
    types::{LogIndex, LogPosition, RecordKind, Rev, Revision},
};
use actix::prelude::*;
use std::time::Duration;

/// Messages that may wait: one batch and one compaction step.
const MAILBOX_MAX: usize = 16;

/// How often the committer checks whether a replaced database still has readers.
const RETIRE_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Committer {
    db: Db,
    site: DbSite,
    /// Databases that snapshots replaced, for as long as readers use them.
    retired: Vec<Db>,
    applier: Recipient<Committed>,
    replaced: Recipient<DatabaseReplaced>,
    on_damage: OnDamage,
    life: Lifeline,
}

/// Stops a member that cannot read its own database. Its next start names the damage.
pub fn stop_on_damage(fail_stop: &FailStop) -> OnDamage {
    let fail_stop = fail_stop.clone();
    OnDamage::new(move |error| fail_stop.because("cannot read the database", error))
}

impl Committer {
    /// A committer that reports to `applier`.
    pub fn new(
        db: Db,
        site: DbSite,
        applier: Recipient<Committed>,
        replaced: Recipient<DatabaseReplaced>,
        life: Lifeline,
    ) -> Self {
        Self {
            db,
            site,
            retired: Vec::new(),
            applier,
            replaced,
            on_damage: stop_on_damage(life.fail_stop()),
            life,
        }
    }
}

/// Makes a batch durable in one transaction. Answered by [`Committed`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CommitRevisions {
    pub batch: CommitBatch,
    /// The newest revision after it.
    pub through: Revision,
}

/// Takes a tail whose records the database holds now, to drop it: freeing ten thousand records takes a millisecond or two, which
/// no request should wait for. There is one for each [`Committed`] at most.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForgetRecords {
    /// What the applier held before.
    pub records: Tail,
}

/// What the database holds now, and a reader of it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Committed {
    /// The log position the database contains.
    pub applied: LogPosition,
    /// The log position of the commit before: it suffices even if the newest commit turns out to be lost, so the log can release
    /// entries up to it.
    pub log_needed_after: LogIndex,
    /// The newest revision in it; `None` after a step of a compaction.
    pub through: Option<Revision>,
    pub reader: DbReader,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Bytes of it that hold records.
    pub used_bytes: u64,
    /// How long the transaction took, in microseconds.
    pub commit_micros: u64,
}

/// Puts a received database, which is open and verified, in place of the present one. Answered by [`DatabaseReplaced`] when
/// that is durable. Earlier messages are carried out first.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReplaceDatabase {
    pub db: Db,
}

/// The database is another one from now on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct DatabaseReplaced {
    pub reader: DbReader,
    /// How far its newest compaction got.
    pub compaction: Option<(Revision, Option<Rev>)>,
    /// Size of the file, in bytes.
    pub file_bytes: u64,
    /// Bytes of it that hold records.
    pub used_bytes: u64,
}

/// Removes records that no read at or after `through` needs, visiting a bounded number of them.
#[derive(Debug, Message)]
#[rtype(result = "CompactProgress")]
pub struct CompactRecords {
    /// The compacted revision; every record up to it is in the database.
    pub through: Revision,
    /// The log entry that decided the compaction, or a later one: its effects are in the database.
    pub decided_at: LogIndex,
    /// Where to go on.
    pub from: Rev,
    /// Records to visit at most.
    pub records_max: usize,
    /// Names the records that must stay.
    pub keys: Snapshot,
    /// Takes the records that are visited.
    pub hasher: Option<CompactionHasher>,
}

/// Where the next step goes on; `None` when the compaction is complete.
#[derive(Debug, MessageResponse)]
pub struct CompactProgress {
    /// The next place in history.
    pub next: Option<Rev>,
    /// Records removed by this step.
    pub removed: u64,
    /// With the records that this step has visited.
    pub hasher: Option<CompactionHasher>,
}

impl Actor for Committer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<CommitRevisions> for Committer {
    type Result = ();

    fn handle(&mut self, commit: CommitRevisions, ctx: &mut Self::Context) {
        let takes = self.site.disk.takes();
        if takes.is_zero() {
            self.commit(commit);
            return;
        }
        let waited = tokio::time::sleep(takes).into_actor(self);
        ctx.wait(waited.map(move |(), committer, _| committer.commit(commit)));
    }
}

impl Committer {
    fn commit(&mut self, mut commit: CommitRevisions) {
        let start = clock::now();
        hit(FailPoint::BeforeDbCommit);
        lose_records(&mut commit);
        if let Err(error) = self.db.commit(&commit.batch) {
            self.life
                .fail_stop()
                .because("cannot commit to the database", &error);
            return;
        }
        hit(FailPoint::AfterDbCommit);
        let micros = clock::micros(start.elapsed());
        tracing::debug!(
            applied = commit.batch.applied.index.0,
            revision = commit.through.0,
            micros,
            "committed to the database"
        );
        self.report(Some(commit.through), micros);
    }
}

/// Deliberate bugs: takes records out of a batch.
fn lose_records(commit: &mut CommitRevisions) {
    let pieces = &mut commit.batch.records;
    if mutated(Mutation::LoseTombstone) {
        for piece in pieces.iter_mut() {
            let kept = piece
                .iter()
                .filter(|record| record.kind != RecordKind::Tombstone);
            *piece = kept.cloned().collect();
        }
    }
    if mutated(Mutation::DatabaseWithoutLastRecord) && commit.through.0 % 3 == 0 {
        pieces.pop();
    }
}

impl Handler<ForgetRecords> for Committer {
    type Result = ();

    fn handle(&mut self, forget: ForgetRecords, _: &mut Self::Context) {
        drop(forget.records);
    }
}

impl Handler<ReplaceDatabase> for Committer {
    type Result = ();

    fn handle(&mut self, replace: ReplaceDatabase, ctx: &mut Self::Context) {
        let db = self.site.switch(replace.db);
        let on_damage = self.on_damage.clone();
        let switched = db.and_then(|db| Ok((db.reader()?.with_on_damage(on_damage), db)));
        let (reader, db) = match switched {
            Ok(switched) => switched,
            Err(error) => {
                self.life
                    .fail_stop()
                    .because("cannot put a snapshot in place of the database", &error);
                return;
            }
        };
        self.retired.push(std::mem::replace(&mut self.db, db));
        ctx.run_later(RETIRE_PAUSE, Self::close_retired);
        let replaced = DatabaseReplaced {
            reader,
            compaction: self.db.compaction().map(|it| (it.through, it.next)),
            file_bytes: self.db.size(),
            used_bytes: self.db.size_in_use(),
        };
        self.life.deliver(&self.replaced, replaced);
    }
}

impl Handler<CompactRecords> for Committer {
    type Result = CompactProgress;

    fn handle(&mut self, compact: CompactRecords, _: &mut Self::Context) -> Self::Result {
        let start = clock::now();
        let mut hasher = compact.hasher;
        let (mut through, keys) = (compact.through, &compact.keys);
        if mutated(Mutation::CompactionOffByOne) {
            through = through.next();
        }
        hit(FailPoint::BeforeCompactStep);
        let mut decided_at = compact.decided_at;
        if mutated(Mutation::CompactBeforeState) {
            decided_at = LogIndex(0);
        }
        let span = CompactSpan {
            from: compact.from,
            through,
            decided_at,
            records_max: compact.records_max,
        };
        let step = self.db.compact_step(span, |record| {
            let kept = keys.needed_at_compaction(
                record::key_slice(record.kv),
                record.rev,
                record.kind,
                through,
            );
            if let Some(hasher) = &mut hasher {
                hasher.add(record.rev, record.kind, record.kv, kept);
            }
            kept
        });
        match step {
            Ok(step) => {
                hit(FailPoint::AfterCompactStep);
                self.report(None, clock::micros(start.elapsed()));
                CompactProgress {
                    next: step.next,
                    removed: step.removed,
                    hasher,
                }
            }
            Err(error) => {
                self.life
                    .fail_stop()
                    .because("cannot compact the database", &error);
                CompactProgress {
                    next: Some(compact.from),
                    removed: 0,
                    hasher: None,
                }
            }
        }
    }
}

impl Committer {
    /// Reads that began before a snapshot was installed end with the old database; it is closed when the last has ended.
    fn close_retired(&mut self, ctx: &mut Context<Self>) {
        self.retired.retain(Db::has_readers);
        if !self.retired.is_empty() {
            ctx.run_later(RETIRE_PAUSE, Self::close_retired);
        }
    }

    fn report(&self, through: Option<Revision>, commit_micros: u64) {
        let reader = match self.db.reader() {
            Ok(reader) => reader.with_on_damage(self.on_damage.clone()),
            Err(error) => {
                self.life
                    .fail_stop()
                    .because("cannot read the database", &error);
                return;
            }
        };
        let committed = Committed {
            applied: self.db.applied(),
            log_needed_after: self.db.fallback().index,
            through,
            reader,
            file_bytes: self.db.size(),
            used_bytes: self.db.size_in_use(),
            commit_micros,
        };
        self.life.deliver(&self.applier, committed);
    }
}

impl StoredRecords for DbReader {
    fn cached(&self, rev: Rev) -> Option<EncodedKv> {
        self.cached_put(rev)
    }

    fn scan(&self, from: Rev, to: Rev, visit: &mut Visit<'_>) -> Result<(), ReadError> {
        Self::scan(self, from..to, |record| {
            visit(record.rev, record.kind, record.kv)
        })
        .map_err(|error| ReadError {
            rev: from,
            source: Box::new(error),
        })
    }
}

/// A record that was returned is in memory afterwards. One that was only visited is not: long ranges would displace all others.
impl Records for DbReader {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        if let Some(kv) = self.cached_put(rev) {
            return Ok(kv);
        }
        let kv = found(rev, self.get_put(rev))?;
        self.keep_put(rev, kv.clone());
        Ok(kv)
    }

    fn get_within(&self, rev: Rev, bytes_max: usize) -> Result<Option<EncodedKv>, ReadError> {
        if let Some(kv) = self.cached_put(rev) {
            return Ok((kv.len() <= bytes_max).then_some(kv));
        }
        let copy = |kv: &[u8]| (kv.len() <= bytes_max).then(|| EncodedKv::copy_from_slice(kv));
        let kv = found(rev, self.visit_put(rev, copy))?;
        if let Some(kv) = &kv {
            self.keep_put(rev, kv.clone());
        }
        Ok(kv)
    }

    fn visit(&self, rev: Rev, seen: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        match self.cached_put(rev) {
            Some(kv) => seen(&kv),
            None => found(rev, self.visit_put(rev, seen))?,
        }
        Ok(())
    }
}

/// The index names only changes that are there.
fn found<T>(rev: Rev, read: Result<Option<T>, DbError>) -> Result<T, ReadError> {
    match read {
        Ok(Some(found)) => Ok(found),
        Ok(None) => Err(ReadError {
            rev,
            source: "it is not in the database".into(),
        }),
        Err(error) => Err(ReadError {
            rev,
            source: Box::new(error),
        }),
    }
}
