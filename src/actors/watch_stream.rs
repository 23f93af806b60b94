//! Watching: the interface of the watch hub for front ends and embedding programs.
//!
//! A [`WatchStream`] is one stream with any number of watches, in the terms of the client API. A [`Watch`] is a stream with one
//! watch, for programs: it yields the changes of its range, decoded.

use super::{
    request_error::RequestError,
    requests::Requests,
    watch_calls::{StreamOpened, StreamRequest, WatchRequest},
    watch_outbox::WatchOutbox,
};
use crate::{
    auth::AuthError,
    kv::{
        record::{KeyValue, RecordError},
        watch::{Body, Event, HolderId, Refusal, Response, WatchSpec},
    },
    types::{RecordKind, Rev, Revision},
};
use std::sync::Arc;

/// A stream of watches.
#[derive(Debug)]
pub struct WatchStream {
    pub requests: WatchRequests,
    /// Receives responses. Dropping it ends the stream and its watches.
    pub responses: WatchResponses,
}

/// The half of a stream that sends requests. Dropping it ends nothing.
#[derive(Clone, Debug)]
pub struct WatchRequests {
    /// The front end that opened the stream: it knows whether its caller's token is still good.
    front: Requests,
    outbox: Arc<WatchOutbox>,
}

/// The half of a stream that receives responses.
#[derive(Debug)]
pub struct WatchResponses {
    outbox: Arc<WatchOutbox>,
}

impl Requests {
    /// Opens a stream of watches on this member, for the holder of these requests.
    pub(crate) async fn watch_stream(&self) -> Result<WatchStream, RequestError> {
        self.watch_stream_of(self.holder()).await
    }

    /// As [`Requests::watch_stream`]. All streams of a `holder` together have at most its share of the member's watchers.
    pub(crate) async fn watch_stream_of(
        &self,
        holder: Option<HolderId>,
    ) -> Result<WatchStream, RequestError> {
        self.require_same_state()?;
        let StreamOpened { outbox } = self.watch_calls().open(holder).await?;
        let responses = WatchResponses {
            outbox: outbox.clone(),
        };
        Ok(WatchStream {
            requests: WatchRequests {
                front: self.clone(),
                outbox,
            },
            responses,
        })
    }

    /// Watches a range of keys: every change from the spec's start on, in order, once.
    pub async fn watch(&self, spec: WatchSpec) -> Result<Watch, WatchError> {
        let stream = self.watch_stream().await?;
        stream.requests.ask(WatchRequest::Create(spec)).await?;
        let mut watch = Watch {
            stream,
            created_at: Revision(0),
        };
        let created = watch.stream.responses.next().await?;
        match created.body {
            Body::Refused(refusal) => Err(refusal.into()),
            Body::Created
            | Body::Events { .. }
            | Body::Progress
            | Body::Cancelled
            | Body::Denied
            | Body::Compacted { .. } => {
                watch.created_at = created.revision;
                Ok(watch)
            }
        }
    }
}

impl WatchRequests {
    /// Sends a request; its outcome is among the responses. Waits while the stream's queue is full, so another task must take
    /// responses in the meantime.
    pub async fn ask(&self, mut request: WatchRequest) -> Result<(), RequestError> {
        if !self.outbox.room_for_requests().await {
            return Err(RequestError::Stopped);
        }
        if let WatchRequest::Create(spec) = &mut request {
            spec.caller = self.front.caller_now();
        }
        let request = StreamRequest {
            stream: self.outbox.stream(),
            request,
        };
        self.front.watch_calls().request(request).await
    }
}

impl WatchResponses {
    /// The next response. [`RequestError::Stopped`] when the node stops.
    pub async fn next(&mut self) -> Result<Response, RequestError> {
        self.outbox.take().await.ok_or(RequestError::Stopped)
    }

    /// Adds the next responses to `taken`, at least one; what is there already comes at once, until it has `bytes_max` bytes.
    /// [`RequestError::Stopped`] when the node stops.
    pub async fn next_some(
        &mut self,
        bytes_max: usize,
        taken: &mut Vec<Response>,
    ) -> Result<(), RequestError> {
        let before = taken.len();
        self.outbox.take_some(bytes_max, taken).await;
        if taken.len() == before {
            return Err(RequestError::Stopped);
        }
        Ok(())
    }

    /// The next response, if it is there already.
    pub fn try_next(&mut self) -> Option<Response> {
        self.outbox.try_take().ok()
    }
}

impl Drop for WatchResponses {
    fn drop(&mut self) {
        self.outbox.close();
    }
}

/// Why a watch does not exist, or has ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The hub refuses to create it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// What it should see next is compacted. A new watch from `oldest` on works, after a fresh read of the range.
    #[error("the next events are compacted, oldest is {oldest}")]
    Compacted { oldest: Revision },
    /// The node is stopping, or takes no more streams. A watch on another member, or a later one, can resume.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// An event does not decode.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// One watch, decoded.
#[derive(Debug)]
pub struct Watch {
    stream: WatchStream,
    created_at: Revision,
}

/// Changes of whole revisions, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// The member's revision. Without events: everything at or below it was seen.
    pub revision: Revision,
    /// The changes; none if this is a notification of progress.
    pub events: Vec<KeyEvent>,
}

/// One change of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyEvent {
    /// Its place in history. To resume after it, watch from the next revision on.
    pub rev: Rev,
    pub kind: RecordKind,
    /// The key's state after it; of a deletion, the key and its revision.
    pub kv: KeyValue,
    /// The state before it, if it was asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

impl KeyEvent {
    fn decode(event: &Event) -> Result<Self, RecordError> {
        Ok(Self {
            rev: event.rev,
            kind: event.kind,
            kv: KeyValue::decode(&event.kv())?,
            prev_kv: event.prev_kv().as_ref().map(KeyValue::decode).transpose()?,
        })
    }
}

impl Watch {
    /// The member's revision when the watch was created. Without a start of its own it sees what comes after.
    pub fn created_at(&self) -> Revision {
        self.created_at
    }

    /// The next changes, or progress. After an error there is nothing more.
    pub async fn next(&mut self) -> Result<EventBatch, WatchError> {
        loop {
            let Response { revision, body, .. } = self.stream.responses.next().await?;
            return match body {
                Body::Events { events, .. } => {
                    let events = events.iter().map(KeyEvent::decode);
                    Ok(EventBatch {
                        revision,
                        events: events.collect::<Result<_, _>>()?,
                    })
                }
                Body::Progress => Ok(EventBatch {
                    revision,
                    events: Vec::new(),
                }),
                Body::Compacted { oldest } => Err(WatchError::Compacted { oldest }),
                Body::Refused(refusal) => Err(refusal.into()),
                Body::Cancelled => Err(RequestError::Stopped.into()),
                Body::Denied => Err(RequestError::from(AuthError::PermissionDenied).into()),
                Body::Created => continue,
            };
        }
    }

    /// Asks up to which revision the watch has seen everything: answered by a batch without events, unless the watch is
    /// behind.
    pub async fn request_progress(&self) -> Result<(), WatchError> {
        Ok(self.stream.requests.ask(WatchRequest::Progress).await?)
    }
}
