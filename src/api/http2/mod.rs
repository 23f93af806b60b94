//! One client's HTTP/2 connection: its calls, their answers, its end.
//!
//! A connection is one task. It takes in what has arrived, begins the hot calls itself (see [`Hot`]) and gives each a number;
//! what they wait for comes back under these numbers, many at once: outcomes of proposals in an [`Inbox`], and one view for all
//! reads that came in the same turn. All other calls, and hot ones whose message is not there in one piece, get a task of
//! their own and go through [`grpc::answer`]. Everything that a turn has written leaves in one piece at its end ([`Wire`]).
//!
//! ```text
//! turn:   outcomes, views, deadlines → answers      (queued in the HTTP/2 library)
//!         what has arrived → new calls              (the library writes answers, reads frames)
//!         one question for a view, one write to the socket
//! ```
//!
//! Bounds: the library holds no more calls than the limit on streams, reads no more of a request than its flow control
//! windows, and sends no more of an answer than the client's. An answer that is not small waits for the client's window in a
//! task of its own.

mod deadlines;
mod exchange;
mod keepalive;

use super::{
    Front, grpc,
    kv::{Begun, Hot, Read},
    listen::{ListenLimits, Phase, SILENCE_MAX},
    payload::Payload,
    status::Status,
    wire::Wire,
};
use crate::actors::{
    replies::{Answer, Inbox, Reply},
    requests::Published,
};
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
    collections::HashMap,
    future::poll_fn,
    hash::{BuildHasherDefault, Hasher},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{net::TcpStream, sync::watch, time::timeout};

/// The size of a request's headers, in bytes; a bearer token has to fit.
const HEADER_BYTES_MAX: u32 = 64 * 1024;

/// What a client may send on one stream, and on one connection, before it is read, in bytes. A whole request fits.
const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Room for outcomes that a connection keeps between turns.
const OUTCOMES_KEPT: usize = 64;

/// Questions for a view under way on one connection; reads that come meanwhile share the next one.
const VIEWS_MAX: usize = 4;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Speaks HTTP/2 until the client leaves or the server stops.
pub(super) async fn converse(
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    limits: &ListenLimits,
    phase: &mut watch::Receiver<Phase>,
) -> Result<(), Failure> {
    // Boxed, and so gone when it is over: an idle connection should be small.
    let handshake = Box::pin(timeout(
        SILENCE_MAX,
        protocol(limits).handshake(wire.clone()),
    ));
    let connection = handshake.await??;
    let mut talk = Box::new(Talk::new(front, wire, connection, limits));
    let stopping = async {
        // An error means that the server is gone.
        drop(phase.wait_for(|phase| phase.is_stopping()).await);
    };
    tokio::select! {
        biased;
        ended = poll_fn(|context| talk.poll(context)) => return ended,
        () = stopping => talk.connection.graceful_shutdown(),
    }
    tokio::select! {
        biased;
        ended = poll_fn(|context| talk.poll(context)) => ended,
        _ = phase.wait_for(|&phase| phase == Phase::Closed) => Ok(()),
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

/// A connection with its calls.
struct Talk {
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    connection: Connection<Wire<TcpStream>, Payload>,
    keepalive: Option<KeepAlive>,
    /// The hot calls that wait, by number.
    calls: HashMap<u64, Call, BuildHasherDefault<NumberHasher>>,
    next_number: u64,
    inbox: Arc<Inbox>,
    /// Empty between turns; kept for its room.
    outcomes: Vec<(u64, Answer)>,
    /// Reads that came since the last question for a view.
    new_reads: Vec<(u64, Read)>,
    views: Vec<ViewAsked>,
    deadlines: Deadlines,
}

/// Reads that wait for the same view.
struct ViewAsked {
    view: Pin<Box<dyn Future<Output = Result<Arc<Published>, Status>>>>,
    reads: Vec<(u64, Read)>,
}

impl Talk {
    fn new(
        front: Rc<Front>,
        wire: Wire<TcpStream>,
        mut connection: Connection<Wire<TcpStream>, Payload>,
        limits: &ListenLimits,
    ) -> Self {
        wire.hold();
        let pings = connection.ping_pong();
        Self {
            front,
            wire,
            keepalive: pings.map(|pings| KeepAlive::new(pings, limits)),
            connection,
            calls: HashMap::default(),
            next_number: 0,
            inbox: Arc::default(),
            outcomes: Vec::new(),
            new_reads: Vec::new(),
            views: Vec::new(),
            deadlines: Deadlines::default(),
        }
    }

    /// One turn. Ready when the connection is over.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.take_outcomes(context);
        self.take_views(context);
        self.expire(context);
        let reads = self.wire.reads();
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll(context, reads).is_ready()
        {
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
        ready!(self.wire.poll_send(context))?;
        Poll::Pending
    }

    fn take_outcomes(&mut self, context: &Context<'_>) {
        let mut outcomes = std::mem::take(&mut self.outcomes);
        self.inbox.take(context, &mut outcomes);
        for (number, outcome) in outcomes.drain(..) {
            // Without the call its time was up.
            if let Some(call) = self.end(number) {
                answer(call.respond, self.front.api.answer(outcome));
            }
        }
        if outcomes.capacity() <= OUTCOMES_KEPT {
            self.outcomes = outcomes;
        }
    }

    fn take_views(&mut self, context: &mut Context<'_>) {
        let mut at = 0;
        while let Some(asked) = self.views.get_mut(at) {
            let Poll::Ready(view) = asked.view.as_mut().poll(context) else {
                at += 1;
                continue;
            };
            for (number, read) in self.views.swap_remove(at).reads {
                // Without the call its time was up.
                let Some(call) = self.end(number) else {
                    continue;
                };
                match &view {
                    Ok(view) => self.read(view, read, call),
                    Err(status) => answer(call.respond, Err(status.clone())),
                }
            }
        }
    }

    fn read(&self, view: &Arc<Published>, read: Read, call: Call) {
        match self.front.api.read_now(view, &read) {
            Ok(Some(encoded)) => answer(call.respond, Ok(encoded)),
            Ok(None) => {
                let (front, view) = (self.front.clone(), view.clone());
                aside(call, async move { front.api.read(view, read).await });
            }
            Err(status) => answer(call.respond, Err(status)),
        }
    }

    /// Ends the calls whose time is up.
    fn expire(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready(number) = self.deadlines.poll(context) {
            if let Some(call) = self.calls.remove(&number) {
                answer(call.respond, Err(Status::deadline_exceeded()));
            }
        }
    }

    /// Takes a call that gets its answer now.
    fn end(&mut self, number: u64) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        if let Some(deadline) = call.deadline {
            self.deadlines.remove(deadline, number);
        }
        Some(call)
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
                Ok(deadline) => self.begin(hot, message, Call { respond, deadline }),
                Err(status) => answer(respond, Err(status)),
            }
            return;
        }
        let request = Request::from_parts(head, body);
        tokio::task::spawn_local(carry(self.front.clone(), request, respond));
    }

    fn begin(&mut self, hot: Hot, message: Bytes, call: Call) {
        let number = self.next_number;
        let ticket = || Reply::Shared(self.inbox.ticket(number));
        match self.front.api.begin(hot, message, ticket) {
            Ok(Begun::Proposed) => {}
            Ok(Begun::Reads(read)) if read.is_serializable() => {
                // It must not wait for a question, which may find no leader.
                match self.front.api.newest_view() {
                    Ok(newest) => self.read(&newest, read, call),
                    Err(status) => answer(call.respond, Err(status)),
                }
                return;
            }
            Ok(Begun::Reads(read)) => self.new_reads.push((number, read)),
            Ok(Begun::AtQuota(command)) => {
                let front = self.front.clone();
                aside(call, async move { front.api.propose(&command).await });
                return;
            }
            Err(status) => {
                answer(call.respond, Err(status));
                return;
            }
        }
        self.next_number += 1;
        if let Some(deadline) = call.deadline {
            self.deadlines.add(deadline, number);
        }
        self.calls.insert(number, call);
    }

    /// Asks for one view for all reads of this turn.
    fn ask_for_view(&mut self, context: &mut Context<'_>) {
        if self.new_reads.is_empty() || self.views.len() >= VIEWS_MAX {
            return;
        }
        let reads = std::mem::take(&mut self.new_reads);
        let front = self.front.clone();
        let view = Box::pin(async move { front.api.view_for(false).await });
        self.views.push(ViewAsked { view, reads });
        // The question is on its way once it was polled.
        self.take_views(context);
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.inbox.close();
    }
}

/// Numbers are given in order; multiplied, they differ in the bits that a table looks at.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
