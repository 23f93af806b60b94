//! From a data directory to everything the actors start with: the one path by which a member comes back, after a clean stop and
//! after any crash.
//!
//! First a [`Plan`], made without writing anything; then the database (its applied index, and the index rebuilt from its records)
//! and the log after that index. `docs/data-directory.md` says what a crash between any two steps leaves.

use super::{
    data_directory::{self, Contents, DATABASE, LOG},
    error::StartError,
    identity::{first_membership, formed_member, report_differences, require_own},
    network::{self, PeerNetwork},
    progress::Progress,
    questions::{self, Beginning, Joined},
    refill,
};
use crate::{
    actors::{
        held,
        load::{self, LoadStateError},
        members::Members,
    },
    clock,
    config::Config,
    failpoint::{self, FailPoint},
    kv::{index::Index as Tree, machine::LoadedState},
    raft::{self, InitialState, Membership},
    storage::{
        db::{CommitBatch, Db, DbOptions, DbReader, DbSite},
        disk::Disk,
        member::{self, Owner},
        starts::{self, Origin, Starts},
        wal::{Append, Recovered, Wal, WalOptions, WalReader},
    },
    types::{Entry, Identity, LogIndex, LogPosition, MemberId},
};
use bytes::Bytes;
use std::sync::Arc;

/// Bytes of the log that are read at once.
const HISTORY_READ_BYTES: usize = 4 * 1024 * 1024;

/// A member whose data directory is open: what the actors start with.
pub(super) struct OpenMember {
    pub owner: Owner,
    pub db: Db,
    pub site: DbSite,
    pub reader: DbReader,
    pub wal: Wal,
    pub loaded: LoadedState,
    pub tree: Tree,
    pub raft: raft::RaftCore,
    /// The members at the applied index.
    pub members: Members,
    /// The members that were there when this one joined, or began to wait for a snapshot.
    pub known_members: Members,
    /// The database is one that a snapshot has to replace.
    pub awaits_snapshot: bool,
    pub starts: Starts,
}

/// Which member this is, and how it begins. A first start has written nothing when it is made.
#[derive(Debug)]
pub(super) struct Plan {
    pub owner: Owner,
    /// How a member without data begins; `None` if it has data.
    pub beginning: Option<Beginning>,
    /// It was restored, and has asked the others before this start of its actors.
    pub begins_restored: bool,
    /// The membership with which the database is put aside, if that is asked for and the membership is known.
    refill_members: Option<Bytes>,
}

/// Finds out which member this is: from the data directory, or, on a first start, from the configuration and the other members.
/// A first start writes nothing here; the first one of a restored member writes that it has asked the others. Waits for as long
/// as other members have to be asked.
pub(super) async fn plan(
    config: &Config,
    disk: &Arc<dyn Disk>,
    network: Option<&dyn PeerNetwork>,
    progress: &Progress,
) -> Result<Plan, StartError> {
    match data_directory::inspect(&**disk)? {
        Contents::Member(owner) => {
            let mut plan = plan_restart(config, owner)?;
            // Before a refill, which takes what others say for this member's own membership.
            plan.begins_restored =
                begin_restored(config, disk, network, &plan.owner, progress).await?;
            let site = site(config, disk, &plan.owner);
            if refill::is_asked_for(&**disk)? && !refill::is_nearly_done(&site) {
                let own = refill::own_members(&site);
                plan.refill_members =
                    questions::members_for_refill(config, network, &plan.owner, own, progress)
                        .await?;
            }
            Ok(plan)
        }
        Contents::New => Ok(plan_first_start(
            config,
            questions::first_start(config, network, progress).await?,
        )),
    }
}

/// Asks the others at the first start of a restored member whether it has taken part before, and writes that it has asked them.
/// Returns whether this is such a start.
async fn begin_restored(
    config: &Config,
    disk: &Arc<dyn Disk>,
    network: Option<&dyn PeerNetwork>,
    owner: &Owner,
    progress: &Progress,
) -> Result<bool, StartError> {
    let starts = starts::read(&**disk)?;
    if !has_to_ask(&starts) {
        return Ok(false);
    }
    let members = restored_members(config, disk, owner)?;
    questions::restored_start(config, network, owner, members, progress).await?;
    let asked = Starts {
        origin: Origin::RestoredAndAsked,
        ..starts
    };
    starts::write(disk, &asked)?;
    Ok(true)
}

/// Whether it is the first start of a member that was restored as one of several.
fn has_to_ask(starts: &Starts) -> bool {
    starts.origin == Origin::Restored && !starts.begun
}

/// How many members were restored together with this one. If its database cannot be read, it is not known whom to ask; a refill
/// must not make this member one that begins unasked.
fn restored_members(
    config: &Config,
    disk: &Arc<dyn Disk>,
    owner: &Owner,
) -> Result<usize, StartError> {
    let stored = refill::own_members(&site(config, disk, owner));
    let stored = stored.ok_or_else(|| StartError::RestoredUnreadable {
        name: config.name.clone(),
    })?;
    let members = Members::decode(&stored).map_err(LoadStateError::from)?;
    Ok(members.iter().count())
}

/// As [`plan`], for a member that has no other member to ask.
pub(super) fn plan_alone(config: &Config, disk: &Arc<dyn Disk>) -> Result<Plan, StartError> {
    match data_directory::inspect(&**disk)? {
        Contents::Member(owner) => {
            let mut plan = plan_restart(config, owner)?;
            if has_to_ask(&starts::read(&**disk)?) {
                return Err(StartError::RestoredAlone {
                    name: config.name.clone(),
                    members: restored_members(config, disk, &plan.owner)?,
                });
            }
            if refill::is_asked_for(&**disk)? {
                plan.refill_members = refill::own_members(&site(config, disk, &plan.owner));
            }
            Ok(plan)
        }
        Contents::New => Ok(plan_first_start(config, Beginning::Forms)),
    }
}

fn plan_restart(config: &Config, owner: Owner) -> Result<Plan, StartError> {
    require_own(config, &owner)?;
    Ok(Plan {
        owner,
        beginning: None,
        begins_restored: false,
        refill_members: None,
    })
}

fn plan_first_start(config: &Config, beginning: Beginning) -> Plan {
    let owner = match &beginning {
        Beginning::Forms => formed_member(config),
        Beginning::Joins(joined) => Owner {
            identity: Identity {
                cluster: joined.cluster,
                member: joined.id,
            },
            name: config.name.clone(),
        },
    };
    Plan {
        owner,
        beginning: Some(beginning),
        begins_restored: false,
        refill_members: None,
    }
}

fn site(config: &Config, disk: &Arc<dyn Disk>, owner: &Owner) -> DbSite {
    DbSite {
        disk: disk.clone(),
        name: DATABASE,
        options: DbOptions {
            cache_bytes: config.storage.database_cache_bytes,
            record_cache_bytes: config.storage.record_cache_bytes,
        },
        identity: owner.identity,
    }
}

/// Opens everything in the data directory; a first start creates it.
pub(super) fn open(
    config: &Config,
    disk: &Arc<dyn Disk>,
    plan: Plan,
) -> Result<OpenMember, StartError> {
    let Plan {
        owner,
        beginning,
        begins_restored: _,
        refill_members,
    } = plan;
    let site = site(config, disk, &owner);
    match beginning {
        None => {
            data_directory::make_durable(&**disk)?;
            refill::put_aside(&site, refill_members.as_ref())?;
        }
        Some(_) => data_directory::begin_first_start(&**disk)?,
    }
    let mut db = Db::open(&**disk, DATABASE, site.options, site.identity)?;
    let awaits_snapshot = load::awaits_snapshot(&db)?;
    let (loaded, tree) = load::load_state(&db)?;
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
    report_log(&wal, &recovered);
    begin_after_snapshot(&mut wal, &mut recovered, applied)?;
    let origin = beginning.as_ref().map(|beginning| match beginning {
        Beginning::Forms => Origin::Formed,
        Beginning::Joins(_) => Origin::Joined,
    });
    let mut membership = membership(config, &mut db, beginning)?;
    let members = Members::of(&membership).map_err(LoadStateError::from)?;
    let known_members = known_members(&db)?;
    let starts = finish(config, disk, &owner, &members, origin)?;
    data_directory::end_first_start(&**disk)?;
    // Only a member that has no port for peers is sure to stay alone.
    let alone = members.iter().count() <= 1
        && known_members.iter().next().is_none()
        && network::security(config).is_none();
    let history = if alone {
        History::none(applied)
    } else {
        History::read(applied, &wal.reader(), &recovered)?
    };
    if let (true, Some(bytes)) = (awaits_snapshot, load::known_members(&db)?) {
        membership = Membership::decode(&bytes)?;
    }
    let mut state = initial_state(applied, membership, history, recovered);
    state.awaits_snapshot = awaits_snapshot;
    let raft = raft::RaftCore::new(raft_config(config, owner.identity.member), state)?;
    let reader = db.reader()?;
    Ok(OpenMember {
        owner,
        db,
        site,
        reader,
        wal,
        loaded,
        tree,
        raft,
        members,
        known_members,
        awaits_snapshot,
        starts,
    })
}

/// Logs what an operator should know about the write-ahead log.
fn report_log(wal: &Wal, recovered: &Recovered) {
    if let Some(cut) = &recovered.cut {
        tracing::warn!("a crash tore the log's last write, which was never acknowledged: {cut:?}");
    }
    let segments = wal.plain_segments();
    if segments > 0 {
        tracing::warn!(
            segments,
            "the log has segments from before encryption was turned on, which are not encrypted. They are deleted once the log \
             does not need them: a smaller storage.log_keep_entries makes that sooner"
        );
    }
}

/// On a first start, writes the member's identity, the data's `origin`, and whether the member takes part yet.
fn finish(
    config: &Config,
    disk: &Arc<dyn Disk>,
    owner: &Owner,
    members: &Members,
    origin: Option<Origin>,
) -> Result<Starts, StartError> {
    let Some(origin) = origin else {
        report_differences(config, owner, members);
        return Ok(starts::read(&**disk)?);
    };
    let others = members.iter().count() > 1;
    let starts = Starts::new(origin, origin != Origin::Formed || !others);
    starts::write(disk, &starts)?;
    failpoint::hit(FailPoint::BeforeMemberWrite);
    member::write(&**disk, owner)?;
    failpoint::hit(FailPoint::AfterMemberWrite);
    Ok(starts)
}

/// The members that were there when this one joined, or began to wait for a snapshot.
fn known_members(db: &Db) -> Result<Members, StartError> {
    Ok(match load::known_members(db)? {
        Some(bytes) => Members::decode(&bytes).map_err(LoadStateError::from)?,
        None => Members::default(),
    })
}

/// The membership at the applied index. A new directory gets the one that the cluster begins with. A member that joins has none:
/// the log brings it, and until then the member listens to those of the membership that it received when it joined.
fn membership(
    config: &Config,
    db: &mut Db,
    beginning: Option<Beginning>,
) -> Result<Membership, StartError> {
    if let Some(bytes) = load::membership(db)? {
        return Ok(Membership::decode(&bytes)?);
    }
    let (membership, meta) = match beginning {
        // It joined in an earlier start, and the log has not brought a membership yet.
        None => return Ok(Membership::default()),
        Some(Beginning::Joins(Joined { membership, .. })) => {
            (Membership::default(), load::known_members_meta(&membership))
        }
        Some(Beginning::Forms) => {
            let first = first_membership(config)?;
            let meta = load::membership_meta(&first.encode());
            (first, meta)
        }
    };
    db.commit(&CommitBatch {
        applied: db.applied(),
        meta,
        ..CommitBatch::default()
    })?;
    Ok(membership)
}

/// If a snapshot was installed and the process ended before the log was cut, the log ends before the snapshot, or has another
/// entry at the snapshot's index, which was never committed. Either way only the term and the vote in it still count: the log
/// begins anew after the snapshot.
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
        "the log begins anew after the snapshot in the database"
    );
    recovered.entries.clear();
    (recovered.base, recovered.last) = (applied.index, applied.index);
    Ok(())
}

/// The applied entries that the log still holds: other members may need them.
struct History {
    /// It begins after this.
    start: LogPosition,
    /// The first entry of each term after that, before the applied one.
    terms: Vec<LogPosition>,
    /// The applied entry.
    last: Option<Entry>,
}

impl History {
    /// An empty history, for a member without peers.
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

/// The newest position in the log that is known to be committed, for a member without a database: an entry, or the snapshot after
/// which the log begins.
fn committed(disk: &Arc<dyn Disk>, options: WalOptions) -> Result<LogPosition, StartError> {
    let (wal, recovered) = Wal::open(disk.clone(), LOG, options, LogIndex(u64::MAX))?;
    let index = recovered.hard_state.commit;
    if index <= recovered.base {
        // A commit index is stored with the next entries, so a log that has just begun after a snapshot may have an older one.
        let snapshot = recovered.snapshot.filter(|at| at.index == recovered.base);
        return snapshot.ok_or(StartError::RefillLog);
    }
    let entries = wal.reader().read(index, 1)?;
    let entry = entries.first().ok_or(StartError::RefillLog)?;
    let term = entry.term;
    Ok(LogPosition { index, term })
}

fn raft_config(config: &Config, node: MemberId) -> raft::Config {
    let election = config.raft.election.as_millis() / config.raft.heartbeat.as_millis().max(1);
    let usual = raft::Config::new(node, clock::entropy());
    raft::Config {
        election_ticks: u32::try_from(election).unwrap_or(u32::MAX),
        inflight_bytes_max: held::bound(usual.inflight_bytes_max),
        uncommitted_bytes_max: held::bound(usual.uncommitted_bytes_max),
        cached_bytes_max: held::bound(usual.cached_bytes_max),
        applying_bytes_max: held::bound(usual.applying_bytes_max),
        ..usual
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
        types::{ClusterId, EntryKind, HardState, Term},
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
        // The next entry can be appended.
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
