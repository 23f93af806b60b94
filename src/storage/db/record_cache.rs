//! Records in memory that were read or written recently, so that short reads of them need no disk.
//!
//! redb does not say whether a page is in its cache, and a thread that serves many clients must not wait for a disk. So such a
//! thread reads only what is here; a thread that may block reads all else. A record never changes, so none is ever out of
//! date.
//!
//! Two generations approximate a list in order of use (LRU). New records, and old ones that are read again, go to the younger
//! generation. When it is full, it becomes the older one, and the records that were still in the older one are dropped.

use crate::types::Rev;
use bytes::Bytes;
use std::{
    collections::HashMap,
    mem,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// Parts with a lock each, so that readers and the committer rarely wait for each other.
const SHARDS: usize = 16;

/// What a record takes in memory besides its bytes: its entry in the map, and the bookkeeping of the allocation.
const ENTRY_BYTES: usize = 128;

/// A cache of `KeyValue`s by revision. Invariant: it holds at most the bytes that it was made for.
#[derive(Debug)]
pub(super) struct RecordCache {
    shards: [RwLock<Generations>; SHARDS],
    /// Bytes of one generation of one shard.
    generation_bytes_max: usize,
    /// Whether a record was looked up since the last [`RecordCache::take_was_read`].
    was_read: AtomicBool,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Rev, Bytes>,
    young_bytes: usize,
    old: HashMap<Rev, Bytes>,
}

impl RecordCache {
    /// An empty cache for `bytes_max` bytes; with zero it stays empty.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            shards: Default::default(),
            generation_bytes_max: bytes_max / SHARDS / 2,
            was_read: AtomicBool::new(false),
        }
    }

    /// Whether a record was looked up since the last call. Caching new records makes writes some percent slower, since their
    /// memory is not reused while it is in the processor's cache; so a load that only writes caches none.
    pub(super) fn take_was_read(&self) -> bool {
        self.was_read.swap(false, Ordering::Relaxed)
    }

    pub(super) fn get(&self, rev: Rev) -> Option<Bytes> {
        // The flag is set most of the time. As it is written only if it is not, all readers can share its cache line.
        if !self.was_read.load(Ordering::Relaxed) {
            self.was_read.store(true, Ordering::Relaxed);
        }
        let shard = self.shard(rev);
        let found = {
            let generations = shard.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(kv) = generations.young.get(&rev) {
                return Some(kv.clone());
            }
            generations.old.get(&rev).cloned()
        };
        // It is in use, so it must outlive the older generation.
        self.insert(rev, found.as_ref()?.clone());
        found
    }

    /// Adds a record, unless it takes more than a generation. `kv` must be an allocation of its own, since only its length is
    /// counted.
    pub(super) fn insert(&self, rev: Rev, kv: Bytes) {
        let bytes = kv.len() + ENTRY_BYTES;
        if bytes > self.generation_bytes_max {
            return;
        }
        let mut generations = self
            .shard(rev)
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let mut outdated = HashMap::new();
        if generations.young_bytes + bytes > self.generation_bytes_max {
            let young = mem::take(&mut generations.young);
            outdated = mem::replace(&mut generations.old, young);
            generations.young_bytes = 0;
        }
        if generations.young.insert(rev, kv).is_none() {
            generations.young_bytes += bytes;
        }
        drop(generations);
        // Freeing many records takes long, so it happens outside the lock.
        drop(outdated);
    }

    fn shard(&self, rev: Rev) -> &RwLock<Generations> {
        let number = rev.major.0.cast_unsigned().wrapping_add(rev.sub.into());
        &self.shards[usize::try_from(number % SHARDS as u64).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Revision;

    const VALUE_BYTES: usize = 1_000;

    /// Revisions of one shard.
    fn rev(n: i64) -> Rev {
        let shards = i64::try_from(SHARDS).unwrap();
        Rev::new(Revision(n * shards), 0)
    }

    fn value() -> Bytes {
        vec![7; VALUE_BYTES].into()
    }

    /// A cache with room for so many records in a shard.
    fn room_for(records: usize) -> RecordCache {
        RecordCache::new(records * (VALUE_BYTES + ENTRY_BYTES) * SHARDS)
    }

    fn held(cache: &RecordCache) -> usize {
        let shards = cache.shards.iter();
        shards
            .map(|shard| {
                let generations = shard.read().unwrap();
                generations.young.len() + generations.old.len()
            })
            .sum()
    }

    #[test]
    fn it_holds_no_more_than_it_has_room_for() {
        let cache = room_for(8);
        for n in 0..100 {
            cache.insert(rev(n), value());
            assert!(held(&cache) <= 8, "after {n}");
        }
        assert_eq!(cache.get(rev(99)), Some(value()), "the newest is there");
        assert_eq!(cache.get(rev(0)), None, "the oldest is not");
    }

    #[test]
    fn it_says_once_that_it_was_read() {
        let cache = room_for(8);
        assert!(!cache.take_was_read());
        assert_eq!(cache.get(rev(1)), None);
        assert!(cache.take_was_read(), "also of a record that is not there");
        assert!(!cache.take_was_read());
    }

    #[test]
    fn a_record_that_is_read_again_stays() {
        let cache = room_for(8);
        cache.insert(rev(0), value());
        for n in 1..100 {
            cache.insert(rev(n), value());
            assert_eq!(cache.get(rev(0)), Some(value()), "after {n}");
        }
    }

    #[test]
    fn a_record_that_is_larger_than_a_generation_is_not_kept() {
        let cache = room_for(8);
        cache.insert(rev(0), value());
        cache.insert(rev(1), vec![7; 8 * VALUE_BYTES].into());
        assert_eq!(cache.get(rev(1)), None);
        assert_eq!(cache.get(rev(0)), Some(value()), "others stay");
        let none = RecordCache::new(0);
        none.insert(rev(0), Bytes::new());
        assert_eq!(none.get(rev(0)), None);
    }
}
