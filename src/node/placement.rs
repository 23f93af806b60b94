//! Which actor runs on which arbiter: one table.
//!
//! | | one thread for all (`One`) | spread (`Many`) |
//! |---|---|---|
//! | Raft node | core | core |
//! | applier, index | core | apply |
//! | compactor, lease manager, watch hub | core | services |
//! | peer hub | core | net |
//! | WAL writer | its own | its own |
//! | committer | its own | its own |
//! | snapshots | its own | its own |
//! | client connections | core, or API arbiters if configured | API arbiters |
//!
//! The WAL writer, the committer and snapshots block on the disk, so nothing ever shares their threads. On a small machine a
//! cross-thread wake-up costs more than the work it hands over, so everything else stays together there.
//!
//! No request waits for the committer or for snapshots, so their threads are niced: where there are fewer cores than runnable
//! threads, requests go first. The nice value is small: a thread that never ran would hold up the writes behind it.

use crate::config::{RuntimeConfig, Spread};
use actix_rt::{Arbiter, ArbiterHandle};
use std::thread;

/// From so many cores on the placement `Many` is faster.
const SPREAD_CORES_MIN: usize = 4;

/// The nice value of the threads that no request waits for, above that of the others. With it they get a quarter of a contended
/// core.
const NICER: i32 = 5;

/// The table, with its threads running.
#[derive(Debug)]
pub(super) struct Placement {
    pub core: ArbiterHandle,
    pub apply: ArbiterHandle,
    pub services: ArbiterHandle,
    pub net: ArbiterHandle,
    pub wal: ArbiterHandle,
    pub committer: ArbiterHandle,
    pub snapshots: ArbiterHandle,
    pub api: Vec<ArbiterHandle>,
    /// The threads started for this table.
    threads: Vec<Arbiter>,
}

/// Raises the nice value of this thread.
fn nicer(arbiter: ArbiterHandle) -> ArbiterHandle {
    let begun = arbiter.spawn_fn(|| {
        // On Linux each thread has a nice value of its own. If the system refuses the change, it stays as it is.
        if let Err(error) = rustix::process::nice(NICER) {
            tracing::debug!("a thread of the node is as nice as the others: {error}");
        }
    });
    assert!(begun, "an arbiter that was just started takes work");
    arbiter
}

impl Placement {
    /// Everything on the current arbiter.
    pub(super) fn one_thread() -> Self {
        let core = Arbiter::current();
        Self {
            apply: core.clone(),
            services: core.clone(),
            net: core.clone(),
            wal: core.clone(),
            committer: core.clone(),
            snapshots: core.clone(),
            api: vec![core.clone()],
            threads: Vec::new(),
            core,
        }
    }

    /// The placement that the configuration asks for. Must be called on the arbiter that is to be the core.
    pub(super) fn new(runtime: &RuntimeConfig) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let spread = match runtime.spread {
            Spread::One => false,
            Spread::Many => true,
            Spread::Auto => cores >= SPREAD_CORES_MIN,
        };
        let mut threads = Vec::new();
        let mut start = || {
            let arbiter = Arbiter::new();
            let handle = arbiter.handle();
            threads.push(arbiter);
            handle
        };
        let core = Arbiter::current();
        let api_default = if spread { (cores - 2).max(1) } else { 0 };
        let api = match runtime.api_arbiters.unwrap_or(api_default) {
            0 => vec![core.clone()],
            count => (0..count).map(|_| start()).collect(),
        };
        Self {
            apply: if spread { start() } else { core.clone() },
            services: if spread { start() } else { core.clone() },
            net: if spread { start() } else { core.clone() },
            wal: start(),
            committer: nicer(start()),
            snapshots: nicer(start()),
            api,
            core,
            threads,
        }
    }

    /// Ends the threads, with the actors on them.
    pub(super) fn stop(self) {
        for arbiter in &self.threads {
            arbiter.stop();
        }
        for arbiter in self.threads {
            if arbiter.join().is_err() {
                tracing::error!("a thread of the node ended with a panic");
            }
        }
    }
}
