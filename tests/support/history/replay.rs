//! The true history, and what a request would do and answer at any point of it.

use super::{
    model::{
        Answer, Compare, DeleteRange, Event, Key, KeyValue, Operand, Put, Range, Relation, Request,
        Revision, Txn, TxnOp,
    },
    violation::Violation,
};
use std::{cmp::Ordering, collections::BTreeMap, ops::Bound};

/// The revision of an empty store.
const FIRST: Revision = 1;

/// Every revision with its events, from 2 on without a gap, and the state after each.
#[derive(Debug, Default)]
pub(crate) struct Replay {
    /// Each key's states, by the revision from which they hold; `None` where the key does not exist.
    keys: BTreeMap<Key, Vec<(Revision, Option<KeyValue>)>>,
    /// The events of revision 2, 3, …
    revisions: Vec<Vec<Event>>,
}

/// A revision that looks like the end of a lease: it deletes exactly the keys that were attached to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeaseEnd {
    pub(crate) lease: i64,
    pub(crate) revision: Revision,
    /// Whether nothing else can explain it.
    pub(crate) certain: bool,
}

impl Replay {
    /// The history of these revisions.
    pub(crate) fn new(
        revisions: impl IntoIterator<Item = (Revision, Vec<Event>)>,
    ) -> Result<Self, Violation> {
        let mut replay = Self::default();
        for (revision, events) in revisions {
            replay.push(revision, events)?;
        }
        Ok(replay)
    }

    /// Adds the next revision. It must be the next one, and each event must follow from the state before it.
    pub(crate) fn push(&mut self, revision: Revision, events: Vec<Event>) -> Result<(), Violation> {
        let expected = self.newest() + 1;
        if revision != expected || events.is_empty() {
            return Err(Violation::Gap {
                expected,
                found: revision,
            });
        }
        for event in &events {
            let before = self.get(event.key(), revision);
            let follows = match event {
                Event::Put(kv) => {
                    kv.mod_revision == revision
                        && kv.create_revision == before.map_or(revision, |old| old.create_revision)
                        && kv.version == before.map_or(0, |old| old.version) + 1
                }
                Event::Delete(_) => before.is_some(),
            };
            if !follows {
                let (before, event) = (before.cloned(), event.clone());
                return Err(Violation::ImpossibleEvent {
                    revision,
                    before,
                    event,
                });
            }
            let after = match event {
                Event::Put(kv) => Some(kv.clone()),
                Event::Delete(_) => None,
            };
            let states = self.keys.entry(event.key().clone()).or_default();
            states.push((revision, after));
        }
        self.revisions.push(events);
        Ok(())
    }

    pub(crate) fn newest(&self) -> Revision {
        FIRST + Revision::try_from(self.revisions.len()).unwrap()
    }

    /// A revision's events; empty for the first revision and those that do not exist.
    pub(crate) fn events(&self, revision: Revision) -> &[Event] {
        let at = usize::try_from(revision - FIRST - 1).ok();
        at.and_then(|at| self.revisions.get(at))
            .map_or(&[], Vec::as_slice)
    }

    /// A key's state right after a revision.
    pub(crate) fn get(&self, key: &[u8], at: Revision) -> Option<&KeyValue> {
        let states = self.keys.get(key)?;
        let newer = states.partition_point(|(since, _)| *since <= at);
        states[..newer].last()?.1.as_ref()
    }

    /// All keys right after a revision, in order.
    pub(crate) fn state(&self, at: Revision) -> Vec<KeyValue> {
        let alive = self.keys.keys().filter_map(|key| self.get(key, at));
        alive.cloned().collect()
    }

    /// What a request does to the state right after revision `before`, and what it is answered.
    pub(crate) fn run(&self, request: &Request, before: Revision) -> (Vec<Event>, Answer) {
        let mut run = Run {
            replay: self,
            before,
            changed: BTreeMap::new(),
            events: Vec::new(),
        };
        let answer = match request {
            Request::Range(range) => run.range(range),
            Request::Put(put) => run.put(put),
            Request::DeleteRange(delete) => run.delete_range(delete),
            Request::Txn(txn) => {
                let plan = run.plan(txn);
                run.txn(txn, &plan)
            }
            Request::Compact(_) => Answer::Done,
            Request::RevokeLease(lease) => run.end_lease(*lease),
        };
        (run.events, answer)
    }

    /// The lease whose end this revision looks like.
    pub(crate) fn lease_ended_at(&self, revision: Revision) -> Option<i64> {
        let events = self.events(revision);
        let Event::Delete(first) = events.first()? else {
            return None;
        };
        let lease = self.get(first, revision - 1)?.lease;
        let (expected, _) = self.run(&Request::RevokeLease(lease), revision - 1);
        (lease != 0 && expected == events).then_some(lease)
    }
}

/// A request while it is replayed.
struct Run<'a> {
    replay: &'a Replay,
    before: Revision,
    /// What this request has changed.
    changed: BTreeMap<Key, Option<KeyValue>>,
    events: Vec<Event>,
}

/// Which branches of a transaction run: compares look at the state before it, those of nested ones too.
struct Plan {
    succeeded: bool,
    nested: Vec<Plan>,
}

impl Run<'_> {
    fn get(&self, key: &Key) -> Option<&KeyValue> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.replay.get(key, self.before),
        }
    }

    /// The live keys of a range; at an older revision what this request has changed does not matter.
    fn pick(&self, key: &Key, end: &Key, at: Option<Revision>) -> Vec<KeyValue> {
        let look = |key: &Key| match at {
            Some(at) => self.replay.get(key, at),
            None => self.get(key),
        };
        if end.is_empty() {
            return look(key).cloned().into_iter().collect();
        }
        let upper = match end.as_ref() {
            b"\0" => Bound::Unbounded,
            _ if end <= key => return Vec::new(),
            _ => Bound::Excluded(end.clone()),
        };
        let bounds = (Bound::Included(key.clone()), upper);
        let mut keys: Vec<&Key> = self
            .replay
            .keys
            .range(bounds.clone())
            .map(|e| e.0)
            .collect();
        keys.extend(self.changed.range(bounds).map(|entry| entry.0));
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter().filter_map(look).cloned().collect()
    }

    fn range(&self, range: &Range) -> Answer {
        let at = (range.revision > 0).then_some(range.revision);
        let mut kvs = self.pick(&range.key, &range.range_end, at);
        let count = kvs.len();
        let mut more = false;
        if range.count_only {
            kvs.clear();
        } else if range.limit > 0 {
            more = count > range.limit;
            kvs.truncate(range.limit);
        }
        Answer::Range { kvs, count, more }
    }

    fn put(&mut self, put: &Put) -> Answer {
        let before = self.get(&put.key).cloned();
        let revision = self.before + 1;
        let old = before.as_ref();
        let kept_value = old.filter(|_| put.ignore_value).map(|kv| kv.value.clone());
        let kept_lease = old.filter(|_| put.ignore_lease).map(|kv| kv.lease);
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: old.map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: old.map_or(0, |kv| kv.version) + 1,
            value: kept_value.unwrap_or_else(|| put.value.clone()),
            lease: kept_lease.unwrap_or(put.lease),
        };
        self.changed.insert(put.key.clone(), Some(kv.clone()));
        self.events.push(Event::Put(kv));
        Answer::Put {
            prev: before.filter(|_| put.prev_kv),
        }
    }

    fn delete(&mut self, key: Key) {
        self.changed.insert(key.clone(), None);
        self.events.push(Event::Delete(key));
    }

    fn delete_range(&mut self, delete: &DeleteRange) -> Answer {
        let mut prevs = self.pick(&delete.key, &delete.range_end, None);
        let deleted = prevs.len();
        for kv in &prevs {
            self.delete(kv.key.clone());
        }
        if !delete.prev_kv {
            prevs.clear();
        }
        Answer::DeleteRange { deleted, prevs }
    }

    fn end_lease(&mut self, lease: i64) -> Answer {
        let all = self.replay.state(self.before);
        for kv in all.into_iter().filter(|kv| kv.lease == lease) {
            self.delete(kv.key);
        }
        Answer::Done
    }

    fn plan(&self, txn: &Txn) -> Plan {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            TxnOp::Txn(inner) => Some(self.plan(inner)),
            TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) => None,
        });
        Plan {
            succeeded,
            nested: nested.collect(),
        }
    }

    fn txn(&mut self, txn: &Txn, plan: &Plan) -> Answer {
        let mut nested = plan.nested.iter();
        let mut answers = Vec::new();
        for op in branch(txn, plan.succeeded) {
            answers.push(match op {
                TxnOp::Range(range) => self.range(range),
                TxnOp::Put(put) => self.put(put),
                TxnOp::DeleteRange(delete) => self.delete_range(delete),
                TxnOp::Txn(inner) => {
                    let plan = nested.next().expect("one plan for each nested transaction");
                    self.txn(inner, plan)
                }
            });
        }
        Answer::Txn {
            succeeded: plan.succeeded,
            answers,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let kv = self.get(&compare.key);
        let number = |of: fn(&KeyValue) -> i64, to: &i64| kv.map_or(0, of).cmp(to);
        let order = match &compare.operand {
            Operand::Version(to) => number(|kv| kv.version, to),
            Operand::Create(to) => number(|kv| kv.create_revision, to),
            Operand::Mod(to) => number(|kv| kv.mod_revision, to),
            Operand::Lease(to) => number(|kv| kv.lease, to),
            Operand::Value(to) => {
                let Some(kv) = kv else { return false };
                kv.value.cmp(to)
            }
        };
        match compare.relation {
            Relation::Equal => order == Ordering::Equal,
            Relation::Greater => order == Ordering::Greater,
            Relation::Less => order == Ordering::Less,
            Relation::NotEqual => order != Ordering::Equal,
        }
    }
}

/// The operations that run.
pub(crate) fn branch(txn: &Txn, succeeded: bool) -> &[TxnOp] {
    if succeeded {
        &txn.success
    } else {
        &txn.failure
    }
}
