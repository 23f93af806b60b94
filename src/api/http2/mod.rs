//! One client's HTTP/2 connection: its calls, their answers, its end.
//!
//! A connection is one task. It takes in what has arrived, begins the hot calls itself (see [`Hot`]) and gives each a number;
//! what they wait for comes back under these numbers, many at once: outcomes of proposals in an [`Inbox`], and one view for all
//! reads that came in the same turn. All other calls, and hot ones whose message is not there in one piece, get a task of
//! their own and go through [`grpc::answer`]. Everything that a turn has written leaves in one piece at its end ([`Wire`]).
//!
//! ```text
//! turn:   outcomes, views → answers                 (queued in the HTTP/2 library)
//!         what has arrived → new calls              (the library writes answers, reads frames)
//!         one question for a view, deadlines, one write to the socket
//! ```
//!
//! Bounds: the library holds no more calls than the limit on streams, reads no more of a request than its flow control
//! windows, and sends no more of an answer than the client's. An answer that is not small waits for the client's window in a
//! task of its own.

mod deadlines;
mod exchange;
mod keepalive;
mod waiting;

use super::{
    Front, grpc,
    kv::{Begun, Hot, Read},
    listen::{Failure, ListenLimits, Phase, SILENCE_MAX},
    payload::Payload,
    status::Status,
    wire::Wire,
};
use crate::actors::{replies::Reply, requests::Published};
use ::http::Request;
use bytes::Bytes;
use deadlines::Deadlines;
use exchange::{Call, RequestBody, answer, aside, carry};
use h2::{
    RecvStream,
    server::{Builder, Connection, SendResponse},
};
use keepalive::KeepAlive;
use std::{
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{net::TcpStream, sync::watch, time::timeout};
pub(super) use waiting::Spare;
use waiting::{ViewAsked, Waiting};

/// The size of a request's headers, in bytes; a bearer token has to fit.
const HEADER_BYTES_MAX: u32 = 64 * 1024;

/// What a client may send on one stream, and on one connection, before it is read, in bytes. A whole request fits.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Questions for a view under way on one connection; reads that come meanwhile share the next one.
const VIEWS_MAX: usize = 4;

/// Agrees on HTTP/2 with the client.
pub(super) async fn greet(
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    limits: &ListenLimits,
) -> Result<Talk, Failure> {
    let handshake = protocol(limits).handshake(wire.clone());
    let connection = timeout(SILENCE_MAX, handshake).await??;
    Ok(Talk::new(front, wire, connection, limits))
}

/// Speaks HTTP/2 until the client leaves or the server stops, and tells `ended` about it.
#[expect(
    clippy::manual_async_fn,
    reason = "the task of an async function has room for its arguments twice"
)]
pub(super) fn converse(
    mut talk: Talk,
    mut phase: watch::Receiver<Phase>,
    ended: impl FnOnce(Result<(), Failure>),
) -> impl Future<Output = ()> {
    async move {
        let left = tokio::select! {
            biased;
            left = poll_fn(|context| talk.poll(context)) => Some(left),
            // An error means that the server is gone.
            _ = phase.wait_for(|phase| phase.is_stopping()) => None,
        };
        if let Some(left) = left {
            return ended(left);
        }
        talk.connection.graceful_shutdown();
        ended(tokio::select! {
            biased;
            left = poll_fn(|context| talk.poll(context)) => left,
            _ = phase.wait_for(|&phase| phase == Phase::Closed) => Ok(()),
        });
    }
}

/// HTTP/2 as this server speaks it.
fn protocol(limits: &ListenLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEADER_BYTES_MAX);
    builder
}

/// A connection with its calls. It is part of its task, so it is kept small.
pub(super) struct Talk {
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    connection: Box<Connection<Wire<TcpStream>, Payload>>,
    keepalive: KeepAlive,
    /// Nothing unless calls wait.
    waiting: Option<Box<Waiting>>,
}

impl Talk {
    fn new(
        front: Rc<Front>,
        wire: Wire<TcpStream>,
        connection: Connection<Wire<TcpStream>, Payload>,
        limits: &ListenLimits,
    ) -> Self {
        wire.hold();
        Self {
            front,
            wire,
            connection: Box::new(connection),
            keepalive: KeepAlive::new(limits),
            waiting: None,
        }
    }

    /// One turn. Ready when the connection is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.take_outcomes(context);
        self.take_views(context);
        let reads = self.wire.reads();
        let make_pings = || self.connection.ping_pong();
        if self.keepalive.poll(context, reads, make_pings).is_ready() {
            return Poll::Ready(Err("the client does not answer".into()));
        }
        loop {
            match self.connection.poll_accept(context) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(context, request, respond);
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        self.ask_for_view(context);
        // After the new calls, whose deadlines are watched from now on.
        self.expire(context);
        self.rest();
        ready!(self.wire.poll_send(context))?;
        Poll::Pending
    }

    fn take_outcomes(&mut self, context: &Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        let mut outcomes = waiting.take_outcomes(context);
        for (number, outcome) in outcomes.drain(..) {
            // Without the call its time was up.
            if let Some(call) = waiting.end(number) {
                answer(call.respond, self.front.api.answer(outcome));
            }
        }
        waiting.keep_outcomes(outcomes);
    }

    fn take_views(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        let mut at = 0;
        while let Some(asked) = waiting.views.get_mut(at) {
            let Poll::Ready(view) = asked.view.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            let mut reads = waiting.views.swap_remove(at).reads;
            for (number, read) in reads.drain(..) {
                // Without the call its time was up.
                let Some(call) = waiting.end(number) else {
                    continue;
                };
                match &view {
                    Ok(view) => answer_read(&self.front, view, read, call),
                    Err(status) => answer(call.respond, Err(status.clone())),
                }
            }
            waiting.keep_reads(reads);
        }
    }

    /// Ends the calls whose time is up.
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

    /// Without calls that wait, the tables for them go back.
    fn rest(&mut self) {
        if let Some(waiting) = self.waiting.take_if(|waiting| waiting.is_over()) {
            self.front.spare.give_back(waiting);
        }
    }

    fn accept(
        &mut self,
        context: &mut Context<'_>,
        request: Request<RecvStream>,
        respond: SendResponse<Payload>,
    ) {
        let hot = Hot::of(request.uri().path()).filter(|_| grpc::is_grpc(request.headers()));
        let (head, stream) = request.into_parts();
        let mut body = RequestBody::new(stream);
        if let Some(hot) = hot
            && let Some(message) = body.poll_message(context, self.front.api.receive_bytes_max())
        {
            match grpc::admit(&self.front.api, head.uri.path(), &head.headers) {
                Ok(deadline) => self.begin(context, hot, message, Call { respond, deadline }),
                Err(status) => answer(respond, Err(status)),
            }
            return;
        }
        let request = Request::from_parts(head, body);
        tokio::task::spawn_local(carry(self.front.clone(), request, respond));
    }

    fn begin(&mut self, context: &Context<'_>, hot: Hot, message: Bytes, call: Call) {
        let front = &self.front;
        let waiting = self
            .waiting
            .get_or_insert_with(|| front.spare.lend(context));
        let number = waiting.next_number();
        let ticket = || Reply::Shared(waiting.inbox().ticket(number));
        match front.api.begin(hot, message, ticket) {
            Ok(Begun::Proposed) => {}
            Ok(Begun::Reads(read)) if read.is_serializable() => {
                // It must not wait for a question, which may find no leader.
                match front.api.newest_view() {
                    Ok(newest) => answer_read(front, &newest, read, call),
                    Err(status) => answer(call.respond, Err(status)),
                }
                return;
            }
            Ok(Begun::Reads(read)) => waiting.new_reads.push((number, read)),
            Ok(Begun::AtQuota(command)) => {
                let front = front.clone();
                aside(call, async move { front.api.propose(&command).await });
                return;
            }
            Err(status) => {
                answer(call.respond, Err(status));
                return;
            }
        }
        waiting.add(call);
    }

    /// Asks for one view for all reads of this turn.
    fn ask_for_view(&mut self, context: &mut Context<'_>) {
        let Some(waiting) = &mut self.waiting else {
            return;
        };
        if waiting.new_reads.is_empty() || waiting.views.len() >= VIEWS_MAX {
            return;
        }
        let reads = std::mem::take(&mut waiting.new_reads);
        let front = self.front.clone();
        let view = Box::pin(async move { front.api.view_for(false).await });
        waiting.views.push(ViewAsked { view, reads });
        // The question is on its way once it was polled.
        self.take_views(context);
    }
}

fn answer_read(front: &Rc<Front>, view: &Arc<Published>, read: Read, call: Call) {
    match front.api.read_now(view, &read) {
        Ok(Some(encoded)) => answer(call.respond, Ok(encoded)),
        Ok(None) => {
            let (front, view) = (front.clone(), view.clone());
            aside(call, async move { front.api.read(view, read).await });
        }
        Err(status) => answer(call.respond, Err(status)),
    }
}
