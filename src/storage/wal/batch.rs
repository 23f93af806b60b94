//! A batch: the bytes of one flush. It survives a crash whole or not at all.
//!
//! The header contains the batch's position in the log and the hard state, so that the newest batch is enough to restore it after
//! older segments were released. `docs/format.md` lists every byte.

use super::{sectors::Layout, segment_id::SegmentId};
use crate::{
    storage::encryption::{SEAL_BYTES, Seal, Sealer, Unsealed},
    types::{Entry, EntryKind, HardState, LogIndex, MemberId, Term},
};
use bytes::Bytes;
use std::fmt;

/// Length of a batch header; the payload follows it.
pub(super) const HEADER_BYTES: usize = 96;
/// Bytes before an entry's data.
pub(super) const ENTRY_HEADER_BYTES: usize = 24;
/// The largest payload a header can name.
pub(super) const PAYLOAD_BYTES_MAX: usize = 1024 * 1024 * 1024;

pub(super) const MAGIC: [u8; 4] = *b"QWB\x01";
pub(super) const HEADER_CRC_AT: usize = HEADER_BYTES - 4;
const FLAG_SEAL: u32 = 1;
const FLAG_VOTE: u32 = 2;
const FLAG_RESET: u32 = 4;
const FLAG_ENCRYPTED: u32 = 8;
const FLAGS_KNOWN: u32 = FLAG_SEAL | FLAG_VOTE | FLAG_RESET | FLAG_ENCRYPTED;

/// A batch's place in the order of all batches of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BatchId(pub(super) u64);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a batch's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchHeader {
    /// The segment it was written for. Leftovers in a reused file have another number.
    pub(super) segment: SegmentId,
    /// Its place among all batches. A seal has the number that the batch overwriting it will get.
    pub(super) batch: BatchId,
    /// Header checksum of the batch before it; zero for the very first.
    pub(super) previous_crc: u32,
    /// The index before its first entry. If the log had entries after that index, the batch replaces them.
    pub(super) base: LogIndex,
    /// `Some` if all earlier batches are void: the log starts anew after the entry `base`, which has this term.
    pub(super) reset: Option<Term>,
    /// The hard state as of this batch.
    pub(super) hard_state: HardState,
    /// Whether it is a seal, which only proves that the batch before it was durable.
    pub(super) seal: bool,
    /// Whether the payload is encrypted.
    pub(super) encrypted: bool,
    /// How many entries the payload holds.
    pub(super) entries: u32,
    pub(super) payload_len: u32,
    pub(super) payload_crc: u32,
}

/// Why bytes are not the batch that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    /// The bytes do not begin with a batch's magic number.
    #[error("no batch starts here")]
    NoBatch,
    /// The header's checksum does not match.
    #[error("checksum mismatch in a batch header")]
    HeaderChecksum,
    /// The header holds what this version never writes.
    #[error("a batch header with unknown flags or sizes")]
    HeaderContent,
    /// A sound header, but of a batch that belongs elsewhere.
    #[error("batch {found} of segment {segment} where batch {expected} belongs")]
    OutOfPlace {
        /// The batch that is there.
        found: BatchId,
        /// The segment it names.
        segment: SegmentId,
        /// The batch that should be there.
        expected: BatchId,
    },
    /// A sound batch that was not written after the one before it.
    #[error("batch {0} does not follow the batch before it")]
    BrokenChain(BatchId),
    /// The payload reaches past the end of the file.
    #[error("batch {0} reaches past the end of the file")]
    PastEnd(BatchId),
    /// The payload's checksum does not match.
    #[error("checksum mismatch in the payload of batch {0}")]
    PayloadChecksum(BatchId),
    /// The payload does not consist of the entries that the header announces.
    #[error("malformed entry {1} in batch {0}")]
    Entry(BatchId, LogIndex),
    /// The payload is as it was written, and cannot be decrypted.
    #[error("the payload of batch {0} cannot be decrypted: {1}")]
    Encrypted(BatchId, Unsealed),
    /// The payload is encrypted, and encryption is off.
    #[error(
        "the payload of batch {0} is encrypted, but encryption is off: set encryption.key_file or encryption.key_command"
    )]
    NoKey(BatchId),
}

pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// The checksum of a header starts with the log's salt. Clients cannot find out the salt, so they cannot store bytes that pass
/// for a valid header.
pub(super) fn header_crc(bytes: &[u8], salt: u64) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &bytes[..HEADER_CRC_AT])
}

impl BatchHeader {
    /// Bytes on disk in a segment of this layout, padding included.
    pub(super) fn span(&self, layout: Layout) -> u64 {
        layout.span(HEADER_BYTES + self.payload_len as usize) as u64
    }

    /// The log's last index after this batch.
    pub(super) fn last(&self) -> LogIndex {
        LogIndex(self.base.0.saturating_add(u64::from(self.entries)))
    }

    /// Writes the header at the start of `out` and returns its checksum.
    pub(super) fn encode(&self, salt: u64, out: &mut [u8]) -> u32 {
        let mut flags = 0;
        let vote = self.hard_state.vote;
        flags |= if self.seal { FLAG_SEAL } else { 0 };
        flags |= if vote.is_some() { FLAG_VOTE } else { 0 };
        flags |= if self.reset.is_some() { FLAG_RESET } else { 0 };
        flags |= if self.encrypted { FLAG_ENCRYPTED } else { 0 };
        out[..HEADER_BYTES].fill(0);
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&flags.to_le_bytes());
        out[8..16].copy_from_slice(&self.segment.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.batch.0.to_le_bytes());
        out[24..28].copy_from_slice(&self.payload_len.to_le_bytes());
        out[28..32].copy_from_slice(&self.entries.to_le_bytes());
        out[32..36].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[36..40].copy_from_slice(&self.previous_crc.to_le_bytes());
        out[40..48].copy_from_slice(&self.base.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.reset.unwrap_or_default().0.to_le_bytes());
        out[56..64].copy_from_slice(&self.hard_state.term.0.to_le_bytes());
        out[64..72].copy_from_slice(&vote.unwrap_or_default().0.to_le_bytes());
        out[72..80].copy_from_slice(&self.hard_state.commit.0.to_le_bytes());
        let crc = header_crc(out, salt);
        out[HEADER_CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads a header from the start of `bytes`, with its checksum.
    pub(super) fn decode(bytes: &[u8], salt: u64) -> Result<(Self, u32), Flaw> {
        if bytes.len() < HEADER_BYTES || bytes[..4] != MAGIC {
            return Err(Flaw::NoBatch);
        }
        let crc = u32_at(bytes, HEADER_CRC_AT);
        if crc != header_crc(bytes, salt) {
            return Err(Flaw::HeaderChecksum);
        }
        let flags = u32_at(bytes, 4);
        let payload_len = u32_at(bytes, 24);
        if flags & !FLAGS_KNOWN != 0 || payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(Flaw::HeaderContent);
        }
        let header = Self {
            segment: SegmentId(u64_at(bytes, 8)),
            batch: BatchId(u64_at(bytes, 16)),
            payload_len,
            entries: u32_at(bytes, 28),
            payload_crc: u32_at(bytes, 32),
            previous_crc: u32_at(bytes, 36),
            base: LogIndex(u64_at(bytes, 40)),
            reset: (flags & FLAG_RESET != 0).then(|| Term(u64_at(bytes, 48))),
            hard_state: HardState {
                term: Term(u64_at(bytes, 56)),
                vote: (flags & FLAG_VOTE != 0).then(|| MemberId(u64_at(bytes, 64))),
                commit: LogIndex(u64_at(bytes, 72)),
            },
            seal: flags & FLAG_SEAL != 0,
            encrypted: flags & FLAG_ENCRYPTED != 0,
        };
        Ok((header, crc))
    }

    /// What an encrypted payload is bound to, so that it is no other batch's.
    pub(super) fn place(&self) -> [u8; 32] {
        let mut place = *b"wal\0............................";
        place[4..12].copy_from_slice(&self.segment.0.to_le_bytes());
        place[12..20].copy_from_slice(&self.batch.0.to_le_bytes());
        place[20..28].copy_from_slice(&self.base.0.to_le_bytes());
        place[28..].copy_from_slice(&self.entries.to_le_bytes());
        place
    }

    /// The entries in `payload`, as the disk has it; `sealer` decrypts them.
    pub(super) fn read_payload(
        &self,
        mut payload: Vec<u8>,
        sealer: Option<&Sealer>,
    ) -> Result<Vec<Entry>, Flaw> {
        if !self.encrypted {
            return self.decode_payload(&payload.into());
        }
        self.check_payload(&payload)?;
        let sealer = sealer.ok_or(Flaw::NoKey(self.batch))?;
        let Some((seal, text)) = payload.split_first_chunk_mut::<SEAL_BYTES>() else {
            return Err(Flaw::Entry(self.batch, self.base));
        };
        let seal: Seal = *seal;
        let opened = sealer.open(&self.place(), &seal, text);
        opened.map_err(|error| Flaw::Encrypted(self.batch, error))?;
        self.decode_entries(&Bytes::from(payload).slice(SEAL_BYTES..))
    }

    /// Checks `payload` against this header and takes the entries out of it, without copying their data.
    pub(super) fn decode_payload(&self, payload: &Bytes) -> Result<Vec<Entry>, Flaw> {
        self.check_payload(payload)?;
        self.decode_entries(payload)
    }

    fn check_payload(&self, payload: &[u8]) -> Result<(), Flaw> {
        if payload.len() != self.payload_len as usize || crc32c::crc32c(payload) != self.payload_crc
        {
            return Err(Flaw::PayloadChecksum(self.batch));
        }
        Ok(())
    }

    fn decode_entries(&self, payload: &Bytes) -> Result<Vec<Entry>, Flaw> {
        let mut entries = Vec::new();
        let mut index = self.base;
        let mut at = 0;
        for _ in 0..self.entries {
            let flaw = Flaw::Entry(self.batch, index);
            let Some(following) = index.0.checked_add(1) else {
                return Err(flaw);
            };
            index = LogIndex(following);
            let Some((entry, used)) = decode_entry(payload, at).filter(|(e, _)| e.index == index)
            else {
                return Err(Flaw::Entry(self.batch, index));
            };
            entries.push(entry);
            at += used;
        }
        if at != payload.len() {
            return Err(Flaw::Entry(self.batch, index));
        }
        Ok(entries)
    }
}

/// The first bytes of an entry in a payload; its data follows.
pub(super) fn entry_header(entry: &Entry) -> [u8; ENTRY_HEADER_BYTES] {
    let data_len = u32::try_from(entry.data.len());
    let data_len = data_len.expect("an entry's data is far below the payload limit");
    let kind: u8 = match entry.kind {
        EntryKind::Noop => 0,
        EntryKind::Command => 1,
        EntryKind::Membership => 2,
    };
    let mut out = [0; ENTRY_HEADER_BYTES];
    out[..8].copy_from_slice(&entry.index.0.to_le_bytes());
    out[8..16].copy_from_slice(&entry.term.0.to_le_bytes());
    out[16..20].copy_from_slice(&data_len.to_le_bytes());
    out[20] = kind;
    out
}

fn decode_entry(payload: &Bytes, at: usize) -> Option<(Entry, usize)> {
    let header = payload.get(at..at.checked_add(ENTRY_HEADER_BYTES)?)?;
    let kind = match header[20] {
        0 => EntryKind::Noop,
        1 => EntryKind::Command,
        2 => EntryKind::Membership,
        _ => return None,
    };
    let start = at + ENTRY_HEADER_BYTES;
    let end = start.checked_add(u32_at(header, 16) as usize)?;
    if end > payload.len() {
        return None;
    }
    let entry = Entry {
        index: LogIndex(u64_at(header, 0)),
        term: Term(u64_at(header, 8)),
        kind,
        data: payload.slice(start..end),
    };
    Some((entry, end - at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(payload: &[u8]) -> BatchHeader {
        BatchHeader {
            segment: SegmentId(3),
            batch: BatchId(9),
            previous_crc: 0xdead_beef,
            base: LogIndex(41),
            reset: Some(Term(5)),
            hard_state: HardState {
                term: Term(6),
                vote: Some(MemberId(2)),
                commit: LogIndex(40),
            },
            seal: false,
            encrypted: false,
            entries: 2,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_crc: crc32c::crc32c(payload),
        }
    }

    fn entries() -> Vec<Entry> {
        let entry = |index, kind, data: &'static [u8]| Entry {
            term: Term(6),
            index: LogIndex(index),
            kind,
            data: Bytes::from_static(data),
        };
        vec![
            entry(42, EntryKind::Noop, b""),
            entry(43, EntryKind::Command, b"put"),
        ]
    }

    fn payload() -> Bytes {
        let mut out = Vec::new();
        for entry in entries() {
            out.extend_from_slice(&entry_header(&entry));
            out.extend_from_slice(&entry.data);
        }
        out.into()
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let payload = payload();
        let mut bytes = [0; HEADER_BYTES];
        let crc = header(&payload).encode(77, &mut bytes);
        let back = BatchHeader::decode(&bytes, 77).unwrap();
        assert_eq!(back, (header(&payload), crc));
        assert_eq!(back.0.decode_payload(&payload).unwrap(), entries());
    }

    #[test]
    fn every_flipped_header_bit_and_every_other_salt_is_found() {
        let mut bytes = [0; HEADER_BYTES];
        header(b"").encode(77, &mut bytes);
        for bit in 0..HEADER_BYTES * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bytes, 77).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(
            BatchHeader::decode(&bytes, 78),
            Err(Flaw::HeaderChecksum),
            "a client that guesses all but the salt forges no header"
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), count in any::<u32>()) {
            prop_assert!(BatchHeader::decode(&bytes, 1).is_err());
            let payload = Bytes::from(bytes);
            let mut header = header(&payload); // its checksum holds: only the entries are garbage
            header.entries = count;
            if let Ok(entries) = header.decode_payload(&payload) {
                prop_assert!(entries.len() * ENTRY_HEADER_BYTES <= payload.len());
            }
        }

        #[test]
        fn a_changed_payload_is_found(at in 0_usize..51, bit in 0_u32..8) {
            let mut changed = payload().to_vec();
            let header = header(&changed);
            changed[at] ^= 1 << bit;
            let found = header.decode_payload(&changed.into());
            prop_assert_eq!(found, Err(Flaw::PayloadChecksum(BatchId(9))));
        }
    }
}
