//! What is imported of a data directory: which database, and which entries of the log. `docs/import.md` has the rules.

use super::{
    error::{EntryFault, ImportError},
    judge::{Etcd, NestedPuts},
    replay::{Replay, Replayed},
    translate::{Settings, translate},
};
use crate::storage::db::Db;
use quorate_etcd_files::{
    bolt::Image,
    messages::{Command as Content, ConfChangeKind, Entry, EntryKind},
    store::{Meta, Store, StoreError},
    wal::{DataDirectory, Snapshots, Wal, WalError},
};
use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What the operator decides, where the data do not.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    pub uncommitted: Option<Uncommitted>,
    pub nested_puts: Option<NestedPuts>,
    /// The shortest time to live of leases that are granted by entries of the log, in seconds.
    pub lease_ttl_min: i64,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            uncommitted: None,
            nested_puts: None,
            // etcd: one and a half election timeouts, of which the default is one second.
            lease_ttl_min: 2,
        }
    }
}

/// What becomes of entries that may not have been committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uncommitted {
    Keep,
    Drop,
}

/// The data directory of a stopped etcd. It is only read.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    directory: DataDirectory,
    /// What the directory was when it was opened.
    files: Vec<FileMark>,
    log: Wal,
    database: PathBuf,
    extent: Extent,
    etcd: Etcd,
    choices: Choices,
}

/// Which entries are imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// The last one that the database has.
    base: u64,
    /// The last one that is imported.
    end: u64,
    /// The last one of the log.
    last: u64,
}

/// A file as it was: a running etcd changes one of them with each request.
#[derive(Debug, PartialEq, Eq)]
struct FileMark {
    path: PathBuf,
    bytes: u64,
    changed: (i64, i64),
}

impl Source {
    /// Opens the data directory of an etcd that does not run; `wal` is its log's, if that is elsewhere. Reads the whole log.
    pub fn open(path: &Path, wal: Option<&Path>, choices: Choices) -> Result<Self, ImportError> {
        let directory = match wal {
            None => DataDirectory::look(path)?,
            Some(wal) => DataDirectory::look_with_wal(path, wal)?,
        };
        directory.refuse_running()?;
        let files = marks(&directory)?;
        let log = Wal::open(&directory.wal)?;
        let (database, meta) = newest_database(&directory, &log)?;
        let extent = extent(&directory, &log, &meta, choices.uncommitted)?;
        Ok(Self {
            path: path.to_owned(),
            directory,
            files,
            log,
            database,
            extent,
            etcd: Etcd {
                may_be_3_5: meta.storage_version.is_none(),
                nested_puts: choices.nested_puts,
            },
            choices,
        })
    }

    /// The database that the entries of the log follow: an image without a hash, to be loaded first, with all its alarms.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Applies the entries that the log has beyond the database to `db`, which holds the content of that database and nothing
    /// else: all alarms, too, since they decide what requests come to. The position that it has applied stays as it is.
    pub fn replay(&self, db: &mut Db) -> Result<Replayed, ImportError> {
        let settings = Settings {
            cluster: self.log.metadata().cluster_id,
            lease_ttl_min: self.choices.lease_ttl_min,
        };
        let mut replay = Replay::begin(db, self.etcd)?;
        walk(&self.log, self.extent.base, self.extent.end, |entry| {
            let index = entry.index;
            let asked = translate(&entry, &settings);
            match asked.map_err(|fault| ImportError::Entry { index, fault })? {
                Some(asked) => replay.apply(asked, index),
                None => Ok(()),
            }
        })?;
        replay.finish()
    }

    /// Fails if an etcd runs on the directory, or has run on it since it was opened: then what was read may be a mixture.
    pub fn verify_unchanged(&self) -> Result<(), ImportError> {
        self.directory.refuse_running()?;
        if marks(&self.directory)? == self.files {
            return Ok(());
        }
        let path = self.path.clone();
        Err(ImportError::Changed { path })
    }
}

/// What was found, for the operator.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extent { base, end, last } = self.extent;
        let ids = self.log.metadata();
        writeln!(
            f,
            "etcd       member {:x} of cluster {:x}",
            ids.node_id, ids.cluster_id
        )?;
        writeln!(
            f,
            "database   {}, entries of the log up to {base}",
            self.database.display()
        )?;
        write!(
            f,
            "log        {} entries follow it; {} are left out, which may not have been committed; the last one is {last}, of \
             term {}",
            last - base,
            last - end,
            self.log.last_term()
        )?;
        if let Some(torn) = self.log.torn_tail() {
            write!(
                f,
                "\nnote       {} ends at offset {} with {} bytes that are no entry: a crash cut the last write there, which \
                 was not acknowledged, or the file is damaged",
                torn.file.display(),
                torn.offset,
                torn.lost_bytes
            )?;
        }
        Ok(())
    }
}

/// The member's database, or one that it had received from its leader and not yet put in its place: then entries before that may
/// never have been committed.
fn newest_database(directory: &DataDirectory, log: &Wal) -> Result<(PathBuf, Meta), ImportError> {
    let meta = read_meta(&directory.database)?;
    let base = meta.consistent_index.unwrap_or(0);
    let newer = log.snapshots().rev().filter(|mark| mark.index > base);
    let newer: Vec<u64> = newer.map(|mark| mark.index).collect();
    if newer.is_empty() {
        return Ok((directory.database.clone(), meta));
    }
    let received = Snapshots::read(&directory.snapshots)?.received;
    let database = |index: u64| received.iter().find(|(other, _)| *other == index);
    match newer.into_iter().find_map(database) {
        Some((_, path)) => Ok((path.clone(), read_meta(path)?)),
        // Up to etcd 3.4 a member's own snapshot can be newer than the number in its database. Where the log does not lead to
        // the note, it says so when it is read.
        None => Ok((directory.database.clone(), meta)),
    }
}

fn read_meta(path: &Path) -> Result<Meta, ImportError> {
    let file = File::open(path).map_err(failed(path))?;
    let image = Image::open(file).map_err(StoreError::from);
    let meta = image.and_then(Store::open).and_then(|store| store.meta());
    meta.map_err(|source| ImportError::Database {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

fn extent(
    directory: &DataDirectory,
    log: &Wal,
    meta: &Meta,
    uncommitted: Option<Uncommitted>,
) -> Result<Extent, ImportError> {
    let (base, last) = (meta.consistent_index.unwrap_or(0), log.last_index());
    if base > last {
        return Err(ImportError::LogTooShort {
            directory: directory.wal.clone(),
            applied: base,
            last,
        });
    }
    let known = log.hard_state().commit.clamp(base, last);
    let own = log.metadata().node_id;
    let mut end = known;
    if known < last && voters(directory, log, meta, known)? == BTreeSet::from([own]) {
        end = last;
        // A sole voter commits its whole log when it starts. From a change that adds another on, that one decides too.
        walk(log, known, last, |entry| {
            if changes_voters(&entry, own)? {
                end = end.min(entry.index);
            }
            Ok(())
        })?;
    }
    match uncommitted {
        Some(Uncommitted::Keep) => end = last,
        Some(Uncommitted::Drop) => {}
        None if end == last => {}
        None => {
            return Err(ImportError::Uncommitted {
                count: last - end,
                first: end + 1,
                last,
                term: log.last_term(),
            });
        }
    }
    Ok(Extent { base, end, last })
}

/// Who votes after the entry at `through`.
fn voters(
    directory: &DataDirectory,
    log: &Wal,
    meta: &Meta,
    through: u64,
) -> Result<BTreeSet<u64>, ImportError> {
    let (from, mut voters): (u64, BTreeSet<u64>) = if let Some(state) = &meta.conf_state {
        let base = meta.consistent_index.unwrap_or(0);
        (base, state.voters.iter().copied().collect())
    } else if let Some(file) = Snapshots::read(&directory.snapshots)?.newest_noted(log) {
        let voters = file.conf_state.voters.iter().copied();
        (file.mark.index, voters.collect())
    } else {
        // A log from its first entry on: the first changes add the first members.
        (0, BTreeSet::new())
    };
    walk(log, from, through, |entry| {
        if let Some((kind, member)) = change(&entry)? {
            match kind {
                ConfChangeKind::AddNode => {
                    voters.insert(member);
                }
                ConfChangeKind::RemoveNode => {
                    voters.remove(&member);
                }
                // etcd: a voter does not become a learner.
                ConfChangeKind::UpdateNode | ConfChangeKind::AddLearnerNode => {}
            }
        }
        Ok(())
    })?;
    Ok(voters)
}

fn changes_voters(entry: &Entry, own: u64) -> Result<bool, ImportError> {
    Ok(change(entry)?
        .is_some_and(|(kind, member)| kind == ConfChangeKind::AddNode && member != own))
}

/// The change of the members in an entry, if it is one.
fn change(entry: &Entry) -> Result<Option<(ConfChangeKind, u64)>, ImportError> {
    if entry.kind != i32::from(EntryKind::ConfChange) {
        return Ok(None);
    }
    let of_entry = |fault| ImportError::Entry {
        index: entry.index,
        fault,
    };
    let content = Content::decode(entry).map_err(|error| of_entry(error.into()))?;
    let Content::Change(change) = content else {
        return Ok(None);
    };
    let kind = ConfChangeKind::try_from(change.kind);
    let kind = kind.map_err(|_| {
        of_entry(EntryFault::UnknownNumber {
            field: "change of the members",
            number: change.kind,
        })
    })?;
    Ok(Some((kind, change.node_id)))
}

/// Why a walk ends early.
enum Halt {
    Done,
    Failed(ImportError),
}

impl From<WalError> for Halt {
    fn from(error: WalError) -> Self {
        Self::Failed(error.into())
    }
}

/// Visits the entries behind `after` up to `through`, in order.
fn walk(
    log: &Wal,
    after: u64,
    through: u64,
    mut visit: impl FnMut(Entry) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    if through <= after {
        return Ok(());
    }
    let walked = log.all_after(after, |entry| {
        if entry.index > through {
            return Err(Halt::Done);
        }
        visit(entry).map_err(Halt::Failed)
    });
    match walked {
        Ok(()) | Err(Halt::Done) => Ok(()),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// The files of the log and of the database, as they are now.
fn marks(directory: &DataDirectory) -> Result<Vec<FileMark>, ImportError> {
    let mut marks = Vec::new();
    for folder in [&directory.wal, &directory.snapshots] {
        for entry in fs::read_dir(folder).map_err(failed(folder))? {
            let path = entry.map_err(failed(folder))?.path();
            let meta = fs::metadata(&path).map_err(failed(&path))?;
            marks.push(FileMark {
                path,
                bytes: meta.len(),
                changed: (meta.mtime(), meta.mtime_nsec()),
            });
        }
    }
    marks.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(marks)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> ImportError {
    move |source| ImportError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_was_written_to_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let member = folder.path().join("member");
        for dir in ["snap", "wal"] {
            fs::create_dir_all(member.join(dir)).unwrap();
        }
        let segment = member.join("wal/0000000000000000-0000000000000000.wal");
        fs::write(member.join("snap/db"), "database").unwrap();
        fs::write(&segment, "log").unwrap();
        let directory = DataDirectory::look(folder.path()).unwrap();
        let before = marks(&directory).unwrap();
        assert_eq!(marks(&directory).unwrap(), before);
        fs::write(&segment, "longer").unwrap();
        let after = marks(&directory).unwrap();
        assert_ne!(after, before);
        fs::write(member.join("snap/new.snap"), "").unwrap();
        assert_ne!(marks(&directory).unwrap(), after);
    }
}
