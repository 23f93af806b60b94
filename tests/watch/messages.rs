//! Watches as messages to the store: an actor receives one batch after the other, and a program asks for the next.

use super::{all, counts, delete, home, mark, put, range};
use actix::prelude::*;
use quorate::{
    Node,
    internals::{
        actors::{
            store::{CompactHistory, PutKey, Store},
            watch_messages::{Subscribe, Subscription, WatchKeys, WatchNews},
            watch_stream::WatchError,
        },
        kv::watch::{Refusal, WatchSpec},
        types::{RecordKind, Revision},
    },
};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Passes on what it receives; each message takes a permit.
struct Listener {
    passed_on: mpsc::UnboundedSender<WatchNews>,
    permits: Arc<Semaphore>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<WatchNews> for Listener {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, news: WatchNews, _: &mut Self::Context) -> Self::Result {
        let (passed_on, permits) = (self.passed_on.clone(), self.permits.clone());
        let handled = async move {
            permits.acquire().await.unwrap().forget();
            // Nobody waits for it any more when the test ends.
            drop(passed_on.send(news));
        };
        AtomicResponse::new(Box::pin(handled.into_actor(self)))
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Leave;

impl Handler<Leave> for Listener {
    type Result = ();

    fn handle(&mut self, _: Leave, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// A subscriber that may take so many messages, and the receiver of what it passes on.
struct Subscriber {
    store: Addr<Store>,
    listener: Addr<Listener>,
    news: mpsc::UnboundedReceiver<WatchNews>,
    permits: Arc<Semaphore>,
}

impl Subscriber {
    fn start(node: &Node, permits: usize) -> Self {
        let (passed_on, news) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(permits));
        let listener = Listener {
            passed_on,
            permits: permits.clone(),
        };
        Self {
            store: node.store(),
            listener: listener.start(),
            news,
            permits,
        }
    }

    async fn subscribe(&self, spec: WatchSpec) -> Result<Subscription, WatchError> {
        let to = self.listener.clone().recipient();
        self.store.send(Subscribe { spec, to }).await.unwrap()
    }

    /// The revisions of the next events, up to `through`.
    async fn revisions(&mut self, through: Revision) -> Vec<Revision> {
        let mut seen = Vec::new();
        while seen.last() != Some(&through) {
            match self.news.recv().await.unwrap() {
                WatchNews::Batch(batch) => seen.extend(batch.events.iter().map(|e| e.rev.major)),
                WatchNews::Ended(error) => panic!("{error}"),
            }
        }
        seen
    }
}

#[test]
fn a_slow_subscriber_is_told_everything_and_holds_little() {
    System::new().block_on(async {
        let home = home();
        let node = home.start();
        let mut subscriber = Subscriber::start(&node, 1);
        let subscription = subscriber.subscribe(all()).await.unwrap();
        assert_eq!(subscription.created_at, Revision(1));
        let mut last = Revision(0);
        for n in 0..100_u8 {
            let put = PutKey(put("k", vec![n; 64 * 1024]));
            last = subscriber.store.send(put).await.unwrap().unwrap().revision;
        }
        let held = counts(node.requests()).await;
        assert!(held.queued_bytes <= 1024 * 1024 + 128 * 1024, "{held:?}");
        assert_eq!(held.synced, 0, "who does not read falls behind");
        subscriber.permits.add_permits(1_000);
        let seen = subscriber.revisions(last).await;
        let all: Vec<Revision> = (2..=last.0).map(Revision).collect();
        assert_eq!(seen, all, "in order, once");
        node.stop().await;
    });
}

#[test]
fn a_watch_ends_with_its_subscription_or_its_subscriber() {
    System::new().block_on(async {
        let home = home();
        let node = home.start();
        let mut first = Subscriber::start(&node, 1_000);
        let subscription = first.subscribe(all()).await.unwrap();
        let seen = mark(node.requests()).await;
        assert_eq!(first.revisions(seen).await, [seen]);
        drop(subscription);
        while counts(node.requests()).await.watchers > 0 {
            tokio::task::yield_now().await;
        }
        let second = Subscriber::start(&node, 1_000);
        let _subscription = second.subscribe(all()).await.unwrap();
        second.listener.send(Leave).await.unwrap();
        // The next change that is sent to it finds that it is gone.
        while counts(node.requests()).await.watchers > 0 {
            mark(node.requests()).await;
        }
        assert!(first.news.try_recv().is_err(), "nothing after the end");
        node.stop().await;
    });
}

#[test]
fn a_subscriber_receives_why_its_watch_ends() {
    System::new().block_on(async {
        let home = home();
        let node = home.start();
        for _ in 0..3 {
            mark(node.requests()).await;
        }
        let mut subscriber = Subscriber::start(&node, 1_000);
        let refused = subscriber.subscribe(WatchSpec::of(range("b", "a"))).await;
        assert!(
            matches!(refused, Err(WatchError::Refused(Refusal::EmptyRange))),
            "{refused:?}"
        );
        let compact = CompactHistory {
            revision: Revision(4),
            physical: false,
        };
        subscriber.store.send(compact).await.unwrap().unwrap();
        let spec = WatchSpec {
            start: Revision(2),
            ..all()
        };
        let _subscription = subscriber.subscribe(spec).await.unwrap();
        let last = subscriber.news.recv().await.unwrap();
        let ended = WatchError::Compacted {
            oldest: Revision(4),
        };
        match last {
            WatchNews::Ended(error) => assert_eq!(error.to_string(), ended.to_string()),
            WatchNews::Batch(batch) => panic!("{batch:?}"),
        }
        node.stop().await;
    });
}

#[test]
fn a_pulled_watch_gives_whole_revisions() {
    System::new().block_on(async {
        let home = home();
        let node = home.start();
        let store = node.store();
        let spec = WatchSpec {
            prev_kv: true,
            ..all()
        };
        let mut watch = store.send(WatchKeys(spec)).await.unwrap().unwrap();
        for key in ["a", "b"] {
            store.send(PutKey(put(key, "1"))).await.unwrap().unwrap();
        }
        let gone = node
            .requests()
            .delete_range(delete("a", "c"))
            .await
            .unwrap();
        let mut batches = Vec::new();
        for _ in 0..3 {
            batches.push(watch.next().await.unwrap());
        }
        let last = &batches[2];
        assert_eq!((last.revision, last.events.len()), (gone.revision, 2));
        for (event, key) in last.events.iter().zip(["a", "b"]) {
            assert_eq!(
                (event.kind, event.kv.key.as_ref()),
                (RecordKind::Tombstone, key.as_bytes())
            );
            let before = event.prev_kv.as_ref().unwrap();
            assert_eq!(before.value, "1");
        }
        node.stop().await;
        assert!(watch.next().await.is_err(), "a stopped node says so");
    });
}
