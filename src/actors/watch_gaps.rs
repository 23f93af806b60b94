//! Tests: batches that never reached the watch hub. The hub under test reads the views of a whole node beside it, and gets
//! batches from the test alone.

use super::{
    fail_stop::{FailStop, Lifeline},
    held::HeldBytes,
    requests::Requests,
    watch_calls::{OpenStream, StreamRequest, WatchRequest},
    watch_hub::{EventsApplied, WatchHub},
    watch_outbox::WatchOutbox,
};
use crate::{
    Config, LocalNode, clock,
    kv::{
        KeyRange,
        command::Put,
        watch::{Body, History, WatchId, WatchSpec},
    },
    storage::{disk::Disk, sim_disk::SimDisk},
    types::{Record, Revision},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{ops::ControlFlow, sync::Arc, time::Duration};

struct World {
    requests: Requests,
    hub: Addr<WatchHub>,
}

/// Runs a test beside a node, on one thread, whose paused clock advances only when all tasks are idle.
fn beside_a_node(test: impl AsyncFnOnce(World)) {
    let system = clock::paused_system();
    system.block_on(async move {
        let stopped = FailStop::new(|reason| panic!("the member stops: {reason}"));
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new(1));
        let node = LocalNode::start(&Config::default(), &disk, &stopped).unwrap();
        let requests = node.requests().clone();
        // The node leads once it answers.
        let written = put(&requests).await;
        assert_eq!(written, Revision(2), "the first write");
        let life = Lifeline::new("the watch hub under test", stopped.clone());
        let hub = WatchHub::new(
            requests.views(),
            Duration::from_mins(10),
            &HeldBytes::default(),
            life,
        )
        .start();
        test(World { requests, hub }).await;
        node.stop().await;
    });
}

async fn put(requests: &Requests) -> Revision {
    let put = Put {
        key: "k".into(),
        value: "v".into(),
        ..Put::default()
    };
    requests.put(put).await.unwrap().revision
}

impl World {
    /// Sends a revision to the hub, as the applier does.
    async fn publish(&self, revision: Revision) {
        let published = self.requests.views().borrow().clone();
        let mut records = Vec::new();
        let scanned = published
            .view
            .scan(revision, revision, &mut |rev, kind, kv| {
                let kv = Bytes::copy_from_slice(kv);
                records.push(Record { rev, kind, kv });
                ControlFlow::Continue(())
            });
        scanned.unwrap();
        assert_eq!(
            published.view.window.newest, revision,
            "sent as it becomes visible"
        );
        let records = records.into();
        self.hub
            .send(EventsApplied { records, published })
            .await
            .unwrap();
    }

    /// Sends the hub only that there is something new, as the applier does later for a batch that did not fit.
    async fn hint(&self) {
        let published = self.requests.views().borrow().clone();
        let records = Arc::default();
        self.hub
            .send(EventsApplied { records, published })
            .await
            .unwrap();
    }

    async fn watch(&self, spec: WatchSpec) -> Arc<WatchOutbox> {
        let opened = self
            .hub
            .send(OpenStream { holder: None })
            .await
            .unwrap()
            .unwrap();
        let (stream, request) = (opened.outbox.stream(), WatchRequest::Create(spec));
        self.hub
            .send(StreamRequest { stream, request })
            .await
            .unwrap();
        let created = opened.outbox.take().await.unwrap();
        assert_eq!(created.body, Body::Created, "the watch is there");
        opened.outbox
    }
}

/// The revisions of the next events, until one at `through`.
async fn revisions(outbox: &WatchOutbox, through: Revision) -> Vec<Revision> {
    let mut seen = Vec::new();
    while seen.last() != Some(&through) {
        match outbox.take().await.unwrap().body {
            Body::Events { events, .. } => seen.extend(events.iter().map(|event| event.rev.major)),
            other => panic!("{other:?}"),
        }
    }
    seen
}

fn everything() -> WatchSpec {
    WatchSpec::of(KeyRange::all())
}

#[test]
fn a_batch_after_lost_ones_brings_what_they_held() {
    beside_a_node(async |world| {
        let plain = world.watch(everything()).await;
        let with_prev = world
            .watch(WatchSpec {
                prev_kv: true,
                ..everything()
            })
            .await;
        let future = world
            .watch(WatchSpec {
                start: Revision(5),
                ..everything()
            })
            .await;
        let revision = put(&world.requests).await;
        world.publish(revision).await;
        for _ in 0..2 {
            put(&world.requests).await;
        }
        let last = put(&world.requests).await;
        assert_eq!(last, Revision(6), "two are lost, this one is not");
        world.publish(last).await;
        let all: Vec<Revision> = (3..=6).map(Revision).collect();
        assert_eq!(revisions(&plain, last).await, all, "from now on");
        assert_eq!(
            revisions(&with_prev, last).await,
            all,
            "with earlier states"
        );
        assert_eq!(
            revisions(&future, last).await,
            all[2..],
            "from the future on"
        );
        let next = put(&world.requests).await;
        world.publish(next).await;
        for outbox in [&plain, &with_prev, &future] {
            assert_eq!(revisions(outbox, next).await, [next], "synced again");
        }
    });
}

#[test]
fn lost_batches_without_a_later_one_are_found_by_the_hint() {
    beside_a_node(async |world| {
        let outbox = world.watch(everything()).await;
        for _ in 0..3 {
            put(&world.requests).await;
        }
        assert!(outbox.try_take().is_err(), "nothing was sent to it");
        world.hint().await;
        let all: Vec<Revision> = (3..=5).map(Revision).collect();
        assert_eq!(
            revisions(&outbox, Revision(5)).await,
            all,
            "all that was lost"
        );
        // Once more, with nothing new.
        world.hint().await;
        assert!(outbox.try_take().is_err(), "nothing twice");
    });
}

#[test]
fn a_request_waits_for_the_batch_of_what_its_client_could_read() {
    beside_a_node(async |world| {
        let outbox = world.watch(everything()).await;
        let revision = put(&world.requests).await;
        let (stream, request) = (outbox.stream(), WatchRequest::Progress);
        let asking = world.hub.send(StreamRequest { stream, request });
        let asking = actix::spawn(asking);
        tokio::task::yield_now().await;
        assert!(
            outbox.try_take().is_err(),
            "no bookmark behind what was read"
        );
        world.hint().await;
        asking.await.unwrap().unwrap();
        assert_eq!(revisions(&outbox, revision).await, [revision]);
        // The watch was behind when progress was asked for: that is not answered. Now it is.
        let request = WatchRequest::Progress;
        world
            .hub
            .send(StreamRequest { stream, request })
            .await
            .unwrap();
        let response = outbox.take().await.unwrap();
        assert_eq!(
            (response.watch, response.revision, response.body),
            (WatchId::NONE, revision, Body::Progress)
        );
    });
}
