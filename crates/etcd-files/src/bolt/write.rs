//! Writes a database file as a stream: one pass measures the contents, a second writes them.

use super::{
    HASH_BYTES, PAGE_BYTES, PAGES_MAX,
    error::BoltError,
    load::{Loaded, Loader},
    meta::{META_BYTES, Meta, NO_FREELIST, is_page_size},
    pager::{Length, Sink},
};
use sha2::{Digest, Sha256};
use std::io::Write;

/// The transactions of the two metas. bbolt writes its next one, 3, to page 1, and so overwrites the older of them.
const TXIDS: [u64; 2] = [2, 1];

/// The first pass: takes the buckets and items that will be written, without the values, and tells how long the file will be.
#[derive(Debug)]
pub struct Measure {
    loader: Loader<Nowhere>,
    page_bytes: u32,
}

impl Measure {
    /// Measures a file of the usual page size, [`PAGE_BYTES`].
    pub fn new() -> Self {
        Self {
            loader: Loader::new(Nowhere, PAGE_BYTES),
            page_bytes: PAGE_BYTES,
        }
    }

    /// Measures a file of another page size: a power of two from 1 KiB to 64 KiB.
    pub fn with_page_bytes(page_bytes: u32) -> Result<Self, BoltError> {
        if !is_page_size(page_bytes) {
            return Err(BoltError::PageSize { bytes: page_bytes });
        }
        Ok(Self {
            loader: Loader::new(Nowhere, page_bytes),
            page_bytes,
        })
    }

    /// Begins a bucket. Its name must sort after that of the bucket before.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.loader.bucket(name)
    }

    /// Adds an item to the bucket that was begun last. Its key must sort after that of the item before.
    pub fn item(&mut self, key: &[u8], value_bytes: u64) -> Result<(), BoltError> {
        self.loader.item(key, &Length(value_bytes))
    }

    pub fn finish(mut self) -> Result<Layout, BoltError> {
        let loaded = self.loader.finish()?;
        Ok(Layout {
            page_bytes: self.page_bytes,
            loaded,
        })
    }
}

impl Default for Measure {
    fn default() -> Self {
        Self::new()
    }
}

/// The size of a file, as measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    page_bytes: u32,
    loaded: Loaded,
}

impl Layout {
    /// The exact length of the file, with the hash at its end.
    pub fn bytes(&self) -> u64 {
        self.image_bytes() + HASH_BYTES as u64
    }

    pub fn pages(&self) -> u64 {
        self.loaded.pages
    }

    pub fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    fn image_bytes(&self) -> u64 {
        self.loaded.pages * u64::from(self.page_bytes)
    }
}

/// The second pass: writes the file that was measured, with its SHA-256 at the end, as in a snapshot of etcd.
///
/// The output receives whole pages, each in one call, and values longer than a page in calls of their own. In memory are a page
/// for each level of two trees, and keys; a page of branches with long keys can have up to 100 KiB. After an error nothing more
/// is written, and the output is no database.
#[derive(Debug)]
pub struct Writer<W> {
    loader: Loader<Hashed<W>>,
    failed: bool,
}

impl<W: Write> Writer<W> {
    /// Writes the first two pages.
    pub fn new(out: W, layout: Layout) -> Result<Self, BoltError> {
        let mut hashed = Hashed {
            out,
            hash: Sha256::new(),
            offset: 0,
            layout,
        };
        let mut page = vec![0; layout.page_bytes as usize];
        for (id, txid) in (0..).zip(TXIDS) {
            let meta = Meta {
                page_bytes: layout.page_bytes,
                root: layout.loaded.root,
                freelist: NO_FREELIST,
                pages: layout.loaded.pages,
                txid,
            };
            page[..META_BYTES].copy_from_slice(&meta.encode(id));
            hashed.write(&page)?;
        }
        Ok(Self {
            loader: Loader::new(hashed, layout.page_bytes),
            failed: false,
        })
    }

    /// Begins the same bucket as in the first pass.
    pub fn bucket(&mut self, name: &[u8]) -> Result<(), BoltError> {
        self.step(|loader| loader.bucket(name))
    }

    /// Adds the same item as in the first pass. The value is what the slices are together.
    pub fn item(&mut self, key: &[u8], value: &[&[u8]]) -> Result<(), BoltError> {
        self.step(|loader| loader.item(key, &value))
    }

    /// Writes the last pages and the hash, and flushes the output. If the file is not the one that was measured, this is
    /// [`BoltError::ContentsChanged`], and the hash is not written: no one takes the file for a snapshot.
    pub fn finish(mut self) -> Result<W, BoltError> {
        let loaded = self.step(Loader::finish)?;
        let mut sink = self.loader.pager.sink;
        if loaded != sink.layout.loaded {
            return Err(sink.contents_changed(loaded.pages, Some(loaded.root)));
        }
        assert_eq!(
            sink.offset,
            sink.layout.image_bytes(),
            "every page is written to its end"
        );
        let hash = sink.hash.clone().finalize();
        sink.write(&hash)?;
        let flushed = sink.out.flush();
        flushed.map_err(|cause| BoltError::Write {
            offset: sink.offset,
            bytes: 0,
            cause,
        })?;
        Ok(sink.out)
    }

    fn step<T>(
        &mut self,
        step: impl FnOnce(&mut Loader<Hashed<W>>) -> Result<T, BoltError>,
    ) -> Result<T, BoltError> {
        let offset = self.loader.pager.sink.offset;
        if self.failed {
            return Err(BoltError::Failed { offset });
        }
        let done = step(&mut self.loader);
        self.failed = done.is_err();
        done
    }
}

/// Where the pages of the first pass go.
#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    const WRITES: bool = false;

    fn allow(&mut self, pages: u64) -> Result<(), BoltError> {
        if pages > PAGES_MAX {
            return Err(BoltError::TooManyPages {
                page: pages - 1,
                max: PAGES_MAX,
            });
        }
        Ok(())
    }

    fn write(&mut self, _: &[u8]) -> Result<(), BoltError> {
        Ok(())
    }
}

/// The output, and the hash of what it received.
#[derive(Debug)]
struct Hashed<W> {
    out: W,
    hash: Sha256,
    offset: u64,
    layout: Layout,
}

impl<W> Hashed<W> {
    fn contents_changed(&self, pages_found: u64, root_found: Option<u64>) -> BoltError {
        BoltError::ContentsChanged {
            pages: self.layout.loaded.pages,
            root: self.layout.loaded.root,
            pages_found,
            root_found,
        }
    }
}

impl<W: Write> Sink for Hashed<W> {
    const WRITES: bool = true;

    fn allow(&mut self, pages: u64) -> Result<(), BoltError> {
        if pages > self.layout.loaded.pages {
            return Err(self.contents_changed(pages, None));
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), BoltError> {
        self.hash.update(bytes);
        let written = self.out.write_all(bytes);
        written.map_err(|cause| BoltError::Write {
            offset: self.offset,
            bytes: bytes.len(),
            cause,
        })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_metas_pages_and_a_hash() {
        let mut measure = Measure::new();
        measure.bucket(b"b").expect("a bucket");
        measure.item(b"key", 5).expect("an item");
        let layout = measure.finish().expect("a layout");
        assert_eq!((layout.pages(), layout.bytes()), (4, 4 * 4_096 + 32));

        let mut writer = Writer::new(Vec::new(), layout).expect("a vector takes all");
        writer.bucket(b"b").expect("the bucket");
        writer
            .item(b"key", &[b"va", b"", b"lue"])
            .expect("the item");
        let file = writer.finish().expect("as measured");
        let (image, hash) = file.split_at(4 * 4_096);
        assert_eq!(hash, Sha256::digest(image).as_slice());
        for (page, txid) in (0..).zip(TXIDS) {
            let meta = Meta {
                page_bytes: 4_096,
                root: 3,
                freelist: NO_FREELIST,
                pages: 4,
                txid,
            };
            let start = page * 4_096;
            assert_eq!(image[start..start + META_BYTES], meta.encode(page as u64));
            // bbolt writes transaction `txid + 2` where it wrote `txid`.
            assert_eq!(txid % 2, page as u64);
        }
        assert!(
            image[2 * 4_096..]
                .windows(8)
                .any(|bytes| bytes == b"keyvalue")
        );
    }
}
