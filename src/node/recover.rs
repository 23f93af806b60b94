//! From a data directory to everything the actors start with: the one path by which a member comes back, from a clean stop and
//! from any crash alike.
//!
//! Order: identity → database (its applied index, the index rebuilt from its records) → log after that index. A crash between any
//! two steps of an earlier start leaves a directory that this same path completes.

use super::{
    join::{self, Joined},
    refill,
};
use crate::{
    actors::{
        members::{MemberInfo, Members, id_of},
        restore::{self, RestoreError},
    },
    clock,
    config::{Config, ConfigError, HostPort},
    kv::{index::Index as Tree, machine::Restored},
    net::NetError,
    raft::{self, InitialState, InitialStateError, Membership},
    storage::{
        db::{CommitBatch, Db, DbError, DbOptions, DbReader, DbSite},
        disk::Disk,
        member::{self, MemberError, Owner},
        real_disk::DiskError,
        wal::{Append, Recovered, Wal, WalError, WalOptions, WalReader},
    },
    types::{ClusterId, Entry, Identity, LogIndex, LogPosition, MemberId},
};
use bytes::Bytes;
use std::{collections::BTreeMap, io, sync::Arc};

/// The database's file.
pub(super) const DATABASE: &str = "db/revisions.redb";
/// Bytes of the log that are read at once.
const HISTORY_READ_BYTES: usize = 4 * 1024 * 1024;
/// The log's directory.
pub(super) const LOG: &str = "wal";

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
    /// The data directory is another member's.
    #[error(
        "the data directory belongs to member {holds:?}, not to {name:?}: give each member a data_dir of its own; a member's \
         name never changes"
    )]
    OtherMember {
        /// Whose it is.
        holds: String,
        /// What this member is called.
        name: String,
    },
    /// The peers' connections.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The settings do not go with what the data directory holds.
    #[error(transparent)]
    Config(ConfigError),
    /// No member of the running cluster can be asked.
    #[error(
        "cannot join the cluster: none of its members answers at the addresses in cluster.initial: {0}"
    )]
    NobodyAnswers(String),
    /// Nobody added this member.
    #[error(
        "cannot join the cluster: its members know nobody at {address}; add this member first: etcdctl member add {name} \
         --peer-urls={scheme}://{address}"
    )]
    NotAdded {
        /// What this member is called.
        name: String,
        /// Where it says the others reach it.
        address: String,
        /// How.
        scheme: &'static str,
    },
    /// The member has run, and its directory is new.
    #[error(
        "member {name:?} has been part of this cluster already, and its data directory is gone or new: what it promised is \
         lost with it. Remove the member, and add it anew"
    )]
    HasRun {
        /// What it is called.
        name: String,
    },
    /// The wish for another database cannot be read or carried out.
    #[error("cannot put the database aside: {0}")]
    Refill(io::Error),
    /// Whom to get it from is not known.
    #[error(
        "this member's database is to be replaced by a snapshot, but it cannot be read and no member in cluster.initial answers: \
         start this member again once one can be reached"
    )]
    RefillUnknown,
    /// There is nobody to get it from.
    #[error(
        "this member's database is to be replaced by a snapshot, but it is the only member: restore it from a backup, or remove \
         the file named refill from its data directory to start with the database as it is"
    )]
    RefillAlone,
    /// The log does not reach far enough.
    #[error(
        "this member waits for a snapshot, but its log holds no entry of which it is known that it was committed: remove this \
         member, delete its data directory and add it anew"
    )]
    RefillLog,
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
    pub owner: Owner,
    pub db: Db,
    pub site: DbSite,
    pub reader: DbReader,
    pub wal: Wal,
    pub restored: Restored,
    pub tree: Tree,
    pub raft: raft::Node,
    /// The members at the applied index.
    pub members: Members,
    /// The members that were there when this one joined, or began to wait for a snapshot.
    pub seed: Members,
    /// The database is one that a snapshot has to replace.
    pub awaits_snapshot: bool,
}

/// Opens or creates everything in the data directory.
pub(super) fn recover(
    config: &Config,
    disk: &Arc<dyn Disk>,
    joined: Option<Joined>,
    told: Option<&Bytes>,
) -> Result<Recovery, StartError> {
    let (owner, fresh) = owner(config, &**disk, joined.as_ref())?;
    let options = DbOptions {
        cache_bytes: config.storage.database_cache_bytes,
    };
    let site = DbSite {
        disk: disk.clone(),
        name: DATABASE,
        options,
        identity: owner.identity,
    };
    if !fresh {
        refill::put_aside(&site, told)?;
    }
    let mut db = Db::open(&**disk, DATABASE, options, site.identity)?;
    let awaits_snapshot = restore::awaits_snapshot(&db)?;
    let (restored, tree) = restore::restore(&db)?;
    let wal_options = WalOptions {
        segment_bytes: config.storage.wal_segment_bytes,
        ..WalOptions::new(owner.identity, clock::entropy())
    };
    let applied = if awaits_snapshot {
        committed(disk, wal_options)?
    } else {
        db.applied()
    };
    let (mut wal, mut recovered) = Wal::open(disk.clone(), LOG, wal_options, applied.index)?;
    complete(&owner, fresh, &db, &recovered)?;
    if let Some(cut) = &recovered.cut {
        tracing::warn!("a crash tore the log's last write, which nobody was told of: {cut:?}");
    }
    begin_after_snapshot(&mut wal, &mut recovered, applied)?;
    let mut membership = membership(config, &mut db, joined)?;
    let members = Members::of(&membership).map_err(RestoreError::from)?;
    let seed = match restore::seed(&db)? {
        Some(bytes) => Members::decode(&bytes).map_err(RestoreError::from)?,
        None => Members::default(),
    };
    if fresh {
        member::write(&**disk, &owner)?;
    }
    // Only one that has no port for members is sure to stay alone.
    let alone = members.iter().count() <= 1
        && seed.iter().next().is_none()
        && join::security(config).is_none();
    let history = if alone {
        History::none(applied)
    } else {
        History::read(applied, &wal.reader(), &recovered)?
    };
    if let (true, Some(bytes)) = (awaits_snapshot, restore::seed(&db)?) {
        membership = Membership::decode(&bytes)?;
    }
    let mut state = initial_state(applied, membership, history, recovered);
    state.awaits_snapshot = awaits_snapshot;
    let raft = raft::Node::new(raft_config(config, owner.identity.member), state)?;
    let reader = db.reader()?;
    Ok(Recovery {
        owner,
        db,
        site,
        reader,
        wal,
        restored,
        tree,
        raft,
        members,
        seed,
        awaits_snapshot,
    })
}

/// Whose directory it is; a new one gets the identity that the configuration gives, and is marked as fresh.
fn owner(
    config: &Config,
    disk: &dyn Disk,
    joined: Option<&Joined>,
) -> Result<(Owner, bool), StartError> {
    if let Some(owner) = member::read(disk)? {
        if owner.name != config.name {
            return Err(StartError::OtherMember {
                holds: owner.name,
                name: config.name.clone(),
            });
        }
        return Ok((owner, false));
    }
    let identity = if let Some(joined) = joined {
        Identity {
            cluster: joined.cluster,
            member: joined.id,
        }
    } else {
        let formed = initial_ids(config);
        Identity {
            cluster: cluster_id(config, &formed),
            member: formed[&config.name],
        }
    };
    let name = config.name.clone();
    Ok((Owner { identity, name }, true))
}

/// The id of the cluster that these settings form.
pub(super) fn formed_cluster(config: &Config) -> ClusterId {
    cluster_id(config, &initial_ids(config))
}

/// The members that form the cluster, by name: ids that follow from token, name and address, so that all members agree.
fn initial_ids(config: &Config) -> BTreeMap<String, MemberId> {
    let id = |name: &str, peer: &HostPort| {
        MemberId(id_of(&[&config.cluster.token, name, &peer.to_string()]))
    };
    let mut ids: BTreeMap<String, MemberId> = config
        .cluster
        .initial
        .iter()
        .map(|member| (member.name.clone(), id(&member.name, &member.peer)))
        .collect();
    ids.entry(config.name.clone())
        .or_insert_with(|| id(&config.name, config.peer_advertise()));
    ids
}

/// A cluster's id follows from all members that form it.
fn cluster_id(config: &Config, members: &BTreeMap<String, MemberId>) -> ClusterId {
    let mut ids: Vec<String> = members.values().map(|id| id.hex()).collect();
    ids.sort();
    let mut words = vec![config.cluster.token.as_str()];
    words.extend(ids.iter().map(String::as_str));
    ClusterId(id_of(&words))
}

/// The membership that the cluster begins with. What a member is called by its clients it says itself, later; one that is
/// alone has nobody to tell.
fn bootstrap(config: &Config) -> Result<Membership, StartError> {
    let alone = config.cluster.initial.len() <= 1;
    let ids = initial_ids(config);
    let peers: BTreeMap<&str, String> = config
        .cluster
        .initial
        .iter()
        .map(|member| (member.name.as_str(), member.peer.to_string()))
        .collect();
    let scheme = config.peer.tls.scheme();
    let voters = ids.iter().map(|(name, id)| {
        let own = config.peer_advertise().to_string();
        let peer = peers.get(name.as_str()).unwrap_or(&own);
        let info = MemberInfo {
            name: name.clone(),
            peer_urls: vec![format!("{scheme}://{peer}")],
            client_urls: if alone {
                client_urls(config)
            } else {
                Vec::new()
            },
            awaits_vote: false,
        };
        (*id, info.encode())
    });
    Ok(Membership::of_voters(voters)?)
}

/// Where clients reach this member.
pub(super) fn client_urls(config: &Config) -> Vec<String> {
    vec![format!("http://{}", config.client_advertise())]
}

/// The membership at the applied index. A directory that has none yet gets the one that the cluster begins with. A member that
/// joins has none: it learns of all in the log, and until then knows whom to listen to.
fn membership(
    config: &Config,
    db: &mut Db,
    joined: Option<Joined>,
) -> Result<Membership, StartError> {
    if let Some(bytes) = restore::membership(db)? {
        return Ok(Membership::decode(&bytes)?);
    }
    if restore::seed(db)?.is_some() {
        return Ok(Membership::default());
    }
    let (membership, meta) = if let Some(joined) = joined {
        (
            Membership::default(),
            restore::seed_meta(&joined.membership),
        )
    } else {
        let begins = bootstrap(config)?;
        let meta = restore::membership_meta(&begins.encode());
        (begins, meta)
    };
    db.commit(&CommitBatch {
        applied: db.applied(),
        meta,
        ..CommitBatch::default()
    })?;
    Ok(membership)
}

/// A directory that lost its database or its log must not start as if it were new: it would forget what it acknowledged, and
/// whom it voted for. The identity is written last, so a first start that was cut short is simply done again.
fn complete(owner: &Owner, fresh: bool, db: &Db, log: &Recovered) -> Result<(), StartError> {
    let missing = match (fresh, db.created(), log.created) {
        (false, true, _) => Some("database"),
        (false, _, true) => Some("log"),
        _ => None,
    };
    match missing {
        Some(what) => Err(StartError::Incomplete {
            name: owner.name.clone(),
            what,
        }),
        None => Ok(()),
    }
}

/// A snapshot took the database's place, and the member died before its log was told: the log ends before the snapshot, or it
/// has another entry where the snapshot stands, which was never committed. Either way nothing in it counts any more, but the
/// term and the vote.
fn begin_after_snapshot(
    wal: &mut Wal,
    recovered: &mut Recovered,
    applied: LogPosition,
) -> Result<(), StartError> {
    let behind = recovered.last < applied.index;
    let inside = recovered.base < applied.index && !behind;
    let differs = inside
        && wal
            .reader()
            .read(applied.index, 1)?
            .first()
            .is_none_or(|entry| entry.term != applied.term);
    if !behind && !differs {
        return Ok(());
    }
    let hard_state = &mut recovered.hard_state;
    hard_state.commit = hard_state.commit.min(applied.index);
    wal.append(&Append {
        snapshot: Some(LogPosition {
            index: applied.index,
            term: applied.term,
        }),
        hard_state: Some(*hard_state),
        entries: &[],
    })?;
    wal.flush()?;
    tracing::info!(
        index = applied.index.0,
        "the log begins anew after the snapshot that the database is"
    );
    recovered.entries.clear();
    (recovered.base, recovered.last) = (applied.index, applied.index);
    Ok(())
}

/// What the log still holds of what is applied: other members may need it.
struct History {
    /// It begins after this.
    start: LogPosition,
    /// The first entry of each term after that, before the applied one.
    terms: Vec<LogPosition>,
    /// The applied entry.
    last: Option<Entry>,
}

impl History {
    /// Nobody needs any.
    fn none(applied: LogPosition) -> Self {
        Self {
            start: applied,
            terms: Vec::new(),
            last: None,
        }
    }

    /// Reads the log from its beginning to the applied entry.
    fn read(
        applied: LogPosition,
        log: &WalReader,
        recovered: &Recovered,
    ) -> Result<Self, StartError> {
        let mut history = Self::none(applied);
        let applied = applied.index;
        if recovered.base >= applied || recovered.last < applied {
            return Ok(history);
        }
        let mut next = recovered.base.next();
        let mut after: Option<LogPosition> =
            (recovered.base == LogIndex(0)).then(LogPosition::default);
        while next <= applied {
            for entry in log.read(next, HISTORY_READ_BYTES)? {
                if entry.index > applied {
                    break;
                }
                next = entry.index.next();
                let id = entry.position();
                match after {
                    // The term before the first entry that is left is not known, so the log begins behind that entry.
                    None => history.start = id,
                    Some(_) if entry.index == applied => history.last = Some(entry),
                    Some(before) if before.term != id.term => history.terms.push(id),
                    Some(_) => {}
                }
                if after == Some(LogPosition::default()) {
                    history.start = LogPosition::default();
                }
                after = Some(id);
            }
        }
        Ok(history)
    }
}

/// What the log of a member without a database says: the newest entry of which it is known that it was committed.
fn committed(disk: &Arc<dyn Disk>, options: WalOptions) -> Result<LogPosition, StartError> {
    let (wal, recovered) = Wal::open(disk.clone(), LOG, options, LogIndex(u64::MAX))?;
    let index = recovered.hard_state.commit;
    if index <= recovered.base {
        return Err(StartError::RefillLog);
    }
    let entries = wal.reader().read(index, 1)?;
    let entry = entries.first().ok_or(StartError::RefillLog)?;
    let term = entry.term;
    Ok(LogPosition { index, term })
}

fn raft_config(config: &Config, node: MemberId) -> raft::Config {
    let election = config.raft.election.as_millis() / config.raft.heartbeat.as_millis().max(1);
    raft::Config {
        election_ticks: u32::try_from(election).unwrap_or(u32::MAX),
        ..raft::Config::new(node, clock::entropy())
    }
}

fn initial_state(
    applied: LogPosition,
    membership: Membership,
    history: History,
    mut recovered: Recovered,
) -> InitialState {
    let mut entries: Vec<Entry> = history.last.into_iter().collect();
    entries.append(&mut recovered.entries);
    InitialState {
        hard_state: recovered.hard_state,
        applied: applied.index,
        membership,
        start: history.start,
        evicted_terms: history.terms,
        entries,
        awaits_snapshot: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        storage::sim_disk::SimDisk,
        types::{EntryKind, HardState, Term},
    };

    const VOTED: HardState = HardState {
        term: Term(4),
        vote: Some(MemberId(3)),
        commit: LogIndex(2),
    };

    fn open(disk: &SimDisk, applied: u64) -> (Wal, Recovered) {
        let identity = Identity {
            cluster: ClusterId(1),
            member: MemberId(2),
        };
        let options = WalOptions {
            segment_bytes: 64 * 1024,
            ..WalOptions::new(identity, 5)
        };
        Wal::open(Arc::new(disk.clone()), LOG, options, LogIndex(applied)).unwrap()
    }

    /// A log with the entries 1 to 5 of term 2.
    fn logged() -> SimDisk {
        let disk = SimDisk::new(1);
        let (mut wal, _) = open(&disk, 0);
        let entry = |index| Entry {
            term: Term(2),
            index: LogIndex(index),
            kind: EntryKind::Noop,
            data: Bytes::new(),
        };
        let entries: Vec<Entry> = (1..=5).map(entry).collect();
        wal.append(&Append {
            snapshot: None,
            hard_state: Some(VOTED),
            entries: &entries,
        })
        .unwrap();
        wal.flush().unwrap();
        disk
    }

    /// What is left of that log when the database is a snapshot at `index` and `term`: its entries, and what a further start
    /// finds.
    fn left(index: u64, term: u64) -> (Vec<u64>, Recovered) {
        let disk = logged();
        let applied = LogPosition {
            index: LogIndex(index),
            term: Term(term),
        };
        let (mut wal, mut recovered) = open(&disk, index);
        begin_after_snapshot(&mut wal, &mut recovered, applied).unwrap();
        let entries = recovered.entries.iter().map(|entry| entry.index.0);
        let entries = entries.collect();
        drop(wal);
        disk.crash();
        let (mut wal, again) = open(&disk, index);
        assert_eq!(
            (again.base, again.last, again.entries.len()),
            (recovered.base, recovered.last, recovered.entries.len()),
            "it is durable"
        );
        // What follows finds its place.
        let next = Entry {
            term: Term(9),
            index: again.last.next(),
            kind: EntryKind::Noop,
            data: Bytes::new(),
        };
        let (snapshot, hard_state) = (None, None);
        wal.append(&Append {
            snapshot,
            hard_state,
            entries: &[next],
        })
        .unwrap();
        wal.flush().unwrap();
        (entries, again)
    }

    #[test]
    fn a_log_that_ends_before_the_snapshot_begins_after_it() {
        let (entries, log) = left(9, 3);
        assert_eq!(entries, [] as [u64; 0]);
        assert_eq!((log.base, log.last), (LogIndex(9), LogIndex(9)));
        let HardState { term, vote, .. } = log.hard_state;
        assert_eq!((term, vote), (VOTED.term, VOTED.vote), "promises stay");
    }

    #[test]
    fn a_log_with_another_entry_in_its_place_is_void() {
        let (entries, log) = left(3, 3);
        assert_eq!(entries, [] as [u64; 0]);
        assert_eq!((log.base, log.last), (LogIndex(3), LogIndex(3)));
    }

    #[test]
    fn a_log_that_has_its_very_entry_goes_on() {
        let (entries, log) = left(3, 2);
        assert_eq!(entries, [4, 5]);
        assert_eq!((log.base, log.last), (LogIndex(0), LogIndex(5)));
    }
}
