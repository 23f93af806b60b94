//! A snapshot: the whole database as one stream of bytes, to be written beside another member's and to take its place.
//!
//! What travels is one read transaction, as records in key order, not pages: redb shows no pages, a file that is written to
//! cannot be copied as it is, and records leave free space behind and do not depend on how the sender's redb lays out a file.
//! Each record's checksum is verified on the way out; the stream has a checksum of its own, and the receiver's file is
//! opened and verified, as at any start, before it takes the place of the old one.
//!
//! ```text
//! header                      whose cluster, the log position, what table revisions holds
//! blob* lease* record*        each table in order of its keys
//! end                         how many of each, and the CRC32C of all bytes from the first blob on
//! ```
//!
//! Bytes are cut into chunks anywhere. [`Export`] writes the stream a chunk at a time, [`Import`] takes it so; both hold one
//! chunk and one item at most, and [`Import`] a batch of 4 MiB. What a blob means is not looked at: blobs that are the
//! sender's alone are left out by name.

mod export;
mod import;
#[cfg(test)]
mod tests;

pub use export::Export;
pub(super) use import::remove_leftover;
pub use import::{DbSite, Import};

use super::error::DbError;
use super::format::Usage;
use crate::codec::{self, CodecError};
use crate::types::{ClusterId, LogPosition, MemberId};
use bincode::{Decode, Encode};

/// The format this version sends, and the only one it takes.
pub const SNAPSHOT_VERSION: u32 = 1;

/// The longest blob or record: far above what a request can bring.
const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What begins an item.
mod tag {
    pub(super) const END: u8 = 0;
    pub(super) const BLOB: u8 = 1;
    pub(super) const LEASE: u8 = 2;
    pub(super) const RECORD: u8 = 3;
}

/// What a receiver must know first.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// Whose database it was.
    pub from: MemberId,
    /// The log position that it stands for.
    pub applied: LogPosition,
    /// What table `revisions` holds.
    pub usage: Usage,
    /// How far the newest compaction got, encoded.
    compaction: Option<Vec<u8>>,
}

/// What the end of a stream says was in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    blobs: u64,
    leases: u64,
    records: u64,
    crc: u32,
}

/// Length of an end after its tag.
const END_BYTES: usize = 28;

/// Why a snapshot is not taken. Nothing of it is kept; another attempt begins anew.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFault {
    /// A newer, or older, Quorate sent it.
    #[error("the snapshot has format {found}, this version takes {SNAPSHOT_VERSION}")]
    Version {
        /// The format it has.
        found: u32,
    },
    /// The header does not decode.
    #[error(transparent)]
    Header(#[from] CodecError),
    /// It is another cluster's.
    #[error("the snapshot is of cluster {:x}, this is {:x}", .found.0, .expected.0)]
    OtherCluster {
        /// Whose it is.
        found: ClusterId,
        /// Who asked.
        expected: ClusterId,
    },
    /// The stream is not what a sender writes.
    #[error("the snapshot is malformed at byte {at}: {what}")]
    Malformed {
        /// Where in the stream.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The stream ended early, or what arrived is not what was sent.
    #[error("the snapshot is not whole: {0}")]
    NotWhole(String),
    /// It cannot be written, or the file does not read back.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl SnapshotHeader {
    /// The bytes that go first.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = SNAPSHOT_VERSION.to_le_bytes().to_vec();
        codec::encode_into(self, &mut bytes);
        bytes
    }

    /// Reads a header of a snapshot for a member of `cluster`.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Self, SnapshotFault> {
        let malformed = SnapshotFault::Malformed {
            at: 0,
            what: "the header is too short",
        };
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(malformed)?;
        let found = u32::from_le_bytes(*version);
        if found != SNAPSHOT_VERSION {
            return Err(SnapshotFault::Version { found });
        }
        let header: Self = codec::decode("snapshot header", rest)?;
        if header.cluster != cluster {
            return Err(SnapshotFault::OtherCluster {
                found: header.cluster,
                expected: cluster,
            });
        }
        Ok(header)
    }
}

impl Totals {
    fn encode(self) -> [u8; END_BYTES] {
        let mut bytes = [0; END_BYTES];
        bytes[..8].copy_from_slice(&self.blobs.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.leases.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.records.to_le_bytes());
        bytes[24..].copy_from_slice(&self.crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; END_BYTES]) -> Self {
        let number = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let mut crc = [0; 4];
        crc.copy_from_slice(&bytes[24..]);
        Self {
            blobs: number(0),
            leases: number(8),
            records: number(16),
            crc: u32::from_le_bytes(crc),
        }
    }
}
