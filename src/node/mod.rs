//! The composition root: a whole node, from a [`Config`] to a way in.
//!
//! [`run`] is the server: a node, its client port, and the signals that end it. [`Node`] is the same node inside another program,
//! without sockets.

mod assemble;
mod join;
mod network;
mod placement;
mod recover;
mod refill;
mod survivor;

pub use network::{Asked, PeerNetwork};
pub use recover::StartError;
pub use survivor::{Survival, SurvivorError, recover_survivor};

use crate::{
    actors::{fail_stop::FailStop, requests::Requests, store::Store},
    api::{
        listen::{ApiArbiter, ApiServer},
        serving::ListenLimits,
    },
    clock,
    config::{ClusterState, Config, ConfigError},
    net::{HubSettings, Listener, Pacing},
    storage::{descriptors, disk::Disk, real_disk::RealDisk},
    types::Identity,
};
use actix::{Actor, Addr, System};
use assemble::{Running, assemble};
use network::PeerWay;
use placement::Placement;
use recover::{Recovery, recover};
use std::{
    sync::{Arc, mpsc},
    thread,
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

/// Bytes that may wait to be written to one peer: two windows of entries, and requests.
const PEER_QUEUE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// A node inside this process. Dropping it stops it at once, as a crash would; [`Node::stop`] is the gentle way.
#[derive(Debug)]
pub struct Node {
    requests: Requests,
    stop: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Node {
    /// Starts a node on the data directory that `config` names, on threads of its own, without any socket. Returns when it
    /// has recovered; it answers once it leads.
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

    /// The way in: typed requests with the guarantees of the client API.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The way in as an actor on the caller's arbiter, which takes the same requests as messages.
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
        // The port first: that it is taken should not be found out after a long recovery.
        let address = config.client.listen.to_string();
        let listening = std::net::TcpListener::bind(&address);
        let listener = listening.map_err(|source| StartError::Listen {
            address: address.clone(),
            source,
        })?;
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
        let (clients, data) = (server.address(), config.data_dir.display());
        tracing::info!(
            "ready: clients on {clients}, data in {data}; try: etcdctl --endpoints={clients} put greeting hello"
        );
        let signal = signals.next().await;
        tracing::info!("{signal}: stopping; requests under way get their answers");
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
    let ways = placement.api.iter().zip(&running.requests);
    let arbiters: Vec<ApiArbiter> = ways
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
        let recovery = recover(config, disk, None, None)?;
        let way = listen_for_peers(config, &recovery)?;
        let running = assemble(config, recovery, way, &Placement::one_thread(), fail_stop);
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
        let joined = join::ask_around(config, &**disk, Some(network)).await?;
        let told = join::ask_for_members(config, &**disk, Some(network)).await?;
        let recovery = recover(config, disk, joined, told.as_ref())?;
        let way = PeerWay::Given(network);
        let awaits_snapshot = recovery.awaits_snapshot;
        let running = assemble(config, recovery, way, &placement, fail_stop);
        if awaits_snapshot {
            running.has_state().await;
        }
        Ok(Self { running })
    }

    /// The way in: typed requests with the guarantees of the client API.
    pub fn requests(&self) -> &Requests {
        &self.running.requests[0]
    }

    /// Makes durable what the next start would otherwise have to replay. The actors end with their system.
    pub async fn stop(self) {
        self.running.stop().await;
    }
}

/// Recovers and starts a node on the current arbiter's system.
async fn start_here(
    config: &Config,
    fail_stop: &FailStop,
) -> Result<(Running, Placement), StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.data_dir)?);
    let joined = join::ask_around(config, &*disk, None).await?;
    let told = join::ask_for_members(config, &*disk, None).await?;
    let recovery = recover(config, &disk, joined, told.as_ref())?;
    let way = listen_for_peers(config, &recovery)?;
    let placement = Placement::new(&config.runtime);
    let awaits_snapshot = recovery.awaits_snapshot;
    let running = assemble(config, recovery, way, &placement, fail_stop);
    if awaits_snapshot {
        tracing::warn!(
            "this member has no state: it serves no clients before a snapshot is in place"
        );
        running.has_state().await;
    }
    Ok((running, placement))
}

/// The socket for peers, unless this member is alone and was given no certificates: then there is nobody to talk to.
fn listen_for_peers(config: &Config, recovery: &Recovery) -> Result<PeerWay<'static>, StartError> {
    let alone = recovery.members.iter().count() <= 1
        && recovery.seed.iter().count() <= 1
        && config.cluster.state == ClusterState::New;
    let security = match join::security(config) {
        Some(security) => security,
        None if alone => return Ok(PeerWay::Alone),
        None => return Err(StartError::Config(ConfigError::Unauthenticated)),
    };
    let settings = HubSettings {
        identity: recovery.owner.identity,
        name: recovery.owner.name.clone(),
        security,
        pacing: Pacing::default(),
        queue_bytes_max: PEER_QUEUE_BYTES_MAX,
        seed: clock::entropy(),
        boot: clock::entropy(),
    };
    let listener = Listener::open(&config.peer.listen.to_string(), settings)?;
    tracing::info!("peers on {}", listener.local_address());
    Ok(PeerWay::Quic(Box::new(listener)))
}
