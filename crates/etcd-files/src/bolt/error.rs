//! Why a database file cannot be read or written. Every error says where: a page and its offset, a bucket and the number of an
//! item.

use std::io;

/// Why a database file cannot be read ([`Image`](super::Image)) or written ([`Measure`](super::Measure),
/// [`Writer`](super::Writer)).
#[derive(Debug, thiserror::Error)]
pub enum BoltError {
    #[error("cannot read the length of the file: {0}")]
    Length(io::Error),
    #[error("cannot read {bytes} bytes at offset {offset}: {cause}")]
    Read {
        offset: u64,
        bytes: usize,
        cause: io::Error,
    },
    #[error("the file has {bytes} bytes: too short for a bbolt database")]
    TooShort { bytes: u64 },
    #[error(
        "not a bbolt database: its magic number is neither at offset 16 nor in a second page of 1 KiB to 64 KiB"
    )]
    NotADatabase,
    #[error("meta page {page} at offset {offset}: {fault}")]
    Meta {
        page: u64,
        offset: u64,
        fault: MetaFault,
    },
    /// `part` is a bucket, the root bucket, or the freelist.
    #[error("{part}, page {page} at offset {offset}: {fault}")]
    Page {
        part: String,
        page: u64,
        offset: u64,
        fault: PageFault,
    },
    #[error(
        "no SHA-256 follows the image: the file's {bytes} bytes are not 32 more than a multiple of 512"
    )]
    HashMissing { bytes: u64 },
    #[error("the SHA-256 at offset {offset} is {stored}, but the bytes before it have {computed}")]
    HashMismatch {
        offset: u64,
        stored: String,
        computed: String,
    },
    #[error(
        "a page size of {bytes} bytes is not possible: only powers of two from 1 KiB to 64 KiB are"
    )]
    PageSize { bytes: u32 },
    #[error("item 0: no bucket was begun")]
    NoBucket,
    #[error("{bucket}: it does not sort after {previous}, the bucket before it")]
    BucketOrder { bucket: String, previous: String },
    #[error("{bucket}: its name has {bytes} bytes, but only 1 to {max} are possible")]
    BucketName {
        bucket: String,
        bytes: usize,
        max: usize,
    },
    #[error("{bucket}, item {item}: its key does not sort after the key before it")]
    ItemOrder { bucket: String, item: u64 },
    #[error("{bucket}, item {item}: its key has {bytes} bytes, but only 1 to {max} are possible")]
    KeySize {
        bucket: String,
        item: u64,
        bytes: usize,
        max: usize,
    },
    #[error("{bucket}, item {item}: its value has {bytes} bytes, but at most {max} are possible")]
    ValueSize {
        bucket: String,
        item: u64,
        bytes: u64,
        max: u64,
    },
    #[error("page {page}: at most {max} pages are possible")]
    TooManyPages { page: u64, max: u64 },
    #[error("cannot write {bytes} bytes at offset {offset}: {cause}")]
    Write {
        offset: u64,
        bytes: usize,
        cause: io::Error,
    },
    /// Items were added, removed or resized between the two passes. What was written is not a database.
    #[error(
        "the contents changed while they were written: {pages} pages with the root at {root} were measured, \
         but they now have at least {pages_found} pages with the root at {root_found:?}"
    )]
    ContentsChanged {
        pages: u64,
        root: u64,
        pages_found: u64,
        root_found: Option<u64>,
    },
    #[error("nothing is written at offset {offset} after an earlier error")]
    Failed { offset: u64 },
}

/// What is wrong with a meta page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaFault {
    #[error("its magic number is {found:#x}")]
    Magic { found: u32 },
    #[error("its version is {found}, but only version 2 is known")]
    Version { found: u32 },
    #[error("its checksum is {stored:016x}, but its bytes have {computed:016x}")]
    Checksum { stored: u64, computed: u64 },
    #[error("its page size is {found}, but only powers of two from 1 KiB to 64 KiB are read")]
    PageSize { found: u32 },
    #[error("it is not where its page size of {found} bytes says")]
    Place { found: u32 },
    #[error("it counts {found} pages, but at most {max} are read")]
    TooManyPages { found: u64, max: u64 },
    #[error(
        "it counts {pages} pages of {page_bytes} bytes, but the image ends after {image_bytes} bytes: it is truncated"
    )]
    Truncated {
        pages: u64,
        page_bytes: u32,
        image_bytes: u64,
    },
    #[error("its root page is {found}, outside the pages 2 to {pages} (exclusive)")]
    Root { found: u64, pages: u64 },
    #[error("its freelist page is {found}, outside the pages 2 to {pages} (exclusive)")]
    Freelist { found: u64, pages: u64 },
    #[error("the header of its page has id {id} and flags {flags:#x}")]
    Header { id: u64, flags: u16 },
}

/// What is wrong with a page. An `index` is the number of an element in its page.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageFault {
    #[error("outside the pages 2 to {pages} (exclusive)")]
    OutOfRange { pages: u64 },
    #[error("its own id says {found}, not {wanted}")]
    WrongId { found: u64, wanted: u64 },
    #[error("its flags are {flags:#x}, but {wanted} was expected")]
    Type { flags: u16, wanted: &'static str },
    #[error("its {overflow} overflow pages go past the last of {pages} pages")]
    Overflow { overflow: u32, pages: u64 },
    #[error("an inline bucket's page has {overflow} overflow pages, but has no room for any")]
    InlineOverflow { overflow: u32 },
    #[error("it is used twice")]
    UsedTwice,
    #[error("it leads to a page more than {max} levels deep")]
    TooDeep { max: usize },
    #[error("it is a branch without elements")]
    EmptyBranch,
    #[error("its {count} elements do not fit its {bytes} bytes")]
    Count { count: u64, bytes: u64 },
    #[error("element {index} goes from byte {start} to {end}, but the page ends at {bytes}")]
    Outside {
        index: usize,
        start: u64,
        end: u64,
        bytes: u64,
    },
    #[error(
        "element {index} begins at byte {start}, but other elements take the bytes up to {taken}"
    )]
    Overlap {
        index: usize,
        start: u64,
        taken: u64,
    },
    #[error("element {index} has unknown flags {flags:#x}")]
    ElementFlags { index: usize, flags: u32 },
    #[error("element {index} has an empty key")]
    EmptyKey { index: usize },
    #[error("element {index} has a key of {bytes} bytes, but at most {max} are possible")]
    KeyTooLong {
        index: usize,
        bytes: u32,
        max: usize,
    },
    #[error("the key of element {index} does not sort after the keys before it")]
    KeyOrder { index: usize },
    #[error("the first key sorts before the key of the branch that leads to it")]
    BelowBranch,
    #[error(
        "element {index} is a bucket within a bucket, which etcd never has and which is not read"
    )]
    Nested { index: usize },
    #[error("element {index} of the root is an item, but only buckets are possible there")]
    NotABucket { index: usize },
    #[error("element {index} is a bucket of {bytes} bytes, but at least {min} are needed")]
    BucketHeader { index: usize, bytes: u64, min: u64 },
    #[error("element {index} has {bytes} bytes, but at most {max} are read")]
    ItemTooLarge { index: usize, bytes: u64, max: u64 },
    #[error(
        "entry {index} lists page {id} as free, which is outside the pages 2 to {pages} (exclusive)"
    )]
    FreeOutOfRange { index: u64, id: u64, pages: u64 },
    #[error("entry {index} lists page {id} as free, but it is in use or listed twice")]
    FreeInUse { index: u64, id: u64 },
}

impl PageFault {
    /// Whether only the caller's limit is exceeded.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::ItemTooLarge { .. })
    }
}

/// How messages show a bucket: whole names are up to 32 KiB of arbitrary bytes.
pub(super) fn bucket_shown(name: &[u8]) -> String {
    const SHOWN_MAX: usize = 64;
    match name.get(..SHOWN_MAX) {
        Some(start) if start.len() < name.len() => {
            format!(
                "bucket \"{}\"... ({} bytes)",
                start.escape_ascii(),
                name.len()
            )
        }
        _ => format!("bucket \"{}\"", name.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_are_escaped_and_shortened() {
        assert_eq!(bucket_shown(b"key"), "bucket \"key\"");
        assert_eq!(bucket_shown(b"\n\xff"), "bucket \"\\n\\xff\"");
        let long = bucket_shown(&[b'a'; 100]);
        assert_eq!(
            long,
            format!("bucket \"{}\"... (100 bytes)", "a".repeat(64))
        );
    }

    #[test]
    fn errors_say_where() {
        let error = BoltError::Page {
            part: bucket_shown(b"key"),
            page: 7,
            offset: 28_672,
            fault: PageFault::Nested { index: 3 },
        };
        assert_eq!(
            error.to_string(),
            "bucket \"key\", page 7 at offset 28672: element 3 is a bucket within a bucket, which etcd \
             never has and which is not read"
        );
    }
}
