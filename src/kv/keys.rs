//! The keys as a reader sees them, and as the applier sees them between two published snapshots.
//!
//! Reads run on an immutable [`Snapshot`] of the index. The applier runs ahead of it: what it has changed since is in
//! [`Pending`], an overlay on the snapshot, until the index actor has published a newer one. So the applier and the index do not
//! wait for each other, and an operation sees everything before it in the log.

use super::{
    KeyRange,
    index::{Meta, Snapshot},
};
use crate::types::{LeaseId, RecordKind, Rev, Revision};
use bytes::Bytes;
use std::{
    cell::Cell,
    collections::{BTreeMap, btree_map::Entry},
    ops::ControlFlow,
};

/// How many more index entries may be visited, live or deleted. Several reads can share this bound.
#[derive(Debug)]
pub struct Steps {
    left: Cell<u64>,
    are_refused: Cell<bool>,
}

impl Steps {
    pub fn new(max: u64) -> Self {
        Self {
            left: Cell::new(max),
            are_refused: Cell::new(false),
        }
    }

    /// No bound, for reads that no request can repeat often.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Whether a read needed more steps than were left: its result is incomplete.
    pub fn are_used_up(&self) -> bool {
        self.are_refused.get()
    }

    /// How many of so many were taken.
    #[cfg(test)]
    pub fn taken(&self, max: u64) -> u64 {
        max - self.left.get()
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self) -> bool {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => self.are_refused.set(true),
        }
        !self.are_refused.get()
    }
}

/// Read access to keys: at the head with their metadata, and at an older revision. A read that has used up its steps ends early,
/// with what it has found.
pub trait Keys {
    /// A live key's metadata.
    fn get(&self, key: &[u8]) -> Option<Meta>;
    /// The change that wrote the value the key had at revision `at`; `None` if it was not alive then.
    fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev>;
    /// Calls `visit` with the live keys of a range, ascending, until it breaks.
    fn visit(
        &self,
        range: &KeyRange,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>,
    );
    /// Calls `visit` with the keys alive at `at`, ascending, until it breaks.
    fn visit_at(
        &self,
        range: &KeyRange,
        at: Revision,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    );
    fn count(&self, range: &KeyRange, steps: &Steps) -> u64;
}

/// One key's change, as the index takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    pub key: Bytes,
    pub rev: Rev,
    pub kind: RecordKind,
    /// The lease a put attached the key to.
    pub lease: LeaseId,
}

/// A snapshot with the changes that came after it.
#[derive(Clone, Debug)]
pub struct Pending {
    snapshot: Snapshot,
    changed: BTreeMap<Bytes, Changed>,
}

/// What happened to one key since the snapshot.
#[derive(Clone, Debug)]
struct Changed {
    live: Option<Meta>,
    newest: (Rev, RecordKind),
    /// The changes before it, ascending. Mostly empty: a batch seldom changes a key twice.
    older: Vec<(Rev, RecordKind)>,
}

impl Pending {
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            changed: BTreeMap::new(),
        }
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Records a put and gives the key's new metadata.
    pub fn put(&mut self, key: &Bytes, rev: Rev, lease: LeaseId, before: Option<Meta>) -> Meta {
        let meta = Meta {
            create: before.map_or(rev.major, |meta| meta.create),
            modified: rev,
            version: before.map_or(0, |meta| meta.version) + 1,
            lease,
        };
        self.change(key, rev, RecordKind::Put, Some(meta));
        meta
    }

    pub fn delete(&mut self, key: &Bytes, rev: Rev) {
        self.change(key, rev, RecordKind::Tombstone, None);
    }

    /// Replaces the snapshot by a newer one, which holds every change up to `through`.
    pub fn published(&mut self, snapshot: Snapshot, through: Revision) {
        self.snapshot = snapshot;
        self.changed.retain(|_, changed| {
            changed.older.retain(|(rev, _)| rev.major > through);
            changed.newest.0.major > through
        });
    }

    fn change(&mut self, key: &Bytes, rev: Rev, kind: RecordKind, live: Option<Meta>) {
        let newest = (rev, kind);
        match self.changed.entry(key.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Changed {
                    live,
                    newest,
                    older: Vec::new(),
                });
            }
            Entry::Occupied(mut entry) => {
                let changed = entry.get_mut();
                changed.older.push(changed.newest);
                (changed.live, changed.newest) = (live, newest);
            }
        }
    }

    fn changed_in<'a>(
        &'a self,
        range: &'a KeyRange,
        steps: &'a Steps,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Changed)> {
        self.changed
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.contains(key) && steps.take())
    }
}

impl Changed {
    fn rev_at(&self, at: Revision) -> Option<(Rev, RecordKind)> {
        let newest_first = std::iter::once(&self.newest).chain(self.older.iter().rev());
        newest_first.copied().find(|(rev, _)| rev.major <= at)
    }
}

impl Keys for Pending {
    fn get(&self, key: &[u8]) -> Option<Meta> {
        match self.changed.get(key) {
            Some(changed) => changed.live,
            None => self.snapshot.get(key),
        }
    }

    fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev> {
        match self.changed.get(key).and_then(|changed| changed.rev_at(at)) {
            Some((rev, RecordKind::Put)) => Some(rev),
            Some((_, RecordKind::Tombstone)) => None,
            None => self.snapshot.rev_at(key, at),
        }
    }

    fn visit(
        &self,
        range: &KeyRange,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>,
    ) {
        let below = self
            .snapshot
            .live_while(range, || steps.take())
            .map(|(key, meta)| (key.to_vec(), meta));
        let above = self
            .changed_in(range, steps)
            .map(|(key, changed)| (key, changed.live));
        merge(below, above, visit);
    }

    fn visit_at(
        &self,
        range: &KeyRange,
        at: Revision,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    ) {
        let below = self
            .snapshot
            .live_at_while(range, at, || steps.take())
            .map(|(key, rev)| (key.to_vec(), rev));
        let above = self.changed_in(range, steps).filter_map(|(key, changed)| {
            let (rev, kind) = changed.rev_at(at)?;
            Some((key, (kind == RecordKind::Put).then_some(rev)))
        });
        merge(below, above, visit);
    }

    fn count(&self, range: &KeyRange, steps: &Steps) -> u64 {
        let (mut more, mut fewer) = (0, 0);
        for (key, changed) in self.changed_in(range, steps) {
            more += u64::from(changed.live.is_some());
            fewer += u64::from(self.snapshot.get(key).is_some());
        }
        (self.snapshot.count(range) + more).saturating_sub(fewer)
    }
}

/// Merges two ascending sequences. Where both have a key, `above` decides; its `None` means that the key is deleted.
fn merge<'a, T>(
    below: impl Iterator<Item = (Vec<u8>, T)>,
    above: impl Iterator<Item = (&'a Bytes, Option<T>)>,
    visit: &mut dyn FnMut(&[u8], T) -> ControlFlow<()>,
) {
    let (mut below, mut above) = (below.peekable(), above.peekable());
    loop {
        let order = match (below.peek(), above.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((low, _)), Some((high, _))) => low.as_slice().cmp(high),
        };
        if order.is_eq() {
            below.next();
            continue;
        }
        let flow = if order.is_lt() {
            below.next().map(|(key, item)| visit(&key, item))
        } else {
            above
                .next()
                .and_then(|(key, item)| item.map(|item| visit(key, item)))
        };
        if flow == Some(ControlFlow::Break(())) {
            return;
        }
    }
}

impl Keys for Snapshot {
    fn get(&self, key: &[u8]) -> Option<Meta> {
        self.get(key)
    }

    fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev> {
        self.rev_at(key, at)
    }

    fn visit(
        &self,
        range: &KeyRange,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>,
    ) {
        let mut whole = Vec::new();
        for (key, meta) in self.live_while(range, || steps.take()) {
            key.write_to(&mut whole);
            if visit(&whole, meta).is_break() {
                return;
            }
        }
    }

    fn visit_at(
        &self,
        range: &KeyRange,
        at: Revision,
        steps: &Steps,
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    ) {
        let mut whole = Vec::new();
        for (key, rev) in self.live_at_while(range, at, || steps.take()) {
            key.write_to(&mut whole);
            if visit(&whole, rev).is_break() {
                return;
            }
        }
    }

    fn count(&self, range: &KeyRange, steps: &Steps) -> u64 {
        steps.take();
        self.count(range)
    }
}
