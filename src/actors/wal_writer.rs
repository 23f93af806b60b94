//! WAL writer: makes log entries durable.
//!
//! It owns the segments, and blocks on the disk, so it has an arbiter to itself. All messages that wait when the disk is free
//! are made durable by one write and one sync (group commit): nothing waits for more to come, and whatever came during
//! the last sync goes together. It decides nothing about entries; what is durable it reports to the Raft node.

use super::fail_stop::Lifeline;
use crate::{
    clock,
    storage::wal::{Append, SnapshotMark, Wal},
    types::LogIndex,
};
use actix::prelude::*;
use std::time::Duration;

/// Messages that may wait. The Raft node keeps fewer under way than this.
pub const MAILBOX_MAX: usize = 1_024;

/// Quiet time after which the log's end is sealed, so that damage to the last batch is told from a torn write.
const SEAL_AFTER: Duration = Duration::from_millis(50);

/// Owns the write-ahead log.
#[derive(Debug)]
pub struct WalWriter {
    wal: Wal,
    /// What the next flush will make durable, to be reported then.
    waiting: Option<Persisted>,
    flush_due: bool,
    seal: Option<SpawnHandle>,
    raft: Recipient<Persisted>,
    life: Lifeline,
}

impl WalWriter {
    /// A writer that reports to `raft`.
    pub fn new(wal: Wal, raft: Recipient<Persisted>, life: Lifeline) -> Self {
        Self {
            wal,
            waiting: None,
            flush_due: false,
            seal: None,
            raft,
            life,
        }
    }
}

/// Makes entries and hard state durable, after all earlier messages. Answered by [`Persisted`] after the sync.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Persist(pub crate::raft::Persist);

/// Everything up to this sequence number of the Raft core's output is on disk.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Persisted {
    /// The newest sequence number that is durable.
    pub seq: u64,
    /// How long the write and the sync took, in microseconds.
    pub sync_micros: u64,
}

/// Entries up to here will not be asked for again: their segments can be reused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReleaseEntries {
    /// The newest entry to give up.
    pub through: LogIndex,
}

/// Seals the log's end and answers when that is done; the last message a stopping node sends.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SealLog;

/// The mailbox has been drained: one write and one sync for all that came.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FlushDue;

impl Actor for WalWriter {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX_MAX);
    }
}

impl Handler<Persist> for WalWriter {
    type Result = ();

    fn handle(&mut self, Persist(persist): Persist, ctx: &mut Self::Context) {
        let hard_state = Some(persist.hard_state).filter(|state| *state != self.wal.hard_state());
        let snapshot = persist.reset.map(|id| SnapshotMark {
            index: id.index,
            term: id.term,
        });
        let append = Append {
            snapshot,
            hard_state,
            entries: &persist.entries,
        };
        if let Err(error) = self.wal.append(&append) {
            self.life
                .fail_stop()
                .because("cannot append to the write-ahead log", &error);
            return;
        }
        self.waiting = Some(Persisted {
            seq: persist.seq,
            sync_micros: 0,
        });
        if !std::mem::replace(&mut self.flush_due, true) {
            // A notification runs once the mailbox is empty.
            ctx.notify(FlushDue);
        }
    }
}

impl Handler<FlushDue> for WalWriter {
    type Result = ();

    fn handle(&mut self, _: FlushDue, ctx: &mut Self::Context) {
        self.flush_due = false;
        let start = clock::now();
        if let Err(error) = self.wal.flush() {
            self.life
                .fail_stop()
                .because("cannot make the write-ahead log durable", &error);
            return;
        }
        if let Some(mut persisted) = self.waiting.take() {
            persisted.sync_micros = clock::micros(start.elapsed());
            self.life.deliver(&self.raft, persisted);
        }
        if let Some(old) = self.seal.take() {
            ctx.cancel_future(old);
        }
        self.seal = Some(ctx.run_later(SEAL_AFTER, |writer, _| writer.seal()));
    }
}

impl Handler<ReleaseEntries> for WalWriter {
    type Result = ();

    fn handle(&mut self, release: ReleaseEntries, _: &mut Self::Context) {
        if let Err(error) = self.wal.release(release.through) {
            self.life
                .fail_stop()
                .because("cannot release write-ahead log segments", &error);
        }
    }
}

impl Handler<SealLog> for WalWriter {
    type Result = ();

    fn handle(&mut self, _: SealLog, _: &mut Self::Context) {
        self.seal();
    }
}

impl WalWriter {
    fn seal(&mut self) {
        self.seal = None;
        if let Err(error) = self.wal.seal() {
            self.life
                .fail_stop()
                .because("cannot seal the write-ahead log", &error);
        }
    }
}
