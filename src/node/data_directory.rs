//! The files of a data directory, and what a set of them means: a new directory, a member's complete data, or neither.
//!
//! A start decides by this before it writes anything, and refuses what is neither. Three files mark a directory whose creation
//! has begun and not ended: `unfinished-start` (a first start, which the next start begins again), and `unfinished-recovery` and
//! `unfinished-restore` (`quorate recover` and `quorate restore`, which the operator runs again). `docs/data-directory.md` has
//! the states, the steps of each command, and what a crash between two steps leaves.

use crate::{
    failpoint::{self, FailPoint},
    storage::{
        disk::{Disk, OpenMode},
        encryption::{KEYRING, KEYRING_UNFINISHED},
        member::{self, Owner},
        real_disk::LOCK_FILE,
        refill,
        starts::{STARTS, STARTS_UNFINISHED},
        value_file::ValueFileError,
    },
    types::{LogIndex, LogPosition, Term},
};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

pub(super) const DATABASE: &str = "db/revisions.redb";
/// The directory of the database.
pub(super) const DATABASE_DIR: &str = "db";
/// A database that was put aside for a refill.
pub(super) const PUT_ASIDE: &str = "db/revisions.redb.aside";
/// The directory of the log.
pub(super) const LOG: &str = "wal";
/// Where `quorate recover` keeps the copy of the old log until the new one is complete.
pub(super) const OLD_LOG: &str = "wal.before";
/// The folder of the certificate that a member makes for its client port.
pub(super) const OWN_CERTIFICATE: &str = "client-tls";
/// Marks a directory in which a first start has begun and not ended.
const UNFINISHED_START: &str = "unfinished-start";
/// Marks a directory in which `quorate recover` has begun and not ended.
pub(super) const UNFINISHED_RECOVERY: &str = "unfinished-recovery";
/// Marks a directory in which `quorate restore` has begun and not ended.
pub(super) const UNFINISHED_RESTORE: &str = "unfinished-restore";
/// Says from what, and when, a directory was restored.
pub(super) const RESTORED: &str = "restored";
/// What the database of a restored directory has applied: everything that was restored counts as the first entry.
pub(super) const RESTORED_AT: LogPosition = LogPosition {
    index: LogIndex(1),
    term: Term(1),
};
/// The file [`RESTORED`] under construction.
pub(super) const RESTORED_UNFINISHED: &str = "restored.new";
/// The longest text of a mark that is shown.
const MARK_BYTES_MAX: u64 = 4_096;

/// The names that a member makes in its data directory.
const OWN_NAMES: [&str; 18] = [
    OWN_CERTIFICATE,
    LOCK_FILE,
    "direct-io.probe",
    "member",
    "member.new",
    DATABASE_DIR,
    LOG,
    OLD_LOG,
    refill::REFILL,
    STARTS,
    STARTS_UNFINISHED,
    UNFINISHED_START,
    UNFINISHED_RECOVERY,
    UNFINISHED_RESTORE,
    RESTORED,
    RESTORED_UNFINISHED,
    KEYRING,
    KEYRING_UNFINISHED,
];

/// Why a data directory is not used. It is left as it was found.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It is another program's.
    #[error(
        "{} is no data directory of a member: it holds {found}. Give this member a directory of its own, which is empty or does \
         not exist yet", path.display()
    )]
    NotOurs {
        path: PathBuf,
        /// What was found in it.
        found: String,
    },
    /// It is an etcd's.
    #[error(
        "{dir} holds the data of an etcd member, which a server does not change: stop that etcd, run `quorate import {dir} \
         --data-dir DIR` with the other settings of this member and a new directory DIR, and start this member with \
         --data-dir DIR",
        dir = path.display()
    )]
    Etcd { path: PathBuf },
    /// `quorate recover` did not finish.
    #[error(
        "the data directory is unfinished: {text}. It lacks acknowledged writes, so it is not started: delete it, and run that \
         command again"
    )]
    UnfinishedRecovery {
        /// What the mark says.
        text: String,
    },
    /// `quorate restore` did not finish.
    #[error(
        "the data directory is unfinished: {text}. It holds only a part of what was to be restored, so it is not started: delete \
         it, and run that command again"
    )]
    UnfinishedRestore {
        /// What the mark says.
        text: String,
    },
    /// There is data, and no file that says whose.
    #[error(
        "the data directory holds {found}, but no file named member, which says whose data they are: put that file back from a \
         backup; or, in a cluster with a healthy majority, remove this member, delete its data directory and add it anew; or, if \
         `quorate recover` or `quorate restore` made this directory, delete it and run that command again"
    )]
    NoMember {
        /// The parts that are there.
        found: String,
    },
    /// A part of a member's data is gone.
    #[error(
        "the data directory belongs to member {name} but its {what} is missing: restore it from a backup, or, in a cluster with \
         a healthy majority, remove this member, delete its data directory and add it anew"
    )]
    Incomplete { name: String, what: &'static str },
    /// The file `member` cannot be read.
    #[error(transparent)]
    ValueFile(#[from] ValueFileError),
    /// The directory cannot be read, or a mark cannot be written.
    #[error("cannot {action} {what} in the data directory: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        what: &'static str,
        /// The error of the system.
        source: io::Error,
    },
}

/// What a data directory holds.
#[derive(Debug)]
pub(super) enum Contents {
    /// Nothing that counts: it is empty, or a first start in it was cut short.
    New,
    /// One member's complete data.
    Member(Owner),
}

/// Refuses a directory of this machine that another program uses, before anything is written to it.
pub(super) fn require_own(path: &Path) -> Result<(), DirectoryError> {
    // What cannot be listed is refused when it is opened, with a better reason.
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(());
    };
    let not_ours = |found: String| DirectoryError::NotOurs {
        path: path.to_owned(),
        found,
    };
    let member = path.join("member");
    if member.is_dir() {
        // Its log may be elsewhere.
        if member.join("snap").is_dir() {
            let path = path.to_owned();
            return Err(DirectoryError::Etcd { path });
        }
        return Err(not_ours("a directory named member".to_owned()));
    }
    if member.exists() {
        return Ok(());
    }
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| !is_harmless(name) && !OWN_NAMES.contains(&name.as_str()))
        .collect();
    names.sort_unstable();
    match names.first() {
        None => Ok(()),
        Some(first) if names.len() == 1 => Err(not_ours(format!("{first:?}"))),
        Some(first) => Err(not_ours(format!(
            "{first:?} and {} other names",
            names.len() - 1
        ))),
    }
}

/// Names that file systems and volume managers put into an empty directory.
pub(super) fn is_harmless(name: &str) -> bool {
    name == "lost+found" || name.starts_with('.')
}

/// Decides what the directory holds. Writes nothing.
pub(super) fn inspect(disk: &dyn Disk) -> Result<Contents, DirectoryError> {
    let top = list(disk, "")?;
    let has = |name: &str| top.iter().any(|other| other == name);
    if has(UNFINISHED_RECOVERY) {
        let text = mark(
            disk,
            UNFINISHED_RECOVERY,
            "`quorate recover` did not finish",
        )?;
        return Err(DirectoryError::UnfinishedRecovery { text });
    }
    if has(UNFINISHED_RESTORE) {
        let text = mark(disk, UNFINISHED_RESTORE, "`quorate restore` did not finish")?;
        return Err(DirectoryError::UnfinishedRestore { text });
    }
    let parts = Parts::find(disk)?;
    let Some(owner) = member::read(disk)? else {
        return match parts.names() {
            None => Ok(Contents::New),
            // Nothing in it was ever acknowledged: `member` is written before the member connects to any other.
            Some(_) if has(UNFINISHED_START) => Ok(Contents::New),
            Some(found) => Err(DirectoryError::NoMember { found }),
        };
    };
    let database = parts.has(Part::Database) || has(refill::REFILL);
    let missing = match (database, parts.has(Part::Log)) {
        (false, _) => Some("database"),
        (true, false) => Some("log"),
        (true, true) => None,
    };
    match missing {
        None => Ok(Contents::Member(owner)),
        Some(what) => Err(DirectoryError::Incomplete {
            name: owner.name,
            what,
        }),
    }
}

/// The parts of a member's data that are there.
struct Parts(BTreeSet<Part>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Database,
    PutAside,
    Log,
    OldLog,
}

impl Part {
    /// How an error calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Database => "a database (db)",
            Self::PutAside => "a database that was put aside (db)",
            Self::Log => "a log (wal)",
            Self::OldLog => "the copy of a log (wal.before)",
        }
    }
}

impl Parts {
    fn find(disk: &dyn Disk) -> Result<Self, DirectoryError> {
        let databases = list(disk, DATABASE_DIR)?;
        let base = |path: &str| {
            path.rsplit_once('/')
                .map_or(path.to_owned(), |at| at.1.to_owned())
        };
        let all = [
            (Part::Database, databases.contains(&base(DATABASE))),
            (Part::PutAside, databases.contains(&base(PUT_ASIDE))),
            (
                Part::Log,
                list(disk, LOG)?.iter().any(|name| is_segment(name)),
            ),
            (
                Part::OldLog,
                list(disk, OLD_LOG)?.iter().any(|name| is_segment(name)),
            ),
        ];
        let there = all.into_iter().filter(|(_, there)| *there);
        Ok(Self(there.map(|(part, _)| part).collect()))
    }

    fn has(&self, part: Part) -> bool {
        self.0.contains(&part)
    }

    /// The parts that are there, for an error; `None` if none is.
    fn names(&self) -> Option<String> {
        let names: Vec<&str> = self.0.iter().map(|part| part.name()).collect();
        (!names.is_empty()).then(|| names.join(" and "))
    }
}

/// Whether a file of the log's directory is a segment in use.
pub(super) fn is_segment(name: &str) -> bool {
    name.strip_suffix(".seg").is_some()
}

/// Makes the names of the small files durable, before anything that they say is acted upon. The process before may have ended
/// between the rename of one and its sync: the file that it replaced would be back after a loss of power.
pub(super) fn make_durable(disk: &dyn Disk) -> Result<(), DirectoryError> {
    disk.sync_dir("").map_err(failed("sync", "the names"))
}

/// Marks the directory as one in which a first start is under way, and removes what an earlier first start left.
pub(super) fn begin_first_start(disk: &dyn Disk) -> Result<(), DirectoryError> {
    write_mark(
        disk,
        UNFINISHED_START,
        "A first start has begun here and not ended. The next start begins again.\n",
    )?;
    failpoint::hit(FailPoint::AfterUnfinishedMark);
    for dir in [DATABASE_DIR, LOG] {
        remove_all(disk, dir)?;
    }
    // Last: what it wraps decrypts the others.
    for name in [KEYRING, KEYRING_UNFINISHED] {
        remove_mark(disk, name)?;
    }
    Ok(())
}

/// Marks the directory as one that `quorate recover` is making; `text` names the command.
pub(super) fn begin_recovery(disk: &dyn Disk, text: &str) -> Result<(), DirectoryError> {
    write_mark(disk, UNFINISHED_RECOVERY, text)
}

/// Marks the directory as one that `quorate restore` is making; `text` names the command.
pub(super) fn begin_restore(disk: &dyn Disk, text: &str) -> Result<(), DirectoryError> {
    write_mark(disk, UNFINISHED_RESTORE, text)
}

/// Removes the mark of [`begin_first_start`], if it is there.
pub(super) fn end_first_start(disk: &dyn Disk) -> Result<(), DirectoryError> {
    remove_mark(disk, UNFINISHED_START)
}

/// Removes the mark of [`begin_recovery`]: everything else is durable.
pub(super) fn end_recovery(disk: &dyn Disk) -> Result<(), DirectoryError> {
    remove_mark(disk, UNFINISHED_RECOVERY)
}

/// Removes the mark of [`begin_restore`]: everything else is durable.
pub(super) fn end_restore(disk: &dyn Disk) -> Result<(), DirectoryError> {
    remove_mark(disk, UNFINISHED_RESTORE)
}

/// Removes what a restore that failed has made. The mark goes last: whatever is left when this fails is not started.
pub(super) fn discard_restore(disk: &dyn Disk) -> Result<(), DirectoryError> {
    for name in ["member", "member.new"] {
        remove_mark(disk, name)?;
    }
    for dir in [DATABASE_DIR, LOG] {
        remove_all(disk, dir)?;
    }
    for name in [
        STARTS,
        STARTS_UNFINISHED,
        RESTORED,
        RESTORED_UNFINISHED,
        KEYRING,
        KEYRING_UNFINISHED,
    ] {
        remove_mark(disk, name)?;
    }
    end_restore(disk)
}

fn remove_all(disk: &dyn Disk, dir: &'static str) -> Result<(), DirectoryError> {
    let names = list(disk, dir)?;
    for name in &names {
        disk.remove(&format!("{dir}/{name}"))
            .map_err(failed("remove what an earlier attempt left in", dir))?;
    }
    if !names.is_empty() {
        disk.sync_dir(dir).map_err(failed("sync", dir))?;
    }
    Ok(())
}

fn write_mark(disk: &dyn Disk, name: &'static str, text: &str) -> Result<(), DirectoryError> {
    let mode = OpenMode {
        create: true,
        direct: false,
    };
    let io = failed("write", name);
    let file = disk.open(name, mode).map_err(&io)?;
    file.set_len(0).map_err(&io)?;
    file.write_at(0, text.as_bytes()).map_err(&io)?;
    file.sync_data().map_err(&io)?;
    disk.sync_dir("").map_err(&io)
}

fn remove_mark(disk: &dyn Disk, name: &'static str) -> Result<(), DirectoryError> {
    if !list(disk, "")?.iter().any(|other| other == name) {
        return Ok(());
    }
    disk.remove(name).map_err(failed("remove", name))?;
    disk.sync_dir("").map_err(failed("remove", name))
}

/// The text of the mark that a command wrote, or `otherwise` if it is not there in full.
fn mark(disk: &dyn Disk, name: &'static str, otherwise: &str) -> Result<String, DirectoryError> {
    let text = text_of(disk, name)?;
    // A crash may have come before the text was durable.
    Ok(if text.is_empty() || text.contains('\0') {
        otherwise.to_owned()
    } else {
        text
    })
}

/// What `quorate restore` wrote about its work; `None` if it did not make this directory.
pub(super) fn restored_text(disk: &dyn Disk) -> Result<Option<String>, DirectoryError> {
    if !list(disk, "")?.iter().any(|name| name == RESTORED) {
        return Ok(None);
    }
    text_of(disk, RESTORED).map(Some)
}

/// Says from what, and when, the directory was restored; the file appears by a rename.
pub(super) fn write_restored(disk: &dyn Disk, text: &str) -> Result<(), DirectoryError> {
    write_mark(disk, RESTORED_UNFINISHED, text)?;
    let io = failed("write", RESTORED);
    disk.rename(RESTORED_UNFINISHED, RESTORED).map_err(&io)?;
    disk.sync_dir("").map_err(&io)
}

fn text_of(disk: &dyn Disk, name: &'static str) -> Result<String, DirectoryError> {
    let mode = OpenMode {
        create: false,
        direct: false,
    };
    let io = failed("read", name);
    let file = disk.open(name, mode).map_err(&io)?;
    let length = file.len().map_err(&io)?.min(MARK_BYTES_MAX);
    let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_at(0, &mut text).map_err(&io)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn list(disk: &dyn Disk, dir: &'static str) -> Result<Vec<String>, DirectoryError> {
    let what = if dir.is_empty() { "the names" } else { dir };
    disk.list(dir).map_err(failed("list", what))
}

fn failed(action: &'static str, what: &'static str) -> impl Fn(io::Error) -> DirectoryError {
    move |source| DirectoryError::Io {
        action,
        what,
        source,
    }
}
