//! What a member holds in memory for others, in bytes: the count of each structure, beside its bound.
//!
//! The owner of a structure updates its count when it changes; anybody may read all counts. Nothing depends on them: they are for
//! operators and for tests, which look at them after each step of a simulation. `docs/reliability.md` has the table.

use crate::clock;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Bounds are so many times smaller in a simulation, whose requests are few and small: so its members come up to them.
const SIMULATED_PART: usize = 64;

/// A bound in bytes, as it holds here.
pub fn bound(bytes_max: usize) -> usize {
    if clock::is_simulated() {
        bytes_max / SIMULATED_PART
    } else {
        bytes_max
    }
}

/// All counts of a member. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HeldBytes(Arc<Parts>);

#[derive(Debug, Default)]
struct Parts {
    all: Mutex<Vec<Arc<HeldPart>>>,
    /// Some part has held more than its bound.
    beyond: Arc<AtomicBool>,
}

/// The count of one structure.
#[derive(Debug)]
pub struct HeldPart {
    name: &'static str,
    bytes: AtomicUsize,
    /// The greatest count so far.
    most: AtomicUsize,
    bytes_max: usize,
    beyond: Arc<AtomicBool>,
}

impl HeldBytes {
    /// A count for a structure with this bound.
    pub(super) fn part(&self, name: &'static str, bytes_max: usize) -> Arc<HeldPart> {
        let part = Arc::new(HeldPart {
            name,
            bytes: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            bytes_max,
            beyond: self.0.beyond.clone(),
        });
        self.lock().push(part.clone());
        part
    }

    /// The parts, in the order in which their owners were made.
    pub fn parts(&self) -> Vec<Arc<HeldPart>> {
        self.lock().clone()
    }

    /// A part that has held more than its bound at any time.
    pub fn beyond_bound(&self) -> Option<Arc<HeldPart>> {
        if !self.0.beyond.load(Ordering::Relaxed) {
            return None;
        }
        let parts = self.lock();
        let beyond = parts.iter().find(|part| part.most() > part.bytes_max);
        beyond.cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<HeldPart>>> {
        self.0.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldPart {
    /// The structure holds this much now. Only its owner calls this.
    pub(super) fn set(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
        if bytes > self.most.load(Ordering::Relaxed) {
            self.most.store(bytes, Ordering::Relaxed);
            if bytes > self.bytes_max {
                self.beyond.store(true, Ordering::Relaxed);
            }
        }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it holds now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The most that it has held.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_once_beyond_its_bound_is_found() {
        let held = HeldBytes::default();
        let (one, other) = (held.part("one", 10), held.part("other", 5));
        one.set(10);
        other.set(5);
        assert!(held.beyond_bound().is_none());
        other.set(6);
        other.set(2);
        let found = held.beyond_bound().unwrap();
        assert_eq!((found.name(), found.bytes(), found.most()), ("other", 2, 6));
        assert_eq!(held.parts().len(), 2);
    }
}
