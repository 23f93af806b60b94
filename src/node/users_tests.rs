//! A program that embeds a member acts as a user: by requests, by messages, and by locks.

use super::LocalNode;
use crate::{
    actors::{
        fail_stop::FailStop,
        membership_change::{ChangeRefusal, MemberChange},
        requests::{RequestError, Requests},
        store::{DeleteKeys, PutKey, ReadRange, Store},
    },
    auth::{
        AuthError, Caller, Change,
        change::{PasswordHash, Permission},
    },
    config::Config,
    kv::{
        KvError,
        command::{AlarmKind, DeleteRange, Put, RangeQuery, SetAlarm},
    },
    services::lock,
    storage::{disk::Disk, sim_disk::SimDisk},
    types::{LeaseId, MemberId, Revision},
};
use actix::{Actor, System};
use std::{net::Ipv4Addr, sync::Arc};

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
    let permission = Permission {
        kind: Permission::READ_WRITE,
        key: b"a".to_vec(),
        range_end: b"b".to_vec(),
    };
    for change in [
        user("root"),
        role("root", "root"),
        user("u"),
        Change::AddRole { name: "r".into() },
        Change::GrantPermission {
            role: "r".into(),
            permission: Some(permission),
        },
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
