//! The nodes of the tree and every change to them.
//!
//! A node is shared by all snapshots that saw it. [`Arc::make_mut`] copies a shared node before its first change,
//! so a snapshot never sees one, and nodes that no snapshot holds change in place.

use super::{
    grow::grow,
    keys::{Key, NodeKeys, separator},
    patched::Patched,
    slot::Slot,
};
use crate::types::Revision;
use std::sync::Arc;

/// A summary of a subtree, which its parent stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// How many live keys it holds. Exact.
    pub(super) live: u64,
    /// No compaction below this revision drops anything. A lower bound: it can be lower than needed.
    pub(super) prunable: Revision,
    /// No change is newer than this revision. An upper bound.
    pub(super) newest: Revision,
}

impl Summary {
    const EMPTY: Self = Self {
        live: 0,
        prunable: Revision(i64::MAX),
        newest: Revision(i64::MIN),
    };

    fn of_slot(slot: &Slot) -> Self {
        Self {
            live: u64::from(slot.live().is_some()),
            prunable: slot.prunable_from(),
            newest: slot.modified().major,
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            live: self.live + other.live,
            prunable: self.prunable.min(other.prunable),
            newest: self.newest.max(other.newest),
        }
    }

    /// The summary after one key's slot changed, given what was seen of that slot before and after.
    fn after(self, change: SummaryChange) -> Self {
        Self {
            live: self.live - u64::from(change.was_live) + u64::from(change.is_live),
            prunable: self.prunable.min(change.prunable),
            newest: self.newest.max(change.newest),
        }
    }
}

/// How a write moved the summaries above it.
#[derive(Clone, Copy, Debug)]
struct SummaryChange {
    was_live: bool,
    is_live: bool,
    prunable: Revision,
    newest: Revision,
}

/// A new right sibling, and the separator in front of it.
struct Split {
    separator: Vec<u8>,
    right: Child,
}

/// A subtree as its parent holds it.
#[derive(Clone, Debug)]
pub(super) struct Child {
    pub(super) node: Arc<TreeNode>,
    pub(super) summary: Summary,
}

#[derive(Clone, Debug)]
pub(super) enum TreeNode {
    Leaf(Leaf),
    Inner(Inner),
}

/// Keys with their slots.
#[derive(Clone, Debug, Default)]
pub(super) struct Leaf {
    /// Shared by the copies of a leaf: most writes change a key's slot and no key.
    pub(super) keys: Arc<NodeKeys>,
    pub(super) slots: Patched<Slot>,
}

/// Subtrees, and one separator between each two: keys below `separators[i]` are left of it, all others right.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    /// Shared, like a leaf's keys.
    separators: Arc<NodeKeys>,
    pub(super) children: Patched<Child>,
}

impl Default for Child {
    fn default() -> Self {
        Self::new(TreeNode::Leaf(Leaf::default()))
    }
}

impl Child {
    fn new(node: TreeNode) -> Self {
        Self {
            summary: node.summary(),
            node: Arc::new(node),
        }
    }

    /// Reads the node's reference count; see [`prefetch`](super::prefetch).
    fn touch_shared(&self) -> usize {
        Arc::strong_count(&self.node)
    }

    pub(super) fn slot(&self, key: &[u8]) -> Option<&Slot> {
        let mut child = self;
        loop {
            match &*child.node {
                TreeNode::Inner(inner) => child = &inner.children[inner.route(key)],
                TreeNode::Leaf(leaf) => return Some(&leaf.slots[leaf.keys.search(key).ok()?]),
            }
        }
    }

    /// Writes the root of a tree: `edit` turns the slot of `key` (none if the tree lacks it) into its new one.
    pub(super) fn write_root(
        &mut self,
        key: &[u8],
        fanout: usize,
        edit: impl FnOnce(Option<Slot>) -> Slot,
    ) {
        if let Some(split) = self.write(key, fanout, edit).1 {
            let mut separators = NodeKeys::default();
            separators.insert(0, &split.separator);
            let children = vec![std::mem::take(self), split.right];
            *self = Self::new(TreeNode::Inner(Inner {
                separators: Arc::new(separators),
                children: children.into(),
            }));
        }
    }

    fn write(
        &mut self,
        key: &[u8],
        fanout: usize,
        edit: impl FnOnce(Option<Slot>) -> Slot,
    ) -> (SummaryChange, Option<Split>) {
        let (change, split) = match Arc::make_mut(&mut self.node) {
            TreeNode::Leaf(leaf) => leaf.write(key, fanout, edit),
            TreeNode::Inner(inner) => inner.write(key, fanout, edit),
        };
        self.summary = match split {
            None => self.summary.after(change),
            Some(_) => self.node.summary(),
        };
        (change, split)
    }

    /// Compacts, at `at`, the first leaf of the tree that has something to drop; returns how many keys it looked at. The
    /// `prunable` of the root's summary must be at or below `at`.
    pub(super) fn prune_root(&mut self, at: Revision, fanout: usize) -> usize {
        let seen = self.prune_first(at, fanout);
        while let Some(only) = self.node.only_child() {
            *self = only;
        }
        if self.node.len() == 0 {
            *self = Self::default();
        }
        seen
    }

    fn prune_first(&mut self, at: Revision, fanout: usize) -> usize {
        let seen = match Arc::make_mut(&mut self.node) {
            TreeNode::Leaf(leaf) => leaf.prune(at),
            TreeNode::Inner(inner) => inner.prune_first(at, fanout),
        };
        self.summary = self.node.summary();
        seen
    }
}

impl TreeNode {
    /// Reads the node itself; see [`prefetch`](super::prefetch).
    pub(super) fn touch(&self) -> usize {
        match self {
            Self::Leaf(_) => 0,
            Self::Inner(_) => 1,
        }
    }

    /// Reads where its keys and its slots or children are.
    pub(super) fn touch_heads(&self) -> usize {
        let list = match self {
            Self::Leaf(leaf) => leaf.slots.touch(),
            Self::Inner(inner) => inner.children.touch(),
        };
        list + self.keys().len()
    }

    /// Which child is responsible for `key`, or which slot is its own, if there is one.
    pub(super) fn place_of(&self, key: &[u8]) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.keys.below(key),
            Self::Inner(inner) => inner.route(key),
        }
    }

    /// Reads a slot, or where a child is.
    pub(super) fn touch_place(&self, place: usize) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.slots.get(place).map_or(0, Slot::touch),
            Self::Inner(inner) => Arc::as_ptr(&inner.children[place].node).addr(),
        }
    }

    /// Reads what a copy of this node, about to be changed, copies.
    pub(super) fn touch_before_write(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.slots.touch_before_write(Slot::touch_shared),
            Self::Inner(inner) => inner.children.touch_before_write(Child::touch_shared),
        }
    }

    /// Its keys or separators.
    pub(super) fn keys(&self) -> &NodeKeys {
        match self {
            Self::Leaf(leaf) => &leaf.keys,
            Self::Inner(inner) => &inner.separators,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Leaf(leaf) => leaf.slots.len(),
            Self::Inner(inner) => inner.children.len(),
        }
    }

    fn summary(&self) -> Summary {
        match self {
            Self::Leaf(leaf) => leaf
                .slots
                .iter()
                .map(Summary::of_slot)
                .fold(Summary::EMPTY, Summary::and),
            Self::Inner(inner) => inner
                .children
                .iter()
                .map(|child| child.summary)
                .fold(Summary::EMPTY, Summary::and),
        }
    }

    fn only_child(&self) -> Option<Child> {
        match self {
            Self::Inner(inner) if inner.children.len() == 1 => Some(inner.children[0].clone()),
            Self::Inner(_) | Self::Leaf(_) => None,
        }
    }
}

/// Where to cut a full node of `len` items that is to take one more at `at`. An insert at the right end moves nothing, so that
/// ascending inserts leave full nodes behind. An insert near the right end moves only a quarter, for the same reason. Any other
/// insert moves half: each side keeps at least a quarter, so that no pattern of inserts makes a tree of tiny nodes.
fn cut(len: usize, at: usize) -> usize {
    let quarter = len / 4;
    if at == len {
        len
    } else if at > len - quarter {
        len - quarter
    } else {
        len / 2
    }
}

impl Leaf {
    fn write(
        &mut self,
        key: &[u8],
        fanout: usize,
        edit: impl FnOnce(Option<Slot>) -> Slot,
    ) -> (SummaryChange, Option<Split>) {
        match self.keys.search(key) {
            Ok(i) => (self.edit(i, edit), None),
            Err(i) if self.slots.len() < fanout => (self.insert(i, key, edit(None)), None),
            Err(i) => {
                let at = cut(self.slots.len(), i);
                let mut right = self.split_off(at);
                let change = if i < at || (i == at && !right.slots.is_empty()) {
                    self.insert(i, key, edit(None))
                } else {
                    right.insert(i - at, key, edit(None))
                };
                let split = Split {
                    separator: separator(&self.keys.last().to_vec(), &right.keys.first().to_vec())
                        .to_vec(),
                    right: Child::new(TreeNode::Leaf(right)),
                };
                (change, Some(split))
            }
        }
    }

    fn edit(&mut self, i: usize, edit: impl FnOnce(Option<Slot>) -> Slot) -> SummaryChange {
        let place = self.slots.item_mut(i);
        let slot = std::mem::take(place);
        let (was_live, was_lone) = (slot.live().is_some(), slot.is_lone());
        let slot = edit(Some(slot));
        let change = SummaryChange {
            was_live,
            is_live: slot.live().is_some(),
            // The two oldest changes decide. If there was more than one change, this write has left both as they were.
            prunable: if was_lone {
                slot.prunable_from()
            } else {
                Revision(i64::MAX)
            },
            newest: slot.modified().major,
        };
        *place = slot;
        change
    }

    fn insert(&mut self, i: usize, key: &[u8], slot: Slot) -> SummaryChange {
        let change = SummaryChange {
            was_live: false,
            is_live: slot.live().is_some(),
            prunable: slot.prunable_from(),
            newest: slot.modified().major,
        };
        Arc::make_mut(&mut self.keys).insert(i, key);
        let slots = self.slots.list_mut();
        grow(slots, 1, 4);
        slots.insert(i, slot);
        change
    }

    fn split_off(&mut self, at: usize) -> Self {
        let slots = self.slots.list_mut();
        let right = slots.split_off(at);
        slots.shrink_to_fit();
        Self {
            keys: Arc::new(Arc::make_mut(&mut self.keys).split_off(at)),
            slots: right.into(),
        }
    }

    fn prune(&mut self, at: Revision) -> usize {
        let slots = self.slots.list_mut();
        let seen = slots.len();
        for i in (0..seen).rev() {
            if !slots[i].prune(at) {
                slots.remove(i);
                Arc::make_mut(&mut self.keys).remove(i);
            }
        }
        seen
    }

    /// How many of the first `end` slots, from `start` on, were live at `at`.
    pub(super) fn count(&self, start: usize, end: usize, at: Revision) -> u64 {
        (start..end)
            .map(|i| u64::from(self.slots[i].rev_at(at).is_some()))
            .sum()
    }
}

impl Inner {
    /// Which child is responsible for `key`.
    pub(super) fn route(&self, key: &[u8]) -> usize {
        match self.separators.search(key) {
            Ok(i) => i + 1,
            Err(i) => i,
        }
    }

    fn write(
        &mut self,
        key: &[u8],
        fanout: usize,
        edit: impl FnOnce(Option<Slot>) -> Slot,
    ) -> (SummaryChange, Option<Split>) {
        let i = self.route(key);
        let (change, split) = self.children.item_mut(i).write(key, fanout, edit);
        let Some(split) = split else {
            return (change, None);
        };
        Arc::make_mut(&mut self.separators).insert(i, &split.separator);
        self.children.list_mut().insert(i + 1, split.right);
        let len = self.children.len();
        let split = (len > fanout).then(|| self.split(cut(len - 1, i + 1)));
        (change, split)
    }

    fn split(&mut self, at: usize) -> Split {
        let separators = Arc::make_mut(&mut self.separators);
        let right = Self {
            separators: Arc::new(separators.split_off(at)),
            children: self.children.list_mut().split_off(at).into(),
        };
        let separator = separators.last().to_vec();
        separators.remove(at - 1);
        Split {
            separator,
            right: Child::new(TreeNode::Inner(right)),
        }
    }

    fn prune_first(&mut self, at: Revision, fanout: usize) -> usize {
        let Some(i) = self
            .children
            .iter()
            .position(|child| child.summary.prunable <= at)
        else {
            return 1; // our parent's bound was lower than needed; it is made exact now
        };
        let seen = self.children.item_mut(i).prune_first(at, fanout);
        match self.children[i].node.len() {
            0 => self.unlink(i),
            len if len <= fanout / 4 => self.merge_sparse(i, fanout),
            _ => {}
        }
        seen
    }

    fn unlink(&mut self, i: usize) {
        self.children.list_mut().remove(i);
        if self.separators.len() > 0 {
            Arc::make_mut(&mut self.separators).remove(i.saturating_sub(1));
        }
    }

    /// Joins child `i` with a neighbour, if the result leaves room for some inserts.
    fn merge_sparse(&mut self, i: usize, fanout: usize) {
        let len = |i: usize| {
            self.children
                .get(i)
                .map_or(fanout, |child| child.node.len())
        };
        if len(i) + len(i + 1) <= fanout - fanout / 4 {
            self.merge(i);
        } else if i > 0 && len(i - 1) + len(i) <= fanout - fanout / 4 {
            self.merge(i - 1);
        }
    }

    /// Joins child `i` with the one to its right.
    fn merge(&mut self, i: usize) {
        let children = self.children.list_mut();
        let right = children.remove(i + 1);
        let left = &mut children[i];
        match (Arc::make_mut(&mut left.node), &*right.node) {
            (TreeNode::Leaf(left), TreeNode::Leaf(right)) => {
                Arc::make_mut(&mut left.keys).append(&right.keys);
                left.slots.list_mut().extend(right.slots.iter().cloned());
            }
            (TreeNode::Inner(left), TreeNode::Inner(right)) => {
                let separators = Arc::make_mut(&mut left.separators);
                separators.insert(separators.len(), &self.separators.get(i).to_vec());
                separators.append(&right.separators);
                let children = right.children.iter().cloned();
                left.children.list_mut().extend(children);
            }
            (TreeNode::Leaf(_), TreeNode::Inner(_)) | (TreeNode::Inner(_), TreeNode::Leaf(_)) => {
                unreachable!("all leaves are at one depth")
            }
        }
        left.summary = left.summary.and(right.summary);
        Arc::make_mut(&mut self.separators).remove(i);
    }
}

/// Verifies every invariant of the subtree; for tests. All its keys must lie in `low..high`. Returns its depth.
pub(super) fn check(child: &Child, low: &[u8], high: Option<&[u8]>, fanout: usize) -> usize {
    let exact = child.node.summary();
    assert_eq!(
        child.summary.live, exact.live,
        "live keys are counted exactly"
    );
    assert!(
        child.summary.prunable <= exact.prunable,
        "nothing is prunable below the bound"
    );
    assert!(
        child.summary.newest >= exact.newest,
        "nothing is newer than the bound"
    );
    assert!(
        child.node.len() <= fanout,
        "a node over the fanout was split"
    );
    match &*child.node {
        TreeNode::Leaf(leaf) => {
            check_order(&leaf.keys, low, high);
            assert_eq!(leaf.keys.len(), leaf.slots.len(), "each key has a slot");
            leaf.slots.iter().for_each(Slot::check);
            1
        }
        TreeNode::Inner(inner) => 1 + check_inner(inner, low, high, fanout),
    }
}

fn check_inner(inner: &Inner, low: &[u8], high: Option<&[u8]>, fanout: usize) -> usize {
    let separators = &inner.separators;
    check_order(separators, low, high);
    assert_eq!(
        separators.len() + 1,
        inner.children.len(),
        "a separator stands between each two children"
    );
    let bounds: Vec<Vec<u8>> = separators.iter().map(Key::to_vec).collect();
    let mut depths = Vec::new();
    for (i, child) in inner.children.iter().enumerate() {
        assert!(child.node.len() > 0, "empty nodes are unlinked");
        let low = i
            .checked_sub(1)
            .map_or(low, |before| bounds[before].as_slice());
        let high = bounds.get(i).map(Vec::as_slice).or(high);
        depths.push(check(child, low, high, fanout));
    }
    depths.dedup();
    assert_eq!(depths.len(), 1, "all leaves are at one depth");
    depths[0]
}

fn check_order(keys: &NodeKeys, low: &[u8], high: Option<&[u8]>) {
    let keys: Vec<Vec<u8>> = keys.iter().map(Key::to_vec).collect();
    assert!(
        keys.is_sorted_by(|a, b| a < b),
        "keys ascend strictly inside a node"
    );
    assert!(
        keys.first().is_none_or(|key| low <= key.as_slice()),
        "keys stay right of the separator before them"
    );
    assert!(
        keys.last()
            .is_none_or(|key| high.is_none_or(|high| key.as_slice() < high)),
        "keys stay left of the separator after them"
    );
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_cut_leans_towards_the_insert_but_leaves_a_quarter() {
        assert_eq!(cut(48, 48), 48);
        assert_eq!(cut(48, 47), 36);
        assert_eq!(cut(48, 24), 24);
        assert_eq!(cut(48, 1), 24);
        assert_eq!(cut(4, 4), 4);
        assert_eq!(cut(4, 0), 2);
    }
}
