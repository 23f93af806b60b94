//! Many leases and their expiry: thousands of leases of 5 to 10 s, half of them renewed, across the death of the leader. None may
//! end before the time that its client got; all that are not renewed must end.
//!
//! `QUORATE_LEASES` says how many (50,000 for the figures in `docs/leases.md`). How late leases end is printed, and held to a
//! bound that a busy machine keeps as well.

use crate::{
    clients::{Clients, Renewals},
    ctl::leader,
    support::Cluster,
};
use quorate::internals::{
    api::proto::{etcdserverpb as pb, mvccpb},
    clock,
};
use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tonic::{Status, codegen::tokio_stream::StreamExt as _};

const LEASES: usize = 5_000;
/// Requests in flight while leases are granted, and streams of renewals.
const GRANTERS: usize = 64;
const STREAMS: usize = 16;
/// Connections to each member.
const CONNECTIONS: usize = 4;
/// A lease that is not renewed ends at most this long after its time, or after the leader's death.
const GONE_MAX: Duration = Duration::from_mins(1);
/// How long the renewed ones are watched after the death of the leader.
const WATCHED: Duration = Duration::from_secs(15);

/// What a client knows of its lease.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// It lives until then, by the answers to the client.
    promised: Option<Instant>,
    /// When a watcher saw its key go.
    gone: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Book(Arc<Mutex<Vec<Known>>>);

impl Book {
    fn with<T>(&self, id: usize, read: impl FnOnce(&mut Known) -> T) -> T {
        read(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner)[id])
    }

    fn all(&self) -> Vec<Known> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// From 5 to 10 seconds.
fn ttl_secs(id: usize) -> u64 {
    5 + id as u64 % 6
}

/// Every second lease of each time to live is renewed.
fn is_renewed(id: usize) -> bool {
    (id / 6).is_multiple_of(2)
}

/// Whether a call need not be repeated: a busy member refuses some, and the lease of a put may have ended already.
async fn is_over<T>(outcome: Result<T, Status>) -> bool {
    match outcome {
        Ok(_) => true,
        Err(status) if status.message().contains("lease not found") => true,
        Err(status) => {
            let busy = status.message().contains("too many requests");
            assert!(busy, "{status}");
            sleep(Duration::from_millis(20)).await;
            false
        }
    }
}

async fn grant_all(member: Clients, ids: Vec<usize>, book: Book) {
    for id in ids {
        let (lease, ttl) = (i64::try_from(id).expect("small") + 1, ttl_secs(id));
        let grant = pb::LeaseGrantRequest {
            ttl: ttl.cast_signed(),
            id: lease,
        };
        loop {
            let asked = clock::now();
            if is_over(member.leases.clone().lease_grant(grant).await).await {
                let promised = asked + Duration::from_secs(ttl);
                book.with(id, |known| known.promised = Some(promised));
                break;
            }
        }
        let key = format!("lease/{id}");
        while !is_over(member.put(&key, lease).await).await {}
    }
}

/// Notes when each key goes.
async fn watch(member: Clients, book: Book) {
    let create = pb::WatchCreateRequest {
        key: "lease/".into(),
        range_end: "lease0".into(),
        start_revision: 1,
        filters: vec![pb::watch_create_request::FilterType::Noput.into()],
        ..pb::WatchCreateRequest::default()
    };
    let create = pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
    };
    // A request and then silence; an end would end the watch.
    let requests = tokio_stream::once(create).chain(tokio_stream::pending());
    let mut watch = member.watch.clone().max_decoding_message_size(usize::MAX);
    let mut events = watch.watch(requests).await.expect("a stream").into_inner();
    while let Some(response) = events.next().await {
        let seen = clock::now();
        for event in response.expect("the member lives").events {
            let kind = event.r#type();
            assert_eq!(kind, mvccpb::event::EventType::Delete, "puts are filtered");
            let key = event.kv.expect("an event has a key").key;
            let id = std::str::from_utf8(&key[6..])
                .ok()
                .and_then(|id| id.parse().ok());
            book.with(id.expect("one of ours"), |known| known.gone = Some(seen));
        }
    }
}

/// Renews its share of leases every third of their time, over a stream that it opens again when it breaks.
async fn renew(members: [Clients; 2], ids: Vec<usize>, book: Book) {
    let mut due: Vec<(Instant, usize)> = ids.into_iter().map(|id| (clock::now(), id)).collect();
    for turn in 0.. {
        let member = &members[turn % 2];
        let Ok(mut renewals) = member.renewals().await else {
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        while round(&mut renewals, &mut due, &book).await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Renews those that are due.
async fn round(
    renewals: &mut Renewals,
    due: &mut [(Instant, usize)],
    book: &Book,
) -> Result<(), Status> {
    let now = clock::now();
    for some in due.chunks_mut(100) {
        let mut asked = Vec::new();
        for (at, id) in some.iter_mut().filter(|(at, _)| *at <= now) {
            let known = book.with(*id, |known| *known);
            if known.promised.is_none() || known.gone.is_some() {
                continue; // not granted yet, or lost: that is counted elsewhere
            }
            renewals.send(i64::try_from(*id).expect("small") + 1).await;
            asked.push((clock::now(), *id));
            *at = clock::now() + Duration::from_secs(ttl_secs(*id)) / 3;
        }
        for (asked, id) in asked {
            // A stream over a loaded machine may be slow; one that says nothing for this long is broken.
            let answer = timeout(GONE_MAX, renewals.answers.next()).await;
            let answer = answer.map_err(|_| Status::unavailable("silence"))?;
            let answer = answer.ok_or_else(|| Status::unavailable("ended"))??;
            let lease = i64::try_from(id).expect("small") + 1;
            assert_eq!(answer.id, lease, "answers come in order");
            if answer.ttl > 0 {
                let promised = asked + Duration::from_secs(answer.ttl.unsigned_abs());
                book.with(id, |known| {
                    known.promised = known.promised.max(Some(promised));
                });
            }
        }
    }
    Ok(())
}

/// How late each lease ended that was not renewed.
fn lateness(what: &str, mut late: Vec<Duration>) -> String {
    late.sort();
    let at =
        |percent: usize| late.get((late.len() * percent / 100).min(late.len().saturating_sub(1)));
    let within = late
        .iter()
        .filter(|late| **late <= Duration::from_secs(2))
        .count();
    format!(
        "{what}: {} leases, median {:?}, p99 {:?}, latest {:?}; {within} within 2 s",
        late.len(),
        at(50).copied().unwrap_or_default(),
        at(99).copied().unwrap_or_default(),
        late.last().copied().unwrap_or_default(),
    )
}

/// How many leases are not renewed, and of how many of these a watcher saw the key go.
fn seen_to_end(known: &[Known]) -> (usize, usize) {
    let ends = || (0..known.len()).filter(|id| !is_renewed(*id));
    let seen = ends().filter(|id| known[*id].gone.is_some());
    (ends().count(), seen.count())
}

#[expect(clippy::print_stderr, reason = "figures for whoever runs it by hand")]
fn report(known: &[Known], killed: Instant) {
    let (mut before, mut after, mut lost) = (Vec::new(), Vec::new(), 0);
    for (id, known) in known.iter().enumerate() {
        let (Some(promised), Some(gone)) = (known.promised, known.gone) else {
            continue;
        };
        if is_renewed(id) {
            lost += 1;
        } else if promised + Duration::from_secs(2) < killed {
            before.push(gone - promised);
        } else {
            after.push(gone - promised);
        }
    }
    eprintln!(
        "{}",
        lateness("due before the leader died, after their time", before)
    );
    eprintln!("{}", lateness("due later, after their time", after));
    eprintln!("renewed, and lost since the machine was too slow to renew them: {lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_lease_ends_early_and_none_stays_though_the_leader_dies() {
    let leases = env::var("QUORATE_LEASES").map_or(LEASES, |count| {
        count.parse().expect("QUORATE_LEASES is a number")
    });
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let leads = leader(&ports).await;
    let alive = [ports[(leads + 1) % 3], ports[(leads + 2) % 3]];
    let members: Vec<[Clients; 2]> = (0..CONNECTIONS).map(|_| alive.map(Clients::of)).collect();
    let book = Book(Arc::new(Mutex::new(vec![Known::default(); leases])));
    let mut background = JoinSet::new();
    let watching = background.spawn(watch(members[0][0].clone(), book.clone()));
    let share = |of: usize, nth: usize, all: bool| -> Vec<usize> {
        let ids = (nth..leases).step_by(of);
        ids.filter(|id| all || is_renewed(*id)).collect()
    };
    for nth in 0..STREAMS {
        let members = members[nth % CONNECTIONS].clone();
        background.spawn(renew(members, share(STREAMS, nth, false), book.clone()));
    }
    let mut granting = JoinSet::new();
    for nth in 0..GRANTERS {
        let member = members[nth % CONNECTIONS][nth / CONNECTIONS % 2].clone();
        granting.spawn(grant_all(member, share(GRANTERS, nth, true), book.clone()));
    }
    while let Some(granted) = granting.join_next().await {
        granted.expect("all are granted");
    }
    sleep(Duration::from_secs(2)).await;
    cluster.members[leads].kill().await;
    let killed = clock::now();
    sleep(WATCHED).await;
    loop {
        let known = book.all();
        let left: Vec<usize> = (0..leases)
            .filter(|id| !is_renewed(*id) && known[*id].gone.is_none())
            .collect();
        // Its key may not have been put before the lease ended.
        let listed = members[0][1].list().await;
        let there = |id: &usize| listed.contains(&(i64::try_from(*id).expect("small") + 1));
        let left = left.iter().filter(|id| there(id)).count();
        assert!(!watching.is_finished(), "the watch goes on");
        let (ends, seen) = seen_to_end(&known);
        if left == 0 && 2 * seen >= ends {
            break;
        }
        assert!(
            killed.elapsed() < GONE_MAX,
            "{left} leases never end; the watch saw {seen} of {ends} end"
        );
        sleep(Duration::from_millis(500)).await;
    }
    let known = book.all();
    report(&known, killed);
    for (id, known) in known.iter().enumerate() {
        let early = known
            .promised
            .zip(known.gone)
            .filter(|(promised, gone)| gone < promised);
        assert_eq!(early, None, "lease {id} ended before its time");
    }
    let renewed = (0..leases).filter(|id| is_renewed(*id) && known[*id].gone.is_none());
    assert!(renewed.count() > 0, "renewed leases live on");
    background.shutdown().await;
}
