//! Watches on a cluster: etcd's six promises hold on every member, during faults and across a change of leaders.
//!
//! Each test replays the true history, which is read revision by revision, and compares it event by event.

mod follow;
mod guarantees;
mod members;
mod storm;
mod truth;

use crate::{
    ctl::leader,
    network::{Drops, Network},
    support::Cluster,
};
use bytes::Bytes;
use follow::{Journal, Note, Plan, Stream, modified};
use members::{Members, all_of, delete, put, revision};
use quorate::internals::api::proto::{
    etcdserverpb::{RangeRequest, WatchCreateRequest},
    mvccpb::Event,
};
use std::collections::BTreeSet;
use storm::{StormOutcome, run_storm};
use tonic::Code;
use truth::History;

/// Followers of different ranges, from the past and from now on, with and without earlier states, two at each member.
fn plans() -> Vec<Plan> {
    let ranges = [
        ("\0", "\0"),
        ("a/", "a0"),
        ("b/0", ""),
        ("a/0", "b/2"),
        ("c/", "\0"),
        ("a", "d"),
    ];
    let plan = |(n, (key, end)): (usize, (&'static str, &'static str))| Plan {
        prev_kv: n % 2 == 0,
        start: if n < 4 { 2 } else { 0 },
        ..Plan::of(key, end)
    };
    ranges.into_iter().enumerate().map(plan).collect()
}

/// Asserts that the events which every test needs have occurred, and compares the true history event by event.
fn replay(outcome: &StormOutcome) {
    assert!(outcome.leaders > 0, "the leader changed in the middle");
    let broken = outcome.journals.iter().map(Journal::broken);
    let journals: Vec<String> = outcome.journals.iter().map(Journal::summary).collect();
    assert!(
        broken.sum::<usize>() > 0,
        "no stream ended with its member: {journals:#?}"
    );
    for journal in &outcome.journals {
        guarantees::reliable(journal, &outcome.history);
    }
}

#[tokio::test]
async fn ordered_while_members_and_leaders_come_and_go() {
    let outcome = run_storm(plans()).await;
    replay(&outcome);
    for journal in &outcome.journals {
        guarantees::ordered(journal);
    }
}

#[tokio::test]
async fn unique_however_often_a_client_reconnects() {
    let reconnecting = |(n, plan): (usize, Plan)| Plan {
        reconnect_after: Some(5 + 7 * n),
        ..plan
    };
    let outcome = run_storm(plans().into_iter().enumerate().map(reconnecting).collect()).await;
    replay(&outcome);
    for journal in &outcome.journals {
        assert!(journal.opened().count() > 3, "it reconnected");
        guarantees::unique(journal);
    }
}

#[tokio::test]
async fn reliable_for_slow_readers_among_quick_ones() {
    let slow = plans().into_iter().map(|plan| Plan {
        asleep: true,
        ..plan
    });
    let outcome = run_storm(slow.chain(plans()).collect()).await;
    replay(&outcome);
    // Received events when the store was far ahead of them, or that they are compacted.
    let late = |journal: &&Journal| {
        let late = |note: &Note| match note {
            Note::Events { header, events } => header - modified(&events[events.len() - 1]) > 50,
            Note::Compacted(_) => true,
            Note::Opened { .. } | Note::Progress(_) | Note::Broken => false,
        };
        journal.plan.asleep && journal.notes.iter().any(late)
    };
    let late = outcome.journals.iter().filter(late).count();
    assert!(late > 0, "who sleeps reads history");
    // Those that read received nearly everything; only what a frozen member kept from them may be compacted.
    for journal in &outcome.journals {
        let received = |note: &&Note| matches!(note, Note::Events { .. });
        let received = journal.notes.iter().filter(received).count();
        assert!(journal.plan.asleep || received > 10, "{received} responses");
    }
}

#[tokio::test]
async fn atomic_when_transactions_are_cut_by_reconnects() {
    let reconnecting = |(n, plan): (usize, Plan)| Plan {
        reconnect_after: (n % 2 == 0).then_some(10),
        ..plan
    };
    let outcome = run_storm(plans().into_iter().enumerate().map(reconnecting).collect()).await;
    replay(&outcome);
    let changes = outcome.history.changes.values();
    let several = changes.filter(|changes| changes.len() > 2).count();
    assert!(several > 50, "transactions change several keys");
    for journal in &outcome.journals {
        guarantees::atomic(journal, &outcome.history);
    }
}

#[tokio::test]
async fn resumable_at_the_last_seen_revision_on_another_member() {
    let reconnecting = |(n, plan): (usize, Plan)| Plan {
        reconnect_after: Some(1 + n),
        ..plan
    };
    let outcome = run_storm(plans().into_iter().enumerate().map(reconnecting).collect()).await;
    replay(&outcome);
    for journal in &outcome.journals {
        guarantees::resumable(journal, &outcome.history);
        let members: BTreeSet<usize> = journal.opened().map(|(_, at)| at).collect();
        assert_eq!(members.len(), 3, "it went from member to member");
    }
}

#[tokio::test]
async fn bookmarkable_on_every_member() {
    let asking = |(n, plan): (usize, Plan)| Plan {
        ask_every: 1 + n,
        resume_at_bookmarks: n % 2 == 0,
        ..plan
    };
    let outcome = run_storm(plans().into_iter().enumerate().map(asking).collect()).await;
    replay(&outcome);
    for journal in &outcome.journals {
        guarantees::bookmarkable(journal, &outcome.history);
        guarantees::resumable(journal, &outcome.history);
    }
    let bookmarks: usize = outcome.journals.iter().map(Journal::bookmarks).sum();
    assert!(bookmarks > 20, "{bookmarks} bookmarks");
}

fn everything(start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        prev_kv: true,
        ..WatchCreateRequest::default()
    }
}

/// Takes events through a revision; the changes of a revision stay together.
async fn events_through(stream: &mut Stream, through: i64) -> Vec<Vec<Event>> {
    let mut received: Vec<Vec<Event>> = Vec::new();
    let last =
        |received: &Vec<Vec<Event>>| received.last().map_or(0, |events| modified(&events[0]));
    while last(&received) < through {
        let response = stream.next().await.expect("the stream goes on");
        let revisions = response.events.chunk_by(|a, b| modified(a) == modified(b));
        received.extend(revisions.map(<[Event]>::to_vec));
    }
    received
}

#[tokio::test]
async fn a_follower_tells_what_the_leader_tells() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let mut members = Members::at(&ports, 0);
    for n in 0..20 {
        members
            .txn(all_of(vec![put(format!("k{}", n % 3), "past")]))
            .await;
    }
    let (mut live, mut past) = (Vec::new(), Vec::new());
    for n in 0..3 {
        let there = Members::at(&ports, n);
        let stream = Stream::open(&there, everything(0)).await.expect("a stream");
        // Who has not applied everything yet receives it as it comes.
        live.push((stream, there));
    }
    for n in 0..40 {
        let ops = match n % 4 {
            0 => vec![put("k0", "1"), delete("k1", ""), put("k2", "2")],
            1 => vec![delete("k0", "k3")],
            _ => vec![put(format!("k{}", n % 3), format!("{n}"))],
        };
        members.first = n % 3;
        members.txn(all_of(ops)).await;
        // A linearizable read anywhere, then a bookmark here: it is at or after what was read.
        let read = members.revision().await;
        let (stream, _) = &mut live[n % 3];
        bookmark_from(stream, read).await;
    }
    let end = members.txn(all_of(vec![put("end", "end")])).await;
    let end = revision(end.header.as_ref());
    let mut histories = Vec::new();
    for (n, (live, _)) in live.iter_mut().enumerate() {
        let there = Members::at(&ports, n);
        let mut stream = Stream::open(&there, everything(2)).await.expect("a stream");
        past.push(events_through(&mut stream, end).await);
        let mut history = History::new();
        history.read_on(&mut Members::at(&ports, n)).await;
        histories.push(history.changes);
        let rest = events_through(live, end).await;
        assert_eq!(rest.last().map(|events| modified(&events[0])), Some(end));
    }
    assert_eq!(
        (&past[0], &past[0]),
        (&past[1], &past[2]),
        "the same at every member"
    );
    assert_eq!(
        (&histories[0], &histories[0]),
        (&histories[1], &histories[2])
    );
    for (received, (at, changes)) in past[0].iter().zip(&histories[0]) {
        let places: Vec<(i64, &Bytes)> = received
            .iter()
            .map(|event| (modified(event), &event.kv.as_ref().expect("a key").key))
            .collect();
        let mut sorted = places.clone();
        sorted.sort();
        let owed: Vec<(i64, &Bytes)> = changes.iter().map(|change| (*at, &change.key)).collect();
        assert_eq!(sorted, owed);
    }
}

/// Asks for bookmarks until one is at `read` or later, as a Kubernetes API server does.
async fn bookmark_from(stream: &mut Stream, read: i64) {
    let mut seen = 0;
    loop {
        stream.ask_progress().await;
        // One that is behind says nothing of progress, but then it receives events.
        let response = stream.next().await.expect("the stream goes on");
        let header = revision(response.header.as_ref());
        match response.events.last() {
            Some(event) => seen = modified(event),
            None if header >= read => return,
            None => assert!(header >= seen, "a bookmark behind an event"),
        }
    }
}

#[tokio::test]
async fn a_watch_that_wants_a_leader_ends_without_one() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let first = leader(&ports).await;
    let alone = Members::at(&ports, (first + 1) % 3);
    let mut wants = Stream::open_with(&alone, everything(0), |metadata| {
        metadata.insert("hasleader", "true".parse().expect("ASCII"));
    })
    .await
    .expect("there is a leader");
    let mut stays = Stream::open(&alone, everything(0)).await.expect("a stream");
    Members::at(&ports, 0)
        .txn(all_of(vec![put("k", "1")]))
        .await;
    for stream in [&mut wants, &mut stays] {
        assert_eq!(stream.next().await.expect("an event").events.len(), 1);
    }
    for gone in [first, (first + 2) % 3] {
        cluster.members[gone].kill().await;
    }
    // etcd: no response comes before the end.
    let ended = wants.next().await.expect_err("no leader");
    let wanted = (Code::Unavailable, "etcdserver: no leader");
    assert_eq!((ended.code(), ended.message()), wanted);
    let again = Stream::open_with(&alone, everything(0), |metadata| {
        metadata.insert("hasleader", "true".parse().expect("ASCII"));
    });
    let refused = again.await.err().expect("still no leader");
    assert_eq!((refused.code(), refused.message()), wanted);
    // A stream that did not ask for a leader is still there when there is one again, and has missed nothing.
    cluster.members[first].start();
    let mut members = Members::at(&ports, first);
    members.txn(all_of(vec![put("k", "2")])).await;
    let received = stays.next().await.expect("the stream was not touched");
    assert_eq!(received.events[0].kv.as_ref().expect("a key").value, "2");
}

/// Three members, and the network between them. Clients reach all of them, whatever is cut.
async fn divided() -> Cluster {
    Cluster::start_on(Network::relay(3).await).await
}

/// Cuts every link between one member and the others.
fn cut_off(cluster: &Cluster, member: usize) {
    let others = [(member + 1) % 3, (member + 2) % 3];
    network(cluster).split(&[member], &others);
}

fn network(cluster: &Cluster) -> &Network {
    cluster.network.as_ref().expect("it was given one")
}

/// A client saw revision r at one member and goes on at another one, which is cut off and lags: it receives nothing below.
#[tokio::test]
async fn events_going_back_in_time_after_a_partition() {
    let cluster = divided().await;
    let ports = cluster.ports();
    let first = leader(&ports).await;
    let (near, far) = ((first + 1) % 3, (first + 2) % 3);
    let mut members = Members::at(&[ports[first], ports[near]], 0);
    let open = async |at: usize, start: i64| {
        let there = Members::at(&ports, at);
        let stream = Stream::open(&there, everything(start)).await;
        stream.expect("a stream")
    };
    let mut seen = open(near, 0).await;
    let mut behind = open(far, 0).await;
    let known = revision(behind.created.header.as_ref());
    cut_off(&cluster, far);
    let mut newest = 0;
    for n in 0..50 {
        let done = members.txn(all_of(vec![put("k", format!("{n}"))])).await;
        newest = revision(done.header.as_ref());
    }
    let received = events_through(&mut seen, newest).await;
    assert_eq!(received.len(), 50, "the near member sends everything");
    // The far one has applied nothing of it, says so, and sends nothing of it.
    let mut resumed = open(far, newest + 1).await;
    assert_eq!(revision(resumed.created.header.as_ref()), known);
    resumed.ask_progress().await;
    network(&cluster).heal(Drops::Some);
    let next = members.txn(all_of(vec![put("k", "next")])).await;
    let next = revision(next.header.as_ref());
    let received = events_through(&mut resumed, next).await;
    let revisions: Vec<i64> = received.iter().map(|events| modified(&events[0])).collect();
    assert_eq!(revisions, [next], "the first event after what was seen");
    let received = events_through(&mut behind, next).await;
    let revisions: Vec<i64> = received.iter().map(|events| modified(&events[0])).collect();
    let owed: Vec<i64> = (newest - 49..=next).collect();
    assert_eq!(revisions, owed, "and who stayed there misses nothing");
}

/// A leader is cut off with a write of its own. Its watchers see it only if the others have it.
#[tokio::test]
async fn watchers_of_a_deposed_leader_see_what_was_committed() {
    let cluster = divided().await;
    let ports = cluster.ports();
    let old = leader(&ports).await;
    let there = Members::at(&ports, old);
    let mut watching = Stream::open(&there, everything(0)).await.expect("a stream");
    cut_off(&cluster, old);
    // In the old leader's log alone.
    let lost = tokio::spawn(async move { there.try_txn(all_of(vec![put("k", "lost")])).await });
    let two = [ports[(old + 1) % 3], ports[(old + 2) % 3]];
    leader(&two).await;
    let mut members = Members::at(&two, 0);
    let kept = members.txn(all_of(vec![put("k", "kept")])).await;
    let kept = revision(kept.header.as_ref());
    let refused = lost.await.expect("it ends");
    assert!(refused.is_err(), "nobody confirms it: {refused:?}");
    network(&cluster).heal(Drops::Some);
    let received = events_through(&mut watching, kept).await;
    let get = RangeRequest {
        key: "k".into(),
        ..RangeRequest::default()
    };
    let now = members.range(get).await.kvs.remove(0);
    let event = &received.last().expect("an event")[0];
    assert_eq!(event.kv.as_ref(), Some(&now), "what was committed");
    let mut history = History::new();
    history.read_on(&mut members).await;
    let revisions: Vec<i64> = received.iter().map(|events| modified(&events[0])).collect();
    assert_eq!(
        revisions,
        history.changes.keys().copied().collect::<Vec<i64>>()
    );
}
