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
//! | `identity` | ids and membership that a configuration gives |
//! | `network` | how peers are reached, and guests answered |
//! | `placement`, `assemble` | threads, and the actors on them |
//! | `readiness` | what a start logs, and when the member is ready |

mod assemble;
mod data_directory;
mod error;
mod identity;
mod network;
mod placement;
mod questions;
mod quorum_recovery;
mod readiness;
mod refill;
mod startup;
#[cfg(test)]
mod tests;

pub use data_directory::DirectoryError;
pub use error::StartError;
pub use network::{Asked, PeerNetwork};
pub use quorum_recovery::{QuorumRecovery, QuorumRecoveryError, recover_quorum};

use crate::{
    actors::{fail_stop::FailStop, requests::Requests, store::Store},
    api::{
        listen::{ApiArbiter, ApiServer},
        serving::ListenLimits,
    },
    config::{ClusterState, Config, ConfigError},
    storage::{descriptors, disk::Disk, member::Owner, real_disk::RealDisk},
    types::Identity,
};
use actix::{Actor, Addr, System};
use assemble::{Running, assemble};
use network::PeerWay;
use placement::Placement;
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
        let config = config.clone();
        let (up, started) = mpsc::channel();
        let (stop, stopping) = oneshot::channel::<oneshot::Sender<()>>();
        let body = move || {
            let system = System::new();
            let stopped = system.block_on(async move {
                match start_here(&config, &fail_stop).await {
                    Err(error) => {
                        drop(up.send(Err(error)));
                        None
                    }
                    Ok((running, placement)) => {
                        drop(up.send(Ok(running.requests[0].clone())));
                        let stopped = stopping.await.ok();
                        if stopped.is_some() {
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

    /// Stops the node: what it has acknowledged is durable, and the next start has nothing to replay.
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
        // The port first: that it is taken should show before a long start.
        let address = config.client.listen.to_string();
        let listening = std::net::TcpListener::bind(&address);
        let listener = listening.map_err(|source| StartError::Listen {
            address: address.clone(),
            source,
        })?;
        let config = &readiness::with_reachable_addresses(config);
        let mut signals = Signals::new()?;
        let fail_stop = FailStop::process();
        let (running, placement) = tokio::select! {
            started = start_here(config, &fail_stop) => started?,
            signal = signals.next() => {
                tracing::info!("{signal} while starting: nothing to finish");
                return Ok(());
            }
        };
        let server = start_api(config, listener, &running, &placement)
            .map_err(|source| StartError::Listen { address, source })?;
        let requests = running.requests[0].clone();
        let ready = actix::spawn(readiness::report_ready(
            requests,
            server.address(),
            config.data_dir.clone(),
        ));
        let signal = signals.next().await;
        ready.abort();
        readiness::notify("STOPPING=1");
        tracing::info!("{signal}: stopping; requests under way are answered first");
        server.stop().await;
        running.stop().await;
        placement.stop();
        tracing::info!("stopped");
        Ok(())
    })
}

fn start_api(
    config: &Config,
    listener: std::net::TcpListener,
    running: &Running,
    placement: &Placement,
) -> std::io::Result<ApiServer> {
    let limits = ListenLimits {
        connections_max: config.limits.connections_max,
        streams_max: config.limits.concurrent_streams_max,
        ..ListenLimits::default()
    };
    let arbiters = placement.api.iter().zip(&running.requests);
    let arbiters: Vec<ApiArbiter> = arbiters
        .map(|(arbiter, requests)| ApiArbiter {
            arbiter: arbiter.clone(),
            requests: requests.clone(),
        })
        .collect();
    ApiServer::start(listener, &arbiters, limits)
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
        let open = startup::open(config, disk, startup::plan_alone(config, disk)?)?;
        let way = if is_alone(config, &open) {
            PeerWay::Alone
        } else {
            listen_for_peers(config, &open.owner)?
        };
        let running = assemble(config, open, way, &Placement::one_thread(), fail_stop);
        Ok(Self { running })
    }

    /// As [`LocalNode::start`], as a member of a cluster whose members reach each other through `network`. A member without data
    /// that joins a running cluster asks there first.
    pub async fn start_among(
        config: &Config,
        disk: &Arc<dyn Disk>,
        network: &dyn PeerNetwork,
        fail_stop: &FailStop,
    ) -> Result<Self, StartError> {
        // Before anything is waited for: meanwhile other nodes may start on this thread, in systems of their own.
        let placement = Placement::one_thread();
        let plan = startup::plan(config, disk, Some(network)).await?;
        let open = startup::open(config, disk, plan)?;
        let way = PeerWay::Given(network);
        let awaits_snapshot = open.awaits_snapshot;
        let running = assemble(config, open, way, &placement, fail_stop);
        if awaits_snapshot {
            running.has_state().await;
        }
        Ok(Self { running })
    }

    /// Typed requests with the guarantees of the client API.
    pub fn requests(&self) -> &Requests {
        &self.running.requests[0]
    }

    /// Makes durable what the next start would otherwise have to replay. The actors end with their system.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}

/// Starts a node on the current arbiter's system. Whatever can be checked is checked before the first byte is written.
async fn start_here(
    config: &Config,
    fail_stop: &FailStop,
) -> Result<(Running, Placement), StartError> {
    data_directory::require_own(&config.data_dir)?;
    if let Some(security) = network::security(config) {
        security.check(&config.name)?;
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.data_dir)?);
    let plan = startup::plan(config, &disk, None).await?;
    let early = listen_before_first_start(config, &plan).await?;
    let open = startup::open(config, &disk, plan)?;
    let way = match early {
        Some(way) => way,
        None if is_alone(config, &open) => PeerWay::Alone,
        None => listen_for_peers(config, &open.owner)?,
    };
    readiness::report_start(&open);
    let placement = Placement::new(&config.runtime);
    let awaits_snapshot = open.awaits_snapshot;
    let running = assemble(config, open, way, &placement, fail_stop);
    if awaits_snapshot {
        tracing::warn!(
            "this member has no state: it serves no clients before a snapshot is in place"
        );
        running.has_state().await;
    }
    Ok((running, placement))
}

/// Opens the peers' port of a first start, which has not written anything yet: a port that is taken must not form a member.
async fn listen_before_first_start(
    config: &Config,
    plan: &Plan,
) -> Result<Option<PeerWay<'static>>, StartError> {
    let alone = config.cluster.initial.len() <= 1
        && config.cluster.state == ClusterState::New
        && network::security(config).is_none();
    if plan.beginning.is_none() || alone {
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
        && open.seed.iter().count() <= 1
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
