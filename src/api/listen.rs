//! The client port: one listener, its connections spread evenly over the API arbiters.
//!
//! One task accepts connections and hands each to the arbiter with the fewest open ones, where it stays. Each arbiter serves
//! HTTP/1.1 and HTTP/2 on its own thread. The server stops in phases ([`ServingPhase`]): it accepts no new connections and sends
//! GOAWAY on the open ones, then waits a limited time for calls in flight, then closes all connections.

use super::{
    Api,
    front::Front,
    http, http2,
    serving::{Failure, ListenLimits, SILENCE_MAX, ServingPhase},
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

/// Accepted connections that may wait to be picked up by their arbiter.
const HANDOVER_MAX: usize = 256;

/// How long accepting pauses after an error, such as the lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to close in the last phase.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The size of an HTTP/1.1 request's headers, in bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// An arbiter that serves connections.
#[derive(Clone, Debug)]
pub struct ApiArbiter {
    /// Its thread.
    pub arbiter: ArbiterHandle,
    /// Its handle to the node.
    pub requests: Requests,
}

/// The running server. Dropping it closes all connections at once; [`ApiServer::stop`] lets calls in flight end.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    phase: watch::Sender<ServingPhase>,
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
        let (phase, phases) = watch::channel(ServingPhase::Serving);
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

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops. Calls in flight still get the answers that arrive within `stop_timeout`. Returns when every connection is closed.
    pub async fn stop(self) {
        self.phase.send_replace(ServingPhase::Draining);
        if timeout(self.stop_timeout, self.phase.closed())
            .await
            .is_err()
        {
            tracing::warn!("clients kept calls open for too long; closing their connections");
            self.phase.send_replace(ServingPhase::Closed);
            // Calls that still wait for the node end when the node stops.
            drop(timeout(CLOSE_TIMEOUT, self.phase.closed()).await);
        }
    }
}

/// Hands accepted connections to one arbiter.
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

/// Counts a connection until it is dropped.
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
    /// Whether the last connection was refused, so that reaching the limit is logged once, not for every client.
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
            Err(error) => tracing::debug!(%peer, %error, "a client left before it was served"),
        }
    }
}

/// Accepts until the server stops.
async fn accept(
    listener: StdListener,
    mut spread: Spread,
    mut phase: watch::Receiver<ServingPhase>,
) {
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

/// Whether accepting failed because of one client, so that the next one can be accepted at once.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}

/// Serves the connections of one arbiter.
async fn serve(api: Api, limits: ListenLimits, mut connections: mpsc::Receiver<Connection>) {
    let front = Rc::new(Front::new(api));
    let shared = Shared {
        tables: Rc::new(http2::Shared::new(front.clone())),
        buffers: Rc::default(),
        front,
        limits,
    };
    while let Some(connection) = connections.recv().await {
        tokio::task::spawn_local(serve_connection(shared.clone(), connection));
    }
}

/// What the connections of one arbiter share.
#[derive(Clone)]
struct Shared {
    front: Rc<Front>,
    tables: Rc<http2::Shared>,
    buffers: Rc<Buffers>,
    limits: ListenLimits,
}

async fn serve_connection(shared: Shared, connection: Connection) {
    let Connection { stream, peer, open } = connection;
    let Shared {
        front,
        tables,
        buffers,
        limits,
    } = shared;
    let mut phase = front.api.phase.clone();
    let begun = async {
        let wire = Wire::new(TcpStream::from_std(stream)?, buffers);
        let is_http2 = tokio::select! {
            known = timeout(SILENCE_MAX, poll_fn(|context| wire.poll_is_http2(context))) => known??,
            _ = phase.wait_for(|phase| phase.is_stopping()) => return Ok(None),
        };
        // Both are boxed: a client that has sent no bytes does not need their room.
        if is_http2 {
            let handshake = http2::Connection::handshake(tables, wire, &limits);
            Box::pin(handshake).await.map(Some)
        } else {
            Box::pin(serve_http1(front, wire, &mut phase)).await?;
            Ok(None)
        }
    };
    let ended = move |ended: Result<(), Failure>| {
        if let Err(error) = ended {
            tracing::debug!(%peer, error, "a client connection failed");
        }
        drop(open);
    };
    match begun.await {
        // In a task of its own: the current one is larger than an idle connection needs.
        Ok(Some(connection)) => drop(tokio::task::spawn_local(connection.serve(phase, ended))),
        Ok(None) => ended(Ok(())),
        Err(error) => ended(Err(error)),
    }
}

/// Serves HTTP/1.1 until the client leaves or the server stops.
async fn serve_http1(
    front: Rc<Front>,
    wire: Wire<TcpStream>,
    phase: &mut watch::Receiver<ServingPhase>,
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
        _ = phase.wait_for(|&phase| phase == ServingPhase::Closed) => Ok(()),
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
    fn a_connection_goes_to_the_arbiter_with_the_fewest() {
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
        assert!(spread.refusing, "and logged");
        connections.pop();
        assert!(open(&mut spread).is_some(), "there is room again");
        assert!(!spread.refusing, "so the next refusal is logged again");
    }
}
