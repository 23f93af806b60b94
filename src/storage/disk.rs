//! The disk, as the WAL and the database see it: a directory of files with positional reads and writes.
//!
//! This is the seam that fault injection uses: a simulated disk loses what was not synced, tears writes and fails.
//! Names are relative to the data directory and use `/` (`wal/0000000000000001.seg`). Nothing here retries: an error
//! from a write or a sync is final for its caller.

use super::encryption::Sealer;
use std::{fmt, io, sync::Arc, time::Duration};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Create the file if there is none (its directory too).
    pub create: bool,
    /// Bypass the page cache: every write's buffer address, length and offset are multiples of [`DIRECT_ALIGN`].
    /// Where the file system refuses, the file is opened without it; [`DiskFile::is_direct`] returns which.
    pub direct: bool,
}

/// Alignment of direct writes, in bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// A zeroed buffer, and the offset in it at which `len` bytes start that are aligned for direct I/O.
pub fn aligned_zeros(len: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0; len + DIRECT_ALIGN];
    let start = buffer.as_ptr().align_offset(DIRECT_ALIGN);
    assert!(
        start <= DIRECT_ALIGN,
        "a byte buffer can be aligned within {DIRECT_ALIGN} bytes, not only after {start}"
    );
    (buffer, start)
}

/// Bytes that [`DiskFile::write_again`] writes at a time.
const AGAIN_BYTES: usize = 1024 * 1024;

/// A directory of files.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// The names of the files in directory `dir` (relative, without `dir/`), sorted. A missing directory is empty.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Renames, replacing `to`. Durable only after [`Disk::sync_dir`] of both directories.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// The time that the next write and its sync take, for which the caller must wait on the simulated clock: in a simulation no
    /// call blocks. Zero for a real disk, whose calls block.
    fn takes(&self) -> Duration {
        Duration::ZERO
    }
    /// How many bytes more the files may take. More than anybody needs where the disk does not know it.
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    /// What the log encrypts its batches with; `None` without encryption. An encrypted disk makes its keyring durable first.
    fn sealer(&self) -> io::Result<Option<Arc<Sealer>>> {
        Ok(None)
    }
}

pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Fills `out` from `offset`; reaching the end of the file first is an `UnexpectedEof` error.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Makes all that was written durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Whether writes bypass the page cache, and so must be aligned.
    fn is_direct(&self) -> bool;
    /// Writes all bytes of the file again and syncs: after a failed sync they may be in the page cache only.
    ///
    /// Each byte of the medium stays as it is or becomes what it should be, so a write that is cut short destroys nothing. A file
    /// that changes the bytes on their way to another one must therefore call this method of that one. Not for direct I/O.
    fn write_again(&self) -> io::Result<()> {
        let len = self.len()?;
        self.set_len(len)?;
        let mut chunk = vec![0; AGAIN_BYTES];
        let mut at = 0;
        while at < len {
            let left = usize::try_from(len - at).unwrap_or(usize::MAX);
            let part = &mut chunk[..left.min(AGAIN_BYTES)];
            self.read_at(at, part)?;
            self.write_at(at, part)?;
            at += part.len() as u64;
        }
        self.sync_data()
    }
}
