//! Elections: the first candidate in the queue of a name leads, and its key's value is what it proclaims.
//!
//! As with a lock, a leader that was paused may still take itself for the leader after its lease has ended;
//! [`Leadership::created`] is a fencing token against that. A leader's writes to this store should compare the creation revision
//! of its key in the same transaction.

use super::queue::{
    Candidate, QueueError, all_of, come_first, first_in_line, first_of, line, remove, set_value,
};
use crate::{
    actors::{
        requests::{RequestError, Requests},
        watch_stream::{KeyEvent, Watch, WatchError},
    },
    kv::{
        KeyRange,
        command::RangeQuery,
        record::KeyValue,
        watch::{Refusal, WatchSpec},
    },
    types::{LeaseId, RecordKind, Revision},
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

/// Why an election call fails.
#[derive(Debug, thiserror::Error)]
pub enum ElectionError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("election: no leader")]
    NoLeader,
    /// The leadership of the call has ended, or its lease ended while the call waited for it.
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
    pub name: Bytes,
    /// The key that says so.
    pub key: Bytes,
    /// The revision that created the key: a fencing token, greater than that of every earlier leader.
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
/// [`OWN_LEASE_SECS`](super::queue::OWN_LEASE_SECS) seconds is granted. A candidate that is in the queue already keeps its
/// place and gets this value. Also returns the revision at which it entered the queue.
///
/// There is no limit to the wait. Dropping the future gives up the place in the queue.
// etcd: a candidate whose lease has ended gets the answer that it leads; here it gets an error.
pub async fn campaign(
    requests: &Requests,
    name: Bytes,
    lease: LeaseId,
    value: Bytes,
) -> Result<(Leadership, Revision), ElectionError> {
    let candidate = Candidate {
        name: name.clone(),
        lease,
        value,
        replaces: true,
    };
    let place = come_first(requests, candidate).await?;
    let leadership = Leadership {
        name,
        key: place.key,
        created: place.created,
        lease: place.lease,
    };
    Ok((leadership, place.entered))
}

/// Changes the leader's value. Returns the revision of the change.
pub async fn proclaim(
    requests: &Requests,
    leadership: &Leadership,
    value: Bytes,
) -> Result<Revision, ElectionError> {
    let Leadership {
        key,
        created,
        lease,
        ..
    } = leadership;
    let changed = set_value(requests, key, *created, *lease, value).await?;
    changed.ok_or(ElectionError::NotLeader)
}

/// Ends a leadership, or gives up a place in the queue. It is no error if that has ended already. Returns the store's revision.
pub async fn resign(
    requests: &Requests,
    leadership: &Leadership,
) -> Result<Revision, ElectionError> {
    Ok(remove(requests, &leadership.key, leadership.created).await?)
}

pub async fn leader(requests: &Requests, name: &[u8]) -> Result<LeaderSeen, ElectionError> {
    let done = requests.range(first_in_line(name)).await?;
    let kv = first_of(&done)?.ok_or(ElectionError::NoLeader)?;
    let revision = done.revision;
    Ok(LeaderSeen { kv, revision })
}

/// Follows the leaders of `name`: who leads now, then each value it proclaims and each leader after it.
pub async fn observe(requests: &Requests, name: Bytes) -> Result<Observer, ElectionError> {
    let mut observer = Observer {
        requests: requests.clone(),
        name,
        candidates: BTreeMap::new(),
        through: Revision(0),
        seen: None,
        watch: None,
        changes: VecDeque::new(),
    };
    observer.read_line().await?;
    Ok(observer)
}

/// Follows every leader, and every value of each, in order. It skips what was compacted before it could read it.
#[derive(Debug)]
pub struct Observer {
    requests: Requests,
    name: Bytes,
    /// All candidates in the queue, by the revision that created their key.
    candidates: BTreeMap<Revision, KeyValue>,
    /// The revision of `candidates`.
    through: Revision,
    /// The leader that was returned last: the revisions of its key's creation and of its value.
    seen: Option<(Revision, Revision)>,
    /// Watches for the changes after `changes`.
    watch: Option<Watch>,
    /// Changes that are not in `candidates` yet.
    changes: VecDeque<KeyEvent>,
}

impl Observer {
    /// The next leader, or its next value; waits without limit while there is none.
    pub async fn next(&mut self) -> Result<LeaderSeen, ElectionError> {
        loop {
            if let Some((_, kv)) = self.candidates.first_key_value()
                && self.seen != Some(mark(kv))
            {
                self.seen = Some(mark(kv));
                let (kv, revision) = (kv.clone(), self.through);
                return Ok(LeaderSeen { kv, revision });
            }
            if !self.take_revision() {
                self.more().await?;
            }
        }
    }

    /// Applies the changes of one revision to `candidates`; returns whether there were any.
    fn take_revision(&mut self) -> bool {
        let Some(first) = self.changes.front() else {
            return false;
        };
        self.through = first.rev.major;
        let now = self.through;
        while let Some(event) = self.changes.pop_front_if(|event| event.rev.major == now) {
            match event.kind {
                RecordKind::Put => {
                    self.candidates.insert(event.kv.create_revision, event.kv);
                }
                RecordKind::Tombstone => {
                    self.candidates.retain(|_, kv| kv.key != event.kv.key);
                }
            }
        }
        true
    }

    /// Waits for more changes.
    async fn more(&mut self) -> Result<(), ElectionError> {
        if self.watch.is_none() {
            let spec = WatchSpec {
                start: self.through.next(),
                ..WatchSpec::of(self.range())
            };
            match self.requests.watch(spec).await {
                Ok(watch) => self.watch = Some(watch),
                Err(error) => return self.go_on_after(error).await,
            }
        }
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        match watch.next().await {
            Ok(batch) => {
                self.changes.extend(batch.events);
                Ok(())
            }
            Err(error) => self.go_on_after(error).await,
        }
    }

    /// After a compaction the missed changes are lost, but the present queue can be read.
    async fn go_on_after(&mut self, error: WatchError) -> Result<(), ElectionError> {
        self.watch = None;
        match error {
            WatchError::Compacted { .. } => self.read_line().await,
            WatchError::Request(error) => Err(error.into()),
            WatchError::Refused(Refusal::Denied(error)) => Err(RequestError::from(error).into()),
            WatchError::Refused(Refusal::TooManyWatchers) => {
                Err(RequestError::TooManyRequests.into())
            }
            WatchError::Refused(_) | WatchError::Record(_) => Err(RequestError::Stopped.into()),
        }
    }

    async fn read_line(&mut self) -> Result<(), ElectionError> {
        let (key, range_end) = line(&self.name);
        let query = RangeQuery {
            key: key.into(),
            range_end: range_end.into(),
            ..RangeQuery::default()
        };
        let done = self.requests.range(query).await?;
        self.through = done.revision;
        self.candidates = all_of(&done)?
            .into_iter()
            .map(|kv| (kv.create_revision, kv))
            .collect();
        Ok(())
    }

    fn range(&self) -> KeyRange {
        let (key, range_end) = line(&self.name);
        KeyRange::from_wire(&key, &range_end)
    }
}

fn mark(kv: &KeyValue) -> (Revision, Revision) {
    (kv.create_revision, kv.mod_revision)
}
