//! A disk that records whether a write to one of its files failed.
//!
//! redb ignores errors when it closes a file. After a failed sync its bytes may read back and still never reach the disk, and a
//! later sync succeeds. So whoever needs to know that a closed file is durable asks this disk.

use crate::storage::disk::{Disk, DiskFile, OpenMode};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A disk that records failures of its files.
#[derive(Debug)]
pub(super) struct NotingDisk {
    disk: Arc<dyn Disk>,
    failed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct NotingFile {
    file: Arc<dyn DiskFile>,
    failed: Arc<AtomicBool>,
}

impl NotingDisk {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            failed: Arc::default(),
        }
    }

    /// An error if a write, a sync or a change of length of one of its files has failed.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("a write failed while the file was closed"));
        }
        Ok(())
    }
}

impl NotingFile {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

impl Disk for NotingDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(NotingFile {
            file: self.disk.open(name, mode)?,
            failed: Arc::clone(&self.failed),
        }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl DiskFile for NotingFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(self.file.write_at(offset, data))
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, out)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(self.file.sync_data())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(self.file.set_len(len))
    }

    fn is_direct(&self) -> bool {
        self.file.is_direct()
    }
}
