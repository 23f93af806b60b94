//! A database file that is read: its buckets, and their items in key order.

use super::{
    HASH_BYTES,
    error::{BoltError, PageFault, bucket_shown},
    freelist::Freelist,
    header::{HEADER_BYTES, array},
    meta::{self, Placed},
    page::{Element, Root},
    source::{PageFile, Source},
    visited::Visited,
    walk::{Holds, Walk},
};
use sha2::{Digest, Sha256};
use std::{cmp::Ordering, fmt::Write, iter::FusedIterator};

/// The key and value bytes of one item that are read unless the caller allows more: etcd accepts requests of 1.5 MiB by default.
const ITEM_BYTES_MAX: u64 = 64 << 20;

/// How much of the file is in memory while its hash is computed.
const HASHED_BYTES: usize = 256 << 10;

/// A root page and a counter.
const BUCKET_BYTES: usize = 16;

/// Key and value.
pub type Item = (Vec<u8>, Vec<u8>);

/// A database file, or a snapshot. It is never changed.
///
/// Its beginning is verified when it is opened, its pages when they are read. Reading is safe whatever the bytes are, even
/// while a bbolt writes to the file; only in the latter case the result may be a mixture.
#[derive(Debug)]
pub struct Image<S> {
    file: PageFile<S>,
    /// Without the hash.
    bytes: u64,
    has_hash: bool,
    meta: Placed,
    freelist: Option<Freelist>,
    item_bytes_max: u64,
}

impl<S: Source> Image<S> {
    /// Opens a file. Its hash, if it has one, is left to [`Image::verify_hash`], which has to read all of it.
    pub fn open(source: S) -> Result<Self, BoltError> {
        let file_bytes = source.length().map_err(BoltError::Length)?;
        // etcd: as `etcdutl snapshot restore` recognises it; pages are multiples of 512 bytes.
        let has_hash = file_bytes % 512 == HASH_BYTES as u64;
        let bytes = if has_hash {
            file_bytes - HASH_BYTES as u64
        } else {
            file_bytes
        };
        let meta = meta::find(&source, bytes)?;
        let file = PageFile {
            source,
            page_bytes: meta.meta.page_bytes.into(),
            pages: meta.meta.pages,
        };
        let freelist = Freelist::find(&file, meta.meta.freelist)?;
        Ok(Self {
            file,
            bytes,
            has_hash,
            meta,
            freelist,
            item_bytes_max: ITEM_BYTES_MAX,
        })
    }

    /// Allows items of up to this many bytes of key and value, which are held in memory; the default is 64 MiB.
    #[must_use]
    pub fn with_item_bytes_max(mut self, bytes: u64) -> Self {
        self.item_bytes_max = bytes;
        self
    }

    pub fn page_bytes(&self) -> u64 {
        self.file.page_bytes
    }

    /// How many pages the database has. A file may be longer: bbolt extends it in large steps.
    pub fn pages(&self) -> u64 {
        self.file.pages
    }

    /// The last transaction that is in this file.
    pub fn txid(&self) -> u64 {
        self.meta.meta.txid
    }

    /// Whether a SHA-256 follows the image, as in the snapshots that etcd serves. The file in a data directory has none.
    pub fn has_hash(&self) -> bool {
        self.has_hash
    }

    /// Compares the hash at the end with that of all bytes before it.
    pub fn verify_hash(&self) -> Result<(), BoltError> {
        if !self.has_hash {
            return Err(BoltError::HashMissing { bytes: self.bytes });
        }
        let mut hash = Sha256::new();
        let mut buffer = vec![0; HASHED_BYTES];
        let mut offset = 0;
        while offset < self.bytes {
            let left = usize::try_from(self.bytes - offset).unwrap_or(usize::MAX);
            let part = &mut buffer[..left.min(HASHED_BYTES)];
            self.file.read(offset, part)?;
            hash.update(&*part);
            offset += part.len() as u64;
        }
        let mut stored = [0; HASH_BYTES];
        self.file.read(self.bytes, &mut stored)?;
        let computed: [u8; HASH_BYTES] = hash.finalize().into();
        if stored != computed {
            return Err(BoltError::HashMismatch {
                offset: self.bytes,
                stored: hex(&stored),
                computed: hex(&computed),
            });
        }
        Ok(())
    }

    /// The bucket of this name.
    pub fn bucket(&self, name: &[u8]) -> Result<Option<Bucket<'_, S>>, BoltError> {
        for bucket in self.buckets() {
            let bucket = bucket?;
            match bucket.name().cmp(name) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(bucket)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// All buckets, in the order of their names.
    pub fn buckets(&self) -> Buckets<'_, S> {
        Buckets {
            image: self,
            walk: self.root_walk(),
            visited: self.visited(),
            ended: false,
        }
    }

    pub(super) fn root_walk(&self) -> Walk<'_, S> {
        let root = Root::Page(self.meta.meta.root);
        Walk::new(&self.file, "root bucket".to_owned(), root, Holds::Buckets)
    }

    /// For [`Bucket::items_beside`].
    pub(crate) fn visited(&self) -> Visited {
        Visited::new(self.pages())
    }

    pub(super) fn file(&self) -> &PageFile<S> {
        &self.file
    }

    pub(super) fn meta(&self) -> &Placed {
        &self.meta
    }

    pub(super) fn freelist(&self) -> Option<&Freelist> {
        self.freelist.as_ref()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            text.clear();
        }
        text
    })
}

/// A bucket of the root.
#[derive(Debug)]
pub struct Bucket<'a, S> {
    image: &'a Image<S>,
    name: Vec<u8>,
    root: Root,
}

impl<'a, S: Source> Bucket<'a, S> {
    /// Reads the bucket of the element that the walk through the root returned last.
    pub(super) fn read(
        image: &'a Image<S>,
        walk: &Walk<'a, S>,
        element: &Element,
    ) -> Result<Self, BoltError> {
        let (index, bytes) = (element.index, element.value_bytes);
        let too_short = |min: usize| {
            let min = min as u64;
            walk.error(PageFault::BucketHeader { index, bytes, min })
        };
        if bytes < BUCKET_BYTES as u64 {
            return Err(too_short(BUCKET_BYTES));
        }
        let header = walk.value(element, BUCKET_BYTES)?;
        let mut root = Root::Page(u64::from_le_bytes(array(&header, 0)));
        if matches!(root, Root::Page(0)) {
            if bytes < (BUCKET_BYTES + HEADER_BYTES) as u64 {
                return Err(too_short(BUCKET_BYTES + HEADER_BYTES));
            }
            let (holder, offset) = walk.position();
            root = Root::Inline {
                holder,
                offset: offset + element.value_start() + BUCKET_BYTES as u64,
                bytes: bytes - BUCKET_BYTES as u64,
            };
        }
        Ok(Self {
            image,
            name: walk.key().to_vec(),
            root,
        })
    }

    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// All items in the order of their keys. In memory are one of them, a page for each level of the bucket's tree, and a bit for
    /// each page of the file.
    pub fn items(&self) -> Items<'a, S> {
        self.items_beside(self.image.visited())
    }

    /// All items, as [`Bucket::items`], of a bucket that must not lead to pages that were visited before. For who reads many
    /// buckets, which all could name one tree: so each page is read once, not once for each bucket.
    pub(crate) fn items_beside(&self, visited: Visited) -> Items<'a, S> {
        Items {
            walk: self.walk(),
            visited,
            item_bytes_max: self.image.item_bytes_max,
            ended: false,
        }
    }

    pub(super) fn walk(&self) -> Walk<'a, S> {
        Walk::new(
            &self.image.file,
            bucket_shown(&self.name),
            self.root,
            Holds::Items,
        )
    }
}

/// The buckets of a file. Ends after an error.
#[derive(Debug)]
pub struct Buckets<'a, S> {
    image: &'a Image<S>,
    walk: Walk<'a, S>,
    visited: Visited,
    ended: bool,
}

impl<'a, S: Source> Buckets<'a, S> {
    fn read(&mut self) -> Result<Option<Bucket<'a, S>>, BoltError> {
        match self.walk.next(&mut self.visited)? {
            Some(element) => Bucket::read(self.image, &self.walk, &element).map(Some),
            None => Ok(None),
        }
    }
}

impl<'a, S: Source> Iterator for Buckets<'a, S> {
    type Item = Result<Bucket<'a, S>, BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

impl<S: Source> FusedIterator for Buckets<'_, S> {}

/// The items of a bucket. Ends after an error.
#[derive(Debug)]
pub struct Items<'a, S> {
    walk: Walk<'a, S>,
    visited: Visited,
    item_bytes_max: u64,
    ended: bool,
}

impl<S: Source> Items<'_, S> {
    /// For the next bucket's [`Bucket::items_beside`].
    pub(crate) fn into_visited(self) -> Visited {
        self.visited
    }

    fn read(&mut self) -> Result<Option<Item>, BoltError> {
        let Some(element) = self.walk.next(&mut self.visited)? else {
            return Ok(None);
        };
        let bytes = element.end() - element.start;
        if bytes > self.item_bytes_max {
            return Err(self.walk.error(PageFault::ItemTooLarge {
                index: element.index,
                bytes,
                max: self.item_bytes_max,
            }));
        }
        let value_bytes = usize::try_from(element.value_bytes).unwrap_or(usize::MAX);
        let value = self.walk.value(&element, value_bytes)?;
        Ok(Some((self.walk.key().to_vec(), value)))
    }
}

impl<S: Source> Iterator for Items<'_, S> {
    type Item = Result<Item, BoltError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read();
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

impl<S: Source> FusedIterator for Items<'_, S> {}
