//! `quorate recover`: when a majority of a cluster is gone for good, one survivor's data becomes a new cluster of one member.
//!
//! The survivor's directory stays as it was; everything happens in a new one, whose identity is written last, so that a
//! directory which is not complete is not started. All that the survivor has is kept: its database, and every entry of its log,
//! also those of which it does not know whether they were committed. Some of them may never have been acknowledged; none that was
//! is left out, as far as this member had it. What the lost majority acknowledged and this member never got is gone.
//!
//! The cluster's id is new, so members of the old cluster that turn up later are refused. Changes of the old membership in the
//! log become entries without effect; the only member is this one, under its old id.

use super::recover::{DATABASE, LOG, StartError};
use crate::{
    actors::{
        members::{MemberInfo, Members},
        restore::{self, RestoreError},
    },
    clock,
    raft::Membership,
    storage::{
        db::{Db, DbOptions},
        disk::{Disk, OpenMode},
        member::{self, Owner},
        real_disk::RealDisk,
        wal::{Append, Recovered, Wal, WalOptions},
    },
    types::{ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId},
};
use bytes::Bytes;
use std::{fmt, io, path::Path, path::PathBuf, sync::Arc};

/// Where the old log is kept until the new one is whole.
const OLD_LOG: &str = "wal.before";
/// Bytes that are copied, and entries that are read, at once.
const COPY_BYTES: usize = 4 * 1024 * 1024;

/// Why a survivor's data cannot become a new cluster. The directory it was asked from is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum SurvivorError {
    /// There is no member's data to begin with.
    #[error("{} holds no member's data: it has no file named member", path.display())]
    NoMember {
        /// The directory.
        path: PathBuf,
    },
    /// The new directory is there already.
    #[error("{} exists and is not empty: recover into a directory of its own", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file cannot be copied.
    #[error("cannot copy {name}: {source}")]
    Copy {
        /// Which file of the data directory.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be removed, or a directory read.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data cannot be read, as at a start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What was done, for the operator.
#[derive(Debug)]
pub struct Survival {
    from: PathBuf,
    into: PathBuf,
    owner: Owner,
    cluster: ClusterId,
    /// Members of the old cluster that the new one does not have.
    left_out: Vec<(MemberId, String)>,
    applied: LogIndex,
    committed: LogIndex,
    last: LogIndex,
}

impl fmt::Display for Survival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, old) = (&self.owner, self.owner.identity.cluster);
        writeln!(f, "read       {} (unchanged)", self.from.display())?;
        writeln!(f, "wrote      {}", self.into.display())?;
        writeln!(
            f,
            "member     {} ({}), as before",
            owner.name,
            owner.identity.member.hex()
        )?;
        writeln!(f, "cluster    {:x}, before {:x}", self.cluster.0, old.0)?;
        for (id, name) in &self.left_out {
            writeln!(f, "left out   member {name} ({})", id.hex())?;
        }
        writeln!(
            f,
            "data       through log entry {}, all of it kept",
            self.last
        )?;
        writeln!(
            f,
            "           {} entries are replayed at the start",
            self.last.0 - self.applied.0
        )?;
        let unsure = self.last.0.saturating_sub(self.committed.0);
        writeln!(
            f,
            "           {unsure} entries at its end were not known to be committed, and count now"
        )?;
        write!(
            f,
            "next       start {} with --data-dir {}, then add members one by one",
            owner.name,
            self.into.display()
        )
    }
}

/// Makes the data of the stopped member in `from` that of a cluster of its own, in `into`.
pub fn recover_survivor(from: &Path, into: &Path) -> Result<Survival, SurvivorError> {
    let old = open_old(from)?;
    require_empty(into)?;
    let new = RealDisk::open(into).map_err(StartError::from)?;
    let new: Arc<dyn Disk> = Arc::new(new);
    let owner = member::read(&old).map_err(StartError::from)?;
    let owner = owner.ok_or_else(|| SurvivorError::NoMember {
        path: from.to_owned(),
    })?;
    copy(&old, &*new, DATABASE, DATABASE)?;
    for name in old.list(LOG).map_err(io_at(from))? {
        if name.strip_suffix(".seg").is_some() {
            copy(
                &old,
                &*new,
                &format!("{LOG}/{name}"),
                &format!("{OLD_LOG}/{name}"),
            )?;
        }
    }
    for dir in ["", "db", OLD_LOG] {
        new.sync_dir(dir).map_err(io_at(into))?;
    }
    let mut survival = rebuild(&new, owner)?;
    for name in new.list(OLD_LOG).map_err(io_at(into))? {
        new.remove(&format!("{OLD_LOG}/{name}"))
            .map_err(io_at(into))?;
    }
    (survival.from, survival.into) = (from.to_owned(), into.to_owned());
    Ok(survival)
}

fn open_old(from: &Path) -> Result<RealDisk, SurvivorError> {
    let no_member = SurvivorError::NoMember {
        path: from.to_owned(),
    };
    // Opening a directory would create it.
    if !from.join("member").is_file() {
        return Err(no_member);
    }
    Ok(RealDisk::open(from).map_err(StartError::from)?)
}

fn require_empty(into: &Path) -> Result<(), SurvivorError> {
    let first = match std::fs::read_dir(into) {
        Ok(mut names) => names.next(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(io_at(into)(source)),
    };
    match first {
        None => Ok(()),
        Some(_) => Err(SurvivorError::NotEmpty {
            path: into.to_owned(),
        }),
    }
}

fn io_at(path: &Path) -> impl Fn(io::Error) -> SurvivorError {
    move |source| SurvivorError::Io {
        path: path.to_owned(),
        source,
    }
}

fn copy(from: &dyn Disk, to: &dyn Disk, name: &str, new_name: &str) -> Result<(), SurvivorError> {
    let failed = |source| SurvivorError::Copy {
        name: name.to_owned(),
        source,
    };
    let mode = |create| OpenMode {
        create,
        direct: false,
    };
    let source = from.open(name, mode(false)).map_err(failed)?;
    let target = to.open(new_name, mode(true)).map_err(failed)?;
    let len = source.len().map_err(failed)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < len {
        let bytes = usize::try_from(len - at)
            .unwrap_or(COPY_BYTES)
            .min(COPY_BYTES);
        source.read_at(at, &mut buffer[..bytes]).map_err(failed)?;
        target.write_at(at, &buffer[..bytes]).map_err(failed)?;
        at += bytes as u64;
    }
    target.sync_data().map_err(failed)
}

/// Turns the copied data into the new cluster's, identity last.
fn rebuild(disk: &Arc<dyn Disk>, owner: Owner) -> Result<Survival, StartError> {
    let mut db = Db::open(&**disk, DATABASE, DbOptions::default(), owner.identity)?;
    let options = WalOptions::new(owner.identity, clock::entropy());
    let (old, recovered) = Wal::open(disk.clone(), OLD_LOG, options, db.applied().index)?;
    let missing = match (db.created(), recovered.created) {
        (true, _) => Some("database"),
        (_, true) => Some("log"),
        (false, false) => None,
    };
    if let Some(what) = missing {
        return Err(StartError::Incomplete {
            name: owner.name,
            what,
        });
    }
    let before = newest_membership(&db, &recovered)?;
    let members = Members::of(&before).map_err(RestoreError::from)?;
    let alone = alone(&members, &owner)?;

    let identity = Identity {
        cluster: ClusterId(clock::entropy().max(1)),
        member: owner.identity.member,
    };
    let options = WalOptions::new(identity, clock::entropy());
    let (mut log, _) = Wal::open(disk.clone(), LOG, options, LogIndex(0))?;
    copy_log(&old, &recovered, db.applied(), &mut log)?;
    log.seal()?;
    let applied = db.applied().index;
    db.adopt(identity, &restore::alone_meta(&alone.encode()))?;
    let name = owner.name.clone();
    member::write(&**disk, &Owner { identity, name })?;
    let others = members.iter().filter(|other| other.id != identity.member);
    Ok(Survival {
        from: PathBuf::new(),
        into: PathBuf::new(),
        cluster: identity.cluster,
        left_out: others
            .map(|other| (other.id, other.info.name.clone()))
            .collect(),
        applied,
        committed: recovered.hard_state.commit.max(applied),
        last: recovered.last.max(applied),
        owner,
    })
}

/// The last membership that the member had, committed or not.
fn newest_membership(db: &Db, recovered: &Recovered) -> Result<Membership, StartError> {
    let mut newest = restore::membership(db)?;
    for entry in &recovered.entries {
        if entry.kind == EntryKind::Membership {
            newest = Some(entry.data.clone());
        }
    }
    match newest {
        Some(bytes) => Ok(Membership::decode(&bytes)?),
        None => Ok(Membership::default()),
    }
}

/// The membership with this member alone, which has a vote.
fn alone(members: &Members, owner: &Owner) -> Result<Membership, StartError> {
    let member = owner.identity.member;
    let mut info = members.get(member).map_or_else(
        || MemberInfo {
            name: owner.name.clone(),
            ..MemberInfo::default()
        },
        |own| own.info.clone(),
    );
    info.awaits_vote = false;
    Ok(Membership::of_voters([(member, info.encode())])?)
}

/// Copies every entry, the old changes of the membership without their effect. A log that does not begin with the first entry
/// begins after one whose term is known.
fn copy_log(
    old: &Wal,
    recovered: &Recovered,
    applied: LogPosition,
    log: &mut Wal,
) -> Result<(), StartError> {
    let reader = old.reader();
    let mut next = recovered.base.next();
    let mut hard_state = recovered.hard_state;
    if recovered.base > LogIndex(0) || recovered.last < applied.index {
        let mark = mark_after(
            &reader.read(next, 1).unwrap_or_default(),
            recovered,
            applied,
        );
        next = mark.index.next();
        hard_state.commit = hard_state.commit.max(mark.index);
        log.append(&Append {
            snapshot: Some(mark),
            ..Append::default()
        })?;
    }
    while next <= recovered.last {
        let entries: Vec<Entry> = reader
            .read(next, COPY_BYTES)?
            .into_iter()
            .map(inert)
            .collect();
        next = entries
            .last()
            .map_or(recovered.last, |last| last.index)
            .next();
        log.append(&Append {
            entries: &entries,
            ..Append::default()
        })?;
        log.flush()?;
    }
    log.append(&Append {
        hard_state: Some(hard_state),
        ..Append::default()
    })?;
    Ok(log.flush()?)
}

fn mark_after(first: &[Entry], recovered: &Recovered, applied: LogPosition) -> LogPosition {
    let before_applied = first.iter().find(|entry| entry.index <= applied.index);
    match before_applied.filter(|_| recovered.last >= applied.index) {
        Some(entry) => entry.position(),
        None => applied,
    }
}

/// An entry as it stands in the new cluster's log.
fn inert(entry: Entry) -> Entry {
    match entry.kind {
        EntryKind::Membership => Entry {
            kind: EntryKind::Noop,
            data: Bytes::new(),
            ..entry
        },
        EntryKind::Noop | EntryKind::Command => entry,
    }
}
