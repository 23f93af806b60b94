//! A file of encrypted pages: what redb reads and writes as pages of 4 KiB, with a seal in front of each.
//!
//! ```text
//! byte 0      [head 512]   [page 0: 4096, not encrypted]
//! byte 4608   [seal 48, zeros 464] [page 1: 4096, encrypted]
//! byte 9216   [seal 48, zeros 464] [page 2: 4096, encrypted]  ...
//! ```
//!
//! Each page and its seal have sectors of their own, so a write that is torn spoils only the page that was written. A page that
//! cannot be decrypted reads as zeros, and so does one that was never written: to redb it is a torn page with a wrong checksum.
//! redb never overwrites a page that its last synced commit refers to, so after a crash it finds the pages of that commit whole.
//!
//! Page 0 is redb's header: the numbers, sizes and checksums of pages, no key and no value. redb overwrites it in place and
//! relies on the disk replacing some of its bytes and not the others. A page that is encrypted as a whole cannot give that, so
//! page 0 stays as redb writes it.

use super::{
    keyring::KEYRING,
    sealer::{SEAL_BYTES, Seal, Sealer, Unsealed},
};
use crate::storage::disk::DiskFile;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What redb reads and writes at once, or a multiple.
pub(super) const PAGE_BYTES: usize = 4_096;
/// The sectors in front of a page that hold its seal.
const SEAL_ROOM: usize = 512;
/// A page and its seal in the file.
const STRIDE: usize = SEAL_ROOM + PAGE_BYTES;

const MAGIC: [u8; 8] = *b"QUORPAGE";
const FORMAT: u32 = 1;

/// How a file begins that redb has written without encryption.
const REDB_MAGIC: [u8; 4] = *b"redb";

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Encrypted,
    Plain,
    /// Empty, or damaged.
    Unknown,
}

/// Which kind a file is.
pub(super) fn kind(file: &dyn DiskFile) -> io::Result<Kind> {
    let mut first = [0; 8];
    if file.len()? < first.len() as u64 {
        return Ok(Kind::Unknown);
    }
    file.read_at(0, &mut first)?;
    Ok(if first == MAGIC {
        Kind::Encrypted
    } else if first.starts_with(&REDB_MAGIC) {
        Kind::Plain
    } else {
        Kind::Unknown
    })
}

fn head() -> [u8; SEAL_ROOM] {
    let mut head = [0; SEAL_ROOM];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    head
}

/// A file whose pages are encrypted, but for the first one.
#[derive(Debug)]
pub(super) struct PageFile {
    file: Arc<dyn DiskFile>,
    sealer: Arc<Sealer>,
    /// A page of a data key that the keyring lacks was logged.
    lacks_key: AtomicBool,
}

impl PageFile {
    /// Wraps `file`. If it is empty and `create`, its head is written.
    pub(super) fn open(
        file: Arc<dyn DiskFile>,
        sealer: Arc<Sealer>,
        create: bool,
    ) -> io::Result<Self> {
        assert!(
            !file.is_direct(),
            "page 0 is written in parts, which direct I/O refuses"
        );
        if !file.is_empty()? {
            check_head(&*file)?;
        } else if create {
            file.write_at(0, &head())?;
        }
        Ok(Self {
            file,
            sealer,
            lacks_key: AtomicBool::new(false),
        })
    }

    /// The raw bytes of the pages `first..end`, zeros after the end of the file; and whether the file ends in them.
    fn raw(&self, first: usize, end: usize) -> io::Result<(Vec<u8>, bool)> {
        let start = position(first);
        let mut raw = vec![0; (end - first) * STRIDE];
        match self.file.read_at(start, &mut raw) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                let there = self.file.len()?.saturating_sub(start);
                let there = usize::try_from(there).map_or(raw.len(), |there| there.min(raw.len()));
                self.file.read_at(start, &mut raw[..there])?;
                raw[there..].fill(0);
                Ok((raw, true))
            }
            Err(error) => Err(error),
            Ok(()) => Ok((raw, false)),
        }
    }

    /// The content of a page, out of its raw bytes.
    fn page<'r>(&self, number: usize, raw: &'r mut [u8]) -> &'r [u8] {
        let (room, page) = raw.split_at_mut(SEAL_ROOM);
        if number == 0 {
            return page;
        }
        let mut seal: Seal = [0; SEAL_BYTES];
        seal.copy_from_slice(&room[..SEAL_BYTES]);
        // A page that was never written has no seal.
        let is_sealed = seal != [0; SEAL_BYTES];
        if !is_sealed {
            page.fill(0);
        } else if let Err(error) = self.sealer.open(&place(number), &seal, page) {
            self.report(error);
            page.fill(0);
        }
        page
    }

    /// The database only finds that a page has changed. Another keyring than the newest is a cause that can be mended, so it is
    /// named, once a file.
    fn report(&self, error: Unsealed) {
        if matches!(error, Unsealed::UnknownKey(_)) && !self.lacks_key.swap(true, Ordering::Relaxed)
        {
            tracing::error!(
                "a page of the database is {error}: if an older file {KEYRING}, or another member's, was put into the data \
                 directory, put the newest one back before anything is deleted"
            );
        }
    }
}

/// Where a page's seal is in the file.
fn position(page: usize) -> u64 {
    page as u64 * STRIDE as u64
}

/// The size of the encrypted file for so many bytes.
pub(super) fn encrypted_bytes(plain: u64) -> u64 {
    plain.div_ceil(PAGE_BYTES as u64).max(1) * STRIDE as u64
}

/// What makes a page another one when it is somewhere else.
fn place(page: usize) -> [u8; 12] {
    let mut place = *b"page\0\0\0\0\0\0\0\0";
    place[4..].copy_from_slice(&(page as u64).to_le_bytes());
    place
}

fn check_head(file: &dyn DiskFile) -> io::Result<()> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut found = [0; SEAL_ROOM];
    if file.len()? < SEAL_ROOM as u64 {
        return Err(invalid("the head of the encrypted file is cut off"));
    }
    file.read_at(0, &mut found)?;
    if found == head() {
        return Ok(());
    }
    Err(invalid(
        "it does not begin as an encrypted file does, or a newer version has encrypted it",
    ))
}

fn index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl DiskFile for PageFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = index(offset)?;
        let in_first = PAGE_BYTES.saturating_sub(start).min(data.len());
        let (first, pages) = data.split_at(in_first);
        if !first.is_empty() {
            self.file.write_at(offset + SEAL_ROOM as u64, first)?;
        }
        if pages.is_empty() {
            return Ok(());
        }
        let start = start + in_first;
        if !start.is_multiple_of(PAGE_BYTES) || !pages.len().is_multiple_of(PAGE_BYTES) {
            let text = "only whole pages are encrypted";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let number = start / PAGE_BYTES;
        let mut raw = vec![0; pages.len() / PAGE_BYTES * STRIDE];
        let each = raw
            .chunks_exact_mut(STRIDE)
            .zip(pages.chunks_exact(PAGE_BYTES));
        for (at, (raw, page)) in each.enumerate() {
            let (room, text) = raw.split_at_mut(SEAL_ROOM);
            text.copy_from_slice(page);
            let seal = self.sealer.seal(&place(number + at), text)?;
            room[..SEAL_BYTES].copy_from_slice(&seal);
        }
        self.file.write_at(position(number), &raw)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let start = index(offset)?;
        let end = start + out.len();
        let (first, end_page) = (start / PAGE_BYTES, end.div_ceil(PAGE_BYTES));
        let (mut raw, ends) = self.raw(first, end_page)?;
        if ends && end as u64 > self.len()? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut at = start;
        for (number, raw) in (first..end_page).zip(raw.chunks_exact_mut(STRIDE)) {
            let page = self.page(number, raw);
            let from = at - number * PAGE_BYTES;
            let part = &page[from..PAGE_BYTES.min(end - number * PAGE_BYTES)];
            out[at - start..at - start + part.len()].copy_from_slice(part);
            at += part.len();
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        let (stride, raw) = (STRIDE as u64, self.file.len()?);
        let rest = (raw % stride).saturating_sub(SEAL_ROOM as u64);
        Ok(raw / stride * PAGE_BYTES as u64 + rest)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let (page, seal) = (PAGE_BYTES as u64, SEAL_ROOM as u64);
        let rest = len % page;
        // An empty file still has its head.
        let rest = if rest > 0 || len == 0 { seal + rest } else { 0 };
        self.file.set_len(len / page * STRIDE as u64 + rest)
    }

    fn is_direct(&self) -> bool {
        false
    }

    /// Without encrypting anew, which would give each page other bytes, and one that cannot be decrypted the content zero.
    fn write_again(&self) -> io::Result<()> {
        self.file.write_again()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        disk::{Disk, OpenMode},
        encryption::{sealer::Algorithm, testing},
        sim_disk::SimDisk,
    };

    const MODE: OpenMode = OpenMode {
        create: true,
        direct: false,
    };

    fn open(disk: &SimDisk) -> PageFile {
        let file = disk.open("f", MODE).unwrap();
        PageFile::open(file, testing::sealer(Algorithm::Aes256Gcm), true).unwrap()
    }

    fn read(file: &PageFile, offset: usize, len: usize) -> Vec<u8> {
        let mut out = vec![0xee; len];
        file.read_at(offset as u64, &mut out).unwrap();
        out
    }

    fn text(pages: usize) -> Vec<u8> {
        (0..pages * PAGE_BYTES)
            .map(|at| u8::try_from(at % 251).unwrap())
            .collect()
    }

    #[test]
    fn pages_read_back_from_any_place_and_are_nowhere_in_the_file() {
        let disk = SimDisk::new(1);
        let file = open(&disk);
        assert_eq!(file.len().unwrap(), 0);
        file.set_len(8 * PAGE_BYTES as u64).unwrap();
        assert_eq!(file.len().unwrap(), 8 * PAGE_BYTES as u64);
        assert_eq!(read(&file, 0, 8 * PAGE_BYTES), vec![0; 8 * PAGE_BYTES]);
        let whole = text(6);
        file.write_at(0, &whole).unwrap();
        file.write_at(10, b"header").unwrap();
        let mut expected = [whole, vec![0; 2 * PAGE_BYTES]].concat();
        expected[10..16].copy_from_slice(b"header");
        for (offset, len) in [
            (0, 20),
            (0, 8 * PAGE_BYTES),
            (4_095, 2),
            (4_096, 4_096),
            (9_000, 9_000),
        ] {
            assert_eq!(
                read(&file, offset, len),
                expected[offset..offset + len],
                "{offset}"
            );
        }
        let raw = disk.contents("f").unwrap();
        let windows = raw[STRIDE..].windows(16);
        assert!(
            windows
                .into_iter()
                .all(|window| window != &expected[5_000..5_016])
        );
        drop(file);
        assert_eq!(read(&open(&disk), 0, expected.len()), expected);
    }

    #[test]
    fn lengths_are_those_without_encryption() {
        let disk = SimDisk::new(1);
        let file = open(&disk);
        for len in [1, 512, 4_095, 4_096, 4_097, 8_192, 100_000, 0] {
            file.set_len(len).unwrap();
            assert_eq!(file.len().unwrap(), len);
            let past = file.read_at(len, &mut [0]).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof, "{len}");
            let across = file.read_at(0, &mut vec![0; usize::try_from(len).unwrap() + 1]);
            assert!(across.is_err(), "{len}");
        }
        let half = file.write_at(4_096, &[0; 100]).unwrap_err();
        assert_eq!(half.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_torn_page_reads_as_zeros_and_spoils_no_other() {
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let file = open(&disk);
            file.write_at(0, &text(5)).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir("").unwrap();
            let newer = vec![7; PAGE_BYTES];
            file.write_at(2 * PAGE_BYTES as u64, &newer).unwrap();
            disk.crash();
            let file = open(&disk);
            let found = read(&file, 0, 5 * PAGE_BYTES);
            let mut expected = text(5);
            let torn = 2 * PAGE_BYTES..3 * PAGE_BYTES;
            let page = &found[torn.clone()];
            let is_one_of = [&expected[torn.clone()], &newer[..], &[0; PAGE_BYTES]];
            assert!(is_one_of.contains(&page), "seed {seed}");
            expected[torn.clone()].copy_from_slice(page);
            assert!(found == expected, "seed {seed}");
        }
    }

    #[test]
    fn writing_again_changes_no_byte_also_of_a_damaged_page() {
        let disk = SimDisk::new(1);
        let file = open(&disk);
        file.write_at(0, &text(3)).unwrap();
        assert!(disk.flip_bit("f", position(1) + 600, 0));
        let before = disk.contents("f").unwrap();
        let operations = disk.operations();
        file.write_again().unwrap();
        assert!(disk.contents("f").unwrap() == before);
        let done = disk.operations() - operations;
        assert_eq!(done, 3, "the length, the bytes, and a sync");
    }

    #[test]
    fn a_page_in_another_place_reads_as_zeros() {
        let disk = SimDisk::new(1);
        let file = open(&disk);
        file.write_at(0, &text(3)).unwrap();
        let raw = disk.open("f", MODE).unwrap();
        let mut page = vec![0; STRIDE];
        raw.read_at(position(1), &mut page).unwrap();
        raw.write_at(position(2), &page).unwrap();
        assert_eq!(read(&file, PAGE_BYTES, PAGE_BYTES), text(2)[PAGE_BYTES..]);
        assert_eq!(read(&file, 2 * PAGE_BYTES, PAGE_BYTES), [0; PAGE_BYTES]);
    }

    #[test]
    fn a_damaged_head_is_refused() {
        let disk = SimDisk::new(1);
        drop(open(&disk));
        let raw = disk.open("f", MODE).unwrap();
        assert_eq!(kind(&*raw).unwrap(), Kind::Encrypted);
        for at in [0, 9, 511] {
            let mut byte = [0];
            raw.read_at(at, &mut byte).unwrap();
            raw.write_at(at, &[byte[0] ^ 1]).unwrap();
            let sealer = testing::sealer(Algorithm::Aes256Gcm);
            let refused = PageFile::open(raw.clone(), sealer, true).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "byte {at}");
            raw.write_at(at, &byte).unwrap();
        }
    }
}
