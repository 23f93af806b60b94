//! The true history of a store, read revision by revision, and what a watch must have seen of it.

use super::members::{Members, revision};
use bytes::Bytes;
use quorate::internals::api::proto::{etcdserverpb::RangeRequest, mvccpb::KeyValue};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

/// One key's change in a revision: its new state, none if it was deleted, and the one before.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) new: Option<KeyValue>,
    pub(crate) old: Option<KeyValue>,
}

/// Every change after the empty store, up to a revision.
#[derive(Debug)]
pub(crate) struct History {
    /// By revision; within one, by key.
    pub(crate) changes: BTreeMap<i64, Vec<Change>>,
    /// Everything up to here is in `changes`.
    pub(crate) read: i64,
    /// The same value, which writers follow.
    pub(crate) progress: Arc<AtomicI64>,
    live: BTreeMap<Bytes, KeyValue>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            changes: BTreeMap::new(),
            read: 1,
            progress: Arc::new(AtomicI64::new(1)),
            live: BTreeMap::new(),
        }
    }

    /// Reads what was written since. Nothing after what was read so far may be compacted.
    pub(crate) async fn read_on(&mut self, members: &mut Members) {
        let newest = members.revision().await;
        while self.read < newest {
            self.read_revision(members, self.read + 1).await;
        }
    }

    async fn read_revision(&mut self, members: &mut Members, at: i64) {
        let all = RangeRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            revision: at,
            ..RangeRequest::default()
        };
        let put = RangeRequest {
            min_mod_revision: at,
            ..all.clone()
        };
        let put = members.range(put).await;
        assert!(
            revision(put.header.as_ref()) >= at,
            "who knows a revision has it"
        );
        let there = RangeRequest {
            keys_only: true,
            ..all
        };
        let there = members.range(there).await.kvs;
        let there: BTreeSet<Bytes> = there.into_iter().map(|kv| kv.key).collect();
        let gone = self.live.keys().filter(|key| !there.contains(*key));
        let gone = gone.cloned().map(|key| (key, None));
        let put = put.kvs.into_iter().map(|kv| (kv.key.clone(), Some(kv)));
        let states: BTreeMap<Bytes, Option<KeyValue>> = gone.chain(put).collect();
        let mut changes = Vec::new();
        for (key, new) in states {
            let old = match &new {
                Some(kv) => self.live.insert(key.clone(), kv.clone()),
                None => self.live.remove(&key),
            };
            changes.push(Change { key, new, old });
        }
        assert!(!changes.is_empty(), "revision {at} changes something");
        self.changes.insert(at, changes);
        self.read = at;
        self.progress.store(at, Ordering::Relaxed);
    }

    /// The changes of a range from `from` to `through`, by revision.
    pub(crate) fn of(
        &self,
        range: &(Bytes, Bytes),
        from: i64,
        through: i64,
    ) -> BTreeMap<i64, Vec<&Change>> {
        let mut found = BTreeMap::new();
        if from > through {
            return found;
        }
        for (revision, changes) in self.changes.range(from..=through) {
            let inside = changes.iter().filter(|change| within(range, &change.key));
            let inside: Vec<&Change> = inside.collect();
            if !inside.is_empty() {
                found.insert(*revision, inside);
            }
        }
        found
    }
}

/// Whether a key is in a range as the API spells it.
fn within((start, end): &(Bytes, Bytes), key: &Bytes) -> bool {
    match end.as_ref() {
        b"" => key == start,
        b"\0" => key >= start,
        end => key >= start && key.as_ref() < end,
    }
}
