//! The line in which candidates for a lock or a leadership stand.
//!
//! A candidate's key is `name/lease`, the lease in hexadecimal, and attached to it. First in line is the key with the lowest
//! creation revision. A candidate waits for the newest key before its own to go, and then looks again, so that one departure
//! wakes one candidate.
//!
//! Whoever stops waiting leaves the line: the wait runs on its own, learns that its caller has gone, and then removes the key it
//! stood in line with.

use crate::{
    actors::requests::{RequestError, Requests},
    kv::{
        command::{
            Compare, DeleteRange, OpDone, Operand, Put, RangeDone, RangeQuery, Relation,
            RevisionFilter, SortOrder, SortTarget, Txn, TxnOp,
        },
        range::ReadError,
        record::KeyValue,
    },
    types::{LeaseId, Rev, Revision},
};
use bytes::Bytes;
use tokio::sync::oneshot;

/// The time to live of a lease that is granted for a candidate who brings none, in seconds. Nobody keeps it alive for the
/// candidate.
pub const OWN_LEASE_SECS: i64 = 60;

/// Why a candidate has not come first.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A request failed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The candidate's key went while it waited: its lease has ended, or somebody has removed it.
    #[error("the place in line is gone")]
    PlaceGone,
    /// Nobody waits for the answer any more.
    #[error("the caller has gone")]
    Abandoned,
}

impl From<ReadError> for QueueError {
    fn from(error: ReadError) -> Self {
        Self::Request(error.into())
    }
}

/// Who wants to come first.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// What for.
    pub name: Bytes,
    /// The lease its key is attached to. Zero: one is granted.
    pub lease: LeaseId,
    /// The value of its key.
    pub value: Bytes,
}

/// A place in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: Bytes,
    /// The revision that created the key: the order of the line.
    pub created: Revision,
    pub lease: LeaseId,
    /// The store's revision when the key was found or put.
    pub entered: Revision,
    /// Whether it had to wait.
    pub waited: bool,
    /// The key's value, if the place was there before.
    pub found: Option<Bytes>,
    /// Whether the lease was granted for this place.
    own_lease: bool,
}

/// The keys of all candidates: first key and end of the range.
pub(super) fn line(name: &[u8]) -> (Bytes, Bytes) {
    // The byte after a slash ends the range of keys that begin with `name/`.
    let with = |last: u8| Bytes::from([name, &[last]].concat());
    (with(b'/'), with(b'/' + 1))
}

/// The key of a lease's candidate. etcd: the id in hexadecimal without padding, a negative one with its sign.
pub(super) fn key_of(name: &[u8], lease: LeaseId) -> Bytes {
    let sign = if lease.0 < 0 { "-" } else { "" };
    let id = format!("/{sign}{:x}", lease.0.unsigned_abs());
    Bytes::from([name, id.as_bytes()].concat())
}

/// The condition that `key` is the one created at `revision`; zero stands for no key.
pub(super) fn created_at(key: &Bytes, revision: Revision) -> Compare {
    Compare {
        key: key.clone().into(),
        range_end: Bytes::new().into(),
        relation: Relation::Equal,
        operand: Operand::Create(revision.0),
    }
}

/// The question for the first in line.
pub(super) fn first_in_line(name: &[u8]) -> RangeQuery {
    let (key, range_end) = line(name);
    RangeQuery {
        key: key.into(),
        range_end: range_end.into(),
        limit: 1,
        sort_order: SortOrder::Ascend,
        sort_target: SortTarget::Create,
        ..RangeQuery::default()
    }
}

/// The first result of a range, decoded.
pub(super) fn first_of(done: &RangeDone) -> Result<Option<KeyValue>, QueueError> {
    done.kvs.first().map(decode).transpose()
}

/// The results of a range, decoded.
pub(super) fn all_of(done: &RangeDone) -> Result<Vec<KeyValue>, QueueError> {
    done.kvs.iter().map(decode).collect()
}

fn decode(kv: &Bytes) -> Result<KeyValue, QueueError> {
    KeyValue::decode(kv).map_err(|source| {
        let (rev, source) = (Rev::default(), source.into());
        QueueError::from(ReadError { rev, source })
    })
}

/// Gets in line and waits until it is this candidate's turn. A candidate that is in line already keeps its place. Dropping
/// the future, while it waits, leaves the line.
pub(super) async fn come_first(
    requests: &Requests,
    candidate: Candidate,
) -> Result<Place, QueueError> {
    let (caller, gone) = oneshot::channel::<()>();
    let waiting = tokio::spawn(wait_in_line(requests.clone(), candidate, gone));
    let outcome = waiting.await;
    drop(caller);
    outcome.unwrap_or(Err(QueueError::Request(RequestError::Stopped)))
}

async fn wait_in_line(
    requests: Requests,
    candidate: Candidate,
    gone: oneshot::Receiver<()>,
) -> Result<Place, QueueError> {
    let mut place = enter(&requests, candidate.clone()).await?;
    let came = tokio::select! {
        biased;
        _ = gone => Err(QueueError::Abandoned),
        waited = turn_comes(&requests, &candidate.name, &place) => waited,
    };
    match came {
        Ok(waited) => {
            place.waited = waited;
            Ok(place)
        }
        Err(error) => {
            leave(&requests, &place).await;
            Err(error)
        }
    }
}

/// Puts the candidate's key, unless it is there.
async fn enter(requests: &Requests, candidate: Candidate) -> Result<Place, QueueError> {
    let own_lease = candidate.lease == LeaseId(0);
    let lease = if own_lease {
        requests.grant_lease(None, OWN_LEASE_SECS).await?.id
    } else {
        candidate.lease
    };
    let key = key_of(&candidate.name, lease);
    let put = Put {
        key: key.clone().into(),
        value: candidate.value.into(),
        lease,
        ..Put::default()
    };
    let find = RangeQuery {
        key: key.clone().into(),
        ..RangeQuery::default()
    };
    let txn = Txn {
        compares: vec![created_at(&key, Revision(0))],
        success: vec![TxnOp::Put(put)],
        failure: vec![TxnOp::Range(find)],
    };
    let done = requests.txn(txn).await?;
    let found = match done.responses.first() {
        Some(OpDone::Range(range)) => first_of(range)?,
        _ => None,
    };
    Ok(Place {
        key,
        created: found
            .as_ref()
            .map_or(done.revision, |kv| kv.create_revision),
        lease,
        entered: done.revision,
        waited: false,
        found: found.map(|kv| kv.value),
        own_lease,
    })
}

/// Waits until nobody stands before `place`; tells whether anybody did.
async fn turn_comes(requests: &Requests, name: &[u8], place: &Place) -> Result<bool, QueueError> {
    let mut waited = false;
    while let Some(before) = newest_before(requests, name, place).await? {
        waited = true;
        wait_deleted(requests, &before, place).await?;
    }
    if waited {
        // Others may have gone on while this member's view was old; this one is as new as it gets.
        let own = RangeQuery {
            key: place.key.clone().into(),
            ..RangeQuery::default()
        };
        let own = first_of(&requests.range(own).await?)?;
        if own.is_none_or(|kv| kv.create_revision != place.created) {
            return Err(QueueError::PlaceGone);
        }
    }
    Ok(waited)
}

/// The newest key that was created before the candidate's. This member's own view answers: it holds the candidate's key, hence
/// everything older, and a key that is gone stays gone, since one that comes back is newer.
async fn newest_before(
    requests: &Requests,
    name: &[u8],
    place: &Place,
) -> Result<Option<KeyValue>, QueueError> {
    let query = RangeQuery {
        sort_order: SortOrder::Descend,
        keys_only: true,
        serializable: true,
        filter: RevisionFilter {
            max_create: place.created.0 - 1,
            ..RevisionFilter::default()
        },
        ..first_in_line(name)
    };
    first_of(&requests.range(query).await?)
}

/// Waits until `before` is gone; an error if the candidate's own key goes first.
async fn wait_deleted(
    requests: &Requests,
    before: &KeyValue,
    place: &Place,
) -> Result<(), QueueError> {
    let mut views = requests.views();
    let alive = |keys: &dyn Fn(&[u8]) -> Option<Revision>, key: &[u8], created: Revision| {
        keys(key) == Some(created)
    };
    let mut kept = true;
    let changed = views.wait_for(|published| {
        let keys = |key: &[u8]| published.view.keys.get(key).map(|meta| meta.create);
        kept = alive(&keys, &place.key, place.created);
        !kept || !alive(&keys, &before.key, before.create_revision)
    });
    changed.await.map_err(|_| RequestError::Stopped)?;
    if kept {
        Ok(())
    } else {
        Err(QueueError::PlaceGone)
    }
}

/// Removes the candidate's key. That it fails does not matter: the key ends with its lease.
async fn leave(requests: &Requests, place: &Place) {
    if place.own_lease {
        drop(requests.revoke_lease(place.lease).await);
    } else {
        drop(remove(requests, &place.key, place.created).await);
    }
}

/// Deletes a key unless it is another by now. Gives the store's revision.
pub(super) async fn remove(
    requests: &Requests,
    key: &Bytes,
    created: Revision,
) -> Result<Revision, RequestError> {
    let delete = DeleteRange {
        key: key.clone().into(),
        ..DeleteRange::default()
    };
    let txn = Txn {
        compares: vec![created_at(key, created)],
        success: vec![TxnOp::DeleteRange(delete)],
        failure: Vec::new(),
    };
    Ok(requests.txn(txn).await?.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_named_as_etcd_names_them() {
        let key = |name: &str, lease| key_of(name.as_bytes(), LeaseId(lease));
        assert_eq!(key("L", 0x7a7c_a1fa_fbbd_3a04), "L/7a7ca1fafbbd3a04");
        assert_eq!(key("", 0xabc), "/abc");
        assert_eq!(key("a/b", -1), "a/b/-1");
        assert_eq!(key("a", i64::MIN), "a/-8000000000000000");
    }

    #[test]
    fn a_line_ends_where_its_slash_does() {
        let (first, end) = line(b"a");
        assert!(first <= key_of(b"a", LeaseId(i64::MAX)));
        assert!(key_of(b"a", LeaseId(i64::MAX)) < end);
        assert!(key_of(b"ab", LeaseId(1)) > end);
    }
}
