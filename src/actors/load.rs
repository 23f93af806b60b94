//! How the applier's state is stored in the database, besides the records: written with every commit, loaded at startup.

use super::members::{Members, MembersError};
use crate::{
    auth::{AuthState, state},
    codec::{self, CodecError},
    kv::{
        command::AlarmKind,
        index::{Index as Tree, LoadError, Loader, StoredChange},
        lease::LeaseTable,
        machine::{LoadedState, Machine},
        record::{KeyValue, RecordError},
        state_hash::StateHash,
    },
    storage::db::{Db, DbError, DbReader},
    types::{LeaseId, LogIndex, LogPosition, MemberId, Revision},
};
use bytes::Bytes;
use std::collections::BTreeSet;

const REVISION: &str = "store.revision";
const COMPACTED: &str = "store.compacted";
const ALARMS: &str = "store.alarms";
const HASH: &str = "store.hash";
const MEMBERSHIP: &str = "cluster.membership";
const KNOWN_MEMBERS: &str = "cluster.seed";
const AWAITS_SNAPSHOT: &str = "cluster.awaits_snapshot";

/// Blobs that are this member's own: snapshots neither contain nor replace them.
pub const LOCAL_BLOBS: &[&str] = &[KNOWN_MEMBERS];

/// Why the state cannot be loaded. A retry does not help: the database is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum LoadStateError {
    /// The database cannot be read.
    #[error(transparent)]
    Db(#[from] DbError),
    /// A blob does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A membership does not decode.
    #[error(transparent)]
    Members(#[from] MembersError),
    /// A record does not decode.
    #[error("stored change at revision {revision}: {source}")]
    Record {
        revision: Revision,
        /// What is wrong with it.
        source: RecordError,
    },
    /// The records do not follow each other.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// What is stored of the state besides records, leases, users and the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub revision: Revision,
    pub compacted: Revision,
    pub alarms: BTreeSet<(MemberId, AlarmKind)>,
    /// The rolling hash, unless an older version wrote the store.
    pub hash: Option<StateHash>,
}

impl Summary {
    /// That of a database that was filled by commands or by an importer; a new one has that of an empty store.
    pub fn read(reader: &DbReader) -> Result<Self, LoadStateError> {
        let mut summary = Self {
            revision: Revision::FIRST,
            compacted: Revision::NEVER_COMPACTED,
            alarms: BTreeSet::new(),
            hash: None,
        };
        if let Some(bytes) = reader.meta(REVISION)? {
            summary.revision = codec::decode(REVISION, &bytes)?;
        }
        if let Some(bytes) = reader.meta(COMPACTED)? {
            summary.compacted = codec::decode(COMPACTED, &bytes)?;
        }
        if let Some(bytes) = reader.meta(ALARMS)? {
            let alarms: Vec<(MemberId, AlarmKind)> = codec::decode(ALARMS, &bytes)?;
            summary.alarms = alarms.into_iter().collect();
        }
        if let Some(bytes) = reader.meta(HASH)? {
            summary.hash = Some(codec::decode(HASH, &bytes)?);
        }
        Ok(summary)
    }

    /// The blobs that store it.
    pub fn meta(&self) -> Vec<(&'static str, Option<Vec<u8>>)> {
        let alarms: Vec<(MemberId, AlarmKind)> = self.alarms.iter().copied().collect();
        vec![
            (REVISION, Some(codec::encode(&self.revision))),
            (COMPACTED, Some(codec::encode(&self.compacted))),
            (ALARMS, Some(codec::encode(&alarms))),
            (HASH, self.hash.map(|hash| codec::encode(&hash))),
        ]
    }
}

/// The blobs that store what a machine has of it.
pub fn store_meta(machine: &Machine) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let summary = Summary {
        revision: machine.revision(),
        compacted: machine.compacted(),
        alarms: machine.alarms().clone(),
        hash: machine.state_hash(),
    };
    summary.meta()
}

/// The membership as a blob, to be written with the log position at which it is in force.
pub fn membership_meta(encoded: &Bytes) -> Vec<(&'static str, Option<Vec<u8>>)> {
    vec![(MEMBERSHIP, Some(encoded.to_vec()))]
}

/// The membership at the applied index; `None` if this member never formed or joined a cluster.
pub fn membership(db: &Db) -> Result<Option<Bytes>, LoadStateError> {
    Ok(db.reader()?.meta(MEMBERSHIP)?.map(Bytes::from))
}

/// The membership that a joining member received from the cluster, as a blob.
pub fn known_members_meta(encoded: &Bytes) -> Vec<(&'static str, Option<Vec<u8>>)> {
    vec![(KNOWN_MEMBERS, Some(encoded.to_vec()))]
}

/// The membership that this member received when it joined; `None` if it formed its cluster.
pub fn known_members(db: &Db) -> Result<Option<Bytes>, LoadStateError> {
    Ok(db.reader()?.meta(KNOWN_MEMBERS)?.map(Bytes::from))
}

/// Marks a database that a snapshot has to replace, and stores the membership that its member starts with.
pub fn refill_meta(membership: &Bytes) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let mut meta = known_members_meta(membership);
    meta.push((AWAITS_SNAPSHOT, Some(Vec::new())));
    meta
}

/// Whether the database is one that a snapshot has to replace.
pub fn awaits_snapshot(db: &Db) -> Result<bool, LoadStateError> {
    Ok(db.reader()?.meta(AWAITS_SNAPSHOT)?.is_some())
}

/// The membership after quorum recovery, as blobs. The membership that the member received when it joined is deleted.
pub fn alone_meta(encoded: &Bytes) -> Vec<(&'static str, Option<Vec<u8>>)> {
    vec![(MEMBERSHIP, Some(encoded.to_vec())), (KNOWN_MEMBERS, None)]
}

/// Loads the state, and builds the index in one pass over the records.
pub fn load_state(db: &Db) -> Result<(LoadedState, Tree), LoadStateError> {
    let reader = db.reader()?;
    let summary = Summary::read(&reader)?;
    let new = db.applied().index == LogIndex(0);
    let mut loaded = LoadedState {
        revision: summary.revision,
        compacted: summary.compacted,
        alarms: summary.alarms,
        hash: summary.hash.or_else(|| new.then(StateHash::default)),
        ..LoadedState::default()
    };
    loaded.leases = load_leases(db)?;
    loaded.auth = load_auth(&reader)?;
    let tree = rebuild(db)?;
    attach_keys(&tree, &mut loaded.leases);
    Ok((loaded, tree))
}

/// What one commit holds besides records and leases.
#[derive(Debug)]
pub(super) struct StoredState {
    pub(super) applied: LogPosition,
    pub(super) compacted: Revision,
    pub(super) alarms: BTreeSet<(MemberId, AlarmKind)>,
    pub(super) auth: AuthState,
    pub(super) members: Members,
}

/// Reads what is small enough for memory: neither records nor leases.
pub(super) fn stored_state(reader: &DbReader) -> Result<StoredState, LoadStateError> {
    let summary = Summary::read(reader)?;
    let members = reader.meta(MEMBERSHIP)?.map(Bytes::from);
    let members = members.map_or_else(|| Ok(Members::default()), |bytes| Members::decode(&bytes));
    Ok(StoredState {
        applied: reader.applied()?,
        compacted: summary.compacted,
        alarms: summary.alarms,
        auth: load_auth(reader)?,
        members: members?,
    })
}

fn load_auth(reader: &DbReader) -> Result<AuthState, LoadStateError> {
    let mut rows = state::Restoring::default();
    let mut failed = None;
    reader.for_each_meta(|name, bytes| {
        if name.starts_with(state::ROWS) {
            failed = failed.take().or(rows.take(name, bytes).err());
        }
    })?;
    failed.map_or_else(|| Ok(rows.finish()), |error| Err(error.into()))
}

fn load_leases(db: &Db) -> Result<LeaseTable, LoadStateError> {
    let mut leases = LeaseTable::default();
    let mut failed = None;
    db.reader()?
        .for_each_lease(|id, bytes| match codec::decode("lease", bytes) {
            Ok(row) => {
                let granted = leases.grant(id, row);
                assert!(granted.is_ok(), "the table holds each lease once");
            }
            Err(error) => failed = Some(error),
        })?;
    failed.map_or(Ok(leases), |error| Err(error.into()))
}

fn rebuild(db: &Db) -> Result<Tree, LoadStateError> {
    let mut loader = Loader::new();
    let mut failed = None;
    db.load(|record| {
        if failed.is_some() {
            return;
        }
        let revision = record.rev.major;
        let kv = match KeyValue::decode(&Bytes::copy_from_slice(record.kv)) {
            Ok(kv) => kv,
            Err(source) => {
                failed = Some(LoadStateError::Record { revision, source });
                return;
            }
        };
        let change = StoredChange {
            key: &kv.key,
            rev: record.rev,
            kind: record.kind,
            create: kv.create_revision,
            version: kv.version,
            lease: kv.lease,
        };
        if let Err(error) = loader.add(change) {
            failed = Some(error.into());
        }
    })?;
    failed.map_or_else(|| Ok(loader.finish()), Err)
}

/// A lease's keys are the live keys that name it.
fn attach_keys(tree: &Tree, leases: &mut LeaseTable) {
    if leases.iter().next().is_none() {
        return;
    }
    let mut whole = Vec::new();
    for (key, meta) in tree.snapshot().live(&crate::kv::KeyRange::all()) {
        key.write_to(&mut whole);
        leases.attach(&whole, LeaseId(0), meta.lease);
    }
}
