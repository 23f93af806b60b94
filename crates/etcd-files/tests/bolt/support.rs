//! Contents of files, and files that are put together by hand, fault by fault. What is here knows the format by itself, so that
//! the reader is not only tested with what our own writer does.

use quorate_etcd_files::bolt::{BoltError, Image, Layout, Measure, PageFault, Source, Writer};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

pub(crate) type Items = BTreeMap<Vec<u8>, Vec<u8>>;

/// Items by bucket.
pub(crate) type Contents = BTreeMap<Vec<u8>, Items>;

pub(crate) const BRANCH: u16 = 1;
pub(crate) const LEAF: u16 = 2;
pub(crate) const FREELIST: u16 = 16;
pub(crate) const NO_FREELIST: u64 = u64::MAX;

/// The page size of files made by hand.
pub(crate) const PAGE: usize = 1_024;

pub(crate) fn measure(contents: &Contents, page_bytes: u32) -> Layout {
    let mut measure = Measure::with_page_bytes(page_bytes).expect("a page size");
    for (name, items) in contents {
        measure.bucket(name).expect("buckets are sorted");
        for (key, value) in items {
            let added = measure.item(key, value.len() as u64);
            added.expect("items are sorted");
        }
    }
    measure.finish().expect("a layout")
}

pub(crate) fn write(contents: &Contents, page_bytes: u32) -> Vec<u8> {
    let layout = measure(contents, page_bytes);
    let mut writer = Writer::new(Vec::new(), layout).expect("a vector takes all");
    for (name, items) in contents {
        writer.bucket(name).expect("buckets are sorted");
        for (key, value) in items {
            // In two slices, as callers may have them.
            let (head, tail) = value.split_at(value.len() / 3);
            writer.item(key, &[head, tail]).expect("items are sorted");
        }
    }
    let bytes = writer.finish().expect("the same contents");
    assert_eq!(
        bytes.len() as u64,
        layout.bytes(),
        "the length was measured"
    );
    bytes
}

pub(crate) fn read<S: Source>(image: &Image<S>) -> Result<Contents, BoltError> {
    let mut contents = Contents::new();
    for bucket in image.buckets() {
        let bucket = bucket?;
        let items = bucket.items().collect::<Result<Items, _>>()?;
        let name = bucket.name().to_vec();
        assert!(contents.insert(name, items).is_none(), "names are unique");
    }
    Ok(contents)
}

/// The number of items of a file that has no fault.
pub(crate) fn check(bytes: &[u8]) -> u64 {
    let image = Image::open(bytes).expect("opens");
    image.verify_hash().expect("the right hash");
    image.check().expect("no fault").items
}

/// Numbered keys with values of the given size.
pub(crate) fn numbered(count: usize, value_bytes: usize) -> Items {
    let item = |number: usize| {
        let key = format!("{number:09}").into_bytes();
        (key, vec![b'v'; value_bytes])
    };
    (0..count).map(item).collect()
}

/// The page that begins at this number: its type, its count, and the ids of a branch.
pub(crate) fn page_at(bytes: &[u8], page_bytes: usize, page: u64) -> (u16, usize, Vec<u64>) {
    let start = usize::try_from(page).expect("small") * page_bytes;
    let bytes = &bytes[start..];
    let flags = u16::from_le_bytes([bytes[8], bytes[9]]);
    let count = usize::from(u16::from_le_bytes([bytes[10], bytes[11]]));
    let child = |index: usize| u64_at(bytes, 16 + index * 16 + 8);
    let children = if flags == BRANCH { count } else { 0 };
    (flags, count, (0..children).map(child).collect())
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A file made of pages that can say anything.
#[derive(Debug, Clone)]
pub(crate) struct Hand {
    /// From page 2 on.
    pub(crate) pages: Vec<Vec<u8>>,
    pub(crate) root: u64,
    pub(crate) freelist: u64,
}

impl Hand {
    /// The last page is the root.
    pub(crate) fn new(pages: Vec<Vec<u8>>) -> Self {
        Self {
            root: pages.len() as u64 + 1,
            freelist: NO_FREELIST,
            pages,
        }
    }

    /// One bucket, `b`, whose root is page 2.
    pub(crate) fn bucket(mut pages: Vec<Vec<u8>>) -> Self {
        let id = pages.len() as u64 + 2;
        pages.push(leaf(id, &[(1, b"b", &bucket(2))]));
        Self::new(pages)
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let pages = self.pages.len() as u64 + 2;
        let mut bytes = Vec::new();
        for id in 0..2 {
            let mut page = header(id, 4, 0, 0);
            page.extend(meta(self.root, self.freelist, pages, 7 + id));
            page.resize(PAGE, 0);
            bytes.extend(page);
        }
        for page in &self.pages {
            let start = bytes.len();
            bytes.extend_from_slice(page);
            bytes.resize(start + PAGE, 0);
        }
        with_hash(bytes)
    }

    /// What is wrong with the file's only bucket, as its items say; checking the file must find a fault as well.
    pub(crate) fn fault(&self) -> (u64, PageFault) {
        let file = self.file();
        let image = Image::open(&file).expect("opens");
        image.check().expect_err("the fault is found");
        match read(&image).expect_err("a fault") {
            BoltError::Page { page, fault, .. } => (page, fault),
            other => panic!("{other}"),
        }
    }
}

pub(crate) fn with_hash(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

pub(crate) fn header(id: u64, flags: u16, count: u16, overflow: u32) -> Vec<u8> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(flags.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.extend(overflow.to_le_bytes());
    bytes
}

pub(crate) fn meta(root: u64, freelist: u64, pages: u64, txid: u64) -> Vec<u8> {
    let mut bytes = 0xED0C_DAED_u32.to_le_bytes().to_vec();
    bytes.extend(2_u32.to_le_bytes());
    bytes.extend(u32::try_from(PAGE).expect("small").to_le_bytes());
    bytes.extend([0; 4]);
    for field in [root, 0, freelist, pages, txid] {
        bytes.extend(field.to_le_bytes());
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in &bytes {
        hash ^= u64::from(*byte);
        hash = hash.wrapping_mul(0x0100_0000_01b3);
    }
    bytes.extend(hash.to_le_bytes());
    bytes
}

/// The value of a bucket with this root page.
pub(crate) fn bucket(root: u64) -> Vec<u8> {
    [root.to_le_bytes(), [0; 8]].concat()
}

/// A leaf of elements: flags, key, value.
pub(crate) fn leaf(id: u64, elements: &[(u32, &[u8], &[u8])]) -> Vec<u8> {
    let count = u16::try_from(elements.len()).expect("few");
    let mut bytes = header(id, LEAF, count, 0);
    let mut data = Vec::new();
    for (index, (flags, key, value)) in elements.iter().enumerate() {
        let position = (elements.len() - index) * 16 + data.len();
        for field in [*flags as usize, position, key.len(), value.len()] {
            bytes.extend_from_slice(&field.to_le_bytes()[..4]);
        }
        data.extend_from_slice(key);
        data.extend_from_slice(value);
    }
    bytes.extend(data);
    let pages = bytes.len().div_ceil(PAGE);
    bytes[12] = u8::try_from(pages - 1).expect("few pages");
    bytes
}

/// A leaf of items whose values are empty.
pub(crate) fn leaf_of(id: u64, keys: &[&str]) -> Vec<u8> {
    let items = keys.iter().map(|key| (0, key.as_bytes(), &b""[..]));
    leaf(id, &items.collect::<Vec<_>>())
}

/// A branch of elements: key, page.
pub(crate) fn branch(id: u64, elements: &[(&str, u64)]) -> Vec<u8> {
    let count = u16::try_from(elements.len()).expect("few");
    let mut bytes = header(id, BRANCH, count, 0);
    let mut data = Vec::new();
    for (index, (key, page)) in elements.iter().enumerate() {
        let position = (elements.len() - index) * 16 + data.len();
        for field in [position, key.len()] {
            bytes.extend_from_slice(&field.to_le_bytes()[..4]);
        }
        bytes.extend(page.to_le_bytes());
        data.extend_from_slice(key.as_bytes());
    }
    bytes.extend(data);
    bytes
}
