//! Prefetch: looks up the keys of a batch together, so that their cache misses overlap.
//!
//! In a tree of a million keys a lookup takes some twenty cache misses, one after the other, because each one says where the next
//! address is. Most of a put's time in the index was spent waiting for them. But the lookup of one key does not depend on that
//! of another, and a processor fetches a dozen addresses at once if it knows them early. So all keys of a batch descend the tree
//! together in small steps; each step only reads an address that the step before it found. The result is thrown
//! away: what counts is that the lookups and writes that follow find their nodes in the cache.

use super::{node::TreeNode, snapshot::Snapshot};
use std::hint::black_box;

/// A tree with fewer keys fits the caches.
const COLD_KEYS_MIN: u64 = 1 << 14;
/// Fewer keys have too few cache misses that could overlap.
const KEYS_MIN: usize = 4;
/// Keys that descend together: the nodes they read must fit the cache.
const DESCENTS_MAX: usize = 64;

impl Snapshot {
    /// Brings what reading and writing `keys` needs into the processor's caches.
    pub fn prefetch<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        if self.live_keys() < COLD_KEYS_MIN {
            return;
        }
        let keys: Vec<&[u8]> = keys.collect();
        if keys.len() >= KEYS_MIN {
            for keys in keys.chunks(DESCENTS_MAX) {
                self.descend(keys);
            }
        }
    }

    /// Descends with some keys to their leaves.
    fn descend<'a>(&'a self, keys: &[&'a [u8]]) -> Vec<Descent<'a>> {
        let start = |key| Descent {
            key,
            node: &self.root.node,
            place: 0,
        };
        let mut descents: Vec<Descent<'_>> = keys.iter().copied().map(start).collect();
        while step_down(&mut descents) {}
        descents
    }
}

/// How far the lookup of a key has come.
struct Descent<'a> {
    key: &'a [u8],
    node: &'a TreeNode,
    /// Where in the node it goes on.
    place: usize,
}

/// Goes to the next level, unless this is the last one.
fn step_down(descents: &mut [Descent<'_>]) -> bool {
    let mut read = 0_usize;
    let mut see = |what: usize| read = read.wrapping_add(what);
    for descent in &*descents {
        see(descent.node.touch());
    }
    for descent in &*descents {
        see(descent.node.touch_heads());
    }
    for descent in &*descents {
        see(descent.node.keys().touch());
    }
    for descent in &mut *descents {
        descent.place = descent.node.place_of(descent.key);
    }
    for descent in &*descents {
        see(descent.node.touch_place(descent.place));
    }
    for descent in &*descents {
        see(descent.node.touch_before_write());
    }
    black_box(read);
    let mut deeper = false;
    for descent in descents {
        if let TreeNode::Inner(inner) = descent.node {
            descent.node = &inner.children[descent.place].node;
            deeper = true;
        }
    }
    deeper
}

#[cfg(test)]
mod tests {
    use super::super::{Index, keys::Key};
    use super::*;
    use crate::types::{LeaseId, Rev, Revision};

    #[test]
    fn every_descent_ends_at_its_keys_slot() {
        let mut index = Index::with_fanout(4);
        let keys: Vec<String> = (0..500).map(|i| format!("key-{:04}", i * 2)).collect();
        let mut major = 1;
        let mut put = |index: &mut Index, key: &str| {
            major += 1;
            index.put(key.as_bytes(), Rev::new(Revision(major), 0), LeaseId(0));
        };
        for key in &keys {
            put(&mut index, key);
        }
        for key in &keys[100..300] {
            let held = index.snapshot(); // makes nodes with fresh places, of all kinds
            put(&mut index, key);
            drop(held);
        }
        let wanted: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        for (descent, key) in index.descend(&wanted).iter().zip(&wanted) {
            let TreeNode::Leaf(leaf) = descent.node else {
                panic!("{key:?} ends above the leaves");
            };
            let found = leaf.keys.iter().nth(descent.place).map(Key::to_vec);
            assert_eq!(found.as_deref(), Some(*key));
        }
        for missing in [&b""[..], b"key-0001", b"key-9999", b"z"] {
            let descents = index.descend(&[missing]);
            assert!(matches!(descents[0].node, TreeNode::Leaf(_)), "{missing:?}");
        }
    }

    #[test]
    fn a_large_tree_takes_any_number_of_keys() {
        let mut index = Index::new();
        let keys: Vec<String> = (0..COLD_KEYS_MIN).map(|i| i.to_string()).collect();
        for (key, major) in keys.iter().zip(2..) {
            index.put(key.as_bytes(), Rev::new(Revision(major), 0), LeaseId(0));
        }
        let keys: Vec<&[u8]> = keys.iter().map(String::as_bytes).collect();
        for count in [
            0,
            1,
            KEYS_MIN,
            DESCENTS_MAX,
            DESCENTS_MAX + 1,
            3 * DESCENTS_MAX,
        ] {
            index.prefetch(keys[..count].iter().copied());
        }
        index.check();
    }
}
