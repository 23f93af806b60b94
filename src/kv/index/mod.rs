//! The key index: from each user key to its metadata and to the revisions it went through.
//!
//! It follows etcd's `index.go` and `key_index.go`, in memory and rebuilt from the store's records at start. It answers what a
//! key's create, mod, version and lease are, which revision to fetch for a read in the past, how many keys a range holds, and
//! which stored records a compaction may drop. It has neither the values nor the store's current and compacted revisions: callers
//! check a revision first.
//!
//! # One key, by example
//!
//! A change is written (major.sub), `t` marks a tombstone. Say `k` is put at 2, put at 3, deleted at 5, put at 7:
//!
//! ```text
//! history      2.0  3.0  5.0t | 7.0         a tombstone ends a generation
//! newest       create 7, modified 7.0, version 1, lease 0
//!
//! rev_at 1     none                         not created yet
//! rev_at 4     3.0
//! rev_at 6     none                         the newest change at 6 is the tombstone
//!
//! compact 3 →  3.0  5.0t | 7.0              2.0 can no longer be seen
//! compact 4 →  3.0  5.0t | 7.0              drops no change: 3.0 is the value at 4
//! compact 5 →       5.0t | 7.0              a watch from 5 must still see the deletion
//! compact 6 →              7.0              no watch can need the tombstone any more
//! ```
//!
//! Two changes of one key can share a major revision, through nested transactions; then the higher sub counts for
//! all reads: `4.0 4.1t` reads as deleted at 4.
//!
//! # The tree
//!
//! A B+tree of [`Arc`](std::sync::Arc) nodes. A [`Snapshot`] is its root, cloned; a write copies each node on its
//! path that a snapshot still holds, once, and changes the others in place. A copy of a node shares with it the keys,
//! and the slots or children that do not change. So publishing costs a few small copies a batch, readers take no lock,
//! and no reader sees half a change.
//!
//! With many keys, cache misses dominate its cost. So data that a write visits lies together: a node stores the common prefix of
//! its keys once; most keys have at most one older revision, which the slot stores inline; and the keys of a batch are looked up
//! together (`prefetch`).
//!
//! A parent keeps a summary of each child: the exact number of live keys (so a count adds up a few nodes), the
//! lowest revision whose compaction would drop something in it (so a compaction visits only what it changes), and
//! the newest revision in it (so counting in the past counts only what changed since). Deleted keys stay in the
//! tree, uncounted, until a compaction drops them.
//!
//! # Files
//!
//! `slot` is one key's changes and all rules about them; `keys` the keys of a node, `patched` their slots or children; `node` the
//! tree and its changes; `snapshot` and `walk` the reads, `prefetch` the lookup of a batch of keys; `load` builds the index at
//! startup; `grow` is how their lists grow; this file is the public writer.

mod grow;
mod keys;
mod load;
#[cfg(any(test, fuzzing))]
pub mod model;
mod node;
mod patched;
mod prefetch;
mod slot;
mod snapshot;
mod walk;

pub use keys::Key;
pub use load::{LoadError, Loader, StoredChange};
pub use slot::Meta;
pub use snapshot::Snapshot;

use crate::types::{LeaseId, Rev, Revision};
use slot::Slot;
use std::ops::Deref;

/// How many keys or children a node holds at most. Larger nodes make snapshots more expensive (a node is copied whole), smaller
/// ones make the tree deeper.
const FANOUT: usize = 48;

/// What a put did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The key's metadata from now on.
    pub now: Meta,
    /// Its metadata before, if it was live.
    pub before: Option<Meta>,
}

/// The index at the head, with the right to change it. It reads like its own newest [`Snapshot`].
#[derive(Debug)]
pub struct Index {
    head: Snapshot,
    fanout: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self::with_fanout(FANOUT)
    }
}

impl Deref for Index {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.head
    }
}

impl Index {
    pub fn new() -> Self {
        Self::default()
    }

    /// An index with nodes of another size: tests use small ones, to get deep trees from few keys.
    fn with_fanout(fanout: usize) -> Self {
        assert!(fanout >= 4, "a quarter of a node is at least one key");
        assert!(fanout <= 256, "a place in a node fits a byte");
        Self {
            head: Snapshot::default(),
            fanout,
        }
    }

    /// The index as it is now, untouched by later writes.
    pub fn snapshot(&self) -> Snapshot {
        self.head.clone()
    }

    /// Writes `key` at `rev`, which must be newer than all changes of the key.
    pub fn put(&mut self, key: &[u8], rev: Rev, lease: LeaseId) -> Written {
        let (mut before, mut now) = (None, Meta::of_put(None, rev, lease));
        self.write(key, |slot| match slot {
            None => Slot::new(&[now]),
            Some(mut slot) => {
                before = slot.live();
                now = Meta::of_put(before, rev, lease);
                slot.extend(&[now]);
                slot
            }
        });
        Written { now, before }
    }

    /// Deletes `key` at `rev`, which must be newer than all changes of the key, and returns what it was. If it is
    /// not live, nothing changes.
    pub fn delete(&mut self, key: &[u8], rev: Rev) -> Option<Meta> {
        let before = self.get(key)?;
        self.write(key, |slot| {
            let mut slot = slot.expect("the key was live a moment ago, and we are the only writer");
            slot.extend(&[Meta::of_delete(rev)]);
            slot
        });
        Some(before)
    }

    /// Does a part of the compaction at `at`: drops, in key order, what no read and no watch from `at` on can see.
    /// Visits about `budget` keys, at least one node. Returns true once nothing is left to do, which it finds without a
    /// search. No cursor is kept between steps, so writes may come in between, or a compaction at a later revision.
    ///
    /// All later writes must be newer than `at`.
    pub fn prune_step(&mut self, at: Revision, budget: usize) -> bool {
        let mut seen = 0;
        while self.head.root.summary.prunable <= at {
            if seen >= budget.max(1) {
                return false;
            }
            seen += self.head.root.prune_root(at, self.fanout);
        }
        true
    }

    /// Verifies all invariants of the tree; for tests. Visits everything.
    pub fn check(&self) {
        node::check(&self.head.root, &[], None, self.fanout);
    }

    fn write(&mut self, key: &[u8], edit: impl FnOnce(Option<Slot>) -> Slot) {
        self.head.root.write_root(key, self.fanout, edit);
    }
}

#[cfg(test)]
mod tests {
    use super::node::{Child, TreeNode};
    use super::*;
    use crate::{kv::key_range::KeyRange, types::RecordKind};
    use bytes::Bytes;
    use std::sync::Arc;

    fn rev(major: i64, sub: u32) -> Rev {
        Rev::new(Revision(major), sub)
    }

    fn put(index: &mut Index, key: &[u8], major: i64) {
        index.put(key, rev(major, 0), LeaseId(0));
    }

    /// `n` keys put at revisions 2, 3, … in ascending order.
    fn ascending(n: i64) -> Index {
        let mut index = Index::new();
        for i in 0..n {
            put(&mut index, format!("key-{i:08}").as_bytes(), i + 2);
        }
        index
    }

    fn leaves(child: &Child) -> Vec<usize> {
        match &*child.node {
            TreeNode::Leaf(leaf) => vec![leaf.slots.len()],
            TreeNode::Inner(inner) => inner.children.iter().flat_map(leaves).collect(),
        }
    }

    fn history(index: &Index, key: &[u8]) -> Vec<(i64, RecordKind)> {
        index
            .history(key)
            .map(|(rev, kind)| (rev.major.0, kind))
            .collect()
    }

    #[test]
    fn the_essays_example_holds() {
        use RecordKind::{Put, Tombstone};
        let written = || {
            let mut index = Index::new();
            put(&mut index, b"k", 2);
            put(&mut index, b"k", 3);
            index.delete(b"k", rev(5, 0));
            put(&mut index, b"k", 7);
            index
        };
        let index = written();
        let newest = Meta {
            create: Revision(7),
            modified: rev(7, 0),
            version: 1,
            lease: LeaseId(0),
        };
        assert_eq!(index.get(b"k"), Some(newest));
        assert_eq!(index.rev_at(b"k", Revision(1)), None);
        assert_eq!(index.rev_at(b"k", Revision(4)), Some(rev(3, 0)));
        assert_eq!(index.rev_at(b"k", Revision(6)), None);

        let cases = [
            (2, vec![(2, Put), (3, Put), (5, Tombstone), (7, Put)]),
            (3, vec![(3, Put), (5, Tombstone), (7, Put)]),
            (4, vec![(3, Put), (5, Tombstone), (7, Put)]),
            (5, vec![(5, Tombstone), (7, Put)]),
            (6, vec![(7, Put)]),
            (9, vec![(7, Put)]),
        ];
        for (at, left) in cases {
            let mut index = written();
            assert!(index.prune_step(Revision(at), 100));
            assert_eq!(history(&index, b"k"), left, "compacted at {at}");
        }
    }

    #[test]
    fn a_tombstone_at_the_compacted_revision_waits_for_the_next_compaction() {
        let mut index = Index::new();
        put(&mut index, b"k", 2);
        index.delete(b"k", rev(3, 0));
        assert!(index.prune_step(Revision(3), 100));
        assert_eq!(history(&index, b"k"), [(3, RecordKind::Tombstone)]);
        assert!(index.prune_step(Revision(4), 100));
        assert_eq!(history(&index, b"k"), []);
    }

    #[test]
    fn within_one_revision_the_highest_sub_wins() {
        let mut index = Index::new();
        index.put(b"k", rev(4, 0), LeaseId(0));
        index.delete(b"k", rev(4, 1));
        assert_eq!(index.rev_at(b"k", Revision(4)), None);
        index.put(b"j", rev(4, 2), LeaseId(0));
        index.put(b"j", rev(4, 3), LeaseId(0));
        assert_eq!(index.rev_at(b"j", Revision(4)), Some(rev(4, 3)));
        assert_eq!(index.get(b"j").unwrap().version, 2);
        put(&mut index, b"k", 5);
        assert_eq!(index.rev_at(b"k", Revision(4)), None);
        assert!(index.prune_step(Revision(4), 100));
        let left: Vec<_> = index.history(b"k").map(|(rev, _)| rev).collect();
        assert_eq!(left, [rev(4, 1), rev(5, 0)]);
    }

    #[test]
    fn a_new_incarnation_starts_over_and_a_put_replaces_the_lease() {
        let mut index = Index::new();
        index.put(b"k", rev(2, 0), LeaseId(9));
        let second = index.put(b"k", rev(3, 0), LeaseId(0));
        assert_eq!(second.before.unwrap().lease, LeaseId(9));
        assert_eq!((second.now.create, second.now.version), (Revision(2), 2));
        assert_eq!(second.now.lease, LeaseId(0));
        assert_eq!(index.delete(b"k", rev(4, 0)), Some(second.now));
        assert_eq!(index.delete(b"k", rev(5, 0)), None);
        let again = index.put(b"k", rev(6, 0), LeaseId(0));
        assert_eq!(again.before, None);
        assert_eq!((again.now.create, again.now.version), (Revision(6), 1));
    }

    #[test]
    fn ascending_inserts_leave_full_leaves() {
        let index = ascending(10_000);
        index.check();
        let sizes = leaves(&index.head.root);
        assert!(
            sizes[..sizes.len() - 1].iter().all(|size| *size == FANOUT),
            "{sizes:?}"
        );
    }

    #[test]
    fn pruning_deleted_keys_leaves_no_garbage_nodes() {
        let mut index = ascending(10_000);
        for i in 0..10_000_i64 {
            if i % 100 != 0 {
                index.delete(format!("key-{i:08}").as_bytes(), rev(20_000 + i, 0));
            }
        }
        assert_eq!(index.live_keys(), 100);
        let mut steps = 0;
        while !index.prune_step(Revision(40_000), 500) {
            index.check();
            steps += 1;
        }
        assert!(
            (15..=20).contains(&steps),
            "10,000 keys in steps of 500 took {steps}"
        );
        let sizes = leaves(&index.head.root);
        assert_eq!(sizes.iter().sum::<usize>(), 100);
        assert!(sizes.len() <= 8, "{sizes:?}");
    }

    #[test]
    fn a_compaction_copies_only_what_it_changes() {
        let mut index = ascending(10_000);
        put(&mut index, b"key-00005000", 20_000);
        let before = index.snapshot();
        assert!(
            index.prune_step(Revision(19_999), 1),
            "nothing to drop below 20,000"
        );
        assert!(
            Arc::ptr_eq(&before.root.node, &index.head.root.node),
            "nothing was copied"
        );
        assert!(index.prune_step(Revision(20_000), 1), "one leaf is enough");
        assert_eq!(
            history(&index, b"key-00005000"),
            [(20_000, RecordKind::Put)]
        );
        assert_eq!(before.history(b"key-00005000").count(), 2);
    }

    #[test]
    fn a_delete_of_nothing_copies_nothing() {
        let mut index = ascending(100);
        let before = index.snapshot();
        assert_eq!(index.delete(b"nothing", rev(200, 0)), None);
        assert!(Arc::ptr_eq(&before.root.node, &index.head.root.node));
    }

    #[test]
    fn a_hot_key_keeps_its_whole_history_readable() {
        let mut index = Index::new();
        let mut views = Vec::new();
        for major in 2..50_000 {
            put(&mut index, b"hot", major);
            if major % 5_000 == 0 {
                views.push((major, index.snapshot()));
            }
        }
        for (newest, view) in views {
            for at in (2..=newest).step_by(977) {
                assert_eq!(view.rev_at(b"hot", Revision(at)), Some(rev(at, 0)));
            }
            assert_eq!(view.get(b"hot").unwrap().version, newest - 1);
        }
        assert!(index.prune_step(Revision(49_000), 1));
        assert_eq!(index.history(b"hot").count(), 1_000);
    }

    #[test]
    fn backward_ranges_hold_nothing() {
        let index = ascending(100);
        let range = |start: &'static str, end: &'static str| {
            KeyRange::from_wire(&Bytes::from_static(start.as_bytes()), &Bytes::from(end))
        };
        for range in [
            range("key-00000050", "key-00000020"),
            range("k", "k"),
            range("z", "a"),
        ] {
            assert_eq!(index.count(&range), 0);
            assert_eq!(index.live(&range).count(), 0);
        }
        assert_eq!(index.count(&range("key-00000020", "key-00000050")), 30);
        assert_eq!(index.count(&range("key-00000020", "\0")), 80);
    }
}
