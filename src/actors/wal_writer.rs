//! WAL writer: makes log entries durable.
//!
//! It owns the segments, and blocks on the disk, so it has an arbiter to itself. All messages that wait when the disk is free
//! are made durable by one write and one sync (group commit): nothing waits for more to come, and whatever came during
//! the last sync goes together. It decides nothing about entries; what is durable it reports to the Raft node.

use super::fail_stop::Lifeline;
use crate::failpoint::{FailPoint, hit};
use crate::mutation::{Mutation, mutated};
use crate::{
    clock, raft,
    storage::{
        disk::Disk,
        wal::{Append, Wal, WalError},
    },
    types::LogIndex,
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};

/// Messages that may wait. The Raft node keeps fewer under way than this.
const MAILBOX_MAX: usize = 64;

/// Quiet time after which the writer does what no request should wait for: see [`WalWriter::rest`].
const REST_AFTER: Duration = Duration::from_millis(50);

/// Owns the write-ahead log.
#[derive(Debug)]
pub struct WalWriter {
    wal: Wal,
    disk: Arc<dyn Disk>,
    /// What the next flush will make durable, to be reported then.
    waiting: Option<Persisted>,
    flush_due: bool,
    resting: Option<SpawnHandle>,
    raft: Recipient<Persisted>,
    life: Lifeline,
}

impl WalWriter {
    /// A writer to `disk`, where `wal` is, that reports to `raft`.
    pub fn new(wal: Wal, disk: Arc<dyn Disk>, raft: Recipient<Persisted>, life: Lifeline) -> Self {
        Self {
            wal,
            disk,
            waiting: None,
            flush_due: false,
            resting: None,
            raft,
            life,
        }
    }
}

/// Makes entries and hard state durable, in this order and after all earlier messages. Answered by [`Persisted`] after the
/// sync.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Persist(pub Vec<raft::Persist>);

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

    fn handle(&mut self, Persist(persists): Persist, ctx: &mut Self::Context) {
        for persist in &persists {
            if let Err(error) = self.append(persist) {
                self.life
                    .fail_stop()
                    .because("cannot append to the write-ahead log", &error);
                return;
            }
        }
        if mutated(Mutation::AcknowledgeBeforeSync)
            && let Some(early) = self.waiting.take()
        {
            self.life.deliver(&self.raft, early);
        }
        if !std::mem::replace(&mut self.flush_due, true) {
            // A notification runs once the mailbox is empty.
            ctx.notify(FlushDue);
        }
    }
}

impl Handler<FlushDue> for WalWriter {
    type Result = ();

    fn handle(&mut self, _: FlushDue, ctx: &mut Self::Context) {
        let takes = self.disk.takes();
        if takes.is_zero() {
            self.flush(ctx);
            return;
        }
        let waited = tokio::time::sleep(takes).into_actor(self);
        ctx.wait(waited.map(|(), writer, ctx| writer.flush(ctx)));
    }
}

impl Handler<ReleaseEntries> for WalWriter {
    type Result = ();

    fn handle(&mut self, release: ReleaseEntries, _: &mut Self::Context) {
        hit(FailPoint::BeforeWalRelease);
        let released = self.wal.release(release.through);
        hit(FailPoint::AfterWalRelease);
        match released {
            Ok(0) => {}
            // Under load the log never rests; a released segment is ready for reuse as it is.
            Ok(_) => self.prepare_spare(),
            Err(error) => self
                .life
                .fail_stop()
                .because("cannot release write-ahead log segments", &error),
        }
    }
}

impl Handler<SealLog> for WalWriter {
    type Result = ();

    fn handle(&mut self, _: SealLog, _: &mut Self::Context) {
        self.rest();
    }
}

impl WalWriter {
    fn flush(&mut self, ctx: &mut Context<Self>) {
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
        if let Some(old) = self.resting.take() {
            ctx.cancel_future(old);
        }
        self.resting = Some(ctx.run_later(REST_AFTER, |writer, _| writer.rest()));
    }

    fn append(&mut self, persist: &raft::Persist) -> Result<(), WalError> {
        let state = Some(persist.hard_state).filter(|_| !mutated(Mutation::ForgetVote));
        self.wal.append(&Append {
            snapshot: persist.reset,
            hard_state: state.filter(|state| *state != self.wal.hard_state()),
            entries: &persist.entries,
        })?;
        self.waiting = Some(Persisted {
            seq: persist.seq,
            sync_micros: 0,
        });
        Ok(())
    }

    /// What can be done while nothing waits: mark the end as durable, and have the next segment ready.
    fn rest(&mut self) {
        self.resting = None;
        match self.wal.seal() {
            Ok(()) => self.prepare_spare(),
            Err(error) => self
                .life
                .fail_stop()
                .because("cannot seal the write-ahead log", &error),
        }
    }

    fn prepare_spare(&mut self) {
        match self.wal.prepare_spare() {
            Ok(()) => {}
            Err(error) if self.wal.is_poisoned() => self
                .life
                .fail_stop()
                .because("cannot prepare a write-ahead log segment", &error),
            Err(error) => tracing::warn!("the log's next segment is not ready yet: {error}"),
        }
    }
}
