//! What a hub is started with: this member's identity, its socket and certificates, QUIC's settings.

use super::{
    error::NetError,
    link::LASTING_STREAMS_MAX,
    tls::{PeerSecurity, TlsConfigs, TlsWatch},
};
use crate::types::{Identity, MemberId};
use quinn::TransportConfig;
use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

/// Flow-control window of one stream: bandwidth times round-trip time of the fastest link that should be filled.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// First packets that may wait for [`admission`](super::admission): as many as can arrive in one turn of the event loop.
const INCOMING_MAX: usize = 1024;
/// Bytes that are buffered of each connection that waits for admission, beyond its first packet; below, those of all together.
const INCOMING_BYTES: u64 = 16 * 1024;
const INCOMING_BYTES_TOTAL: u64 = 1024 * 1024;
/// Snapshots that a peer may send at once; one more stream is the hello's.
const SNAPSHOTS_MAX: u32 = 3;
/// Flow-control window of one connection. Every stream can fill its own window, so a stalled one does not slow the others.
const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * (3 + SNAPSHOTS_MAX + 2);
/// Size of the kernel's socket buffers: a burst of appends must fit while the arbiter runs other tasks.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// The round-trip time assumed before the first measurement. With quinn's default, 333 ms, a packet lost in the handshake would
/// delay it by a second.
const INITIAL_RTT: Duration = Duration::from_millis(50);

/// Timeouts and intervals of connections between members.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    /// A connection without a packet for so long is closed.
    pub idle_timeout: Duration,
    /// How often an idle connection sends a keep-alive; well under `idle_timeout`.
    pub keep_alive: Duration,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// The pause after the first failed dial.
    pub redial_least: Duration,
    /// The longest pause between dials.
    pub redial_most: Duration,
    /// How long an old connection has to answer when another process claims its member id.
    pub probe: Duration,
    /// How often certificate files are checked for changes.
    pub tls_look: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(750),
            handshake_timeout: Duration::from_secs(3),
            redial_least: Duration::from_millis(50),
            redial_most: Duration::from_secs(1),
            probe: Duration::from_millis(400),
            tls_look: Duration::from_secs(1),
        }
    }
}

/// What a hub is started with.
#[derive(Clone, Debug)]
pub struct HubSettings {
    pub identity: Identity,
    /// Its name, which its certificate must name.
    pub name: String,
    /// The host at which others reach it, which a certificate without a member's name must name.
    pub host: String,
    /// How members prove who they are.
    pub security: PeerSecurity,
    pub pacing: Pacing,
    /// Bytes of appends, and as many of requests, that may wait in the send queues to one member.
    pub queue_bytes_max: usize,
    /// Seeds the jitter of redials; must differ from member to member.
    pub seed: u64,
    /// A random number that distinguishes this process from an earlier one of the same member.
    pub boot: u64,
    /// The newest version of the peer protocol that it speaks.
    pub version_high: u16,
}

/// A member to be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    pub id: MemberId,
    /// Its name; empty if it is not known yet.
    pub name: String,
    /// Where it listens, `HOST:PORT` each; tried in turn.
    pub addresses: Vec<String>,
}

impl PeerAddress {
    pub(super) fn hosts(&self) -> Vec<String> {
        let hosts = self.addresses.iter();
        let hosts = hosts.filter_map(|address| Some(address.rsplit_once(':')?.0));
        hosts
            .map(|host| host.trim_matches(['[', ']']).to_owned())
            .collect()
    }
}

/// Figures about a peer, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStats {
    pub id: MemberId,
    pub name: String,
    /// The smoothed round-trip time, if there is a connection.
    pub round_trip: Option<Duration>,
    /// UDP payload sent to it since the start.
    pub bytes_out: u64,
    /// UDP payload received from it since the start.
    pub bytes_in: u64,
    /// Bytes of messages that wait to be written.
    pub waiting_bytes: usize,
    /// Messages that were dropped: no connection, or too much waiting.
    pub dropped: u64,
    /// Connections since the start.
    pub connections: u64,
}

/// The socket for peers, and the certificates. It is opened before anything starts, so that errors in either stop the start.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: UdpSocket,
    pub(super) address: SocketAddr,
    pub(super) tls: TlsConfigs,
    pub(super) watch: TlsWatch,
    pub(super) settings: HubSettings,
}

impl Listener {
    pub fn open(address: &str, settings: HubSettings) -> Result<Self, NetError> {
        let (name, host) = (settings.name.clone(), settings.host.clone());
        let (watch, tls) = TlsWatch::open(settings.security.clone(), name, host)?;
        let failed = |source| NetError::Listen {
            address: address.to_owned(),
            source,
        };
        let socket = UdpSocket::bind(address).map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;
        // The kernel gives what its limits allow; less only costs speed.
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)
            .unwrap_or_default();
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)
            .unwrap_or_default();
        if settings.security == PeerSecurity::Insecure {
            tracing::warn!(
                "peers are NOT authenticated: whoever reaches {local} can join, read and change everything; \
                 give every member a certificate and drop --peer-insecure"
            );
        }
        Ok(Self {
            socket,
            address: local,
            tls,
            watch,
            settings,
        })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.address
    }
}

/// QUIC's settings for inbound connections.
pub(super) fn server_config(
    tls: &TlsConfigs,
    transport: &Arc<TransportConfig>,
) -> quinn::ServerConfig {
    let crypto = Arc::<quinn::crypto::rustls::QuicServerConfig>::clone(&tls.server);
    let mut config = quinn::ServerConfig::with_crypto(crypto);
    config.transport_config(Arc::clone(transport));
    config
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    config
}

/// QUIC's settings for all connections.
pub(super) fn transport(pacing: &Pacing) -> TransportConfig {
    let mut config = TransportConfig::default();
    let idle = quinn::IdleTimeout::try_from(pacing.idle_timeout).ok();
    config
        .max_idle_timeout(idle)
        .keep_alive_interval(Some(pacing.keep_alive))
        .max_concurrent_uni_streams(LASTING_STREAMS_MAX)
        .max_concurrent_bidi_streams((SNAPSHOTS_MAX + 1).into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .initial_rtt(INITIAL_RTT);
    config
}
