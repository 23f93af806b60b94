//! `quorate recover` (quorum recovery): when a majority of a cluster is gone for good, the data of one surviving member become a
//! new cluster of one member.
//!
//! The old directory stays as it was. The new one is marked as unfinished from its first byte to its last, so that a start
//! refuses it if the command was killed. Everything that the member has is kept: its database, and every entry of its log, also
//! those that may not have been committed. Some of these may never have been acknowledged; every acknowledged entry that this
//! member had is among them. What the lost majority acknowledged and this member never received is gone.
//!
//! The cluster's id is new, so members of the old cluster that are started later are refused. Membership changes of the old
//! cluster become entries without effect; the only member is this one, under its old id.

use super::{
    at_rest,
    data_directory::{self, Contents, DATABASE, LOG, OLD_LOG, UNFINISHED_RECOVERY},
    error::StartError,
};
use crate::{
    actors::{
        load::{self, LoadStateError},
        members::{MemberInfo, Members},
    },
    clock,
    config::EncryptionKey,
    failpoint::{self, FailPoint},
    raft::Membership,
    storage::{
        db::{Db, DbOptions},
        disk::{Disk, OpenMode},
        encryption::{self, EncryptedDisk, EncryptionError, KEYRING},
        member::{self, Owner},
        real_disk::RealDisk,
        wal::{Append, Recovered, Wal, WalOptions},
    },
    types::{ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId},
};
use bytes::Bytes;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Bytes that are copied, and entries that are read, at once.
const COPY_BYTES: usize = 4 * 1024 * 1024;

/// Why a member's data cannot become a new cluster. The old directory is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum QuorumRecoveryError {
    /// There is no member's data to begin with.
    #[error("{} holds no member's data: it has no file named member", path.display())]
    NoMember { path: PathBuf },
    /// The new directory is there already.
    #[error("{} exists and is not empty: recover into a directory of its own", path.display())]
    NotEmpty { path: PathBuf },
    /// An earlier run into the new directory did not finish.
    #[error(
        "{} holds the result of a `quorate recover` that did not finish: delete it, and run the command again", path.display()
    )]
    Unfinished { path: PathBuf },
    /// A file cannot be copied.
    #[error("cannot copy {name}: {source}")]
    Copy {
        /// Which file of the data directory.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A file cannot be removed, or a directory read.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The directory is encrypted, and nothing says with what.
    #[error(
        "the data directory is encrypted (it holds {file}): say where its key is with --encryption-key-file or \
         --encryption-key-command, or with QUORATE_ENCRYPTION_KEY_FILE or QUORATE_ENCRYPTION_KEY_COMMAND in the environment"
    )]
    NoKey { file: String },
    /// A keyring is there, and all databases are plain.
    #[error(
        "the data directory holds {KEYRING}, and nothing is encrypted with it: turning encryption on was cut short. Delete the \
         file {KEYRING}, and run the command again"
    )]
    NothingEncrypted,
    /// The data cannot be read, as at a start.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// What was done, for the operator.
#[derive(Debug)]
pub struct QuorumRecovery {
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

impl fmt::Display for QuorumRecovery {
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

/// Makes the data of the stopped member in `from` those of a new cluster, in `into`. If they are encrypted, `key` says with what,
/// and those of the new cluster are too.
pub fn recover_quorum(
    from: &Path,
    into: &Path,
    key: Option<&EncryptionKey>,
) -> Result<QuorumRecovery, QuorumRecoveryError> {
    let old: Arc<dyn Disk> = Arc::new(open_old(from)?);
    let Contents::Member(owner) = data_directory::inspect(&*old).map_err(StartError::from)? else {
        return Err(QuorumRecoveryError::NoMember {
            path: from.to_owned(),
        });
    };
    let encrypted = decrypted(&old, key)?;
    require_empty(into)?;
    let new: Arc<dyn Disk> = Arc::new(RealDisk::open(into).map_err(StartError::from)?);
    let (old, new): (Arc<dyn Disk>, Arc<dyn Disk>) = match encrypted {
        Some(old) => {
            let new = old.sibling(new);
            (old, new)
        }
        None => (old, new),
    };
    let command = format!(
        "`quorate recover --data-dir {} --into {}` did not finish",
        from.display(),
        into.display()
    );
    let mut done = recover_into(&*old, owner, &new, &command)?;
    (done.from, done.into) = (from.to_owned(), into.to_owned());
    Ok(done)
}

/// As [`recover_quorum`], on disks that the caller brings; `new` is empty. For simulations.
pub fn recover_quorum_on(
    old: &Arc<dyn Disk>,
    new: &Arc<dyn Disk>,
) -> Result<QuorumRecovery, QuorumRecoveryError> {
    let Contents::Member(owner) = data_directory::inspect(&**old).map_err(StartError::from)? else {
        return Err(QuorumRecoveryError::NoMember {
            path: PathBuf::new(),
        });
    };
    recover_into(&**old, owner, new, "`quorate recover` did not finish")
}

/// The steps of the command. A crash before the last one leaves a directory that no start accepts.
pub(super) fn recover_into(
    old: &dyn Disk,
    owner: Owner,
    new: &Arc<dyn Disk>,
    command: &str,
) -> Result<QuorumRecovery, QuorumRecoveryError> {
    data_directory::begin_recovery(&**new, command).map_err(StartError::from)?;
    failpoint::hit(FailPoint::AfterUnfinishedMark);
    copy(old, &**new, DATABASE, DATABASE)?;
    for name in old.list(LOG).map_err(io_at(LOG))? {
        if data_directory::is_segment(&name) {
            let (from, to) = (format!("{LOG}/{name}"), format!("{OLD_LOG}/{name}"));
            copy(old, &**new, &from, &to)?;
        }
    }
    for dir in ["", "db", OLD_LOG] {
        new.sync_dir(dir).map_err(io_at(dir))?;
    }
    failpoint::hit(FailPoint::AfterRecoveryCopy);
    let done = rebuild(new, owner)?;
    for name in new.list(OLD_LOG).map_err(io_at(OLD_LOG))? {
        let name = format!("{OLD_LOG}/{name}");
        new.remove(&name).map_err(io_at(&name))?;
    }
    failpoint::hit(FailPoint::BeforeRecoveryEnd);
    data_directory::end_recovery(&**new).map_err(StartError::from)?;
    Ok(done)
}

/// The old directory, if it is encrypted. Without `key` it must not be.
fn decrypted(
    old: &Arc<dyn Disk>,
    key: Option<&EncryptionKey>,
) -> Result<Option<Arc<EncryptedDisk>>, QuorumRecoveryError> {
    let Some(key) = key else {
        return match encryption::require_plain(&**old) {
            Ok(()) => Ok(None),
            // A start names settings in these, which this command does not read.
            Err(EncryptionError::NoKey { file }) => Err(QuorumRecoveryError::NoKey { file }),
            Err(EncryptionError::NothingEncrypted) => Err(QuorumRecoveryError::NothingEncrypted),
            Err(other) => Err(StartError::from(other).into()),
        };
    };
    let wrapping = at_rest::source(key).read().map_err(StartError::from)?;
    let opened = EncryptedDisk::open_to_read(old.clone(), wrapping);
    Ok(opened.map(Some).map_err(StartError::from)?)
}

fn open_old(from: &Path) -> Result<RealDisk, QuorumRecoveryError> {
    let no_member = QuorumRecoveryError::NoMember {
        path: from.to_owned(),
    };
    // Opening a directory would create it.
    if !from.join("member").is_file() {
        return Err(no_member);
    }
    Ok(RealDisk::open(from).map_err(StartError::from)?)
}

fn require_empty(into: &Path) -> Result<(), QuorumRecoveryError> {
    if into.join(UNFINISHED_RECOVERY).exists() {
        return Err(QuorumRecoveryError::Unfinished {
            path: into.to_owned(),
        });
    }
    let first = match std::fs::read_dir(into) {
        Ok(mut names) => names.next(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(io_at(into)(source)),
    };
    match first {
        None => Ok(()),
        Some(_) => Err(QuorumRecoveryError::NotEmpty {
            path: into.to_owned(),
        }),
    }
}

fn io_at(path: impl AsRef<Path>) -> impl Fn(io::Error) -> QuorumRecoveryError {
    let path = path.as_ref().to_owned();
    move |source| QuorumRecoveryError::Io {
        path: path.clone(),
        source,
    }
}

fn copy(
    from: &dyn Disk,
    to: &dyn Disk,
    name: &str,
    new_name: &str,
) -> Result<(), QuorumRecoveryError> {
    let failed = |source| QuorumRecoveryError::Copy {
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

/// Turns the copied data into the new cluster's. The file `member` is written last.
fn rebuild(disk: &Arc<dyn Disk>, owner: Owner) -> Result<QuorumRecovery, StartError> {
    let mut db = Db::open(&**disk, DATABASE, DbOptions::default(), owner.identity)?;
    let options = WalOptions::new(owner.identity, clock::entropy());
    let (old, recovered) = Wal::open(disk.clone(), OLD_LOG, options, db.applied().index)?;
    if load::awaits_snapshot(&db)? {
        return Err(StartError::RecoveryWithoutState { name: owner.name });
    }
    let before = newest_membership(&db, &recovered)?;
    let members = Members::of(&before).map_err(LoadStateError::from)?;
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
    db.change_identity(identity, &load::alone_meta(&alone.encode()))?;
    let name = owner.name.clone();
    member::write(&**disk, &Owner { identity, name })?;
    let others = members.iter().filter(|other| other.id != identity.member);
    Ok(QuorumRecovery {
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
    let mut newest = load::membership(db)?;
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
