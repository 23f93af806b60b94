//! Tests of an applier whose disk stalls: it waits for stored values in every case, and never reads them on its own thread.

use super::{
    super::{
        alone::{caught, ignored, life, replace_peers, views_at},
        apply_messages::{ApplyEntries, CommittedEntry},
        background::in_background,
        committer::{CommitRevisions, Committed},
        held::HeldBytes,
        index::{IndexPublished, UpdateIndex},
        members::Members,
    },
    Applier, ApplierPeers, ApplierState, CommitPacing,
    batch::{IncomingBatch, READING_ENTRIES_MAX},
    state::DecodedEntry,
    testing::{at, database, entry, put, rev},
};
use crate::{
    auth::{AuthState, Caller, Change},
    kv::{
        command::{Checked, Command, Compare, KeyCommand, Operand, Put, Relation, Txn, TxnOp},
        index::Index as Tree,
        machine::{LoadedState, Machine},
        record,
    },
    storage::db::Db,
    types::{LeaseId, LogIndex, Record, RecordKind, Revision},
};
use actix::prelude::*;
use bytes::Bytes;
use std::{
    collections::VecDeque,
    sync::{Arc, mpsc},
    time::Duration,
};
use tokio::sync::mpsc::UnboundedReceiver;

/// Keys that are more than are read ahead for one batch.
const MANY: i64 = 5_000;

/// Runs a test on one thread, beside which there is only one that may wait for a disk.
fn with_one_blocking_thread(test: impl AsyncFnOnce()) {
    let system = System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap()
    });
    system.block_on(async {
        let outcome = tokio::time::timeout(Duration::from_mins(1), test()).await;
        outcome.expect("the applier goes on");
    });
}

/// Occupies the thread that may wait for a disk, once it has done what it was given before, until the result is dropped.
#[must_use]
fn stall() -> mpsc::Sender<()> {
    let (end, ends) = mpsc::channel();
    drop(in_background(move || ends.recv()));
    end
}

/// An applier alone. Its database has the keys `00000`, `00001` and so on, each with the value `v`.
struct Scene {
    db: Db,
    tree: Tree,
    applier: Addr<Applier>,
    updates: UnboundedReceiver<UpdateIndex>,
    commits: UnboundedReceiver<CommitRevisions>,
    /// The index of the last entry.
    last: u64,
}

impl Scene {
    fn new(keys: i64, auth: AuthState) -> Self {
        let mut tree = Tree::new();
        let mut records = Vec::new();
        for (n, major) in (0..keys).zip(2..) {
            let (key, rev) = (format!("{n:05}"), rev(major));
            tree.put(key.as_bytes(), rev, LeaseId(0));
            let kv = record::encode(&record::Fields {
                key: key.as_bytes(),
                create_revision: rev.major,
                mod_revision: rev.major,
                version: 1,
                value: b"v",
                lease: LeaseId(0),
            });
            let kind = RecordKind::Put;
            records.push(Record { rev, kind, kv });
        }
        let (db, stored) = database(&records);
        let loaded = LoadedState {
            revision: Revision(keys + 1),
            auth,
            ..LoadedState::default()
        };
        let (index, updates) = caught();
        let (committer, commits) = caught();
        let peers = ApplierPeers {
            index,
            committer,
            forget: ignored(),
            raft: ignored(),
            compactor: ignored(),
            leases: ignored(),
            watches: ignored(),
            views: views_at(&db, loaded.revision).0,
            auth_on: Arc::default(),
            held: HeldBytes::default(),
            entry_bytes_max: 1 << 20,
            replace: replace_peers(),
        };
        let state = ApplierState {
            machine: Machine::new(loaded, tree.snapshot()),
            snapshot: tree.snapshot(),
            applied: at(1),
            begun_compaction: Revision::NEVER_COMPACTED,
            members: Arc::new(Members::default()),
            stored: stored.reader,
            file_bytes: stored.file_bytes,
            used_bytes: stored.used_bytes,
        };
        let pacing = CommitPacing {
            interval: Duration::from_mins(1),
            records_max: 1,
            bytes_max: 1 << 20,
        };
        Self {
            db,
            tree,
            applier: Applier::new(state, pacing, peers, life()).start(),
            updates,
            commits,
            last: 1,
        }
    }

    /// Sends the applier commands as one batch.
    async fn apply(&mut self, commands: &[Command]) {
        let mut entries = Vec::new();
        for command in commands {
            self.last += 1;
            entries.push(CommittedEntry {
                entry: entry(self.last, command),
                caller: None,
            });
        }
        let sent = self.applier.send(ApplyEntries { entries }).await;
        sent.expect("the applier lives");
    }

    /// The keys that the next applied batch changes, which is published then.
    async fn changed(&mut self) -> Vec<Bytes> {
        let update = self.updates.recv().await.expect("the applier lives");
        for change in &update.changes {
            self.tree.put(&change.key, change.rev, change.lease);
        }
        let published = IndexPublished {
            snapshot: self.tree.snapshot(),
            through: update.through,
        };
        let sent = self.applier.send(published).await;
        sent.expect("the applier lives");
        update
            .changes
            .into_iter()
            .map(|change| change.key)
            .collect()
    }

    /// Stores the next commit in the database, after which memory has its records no longer.
    async fn store(&mut self) {
        let commit = self.commits.recv().await.expect("the applier lives");
        let (batch, through) = (commit.batch, Some(commit.through));
        self.db.commit(&batch).expect("the disk has no faults");
        let committed = Committed {
            applied: batch.applied,
            log_needed_after: LogIndex(1),
            through,
            reader: self.db.reader().expect("the disk has no faults"),
            file_bytes: self.db.size(),
            used_bytes: self.db.size_in_use(),
            commit_micros: 0,
        };
        let sent = self.applier.send(committed).await;
        sent.expect("the applier lives");
    }
}

/// Puts the key `then` if all keys from `key` to `range_end` have the value `v`.
fn compare(key: &'static str, range_end: &'static str, then: &str) -> Command {
    let compare = Compare {
        key: key.into(),
        range_end: range_end.into(),
        relation: Relation::Equal,
        operand: Operand::Value("v".into()),
    };
    let puts = |key| match put(key).on_keys() {
        Some(KeyCommand::Put(put)) => TxnOp::Put(put.clone()),
        Some(KeyCommand::Txn(_) | KeyCommand::DeleteRange(_)) | None => TxnOp::Empty,
    };
    Command::Txn(Txn {
        compares: vec![compare],
        success: vec![puts(then)],
        failure: vec![puts("another value")],
    })
}

/// While authentication is on, clients without credentials may do nothing.
fn auth_on() -> AuthState {
    let mut auth = AuthState::default();
    for change in [
        Change::AddUser {
            name: "root".into(),
            password: None,
        },
        Change::GrantRole {
            user: "root".into(),
            role: "root".into(),
        },
        Change::Enable,
    ] {
        let done = auth.apply(&change, 1, &mut Vec::new());
        assert_eq!(done, Ok(()), "{change:?}");
    }
    auth
}

#[test]
fn a_compare_over_more_values_than_are_read_ahead_waits_for_another_thread() {
    with_one_blocking_thread(async || {
        let mut scene = Scene::new(MANY, AuthState::default());
        let ahead = stall();
        let commands = [put("before"), compare("0", "1", "all"), put("behind")];
        scene.apply(&commands).await;
        let judging = stall();
        drop(ahead);
        assert_eq!(scene.changed().await, ["before"], "what comes before it");
        assert!(scene.updates.try_recv().is_err(), "it waits");
        drop(judging);
        assert_eq!(scene.changed().await, ["all"], "it has read all values");
        assert_eq!(scene.changed().await, ["behind"], "in the log's order");
    });
}

#[test]
fn a_command_that_is_allowed_because_of_its_batch_waits_for_another_thread() {
    with_one_blocking_thread(async || {
        let mut scene = Scene::new(2, auth_on());
        let judging = stall();
        let off = Command::Checked(Checked {
            caller: Caller::Node,
            command: Box::new(Command::Auth(Change::Disable)),
        });
        let commands = [
            compare("00000", "", "refused"),
            off,
            compare("00000", "", "one"),
            compare("00001", "", "two"),
        ];
        scene.apply(&commands).await;
        assert!(scene.changed().await.is_empty(), "authentication is off");
        assert!(scene.updates.try_recv().is_err(), "the next one waits");
        drop(judging);
        assert_eq!(scene.changed().await, ["one"]);
        assert_eq!(scene.changed().await, ["two"], "its value was read ahead");
    });
}

#[test]
fn a_value_that_leaves_memory_while_others_are_read_waits_for_another_thread() {
    with_one_blocking_thread(async || {
        let mut scene = Scene::new(1, AuthState::default());
        scene.apply(&[put("recent")]).await;
        assert_eq!(scene.changed().await, ["recent"]);
        let ahead = stall();
        let commands = [compare("00000", "", "one"), compare("recent", "", "two")];
        scene.apply(&commands).await;
        scene.store().await;
        let judging = stall();
        drop(ahead);
        assert_eq!(scene.changed().await, ["one"]);
        assert!(scene.updates.try_recv().is_err(), "the other one waits");
        drop(judging);
        assert_eq!(scene.changed().await, ["two"]);
    });
}

#[test]
fn a_key_that_comes_into_a_compared_range_within_the_batch_is_in_memory() {
    with_one_blocking_thread(async || {
        let mut scene = Scene::new(1, AuthState::default());
        let _busy = stall();
        scene.apply(&[put("k"), compare("k", "l", "range")]).await;
        assert_eq!(scene.changed().await, ["k", "range"], "in one batch");
    });
}

/// A put that keeps the value of a key.
fn keep(key: &str) -> Command {
    match put(key) {
        Command::Put(put) => Command::Put(Put {
            ignore_value: true,
            value: Bytes::new().into(),
            ..put
        }),
        other => panic!("{other:?}"),
    }
}

/// What a put that keeps a value makes is as long as the value, so a burst of short entries could fill memory.
#[test]
fn puts_that_keep_a_value_wait_while_the_database_is_behind() {
    const BYTES: usize = 5 * 1024 * 1024;
    with_one_blocking_thread(async || {
        let mut scene = Scene::new(1, AuthState::default());
        let Command::Put(long) = put("long") else {
            panic!("a put");
        };
        let long = Command::Put(Put {
            value: Bytes::from(vec![7; BYTES]).into(),
            ..long
        });
        scene.apply(&[long]).await;
        assert_eq!(scene.changed().await, ["long"]);
        let keeping: Vec<_> = (0..40).map(|_| keep("long")).collect();
        scene.apply(&keeping).await;
        assert_eq!(scene.changed().await.len(), READING_ENTRIES_MAX);
        assert!(scene.updates.try_recv().is_err(), "the database is behind");
        // The first commit has what came before.
        scene.store().await;
        assert!(scene.updates.try_recv().is_err(), "it still is");
        scene.store().await;
        assert_eq!(scene.changed().await.len(), READING_ENTRIES_MAX);
        assert!(scene.updates.try_recv().is_err(), "it is so again");
        scene.store().await;
        assert_eq!(scene.changed().await.len(), 8, "the rest of them");
    });
}

#[test]
fn a_long_batch_is_applied_in_parts_with_some_entries_that_may_read() {
    let entries = |commands: Vec<Command>| {
        let entries = commands.iter().zip(2..).map(|(command, index)| {
            let entry = entry(index, command);
            DecodedEntry::new(CommittedEntry {
                entry,
                caller: None,
            })
        });
        entries.collect::<Result<VecDeque<_>, _>>()
    };
    let shape = |commands: Vec<Command>| {
        let entries = entries(commands).expect("they hold commands");
        let batches = IncomingBatch::of(entries);
        let shape = batches
            .iter()
            .map(|batch| (batch.entries.len(), batch.reading));
        shape.collect::<Vec<_>>()
    };
    let plain = (0..100).map(|_| put("k")).collect();
    assert_eq!(shape(plain), [(100, 0)]);
    assert_eq!(shape(Vec::new()), [(0, 0)]);
    let mixed = (0..40).flat_map(|_| [keep("k"), put("k")]).collect();
    assert_eq!(
        shape(mixed),
        [(32, 16), (32, 16), (16, 8)],
        "in their order"
    );
}
