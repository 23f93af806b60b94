//! The interface through which this module reads stored records, by their revision.

use super::command::EncodedKv;
use crate::types::Rev;
use std::error::Error;

/// What a result takes in memory beside its bytes.
pub(super) const RESULT_BYTES: usize = size_of::<EncodedKv>();

/// Access to the stored form of changes.
pub trait Records {
    /// The `KeyValue` that the put at `rev` stored. The index names only changes that are there.
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError>;

    /// As [`Records::get`]; `None` if the record is longer than `bytes_max`. Then nothing is copied.
    fn get_within(&self, rev: Rev, bytes_max: usize) -> Result<Option<EncodedKv>, ReadError> {
        let kv = self.get(rev)?;
        Ok((kv.len() <= bytes_max).then_some(kv))
    }

    /// Calls `seen` once with what [`Records::get`] returns; implementations can do so without a copy.
    fn visit(&self, rev: Rev, seen: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        seen(&self.get(rev)?);
        Ok(())
    }
}

/// A record is only in the database, and the caller must not wait for a disk.
#[derive(Debug, thiserror::Error)]
#[error("it is not in memory")]
pub(super) struct NotInMemory;

/// A stored change could not be read: the disk failed, or returned other bytes than were written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the change at revision {}.{}: {source}", rev.major, rev.sub)]
pub struct ReadError {
    pub rev: Rev,
    pub source: Box<dyn Error + Send + Sync>,
}

impl ReadError {
    /// The record must be in memory where it is read, and it is not.
    pub fn not_in_memory(rev: Rev) -> Self {
        Self {
            rev,
            source: Box::new(NotInMemory),
        }
    }

    /// Whether the record can be read on a thread that may wait for the disk.
    pub fn is_not_in_memory(&self) -> bool {
        self.source.is::<NotInMemory>()
    }
}
