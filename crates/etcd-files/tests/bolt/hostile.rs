//! Files that are damaged, or made to harm the reader: each fault is named, and none of them takes memory or time without bound.

use crate::support::{
    BRANCH, Contents, FREELIST, Hand, LEAF, PAGE, branch, bucket, check, header, leaf, leaf_of,
    numbered, page_at, read, with_hash, write,
};
use quorate_etcd_files::{
    bolt::{BoltError, Image, MetaFault, PageFault, Source, fuzz},
    store::{StoreError, status},
};
use std::{cell::Cell, io};

/// A file with every kind of page but a freelist: inline, large and small buckets, and items longer than a page.
fn sample() -> (Vec<u8>, Contents) {
    let mut large = numbered(120, 20);
    large.insert(b"z".to_vec(), vec![b'z'; 3_000]);
    let contents = Contents::from([
        (b"empty".to_vec(), numbered(0, 0)),
        (b"large".to_vec(), large),
        (b"small".to_vec(), numbered(2, 10)),
    ]);
    (write(&contents, 1_024), contents)
}

/// The error of reading everything.
fn error(bytes: &[u8]) -> BoltError {
    match Image::open(bytes) {
        Ok(image) => read(&image).expect_err("a fault"),
        Err(error) => error,
    }
}

#[test]
fn other_files_are_no_databases() {
    for bytes in [&b""[..], b"x", &[0; 79]] {
        let error = error(bytes);
        assert!(matches!(error, BoltError::TooShort { .. }), "{error}");
    }
    let text = "a text, not a database\n".repeat(1_000);
    for bytes in [text.as_bytes(), &[0; 80], &[0xff; 10_000]] {
        let error = error(bytes);
        assert!(matches!(error, BoltError::NotADatabase), "{error}");
    }
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let (bytes, contents) = sample();
    let image_bytes = bytes.len() - 32;
    let starts = (0..image_bytes).step_by(41);
    let around_pages = (0..image_bytes)
        .step_by(PAGE)
        .flat_map(|at| [at, at + 1, at + 32, at + 511]);
    for length in starts.chain(around_pages) {
        let error = Image::open(&bytes[..length]).expect_err("it is truncated");
        let named = matches!(
            error,
            BoltError::TooShort { .. }
                | BoltError::Meta {
                    fault: MetaFault::Truncated { .. },
                    ..
                }
        );
        assert!(named, "{length}: {error}");
    }
    // Without all of the hash the database itself is whole.
    for length in [image_bytes, image_bytes + 31] {
        let image = Image::open(&bytes[..length]).expect("a database");
        assert!(!image.has_hash());
        let error = image.verify_hash().expect_err("no hash");
        assert!(matches!(error, BoltError::HashMissing { .. }), "{error}");
        assert_eq!(read(&image).expect("reads"), contents);
    }
}

#[test]
fn the_hash_finds_every_flipped_bit() {
    let (mut bytes, contents) = sample();
    let metas = 0..2 * PAGE;
    for at in 0..bytes.len() {
        let bit = 1 << (at % 8);
        bytes[at] ^= bit;
        if let Ok(image) = Image::open(&bytes) {
            let error = image.verify_hash().expect_err("a flipped bit");
            assert!(matches!(error, BoltError::HashMismatch { .. }), "{error}");
            if metas.contains(&at) {
                // The other meta says the same.
                assert_eq!(read(&image).expect("reads"), contents, "{at}");
            }
        }
        fuzz(&bytes);
        bytes[at] ^= bit;
    }
    assert_eq!(check(&bytes), 123);
}

/// With the hash put right again, every flip in what holds the file together is a fault, or changes nothing.
#[test]
fn flipped_bits_in_structure_are_found_without_the_hash() {
    let (bytes, contents) = sample();
    let image_bytes = bytes.len() - 32;
    for (id, start) in (0..).zip((0..image_bytes).step_by(PAGE)).skip(2) {
        let (flags, count, _) = page_at(&bytes, PAGE, id);
        if flags != LEAF && flags != BRANCH {
            continue;
        }
        for bit in 0..(16 + count * 16) * 8 {
            let mut flipped = bytes[..image_bytes].to_vec();
            flipped[start + bit / 8] ^= 1 << (bit % 8);
            let found = Image::open(with_hash(flipped)).and_then(|image| {
                image.check()?;
                read(&image)
            });
            let position = bit / 8 % 16;
            // Another count, size or place of an item is possible in itself; only the hash tells.
            let sizes = bit / 8 == 10 || bit / 8 == 11 || flags == LEAF && position >= 4;
            if let Ok(found) = found {
                assert!(sizes || found == contents, "page {id}, bit {bit}");
            }
        }
    }
}

#[test]
fn a_wrong_hash_is_told() {
    let (mut bytes, _) = sample();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let error = Image::open(&bytes).expect("opens").verify_hash();
    let text = error.expect_err("wrong").to_string();
    assert!(
        text.starts_with(&format!("the SHA-256 at offset {} is ", last - 31)),
        "{text}"
    );
}

#[test]
fn inline_buckets_are_read() {
    let inline = [bucket(0), leaf(0, &[(0, b"k", b"v"), (0, b"l", b"")])].concat();
    let empty = [bucket(0), leaf(0, &[])].concat();
    let root = leaf(
        2,
        &[(1, b"a", &inline), (1, b"b", &empty), (1, b"c", &inline)],
    );
    let file = Hand::new(vec![root]).file();
    assert_eq!(check(&file), 4);
    let image = Image::open(&file).expect("opens");
    let items = |name| {
        let bucket = image.bucket(name).expect("reads").expect("exists");
        bucket
            .items()
            .collect::<Result<Vec<_>, _>>()
            .expect("reads")
    };
    let two = [(b"k".to_vec(), b"v".to_vec()), (b"l".to_vec(), Vec::new())];
    assert_eq!(items(b"a"), two);
    assert_eq!(items(b"b"), []);
    assert_eq!(items(b"c"), two);
}

#[test]
fn inline_buckets_are_verified() {
    let fault = |value: &[u8]| {
        let root = leaf(2, &[(1, b"b", value)]);
        let (page, fault) = Hand::new(vec![root]).fault();
        assert_eq!(page, 2, "the page that holds it");
        fault
    };
    for bytes in [0, 15] {
        let (index, min) = (0, 16);
        let wanted = PageFault::BucketHeader { index, bytes, min };
        assert_eq!(
            fault(&bucket(0)[..usize::try_from(bytes).expect("small")]),
            wanted
        );
    }
    let page = |page: Vec<u8>| [bucket(0), page].concat();
    let (index, bytes, min) = (0, 31, 32);
    let wanted = PageFault::BucketHeader { index, bytes, min };
    assert_eq!(fault(&page(vec![0; 15])), wanted);
    assert!(matches!(
        fault(&page(leaf(2, &[]))),
        PageFault::WrongId {
            found: 2,
            wanted: 0
        }
    ));
    let branch = branch(0, &[("a", 2)]);
    assert!(matches!(
        fault(&page(branch)),
        PageFault::Type { flags: BRANCH, .. }
    ));
    let overflow = header(0, LEAF, 0, 1);
    let wanted = PageFault::InlineOverflow { overflow: 1 };
    assert_eq!(fault(&page(overflow)), wanted);
    let count = header(0, LEAF, 1, 0);
    assert_eq!(
        fault(&page(count)),
        PageFault::Count {
            count: 1,
            bytes: 16
        }
    );
    let mut outside = leaf(0, &[(0, b"k", b"v")]);
    outside.pop();
    assert!(matches!(
        fault(&page(outside)),
        PageFault::Outside {
            end: 34,
            bytes: 33,
            ..
        }
    ));
}

#[test]
fn pages_that_lead_back_are_found() {
    let own = Hand::bucket(vec![branch(2, &[("a", 2)])]);
    assert_eq!(own.fault(), (2, PageFault::UsedTwice));
    let circle = Hand::bucket(vec![
        branch(2, &[("a", 3)]),
        branch(3, &[("a", 4)]),
        branch(4, &[("a", 2)]),
    ]);
    assert_eq!(circle.fault(), (2, PageFault::UsedTwice));
    let twice = Hand::bucket(vec![branch(2, &[("a", 3), ("b", 3)]), leaf_of(3, &[])]);
    assert_eq!(twice.fault(), (3, PageFault::UsedTwice));
    // The second page of a run is also a page of its own.
    let mut run = leaf(3, &[(0, b"a", &[0; PAGE])]);
    run.splice(PAGE.., leaf_of(4, &["b"]));
    let pages = vec![
        branch(2, &[("a", 3), ("b", 4)]),
        run[..PAGE].to_vec(),
        run[PAGE..].to_vec(),
    ];
    assert_eq!(Hand::bucket(pages).fault(), (4, PageFault::UsedTwice));
}

#[test]
fn a_page_of_two_buckets_is_found_by_a_check() {
    let root = leaf(3, &[(1, b"a", &bucket(2)), (1, b"b", &bucket(2))]);
    let file = Hand::new(vec![leaf_of(2, &["k"]), root]).file();
    let image = Image::open(&file).expect("opens");
    assert_eq!(read(&image).expect("each bucket by itself").len(), 2);
    let error = image.check().expect_err("used twice").to_string();
    assert_eq!(
        error,
        "bucket \"b\", page 2 at offset 2048: it is used twice"
    );
}

#[test]
fn a_bucket_cannot_be_the_root() {
    let own = Hand::new(vec![leaf(2, &[(1, b"b", &bucket(2))])]);
    let file = own.file();
    let image = Image::open(&file).expect("opens");
    assert!(matches!(
        image.check(),
        Err(BoltError::Page {
            fault: PageFault::UsedTwice,
            ..
        })
    ));
    assert_eq!(own.fault(), (2, PageFault::Nested { index: 0 }));
}

#[test]
fn a_chain_of_branches_is_cut() {
    let chain = |length: u64| {
        let mut pages: Vec<_> = (2..=length)
            .map(|id| branch(id, &[("a", id + 1)]))
            .collect();
        pages.push(leaf_of(length + 1, &["a"]));
        Hand::bucket(pages)
    };
    assert_eq!(check(&chain(32).file()), 1);
    assert_eq!(chain(33).fault(), (33, PageFault::TooDeep { max: 32 }));
    assert_eq!(chain(1_000).fault().1, PageFault::TooDeep { max: 32 });
}

#[test]
fn keys_out_of_order_are_found() {
    let one = |keys: &[&str]| Hand::bucket(vec![leaf_of(2, keys)]).fault();
    assert_eq!(one(&["b", "a"]), (2, PageFault::KeyOrder { index: 1 }));
    assert_eq!(one(&["a", "b", "b"]), (2, PageFault::KeyOrder { index: 2 }));
    assert_eq!(one(&["a", ""]), (2, PageFault::EmptyKey { index: 1 }));
    let two = |keys: [&str; 2], first: &[&str], second: &[&str]| {
        let root = branch(2, &[(keys[0], 3), (keys[1], 4)]);
        Hand::bucket(vec![root, leaf_of(3, first), leaf_of(4, second)])
    };
    let sound = two(["a", "c"], &["a", "b"], &["c", "d"]);
    assert_eq!(check(&sound.file()), 4);
    // A deletion leaves the branch as it was.
    assert_eq!(check(&two(["a", "c"], &["b"], &["d"]).file()), 2);
    // An empty leaf is possible; bbolt steps over it.
    assert_eq!(check(&two(["a", "c"], &[], &["d"]).file()), 1);
    let below = two(["a", "c"], &["a"], &["b"]);
    assert_eq!(below.fault(), (4, PageFault::BelowBranch));
    let overlap = two(["a", "c"], &["a", "c"], &["d"]);
    assert_eq!(overlap.fault(), (2, PageFault::KeyOrder { index: 1 }));
    let equal = two(["a", "a"], &[], &["a"]);
    assert_eq!(equal.fault(), (2, PageFault::KeyOrder { index: 1 }));
}

#[test]
fn pages_of_the_wrong_kind_are_found() {
    let one = |page: Vec<u8>| Hand::bucket(vec![page]).fault();
    let wrong_id = PageFault::WrongId {
        found: 3,
        wanted: 2,
    };
    assert_eq!(one(leaf_of(3, &["a"])), (2, wrong_id));
    for flags in [0, 3, 4, FREELIST, 0x20, 0xffff] {
        let (_, fault) = one(header(2, flags, 0, 0));
        assert!(matches!(fault, PageFault::Type { .. }), "{fault}");
    }
    assert_eq!(one(header(2, BRANCH, 0, 0)), (2, PageFault::EmptyBranch));
    let (bytes, many) = (PAGE as u64, 0xffff);
    for count in [64, many] {
        let page = header(2, LEAF, count, 0);
        let count = count.into();
        assert_eq!(one(page), (2, PageFault::Count { count, bytes }));
    }
    for overflow in [2, u32::MAX] {
        let (page, pages) = (header(2, LEAF, 0, overflow), 4);
        assert_eq!(one(page), (2, PageFault::Overflow { overflow, pages }));
    }
    let child = |id| Hand::bucket(vec![branch(2, &[("a", id)])]).fault();
    for id in [0, 1, 4, u64::MAX] {
        assert_eq!(child(id), (id, PageFault::OutOfRange { pages: 4 }));
    }
}

#[test]
fn elements_that_cannot_be_are_found() {
    let one = |elements: &[(u32, &[u8], &[u8])]| Hand::bucket(vec![leaf(2, elements)]).fault();
    assert_eq!(
        one(&[(0, b"a", b""), (1, b"b", &bucket(2))]),
        (2, PageFault::Nested { index: 1 })
    );
    for flags in [2, 3, u32::MAX] {
        let wanted = PageFault::ElementFlags { index: 0, flags };
        assert_eq!(one(&[(flags, b"a", b"")]), (2, wanted));
    }
    let plain = Hand::new(vec![leaf(2, &[(0, b"b", b"")])]);
    assert_eq!(plain.fault(), (2, PageFault::NotABucket { index: 0 }));
    // The second element has the bytes of the first.
    let mut overlap = leaf(2, &[(0, b"a", &[7; 100]), (0, b"b", b"")]);
    overlap[36..40].copy_from_slice(&16_u32.to_le_bytes());
    let (page, fault) = Hand::bucket(vec![overlap]).fault();
    assert!(
        matches!(fault, PageFault::Overlap { index: 1, .. }),
        "{page}: {fault}"
    );
}

#[test]
fn roots_of_buckets_are_in_the_file() {
    for id in [1, 3, u64::MAX] {
        let root = leaf(2, &[(1, b"b", &bucket(id))]);
        let (page, fault) = Hand::new(vec![root]).fault();
        assert_eq!((page, fault), (id, PageFault::OutOfRange { pages: 3 }));
    }
}

/// A file that is zeros after its beginning, however long.
struct Sparse {
    start: Vec<u8>,
    bytes: u64,
}

impl Source for Sparse {
    fn length(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        assert!(
            buffer.len() <= 2 << 20,
            "{} bytes were read at once",
            buffer.len()
        );
        assert!(offset + buffer.len() as u64 <= self.bytes, "past the end");
        buffer.fill(0);
        let start =
            usize::try_from(offset).map_or(&[][..], |at| self.start.get(at..).unwrap_or(&[]));
        let count = start.len().min(buffer.len());
        buffer[..count].copy_from_slice(&start[..count]);
        Ok(())
    }
}

/// A bucket with the root page 3, which has as many overflow pages as a page can have.
fn huge(count: u16, element: [u32; 4]) -> Image<Sparse> {
    let pages = 1 << 23;
    let mut page = header(3, LEAF, count, pages - 4);
    for field in element {
        page.extend(field.to_le_bytes());
    }
    let root = leaf(2, &[(1, b"b", &bucket(3))]);
    let mut hand = Hand::new(vec![root]);
    hand.pages.push(page);
    let mut start = hand.file();
    start.truncate(4 * PAGE);
    for id in 0..2 {
        let at = usize::try_from(id).expect("small") * PAGE + 16;
        let meta = crate::support::meta(2, u64::MAX, pages.into(), id);
        start[at..at + 64].copy_from_slice(&meta);
    }
    let bytes = u64::from(pages) * PAGE as u64;
    Image::open(Sparse { start, bytes }).expect("opens")
}

#[test]
fn an_item_of_gigabytes_is_refused_before_it_is_read() {
    let image = huge(1, [0, 16, 1, u32::MAX]);
    assert_eq!(image.check().expect("nothing is wrong").items, 1);
    let error = read(&image).expect_err("too large");
    let wanted = "bucket \"b\", page 3 at offset 3072: element 0 has 4294967296 bytes, but at most 67108864 are read";
    assert_eq!(error.to_string(), wanted);
    let image = image.with_item_bytes_max(1);
    assert!(read(&image).is_err());
    let image = huge(1, [0, 16, 32_769, 0]);
    assert!(matches!(
        read(&image),
        Err(BoltError::Page {
            fault: PageFault::KeyTooLong { bytes: 32_769, .. },
            ..
        })
    ));
}

#[test]
fn a_page_of_gigabytes_costs_its_elements_only() {
    let image = huge(0xffff, [0, 0, 1, 1]);
    assert!(matches!(
        read(&image),
        Err(BoltError::Page {
            fault: PageFault::Overlap { index: 0, .. },
            ..
        })
    ));
}

fn with_freelist(freelist: Vec<u8>) -> Hand {
    let root = leaf(2, &[]);
    let pages = vec![root, freelist, header(0, 0, 0, 0), header(0, 0, 0, 0)];
    Hand {
        pages,
        root: 2,
        freelist: 3,
    }
}

fn freelist(count: u16, ids: &[u64]) -> Vec<u8> {
    let mut page = header(3, FREELIST, count, 0);
    page.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
    page
}

fn free_fault(freelist: Vec<u8>) -> PageFault {
    let file = with_freelist(freelist).file();
    let checked = Image::open(&file).and_then(|image| {
        read(&image).expect("the items do not depend on it");
        image.check()
    });
    match checked.expect_err("a fault") {
        BoltError::Page {
            part,
            page: 3,
            fault,
            ..
        } if part == "freelist" => fault,
        other => panic!("{other}"),
    }
}

#[test]
fn a_freelist_is_checked() {
    let free = |page| {
        let file = with_freelist(page).file();
        let image = Image::open(&file).expect("opens");
        image.check().expect("no fault").free_pages
    };
    assert_eq!(free(freelist(2, &[4, 5])), 2);
    assert_eq!(free(freelist(2, &[5, 4])), 2, "in any order");
    assert_eq!(free(freelist(0xffff, &[1, 5])), 1, "the count comes first");
    let in_use = |index, id| PageFault::FreeInUse { index, id };
    assert_eq!(free_fault(freelist(1, &[2])), in_use(0, 2));
    assert_eq!(free_fault(freelist(1, &[3])), in_use(0, 3));
    assert_eq!(free_fault(freelist(2, &[4, 4])), in_use(1, 4));
    for id in [0, 1, 6, u64::MAX] {
        let wanted = PageFault::FreeOutOfRange {
            index: 0,
            id,
            pages: 6,
        };
        assert_eq!(free_fault(freelist(1, &[id])), wanted);
    }
}

#[test]
fn a_freelist_lies_in_the_file() {
    let wanted = |count| PageFault::Count {
        count,
        bytes: PAGE as u64,
    };
    assert_eq!(free_fault(freelist(127, &[])), wanted(127));
    for count in [126, u64::MAX] {
        assert_eq!(free_fault(freelist(0xffff, &[count])), wanted(count));
    }
    let mut overflow = freelist(0, &[]);
    overflow[12] = 3;
    let (pages, overflow_pages) = (6, 3);
    let wanted = PageFault::Overflow {
        overflow: overflow_pages,
        pages,
    };
    assert_eq!(free_fault(overflow), wanted);
    assert!(matches!(
        free_fault(leaf(3, &[])),
        PageFault::Type { flags: LEAF, .. }
    ));
}

#[test]
fn the_header_of_a_meta_page_is_checked() {
    let mut file = Hand::new(vec![leaf(2, &[])]).file();
    // Page 1 has the later transaction.
    file[PAGE + 8] = 0;
    let image = Image::open(&file).expect("bbolt does not look at it");
    read(&image).expect("reads");
    assert!(matches!(
        image.check(),
        Err(BoltError::Meta {
            page: 1,
            fault: MetaFault::Header { id: 1, flags: 0 },
            ..
        })
    ));
}

/// Counts how often it is read.
struct Counting {
    bytes: Vec<u8>,
    reads: Cell<usize>,
}

impl Source for Counting {
    fn length(&self) -> io::Result<u64> {
        self.bytes.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.read_at(offset, buffer)
    }
}

#[test]
fn a_tree_that_many_buckets_name_is_read_once() {
    let keys: Vec<_> = (0..20).map(|number| format!("{number:02}")).collect();
    let leaves = keys.iter().zip(2..);
    let mut pages: Vec<_> = leaves
        .clone()
        .map(|(key, id)| leaf_of(id, &[key]))
        .collect();
    let children: Vec<_> = leaves.map(|(key, id)| (key.as_str(), id)).collect();
    pages.push(branch(22, &children));
    let shared = bucket(22);
    let names = keys.iter().map(String::as_str).chain(["meta"]);
    let buckets: Vec<_> = names
        .map(|name| (1, name.as_bytes(), shared.as_slice()))
        .collect();
    pages.push(leaf(23, &buckets));
    let source = Counting {
        bytes: Hand::new(pages).file(),
        reads: Cell::new(0),
    };
    let image = Image::open(&source).expect("opens");
    let result = status(&image);
    let reads = source.reads.get();
    assert!(reads < 4 * 24, "{reads} reads of 24 pages");
    let shared = matches!(
        result,
        Err(StoreError::Bolt(BoltError::Page {
            fault: PageFault::UsedTwice,
            ..
        }))
    );
    assert!(shared, "{result:?}");
}
