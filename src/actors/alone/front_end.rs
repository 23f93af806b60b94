//! A front end without the rest of its member.

use super::{
    super::{
        etcd_image::ImageMaker,
        lease_desk::LeaseDesk,
        lease_messages::{AskLeaseKeys, LeaseAnswer, LeaseCall},
        login_bounds::LoginBounds,
        passwords::Passwords,
        quota,
        requests::{RequestLimits, RequestPeers, Requests},
        store::{ReadRange, Store},
    },
    *,
};
use crate::{
    auth::{AuthError, grants::Right},
    kv::{
        KvError,
        command::{AlarmKind, RangeQuery, SetAlarm},
    },
};
use std::sync::atomic::{AtomicBool, Ordering};

/// A front end, and what the node gave it.
struct FrontEnd {
    requests: Requests,
    auth_on: Arc<AtomicBool>,
    proposed: mpsc::UnboundedReceiver<Propose>,
}

fn front_end(
    views: latest::Receiver<Arc<Published>>,
    quota_bytes: Option<u64>,
    keys: LeaseKeysPeer,
) -> FrontEnd {
    let (handle, proposed) = consensus();
    let hub = WatchHub::new(
        views.clone(),
        Duration::from_mins(10),
        &HeldBytes::default(),
        life(),
    );
    let lease_peers = LeasePeers {
        keys,
        ..lease_peers(handle.clone(), views.clone())
    };
    let auth_on = Arc::new(AtomicBool::new(false));
    let peers = RequestPeers {
        leases: LeaseDesk::start(&Arbiter::current(), lease_peers),
        consensus: handle,
        changes: ignored(),
        moves: ignored(),
        compactor: ignored(),
        hashes: CompactionHashes::default(),
        watches: WatchCalls::of(&hub.start()),
        views,
        raft_status: status(true),
        disk: watch::channel(DiskHealth::default()).1,
        auth_on: auth_on.clone(),
        passwords: Passwords::new(4, 1),
        logins: Arc::new(LoginBounds::new(None)),
        jwt: None,
        images: ImageMaker::new(SnapshotPacing {
            bytes_per_sec: 1 << 20,
        }),
    };
    let limits = RequestLimits {
        request_bytes_max: 1 << 20,
        txn_ops_max: 10,
        quota_bytes,
        timeout: TIMEOUT,
        leader_patience: TIMEOUT,
    };
    FrontEnd {
        requests: Requests::new(IDENTITY, limits, peers),
        auth_on,
        proposed,
    }
}

fn no_keys() -> LeaseKeysPeer {
    LeaseKeysPeer::new(fake(|_| Ok(None)))
}

#[test]
fn the_store_answers_reads_from_the_newest_view() {
    alone(async || {
        let db = open(&site());
        let views = views_at(&db, Revision(4)).1;
        let store = Store::new(front_end(views, None, no_keys()).requests).start();
        let query = RangeQuery {
            key: "k".into(),
            serializable: true,
            ..RangeQuery::default()
        };
        let read = store.send(ReadRange(query)).await.unwrap().unwrap();
        assert_eq!((read.revision, read.count), (Revision(4), 0));
    });
}

fn put() -> Put {
    Put {
        key: "k".into(),
        ..Put::default()
    }
}

#[test]
fn a_member_at_its_quota_raises_one_alarm_and_none_for_who_may_do_nothing() {
    alone(async || {
        let db = open(&site());
        let (view, views) = views_at(&db, Revision(4));
        let mut front = front_end(views, Some(0), no_keys());
        front.auth_on.store(true, Ordering::Release);
        for (caller, expected) in [
            (auth::Caller::Nobody, AuthError::UserEmpty),
            (auth::Caller::BadToken, AuthError::InvalidToken),
        ] {
            let refused = front.requests.on_behalf(caller).put(put()).await;
            let refused = refused.unwrap_err();
            let found =
                matches!(&refused, RequestError::Kv(KvError::Auth(error)) if *error == expected);
            assert!(found, "{refused}");
        }
        assert!(front.proposed.try_recv().is_err(), "nothing is proposed");

        front.auth_on.store(false, Ordering::Release);
        let first = actix::spawn({
            let requests = front.requests.clone();
            async move { requests.put(put()).await }
        });
        let Propose { proposals } = front.proposed.recv().await.unwrap();
        let alarm = Command::SetAlarm(SetAlarm {
            member: MEMBER,
            kind: AlarmKind::QuotaReached,
            raised: true,
        });
        let encoded = codec::encode(&alarm);
        assert!(proposals[0].data.ends_with(&encoded), "the alarm");
        first.abort();

        let alarms = Arc::new([(MEMBER, AlarmKind::QuotaReached)].into());
        view.send_replace(Arc::new(Published {
            alarms,
            ..published(&db, Revision(4))
        }));
        let refused = front.requests.put(put()).await.unwrap_err();
        let no_space = matches!(refused, RequestError::Kv(KvError::NoSpace));
        assert!(no_space, "{refused}");
        assert!(front.proposed.try_recv().is_err(), "it is raised already");
    });
}

#[test]
fn a_member_ends_the_alarm_of_its_own_quota_once_there_is_room() {
    alone(async || {
        let db = open(&site());
        let at = |used_bytes, kind| {
            Arc::new(Published {
                alarms: Arc::new([(MEMBER, kind)].into()),
                used_bytes,
                ..published(&db, Revision(4))
            })
        };
        let (view, views) = latest::channel(at(900, AlarmKind::QuotaReached));
        let (_raft, raft_status) = latest::channel(*status(true).borrow());
        let (handle, mut proposed) = consensus();
        let keeping = actix::spawn(quota::keep(Some(1_000), views, raft_status, handle));
        let a_while = Duration::from_secs(10);
        for (used_bytes, kind) in [
            (900, AlarmKind::QuotaReached),
            (0, AlarmKind::NoSpace),
            (0, AlarmKind::Corrupt),
        ] {
            view.send_replace(at(used_bytes, kind));
            let found = tokio::time::timeout(a_while, proposed.recv()).await;
            assert!(found.is_err(), "{used_bytes} bytes, {kind:?}");
        }
        view.send_replace(at(899, AlarmKind::QuotaReached));
        let Propose { proposals } = proposed.recv().await.unwrap();
        let end = Command::SetAlarm(SetAlarm {
            member: MEMBER,
            kind: AlarmKind::QuotaReached,
            raised: false,
        });
        assert!(proposals[0].data.ends_with(&codec::encode(&end)), "the end");
        keeping.abort();
    });
}

/// Otherwise no member would take writes until a client ends it.
#[test]
fn only_the_leader_ends_the_alarm_of_a_member_that_was_removed() {
    for leads in [false, true] {
        alone(async || {
            let db = open(&site());
            let removed = MemberId(9);
            let (_view, views) = latest::channel(Arc::new(Published {
                alarms: Arc::new([(removed, AlarmKind::QuotaReached)].into()),
                ..published(&db, Revision(4))
            }));
            let (_raft, raft_status) = latest::channel(*status(leads).borrow());
            let (handle, mut proposed) = consensus();
            let keeping = actix::spawn(quota::keep(None, views, raft_status, handle));
            let a_while = Duration::from_secs(10);
            let found = tokio::time::timeout(a_while, proposed.recv()).await;
            assert_eq!(found.is_ok(), leads);
            keeping.abort();
        });
    }
}

#[test]
fn a_renewal_asks_about_the_keys_of_its_lease_and_not_for_them() {
    alone(async || {
        let db = open(&site());
        let mut auth = AuthState::default();
        for change in [
            Change::AddUser {
                name: "root".into(),
                password: None,
            },
            Change::GrantRole {
                user: "root".into(),
                role: "root".into(),
            },
            Change::AddUser {
                name: "u".into(),
                password: None,
            },
            Change::Enable,
        ] {
            assert_eq!(auth.apply(&change, 1, &mut Vec::new()), Ok(()));
        }
        let published = Published {
            auth: Arc::new(auth),
            ..published(&db, Revision(4))
        };
        let (_view, views) = latest::channel(Arc::new(published));
        let (asked, mut asks) = mpsc::unbounded_channel();
        let keys = LeaseKeysPeer::new(fake(move |ask: AskLeaseKeys| {
            asked.send(ask).unwrap();
            Err(AuthError::PermissionDenied)
        }));
        let front = front_end(views, None, keys);
        front.auth_on.store(true, Ordering::Release);
        let u = front.requests.as_user("u").unwrap();
        let refused = u.keep_alive(LeaseId(7)).await.unwrap_err();
        assert!(
            matches!(
                refused,
                RequestError::Kv(KvError::Auth(AuthError::PermissionDenied))
            ),
            "{refused}"
        );
        let ask = asks.try_recv().unwrap();
        let found = (
            ask.id,
            ask.right,
            ask.list,
            ask.caller.user().map(|name| &**name),
        );
        assert_eq!(found, (LeaseId(7), Right::Write, false, Some("u")));
    });
}

#[test]
fn the_lease_desk_answers_the_calls_of_other_members_in_order() {
    alone(async || {
        let db = open(&site());
        let manager = fake(|ask: AskLeases| {
            for pending in ask.calls {
                let answer = match pending.call {
                    CountdownCall::Renew(LeaseId(ttl_secs)) => {
                        CountdownAnswer::Renewed { ttl_secs }
                    }
                    CountdownCall::TimeLeft(_) => CountdownAnswer::Ended,
                };
                pending.answer(answer);
            }
        });
        let peers = lease_peers(consensus().0, views_at(&db, Revision::FIRST).1);
        let peers = LeasePeers { manager, ..peers };
        let server = LeaseDesk::start(&Arbiter::current(), peers).server();
        let [renewed, ended] = [LeaseId(60), LeaseId(61)];
        let calls = vec![LeaseCall::TimeLeft(ended), LeaseCall::Renew(renewed)];
        let answers = server.serve(calls).await;
        let ttl_secs = renewed.0;
        assert_eq!(
            answers,
            [LeaseAnswer::NoLease, LeaseAnswer::Renewed { ttl_secs }]
        );
    });
}
