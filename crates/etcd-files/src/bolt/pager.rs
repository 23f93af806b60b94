//! Numbers the pages of a file that is written, and emits them.

use super::{
    error::BoltError,
    header::{Header, as_index},
};

/// What becomes of the pages.
pub(super) trait Sink {
    /// Whether the bytes of pages matter. If not, [`Sink::write`] is not called.
    const WRITES: bool;

    /// Whether the file may have this many pages.
    fn allow(&mut self, pages: u64) -> Result<(), BoltError>;

    fn write(&mut self, bytes: &[u8]) -> Result<(), BoltError>;
}

/// A value, or only its length where that suffices.
pub(super) trait Value {
    fn bytes(&self) -> u64;

    /// The value, which is empty if only its length is known.
    fn slices(&self) -> &[&[u8]];
}

impl Value for &[&[u8]] {
    fn bytes(&self) -> u64 {
        self.iter().map(|slice| slice.len() as u64).sum()
    }

    fn slices(&self) -> &[&[u8]] {
        self
    }
}

/// The length of a value that is not there.
pub(super) struct Length(pub(super) u64);

impl Value for Length {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn slices(&self) -> &[&[u8]] {
        &[]
    }
}

/// Numbers the pages and emits them.
#[derive(Debug)]
pub(super) struct Pager<S> {
    pub(super) sink: S,
    pub(super) page_bytes: u64,
    /// The number of the next page.
    next: u64,
    /// The page that is being assembled.
    pub(super) page: Vec<u8>,
}

impl<S: Sink> Pager<S> {
    /// The first page is 2, after the meta pages.
    pub(super) fn new(sink: S, page_bytes: u64) -> Self {
        Self {
            sink,
            page_bytes,
            next: 2,
            page: Vec::new(),
        }
    }

    /// How many pages there are so far.
    pub(super) fn pages(&self) -> u64 {
        self.next
    }

    /// Begins a page whose content has `bytes` bytes with the header. Returns its number, and the bytes that are left at the
    /// end of its last overflow page.
    pub(super) fn begin(
        &mut self,
        flags: u16,
        count: usize,
        bytes: u64,
    ) -> Result<(u64, usize), BoltError> {
        let pages = bytes.div_ceil(self.page_bytes);
        self.sink.allow(self.next + pages)?;
        let id = self.next;
        self.next += pages;
        let header = Header {
            id,
            flags,
            count: u16::try_from(count).unwrap_or(u16::MAX),
            overflow: u32::try_from(pages - 1).unwrap_or(u32::MAX),
        };
        assert!(
            usize::from(header.count) == count && u64::from(header.overflow) == pages - 1,
            "pages of at most 64 KiB have fewer than 65,536 elements, and no item is longer than 2 GiB"
        );
        self.page.clear();
        self.page.extend_from_slice(&header.encode());
        Ok((id, as_index(pages * self.page_bytes - bytes)))
    }

    pub(super) fn push_leaf_element(&mut self, element: LeafElement, position: usize) {
        self.page.extend_from_slice(&element.flags.to_le_bytes());
        self.push_u32(position);
        self.push_u32(element.key_bytes);
        self.push_u32(as_index(element.value_bytes));
    }

    pub(super) fn push_u32(&mut self, number: usize) {
        assert!(
            u32::try_from(number).is_ok(),
            "{number} is no position or length: pages have at most 64 KiB, values 2 GiB"
        );
        self.page.extend_from_slice(&number.to_le_bytes()[..4]);
    }

    /// Emits what was assembled.
    pub(super) fn emit(&mut self) -> Result<(), BoltError> {
        if S::WRITES {
            self.sink.write(&self.page)?;
        }
        self.page.clear();
        Ok(())
    }

    /// Emits what was assembled, as the end of a page.
    pub(super) fn end(&mut self, padding: usize) -> Result<(), BoltError> {
        self.page.resize(self.page.len() + padding, 0);
        self.emit()
    }
}

/// An element of a leaf, apart from its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct LeafElement {
    pub(super) flags: u32,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: u64,
}
