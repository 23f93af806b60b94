//! The slots or children of a node: a list that is cheap to copy and to change in few places.
//!
//! Nearly every write copies a node, because the published snapshot holds it. But a write changes one of the node's 48 items, and
//! copying an item changes a reference count elsewhere in memory. So copies share their list, and each copy stores the items
//! that it has changed beside the list. When a copy has changed too many items, it gets a list of its own.
//!
//! ```text
//! list  a b c d e f     fresh  –              shared by all copies
//! list  a b c d e f     fresh  2: C           after a change of place 2
//! list  a b C D e F     fresh  –              after one change too many
//! ```
//!
//! An item that a fresh one replaces stays in memory until the copy gets a list of its own: at most [`FRESH_MAX`] items a list.

use super::grow::grow;
use std::{ops::Index, sync::Arc};

/// Places that may differ from the list. Of a list of 48, a change then copies about nine items, and not 48.
const FRESH_MAX: usize = 8;

/// A list with changes. Invariants: there are at most [`FRESH_MAX`] fresh items; their places are in the list, each once.
#[derive(Debug)]
pub(super) struct Patched<T> {
    list: Arc<Vec<T>>,
    fresh: Vec<T>,
    /// Where in the list each fresh item belongs. Stored apart from the items, so that a search for a place reads no item.
    places: [u8; FRESH_MAX],
}

impl<T> Default for Patched<T> {
    fn default() -> Self {
        Self::from(Vec::new())
    }
}

impl<T> From<Vec<T>> for Patched<T> {
    fn from(list: Vec<T>) -> Self {
        Self {
            list: Arc::new(list),
            fresh: Vec::new(),
            places: [0; FRESH_MAX],
        }
    }
}

impl<T: Clone> Clone for Patched<T> {
    fn clone(&self) -> Self {
        let mut fresh = Vec::new();
        // The copy is about to be changed in one place.
        grow(&mut fresh, FRESH_MAX.min(self.fresh.len() + 1), 0);
        fresh.extend_from_slice(&self.fresh);
        Self {
            list: self.list.clone(),
            fresh,
            places: self.places,
        }
    }
}

impl<T> Index<usize> for Patched<T> {
    type Output = T;

    fn index(&self, at: usize) -> &T {
        match self.fresh_at(at) {
            Some(found) => &self.fresh[found],
            None => &self.list[at],
        }
    }
}

impl<T> Patched<T> {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn get(&self, at: usize) -> Option<&T> {
        (at < self.len()).then(|| &self[at])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        (0..self.len()).map(|at| &self[at])
    }

    /// Reads where the list is; see [`prefetch`](super::prefetch).
    pub(super) fn touch(&self) -> usize {
        self.list.len()
    }

    /// Calls `touch` with the items that a copy of this list, about to be changed, copies.
    pub(super) fn touch_before_write(&self, touch: impl Fn(&T) -> usize) -> usize {
        let whole = self.fresh.len() == FRESH_MAX;
        let list = self.list.iter().filter(|_| whole);
        list.chain(&self.fresh).map(touch).sum()
    }

    fn fresh_at(&self, at: usize) -> Option<usize> {
        let places = &self.places[..self.fresh.len()];
        places.iter().position(|place| usize::from(*place) == at)
    }
}

impl<T: Clone> Patched<T> {
    /// An item, to change it.
    pub(super) fn item_mut(&mut self, at: usize) -> &mut T {
        if let Some(found) = self.fresh_at(at) {
            return &mut self.fresh[found];
        }
        let shared = Arc::get_mut(&mut self.list).is_none();
        let last = self.fresh.len();
        if shared && last < FRESH_MAX {
            self.places[last] = u8::try_from(at).expect("nodes have at most 256 places");
            self.fresh.push(self.list[at].clone());
            return &mut self.fresh[last];
        }
        if shared {
            return &mut self.list_mut()[at];
        }
        &mut Arc::make_mut(&mut self.list)[at]
    }

    /// The whole list, to change it in any way.
    pub(super) fn list_mut(&mut self) -> &mut Vec<T> {
        if Arc::get_mut(&mut self.list).is_none() {
            let mut list = Vec::new();
            grow(&mut list, self.list.len(), 2);
            list.extend(self.iter().cloned());
            self.list = Arc::new(list);
            self.fresh = Vec::new();
        }
        // No other owner has the list: this copies nothing.
        let list = Arc::make_mut(&mut self.list);
        for (item, place) in std::mem::take(&mut self.fresh).into_iter().zip(self.places) {
            list[usize::from(place)] = item;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Op {
        Copy,
        Forget,
        Set(prop::sample::Index, u8),
        Push(u8),
        Remove(prop::sample::Index),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            3 => Just(Op::Copy),
            1 => Just(Op::Forget),
            8 => (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, item)| Op::Set(at, item)),
            2 => any::<u8>().prop_map(Op::Push),
            1 => any::<prop::sample::Index>().prop_map(Op::Remove),
        ]
    }

    proptest! {
        #[test]
        fn every_copy_stays_as_it_was(ops in prop::collection::vec(op(), 0..120)) {
            let (mut patched, mut model) = (Patched::from(vec![1, 2, 3]), vec![1_u8, 2, 3]);
            let mut copies = Vec::new();
            for op in ops {
                match op {
                    Op::Copy => copies.push((patched.clone(), model.clone())),
                    Op::Forget => copies.truncate(copies.len() / 2),
                    Op::Set(at, item) if !model.is_empty() => {
                        let at = at.index(model.len());
                        *patched.item_mut(at) = item;
                        model[at] = item;
                    }
                    Op::Push(item) => {
                        patched.list_mut().push(item);
                        model.push(item);
                    }
                    Op::Remove(at) if !model.is_empty() => {
                        let at = at.index(model.len());
                        patched.list_mut().remove(at);
                        model.remove(at);
                    }
                    Op::Set(..) | Op::Remove(_) => {}
                }
                prop_assert!(patched.fresh.len() <= FRESH_MAX);
                prop_assert_eq!(patched.len(), model.len());
                prop_assert_eq!(patched.is_empty(), model.is_empty());
                prop_assert_eq!(patched.get(model.len()), None);
                prop_assert_eq!(patched.iter().copied().collect::<Vec<_>>(), model.clone());
            }
            for (copy, model) in copies {
                prop_assert_eq!(copy.iter().copied().collect::<Vec<_>>(), model);
            }
        }
    }

    #[test]
    fn a_change_of_a_shared_list_copies_few_items() {
        #[derive(Debug)]
        struct Counted(std::rc::Rc<std::cell::Cell<usize>>);

        impl Clone for Counted {
            fn clone(&self) -> Self {
                self.0.set(self.0.get() + 1);
                Self(self.0.clone())
            }
        }

        let copies = std::rc::Rc::default();
        let list = (0..48).map(|_| Counted(std::rc::Rc::clone(&copies)));
        let mut patched = Patched::from(list.collect::<Vec<_>>());
        for change in 0..900 {
            let held = patched.clone();
            patched = held.clone();
            copies.set(copies.get() - held.fresh.len());
            patched.item_mut(change * 7 % 48);
        }
        let each = copies.get() / 900;
        assert!((8..12).contains(&each), "{each} items for each change");
    }
}
