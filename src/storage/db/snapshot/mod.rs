//! A snapshot: the whole database as one stream of bytes, from which another member makes a database that replaces its own.
//!
//! The stream holds one read transaction as records in key order, not as pages: redb gives no access to pages, a file cannot be
//! copied while it is written to, and records leave out free space and do not depend on the layout of the sender's file.
//! The sender verifies each record's checksum; the stream has a checksum of its own, and the receiver's file is opened and
//! verified, as at any startup, before it replaces the old one.
//!
//! ```text
//! header                      whose cluster, the log position, what table revisions holds
//! blob* lease* record*        each table in order of its keys
//! end                         how many of each, and the CRC32C of all bytes from the first blob on
//! ```
//!
//! Chunks may end anywhere in the stream. [`Export`] encodes it chunk by chunk, [`Import`] decodes it chunk by chunk; both hold
//! at most one chunk and one item, and [`NewDb`], which the items go into, a batch of 4 MiB. Blobs are not decoded; those that
//! concern only the sender are left out by name.

mod export;
mod import;
mod new_db;
mod site;
#[cfg(test)]
mod tests;

pub use export::Export;
pub use import::Import;
pub use new_db::NewDb;
pub use site::DbSite;
pub(super) use site::remove_leftover;

use super::{
    error::DbError,
    format::{FORMAT_VERSION, FORMAT_WITHOUT_ROWS, Usage},
};
use crate::{
    codec::{self, CodecError},
    types::{ClusterId, LogPosition, MemberId},
};
use bincode::{Decode, Encode};

/// The newest format that this version accepts; it is that of the database. A snapshot has it only if it has rows of users and
/// roles: a version without those refuses it, and every version accepts a snapshot without rows.
pub const SNAPSHOT_VERSION: u32 = FORMAT_VERSION;

/// The longest blob or record; no request can store one that is nearly as long.
const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The first byte of an item.
mod tag {
    pub(super) const END: u8 = 0;
    pub(super) const BLOB: u8 = 1;
    pub(super) const LEASE: u8 = 2;
    pub(super) const RECORD: u8 = 3;
}

/// The beginning of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// The format of the database, and of the snapshot.
    format: u32,
    pub cluster: ClusterId,
    /// The member that sent it.
    pub from: MemberId,
    /// The last log entry whose effects it contains.
    pub applied: LogPosition,
    /// Number and size of its records.
    pub usage: Usage,
    /// The progress of the newest compaction, encoded.
    compaction: Option<Vec<u8>>,
}

/// The header as it is sent after the format.
#[derive(Encode, Decode)]
struct SentHeader {
    cluster: ClusterId,
    from: MemberId,
    applied: LogPosition,
    usage: Usage,
    compaction: Option<Vec<u8>>,
}

/// The totals at the end of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    blobs: u64,
    leases: u64,
    records: u64,
    crc: u32,
}

/// Length of the end item, without its first byte.
const END_BYTES: usize = 28;

/// Why a snapshot was not installed. Nothing of it is kept; another attempt starts from the beginning.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFault {
    /// A version of Quorate sent it whose format this one does not support.
    #[error("the snapshot has format {found}, this version takes {SNAPSHOT_VERSION}")]
    Version {
        /// The format it has.
        found: u32,
    },
    /// The header does not decode.
    #[error(transparent)]
    Header(#[from] CodecError),
    /// It belongs to another cluster.
    #[error("the snapshot is of cluster {:x}, this is {:x}", .found.0, .expected.0)]
    OtherCluster {
        found: ClusterId,
        expected: ClusterId,
    },
    /// No sender writes such a stream.
    #[error("the snapshot is malformed at byte {at}: {what}")]
    Malformed {
        /// Where in the stream.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The stream ended early, or its bytes are not those that were sent.
    #[error("the snapshot is incomplete or damaged: {0}")]
    NotWhole(String),
    /// It cannot be written, or the file cannot be opened.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl SnapshotHeader {
    /// The header's bytes, which are sent first.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.format.to_le_bytes().to_vec();
        let sent = SentHeader {
            cluster: self.cluster,
            from: self.from,
            applied: self.applied,
            usage: self.usage,
            compaction: self.compaction.clone(),
        };
        codec::encode_into(&sent, &mut bytes);
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
        if !(FORMAT_WITHOUT_ROWS..=SNAPSHOT_VERSION).contains(&found) {
            return Err(SnapshotFault::Version { found });
        }
        let sent: SentHeader = codec::decode("snapshot header", rest)?;
        let header = Self {
            format: found,
            cluster: sent.cluster,
            from: sent.from,
            applied: sent.applied,
            usage: sent.usage,
            compaction: sent.compaction,
        };
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
