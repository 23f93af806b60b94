//! Watches as messages to the [`Store`]: for actors that react to changes, and for programs that pull them.
//!
//! Both give a watch's guarantees: every change of the range from the spec's start on, in order, once, whole revisions in one
//! batch. Both apply backpressure: a watch that is not read
//! takes no memory, it reads history later.

use super::{
    store::Store,
    watch_stream::{EventBatch, Watch, WatchError},
};
use crate::{kv::watch::WatchSpec, types::Revision};
use actix::prelude::*;
use tokio::sync::oneshot;

/// Watches a range of keys. Answered once the watch exists, with the stream of its batches: [`Watch::next`] gives them one by
/// one, and dropping it ends the watch.
#[derive(Clone, Debug, Message)]
#[rtype(result = "Result<Watch, WatchError>")]
pub struct WatchKeys(pub WatchSpec);

/// Watches a range of keys on behalf of an actor, which is sent [`WatchNews`]: the next ones once it has handled the last.
/// Answered once the watch exists.
#[derive(Debug, Message)]
#[rtype(result = "Result<Subscription, WatchError>")]
pub struct Subscribe {
    pub spec: WatchSpec,
    pub to: Recipient<WatchNews>,
}

/// What a subscriber is sent. [`WatchNews::Ended`] is the last; it does not come after the subscription was dropped.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub enum WatchNews {
    /// Changes of whole revisions; or, without events, the revision up to which the watch has seen everything.
    Batch(EventBatch),
    /// Nothing more comes, for this reason.
    Ended(WatchError),
}

/// A subscription: dropping it ends the watch. A batch that is being sent still arrives.
#[derive(Debug)]
pub struct Subscription {
    /// The member's revision when the watch was created. Without a start of its own it sees what comes after.
    pub created_at: Revision,
    _ends_when_dropped: oneshot::Sender<()>,
}

impl Handler<WatchKeys> for Store {
    type Result = ResponseFuture<Result<Watch, WatchError>>;

    fn handle(&mut self, WatchKeys(spec): WatchKeys, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move { requests.watch(spec).await })
    }
}

impl Handler<Subscribe> for Store {
    type Result = ResponseFuture<Result<Subscription, WatchError>>;

    fn handle(&mut self, Subscribe { spec, to }: Subscribe, _: &mut Self::Context) -> Self::Result {
        let requests = self.requests();
        Box::pin(async move {
            let watch = requests.watch(spec).await?;
            let created_at = watch.created_at();
            let (held, dropped) = oneshot::channel();
            actix::spawn(send_news(watch, to, dropped));
            Ok(Subscription {
                created_at,
                _ends_when_dropped: held,
            })
        })
    }
}

/// Sends a subscriber one message after the other, until it is gone or its subscription is dropped.
async fn send_news(mut watch: Watch, to: Recipient<WatchNews>, mut dropped: oneshot::Receiver<()>) {
    loop {
        let news = tokio::select! {
            biased;
            _ = &mut dropped => return,
            batch = watch.next() => batch.map_or_else(WatchNews::Ended, WatchNews::Batch),
        };
        let last = matches!(news, WatchNews::Ended(_));
        // This waits until the subscriber has handled it: a slow subscriber slows its watch down.
        let handled = to.send(news).await;
        if last || handled.is_err() {
            return;
        }
    }
}
