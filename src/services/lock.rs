//! Locks: whoever stands first in line for a name holds it, for as long as its lease lives.
//!
//! A lock keeps well-behaved holders apart most of the time. It cannot stop one that was paused until its lease had ended and
//! still believes in it. What the lock protects must refuse such a holder: hand it [`Locked::created`] with every request, and
//! let it refuse any number below the highest it has seen.

use super::queue::{Candidate, Place, QueueError, come_first};
use crate::{
    actors::requests::{RequestError, Requests},
    kv::command::{DeleteRange, RangeQuery},
    types::{LeaseId, Revision},
};
use bytes::Bytes;

/// Why a lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The lease ended while the lock was waited for.
    #[error("mutex: session is expired")]
    SessionExpired,
}

impl From<QueueError> for LockError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Request(error) => Self::Request(error),
            QueueError::PlaceGone | QueueError::Abandoned => Self::SessionExpired,
        }
    }
}

/// A lock that is held until its key is deleted or its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locked {
    /// The key that holds it. Deleting it gives the lock back.
    pub key: Bytes,
    /// The revision that created the key: greater than that of every earlier holder, so it fences them off.
    pub created: Revision,
    /// The lease that the lock ends with.
    pub lease: LeaseId,
    /// The store's revision when the lock was found to be held.
    pub revision: Revision,
}

/// Waits for the lock `name` on behalf of a lease; without one (zero), a lease of
/// [`OWN_LEASE_SECS`](super::queue::OWN_LEASE_SECS) seconds is granted. A lease that holds the lock gets it at once.
///
/// There is no limit to the wait. Dropping the future gives up the place in line.
pub async fn lock(requests: &Requests, name: Bytes, lease: LeaseId) -> Result<Locked, LockError> {
    let candidate = Candidate {
        name,
        lease,
        value: Bytes::new(),
        replaces: false,
    };
    let place = come_first(requests, candidate).await?;
    let revision = held_at(requests, &place).await?;
    Ok(Locked {
        key: place.key,
        created: place.created,
        lease: place.lease,
        revision,
    })
}

async fn held_at(requests: &Requests, place: &Place) -> Result<Revision, LockError> {
    if !place.waited {
        return Ok(place.entered);
    }
    let own = RangeQuery {
        key: place.key.clone().into(),
        count_only: true,
        serializable: true,
        ..RangeQuery::default()
    };
    Ok(requests.range(own).await?.revision)
}

/// Gives a lock back: deletes its key. One that is gone already is no error. Gives the store's revision.
pub async fn unlock(requests: &Requests, key: Bytes) -> Result<Revision, LockError> {
    let delete = DeleteRange {
        key: key.into(),
        ..DeleteRange::default()
    };
    Ok(requests.delete_range(delete).await?.revision)
}
