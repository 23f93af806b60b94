//! The log's disk and the applier: writes and reads of the log, deliveries of committed entries, and a leader that transfers
//! its leadership while its disk stalls.
//!
//! Nothing here waits for a disk: the WAL writer has its own thread, and entries that are no longer in memory are read on
//! threads that may block, so heartbeats go on while a write or a read is stuck. A write that takes longer than
//! `raft.disk_stall_ms` is a stall. A leader with a stalled disk asks consensus at every tick to transfer leadership to the most
//! up-to-date voter. It cannot be elected again meanwhile: no vote is counted before it is durable, its own included.

use super::{node::RaftNode, own_messages::LogReadEnded};
use crate::{
    actors::{
        apply_messages::{ApplierProgress, ApplyEntries},
        background::in_background,
        wal_writer::{Persist, Persisted, ReleaseEntries},
    },
    clock,
    failpoint::{FailPoint, hit},
    raft::{ReadLog, Released},
    storage::wal::{WalError, WalReader},
    types::{Entry, MemberId},
};
use actix::prelude::*;

impl Handler<Persisted> for RaftNode {
    type Result = ();

    fn handle(&mut self, persisted: Persisted, _: &mut Self::Context) {
        let slow = self
            .log_writes
            .end(persisted.seq, persisted.sync_micros, clock::now());
        if let Some(took) = slow {
            let took_ms = clock::micros(took) / 1_000;
            tracing::warn!(took_ms, "a write to the write-ahead log was slow");
        }
        self.raft.persisted(persisted.seq);
        self.carry_out();
    }
}

impl Handler<ApplierProgress> for RaftNode {
    type Result = ();

    fn handle(&mut self, progress: ApplierProgress, _: &mut Self::Context) {
        self.raft.applied(progress.applied);
        self.deliveries.progressed(progress.applied);
        self.retention.set_stored(progress.stored);
        self.release();
        self.carry_out();
    }
}

impl Handler<LogReadEnded> for RaftNode {
    type Result = ();

    /// Consensus drops an answer that it no longer needs.
    fn handle(&mut self, LogReadEnded { read, outcome }: LogReadEnded, _: &mut Self::Context) {
        self.log_reads.end(read.reader);
        let entries = match outcome {
            Ok(entries) => Ok(entries),
            Err(WalError::Released { .. }) => Err(Released),
            Err(error) => {
                self.life
                    .fail_stop()
                    .because("cannot read the write-ahead log", &error);
                return;
            }
        };
        if let Err(error) = self.raft.log_read(read.reader, read.from, entries) {
            self.life
                .fail_stop()
                .because("cannot trust the write-ahead log", &error);
            return;
        }
        self.carry_out();
    }
}

impl RaftNode {
    pub(super) fn send_persists(&mut self) {
        if let Some(writes) = self.log_writes.next(clock::now()) {
            let stored = self.retention.stored();
            self.life
                .deliver(&self.peers.wal, Persist { writes, stored });
        }
    }

    pub(super) fn send_entries(&mut self) {
        if self.transfers.is_installing() {
            return;
        }
        if let Some(entries) = self.deliveries.next() {
            self.life
                .deliver(&self.peers.applier, ApplyEntries { entries });
        }
    }

    /// Begins the reads of the log that consensus needs, as far as they may run at the same time.
    pub(super) fn begin_log_reads(&mut self) {
        let raft = &self.raft;
        let needed = |read: &ReadLog| raft.awaits_log_read(read.reader, read.from);
        while let Some(read) = self.log_reads.next(needed, clock::now()) {
            let log = self.peers.log.clone();
            let reading = in_background(move || read_entries(&log, &read));
            let own = self.peers.log_read.clone();
            let fail_stop = self.life.fail_stop().clone();
            actix_rt::spawn(async move {
                match reading.await {
                    // A node that is gone needs no entries.
                    Ok(outcome) => own
                        .send(LogReadEnded { read, outcome })
                        .await
                        .unwrap_or_default(),
                    // The node is shutting down.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => fail_stop.because("a read of the write-ahead log failed", &error),
                }
            });
        }
    }

    /// Releases the entries that no member needs any more.
    pub(super) fn release(&mut self) {
        if let Some(through) = self.retention.release(self.transfers.held()) {
            self.raft.log_released(through);
            let stored = self.retention.stored();
            self.life
                .deliver(&self.peers.release, ReleaseEntries { through, stored });
        }
    }

    /// Once a tick: looks for a stalled write, and publishes the disk's condition.
    pub(super) fn check_disk(&mut self) {
        let before = self.log_writes.health.stalled_ms;
        let stalled = self.log_writes.check_stall(clock::now());
        match (before, stalled) {
            (None, Some(waited_ms)) => tracing::warn!(
                waited_ms,
                "the disk stalls: a write to the write-ahead log does not end"
            ),
            (Some(waited_ms), None) => tracing::info!(waited_ms, "the disk goes on"),
            (None, None) | (Some(_), Some(_)) => {}
        }
        if stalled.is_some() {
            let to = self.raft.yield_leadership();
            if self.log_writes.yields_to(to) {
                tracing::warn!(
                    to = to.map(MemberId::hex),
                    "hands leadership to a member whose disk works"
                );
            }
        }
        if self
            .log_reads
            .has_new_stall(clock::now(), self.pacing.disk_stall)
        {
            tracing::warn!("the disk stalls: a read of the write-ahead log does not end");
        }
        let health = self.log_writes.health;
        self.peers.disk.send_if_modified(|published| {
            let changed = *published != health;
            *published = health;
            changed
        });
    }
}

/// Reads the entries that `read` asks for. Blocks.
fn read_entries(log: &WalReader, read: &ReadLog) -> Result<Vec<Entry>, WalError> {
    hit(FailPoint::BeforeLogRead);
    let mut entries = log.read(read.from, read.bytes_max)?;
    entries.retain(|entry| entry.index <= read.to);
    Ok(entries)
}
