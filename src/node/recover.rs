//! From a data directory to everything the actors start with: the one path by which a member comes back, from a clean stop and
//! from any crash alike.
//!
//! Order: identity → database (its applied index, the index rebuilt from its records) → log after that index. A crash between any
//! two steps of an earlier start leaves a directory that this same path completes.

use crate::{
    actors::restore::{self, RestoreError},
    clock,
    config::Config,
    kv::{index::Index as Tree, machine::Restored},
    raft::{self, InitialState, InitialStateError, LogId, Membership},
    storage::{
        db::{self, Db, DbError, DbOptions, DbReader},
        disk::Disk,
        member::{self, Member, MemberError},
        real_disk::DiskError,
        wal::{self, Recovered, Wal, WalError, WalOptions},
    },
    types::{ClusterId, NodeId},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{io, sync::Arc};

/// The database's file.
const DATABASE: &str = "db/revisions.redb";
/// The log's directory.
const LOG: &str = "wal";

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The data directory's identity.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The state in the database.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// The log.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The log and the database do not fit together.
    #[error("the data directory cannot be continued: {0}")]
    Raft(#[from] InitialStateError),
    /// The membership is not one.
    #[error(transparent)]
    Membership(#[from] raft::MembershipError),
    /// A part of the data directory is gone.
    #[error(
        "the data directory belongs to member {name} but its {what} is missing: restore it from a backup, or, in a cluster with \
         a healthy majority, remove this member, delete its data directory and add it anew"
    )]
    Incomplete {
        /// The member's name.
        name: String,
        /// What is not there.
        what: &'static str,
    },
    /// The port for clients cannot be opened.
    #[error("cannot listen for clients on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// Why not.
        source: io::Error,
    },
    /// The system does not tell of signals.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// The node's thread ended before it was up.
    #[error("the node's thread ended while starting")]
    Thread,
}

/// A member as its data directory left it.
pub(super) struct Recovery {
    pub member: Member,
    pub db: Db,
    pub reader: DbReader,
    pub wal: Wal,
    pub restored: Restored,
    pub tree: Tree,
    pub raft: raft::Node,
}

/// Opens or creates everything in the data directory.
pub(super) fn recover(config: &Config, disk: &Arc<dyn Disk>) -> Result<Recovery, StartError> {
    let (member, fresh) = identity(config, &**disk)?;
    let (cluster, node) = (member.cluster, member.node);
    let options = DbOptions {
        cache_bytes: config.storage.database_cache_bytes,
    };
    let db = Db::open(&**disk, DATABASE, options, db::Identity { cluster, node })?;
    let (restored, tree) = restore::restore(&db)?;
    let wal_options = WalOptions {
        segment_bytes: config.storage.wal_segment_bytes,
        ..WalOptions::new(wal::Identity { cluster, node }, clock::entropy())
    };
    let (wal, recovered) = Wal::open(disk.clone(), LOG, wal_options, db.applied().index)?;
    complete(&member, fresh, &db, &recovered)?;
    if let Some(cut) = &recovered.cut {
        tracing::warn!("a crash tore the log's last write, which nobody was told of: {cut:?}");
    }
    if fresh {
        member::write(&**disk, &member)?;
    }
    let raft = consensus(config, node, &db, recovered)?;
    let reader = db.reader()?;
    Ok(Recovery {
        member,
        db,
        reader,
        wal,
        restored,
        tree,
        raft,
    })
}

/// The directory's identity; a new one gets the identity that the configuration gives, and is marked as fresh.
fn identity(config: &Config, disk: &dyn Disk) -> Result<(Member, bool), StartError> {
    if let Some(member) = member::read(disk)? {
        return Ok((member, false));
    }
    let node = NodeId(id_of(&[
        &config.cluster.token,
        &config.name,
        &config.peer_advertise().to_string(),
    ]));
    let cluster = ClusterId(id_of(&[&config.cluster.token, &node.hex()]));
    let member = Member {
        cluster,
        node,
        name: config.name.clone(),
    };
    Ok((member, true))
}

/// A directory that lost its database or its log must not start as if it were new: it would forget what it acknowledged, and
/// whom it voted for. The identity is written last, so a first start that was cut short is simply done again.
fn complete(member: &Member, fresh: bool, db: &Db, log: &Recovered) -> Result<(), StartError> {
    let missing = match (fresh, db.created(), log.created) {
        (false, true, _) => Some("database"),
        (false, _, true) => Some("log"),
        _ => None,
    };
    match missing {
        Some(what) => Err(StartError::Incomplete {
            name: member.name.clone(),
            what,
        }),
        None => Ok(()),
    }
}

fn consensus(
    config: &Config,
    node: NodeId,
    db: &Db,
    recovered: Recovered,
) -> Result<raft::Node, StartError> {
    let applied = db.applied();
    let context = Bytes::from(config.name.clone());
    let election = config.raft.election.as_millis() / config.raft.heartbeat.as_millis().max(1);
    let raft_config = raft::Config {
        election_ticks: u32::try_from(election).unwrap_or(u32::MAX),
        ..raft::Config::new(node, clock::entropy())
    };
    let state = InitialState {
        hard_state: recovered.hard_state,
        applied: applied.index,
        membership: Membership::of_voters([(node, context)])?,
        start: LogId::new(applied.term, applied.index),
        evicted_terms: Vec::new(),
        entries: recovered.entries,
    };
    Ok(raft::Node::new(raft_config, state)?)
}

/// An id that the same words always give, and different ones practically never.
fn id_of(words: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for word in words {
        hash.update((word.len() as u64).to_be_bytes());
        hash.update(word.as_bytes());
    }
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // Zero stands for nobody.
    u64::from_be_bytes(first).max(1)
}
