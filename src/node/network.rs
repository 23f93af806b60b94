//! How a node reaches its peers: over QUIC, through a network that the caller brings, or not at all.

use super::error::StartError;
use crate::{
    actors::peer_hub::{HubPeers, PeerPorts},
    clock,
    config::{self, Config, PeerTls},
    failpoint::speaks_first_peer_version,
    net::{
        self, Delivery, GuestAnswer, GuestQuestion, Hub, HubSettings, Inbox, IncomingSnapshot,
        Listener, NetError, Pacing, PeerAddress, PeerRequest, PeerSecurity, TlsFiles, VERSION_HIGH,
        VERSION_LOW,
    },
    raft::Message,
    storage::member::Owner,
    tls::AllowedNames,
    types::{Identity, MemberId},
};
use bytes::Bytes;
use std::{fmt, pin::Pin, rc::Rc, time::Duration};

/// Bytes that may wait to be written to one peer: two windows of entries, and requests.
const PEER_QUEUE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// How long a member has to answer the question of a process that starts.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The answer to a guest's question, once it comes.
pub type Asked = Pin<Box<dyn Future<Output = Result<GuestAnswer, NetError>>>>;

/// A network in place of sockets, as a simulation has.
pub trait PeerNetwork: fmt::Debug {
    /// Starts, on the current arbiter, the actor that sends this member's messages and delivers its peers' messages to `peers`.
    fn attach(&self, identity: Identity, peers: HubPeers) -> PeerPorts;

    /// Until [`PeerNetwork::attach`], every guest that asks the member `identity` gets `answer`.
    fn announce(&self, identity: Identity, answer: Bytes);

    /// Asks the member at `address` as a process that is not a member; `name` is its name.
    fn ask(&self, name: &str, address: &str, question: Bytes) -> Asked;
}

/// The connection to the peers that a node is given.
pub(super) enum PeerWay<'a> {
    /// There are no peers, and no socket.
    Alone,
    Quic(Box<Listener>),
    /// Through the caller's network.
    Given(&'a dyn PeerNetwork),
}

/// How a starting process asks members, and answers others that start.
pub(super) enum Questions<'a> {
    Quic(PeerSecurity),
    /// Through the caller's network.
    Given(&'a dyn PeerNetwork),
}

impl<'a> Questions<'a> {
    /// `None` if no other member can be asked: there is no network, and no certificates were set.
    pub(super) fn of(config: &Config, network: Option<&'a dyn PeerNetwork>) -> Option<Self> {
        let quic = || security(config).map(Self::Quic);
        network.map(Self::Given).or_else(quic)
    }

    /// Asks the member at `address`. The answer, or that there is none, comes within a second.
    pub(super) fn ask(&self, name: &str, address: String, question: Bytes) -> Asked {
        match self {
            Self::Given(network) => network.ask(name, &address, question),
            Self::Quic(security) => {
                let (security, name) = (security.clone(), name.to_owned());
                Box::pin(async move {
                    let pacing = Pacing {
                        handshake_timeout: ANSWER_WITHIN,
                        ..Pacing::default()
                    };
                    net::ask(&security, &name, &address, question, &pacing).await
                })
            }
        }
    }

    /// Gives `answer` to every guest, until the returned value is dropped or the member is attached. The other members of
    /// `book` may connect meanwhile; what they send is dropped.
    pub(super) fn announce(
        &self,
        config: &Config,
        owner: &Owner,
        book: Vec<PeerAddress>,
        answer: Bytes,
    ) -> Result<Announcement, StartError> {
        match self {
            Self::Given(network) => {
                network.announce(owner.identity, answer);
                Ok(Announcement { hub: None })
            }
            Self::Quic(security) => {
                let host = config.peer_advertise().host.clone();
                let settings = settings(owner, host, security.clone());
                let listener = Listener::open(&config.peer.listen.to_string(), settings)?;
                let hub = Hub::start(listener, Rc::new(Announcing { answer }))?;
                hub.update(book);
                Ok(Announcement { hub: Some(hub) })
            }
        }
    }
}

/// While it lives, guests are answered.
#[derive(Debug)]
pub(super) struct Announcement {
    hub: Option<Hub>,
}

impl Announcement {
    /// Ends it, and frees the port.
    pub(super) async fn end(self) {
        if let Some(hub) = &self.hub {
            hub.close().await;
        }
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Some(hub) = &self.hub {
            hub.shut();
        }
    }
}

/// Answers guests, and drops everything else: consensus does not run yet.
struct Announcing {
    answer: Bytes,
}

fn dropped() -> Delivery {
    Box::pin(std::future::ready(()))
}

impl Inbox for Announcing {
    fn messages(&self, _: MemberId, _: Vec<Message>) -> Delivery {
        dropped()
    }

    fn requests(&self, _: Vec<PeerRequest>) -> Delivery {
        // Dropping their responders means to the senders that there is no answer.
        dropped()
    }

    fn guest(&self, question: GuestQuestion) -> Delivery {
        question.responder.answer(self.answer.clone());
        dropped()
    }

    fn snapshot(&self, incoming: IncomingSnapshot) -> Delivery {
        incoming.answer(Err("this member has not started yet".to_owned()));
        dropped()
    }

    fn connected(&self, _: MemberId, _: u16) {}

    fn disconnected(&self, _: MemberId) {}

    fn dropped(&self, _: MemberId) {}

    fn refused(&self, _: MemberId, _: u64, _: &str) {}
}

/// How this member proves its identity; `None` if neither certificates nor `peer.insecure` were set.
pub(super) fn security(config: &Config) -> Option<PeerSecurity> {
    match &config.peer.tls {
        PeerTls::Unset => None,
        PeerTls::Insecure => Some(PeerSecurity::Insecure),
        PeerTls::Files {
            cert,
            key,
            ca,
            crl,
            allowed,
        } => Some(PeerSecurity::Files(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            ca: ca.clone(),
            crl: crl.clone(),
            allowed: allowed_names(allowed),
            refuse_readable_keys: config.refuse_readable_keys,
        })),
    }
}

/// Which certificates of an authority are taken.
pub(super) fn allowed_names(allowed: &config::AllowedNames) -> AllowedNames {
    AllowedNames {
        common_names: allowed.common_names.clone(),
        hosts: allowed.hosts.clone(),
    }
}

/// Opens the socket for peers.
pub(super) fn listen(
    config: &Config,
    owner: &Owner,
    security: PeerSecurity,
) -> Result<PeerWay<'static>, StartError> {
    let host = config.peer_advertise().host.clone();
    let settings = settings(owner, host, security);
    let listener = Listener::open(&config.peer.listen.to_string(), settings)?;
    tracing::info!("peers on {}", listener.local_address());
    Ok(PeerWay::Quic(Box::new(listener)))
}

fn settings(owner: &Owner, host: String, security: PeerSecurity) -> HubSettings {
    HubSettings {
        identity: owner.identity,
        name: owner.name.clone(),
        host,
        security,
        pacing: Pacing::default(),
        queue_bytes_max: PEER_QUEUE_BYTES_MAX,
        seed: clock::entropy(),
        boot: clock::entropy(),
        version_high: if speaks_first_peer_version() {
            VERSION_LOW
        } else {
            VERSION_HIGH
        },
    }
}
