//! The hashes, computed a second time in the plainest way. `real` compares them with etcd's own.

use crate::support::{Kept, Memory, Raw, deletion, file, open, put, sample};
use crc32c::crc32c_append;
use prost::Message;
use quorate_etcd_files::{
    bolt::Image,
    messages::KeyValue,
    store::{HashKv, StoreError, hash_kv, status},
};
use std::collections::{BTreeMap, BTreeSet};

fn hash(store: &Memory, revision: i64) -> Result<HashKv, StoreError> {
    hash_kv(&open(&file(store)), revision)
}

/// With all in memory.
fn plain(records: &[Kept], compacted: i64, revision: i64) -> u32 {
    let mut newest = BTreeMap::new();
    for (main, sub, tombstone, kv) in records {
        if *main <= revision {
            let key = KeyValue::decode(kv.as_slice()).unwrap().key;
            newest.insert(key, (*main, *sub, *tombstone));
        }
    }
    let keep: BTreeSet<_> = newest
        .into_values()
        .filter(|(_, _, tombstone)| !tombstone)
        .collect();
    let mut hash = crc32c_append(0, b"key");
    for (main, sub, tombstone, kv) in records {
        let skipped =
            *main <= compacted && !keep.is_empty() && !keep.contains(&(*main, *sub, *tombstone));
        if *main > revision || skipped || (*main == compacted && *tombstone) {
            continue;
        }
        let mut key = [main.to_be_bytes(), u64::from(*sub).to_be_bytes()].join(&b'_');
        key.extend(tombstone.then_some(b't'));
        hash = crc32c_append(crc32c_append(hash, &key), kv);
    }
    hash
}

#[test]
fn every_revision_and_compaction_has_its_hash() {
    let mut store = sample();
    store.records.extend([
        (6, 0, true, deletion("b")),
        (7, 0, true, deletion("a")),
        (8, 0, false, put("b", 8, 8, 1, "")),
        (9, 0, true, deletion("b")),
        (10, 0, false, put("c", 10, 10, 1, "")),
    ]);
    // Nothing is removed yet, as after a compaction that was only scheduled.
    for compacted in [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] {
        store.meta.scheduled_compaction = Some(compacted).filter(|revision| *revision >= 0);
        for revision in compacted.max(1)..=10 {
            let wanted = HashKv {
                hash: plain(&store.records, compacted, revision),
                compact_revision: compacted,
                hash_revision: revision,
                current_revision: 10,
            };
            let found = hash(&store, revision).unwrap();
            assert_eq!(found, wanted, "{revision} of {compacted}");
        }
        assert_eq!(hash(&store, 0).unwrap(), hash(&store, 10).unwrap());
    }
}

#[test]
fn revisions_that_are_not_there_have_no_hash() {
    let mut store = sample();
    store.meta.finished_compaction = Some(4);
    let error = |revision| hash(&store, revision).unwrap_err().to_string();
    assert_eq!(error(3), "revision 3 is compacted, the oldest is 4");
    assert_eq!(error(-1), "revision -1 is compacted, the oldest is 4");
    assert_eq!(error(6), "revision 6 is not reached yet, the newest is 5");
    assert_eq!(
        error(i64::MAX),
        format!("revision {} is not reached yet, the newest is 5", i64::MAX)
    );
    let empty = hash(&Memory::default(), 0).unwrap();
    assert_eq!((empty.hash_revision, empty.compact_revision), (1, -1));
}

#[test]
fn a_status_counts_what_etcdutl_counts() {
    let store = sample();
    let file = file(&store);
    let found = status(&Image::open(file.as_slice()).unwrap()).unwrap();
    let raw = Raw::of(file.clone());
    let mut wanted = 0;
    for (name, items) in raw.0 {
        wanted = crc32c_append(wanted, &name);
        for (key, value) in items {
            wanted = crc32c_append(crc32c_append(wanted, &key), &value);
        }
    }
    assert_eq!(found.hash, wanted);
    assert_eq!((found.revision, found.total_keys), (5, 2));
    assert_eq!(found.total_bytes + 32, file.len() as u64);
    assert_eq!(found.version, "3.6.0");
}

#[test]
fn a_status_needs_meta() {
    let mut raw = Raw::of(file(&sample()));
    raw.0.remove(b"meta".as_slice());
    let file = raw.file();
    let error = status(&Image::open(file.as_slice()).unwrap()).unwrap_err();
    assert!(matches!(
        error,
        StoreError::BucketMissing { bucket: "meta" }
    ));
}
