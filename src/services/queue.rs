//! The queue of candidates for a lock or a leadership.
//!
//! A candidate's key is `name/lease`, with the lease in hexadecimal, and is attached to that lease. The key with the lowest
//! creation revision is first. A candidate watches the newest key before its own, and reads the queue again when that key is
//! deleted: so one departure wakes one candidate, and writes to other keys wake none.
//!
//! A candidate whose caller stops waiting leaves the queue: the wait runs as a task of its own, which detects that the caller is
//! gone and deletes the candidate's key.

use crate::{
    actors::{
        requests::{RequestError, Requests},
        watch_calls::WatchRequest,
        watch_stream::WatchResponses,
    },
    auth::{AuthError, Caller},
    kv::{
        KeyRange,
        command::{
            Compare, DeleteRange, OpDone, Operand, Put, RangeDone, RangeQuery, Relation,
            RevisionFilter, SortOrder, SortTarget, Txn, TxnOp,
        },
        record::KeyValue,
        records::ReadError,
        watch::{Body, Filters, Refusal, WatchId, WatchSpec},
    },
    types::{LeaseId, Rev, Revision},
};
use bytes::Bytes;
use tokio::sync::oneshot;

/// The time to live, in seconds, of a lease that is granted for a candidate without one. It is not renewed.
pub const OWN_LEASE_SECS: i64 = 60;

/// Why a candidate does not become first.
#[derive(Debug, thiserror::Error)]
#[cfg_attr(
    face,
    expect(
        unnameable_types,
        reason = "only in conversions to the errors of locks and elections"
    )
)]
pub enum QueueError {
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The candidate's key was deleted while it waited: its lease has ended, or a client deleted the key.
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

/// A candidate for a lock or leadership.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// The name of the lock or election.
    pub name: Bytes,
    /// The lease its key is attached to. Zero: one is granted.
    pub lease: LeaseId,
    /// The value of its key.
    pub value: Bytes,
    /// Whether a key that is there already gets this value.
    pub replaces: bool,
}

/// A place in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub key: Bytes,
    /// The revision that created the key, which orders the queue.
    pub created: Revision,
    pub lease: LeaseId,
    /// The store's revision when the key was found or put.
    pub entered: Revision,
    /// Whether it had to wait.
    pub waited: bool,
    /// The key's value, if the place was there before.
    found: Option<Bytes>,
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

/// The query for the first in the queue.
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

/// Enters the queue and waits until the candidate is first. A candidate that is in the queue already keeps its place. Dropping
/// the future while it waits leaves the queue.
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
    let comes = async {
        let found = place.found.as_ref().filter(|_| candidate.replaces);
        if found.is_some_and(|found| *found != candidate.value) {
            change(&requests, &place, candidate.value.clone()).await?;
        }
        turn_comes(&requests, &candidate.name, &place).await
    };
    let came = tokio::select! {
        biased;
        _ = gone => Err(QueueError::Abandoned),
        waited = comes => waited,
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
    // Whoever may not read the queue could not wait in it. etcd: a lock reads it in the transaction that puts the key.
    let (first, end) = line(&candidate.name);
    requests.require_read(&first, &end).await?;
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

async fn change(requests: &Requests, place: &Place, value: Bytes) -> Result<(), QueueError> {
    let changed = set_value(requests, &place.key, place.created, place.lease, value).await?;
    changed.map(drop).ok_or(QueueError::PlaceGone)
}

/// Changes a key's value, unless the key was deleted and created again. Returns the revision of the change.
pub(super) async fn set_value(
    requests: &Requests,
    key: &Bytes,
    created: Revision,
    lease: LeaseId,
    value: Bytes,
) -> Result<Option<Revision>, RequestError> {
    let put = Put {
        key: key.clone().into(),
        value: value.into(),
        lease,
        ..Put::default()
    };
    let txn = Txn {
        compares: vec![created_at(key, created)],
        success: vec![TxnOp::Put(put)],
        failure: Vec::new(),
    };
    let done = requests.txn(txn).await?;
    Ok(done.succeeded.then_some(done.revision))
}

/// Waits until no candidate is before `place`; returns whether there was one.
async fn turn_comes(requests: &Requests, name: &[u8], place: &Place) -> Result<bool, QueueError> {
    let mut waited = false;
    loop {
        let look = look(requests, name, place).await?;
        let Some(before) = look.before else {
            break;
        };
        waited = true;
        wait_deleted(requests, &before, place, look.at).await?;
    }
    if waited {
        // The reads so far were serializable: this linearizable one sees whether the place still exists.
        let own = RangeQuery {
            key: place.key.clone().into(),
            ..RangeQuery::default()
        };
        let own = first_of(&requests.range(own).await?)?;
        if own.is_none_or(|kv| kv.create_revision != place.created) {
            return Err(QueueError::PlaceGone);
        }
        // The reads do not show whether the candidate may still write its key: if not, its turn is the next one's.
        requests.require_write(&place.key)?;
    }
    Ok(waited)
}

/// What a read of the queue found.
struct Look {
    /// The key before the candidate's own, if there is one.
    before: Option<Bytes>,
    /// The revision of that read.
    at: Revision,
}

/// Finds the newest key that was created before the candidate's. A serializable read suffices: the view has the candidate's key,
/// hence everything older; and a deleted key that is created again is newer.
async fn look(requests: &Requests, name: &[u8], place: &Place) -> Result<Look, QueueError> {
    #[cfg(test)]
    tests::LOOKS.with(|looks| looks.set(looks.get() + 1));
    let query = RangeQuery {
        sort_order: SortOrder::Descend,
        keys_only: true,
        serializable: true,
        limit: 2,
        filter: RevisionFilter {
            max_create: place.created.0,
            ..RevisionFilter::default()
        },
        ..first_in_line(name)
    };
    let done = requests.range(query).await?;
    let mut newest_first = all_of(&done)?.into_iter();
    let own = newest_first.next();
    if own.is_none_or(|own| own.create_revision != place.created || own.key != place.key) {
        return Err(QueueError::PlaceGone);
    }
    Ok(Look {
        before: newest_first.next().map(|kv| kv.key),
        at: done.revision,
    })
}

/// The watch of the candidate's own key.
const OWN: WatchId = WatchId(1);
/// The watch of the key before it.
const BEFORE: WatchId = WatchId(2);

/// Waits until `before`, which existed at revision `at`, may be deleted; an error if the candidate's own key is deleted first.
async fn wait_deleted(
    requests: &Requests,
    before: &Bytes,
    place: &Place,
    at: Revision,
) -> Result<(), QueueError> {
    let stream = requests.watch_stream().await?;
    let mut responses = stream.responses;
    for (id, key) in [(OWN, &place.key), (BEFORE, before)] {
        let spec = WatchSpec {
            id,
            start: at.next(),
            filters: Filters {
                no_put: true,
                no_delete: false,
            },
            ..WatchSpec::of(KeyRange::from_wire(key, &Bytes::new()))
        };
        stream.requests.ask(WatchRequest::Create(spec)).await?;
    }
    match first_gone(&mut responses).await? {
        OWN => Err(QueueError::PlaceGone),
        _ => Ok(()),
    }
}

/// Which of the watched keys was deleted. If compaction hides that, it returns the key before: the next read of the queue finds
/// out.
async fn first_gone(responses: &mut WatchResponses) -> Result<WatchId, RequestError> {
    loop {
        let response = responses.next().await?;
        match response.body {
            Body::Created | Body::Progress => {}
            Body::Events { .. } => return Ok(response.watch),
            Body::Compacted { .. } => return Ok(BEFORE),
            Body::Refused(Refusal::TooManyWatchers) => return Err(RequestError::TooManyRequests),
            Body::Refused(Refusal::Denied(error)) => return Err(error.into()),
            Body::Denied => return Err(AuthError::PermissionDenied.into()),
            Body::Refused(_) | Body::Cancelled => return Err(RequestError::Stopped),
        }
    }
}

/// Deletes the candidate's key. A failure does not matter: the key is deleted with its lease.
async fn leave(requests: &Requests, place: &Place) {
    if place.own_lease && requests.revoke_lease(place.lease).await.is_ok() {
        return;
    }
    // As the node: a candidate whose right was taken away must not stay in the queue until its lease ends. It had that right when
    // it put the key, and no other key is touched. A key that was there before may be another client's.
    let requests = match &place.found {
        None => &requests.on_behalf(Caller::Node),
        Some(_) => requests,
    };
    drop(remove(requests, &place.key, place.created).await);
}

/// Deletes a key, unless it was deleted and created again. Returns the store's revision.
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
    use crate::{
        Config, LocalNode,
        actors::fail_stop::FailStop,
        kv::watch::HolderId,
        services::{election, lock},
        storage::sim_disk::SimDisk,
    };
    use actix::System;
    use std::{cell::Cell, sync::Arc};
    use tokio::sync::mpsc;

    thread_local! {
        /// Looks at any line by this thread.
        pub(super) static LOOKS: Cell<usize> = const { Cell::new(0) };
    }

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

    /// Runs `test` on a node in this thread.
    fn on_a_node(test: impl AsyncFnOnce(Requests)) {
        let system = System::with_tokio_rt(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .expect("a runtime")
        });
        system.block_on(async move {
            let stopped = FailStop::new(|reason| panic!("the member stops: {reason}"));
            let disk: Arc<dyn crate::storage::disk::Disk> = Arc::new(SimDisk::new(1));
            let node = LocalNode::start(&Config::default(), &disk, &stopped).expect("it starts");
            test(node.requests().clone()).await;
            node.stop().await;
        });
    }

    async fn put(requests: &Requests, key: &str) {
        let put = Put {
            key: key.to_owned().into(),
            value: "v".into(),
            ..Put::default()
        };
        requests.put(put).await.expect("a put");
    }

    async fn in_line(requests: &Requests) -> i64 {
        let (key, range_end) = line(b"L");
        let query = RangeQuery {
            key: key.into(),
            range_end: range_end.into(),
            count_only: true,
            ..RangeQuery::default()
        };
        requests.range(query).await.expect("a count").count
    }

    #[test]
    fn watches_of_locks_and_elections_count_for_their_holder() {
        on_a_node(async |node| {
            let held = node.clone().held_by(Some(HolderId(7)));
            let counts = async || {
                let counts = node.count_watches().await;
                let counts = counts.expect("the hub answers");
                (counts.watchers, counts.of_holders)
            };
            let lock = |lease| lock::lock(&held, "L".into(), LeaseId(lease));
            lock(0).await.expect("the first has the lock");
            let second = tokio::task::spawn_local({
                let held = held.clone();
                async move { lock::lock(&held, "L".into(), LeaseId(0)).await }
            });
            let mut observer = election::observe(&held, "E".into())
                .await
                .expect("it begins");
            let observing = tokio::task::spawn_local(async move { observer.next().await });
            while counts().await.0 < 3 {
                tokio::task::yield_now().await;
            }
            assert_eq!(
                counts().await,
                (3, 3),
                "two of the lock, one of the observer"
            );
            second.abort();
            observing.abort();
            while counts().await.0 > 0 {
                tokio::task::yield_now().await;
            }
            assert_eq!(counts().await, (0, 0));
        });
    }

    /// A thousand wait for one lock. It goes from one to the next in the order in which they got in line; each looks at the line
    /// when it gets there and when its turn comes, and not when somebody writes something else.
    #[test]
    fn a_thousand_waiters_hand_over_in_order_and_look_twice_each() {
        const WAITERS: usize = 1_000;
        const WRITES: usize = 2_000;
        on_a_node(async |node| {
            let (came, mut turns) = mpsc::channel(1);
            for id in 1..=WAITERS {
                let lease = LeaseId(id.try_into().expect("small"));
                node.grant_lease(Some(lease), 10_000)
                    .await
                    .expect("a lease");
                let (waiter, came) = (node.clone(), came.clone());
                let candidate = Candidate {
                    name: "L".into(),
                    lease,
                    value: Bytes::new(),
                    replaces: false,
                };
                tokio::spawn(async move {
                    let place = come_first(&waiter, candidate).await;
                    came.send(place).await.expect("the test listens");
                });
                while in_line(&node).await < lease.0 {}
            }
            for number in 0..WRITES {
                put(&node, &format!("elsewhere{number}")).await;
            }
            let entered = LOOKS.with(Cell::get);
            assert!(entered <= WAITERS, "{entered} looks before anybody's turn");
            for id in 1..=WAITERS {
                let place = turns.recv().await.expect("a turn").expect("no error");
                assert_eq!(Ok(place.lease.0), i64::try_from(id));
                put(&node, "elsewhere").await;
                assert!(turns.try_recv().is_err(), "one at a time");
                let removed = remove(&node, &place.key, place.created).await;
                removed.expect("it gives the lock back");
            }
            let looks = LOOKS.with(Cell::get);
            assert!(looks <= 2 * WAITERS, "{looks} looks for {WAITERS} waiters");
        });
    }

    #[test]
    fn whoever_leaves_the_middle_of_the_line_wakes_one_and_ends_no_wait() {
        on_a_node(async |node| {
            let mut waiting = Vec::new();
            for id in 1..=4 {
                let (waiter, lease) = (node.clone(), LeaseId(id));
                node.grant_lease(Some(lease), 10_000)
                    .await
                    .expect("a lease");
                let candidate = Candidate {
                    name: "L".into(),
                    lease,
                    value: Bytes::new(),
                    replaces: false,
                };
                let task = tokio::spawn(async move { come_first(&waiter, candidate).await });
                waiting.push(task);
                while in_line(&node).await < id {}
            }
            // The second one's lease ends, the third looks again and waits for the first.
            node.revoke_lease(LeaseId(2)).await.expect("it is there");
            let second = waiting.remove(1).await.expect("no panic");
            assert!(matches!(second, Err(QueueError::PlaceGone)), "{second:?}");
            for number in 0..10 {
                put(&node, &format!("elsewhere{number}")).await;
            }
            assert!(!waiting[1].is_finished() && !waiting[2].is_finished());
            node.revoke_lease(LeaseId(1)).await.expect("it is there");
            let third = waiting
                .remove(1)
                .await
                .expect("no panic")
                .expect("its turn");
            assert_eq!(third.lease, LeaseId(3));
            assert!(!waiting[1].is_finished(), "the fourth waits on");
        });
    }

    #[test]
    fn a_compaction_past_the_wait_does_not_end_it() {
        on_a_node(async |node| {
            for id in [1, 2] {
                let granted = node.grant_lease(Some(LeaseId(id)), 10_000).await;
                granted.expect("a lease");
            }
            let candidate = |id| Candidate {
                name: "L".into(),
                lease: LeaseId(id),
                value: Bytes::new(),
                replaces: false,
            };
            let first = come_first(&node, candidate(1)).await.expect("its turn");
            let waiter = node.clone();
            let second = tokio::spawn(async move { come_first(&waiter, candidate(2)).await });
            while in_line(&node).await < 2 {}
            for number in 0..10 {
                put(&node, &format!("elsewhere{number}")).await;
            }
            let newest = node.status().unwrap().revision;
            node.compact(newest, true)
                .await
                .expect("it is not compacted");
            put(&node, "elsewhere").await;
            assert!(!second.is_finished());
            remove(&node, &first.key, first.created)
                .await
                .expect("gone");
            let second = second.await.expect("no panic").expect("its turn");
            assert_eq!(second.lease, LeaseId(2));
        });
    }
}
