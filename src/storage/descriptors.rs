//! File descriptors: as many as the machine allows, and some in reserve.
//!
//! Client connections can use up all descriptors of the process. The log's next segment, a sync of a directory or a received
//! snapshot must be able to open a file even then. So a `Reserve` holds some unused descriptors open. When no descriptor is left
//! to open a file, it closes one of them and tries again; it opens new ones as soon as that is possible.
//!
//! Besides, [`connections_max`] limits the number of client connections so that descriptors remain for files. So the reserve is
//! needed only when other programs use up the machine's descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs::{self, File},
    io,
    sync::{Mutex, PoisonError},
};

/// Descriptors in reserve: for the next segments of the log, a directory that is synced, a snapshot's file, and some that other
/// threads may take after one was closed and before the file is opened.
const RESERVED: usize = 16;

/// Descriptors that the node may need besides those that are open when it serves: sockets that are accepted to be refused,
/// snapshots that are sent and received, files that commands and certificates are read from, pipes and timers.
const SPARE: u64 = 48;

/// Assumed number of open descriptors where the system does not report it.
const OPEN_GUESS: usize = 100;

/// How many of `wanted` client connections the limit on open files has room for, beside what is open now and `files` more that
/// the node will open. Logs it if they are fewer.
pub fn connections_max(wanted: usize, files: u64) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let open = fs::read_dir("/proc/self/fd").map_or(OPEN_GUESS, Iterator::count);
    let max = room(wanted, limit, open as u64 + files + SPARE);
    if max < wanted {
        tracing::warn!(
            wanted,
            connections_max = max,
            limit,
            "the limit on open files (ulimit -n) has room for fewer client connections than limits.connections_max"
        );
    }
    max
}

fn room(wanted: usize, limit: Option<u64>, others: u64) -> usize {
    let Some(limit) = limit else { return wanted };
    let room = usize::try_from(limit.saturating_sub(others)).unwrap_or(usize::MAX);
    // With none at all, no operator could ask the member what is wrong.
    wanted.min(room).max(1)
}

/// Raises the soft limit on open files of this process to the hard limit. Returns the limit that is in force; `None` is no limit.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!("cannot raise the limit on open files: {error}");
            limit.current
        }
    }
}

/// Descriptors that nothing uses.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    held: Mutex<Vec<File>>,
}

impl Reserve {
    /// Opens up to [`RESERVED`] descriptors, fewer if the process may not have so many.
    pub(super) fn new() -> Self {
        let reserve = Self::default();
        reserve.refill();
        reserve
    }

    /// Calls `open`. While it fails because no descriptor is left, closes one of the reserve and calls it again.
    pub(super) fn open<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match open() {
                Err(error) if is_exhausted(&error) => {
                    let freed = self
                        .held
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pop();
                    if freed.is_none() {
                        return Err(error);
                    }
                }
                opened => {
                    self.refill();
                    return opened;
                }
            }
        }
    }

    fn refill(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.len() < RESERVED {
            let Ok(file) = File::open("/dev/null") else {
                return;
            };
            held.push(file);
        }
    }
}

/// Whether no descriptor was left, in this process or on the machine.
fn is_exhausted(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    let exhausted = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE];
    exhausted
        .iter()
        .any(|errno| code == Some(errno.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn connections_leave_room_for_files() {
        let table = [
            (16_384, None, 100, 16_384),
            (16_384, Some(1_048_576), 100, 16_384),
            (16_384, Some(1_024), 100, 924),
            (500, Some(1_024), 100, 500),
            (500, Some(64), 100, 1),
            (1, Some(u64::MAX), u64::MAX, 1),
        ];
        for (wanted, limit, others, expected) in table {
            let found = room(wanted, limit, others);
            assert_eq!(found, expected, "{wanted} with {others} of {limit:?}");
        }
        let all = connections_max(usize::MAX, 0);
        assert_eq!(connections_max(all - 10, 0), all - 10);
        assert!(connections_max(usize::MAX, 10) < all || all == usize::MAX);
    }

    #[test]
    fn the_reserve_is_used_once_no_descriptor_is_left() {
        let reserve = Reserve::new();
        let calls = Cell::new(0);
        let opened = reserve.open(|| {
            calls.set(calls.get() + 1);
            match calls.get() {
                1..=3 => Err(rustix::io::Errno::MFILE.into()),
                call => Ok(call),
            }
        });
        assert_eq!(
            opened.unwrap(),
            4,
            "three of the reserve were closed for it"
        );
        let held = || reserve.held.lock().unwrap().len();
        assert_eq!(held(), RESERVED, "and opened again");
        let failed: io::Result<()> = reserve.open(|| Err(rustix::io::Errno::NFILE.into()));
        assert!(is_exhausted(&failed.unwrap_err()));
        assert_eq!(held(), 0, "an error once the reserve is used up");
        let other: io::Result<()> = reserve.open(|| Err(io::ErrorKind::NotFound.into()));
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(held(), RESERVED, "other errors are returned at once");
    }
}
