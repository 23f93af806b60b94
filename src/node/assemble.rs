//! Starts the actors of a member, and stops them.
//!
//! All mailboxes exist before the first actor starts, so each actor is made with the addresses of those it sends to. Actors start
//! from the disk up, the Raft node last: it is the first to send.

use super::{identity::client_urls, network::PeerWay, placement::Placement, startup::OpenMember};
use crate::{
    actors::{
        applier::{
            Applier, ApplierPeers, ApplierState, CommitPacing, DrainTail, ReplacePeers,
            begun_compaction,
        },
        committer::{Committer, stop_on_damage},
        compaction_hashes::CompactionHashes,
        compactor::{CompactionPacing, CompactionState, Compactor, CompactorPeers, Decision},
        consensus::{Consensus, ConsensusLimits, ConsensusPeers, HandOver},
        etcd_image::ImageMaker,
        fail_stop::{FailStop, Lifeline},
        held::HeldBytes,
        index::Index,
        jwt_keys::{self, JwtKeys},
        latest,
        lease_desk::{LeaseDesk, LeaseKeysPeer, LeasePeers},
        lease_manager::{LeaseManager, LeaseManagerPeers, LeaseState},
        login_bounds::LoginBounds,
        mailbox::Mailbox,
        passwords::Passwords,
        peer_hub::{ClosePeers, HubPeers, PeerHub, PeerPorts},
        quota,
        raft_node::{LogBound, PeerLinks, RaftNode, RaftPacing, RaftPeers, SelfInfo},
        raft_status::{DiskHealth, RaftStatus},
        requests::{Published, RequestLimits, RequestPeers, Requests},
        snapshots::{SnapshotPacing, SnapshotPeers, Snapshots},
        token_keeper,
        wal_writer::{SealLog, WalWriter},
        watch_calls::WatchCalls,
        watch_hub::{EndStreams, WatchHub},
    },
    config::{self, Config},
    kv::{
        command::AlarmKind, index::Index as Tree, lease_clock::ClockSettings, machine::Machine,
        range::RevisionWindow, retention::Retention, tail::Tail, view::View,
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
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Bytes of records after which a commit does not wait for its interval.
const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a request may take, besides two election timeouts.
const REQUEST_TIMEOUT_BASE: Duration = Duration::from_secs(5);

/// How long a stopping node waits for its last commit.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The running actors of a node.
#[derive(Debug)]
pub(super) struct Running {
    /// A front end for each API arbiter, in the placement's order.
    pub requests: Vec<Requests>,
    hand_over: Recipient<HandOver>,
    applier: Addr<Applier>,
    wal: Addr<WalWriter>,
    hub: Option<PeerPorts>,
    watches: Addr<WatchHub>,
    views: latest::Receiver<Arc<Published>>,
}

/// Starts every actor. Must be called on the core arbiter.
pub(super) fn assemble(
    config: &Config,
    mut opened: OpenMember,
    way: PeerWay<'_>,
    jwt: Option<Arc<JwtKeys>>,
    placement: &Placement,
    fail_stop: &FailStop,
) -> Running {
    opened.reader = opened.reader.with_on_damage(stop_on_damage(fail_stop));
    let identity = opened.owner.identity;
    let state = ActorStates::of(&opened);
    let (channels, outlets) = channels(&state, &opened.db);
    let mailboxes = Mailboxes::default();
    let starting = Starting {
        config,
        placement,
        fail_stop,
        identity,
        jwt,
        to: mailboxes.addresses(),
        channels,
    };

    let log = opened.wal.reader();
    let starts_disk = opened.site.disk.clone();
    starting.wal_writer(mailboxes.wal, opened.wal, opened.site.disk.clone());
    starting.index(mailboxes.index, opened.tree);
    starting.committer(mailboxes.committer, opened.db, opened.site.clone());
    starting.applier(mailboxes.applier, state.applier, outlets.views);
    starting.watch_hub(mailboxes.watches);
    let hub = starting.peers(way);
    starting.snapshots(mailboxes.snapshots, opened.site, hub.as_ref());
    let front_ends = starting.front_ends(hub.is_some());
    let first = &front_ends[0];
    starting.lease_manager(
        mailboxes.leases,
        state.leases,
        outlets.leases,
        &first.consensus,
    );
    starting.compactor(mailboxes.compactor, state.compaction, &first.consensus);
    starting.keepers(&first.consensus);
    let peers = RaftPeers {
        wal: starting.to.wal.clone().recipient(),
        release: starting.to.wal.clone().recipient(),
        log,
        applier: starting.to.applier.clone().recipient(),
        replace: starting.to.applier.clone().recipient(),
        snapshots: starting.to.snapshots.clone().recipient(),
        status: outlets.raft_status,
        disk: outlets.disk,
        links: hub.as_ref().map_or(PeerLinks::Alone, links_of),
        known_members: opened.known_members,
        consensus: first.consensus.clone(),
        views: starting.channels.views.clone(),
        leases: first.leases.server(),
        starts: opened.starts,
        starts_disk,
        starts_written: starting.to.raft.clone().recipient(),
        answered: starting.to.raft.clone().recipient(),
        hashes: starting.to.applier.clone().recipient(),
        hash_received: starting.to.raft.clone().recipient(),
        log_read: starting.to.raft.clone().recipient(),
        held: starting.channels.held.clone(),
    };
    starting.raft_node(mailboxes.raft, opened.raft, peers);

    Running {
        requests: front_ends.into_iter().map(|end| end.requests).collect(),
        hand_over: starting.to.raft.recipient(),
        applier: starting.to.applier,
        wal: starting.to.wal,
        hub,
        watches: starting.to.watches,
        views: starting.channels.views,
    }
}

fn links_of(hub: &PeerPorts) -> PeerLinks {
    PeerLinks::Hub {
        send: hub.send.clone(),
        forward: hub.forward.clone(),
        addresses: hub.book.clone(),
    }
}

/// The mailboxes of all actors but the peer hub, which a simulated network may stand in for.
#[derive(Default)]
struct Mailboxes {
    wal: Mailbox<WalWriter>,
    index: Mailbox<Index>,
    committer: Mailbox<Committer>,
    applier: Mailbox<Applier>,
    watches: Mailbox<WatchHub>,
    snapshots: Mailbox<Snapshots>,
    leases: Mailbox<LeaseManager>,
    compactor: Mailbox<Compactor>,
    raft: Mailbox<RaftNode>,
}

impl Mailboxes {
    fn addresses(&self) -> Addresses {
        Addresses {
            wal: self.wal.address(),
            index: self.index.address(),
            committer: self.committer.address(),
            applier: self.applier.address(),
            watches: self.watches.address(),
            snapshots: self.snapshots.address(),
            leases: self.leases.address(),
            compactor: self.compactor.address(),
            raft: self.raft.address(),
        }
    }
}

/// The address of each of them.
struct Addresses {
    wal: Addr<WalWriter>,
    index: Addr<Index>,
    committer: Addr<Committer>,
    applier: Addr<Applier>,
    watches: Addr<WatchHub>,
    snapshots: Addr<Snapshots>,
    leases: Addr<LeaseManager>,
    compactor: Addr<Compactor>,
    raft: Addr<RaftNode>,
}

/// One API arbiter's front end, and the parts of it that actors use too.
struct FrontEnd {
    consensus: Consensus,
    leases: Arc<LeaseDesk>,
    requests: Requests,
}

/// What the actors begin with.
struct ActorStates {
    applier: ApplierState,
    leases: LeaseState,
    compaction: CompactionState,
}

impl ActorStates {
    fn of(opened: &OpenMember) -> Self {
        let (db, loaded) = (&opened.db, &opened.loaded);
        let snapshot = opened.tree.snapshot();
        Self {
            leases: LeaseState::of(loaded, db.applied().term),
            compaction: CompactionState {
                wanted: Decision {
                    revision: loaded.compacted,
                    index: db.applied().index,
                },
                stored: db
                    .compaction()
                    .map(|progress| (progress.through, progress.next)),
            },
            applier: ApplierState {
                machine: Machine::new(loaded.clone(), snapshot.clone()),
                snapshot,
                applied: db.applied(),
                begun_compaction: begun_compaction(db.compaction().map(|it| (it.through, it.next))),
                members: Arc::new(opened.members.clone()),
                stored: opened.reader.clone(),
                file_bytes: db.size(),
                used_bytes: db.size_in_use(),
            },
        }
    }
}

/// What every part of the member may read.
struct Channels {
    views: latest::Receiver<Arc<Published>>,
    raft_status: latest::Receiver<RaftStatus>,
    disk: watch::Receiver<DiskHealth>,
    /// How many leases there are.
    leases: watch::Receiver<usize>,
    /// Whether the newest view has authentication on.
    auth_on: Arc<AtomicBool>,
    /// The hashes of the last compactions.
    compaction_hashes: CompactionHashes,
    /// What the actors hold.
    held: HeldBytes,
}

/// The writing end of each channel; one actor owns each.
struct Outlets {
    views: latest::Sender<Arc<Published>>,
    raft_status: latest::Sender<RaftStatus>,
    disk: watch::Sender<DiskHealth>,
    leases: watch::Sender<usize>,
}

fn channels(state: &ActorStates, db: &Db) -> (Channels, Outlets) {
    let (views_in, views) = latest::channel(Arc::new(first_view(&state.applier, db)));
    let (raft_status_in, raft_status) = latest::channel(RaftStatus {
        leader: None,
        leads: false,
        term: Term(0),
        commit: LogIndex(0),
        learner: false,
        out: false,
        quota_alarm: AlarmKind::NoSpace,
    });
    let (disk_in, disk) = watch::channel(DiskHealth::default());
    let (leases_in, leases) = watch::channel(state.leases.leases.len());
    let outlets = Outlets {
        views: views_in,
        raft_status: raft_status_in,
        disk: disk_in,
        leases: leases_in,
    };
    let channels = Channels {
        views,
        raft_status,
        disk,
        leases,
        auth_on: Arc::new(AtomicBool::new(state.applier.machine.auth().is_enabled())),
        compaction_hashes: CompactionHashes::default(),
        held: HeldBytes::default(),
    };
    (channels, outlets)
}

fn first_view(applier: &ApplierState, db: &Db) -> Published {
    let machine = &applier.machine;
    Published {
        view: View {
            window: RevisionWindow {
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
        auth: Arc::new(machine.auth().clone()),
        hash: machine.state_hash(),
        stored: applier.stored.clone(),
        stored_through: machine.revision(),
        stored_applied: db.applied().index,
        file_bytes: db.size(),
        used_bytes: db.size_in_use(),
        unstored_bytes: 0,
    }
}

/// Starts one actor after the other, each on the arbiter that the placement names.
struct Starting<'a> {
    config: &'a Config,
    placement: &'a Placement,
    fail_stop: &'a FailStop,
    identity: Identity,
    /// The keys of signed tokens, if they are set.
    jwt: Option<Arc<JwtKeys>>,
    to: Addresses,
    channels: Channels,
}

/// What the front ends of a member have together.
#[derive(Clone)]
struct FrontEndsShare {
    passwords: Arc<Passwords>,
    logins: Arc<LoginBounds>,
    images: ImageMaker,
    keys: LeaseKeysPeer,
}

impl Starting<'_> {
    fn life(&self, actor: &'static str) -> Lifeline {
        Lifeline::new(actor, self.fail_stop.clone())
    }

    fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT_BASE + self.config.raft.election * 2
    }

    fn wal_writer(&self, mailbox: Mailbox<WalWriter>, wal: Wal, disk: Arc<dyn Disk>) {
        let (raft, life) = (
            self.to.raft.clone().recipient(),
            self.life("the WAL writer"),
        );
        mailbox.start(&self.placement.wal, move || {
            WalWriter::new(wal, disk, raft, life)
        });
    }

    fn index(&self, mailbox: Mailbox<Index>, tree: Tree) {
        let (applier, life) = (self.to.applier.clone().recipient(), self.life("the index"));
        mailbox.start(&self.placement.apply, move || {
            Index::new(tree, applier, life)
        });
    }

    fn committer(&self, mailbox: Mailbox<Committer>, db: Db, site: DbSite) {
        let applier = &self.to.applier;
        let (reports, replaced) = (applier.clone().recipient(), applier.clone().recipient());
        let life = self.life("the committer");
        mailbox.start(&self.placement.committer, move || {
            Committer::new(db, site, reports, replaced, life)
        });
    }

    fn applier(
        &self,
        mailbox: Mailbox<Applier>,
        state: ApplierState,
        views: latest::Sender<Arc<Published>>,
    ) {
        let pacing = CommitPacing {
            interval: self.config.storage.commit_interval,
            records_max: self.config.storage.commit_records_max,
            bytes_max: COMMIT_BYTES_MAX,
        };
        let peers = ApplierPeers {
            index: self.to.index.clone().recipient(),
            committer: self.to.committer.clone().recipient(),
            forget: self.to.committer.clone().recipient(),
            raft: self.to.raft.clone().recipient(),
            compactor: self.to.compactor.clone().recipient(),
            leases: self.to.leases.clone().recipient(),
            watches: self.to.watches.clone().recipient(),
            views,
            auth_on: self.channels.auth_on.clone(),
            held: self.channels.held.clone(),
            entry_bytes_max: self.config.limits.request_bytes_max,
            replace: ReplacePeers {
                committer: self.to.committer.clone().recipient(),
                index: self.to.index.clone().recipient(),
                leases: self.to.leases.clone().recipient(),
                compactor: self.to.compactor.clone().recipient(),
                raft: self.to.raft.clone().recipient(),
            },
        };
        let life = self.life("the applier");
        mailbox.start(&self.placement.apply, move || {
            Applier::new(state, pacing, peers, life)
        });
    }

    fn watch_hub(&self, mailbox: Mailbox<WatchHub>) {
        let (views, life) = (self.channels.views.clone(), self.life("the watch hub"));
        let (progress_interval, held) = (
            self.config.watch.progress_interval,
            self.channels.held.clone(),
        );
        mailbox.start(&self.placement.services, move || {
            WatchHub::new(views, progress_interval, &held, life)
        });
    }

    /// The way to the other members; nothing in a member that is alone.
    fn peers(&self, way: PeerWay<'_>) -> Option<PeerPorts> {
        let raft = &self.to.raft;
        let peers = HubPeers {
            messages: raft.clone().recipient(),
            connected: raft.clone().recipient(),
            disconnected: raft.clone().recipient(),
            dropped: raft.clone().recipient(),
            refused: raft.clone().recipient(),
            requests: raft.clone().recipient(),
            guests: raft.clone().recipient(),
            snapshots: self.to.snapshots.clone().recipient(),
        };
        match way {
            PeerWay::Alone => None,
            PeerWay::Quic(listener) => Some(self.peer_hub(*listener, peers)),
            PeerWay::Given(network) => Some(network.attach(self.identity, peers)),
        }
    }

    fn peer_hub(&self, listener: Listener, peers: HubPeers) -> PeerPorts {
        let (mailbox, life) = (Mailbox::<PeerHub>::default(), self.life("the peer hub"));
        let ports = PeerPorts::of(&mailbox.address());
        mailbox.start(&self.placement.net, move || {
            let hub = PeerHub::new(listener, peers, life);
            hub.expect("the socket is bound: nothing else can fail here")
        });
        ports
    }

    fn snapshot_pacing(&self) -> SnapshotPacing {
        SnapshotPacing {
            bytes_per_sec: self.config.storage.snapshot_bytes_per_sec,
        }
    }

    fn snapshots(&self, mailbox: Mailbox<Snapshots>, site: DbSite, hub: Option<&PeerPorts>) {
        let pacing = self.snapshot_pacing();
        let peers = SnapshotPeers {
            open: hub.map(|hub| hub.snapshots.clone()),
            ended: self.to.raft.clone().recipient(),
            install: self.to.raft.clone().recipient(),
            views: self.channels.views.clone(),
        };
        let life = self.life("snapshots");
        mailbox.start(&self.placement.snapshots, move || {
            Snapshots::new(site, pacing, peers, life)
        });
    }

    /// A front end for each API arbiter.
    fn front_ends(&self, has_peers: bool) -> Vec<FrontEnd> {
        let auth = &self.config.auth;
        let share = FrontEndsShare {
            passwords: Passwords::new(auth.bcrypt_cost, password_workers()),
            logins: Arc::new(LoginBounds::new(auth.failed_logins_max)),
            images: ImageMaker::new(self.snapshot_pacing()),
            keys: LeaseKeysPeer::new(self.to.applier.clone().recipient()),
        };
        let arbiters = self.placement.api.iter();
        arbiters
            .map(|arbiter| self.front_end(arbiter, has_peers, share.clone()))
            .collect()
    }

    fn front_end(
        &self,
        arbiter: &ArbiterHandle,
        has_peers: bool,
        share: FrontEndsShare,
    ) -> FrontEnd {
        let (raft, channels) = (&self.to.raft, &self.channels);
        let limits = RequestLimits {
            request_bytes_max: self.config.limits.request_bytes_max,
            txn_ops_max: self.config.limits.txn_ops_max,
            quota_bytes: self.config.limits.quota_bytes,
            timeout: self.request_timeout(),
            leader_patience: self.config.raft.election * 3,
        };
        let consensus = Consensus::start(
            arbiter,
            self.identity.member,
            ConsensusLimits {
                request_bytes_max: limits.request_bytes_max,
                timeout: limits.timeout,
            },
            ConsensusPeers {
                propose: raft.clone().recipient(),
                reads: raft.clone().recipient(),
                held: self.channels.held.clone(),
            },
        );
        let election = in_millis(self.config.raft.election);
        let lease_peers = LeasePeers {
            manager: self.to.leases.clone().recipient(),
            leases: channels.leases.clone(),
            leases_max: self.config.limits.leases_max,
            keys: share.keys,
            leader: has_peers.then(|| raft.clone().recipient()),
            // etcd: one and a half election timeouts, in whole seconds.
            ttl_secs_min: (election.0 * 3).div_ceil(2_000).cast_signed(),
            timeout: limits.timeout,
            consensus: consensus.clone(),
            views: channels.views.clone(),
            raft_status: channels.raft_status.clone(),
        };
        let leases = LeaseDesk::start(arbiter, lease_peers);
        let peers = RequestPeers {
            consensus: consensus.clone(),
            changes: raft.clone().recipient(),
            moves: raft.clone().recipient(),
            compactor: self.to.compactor.clone().recipient(),
            hashes: channels.compaction_hashes.clone(),
            watches: WatchCalls::of(&self.to.watches),
            leases: leases.clone(),
            views: channels.views.clone(),
            raft_status: channels.raft_status.clone(),
            disk: channels.disk.clone(),
            auth_on: channels.auth_on.clone(),
            passwords: share.passwords,
            logins: share.logins,
            jwt: self.jwt.clone(),
            images: share.images,
        };
        FrontEnd {
            consensus,
            leases,
            requests: Requests::new(self.identity, limits, peers),
        }
    }

    fn lease_manager(
        &self,
        mailbox: Mailbox<LeaseManager>,
        state: LeaseState,
        count: watch::Sender<usize>,
        consensus: &Consensus,
    ) {
        let settings = ClockSettings {
            grace: in_millis(self.config.raft.election / 2),
            checkpoint_every: in_millis(self.config.lease.checkpoint_interval),
        };
        let peers = LeaseManagerPeers {
            consensus: consensus.clone(),
            raft_status: self.channels.raft_status.clone(),
        };
        let life = self.life("the lease manager");
        mailbox.start(&self.placement.services, move || {
            LeaseManager::new(state, settings, count, peers, life)
        });
    }

    fn compactor(
        &self,
        mailbox: Mailbox<Compactor>,
        state: CompactionState,
        consensus: &Consensus,
    ) {
        let pacing = CompactionPacing {
            records_max: self.config.compaction.batch,
            pause: self.config.compaction.pause,
        };
        let peers = CompactorPeers {
            index: self.to.index.clone().recipient(),
            committer: self.to.committer.clone().recipient(),
            consensus: consensus.clone(),
            views: self.channels.views.clone(),
            raft_status: self.channels.raft_status.clone(),
            hashes: self.channels.compaction_hashes.clone(),
        };
        let (retention, life) = (retention(self.config), self.life("the compactor"));
        mailbox.start(&self.placement.services, move || {
            Compactor::new(state, retention, pacing, peers, life)
        });
    }

    /// Tasks that are no actors.
    fn keepers(&self, consensus: &Consensus) {
        self.token_keeper(consensus);
        let keeping = quota::keep(
            self.config.limits.quota_bytes,
            self.channels.views.clone(),
            self.channels.raft_status.clone(),
            consensus.clone(),
        );
        let started = self.placement.services.spawn(keeping);
        assert!(started, "the arbiter runs as long as its actors");
    }

    fn token_keeper(&self, consensus: &Consensus) {
        let keeping = token_keeper::keep(
            self.config.auth.token_ttl,
            self.channels.views.clone(),
            self.channels.raft_status.clone(),
            consensus.clone(),
        );
        let started = self.placement.services.spawn(keeping);
        assert!(started, "the arbiter runs as long as its actors");
        let Some(keys) = self.jwt.clone() else {
            return;
        };
        let status = self.channels.raft_status.clone();
        let keeping = jwt_keys::keep(keys, async move {
            // An error means that the Raft node is gone.
            let gone = status.clone().wait_for(|_| false).await;
            gone.map(drop).unwrap_or_default();
        });
        let started = self.placement.services.spawn(keeping);
        assert!(started, "the arbiter runs as long as its actors");
    }

    fn raft_node(&self, mailbox: Mailbox<RaftNode>, raft: raft::RaftCore, peers: RaftPeers) {
        let pacing = RaftPacing {
            tick: self.config.raft.heartbeat,
            election: self.config.raft.election,
            disk_stall: self.config.raft.disk_stall,
            request_timeout: self.request_timeout(),
            apply_gap_max: self.config.limits.apply_gap_max,
            strict_reconfig: self.config.cluster.strict_reconfig_check,
            log_bound: LogBound {
                entries: self.config.storage.log_keep_entries,
                bytes: self.config.storage.log_keep_bytes,
            },
        };
        let member = SelfInfo {
            id: self.identity.member,
            name: self.config.name.clone(),
            client_urls: client_urls(self.config),
        };
        let life = self.life("the Raft node");
        mailbox.start(&self.placement.core, move || {
            RaftNode::new(raft, member, pacing, peers, life)
        });
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

    /// Hands leadership to another member, if this one leads. Returns once another leads, or none can; clients are served
    /// meanwhile and afterwards.
    pub(super) fn hand_over(&self) -> impl Future<Output = ()> + use<> {
        let raft = self.hand_over.clone();
        async move {
            let (done, over) = oneshot::channel();
            if raft.send(HandOver { done }).await.is_ok() {
                over.await.unwrap_or_default();
            }
        }
    }

    /// Commits the applied entries that the next start would otherwise replay. Acknowledged writes are durable already.
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

/// Threads that hash passwords at once: some cores are left for everything else.
fn password_workers() -> usize {
    let cores = std::thread::available_parallelism();
    cores.map_or(1, |cores| (cores.get() / 4).clamp(1, 4))
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
