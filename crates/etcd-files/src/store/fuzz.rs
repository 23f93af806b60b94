//! What fuzzers call: reads any bytes as a store in every way there is, and writes what could be read.

use super::{
    contents::{export, export_layout},
    error::StoreError,
    hash::{hash_kv, status},
    read::Store,
    record::Record,
    rewrite::{Rewrite, RewriteOptions},
};
use crate::bolt::{BoltError, Image, PageFault, Source};

/// Small, so that a fuzzer reaches it, and so that JSON of which every character is escaped can be read again.
const ITEM_BYTES_MAX: u64 = 128 << 10;

/// Opens and reads arbitrary bytes. Panics if a store that can be read is not the same after it was written again.
pub fn fuzz(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    let image = image.with_item_bytes_max(ITEM_BYTES_MAX);
    let counted = status(&image);
    let Ok(store) = Store::open(image) else {
        return;
    };
    // What it says, other checks need not agree with: a key may be readable but have an impossible history.
    drop(store.verify_histories());
    let Ok(read) = read_all(&store) else {
        return;
    };
    let newest = read.last().map_or(0, |record| record.main);
    let counted = counted.map(|status| status.revision);
    // A status also needs what is not known here and was not read.
    let all_is_read = matches!(store.unknown(), Ok(unknown) if unknown.is_empty());
    // It refuses pages that two buckets share, which who reads one bucket after the other does not notice.
    let shares_pages = matches!(
        counted,
        Err(StoreError::Bolt(BoltError::Page {
            fault: PageFault::UsedTwice,
            ..
        }))
    );
    let may_fail = shares_pages || (counted.is_err() && !all_is_read);
    assert!(
        matches!(counted, Ok(revision) if revision == newest) || may_fail,
        "the last record is of {newest}, but: {counted:?}"
    );
    if let Ok(rewrite) = Rewrite::new(&store, RewriteOptions::default()) {
        let checked = check_rewritten(&store, &rewrite, &read);
        assert!(
            checked.is_ok(),
            "what was read is as valid when it was written again: {checked:?}"
        );
    }
}

fn check_rewritten<S: Source>(
    store: &Store<S>,
    rewrite: &Rewrite<'_, S>,
    read: &[Record],
) -> Result<(), StoreError> {
    let layout = export_layout(rewrite)?;
    let file = export(rewrite, layout, Vec::new())?;
    let image = Image::open(file.as_slice())?;
    image.verify_hash()?;
    image.check()?;
    let again = Store::open(image)?;
    assert_eq!(read_all(&again)?, read, "the same records");
    assert_eq!(again.meta()?, store.meta()?, "the same meta");
    assert_eq!(
        hash_kv(&again, 0)?,
        hash_kv(store, 0)?,
        "the same hash of the same records"
    );
    Ok(())
}

/// Reads everything, and returns the records.
fn read_all<S: Source>(store: &Store<S>) -> Result<Vec<Record>, StoreError> {
    store.meta()?;
    store.auth()?;
    store.cluster()?;
    store.unknown()?;
    store.leases()?.try_for_each(|lease| lease.map(drop))?;
    store.users()?.try_for_each(|user| user.map(drop))?;
    store.roles()?.try_for_each(|role| role.map(drop))?;
    store.alarms()?.try_for_each(|alarm| alarm.map(drop))?;
    store.members()?.try_for_each(|member| member.map(drop))?;
    store.removed()?.try_for_each(|id| id.map(drop))?;
    store.records()?.collect()
}
