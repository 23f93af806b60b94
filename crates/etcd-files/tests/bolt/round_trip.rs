//! What is written is read again, for contents of every shape; and what cannot be written is refused.

use crate::support::{
    BRANCH, Contents, Items, LEAF, check, measure, numbered, page_at, read, u64_at, write,
};
use proptest::{collection::btree_map, prelude::*};
use quorate_etcd_files::bolt::{BoltError, Image, Measure, Writer};
use std::io::{self, Write};

/// Small pages, so that few items make many pages.
const SMALL: u32 = 1_024;

fn bytes_up_to(max: usize) -> impl Strategy<Value = Vec<u8>> {
    // Few different bytes, so that keys share prefixes.
    prop::collection::vec(prop_oneof![0..3_u8, any::<u8>()], 0..=max)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let short = bytes_up_to(30);
    let long = bytes_up_to(2_000);
    prop_oneof![20 => short, 1 => long].prop_filter("a key", |key| !key.is_empty())
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let size = prop_oneof![20 => 0..100_usize, 2 => 900..1_100_usize, 2 => 0..3_100_usize];
    (size, any::<u8>()).prop_map(|(size, byte)| vec![byte; size])
}

fn contents() -> impl Strategy<Value = Contents> {
    let items = prop_oneof![
        3 => btree_map(key(), value(), 0..20),
        1 => btree_map(key(), value(), 0..400),
    ];
    btree_map(key(), items, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn what_is_written_is_read(contents in contents(), shift in 10..14_u32) {
        let bytes = write(&contents, 1 << shift);
        let image = Image::open(&bytes).expect("opens");
        image.verify_hash().expect("the right hash");
        let checked = image.check().expect("no fault");
        prop_assert_eq!(checked.buckets, contents.len() as u64);
        let items: usize = contents.values().map(Items::len).sum();
        prop_assert_eq!(checked.items, items as u64);
        prop_assert_eq!(read(&image).expect("reads"), contents);
    }
}

/// The branches of a tree, and how many levels it has.
fn shape(bytes: &[u8], page_bytes: usize, root: u64) -> (Vec<usize>, usize) {
    let (flags, count, children) = page_at(bytes, page_bytes, root);
    if flags == LEAF {
        return (Vec::new(), 1);
    }
    assert_eq!(flags, BRANCH);
    let mut branches = vec![count];
    let mut levels = Vec::new();
    for child in children {
        let (below, depth) = shape(bytes, page_bytes, child);
        branches.extend(below);
        levels.push(depth + 1);
    }
    levels.dedup();
    assert_eq!(levels.len(), 1, "all leaves are on one level");
    (branches, levels[0])
}

/// The root page of the file's only bucket, whose name has one byte.
fn bucket_root(bytes: &[u8], page_bytes: usize) -> u64 {
    let root = usize::try_from(u64_at(bytes, 16 + 16)).expect("small");
    let element = root * page_bytes + 16;
    u64_at(bytes, element + 16 + 1)
}

/// bbolt panics when it deletes items below a branch with a single element.
#[test]
fn every_branch_has_two_elements_or_more() {
    // Keys of 200 bytes: five fit a page.
    let key = |number: usize| format!("{number:0200}").into_bytes();
    let mut items = Items::new();
    let mut deepest = 0;
    for count in 1..250 {
        items.insert(key(count), vec![b'v'; 700]);
        let contents = Contents::from([(b"b".to_vec(), items.clone())]);
        let bytes = write(&contents, SMALL);
        assert_eq!(check(&bytes), count as u64);
        let (branches, levels) = shape(&bytes, SMALL as usize, bucket_root(&bytes, SMALL as usize));
        assert!(branches.iter().all(|count| *count >= 2), "{branches:?}");
        deepest = levels.max(deepest);
    }
    assert!(deepest >= 5, "{deepest} levels");
}

#[test]
fn thousands_of_items_make_three_levels() {
    let contents = Contents::from([(b"b".to_vec(), numbered(5_000, 20))]);
    let bytes = write(&contents, SMALL);
    let (_, levels) = shape(&bytes, SMALL as usize, bucket_root(&bytes, SMALL as usize));
    assert_eq!(levels, 3);
    assert_eq!(
        read(&Image::open(bytes).expect("opens")).expect("reads"),
        contents
    );
}

#[test]
fn the_longest_keys_are_written() {
    let key = |number: u8| [vec![b'k'; 32_767], vec![number]].concat();
    let items: Items = (0..50).map(|number| (key(number), vec![number])).collect();
    let contents = Contents::from([(key(0), items.clone()), (key(1), items)]);
    for page_bytes in [SMALL, 4_096, 65_536] {
        let bytes = write(&contents, page_bytes);
        assert_eq!(check(&bytes), 100);
        assert_eq!(
            read(&Image::open(bytes).expect("opens")).expect("reads"),
            contents
        );
    }
}

#[test]
fn thousands_of_buckets_are_written() {
    let items = numbered(1, 10);
    let bucket = |number: usize| (format!("bucket {number:06}").into_bytes(), items.clone());
    let contents: Contents = (0..2_000).map(bucket).collect();
    let bytes = write(&contents, SMALL);
    let image = Image::open(bytes).expect("opens");
    assert_eq!(image.check().expect("no fault").buckets, 2_000);
    assert!(image.bucket(b"bucket 001999").expect("reads").is_some());
    assert!(image.bucket(b"bucket 00199").expect("reads").is_none());
    assert_eq!(read(&image).expect("reads"), contents);
}

#[test]
fn buckets_may_be_empty_and_so_may_files() {
    for names in [&[][..], &[b"a"], &[b"a", b"b"]] {
        let contents: Contents = names
            .iter()
            .map(|name| (name.to_vec(), Items::new()))
            .collect();
        let bytes = write(&contents, 4_096);
        assert_eq!(bytes.len(), 3 * 4_096 + 32, "two metas and the root");
        assert_eq!(
            read(&Image::open(bytes).expect("opens")).expect("reads"),
            contents
        );
    }
}

#[test]
fn what_is_out_of_order_is_refused() {
    let mut measure = Measure::new();
    assert!(matches!(measure.item(b"k", 0), Err(BoltError::NoBucket)));
    measure.bucket(b"b").expect("the first");
    for name in [b"a", b"b"] {
        let refused = measure.bucket(name);
        assert!(matches!(refused, Err(BoltError::BucketOrder { .. })));
    }
    measure.item(b"k", 1).expect("the first");
    for key in [b"j", b"k"] {
        let refused = measure.item(key, 1);
        assert!(matches!(refused, Err(BoltError::ItemOrder { item: 1, .. })));
    }
    let error = measure.item(b"k", 1).expect_err("twice").to_string();
    assert_eq!(
        error,
        "bucket \"b\", item 1: its key does not sort after the key before it"
    );
}

#[test]
fn sizes_that_bbolt_cannot_hold_are_refused() {
    let mut measure = Measure::new();
    for name in [vec![], vec![b'n'; 32_769]] {
        let refused = measure.bucket(&name);
        assert!(matches!(refused, Err(BoltError::BucketName { .. })));
    }
    measure.bucket(b"b").expect("a bucket");
    for key in [vec![], vec![b'k'; 32_769]] {
        let refused = measure.item(&key, 0);
        assert!(matches!(refused, Err(BoltError::KeySize { item: 0, .. })));
    }
    for bytes in [(1 << 31) - 1, u64::MAX] {
        let refused = measure.item(b"k", bytes);
        assert!(matches!(refused, Err(BoltError::ValueSize { .. })));
    }
    measure
        .item(b"k", (1 << 31) - 2)
        .expect("the longest value");
    let layout = measure.finish().expect("a layout");
    assert_eq!(layout.pages(), 2 + 524_289 + 1);
    for bytes in [0, 512, 1_000, 4_097, 1 << 17] {
        let refused = Measure::with_page_bytes(bytes);
        assert!(matches!(refused, Err(BoltError::PageSize { .. })));
    }
}

#[test]
fn a_file_has_a_bounded_number_of_pages() {
    let mut measure = Measure::new();
    measure.bucket(b"b").expect("a bucket");
    let mut added = Ok(());
    for key in 0..3_000_u32 {
        added = measure.item(&key.to_be_bytes(), (1 << 31) - 2);
        if added.is_err() {
            break;
        }
    }
    assert!(
        matches!(added, Err(BoltError::TooManyPages { .. })),
        "{added:?}"
    );
}

/// Writes other contents than were measured.
fn write_other(measured: &Contents, written: &Contents) -> Result<Vec<u8>, BoltError> {
    let mut writer = Writer::new(Vec::new(), measure(measured, 4_096))?;
    for (name, items) in written {
        writer.bucket(name)?;
        for (key, value) in items {
            writer.item(key, &[value])?;
        }
    }
    writer.finish()
}

#[test]
fn contents_that_change_between_the_passes_are_refused() {
    let of = |count, value_bytes| Contents::from([(b"b".to_vec(), numbered(count, value_bytes))]);
    let measured = of(1_000, 200);
    write_other(&measured, &measured).expect("the same");
    for other in [
        of(1_100, 200),
        of(900, 200),
        of(1_000, 220),
        of(0, 0),
        Contents::new(),
    ] {
        let error = write_other(&measured, &other).expect_err("other contents");
        assert!(
            matches!(error, BoltError::ContentsChanged { .. }),
            "{error}"
        );
    }
    // The same number of pages in another order.
    let two = |first, second| {
        let items = [
            (b"a".to_vec(), numbered(first, 200)),
            (b"b".to_vec(), numbered(second, 200)),
        ];
        Contents::from(items)
    };
    let same = write_other(&two(10, 100), &two(100, 10)).expect("the root is where it was");
    assert_eq!(check(&same), 110);
}

/// Takes a number of bytes and then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn nothing_is_written_after_an_error() {
    let contents = Contents::from([(b"b".to_vec(), numbered(1_000, 200))]);
    let layout = measure(&contents, 4_096);
    assert!(matches!(
        Writer::new(Full(5_000), layout),
        Err(BoltError::Write { offset: 4_096, .. })
    ));
    let mut writer = Writer::new(Full(50_000), layout).expect("room for metas");
    writer.bucket(b"b").expect("nothing to write");
    let added: Vec<_> = numbered(1_000, 200)
        .iter()
        .map(|(key, value)| writer.item(key, &[value]))
        .filter_map(Result::err)
        .collect();
    assert!(matches!(added[0], BoltError::Write { offset: 49_152, .. }));
    assert!(
        added[1..]
            .iter()
            .all(|error| matches!(error, BoltError::Failed { .. }))
    );
    assert!(added.len() > 2);
    assert!(matches!(
        writer.finish(),
        Err(BoltError::Failed { offset: 49_152 })
    ));
}
