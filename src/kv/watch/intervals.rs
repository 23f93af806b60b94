//! Finds the watchers of a key in O(log n + hits).
//!
//! Watchers of one exact key lie in a map. Ranges lie in a treap: a search tree by (start, end) that random priorities keep
//! balanced. Each node stores the greatest end in its subtree, so a search skips every subtree that ends before the key.
//! Watchers of the same range share a node.
//!
//! ```text
//!              [d, k) max z                find "m": the left subtree ends at "e", skipped whole;
//!             /            \               [d, k) ends before "m"; to the right [f, z) holds it.
//!     [a, e) max e      [f, z) max z
//! ```

use super::super::{KeyRange, RangeEnd};
use bytes::Bytes;
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

const NIL: usize = usize::MAX;

/// Items by the range of keys each one concerns.
#[derive(Clone, Debug)]
pub struct Intervals<T> {
    points: BTreeMap<Bytes, BTreeSet<T>>,
    nodes: Vec<IntervalNode<T>>,
    /// Places in `nodes` that are not in the tree.
    free: Vec<usize>,
    root: usize,
    random: u64,
    len: usize,
}

/// Where a range ends; declared in the order of the ends.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Unbounded,
}

/// Invariants: `max` is the greatest end of the node and of both subtrees; no child has a greater priority; `items` is
/// not empty.
#[derive(Clone, Debug)]
struct IntervalNode<T> {
    start: Bytes,
    end: End,
    max: End,
    priority: u64,
    left: usize,
    right: usize,
    items: BTreeSet<T>,
}

impl End {
    fn is_after(&self, key: &[u8]) -> bool {
        match self {
            Self::Before(end) => end.as_ref() > key,
            Self::Unbounded => true,
        }
    }
}

impl<T: Copy + Ord> Intervals<T> {
    /// The seed decides the tree's shape and nothing else: clients cannot unbalance the tree without knowing it.
    pub fn new(seed: u64) -> Self {
        Self {
            points: BTreeMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
            random: seed | 1,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item; returns whether it is new for this range.
    pub fn insert(&mut self, range: &KeyRange, item: T) -> bool {
        let added = match end_of(range) {
            None => self
                .points
                .entry(range.start.clone())
                .or_default()
                .insert(item),
            Some(end) => {
                let (root, added) = self.insert_at(self.root, &range.start, end, item);
                self.root = root;
                added
            }
        };
        self.len += usize::from(added);
        added
    }

    /// Takes an item out; returns whether it was there.
    pub fn remove(&mut self, range: &KeyRange, item: T) -> bool {
        let removed = match end_of(range) {
            None => self.remove_point(&range.start, item),
            Some(end) => {
                let (root, removed) = self.remove_at(self.root, &range.start, &end, item);
                self.root = root;
                removed
            }
        };
        self.len -= usize::from(removed);
        removed
    }

    /// Calls `found` with every item whose range holds `key`.
    pub fn find(&self, key: &[u8], found: &mut impl FnMut(T)) {
        if let Some(items) = self.points.get(key) {
            items.iter().copied().for_each(&mut *found);
        }
        self.find_at(self.root, key, found);
    }

    fn find_at(&self, at: usize, key: &[u8], found: &mut impl FnMut(T)) {
        let Some(node) = self.nodes.get(at).filter(|node| node.max.is_after(key)) else {
            return;
        };
        self.find_at(node.left, key, found);
        if node.start.as_ref() <= key {
            if node.end.is_after(key) {
                node.items.iter().copied().for_each(&mut *found);
            }
            self.find_at(node.right, key, found);
        }
    }

    fn remove_point(&mut self, key: &Bytes, item: T) -> bool {
        let Some(items) = self.points.get_mut(key) else {
            return false;
        };
        let removed = items.remove(&item);
        if items.is_empty() {
            self.points.remove(key);
        }
        removed
    }

    /// Inserts below `at`; returns the subtree's new root.
    fn insert_at(&mut self, at: usize, start: &Bytes, end: End, item: T) -> (usize, bool) {
        if at == NIL {
            return (self.new_node(start.clone(), end, item), true);
        }
        let added = match self.compare(at, start, &end) {
            Ordering::Equal => return (at, self.nodes[at].items.insert(item)),
            Ordering::Less => {
                let (left, added) = self.insert_at(self.nodes[at].left, start, end, item);
                self.nodes[at].left = left;
                added
            }
            Ordering::Greater => {
                let (right, added) = self.insert_at(self.nodes[at].right, start, end, item);
                self.nodes[at].right = right;
                added
            }
        };
        (self.rebalance(at), added)
    }

    /// Removes below `at`; returns the subtree's new root.
    fn remove_at(&mut self, at: usize, start: &Bytes, end: &End, item: T) -> (usize, bool) {
        if at == NIL {
            return (NIL, false);
        }
        let removed = match self.compare(at, start, end) {
            Ordering::Equal => {
                let removed = self.nodes[at].items.remove(&item);
                if removed && self.nodes[at].items.is_empty() {
                    let (left, right) = (self.nodes[at].left, self.nodes[at].right);
                    self.release(at);
                    return (self.merge(left, right), true);
                }
                return (at, removed);
            }
            Ordering::Less => {
                let (left, removed) = self.remove_at(self.nodes[at].left, start, end, item);
                self.nodes[at].left = left;
                removed
            }
            Ordering::Greater => {
                let (right, removed) = self.remove_at(self.nodes[at].right, start, end, item);
                self.nodes[at].right = right;
                removed
            }
        };
        self.update(at);
        (at, removed)
    }

    /// Where (start, end) lies as seen from a node.
    fn compare(&self, at: usize, start: &Bytes, end: &End) -> Ordering {
        let node = &self.nodes[at];
        start.cmp(&node.start).then_with(|| end.cmp(&node.end))
    }

    /// Rotates a child above `at` if its priority is greater, after an insertion below `at`.
    fn rebalance(&mut self, at: usize) -> usize {
        let (left, right) = (self.nodes[at].left, self.nodes[at].right);
        let priority = self.nodes[at].priority;
        let top = if left != NIL && self.nodes[left].priority > priority {
            self.nodes[at].left = self.nodes[left].right;
            self.nodes[left].right = at;
            left
        } else if right != NIL && self.nodes[right].priority > priority {
            self.nodes[at].right = self.nodes[right].left;
            self.nodes[right].left = at;
            right
        } else {
            at
        };
        self.update(at);
        if top != at {
            self.update(top);
        }
        top
    }

    /// One tree of two, all of `left` before all of `right`.
    fn merge(&mut self, left: usize, right: usize) -> usize {
        if left == NIL {
            return right;
        }
        if right == NIL {
            return left;
        }
        if self.nodes[left].priority > self.nodes[right].priority {
            let merged = self.merge(self.nodes[left].right, right);
            self.nodes[left].right = merged;
            self.update(left);
            left
        } else {
            let merged = self.merge(left, self.nodes[right].left);
            self.nodes[right].left = merged;
            self.update(right);
            right
        }
    }

    fn update(&mut self, at: usize) {
        let node = &self.nodes[at];
        let below = [node.left, node.right].map(|child| self.nodes.get(child).map(|n| &n.max));
        let max = below
            .into_iter()
            .flatten()
            .fold(&node.end, |max, end| max.max(end))
            .clone();
        self.nodes[at].max = max;
    }

    fn new_node(&mut self, start: Bytes, end: End, item: T) -> usize {
        let node = IntervalNode {
            start,
            max: end.clone(),
            end,
            priority: self.next_priority(),
            left: NIL,
            right: NIL,
            items: BTreeSet::from([item]),
        };
        if let Some(at) = self.free.pop() {
            self.nodes[at] = node;
            return at;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn release(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.start = Bytes::new();
        node.end = End::Unbounded;
        node.max = End::Unbounded;
        self.free.push(at);
    }

    /// Xorshift: good enough to balance a tree.
    fn next_priority(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Verifies the invariants; for tests.
    pub fn check(&self) {
        let mut seen = Vec::new();
        self.check_at(self.root, &mut seen);
        assert!(
            seen.is_sorted_by(|a, b| a < b),
            "ranges ascend strictly in tree order"
        );
        assert_eq!(
            seen.len() + self.free.len(),
            self.nodes.len(),
            "every place is used or free"
        );
        let ranges: usize = self.nodes.iter().map(|node| node.items.len()).sum();
        let points: usize = self.points.values().map(BTreeSet::len).sum();
        assert_eq!(
            self.len,
            ranges + points,
            "the count is the number of items"
        );
    }

    fn check_at<'a>(&'a self, at: usize, seen: &mut Vec<(&'a Bytes, &'a End)>) -> Option<&'a End> {
        let node = self.nodes.get(at)?;
        let left = self.check_at(node.left, seen);
        seen.push((&node.start, &node.end));
        let right = self.check_at(node.right, seen);
        let max = left
            .into_iter()
            .chain(right)
            .fold(&node.end, |max, end| max.max(end));
        assert_eq!(max, &node.max, "a node stores the greatest end below it");
        assert!(!node.items.is_empty(), "a node without items is taken out");
        for child in [node.left, node.right] {
            let higher = self
                .nodes
                .get(child)
                .is_some_and(|n| n.priority > node.priority);
            assert!(!higher, "priorities fall from the root down");
        }
        Some(&node.max)
    }
}

/// Where a range ends; `None` for a single key.
fn end_of(range: &KeyRange) -> Option<End> {
    match &range.end {
        RangeEnd::Single => None,
        RangeEnd::Before(end) => Some(End::Before(end.clone())),
        RangeEnd::Unbounded => Some(End::Unbounded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Bytes> {
        prop::collection::vec(b'a'..b'e', 0..3).prop_map(Bytes::from)
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        let end = prop_oneof![
            Just(RangeEnd::Single),
            Just(RangeEnd::Unbounded),
            key().prop_map(RangeEnd::Before),
        ];
        (key(), end).prop_map(|(start, end)| KeyRange { start, end })
    }

    fn found(intervals: &Intervals<u32>, key: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        intervals.find(key, &mut |item| found.push(item));
        found.sort_unstable();
        found
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(
            seed: u64,
            ops in prop::collection::vec((any::<bool>(), range(), 0..4_u32), 0..80),
            keys in prop::collection::vec(key(), 1..20),
        ) {
            let mut intervals = Intervals::new(seed);
            let mut model: Vec<(KeyRange, u32)> = Vec::new();
            for (insert, range, item) in ops {
                let entry = (range.clone(), item);
                let known = model.contains(&entry);
                if insert {
                    prop_assert_eq!(intervals.insert(&range, item), !known);
                    if !known {
                        model.push(entry);
                    }
                } else {
                    prop_assert_eq!(intervals.remove(&range, item), known);
                    model.retain(|other| *other != entry);
                }
                intervals.check();
                prop_assert_eq!(intervals.len(), model.len());
                prop_assert_eq!(intervals.is_empty(), model.is_empty());
            }
            for key in keys {
                let hits = model.iter().filter(|(range, _)| range.contains(&key));
                let mut hits: Vec<u32> = hits.map(|(_, item)| *item).collect();
                hits.sort_unstable();
                prop_assert_eq!(found(&intervals, &key), hits);
            }
        }
    }

    /// Nodes that a search looks at.
    fn visited(intervals: &Intervals<u32>, at: usize, key: &[u8]) -> usize {
        let Some(node) = intervals.nodes.get(at) else {
            return 0;
        };
        if !node.max.is_after(key) {
            return 1;
        }
        let right = if node.start.as_ref() <= key {
            visited(intervals, node.right, key)
        } else {
            0
        };
        1 + visited(intervals, node.left, key) + right
    }

    #[test]
    fn a_key_among_many_prefixes_costs_about_what_it_costs_among_few() {
        let prefixes = |count: u32| {
            let mut intervals = Intervals::new(7);
            for n in 0..count {
                let start = format!("/registry/{n:08}/");
                let end = format!("/registry/{n:08}0");
                let range = KeyRange::from_wire(&start.into(), &end.into());
                intervals.insert(&range, n);
            }
            intervals
        };
        let (few, many) = (prefixes(10), prefixes(100_000));
        let key = b"/registry/00000007/pod";
        assert_eq!(found(&few, key), [7]);
        assert_eq!(found(&many, key), [7]);
        let most = (0..1_000_u32)
            .map(|n| {
                visited(
                    &many,
                    many.root,
                    format!("/registry/{:08}/x", n * 97).as_bytes(),
                )
            })
            .max();
        assert!(
            most < Some(150),
            "a search in 100,000 ranges looks at {most:?} nodes"
        );
    }
}
