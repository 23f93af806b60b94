//! Elections: whoever stands first in line for a name leads, and says so in its key's value.
//!
//! As with a lock, a leader that was paused may believe in itself for longer than its lease lived; [`Leadership::created`] fences it
//! off. Whatever it writes to this store should compare the creation revision of its key in the same transaction.

use super::queue::{
    Candidate, QueueError, come_first, created_at, first_in_line, first_of, remove,
};
use crate::{
    actors::requests::{Published, RequestError, Requests},
    kv::{
        command::{Put, RangeQuery, Txn, TxnOp},
        record::KeyValue,
    },
    types::{LeaseId, Revision},
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::watch;

/// Why an election call fails.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Nobody leads.
    #[error("election: no leader")]
    NoLeader,
    /// The leadership that the call speaks of has ended, or its lease ended while it was waited for.
    #[error("election: not leader")]
    NotLeader,
}

impl From<QueueError> for ElectionError {
    fn from(error: QueueError) -> Self {
        match error {
            QueueError::Request(error) => Self::Request(error),
            QueueError::PlaceGone | QueueError::Abandoned => Self::NotLeader,
        }
    }
}

/// A leadership, which lasts until its key is deleted or its lease ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leadership {
    /// What is led.
    pub name: Bytes,
    /// The key that says so.
    pub key: Bytes,
    /// The revision that created the key: greater than that of every earlier leader, so it fences them off.
    pub created: Revision,
    /// The lease it ends with.
    pub lease: LeaseId,
}

/// Who leads, as of a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderSeen {
    /// The leader's key, with its value.
    pub kv: KeyValue,
    /// The store's revision then.
    pub revision: Revision,
}

/// Waits until `lease` leads `name` with `value`; without a lease (zero), one of
/// [`OWN_LEASE_SECS`](super::queue::OWN_LEASE_SECS) seconds is granted. A candidate that is in line already keeps its place; its value
/// becomes this one. Gives the revision at which it got in line, too.
///
/// There is no limit to the wait. Dropping the future gives up the place in line.
// etcd: a candidate whose lease has ended is told that it leads; here it is not.
pub async fn campaign(
    requests: &Requests,
    name: Bytes,
    lease: LeaseId,
    value: Bytes,
) -> Result<(Leadership, Revision), ElectionError> {
    let candidate = Candidate {
        name: name.clone(),
        lease,
        value: value.clone(),
    };
    let place = come_first(requests, candidate).await?;
    let leadership = Leadership {
        name,
        key: place.key,
        created: place.created,
        lease: place.lease,
    };
    if place.found.is_some_and(|found| found != value) {
        proclaim(requests, &leadership, value).await?;
    }
    Ok((leadership, place.entered))
}

/// Changes the leader's value. Gives the revision of the change.
pub async fn proclaim(
    requests: &Requests,
    leadership: &Leadership,
    value: Bytes,
) -> Result<Revision, ElectionError> {
    let put = Put {
        key: leadership.key.clone().into(),
        value: value.into(),
        lease: leadership.lease,
        ..Put::default()
    };
    let txn = Txn {
        compares: vec![created_at(&leadership.key, leadership.created)],
        success: vec![TxnOp::Put(put)],
        failure: Vec::new(),
    };
    let done = requests.txn(txn).await?;
    if done.succeeded {
        Ok(done.revision)
    } else {
        Err(ElectionError::NotLeader)
    }
}

/// Ends a leadership, or gives up a place in line. One that has ended already is no error. Gives the store's revision.
pub async fn resign(
    requests: &Requests,
    leadership: &Leadership,
) -> Result<Revision, ElectionError> {
    Ok(remove(requests, &leadership.key, leadership.created).await?)
}

/// Who leads now.
pub async fn leader(requests: &Requests, name: &[u8]) -> Result<LeaderSeen, ElectionError> {
    let done = requests.range(first_in_line(name)).await?;
    let kv = first_of(&done)?.ok_or(ElectionError::NoLeader)?;
    let revision = done.revision;
    Ok(LeaderSeen { kv, revision })
}

/// Follows the leaders of `name`: who leads now, then each value it proclaims and each leader after it.
pub async fn observe(requests: &Requests, name: Bytes) -> Result<Observer, ElectionError> {
    let mut query = first_in_line(&name);
    let done = requests.range(query.clone()).await?;
    query.serializable = true;
    Ok(Observer {
        views: requests.views(),
        requests: requests.clone(),
        query,
        through: done.revision,
        seen: None,
        pending: first_of(&done)?,
    })
}

/// Sees every leader, and every value of it, in order.
#[derive(Debug)]
pub struct Observer {
    requests: Requests,
    views: watch::Receiver<Arc<Published>>,
    query: RangeQuery,
    /// Seen up to this revision.
    through: Revision,
    /// The newest leader: its key, the revision that created it, and the one of its value.
    seen: Option<(Bytes, Revision, Revision)>,
    /// Found by the first read.
    pending: Option<KeyValue>,
}

impl Observer {
    /// The next leader, or its next value; waits without limit while there is none.
    pub async fn next(&mut self) -> Result<LeaderSeen, ElectionError> {
        if let Some(kv) = self.pending.take() {
            self.seen = Some(mark(&kv));
            let revision = self.through;
            return Ok(LeaderSeen { kv, revision });
        }
        loop {
            let newest = self.views.borrow_and_update().view.window.newest;
            if let Some(seen) = self.step(newest).await? {
                return Ok(seen);
            }
            if self.through >= newest {
                let changed = self.views.changed().await;
                changed.map_err(|_| RequestError::Stopped)?;
            }
        }
    }

    /// Goes one revision on, or to the newest if nothing happened between.
    async fn step(&mut self, newest: Revision) -> Result<Option<LeaderSeen>, ElectionError> {
        if self.through >= newest {
            return Ok(None);
        }
        let head = self.leader_at(newest).await?;
        // No leader comes back as it was: an unchanged head means that nothing happened. (While there is none, one that comes
        // and goes between two views of this member goes by unseen.)
        let quiet = head.as_ref().map(mark) == self.seen;
        let at = if quiet { newest } else { self.through.next() };
        let found = if at == newest {
            head
        } else {
            match self.leader_at(at).await {
                Err(ElectionError::Request(RequestError::Kv(crate::kv::KvError::Compacted {
                    oldest,
                    ..
                }))) => {
                    // What was compacted nobody can see any more; it goes on where there is something.
                    self.through = Revision(oldest.0 - 1).max(self.through);
                    return Ok(None);
                }
                other => other?,
            }
        };
        self.through = at;
        let found_mark = found.as_ref().map(mark);
        if found_mark == self.seen {
            return Ok(None);
        }
        self.seen = found_mark;
        let revision = at;
        Ok(found.map(|kv| LeaderSeen { kv, revision }))
    }

    async fn leader_at(&self, at: Revision) -> Result<Option<KeyValue>, ElectionError> {
        let query = RangeQuery {
            revision: at.0,
            ..self.query.clone()
        };
        Ok(first_of(&self.requests.range(query).await?)?)
    }
}

fn mark(kv: &KeyValue) -> (Bytes, Revision, Revision) {
    (kv.key.clone(), kv.create_revision, kv.mod_revision)
}
