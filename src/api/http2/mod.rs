//! One client's HTTP/2 connection: its calls and their answers, from the handshake to the end.
//!
//! Each connection is one task. It receives requests and begins the hot calls itself (see [`Hot`]). Results come back under
//! the numbers of their streams, many at once: outcomes of proposals through an [`Inbox`](crate::actors::replies::Inbox), and one
//! view for all reads that were received in the same turn. When the client cancels a call, the connection forgets it, and
//! withdraws its command unless that was handed to consensus already. The socket records which streams were reset, since the
//! library reports a reset only if that stream is polled. All other calls, and hot ones whose message has not arrived completely,
//! get a task of their own and go through [`grpc::answer`]. A turn ends with one write of everything that it produced ([`Wire`]).
//!
//! ```text
//! turn:   outcomes, views → answers                 (queued in the HTTP/2 library)
//!         received frames → new calls               (the library writes answers, reads frames)
//!         one request for a view, deadlines, one write to the socket
//! ```
//!
//! Bounds: the library keeps at most `streams_max` calls, buffers no more of a request than its flow control windows, and
//! sends no more of an answer than the client's. Calls that run in tasks, and the bytes of their unfinished messages, are taken
//! from pools that all connections share ([`shares`](super::shares)); a call beyond its connection's share is refused, others go
//! on. A client that sends frames without calls ([`frame_budget`](super::frame_budget)) or cancels calls without end loses its
//! connection. An answer that is not small waits for the client's window in a task of its own.
//! [`answer_budget`](super::answer_budget) bounds the bytes of answers that clients have not taken. While a client does not take
//! its answers, or has many calls in flight, the connection defers its further calls; their messages stay in the library.

mod deadlines;
mod exchange;
mod keepalive;
mod request_stream;
mod reset_budget;
mod silence;
mod waiting;

use super::{
    access::CertificateName,
    answer_budget::{Budget, SMALL_ANSWER_BYTES},
    client_pools::{ClientPools, ConnectionShares},
    connection_shares::Slots,
    front::Front,
    grpc::{self, Admission, METADATA_BYTES_MAX},
    kv::{Begun, Hot, Read},
    lines::{self, Asker},
    message_reader::MessageReader,
    message_room::STREAM_WINDOW_BYTES,
    payload::Payload,
    serving::{Failure, ListenLimits, SILENCE_MAX, ServingPhase},
    sockets::{ClientPeer, ClientStream},
    status::Status,
    wire::Wire,
};
use crate::{
    actors::{
        answered::Answered,
        replies::Reply,
        requests::{Published, Quick, RequestError},
    },
    kv::watch::HolderId,
};
use ::http::{self, Request, Uri};
use bytes::Bytes;
use exchange::{Call, answer_call, answer_in_task, answer_plain, refuse};
use h2::{
    Reason, RecvStream,
    server::{self, Builder, SendResponse},
};
use keepalive::KeepAlive;
use request_stream::StreamBody;
use reset_budget::ResetBudget;
use silence::Silence;
use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use waiting::{Deferred, Method, Spare, Waiting};

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

/// Streams that the server has ended before their client did, as when a deadline passes: for so long and up to so many of them,
/// frames that were under way are dropped. Each further frame is answered with a reset, and a connection ends after so many of
/// these in its life.
const ENDED_STREAMS_KEPT: Duration = Duration::from_secs(5);
const ENDED_STREAMS_MAX: usize = 4_096;
const LATE_FRAMES_MAX: usize = 16_384;

/// The flow control window of a connection: the bytes that a client may send before they are read. It is larger while messages
/// are held back, by what they may have sent, up to a bound.
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Hot calls of one connection that wait for their outcome or view; further ones begin when some have ended.
const CALLS_MAX: usize = 4_096;

/// Requests of reads of one connection that wait for a view, in bytes; further calls begin when some have their view. A single
/// one may be longer.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The longest path of a call, and the longest method and URI of other requests. Nothing that is served has one of this length.
const URI_BYTES_MAX: usize = 1024;

/// Requests for a view in flight on one connection; reads received meanwhile share the next request.
const VIEWS_MAX: usize = 4;

/// What the HTTP/2 connections of one API arbiter share.
#[derive(Debug)]
pub(super) struct Shared {
    front: Rc<Front>,
    spare: Spare,
    /// Shared with the other arbiters too.
    pools: Arc<ClientPools>,
    slots: Arc<Slots>,
    silence: Rc<Silence>,
}

impl Shared {
    /// Must be called on the arbiter.
    pub(super) fn new(
        front: Rc<Front>,
        pools: Arc<ClientPools>,
        slots: Arc<Slots>,
        limits: &ListenLimits,
    ) -> Self {
        let silence = Silence::new(limits);
        silence.run(slots.clone());
        Self {
            front,
            spare: Spare::default(),
            pools,
            slots,
            silence,
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
        .reset_stream_duration(ENDED_STREAMS_KEPT)
        .max_concurrent_reset_streams(ENDED_STREAMS_MAX)
        .max_local_error_reset_streams(Some(LATE_FRAMES_MAX))
        .max_pending_accept_reset_streams(RESETS_UNACCEPTED_MAX);
    builder
}

/// A connection with its calls. It is stored in its task, so it is kept small.
pub(super) struct Connection {
    shared: Rc<Shared>,
    peer: ClientPeer,
    wire: Wire<ClientStream>,
    certificate: Option<Arc<CertificateName>>,
    http2: Box<server::Connection<Wire<ClientStream>, Payload>>,
    keepalive: KeepAlive,
    resets: ResetBudget,
    /// `None` before the first call that runs in a task.
    shares: Option<Box<ConnectionShares>>,
    /// By how much the connection's window is larger now.
    window_extra: u32,
    /// `None` unless calls wait.
    waiting: Option<Box<Waiting>>,
    /// The budget that its answers count against; `None` while no call waits and no answer is unsent.
    budget: Option<Arc<Budget>>,
}

impl Connection {
    /// Performs the handshake with the client.
    pub(super) async fn handshake(
        shared: Rc<Shared>,
        wire: Wire<ClientStream>,
        certificate: Option<Arc<CertificateName>>,
        limits: &ListenLimits,
        peer: ClientPeer,
    ) -> Result<Self, Failure> {
        let handshake = settings(limits).handshake(wire.clone());
        let http2 = timeout(SILENCE_MAX, handshake).await??;
        wire.hold();
        let keepalive = KeepAlive::new(shared.silence.enter(), limits);
        Ok(Self {
            shared,
            peer,
            wire,
            certificate,
            http2: Box::new(http2),
            keepalive,
            resets: ResetBudget::default(),
            shares: None,
            window_extra: 0,
            waiting: None,
            budget: None,
        })
    }

    /// Serves the connection until the client leaves or the server stops, then calls `ended`.
    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async function stores its arguments twice"
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
        self.set_window();
        self.take_outcomes(context);
        self.take_views(context);
        let reads = self.wire.reads();
        let scarce = || self.shared.slots.is_scarce();
        let make_pings = || self.http2.ping_pong();
        let gone = self.keepalive.poll(context, reads, scarce, make_pings);
        if gone.is_ready() {
            return Poll::Ready(Err("the client does not answer".into()));
        }
        loop {
            match self.http2.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(context, request, respond);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if self.wire.take_flood() => {
                    self.close_abusive("sends long trailers, or frames that carry no call,");
                }
                Poll::Pending => break,
            }
        }
        // After the library has read these frames: a call may have arrived in this turn together with its reset.
        for stream in self.wire.take_resets() {
            if let Some(waiting) = &mut self.waiting
                && waiting.cancel(stream.into())
            {
                self.count_cancelled();
                // Too many of them end the connection, which the library does the next time that it runs.
                context.waker().wake_by_ref();
            }
        }
        if self.begin_deferred(context) {
            // The library has written its queue in this turn already; it must run again to write the answers of these calls.
            context.waker().wake_by_ref();
        }
        self.request_view(context);
        // After the new calls, so that the timer includes their deadlines.
        self.expire(context);
        self.return_spare();
        ready!(self.wire.poll_send(context))?;
        Poll::Pending
    }

    fn take_outcomes(&mut self, context: &Context<'_>) {
        let (Some(waiting), Some(budget)) = (&mut self.waiting, &self.budget) else {
            return;
        };
        let front = &self.shared.front;
        let mut outcomes = waiting.take_outcomes(context);
        for (number, outcome) in outcomes.drain(..) {
            // A call that is missing has passed its deadline.
            let Some(call) = waiting.end(number) else {
                continue;
            };
            match outcome {
                Ok(Answered::Complete(outcome)) => {
                    lines::note_outcome(call.line.as_ref(), &outcome);
                    call.answer(front.api.answer(&outcome), budget);
                }
                Ok(Answered::Unread(unread)) => {
                    let (front, budget) = (front.clone(), budget.clone());
                    answer_in_task(
                        call,
                        async move { front.api.read_unread(unread, &budget).await },
                    );
                }
                Err(error) => call.refuse(&error.into()),
            }
        }
        waiting.keep_outcomes(outcomes);
    }

    fn take_views(&mut self, context: &mut Context<'_>) {
        let (Some(waiting), Some(budget)) = (&mut self.waiting, &self.budget) else {
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
                    Ok(view) => answer_read(&self.shared.front, view, read, call, budget),
                    Err(status) => call.refuse(status),
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
                call.refuse(&Status::deadline_exceeded());
            }
        }
    }

    /// Returns the tables of waiting calls to the arbiter once no call waits, and the budget once nothing counts against it.
    fn return_spare(&mut self) {
        if let Some(waiting) = self.waiting.take_if(|waiting| waiting.is_over()) {
            self.shared.spare.give_back(waiting);
        }
        if self.waiting.is_none()
            && let Some(budget) = self.budget.take_if(|budget| Arc::get_mut(budget).is_some())
        {
            self.shared.spare.give_back_budget(budget);
        }
    }

    /// Whether further calls must wait: the client does not take its answers, or too many calls are in flight.
    fn is_busy(&self) -> bool {
        let waiting = self.waiting.as_deref();
        waiting.is_some_and(|waiting| {
            waiting.len() >= CALLS_MAX || waiting.read_bytes() >= READ_BYTES_MAX
        }) || self
            .budget
            .as_ref()
            .is_some_and(|budget| budget.is_behind())
    }

    /// Begins deferred calls, in their order, unless the connection is busy. Returns whether any began.
    fn begin_deferred(&mut self, context: &mut Context<'_>) -> bool {
        let mut began = false;
        while !self.is_busy()
            && let Some(waiting) = &mut self.waiting
            && let Some(mut deferred) = waiting.next_deferred()
        {
            if deferred.respond.poll_reset(context).is_ready() {
                continue;
            }
            began = true;
            let deadline = deferred.admission.deadline;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                deferred.refuse(&Status::deadline_exceeded());
            } else {
                self.begin(context, deferred);
            }
        }
        began
    }

    fn budget(&mut self) -> &Arc<Budget> {
        let spare = &self.shared.spare;
        self.budget.get_or_insert_with(|| spare.lend_budget())
    }

    fn accept(
        &mut self,
        context: &mut Context<'_>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Payload>,
    ) {
        if respond.poll_reset(context).is_ready() {
            return self.count_cancelled();
        }
        let front = self.shared.front.clone();
        let (head, stream) = request.into_parts();
        if !grpc::is_grpc(&head.headers) {
            return self.accept_plain(context, head.method, &head.uri, respond);
        }
        // The headers are used here and then dropped: they may be long, and the call may run for long. So may the URI. The
        // beginning of a path that is too long is the path of no method either.
        let path = head.uri.path();
        let path = &path[..path.floor_char_boundary(URI_BYTES_MAX)];
        let shown = self.certificate.as_deref();
        let admission = match grpc::admit(&front.api, path, &head.headers, self.peer, shown) {
            Ok(admission) => admission,
            Err(status) => return refuse(respond, &status),
        };
        let (body, bytes_max) = (StreamBody::new(stream), front.api.receive_bytes_max());
        let messages = MessageReader::new(body, admission.encoding, bytes_max);
        let call = Deferred {
            method: Hot::of(path).map_or_else(|| Method::Other(copied(path)), Method::Hot),
            admission,
            messages,
            respond,
        };
        if let Method::Other(_) = call.method {
            return self.answer_in_own_task(context, call);
        }
        let is_busy = self.is_busy();
        let Shared { spare, .. } = &*self.shared;
        let waiting = self.waiting.get_or_insert_with(|| spare.lend(context));
        if is_busy || waiting.has_deferred() {
            waiting.defer(call);
        } else {
            self.begin(context, call);
        }
    }

    /// Answers a request that is not gRPC, if the connection has a share of the calls that are left.
    fn accept_plain(
        &mut self,
        context: &Context<'_>,
        method: http::Method,
        uri: &Uri,
        mut respond: SendResponse<Payload>,
    ) {
        let target = uri.path_and_query().map_or("", |target| target.as_str());
        if method.as_str().len() + target.len() > URI_BYTES_MAX {
            let mut refusal = http::Response::new(());
            *refusal.status_mut() = http::StatusCode::URI_TOO_LONG;
            drop(respond.send_response(refusal, true));
            return;
        }
        let Some(counted) = self.shares(context).calls.take(1) else {
            return respond.send_reset(Reason::REFUSED_STREAM);
        };
        let front = self.shared.front.clone();
        let answering = answer_plain(front, method, copied(target), respond, counted);
        tokio::task::spawn_local(answering);
    }

    /// Answers a call in a task of its own, if its connection has a share of those left.
    fn answer_in_own_task(&mut self, context: &Context<'_>, call: Deferred) {
        let Deferred {
            method,
            admission,
            messages,
            respond,
        } = call;
        let budget = self.budget().clone();
        let shares = self.shares(context);
        let Some(counted) = shares.calls.take(1) else {
            let status = RequestError::TooManyRequests.into();
            lines::close_if(admission.asker.line.as_ref(), &status);
            return refuse(respond, &status);
        };
        let admission = admission.of(HolderId(shares.number as u64));
        let room = &shares.messages;
        let messages = messages.within(room).map_body(|body| body.within(room));
        let front = self.shared.front.clone();
        let uri = method.uri();
        let answering = answer_call(front, uri, admission, messages, respond, budget, counted);
        tokio::task::spawn_local(answering);
    }

    fn shares(&mut self, context: &Context<'_>) -> &ConnectionShares {
        let (pools, address) = (&self.shared.pools, self.peer.origin());
        self.shares
            .get_or_insert_with(|| Box::new(pools.connection(address, context.waker())))
    }

    /// Opens the connection's window by what clients may send of messages that are held back, so that other calls go on.
    fn set_window(&mut self) {
        let Some(shares) = &self.shares else { return };
        let extra = shares.messages.window_extra();
        if extra != self.window_extra {
            self.window_extra = extra;
            self.http2
                .set_target_window_size(CONNECTION_WINDOW_BYTES + extra);
        }
    }

    /// Counts a call that the client has cancelled before it began.
    fn count_cancelled(&mut self) {
        if self.resets.spend().is_err() {
            self.close_abusive("cancels calls");
        }
    }

    /// Closes the connection of a client that costs too much time; `what` completes the log line "a client …".
    fn close_abusive(&mut self, what: &str) {
        tracing::debug!("a client {what} without end; closing its connection");
        self.http2.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
    }

    /// Begins a hot call; if its message has not arrived completely, in a task of its own.
    fn begin(&mut self, context: &mut Context<'_>, mut call: Deferred) {
        let Method::Hot(hot) = call.method else {
            return self.answer_in_own_task(context, call);
        };
        let message = match call.messages.poll_message(context) {
            Poll::Ready(Some(Ok(message))) => message,
            Poll::Ready(Some(Err(status))) => return call.refuse(&status),
            Poll::Ready(None) => return call.refuse(&Status::no_message()),
            Poll::Pending => return self.answer_in_own_task(context, call),
        };
        let budget = self.budget().clone();
        let Admission {
            deadline, asker, ..
        } = call.admission;
        let call = Call {
            respond: call.respond,
            deadline,
            proposed: false,
            line: asker.line.clone(),
        };
        self.begin_hot(context, hot, message, asker, call, &budget);
    }

    fn begin_hot(
        &mut self,
        context: &Context<'_>,
        hot: Hot,
        message: Bytes,
        asker: Asker,
        mut call: Call,
        budget: &Arc<Budget>,
    ) {
        let Shared { front, spare, .. } = &*self.shared;
        let waiting = self.waiting.get_or_insert_with(|| spare.lend(context));
        let number = call.number();
        let ticket = || Reply::Shared(waiting.inbox().ticket(number));
        let begun = if asker.is_plain() {
            front.api.begin(hot, message, ticket)
        } else {
            front.api.asked_by(asker).begin(hot, message, ticket)
        };
        match begun {
            Ok(Begun::Proposed) => call.proposed = true,
            Ok(Begun::Reads(read)) if read.is_serializable() => {
                // It must not wait for a read index, which needs a leader.
                match front.api.newest_view() {
                    Ok(newest) => answer_read(front, &newest, read, call, budget),
                    Err(status) => call.refuse(&status),
                }
                return;
            }
            Ok(Begun::Reads(read)) => waiting.add_read(number, read),
            Ok(Begun::AtQuota(command)) => {
                let (front, budget) = (front.clone(), budget.clone());
                answer_in_task(
                    call,
                    async move { front.api.propose(&command, &budget).await },
                );
                return;
            }
            Err(status) => return call.refuse(&status),
        }
        waiting.add(call);
    }

    /// Requests one view for all reads of this turn.
    fn request_view(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        if !waiting.has_new_reads() || waiting.views.len() >= VIEWS_MAX {
            return;
        }
        let front = self.shared.front.clone();
        waiting.await_view(Box::pin(async move { front.api.view_for(false).await }));
        // Polling it sends the request.
        self.take_views(context);
    }
}

/// A path, and what follows it, in memory of their own: those of a request share theirs with what was received with them.
fn copied(target: &str) -> Uri {
    Uri::try_from(target).unwrap_or_default()
}

/// Answers a read: at once if it is quick and there is room for its answer.
fn answer_read(
    front: &Rc<Front>,
    view: &Arc<Published>,
    read: Read,
    call: Call,
    budget: &Arc<Budget>,
) {
    let is_short = match front.api.read_now(view, &read) {
        Ok(Quick::Done(encoded)) if encoded.len() <= SMALL_ANSWER_BYTES => {
            return call.answer(Ok(encoded), budget);
        }
        Ok(Quick::Done(encoded)) => {
            if let Some(held) = budget.try_hold(encoded.len()) {
                return call.answer(Ok(encoded.charged(held.into())), budget);
            }
            false
        }
        Ok(Quick::NotInMemory) => true,
        Ok(Quick::Long) => false,
        Err(status) => return call.refuse(&status),
    };
    let (front, budget) = (front.clone(), budget.clone());
    answer_in_task(call, async move {
        let _waiting = budget.waiting_request(read.bytes());
        if is_short {
            front.api.short_read(read, &budget).await
        } else {
            front.api.read(read, &budget).await
        }
    });
}
