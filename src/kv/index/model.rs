//! Tests of the index against a model too simple to be wrong: a sorted map of plain lists.

use super::{Index, Loader, Meta, Snapshot, StoredChange, Written};
use crate::{
    kv::{generated::generate, key_range::KeyRange},
    types::{LeaseId, RecordKind, Rev, Revision},
};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Every key with its changes, oldest first; a tombstone has no metadata.
#[derive(Clone, Debug, Default)]
struct Model {
    keys: BTreeMap<Vec<u8>, Vec<(Rev, Option<Meta>)>>,
}

impl Model {
    fn get(&self, key: &[u8]) -> Option<Meta> {
        self.keys.get(key)?.last()?.1
    }

    fn put(&mut self, key: &[u8], rev: Rev, lease: LeaseId) -> Written {
        let before = self.get(key);
        let now = Meta {
            create: before.map_or(rev.major, |meta| meta.create),
            modified: rev,
            version: before.map_or(0, |meta| meta.version) + 1,
            lease,
        };
        let changes = self.keys.entry(key.to_vec()).or_default();
        changes.push((rev, Some(now)));
        Written { now, before }
    }

    fn delete(&mut self, key: &[u8], rev: Rev) -> Option<Meta> {
        let before = self.get(key)?;
        self.keys.get_mut(key)?.push((rev, None));
        Some(before)
    }

    fn newest_at(&self, key: &[u8], at: Revision) -> Option<(Rev, Option<Meta>)> {
        let changes = self.keys.get(key)?;
        changes.iter().rfind(|(rev, _)| rev.major <= at).copied()
    }

    fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev> {
        self.newest_at(key, at)?.1.map(|meta| meta.modified)
    }

    fn needed(&self, key: &[u8], rev: Rev, at: Revision) -> bool {
        let newest = self.newest_at(key, at);
        rev.major > at
            || newest
                .is_some_and(|(newest, meta)| newest == rev && (meta.is_some() || rev.major == at))
    }

    fn compacted(&self, at: Revision) -> Self {
        let mut keys = self.keys.clone();
        for (key, changes) in &mut keys {
            changes.retain(|(rev, _)| self.needed(key, *rev, at));
        }
        keys.retain(|_, changes| !changes.is_empty());
        Self { keys }
    }

    fn in_range(&self, range: &KeyRange) -> impl Iterator<Item = &[u8]> {
        let keys = self.keys.keys().map(Vec::as_slice);
        keys.filter(|key| range.contains(key))
    }
}

fn kind(meta: Option<Meta>) -> RecordKind {
    meta.map_or(RecordKind::Tombstone, |_| RecordKind::Put)
}

fn compare_range(view: &Snapshot, model: &Model, range: &KeyRange, revisions: &[Revision]) {
    let live: Vec<_> = view
        .live(range)
        .map(|(key, meta)| (key.to_vec(), meta))
        .collect();
    let expected: Vec<_> = model
        .in_range(range)
        .filter_map(|key| Some((key.to_vec(), model.get(key)?)))
        .collect();
    assert_eq!(live, expected, "live in {range:?}");
    assert_eq!(view.count(range), expected.len() as u64, "count {range:?}");
    for &at in revisions {
        let alive: Vec<_> = view
            .live_at(range, at)
            .map(|(key, rev)| (key.to_vec(), rev))
            .collect();
        let expected: Vec<_> = model
            .in_range(range)
            .filter_map(|key| Some((key.to_vec(), model.rev_at(key, at)?)))
            .collect();
        assert_eq!(alive, expected, "alive in {range:?} at {at}");
        assert_eq!(
            view.count_at(range, at),
            expected.len() as u64,
            "{range:?} at {at}"
        );
    }
}

fn compare_reads(view: &Snapshot, model: &Model, ranges: &[KeyRange], revisions: &[Revision]) {
    for range in ranges {
        compare_range(view, model, range, revisions);
        let key = &range.start;
        assert_eq!(view.get(key), model.get(key), "{key:?}");
        for &at in revisions {
            assert_eq!(
                view.rev_at(key, at),
                model.rev_at(key, at),
                "{key:?} at {at}"
            );
        }
    }
    compare_range(view, model, &KeyRange::all(), revisions);
    assert_eq!(
        view.live_keys(),
        view.count(&KeyRange::all()),
        "all live keys"
    );
}

fn compare_history(view: &Snapshot, model: &Model) {
    for (key, changes) in &model.keys {
        let history: Vec<_> = view.history(key).collect();
        let expected: Vec<_> = changes
            .iter()
            .map(|(rev, meta)| (*rev, kind(*meta)))
            .collect();
        assert_eq!(history, expected, "history of {key:?}");
    }
}

/// The verdicts on all records of `full` must be the model's, whatever part of them `view` still holds.
fn compare_verdicts(view: &Snapshot, full: &Model, at: Revision) {
    for (key, changes) in &full.keys {
        for (rev, meta) in changes {
            let verdict = view.needed_at_compaction(key, *rev, kind(*meta), at);
            assert_eq!(
                verdict,
                full.needed(key, *rev, at),
                "{key:?} {rev:?} at {at}"
            );
        }
    }
}

/// Loads the model's changes in revision order, as the store would stream them.
fn load(model: &Model, fanout: usize) -> Index {
    let mut changes: Vec<_> = model
        .keys
        .iter()
        .flat_map(|(key, changes)| changes.iter().map(move |change| (change, key)))
        .collect();
    changes.sort_by_key(|((rev, _), _)| *rev);
    let mut loader = Loader::with_fanout(fanout);
    for ((rev, meta), key) in changes {
        let of_put = meta.unwrap_or_default();
        let change = StoredChange {
            key,
            rev: *rev,
            kind: kind(*meta),
            create: of_put.create,
            version: of_put.version,
            lease: of_put.lease,
        };
        loader
            .add(change)
            .expect("the model's changes are in order");
    }
    loader.finish()
}

#[derive(Clone, Debug)]
enum Op {
    /// Changes before the next `Commit` share a major revision.
    Put(Vec<u8>, i64),
    Delete(Vec<u8>),
    DeleteRange(KeyRange),
    Commit,
    Snapshot,
    /// Starts a compaction this many revisions back.
    Compact(i64),
    PruneStep(usize),
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0), Just(b'a'), Just(b'b'), Just(b'c'), Just(0xff)];
    prop::collection::vec(byte, 1..4)
}

fn range() -> impl Strategy<Value = KeyRange> {
    let end = prop_oneof![2 => key(), 1 => Just(vec![]), 1 => Just(vec![0])];
    (key(), end).prop_map(|(key, end)| KeyRange::from_wire(&Bytes::from(key), &Bytes::from(end)))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        30 => (key(), 0..3_i64).prop_map(|(key, lease)| Op::Put(key, lease)),
        12 => key().prop_map(Op::Delete),
        1 => range().prop_map(Op::DeleteRange),
        25 => Just(Op::Commit),
        3 => Just(Op::Snapshot),
        2 => (0..20_i64).prop_map(Op::Compact),
        5 => (0..30_usize).prop_map(Op::PruneStep),
    ]
}

/// Drives index and model side by side.
struct Pair {
    index: Index,
    model: Model,
    next: Rev,
    /// The compaction that runs, with the model before it.
    compacting: Option<(Revision, Model)>,
    compacted: Revision,
    views: Vec<(Snapshot, Model, Revision)>,
}

impl Pair {
    fn new(fanout: usize) -> Self {
        Self {
            index: Index::with_fanout(fanout),
            model: Model::default(),
            next: Rev::new(Revision(2), 0),
            compacting: None,
            compacted: Revision(0),
            views: Vec::new(),
        }
    }

    fn take_rev(&mut self) -> Rev {
        let rev = self.next;
        self.next.sub += 1;
        rev
    }

    fn delete(&mut self, key: &[u8]) {
        let rev = self.take_rev();
        assert_eq!(
            self.index.delete(key, rev),
            self.model.delete(key, rev),
            "delete of {key:?}"
        );
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Put(key, lease) => {
                let (rev, lease) = (self.take_rev(), LeaseId(lease));
                assert_eq!(
                    self.index.put(&key, rev, lease),
                    self.model.put(&key, rev, lease),
                    "put of {key:?}"
                );
            }
            Op::Delete(key) => self.delete(&key),
            Op::DeleteRange(range) => {
                let keys: Vec<Vec<u8>> = self
                    .index
                    .live(&range)
                    .map(|(key, _)| key.to_vec())
                    .collect();
                for key in keys {
                    self.delete(&key);
                }
            }
            Op::Commit => self.next = Rev::new(self.next.major.next(), 0),
            Op::Snapshot => {
                let view = (self.index.snapshot(), self.model.clone(), self.compacted);
                self.views.push(view);
            }
            Op::Compact(back) => self.compact(back),
            Op::PruneStep(budget) => self.prune_step(budget),
        }
    }

    fn compact(&mut self, back: i64) {
        let at = Revision(self.next.major.0 - 1 - back);
        if self.compacting.is_some() || at <= self.compacted {
            return;
        }
        self.compacted = at;
        compare_verdicts(&self.index, &self.model, at);
        self.compacting = Some((at, self.model.clone()));
        self.model = self.model.compacted(at);
    }

    fn prune_step(&mut self, budget: usize) {
        let Some((at, full)) = self.compacting.take() else {
            return;
        };
        let done = self.index.prune_step(at, budget);
        compare_verdicts(&self.index, &full, at);
        if done {
            compare_history(&self.index, &self.model);
        } else {
            self.compacting = Some((at, full));
        }
    }

    fn finish(mut self, ranges: &[KeyRange]) {
        while self.compacting.is_some() {
            self.prune_step(7);
            self.index.check();
        }
        compare_history(&self.index, &self.model);
        self.apply(Op::Snapshot);
        for (view, model, compacted) in &self.views {
            let revisions: Vec<_> = (compacted.0..=self.next.major.0)
                .step_by(3)
                .map(Revision)
                .collect();
            compare_reads(view, model, ranges, &revisions);
        }
        let loaded = load(&self.model, self.index.fanout);
        loaded.check();
        compare_history(&loaded, &self.model);
        compare_reads(&loaded, &self.model, ranges, &[self.compacted]);
        self.clear();
    }

    /// Deletes and compacts everything: nothing may stay behind.
    fn clear(mut self) {
        self.apply(Op::Commit);
        self.apply(Op::DeleteRange(KeyRange::all()));
        let at = self.next.major.next();
        assert!(self.index.prune_step(at, usize::MAX), "one step is enough");
        self.index.check();
        let root = &self.index.head.root;
        assert!(
            matches!(&*root.node, super::node::TreeNode::Leaf(leaf) if leaf.slots.is_empty()),
            "an empty tree is one empty leaf"
        );
    }
}

/// What a fuzzer does with its bytes: see [`generate`].
pub fn fuzz(data: &[u8]) {
    let [fanout, data @ ..] = data else { return };
    let (first, rest) = data.split_at(data.len().min(32));
    let ranges = generate(&range(), first, 8);
    let ops = generate(&op(), rest, 400);
    run(4 + usize::from(fanout % 5), ops, &ranges);
}

fn run(fanout: usize, ops: Vec<Op>, ranges: &[KeyRange]) {
    let mut pair = Pair::new(fanout);
    for op in ops {
        pair.apply(op);
        pair.index.check();
    }
    pair.finish(ranges);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn behaves_like_the_model(
        fanout in 4..9_usize,
        ops in prop::collection::vec(op(), 0..400),
        ranges in prop::collection::vec(range(), 8),
    ) {
        run(fanout, ops, &ranges);
    }
}
