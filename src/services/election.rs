//! Elections: whoever stands first in line for a name leads, and says so in its key's value.
//!
//! As with a lock, a leader that was paused may believe in itself for longer than its lease lived; [`Leadership::created`]
//! fences it off. Whatever it writes to this store should compare the creation revision of its key in the same transaction.

use super::queue::{
    Candidate, QueueError, all_of, come_first, first_in_line, first_of, line, remove, set_value,
};
use crate::{
    actors::{
        requests::{RequestError, Requests},
        watch_stream::{KeyEvent, Watch, WatchError},
    },
    kv::{KeyRange, command::RangeQuery, record::KeyValue, watch::WatchSpec},
    types::{LeaseId, RecordKind, Revision},
};
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};

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
/// [`OWN_LEASE_SECS`](super::queue::OWN_LEASE_SECS) seconds is granted. A candidate that is in line already keeps its place;
/// its value becomes this one. Gives the revision at which it got in line, too.
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

/// Changes the leader's value. Gives the revision of the change.
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

/// Sees every leader, and every value of it, in order; what was compacted before it got there it cannot see.
#[derive(Debug)]
pub struct Observer {
    requests: Requests,
    name: Bytes,
    /// All who stand in line, by the revision that created their key.
    candidates: BTreeMap<Revision, KeyValue>,
    /// The line is that of this revision.
    through: Revision,
    /// The newest leader that was given out: the revisions of its key's creation and of its value.
    seen: Option<(Revision, Revision)>,
    /// Everything after `changes`.
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

    /// Takes the changes of one revision into the line; tells whether there were any.
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

    /// What was compacted before it was seen is gone; the line as it is now is not.
    async fn go_on_after(&mut self, error: WatchError) -> Result<(), ElectionError> {
        self.watch = None;
        match error {
            WatchError::Compacted { .. } => self.read_line().await,
            WatchError::Request(error) => Err(error.into()),
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
