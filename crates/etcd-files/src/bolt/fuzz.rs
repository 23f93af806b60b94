//! What fuzzers call: reads any bytes as a database file in every way there is.

use super::{error::BoltError, image::Image, source::Source};

/// Small, so that a fuzzer reaches it.
const ITEM_BYTES_MAX: u64 = 1 << 20;

/// Opens, checks and reads arbitrary bytes. Panics if the reader contradicts itself.
pub fn fuzz(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    let image = image.with_item_bytes_max(ITEM_BYTES_MAX);
    let hash_is_right = image.verify_hash().is_ok();
    assert!(
        image.has_hash() || !hash_is_right,
        "a hash that does not exist cannot be right"
    );
    let checked = image.check();
    let read = read_all(&image, bytes.len());
    if let (Ok(checked), Ok(items)) = (&checked, &read) {
        assert_eq!(checked.items, *items, "both count the same items");
    }
    let too_large = matches!(&read, Err(BoltError::Page { fault, .. }) if fault.is_too_large());
    assert!(
        checked.is_err() || read.is_ok() || too_large,
        "a file without faults cannot be read: {read:?}"
    );
}

fn read_all<S: Source>(image: &Image<S>, bytes: usize) -> Result<u64, BoltError> {
    let mut count = 0;
    let mut visited = image.visited();
    for bucket in image.buckets() {
        let bucket = bucket?;
        let found = image.bucket(bucket.name())?;
        assert!(found.is_some(), "a bucket that is listed is found");
        let (mut read, mut previous) = (0, Vec::new());
        let mut items = bucket.items_beside(visited);
        for item in &mut items {
            let (key, value) = item?;
            assert!(key > previous, "keys ascend");
            read += key.len() + value.len();
            assert!(read <= bytes, "a bucket has no more bytes than its file");
            previous = key;
            count += 1;
        }
        visited = items.into_visited();
    }
    Ok(count)
}
