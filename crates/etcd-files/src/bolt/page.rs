//! Pages that are read: their header, and the elements of leaves and branches, each verified before it is used.

use super::{
    KEY_BYTES_MAX,
    error::{BoltError, PageFault},
    header::{BRANCH, BUCKET, ELEMENT_BYTES, HEADER_BYTES, Header, LEAF, array, as_index},
    source::{PageFile, Source},
    visited::Visited,
};

/// Where a tree begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Root {
    Page(u64),
    /// A leaf within the value of a root bucket's element, on page `holder`.
    Inline {
        holder: u64,
        offset: u64,
        bytes: u64,
    },
}

/// What errors about a page say.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) part: &'a str,
    pub(super) page: u64,
    pub(super) offset: u64,
}

impl Place<'_> {
    pub(super) fn error(&self, fault: PageFault) -> BoltError {
        BoltError::Page {
            part: self.part.to_owned(),
            page: self.page,
            offset: self.offset,
            fault,
        }
    }
}

/// The page of this number, once it is known to be in the file and to be used here only.
pub(super) fn header_at<S: Source>(
    file: &PageFile<S>,
    visited: &mut Visited,
    place: &Place<'_>,
) -> Result<(Header, Vec<u8>), BoltError> {
    let (id, pages) = (place.page, file.pages);
    if !(2..pages).contains(&id) {
        return Err(place.error(PageFault::OutOfRange { pages }));
    }
    let mut first = vec![0; as_index(file.page_bytes)];
    file.read(place.offset, &mut first)?;
    let header = Header::parse(&first);
    let (found, overflow) = (header.id, header.overflow);
    if found != id {
        return Err(place.error(PageFault::WrongId { found, wanted: id }));
    }
    if u64::from(overflow) >= pages - id {
        return Err(place.error(PageFault::Overflow { overflow, pages }));
    }
    if !visited.mark(id, u64::from(overflow) + 1) {
        return Err(place.error(PageFault::UsedTwice));
    }
    Ok((header, first))
}

/// A leaf or branch: a run of pages, or a part of one in the case of an inline bucket.
///
/// Only its beginning is in memory: its first page, or more if its elements take more. So a run of gigabytes costs at most the
/// mebibyte of 65,535 elements, until an item of it is read.
#[derive(Debug)]
pub(super) struct Page {
    /// Errors name this page.
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) is_branch: bool,
    pub(super) count: usize,
    run_bytes: u64,
    head: Vec<u8>,
}

impl Page {
    pub(super) fn read<S: Source>(
        file: &PageFile<S>,
        visited: &mut Visited,
        part: &str,
        root: Root,
    ) -> Result<Self, BoltError> {
        match root {
            Root::Page(id) => Self::read_run(file, visited, part, id),
            Root::Inline {
                holder,
                offset,
                bytes,
            } => {
                let place = Place {
                    part,
                    page: holder,
                    offset,
                };
                Self::read_inline(file, &place, bytes)
            }
        }
    }

    fn read_run<S: Source>(
        file: &PageFile<S>,
        visited: &mut Visited,
        part: &str,
        id: u64,
    ) -> Result<Self, BoltError> {
        let place = Place {
            part,
            page: id,
            // A page that is not in the file is refused before its offset is used.
            offset: id.saturating_mul(file.page_bytes),
        };
        let (header, head) = header_at(file, visited, &place)?;
        let flags = header.flags;
        if flags != BRANCH && flags != LEAF {
            let wanted = "a leaf (0x2) or a branch (0x1)";
            return Err(place.error(PageFault::Type { flags, wanted }));
        }
        let run_bytes = (u64::from(header.overflow) + 1) * file.page_bytes;
        Self::with_elements(file, &place, header, run_bytes, head)
    }

    /// The caller has verified that `bytes` suffice for a header.
    fn read_inline<S: Source>(
        file: &PageFile<S>,
        place: &Place<'_>,
        bytes: u64,
    ) -> Result<Self, BoltError> {
        let mut head = vec![0; as_index(bytes.min(file.page_bytes))];
        file.read(place.offset, &mut head)?;
        let header = Header::parse(&head);
        let (found, flags, overflow) = (header.id, header.flags, header.overflow);
        if found != 0 {
            return Err(place.error(PageFault::WrongId { found, wanted: 0 }));
        }
        if flags != LEAF {
            let wanted = "a leaf (0x2)";
            return Err(place.error(PageFault::Type { flags, wanted }));
        }
        if overflow != 0 {
            return Err(place.error(PageFault::InlineOverflow { overflow }));
        }
        Self::with_elements(file, place, header, bytes, head)
    }

    fn with_elements<S: Source>(
        file: &PageFile<S>,
        place: &Place<'_>,
        header: Header,
        run_bytes: u64,
        mut head: Vec<u8>,
    ) -> Result<Self, BoltError> {
        let count = usize::from(header.count);
        let table_end = HEADER_BYTES + count * ELEMENT_BYTES;
        if table_end as u64 > run_bytes {
            return Err(place.error(PageFault::Count {
                count: count as u64,
                bytes: run_bytes,
            }));
        }
        let is_branch = header.flags == BRANCH;
        if is_branch && count == 0 {
            return Err(place.error(PageFault::EmptyBranch));
        }
        let present = head.len();
        if present < table_end {
            head.resize(table_end, 0);
            file.read(place.offset + present as u64, &mut head[present..])?;
        }
        Ok(Self {
            number: place.page,
            offset: place.offset,
            is_branch,
            count,
            run_bytes,
            head,
        })
    }

    pub(super) fn place<'a>(&self, part: &'a str) -> Place<'a> {
        Place {
            part,
            page: self.number,
            offset: self.offset,
        }
    }

    /// The first byte after the elements, where their keys and values begin.
    pub(super) fn table_end(&self) -> u64 {
        (HEADER_BYTES + self.count * ELEMENT_BYTES) as u64
    }

    /// Element `index` of `count`. Its key and value have to begin at or after `taken`, where those of the elements before it
    /// end: if they could overlap, a file of some mebibytes could hold terabytes of items.
    pub(super) fn element(&self, index: usize, taken: u64) -> Result<Element, PageFault> {
        let at = HEADER_BYTES + index * ELEMENT_BYTES;
        let u32_at = |field| u32::from_le_bytes(array(&self.head, at + field));
        let (flags, position, key_bytes, value_bytes, child) = if self.is_branch {
            let child = u64::from_le_bytes(array(&self.head, at + 8));
            (0, u32_at(0), u32_at(4), 0, child)
        } else {
            (u32_at(0), u32_at(4), u32_at(8), u32_at(12), 0)
        };
        let start = at as u64 + u64::from(position);
        let end = start + u64::from(key_bytes) + u64::from(value_bytes);
        if start < taken {
            return Err(PageFault::Overlap {
                index,
                start,
                taken,
            });
        }
        if end > self.run_bytes {
            return Err(PageFault::Outside {
                index,
                start,
                end,
                bytes: self.run_bytes,
            });
        }
        if flags & !BUCKET != 0 {
            return Err(PageFault::ElementFlags { index, flags });
        }
        let key_bytes = key_size(index, key_bytes)?;
        Ok(Element {
            index,
            is_bucket: flags == BUCKET,
            start,
            key_bytes,
            value_bytes: value_bytes.into(),
            child,
        })
    }

    /// Appends the `count` bytes at `start` of this page. The caller has them from an element.
    pub(super) fn copy<S: Source>(
        &self,
        file: &PageFile<S>,
        start: u64,
        count: usize,
        to: &mut Vec<u8>,
    ) -> Result<(), BoltError> {
        let first = as_index(start);
        if let Some(bytes) = self.head.get(first..first.saturating_add(count)) {
            to.extend_from_slice(bytes);
            return Ok(());
        }
        let present = to.len();
        to.resize(present + count, 0);
        file.read(self.offset + start, &mut to[present..])
    }
}

fn key_size(index: usize, bytes: u32) -> Result<usize, PageFault> {
    let max = KEY_BYTES_MAX;
    match usize::try_from(bytes) {
        Ok(0) => Err(PageFault::EmptyKey { index }),
        Ok(size) if size <= max => Ok(size),
        _ => Err(PageFault::KeyTooLong { index, bytes, max }),
    }
}

/// An element whose key and value lie within its page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element {
    pub(super) index: usize,
    pub(super) is_bucket: bool,
    /// Where its key begins in the page; the value follows.
    pub(super) start: u64,
    pub(super) key_bytes: usize,
    pub(super) value_bytes: u64,
    /// In a branch, the page below.
    pub(super) child: u64,
}

impl Element {
    pub(super) fn value_start(&self) -> u64 {
        self.start + self.key_bytes as u64
    }

    pub(super) fn end(&self) -> u64 {
        self.value_start() + self.value_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leaf of 100 bytes with one element of these fields.
    fn leaf(fields: [u32; 4]) -> Page {
        let mut head = vec![0; 100];
        for (field, bytes) in fields.iter().zip(head[HEADER_BYTES..].chunks_mut(4)) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        Page {
            number: 2,
            offset: 0,
            is_branch: false,
            count: 1,
            run_bytes: 100,
            head,
        }
    }

    fn fault(fields: [u32; 4]) -> PageFault {
        let page = leaf(fields);
        page.element(0, page.table_end()).expect_err("a fault")
    }

    #[test]
    fn an_element_lies_within_its_page() {
        let page = leaf([0, 16, 60, 8]);
        let element = page.element(0, 32).expect("it ends with the page");
        assert_eq!((element.start, element.end()), (32, 100));
        let outside = PageFault::Outside {
            index: 0,
            start: 32,
            end: 101,
            bytes: 100,
        };
        assert_eq!(fault([0, 16, 60, 9]), outside);
        assert!(matches!(
            fault([0, u32::MAX, u32::MAX, u32::MAX]),
            PageFault::Outside { .. }
        ));
    }

    #[test]
    fn an_element_overlaps_no_other() {
        let overlap = PageFault::Overlap {
            index: 0,
            start: 31,
            taken: 32,
        };
        assert_eq!(fault([0, 15, 1, 1]), overlap);
        assert!(leaf([0, 16, 1, 1]).element(0, 33).is_err());
    }

    #[test]
    fn an_element_has_a_key_and_known_flags() {
        assert_eq!(fault([0, 16, 0, 1]), PageFault::EmptyKey { index: 0 });
        let (index, flags) = (0, 2);
        let unknown = PageFault::ElementFlags { index, flags };
        assert_eq!(fault([2, 16, 1, 1]), unknown);
        assert!(
            leaf([BUCKET, 16, 1, 1])
                .element(0, 32)
                .expect("valid")
                .is_bucket
        );
    }
}
