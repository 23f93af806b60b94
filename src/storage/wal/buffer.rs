//! The buffer that the next batch is encoded into: aligned for direct I/O, written without a copy.

use super::batch::{ENTRY_HEADER_BYTES, HEADER_BYTES, entry_header, span};
use crate::storage::disk::{DIRECT_ALIGN, aligned_zeros};
use crate::types::Entry;

/// What a buffer keeps of its memory after an unusually large batch, in bytes.
const KEPT_BYTES: usize = 1024 * 1024;

/// A batch in the making: room for its header, then its payload.
#[derive(Debug)]
pub(super) struct BatchBuffer {
    /// Over-allocated, since a vector's own start is not aligned.
    bytes: Vec<u8>,
    /// Where the aligned part starts.
    start: usize,
    /// Length of header and payload so far.
    len: usize,
}

impl BatchBuffer {
    pub(super) fn new() -> Self {
        Self::with_room(KEPT_BYTES)
    }

    fn with_room(room: usize) -> Self {
        let (bytes, start) = aligned_zeros(room.next_multiple_of(DIRECT_ALIGN));
        Self {
            bytes,
            start,
            len: HEADER_BYTES,
        }
    }

    /// The payload's length so far.
    pub(super) fn payload_len(&self) -> usize {
        self.len - HEADER_BYTES
    }

    /// The payload so far.
    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.start + HEADER_BYTES..self.start + self.len]
    }

    /// Appends an entry to the payload.
    pub(super) fn push(&mut self, entry: &Entry) {
        self.reserve(ENTRY_HEADER_BYTES + entry.data.len());
        self.extend(&entry_header(entry));
        self.extend(&entry.data);
    }

    /// The whole batch, padded with zeros, its header still to be filled in.
    pub(super) fn padded(&mut self) -> &mut [u8] {
        let end = span(self.payload_len());
        let whole = &mut self.bytes[self.start..self.start + end];
        whole[self.len..].fill(0);
        whole
    }

    /// Starts the next batch.
    pub(super) fn clear(&mut self) {
        if self.bytes.len() > KEPT_BYTES + DIRECT_ALIGN {
            *self = Self::new();
        }
        self.len = HEADER_BYTES;
    }

    fn extend(&mut self, part: &[u8]) {
        let at = self.start + self.len;
        self.bytes[at..at + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    /// Makes room for `more` bytes and the padding after them.
    fn reserve(&mut self, more: usize) {
        let needed = (self.len + more).next_multiple_of(DIRECT_ALIGN);
        let room = (self.bytes.len() - self.start) / DIRECT_ALIGN * DIRECT_ALIGN;
        if needed <= room {
            return;
        }
        let mut larger = Self::with_room(needed.max(room * 2));
        larger.len = 0;
        larger.extend(&self.bytes[self.start..self.start + self.len]);
        *self = larger;
    }
}

#[cfg(test)]
mod tests {
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
        let mut buffer = BatchBuffer::new();
        for len in [0, 1, 3976, 3977, KEPT_BYTES, 5 * KEPT_BYTES, 10] {
            buffer.push(&entry(len));
            buffer.push(&entry(9));
            assert_eq!(buffer.payload_len(), 2 * ENTRY_HEADER_BYTES + len + 9);
            assert!(buffer.payload().ends_with(&[7; 9]));
            let used = HEADER_BYTES + buffer.payload_len();
            let padded = buffer.padded();
            assert_eq!(padded.as_ptr().align_offset(DIRECT_ALIGN), 0);
            assert_eq!(padded.len() % DIRECT_ALIGN, 0);
            assert!(padded[used..].iter().all(|byte| *byte == 0));
            buffer.clear();
            assert!(buffer.bytes.len() <= KEPT_BYTES + DIRECT_ALIGN);
        }
    }
}
