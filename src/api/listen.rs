//! The client port: one listener, its connections spread evenly over the API arbiters.
//!
//! A connection is accepted by one task and handed to the arbiter with the fewest open ones, where it stays. Each arbiter
//! speaks HTTP/1.1 and HTTP/2 with whoever connects, on its own single thread. Stopping goes in phases: no new connections
//! and a GOAWAY on the open ones, then a bounded wait for what is under way, then the end.

use super::{
    Api, Front, http, http2,
    wire::{Buffers, Wire},
};
use crate::actors::requests::Requests;
use ::http::Request;
use actix_rt::ArbiterHandle;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Accepted connections that may wait for their arbiter.
const HANDOVER_MAX: usize = 256;

/// How long a new connection may say nothing.
pub(super) const SILENCE_MAX: Duration = Duration::from_mins(2);

/// How long accepting pauses when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to close once nothing is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The size of an HTTP/1.1 request's headers, in bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Bounds on connections.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// Open connections; more are closed as they come.
    pub connections_max: usize,
    /// Calls at once on one connection.
    pub streams_max: u32,
    /// How long an idle connection stays unasked.
    pub keepalive_interval: Duration,
    /// How long it may take to answer.
    pub keepalive_timeout: Duration,
    /// How long calls under way may take to end when the server stops.
    pub stop_timeout: Duration,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            streams_max: 16_384,
            keepalive_interval: Duration::from_hours(2),
            keepalive_timeout: Duration::from_secs(20),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

/// Where connections are served: an arbiter and its own way into the node.
#[derive(Clone, Debug)]
pub struct ApiArbiter {
    /// The thread.
    pub arbiter: ArbiterHandle,
    /// The node.
    pub requests: Requests,
}

/// Where the server is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It serves.
    #[default]
    Serving,
    /// It takes no more connections and calls, and ends those under way.
    Draining,
    /// It drops what is left.
    Closed,
}

impl Phase {
    /// Whether the server is on its way out.
    pub fn is_stopping(self) -> bool {
        self != Self::Serving
    }
}

/// The running server. Dropping it closes all connections at once; [`ApiServer::stop`] is the gentle way.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    phase: watch::Sender<Phase>,
    stop_timeout: Duration,
}

impl ApiServer {
    /// Starts serving on `listener`, with one task on each of `arbiters`; the first one accepts as well.
    pub fn start(
        listener: StdListener,
        arbiters: &[ApiArbiter],
        limits: ListenLimits,
    ) -> io::Result<Self> {
        assert!(
            !arbiters.is_empty(),
            "connections need an arbiter to be served on"
        );
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let mut sinks = Vec::with_capacity(arbiters.len());
        for ApiArbiter { arbiter, requests } in arbiters {
            let (sink, connections) = ConnectionSink::new();
            let api = Api::new(requests.clone(), phases.clone());
            let served = arbiter.spawn_fn(move || {
                drop(actix_rt::spawn(serve(api, limits, connections)));
            });
            if !served {
                return Err(io::Error::other("an API arbiter has stopped"));
            }
            sinks.push(sink);
        }
        let spread = Spread {
            sinks,
            connections_max: limits.connections_max,
            refusing: false,
        };
        if !arbiters[0].arbiter.spawn(accept(listener, spread, phases)) {
            return Err(io::Error::other("the accepting arbiter has stopped"));
        }
        Ok(Self {
            address,
            phase,
            stop_timeout: limits.stop_timeout,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops: calls under way get their answers, if they come in time. Returns when every connection is closed.
    pub async fn stop(self) {
        self.phase.send_replace(Phase::Draining);
        if timeout(self.stop_timeout, self.phase.closed())
            .await
            .is_err()
        {
            tracing::warn!("clients kept calls open for too long; closing their connections");
            self.phase.send_replace(Phase::Closed);
            // Calls that still wait for the node end with it.
            drop(timeout(CLOSE_TIMEOUT, self.phase.closed()).await);
        }
    }
}

/// One arbiter's end of the port.
#[derive(Debug)]
struct ConnectionSink {
    handover: mpsc::Sender<Connection>,
    open: Arc<AtomicUsize>,
}

/// An accepted connection; counted as open until it is dropped.
#[derive(Debug)]
struct Connection {
    stream: StdStream,
    peer: SocketAddr,
    open: OpenCount,
}

/// Counts while it lives.
#[derive(Debug)]
struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectionSink {
    fn new() -> (Self, mpsc::Receiver<Connection>) {
        let (handover, connections) = mpsc::channel(HANDOVER_MAX);
        (
            Self {
                handover,
                open: Arc::default(),
            },
            connections,
        )
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Chooses an arbiter for each connection.
#[derive(Debug)]
struct Spread {
    sinks: Vec<ConnectionSink>,
    connections_max: usize,
    /// Whether the last connection was refused: a limit that is reached is logged once, not for every client.
    refusing: bool,
}

impl Spread {
    /// The arbiter with the fewest open connections, if there is room for one more.
    fn choose(&mut self) -> Option<&ConnectionSink> {
        let open: usize = self.sinks.iter().map(ConnectionSink::open).sum();
        let full = open >= self.connections_max;
        if full && !self.refusing {
            tracing::warn!(
                open,
                limit = self.connections_max,
                "too many client connections: closing new ones until some end"
            );
        }
        self.refusing = full;
        if full {
            None
        } else {
            self.sinks.iter().min_by_key(|sink| sink.open())
        }
    }

    async fn hand_over(&mut self, stream: TcpStream, peer: SocketAddr) {
        let Some(sink) = self.choose() else { return };
        let prepared = stream.set_nodelay(true).and_then(|()| stream.into_std());
        match prepared {
            Ok(stream) => {
                let open = OpenCount::new(&sink.open);
                // An arbiter that has stopped takes no more connections: the client sees it closed.
                drop(sink.handover.send(Connection { stream, peer, open }).await);
            }
            Err(error) => tracing::debug!(%peer, %error, "a client left as it came"),
        }
    }
}

/// Accepts until the server stops.
async fn accept(listener: StdListener, mut spread: Spread, mut phase: watch::Receiver<Phase>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot accept clients");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| phase.is_stopping()) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => spread.hand_over(stream, peer).await,
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether accepting failed because of this one client, so that the next can be accepted at once.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// Serves the connections of one arbiter.
async fn serve(api: Api, limits: ListenLimits, mut connections: mpsc::Receiver<Connection>) {
    let front = Rc::new(Front::new(api));
    let buffers = Rc::<Buffers>::default();
    while let Some(connection) = connections.recv().await {
        let (front, buffers) = (front.clone(), buffers.clone());
        tokio::task::spawn_local(serve_connection(front, buffers, limits, connection));
    }
}

/// Why a connection ended before its time.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn serve_connection(
    front: Rc<Front>,
    buffers: Rc<Buffers>,
    limits: ListenLimits,
    connection: Connection,
) {
    let Connection { stream, peer, open } = connection;
    let mut phase = front.api.phase.clone();
    let told = async {
        let wire = Wire::new(TcpStream::from_std(stream)?, buffers);
        let http2 = tokio::select! {
            told = timeout(SILENCE_MAX, poll_fn(|context| wire.poll_is_http2(context))) => told??,
            _ = phase.wait_for(|phase| phase.is_stopping()) => return Ok(None),
        };
        // Boxed, both: a client that says nothing does not need their room.
        if http2 {
            Box::pin(http2::greet(front, wire, &limits)).await.map(Some)
        } else {
            Box::pin(converse_http1(front, wire, &mut phase)).await?;
            Ok(None)
        }
    };
    let ended = move |ended: Result<(), Failure>| {
        if let Err(error) = ended {
            tracing::debug!(%peer, error, "a client connection failed");
        }
        drop(open);
    };
    match told.await {
        // In a task of its own: this one has room for more than an idle connection needs.
        Ok(Some(talk)) => drop(tokio::task::spawn_local(http2::converse(
            talk, phase, ended,
        ))),
        Ok(None) => ended(Ok(())),
        Err(error) => ended(Err(error)),
    }
}

/// Speaks HTTP/1.1 until the client leaves or the server stops.
async fn converse_http1(
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    phase: &mut watch::Receiver<Phase>,
) -> Result<(), Failure> {
    let service = service_fn(move |request: Request<Incoming>| {
        let front = front.clone();
        async move {
            let response = http::answer(&front.api, request.method(), request.uri()).await;
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(wire), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        _ = phase.wait_for(|phase| phase.is_stopping()) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        biased;
        ended = connection => Ok(ended?),
        _ = phase.wait_for(|&phase| phase == Phase::Closed) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(arbiters: usize, connections_max: usize) -> Spread {
        // The receiving ends are not needed to choose among the sinks.
        let sinks = (0..arbiters).map(|_| ConnectionSink::new().0).collect();
        Spread {
            sinks,
            connections_max,
            refusing: false,
        }
    }

    fn open(spread: &mut Spread) -> Option<OpenCount> {
        spread.choose().map(|sink| OpenCount::new(&sink.open))
    }

    fn counts(spread: &Spread) -> Vec<usize> {
        spread.sinks.iter().map(ConnectionSink::open).collect()
    }

    #[test]
    fn connections_go_where_the_fewest_are() {
        let mut spread = spread(3, 100);
        let mut connections: Vec<_> = (0..7).map(|_| open(&mut spread).unwrap()).collect();
        assert_eq!(counts(&spread), [3, 2, 2]);
        connections.remove(0);
        connections.remove(2);
        assert_eq!(
            counts(&spread),
            [1, 2, 2],
            "two of the first arbiter's have ended"
        );
        drop(open(&mut spread));
        connections.push(open(&mut spread).unwrap());
        assert_eq!(counts(&spread), [2, 2, 2]);
    }

    #[test]
    fn a_full_server_refuses_until_a_connection_ends() {
        let mut spread = spread(2, 3);
        let mut connections: Vec<_> = (0..3).map(|_| open(&mut spread).unwrap()).collect();
        assert!(open(&mut spread).is_none(), "the limit is reached");
        assert!(spread.refusing, "which is logged");
        connections.pop();
        assert!(open(&mut spread).is_some(), "there is room again");
        assert!(!spread.refusing, "so that it is logged the next time");
    }
}
