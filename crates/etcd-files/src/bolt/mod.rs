//! The database file of bbolt, which etcd keeps its data in and which its snapshots are images of.
//!
//! [`Image`] reads one: buckets by name, items in key order, and [`Image::check`] for the whole file. [`Measure`] and
//! [`Writer`] write one as a stream, in two passes over the same contents, since the first bytes of the file say how long it
//! is. Left out: updates in place, buckets within buckets (etcd has none), and what keys and values mean.
//!
//! # The file
//!
//! All integers are little endian. The file is a sequence of pages of one size, 4 KiB where etcd runs on most machines. A page
//! that does not suffice for its content is followed by `overflow` more, which have no header; together they are a *run*.
//!
//! | page | content after its header (16 bytes: id u64, flags u16, count u16, overflow u32) |
//! |---|---|
//! | 0 and 1, flags 4 | a meta each: magic, version, page size, root page, freelist page, pages, transaction, checksum |
//! | leaf, flags 2 | `count` elements of 16 bytes (flags, position, key bytes, value bytes), then the keys and values |
//! | branch, flags 1 | `count` elements of 16 bytes (position, key bytes, page u64), then the keys |
//! | freelist, flags 16 | the ids of the pages that nothing uses; a file may do without |
//!
//! A position counts from its element. The meta that is valid and has the higher transaction holds. The root page is that of a
//! tree whose items are buckets: flags 1, and as value the bucket's own root page and a counter (16 bytes). A small bucket is
//! *inline*: its root page is 0, and a leaf page follows within the value.
//!
//! A snapshot of etcd ends with 32 bytes more, the SHA-256 of the image. etcd recognises it by the length of the file, and so
//! does [`Image`].
//!
//! # Example
//!
//! ```
//! # use quorate_etcd_files::bolt::{BoltError, Image, Measure, Writer};
//! # fn main() -> Result<(), BoltError> {
//! let mut measure = Measure::new();
//! measure.bucket(b"meta")?;
//! measure.item(b"term", 8)?;
//! let layout = measure.finish()?;
//!
//! let mut writer = Writer::new(Vec::new(), layout)?;
//! writer.bucket(b"meta")?;
//! writer.item(b"term", &[&7_u64.to_be_bytes()])?;
//! let file = writer.finish()?;
//! assert_eq!(file.len() as u64, layout.bytes());
//!
//! let image = Image::open(file)?;
//! image.verify_hash()?;
//! let meta = image.bucket(b"meta")?.expect("it was just written");
//! for item in meta.items() {
//!     let (key, value) = item?;
//!     assert_eq!((key.as_slice(), value.len()), (b"term".as_slice(), 8));
//! }
//! # Ok(())
//! # }
//! ```

mod check;
mod error;
mod freelist;
mod fuzz;
mod header;
mod image;
mod load;
mod meta;
mod page;
mod pager;
mod source;
mod tree;
mod visited;
mod walk;
mod write;

pub use check::Checked;
pub use error::{BoltError, MetaFault, PageFault};
#[doc(hidden)]
pub use fuzz::fuzz;
pub use image::{Bucket, Buckets, Image, Item, Items};
pub use source::Source;
pub use write::{Layout, Measure, Writer};

/// The page size of the files we write: what bbolt chooses on machines with pages of 4 KiB.
pub const PAGE_BYTES: u32 = 4_096;

/// The bytes of the hash at the end of a snapshot.
const HASH_BYTES: usize = 32;

/// The longest key that bbolt accepts.
pub const KEY_BYTES_MAX: usize = 32_768;

/// The longest value that bbolt accepts.
pub const VALUE_BYTES_MAX: u64 = (1 << 31) - 2;

/// The most pages a file may have here: 4 TiB of 4 KiB each, some hundred times what etcd can be configured to hold. It bounds
/// the bit for each page that a reader keeps to 128 MiB.
pub const PAGES_MAX: u64 = 1 << 30;
