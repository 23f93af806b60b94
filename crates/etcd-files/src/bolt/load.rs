//! Builds a file from buckets and items that arrive in order.
//!
//! A page is given its number when it is full, and is emitted at once: leaves as they fill, and between them the branches that
//! lead to them, so that the numbers ascend and a file can be a stream. In memory is one open page for each level of two trees,
//! that of the bucket and that of the root. [`Measure`](super::Measure) and [`Writer`](super::Writer) both run this code, so
//! they cannot disagree about where a page ends.

use super::{
    KEY_BYTES_MAX, VALUE_BYTES_MAX,
    error::{BoltError, bucket_shown},
    header::{BUCKET, Header, LEAF},
    pager::{Pager, Sink, Value},
    tree::Tree,
};
use std::mem;

/// The bucket whose items arrive.
#[derive(Debug)]
struct OpenBucket {
    name: Vec<u8>,
    tree: Tree,
    items: u64,
    last_key: Vec<u8>,
}

/// Builds a file from its buckets and their items, both in ascending order.
#[derive(Debug)]
pub(super) struct Loader<S> {
    pub(super) pager: Pager<S>,
    root: Tree,
    bucket: Option<OpenBucket>,
}

/// The root page and the number of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) root: u64,
    pub(super) pages: u64,
}

impl<S: Sink> Loader<S> {
    /// The two meta pages are the caller's.
    pub(super) fn new(sink: S, page_bytes: u32) -> Self {
        Self {
            pager: Pager::new(sink, page_bytes.into()),
            root: Tree::default(),
            bucket: None,
        }
    }

    /// Ends a bucket and begins the next.
    pub(super) fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        let (bytes, max) = (name.len(), KEY_BYTES_MAX);
        if !(1..=max).contains(&bytes) {
            let bucket = bucket_shown(name);
            return Err(BoltError::BucketName { bucket, bytes, max });
        }
        if let Some(previous) = &self.bucket
            && previous.name.as_slice() >= name
        {
            return Err(BoltError::BucketOrder {
                bucket: bucket_shown(name),
                previous: bucket_shown(&previous.name),
            });
        }
        self.end_bucket()?;
        self.bucket = Some(OpenBucket {
            name: name.to_vec(),
            tree: Tree::default(),
            items: 0,
            last_key: Vec::new(),
        });
        Ok(())
    }

    /// Adds an item to the bucket that was begun last.
    pub(super) fn item<V: Value>(&mut self, key: &[u8], value: &V) -> Result<(), BoltError> {
        let bucket = self.bucket.as_mut().ok_or(BoltError::NoBucket)?;
        bucket.verify(key, value)?;
        bucket.tree.push(&mut self.pager, 0, key, value)?;
        bucket.items += 1;
        bucket.last_key.clear();
        bucket.last_key.extend_from_slice(key);
        Ok(())
    }

    /// Ends the last bucket and emits all pages that are left.
    pub(super) fn finish(&mut self) -> Result<Loaded, BoltError> {
        self.end_bucket()?;
        let root = match mem::take(&mut self.root).finish(&mut self.pager)? {
            Some(root) => root,
            // A file without buckets has an empty leaf.
            None => Tree::emit_empty(&mut self.pager)?,
        };
        let pages = self.pager.pages();
        Ok(Loaded { root, pages })
    }

    /// Adds the bucket to the root: its root page and a counter that etcd does not use. An empty bucket is inline, as in files of
    /// bbolt: a page 0 that is a leaf without elements.
    fn end_bucket(&mut self) -> Result<(), BoltError> {
        let Some(bucket) = self.bucket.take() else {
            return Ok(());
        };
        let root = bucket.tree.finish(&mut self.pager)?;
        let header = [root.unwrap_or(0).to_le_bytes(), [0; 8]].concat();
        let inline = Header {
            id: 0,
            flags: LEAF,
            count: 0,
            overflow: 0,
        };
        let inline = inline.encode();
        let value: &[&[u8]] = match root {
            Some(_) => &[&header],
            None => &[&header, &inline],
        };
        let name = &bucket.name;
        self.root.push(&mut self.pager, BUCKET, name, &value)
    }
}

impl OpenBucket {
    fn verify(&self, key: &[u8], value: &impl Value) -> Result<(), BoltError> {
        let (item, bytes) = (self.items, key.len());
        let bucket = || bucket_shown(&self.name);
        if !(1..=KEY_BYTES_MAX).contains(&bytes) {
            return Err(BoltError::KeySize {
                bucket: bucket(),
                item,
                bytes,
                max: KEY_BYTES_MAX,
            });
        }
        if value.bytes() > VALUE_BYTES_MAX {
            return Err(BoltError::ValueSize {
                bucket: bucket(),
                item,
                bytes: value.bytes(),
                max: VALUE_BYTES_MAX,
            });
        }
        if key <= self.last_key.as_slice() {
            let bucket = bucket();
            return Err(BoltError::ItemOrder { bucket, item });
        }
        Ok(())
    }
}
