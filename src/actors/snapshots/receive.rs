//! Receiving: into a file beside the database, which is verified before anything else is changed.

use super::send::CHUNK_TIMEOUT;
use crate::{
    actors::{
        latest,
        load::{self, LoadStateError},
        members::{Members, MembersError},
        published::Published,
        snapshot_messages::{InstallSnapshot, ReceivedSnapshot},
    },
    failpoint::{FailPoint, hit},
    log_gate::{self, LogGate},
    net::{IncomingSnapshot, SnapshotError},
    raft::Membership,
    storage::db::{Db, DbError, DbReader, DbSite, Import, SnapshotFault, SnapshotHeader},
    types::LogIndex,
};
use actix::prelude::*;
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::timeout};

/// Snapshots that were sent here and not installed.
static NOT_TAKEN: LogGate = LogGate::new();

/// Why a received snapshot is not installed.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Stream(#[from] SnapshotError),
    #[error(transparent)]
    Fault(#[from] SnapshotFault),
    #[error(transparent)]
    Load(#[from] LoadStateError),
    #[error(transparent)]
    Members(#[from] MembersError),
    #[error("the snapshot has no membership")]
    NoMembership,
    #[error("the snapshot at entry {found} is no newer than what is applied here, {applied}")]
    NotNewer { found: LogIndex, applied: LogIndex },
    #[error("the sender was silent for {}s", .0.as_secs())]
    Silent(Duration),
    #[error("{0}")]
    NotInstalled(String),
    #[error("this member is stopping")]
    Stopping,
}

impl From<DbError> for ReceiveError {
    fn from(error: DbError) -> Self {
        Self::Fault(error.into())
    }
}

/// Receives one snapshot, has it installed, and answers its sender. A snapshot that is not installed is removed.
pub(super) async fn receive(
    mut incoming: IncomingSnapshot,
    site: DbSite,
    views: latest::Receiver<Arc<Published>>,
    install: Recipient<InstallSnapshot>,
) {
    let outcome = take(&mut incoming, &site, &views, &install).await;
    if let Err(error) = &outcome {
        let from = incoming.from.hex();
        log_gate::warn!(NOT_TAKEN, "a snapshot from {from} was not taken: {error}");
        if let Err(error) = site.discard_incoming() {
            tracing::warn!("the received file stays on the disk until the next start: {error}");
        }
    }
    incoming.answer(outcome.map_err(|error| error.to_string()));
}

async fn take(
    incoming: &mut IncomingSnapshot,
    site: &DbSite,
    views: &latest::Receiver<Arc<Published>>,
    install: &Recipient<InstallSnapshot>,
) -> Result<(), ReceiveError> {
    let header = SnapshotHeader::decode(&incoming.header, site.identity.cluster)?;
    let (applied, own) = {
        let published = views.borrow();
        (published.applied, own_blobs(&published.stored)?)
    };
    if header.applied.index <= applied.index {
        return Err(ReceiveError::NotNewer {
            found: header.applied.index,
            applied: applied.index,
        });
    }
    tracing::info!(
        from = incoming.from.hex(),
        index = header.applied.index.0,
        records = header.usage.records,
        bytes = header.usage.bytes,
        "receives a snapshot"
    );
    hit(FailPoint::BeforeSnapshotReceive);
    let mut import = Import::begin(site, header)?;
    loop {
        let chunk = timeout(CHUNK_TIMEOUT, incoming.next()).await;
        match chunk.map_err(|_| ReceiveError::Silent(CHUNK_TIMEOUT))?? {
            Some(chunk) => import.take(&chunk)?,
            None => break,
        }
    }
    let received = verify(import.finish(&own)?)?;
    hit(FailPoint::AfterSnapshotReceive);
    let (done, installed) = oneshot::channel();
    let handed = install.send(InstallSnapshot {
        received: Box::new(received),
        done,
    });
    let handed = handed.await;
    handed.map_err(|_| ReceiveError::Stopping)?;
    let outcome = installed.await.map_err(|_| ReceiveError::Stopping)?;
    outcome.map_err(ReceiveError::NotInstalled)
}

/// Loads the state from a received database: a database from which that fails is no snapshot.
fn verify(db: Db) -> Result<ReceivedSnapshot, ReceiveError> {
    let (loaded, tree) = load::load_state(&db)?;
    let encoded = load::membership(&db)?.ok_or(ReceiveError::NoMembership)?;
    let membership = Membership::decode(&encoded).map_err(MembersError::from)?;
    let members = Members::of(&membership).map_err(MembersError::from)?;
    Ok(ReceivedSnapshot {
        db,
        loaded,
        tree,
        membership,
        members,
    })
}

/// The blobs of this member's own database that a snapshot does not replace.
fn own_blobs(reader: &DbReader) -> Result<Vec<(&'static str, Vec<u8>)>, DbError> {
    let mut own = Vec::new();
    for name in load::LOCAL_BLOBS {
        if let Some(bytes) = reader.meta(name)? {
            own.push((*name, bytes));
        }
    }
    Ok(own)
}
