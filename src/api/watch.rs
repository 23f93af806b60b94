//! `etcdserverpb.Watch`: one stream of requests, one of responses, any number of watches on it.
//!
//! Requests are taken one at a time, and only while the queue of responses has room, so a client that does not read is not
//! read from either.

use super::{
    Api, convert,
    frames::{Encoded, Frames, SPLICED_BYTES_MIN},
    message_reader::MessageReader,
    proto::etcdserverpb as pb,
    reply::WatchReply,
    status::Status,
};
use crate::failpoint::{FailPoint, hit};
use crate::{
    actors::{
        requests::RequestError,
        watch_hub::WatchRequest,
        watch_stream::{WatchRequests, WatchResponses, WatchStream},
    },
    kv::{
        KvError,
        watch::{Body, Event, Events, Refusal, Response, WatchId},
    },
};
use bytes::Bytes;
use pb::watch_request::RequestUnion;
use std::cell::Cell;
use tokio::sync::mpsc;

/// Responses that are there are sent in one piece, until it has so many bytes: about what HTTP/2 sends at once.
const PIECE_BYTES: usize = 16 * 1024;

/// About what a response takes without its events.
const WITHOUT_EVENTS_BYTES: usize = 64;

type Out = mpsc::Sender<Result<Encoded, Status>>;

/// What both directions of a stream know: when it has nothing more to say.
#[derive(Debug, Default)]
struct Book {
    /// Create requests without their response.
    creating: Cell<usize>,
    /// Watches that exist.
    watches: Cell<usize>,
    /// Whether the client will ask for nothing more.
    half_closed: Cell<bool>,
}

impl Api {
    /// `Watch.Watch`. It ends with OK only when the client has closed its side and has no watch left; etcd's clients resume
    /// their watches elsewhere after `Unavailable`.
    pub async fn watch<B>(
        &self,
        messages: MessageReader<B>,
        leader_required: bool,
        out: &Out,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let WatchStream {
            requests,
            responses,
        } = self.requests.watch_stream().await?;
        let book = Book::default();
        let leader_lost = async {
            if leader_required {
                let patience = self.requests.limits().leader_patience;
                self.requests.leaderless(patience).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = self.take_requests(messages, &requests, &book) => ended,
            ended = self.send_responses(responses, &book, out) => ended,
            () = self.requests.taken_out() => Err(RequestError::Kv(KvError::Corrupt).into()),
            () = leader_lost => Err(RequestError::NoLeader.into()),
            () = self.stopping() => Err(RequestError::Stopped.into()),
        }
    }

    /// Takes requests until the client closes its side; then waits, unless nothing is left to wait for.
    async fn take_requests<B>(
        &self,
        mut messages: MessageReader<B>,
        requests: &WatchRequests,
        book: &Book,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        while let Some(request) = messages.next::<pb::WatchRequest>().await? {
            let Some(request) = request.request_union else {
                continue;
            };
            let request = match request {
                RequestUnion::CreateRequest(create) => {
                    book.creating.set(book.creating.get() + 1);
                    WatchRequest::Create(convert::watch(&create))
                }
                RequestUnion::CancelRequest(cancel) => {
                    WatchRequest::Cancel(WatchId(cancel.watch_id))
                }
                RequestUnion::ProgressRequest(_) => WatchRequest::Progress,
            };
            requests.ask(request).await?;
        }
        book.half_closed.set(true);
        if !book.is_done() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn send_responses(
        &self,
        mut responses: WatchResponses,
        book: &Book,
        out: &Out,
    ) -> Result<(), Status> {
        let mut taken = Vec::new();
        loop {
            responses.next_some(PIECE_BYTES, &mut taken).await?;
            let mut piece = Frames::with_capacity(taken.iter().map(written_len).sum());
            let written = taken.drain(..).try_for_each(|response| {
                book.note(&response);
                self.write_response(&response, &mut piece)
            });
            hit(FailPoint::BeforeWatchSend);
            // What precedes a response that cannot be written is sent in any case.
            if !piece.is_empty() && out.send(Ok(piece.into())).await.is_err() {
                return Ok(());
            }
            written?;
            hit(FailPoint::AfterWatchSend);
            if book.is_done() {
                return Ok(());
            }
        }
    }

    /// Adds the messages of a response: one, or its fragments.
    fn write_response(&self, response: &Response, piece: &mut Frames) -> Result<(), Status> {
        let mut reply = WatchReply {
            header: self.header(response.revision),
            watch_id: response.watch.0,
            ..WatchReply::default()
        };
        match &response.body {
            Body::Created => reply.created = true,
            Body::Refused(refusal) => {
                (reply.created, reply.canceled) = (true, true);
                reply.cancel_reason = cancel_reason(*refusal);
            }
            Body::Events { events, fragment } => {
                let max = if *fragment {
                    self.receive_bytes_max()
                } else {
                    usize::MAX
                };
                return add_fragments(&reply, events, max, piece);
            }
            Body::Progress => {}
            Body::Cancelled => reply.canceled = true,
            Body::Compacted { oldest } => {
                reply.canceled = true;
                reply.compact_revision = oldest.0;
            }
        }
        piece.add_watch(&reply, Bytes::new())
    }
}

/// About what is written of a response; long events are sent from where they are.
fn written_len(response: &Response) -> usize {
    let bytes = response.bytes();
    if bytes < SPLICED_BYTES_MIN {
        bytes
    } else {
        WITHOUT_EVENTS_BYTES
    }
}

/// Cuts events so that each message with more than one is shorter than `max`. etcd: the same cut.
fn add_fragments(
    reply: &WatchReply,
    events: &Events,
    max: usize,
    piece: &mut Frames,
) -> Result<(), Status> {
    let (mut left, mut wire) = (&events[..], events.wire().clone());
    // The mark of a fragment is two bytes.
    while reply.encoded_len() + wire.len() + 2 >= max && left.len() > 1 {
        let mut len = reply.encoded_len();
        let fits = |(at, event): (usize, &Event)| {
            len += event.wire.len();
            at == 0 || len + 2 < max
        };
        let count = left.iter().enumerate().map(fits);
        let count = count.take_while(|fits| *fits).count();
        let (now, later) = left.split_at(count);
        let now = wire.split_to(now.iter().map(|event| event.wire.len()).sum());
        let fragment = true;
        piece.add_watch(&WatchReply { fragment, ..*reply }, now)?;
        left = later;
    }
    piece.add_watch(reply, wire)
}

/// What a client is told in place of a watch.
fn cancel_reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
        Refusal::ReservedId => "mvcc: watch ID -1 is reserved",
        Refusal::EmptyRange => "mvcc: watcher range is empty",
        Refusal::NegativeStart => "etcdserver: mvcc: required revision has been compacted",
        Refusal::TooManyWatchers => "etcdserver: too many requests",
    }
}

impl Book {
    fn note(&self, response: &Response) {
        let (creating, watches) = (&self.creating, &self.watches);
        match response.body {
            Body::Created => {
                creating.set(creating.get().saturating_sub(1));
                watches.set(watches.get() + 1);
            }
            Body::Refused(_) => creating.set(creating.get().saturating_sub(1)),
            Body::Cancelled | Body::Compacted { .. } => {
                watches.set(watches.get().saturating_sub(1));
            }
            Body::Events { .. } | Body::Progress => {}
        }
    }

    fn is_done(&self) -> bool {
        self.half_closed.get() && self.creating.get() == 0 && self.watches.get() == 0
    }
}
