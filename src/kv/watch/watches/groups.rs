//! Groups the watchers that get the same changes of a batch, so that each group shares one response.
//!
//! The expensive case is a batch of many changes for many watchers of one range: changes × watchers events are delivered. Here
//! each of them costs one step from a group to another, and a response is made once for each group.
//!
//! The groups form a tree. An example. Changes 0 and 1 are for watchers A and B, change 1 is for C too:
//!
//! ```text
//! change 0    A, B: group 0 (none) → group 1 (0)
//! change 1    A, B: group 1 (0)    → group 2 (0 1)
//!             C:    group 0 (none) → group 3 (1)
//! ```
//!
//! It keeps an array with the group of each slot, also between batches, so that no step is a search.

use super::super::spec::WatcherKey;
use std::mem;

/// The group of watchers that get no change.
const NOTHING: u32 = 0;

/// Watchers of a batch, in groups.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The group of the watcher in each slot; [`NOTHING`] between batches.
    of_slot: Vec<u32>,
    /// Those with a group, in the order in which they got one.
    watchers: Vec<WatcherKey>,
    /// The first is group [`NOTHING`].
    steps: Vec<Step>,
}

/// A group: that of `before`, and one change more.
#[derive(Clone, Copy, Debug)]
struct Step {
    before: u32,
    change: u32,
    /// The newest change that was added to this group, and the group that came of it.
    newest: (u32, u32),
}

impl Step {
    fn new(before: u32, change: u32) -> Self {
        let newest = (u32::MAX, NOTHING);
        Self {
            before,
            change,
            newest,
        }
    }
}

impl Groups {
    /// Begins a batch; there are so many slots.
    pub(super) fn begin(&mut self, slots: usize) {
        assert!(self.watchers.is_empty(), "the batch before was dealt out");
        self.of_slot.resize(slots, NOTHING);
        self.steps.clear();
        self.steps.push(Step::new(NOTHING, u32::MAX));
    }

    /// A change is for a watcher. Changes come in ascending order, each at most once for a watcher.
    pub(super) fn add(&mut self, key: WatcherKey, change: usize) {
        let change = u32::try_from(change).expect("a batch is bounded far below 4 billion changes");
        let group = &mut self.of_slot[key.slot as usize];
        if *group == NOTHING {
            self.watchers.push(key);
        }
        let before = *group;
        let (newest, after) = self.steps[before as usize].newest;
        *group = if newest == change {
            after
        } else {
            let after = u32::try_from(self.steps.len()).expect("no more groups than deliveries");
            self.steps[before as usize].newest = (change, after);
            self.steps.push(Step::new(before, change));
            after
        };
    }

    /// How many groups there may be: their numbers are lower.
    pub(super) fn bound(&self) -> usize {
        self.steps.len()
    }

    /// Ends the batch: gives each watcher with its group.
    pub(super) fn deal(&mut self) -> Vec<(WatcherKey, usize)> {
        let watchers = mem::take(&mut self.watchers);
        let group = |key: WatcherKey| {
            let group = &mut self.of_slot[key.slot as usize];
            (key, mem::replace(group, NOTHING) as usize)
        };
        watchers.into_iter().map(group).collect()
    }

    /// The changes of a group, in ascending order.
    pub(super) fn changes(&self, group: usize) -> Vec<usize> {
        let mut changes = Vec::new();
        let mut at = group;
        while at != NOTHING as usize {
            let step = self.steps[at];
            changes.push(step.change as usize);
            at = step.before as usize;
        }
        changes.reverse();
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn key(slot: u32) -> WatcherKey {
        WatcherKey { slot, life: 7 }
    }

    #[test]
    fn watchers_are_together_exactly_if_the_same_is_for_them() {
        let mut groups = Groups::default();
        let mut random = 7_u64;
        for (slots, changes) in [(8, 1), (8, 6), (40, 5), (3, 60)] {
            groups.begin(slots as usize);
            let mut expected = BTreeMap::<u32, Vec<usize>>::new();
            for change in 0..changes {
                for slot in 0..slots {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    if random >> 62 != 0 {
                        groups.add(key(slot), change);
                        expected.entry(slot).or_default().push(change);
                    }
                }
            }
            let dealt = groups.deal();
            assert_eq!(dealt.len(), expected.len(), "each of them once");
            let mut together = BTreeMap::<usize, &[usize]>::new();
            for (key, group) in dealt {
                let wanted = &expected[&key.slot];
                assert!(group < groups.bound());
                assert_eq!(&groups.changes(group), wanted);
                let same = together.insert(group, wanted);
                assert!(
                    same.is_none_or(|same| same == wanted),
                    "one group, one list"
                );
            }
            let mut lists: Vec<_> = together.values().collect();
            lists.sort_unstable();
            assert!(lists.is_sorted_by(|a, b| a < b), "one list, one group");
        }
    }

    #[test]
    fn nothing_is_left_for_the_next_batch() {
        let mut groups = Groups::default();
        groups.begin(2);
        groups.add(key(1), 0);
        assert_eq!(groups.deal(), [(key(1), 1)]);
        groups.begin(3);
        assert_eq!(groups.deal(), []);
    }
}
