//! The tables and their bytes: keys that sort in revision order, values followed by a checksum.
//!
//! `docs/format.md` describes the same; change both together.

use crate::{
    codec,
    types::{RecordKind, Rev, Revision},
};
use bincode::{Decode, Encode};
use redb::TableDefinition;
use std::fmt;

/// The newest format that this version reads. A file gets it with its first rows ([`CommitBatch::rows`](super::CommitBatch)): a
/// version that ignored users and roles would let every client do everything, so it must not open the file.
pub const FORMAT_VERSION: u32 = 2;

/// The format of a file without rows.
pub(super) const FORMAT_WITHOUT_ROWS: u32 = 1;

/// Length of a revision's key: major, sub, kind.
pub(super) const KEY_BYTES: usize = 17;
/// Length of the checksum behind every value.
pub(super) const CRC_BYTES: usize = 4;

/// Revision key → sealed `mvccpb.KeyValue`.
pub(super) const REVISIONS: TableDefinition<'_, &[u8; KEY_BYTES], &[u8]> =
    TableDefinition::new("revisions");
/// Name → sealed bytes. The layout of this table never changes: every version finds the format version in it.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Lease id → sealed bytes.
pub(super) const LEASES: TableDefinition<'_, i64, &[u8]> = TableDefinition::new("leases");

/// Names in `meta` that the database itself writes.
pub(super) mod meta {
    pub(crate) const FORMAT: &str = "db.format";
    pub(crate) const IDENTITY: &str = "db.identity";
    pub(crate) const APPLIED: &str = "db.applied";
    pub(crate) const USAGE: &str = "db.usage";
    pub(crate) const COMPACTION: &str = "db.compaction";
    /// Callers' names must not begin with this.
    pub(crate) const RESERVED: &str = "db.";
}

/// The number and size of the records in table `revisions`: counted by each commit, compared by the scan at startup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Usage {
    pub records: u64,
    /// Bytes of their keys, values and checksums.
    pub bytes: u64,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of {} bytes", self.records, self.bytes)
    }
}

impl Usage {
    /// Counts one more record, whose `KeyValue` has `kv_len` bytes.
    pub(super) fn add(&mut self, kv_len: usize) {
        self.records += 1;
        self.bytes += (KEY_BYTES + kv_len + CRC_BYTES) as u64;
    }

    /// What is left without `removed`; `None` if `removed` is larger.
    pub(super) fn minus(self, removed: Self) -> Option<Self> {
        Some(Self {
            records: self.records.checked_sub(removed.records)?,
            bytes: self.bytes.checked_sub(removed.bytes)?,
        })
    }
}

/// The progress of a compaction, which is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionProgress {
    /// The revision compacted at.
    pub through: Revision,
    /// Where the next step starts; `None` when every record up to `through` was visited.
    pub next: Option<Rev>,
}

impl CompactionProgress {
    pub(super) fn encode(self) -> Vec<u8> {
        codec::encode(&(self.through, self.next.map(|rev| (rev.major, rev.sub))))
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (through, next): (Revision, Option<(Revision, u32)>) =
            codec::decode("compaction progress", bytes).ok()?;
        Some(Self {
            through,
            next: next.map(|(major, sub)| Rev::new(major, sub)),
        })
    }
}

/// The key of a record. Byte order is revision order.
pub(super) fn revision_key(rev: Rev, kind: RecordKind) -> [u8; KEY_BYTES] {
    let major = u64::try_from(rev.major.0);
    assert!(major.is_ok(), "revision {} is below zero", rev.major);
    let mut key = [0; KEY_BYTES];
    key[..8].copy_from_slice(&major.unwrap_or_default().to_be_bytes());
    key[8..16].copy_from_slice(&u64::from(rev.sub).to_be_bytes());
    key[16] = match kind {
        RecordKind::Put => 0,
        RecordKind::Tombstone => 1,
    };
    key
}

/// The first key a record of `rev` or later can have.
pub(super) fn lower_key(rev: Rev) -> [u8; KEY_BYTES] {
    revision_key(rev, RecordKind::Put)
}

/// Decodes a record's key; `None` if this version cannot have written it.
pub(super) fn parse_revision_key(key: &[u8; KEY_BYTES]) -> Option<(Rev, RecordKind)> {
    let (major, rest) = key.split_first_chunk::<8>()?;
    let (sub, kind) = rest.split_first_chunk::<8>()?;
    let major = i64::try_from(u64::from_be_bytes(*major)).ok()?;
    let sub = u32::try_from(u64::from_be_bytes(*sub)).ok()?;
    let kind = match kind {
        [0] => RecordKind::Put,
        [1] => RecordKind::Tombstone,
        _ => return None,
    };
    Some((Rev::new(Revision(major), sub), kind))
}

/// Writes `value` and the checksum over `key` and `value` into `out`.
pub(super) fn seal(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(value);
    out.extend_from_slice(&checksum(key, value).to_le_bytes());
}

/// The value in `sealed`, if the checksum is right.
pub(super) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Option<&'a [u8]> {
    let (value, crc) = sealed.split_last_chunk::<CRC_BYTES>()?;
    (checksum(key, value) == u32::from_le_bytes(*crc)).then_some(value)
}

fn checksum(key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key), value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, LogPosition, Term};
    use proptest::prelude::*;

    fn any_rev() -> impl Strategy<Value = (Rev, RecordKind)> {
        (0..=i64::MAX, any::<u32>(), any::<bool>()).prop_map(|(major, sub, tombstone)| {
            let kind = if tombstone {
                RecordKind::Tombstone
            } else {
                RecordKind::Put
            };
            (Rev::new(Revision(major), sub), kind)
        })
    }

    proptest! {
        #[test]
        fn keys_round_trip_and_sort_like_revisions(a in any_rev(), b in any_rev()) {
            let (key_a, key_b) = (revision_key(a.0, a.1), revision_key(b.0, b.1));
            prop_assert_eq!(parse_revision_key(&key_a), Some(a));
            prop_assert_eq!(key_a.cmp(&key_b), a.cmp(&b));
        }

        #[test]
        fn any_flipped_bit_breaks_the_seal(
            value in proptest::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
        ) {
            let key = b"some key";
            let mut sealed = Vec::new();
            seal(key, &value, &mut sealed);
            prop_assert_eq!(unseal(key, &sealed), Some(&value[..]));
            prop_assert_eq!(unseal(b"some kez", &sealed), None, "the key is under the seal too");
            let bit = at.index(sealed.len() * 8);
            sealed[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(unseal(key, &sealed), None);
        }
    }

    #[test]
    fn a_log_position_is_stored_index_first() {
        let position = LogPosition::new(Term(2), LogIndex(1));
        assert_eq!(codec::encode(&position), [1, 2]);
    }

    #[test]
    fn keys_that_nobody_writes_are_refused() {
        let good = revision_key(Rev::new(Revision(7), 3), RecordKind::Put);
        for (at, byte) in [(0, 0x80), (8, 1), (16, 2)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(parse_revision_key(&bad), None, "byte {at} set to {byte}");
        }
        assert_eq!(unseal(b"key", &[1, 2, 3]), None, "too short for a checksum");
    }
}
