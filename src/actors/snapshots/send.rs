//! Sending: one read transaction, sent a chunk at a time, with a bounded rate.

use crate::{
    actors::{load, peer_hub::OpenSnapshot, snapshot_messages::TransferError},
    clock,
    failpoint::{FailPoint, hit},
    net::SnapshotSender,
    storage::db::{DbReader, Export},
    types::{LogIndex, MemberId},
};
use actix::prelude::*;
use bytes::Bytes;
use std::time::Duration;
use tokio::time::{sleep_until, timeout};

/// Bytes in one chunk: what the arbiter that encrypts it does in one go.
const CHUNK_BYTES: usize = 64 * 1024;

/// How long the other side may take for one chunk.
pub(super) const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a receiver may take to verify a whole snapshot and install it.
const INSTALL_TIMEOUT: Duration = Duration::from_mins(10);

/// How fast snapshots are sent.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotPacing {
    /// Bytes a second, to each member or client.
    pub bytes_per_sec: u64,
}

impl SnapshotPacing {
    /// How long so many bytes take.
    pub(in crate::actors) fn time_of(self, bytes: u64) -> Duration {
        Duration::from_micros(bytes.saturating_mul(1_000_000) / self.bytes_per_sec.max(1))
    }
}

/// Sends the database that `reader` reads. Returns the log position that the receiver has afterwards.
pub(super) async fn send(
    to: MemberId,
    reader: DbReader,
    open: Recipient<OpenSnapshot>,
    pacing: SnapshotPacing,
) -> Result<LogIndex, TransferError> {
    let mut export = Export::new(reader, load::LOCAL_BLOBS)?;
    let (header, through) = (export.header().encode(), export.header().applied.index);
    let usage = export.header().usage;
    tracing::info!(
        to = to.hex(),
        index = through.0,
        records = usage.records,
        bytes = usage.bytes,
        "sends a snapshot"
    );
    hit(FailPoint::BeforeSnapshotSend);
    let began = clock::now();
    let opened = open.send(OpenSnapshot {
        to,
        header: header.into(),
    });
    let mut sender = opened.await.map_err(|_| TransferError::NoPeers)??;
    let (mut sent, mut due) = (0, began);
    while let Some(chunk) = export.chunk(CHUNK_BYTES)? {
        let bytes = chunk.len() as u64;
        sent += bytes;
        send_chunk(&mut sender, chunk).await?;
        // Keeps to the rate.
        let now = clock::now();
        due = due.max(now) + pacing.time_of(bytes);
        sleep_until(due).await;
    }
    // Ends the read transaction, so that the database can reuse its pages.
    drop(export);
    hit(FailPoint::AfterSnapshotSend);
    let installed = timeout(INSTALL_TIMEOUT, sender.finish()).await;
    installed.map_err(|_| TransferError::Silent(INSTALL_TIMEOUT))??;
    tracing::info!(
        to = to.hex(),
        index = through.0,
        bytes = sent,
        millis = clock::since(began).0,
        "the snapshot is in place"
    );
    Ok(through)
}

async fn send_chunk(sender: &mut SnapshotSender, chunk: Bytes) -> Result<(), TransferError> {
    let sent = timeout(CHUNK_TIMEOUT, sender.send(chunk)).await;
    Ok(sent.map_err(|_| TransferError::Silent(CHUNK_TIMEOUT))??)
}
