//! Locks: the first candidate in the queue of a name holds the lock until its lease ends.
//!
//! A lock cannot stop an owner that was paused until after its lease had ended. What the lock protects must refuse
//! such an owner: send [`Locked::created`] with every request as a fencing token, and refuse any number below the highest seen.

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
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The lease ended while the call waited for the lock.
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
    /// The key that holds it. Deleting it releases the lock.
    pub key: Bytes,
    /// The revision that created the key: a fencing token, greater than that of every earlier owner.
    pub created: Revision,
    /// The lease that the lock ends with.
    pub lease: LeaseId,
    /// The store's revision when the lock was found to be held.
    pub revision: Revision,
}

/// Waits for the lock `name` on behalf of a lease; without one (zero), a lease of
/// [`OWN_LEASE_SECS`](super::queue::OWN_LEASE_SECS) seconds is granted. A lease that holds the lock gets it at once.
///
/// There is no limit to the wait. Dropping the future gives up the place in the queue.
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

/// Releases a lock: deletes its key. It is no error if the key is gone already. Returns the store's revision.
pub async fn unlock(requests: &Requests, key: Bytes) -> Result<Revision, LockError> {
    let delete = DeleteRange {
        key: key.into(),
        ..DeleteRange::default()
    };
    Ok(requests.delete_range(delete).await?.revision)
}
