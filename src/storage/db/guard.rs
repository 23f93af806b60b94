//! A layer between redb and the disk that verifies all bytes before redb parses them.
//!
//! redb keeps a checksum of every page in the page above it, but compares them only when it repairs a file that was
//! not closed; otherwise it uses the pages unchecked, and a flipped bit can cause wrong results or a panic. So:
//!
//! 1. Every open is a repair. One byte of the header says whether the file was closed cleanly and whether the newest commit
//!    needs no check; [`Guard`] returns that byte with "no" for both. redb then recomputes the file's layout, verifies every
//!    reachable page before it uses it, starting from the newest commit, and falls back to the commit before if the newest is
//!    torn. The whole file is read at startup in any case, to build the index.
//! 2. Later damage is found: [`Guard`] keeps a checksum of every block that was read or written since, and a later read that
//!    differs fails. That costs 4 bytes of memory for 4 KiB of file.

use redb::StorageBackend;
use std::{
    fmt, io,
    ops::Range,
    sync::{PoisonError, RwLock},
};

/// The unit of the checksums: redb's page size, so that every page is a whole number of blocks.
const BLOCK_BYTES: usize = 4096;

/// The byte of redb's header that says how the file was closed.
const STATE_BYTE_OFFSET: u64 = 9;
/// The file was not closed cleanly.
const RECOVERY_REQUIRED: u8 = 0b010;
/// The newest commit was synced before it was declared the newest.
const TWO_PHASE_COMMIT: u8 = 0b100;

/// A storage backend for redb that presents every file as not closed cleanly, and fails reads of blocks that changed.
pub(super) struct Guard<B> {
    inner: B,
    /// Called when a sync fails.
    unsynced: Box<dyn Fn() + Send + Sync>,
    /// A checksum for each block; zero if the block was never read or written as a whole.
    blocks: RwLock<Vec<u32>>,
}

impl<B: fmt::Debug> fmt::Debug for Guard<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<B: StorageBackend> Guard<B> {
    /// `unsynced` is called when a sync fails: then the content of the disk is unknown.
    pub(super) fn new(inner: B, unsynced: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            inner,
            unsynced: Box::new(unsynced),
            blocks: RwLock::default(),
        }
    }

    /// Forgets the checksums of all blocks that `bytes` touches, so that they are not compared until written again.
    fn forget(&self, bytes: Range<u64>) {
        let first = index(bytes.start / BLOCK_BYTES as u64);
        let end = index(bytes.end.div_ceil(BLOCK_BYTES as u64));
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        let end = end.min(blocks.len());
        blocks[first.min(end)..end].fill(0);
    }

    /// Stores the checksums of the blocks of `data`, which is now at `offset`.
    fn remember(&self, offset: u64, data: &[u8]) {
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        for (at, block) in whole_blocks(offset, data) {
            if blocks.len() <= at {
                blocks.resize(at + 1, 0);
            }
            blocks[at] = checksum(block);
        }
    }

    /// Compares the blocks of `data`, read from `offset`, with their checksums. True if some had none.
    fn compare(&self, offset: u64, data: &[u8]) -> io::Result<bool> {
        let blocks = self.blocks.read().unwrap_or_else(PoisonError::into_inner);
        let mut new = false;
        for (at, block) in whole_blocks(offset, data) {
            match blocks.get(at).copied().unwrap_or(0) {
                0 => new = true,
                known if known == checksum(block) => {}
                _ => {
                    let text = format!("the block at byte {} changed on disk", at * BLOCK_BYTES);
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
        Ok(new)
    }
}

impl<B: StorageBackend> StorageBackend for Guard<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)?;
        if self.compare(offset, out)? {
            self.remember(offset, out);
        }
        if offset <= STATE_BYTE_OFFSET
            && let Some(state) = out.get_mut(index(STATE_BYTE_OFFSET - offset))
        {
            *state = (*state | RECOVERY_REQUIRED) & !TWO_PHASE_COMMIT;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        let whole = index(len / BLOCK_BYTES as u64);
        let mut blocks = self.blocks.write().unwrap_or_else(PoisonError::into_inner);
        blocks.truncate(whole);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| (self.unsynced)())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // After a write that failed or covered a block in part, the block's content is unknown.
        self.forget(offset..offset + data.len() as u64);
        self.inner.write(offset, data)?;
        self.remember(offset, data);
        Ok(())
    }
}

/// The blocks that lie in `data` as a whole, with their numbers, when `data` is at `offset`.
fn whole_blocks(offset: u64, data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let first = offset.div_ceil(BLOCK_BYTES as u64);
    let skip = index(first * BLOCK_BYTES as u64 - offset).min(data.len());
    let blocks = data[skip..].chunks_exact(BLOCK_BYTES);
    blocks
        .enumerate()
        .map(move |(at, block)| (index(first) + at, block))
}

/// Never zero, which means "unknown".
fn checksum(block: &[u8]) -> u32 {
    crc32c::crc32c(block).max(1)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::backends::InMemoryBackend;

    fn guard() -> Guard<InMemoryBackend> {
        let guard = Guard::new(InMemoryBackend::new(), || ());
        guard.set_len(8 * BLOCK_BYTES as u64).unwrap();
        guard
    }

    #[test]
    fn a_block_that_changed_below_fails_to_read() {
        let guard = guard();
        let page = vec![7; 2 * BLOCK_BYTES];
        guard.write(BLOCK_BYTES as u64, &page).unwrap();
        let mut out = page.clone();
        guard.read(BLOCK_BYTES as u64, &mut out).unwrap();
        guard
            .inner
            .write(2 * BLOCK_BYTES as u64 + 99, &[6])
            .unwrap();
        let error = guard.read(BLOCK_BYTES as u64, &mut out).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(error.to_string(), "the block at byte 8192 changed on disk");
        out.truncate(BLOCK_BYTES);
        guard.read(BLOCK_BYTES as u64, &mut out).unwrap();
    }

    #[test]
    fn the_first_read_of_a_block_is_remembered() {
        let guard = guard();
        let mut out = vec![0; BLOCK_BYTES];
        guard.read(3 * BLOCK_BYTES as u64, &mut out).unwrap();
        guard.inner.write(3 * BLOCK_BYTES as u64, &[1]).unwrap();
        guard.read(3 * BLOCK_BYTES as u64, &mut out).unwrap_err();
    }

    #[test]
    fn partial_writes_and_new_lengths_forget() {
        let guard = guard();
        let mut out = vec![0; BLOCK_BYTES];
        for at in [4, 7] {
            guard.read(at * BLOCK_BYTES as u64, &mut out).unwrap();
        }
        guard.write(5 * BLOCK_BYTES as u64 - 10, &[1; 20]).unwrap();
        guard.read(4 * BLOCK_BYTES as u64, &mut out).unwrap();
        assert_eq!(out[BLOCK_BYTES - 1], 1, "the partial write is there");
        guard.set_len(7 * BLOCK_BYTES as u64).unwrap();
        guard.set_len(8 * BLOCK_BYTES as u64).unwrap();
        guard.inner.write(7 * BLOCK_BYTES as u64, &[1]).unwrap();
        guard.read(7 * BLOCK_BYTES as u64, &mut out).unwrap();
    }

    #[test]
    fn redb_is_told_that_the_file_was_not_closed() {
        let guard = guard();
        guard.write(0, &[0xff; 320]).unwrap();
        let mut header = [0; 320];
        guard.read(0, &mut header).unwrap();
        assert_eq!(header[9], 0b1111_1011);
        let mut magic = [0; 9];
        guard.read(0, &mut magic).unwrap();
        assert_eq!(magic, [0xff; 9], "nothing before that byte is touched");
    }
}
