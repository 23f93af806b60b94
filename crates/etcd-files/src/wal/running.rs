//! Whether an etcd runs on files.
//!
//! A running etcd holds locks: `flock` on its database, and on the files of its log locks of the kind that belongs to an open
//! file (`F_OFD_SETLK`). `flock` does not see the latter, but an ordinary `fcntl` lock conflicts with them. So both are tried,
//! shared, on each file, and given back at once.

use super::error::WalError;
use rustix::{
    fs::{FlockOperation, fcntl_lock, flock},
    io::Errno,
};
use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    process,
};

/// Fails if a process holds the lock on one of `files`, as an etcd does while it runs. The locks that this takes to find out are
/// given back before it returns, so an etcd can start at any time after.
pub fn refuse_running<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<(), WalError> {
    for file in files {
        let locked = is_locked(file).map_err(|source| WalError::Io {
            path: file.to_owned(),
            source,
        })?;
        if locked {
            return Err(WalError::Running {
                file: file.to_owned(),
                pid: holder(file),
            });
        }
    }
    Ok(())
}

fn is_locked(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let locks: [fn(&File, FlockOperation) -> rustix::io::Result<()>; 2] = [
        |file, lock| flock(file, lock),
        |file, lock| fcntl_lock(file, lock),
    ];
    for lock in locks {
        match lock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => lock(&file, FlockOperation::NonBlockingUnlock)?,
            Err(Errno::WOULDBLOCK | Errno::ACCESS) => return Ok(true),
            // A file system without locks, on which no etcd can run.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The process that has a lock on the file, if `/proc` shows it: that of another user stays unknown.
fn holder(file: &Path) -> Option<u32> {
    let wanted = fs::metadata(file).ok()?;
    let processes = fs::read_dir("/proc").ok()?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut others = pids.filter(|pid| *pid != process::id());
    others.find(|pid| holds(*pid, file, &wanted).unwrap_or(false))
}

/// Whether a process has the file open with a lock on it. Names are compared first: to look at every open file of the machine
/// could hang, where one is on a disk that does not answer.
fn holds(pid: u32, file: &Path, wanted: &Metadata) -> Option<bool> {
    let open_files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let mut paths = open_files.filter_map(|entry| Some(entry.ok()?.path()));
    Some(paths.any(|open| {
        let same_name = fs::read_link(&open).is_ok_and(|to| to.file_name() == file.file_name());
        same_name && is_file(&open, wanted) && has_lock(pid, &open)
    }))
}

fn is_file(open: &Path, wanted: &Metadata) -> bool {
    fs::metadata(open).is_ok_and(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
}

fn has_lock(pid: u32, open: &Path) -> bool {
    let number = open.file_name().and_then(|name| name.to_str());
    let info = number.map(|number| fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")));
    let info = info.and_then(Result::ok).unwrap_or_default();
    info.lines().any(|line| line.starts_with("lock:"))
}
