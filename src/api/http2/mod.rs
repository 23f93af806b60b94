//! One client's HTTP/2 connection: its calls and their answers, from the handshake to the end.
//!
//! Each connection is one task. It receives requests, begins the hot calls itself (see [`Hot`]) and gives each a number. Results
//! come back under these numbers, many at once: outcomes of proposals through an [`Inbox`](crate::actors::replies::Inbox), and
//! one view for all reads that were received in the same turn. All other calls, and hot ones whose message has not arrived
//! completely, get a task of their own and go through [`grpc::answer`]. A turn ends with one write of everything that it
//! produced ([`Wire`]).
//!
//! ```text
//! turn:   outcomes, views → answers                 (queued in the HTTP/2 library)
//!         received frames → new calls               (the library writes answers, reads frames)
//!         one request for a view, deadlines, one write to the socket
//! ```
//!
//! Bounds: the library keeps at most `streams_max` calls, buffers no more of a request than its flow control windows, and
//! sends no more of an answer than the client's. An answer that is not small waits for the client's window in a task of its own.

mod deadlines;
mod exchange;
mod keepalive;
mod request_stream;
mod reset_budget;
mod waiting;

use super::{
    front::Front,
    grpc::{self, METADATA_BYTES_MAX},
    kv::{Begun, Hot, Read},
    message_reader::MessageReader,
    payload::Payload,
    serving::{Failure, ListenLimits, SILENCE_MAX, ServingPhase},
    status::Status,
    wire::Wire,
};
use crate::actors::{replies::Reply, requests::Published};
use ::http::Request;
use bytes::Bytes;
use exchange::{Call, answer, answer_call, answer_in_task, answer_plain};
use h2::{
    Reason, RecvStream,
    server::{self, Builder, SendResponse},
};
use keepalive::KeepAlive;
use request_stream::StreamBody;
use reset_budget::ResetBudget;
use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use waiting::{Spare, ViewRequest, Waiting};

/// The size of a request's headers that the library accepts, in bytes. [`grpc::admit`] refuses calls with half of it, so that
/// their clients get gRPC's error; beyond this the library answers with HTTP's 431, and ends the connection only when a client
/// goes on sending a quarter more.
const HEADER_BYTES_MAX: usize = 2 * METADATA_BYTES_MAX;

/// The memory that small DATA frames may take in the library, in bytes as it counts them. Every frame is read within a turn
/// or two, and a turn receives at most [`TURN_BYTES_MAX`](super::wire::TURN_BYTES_MAX), so a client cannot reach this.
const SMALL_FRAMES_BUDGET_BYTES: usize = 64 * super::wire::TURN_BYTES_MAX;

/// Calls that a client may cancel before they are accepted. They cost memory until the end of the turn that received them; a
/// turn cannot receive more. [`ResetBudget`] bounds how many a client cancels in the long run.
const RESETS_UNACCEPTED_MAX: usize = super::wire::TURN_BYTES_MAX / 16;

/// Flow control windows: the bytes that a client may send on one stream and on one connection before they are read. A whole
/// request fits.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Requests for a view in flight on one connection; reads received meanwhile share the next request.
const VIEWS_MAX: usize = 4;

/// What the HTTP/2 connections of one API arbiter share.
#[derive(Debug)]
pub(super) struct Shared {
    front: Rc<Front>,
    spare: Spare,
}

impl Shared {
    pub(super) fn new(front: Rc<Front>) -> Self {
        Self {
            front,
            spare: Spare::default(),
        }
    }
}

/// The settings of HTTP/2.
fn settings(limits: &ListenLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET_BYTES)
        .max_pending_accept_reset_streams(RESETS_UNACCEPTED_MAX);
    builder
}

/// A connection with its calls. It is stored in its task, so it is kept small.
pub(super) struct Connection {
    shared: Rc<Shared>,
    wire: Wire<TcpStream>,
    http2: Box<server::Connection<Wire<TcpStream>, Payload>>,
    keepalive: KeepAlive,
    resets: ResetBudget,
    /// `None` unless calls wait.
    waiting: Option<Box<Waiting>>,
}

impl Connection {
    /// Performs the handshake with the client.
    pub(super) async fn handshake(
        shared: Rc<Shared>,
        wire: Wire<TcpStream>,
        limits: &ListenLimits,
    ) -> Result<Self, Failure> {
        let handshake = settings(limits).handshake(wire.clone());
        let http2 = timeout(SILENCE_MAX, handshake).await??;
        wire.hold();
        Ok(Self {
            shared,
            wire,
            http2: Box::new(http2),
            keepalive: KeepAlive::new(limits),
            resets: ResetBudget::default(),
            waiting: None,
        })
    }

    /// Serves the connection until the client leaves or the server stops, then calls `ended`.
    #[expect(
        clippy::manual_async_fn,
        reason = "the task of an async function has room for its arguments twice"
    )]
    pub(super) fn serve(
        mut self,
        mut phase: watch::Receiver<ServingPhase>,
        ended: impl FnOnce(Result<(), Failure>),
    ) -> impl Future<Output = ()> {
        async move {
            let left = tokio::select! {
                biased;
                left = poll_fn(|context| self.poll(context)) => Some(left),
                // An error means that the server is gone.
                _ = phase.wait_for(|phase| phase.is_stopping()) => None,
            };
            if let Some(left) = left {
                return ended(left);
            }
            self.http2.graceful_shutdown();
            ended(tokio::select! {
                biased;
                left = poll_fn(|context| self.poll(context)) => left,
                _ = phase.wait_for(|&phase| phase == ServingPhase::Closed) => Ok(()),
            });
        }
    }

    /// One turn of the task. Ready when the connection has ended.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.wire.begin_turn();
        self.take_outcomes(context);
        self.take_views(context);
        let reads = self.wire.reads();
        let make_pings = || self.http2.ping_pong();
        if self.keepalive.poll(context, reads, make_pings).is_ready() {
            return Poll::Ready(Err("the client does not answer".into()));
        }
        loop {
            match self.http2.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(context, request, respond);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        self.request_view(context);
        // After the new calls, so that the timer includes their deadlines.
        self.expire(context);
        self.return_spare();
        ready!(self.wire.poll_send(context))?;
        Poll::Pending
    }

    fn take_outcomes(&mut self, context: &Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        let mut outcomes = waiting.take_outcomes(context);
        for (number, outcome) in outcomes.drain(..) {
            // A call that is missing has passed its deadline.
            if let Some(call) = waiting.end(number) {
                answer(call.respond, self.shared.front.api.answer(outcome));
            }
        }
        waiting.keep_outcomes(outcomes);
    }

    fn take_views(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        let mut at = 0;
        while let Some(request) = waiting.views.get_mut(at) {
            let Poll::Ready(view) = request.view.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            let mut reads = waiting.views.swap_remove(at).reads;
            for (number, read) in reads.drain(..) {
                // A call that is missing has passed its deadline.
                let Some(call) = waiting.end(number) else {
                    continue;
                };
                match &view {
                    Ok(view) => answer_read(&self.shared.front, view, read, call),
                    Err(status) => answer(call.respond, Err(status.clone())),
                }
            }
            waiting.keep_reads(reads);
        }
    }

    /// Ends the calls whose deadlines have passed.
    fn expire(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        while let Poll::Ready(call) = waiting.poll_expired(context) {
            if let Some(call) = call {
                answer(call.respond, Err(Status::deadline_exceeded()));
            }
        }
    }

    /// Returns the tables of waiting calls to the arbiter once no call waits.
    fn return_spare(&mut self) {
        if let Some(waiting) = self.waiting.take_if(|waiting| waiting.is_over()) {
            self.shared.spare.give_back(waiting);
        }
    }

    fn accept(
        &mut self,
        context: &mut Context<'_>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Payload>,
    ) {
        if respond.poll_reset(context).is_ready() {
            if self.resets.spend().is_err() {
                tracing::debug!("a client cancels calls without end; closing its connection");
                self.http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            }
            return;
        }
        let front = self.shared.front.clone();
        let (head, stream) = request.into_parts();
        if !grpc::is_grpc(&head.headers) {
            tokio::task::spawn_local(answer_plain(front, head.method, head.uri, respond));
            return;
        }
        // The headers end here: they may be long, and the call may last.
        let path = head.uri.path();
        let admission = match grpc::admit(&front.api, path, &head.headers) {
            Ok(admission) => admission,
            Err(status) => return answer(respond, Err(status)),
        };
        let (body, bytes_max) = (StreamBody::new(stream), front.api.receive_bytes_max());
        let mut messages = MessageReader::new(body, admission.encoding, bytes_max);
        if let Some(hot) = Hot::of(path)
            && let Poll::Ready(read) = messages.poll_message(context)
        {
            let deadline = admission.deadline;
            match read.unwrap_or_else(|| Err(Status::no_message())) {
                Ok(message) => self.begin(context, hot, message, Call { respond, deadline }),
                Err(status) => answer(respond, Err(status)),
            }
            return;
        }
        tokio::task::spawn_local(answer_call(front, head.uri, admission, messages, respond));
    }

    fn begin(&mut self, context: &Context<'_>, hot: Hot, message: Bytes, call: Call) {
        let Shared { front, spare } = &*self.shared;
        let waiting = self.waiting.get_or_insert_with(|| spare.lend(context));
        let number = waiting.next_number();
        let ticket = || Reply::Shared(waiting.inbox().ticket(number));
        match front.api.begin(hot, message, ticket) {
            Ok(Begun::Proposed) => {}
            Ok(Begun::Reads(read)) if read.is_serializable() => {
                // It must not wait for a read index, which needs a leader.
                match front.api.newest_view() {
                    Ok(newest) => answer_read(front, &newest, read, call),
                    Err(status) => answer(call.respond, Err(status)),
                }
                return;
            }
            Ok(Begun::Reads(read)) => waiting.new_reads.push((number, read)),
            Ok(Begun::AtQuota(command)) => {
                let front = front.clone();
                answer_in_task(call, async move { front.api.propose(&command).await });
                return;
            }
            Err(status) => {
                answer(call.respond, Err(status));
                return;
            }
        }
        waiting.add(call);
    }

    /// Requests one view for all reads of this turn.
    fn request_view(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        if waiting.new_reads.is_empty() || waiting.views.len() >= VIEWS_MAX {
            return;
        }
        let reads = std::mem::take(&mut waiting.new_reads);
        let front = self.shared.front.clone();
        let view = Box::pin(async move { front.api.view_for(false).await });
        waiting.views.push(ViewRequest { view, reads });
        // Polling it sends the request.
        self.take_views(context);
    }
}

fn answer_read(front: &Rc<Front>, view: &Arc<Published>, read: Read, call: Call) {
    match front.api.read_now(view, &read) {
        Ok(Some(encoded)) => answer(call.respond, Ok(encoded)),
        Ok(None) => {
            let (front, view) = (front.clone(), view.clone());
            answer_in_task(call, async move { front.api.read(view, read).await });
        }
        Err(status) => answer(call.respond, Err(status)),
    }
}
