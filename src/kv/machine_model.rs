//! Tests of the state machine against a model too simple to be wrong: the whole state at every revision, in plain maps.
//!
//! The machine is driven as the actors drive it: commands in batches, changes into an index and a store of records, snapshots
//! of the index coming back later, compactions that really remove records. Every answer must be the model's, and so must
//! every read of every revision that is still there.

use super::{
    KeyRange, KvError,
    answer_reads::AnswerReads,
    check,
    command::{
        Command, Compact, Compare, DeleteRange, DeleteRangeDone, EncodedKv, GrantLease, KeyCommand,
        OpDone, Operand, Outcome, Put, PutDone, RangeDone, RangeQuery, Relation, RevisionFilter,
        RevokeLease, SortOrder, SortTarget, Txn, TxnDone, TxnOp, Verdict,
    },
    generated::generate,
    index::Index,
    judged::Judged,
    machine::{LoadedState, Machine},
    pick::PickRoom,
    range::{Picked, RevisionWindow},
    record::{self, KeyValue},
    records::{ReadError, Records},
};
use crate::types::{LeaseId, LogIndex, LogPosition, RecordKind, Rev, Revision, Term};
use bytes::Bytes;
use proptest::prelude::*;
use std::{cmp::Ordering, collections::BTreeMap};

type State = BTreeMap<Bytes, KeyValue>;

/// Operations that a transaction may hold.
const OPS_MAX: usize = 128;

/// The state at every revision.
struct Naive {
    states: Vec<State>,
    compacted: i64,
    leases: Vec<i64>,
}

/// A transaction under way.
struct Working {
    state: State,
    major: i64,
    changed: bool,
}

impl Working {
    fn visible(&self) -> Revision {
        Revision(self.major - i64::from(!self.changed))
    }

    fn in_range(&self, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
        in_range(&self.state, key, end)
    }
}

fn in_range(state: &State, key: &Bytes, end: &Bytes) -> Vec<KeyValue> {
    let range = KeyRange::from_wire(key, end);
    let all = state.values().filter(|kv| range.contains(&kv.key));
    all.cloned().collect()
}

impl Naive {
    fn new() -> Self {
        Self {
            states: vec![State::new(); 2],
            compacted: Revision::NEVER_COMPACTED.0,
            leases: Vec::new(),
        }
    }

    fn newest(&self) -> i64 {
        self.states.len().cast_signed() as i64 - 1
    }

    fn begin(&self) -> Working {
        Working {
            state: self.states.last().cloned().unwrap_or_default(),
            major: self.newest() + 1,
            changed: false,
        }
    }

    fn end(&mut self, working: Working) -> Revision {
        if working.changed {
            self.states.push(working.state);
        }
        Revision(self.newest())
    }

    fn apply(&mut self, command: &Command) -> Verdict {
        let mut working = self.begin();
        let outcome = match command {
            Command::Put(put) => {
                self.check_lease(put.lease)?;
                check_put_keeps(put, &working.state)?;
                Outcome::Put(apply_put(put, &mut working))
            }
            Command::DeleteRange(delete) => {
                Outcome::DeleteRange(apply_delete(delete, &mut working))
            }
            Command::Txn(txn) => {
                let before = working.state.clone();
                self.check_operations(txn, &before)?;
                let mut done = self.run(txn, &before, &mut working);
                done.revision = working.visible();
                Outcome::Txn(done)
            }
            Command::Compact(compact) => return self.compact(compact.revision),
            Command::GrantLease(grant) => {
                if self.leases.contains(&grant.id.0) {
                    return Err(KvError::LeaseExists(grant.id));
                }
                self.leases.push(grant.id.0);
                return Ok(Outcome::Countdown {
                    revision: working.visible(),
                    leases: 0,
                    deleted: 0,
                });
            }
            Command::RevokeLease(revoke) => {
                self.check_lease(revoke.id)?;
                if revoke.id.0 == 0 {
                    return Err(KvError::LeaseNotFound(revoke.id));
                }
                self.leases.retain(|&id| id != revoke.id.0);
                let attached = working.state.values();
                let attached = attached.filter(|kv| kv.lease == revoke.id);
                working.changed = attached.count() > 0;
                working.state.retain(|_, kv| kv.lease != revoke.id);
                Outcome::Countdown {
                    revision: working.visible(),
                    leases: 0,
                    deleted: 0,
                }
            }
            Command::SetAlarm(_)
            | Command::ExpireLeases(_)
            | Command::CheckpointLeases(_)
            | Command::RenewLeases(_)
            | Command::Auth(_)
            | Command::Checked(_) => unreachable!("the model is not asked for these"),
        };
        self.end(working);
        Ok(outcome)
    }

    fn compact(&mut self, asked: Revision) -> Verdict {
        if asked.0 <= self.compacted {
            let oldest = Revision(self.compacted);
            return Err(KvError::Compacted { asked, oldest });
        }
        let newest = Revision(self.newest());
        if asked > newest {
            return Err(KvError::FutureRevision { asked, newest });
        }
        self.compacted = asked.0;
        Ok(Outcome::Compact { revision: newest })
    }

    fn check_lease(&self, id: LeaseId) -> Result<(), KvError> {
        if id.0 == 0 || self.leases.contains(&id.0) {
            Ok(())
        } else {
            Err(KvError::LeaseNotFound(id))
        }
    }

    fn taken<'t>(txn: &'t Txn, before: &State) -> (bool, &'t [TxnOp]) {
        let holds = txn.compares.iter().all(|compare| holds(compare, before));
        let ops = if holds { &txn.success } else { &txn.failure };
        (holds, ops)
    }

    fn check_operations(&self, txn: &Txn, before: &State) -> Result<(), KvError> {
        for op in Self::taken(txn, before).1 {
            match op {
                TxnOp::Put(put) => {
                    self.check_lease(put.lease)?;
                    check_put_keeps(put, before)?;
                }
                TxnOp::Range(query) if query.revision != 0 => {
                    self.window().check(Revision(query.revision))?;
                }
                TxnOp::Txn(inner) => self.check_operations(inner, before)?,
                TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => {}
            }
        }
        Ok(())
    }

    fn window(&self) -> RevisionWindow {
        RevisionWindow {
            newest: Revision(self.newest()),
            compacted: Revision(self.compacted),
        }
    }

    fn run(&self, txn: &Txn, before: &State, working: &mut Working) -> TxnDone {
        let (succeeded, ops) = Self::taken(txn, before);
        let mut responses = Vec::new();
        for op in ops {
            responses.push(match op {
                TxnOp::Range(query) => {
                    let past = usize::try_from(query.revision).unwrap_or_default();
                    let state = if past > 0 {
                        &self.states[past]
                    } else {
                        &working.state
                    };
                    OpDone::Range(read(state, query, working.visible()))
                }
                TxnOp::Put(put) => OpDone::Put(apply_put(put, working)),
                TxnOp::DeleteRange(delete) => OpDone::DeleteRange(apply_delete(delete, working)),
                TxnOp::Txn(inner) => OpDone::Txn(self.run(inner, before, working)),
                TxnOp::Empty => unreachable!("checks refuse it"),
            });
        }
        TxnDone {
            revision: working.visible(),
            succeeded,
            responses,
        }
    }
}

fn check_put_keeps(put: &Put, state: &State) -> Result<(), KvError> {
    let keeps = put.ignore_value || put.ignore_lease;
    if keeps && !state.contains_key(&put.key.0) {
        return Err(KvError::KeyNotFound);
    }
    Ok(())
}

fn apply_put(put: &Put, working: &mut Working) -> PutDone {
    let before = working.state.get(&put.key.0).cloned();
    let old = before.clone().unwrap_or_default();
    let major = Revision(working.major);
    let kv = KeyValue {
        key: put.key.0.clone(),
        create_revision: before.as_ref().map_or(major, |kv| kv.create_revision),
        mod_revision: major,
        version: old.version + 1,
        value: if put.ignore_value {
            old.value
        } else {
            put.value.0.clone()
        },
        lease: if put.ignore_lease {
            old.lease
        } else {
            put.lease
        },
    };
    working.state.insert(kv.key.clone(), kv);
    working.changed = true;
    PutDone {
        revision: working.visible(),
        prev: before.filter(|_| put.prev_kv).map(|kv| kv.encode()),
    }
}

fn apply_delete(delete: &DeleteRange, working: &mut Working) -> DeleteRangeDone {
    let gone = working.in_range(&delete.key.0, &delete.range_end.0);
    for kv in &gone {
        working.state.remove(&kv.key);
        working.changed = true;
    }
    DeleteRangeDone {
        revision: working.visible(),
        deleted: gone.len().cast_signed() as i64,
        prevs: gone
            .iter()
            .filter(|_| delete.prev_kv)
            .map(KeyValue::encode)
            .collect(),
    }
}

fn holds(compare: &Compare, state: &State) -> bool {
    let found = in_range(state, &compare.key.0, &compare.range_end.0);
    if found.is_empty() {
        return holds_for(compare, None);
    }
    found.iter().all(|kv| holds_for(compare, Some(kv)))
}

fn holds_for(compare: &Compare, kv: Option<&KeyValue>) -> bool {
    let blank = KeyValue::default();
    let known = kv.unwrap_or(&blank);
    let order = match &compare.operand {
        Operand::Version(to) => known.version.cmp(to),
        Operand::Create(to) => known.create_revision.0.cmp(to),
        Operand::Mod(to) => known.mod_revision.0.cmp(to),
        Operand::Lease(to) => known.lease.0.cmp(to),
        Operand::Value(_) if kv.is_none() => return false,
        Operand::Value(to) => known.value.cmp(&to.0),
        Operand::Unknown => Ordering::Equal,
    };
    match compare.relation {
        Relation::Equal => order == Ordering::Equal,
        Relation::NotEqual => order != Ordering::Equal,
        Relation::Greater => order == Ordering::Greater,
        Relation::Less => order == Ordering::Less,
        Relation::Any => true,
    }
}

/// A range read of one state, done the long way.
fn read(state: &State, query: &RangeQuery, revision: Revision) -> RangeDone {
    let mut found = in_range(state, &query.key.0, &query.range_end.0);
    let mut done = RangeDone {
        revision,
        count: found.len().cast_signed() as i64,
        ..RangeDone::default()
    };
    if query.count_only {
        return done;
    }
    let limit = usize::try_from(query.limit).ok().filter(|&limit| limit > 0);
    let limit = limit.unwrap_or(usize::MAX);
    // etcd: without an order, the cut comes before the sort.
    if query.sort_order == SortOrder::None && query.filter.is_off() {
        found.truncate(limit.saturating_add(1));
    }
    found.retain(|kv| query.filter.admits(kv.create_revision, kv.mod_revision));
    found.sort_by(|a, b| {
        let order = match query.sort_target {
            SortTarget::Key | SortTarget::Unknown => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        // etcd: results with an equal target stay in key order, whatever the direction.
        if query.sort_order == SortOrder::Descend {
            order.reverse()
        } else {
            order
        }
    });
    done.more = found.len() > limit;
    found.truncate(limit);
    if query.keys_only {
        for kv in &mut found {
            kv.value = Bytes::new();
            if query.sort_target != SortTarget::Value {
                kv.lease = LeaseId(0);
            }
        }
    }
    done.kvs = found.iter().map(KeyValue::encode).collect();
    done
}

/// What the database is to the machine: records by their revision.
#[derive(Default)]
struct Store(BTreeMap<Rev, (RecordKind, EncodedKv)>);

impl Records for Store {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.0.get(&rev) {
            Some((RecordKind::Put, kv)) => Ok(kv.clone()),
            Some((RecordKind::Tombstone, _)) | None => Err(ReadError {
                rev,
                source: "no such put".into(),
            }),
        }
    }
}

/// Machine, index and store on one side, the model on the other.
struct Pair {
    machine: Machine,
    /// Applies the same commands without a caller, as a follower does.
    follower: Machine,
    index: Index,
    store: Store,
    naive: Naive,
    at: u64,
    /// Commands of this batch whose answers are not complete, with what the model answers.
    unanswered: Vec<(Command, Verdict, AnswerReads, Verdict)>,
}

/// Reads no record that only an answer needs.
struct StateOnly<'a>(&'a Store, &'a Command);

impl Records for StateOnly<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        assert!(
            reads_values(self.1),
            "{rev:?} is read for nobody: {:?}",
            self.1
        );
        self.0.get(rev)
    }
}

/// Whether the state after a command depends on stored values.
fn reads_values(command: &Command) -> bool {
    fn txn(txn: &Txn) -> bool {
        let by_value = |compare: &Compare| matches!(compare.operand, Operand::Value(_));
        txn.compares.iter().any(by_value)
            || txn.branches().any(|op| match op {
                TxnOp::Put(put) => put.ignore_value,
                TxnOp::Txn(inner) => reads_values(&Command::Txn(inner.clone())),
                TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => false,
            })
    }
    match command.on_keys() {
        Some(KeyCommand::Put(put)) => put.ignore_value,
        Some(KeyCommand::Txn(whole)) => txn(whole),
        Some(KeyCommand::DeleteRange(_)) | None => false,
    }
}

/// One step of a run.
#[derive(Clone, Debug)]
enum Step {
    Apply(Command),
    /// The batch ends: its changes go into index and store.
    Publish,
    /// A compaction removes what nobody can read any more.
    Reclaim,
    /// A read of a revision, counted back from the newest.
    Read(RangeQuery, i64),
}

impl Pair {
    fn new() -> Self {
        let index = Index::default();
        Self {
            machine: Machine::new(LoadedState::default(), index.snapshot()),
            follower: Machine::new(LoadedState::default(), index.snapshot()),
            index,
            store: Store::default(),
            naive: Naive::new(),
            at: 0,
            unanswered: Vec::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Apply(command) => self.apply(command),
            Step::Publish => self.publish(),
            Step::Reclaim => self.reclaim(),
            Step::Read(query, back) => self.read(query, *back),
        }
    }

    fn apply(&mut self, command: &Command) {
        let refused = match command.on_keys() {
            Some(KeyCommand::Put(put)) => check::put(put),
            Some(KeyCommand::DeleteRange(delete)) => check::delete_range(delete),
            Some(KeyCommand::Txn(txn)) => check::txn(txn, OPS_MAX),
            None => Ok(()),
        };
        if refused.is_err() {
            return;
        }
        self.at += 1;
        let at = LogPosition {
            index: LogIndex(self.at),
            term: Term(1),
        };
        let mut reads = AnswerReads::default();
        let records = StateOnly(&self.store, command);
        let verdict = self.machine.apply(command, at, &records, Some(&mut reads));
        let verdict = verdict.expect("everything the index names is stored");
        let alone = self.follow(command, at);
        assert_eq!(alone, verdict.is_ok(), "{command:?} at a follower");
        let expected = self.naive.apply(command);
        self.unanswered
            .push((command.clone(), verdict, reads, expected));
        assert_eq!(
            self.follower.state_hash(),
            self.machine.state_hash(),
            "{command:?}"
        );
        assert_eq!(
            self.machine.revision().0,
            self.naive.newest(),
            "{command:?}"
        );
        assert_eq!(
            self.machine.compacted().0,
            self.naive.compacted,
            "{command:?}"
        );
    }

    /// Applies a command to the follower, and says whether it was carried out. The first one of a batch is judged before.
    fn follow(&mut self, command: &Command, at: LogPosition) -> bool {
        let (follower, records) = (&mut self.follower, StateOnly(&self.store, command));
        let alone = if self.unanswered.is_empty() {
            Judged::new(command, follower.keys(), &records)
                .and_then(|judged| follower.apply_judged(command, at, &judged, None))
        } else {
            follower.apply(command, at, &records, None)
        };
        alone.expect("everything the index names is stored").is_ok()
    }

    /// Completes the answers of the batch, from what is stored after it.
    fn answer(&mut self) {
        for (command, verdict, reads, expected) in std::mem::take(&mut self.unanswered) {
            let verdict = verdict.map(|outcome| {
                let complete = reads.complete(outcome, &self.store, usize::MAX);
                complete.expect("everything that was picked is stored")
            });
            let same = match (&verdict, &expected) {
                // The model keeps no lease rows: that there is an answer, and its revision, is enough.
                (
                    Ok(Outcome::Lease { revision, .. }),
                    Ok(Outcome::Countdown {
                        revision: other, ..
                    }),
                ) => revision == other,
                _ => verdict == expected,
            };
            assert!(same, "{command:?}: {verdict:?}, expected {expected:?}");
        }
    }

    fn publish(&mut self) {
        let changes = self.machine.take_changes();
        let followed = self.follower.take_changes();
        assert_eq!(followed, changes, "a follower changes the same");
        for change in &changes.keys {
            match change.kind {
                RecordKind::Put => {
                    self.index.put(&change.key, change.rev, change.lease);
                }
                RecordKind::Tombstone => {
                    let before = self.index.delete(&change.key, change.rev);
                    assert!(before.is_some(), "only live keys are deleted: {change:?}");
                }
            }
        }
        for record in changes.records {
            let before = self.store.0.insert(record.rev, (record.kind, record.kv));
            assert!(before.is_none(), "{:?} is given out once", record.rev);
        }
        let through = self.machine.revision();
        for machine in [&mut self.machine, &mut self.follower] {
            machine.published(self.index.snapshot(), through);
        }
        self.answer();
    }

    fn reclaim(&mut self) {
        self.publish();
        let at = self.machine.compacted();
        if at <= Revision(0) {
            return;
        }
        while !self.index.prune_step(at, 3) {}
        let keys = self.index.snapshot();
        self.store.0.retain(|&rev, (kind, kv)| {
            rev.major > at || keys.needed_at_compaction(record::key_slice(kv), rev, *kind, at)
        });
        let through = self.machine.revision();
        for machine in [&mut self.machine, &mut self.follower] {
            machine.published(keys.clone(), through);
        }
    }

    fn read(&mut self, query: &RangeQuery, back: i64) {
        self.publish();
        if check::range(query).is_err() {
            return;
        }
        let newest = self.naive.newest();
        let revision = newest - back;
        let Ok(at) = self.naive.window().resolve(revision) else {
            return;
        };
        let head = Revision(newest);
        let room = PickRoom::unlimited();
        let picked = Picked::new(&self.index.snapshot(), query.clone(), at, head, &room);
        let done = picked.read(&self.store, &mut |_| Ok::<_, ReadError>(()));
        let done = done.expect("everything readable is stored");
        let state =
            &self.naive.states[usize::try_from(revision).unwrap_or(self.naive.states.len() - 1)];
        let state = if revision <= 0 {
            self.naive.states.last().unwrap_or(state)
        } else {
            state
        };
        assert_eq!(
            done,
            read(state, query, head),
            "{query:?} at {revision} of {newest}"
        );
    }
}

/// Drives both sides through `steps`; panics where they differ.
fn run(steps: &[Step]) {
    let mut pair = Pair::new();
    for step in steps {
        pair.step(step);
    }
    pair.reclaim();
    let all = RangeQuery {
        key: Bytes::from_static(b"\0").into(),
        range_end: Bytes::from_static(b"\0").into(),
        ..RangeQuery::default()
    };
    for back in 0..pair.naive.states.len().cast_signed() as i64 {
        pair.read(&all, back);
    }
}

/// What a fuzzer does with its bytes: see [`generate`].
pub fn fuzz(data: &[u8]) {
    run(&generate(&step(), data, 60));
}

fn key() -> impl Strategy<Value = Bytes> {
    let byte = prop_oneof![Just(b'a'), Just(b'b'), Just(0)];
    prop::collection::vec(byte, 1..3).prop_map(Bytes::from)
}

fn range_end() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        3 => Just(Bytes::new()),
        1 => Just(Bytes::from_static(b"\0")),
        2 => key(),
    ]
}

fn revision() -> impl Strategy<Value = i64> {
    prop_oneof![5 => Just(0), 3 => 1..30_i64, 1 => Just(-1)]
}

fn put() -> impl Strategy<Value = Put> {
    let flags = prop::array::uniform3(prop::bool::weighted(0.15));
    (key(), 0..4_u8, 0..3_i64, flags).prop_map(|(key, value, lease, [a, b, prev_kv])| Put {
        key: key.into(),
        value: if a {
            Bytes::new()
        } else {
            Bytes::from(vec![value])
        }
        .into(),
        lease: LeaseId(if b { 0 } else { lease }),
        prev_kv,
        ignore_value: a,
        ignore_lease: b,
    })
}

fn delete() -> impl Strategy<Value = DeleteRange> {
    (key(), range_end(), any::<bool>()).prop_map(|(key, range_end, prev_kv)| DeleteRange {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv,
    })
}

fn filter() -> impl Strategy<Value = RevisionFilter> {
    let bounds = prop::array::uniform4(prop_oneof![3 => Just(0), 1 => 0..20_i64]);
    let on = bounds.prop_map(
        |[min_mod, max_mod, min_create, max_create]| RevisionFilter {
            min_mod,
            max_mod,
            min_create,
            max_create,
        },
    );
    prop_oneof![4 => Just(RevisionFilter::default()), 1 => on]
}

fn query() -> impl Strategy<Value = RangeQuery> {
    let order = prop_oneof![
        2 => Just(SortOrder::None),
        1 => Just(SortOrder::Ascend),
        1 => Just(SortOrder::Descend),
    ];
    let target = prop_oneof![
        3 => Just(SortTarget::Key),
        1 => Just(SortTarget::Version),
        1 => Just(SortTarget::Create),
        1 => Just(SortTarget::Mod),
        1 => Just(SortTarget::Value),
    ];
    let flags = prop::array::uniform2(prop::bool::weighted(0.2));
    let shape = (key(), range_end(), 0..4_i64, revision());
    (shape, order, target, flags, filter()).prop_map(
        |((key, range_end, limit, revision), sort_order, sort_target, flags, filter)| RangeQuery {
            key: key.into(),
            range_end: range_end.into(),
            limit,
            revision,
            sort_order,
            sort_target,
            serializable: false,
            keys_only: flags[0],
            count_only: flags[1],
            filter,
        },
    )
}

fn compare() -> impl Strategy<Value = Compare> {
    let operand = prop_oneof![
        (0..4_i64).prop_map(Operand::Version),
        (0..20_i64).prop_map(Operand::Create),
        (0..20_i64).prop_map(Operand::Mod),
        (0..3_i64).prop_map(Operand::Lease),
        (0..4_u8).prop_map(|value| Operand::Value(Bytes::from(vec![value]).into())),
        Just(Operand::Unknown),
    ];
    let relation = prop_oneof![
        Just(Relation::Equal),
        Just(Relation::Greater),
        Just(Relation::Less),
        Just(Relation::NotEqual),
        Just(Relation::Any),
    ];
    (key(), range_end(), operand, relation).prop_map(|(key, range_end, operand, relation)| {
        Compare {
            key: key.into(),
            range_end: range_end.into(),
            relation,
            operand,
        }
    })
}

fn txn() -> impl Strategy<Value = Txn> {
    let leaf = prop_oneof![
        3 => put().prop_map(TxnOp::Put),
        2 => query().prop_map(TxnOp::Range),
        2 => delete().prop_map(TxnOp::DeleteRange),
    ];
    let op = leaf.prop_recursive(2, 12, 4, |op| txn_of(op).prop_map(TxnOp::Txn));
    txn_of(op)
}

fn txn_of(op: impl Strategy<Value = TxnOp> + Clone) -> impl Strategy<Value = Txn> {
    let compares = prop::collection::vec(compare(), 0..3);
    let success = prop::collection::vec(op.clone(), 0..4);
    let failure = prop::collection::vec(op, 0..3);
    (compares, success, failure).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    })
}

fn command() -> impl Strategy<Value = Command> {
    prop_oneof![
        6 => put().prop_map(Command::Put),
        2 => delete().prop_map(Command::DeleteRange),
        6 => txn().prop_map(Command::Txn),
        1 => (0..40_i64).prop_map(|at| Command::Compact(Compact { revision: Revision(at) })),
        1 => (1..3_i64).prop_map(|id| Command::GrantLease(GrantLease { id: LeaseId(id), ttl_secs: 5 })),
        1 => (1..3_i64).prop_map(|id| Command::RevokeLease(RevokeLease { id: LeaseId(id) })),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => command().prop_map(Step::Apply),
        3 => Just(Step::Publish),
        1 => Just(Step::Reclaim),
        3 => (query(), 0..12_i64).prop_map(|(query, back)| Step::Read(query, back)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_machine_is_the_naive_one(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps);
    }
}
