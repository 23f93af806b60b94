//! Looking up the keys of a batch together, so that they wait for memory together.
//!
//! Among a million keys a lookup goes through some twenty places that no cache holds, one after the other, for each says where
//! the next one is: most of a put's time in the index was this waiting. But one key's way does not depend on another's, and a
//! processor fetches a dozen places at once if it can see them ahead. So the ways of a whole batch go down the tree side by
//! side, in small steps of which each only reads a place that the step before has found: step by step the waits of all keys
//! overlap. Nothing comes out of it but warm caches. The lookups and writes that follow find what they need there.

use super::node::Node;
use super::snapshot::Snapshot;
use std::hint::black_box;

/// With fewer keys than this the tree lies in the caches anyhow.
const COLD_KEYS_MIN: u64 = 1 << 14;
/// Fewer keys have too little to overlap with.
const KEYS_MIN: usize = 4;
/// So many keys go down at once: what they touch must fit the cache.
const WAYS_MAX: usize = 64;

impl Snapshot {
    /// Brings what reading and writing `keys` needs into the processor's caches.
    pub fn warm<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        if self.live_keys() < COLD_KEYS_MIN {
            return;
        }
        let keys: Vec<&[u8]> = keys.collect();
        if keys.len() >= KEYS_MIN {
            for keys in keys.chunks(WAYS_MAX) {
                self.go_down(keys);
            }
        }
    }

    /// The ways of some keys, down to their leaves.
    fn go_down<'a>(&'a self, keys: &[&'a [u8]]) -> Vec<Way<'a>> {
        let start = |key| Way {
            key,
            node: &self.root.node,
            place: 0,
        };
        let mut ways: Vec<Way<'_>> = keys.iter().copied().map(start).collect();
        while step_down(&mut ways) {}
        ways
    }
}

/// How far a key's way down has come.
struct Way<'a> {
    key: &'a [u8],
    node: &'a Node,
    /// Where in the node it goes on.
    place: usize,
}

/// Goes to the next level, unless this is the last one.
fn step_down(ways: &mut [Way<'_>]) -> bool {
    let mut read = 0_usize;
    let mut see = |what: usize| read = read.wrapping_add(what);
    for way in &*ways {
        see(way.node.touch());
    }
    for way in &*ways {
        see(way.node.touch_heads());
    }
    for way in &*ways {
        see(way.node.keys().touch());
    }
    for way in &mut *ways {
        way.place = way.node.place_of(way.key);
    }
    for way in &*ways {
        see(way.node.touch_place(way.place));
    }
    for way in &*ways {
        see(way.node.touch_before_write());
    }
    black_box(read);
    let mut deeper = false;
    for way in ways {
        if let Node::Inner(inner) = way.node {
            way.node = &inner.children[way.place].node;
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
    fn every_way_ends_at_its_keys_slot() {
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
        for (way, key) in index.go_down(&wanted).iter().zip(&wanted) {
            let Node::Leaf(leaf) = way.node else {
                panic!("{key:?} ends above the leaves");
            };
            let found = leaf.keys.iter().nth(way.place).map(Key::to_vec);
            assert_eq!(found.as_deref(), Some(*key));
        }
        for missing in [&b""[..], b"key-0001", b"key-9999", b"z"] {
            let ways = index.go_down(&[missing]);
            assert!(matches!(ways[0].node, Node::Leaf(_)), "{missing:?}");
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
        for count in [0, 1, KEYS_MIN, WAYS_MAX, WAYS_MAX + 1, 3 * WAYS_MAX] {
            index.warm(keys[..count].iter().copied());
        }
        index.check();
    }
}
