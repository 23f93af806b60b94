//! A disk that records whether a write to one of its files failed.
//!
//! redb ignores errors when it closes a file. After a failed sync its bytes may read back and still never reach the disk, and a
//! later sync succeeds. So [`TrackedDisk::check`] says whether a closed file is durable.

use crate::storage::{
    disk::{Disk, DiskFile, OpenMode},
    encryption::Sealer,
};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A disk that records failures of its files.
#[derive(Debug)]
pub(super) struct TrackedDisk {
    disk: Arc<dyn Disk>,
    failed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct TrackedFile {
    file: Arc<dyn DiskFile>,
    failed: Arc<AtomicBool>,
}

impl TrackedDisk {
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

impl TrackedFile {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }
}

impl Disk for TrackedDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(TrackedFile {
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

    fn takes(&self) -> Duration {
        self.disk.takes()
    }

    fn sealer(&self) -> io::Result<Option<Arc<Sealer>>> {
        self.disk.sealer()
    }
}

impl DiskFile for TrackedFile {
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

    fn write_again(&self) -> io::Result<()> {
        self.note(self.file.write_again())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{encryption::testing, sim_disk::SimDisk};

    #[test]
    fn an_encrypted_disk_stays_one() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        testing::encrypted(|| {
            let tracked = TrackedDisk::new(testing::share(disk.clone()));
            assert!(tracked.sealer().unwrap().is_some());
        });
        assert!(TrackedDisk::new(disk).sealer().unwrap().is_none());
    }
}
