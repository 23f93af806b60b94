//! `quorate restore`: a member's data directory out of a snapshot file of etcd's format.
//!
//! The source is verified as a whole before anything is written. The new directory is marked as unfinished from its first byte
//! to its last, so that a start refuses it if the command was killed; a restore that fails removes what it wrote. The database
//! is read back and compared, by a hash, with what was read.
//!
//! All members of the new cluster are restored from the same state, with one command each. It counts as the first entry of the
//! log of term 1, which the log itself does not have: it begins after that. The cluster's id follows from the state (`identity`),
//! and members that were restored from different states refuse each other. It follows from a number, too, which the first
//! member's command draws and those of the others are given: restoring all of them once more makes another cluster. A member
//! that lost its disk could be restored once more, under its old id, without what it had acknowledged; so the first start of
//! each asks the others (`questions`).
//!
//! [`Job`] has the steps, for any source that is a store of etcd's format, with further changes to the state that was loaded.

mod commands;
mod digest;
mod error;
mod etcd;
mod request;
#[cfg(test)]
mod tests;

pub use error::RestoreError;
pub use request::{NoRestoreId, RestoreId, RestoreRequest};

use super::{
    at_rest,
    data_directory::{self, DATABASE, DATABASE_DIR, LOG, RESTORED_AT, UNFINISHED_RESTORE},
    error::StartError,
    identity::{first_membership, formed_member, restored_member},
};
use crate::{
    actors::{
        load::{self, LoadStateError, Summary},
        members::Members,
    },
    clock,
    config::Config,
    failpoint::{self, FailPoint},
    kv::{command::AlarmKind, state_hash::StateHash},
    raft::Membership,
    storage::{
        db::{CommitBatch, Db, DbOptions, DbSite, NewDb},
        disk::Disk,
        member::{self, Owner},
        real_disk::{LOCK_FILE, RealDisk},
        starts::{self, Origin, Starts},
        wal::{Append, Wal, WalOptions},
    },
    types::{ClusterId, HardState, Identity, LogIndex, MemberId, Revision},
};
use bytes::Bytes;
use digest::{Digest, Digester};
use etcd::{Item, Totals};
use quorate_etcd_files::{
    bolt::{Image, Source},
    store::{REVISION_MAX, Store, StoreError},
};
use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, DirEntry, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use time::OffsetDateTime;

/// What was restored, for the operator.
#[derive(Debug)]
pub struct Restored {
    owner: Owner,
    restore_id: RestoreId,
    totals: Totals,
    /// What did not come along, or stands in the way of writes.
    notes: Vec<String>,
    from: PathBuf,
    into: PathBuf,
    /// Those of the other members.
    commands: Vec<String>,
    start: String,
}

impl fmt::Display for Restored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, totals) = (&self.owner, &self.totals);
        let member = owner.identity.member.hex();
        writeln!(f, "read       {} (unchanged)", self.from.display())?;
        writeln!(f, "wrote      {}", self.into.display())?;
        writeln!(f, "member     {} ({member})", owner.name)?;
        writeln!(f, "cluster    {:x}", owner.identity.cluster.0)?;
        writeln!(f, "restore id {}", self.restore_id)?;
        let compacted = compacted_text(totals.compacted);
        writeln!(f, "revision   {}, {compacted}", totals.revision)?;
        writeln!(
            f,
            "data       {} records, {} leases (their time starts over), {} users, {} roles",
            totals.records, totals.leases, totals.users, totals.roles
        )?;
        for note in &self.notes {
            writeln!(f, "note       {note}")?;
        }
        if !self.commands.is_empty() {
            writeln!(
                f,
                "others     on each other member, with the settings of its server, a copy of the source, and its data directory:"
            )?;
        }
        for command in &self.commands {
            writeln!(f, "           {command}")?;
        }
        let all = if self.commands.is_empty() {
            ""
        } else {
            "once all are restored, at the same time on all members: "
        };
        write!(f, "next       {all}{}", self.start)
    }
}

fn compacted_text(compacted: Revision) -> String {
    if compacted == Revision::NEVER_COMPACTED {
        "never compacted".to_owned()
    } else {
        format!("compacted at {compacted}")
    }
}

/// Makes the data directory of `config` out of a snapshot file.
pub fn restore_snapshot(
    request: &RestoreRequest,
    config: &Config,
) -> Result<Restored, RestoreError> {
    restore_file(request, config).map_err(|error| match error {
        RestoreError::Store(source) => RestoreError::Source {
            path: request.file.clone(),
            source,
        },
        other => other,
    })
}

fn restore_file(request: &RestoreRequest, config: &Config) -> Result<Restored, RestoreError> {
    let path = &request.file;
    require_empty(&config.data_dir)?;
    let file = open(path)?;
    let image = Image::open(&file).map_err(StoreError::from)?;
    let state = (image.pages(), image.txid());
    if !request.skip_hash_check {
        if !image.has_hash() {
            return Err(RestoreError::NoHash { path: path.clone() });
        }
        image.verify_hash().map_err(StoreError::from)?;
    }
    image.check().map_err(StoreError::from)?;
    let store = Store::open(image)?;
    let unchanged = || {
        let again = Image::open(&file).map_err(StoreError::from)?;
        if (again.pages(), again.txid()) == state {
            return Ok(());
        }
        Err(RestoreError::Changed { path: path.clone() })
    };
    let mut job = Job::new(request, config, &store, &unchanged)?;
    let mut done = job.make()?;
    if request.skip_hash_check {
        done.notes.push("the SHA-256 was not compared".to_owned());
    }
    Ok(done)
}

fn open(path: &Path) -> Result<File, RestoreError> {
    let failed = |source| RestoreError::Open {
        path: path.to_owned(),
        source,
    };
    // Before it is opened: to open a pipe waits for who writes to it.
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    if kind.is_dir() {
        let path = path.to_owned();
        return Err(RestoreError::IsDirectory { path });
    }
    if !kind.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    File::open(path).map_err(failed)
}

/// Locks the data directory and opens it. Before the source was verified it was empty; that took long, and only from the lock on
/// nobody else fills it. So this looks once more.
pub(super) fn take(config: &Config) -> Result<(Arc<dyn Disk>, at_rest::Keeper), RestoreError> {
    let keys = at_rest::Keys::read(config)?;
    let disk = RealDisk::open(&config.data_dir).map_err(StartError::from)?;
    require_empty(&config.data_dir)?;
    Ok(at_rest::open(config, keys, Arc::new(disk))?)
}

/// Refuses a directory with anything in it, but for a lock and empty directories.
pub(super) fn require_empty(path: &Path) -> Result<(), RestoreError> {
    let failed = |source| RestoreError::Io {
        path: path.to_owned(),
        source,
    };
    if path.join(UNFINISHED_RESTORE).exists() {
        let path = path.to_owned();
        return Err(RestoreError::Unfinished { path });
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let found = entry.file_name().to_string_lossy().into_owned();
        if !data_directory::is_harmless(&found) && found != LOCK_FILE && !is_empty_dir(&entry) {
            let path = path.to_owned();
            return Err(RestoreError::NotEmpty { path, found });
        }
    }
    Ok(())
}

/// Removes the lock and the folders of a directory from which all else was removed, while the lock is held. What stays after an
/// error here is harmless: a restore takes such a directory for an empty one.
fn leave_nothing(dir: &Path, was_there: bool) {
    if require_empty(dir).is_err() {
        // The mark stays, and says what to do.
        return;
    }
    for folder in [DATABASE_DIR, LOG] {
        drop(fs::remove_dir(dir.join(folder)));
    }
    drop(fs::remove_file(dir.join(LOCK_FILE)));
    if !was_there {
        drop(fs::remove_dir(dir));
    }
}

fn is_empty_dir(entry: &DirEntry) -> bool {
    let names = fs::read_dir(entry.path());
    names.is_ok_and(|mut names| names.next().is_none())
}

/// Further changes to the state that was loaded, before it becomes that of a cluster. The log position that the database has
/// applied stays as it is.
pub(super) type FurtherChanges<'a> = &'a mut dyn FnMut(&mut Db) -> Result<(), RestoreError>;

/// One restore: a source that was verified, and what becomes of it.
pub(super) struct Job<'a, S> {
    request: &'a RestoreRequest,
    restore_id: RestoreId,
    config: &'a Config,
    store: &'a Store<S>,
    /// Fails if the source has changed.
    unchanged: &'a dyn Fn() -> Result<(), RestoreError>,
    /// What the source was found to hold, and its hash.
    found: Totals,
    contents: Digest,
    unknown: Vec<String>,
    first: Membership,
    members: Members,
    /// What comes after the state of the store, such as the entries of a log.
    pub(super) further: Option<FurtherChanges<'a>>,
}

/// The state as it will be, and what is said of it.
struct Settled {
    summary: Summary,
    notes: Vec<String>,
}

impl<'a, S: Source> Job<'a, S> {
    /// Reads all of the store and verifies it. Nothing is written.
    pub(super) fn new(
        request: &'a RestoreRequest,
        config: &'a Config,
        store: &'a Store<S>,
        unchanged: &'a dyn Fn() -> Result<(), RestoreError>,
    ) -> Result<Self, RestoreError> {
        store.verify_histories()?;
        let mut digester = Digester::default();
        let found = etcd::visit(store, &mut |item| {
            match item {
                Item::Row(name, value) => digester.row(&name, &value),
                Item::Lease(id, value) => digester.lease(id, &value),
                Item::Record(record) => digester.record(record.rev, record.kind, &record.kv),
            }
            Ok(())
        })?;
        let first = first_membership(config)?;
        let job = Self {
            request,
            restore_id: request.restore_id.unwrap_or_else(RestoreId::draw),
            config,
            store,
            unchanged,
            contents: digester.finish(),
            unknown: etcd::unknown(store)?,
            members: Members::of(&first).map_err(LoadStateError::from)?,
            first,
            found,
            further: None,
        };
        // What can be refused now is refused before anything is written.
        job.settled(&job.summary_found())?;
        Ok(job)
    }

    /// Makes the data directory. If that fails, nothing is left of it.
    pub(super) fn make(&mut self) -> Result<Restored, RestoreError> {
        let dir = &self.config.data_dir;
        let was_there = dir.exists();
        let (disk, _keeper) = take(self.config)?;
        let done = self.run(&disk);
        if done.is_err() {
            leave_nothing(dir, was_there);
        }
        done
    }

    /// All steps on an empty directory. If one fails, what was written is removed.
    fn run(&mut self, disk: &Arc<dyn Disk>) -> Result<Restored, RestoreError> {
        self.steps(disk).inspect_err(|_| {
            // If it cannot be removed, the mark stays, and a start refuses the directory.
            if let Err(error) = data_directory::discard_restore(&**disk) {
                tracing::warn!("cannot remove what was restored: {error}");
            }
        })
    }

    /// A crash before the last step leaves a directory that no start accepts.
    fn steps(&mut self, disk: &Arc<dyn Disk>) -> Result<Restored, RestoreError> {
        data_directory::begin_restore(&**disk, &self.unfinished())?;
        failpoint::hit(FailPoint::AfterUnfinishedMark);
        let mut site = DbSite {
            disk: disk.clone(),
            name: DATABASE,
            options: DbOptions::default(),
            // Until the state is complete, from which the cluster's id follows.
            identity: Identity {
                cluster: ClusterId(clock::entropy().max(1)),
                member: formed_member(self.config).identity.member,
            },
        };
        let mut db = self.fill(&site)?;
        failpoint::hit(FailPoint::AfterRestoreFill);
        let mut contents = digest::of_contents(&db)?;
        if contents != self.contents {
            return Err(RestoreError::Differs {
                written: contents.to_string(),
                read: self.contents.to_string(),
            });
        }
        if let Some(change) = &mut self.further {
            change(&mut db)?;
            contents = digest::of_contents(&db)?;
            self.found.count_again(&db)?;
        }
        (self.unchanged)()?;
        let settled = self.settled(&Summary::read(&db.reader()?)?)?;
        let state = digest::of_state(contents, &settled.summary).to_string();
        let restore_id = self.restore_id.to_string();
        let owner = restored_member(self.config, &restore_id, &state, &self.first);
        site.identity = owner.identity;
        self.complete(&site, db, &settled.summary)?;
        write_log(self.config, disk, owner.identity)?;
        let note = self.note(&settled.summary, &state);
        data_directory::write_restored(&**disk, &note)?;
        let alone = self.members.iter().count() <= 1;
        starts::write(disk, &Starts::new(Origin::Restored, alone)).map_err(StartError::from)?;
        member::write(&**disk, &owner).map_err(StartError::from)?;
        failpoint::hit(FailPoint::BeforeRestoreEnd);
        data_directory::end_restore(&**disk)?;
        Ok(self.report(owner, settled))
    }

    /// Writes all that the store holds into a database beside the final one, and opens it.
    fn fill(&self, site: &DbSite) -> Result<Db, RestoreError> {
        let mut new = NewDb::begin(site)?;
        let totals = etcd::visit(self.store, &mut |item| {
            match item {
                Item::Row(name, value) => new.put_blob(name, Bytes::from(value))?,
                Item::Lease(id, value) => new.put_lease(id, Bytes::from(value))?,
                Item::Record(record) => new.put_record(record)?,
            }
            Ok(())
        })?;
        let blobs = self.summary_found().meta();
        for (name, value) in blobs {
            if let Some(value) = value {
                new.put_blob(name.to_owned(), Bytes::from(value))?;
            }
        }
        Ok(new.finish(RESTORED_AT, totals.has_rows, totals.carried_out)?)
    }

    fn summary_found(&self) -> Summary {
        Summary {
            revision: self.found.revision,
            compacted: self.found.compacted,
            alarms: self.found.alarms.clone(),
            hash: Some(StateHash::default()),
        }
    }

    /// Raises the revision if that is asked for, and drops the alarms that nobody could end.
    fn settled(&self, loaded: &Summary) -> Result<Settled, RestoreError> {
        let by = self.request.bump_revision.unwrap_or(0);
        let newest = loaded.revision.0;
        let revision = newest.checked_add_unsigned(by);
        let revision = revision.filter(|revision| *revision <= REVISION_MAX);
        let revision = Revision(revision.ok_or(RestoreError::Revision { newest, by })?);
        let mut notes = self.notes_of_source();
        let alarms = self.alarms(&loaded.alarms, &mut notes)?;
        let compacted = if self.request.mark_compacted {
            revision
        } else {
            loaded.compacted
        };
        Ok(Settled {
            summary: Summary {
                revision,
                compacted,
                alarms,
                hash: Some(StateHash::default()),
            },
            notes,
        })
    }

    fn notes_of_source(&self) -> Vec<String> {
        let unknown = self.unknown.iter();
        let mut notes: Vec<String> = unknown
            .map(|what| format!("{what} is not known here, and was left out"))
            .collect();
        if self.found.marks > 0 {
            notes.push(
                "the revision was raised by an earlier restore, whose mark in the history does not come along: HashKV gives \
                 other values than etcd's"
                    .to_owned(),
            );
        }
        notes
    }

    /// The alarms that stay: those of the new cluster's members.
    fn alarms(
        &self,
        raised: &BTreeSet<(MemberId, AlarmKind)>,
        notes: &mut Vec<String>,
    ) -> Result<BTreeSet<(MemberId, AlarmKind)>, RestoreError> {
        let mut stay = BTreeSet::new();
        for (id, kind) in raised {
            match kind {
                AlarmKind::Corrupt | AlarmKind::StateDiffers => {
                    if !self.request.ignore_corrupt_alarm {
                        return Err(RestoreError::Corrupt { member: id.0 });
                    }
                    notes.push(format!(
                        "the alarm CORRUPT of member {} was dropped",
                        id.hex()
                    ));
                }
                AlarmKind::NoSpace | AlarmKind::QuotaReached => match self.members.get(*id) {
                    None => notes.push(format!(
                        "the alarm NOSPACE of member {} was dropped: the new cluster has no such member",
                        id.hex()
                    )),
                    Some(member) => {
                        notes.push(format!(
                            "the alarm NOSPACE of {} is still raised: writes that take space are refused until it is disarmed \
                             (etcdctl alarm disarm)",
                            member.info.name
                        ));
                        stay.insert((*id, *kind));
                    }
                },
            }
        }
        Ok(stay)
    }

    /// Makes the database that of the new cluster, tries whether a start can load it, and gives it its name.
    fn complete(&self, site: &DbSite, mut db: Db, summary: &Summary) -> Result<(), RestoreError> {
        db.commit(&CommitBatch {
            applied: db.applied(),
            meta: summary.meta(),
            ..CommitBatch::default()
        })?;
        let membership = load::membership_meta(&self.first.encode());
        db.change_identity(site.identity, &membership)?;
        drop(load::load_state(&db)?);
        drop(site.switch(db)?);
        Ok(())
    }

    /// What a start says if this did not end.
    fn unfinished(&self) -> String {
        format!(
            "`{} --data-dir {}` did not finish",
            commands::source(self.request),
            self.config.data_dir.display()
        )
    }

    /// What the first start says.
    fn note(&self, summary: &Summary, state: &str) -> String {
        format!(
            "from {}\nat {}\nrevision {}, {}\nstate {state}\nrestore id {}\n",
            self.request.file.display(),
            now(),
            summary.revision,
            compacted_text(summary.compacted),
            self.restore_id,
        )
    }

    fn report(&self, owner: Owner, settled: Settled) -> Restored {
        let (request, config) = (self.request, self.config);
        let others = self.members.iter();
        let others = others.filter(|other| other.id != owner.identity.member);
        Restored {
            totals: Totals {
                revision: settled.summary.revision,
                compacted: settled.summary.compacted,
                ..self.found.clone()
            },
            notes: settled.notes,
            from: request.file.clone(),
            into: config.data_dir.clone(),
            commands: others
                .map(|other| {
                    commands::of_member(request, config, self.restore_id, &other.info.name)
                })
                .collect(),
            start: commands::start(request, config),
            owner,
            restore_id: self.restore_id,
        }
    }
}

/// An empty log, which begins after the entry that everything restored counts as.
fn write_log(config: &Config, disk: &Arc<dyn Disk>, identity: Identity) -> Result<(), StartError> {
    let options = WalOptions {
        segment_bytes: config.storage.wal_segment_bytes,
        ..WalOptions::new(identity, clock::entropy())
    };
    let (mut log, _) = Wal::open(disk.clone(), LOG, options, LogIndex(0))?;
    log.append(&Append {
        snapshot: Some(RESTORED_AT),
        hard_state: Some(HardState {
            term: RESTORED_AT.term,
            vote: None,
            commit: RESTORED_AT.index,
        }),
        entries: &[],
    })?;
    Ok(log.seal()?)
}

/// The time in UTC, as RFC 3339 has it.
fn now() -> String {
    let secs = i64::try_from(clock::unix_time().as_secs()).unwrap_or_default();
    let at = OffsetDateTime::from_unix_timestamp(secs).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
    )
}
