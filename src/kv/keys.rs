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
    collections::{BTreeMap, btree_map::Entry},
    ops::ControlFlow,
};

/// Read access to keys: at the head with their metadata, and at an older revision.
pub trait Keys {
    /// A live key's metadata.
    fn get(&self, key: &[u8]) -> Option<Meta>;
    /// The change that wrote the value the key had at revision `at`; `None` if it was not alive then.
    fn rev_at(&self, key: &[u8], at: Revision) -> Option<Rev>;
    /// Calls `visit` with the live keys of a range, ascending, until it breaks.
    fn visit(&self, range: &KeyRange, visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>);
    /// Calls `visit` with the keys alive at `at`, ascending, until it breaks.
    fn visit_at(
        &self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    );
    /// Live keys in a range.
    fn count(&self, range: &KeyRange) -> u64;
}

/// One key's change, as the index takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// The key.
    pub key: Bytes,
    /// Where in history.
    pub rev: Rev,
    /// Put or deletion.
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

    /// Records a deletion.
    pub fn delete(&mut self, key: &Bytes, rev: Rev) {
        self.change(key, rev, RecordKind::Tombstone, None);
    }

    /// A newer snapshot, which holds every change up to `through`, takes the old one's place.
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
    ) -> impl Iterator<Item = (&'a Bytes, &'a Changed)> {
        self.changed
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.contains(key))
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

    fn visit(&self, range: &KeyRange, visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>) {
        let below = self
            .snapshot
            .live(range)
            .map(|(key, meta)| (key.to_vec(), meta));
        let above = self
            .changed_in(range)
            .map(|(key, changed)| (key, changed.live));
        merge(below, above, visit);
    }

    fn visit_at(
        &self,
        range: &KeyRange,
        at: Revision,
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    ) {
        let below = self
            .snapshot
            .live_at(range, at)
            .map(|(key, rev)| (key.to_vec(), rev));
        let above = self.changed_in(range).filter_map(|(key, changed)| {
            let (rev, kind) = changed.rev_at(at)?;
            Some((key, (kind == RecordKind::Put).then_some(rev)))
        });
        merge(below, above, visit);
    }

    fn count(&self, range: &KeyRange) -> u64 {
        let (mut more, mut fewer) = (0, 0);
        for (key, changed) in self.changed_in(range) {
            more += u64::from(changed.live.is_some());
            fewer += u64::from(self.snapshot.get(key).is_some());
        }
        self.snapshot.count(range) + more - fewer
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

    fn visit(&self, range: &KeyRange, visit: &mut dyn FnMut(&[u8], Meta) -> ControlFlow<()>) {
        let mut whole = Vec::new();
        for (key, meta) in self.live(range) {
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
        visit: &mut dyn FnMut(&[u8], Rev) -> ControlFlow<()>,
    ) {
        let mut whole = Vec::new();
        for (key, rev) in self.live_at(range, at) {
            key.write_to(&mut whole);
            if visit(&whole, rev).is_break() {
                return;
            }
        }
    }

    fn count(&self, range: &KeyRange) -> u64 {
        self.count(range)
    }
}
