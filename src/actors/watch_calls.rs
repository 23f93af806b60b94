//! What front ends ask of the watch hub, below both: the messages, and the hub's address for them.

use super::{request_error::RequestError, watch_outbox::WatchOutbox};
use crate::kv::watch::{HolderId, StreamId, WatchId, WatchSpec};
use actix::prelude::*;
use std::sync::Arc;

/// The watch hub, as front ends know it.
#[derive(Clone, Debug)]
pub struct WatchCalls {
    opens: Recipient<OpenStream>,
    requests: Recipient<StreamRequest>,
    counts: Recipient<CountWatches>,
}

impl WatchCalls {
    /// The address of an actor that takes these messages.
    pub fn of<A>(hub: &Addr<A>) -> Self
    where
        A: Actor<Context = Context<A>>
            + Handler<OpenStream>
            + Handler<StreamRequest>
            + Handler<CountWatches>,
    {
        Self {
            opens: hub.clone().recipient(),
            requests: hub.clone().recipient(),
            counts: hub.clone().recipient(),
        }
    }

    /// Opens a stream of watches for a holder.
    pub(super) async fn open(
        &self,
        holder: Option<HolderId>,
    ) -> Result<StreamOpened, RequestError> {
        let opened = self.opens.send(OpenStream { holder }).await;
        opened.map_err(stopped)?
    }

    /// Returns once the hub has carried out the request.
    pub(super) async fn request(&self, request: StreamRequest) -> Result<(), RequestError> {
        self.requests.send(request).await.map_err(stopped)
    }

    pub async fn count(&self) -> Result<WatchCounts, RequestError> {
        self.counts.send(CountWatches).await.map_err(stopped)
    }
}

fn stopped(_: MailboxError) -> RequestError {
    RequestError::Stopped
}

/// Opens a stream of watches. It ends when the client drops its end of the outbox.
#[derive(Debug, Message)]
#[rtype(result = "Result<StreamOpened, RequestError>")]
pub struct OpenStream {
    /// Whose watchers it has; `None` for this program's own.
    pub(super) holder: Option<HolderId>,
}

/// The client's end of a stream.
#[derive(Debug)]
pub struct StreamOpened {
    pub(super) outbox: Arc<WatchOutbox>,
}

/// A request of a stream. Answered once it is carried out; its outcome goes to the stream.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StreamRequest {
    pub(super) stream: StreamId,
    pub(super) request: WatchRequest,
}

/// What a stream can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchRequest {
    Create(WatchSpec),
    /// The end of a watch.
    Cancel(WatchId),
    /// A request for progress: the revision up to which all watches of the stream have got events.
    Progress,
}

/// Counts, for operators and tests.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "WatchCounts")]
pub struct CountWatches;

/// How much the hub holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, MessageResponse)]
pub struct WatchCounts {
    pub streams: usize,
    pub watchers: usize,
    /// Those that count for the share of a holder.
    pub of_holders: usize,
    /// Watchers that are synced.
    pub synced: usize,
    /// Bytes of recent events.
    pub recent_bytes: usize,
    /// Bytes queued for all streams. Events that several streams wait for count for each.
    pub queued_bytes: usize,
}
