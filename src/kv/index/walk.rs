//! Ascending, lazy iteration over the slots of a range.

use super::{
    keys::Key,
    node::{Child, Inner, Leaf, TreeNode},
    slot::Slot,
};
use crate::{
    kv::key_range::{KeyRange, RangeEnd},
    types::Revision,
};

/// Yields the slots of a range in key order. Subtrees in which nothing was alive at `at`, and nothing changed
/// since, are skipped, so that many deleted keys waiting for compaction do not slow down a limited range.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    /// The inner nodes above the leaf, each with the next child to visit.
    above: Vec<(&'a Inner, usize)>,
    leaf: Option<&'a Leaf>,
    /// The slots of the leaf that are still to come: from `next` on, below `stop`.
    next: usize,
    stop: usize,
    range: KeyRange,
    at: Revision,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a Child, range: &KeyRange, at: Revision) -> Self {
        let mut walk = Self {
            above: Vec::new(),
            leaf: None,
            next: 0,
            stop: 0,
            range: range.clone(),
            at,
        };
        if !range.is_empty_range() {
            walk.seek(root);
        }
        walk
    }

    /// Goes down to the leaf where the range's start is or would be.
    fn seek(&mut self, root: &'a Child) {
        let mut child = root;
        loop {
            match &*child.node {
                TreeNode::Inner(inner) => {
                    let i = inner.route(&self.range.start);
                    self.above.push((inner, i + 1));
                    child = &inner.children[i];
                }
                TreeNode::Leaf(leaf) => {
                    self.enter(leaf);
                    self.next = leaf.keys.below(&self.range.start);
                    return;
                }
            }
        }
    }

    fn enter(&mut self, leaf: &'a Leaf) {
        self.leaf = Some(leaf);
        self.next = 0;
        self.stop = match &self.range.end {
            RangeEnd::Single => match leaf.keys.search(&self.range.start) {
                Ok(i) => i + 1,
                Err(i) => i,
            },
            RangeEnd::Before(end) => leaf.keys.below(end),
            RangeEnd::Unbounded => leaf.slots.len(),
        };
        if self.stop < leaf.slots.len() {
            self.above.clear(); // the range ends inside this leaf
        }
    }

    /// Goes to the next leaf that matters. False at the end.
    fn advance(&mut self) -> bool {
        while let Some((inner, next)) = self.above.last_mut() {
            let Some(child) = inner.children.get(*next) else {
                self.above.pop();
                continue;
            };
            *next += 1;
            if child.summary.live == 0 && child.summary.newest <= self.at {
                continue;
            }
            match &*child.node {
                TreeNode::Inner(inner) => self.above.push((inner, 0)),
                TreeNode::Leaf(leaf) => {
                    self.enter(leaf);
                    return true;
                }
            }
        }
        false
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (Key<'a>, &'a Slot);

    fn next(&mut self) -> Option<Self::Item> {
        while self.next >= self.stop {
            if !self.advance() {
                return None;
            }
        }
        let (leaf, i) = (self.leaf?, self.next);
        self.next += 1;
        Some((leaf.keys.get(i), &leaf.slots[i]))
    }
}
