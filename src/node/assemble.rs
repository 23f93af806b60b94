//! Starts the actors of a recovered member, and stops them.
//!
//! Actors know each other from their constructors on. Where two know each other, the first one started gets its peers through a
//! channel that is filled once all addresses exist; the first thing it does is to take them.

use super::{placement::Placement, recover::Recovery};
use crate::{
    actors::{
        applier::{Applier, CommitPacing, DrainTail, Peers},
        committer::Committer,
        compactor::{CompactionPacing, CompactionState, Compactor, CompactorPeers},
        fail_stop::{FailStop, Lifeline},
        index::Index,
        lease_manager::LeaseManager,
        raft_node::{RaftNode, RaftPacing, RaftPeers, RaftStatus},
        requests::{Identity, Published, RequestLimits, RequestPeers, Requests},
        wal_writer::{SealLog, WalWriter},
        watch_hub::{EndStreams, PROGRESS_INTERVAL, WatchHub},
    },
    config::{self, Config},
    kv::{machine::Machine, range::Window, retention::Retention, runs::Runs, view::View},
    types::{LogIndex, Millis, Term},
};
use actix::prelude::*;
use std::{
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::sync::watch;

/// Bytes of records after which a commit does not wait for its interval.
const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a request may take, besides two election timeouts.
const REQUEST_TIMEOUT_BASE: Duration = Duration::from_secs(5);

/// How long a stopping node waits for its last commit.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The running actors of a node.
#[derive(Debug)]
pub(super) struct Running {
    /// A way in for each API arbiter, in the placement's order.
    pub requests: Vec<Requests>,
    applier: Addr<Applier>,
    wal: Addr<WalWriter>,
    watches: Addr<WatchHub>,
}

/// Starts every actor. Must be called on the core arbiter.
pub(super) fn assemble(
    config: &Config,
    recovery: Recovery,
    placement: &Placement,
    fail_stop: &FailStop,
) -> Running {
    let Recovery {
        member,
        db,
        wal,
        restored,
        tree,
        raft,
    } = recovery;
    let identity = Identity {
        cluster: member.cluster,
        member: member.node,
    };
    let life = |actor| Lifeline::new(actor, fail_stop.clone());
    let reader = match db.reader() {
        Ok(reader) => reader,
        Err(error) => {
            fail_stop.because("cannot read the database", &error);
            unreachable!("the member has stopped");
        }
    };
    let compaction = CompactionState {
        wanted: restored.compacted,
        stored: db
            .compaction()
            .map(|progress| (progress.through, progress.next)),
    };
    let leases = restored
        .leases
        .iter()
        .map(|(id, lease)| (id, lease.ttl_secs))
        .collect();
    let snapshot = tree.snapshot();
    let (applied, sizes) = (db.applied(), (db.size(), db.size_in_use()));
    let machine = Machine::new(restored, snapshot.clone());
    let first_view = Published {
        view: View {
            window: Window {
                newest: machine.revision(),
                compacted: machine.compacted(),
            },
            keys: snapshot.clone(),
            tail: Runs::default(),
            stored: Arc::new(reader.clone()),
        },
        applied,
        alarms: Arc::new(machine.alarms().clone()),
        stored_through: machine.revision(),
        file_bytes: sizes.0,
        used_bytes: sizes.1,
    };
    let (views_in, views) = watch::channel(Arc::new(first_view));
    let (status_in, raft_status) = watch::channel(RaftStatus {
        leader: None,
        leads: false,
        term: Term(0),
        commit: LogIndex(0),
    });

    // Raft node first: all others report to it.
    let (raft_peers_in, raft_peers) = mpsc::channel::<RaftPeers>();
    let pacing = RaftPacing {
        tick: config.raft.heartbeat,
        request_timeout: REQUEST_TIMEOUT_BASE + config.raft.election * 2,
        apply_gap_max: config.limits.apply_gap_max,
    };
    let raft_life = life("the Raft node");
    let raft_node = RaftNode::start_in_arbiter(&placement.core, move |_| {
        let peers = taken(&raft_peers);
        RaftNode::new(raft, identity.member, pacing, peers, raft_life)
    });
    let log = wal.reader();
    let (wal_raft, wal_life) = (raft_node.clone().recipient(), life("the WAL writer"));
    let wal_writer = WalWriter::start_in_arbiter(&placement.wal, move |_| {
        WalWriter::new(wal, wal_raft, wal_life)
    });
    let (applier_peers_in, applier_peers) = mpsc::channel::<Peers>();
    let commit_pacing = CommitPacing {
        interval: config.storage.commit_interval,
        records_max: config.storage.commit_records_max,
        bytes_max: COMMIT_BYTES_MAX,
    };
    let applier_life = life("the applier");
    let applier = Applier::start_in_arbiter(&placement.apply, move |_| {
        let peers = taken(&applier_peers);
        Applier::new(
            machine,
            snapshot,
            applied,
            reader,
            sizes,
            commit_pacing,
            peers,
            applier_life,
        )
    });
    let (to_applier, index_life) = (applier.clone().recipient(), life("the index"));
    let index = Index::start_in_arbiter(&placement.apply, move |_| {
        Index::new(tree, to_applier, index_life)
    });
    let (to_applier, committer_life) = (applier.clone().recipient(), life("the committer"));
    let committer = Committer::start_in_arbiter(&placement.committer, move |_| {
        Committer::new(db, to_applier, committer_life)
    });
    let lease_life = life("the lease manager");
    let lease_manager = LeaseManager::start_in_arbiter(&placement.services, move |_| {
        LeaseManager::new(leases, lease_life)
    });
    let (hub_views, hub_life) = (views.clone(), life("the watch hub"));
    let watch_hub = WatchHub::start_in_arbiter(&placement.services, move |_| {
        WatchHub::new(hub_views, PROGRESS_INTERVAL, hub_life)
    });
    let (compactor_peers_in, compactor_peers) = mpsc::channel::<CompactorPeers>();
    let compaction_pacing = CompactionPacing {
        records_max: config.compaction.batch,
        pause: config.compaction.pause,
    };
    let (retention, compactor_life) = (retention(config), life("the compactor"));
    let compactor = Compactor::start_in_arbiter(&placement.services, move |_| {
        let peers = taken(&compactor_peers);
        Compactor::new(
            compaction,
            retention,
            compaction_pacing,
            peers,
            compactor_life,
        )
    });

    let limits = RequestLimits {
        request_bytes_max: config.limits.request_bytes_max,
        txn_ops_max: config.limits.txn_ops_max,
        quota_bytes: config.limits.quota_bytes,
    };
    let request_peers = || RequestPeers {
        raft: raft_node.clone(),
        compactor: compactor.clone(),
        watches: watch_hub.clone(),
        views: views.clone(),
        raft_status: raft_status.clone(),
    };
    let requests: Vec<Requests> = placement
        .api
        .iter()
        .map(|arbiter| Requests::start(arbiter, identity, limits, request_peers()))
        .collect();

    // Everybody exists: whoever waits for its peers gets them.
    given(
        &raft_peers_in,
        RaftPeers {
            wal: wal_writer.clone().recipient(),
            release: wal_writer.clone().recipient(),
            log,
            applier: applier.clone().recipient(),
            status: status_in,
        },
    );
    given(
        &applier_peers_in,
        Peers {
            index: index.clone().recipient(),
            committer: committer.clone().recipient(),
            raft: raft_node.recipient(),
            compactor: compactor.recipient(),
            leases: lease_manager.recipient(),
            watches: watch_hub.clone().recipient(),
            views: views_in,
        },
    );
    given(
        &compactor_peers_in,
        CompactorPeers {
            index,
            committer,
            requests: requests[0].clone(),
            views,
            raft_status,
        },
    );
    Running {
        requests,
        applier,
        wal: wal_writer,
        watches: watch_hub,
    }
}

impl Running {
    /// Makes durable what the next start would otherwise have to replay. What was acknowledged is durable already.
    pub(super) async fn stop(self) {
        for requests in &self.requests {
            requests.close();
        }
        // An error means that it is gone, and its streams with it.
        self.watches.send(EndStreams).await.unwrap_or_default();
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.applier.send(DrainTail)).await;
        if !matches!(drained, Ok(Ok(()))) {
            tracing::warn!("the last commit was not waited for; the log has what it holds");
        }
        // An error means that the writer has stopped the member.
        self.wal.send(SealLog).await.unwrap_or_default();
    }
}

/// Peers that are given once all actors exist.
fn taken<T>(peers: &mpsc::Receiver<T>) -> T {
    let peers = peers.recv();
    assert!(
        peers.is_ok(),
        "the node gives every actor its peers before it goes on"
    );
    peers.unwrap_or_else(|_| unreachable!())
}

fn given<T>(to: &mpsc::Sender<T>, peers: T) {
    assert!(
        to.send(peers).is_ok(),
        "an actor waits for its peers until it has them"
    );
}

fn retention(config: &Config) -> Retention {
    match config.auto_compaction {
        config::AutoCompaction::Off => Retention::Off,
        config::AutoCompaction::Periodic(period) => Retention::Period(Millis(
            u64::try_from(period.as_millis()).unwrap_or(u64::MAX),
        )),
        config::AutoCompaction::Revision(keep) => Retention::Revisions(keep),
    }
}
