//! Memory is bounded by an item and the height of the trees, not by the number of records: what is allocated is counted.

use crate::support::{Memory, open, put};
use allocation_counter::measure;
use quorate_etcd_files::store::{Rewrite, RewriteOptions, export, export_layout, hash_kv};
use std::io;

const RECORDS: i64 = 20_000;

/// For trees of three levels of 4 KiB pages, and a file of 6 MB.
const BYTES_MAX: u64 = 128 << 10;

fn store() -> Memory {
    let value = "v".repeat(250);
    let record = |main| {
        (
            main,
            0,
            false,
            put(&format!("key/{main:09}"), main, main, 1, &value),
        )
    };
    Memory {
        records: (2..RECORDS + 2).map(record).collect(),
        ..Memory::default()
    }
}

#[test]
fn records_are_streams() {
    let file = crate::support::file(&store());
    assert!(file.len() > 5_000_000);
    let store = open(&file);
    let read = measure(|| {
        let records = store.records().unwrap().map(Result::unwrap);
        assert_eq!(i64::try_from(records.count()).unwrap(), RECORDS);
    });
    assert!(read.bytes_max < BYTES_MAX, "reading: {read:?}");
    let hashed = measure(|| {
        hash_kv(&store, 0).unwrap();
    });
    assert!(hashed.bytes_max < BYTES_MAX, "hashing: {hashed:?}");
    let rewrite = Rewrite::new(&store, RewriteOptions::default()).unwrap();
    let written = measure(|| {
        let layout = export_layout(&rewrite).unwrap();
        export(&rewrite, layout, io::sink()).unwrap();
    });
    assert!(written.bytes_max < 2 * BYTES_MAX, "writing: {written:?}");
    // Up to 76 bytes a key, and half as much again while the table grows.
    let verified = measure(|| store.verify_histories().unwrap());
    let most = BYTES_MAX + RECORDS.unsigned_abs() * 114;
    assert!(verified.bytes_max < most, "verifying: {verified:?}");
}
