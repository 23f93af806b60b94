//! The disk, as the WAL and the database see it: a directory of files with positional reads and writes.
//!
//! This is the seam that fault injection uses: a simulated disk loses what was not synced, tears writes and fails.
//! Names are relative to the data directory and use `/` (`wal/0000000000000001.seg`). Nothing here retries: an error
//! from a write or a sync is final for its caller.

use std::{fmt, io, sync::Arc, time::Duration};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenMode {
    /// Create the file if there is none (its directory too).
    pub create: bool,
    /// Bypass the page cache: every write's buffer address, length and offset are multiples of [`DIRECT_ALIGN`].
    /// Where the file system refuses, the file is opened without it; [`DiskFile::is_direct`] tells.
    pub direct: bool,
}

/// Alignment of direct writes, in bytes.
pub const DIRECT_ALIGN: usize = 4096;

/// A zeroed buffer, and where in it the aligned `len` bytes start that direct I/O needs.
pub fn aligned_zeros(len: usize) -> (Vec<u8>, usize) {
    let buffer = vec![0; len + DIRECT_ALIGN];
    let start = buffer.as_ptr().align_offset(DIRECT_ALIGN);
    assert!(
        start <= DIRECT_ALIGN,
        "bytes can always be aligned by skipping some, yet {start} were to be skipped"
    );
    (buffer, start)
}

/// A directory of files.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Opens a file for reading and writing.
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// The names of the files in directory `dir` (relative, without `dir/`), sorted. A missing directory is empty.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Renames, replacing `to`. Durable only after [`Disk::sync_dir`] of both directories.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// How long the caller has to wait, on the simulated clock, before the next write and its sync: in a simulation no call
    /// blocks. Zero for a real disk, whose calls block.
    fn takes(&self) -> Duration {
        Duration::ZERO
    }
}

/// One open file.
pub trait DiskFile: fmt::Debug + Send + Sync + 'static {
    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Fills `out` from `offset`; reaching the end of the file first is an `UnexpectedEof` error.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Makes all that was written durable (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or grows (with zeros) to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Whether writes bypass the page cache, and so must be aligned.
    fn is_direct(&self) -> bool;
}
