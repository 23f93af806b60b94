//! Many streams, some of them never read: the memory they hold is bounded, and the others are not delayed.

use super::{all, counts, home, put};
use quorate::internals::{
    Inspect,
    actors::{
        requests::RequestError,
        watch_calls::WatchRequest,
        watch_stream::{Watch, WatchStream},
    },
    clock,
    kv::watch::Body,
    types::Revision,
};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_share_a_bound() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    // Together their queues would hold more than all streams may.
    let mut unread = Vec::new();
    for _ in 0..300 {
        unread.push(requests.watch(all()).await.unwrap());
    }
    let mut last = Revision(0);
    for n in 0..40_u8 {
        last = requests
            .put(put("k", vec![n; 64 * 1024]))
            .await
            .unwrap()
            .revision;
        // The hub answers after it has taken the event.
        let held = counts(requests).await;
        assert!(held.queued_bytes <= 256 * MIB + 65 * 1024, "{held:?}");
    }
    // Room for one stream whose queue is empty is always there.
    let mut late = requests.watch(all()).await.unwrap();
    let next = requests.put(put("k", "next")).await.unwrap().revision;
    assert_eq!(late.next().await.unwrap().events[0].rev.major, next);
    for watch in unread.iter_mut().step_by(50) {
        assert_eq!(
            revisions(watch, next).await,
            2..=last.next().0,
            "nothing is lost"
        );
    }
    node.stop().await;
}

/// The revisions of a watch up to `through`, which must follow each other.
async fn revisions(watch: &mut Watch, through: Revision) -> std::ops::RangeInclusive<i64> {
    let (mut first, mut seen) = (None, Revision(0));
    while seen < through {
        for event in watch.next().await.unwrap().events {
            let revision = event.rev.major;
            first.get_or_insert(revision.0);
            assert!(
                seen == Revision(0) || revision == seen.next(),
                "{seen}, {revision}"
            );
            seen = revision;
        }
    }
    first.unwrap()..=seen.0
}

/// How long each event takes to all of the streams, sorted.
async fn latencies(node: &quorate::Node, streams: &mut [Watch], puts: usize) -> Vec<Duration> {
    let mut taken = Vec::with_capacity(puts * streams.len());
    for n in 0..puts {
        let sent = clock::now();
        let done = node
            .requests()
            .put(put("k", vec![0; 16 * 1024]))
            .await
            .unwrap();
        for watch in &mut *streams {
            let batch = watch.next().await.unwrap();
            let at: Vec<Revision> = batch.events.iter().map(|event| event.rev.major).collect();
            assert_eq!(at, [done.revision], "put {n}");
            taken.push(sent.elapsed());
        }
    }
    taken.sort_unstable();
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_client_beside_999_healthy_ones() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let mut healthy = Vec::new();
    for _ in 0..999 {
        healthy.push(requests.watch(all()).await.unwrap());
    }
    let p99 = |taken: &[Duration]| taken[taken.len() * 99 / 100];
    let alone = p99(&latencies(&node, &mut healthy, 150).await);
    let mut stalled = requests.watch(all()).await.unwrap();
    let beside = p99(&latencies(&node, &mut healthy, 150).await);
    eprintln!("p99 from put to event: {alone:?} without, {beside:?} beside a stalled client");
    let held = counts(requests).await;
    assert_eq!(
        (held.watchers, held.synced),
        (1_000, 999),
        "one fell behind"
    );
    assert!(held.queued_bytes <= MIB + 17 * 1024, "{held:?}");
    assert!(held.recent_bytes <= 16 * MIB, "{held:?}");
    let end = requests.put(put("k", "end")).await.unwrap().revision;
    assert_eq!(revisions(&mut stalled, end).await, end.0 - 150..=end.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_and_never_reads_is_made_to_wait() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let WatchStream {
        requests: asking,
        mut responses,
    } = requests.watch_stream().await.unwrap();
    // Each answer takes room in the queue, so there is an end to what is taken.
    let flood = tokio::spawn(async move {
        let mut taken = 0_usize;
        while asking.ask(WatchRequest::Create(all())).await.is_ok() {
            taken += 1;
        }
        taken
    });
    let held = loop {
        let held = counts(requests).await;
        if held.queued_bytes >= MIB {
            break held;
        }
        tokio::task::yield_now().await;
    };
    assert!(held.queued_bytes <= MIB + 1024, "{held:?}");
    assert!(held.watchers <= MIB / 128 + 1, "{held:?}");
    assert!(!flood.is_finished(), "it waits");
    for _ in 0..held.watchers {
        assert_eq!(responses.next().await.unwrap().body, Body::Created);
    }
    // It goes on once somebody reads.
    assert_eq!(responses.next().await.unwrap().body, Body::Created);
    drop(responses);
    assert!(
        flood.await.unwrap() >= held.watchers,
        "and ends with its stream"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_a_bound() {
    let home = home();
    let node = home.start();
    let requests = node.requests();
    let mut open = Vec::new();
    let refused = loop {
        match requests.watch_stream().await {
            Ok(stream) => open.push(stream),
            Err(refused) => break refused,
        }
    };
    assert!(
        matches!(refused, RequestError::TooManyRequests),
        "{refused:?}"
    );
    assert_eq!(open.len(), 1 << 16, "as docs/watch.md says");
    open.truncate(1_000);
    // The hub learns of those that left before it answers the next one, or soon.
    while counts(requests).await.streams > 1_000 {
        tokio::task::yield_now().await;
    }
    assert!(requests.watch_stream().await.is_ok(), "there is room again");
    node.stop().await;
}
