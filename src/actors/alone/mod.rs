//! Tests: each actor starts alone, with recipients that the test gives it, and answers its messages.

mod front_end;

use super::{
    applier::{Applier, ApplierPeers, ApplierState, CommitPacing, ReplacePeers},
    apply_messages::{ApplierProgress, ApplyEntries, Caller, CommittedEntry},
    committer::{CommitRevisions, Committed, Committer, CompactProgress, CompactRecords},
    compaction_hashes::CompactionHashes,
    compactor::{
        AwaitCompaction, CompactionAccepted, CompactionPacing, CompactionState, Compactor,
        CompactorPeers, Decision,
    },
    consensus::{Consensus, ConsensusLimits, ConsensusPeers, Propose},
    fail_stop::{FailStop, Lifeline},
    held::HeldBytes,
    index::{Index, IndexPublished, PruneIndex, PruneProgress, UpdateIndex},
    latest,
    lease_desk::{LeaseKeysPeer, LeasePeers},
    lease_manager::{LeaseManager, LeaseManagerPeers, LeaseState},
    lease_messages::{AskLeases, CountdownAnswer, CountdownCall, LeaseServer, PendingCall},
    load,
    members::Members,
    published::Published,
    raft_node::{LogBound, PeerLinks, RaftNode, RaftPacing, RaftPeers, SelfInfo},
    raft_status::{DiskHealth, RaftStatus},
    replies::Answer,
    request_error::RequestError,
    snapshot_messages::{SendSnapshotTo, TransferEnded, TransferError},
    snapshots::{SnapshotPacing, SnapshotPeers, Snapshots},
    wal_writer::{Persist, Persisted, WalWriter},
    watch_calls::{OpenStream, StreamRequest, WatchCalls, WatchRequest},
    watch_hub::{EventsApplied, WatchHub},
};
use crate::{
    auth::{self, AuthState, Change, caller::UserRef},
    clock, codec,
    kv::{
        KeyRange,
        command::{AlarmKind, Command, Put},
        index::Index as Tree,
        keys::KeyChange,
        lease::LeaseRow,
        lease_clock::ClockSettings,
        machine::Machine,
        range::RevisionWindow,
        retention::Retention,
        tail::Tail,
        view::View,
        watch::{Body, WatchSpec},
    },
    raft::{self, InitialState, Membership},
    storage::{
        db::{CommitBatch, Db, DbOptions, DbSite},
        disk::Disk,
        sim_disk::SimDisk,
        starts::{Origin, Starts},
        wal::{Wal, WalOptions},
    },
    types::{
        ClusterId, Entry, EntryKind, HardState, Identity, LeaseId, LogIndex, LogPosition, MemberId,
        Millis, Record, RecordKind, Rev, Revision, Term,
    },
};
use actix::prelude::*;
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

const MEMBER: MemberId = MemberId(3);
const IDENTITY: Identity = Identity {
    cluster: ClusterId(7),
    member: MEMBER,
};
const TIMEOUT: Duration = Duration::from_secs(5);

/// Stands for an actor that takes one kind of message.
struct Fake<M: Message> {
    answer: Box<dyn FnMut(M) -> M::Result>,
}

impl<M: Message + 'static> Actor for Fake<M> {
    type Context = Context<Self>;
}

impl<M: Message<Result: 'static> + 'static> Handler<M> for Fake<M> {
    type Result = MessageResult<M>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> Self::Result {
        MessageResult((self.answer)(message))
    }
}

/// A recipient that answers with `answer`.
fn fake<M>(answer: impl FnMut(M) -> M::Result + 'static) -> Recipient<M>
where
    M: Message<Result: Send> + Send + 'static,
{
    let answer = Box::new(answer);
    Fake { answer }.start().recipient()
}

/// A recipient, and what it receives.
pub(super) fn caught<M>() -> (Recipient<M>, mpsc::UnboundedReceiver<M>)
where
    M: Message<Result = ()> + Send + 'static,
{
    let (into, messages) = mpsc::unbounded_channel();
    // A test that has ended receives no more.
    let to = fake(move |message| drop(into.send(message)));
    (to, messages)
}

/// A recipient of what the test does not look at.
pub(super) fn ignored<M: Message<Result = ()> + Send + 'static>() -> Recipient<M> {
    fake(drop)
}

/// Runs a test on one thread, whose paused clock advances only when all tasks are idle.
fn alone(test: impl AsyncFnOnce()) {
    let system = clock::paused_system();
    system.block_on(async {
        let outcome = tokio::time::timeout(Duration::from_mins(1), test()).await;
        outcome.expect("the actor does its part");
    });
}

pub(super) fn life() -> Lifeline {
    let stopped = FailStop::new(|reason| panic!("the member stops: {reason}"));
    Lifeline::new("the actor under test", stopped)
}

fn disk() -> Arc<dyn Disk> {
    Arc::new(SimDisk::new(1))
}

fn site() -> DbSite {
    DbSite {
        disk: disk(),
        name: "db",
        options: DbOptions::default(),
        identity: IDENTITY,
    }
}

fn open(site: &DbSite) -> Db {
    Db::open(&*site.disk, site.name, site.options, site.identity).unwrap()
}

fn open_wal(disk: &Arc<dyn Disk>) -> Wal {
    let options = WalOptions::new(IDENTITY, 1);
    Wal::open(disk.clone(), "wal", options, LogIndex(0))
        .unwrap()
        .0
}

/// A change of key `k`, as the index and the records of a batch have it.
fn change(rev: Rev) -> KeyChange {
    KeyChange {
        key: Bytes::from("k"),
        rev,
        kind: RecordKind::Put,
        lease: LeaseId(0),
    }
}

/// The view of an empty database whose store is at `newest`.
pub(super) fn views_at(
    db: &Db,
    newest: Revision,
) -> (
    latest::Sender<Arc<Published>>,
    latest::Receiver<Arc<Published>>,
) {
    latest::channel(Arc::new(published(db, newest)))
}

fn published(db: &Db, newest: Revision) -> Published {
    let stored = db.reader().unwrap();
    Published {
        view: View {
            window: RevisionWindow {
                newest,
                compacted: Revision::NEVER_COMPACTED,
            },
            keys: Tree::new().snapshot(),
            tail: Tail::default(),
            stored: Arc::new(stored.clone()),
        },
        applied: db.applied(),
        alarms: Arc::default(),
        members: Arc::new(Members::default()),
        auth: Arc::default(),
        hash: None,
        stored,
        stored_through: newest,
        stored_applied: db.applied().index,
        file_bytes: db.size(),
        used_bytes: db.size_in_use(),
        unstored_bytes: 0,
    }
}

fn status(leads: bool) -> latest::Receiver<RaftStatus> {
    let status = RaftStatus {
        leader: Some(MEMBER),
        leads,
        term: Term(1),
        commit: LogIndex(0),
        learner: false,
        out: false,
        quota_alarm: AlarmKind::QuotaReached,
    };
    latest::channel(status).1
}

/// A handle to consensus, and the messages that it sends to the Raft node.
fn consensus() -> (Consensus, mpsc::UnboundedReceiver<Propose>) {
    let (propose, proposed) = caught();
    let limits = ConsensusLimits {
        request_bytes_max: 1 << 20,
        timeout: TIMEOUT,
    };
    let peers = ConsensusPeers {
        propose,
        reads: ignored(),
        held: HeldBytes::default(),
    };
    let handle = Consensus::start(&Arbiter::current(), MEMBER, limits, peers);
    (handle, proposed)
}

fn lease_peers(consensus: Consensus, views: latest::Receiver<Arc<Published>>) -> LeasePeers {
    LeasePeers {
        manager: ignored(),
        leases: watch::channel(0).1,
        leases_max: 10,
        keys: LeaseKeysPeer::new(fake(|_| Ok(None))),
        leader: None,
        ttl_secs_min: 2,
        timeout: TIMEOUT,
        consensus,
        views,
        raft_status: status(true),
    }
}

#[test]
fn the_wal_writer_reports_what_is_durable() {
    alone(async || {
        let disk = disk();
        let (raft, mut reports) = caught::<Persisted>();
        let writer = WalWriter::new(open_wal(&disk), disk.clone(), raft, life()).start();
        let write = raft::LogWrite {
            seq: 5,
            reset: None,
            entries: Vec::new(),
            hard_state: HardState::default(),
        };
        let persist = Persist {
            writes: vec![write],
            stored: LogIndex(0),
        };
        writer.send(persist).await.unwrap();
        assert_eq!(reports.recv().await.unwrap().seq, 5);
    });
}

#[test]
fn the_index_publishes_a_snapshot_for_each_batch() {
    alone(async || {
        let (applier, mut snapshots) = caught::<IndexPublished>();
        let index = Index::new(Tree::new(), applier, life()).start();
        let update = UpdateIndex {
            changes: vec![change(Rev::new(Revision(2), 0))],
            through: Revision(2),
        };
        index.send(update).await.unwrap();
        let published = snapshots.recv().await.unwrap();
        assert_eq!(published.through, Revision(2));
        let all = KeyRange::from_wire(&Bytes::from("k"), &Bytes::new());
        assert_eq!(published.snapshot.count(&all), 1);
    });
}

#[test]
fn the_committer_reports_what_the_database_holds() {
    alone(async || {
        let site = site();
        let (reported, mut reports) = caught::<Committed>();
        let committer = Committer::new(open(&site), site, reported, ignored(), life()).start();
        let applied = LogPosition::new(Term(1), LogIndex(4));
        let commit = CommitRevisions {
            batch: CommitBatch {
                applied,
                ..CommitBatch::default()
            },
            through: Revision(1),
        };
        committer.send(commit).await.unwrap();
        let report = reports.recv().await.unwrap();
        assert_eq!(report.applied, applied);
        assert_eq!(report.through, Some(Revision(1)));
    });
}

fn caller(reply: oneshot::Sender<Answer>) -> Caller {
    Caller {
        deadline: clock::now() + Duration::from_mins(1),
        reply: reply.into(),
    }
}

pub(super) fn replace_peers() -> ReplacePeers {
    ReplacePeers {
        committer: ignored(),
        index: ignored(),
        leases: ignored(),
        compactor: ignored(),
        raft: ignored(),
    }
}

#[test]
fn the_applier_answers_once_the_index_has_published() {
    alone(async || {
        let db = open(&site());
        let (loaded, mut tree) = load::load_state(&db).unwrap();
        let (to_index, mut updates) = caught::<UpdateIndex>();
        let (raft, mut progress) = caught::<ApplierProgress>();
        let peers = ApplierPeers {
            index: to_index,
            committer: ignored(),
            forget: ignored(),
            raft,
            compactor: ignored(),
            leases: ignored(),
            watches: ignored(),
            views: views_at(&db, Revision::FIRST).0,
            auth_on: Arc::default(),
            held: HeldBytes::default(),
            entry_bytes_max: 1 << 20,
            replace: replace_peers(),
        };
        let state = ApplierState {
            machine: Machine::new(loaded, tree.snapshot()),
            snapshot: tree.snapshot(),
            applied: db.applied(),
            begun_compaction: Revision::NEVER_COMPACTED,
            members: Arc::new(Members::default()),
            stored: db.reader().unwrap(),
            file_bytes: db.size(),
            used_bytes: db.size_in_use(),
        };
        let pacing = CommitPacing {
            interval: Duration::from_mins(1),
            records_max: 100,
            bytes_max: 1 << 20,
        };
        let applier = Applier::new(state, pacing, peers, life()).start();
        let put = Command::Put(Put {
            key: "k".into(),
            value: "v".into(),
            ..Put::default()
        });
        let data = [vec![0; 16], codec::encode(&put)].concat();
        let (reply, mut outcome) = oneshot::channel();
        let entries = vec![CommittedEntry {
            entry: Entry {
                term: Term(1),
                index: LogIndex(1),
                kind: EntryKind::Command,
                data: data.into(),
            },
            caller: Some(caller(reply)),
        }];
        applier.send(ApplyEntries { entries }).await.unwrap();
        let update = updates.recv().await.unwrap();
        assert_eq!(update.changes.len(), 1);
        for change in &update.changes {
            tree.put(&change.key, change.rev, change.lease);
        }
        assert!(outcome.try_recv().is_err(), "readers do not see it yet");
        let published = IndexPublished {
            snapshot: tree.snapshot(),
            through: update.through,
        };
        applier.send(published).await.unwrap();
        assert!(outcome.await.unwrap().is_ok());
        assert_eq!(progress.recv().await.unwrap().applied, LogIndex(1));
    });
}

#[test]
fn the_compactor_prunes_the_index_and_then_removes_records() {
    alone(async || {
        let db = open(&site());
        let (pruned, mut prune_steps) = mpsc::unbounded_channel();
        let (removed, mut removals) = mpsc::unbounded_channel();
        let hashes = CompactionHashes::default();
        let peers = CompactorPeers {
            index: fake(move |prune: PruneIndex| {
                pruned.send(prune.at).unwrap();
                PruneProgress::Done(Tree::new().snapshot())
            }),
            committer: fake(move |compact: CompactRecords| {
                removed.send(compact.through).unwrap();
                CompactProgress {
                    next: None,
                    removed: 1,
                    hasher: compact.hasher,
                }
            }),
            consensus: consensus().0,
            views: views_at(&db, Revision(9)).1,
            raft_status: status(true),
            hashes: hashes.clone(),
        };
        let state = CompactionState {
            wanted: Decision {
                revision: Revision::NEVER_COMPACTED,
                index: LogIndex(0),
            },
            stored: None,
        };
        let pacing = CompactionPacing {
            records_max: 10,
            pause: Duration::from_millis(1),
        };
        let compactor = Compactor::new(state, Retention::Off, pacing, peers, life()).start();
        let revision = Revision(5);
        let index = db.applied().index;
        let accepted = CompactionAccepted(Decision { revision, index });
        compactor.send(accepted).await.unwrap();
        compactor.send(AwaitCompaction { revision }).await.unwrap();
        assert_eq!(prune_steps.recv().await, Some(revision));
        assert_eq!(removals.recv().await, Some(revision));
        let hash = hashes.at(revision).expect("the hash of the compaction");
        assert_eq!(hash.compacted, Revision::NEVER_COMPACTED, "none before");
    });
}

/// It lacks what the compaction removed before the restart.
#[test]
fn a_compaction_that_goes_on_after_a_restart_has_no_hash() {
    alone(async || {
        let db = open(&site());
        let (visited, mut visits) = mpsc::unbounded_channel();
        let hashes = CompactionHashes::default();
        let peers = CompactorPeers {
            index: fake(|_: PruneIndex| PruneProgress::Done(Tree::new().snapshot())),
            committer: fake(move |compact: CompactRecords| {
                visited.send((compact.through, compact.from)).unwrap();
                CompactProgress {
                    next: None,
                    removed: 0,
                    hasher: compact.hasher,
                }
            }),
            consensus: consensus().0,
            views: views_at(&db, Revision(9)).1,
            raft_status: status(true),
            hashes: hashes.clone(),
        };
        let (interrupted, next) = (Revision(5), Rev::new(Revision(3), 0));
        let index = db.applied().index;
        let decided = |revision| Decision { revision, index };
        let state = CompactionState {
            wanted: decided(interrupted),
            stored: Some((interrupted, Some(next))),
        };
        let pacing = CompactionPacing {
            records_max: 10,
            pause: Duration::from_millis(1),
        };
        let compactor = Compactor::new(state, Retention::Off, pacing, peers, life()).start();
        assert_eq!(visits.recv().await, Some((interrupted, next)));
        let revision = interrupted;
        compactor.send(AwaitCompaction { revision }).await.unwrap();
        assert_eq!(hashes.at(interrupted), None);
        let revision = Revision(7);
        let accepted = CompactionAccepted(decided(revision));
        compactor.send(accepted).await.unwrap();
        compactor.send(AwaitCompaction { revision }).await.unwrap();
        let hash = hashes.at(revision).expect("it saw all records");
        assert_eq!(hash.compacted, interrupted);
    });
}

#[test]
fn the_lease_manager_proposes_renewals_while_it_leads() {
    alone(async || {
        let (consensus, mut proposed) = consensus();
        let peers = LeaseManagerPeers {
            consensus,
            raft_status: status(true),
        };
        let state = LeaseState {
            leases: vec![(LeaseId(1), LeaseRow::new(60, LogIndex(1)))],
            applied_term: Term(1),
        };
        let settings = ClockSettings {
            grace: Millis(500),
            checkpoint_every: Millis(300_000),
        };
        let (count, _leases) = watch::channel(1);
        let manager = LeaseManager::new(state, settings, count, peers, life()).start();
        let (reply, answer) = oneshot::channel();
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let call = PendingCall {
            call: CountdownCall::Renew(LeaseId(1)),
            reply,
            place,
        };
        let ask = AskLeases {
            calls: vec![call],
            lists: Vec::new(),
        };
        manager.send(ask).await.unwrap();
        let Propose { mut proposals } = proposed.recv().await.unwrap();
        let renewal = proposals.pop().unwrap();
        let command: Command = codec::decode_shared("command", &renewal.data.slice(16..)).unwrap();
        assert!(matches!(command, Command::RenewLeases(_)), "{command:?}");
        // The node stops: the caller gets the answer to ask again.
        drop(renewal);
        assert_eq!(answer.await, Ok(CountdownAnswer::TryAgain));
    });
}

#[test]
fn the_watch_hub_sends_events_to_a_stream() {
    alone(async || {
        let db = open(&site());
        let (views_in, views) = views_at(&db, Revision::FIRST);
        let hub = WatchHub::new(
            views,
            Duration::from_mins(10),
            &HeldBytes::default(),
            life(),
        )
        .start();
        let outbox = hub
            .send(OpenStream { holder: None })
            .await
            .unwrap()
            .unwrap()
            .outbox;
        let range = KeyRange::from_wire(&Bytes::from("k"), &Bytes::new());
        let create = StreamRequest {
            stream: outbox.stream(),
            request: WatchRequest::Create(WatchSpec::of(range)),
        };
        hub.send(create).await.unwrap();
        assert!(matches!(outbox.take().await.unwrap().body, Body::Created));
        let record = Record {
            rev: Rev::new(Revision(2), 0),
            kind: RecordKind::Put,
            kv: record_of("k"),
        };
        let published = Arc::new(published(&db, Revision(2)));
        views_in.send_replace(published.clone());
        let records = Arc::from([record]);
        hub.send(EventsApplied { records, published })
            .await
            .unwrap();
        let response = outbox.take().await.unwrap();
        assert!(matches!(response.body, Body::Events { .. }), "{response:?}");
    });
}

/// A batch was sent before a right was given, and reaches the hub after the watch that the right allows.
#[test]
fn the_watch_hub_judges_no_watch_by_an_older_state() {
    alone(async || {
        let db = open(&site());
        let mut auth = AuthState::default();
        let user = |name: &str| Change::AddUser {
            name: name.to_owned(),
            password: None,
        };
        let role = |user: &str, role: &str| Change::GrantRole {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        for change in [
            user("root"),
            role("root", "root"),
            user("u"),
            Change::Enable,
        ] {
            auth.apply(&change, 1, &mut Vec::new()).unwrap();
        }
        let view = |auth: &AuthState| {
            Arc::new(Published {
                auth: Arc::new(auth.clone()),
                ..published(&db, Revision::FIRST)
            })
        };
        let before = view(&auth);
        auth.apply(&role("u", "root"), 2, &mut Vec::new()).unwrap();
        let views = latest::channel(view(&auth)).1;
        let hub = WatchHub::new(
            views,
            Duration::from_mins(10),
            &HeldBytes::default(),
            life(),
        );
        let hub = hub.start();
        let opened = hub.send(OpenStream { holder: None }).await.unwrap();
        let outbox = opened.unwrap().outbox;
        let range = KeyRange::from_wire(&Bytes::from("k"), &Bytes::new());
        let mut spec = WatchSpec::of(range);
        spec.caller = auth::Caller::User(Arc::new(UserRef {
            name: "u".into(),
            added: auth.user("u").unwrap().added(),
            token: 0,
        }));
        let batch = |published| EventsApplied {
            records: Arc::from([]),
            published,
        };
        hub.send(batch(view(&auth))).await.unwrap();
        let create = StreamRequest {
            stream: outbox.stream(),
            request: WatchRequest::Create(spec),
        };
        hub.send(create).await.unwrap();
        hub.send(batch(before)).await.unwrap();
        assert!(matches!(outbox.take().await.unwrap().body, Body::Created));
        assert!(outbox.try_take().is_err(), "it goes on");
    });
}

#[test]
fn proposals_that_wait_for_the_raft_node_are_bounded_in_bytes() {
    alone(async || {
        let (handle, mut proposed) = consensus();
        let put = Command::Put(Put {
            value: Bytes::from(vec![0; 1 << 20]).into(),
            ..Put::default()
        });
        // The task that sends them does not run meanwhile.
        let mut taken = 0;
        let refused = loop {
            assert!(taken < 100, "there is no bound");
            match handle.submit(&put) {
                Ok(_) => taken += 1,
                Err(refused) => break refused,
            }
        };
        assert!(
            matches!(refused, RequestError::TooManyRequests),
            "{refused}"
        );
        let held = handle.held().parts().remove(0);
        assert!(held.bytes() > taken << 20 && held.bytes() <= held.bytes_max());
        assert_eq!(proposed.recv().await.unwrap().proposals.len(), taken);
        assert_eq!(held.bytes(), 0);
        assert!(handle.submit(&put).is_ok(), "there is room again");
    });
}

/// An encoded `KeyValue` that holds a key alone.
fn record_of(key: &str) -> Bytes {
    let len = u8::try_from(key.len()).unwrap();
    Bytes::from([&[0x0a, len], key.as_bytes()].concat())
}

#[test]
fn snapshots_tells_the_raft_node_how_a_transfer_ended() {
    alone(async || {
        let site = site();
        let db = open(&site);
        let (ended, mut transfers) = caught::<TransferEnded>();
        let peers = SnapshotPeers {
            open: None,
            ended,
            install: ignored(),
            views: views_at(&db, Revision::FIRST).1,
        };
        let pacing = SnapshotPacing {
            bytes_per_sec: 1 << 20,
        };
        let snapshots = Snapshots::new(site, pacing, peers, life()).start();
        let to = MemberId(9);
        snapshots.send(SendSnapshotTo { to }).await.unwrap();
        let transfer = transfers.recv().await.unwrap();
        assert_eq!(transfer.to, to);
        assert!(matches!(transfer.outcome, Err(TransferError::NoPeers)));
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "everything that the actor is given")]
fn the_raft_node_applies_what_the_log_holds() {
    alone(async || {
        let (disk, db) = (disk(), open(&site()));
        let (to_wal, mut writes) = caught::<Persist>();
        let (applier, mut batches) = caught::<ApplyEntries>();
        let (handle, mut proposed) = consensus();
        let views = views_at(&db, Revision::FIRST).1;
        let membership = Membership::of_voters([(MEMBER, Bytes::new())]).unwrap();
        let state = InitialState {
            membership,
            ..InitialState::default()
        };
        let core = raft::RaftCore::new(raft::Config::new(MEMBER, 1), state).unwrap();
        let pacing = RaftPacing {
            tick: Duration::from_millis(100),
            election: Duration::from_secs(1),
            request_timeout: TIMEOUT,
            disk_stall: Duration::from_mins(1),
            apply_gap_max: 100,
            strict_reconfig: true,
            log_bound: LogBound {
                entries: 100,
                bytes: 1 << 20,
            },
        };
        let member = SelfInfo {
            id: MEMBER,
            name: "alone".to_owned(),
            client_urls: Vec::new(),
        };
        let (raft_status, mut statuses) = latest::channel(*status(false).borrow());
        let peers = RaftPeers {
            wal: to_wal,
            release: ignored(),
            log: open_wal(&disk).reader(),
            applier,
            replace: ignored(),
            snapshots: ignored(),
            status: raft_status,
            disk: watch::channel(DiskHealth::default()).0,
            links: PeerLinks::Alone,
            known_members: Members::default(),
            leases: LeaseServer::new(|_| async { Vec::new() }),
            consensus: handle.clone(),
            views,
            starts: Starts::new(Origin::Formed, true),
            starts_disk: disk.clone(),
            starts_written: ignored(),
            answered: ignored(),
            hashes: ignored(),
            hash_received: ignored(),
            log_read: ignored(),
            held: HeldBytes::default(),
        };
        let node = RaftNode::new(core, member, pacing, peers, life()).start();
        // The disk is as fast as can be.
        let disk_reports = node.clone();
        actix::spawn(async move {
            while let Some(Persist { writes, .. }) = writes.recv().await {
                let seq = writes.last().unwrap().seq;
                let report = Persisted {
                    seq,
                    sync_micros: 1,
                };
                disk_reports.send(report).await.unwrap();
            }
        });
        let leads = statuses.wait_for(|status| status.leads).await;
        assert!(leads.is_ok(), "it is the only voter");
        let outcome = handle.submit(&Command::Put(Put::default())).unwrap();
        node.send(proposed.recv().await.unwrap()).await.unwrap();
        let reply = loop {
            let ApplyEntries { entries } = batches.recv().await.unwrap();
            if let Some(Caller { reply, .. }) = entries.into_iter().find_map(|entry| entry.caller) {
                break reply;
            }
        };
        reply.send(Err(RequestError::Stopped));
        assert!(outcome.await.unwrap().is_err(), "the caller's own reply");
    });
}
