//! The frames of one file of the log: where each begins, and whether one that is damaged was only half written.

use super::error::WalError;
use bytes::Bytes;
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

/// Longest frame that is read. An entry is a request of a client, which etcd limits to 1.5 MiB unless told otherwise.
pub const FRAME_BYTES_MAX: u64 = 64 << 20;

/// Bytes before a frame's content: a little-endian length, whose highest byte says how many bytes of padding follow.
const HEADER_BYTES: u64 = 8;
/// A disk writes sectors of at least so many bytes in whole or not at all.
const SECTOR_BYTES: u64 = 512;
const BUFFER_BYTES: usize = 64 << 10;

/// A frame that has all its bytes. Its content may still be damaged.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Of its header, from the beginning of the file.
    pub(super) offset: u64,
    /// The record; no padding.
    pub(super) content: Bytes,
    /// Whether some sector of it is zero throughout, padding included: a write that a crash has cut looks so.
    pub(super) has_zero_sector: bool,
}

/// What comes next in a file.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    /// Nothing, or the zeros of a preallocated file.
    End,
    /// The beginning of a frame whose end would be behind that of the file.
    CutShort,
}

/// Reads one file from its beginning to its end.
pub(super) struct Frames {
    path: PathBuf,
    reader: BufReader<File>,
    bytes: u64,
    /// Where the next frame begins.
    offset: u64,
}

impl Frames {
    pub(super) fn open(path: &Path) -> Result<Self, WalError> {
        let failed = |source| WalError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            bytes,
            offset: 0,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next frame begins; if there is none, where the file's content ends.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn next(&mut self) -> Result<Next, WalError> {
        let left = self.bytes.saturating_sub(self.offset);
        if left < HEADER_BYTES {
            return Ok(if left == 0 { Next::End } else { Next::CutShort });
        }
        let mut header = [0; 8];
        self.read(&mut header)?;
        let header = u64::from_le_bytes(header);
        if header == 0 {
            return Ok(Next::End);
        }
        let (length, padding) = lengths(header);
        let whole = length.saturating_add(padding);
        if whole > left - HEADER_BYTES {
            return Ok(Next::CutShort);
        }
        if length > FRAME_BYTES_MAX {
            return Err(WalError::FrameTooLong {
                file: self.path.clone(),
                offset: self.offset,
                bytes: length,
                max: FRAME_BYTES_MAX,
            });
        }
        self.content(length, whole).map(Next::Frame)
    }

    fn content(&mut self, length: u64, whole: u64) -> Result<Frame, WalError> {
        let bytes = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        let mut content = vec![0; bytes(whole)];
        self.read(&mut content)?;
        let offset = self.offset;
        let has_zero_sector = has_zero_sector(&content, offset + HEADER_BYTES);
        content.truncate(bytes(length));
        self.offset = offset + HEADER_BYTES + whole;
        Ok(Frame {
            offset,
            content: content.into(),
            has_zero_sector,
        })
    }

    /// How many bytes from `offset` on up to the last one that is not zero: what is lost if the log ends at `offset`.
    pub(super) fn bytes_after(&mut self, offset: u64) -> Result<u64, WalError> {
        let sought = self.reader.seek(SeekFrom::Start(offset));
        sought.map_err(|source| self.failed(source))?;
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut position = 0;
        let mut end = 0;
        loop {
            let read = self.reader.read(&mut buffer);
            let read = read.map_err(|source| self.failed(source))?;
            let Some(part) = buffer.get(..read).filter(|part| !part.is_empty()) else {
                return Ok(end);
            };
            if let Some(last) = part.iter().rposition(|byte| *byte != 0) {
                end = position + last as u64 + 1;
            }
            position += read as u64;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), WalError> {
        let read = self.reader.read_exact(buffer);
        read.map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> WalError {
        WalError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

/// Length of the content and of the padding. The lower 56 bits are the length; padding is in the lower three bits of the highest
/// byte, if its highest bit is set.
fn lengths(header: u64) -> (u64, u64) {
    let length = header & !(0xff << 56);
    let padded = header >> 63 == 1;
    let padding = if padded { header >> 56 & 0x7 } else { 0 };
    (length, padding)
}

/// Whether one of the sectors that `bytes` lie in has only zeros of them; `position` is that of `bytes` in the file.
fn has_zero_sector(bytes: &[u8], position: u64) -> bool {
    let to_boundary = SECTOR_BYTES - position % SECTOR_BYTES;
    let first = usize::try_from(to_boundary).unwrap_or(usize::MAX);
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    let zero = |sector: &[u8]| sector.iter().all(|byte| *byte == 0);
    let sectors = rest.chunks(512);
    !head.is_empty() && zero(head) || sectors.into_iter().any(zero)
}

#[cfg(test)]
mod tests {
    use super::{has_zero_sector, lengths};

    #[test]
    fn the_highest_byte_of_a_header_is_padding() {
        assert_eq!(lengths(24), (24, 0));
        assert_eq!(lengths(0x8500_0000_0000_0003), (3, 5));
        assert_eq!(
            lengths(0x0500_0000_0000_0003),
            (3, 0),
            "not marked as padded"
        );
        assert_eq!(lengths(u64::MAX), ((1 << 56) - 1, 7));
    }

    #[test]
    fn sectors_are_those_of_the_file() {
        let mut bytes = vec![1; 1_200];
        assert!(!has_zero_sector(&bytes, 8), "no byte is zero");
        // The file's second sector begins 504 bytes after its offset 8.
        bytes[504..1_016].fill(0);
        assert!(has_zero_sector(&bytes, 8), "a whole sector is zero");
        assert!(
            !has_zero_sector(&bytes, 16),
            "it is not a sector of the file"
        );
        bytes.fill(1);
        bytes[..4].fill(0);
        assert!(has_zero_sector(&bytes, 508), "the part in the first sector");
        assert!(!has_zero_sector(&[], 512), "no part of a sector");
    }
}
