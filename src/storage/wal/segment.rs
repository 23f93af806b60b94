//! A segment: one file of the log, its header block, and reading it in large windows.
//!
//! A live segment always has a sound header: the header is durable before the file gets its name.

use super::{
    batch::{BatchHeader, Flaw, HEADER_BYTES, u32_at, u64_at},
    error::WalError,
    sectors::{LIVES, Layout},
    segment_id::SegmentId,
};
use crate::{
    storage::{
        disk::{DIRECT_ALIGN, DiskFile},
        encryption::Sealer,
    },
    types::{ClusterId, Entry, Identity, MemberId},
};
use std::{io, sync::Arc};

/// Where batches start in a segment: after the header block.
pub(super) const BATCHES_START: u64 = DIRECT_ALIGN as u64;
/// The format this version writes without encryption.
const FORMAT_TAGGED: u32 = 2;
/// The newest format this version reads, and writes with encryption: as the one before, but batches may be encrypted.
pub(super) const FORMAT: u32 = 3;
/// The format without tags at the ends of sectors: read, and never written.
const FORMAT_PLAIN: u32 = 1;

const MAGIC: [u8; 8] = *b"QUORWAL\0";
const FIELDS_BYTES: usize = 64;
const CRC_AT: usize = FIELDS_BYTES - 4;

/// What a segment's header block says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) id: SegmentId,
    pub(super) identity: Identity,
    /// Seeds the checksums of batch headers; random, and the same in all segments of a log.
    pub(super) salt: u64,
    /// How its batches lie in it.
    pub(super) layout: Layout,
    /// Whether its batches may be encrypted.
    pub(super) encrypted: bool,
    /// The length that the file was made with: a shorter file has lost its end. Zero in files of an early version, which did not
    /// write it.
    pub(super) bytes: u64,
}

impl SegmentHeader {
    /// Fills `block`, the first [`DIRECT_ALIGN`] bytes of the file.
    pub(super) fn encode(&self, block: &mut [u8]) {
        let (format, lives) = match self.layout {
            Layout::Plain { reused } => (FORMAT_PLAIN, u32::from(reused)),
            Layout::Tagged { lives } if self.encrypted => (FORMAT, lives),
            Layout::Tagged { lives } => (FORMAT_TAGGED, lives),
        };
        block.fill(0);
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&format.to_le_bytes());
        block[12..16].copy_from_slice(&lives.to_le_bytes());
        block[16..24].copy_from_slice(&self.id.0.to_le_bytes());
        block[24..32].copy_from_slice(&self.identity.cluster.0.to_le_bytes());
        block[32..40].copy_from_slice(&self.identity.member.0.to_le_bytes());
        block[40..48].copy_from_slice(&self.salt.to_le_bytes());
        block[48..56].copy_from_slice(&self.bytes.to_le_bytes());
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..FIELDS_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header block of the segment `id` in `file`.
    pub(super) fn decode(block: &[u8], id: SegmentId, file: &str) -> Result<Self, WalError> {
        let damaged = |what: &str| WalError::Damaged {
            segment: id,
            file: file.to_owned(),
            offset: 0,
            what: what.to_owned(),
        };
        if block.len() < FIELDS_BYTES || block[..8] != MAGIC {
            return Err(damaged("this is not a log segment"));
        }
        if crc32c::crc32c(&block[..CRC_AT]) != u32_at(block, CRC_AT) {
            return Err(damaged("checksum mismatch in the segment header"));
        }
        let (found, lives) = (u32_at(block, 8), u32_at(block, 12));
        if found > FORMAT {
            return Err(WalError::NewerFormat {
                file: file.to_owned(),
                found,
                supported: FORMAT,
            });
        }
        let layout = match found {
            FORMAT_PLAIN => Layout::Plain { reused: lives > 0 },
            FORMAT_TAGGED | FORMAT if lives < LIVES => Layout::Tagged { lives },
            _ => {
                return Err(damaged(
                    "the format number or the number of lives was never in use",
                ));
            }
        };
        let header = Self {
            id: SegmentId(u64_at(block, 16)),
            identity: Identity {
                cluster: ClusterId(u64_at(block, 24)),
                member: MemberId(u64_at(block, 32)),
            },
            salt: u64_at(block, 40),
            layout,
            encrypted: found == FORMAT,
            bytes: u64_at(block, 48),
        };
        if header.id != id {
            return Err(damaged(&format!("its header names segment {}", header.id)));
        }
        Ok(header)
    }
}

/// The layout that a header block names, whichever segment it is of, and whether its batches may be encrypted; `None` if there is
/// no sound header.
pub(super) fn layout_in(block: &[u8]) -> Option<(Layout, bool)> {
    let id = SegmentId(u64_at(block.get(..FIELDS_BYTES)?, 16));
    let header = SegmentHeader::decode(block, id, "").ok()?;
    Some((header.layout, header.encrypted))
}

/// A batch as it was read back.
#[derive(Debug)]
pub(super) struct StoredBatch {
    pub(super) header: BatchHeader,
    pub(super) header_crc: u32,
    pub(super) entries: Vec<Entry>,
}

/// Reads a segment in windows, so that a run of small batches costs few reads.
#[derive(Debug)]
pub(super) struct SegmentReader {
    file: Arc<dyn DiskFile>,
    layout: Layout,
    sealer: Option<Arc<Sealer>>,
    len: u64,
    window_bytes: usize,
    window_start: u64,
    window: Vec<u8>,
}

impl SegmentReader {
    /// Reads `file`, asking for about `window_bytes` at once.
    pub(super) fn new(
        file: Arc<dyn DiskFile>,
        window_bytes: usize,
        layout: Layout,
        sealer: Option<Arc<Sealer>>,
    ) -> io::Result<Self> {
        Ok(Self {
            len: file.len()?,
            file,
            layout,
            sealer,
            window_bytes,
            window_start: 0,
            window: Vec::new(),
        })
    }

    /// The same file, with another layout.
    pub(super) fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes at `offset`; `None` if the file ends before them.
    pub(super) fn bytes(&mut self, offset: u64, len: usize) -> io::Result<Option<&[u8]>> {
        let Some(end) = offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.len)
        else {
            return Ok(None);
        };
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || end > window_end {
            let wanted = (len.max(self.window_bytes) as u64).min(self.len - offset);
            let Ok(wanted) = usize::try_from(wanted) else {
                return Err(io::ErrorKind::OutOfMemory.into());
            };
            self.window.clear();
            self.window.resize(wanted, 0);
            self.window_start = offset;
            self.file.read_at(offset, &mut self.window)?;
        }
        let Ok(from) = usize::try_from(offset - self.window_start) else {
            return Ok(None);
        };
        Ok(self.window.get(from..from + len))
    }

    /// Decodes the batch header at `offset`, without checking whether it belongs there.
    pub(super) fn header(
        &mut self,
        offset: u64,
        salt: u64,
    ) -> io::Result<Result<(BatchHeader, u32), Flaw>> {
        Ok(match self.bytes(offset, HEADER_BYTES)? {
            Some(bytes) => BatchHeader::decode(bytes, salt),
            None => Err(Flaw::NoBatch),
        })
    }

    /// Decodes the batch at `offset`, without checking whether it belongs there.
    pub(super) fn batch(
        &mut self,
        offset: u64,
        salt: u64,
    ) -> io::Result<Result<StoredBatch, Flaw>> {
        let (header, header_crc) = match self.header(offset, salt)? {
            Ok(found) => found,
            Err(flaw) => return Ok(Err(flaw)),
        };
        let (layout, payload_len) = (self.layout, header.payload_len as usize);
        let whole = layout.end_of(HEADER_BYTES + payload_len);
        let Some(whole) = self.bytes(offset, whole)? else {
            return Ok(Err(Flaw::PastEnd(header.batch)));
        };
        let mut payload = vec![0; payload_len];
        layout.gather(whole, HEADER_BYTES, &mut payload);
        let entries = header.read_payload(payload, self.sealer.as_deref());
        Ok(entries.map(|entries| StoredBatch {
            header,
            header_crc,
            entries,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader = SegmentHeader {
        id: SegmentId(0x1f),
        identity: Identity {
            cluster: ClusterId(8),
            member: MemberId(9),
        },
        salt: 7,
        layout: Layout::Tagged { lives: 3 },
        encrypted: false,
        bytes: 0x5000,
    };

    fn block() -> Vec<u8> {
        let mut block = vec![0xaa; DIRECT_ALIGN];
        HEADER.encode(&mut block);
        block
    }

    #[test]
    fn a_header_reads_back_and_any_flipped_bit_is_damage() {
        let mut block = block();
        let back = SegmentHeader::decode(&block, SegmentId(0x1f), "f").unwrap();
        assert_eq!(back, HEADER);
        for bit in 0..FIELDS_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            let found = SegmentHeader::decode(&block, SegmentId(0x1f), "f");
            assert!(
                matches!(found, Err(WalError::Damaged { offset: 0, .. })),
                "bit {bit}"
            );
            block[bit / 8] ^= 1 << (bit % 8);
        }
        let encrypted = SegmentHeader {
            encrypted: true,
            ..HEADER
        };
        let mut other = block.clone();
        encrypted.encode(&mut other);
        let back = SegmentHeader::decode(&other, SegmentId(0x1f), "f").unwrap();
        assert_eq!(back, encrypted);
        assert_eq!(
            (block[8], other[8]),
            (2, 3),
            "an older version refuses format 3"
        );
        let other = SegmentHeader::decode(&block, SegmentId(0x20), "f");
        assert!(matches!(other, Err(WalError::Damaged { .. })));
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let mut block = block();
        block[8..12].copy_from_slice(&4_u32.to_le_bytes());
        let crc = crc32c::crc32c(&block[..CRC_AT]);
        block[CRC_AT..FIELDS_BYTES].copy_from_slice(&crc.to_le_bytes());
        let found = SegmentHeader::decode(&block, SegmentId(0x1f), "f");
        assert!(
            matches!(
                found,
                Err(WalError::NewerFormat {
                    found: 4,
                    supported: 3,
                    ..
                })
            ),
            "{found:?}"
        );
    }
}
