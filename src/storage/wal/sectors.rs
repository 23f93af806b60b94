//! Sectors: how a batch lies on the disk, and how a write that was cut short is distinguished from one that was damaged later.
//!
//! A disk writes a sector of 512 bytes whole or not at all; of a write that a crash or a full disk cuts short, any of its sectors
//! may be missing, and a file system may cut inside one. So every sector of a batch ends with a *tag*, a byte that this place of
//! the file never had before. A sector whose last byte is the tag was written to its end; one whose last byte is something else
//! was not.
//!
//! ```text
//! sector 0: [header 96][payload 415][tag]   sector 1: [payload 511][tag]   ...   sector 7: [payload or zeros 511][tag]
//! ```
//!
//! A tag belongs to one *life* of a segment's file, the time for which the file has one segment number. The tags and zero differ
//! from each other in at least four bits. So one flipped bit does not turn an old tag into the current one or the reverse, and
//! [`Layout::is_written`] accepts a tag with one flipped bit. After [`LIVES`] lives a file is not reused any more: then no sector
//! still has the tag of an earlier life.
//!
//! Segments of format 1 have no tags: their batches lie on the disk in one piece.

use crate::storage::disk::DIRECT_ALIGN;

/// What a disk writes whole or not at all, in bytes.
pub(super) const SECTOR_BYTES: usize = 512;
/// Bytes of a batch in one sector: all but the tag.
const CONTENT_BYTES: usize = SECTOR_BYTES - 1;
/// How often a file can be a segment: once new, then reused.
pub(super) const LIVES: u32 = 15;

/// How batches lie in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Format 1: in one piece. `reused`: the file was a segment before, so that leftovers may follow the last batch.
    Plain { reused: bool },
    /// Format 2: each sector ends with the tag of this life. `lives`: how often the file was a segment before, below [`LIVES`].
    Tagged { lives: u32 },
}

impl Layout {
    /// The tag; format 1 has none.
    pub(super) fn tag(self) -> Option<u8> {
        match self {
            Self::Plain { .. } => None,
            Self::Tagged { lives } => Some(word(lives + 1)),
        }
    }

    /// The `lives` of the next reuse; `None` if the file must not be reused.
    pub(super) fn lives_after(self) -> Option<u32> {
        match self {
            Self::Plain { .. } => None,
            Self::Tagged { lives } => Some(lives + 1).filter(|lives| *lives < LIVES),
        }
    }

    /// Bytes on disk, in whole blocks, of `len` bytes of header and payload.
    pub(super) fn span(self, len: usize) -> usize {
        self.end_of(len).next_multiple_of(DIRECT_ALIGN)
    }

    /// The first byte on disk after `len` bytes of header and payload.
    pub(super) fn end_of(self, len: usize) -> usize {
        match self {
            Self::Plain { .. } => len,
            Self::Tagged { .. } => position(len),
        }
    }

    /// Copies `out.len()` bytes of a batch into `out`, from byte `from` of header and payload on. `disk` is the batch as it lies
    /// on the disk.
    pub(super) fn gather(self, disk: &[u8], from: usize, out: &mut [u8]) {
        match self {
            Self::Plain { .. } => out.copy_from_slice(&disk[from..from + out.len()]),
            Self::Tagged { .. } => pieces(from, out.len(), |disk_at, at, len| {
                out[at..at + len].copy_from_slice(&disk[disk_at..disk_at + len]);
            }),
        }
    }

    /// Whether this sector was written to its end in this life of the file. One flipped bit does not change the answer. `None`
    /// where the layout does not show it.
    pub(super) fn is_written(self, sector: &[u8]) -> Option<bool> {
        let tag = self.tag()?;
        let last = sector.get(CONTENT_BYTES);
        Some(last.is_some_and(|last| (last ^ tag).count_ones() <= 1))
    }
}

/// Bytes on disk, in whole blocks, of `len` bytes of header and payload as this version writes them.
pub(super) fn span(len: usize) -> usize {
    position(len).next_multiple_of(DIRECT_ALIGN)
}

/// Copies `part` into the sectors `disk`, as bytes from `from` on of header and payload.
pub(super) fn scatter(part: &[u8], from: usize, disk: &mut [u8]) {
    pieces(from, part.len(), |disk_at, at, len| {
        disk[disk_at..disk_at + len].copy_from_slice(&part[at..at + len]);
    });
}

/// Zeros what follows `len` bytes of header and payload in the sectors `disk`, and tags every sector.
pub(super) fn finish(len: usize, tag: u8, disk: &mut [u8]) {
    disk[position(len)..].fill(0);
    for sector in disk.chunks_exact_mut(SECTOR_BYTES) {
        sector[CONTENT_BYTES] = tag;
    }
}

/// Where byte `at` of header and payload lies on the disk.
fn position(at: usize) -> usize {
    at / CONTENT_BYTES * SECTOR_BYTES + at % CONTENT_BYTES
}

/// Calls `copy` with (position on disk, position in the part, length) for each piece of `len` bytes from byte `from` on.
fn pieces(from: usize, len: usize, mut copy: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    while at < len {
        let room = CONTENT_BYTES - (from + at) % CONTENT_BYTES;
        let piece = room.min(len - at);
        copy(position(from + at), at, piece);
        at += piece;
    }
}

/// The `number`th word, 1 to 15, of the extended Hamming code of eight bits: any two, and zero, differ in four bits or eight.
fn word(number: u32) -> u8 {
    const ROWS: [u8; 4] = [0b1000_0111, 0b0100_1011, 0b0010_1101, 0b0001_1110];
    let rows = ROWS.iter().enumerate();
    let chosen = rows.filter(|(row, _)| number & (1 << row) != 0);
    chosen.fold(0, |word, (_, row)| word ^ row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_zero_differ_in_four_bits() {
        let all: Vec<u8> = (0..=LIVES).map(word).collect();
        for (at, one) in all.iter().enumerate() {
            for other in &all[..at] {
                assert!((one ^ other).count_ones() >= 4, "{one:08b} and {other:08b}");
            }
        }
        assert_eq!(all[0], 0, "an unwritten sector ends with zero");
    }

    #[test]
    fn what_is_scattered_is_gathered_and_leaves_the_tags_alone() {
        let layout = Layout::Tagged { lives: 3 };
        for len in [1, 96, 510, 511, 512, 1_022, 4_088, 4_089, 20_000] {
            let part: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let whole = layout.end_of(len).next_multiple_of(DIRECT_ALIGN);
            let mut disk = vec![0xff; whole];
            for (from, piece) in part.chunks(97).enumerate() {
                scatter(piece, from * 97, &mut disk);
            }
            finish(len, layout.tag().unwrap(), &mut disk);
            let mut back = vec![0; len];
            layout.gather(&disk, 0, &mut back);
            assert_eq!(back, part, "{len} bytes");
            let written = disk.chunks(SECTOR_BYTES).map(|one| layout.is_written(one));
            assert!(written.into_iter().all(|written| written == Some(true)));
            let used = layout.end_of(len);
            let padding = disk[used..].iter().zip(used..);
            let mut padding = padding.filter(|(_, at)| at % SECTOR_BYTES != CONTENT_BYTES);
            assert!(padding.all(|(byte, _)| *byte == 0), "{len} bytes");
        }
    }

    #[test]
    fn one_flipped_bit_does_not_change_whether_a_sector_counts_as_written() {
        for lives in 0..LIVES {
            let layout = Layout::Tagged { lives };
            for older in (0..=LIVES).map(word) {
                let expected = Some(older) == layout.tag();
                for bit in 0..8 {
                    let mut sector = [0x5a; SECTOR_BYTES];
                    sector[CONTENT_BYTES] = older ^ (1 << bit);
                    assert_eq!(layout.is_written(&sector), Some(expected));
                }
            }
        }
    }
}
