//! File descriptors: as many as the machine allows, and some in reserve.
//!
//! Client connections can use up all descriptors of the process. The log's next segment, a sync of a directory or a received
//! snapshot must be able to open a file even then. So a `Reserve` holds some descriptors open that nothing uses; when opening
//! a file fails for want of one, it closes one of them and tries again, and it opens new ones as soon as that is possible.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs::File,
    io,
    sync::{Mutex, PoisonError},
};

/// Descriptors in reserve: for the next segments of the log, a directory that is synced, a snapshot's file, and some that other
/// threads take between the two steps.
const RESERVED: usize = 16;

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
    /// Opens the descriptors, as many of them as there are.
    pub(super) fn new() -> Self {
        let reserve = Self::default();
        reserve.refill();
        reserve
    }

    /// Calls `open`. If it fails for want of a descriptor, calls it again with one of the reserve closed, until none is left.
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
