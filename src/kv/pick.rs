//! Picks the keys of a range from the index.
//!
//! What the index alone can decide is decided here: filters by revision, and which results a limit leaves in an order that needs
//! no record. So what is held is bounded by the limit then, not by the number of keys (`Cut`).

use super::{
    KeyRange,
    command::{RangeQuery, SortOrder, SortTarget},
    index::Meta,
    keys::{Keys, Steps},
    record::KeyValue,
};
use crate::types::{Rev, Revision};
use std::{cell::Cell, cmp::Ordering, collections::BinaryHeap, ops::ControlFlow};

/// A result whose record may not be read yet: a key with what the index holds for it.
#[derive(Debug)]
pub(super) struct Found {
    /// Kept for results that are made without their record.
    pub(super) key: Vec<u8>,
    pub(super) rev: Rev,
    /// At the head, from the index; at an older revision, from the record if something asked for it.
    pub(super) meta: Option<Meta>,
    /// The record, where results are sorted by it.
    pub(super) kv: Option<Box<KeyValue>>,
}

/// A bound on picking: how many more index entries may be visited, and how many more bytes of picked results may be held.
#[derive(Debug)]
pub struct PickRoom {
    pub(super) steps: Steps,
    bytes: Cell<usize>,
    are_refused: Cell<bool>,
}

impl PickRoom {
    /// At most so many entries of the index, and so many bytes.
    pub fn new(steps: u64, bytes: usize) -> Self {
        Self {
            steps: Steps::new(steps),
            bytes: Cell::new(bytes),
            are_refused: Cell::new(false),
        }
    }

    /// For a single range: it passes each key once.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX, usize::MAX)
    }

    /// Whether more was needed than the bound allows: the picked results are incomplete.
    pub fn is_used_up(&self) -> bool {
        self.steps.are_used_up() || self.are_refused.get()
    }

    /// How many bytes more may be held.
    pub fn bytes_left(&self) -> usize {
        self.bytes.get()
    }

    /// Takes `bytes` from the room; false if there is less.
    pub fn take(&self, bytes: usize) -> bool {
        match self.bytes.get().checked_sub(bytes) {
            Some(left) => self.bytes.set(left),
            None => self.are_refused.set(true),
        }
        !self.are_refused.get()
    }

    /// Gives back what was taken for a result that is dropped.
    fn give_back(&self, bytes: usize) {
        self.bytes.set(self.bytes.get() + bytes);
    }

    /// How much of it was taken, if there was so much at first.
    #[cfg(test)]
    pub fn taken(&self, steps: u64, bytes: usize) -> (u64, usize) {
        (self.steps.taken(steps), bytes - self.bytes.get())
    }

    /// Sets the room to `bytes`, because what was picked before is no longer held.
    pub fn refill(&self, bytes: usize) {
        self.bytes.set(bytes);
    }
}

/// Which of the keys that pass the filter are picked.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// All: there is no limit, or the records must be read to filter or sort.
    None,
    /// So many in key order.
    First(usize),
    /// So many in the order of this target.
    Best(usize, SortTarget),
}

impl Cut {
    /// One key more than the limit, which says whether there are more. etcd: without a filter, a sort by anything but the key
    /// with order NONE happens after this cut.
    fn of(query: &RangeQuery, limit: Option<usize>, at_head: bool) -> Self {
        let Some(limit) = limit else {
            return Self::None;
        };
        let max = limit.saturating_add(1);
        if query.sort_order == SortOrder::None && query.filter.is_off() {
            return Self::First(max);
        }
        if query.filter.needs_create() && !at_head {
            return Self::None;
        }
        match sort_of(query) {
            None => Self::First(max),
            Some(target @ (SortTarget::Key | SortTarget::Mod)) => Self::Best(max, target),
            Some(target @ (SortTarget::Version | SortTarget::Create)) if at_head => {
                Self::Best(max, target)
            }
            Some(_) => Self::None,
        }
    }
}

/// Keeps the keys of a range that can be results, as far as the index alone tells.
#[derive(Debug)]
struct Picker<'a> {
    query: &'a RangeQuery,
    cut: Cut,
    room: &'a PickRoom,
    /// In key order; empty with [`Cut::Best`].
    found: Vec<Found>,
    /// The best so far, the worst of them on top.
    best: BinaryHeap<Ranked>,
    /// How many keys were offered.
    seen: u64,
}

/// A key with its place among the results.
#[derive(Debug)]
struct Ranked {
    /// What results are sorted by, negated in a descending sort.
    rank: i64,
    /// Its number in key order, in which results of one rank stay.
    number: u64,
    found: Found,
}

impl Ranked {
    fn place(&self) -> (i64, u64) {
        (self.rank, self.number)
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Ranked {}

impl<'a> Picker<'a> {
    fn new(query: &'a RangeQuery, cut: Cut, room: &'a PickRoom) -> Self {
        Self {
            query,
            cut,
            room,
            found: Vec::new(),
            best: BinaryHeap::new(),
            seen: 0,
        }
    }

    /// Whether no further key is needed.
    fn is_full(&self) -> bool {
        matches!(self.cut, Cut::First(max) if self.found.len() >= max)
    }

    /// Takes the next key of the range, if it can be a result and there is room.
    fn offer(&mut self, key: &[u8], rev: Rev, meta: Option<Meta>) {
        let number = self.seen;
        self.seen += 1;
        let filter = self.query.filter;
        let passes = match meta {
            Some(meta) => filter.admits(meta.create, rev.major),
            None => filter.admits_modified(rev.major),
        };
        if !passes {
            return;
        }
        let keep_key = self.query.keys_only;
        let found = || Found {
            key: if keep_key { key.to_vec() } else { Vec::new() },
            rev,
            meta,
            kv: None,
        };
        let key_bytes = if keep_key { key.len() } else { 0 };
        let Cut::Best(max, target) = self.cut else {
            if self.room.take(size_of::<Found>() + key_bytes) {
                self.found.push(found());
            }
            return;
        };
        let rank = self.rank(target, number, rev, meta);
        if self.best.len() >= max {
            let worst = self.best.peek();
            if worst.is_some_and(|worst| worst.place() <= (rank, number)) {
                return;
            }
            let dropped = self.best.pop().map_or(0, |worst| worst.found.key.len());
            self.room.give_back(size_of::<Ranked>() + dropped);
        }
        if self.room.take(size_of::<Ranked>() + key_bytes) {
            let found = found();
            self.best.push(Ranked {
                rank,
                number,
                found,
            });
        }
    }

    fn rank(&self, target: SortTarget, number: u64, rev: Rev, meta: Option<Meta>) -> i64 {
        let ascending = match (target, meta) {
            (SortTarget::Mod, _) => rev.major.0,
            (SortTarget::Version, Some(meta)) => meta.version,
            (SortTarget::Create, Some(meta)) => meta.create.0,
            (
                SortTarget::Key
                | SortTarget::Version
                | SortTarget::Create
                | SortTarget::Value
                | SortTarget::Unknown,
                _,
            ) => number.cast_signed(),
        };
        if self.query.sort_order == SortOrder::Descend {
            -ascending
        } else {
            ascending
        }
    }

    /// What was kept, in key order.
    fn into_found(self) -> Vec<Found> {
        if self.best.is_empty() {
            return self.found;
        }
        let mut best = self.best.into_vec();
        best.sort_unstable_by_key(|ranked| ranked.number);
        best.into_iter().map(|ranked| ranked.found).collect()
    }
}

/// The target of the sort, if one must be made.
pub(super) fn sort_of(query: &RangeQuery) -> Option<SortTarget> {
    match (query.sort_order, query.sort_target) {
        (SortOrder::None | SortOrder::Ascend, SortTarget::Key) => None,
        (_, target) => Some(target),
    }
}

/// The keys of a range that can be results of the query (see [`Cut`]), and how many keys there are in all.
pub(super) fn pick(
    keys: &impl Keys,
    query: &RangeQuery,
    range: &KeyRange,
    at: Option<Revision>,
    limit: Option<usize>,
    room: &PickRoom,
) -> (Vec<Found>, i64) {
    let mut picker = Picker::new(query, Cut::of(query, limit, at.is_none()), room);
    if let Some(at) = at {
        let mut count = 0;
        keys.visit_at(range, at, &room.steps, &mut |key, rev| {
            count += 1;
            if !picker.is_full() {
                picker.offer(key, rev, None);
            }
            if room.is_used_up() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        return (picker.into_found(), count);
    }
    if range.is_single() {
        let meta = keys.get(&range.start);
        if let Some(meta) = meta {
            picker.offer(&range.start, meta.modified, Some(meta));
        }
        return (picker.into_found(), i64::from(meta.is_some()));
    }
    keys.visit(range, &room.steps, &mut |key, meta| {
        picker.offer(key, meta.modified, Some(meta));
        if picker.is_full() || room.is_used_up() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    let count = if picker.is_full() {
        keys.count(range, &room.steps)
    } else {
        picker.seen
    };
    (picker.into_found(), count.cast_signed())
}
