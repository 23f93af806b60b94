//! A program that embeds a member acts as a user: by requests, by messages, and by locks.

use super::LocalNode;
use crate::{
    actors::{
        fail_stop::FailStop,
        membership_change::{ChangeRefusal, MemberChange},
        requests::{RequestError, Requests},
        store::{DeleteKeys, PutKey, ReadRange, Store},
        watch_stream::WatchError,
    },
    auth::{
        AuthError, Caller, Change,
        change::{PasswordHash, Permission},
    },
    config::Config,
    kv::{
        KeyRange, KvError,
        command::{AlarmKind, DeleteRange, Put, RangeQuery, SetAlarm},
        watch::WatchSpec,
    },
    services::{
        election::{self, ElectionError},
        lock::{self, LockError},
    },
    storage::{disk::Disk, sim_disk::SimDisk},
    types::{LeaseId, MemberId, Revision},
};
use actix::{Actor, System};
use bytes::Bytes;
use std::{net::Ipv4Addr, sync::Arc};
use tokio::task::{spawn_local, yield_now};

/// What the role of `u` may do with what begins with `a`, in place of what it might do before.
fn permit(kind: i32) -> Change {
    Change::GrantPermission {
        role: "r".into(),
        permission: Some(Permission {
            kind,
            key: b"a".to_vec(),
            range_end: b"b".to_vec(),
        }),
    }
}

/// It may do nothing any more.
fn forbid() -> Change {
    Change::RevokePermission {
        role: "r".into(),
        key: b"a".to_vec(),
        range_end: b"b".to_vec(),
    }
}

/// A member with root, and `u` who may do everything with what begins with `a`.
async fn with_users(requests: &Requests) {
    let user = |name: &str| Change::AddUser {
        name: name.into(),
        password: Some(PasswordHash::default()),
    };
    let role = |user: &str, role: &str| Change::GrantRole {
        user: user.into(),
        role: role.into(),
    };
    for change in [
        user("root"),
        role("root", "root"),
        user("u"),
        Change::AddRole { name: "r".into() },
        permit(Permission::READ_WRITE),
        role("u", "r"),
        Change::Enable,
    ] {
        requests.change_auth(change).await.unwrap();
    }
}

fn put(key: &'static str) -> Put {
    Put {
        key: key.into(),
        value: "v".into(),
        ..Put::default()
    }
}

fn get(key: &'static str) -> RangeQuery {
    RangeQuery {
        key: key.into(),
        ..RangeQuery::default()
    }
}

fn denied<T>(outcome: Result<T, RequestError>) -> bool {
    matches!(
        outcome.err(),
        Some(RequestError::Kv(KvError::Auth(AuthError::PermissionDenied)))
    )
}

fn run(test: impl AsyncFnOnce(&Requests)) {
    System::new().block_on(async move {
        let mut config = Config::default();
        config.storage.wal_segment_bytes = 1 << 20;
        config.auth.bcrypt_cost = 4;
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let fail_stop = FailStop::new(|reason| panic!("{reason}"));
        let node = LocalNode::start(&config, &disk, &fail_stop).unwrap();
        with_users(node.requests()).await;
        test(node.requests()).await;
        node.stop().await;
    });
}

#[test]
fn a_program_acts_as_a_user() {
    run(async |requests| {
        let stranger = requests.as_user("nobody").err();
        assert_eq!(stranger, Some(AuthError::UserNotFound));
        let u = requests.as_user("u").unwrap();
        u.put(put("a1")).await.unwrap();
        assert!(denied(u.put(put("b1")).await));
        assert_eq!(u.range(get("a1")).await.unwrap().count, 1);
        assert!(denied(u.range(get("b1")).await));
        let lease = u.grant_lease(Some(LeaseId(7)), 60).await.unwrap().id;
        let attached = Put { lease, ..put("b2") };
        requests.put(attached).await.unwrap();
        assert!(denied(u.keep_alive(lease).await));
        assert!(denied(u.revoke_lease(lease).await), "it would delete b2");
        assert!(denied(u.time_to_live(lease, true).await));
        assert!(denied(u.leases().await), "names of keys are data");
        let newest = u.status().unwrap().revision;
        assert!(denied(u.compact(newest, false).await));
        assert!(denied(u.hash_kv(newest).await));
        let other = u.as_user("root").err();
        assert_eq!(other, Some(AuthError::PermissionDenied));
        let locked = lock::lock(&u, "b/lock".into(), lease).await;
        assert!(locked.is_err(), "a lock is made of requests");

        let store = Store::new(u.clone()).start();
        store.send(PutKey(put("a2"))).await.unwrap().unwrap();
        assert!(denied(store.send(PutKey(put("b1"))).await.unwrap()));
        assert!(denied(store.send(ReadRange(get("b1"))).await.unwrap()));
        let delete = DeleteRange {
            key: "a".into(),
            range_end: "\0".into(),
            ..DeleteRange::default()
        };
        assert!(denied(store.send(DeleteKeys(delete)).await.unwrap()));
        requests.put(put("b1")).await.unwrap();

        // Another user of that name is somebody else.
        let name = || "u".to_owned();
        let delete = Change::DeleteUser { name: name() };
        requests.change_auth(delete).await.unwrap();
        assert!(denied(u.put(put("a1")).await));
        let add = Change::AddUser {
            name: name(),
            password: None,
        };
        requests.change_auth(add).await.unwrap();
        let role = "root".into();
        let grant = Change::GrantRole { user: name(), role };
        requests.change_auth(grant).await.unwrap();
        assert!(denied(u.put(put("a1")).await));
        assert!(denied(u.range(get("a1")).await));
        let new = requests.as_user("u").unwrap();
        new.put(put("b1")).await.unwrap();
    });
}

/// Each of these went by the node's rights.
#[test]
fn work_on_the_cluster_needs_the_rights_that_calls_need() {
    run(async |requests| {
        let (u, root) = (requests.as_user("u"), requests.as_user("root"));
        let (u, root) = (u.unwrap(), root.unwrap());
        let member = requests.identity().member;
        let change = || MemberChange::Remove { id: MemberId(99) };
        assert!(denied(u.change_membership(change()).await));
        assert!(denied(u.move_leader(member).await));
        assert!(denied(u.hash_kv(Revision(0)).await));
        let alarm = SetAlarm {
            member,
            kind: AlarmKind::NoSpace,
            raised: true,
        };
        assert!(denied(u.set_alarm(alarm).await));
        let changed = root.change_membership(change()).await;
        assert!(
            matches!(changed, Err(RequestError::Change(ChangeRefusal::NotFound))),
            "{changed:?}"
        );
        root.move_leader(member).await.unwrap();
        root.hash_kv(Revision(0)).await.unwrap();

        // Reading needs to be somebody.
        assert_eq!(u.alarms(), Ok(Vec::new()));
        assert_eq!(u.members(true).await.unwrap().iter().count(), 1);
        let nobody = requests.on_behalf(Caller::Nobody);
        assert_eq!(nobody.status().err(), Some(AuthError::UserEmpty));
        assert_eq!(nobody.alarms(), Err(AuthError::UserEmpty));
        assert!(nobody.members(true).await.is_err());

        // To be another one needs more, also while everybody may do everything.
        let refusal = Some(AuthError::PermissionDenied);
        assert_eq!(u.as_user("root").err(), refusal);
        assert_eq!(u.as_user("u").err(), refusal);
        root.as_user("u").unwrap().put(put("a1")).await.unwrap();
        requests.change_auth(Change::Disable).await.unwrap();
        u.hash_kv(Revision(0)).await.unwrap();
        assert_eq!(u.as_user("root").err(), refusal);
        assert_eq!(nobody.as_user("root").err(), Some(AuthError::UserEmpty));
        root.as_user("u").unwrap();
    });
}

#[test]
fn logins_are_counted_by_how_they_end() {
    run(async |requests| {
        let password = requests.hash_password("right".into()).await.unwrap();
        let name = || "u".to_owned();
        let change = Change::ChangePassword {
            name: name(),
            password,
        };
        requests.change_auth(change).await.unwrap();
        let origin = Ipv4Addr::LOCALHOST.into();
        let log_in = |password: &str| requests.log_in(name(), password.into(), origin);
        log_in("right").await.unwrap();
        let mut refusals = 0;
        for _ in 0..20 {
            let error = log_in("wrong").await.unwrap_err();
            refusals += u64::from(error.to_string().contains("too many failed"));
        }
        let counts = requests.login_counts();
        assert_eq!(counts.succeeded(), 1);
        assert_eq!(counts.failed() + counts.refused(), 20);
        assert_eq!(counts.refused(), refusals);
        assert!(refusals > 0, "{counts:?}");
    });
}

/// How many are in the queue of the lock, or the election, `a/L`.
async fn queued(requests: &Requests) -> i64 {
    let query = RangeQuery {
        key: "a/L/".into(),
        range_end: "a/L0".into(),
        count_only: true,
        ..RangeQuery::default()
    };
    requests.range(query).await.unwrap().count
}

async fn until_queued(requests: &Requests, count: i64) {
    while queued(requests).await < count {
        yield_now().await;
    }
}

fn of_lock<T>(outcome: Result<T, LockError>) -> Result<(), RequestError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(LockError::Request(error)) => Err(error),
        Err(error @ LockError::SessionExpired) => panic!("{error}"),
    }
}

fn of_election<T>(outcome: Result<T, ElectionError>) -> Result<(), RequestError> {
    match outcome {
        Ok(_) => Ok(()),
        Err(ElectionError::Request(error)) => Err(error),
        Err(error @ (ElectionError::NoLeader | ElectionError::NotLeader)) => panic!("{error}"),
    }
}

/// `u` waits between the first in the queue and another waiter, and loses the right to write, or all rights.
async fn a_waiter_loses_its_right(
    requests: &Requests,
    campaigns: bool,
    own_lease: bool,
    may_read: bool,
) {
    let granted = requests.change_auth(permit(Permission::READ_WRITE)).await;
    granted.unwrap();
    let u = requests.as_user("u").unwrap();
    let mut leases = Vec::new();
    for _ in 0..3 {
        leases.push(requests.grant_lease(None, 600).await.unwrap().id);
    }
    let (first, last) = (leases[0], leases[2]);
    let lease = if own_lease { LeaseId(0) } else { leases[1] };
    let name = || Bytes::from_static(b"a/L");
    let held = lock::lock(requests, name(), first).await.unwrap();
    let waiter = spawn_local(async move {
        if campaigns {
            of_election(election::campaign(&u, name(), lease, "v".into()).await)
        } else {
            of_lock(lock::lock(&u, name(), lease).await)
        }
    });
    until_queued(requests, 2).await;
    let all = requests.clone();
    let next = spawn_local(async move { lock::lock(&all, name(), last).await });
    until_queued(requests, 3).await;
    if may_read {
        let changed = requests.change_auth(permit(Permission::READ)).await;
        changed.unwrap();
        lock::unlock(requests, held.key).await.unwrap();
        assert!(denied(waiter.await.unwrap()), "when its turn comes");
    } else {
        requests.change_auth(forbid()).await.unwrap();
        assert!(denied(waiter.await.unwrap()), "at once");
        assert_eq!(queued(requests).await, 2, "it has left the queue");
        lock::unlock(requests, held.key).await.unwrap();
    }
    let next = next.await.unwrap().unwrap();
    assert_eq!(next.lease, last, "nobody is in its way");
    lock::unlock(requests, next.key).await.unwrap();
    assert_eq!(queued(requests).await, 0);
}

#[test]
fn a_waiter_that_may_not_write_any_more_is_refused_and_blocks_nobody() {
    run(async |requests| {
        for case in 0..8 {
            let (campaigns, own_lease, may_read) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
            a_waiter_loses_its_right(requests, campaigns, own_lease, may_read).await;
        }
    });
}

#[test]
fn observers_and_streamed_ranges_end_with_the_right_to_read() {
    run(async |requests| {
        let u = requests.as_user("u").unwrap();
        let lease = requests.grant_lease(None, 600).await.unwrap().id;
        let won = election::campaign(requests, "a/E".into(), lease, "leads".into()).await;
        won.unwrap();
        let mut observer = election::observe(&u, "a/E".into()).await.unwrap();
        let seen = observer.next().await.unwrap();
        assert_eq!(seen.kv.value, "leads");
        let observing = spawn_local(async move { of_election(observer.next().await) });
        // More than the first part of a stream has.
        for number in 0..50 {
            let key = format!("a{number}").into();
            requests.put(Put { key, ..put("") }).await.unwrap();
        }
        let query = RangeQuery {
            range_end: "b".into(),
            ..get("a")
        };
        let mut parts = u.range_stream(query).unwrap();
        let first = parts.next().await.unwrap().unwrap();
        assert!(first.end.is_none(), "there is more");
        requests.change_auth(forbid()).await.unwrap();
        assert!(denied(parts.next().await.unwrap()));
        assert!(parts.next().await.is_none());
        assert!(denied(observing.await.unwrap()));
    });
}

#[test]
fn a_watch_that_is_behind_ends_with_the_right_to_read() {
    run(async |requests| {
        let value = Bytes::from(vec![b'v'; 16 << 10]);
        // More than a stream's queue has room for, and than one pass over history finds.
        for number in 0..300 {
            let (key, value) = (format!("a{number}").into(), value.clone().into());
            let put = Put {
                key,
                value,
                ..Put::default()
            };
            requests.put(put).await.unwrap();
        }
        let u = requests.as_user("u").unwrap();
        let range = KeyRange::from_wire(&"a".into(), &"b".into());
        let spec = WatchSpec {
            start: Revision(2),
            ..WatchSpec::of(range)
        };
        let mut watch = u.watch(spec).await.unwrap();
        requests.change_auth(forbid()).await.unwrap();
        requests.put(put("a-later")).await.unwrap();
        let mut seen = 0;
        let error = loop {
            match watch.next().await {
                Ok(batch) => {
                    let later = |key: &Bytes| key == "a-later";
                    assert!(!batch.events.iter().any(|event| later(&event.kv.key)));
                    seen += batch.events.len();
                }
                Err(error) => break error,
            }
        };
        let error = match error {
            WatchError::Request(error) => error,
            other => panic!("it is not denied: {other}"),
        };
        assert!(denied(Err::<(), _>(error)));
        assert!(seen < 300, "it was behind: {seen} events");
    });
}
