//! `etcdserverpb.Watch`: one stream of requests, one of responses, with any number of watches.
//!
//! A stream takes no room among the member's streams before its first watch. Requests are read one at a time, and only while the
//! queue of responses has room: a client that does not read responses cannot make the queue longer.

use super::{
    Api, convert,
    frames::{Encoded, Frames, SPLICED_BYTES_MIN},
    lines,
    message_reader::MessageReader,
    proto::etcdserverpb as pb,
    reply::WatchReply,
    status::Status,
};
use crate::{
    actors::{
        requests::RequestError,
        watch_calls::WatchRequest,
        watch_stream::{WatchRequests, WatchResponses, WatchStream},
    },
    audit::{Ended, Subject},
    auth::AuthError,
    failpoint::{FailPoint, hit},
    kv::{
        KvError,
        watch::{Body, Event, Events, HolderId, Refusal, Response, WatchId, WatchSpec},
    },
};
use bytes::Bytes;
use pb::watch_request::RequestUnion;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};
use tokio::sync::mpsc;

/// Available responses are sent together, up to this many bytes: about the size of an HTTP/2 frame.
const PIECE_BYTES: usize = 16 * 1024;

/// The approximate length of a response without its events.
const WITHOUT_EVENTS_BYTES: usize = 64;

/// The reason in the last response of a watch whose user has lost the right to it.
const PERMISSION_DENIED: &str = "etcdserver: permission denied";

/// The most create requests whose ranges are kept for the audit log until they are answered. The lines of further ones have no
/// range.
const SUBJECTS_MAX: usize = 256;

type Out = mpsc::Sender<Result<Encoded, Status>>;

/// What both directions of a stream share: whether a response can still follow.
#[derive(Debug, Default)]
struct Outstanding {
    /// Create requests without a response so far.
    creating: Cell<usize>,
    watches: Cell<usize>,
    /// Whether the client has closed its side.
    half_closed: Cell<bool>,
    /// What the oldest of those create requests ask for, if the audit log is on: they are answered in their order.
    asked: RefCell<VecDeque<Subject>>,
}

impl Api {
    /// `Watch.Watch`. It ends with OK only if the client has closed its side and has no watch left. After `Unavailable`, etcd's
    /// clients resume their watches at another member. All watches of a `holder` count against its share of the member's
    /// watchers.
    pub async fn watch<B>(
        &self,
        mut messages: MessageReader<B>,
        leader_required: bool,
        holder: Option<HolderId>,
        out: &Out,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
    {
        let leader_lost = async {
            if leader_required {
                let patience = self.requests.limits().leader_patience;
                self.requests.leaderless(patience).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let watching = async {
            match first_watch(&mut messages).await? {
                // Boxed: a stream without watches does not need its room.
                Some(first) => {
                    Box::pin(self.serve_watches(first, &mut messages, holder, out)).await
                }
                None => Ok(()),
            }
        };
        tokio::select! {
            ended = watching => ended,
            () = self.requests.taken_out() => Err(RequestError::Kv(KvError::Corrupt).into()),
            () = leader_lost => Err(RequestError::NoLeader.into()),
            () = self.stopping() => Err(RequestError::Stopped.into()),
        }
    }

    /// Opens a stream and serves it to its end.
    async fn serve_watches<B>(
        &self,
        first: WatchSpec,
        messages: &mut MessageReader<B>,
        holder: Option<HolderId>,
        out: &Out,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
    {
        let WatchStream {
            requests,
            responses,
        } = self.requests.watch_stream_of(holder).await?;
        let outstanding = Outstanding::default();
        let taking = async {
            self.note_asked(&first, &outstanding);
            outstanding.creating.set(1);
            requests.ask(WatchRequest::Create(first)).await?;
            self.take_requests(messages, &requests, &outstanding).await
        };
        tokio::select! {
            ended = taking => ended,
            ended = self.send_responses(responses, &outstanding, out) => ended,
        }
    }

    /// Reads requests until the client closes its side. Then it never returns unless every watch has ended.
    async fn take_requests<B>(
        &self,
        messages: &mut MessageReader<B>,
        requests: &WatchRequests,
        outstanding: &Outstanding,
    ) -> Result<(), Status>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
    {
        while let Some(request) = messages.next::<pb::WatchRequest>().await? {
            let Some(request) = request.request_union else {
                continue;
            };
            let request = match request {
                RequestUnion::CreateRequest(create) => {
                    let spec = convert::watch(&create);
                    self.note_asked(&spec, outstanding);
                    outstanding.creating.set(outstanding.creating.get() + 1);
                    WatchRequest::Create(spec)
                }
                RequestUnion::CancelRequest(cancel) => {
                    WatchRequest::Cancel(WatchId(cancel.watch_id))
                }
                RequestUnion::ProgressRequest(_) => WatchRequest::Progress,
            };
            requests.ask(request).await?;
        }
        outstanding.half_closed.set(true);
        if !outstanding.is_done() {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn send_responses(
        &self,
        mut responses: WatchResponses,
        outstanding: &Outstanding,
        out: &Out,
    ) -> Result<(), Status> {
        let mut taken = Vec::new();
        loop {
            responses.next_some(PIECE_BYTES, &mut taken).await?;
            let mut piece = Frames::with_capacity(taken.iter().map(written_len).sum());
            let written = taken.drain(..).try_for_each(|response| {
                self.log_watch(&response, outstanding);
                outstanding.note(&response);
                self.write_response(&response, &mut piece)
            });
            hit(FailPoint::BeforeWatchSend);
            // Responses before one that cannot be encoded are sent in any case.
            if !piece.is_empty() && out.send(Ok(piece.into())).await.is_err() {
                return Ok(());
            }
            written?;
            hit(FailPoint::AfterWatchSend);
            if outstanding.is_done() {
                return Ok(());
            }
        }
    }

    fn note_asked(&self, spec: &WatchSpec, outstanding: &Outstanding) {
        let mut asked = outstanding.asked.borrow_mut();
        if self.line.is_some()
            && asked.len() < SUBJECTS_MAX
            && asked.len() == outstanding.creating.get()
        {
            asked.push_back(lines::of_watch(spec));
        }
    }

    /// Logs what became of a watch: that it was created or refused, or that its user may not have it any more.
    fn log_watch(&self, response: &Response, outstanding: &Outstanding) {
        let Some(line) = &self.line else {
            return;
        };
        let next = || {
            outstanding
                .asked
                .borrow_mut()
                .pop_front()
                .unwrap_or_default()
        };
        match &response.body {
            Body::Created => line.part(next(), &Ended::OK),
            Body::Refused(refusal) => {
                let status = match refusal {
                    Refusal::Denied(error) => Status::from(*error),
                    Refusal::TooManyWatchers => RequestError::TooManyRequests.into(),
                    Refusal::DuplicateId
                    | Refusal::ReservedId
                    | Refusal::EmptyRange
                    | Refusal::NegativeStart => Status::canceled(),
                };
                line.part(next(), &lines::ended(&status));
            }
            Body::Denied => {
                let watch = lines::of_other("watch_id", &response.watch.0.to_string());
                line.part(watch, &lines::ended(&AuthError::PermissionDenied.into()));
            }
            Body::Events { .. } | Body::Progress | Body::Cancelled | Body::Compacted { .. } => {}
        }
    }

    /// Adds the messages of a response: one, or several fragments.
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
            Body::Denied => {
                reply.canceled = true;
                reply.cancel_reason = PERMISSION_DENIED;
            }
            Body::Compacted { oldest } => {
                reply.canceled = true;
                reply.compact_revision = oldest.0;
            }
        }
        piece.add_watch(&reply, Bytes::new())
    }
}

/// The first watch that a client asks for; `None` once it has closed its side. Without a watch, the other requests get no answer.
async fn first_watch<B>(messages: &mut MessageReader<B>) -> Result<Option<WatchSpec>, Status>
where
    B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
{
    while let Some(request) = messages.next::<pb::WatchRequest>().await? {
        if let Some(RequestUnion::CreateRequest(create)) = request.request_union {
            return Ok(Some(convert::watch(&create)));
        }
    }
    Ok(None)
}

/// The approximate number of bytes that are copied for a response: long events are not.
fn written_len(response: &Response) -> usize {
    let bytes = response.bytes();
    if bytes < SPLICED_BYTES_MIN {
        bytes
    } else {
        WITHOUT_EVENTS_BYTES
    }
}

/// Splits events into messages shorter than `max`, except that a message has at least one event. etcd: the same split.
fn add_fragments(
    reply: &WatchReply,
    events: &Events,
    max: usize,
    piece: &mut Frames,
) -> Result<(), Status> {
    let (mut left, mut wire) = (&events[..], events.wire().clone());
    // The field `fragment` takes two bytes.
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

/// The reason that a client gets instead of a watch.
fn cancel_reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::DuplicateId => "mvcc: duplicate watch ID provided on the WatchStream",
        Refusal::ReservedId => "mvcc: watch ID -1 is reserved",
        Refusal::EmptyRange => "mvcc: watcher range is empty",
        Refusal::NegativeStart => "etcdserver: mvcc: required revision has been compacted",
        // etcd: these reasons are whole errors of gRPC, which its client compares.
        Refusal::Denied(AuthError::InvalidToken) => {
            "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
        }
        Refusal::Denied(AuthError::UserEmpty) => {
            "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
        }
        Refusal::Denied(AuthError::OldRevision) => {
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        }
        Refusal::Denied(_) => {
            "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
        }
        Refusal::TooManyWatchers => "etcdserver: too many requests",
    }
}

impl Outstanding {
    fn note(&self, response: &Response) {
        let (creating, watches) = (&self.creating, &self.watches);
        match response.body {
            Body::Created => {
                creating.set(creating.get().saturating_sub(1));
                watches.set(watches.get() + 1);
            }
            Body::Refused(_) => creating.set(creating.get().saturating_sub(1)),
            Body::Cancelled | Body::Denied | Body::Compacted { .. } => {
                watches.set(watches.get().saturating_sub(1));
            }
            Body::Events { .. } | Body::Progress => {}
        }
    }

    fn is_done(&self) -> bool {
        self.half_closed.get() && self.creating.get() == 0 && self.watches.get() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_watch_learns_why_in_etcds_words() {
        for error in [
            AuthError::PermissionDenied,
            AuthError::UserEmpty,
            AuthError::InvalidToken,
            AuthError::OldRevision,
        ] {
            let status = Status::from(error);
            let (code, text) = (status.code.name(), status.message);
            let expected = format!("rpc error: code = {code} desc = {text}");
            assert_eq!(cancel_reason(Refusal::Denied(error)), expected);
        }
        // etcd: a user who is gone may do nothing.
        let gone = cancel_reason(Refusal::Denied(AuthError::UserNotFound));
        assert_eq!(
            gone,
            cancel_reason(Refusal::Denied(AuthError::PermissionDenied))
        );
    }
}
