//! WAL writer: makes log entries durable.
//!
//! It owns the segments, and blocks on the disk, so it has an arbiter of its own. All messages in its mailbox are made durable
//! by one write and one sync (group commit): a message never waits for later ones, and those that arrive during a sync share the
//! next. It reports to the Raft node what is durable, and decides nothing about entries.

use super::fail_stop::Lifeline;
use crate::{
    clock,
    failpoint::{FailPoint, hit},
    mutation::{Mutation, mutated},
    raft,
    storage::{
        disk::Disk,
        wal::{Append, Wal, WalError},
    },
    types::LogIndex,
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};

/// Size of the mailbox. The Raft node has fewer writes in flight than this.
const MAILBOX_MAX: usize = 64;

/// Idle time after which the writer does work that no request should wait for: see [`WalWriter::rest`].
const REST_AFTER: Duration = Duration::from_millis(50);

/// Owns the write-ahead log.
#[derive(Debug)]
pub struct WalWriter {
    wal: Wal,
    disk: Arc<dyn Disk>,
    /// Reported to the Raft node after the next flush.
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
pub struct Persist {
    /// In the order in which consensus made them.
    pub writes: Vec<raft::LogWrite>,
    /// The database has everything up to here, for good.
    pub stored: LogIndex,
}

impl Persist {
    /// A log that begins after a snapshot has no entries for a database that lost it.
    fn assert_stored(&self) {
        let resets = self.writes.iter().filter_map(|write| write.reset);
        for reset in resets {
            assert!(
                reset.index <= self.stored,
                "the log begins after entry {} before the database has the snapshot of it (it has {}): a loss of power would \
                 leave neither",
                reset.index,
                self.stored
            );
        }
    }
}

/// Everything up to this sequence number of the Raft core's output is durable.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Persisted {
    /// The newest sequence number that is durable.
    pub seq: u64,
    /// How long the write and the sync took, in microseconds.
    pub sync_micros: u64,
}

/// Entries up to here are not needed any more: their segments can be reused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReleaseEntries {
    /// The newest entry to release.
    pub through: LogIndex,
    /// The database has everything up to here, for good.
    pub stored: LogIndex,
}

impl ReleaseEntries {
    /// The next start needs every entry that the database may lose.
    fn assert_stored(&self) {
        assert!(
            self.through <= self.stored,
            "entries up to {} are released before the database has them for good (it has {}): a loss of power would lose them",
            self.through,
            self.stored
        );
    }
}

/// Seals the log; answered once that is done. The last message of a stopping node.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SealLog;

/// The mailbox is empty: one write and one sync follow for all messages that were in it.
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

    fn handle(&mut self, persist: Persist, ctx: &mut Self::Context) {
        persist.assert_stored();
        for write in &persist.writes {
            if let Err(error) = self.append(write) {
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
            // actix handles a notification once the mailbox is empty.
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
        release.assert_stored();
        hit(FailPoint::BeforeWalRelease);
        let released = self.wal.release(release.through);
        hit(FailPoint::AfterWalRelease);
        match released {
            Ok(0) => {}
            // Under load the log is never idle; reusing a released segment takes one write.
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

    fn append(&mut self, write: &raft::LogWrite) -> Result<(), WalError> {
        let state = Some(write.hard_state).filter(|_| !mutated(Mutation::ForgetVote));
        self.wal.append(&Append {
            snapshot: write.reset,
            hard_state: state.filter(|state| *state != self.wal.hard_state()),
            entries: &write.entries,
        })?;
        self.waiting = Some(Persisted {
            seq: write.seq,
            sync_micros: 0,
        });
        Ok(())
    }

    /// Work for idle times: seals the log, and makes the next segment in advance.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{HardState, LogPosition, Term};

    fn release(through: u64) -> ReleaseEntries {
        ReleaseEntries {
            through: LogIndex(through),
            stored: LogIndex(20),
        }
    }

    /// Two writes, the second of which resets the log to a snapshot at this entry.
    fn begins_after(index: u64) -> Persist {
        let write = |seq, reset| raft::LogWrite {
            seq,
            reset,
            entries: Vec::new(),
            hard_state: HardState::default(),
        };
        let snapshot = LogPosition {
            index: LogIndex(index),
            term: Term(3),
        };
        Persist {
            writes: vec![write(1, None), write(2, Some(snapshot))],
            stored: LogIndex(20),
        }
    }

    #[test]
    fn what_the_database_has_is_not_needed_in_the_log() {
        release(20).assert_stored();
        begins_after(20).assert_stored();
    }

    #[test]
    #[should_panic(expected = "entries up to 21 are released before the database has them")]
    fn entries_that_the_database_may_lose_are_not_released() {
        release(21).assert_stored();
    }

    #[test]
    #[should_panic(expected = "the log begins after entry 21 before the database has the snapshot")]
    fn a_log_does_not_begin_after_a_snapshot_that_the_database_may_lose() {
        begins_after(21).assert_stored();
    }
}
