//! The two hashes that etcd's tools print: of all buckets, and of the keys up to a revision. Both are CRC-32C.

use super::{
    error::{ItemFault, StoreError},
    identity::KeyId,
    meta, names,
    read::Store,
    record::Record,
    revision::{self, Revision},
};
use crate::{
    bolt::{Image, Source},
    messages::{KeyValue, MessageError},
};
use crc32c::crc32c_append;
use prost::Message;
use std::collections::{HashMap, HashSet};

/// What `etcdutl snapshot status` prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Of the names of all buckets, their keys and values. It does not depend on the pages of the file.
    pub hash: u32,
    /// That of the last record, 0 if there is none. etcd's own revision can be later, see [`HashKv::current_revision`].
    pub revision: i64,
    /// Keys that exist, and one for all marks of bumped revisions.
    pub total_keys: u64,
    /// The pages that the database has.
    pub total_bytes: u64,
    /// Empty before etcd 3.6.
    pub version: String,
}

/// Computes what `etcdutl snapshot status` prints, which also is the case for files with unknown buckets.
///
/// In memory are 16 bytes for each key that exists, in a hash table that is between 7/16 and 7/8 full: 20 to 40 bytes a key.
pub fn status<S: Source>(image: &Image<S>) -> Result<Status, StoreError> {
    let mut status = Status {
        total_bytes: image.pages() * image.page_bytes(),
        ..Status::default()
    };
    let mut live = HashSet::new();
    let mut has_meta = false;
    let mut visited = image.visited();
    for bucket in image.buckets() {
        let bucket = bucket?;
        let (is_key, is_meta) = [names::KEY, names::META]
            .map(|name| bucket.name() == name.as_bytes())
            .into();
        has_meta |= is_meta;
        status.add(bucket.name());
        let mut items = bucket.items_beside(visited);
        for item in &mut items {
            let (key, value) = item?;
            status.add(&key);
            status.add(&value);
            if is_key {
                let counted = status.count(&key, &value, &mut live);
                counted.map_err(|fault| StoreError::item(names::KEY, &key, fault))?;
            } else if is_meta && key == names::STORAGE_VERSION.as_bytes() {
                status.version = meta::version(&value).unwrap_or_default();
            }
        }
        visited = items.into_visited();
    }
    if !has_meta {
        // etcdutl panics here.
        let bucket = names::META;
        return Err(StoreError::BucketMissing { bucket });
    }
    status.total_keys = live.len() as u64;
    Ok(status)
}

impl Status {
    fn add(&mut self, bytes: &[u8]) {
        self.hash = crc32c_append(self.hash, bytes);
    }

    fn count(
        &mut self,
        key: &[u8],
        value: &[u8],
        live: &mut HashSet<KeyId>,
    ) -> Result<(), ItemFault> {
        let (revision, tombstone) = revision::parse(key)?;
        self.revision = revision.main;
        let what = "KeyValue";
        let decoded = KeyValue::decode(value);
        let decoded = decoded.map_err(|source| MessageError::Malformed { what, source })?;
        let id = KeyId::of(&decoded.key);
        if tombstone {
            live.remove(&id);
        } else {
            live.insert(id);
        }
        Ok(())
    }
}

/// What `etcdutl hashkv` prints, and the call `HashKV` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// Up to here records are compacted; -1 if there never was a compaction. Hashes with different ones do not compare.
    pub compact_revision: i64,
    /// The revision that the hash is of.
    pub hash_revision: i64,
    /// The store's own.
    pub current_revision: i64,
}

/// Computes the hash of the records up to a revision, or up to the current one if it is 0. Compacted records do not count, even
/// while they are still in the file.
///
/// It reads the records twice: which of those up to the compaction count is known only after the last one. In memory are 32
/// bytes for each key that existed at the compacted revision, in a hash table that is between 7/16 and 7/8 full: 38 to 76 bytes
/// a key. In the second pass it is 16 bytes for each of them that was not written since. Without a compaction it is nothing.
pub fn hash_kv<S: Source>(store: &Store<S>, revision: i64) -> Result<HashKv, StoreError> {
    let compacted = store.meta()?.compacted();
    if revision < 0 || (revision != 0 && revision < compacted) {
        return Err(StoreError::Compacted {
            asked: revision,
            oldest: compacted,
        });
    }
    let up_to = if revision == 0 { i64::MAX } else { revision };
    let mut search = Search::new(compacted, up_to);
    for record in store.records()? {
        search.next(&record?);
    }
    let newest = search.newest;
    if revision > newest {
        let asked = revision;
        return Err(StoreError::Future { asked, newest });
    }
    Ok(HashKv {
        hash: search.finish().hash(store)?,
        compact_revision: compacted,
        hash_revision: up_to.min(newest),
        current_revision: newest,
    })
}

/// The first pass: finds, for each key, the newest record up to the revision. Only those of the compacted past matter.
#[derive(Debug)]
struct Search {
    compacted: i64,
    up_to: i64,
    newest: i64,
    /// The newest records of keys that exist and were not written since the compaction.
    kept: HashMap<KeyId, Revision>,
    /// The keys that existed at the compaction and have come since, less those that were deleted since.
    live: i64,
}

impl Search {
    fn new(compacted: i64, up_to: i64) -> Self {
        Self {
            compacted,
            up_to,
            // etcd starts at 1, and is never behind a compaction.
            newest: compacted.max(1),
            kept: HashMap::new(),
            live: 0,
        }
    }

    fn next(&mut self, record: &Record) {
        self.newest = self.newest.max(record.main);
        if record.main > self.up_to || self.compacted < 0 {
            return;
        }
        if record.main <= self.compacted {
            let id = KeyId::of(&record.key_value.key);
            if record.tombstone {
                self.kept.remove(&id);
            } else {
                self.kept.insert(id, record.revision());
            }
            self.live = i64::try_from(self.kept.len()).unwrap_or(i64::MAX);
            return;
        }
        if !self.kept.is_empty() {
            self.kept.remove(&KeyId::of(&record.key_value.key));
        }
        if record.tombstone {
            self.live -= 1;
        } else if record.key_value.version <= 1 {
            // The mark of a bumped revision has version 0, and etcd's index has it as a key.
            self.live += 1;
        }
    }

    fn finish(self) -> Kept {
        let mut revisions: Vec<_> = self.kept.into_values().collect();
        revisions.sort_unstable();
        Kept {
            compacted: self.compacted,
            up_to: self.up_to,
            revisions,
            any: self.live > 0,
        }
    }
}

/// What the second pass needs to know.
#[derive(Debug)]
struct Kept {
    compacted: i64,
    up_to: i64,
    /// The records of the compacted past that count, in their order.
    revisions: Vec<Revision>,
    /// Whether any key exists.
    any: bool,
}

impl Kept {
    fn hash<S: Source>(&self, store: &Store<S>) -> Result<u32, StoreError> {
        let mut hash = crc32c_append(0, names::KEY.as_bytes());
        let mut kept = self.revisions.iter().peekable();
        for item in store.items(names::KEY)?.into_iter().flatten() {
            let (key, value) = item?;
            let parsed = revision::parse(&key);
            let (revision, tombstone) =
                parsed.map_err(|fault| StoreError::item(names::KEY, &key, fault))?;
            if revision.main > self.up_to {
                break;
            }
            let is_kept = kept.next_if_eq(&&revision).is_some();
            // etcd: if no key exists, it takes all records that happen to be in the file.
            let compacted = revision.main <= self.compacted && self.any && !is_kept;
            // etcd: old versions removed the tombstone at the compacted revision, new ones leave it.
            let maybe_removed = revision.main == self.compacted && tombstone;
            if !compacted && !maybe_removed {
                hash = crc32c_append(crc32c_append(hash, &key), &value);
            }
        }
        Ok(hash)
    }
}
