//! The composition root: a whole node, from a [`Config`] to requests that it serves.
//!
//! [`run`] is the server: a node, its client port, and the signals that end it. [`Node`] is the same node inside another program,
//! without sockets for clients.
//!
//! | file | owns |
//! |---|---|
//! | `data_directory` | the files, and what a set of them means |
//! | `questions` | what a starting member asks the others |
//! | `startup` | from the data directory to everything the actors start with |
//! | `refill`, `quorum_recovery` | an operator's requests that replace a database, or a cluster |
//! | `restore`, `import` | a data directory out of a snapshot file of etcd's format; out of a stopped etcd's data directory |
//! | `identity` | ids and membership that a configuration gives |
//! | `network` | how peers are reached, and guests answered |
//! | `client_sockets` | the sockets that clients connect to |
//! | `client_tls` | their TLS, and what is said of open ports |
//! | `placement`, `assemble` | threads, and the actors on them |
//! | `at_rest` | the keys of encryption at rest |
//! | `audit_log` | the settings of the audit log |
//! | `signed_tokens` | the settings of JWT, and its keys |
//! | `progress` | what a start waits for, as the client port and systemd report it |
//! | `readiness` | what a start logs, and when the member is ready |

mod assemble;
mod at_rest;
mod audit_log;
mod client_sockets;
mod client_tls;
mod data_directory;
mod error;
mod identity;
mod import;
mod network;
mod placement;
mod progress;
mod questions;
mod quorum_recovery;
mod readiness;
mod refill;
mod restore;
mod signed_tokens;
mod startup;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod users_tests;

pub use data_directory::DirectoryError;
pub use error::StartError;
pub use import::{ImportRequest, Imported, import_etcd};
pub use network::{Asked, PeerNetwork};
pub use quorum_recovery::{QuorumRecovery, QuorumRecoveryError, recover_quorum, recover_quorum_on};
pub use restore::{
    NoRestoreId, RestoreError, RestoreId, RestoreRequest, Restored, restore_snapshot,
};

use crate::{
    actors::{fail_stop::FailStop, requests::Requests, store::Store},
    api::{
        early::EarlyServer,
        listen::{ApiArbiter, ApiServer},
        serving::ListenLimits,
        sockets::ClientListener,
    },
    audit::Audit,
    config::{ClusterState, Config, ConfigError},
    storage::{descriptors, disk::Disk, member::Owner, real_disk::RealDisk},
    tls::ClientTls,
    types::Identity,
};
use actix::{Actor, Addr, System};
use assemble::{Running, assemble};
use client_sockets::ClientSockets;
use network::PeerWay;
use placement::Placement;
use progress::Progress;
use startup::{OpenMember, Plan};
use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// How often the peers' port is tried again that the questions of the start have used: QUIC frees it a moment later.
const PORT_TRIES: usize = 40;
/// The pause between two tries.
const PORT_PAUSE: Duration = Duration::from_millis(50);

/// A node inside this process. Dropping it stops it at once, as a crash would; [`Node::stop`] is the gentle way.
#[derive(Debug)]
pub struct Node {
    requests: Requests,
    stop: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Node {
    /// Starts a node on the data directory that `config` names, on threads of its own, without any socket. Returns when it
    /// has loaded its state; it answers requests once there is a leader.
    ///
    /// An error of its disk, or a bug, ends the process: see [`FailStop`]. [`Node::start_with`] lets the caller decide.
    pub fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_with(config, FailStop::process())
    }

    /// As [`Node::start`], but calls `fail_stop` when the node cannot go on.
    pub fn start_with(config: &Config, fail_stop: FailStop) -> Result<Self, StartError> {
        let (_keep, cancelled) = oneshot::channel();
        Self::start_unless(config, fail_stop, cancelled)
    }

    /// As [`Node::start_with`], but a start that waits for other members ends with [`StartError::Cancelled`] when the sender of
    /// `cancelled` sends, or is dropped.
    pub fn start_unless(
        config: &Config,
        fail_stop: FailStop,
        cancelled: oneshot::Receiver<()>,
    ) -> Result<Self, StartError> {
        let config = config.clone();
        let (up, started) = mpsc::channel();
        let (stop, stopping) = oneshot::channel::<oneshot::Sender<()>>();
        let body = move || {
            let system = System::new();
            let stopped = system.block_on(async move {
                let progress = Progress::default();
                let started = tokio::select! {
                    biased;
                    started = start_here(&config, &fail_stop, &progress) => started,
                    _ = cancelled => Err(StartError::Cancelled),
                };
                match started {
                    Err(error) => {
                        drop(up.send(Err(error)));
                        None
                    }
                    Ok((running, placement)) => {
                        drop(up.send(Ok(running.requests[0].clone())));
                        let stopped = stopping.await.ok();
                        if stopped.is_some() {
                            running.hand_over().await;
                            running.stop().await;
                        }
                        placement.stop();
                        stopped
                    }
                }
            });
            // The actors on this thread end with its system; only then is the data directory free.
            drop(system);
            if let Some(stopped) = stopped {
                stopped.send(()).unwrap_or_default();
            }
        };
        let spawned = thread::Builder::new()
            .name("quorate-core".to_owned())
            .spawn(body);
        spawned.map_err(|_| StartError::Thread)?;
        let requests = started.recv().map_err(|_| StartError::Thread)??;
        Ok(Self {
            requests,
            stop: Some(stop),
        })
    }

    /// Typed requests with the guarantees of the client API.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// An actor on the caller's arbiter that takes the same requests as messages.
    pub fn store(&self) -> Addr<Store> {
        Store::new(self.requests.clone()).start()
    }

    /// Which member of which cluster it is.
    pub fn identity(&self) -> Identity {
        self.requests.identity()
    }

    /// Stops the node: a leader first hands its leadership over, what it has acknowledged is durable, and the next start has
    /// nothing to replay.
    pub async fn stop(mut self) {
        let (stopped, done) = oneshot::channel();
        if let Some(stop) = self.stop.take()
            && stop.send(stopped).is_ok()
        {
            // An error means that the node was gone already.
            done.await.unwrap_or_default();
        }
    }
}

/// Runs a member with its client port until a signal ends it: SIGTERM, or Ctrl-C.
pub fn run(config: &Config) -> Result<(), StartError> {
    descriptors::raise_limit();
    let system = System::new();
    system.block_on(async {
        let from_files = client_tls::from_files(config)?;
        // The ports first: that one is taken should show before a long start.
        let ClientSockets {
            listeners,
            addresses,
            files,
        } = ClientSockets::open(&config.client.listen)?;
        let config = &readiness::with_reachable_addresses(config, &addresses);
        let audit = audit_log::open(&config.audit)?;
        let mut signals = Signals::new()?;
        let (fail_stop, progress) = (FailStop::process(), Progress::default());
        // A Unix socket and a port with TLS answer only once the member serves: probes use plain ports.
        let ports = listeners.iter().filter_map(ClientListener::plain_port);
        let early = ports.map(|port| EarlyServer::start(port, progress.follow()));
        let early = early.collect::<Result<Vec<_>, _>>();
        let early = early.map_err(|source| StartError::Listen {
            address: readiness::list(&addresses),
            source,
        })?;
        let (tls, keeper) = from_files.unzip();
        let _looking = keeper.map(client_tls::look_on_hangups).transpose()?;
        let (running, placement) = tokio::select! {
            started = start_here(config, &fail_stop, &progress) => started?,
            signal = signals.next() => {
                tracing::info!("{signal} while starting: nothing to finish");
                return Ok(());
            }
        };
        drop(early);
        let shown = readiness::list(&addresses);
        client_tls::report_open_ports(config, &running.requests[0]);
        let (own_tls, _own_keeper) = client_tls::own(config)?.unzip();
        let tls = tls.or(own_tls);
        let requests = running.requests[0].clone();
        let audit = audit_log::start(&config.audit, audit, requests.identity().member)?;
        let server = start_api(config, listeners, tls, &running, audit.as_ref(), &placement);
        let server = server.map_err(|source| StartError::Listen {
            address: shown.clone(),
            source,
        })?;
        let attempt = client_tls::etcdctl(config, requests.is_auth_on());
        let ready = actix::spawn(readiness::report_ready(
            requests,
            shown,
            config.data_dir.clone(),
            attempt,
        ));
        let signal = signals.next().await;
        ready.abort();
        progress::notify("STOPPING=1");
        // From here on no new request is served.
        drop(files);
        tracing::info!(
            "{signal}: stopping; hands over leadership and answers requests under way first. A second signal stops at once"
        );
        let stopping = async {
            running.hand_over().await;
            server.stop().await;
            running.stop().await;
            audit_log::finish(audit).await;
        };
        tokio::select! {
            () = stopping => tracing::info!("stopped"),
            again = signals.next() => tracing::warn!("{again} again: stops at once; acknowledged writes are in the log"),
        }
        placement.stop();
        Ok(())
    })
}

fn start_api(
    config: &Config,
    listeners: Vec<ClientListener>,
    tls: Option<ClientTls>,
    running: &Running,
    audit: Option<&Audit>,
    placement: &Placement,
) -> std::io::Result<ApiServer> {
    // The log has a file for each segment that it keeps, two that are prepared, and some that wait to be released.
    let segments = config.storage.log_keep_bytes / config.storage.wal_segment_bytes + 4;
    let limits = ListenLimits {
        connections_max: descriptors::connections_max(config.limits.connections_max, segments),
        streams_max: config.limits.concurrent_streams_max,
        ..ListenLimits::default()
    };
    let arbiters = placement.api.iter().zip(&running.requests);
    let arbiters: Vec<ApiArbiter> = arbiters
        .map(|(arbiter, requests)| ApiArbiter {
            arbiter: arbiter.clone(),
            requests: requests.clone(),
            audit: audit.cloned(),
        })
        .collect();
    ApiServer::start(listeners, &arbiters, limits, tls)
}

/// The signals that end a member.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self, StartError> {
        let listen = |kind| signal(kind).map_err(StartError::Signals);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}

/// A node whose actors all run on the current thread: for programs with a thread to spare and for simulations, where the same
/// seed then gives the same run. It ends, as in a crash, with the actix system it was started in.
#[derive(Debug)]
pub struct LocalNode {
    running: Running,
}

impl LocalNode {
    /// Starts a node on `disk`, inside the current actix system. `config` names no data directory here. One that awaits a
    /// snapshot has no state to serve before it is there.
    pub fn start(
        config: &Config,
        disk: &Arc<dyn Disk>,
        fail_stop: &FailStop,
    ) -> Result<Self, StartError> {
        let (disk, keeper) = at_rest::open(config, at_rest::Keys::read(config)?, disk.clone())?;
        let open = startup::open(config, &disk, startup::plan_alone(config, &disk)?)?;
        let way = if is_alone(config, &open) {
            PeerWay::Alone
        } else {
            listen_for_peers(config, &open.owner)?
        };
        let jwt = signed_tokens::keys(config)?;
        let placement = Placement::one_thread();
        let running = assemble(config, open, way, jwt, &placement, fail_stop);
        keeper.run_on(&placement);
        Ok(Self { running })
    }

    /// Typed requests with the guarantees of the client API.
    pub fn requests(&self) -> &Requests {
        &self.running.requests[0]
    }

    /// Hands leadership to another member, if this one leads; it never leads again. Ends once another member leads, or none can.
    /// [`LocalNode::stop`] does not do that: a leader that stops without it leaves the others to an election.
    pub fn hand_over(&self) -> impl Future<Output = ()> + use<> {
        self.running.hand_over()
    }

    /// Commits the applied entries that the next start would otherwise replay. The actors end with their system.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}

/// As [`LocalNode::start`], as a member of a cluster whose members reach each other through `network`. A member without data that
/// joins a running cluster asks there first. Not part of the public face: a [`PeerNetwork`] carries messages of consensus, which
/// change without notice.
pub async fn start_among(
    config: &Config,
    disk: &Arc<dyn Disk>,
    network: &dyn PeerNetwork,
    fail_stop: &FailStop,
) -> Result<LocalNode, StartError> {
    // Before anything is waited for: meanwhile other nodes may start on this thread, in systems of their own.
    let placement = Placement::one_thread();
    let bare = disk;
    let (mut disk, mut keeper) = at_rest::open(config, at_rest::Keys::read(config)?, bare.clone())?;
    let plan = startup::plan(config, &disk, Some(network), &Progress::default()).await?;
    if plan.beginning.is_some() {
        // Other members were asked, perhaps for hours: the key may be another one now.
        (disk, keeper) = at_rest::open(config, at_rest::Keys::read(config)?, bare.clone())?;
    }
    let open = startup::open(config, &disk, plan)?;
    let way = PeerWay::Given(network);
    let awaits_snapshot = open.awaits_snapshot;
    let jwt = signed_tokens::keys(config)?;
    let running = assemble(config, open, way, jwt, &placement, fail_stop);
    keeper.run_on(&placement);
    if awaits_snapshot {
        running.has_state().await;
    }
    Ok(LocalNode { running })
}

/// Starts a node on the current arbiter's system. Whatever can be checked is checked before the first byte is written.
async fn start_here(
    config: &Config,
    fail_stop: &FailStop,
    progress: &Progress,
) -> Result<(Running, Placement), StartError> {
    data_directory::require_own(&config.data_dir)?;
    if let Some(security) = network::security(config) {
        security.check(&config.name, &config.peer_advertise().host)?;
    }
    let jwt = signed_tokens::keys(config)?;
    let keys = at_rest::Keys::read_in_background(config).await?;
    let bare: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.data_dir)?);
    let (mut disk, mut keeper) =
        at_rest::open_in_background(config, keys, bare.clone(), progress).await?;
    let plan = startup::plan(config, &disk, None, progress).await?;
    readiness::report_first_start(config, &plan);
    let early = listen_before_first_start(config, &plan).await?;
    if plan.beginning.is_some() {
        // Other members were asked, perhaps for hours: the key may be another one now.
        let keys = at_rest::Keys::read_in_background(config).await?;
        (disk, keeper) = at_rest::open(config, keys, bare)?;
    }
    let open = startup::open(config, &disk, plan)?;
    let way = match early {
        Some(way) => way,
        None if is_alone(config, &open) => PeerWay::Alone,
        None => listen_for_peers(config, &open.owner)?,
    };
    readiness::report_start(&open);
    readiness::report_restored(&*disk, open.db.applied());
    let placement = Placement::new(&config.runtime);
    let awaits_snapshot = open.awaits_snapshot;
    let running = assemble(config, open, way, jwt, &placement, fail_stop);
    keeper.run_on(&placement);
    if awaits_snapshot {
        tracing::warn!(
            "this member has no state: it serves no clients before a snapshot is in place"
        );
        progress.waits_for("a snapshot from the leader has to be in place");
        running.has_state().await;
    }
    Ok((running, placement))
}

/// Opens the peers' port of a first start, which has not written anything yet: a port that is taken must not form a member. That
/// of a restored member, which asked the others at it, too: QUIC may free it only a moment later.
async fn listen_before_first_start(
    config: &Config,
    plan: &Plan,
) -> Result<Option<PeerWay<'static>>, StartError> {
    let alone = config.cluster.initial.len() <= 1
        && config.cluster.state == ClusterState::New
        && network::security(config).is_none();
    let begins = plan.beginning.is_some() || plan.begins_restored;
    if !begins || alone {
        return Ok(None);
    }
    for _ in 0..PORT_TRIES {
        match listen_for_peers(config, &plan.owner) {
            Ok(way) => return Ok(Some(way)),
            Err(error) => tracing::debug!("the peers' port is tried again: {error}"),
        }
        tokio::time::sleep(PORT_PAUSE).await;
    }
    listen_for_peers(config, &plan.owner).map(Some)
}

/// Whether this member has no peers, and was given no certificates for them: then it needs no socket.
fn is_alone(config: &Config, open: &OpenMember) -> bool {
    open.members.iter().count() <= 1
        && open.known_members.iter().count() <= 1
        && config.cluster.state == ClusterState::New
        && network::security(config).is_none()
}

/// The socket for peers.
fn listen_for_peers(config: &Config, owner: &Owner) -> Result<PeerWay<'static>, StartError> {
    match network::security(config) {
        Some(security) => network::listen(config, owner, security),
        None => Err(StartError::Config(ConfigError::Unauthenticated)),
    }
}
