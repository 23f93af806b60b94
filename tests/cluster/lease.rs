//! Leases on a cluster: any member serves them, and they outlive the leader that counts them down.

use crate::{
    clients::{Clients, PATIENCE},
    ctl::{etcdctl, leader, statuses},
    support::Cluster,
};
use quorate::internals::clock;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Code;

fn all(cluster: &Cluster) -> Vec<Clients> {
    cluster.ports().into_iter().map(Clients::of).collect()
}

/// Repeats a call until it succeeds.
async fn eventually<T, E: std::fmt::Debug>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let start = clock::now();
    loop {
        match call().await {
            Ok(done) => return done,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{what}: {error:?}"),
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn any_member_grants_renews_tells_lists_and_revokes() {
    let cluster = Cluster::start(3).await;
    let members = all(&cluster);
    for (n, member) in members.iter().enumerate() {
        let (next, last) = (&members[(n + 1) % 3], &members[(n + 2) % 3]);
        let id = 0xabc + i64::try_from(n).expect("small");
        assert_eq!(member.grant(id, 600).await, id);
        // Each of them sees at once what another has acknowledged.
        let key = format!("leased{n}");
        next.put(&key, id).await.expect("the lease is known");
        for asked in &members {
            let time = asked.time_to_live(id).await.expect("an answer");
            assert_eq!(
                (time.granted_ttl, time.keys),
                (600, vec![key.clone().into()])
            );
            assert!((590..=600).contains(&time.ttl), "{}", time.ttl);
            assert_eq!(asked.renew(id).await.expect("an answer"), 600);
        }
        let start = clock::now();
        while last.list().await != [id] {
            assert!(
                start.elapsed() < PATIENCE,
                "a list is what a member has applied"
            );
        }
        let taken = quorate::internals::api::proto::etcdserverpb::LeaseGrantRequest { ttl: 9, id };
        let taken = last.leases.clone().lease_grant(taken).await.unwrap_err();
        let expected = (Code::FailedPrecondition, "etcdserver: lease already exists");
        assert_eq!((taken.code(), taken.message()), expected);
        last.revoke(id).await.expect("it is there");
        for asked in &members {
            assert_eq!(asked.keys("leased").await, [""; 0], "the key went with it");
            assert_eq!(asked.renew(id).await.expect("an answer"), 0);
            assert_eq!(asked.time_to_live(id).await.expect("an answer").ttl, -1);
            let gone = asked.revoke(id).await.unwrap_err();
            let expected = (Code::NotFound, "etcdserver: requested lease not found");
            assert_eq!((gone.code(), gone.message()), expected);
        }
    }
}

#[tokio::test]
async fn a_flood_of_renewals_at_a_follower_is_answered_in_order() {
    const RENEWALS: i64 = 5_000;
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let follower = Clients::of(ports[(leader(&ports).await + 1) % 3]);
    for id in 1..=9 {
        follower.grant(id, 60 + id).await;
    }
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut renewals = follower.renewals().await.expect("a stream");
        streams.push(tokio::spawn(async move {
            // The stream's window bounds a flood: a client that never read would block here.
            let (mut sent, mut answered) = (0, 0);
            while answered < RENEWALS {
                while sent < RENEWALS && sent < answered + 100 {
                    renewals.send(sent % 11).await;
                    sent += 1;
                }
                let answer = renewals.next().await.expect("an answer");
                let id = answered % 11;
                let ttl = if (1..=9).contains(&id) { 60 + id } else { 0 };
                assert_eq!((answer.id, answer.ttl), (id, ttl));
                answered += 1;
            }
        }));
    }
    for stream in streams {
        stream.await.expect("all were answered");
    }
}

#[tokio::test]
async fn a_new_leader_neither_resets_nor_shortens_what_is_left() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let first = leader(&ports).await;
    let alive: Vec<u16> = ports
        .iter()
        .copied()
        .filter(|port| *port != ports[first])
        .collect();
    let members: Vec<Clients> = alive.iter().copied().map(Clients::of).collect();
    let granted = clock::now();
    let [left, renewed] = [
        members[0].grant(1, 600).await,
        members[0].grant(2, 600).await,
    ];
    let confirmed = clock::now();
    sleep(Duration::from_secs(10)).await;
    let asked = clock::now();
    assert_eq!(members[1].renew(renewed).await.expect("an answer"), 600);
    cluster.members[first].kill().await;
    leader(&alive).await;
    for member in &members {
        let time = eventually("a new leader counts", async || {
            member.time_to_live(left).await
        })
        .await;
        let since = i64::try_from(granted.elapsed().as_secs()).expect("small");
        // Ten seconds have passed, and each member has counted them down, beginning a little after the leader.
        let most =
            600 - i64::try_from(asked.duration_since(confirmed).as_secs()).expect("small") + 2;
        assert!(
            time.ttl >= 600 - since - 1,
            "shortened: {} after {since} s",
            time.ttl
        );
        assert!(
            time.ttl <= most,
            "reset: {} where {most} are left",
            time.ttl
        );
        let time = eventually("the other one", async || member.time_to_live(renewed).await).await;
        let since = i64::try_from(asked.elapsed().as_secs()).expect("small");
        assert!(
            time.ttl >= 600 - since - 1,
            "shortened: {} after {since} s",
            time.ttl
        );
    }
}

/// The leader is frozen for longer than a lease lives, while the lease is renewed at its successor; when it wakes up, its own
/// countdown says that the lease has ended.
#[tokio::test]
async fn a_deposed_leader_that_wakes_up_ends_no_live_lease() {
    const ROUNDS_MAX: u32 = 9;
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let (mut round, mut asserted) = (0, 0);
    while round < 3 || asserted == 0 {
        assert!(round < ROUNDS_MAX, "the machine is too slow to show this");
        round += 1;
        let old = leader(&ports).await;
        let alive = [ports[(old + 1) % 3], ports[(old + 2) % 3]];
        let member = Clients::of(alive[0]);
        let (id, key) = (member.grant(0, 4).await, format!("round{round}"));
        let created = member.put(&key, id).await.expect("a put");
        cluster.members[old].freeze();
        leader(&alive).await;
        let frozen = clock::now();
        let mut promised = frozen;
        let mut thawed = false;
        // Renewed all the time, for ten seconds of which the old leader sleeps six.
        while frozen.elapsed() < Duration::from_secs(10) {
            let asked = clock::now();
            let ttl = eventually("the successor renews", async || member.renew(id).await).await;
            if ttl == 0 {
                assert!(
                    promised < clock::now(),
                    "it ended in spite of a promise, round {round}"
                );
                break; // A machine this slow shows nothing.
            }
            promised = asked + Duration::from_secs(ttl.unsigned_abs());
            if !thawed && frozen.elapsed() > Duration::from_secs(6) {
                cluster.members[old].thaw();
                thawed = true;
            }
            sleep(Duration::from_millis(200)).await;
        }
        if !thawed {
            cluster.members[old].thaw();
            continue;
        }
        let range = quorate::internals::api::proto::etcdserverpb::RangeRequest {
            key: key.into(),
            ..Default::default()
        };
        let found = member
            .kv
            .clone()
            .range(range)
            .await
            .expect("a range")
            .into_inner();
        if promised > clock::now() {
            assert_eq!(
                found.kvs.first().map(|kv| kv.create_revision),
                Some(created)
            );
            asserted += 1;
        }
        leader(&ports).await;
    }
}

/// Renewals sent just when the time is up: either the lease lives on for all of its time, or the client learns that it is gone.
#[tokio::test]
async fn a_renewal_that_crosses_its_expiry_is_kept_or_refused() {
    const LEASES: u64 = 60;
    let cluster = Cluster::start(3).await;
    let members = all(&cluster);
    let mut races = Vec::new();
    for n in 0..LEASES {
        let member = members[usize::try_from(n).expect("small") % 3].clone();
        races.push(tokio::spawn(async move {
            let (key, id) = (format!("race/{n:02}"), member.grant(0, 2).await);
            let granted = Instant::now();
            if member.put(&key, id).await.is_err() {
                return None; // Its two seconds were over already.
            }
            sleep_until(granted + Duration::from_millis(1_800 + n * 15)).await;
            let asked = Instant::now();
            let ttl = member.renew(id).await.expect("an answer");
            if ttl == 0 {
                assert_eq!(
                    member.keys(&key).await,
                    [""; 0],
                    "the answer comes once it is true"
                );
                return Some(false);
            }
            // Read shortly before the time to live ends, unless this test itself is late.
            let until = asked + Duration::from_secs(ttl.unsigned_abs());
            sleep_until(until - Duration::from_millis(500)).await;
            let found = member.keys(&key).await;
            if Instant::now() < until {
                assert_eq!(found, [key], "promised for {ttl} s");
            }
            Some(true)
        }));
    }
    let mut kept = 0;
    for race in races {
        kept += usize::from(race.await.expect("no race was lost") == Some(true));
    }
    let start = clock::now();
    while !members[0].list().await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "all of them end");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(kept > 0, "some were renewed in time");
}

#[tokio::test]
async fn without_a_quorum_a_member_says_what_etcd_says() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let member = Clients::of(ports[0]);
    member.grant(7, 600).await;
    let start = clock::now();
    while member.list().await != [7] {
        assert!(start.elapsed() < PATIENCE, "it is applied here");
    }
    cluster.members[1].kill().await;
    cluster.members[2].kill().await;
    let alone = &ports[..1];
    while statuses(alone).await[0]["leader"].as_u64().unwrap_or(0) != 0 {
        assert!(
            start.elapsed() < PATIENCE,
            "a leader without a quorum steps down"
        );
        sleep(Duration::from_millis(100)).await;
    }
    let expected = (Code::Unavailable, "etcdserver: no leader".to_owned());
    let (renewed, time) = tokio::join!(member.renew(7), member.time_to_live(7));
    let refused = renewed.unwrap_err();
    assert_eq!((refused.code(), refused.message().to_owned()), expected);
    let refused = time.unwrap_err();
    assert_eq!((refused.code(), refused.message().to_owned()), expected);
    assert_eq!(member.list().await, [7], "a member's own list needs nobody");
    cluster.members[1].start();
    leader(&ports[..2]).await;
    let renewed = eventually("a quorum is back", async || member.renew(7).await).await;
    assert_eq!(renewed, 600);
}

#[tokio::test]
async fn etcdctl_keeps_a_lease_alive_at_a_follower() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let follower = &ports[(leader(&ports).await + 1) % 3..][..1];
    let granted = etcdctl(follower, &["lease", "grant", "600"]).await.ok();
    let id = granted
        .split_whitespace()
        .nth(1)
        .expect("lease ID granted …");
    assert_eq!(granted, format!("lease {id} granted with TTL(600s)\n"));
    let listed = crate::ctl::eventually(follower, &["lease", "list"], |text| text.contains(id));
    assert_eq!(listed.await, format!("found 1 leases\n{id}\n"));
    let renewed = etcdctl(follower, &["lease", "keep-alive", "--once", id]).await;
    assert_eq!(
        renewed.ok(),
        format!("lease {id} keepalived with TTL(600)\n")
    );
    etcdctl(follower, &["lease", "revoke", id]).await.ok();
    let gone = etcdctl(follower, &["lease", "timetolive", id]).await.ok();
    assert_eq!(gone, format!("lease {id} already expired\n"));
}
