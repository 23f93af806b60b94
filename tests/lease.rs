//! Leases, locks and elections on a node inside this process, whose clock stands still unless everybody waits for it.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped fails the test"
)]

use actix::System;
use quorate::{
    Config, LocalNode,
    internals::{
        actors::{
            fail_stop::FailStop,
            requests::{RequestError, Requests},
        },
        kv::{
            KvError,
            command::{AlarmKind, Put, RangeQuery, SetAlarm},
            record::KeyValue,
        },
        services::{
            election::{self, ElectionError},
            lock::{self, LockError},
        },
        storage::{disk::Disk, sim_disk::SimDisk},
        types::{LeaseId, Revision},
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// How late a scan may be, and some time for the log.
const LATE: Duration = Duration::from_millis(600);

/// Starts a node on `disk`, runs `test` on it, and stops it.
fn with_node<T>(disk: &SimDisk, test: impl AsyncFnOnce(Requests) -> T) -> T {
    with_configured_node(&Config::default(), disk, test)
}

fn with_configured_node<T>(
    config: &Config,
    disk: &SimDisk,
    test: impl AsyncFnOnce(Requests) -> T,
) -> T {
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    });
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    system.block_on(async move {
        let stopped = FailStop::new(|reason| panic!("the member stops: {reason}"));
        let node = LocalNode::start(config, &disk, &stopped).unwrap();
        let given = test(node.requests().clone()).await;
        node.stop().await;
        given
    })
}

fn on_a_node<T>(test: impl AsyncFnOnce(Requests) -> T) -> T {
    with_node(&SimDisk::new(1), test)
}

async fn put(requests: &Requests, key: &str, lease: LeaseId) -> Result<Revision, RequestError> {
    let put = Put {
        key: key.to_owned().into(),
        value: "value".into(),
        lease,
        ..Put::default()
    };
    Ok(requests.put(put).await?.revision)
}

async fn get(requests: &Requests, key: &str) -> Option<KeyValue> {
    let query = RangeQuery {
        key: key.to_owned().into(),
        ..RangeQuery::default()
    };
    let done = requests.range(query).await.unwrap();
    done.kvs.first().map(|kv| KeyValue::decode(kv).unwrap())
}

async fn grant(requests: &Requests, ttl_secs: i64) -> LeaseId {
    requests.grant_lease(None, ttl_secs).await.unwrap().id
}

async fn secs(secs: u64) {
    sleep(Duration::from_secs(secs)).await;
}

#[test]
fn a_lease_ends_at_its_time_with_its_keys_in_one_revision() {
    on_a_node(async |node| {
        let lease = grant(&node, 5).await;
        assert!(lease.0 > 0, "{lease}");
        for key in ["b", "a"] {
            put(&node, key, lease).await.unwrap();
        }
        secs(4).await;
        let time = node.time_to_live(lease, true).await.unwrap().unwrap();
        assert_eq!((time.left_secs, time.ttl_secs), (1, 5));
        assert_eq!(time.keys, ["a", "b"]);
        sleep(Duration::from_millis(990)).await;
        assert_eq!(get(&node, "a").await.unwrap().lease, lease);
        sleep(LATE).await;
        assert_eq!(get(&node, "a").await, None);
        assert_eq!(get(&node, "b").await, None);
        let newest = node.status().unwrap().revision;
        assert_eq!(newest, Revision(4), "one for both keys");
        assert_eq!(*node.leases().await.unwrap(), []);
        assert_eq!(node.time_to_live(lease, false).await.unwrap(), None);
        assert_eq!(node.keep_alive(lease).await.unwrap(), None);
    });
}

#[test]
fn a_renewed_lease_lives_and_a_detached_key_outlives_its_lease() {
    on_a_node(async |node| {
        let (renewed, left) = (grant(&node, 2).await, grant(&node, 2).await);
        put(&node, "renewed", renewed).await.unwrap();
        put(&node, "left", left).await.unwrap();
        put(&node, "detached", left).await.unwrap();
        put(&node, "detached", LeaseId(0)).await.unwrap();
        for _ in 0..20 {
            secs(1).await;
            assert_eq!(node.keep_alive(renewed).await.unwrap(), Some(2));
        }
        assert!(get(&node, "renewed").await.is_some());
        assert!(get(&node, "detached").await.is_some());
        assert_eq!(get(&node, "left").await, None);
        assert_eq!(*node.leases().await.unwrap(), [renewed]);
        let before = node.status().unwrap().revision;
        let after = node.revoke_lease(renewed).await.unwrap();
        assert_eq!(after, Revision(before.0 + 1));
        assert_eq!(get(&node, "renewed").await, None);
    });
}

#[test]
fn a_renewal_that_comes_too_late_is_answered_when_the_keys_are_gone() {
    on_a_node(async |node| {
        node.leases().await.unwrap();
        // The member leads after some tenths of a second, and scans come each tenth: this ends between two.
        put(&node, "before", LeaseId(0)).await.unwrap();
        sleep(Duration::from_millis(30)).await;
        let lease = grant(&node, 2).await;
        put(&node, "a", lease).await.unwrap();
        sleep(Duration::from_millis(2_001)).await;
        assert!(get(&node, "a").await.is_some(), "no scan has come by yet");
        assert_eq!(node.keep_alive(lease).await.unwrap(), None);
        assert_eq!(get(&node, "a").await, None);
    });
}

#[test]
fn grants_are_checked_as_etcd_checks_them() {
    on_a_node(async |node| {
        let refused = |error: RequestError| match error {
            RequestError::Kv(refused) => refused,
            other => panic!("{other}"),
        };
        for ttl in [i64::MIN, -1, 0, 1, 2] {
            let id = LeaseId(ttl.wrapping_sub(10));
            let granted = node.grant_lease(Some(id), ttl).await.unwrap();
            assert_eq!((granted.id, granted.ttl_secs), (id, 2));
        }
        let taken = node.grant_lease(Some(LeaseId(-10)), 5).await.unwrap_err();
        assert_eq!(refused(taken), KvError::LeaseExists(LeaseId(-10)));
        let huge = node.grant_lease(None, 9_000_000_000).await.unwrap();
        assert_eq!(huge.ttl_secs, 9_000_000_000);
        let huge = node.grant_lease(None, 9_000_000_001).await.unwrap_err();
        let too_large = KvError::LeaseTtlTooLarge {
            asked_secs: 9_000_000_001,
            max_secs: 9_000_000_000,
        };
        assert_eq!(refused(huge), too_large);
        let unknown = node.revoke_lease(LeaseId(77)).await.unwrap_err();
        assert_eq!(refused(unknown), KvError::LeaseNotFound(LeaseId(77)));
        let unknown = put(&node, "a", LeaseId(77)).await.unwrap_err();
        assert_eq!(refused(unknown), KvError::LeaseNotFound(LeaseId(77)));
        assert_eq!(node.keep_alive(LeaseId(0)).await.unwrap(), None);
        let alarm = SetAlarm {
            member: node.identity().member,
            kind: AlarmKind::NoSpace,
            raised: true,
        };
        node.set_alarm(alarm).await.unwrap();
        let full = node.grant_lease(None, 5).await.unwrap_err();
        assert_eq!(refused(full), KvError::NoSpace);
        secs(3).await;
        let left = node.leases().await.unwrap();
        assert_eq!(
            left.len(),
            1,
            "leases end while there is no space: {left:?}"
        );
    });
}

#[test]
fn there_are_as_many_leases_as_may_be() {
    let mut config = Config::default();
    config.limits.leases_max = 3;
    let disk = SimDisk::new(4);
    with_configured_node(&config, &disk, async |node| {
        for _ in 0..2 {
            grant(&node, 600).await;
        }
        let short = grant(&node, 3).await;
        for id in [None, Some(LeaseId(7))] {
            let refused = node.grant_lease(id, 600).await.unwrap_err();
            let RequestError::Kv(refused) = refused else {
                panic!("{refused}");
            };
            assert_eq!(refused, KvError::TooManyLeases { max: 3 });
        }
        // Existing leases stay, and free their places when they end.
        assert_eq!(node.keep_alive(short).await.unwrap(), Some(3));
        secs(4).await;
        let third = grant(&node, 600).await;
        assert!(node.grant_lease(None, 600).await.is_err());
        node.revoke_lease(third).await.unwrap();
        grant(&node, 600).await;
    });
    with_configured_node(&config, &disk, async |node| {
        let refused = node.grant_lease(None, 600).await.unwrap_err();
        assert!(
            matches!(refused, RequestError::Kv(_)),
            "counted again: {refused}"
        );
    });
}

#[test]
fn an_id_that_is_granted_again_is_another_lease() {
    on_a_node(async |node| {
        let id = LeaseId(5);
        for _ in 0..3 {
            node.grant_lease(Some(id), 3).await.unwrap();
            secs(2).await;
            node.revoke_lease(id).await.unwrap();
        }
        node.grant_lease(Some(id), 3).await.unwrap();
        sleep(Duration::from_millis(2_900)).await;
        assert!(node.time_to_live(id, false).await.unwrap().is_some());
        sleep(LATE).await;
        assert_eq!(node.time_to_live(id, false).await.unwrap(), None);
    });
}

#[test]
fn a_restart_gives_a_short_lease_all_of_its_time() {
    let disk = SimDisk::new(2);
    let lease = with_node(&disk, async |node| {
        let lease = grant(&node, 20).await;
        put(&node, "a", lease).await.unwrap();
        secs(14).await;
        lease
    });
    with_node(&disk, async |node| {
        let time = node.time_to_live(lease, true).await.unwrap().unwrap();
        assert_eq!(time.ttl_secs, 20);
        // Counted from the start, which an election follows.
        assert!((17..=20).contains(&time.left_secs), "{time:?}");
        assert_eq!(time.keys.len(), 1, "keys are attached again");
        secs(16).await;
        assert!(get(&node, "a").await.is_some());
        secs(4).await;
        sleep(LATE).await;
        assert_eq!(get(&node, "a").await, None);
    });
}

#[test]
fn a_restart_gives_a_lease_that_was_just_renewed_all_of_its_time() {
    let disk = SimDisk::new(2);
    let lease = with_node(&disk, async |node| {
        let lease = grant(&node, 20).await;
        secs(14).await;
        assert_eq!(node.keep_alive(lease).await.unwrap(), Some(20));
        secs(5).await;
        lease
    });
    with_node(&disk, async |node| {
        let time = node.time_to_live(lease, false).await.unwrap().unwrap();
        assert!((17..=20).contains(&time.left_secs), "{time:?}");
    });
}

#[test]
fn renewals_pass_while_alarms_are_raised() {
    on_a_node(async |node| {
        let lease = grant(&node, 5).await;
        let alarm = |kind, raised| SetAlarm {
            member: node.identity().member,
            kind,
            raised,
        };
        for kind in [AlarmKind::NoSpace, AlarmKind::Corrupt] {
            node.set_alarm(alarm(kind, true)).await.unwrap();
            for _ in 0..4 {
                secs(3).await;
                assert_eq!(node.keep_alive(lease).await.unwrap(), Some(5), "{kind:?}");
            }
            node.set_alarm(alarm(kind, false)).await.unwrap();
        }
        // Writes are refused, expiries among them.
        node.set_alarm(alarm(AlarmKind::Corrupt, true))
            .await
            .unwrap();
        secs(10).await;
        assert_eq!(*node.leases().await.unwrap(), [lease]);
        node.set_alarm(alarm(AlarmKind::Corrupt, false))
            .await
            .unwrap();
        sleep(LATE).await;
        assert_eq!(*node.leases().await.unwrap(), []);
    });
}

#[test]
fn a_checkpoint_outlives_a_restart_and_a_renewal_takes_it_back() {
    let disk = SimDisk::new(3);
    let lease = with_node(&disk, async |node| {
        let lease = grant(&node, 1_000).await;
        secs(310).await;
        lease
    });
    let left = |node: Requests| async move {
        let time = node.time_to_live(lease, false).await.unwrap();
        time.unwrap().left_secs
    };
    with_node(&disk, async |node| {
        let left_secs = left(node.clone()).await;
        assert!((697..=700).contains(&left_secs), "{left_secs}");
        assert_eq!(node.keep_alive(lease).await.unwrap(), Some(1_000));
        let left_secs = left(node.clone()).await;
        assert!((999..=1_000).contains(&left_secs), "{left_secs}");
    });
    with_node(&disk, async |node| {
        let left_secs = left(node.clone()).await;
        assert!((997..=1_000).contains(&left_secs), "{left_secs}");
    });
}

fn count(leases: &[LeaseId]) -> i64 {
    i64::try_from(leases.len()).unwrap()
}

#[test]
fn twenty_thousand_leases_end_in_their_second_while_puts_go_on() {
    const LEASES: i64 = 20_000;
    on_a_node(async |node| {
        let mut granted = tokio::task::JoinSet::new();
        for id in 0..LEASES {
            let node = node.clone();
            granted.spawn(async move {
                let id = LeaseId(id + 1);
                loop {
                    match node.grant_lease(Some(id), 10).await {
                        Ok(_) => break,
                        Err(RequestError::TooManyRequests) => tokio::task::yield_now().await,
                        Err(other) => panic!("{other}"),
                    }
                }
                while let Err(error) = put(&node, &format!("k{id}"), id).await {
                    assert!(matches!(error, RequestError::TooManyRequests), "{error}");
                    tokio::task::yield_now().await;
                }
            });
        }
        while let Some(done) = granted.join_next().await {
            done.unwrap();
        }
        secs(5).await;
        let mut renewed = tokio::task::JoinSet::new();
        for id in 1..=LEASES / 2 {
            let node = node.clone();
            renewed.spawn(async move { node.keep_alive(LeaseId(id)).await.unwrap() });
        }
        while let Some(ttl) = renewed.join_next().await {
            assert_eq!(ttl.unwrap(), Some(10));
        }
        sleep(Duration::from_secs(4)).await;
        assert_eq!(
            count(&node.leases().await.unwrap()),
            LEASES,
            "none is early"
        );
        for _ in 0..300 {
            put(&node, "beside", LeaseId(0)).await.unwrap();
            sleep(Duration::from_millis(10)).await;
        }
        let left = node.leases().await.unwrap();
        assert_eq!(count(&left), LEASES / 2, "the renewed ones are left");
        assert_eq!(left.last(), Some(&LeaseId(LEASES / 2)));
        let keys = RangeQuery {
            key: "k".into(),
            range_end: "l".into(),
            count_only: true,
            ..RangeQuery::default()
        };
        assert_eq!(node.range(keys).await.unwrap().count, LEASES / 2);
    });
}

#[test]
fn a_flood_of_renewals_is_bounded_and_all_are_answered() {
    on_a_node(async |node| {
        let lease = grant(&node, 5).await;
        let mut renewals = tokio::task::JoinSet::new();
        for _ in 0..40_000 {
            let node = node.clone();
            renewals.spawn(async move { node.keep_alive(lease).await });
        }
        let (mut renewed, mut pushed_back) = (0, 0);
        while let Some(renewal) = renewals.join_next().await {
            match renewal.unwrap() {
                Ok(ttl) => {
                    assert_eq!(ttl, Some(5));
                    renewed += 1;
                }
                Err(RequestError::TooManyRequests) => pushed_back += 1,
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(renewed + pushed_back, 40_000);
        assert!(renewed >= 10_000, "{renewed}");
        assert_eq!(node.keep_alive(lease).await.unwrap(), Some(5));
    });
}

#[test]
fn a_lock_goes_from_one_lease_to_the_next_in_order() {
    on_a_node(async |node| {
        let leases = [
            grant(&node, 60).await,
            grant(&node, 60).await,
            grant(&node, 60).await,
        ];
        let first = lock::lock(&node, "L".into(), leases[0]).await.unwrap();
        assert_eq!(first.key, format!("L/{:x}", leases[0].0));
        let again = lock::lock(&node, "L".into(), leases[0]).await.unwrap();
        assert_eq!(
            (again.key, again.created),
            (first.key.clone(), first.created)
        );
        let waiting = |lease| {
            let node = node.clone();
            tokio::spawn(async move { lock::lock(&node, "L".into(), lease).await })
        };
        let second = waiting(leases[1]);
        secs(1).await;
        let third = waiting(leases[2]);
        secs(1).await;
        assert!(!second.is_finished() && !third.is_finished());
        lock::unlock(&node, first.key).await.unwrap();
        let second = second.await.unwrap().unwrap();
        assert!(
            second.created > first.created,
            "a later holder has a greater number"
        );
        secs(1).await;
        assert!(!third.is_finished());
        node.revoke_lease(leases[1]).await.unwrap();
        let third = third.await.unwrap().unwrap();
        assert!(third.created > second.created);
    });
}

#[test]
fn a_lock_passes_on_when_its_holders_lease_runs_out() {
    on_a_node(async |node| {
        let (short, long) = (grant(&node, 3).await, grant(&node, 60).await);
        lock::lock(&node, "L".into(), short).await.unwrap();
        let began = Instant::now();
        lock::lock(&node, "L".into(), long).await.unwrap();
        let waited = began.elapsed();
        assert!(waited > Duration::from_millis(2_900), "{waited:?}");
        assert!(waited < Duration::from_secs(3) + LATE, "{waited:?}");
    });
}

#[test]
fn who_stops_waiting_leaves_the_line() {
    on_a_node(async |node| {
        let (holder, waiter) = (grant(&node, 60).await, grant(&node, 60).await);
        lock::lock(&node, "L".into(), holder).await.unwrap();
        let waiting = lock::lock(&node, "L".into(), waiter);
        assert!(timeout(Duration::from_secs(2), waiting).await.is_err());
        secs(1).await;
        assert_eq!(get(&node, &format!("L/{:x}", waiter.0)).await, None);
        // A lease that the lock service granted is revoked together with the place in the queue.
        let waiting = lock::lock(&node, "L".into(), LeaseId(0));
        assert!(timeout(Duration::from_secs(2), waiting).await.is_err());
        secs(1).await;
        assert_eq!(node.leases().await.unwrap().len(), 2);
    });
}

#[test]
fn a_waiter_whose_lease_ends_is_told_so() {
    on_a_node(async |node| {
        let (holder, waiter) = (grant(&node, 60).await, grant(&node, 3).await);
        lock::lock(&node, "L".into(), holder).await.unwrap();
        let refused = lock::lock(&node, "L".into(), waiter).await.unwrap_err();
        assert!(matches!(refused, LockError::SessionExpired), "{refused}");
        let refused = lock::lock(&node, "L".into(), LeaseId(404))
            .await
            .unwrap_err();
        let unknown = RequestError::Kv(KvError::LeaseNotFound(LeaseId(404)));
        assert_eq!(refused.to_string(), unknown.to_string());
        let empty = lock::lock(&node, "".into(), holder).await.unwrap();
        assert_eq!(empty.key, format!("/{:x}", holder.0));
        let refused = lock::unlock(&node, "".into()).await.unwrap_err();
        assert_eq!(refused.to_string(), KvError::EmptyKey.to_string());
    });
}

#[test]
fn an_observer_sees_every_leader_and_every_value_in_order() {
    on_a_node(async |node| {
        let name = || "E".into();
        let refused = election::leader(&node, b"E").await.unwrap_err();
        assert!(matches!(refused, ElectionError::NoLeader), "{refused}");
        let mut observer = election::observe(&node, name()).await.unwrap();
        let (one, two) = (grant(&node, 60).await, grant(&node, 60).await);
        let (first, _) = election::campaign(&node, name(), one, "1a".into())
            .await
            .unwrap();
        let leader = election::leader(&node, b"E").await.unwrap();
        assert_eq!(
            (leader.kv.key, leader.kv.value),
            (first.key.clone(), "1a".into())
        );
        let mut seen = vec![observer.next().await.unwrap().kv.value];
        for value in ["1b", "1c", "1d"] {
            election::proclaim(&node, &first, value.into())
                .await
                .unwrap();
        }
        let campaign = {
            let node = node.clone();
            tokio::spawn(
                async move { election::campaign(&node, "E".into(), two, "2a".into()).await },
            )
        };
        secs(1).await;
        assert!(!campaign.is_finished());
        election::resign(&node, &first).await.unwrap();
        election::resign(&node, &first).await.unwrap();
        let (second, _) = campaign.await.unwrap().unwrap();
        let refused = election::proclaim(&node, &first, "1e".into()).await;
        assert!(
            matches!(refused, Err(ElectionError::NotLeader)),
            "{refused:?}"
        );
        // It is in the queue already, with another value, which is replaced.
        election::campaign(&node, name(), two, "2b".into())
            .await
            .unwrap();
        assert!(second.created > first.created);
        for _ in 0..5 {
            seen.push(observer.next().await.unwrap().kv.value);
        }
        assert_eq!(seen, ["1a", "1b", "1c", "1d", "2a", "2b"]);
        node.revoke_lease(two).await.unwrap();
        let nobody = timeout(Duration::from_secs(5), observer.next()).await;
        assert!(nobody.is_err(), "{nobody:?}");
    });
}
