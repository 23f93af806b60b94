//! The known members and the one connection to each of them: dialling, accepting, and which of two connections stays.
//!
//! | two members have | and get | then |
//! |---|---|---|
//! | no open connection | a connection | it is kept |
//! | one that the higher id dialled | one that the lower id dialled, same process | the new one replaces it |
//! | one that the lower id dialled | one that the higher id dialled, same process | the new one is refused |
//! | one | one by the same dialler, same process | the new one replaces it: the dialler lost the old one |
//! | one that does not answer | one of another process | the new one replaces it: the member was restarted |
//! | one that answers | one of another process | the new one is refused: two processes have the same member id |

use super::{
    admission::{Admission, Share, Slot, Verdict, canonical},
    backoff::Backoff,
    error::{ForwardError, NetError, Refusal, SnapshotError},
    guest::{self, GUEST},
    hello::{self, Hello},
    inbox::Inbox,
    link::{self, Answers, Link},
    requests::ForwardReply,
    settings::{HubSettings, Listener, Pacing, PeerAddress, PeerStats, server_config, transport},
    snapshot::{self, SnapshotSender},
    tls::{self, PeerSecurity, SERVER_NAME, TlsConfigs, TlsWatch},
};
use crate::{
    clock,
    log_gate::{self, LogGate},
    raft::Envelope,
    types::MemberId,
};
use bytes::Bytes;
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, TokioRuntime, TransportConfig};
use rustls::pki_types::CertificateDer;
use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

/// Addresses remembered of one peer: members have a few, and what their names resolve to may change.
const SOCKETS_MAX: usize = 16;

/// The connections to all peers. Clones share them. Must stay on one thread, inside a `LocalSet`.
#[derive(Clone)]
pub struct Hub(Rc<Inner>);

struct Inner {
    settings: HubSettings,
    endpoint: Endpoint,
    local: SocketAddr,
    transport: Arc<TransportConfig>,
    tls: RefCell<TlsConfigs>,
    inbox: Rc<dyn Inbox>,
    peers: RefCell<BTreeMap<MemberId, Rc<Peer>>>,
    gate: LogGate,
    admission: Admission,
    /// When a sender was last asked to prove its address, or was refused.
    flooded: Cell<Option<Instant>>,
    tasks: RefCell<Vec<AbortHandle>>,
}

struct Peer {
    id: MemberId,
    address: RefCell<PeerAddress>,
    /// Where it listens, as far as is known: what its names resolved to, and where its last connection came from.
    sockets: RefCell<Vec<SocketAddr>>,
    link: RefCell<Option<Rc<Link>>>,
    /// The link or the address changed.
    changed: Notify,
    dialler: RefCell<Option<AbortHandle>>,
    /// Bytes out and in of links that ended.
    past_bytes: Cell<(u64, u64)>,
    dropped: Cell<u64>,
    connections: Cell<u64>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hub")
            .field(&self.0.settings.identity)
            .finish()
    }
}

impl Hub {
    /// Starts accepting peers. Must be called inside a `LocalSet` of a tokio runtime.
    pub fn start(listener: Listener, inbox: Rc<dyn Inbox>) -> Result<Self, NetError> {
        let Listener {
            socket,
            address,
            tls,
            watch,
            settings,
        } = listener;
        let transport = Arc::new(transport(&settings.pacing));
        let server = server_config(&tls, &transport);
        let runtime = Arc::new(TokioRuntime);
        let endpoint = Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime)
            .map_err(|source| NetError::Listen {
                address: address.to_string(),
                source,
            })?;
        let inner = Rc::new(Inner {
            settings,
            endpoint,
            local: address,
            transport,
            tls: RefCell::new(tls),
            inbox,
            peers: RefCell::default(),
            gate: LogGate::new(),
            admission: Admission::default(),
            flooded: Cell::default(),
            tasks: RefCell::default(),
        });
        let accepting = tokio::task::spawn_local(accept_all(Rc::clone(&inner)));
        let watching = tokio::task::spawn_local(watch_tls(Rc::clone(&inner), watch));
        *inner.tasks.borrow_mut() = vec![accepting.abort_handle(), watching.abort_handle()];
        Ok(Self(inner))
    }

    /// Replaces the set of known members. Connections to members that are no longer in it are closed; new addresses are dialled
    /// at once where there is no connection. This member's own entry is skipped.
    pub fn update(&self, book: Vec<PeerAddress>) {
        let own = self.0.settings.identity.member;
        let book: BTreeMap<MemberId, PeerAddress> = book
            .into_iter()
            .filter(|peer| peer.id != own)
            .map(|peer| (peer.id, peer))
            .collect();
        let mut peers = self.0.peers.borrow_mut();
        let gone: Vec<MemberId> = peers
            .keys()
            .filter(|id| !book.contains_key(id))
            .copied()
            .collect();
        let gone: Vec<Rc<Peer>> = gone.iter().filter_map(|id| peers.remove(id)).collect();
        for (id, address) in book {
            if let Some(peer) = peers.get(&id) {
                if *peer.address.borrow() != address {
                    peer.address.replace(address);
                    peer.changed.notify_waiters();
                    peer.changed.notify_one();
                }
            } else {
                let peer = Rc::new(Peer::new(address));
                let dialler = tokio::task::spawn_local(dial(Rc::clone(&self.0), Rc::clone(&peer)));
                peer.dialler.replace(Some(dialler.abort_handle()));
                peers.insert(id, peer);
            }
        }
        drop(peers);
        for peer in gone {
            peer.end(&Refusal::Removed(peer.id));
        }
    }

    /// Sends Raft messages. Those that cannot be sent are dropped.
    pub fn send(&self, messages: Vec<Envelope>) {
        let mut full = Vec::new();
        for Envelope { to, message } in messages {
            let Some(peer) = self.0.peer(to) else {
                continue;
            };
            let link = peer.link.borrow().clone();
            let sent = link
                .as_ref()
                .is_some_and(|link| link.queues.message(message));
            if !sent {
                peer.dropped.set(peer.dropped.get() + 1);
                if link.is_some() && !full.contains(&to) {
                    full.push(to);
                }
            }
        }
        for id in full {
            self.0.inbox.dropped(id);
        }
    }

    /// Forwards a request to a member; `reply` gets the answer. Dropping the receiver of `reply` cancels the request. One that
    /// came into the peer protocol with a later `version` than the member speaks is not sent.
    pub fn forward(&self, to: MemberId, version: u16, request: Bytes, reply: ForwardReply) {
        let refused = match self.0.link(to) {
            Some(link) if link.version < version => ForwardError::NotSpoken(to),
            Some(link) => return link.requests.forward(request, reply),
            None => ForwardError::Unreachable(to),
        };
        // The caller may have dropped its receiver.
        drop(reply.send(Err(refused)));
    }

    /// Opens a stream for a snapshot to a member.
    pub fn open_snapshot(
        &self,
        to: MemberId,
        header: Bytes,
    ) -> Result<SnapshotSender, SnapshotError> {
        let link = self.0.link(to).ok_or(SnapshotError::Unreachable(to))?;
        snapshot::open(link.connection.clone(), header)
    }

    /// Figures for metrics, in order of ids.
    pub fn stats(&self) -> Vec<PeerStats> {
        self.0
            .peers
            .borrow()
            .values()
            .map(|peer| peer.stats())
            .collect()
    }

    /// The failures that were logged within the last minute.
    #[cfg(test)]
    pub(super) fn reported(&self) -> Vec<String> {
        self.0.gate.texts()
    }

    /// Who dialled the connection to a member.
    #[cfg(test)]
    pub(super) fn dialled_by(&self, peer: MemberId) -> Option<MemberId> {
        self.0.link(peer).map(|link| link.dialled_by)
    }

    /// Closes all connections with the reason [`Refusal::Stopping`], without waiting.
    pub fn shut(&self) {
        let stopping = Refusal::Stopping(self.0.settings.identity.member);
        self.0.tasks.take().iter().for_each(AbortHandle::abort);
        for peer in self.0.peers.take().into_values() {
            peer.end(&stopping);
        }
        self.0
            .endpoint
            .close(stopping.code().into(), stopping.to_string().as_bytes());
    }

    /// As [`shut`](Self::shut), and waits until the peers have acknowledged it, at most as long as a handshake may take.
    pub async fn close(&self) {
        self.shut();
        let patience = self.0.settings.pacing.handshake_timeout;
        // A peer that does not acknowledge it notices by its idle timeout.
        tokio::time::timeout(patience, self.0.endpoint.wait_idle())
            .await
            .unwrap_or_default();
    }
}

impl Peer {
    fn new(address: PeerAddress) -> Self {
        Self {
            id: address.id,
            address: RefCell::new(address),
            sockets: RefCell::default(),
            link: RefCell::default(),
            changed: Notify::new(),
            dialler: RefCell::default(),
            past_bytes: Cell::default(),
            dropped: Cell::default(),
            connections: Cell::default(),
        }
    }

    /// Notes addresses at which it listens.
    fn found_at(&self, sockets: impl IntoIterator<Item = SocketAddr>) {
        let mut known = self.sockets.borrow_mut();
        for socket in sockets.into_iter().map(canonical) {
            if !known.contains(&socket) {
                known.insert(0, socket);
            }
        }
        known.truncate(SOCKETS_MAX);
    }

    fn end(&self, refusal: &Refusal) {
        if let Some(dialler) = self.dialler.take() {
            dialler.abort();
        }
        // The link's own task reports that it ended.
        if let Some(link) = &*self.link.borrow() {
            link.close(refusal);
        }
    }

    fn stats(&self) -> PeerStats {
        let link = self.link.borrow();
        let (mut out, mut into) = self.past_bytes.get();
        if let Some(link) = &*link {
            let now = link.connection.stats();
            (out, into) = (out + now.udp_tx.bytes, into + now.udp_rx.bytes);
        }
        PeerStats {
            id: self.id,
            name: self.address.borrow().name.clone(),
            round_trip: link.as_ref().map(|link| link.connection.rtt()),
            bytes_out: out,
            bytes_in: into,
            waiting_bytes: link.as_ref().map_or(0, |link| link.queues.waiting_bytes()),
            dropped: self.dropped.get(),
            connections: self.connections.get(),
        }
    }
}

impl Inner {
    fn peer(&self, id: MemberId) -> Option<Rc<Peer>> {
        self.peers.borrow().get(&id).cloned()
    }

    fn link(&self, id: MemberId) -> Option<Rc<Link>> {
        self.peers.borrow().get(&id)?.link.borrow().clone()
    }

    /// The member that listens at an address.
    fn member_at(&self, address: SocketAddr) -> Option<MemberId> {
        let peers = self.peers.borrow();
        let found = peers
            .values()
            .find(|peer| peer.sockets.borrow().contains(&address));
        found.map(|peer| peer.id)
    }

    fn hello(&self) -> Hello {
        let settings = &self.settings;
        Hello::new(
            settings.identity,
            settings.version_high,
            settings.boot,
            settings.name.clone(),
        )
    }

    /// Whether the sender of `hello` may connect. `expected` is the member that was dialled.
    async fn check(
        &self,
        connection: &Connection,
        hello: &Hello,
        expected: Option<MemberId>,
    ) -> Result<(), Refusal> {
        let (ours, id) = (&self.settings.identity, hello.member);
        if id == GUEST && expected.is_none() {
            return self.check_certificate(connection, hello, &self.guest_hosts(connection, hello));
        }
        if hello.cluster != ours.cluster {
            return Err(Refusal::Cluster {
                id,
                theirs: hello.cluster,
                ours: ours.cluster,
            });
        }
        if id == ours.member {
            return Err(Refusal::DuplicateMember(id));
        }
        if let Some(expected) = expected.filter(|expected| *expected != id) {
            return Err(Refusal::OtherMember {
                expected,
                found: id,
            });
        }
        let name = hello.name.clone();
        let Some(peer) = self.peer(id) else {
            return Err(Refusal::UnknownMember { id, name });
        };
        let known = peer.address.borrow().name.clone();
        if !known.is_empty() && known != name {
            return Err(Refusal::Name {
                id,
                known,
                claimed: name,
            });
        }
        let hosts = peer.address.borrow().hosts();
        self.check_certificate(connection, hello, &hosts)?;
        self.check_single(&peer, hello).await
    }

    /// The hosts that the certificate of a guest may name: the address it connects from, and the hosts of members that were added
    /// but have not started, if they have its name or no name yet.
    fn guest_hosts(&self, connection: &Connection, hello: &Hello) -> Vec<String> {
        let from = canonical(connection.remote_address()).ip().to_string();
        let peers = self.peers.borrow();
        let addresses = peers.values().map(|peer| peer.address.borrow());
        let hosts =
            addresses.filter(|address| address.name.is_empty() || address.name == hello.name);
        let hosts = hosts.flat_map(|address| address.hosts());
        std::iter::once(from).chain(hosts).collect()
    }

    /// Refuses a peer whose certificate is not that of the member in its hello, which others reach at `hosts`.
    fn check_certificate(
        &self,
        connection: &Connection,
        hello: &Hello,
        hosts: &[String],
    ) -> Result<(), Refusal> {
        if self.settings.security == PeerSecurity::Insecure {
            return Ok(());
        }
        let (id, claimed, chain) = (hello.member, hello.name.clone(), chain_of(connection));
        let allowed = self.settings.security.allowed();
        let is_own = |cert| tls::is_of_member(cert, &allowed, &claimed, hosts);
        if chain.first().is_some_and(is_own) {
            Ok(())
        } else {
            let named = tls::shown_names(&chain);
            Err(Refusal::Certificate { id, named, claimed })
        }
    }

    /// Refuses a second process with the id of one that is connected and still answers.
    async fn check_single(&self, peer: &Peer, hello: &Hello) -> Result<(), Refusal> {
        let old = peer.link.borrow().clone();
        let Some(old) = old.filter(|old| old.boot != hello.boot && !old.is_closed()) else {
            return Ok(());
        };
        // Datagrams that a dead process had sent have arrived by then.
        tokio::time::sleep(self.settings.pacing.probe / 4).await;
        let before = old.connection.stats().udp_rx.datagrams;
        old.queues.notice(super::codec::WireRequest::Ping);
        tokio::time::sleep(self.settings.pacing.probe * 3 / 4).await;
        let lives = old.connection.stats().udp_rx.datagrams > before && !old.is_closed();
        if lives {
            Err(Refusal::DuplicateMember(hello.member))
        } else {
            Ok(())
        }
    }

    /// Keeps a connection whose handshake is done, if the table above says that it stays.
    fn take(
        self: &Rc<Self>,
        connection: Connection,
        hello: &Hello,
        dialled: bool,
    ) -> Result<(), NetError> {
        let (own, id) = (self.settings.identity.member, hello.member);
        let Some(peer) = self.peer(id) else {
            let name = hello.name.clone();
            return Err(hello::refuse(
                &connection,
                Refusal::UnknownMember { id, name },
            ));
        };
        let dialled_by = if dialled { own } else { id };
        let old = peer.link.borrow().clone();
        if let Some(old) = &old {
            let stays = old.boot == hello.boot && old.dialled_by < dialled_by && !old.is_closed();
            if stays {
                return Err(hello::refuse(&connection, Refusal::Connected(own, id)));
            }
        }
        let bytes_max = self.settings.queue_bytes_max;
        peer.found_at([connection.remote_address()]);
        let process = (hello.boot, self.hello().common(hello));
        let (new, answers) = Link::new(id, dialled_by, process, connection, bytes_max);
        peer.link.replace(Some(Rc::clone(&new)));
        peer.connections.set(peer.connections.get() + 1);
        peer.changed.notify_waiters();
        self.gate.forget(&peer_label(&peer));
        let is_news = old.as_ref().is_none_or(|old| old.version != new.version);
        if let Some(old) = old {
            old.close(&Refusal::Connected(own, id));
        }
        if is_news {
            self.inbox.connected(id, new.version);
        }
        tracing::info!(
            peer = id.hex(),
            name = hello.name,
            address = %new.connection.remote_address(),
            dialled,
            "connected to peer"
        );
        let inner = Rc::clone(self);
        tokio::task::spawn_local(async move { inner.keep(peer, new, answers).await });
        Ok(())
    }

    /// Runs a link to its end.
    async fn keep(self: Rc<Self>, peer: Rc<Peer>, link: Rc<Link>, answers: Answers) {
        let ended = link::run(Rc::clone(&link), answers, Rc::clone(&self.inbox)).await;
        let last = link.connection.stats();
        let (out, into) = peer.past_bytes.get();
        peer.past_bytes
            .set((out + last.udp_tx.bytes, into + last.udp_rx.bytes));
        let current = peer
            .link
            .borrow()
            .as_ref()
            .is_some_and(|now| Rc::ptr_eq(now, &link));
        if current {
            peer.link.replace(None);
            peer.changed.notify_waiters();
            peer.changed.notify_one();
            self.inbox.disconnected(peer.id);
            self.report(&peer_label(&peer), &ended);
        }
    }

    /// Whether a sender was turned away for lack of slots within two handshake timeouts.
    fn is_flooded(&self) -> bool {
        let lately = 2 * self.settings.pacing.handshake_timeout;
        let since = self.flooded.get().map(|last| clock::now() - last);
        since.is_some_and(|since| since < lately)
    }

    /// Warns that handshakes use up their slots. The text has no address: a flood has very many, and each text would be logged.
    fn report_flood(&self, from: SocketAddr, then: &str) {
        self.flooded.set(Some(clock::now()));
        let text = format!("many handshakes that peers begin fail or are not completed: {then}");
        if self.gate.passes(&text) {
            tracing::warn!(last_from = %from, "{text}");
        }
    }

    /// Logs a failure as a warning, unless the same text was logged within the last minute.
    fn report(&self, whose: &str, error: &NetError) {
        if is_connected(error) {
            return;
        }
        log_gate::warn!(self.gate, "{whose}: {error}");
    }
}

/// Whether a connection was refused only because the two members are connected already, which is no failure.
fn is_connected(error: &NetError) -> bool {
    match error {
        NetError::RefusedByPeer { code, .. } => *code == u64::from(Refusal::CONNECTED),
        NetError::Refused(refusal) => refusal.code() == Refusal::CONNECTED,
        _ => false,
    }
}

/// Keeps dialling a member whenever there is no connection to it.
async fn dial(inner: Rc<Inner>, peer: Rc<Peer>) {
    let Pacing {
        redial_least,
        redial_most,
        ..
    } = inner.settings.pacing;
    let seed = inner.settings.seed ^ peer.id.0.rotate_left(32);
    let mut backoff = Backoff::new(redial_least, redial_most, seed);
    let mut attempt = 0;
    loop {
        let linked = peer.link.borrow().clone();
        if let Some(link) = linked {
            peer.changed.notified().await;
            if clock::now().duration_since(link.since) > backoff.most() {
                backoff.reset();
            }
            continue;
        }
        let outcome = dial_once(&inner, &peer, attempt).await;
        attempt += 1;
        if let Err(error) = outcome {
            if let (NetError::RefusedByPeer { code, text }, false) = (&error, is_connected(&error))
            {
                inner.inbox.refused(peer.id, *code, text);
            }
            inner.report(&peer_label(&peer), &error);
        }
        // Also after a success: if the connection fails at once, the next attempt waits.
        tokio::select! {
            () = tokio::time::sleep(backoff.wait()) => {}
            () = peer.changed.notified() => {}
        }
    }
}

fn peer_label(peer: &Peer) -> String {
    let address = peer.address.borrow();
    let at = address.addresses.join(", ");
    format!("peer {} ({}, {at})", address.id.hex(), address.name)
}

async fn dial_once(inner: &Rc<Inner>, peer: &Peer, attempt: usize) -> Result<(), NetError> {
    let patience = inner.settings.pacing.handshake_timeout;
    let dialled = tokio::time::timeout(patience, async {
        let address = resolve(inner, peer, attempt).await?;
        let mut config = quinn::ClientConfig::new(
            Arc::<quinn::crypto::rustls::QuicClientConfig>::clone(&inner.tls.borrow().client),
        );
        config.transport_config(Arc::clone(&inner.transport));
        let connecting = inner.endpoint.connect_with(config, address, SERVER_NAME);
        let connecting = connecting.map_err(|source| NetError::Dial {
            address: address.to_string(),
            source,
        })?;
        let connection = connecting.await?;
        let check = async |hello: &Hello| inner.check(&connection, hello, Some(peer.id)).await;
        let hello = hello::initiate(&connection, &inner.hello(), check).await?;
        Ok::<_, NetError>((connection, hello))
    });
    let (connection, hello) = dialled.await.map_err(|_| NetError::HandshakeTimeout)??;
    inner.take(connection, &hello, true)
}

/// The next address to try: the member's addresses in turn, and of each the addresses that its name resolves to, in turn.
async fn resolve(inner: &Inner, peer: &Peer, attempt: usize) -> Result<SocketAddr, NetError> {
    let addresses = peer.address.borrow().addresses.clone();
    let Some(address) = addresses.get(attempt % addresses.len().max(1)) else {
        return Err(NetError::NoAddress {
            address: format!("member {}", peer.id.hex()),
        });
    };
    let found = tokio::net::lookup_host(address.as_str()).await;
    let found = found.map_err(|source| NetError::Resolve {
        address: address.clone(),
        source,
    })?;
    let reachable: Vec<SocketAddr> = found
        .filter(|found| inner.local.is_ipv6() || found.is_ipv4())
        .collect();
    peer.found_at(reachable.iter().copied());
    let turn = attempt / addresses.len().max(1);
    reachable
        .get(turn % reachable.len().max(1))
        .copied()
        .ok_or_else(|| NetError::NoAddress {
            address: address.clone(),
        })
}

async fn accept_all(inner: Rc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        let (from, proven) = (
            canonical(incoming.remote_address()),
            incoming.remote_address_validated(),
        );
        let member = proven.then(|| inner.member_at(from)).flatten();
        match inner.admission.decide(from.ip(), proven, member) {
            Verdict::Begin(slot) => {
                tokio::task::spawn_local(accept_one(Rc::clone(&inner), incoming, slot));
            }
            Verdict::Prove => {
                if let Err(bears_token) = incoming.retry() {
                    bears_token.into_incoming().refuse();
                }
                inner.report_flood(from, "peers must prove their addresses while this lasts");
            }
            Verdict::Refuse => {
                incoming.refuse();
                inner.report_flood(from, "further ones from there are refused");
            }
        }
    }
}

/// Accepts a connection. A handshake that fails in TLS keeps its slot until the handshake timeout.
async fn accept_one(inner: Rc<Inner>, incoming: Incoming, slot: Slot) {
    let over = clock::now() + inner.settings.pacing.handshake_timeout;
    // Without the port, which differs from attempt to attempt: the same text is logged once.
    let from = format!("a peer at {}", incoming.remote_address().ip());
    let authenticated = Cell::new(false);
    let Err(error) = accept(&inner, incoming, &authenticated).await else {
        return;
    };
    if authenticated.get() {
        inner.report(&from, &error);
        return;
    }
    if slot.share() == Share::Unproven && inner.is_flooded() {
        tracing::debug!("{from}: {error}");
    } else {
        inner.report(&from, &error);
    }
    if !matches!(slot.share(), Share::Member(_)) {
        // While this task waits, it must not keep the endpoint and its socket open.
        drop(inner);
        tokio::time::sleep_until(over).await;
    }
}

async fn accept(
    inner: &Rc<Inner>,
    incoming: Incoming,
    authenticated: &Cell<bool>,
) -> Result<(), NetError> {
    let patience = inner.settings.pacing.handshake_timeout;
    let connected = tokio::time::timeout(patience, async {
        let connection = incoming.await?;
        authenticated.set(true);
        let check = async |hello: &Hello| inner.check(&connection, hello, None).await;
        let hello = hello::respond(&connection, &inner.hello(), check).await?;
        Ok::<_, NetError>((connection, hello))
    });
    let (connection, hello) = connected.await.map_err(|_| NetError::HandshakeTimeout)??;
    if hello.member == GUEST {
        let served = guest::serve(&connection, hello.name, &*inner.inbox);
        let served = tokio::time::timeout(patience, served).await;
        return served.map_err(|_| NetError::HandshakeTimeout)?;
    }
    inner.take(connection, &hello, false)
}

/// The certificates that the peer has shown.
fn chain_of(connection: &Connection) -> Vec<CertificateDer<'static>> {
    let identity = connection.peer_identity();
    let chain = identity.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

/// Uses new certificates for new connections when their files change.
async fn watch_tls(inner: Rc<Inner>, mut watch: TlsWatch) {
    loop {
        tokio::time::sleep(inner.settings.pacing.tls_look).await;
        let looked = tokio::task::spawn_blocking(move || {
            let read = watch.look();
            (watch, read)
        });
        let Ok((again, read)) = looked.await else {
            return;
        };
        watch = again;
        match read {
            None => {}
            Some(Ok(configs)) => {
                inner
                    .endpoint
                    .set_server_config(Some(server_config(&configs, &inner.transport)));
                let authorities = configs.authorities;
                inner.tls.replace(configs);
                tracing::info!(
                    "new peer certificates are in use for new connections; authorities in peer.ca, all of them trusted: \
                     {authorities}"
                );
            }
            Some(Err(error)) => {
                tracing::error!(
                    "peer certificates changed and cannot be used; the old ones stay: {error}"
                );
            }
        }
    }
}
