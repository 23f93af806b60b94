//! The client port: its listeners, and their connections spread evenly over the API arbiters.
//!
//! One task accepts the connections of all listeners and hands each to the arbiter with the fewest open ones, where it stays.
//! Each arbiter serves HTTP/1.1 and HTTP/2 on its own thread. The server stops in phases ([`ServingPhase`]): it accepts no new
//! connections and sends GOAWAY on the open ones, then waits a limited time for calls in flight, then closes all connections.

use super::{
    Api,
    access::CertificateName,
    client_pools::ClientPools,
    connection_shares::{Slot, Slots},
    front::Front,
    handshakes::{Handshakes, HandshakesHandle, Secured},
    http, http2,
    serving::{Failure, ListenLimits, ServingPhase},
    sockets::{
        Accepted, ClientListener, ClientPeer, ClientStream, Detached, DetachedStream, Listeners,
    },
    wire::{Buffers, Wire},
};
use crate::{
    actors::requests::Requests,
    audit::Audit,
    log_gate::{self, LogGate},
    tls::ClientTls,
};
use ::http::Request;
use actix_rt::ArbiterHandle;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

/// Accepted connections that may wait to be picked up by their arbiter.
const HANDOVER_MAX: usize = 256;

/// How long accepting pauses after an error, such as the lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static ACCEPT_FAILURES: LogGate = LogGate::new();

/// Clients that speak TLS to a plain port.
static TLS_TO_PLAIN: LogGate = LogGate::new();

/// How long connections may take to close in the last phase.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The size of an HTTP/1.1 request's headers, in bytes.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// An arbiter that serves connections.
#[derive(Clone, Debug)]
pub struct ApiArbiter {
    pub arbiter: ArbiterHandle,
    /// Its handle to the node.
    pub requests: Requests,
    /// The member's audit log, if it is on.
    pub audit: Option<Audit>,
}

/// The running server. Dropping it closes all connections at once; [`ApiServer::stop`] lets calls in flight end.
#[derive(Debug)]
pub struct ApiServer {
    phase: watch::Sender<ServingPhase>,
    stop_timeout: Duration,
    /// `None` without TLS.
    handshakes: Option<Handshakes>,
}

impl ApiServer {
    /// Starts serving on `listeners`, with one task on each of `arbiters`; the first one accepts as well. Listeners for TLS need
    /// `tls`.
    pub fn start(
        listeners: Vec<ClientListener>,
        arbiters: &[ApiArbiter],
        limits: ListenLimits,
        tls: Option<ClientTls>,
    ) -> io::Result<Self> {
        assert!(
            !arbiters.is_empty(),
            "connections need an arbiter to be served on"
        );
        let (phase, phases) = watch::channel(ServingPhase::Serving);
        let (pools, slots) = (Arc::default(), Slots::new(limits.connections_max));
        let mut sinks = Vec::with_capacity(arbiters.len());
        for api_arbiter in arbiters {
            let ApiArbiter {
                arbiter,
                requests,
                audit,
            } = api_arbiter;
            let (sink, connections) = ConnectionSink::new();
            let api = Api::new(requests, phases.clone(), audit.clone());
            let (pools, slots) = (Arc::clone(&pools), slots.clone());
            let served = arbiter.spawn_fn(move || {
                drop(actix_rt::spawn(serve(
                    api,
                    limits,
                    pools,
                    slots,
                    connections,
                )));
            });
            if !served {
                return Err(io::Error::other("an API arbiter has stopped"));
            }
            sinks.push(sink);
        }
        let handshakes = tls.map(Handshakes::start);
        let spread = Spread {
            sinks,
            slots,
            handshakes: handshakes.as_ref().map(Handshakes::handle),
        };
        if !arbiters[0].arbiter.spawn(accept(listeners, spread, phases)) {
            return Err(io::Error::other("the accepting arbiter has stopped"));
        }
        Ok(Self {
            phase,
            stop_timeout: limits.stop_timeout,
            handshakes,
        })
    }

    /// Stops. Calls in flight still get the answers that arrive within `stop_timeout`. Returns when every connection is closed.
    pub async fn stop(self) {
        self.phase.send_replace(ServingPhase::Draining);
        // Handshakes are not calls in flight, so they end now.
        drop(self.handshakes);
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
    stream: DetachedStream,
    peer: ClientPeer,
    /// `None` if the client has shown none.
    certificate: Option<Arc<CertificateName>>,
    open: Open,
}

/// Counts a connection as open, for its arbiter and for its address, until this is dropped.
#[derive(Debug)]
struct Open {
    _count: OpenCount,
    _slot: Slot,
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
    slots: Arc<Slots>,
    /// `None` without TLS.
    handshakes: Option<HandshakesHandle>,
}

impl Spread {
    /// The arbiter with the fewest open connections, and a slot; `None` if the client's share of the slots is used up.
    fn choose(&self, peer: ClientPeer) -> Option<(&ConnectionSink, Open)> {
        let slot = self.slots.admit(peer.origin())?;
        let sink = self.sinks.iter().min_by_key(|sink| sink.open())?;
        let open = Open {
            _count: OpenCount::new(&sink.open),
            _slot: slot,
        };
        Some((sink, open))
    }

    async fn hand_over(&self, accepted: Accepted, peer: ClientPeer) {
        let Some((sink, open)) = self.choose(peer) else {
            return;
        };
        let sink = sink.handover.clone();
        match accepted.detach() {
            Ok(Detached::Plain(stream)) => {
                let connection = Connection {
                    stream,
                    peer,
                    certificate: None,
                    open,
                };
                // If the arbiter has stopped, the connection is dropped, which closes it.
                drop(sink.send(connection).await);
            }
            Ok(Detached::Tls(stream)) => {
                let handshakes = self.handshakes.as_ref();
                let handshakes =
                    handshakes.expect("a listener for TLS was opened with certificates");
                handshakes.begin(stream, peer, async move |secured: Secured| {
                    let connection = Connection {
                        stream: secured.stream,
                        peer,
                        certificate: secured.certificate,
                        open,
                    };
                    drop(sink.send(connection).await);
                });
            }
            Err(error) => tracing::debug!(%peer, %error, "a client left before it was served"),
        }
    }
}

/// Accepts until the server stops.
async fn accept(
    listeners: Vec<ClientListener>,
    spread: Spread,
    mut phase: watch::Receiver<ServingPhase>,
) {
    let mut listeners = match Listeners::new(listeners) {
        Ok(listeners) => listeners,
        Err(error) => {
            tracing::error!(%error, "cannot accept clients");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| phase.is_stopping()) => return,
            accepted = poll_fn(|context| listeners.poll_accept(context)) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => spread.hand_over(stream, peer).await,
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                log_gate::warn!(ACCEPT_FAILURES, "cannot accept clients: {error}");
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
async fn serve(
    api: Api,
    limits: ListenLimits,
    pools: Arc<ClientPools>,
    slots: Arc<Slots>,
    mut connections: mpsc::Receiver<Connection>,
) {
    let front = Rc::new(Front::new(api));
    let shared = Shared {
        tables: Rc::new(http2::Shared::new(
            front.clone(),
            pools,
            slots.clone(),
            &limits,
        )),
        buffers: Rc::default(),
        front,
        slots,
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
    slots: Arc<Slots>,
    limits: ListenLimits,
}

async fn serve_connection(shared: Shared, connection: Connection) {
    let Connection {
        stream,
        peer,
        certificate,
        open,
    } = connection;
    let is_tls = matches!(stream, DetachedStream::Tls(_));
    let Shared {
        front,
        tables,
        buffers,
        slots,
        limits,
    } = shared;
    let mut phase = front.api.phase.clone();
    let begun = async {
        let wire = Wire::new(stream.attach()?, buffers);
        let is_http2 = tokio::select! {
            known = slots.wait_for(poll_fn(|context| wire.poll_is_http2(context))) => known??,
            _ = phase.wait_for(|phase| phase.is_stopping()) => return Ok(None),
        };
        // Both are boxed, so that a connection on which no bytes have arrived takes less memory.
        if is_http2 {
            let handshake = http2::Connection::handshake(tables, wire, certificate, &limits, peer);
            Box::pin(handshake).await.map(Some)
        } else {
            if !is_tls && wire.begins_with_tls() {
                let whose = peer.origin();
                log_gate::warn!(
                    TLS_TO_PLAIN,
                    "a client at {whose} speaks TLS to a port without it: use http://, or https:// in client.listen"
                );
            }
            let silence_max = slots.silence_max();
            Box::pin(serve_http1(front, wire, silence_max, &mut phase)).await?;
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
    wire: Wire<ClientStream>,
    silence_max: Duration,
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
        .header_read_timeout(silence_max)
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
    use std::net::SocketAddr;

    fn spread(arbiters: usize) -> Spread {
        // The receiving ends are not needed to choose among the sinks.
        let sinks = (0..arbiters).map(|_| ConnectionSink::new().0).collect();
        let slots = Slots::new(100);
        Spread {
            sinks,
            slots,
            handshakes: None,
        }
    }

    fn open(spread: &Spread) -> Option<Open> {
        let peer = ClientPeer::Tcp(SocketAddr::from(([127, 0, 0, 1], 1)));
        spread.choose(peer).map(|(_, open)| open)
    }

    fn counts(spread: &Spread) -> Vec<usize> {
        spread.sinks.iter().map(ConnectionSink::open).collect()
    }

    #[test]
    fn a_connection_goes_to_the_arbiter_with_the_fewest() {
        let spread = spread(3);
        let mut connections: Vec<_> = (0..7).map(|_| open(&spread).unwrap()).collect();
        assert_eq!(counts(&spread), [3, 2, 2]);
        connections.remove(0);
        connections.remove(2);
        assert_eq!(
            counts(&spread),
            [1, 2, 2],
            "two of the first arbiter's have ended"
        );
        drop(open(&spread));
        connections.push(open(&spread).unwrap());
        assert_eq!(counts(&spread), [2, 2, 2]);
    }

    #[test]
    fn a_full_server_refuses_until_a_connection_ends() {
        let spread = spread(2);
        let mut connections: Vec<_> = std::iter::from_fn(|| open(&spread)).collect();
        assert_eq!(connections.len(), 75, "the share of an address");
        assert!(open(&spread).is_none());
        connections.pop();
        assert!(open(&spread).is_some(), "there is room again");
    }
}
