//! The composition root: a whole node, from a [`Config`] to a way in.
//!
//! [`run`] is the server: a node, its client port, and the signals that end it. [`Node`] is the same node inside another program,
//! without sockets.

mod assemble;
mod placement;
mod recover;

pub use recover::StartError;

use crate::{
    actors::{
        fail_stop::FailStop,
        requests::{Identity, Requests},
    },
    config::Config,
    storage::{disk::Disk, real_disk::RealDisk},
};
use actix::System;
use assemble::{Running, assemble};
use placement::Placement;
use recover::recover;
use std::{
    sync::{Arc, mpsc},
    thread,
};
use tokio::sync::oneshot;

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
                match start_here(&config, &fail_stop) {
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

/// Recovers and starts a node on the current arbiter's system.
fn start_here(config: &Config, fail_stop: &FailStop) -> Result<(Running, Placement), StartError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.data_dir)?);
    let recovery = recover(config, &disk)?;
    let placement = Placement::new(&config.runtime);
    let running = assemble(config, recovery, &placement, fail_stop);
    Ok((running, placement))
}
