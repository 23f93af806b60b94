//! Starts the actors of a recovered member, and stops them.
//!
//! Actors know each other from their constructors on. Where two know each other, the first one started gets its peers through a
//! channel that is filled once all addresses exist; the first thing it does is to take them.

use super::{
    network::PeerWay,
    placement::Placement,
    recover::{Recovery, client_urls},
};
use crate::{
    actors::{
        applier::{
            Applier, ApplierState, CommitPacing, DrainTail, Peers, ReplacePeers, begun_compaction,
        },
        committer::{Committer, stop_on_damage},
        compactor::{CompactionPacing, CompactionState, Compactor, CompactorPeers, Decision},
        fail_stop::{FailStop, Lifeline},
        index::Index,
        latest,
        lease_manager::{LeaseManager, LeaseManagerPeers, LeaseState},
        leases::{ForwardLeaseCalls, LeaseKeysPeer, LeasePeers},
        peer_hub::{ClosePeers, HubPeers, PeerHub, PeerPorts},
        raft_node::{
            DiskHealth, LogBound, PeerLinks, RaftNode, RaftPacing, RaftPeers, RaftStatus, SelfInfo,
        },
        requests::{Published, RequestLimits, RequestPeers, Requests},
        snapshots::{SnapshotPacing, SnapshotPeers, Snapshots},
        wal_writer::{SealLog, WalWriter},
        watch_hub::{EndStreams, WatchHub},
    },
    config::{self, Config},
    kv::{
        index::Index as Tree, lease_clock::ClockSettings, machine::Machine, range::Window,
        retention::Retention, tail::Tail, view::View,
    },
    net::Listener,
    raft,
    storage::{
        db::{Db, DbSite},
        disk::Disk,
        wal::Wal,
    },
    types::{Identity, LogIndex, Millis, Term},
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
    hub: Option<PeerPorts>,
    watches: Addr<WatchHub>,
    views: latest::Receiver<Arc<Published>>,
}

/// Starts every actor. Must be called on the core arbiter.
#[expect(
    clippy::too_many_lines,
    reason = "one actor after the other, and then whom each is given: the order is the point"
)]
pub(super) fn assemble(
    config: &Config,
    mut recovery: Recovery,
    way: PeerWay<'_>,
    placement: &Placement,
    fail_stop: &FailStop,
) -> Running {
    recovery.reader = recovery.reader.telling(stop_on_damage(fail_stop));
    let identity = recovery.owner.identity;
    let starting = Starting {
        config,
        placement,
        fail_stop,
    };
    let state = State::of(&recovery);
    let channels = Channels::new(&state, &recovery.db);

    // The Raft node first: all others report to it.
    let (raft_peers, raft_node) = starting.raft_node(recovery.raft, identity);
    let disk = recovery.site.disk.clone();
    let (snapshot_peers, snapshots) = starting.snapshots(recovery.site.clone());
    let hub = starting.peers(way, identity, &raft_node, &snapshots);
    let log = recovery.wal.reader();
    let wal = starting.wal_writer(recovery.wal, &disk, &raft_node);
    let (applier_peers, apply_loop) = starting.applier(state.applier);
    let index = starting.index(recovery.tree, &apply_loop);
    let committer = starting.committer(recovery.db, recovery.site, &apply_loop);
    let (lease_peers, lease_manager, leases) = starting.lease_manager(state.leases);
    let leader = hub.is_some().then(|| raft_node.clone().recipient());
    let (compactor_peers, compactor) = starting.compactor(state.compaction);
    let watches = starting.watch_hub(&channels);
    let way_in = RequestPeers {
        raft: raft_node.clone(),
        compactor: compactor.clone(),
        leases: starting.lease_peers(&lease_manager, leases, &apply_loop, leader),
        watches: watches.clone(),
        views: channels.views.clone(),
        raft_status: channels.raft_status.clone(),
        disk: channels.disk.clone(),
    };
    let requests = starting.requests(identity, &way_in);

    // Everybody exists: whoever waits for its peers gets them.
    given(&lease_peers, channels.lease_manager_peers(&requests[0]));
    given(
        &snapshot_peers,
        SnapshotPeers {
            open: hub.as_ref().map(|hub| hub.snapshots.clone()),
            ended: raft_node.clone().recipient(),
            install: raft_node.clone().recipient(),
            views: channels.views.clone(),
        },
    );
    given(
        &raft_peers,
        RaftPeers {
            wal: wal.clone().recipient(),
            release: wal.clone().recipient(),
            log,
            applier: apply_loop.clone().recipient(),
            replace: apply_loop.clone().recipient(),
            snapshots: snapshots.recipient(),
            status: channels.raft_status_in,
            disk: channels.disk_in,
            links: hub.as_ref().map_or(PeerLinks::Alone, links_of),
            seed: recovery.seed,
            requests: requests[0].clone(),
            answered: raft_node.clone().recipient(),
            hashes: apply_loop.clone().recipient(),
            told: raft_node.clone().recipient(),
        },
    );
    given(
        &applier_peers,
        Peers {
            index: index.clone().recipient(),
            committer: committer.clone().recipient(),
            forget: committer.clone().recipient(),
            raft: raft_node.clone().recipient(),
            compactor: compactor.clone().recipient(),
            leases: lease_manager.clone().recipient(),
            watches: watches.clone().recipient(),
            views: channels.views_in,
            replace: ReplacePeers {
                committer: committer.clone().recipient(),
                index: index.clone().recipient(),
                leases: lease_manager.recipient(),
                compactor: compactor.recipient(),
                raft: raft_node.recipient(),
            },
        },
    );
    given(
        &compactor_peers,
        CompactorPeers {
            index,
            committer,
            requests: requests[0].clone(),
            views: channels.views.clone(),
            raft_status: channels.raft_status,
        },
    );
    Running {
        requests,
        applier: apply_loop,
        wal,
        hub,
        watches,
        views: channels.views,
    }
}

fn links_of(hub: &PeerPorts) -> PeerLinks {
    PeerLinks::Hub {
        send: hub.send.clone(),
        forward: hub.forward.clone(),
        book: hub.book.clone(),
    }
}

/// What the actors begin with.
struct State {
    applier: ApplierState,
    leases: LeaseState,
    compaction: CompactionState,
}

impl State {
    fn of(recovery: &Recovery) -> Self {
        let (db, restored) = (&recovery.db, &recovery.restored);
        let snapshot = recovery.tree.snapshot();
        Self {
            leases: LeaseState::of(restored, db.applied().term),
            compaction: CompactionState {
                wanted: Decision {
                    revision: restored.compacted,
                    index: db.applied().index,
                },
                stored: db
                    .compaction()
                    .map(|progress| (progress.through, progress.next)),
            },
            applier: ApplierState {
                machine: Machine::new(restored.clone(), snapshot.clone()),
                snapshot,
                applied: db.applied(),
                begun_compaction: begun_compaction(db.compaction().map(|it| (it.through, it.next))),
                members: Arc::new(recovery.members.clone()),
                stored: recovery.reader.clone(),
                file_bytes: db.size(),
                used_bytes: db.size_in_use(),
            },
        }
    }
}

/// What is published to everyone.
struct Channels {
    views_in: latest::Sender<Arc<Published>>,
    views: latest::Receiver<Arc<Published>>,
    raft_status_in: latest::Sender<RaftStatus>,
    raft_status: latest::Receiver<RaftStatus>,
    disk_in: watch::Sender<DiskHealth>,
    disk: watch::Receiver<DiskHealth>,
}

impl Channels {
    fn new(state: &State, db: &Db) -> Self {
        let applier = &state.applier;
        let machine = &applier.machine;
        let published = Published {
            view: View {
                window: Window {
                    newest: machine.revision(),
                    compacted: machine.compacted().max(applier.begun_compaction),
                },
                keys: applier.snapshot.clone(),
                tail: Tail::default(),
                stored: Arc::new(applier.stored.clone()),
            },
            applied: db.applied(),
            alarms: Arc::new(machine.alarms().clone()),
            members: applier.members.clone(),
            stored: applier.stored.clone(),
            stored_through: machine.revision(),
            stored_applied: db.applied().index,
            file_bytes: db.size(),
            used_bytes: db.size_in_use(),
        };
        let (views_in, views) = latest::channel(Arc::new(published));
        let (raft_status_in, raft_status) = latest::channel(RaftStatus {
            leader: None,
            leads: false,
            term: Term(0),
            commit: LogIndex(0),
            learner: false,
            out: false,
        });
        let (disk_in, disk) = watch::channel(DiskHealth::default());
        Self {
            views_in,
            views,
            raft_status_in,
            raft_status,
            disk_in,
            disk,
        }
    }

    fn lease_manager_peers(&self, requests: &Requests) -> LeaseManagerPeers {
        LeaseManagerPeers {
            requests: requests.clone(),
            raft_status: self.raft_status.clone(),
        }
    }
}

/// Starts one actor after the other, each on the arbiter that the placement names.
struct Starting<'a> {
    config: &'a Config,
    placement: &'a Placement,
    fail_stop: &'a FailStop,
}

impl Starting<'_> {
    fn life(&self, actor: &'static str) -> Lifeline {
        Lifeline::new(actor, self.fail_stop.clone())
    }

    fn raft_node(
        &self,
        raft: raft::Node,
        identity: Identity,
    ) -> (mpsc::Sender<RaftPeers>, Addr<RaftNode>) {
        let pacing = RaftPacing {
            tick: self.config.raft.heartbeat,
            election: self.config.raft.election,
            disk_stall: self.config.raft.disk_stall,
            request_timeout: self.request_timeout(),
            apply_gap_max: self.config.limits.apply_gap_max,
            log_bound: LogBound {
                entries: self.config.storage.log_keep_entries,
                bytes: self.config.storage.log_keep_bytes,
            },
        };
        let member = SelfInfo {
            id: identity.member,
            name: self.config.name.clone(),
            client_urls: client_urls(self.config),
        };
        let life = self.life("the Raft node");
        let (give, peers) = mpsc::channel();
        let address = RaftNode::start_in_arbiter(&self.placement.core, move |_| {
            RaftNode::new(raft, member, pacing, taken(&peers), life)
        });
        (give, address)
    }

    fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT_BASE + self.config.raft.election * 2
    }

    fn snapshots(&self, site: DbSite) -> (mpsc::Sender<SnapshotPeers>, Addr<Snapshots>) {
        let pacing = SnapshotPacing {
            bytes_per_sec: self.config.storage.snapshot_bytes_per_sec,
        };
        let life = self.life("snapshots");
        let (give, peers) = mpsc::channel();
        let address = Snapshots::start_in_arbiter(&self.placement.snapshots, move |_| {
            Snapshots::new(site, pacing, taken(&peers), life)
        });
        (give, address)
    }

    fn peers(
        &self,
        way: PeerWay<'_>,
        identity: Identity,
        raft: &Addr<RaftNode>,
        snapshots: &Addr<Snapshots>,
    ) -> Option<PeerPorts> {
        let peers = HubPeers {
            messages: raft.clone().recipient(),
            connected: raft.clone().recipient(),
            disconnected: raft.clone().recipient(),
            dropped: raft.clone().recipient(),
            refused: raft.clone().recipient(),
            requests: raft.clone().recipient(),
            snapshots: snapshots.clone().recipient(),
            guests: raft.clone().recipient(),
        };
        match way {
            PeerWay::Alone => None,
            PeerWay::Quic(listener) => Some(PeerPorts::of(&self.peer_hub(*listener, peers))),
            PeerWay::Given(network) => Some(network.attach(identity, peers)),
        }
    }

    fn peer_hub(&self, listener: Listener, peers: HubPeers) -> Addr<PeerHub> {
        let life = self.life("the peer hub");
        PeerHub::start_in_arbiter(&self.placement.net, move |_| {
            let hub = PeerHub::new(listener, peers, life);
            hub.expect("the socket is bound: nothing else can fail here")
        })
    }

    fn wal_writer(&self, wal: Wal, disk: &Arc<dyn Disk>, raft: &Addr<RaftNode>) -> Addr<WalWriter> {
        let (raft, life) = (raft.clone().recipient(), self.life("the WAL writer"));
        let disk = disk.clone();
        WalWriter::start_in_arbiter(&self.placement.wal, move |_| {
            WalWriter::new(wal, disk, raft, life)
        })
    }

    fn applier(&self, state: ApplierState) -> (mpsc::Sender<Peers>, Addr<Applier>) {
        let pacing = CommitPacing {
            interval: self.config.storage.commit_interval,
            records_max: self.config.storage.commit_records_max,
            bytes_max: COMMIT_BYTES_MAX,
        };
        let life = self.life("the applier");
        let (give, peers) = mpsc::channel();
        let address = Applier::start_in_arbiter(&self.placement.apply, move |_| {
            Applier::new(state, pacing, taken(&peers), life)
        });
        (give, address)
    }

    fn index(&self, tree: Tree, applier: &Addr<Applier>) -> Addr<Index> {
        let (applier, life) = (applier.clone().recipient(), self.life("the index"));
        Index::start_in_arbiter(&self.placement.apply, move |_| {
            Index::new(tree, applier, life)
        })
    }

    fn committer(&self, db: Db, site: DbSite, applier: &Addr<Applier>) -> Addr<Committer> {
        let (reports, replaced) = (applier.clone().recipient(), applier.clone().recipient());
        let life = self.life("the committer");
        Committer::start_in_arbiter(&self.placement.committer, move |_| {
            Committer::new(db, site, reports, replaced, life)
        })
    }

    fn lease_manager(
        &self,
        state: LeaseState,
    ) -> (
        mpsc::Sender<LeaseManagerPeers>,
        Addr<LeaseManager>,
        watch::Receiver<usize>,
    ) {
        let settings = ClockSettings {
            grace: in_millis(self.config.raft.election / 2),
            checkpoint_every: in_millis(self.config.lease.checkpoint_interval),
        };
        let life = self.life("the lease manager");
        let (give, peers) = mpsc::channel();
        let (count, leases) = watch::channel(state.leases.len());
        let address = LeaseManager::start_in_arbiter(&self.placement.services, move |_| {
            LeaseManager::new(state, settings, count, taken(&peers), life)
        });
        (give, address, leases)
    }

    /// What front ends need for leases.
    fn lease_peers(
        &self,
        manager: &Addr<LeaseManager>,
        leases: watch::Receiver<usize>,
        applier: &Addr<Applier>,
        leader: Option<Recipient<ForwardLeaseCalls>>,
    ) -> LeasePeers {
        let election = in_millis(self.config.raft.election);
        LeasePeers {
            manager: manager.clone(),
            leases,
            leases_max: self.config.limits.leases_max,
            keys: LeaseKeysPeer::new(applier.clone().recipient()),
            leader,
            // etcd: one and a half election timeouts, in whole seconds.
            ttl_secs_min: (election.0 * 3).div_ceil(2_000).cast_signed(),
            timeout: self.request_timeout(),
        }
    }

    fn compactor(&self, state: CompactionState) -> (mpsc::Sender<CompactorPeers>, Addr<Compactor>) {
        let pacing = CompactionPacing {
            records_max: self.config.compaction.batch,
            pause: self.config.compaction.pause,
        };
        let (retention, life) = (retention(self.config), self.life("the compactor"));
        let (give, peers) = mpsc::channel();
        let address = Compactor::start_in_arbiter(&self.placement.services, move |_| {
            Compactor::new(state, retention, pacing, taken(&peers), life)
        });
        (give, address)
    }

    fn watch_hub(&self, channels: &Channels) -> Addr<WatchHub> {
        let (views, life) = (channels.views.clone(), self.life("the watch hub"));
        let progress_interval = self.config.watch.progress_interval;
        WatchHub::start_in_arbiter(&self.placement.services, move |_| {
            WatchHub::new(views, progress_interval, life)
        })
    }

    /// A way in for each API arbiter.
    fn requests(&self, identity: Identity, peers: &RequestPeers) -> Vec<Requests> {
        let limits = RequestLimits {
            request_bytes_max: self.config.limits.request_bytes_max,
            txn_ops_max: self.config.limits.txn_ops_max,
            quota_bytes: self.config.limits.quota_bytes,
            timeout: self.request_timeout(),
            leader_patience: self.config.raft.election * 3,
        };
        let arbiters = self.placement.api.iter();
        arbiters
            .map(|arbiter| Requests::start(arbiter, identity, limits, peers.clone()))
            .collect()
    }
}

impl Running {
    /// Returns once the state holds something: at once, but for a member that waits for a snapshot.
    pub(super) async fn has_state(&self) {
        let mut views = self.views.clone();
        // An error means that the applier is gone, and the member with it.
        drop(
            views
                .wait_for(|published| published.applied.index > LogIndex(0))
                .await,
        );
    }

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
        if let Some(hub) = self.hub {
            // An error means that the connections have ended.
            hub.close.send(ClosePeers).await.unwrap_or_default();
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
        config::AutoCompaction::Periodic(period) => Retention::Period(in_millis(period)),
        config::AutoCompaction::Revision(keep) => Retention::Revisions(keep),
    }
}

fn in_millis(span: Duration) -> Millis {
    Millis(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
