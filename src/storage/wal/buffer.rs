//! The buffer that the next batch is encoded into: aligned for direct I/O, in sectors as they go to the disk.

use super::{
    batch::{ENTRY_HEADER_BYTES, HEADER_BYTES, entry_header},
    sectors::{finish, scatter, span},
};
use crate::{
    storage::{
        disk::{DIRECT_ALIGN, aligned_zeros},
        encryption::{SEAL_BYTES, Sealer},
    },
    types::Entry,
};
use std::{io, sync::Arc};

/// What a buffer keeps of its memory after an unusually large batch, in bytes.
const KEPT_BYTES: usize = 1024 * 1024;

/// A batch in the making: room for its header, then its payload.
#[derive(Debug)]
pub(super) struct BatchBuffer {
    /// Over-allocated, since a vector's own start is not aligned.
    bytes: Vec<u8>,
    /// Where the aligned part starts.
    start: usize,
    /// Length of header and payload so far, without tags.
    len: usize,
    /// Checksum of the payload so far.
    payload_crc: u32,
    /// With encryption: the entries, until [`BatchBuffer::seal`] makes the payload of them.
    plain: Option<Plain>,
}

/// Entries that are encrypted as one piece.
#[derive(Debug)]
struct Plain {
    sealer: Arc<Sealer>,
    bytes: Vec<u8>,
}

impl Plain {
    /// How many bytes they add to the payload.
    fn payload_len(&self) -> usize {
        match self.bytes.len() {
            0 => 0,
            len => SEAL_BYTES + len,
        }
    }
}

impl BatchBuffer {
    /// With a sealer, entries are encrypted.
    pub(super) fn new(sealer: Option<Arc<Sealer>>) -> Self {
        let plain = sealer.map(|sealer| Plain {
            sealer,
            bytes: Vec::new(),
        });
        Self {
            plain,
            ..Self::with_room(KEPT_BYTES)
        }
    }

    fn with_room(room: usize) -> Self {
        let (bytes, start) = aligned_zeros(room.next_multiple_of(DIRECT_ALIGN));
        Self {
            bytes,
            start,
            len: HEADER_BYTES,
            payload_crc: 0,
            plain: None,
        }
    }

    /// Bytes on disk of the batch so far, padding included.
    pub(super) fn span(&self) -> usize {
        span(HEADER_BYTES + self.payload_len())
    }

    /// The payload's length so far.
    pub(super) fn payload_len(&self) -> usize {
        let plain = self.plain.as_ref().map_or(0, Plain::payload_len);
        self.len - HEADER_BYTES + plain
    }

    /// The checksum of the payload so far; with encryption, of what was sealed.
    pub(super) fn payload_crc(&self) -> u32 {
        self.payload_crc
    }

    /// Appends an entry to the payload.
    pub(super) fn push(&mut self, entry: &Entry) {
        if let Some(plain) = &mut self.plain {
            plain.bytes.extend_from_slice(&entry_header(entry));
            plain.bytes.extend_from_slice(&entry.data);
            return;
        }
        self.reserve(ENTRY_HEADER_BYTES + entry.data.len());
        self.extend(&entry_header(entry));
        self.extend(&entry.data);
    }

    /// Makes the payload of the entries, if they are to be encrypted; `place` is their batch's. Returns whether it did.
    pub(super) fn seal(&mut self, place: &[u8]) -> io::Result<bool> {
        let Some(plain) = self.plain.as_mut().filter(|plain| !plain.bytes.is_empty()) else {
            return Ok(false);
        };
        let mut bytes = std::mem::take(&mut plain.bytes);
        let seal = plain.sealer.seal(place, &mut bytes)?;
        self.reserve(SEAL_BYTES + bytes.len());
        self.extend(&seal);
        self.extend(&bytes);
        if let Some(plain) = &mut self.plain {
            bytes.clear();
            bytes.shrink_to(KEPT_BYTES);
            plain.bytes = bytes;
        }
        Ok(true)
    }

    /// The whole batch in sectors that end with `tag`, padded with zeros, its header still to be filled in.
    pub(super) fn sectors(&mut self, tag: u8) -> &mut [u8] {
        let end = self.span();
        let whole = &mut self.bytes[self.start..self.start + end];
        finish(self.len, tag, whole);
        whole
    }

    /// Starts the next batch.
    pub(super) fn clear(&mut self) {
        if self.bytes.len() > KEPT_BYTES + DIRECT_ALIGN {
            let plain = self.plain.take();
            *self = Self {
                plain,
                ..Self::with_room(KEPT_BYTES)
            };
        }
        self.len = HEADER_BYTES;
        self.payload_crc = 0;
    }

    fn extend(&mut self, part: &[u8]) {
        scatter(part, self.len, &mut self.bytes[self.start..]);
        self.payload_crc = crc32c::crc32c_append(self.payload_crc, part);
        self.len += part.len();
    }

    /// Makes room for `more` bytes and the padding after them.
    fn reserve(&mut self, more: usize) {
        let needed = span(self.len + more);
        let room = (self.bytes.len() - self.start) / DIRECT_ALIGN * DIRECT_ALIGN;
        if needed <= room {
            return;
        }
        let mut larger = Self::with_room(needed.max(room * 2));
        let used = span(self.len).min(room);
        larger.bytes[larger.start..larger.start + used]
            .copy_from_slice(&self.bytes[self.start..self.start + used]);
        larger.len = self.len;
        larger.payload_crc = self.payload_crc;
        larger.plain = self.plain.take();
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
    use super::super::sectors::{Layout, SECTOR_BYTES};
    use super::*;
    use crate::types::{EntryKind, LogIndex, Term};

    fn entry(len: usize) -> Entry {
        Entry {
            term: Term(1),
            index: LogIndex(1),
            kind: EntryKind::Command,
            data: vec![7; len].into(),
        }
    }

    #[test]
    fn batches_stay_aligned_and_padded_while_the_buffer_grows_and_shrinks() {
        let layout = Layout::Tagged { lives: 0 };
        let tag = layout.tag().unwrap();
        let mut buffer = BatchBuffer::new(None);
        for len in [0, 1, 3_911, 3_912, KEPT_BYTES, 5 * KEPT_BYTES, 10] {
            buffer.push(&entry(len));
            buffer.push(&entry(9));
            let payload_len = 2 * ENTRY_HEADER_BYTES + len + 9;
            assert_eq!(buffer.payload_len(), payload_len);
            let payload_crc = buffer.payload_crc();
            let sectors = buffer.sectors(tag);
            assert_eq!(sectors.as_ptr().align_offset(DIRECT_ALIGN), 0);
            assert_eq!(sectors.len() % DIRECT_ALIGN, 0);
            let mut payload = vec![0; payload_len];
            layout.gather(sectors, HEADER_BYTES, &mut payload);
            assert!(payload.ends_with(&[7; 9]), "{len} bytes");
            assert_eq!(crc32c::crc32c(&payload), payload_crc, "{len} bytes");
            let mut each = sectors.chunks(SECTOR_BYTES);
            assert!(each.all(|one| layout.is_written(one) == Some(true)));
            buffer.clear();
            assert!(buffer.bytes.len() <= KEPT_BYTES + DIRECT_ALIGN);
        }
    }
}
