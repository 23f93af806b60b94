//! How this module reads stored records: by their revision, from whatever its caller keeps them in.

use super::command::EncodedKv;
use crate::types::Rev;
use std::error::Error;

/// Access to the stored form of changes.
pub trait Records {
    /// The `KeyValue` that the put at `rev` stored. The index names only changes that are there.
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError>;

    /// The same, shown once where it is.
    fn visit(&self, rev: Rev, seen: &mut dyn FnMut(&[u8])) -> Result<(), ReadError> {
        seen(&self.get(rev)?);
        Ok(())
    }
}

/// A stored change could not be read: the disk failed, or what it gave back is not what was written.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the change at revision {}.{}: {source}", rev.major, rev.sub)]
pub struct ReadError {
    /// Which change.
    pub rev: Rev,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}
