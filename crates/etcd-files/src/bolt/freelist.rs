//! The list of pages that nothing uses. Reading does not need it, so only its place is verified when a file is opened; its
//! entries are when the file is checked.

use super::{
    error::{BoltError, PageFault},
    header::{FREELIST, HEADER_BYTES, array, as_index},
    meta::NO_FREELIST,
    page::{Place, header_at},
    source::{PageFile, Source},
    visited::Visited,
};

/// The bytes of a page's id in the freelist.
const ID_BYTES: u64 = 8;

/// How many ids are read at once.
const IDS_AT_ONCE: u64 = 8_192;

/// The number in a freelist's header that says that the true number is the first entry.
const COUNT_FOLLOWS: u16 = u16::MAX;

const FREELIST_PART: &str = "freelist";

#[derive(Debug)]
pub(super) struct Freelist {
    page: u64,
    offset: u64,
    ids_offset: u64,
    count: u64,
}

impl Freelist {
    /// The freelist on `page`, which a meta names. Its count is verified to fit its pages.
    pub(super) fn find<S: Source>(
        file: &PageFile<S>,
        page: u64,
    ) -> Result<Option<Self>, BoltError> {
        if page == NO_FREELIST {
            return Ok(None);
        }
        let offset = page * file.page_bytes;
        let mut freelist = Self {
            page,
            offset,
            ids_offset: offset + HEADER_BYTES as u64,
            count: 0,
        };
        let place = freelist.place();
        let (header, first) = header_at(file, &mut Visited::new(file.pages), &place)?;
        let flags = header.flags;
        if flags != FREELIST {
            let wanted = "a freelist (0x10)";
            return Err(place.error(PageFault::Type { flags, wanted }));
        }
        let bytes = (u64::from(header.overflow) + 1) * file.page_bytes;
        let mut room = bytes - HEADER_BYTES as u64;
        let mut count = u64::from(header.count);
        if header.count == COUNT_FOLLOWS {
            count = u64::from_le_bytes(array(&first, HEADER_BYTES));
            freelist.ids_offset += ID_BYTES;
            room -= ID_BYTES;
        }
        if count > room / ID_BYTES {
            return Err(freelist.place().error(PageFault::Count { count, bytes }));
        }
        freelist.count = count;
        Ok(Some(freelist))
    }

    fn place(&self) -> Place<'static> {
        Place {
            part: FREELIST_PART,
            page: self.page,
            offset: self.offset,
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Marks its own pages as used.
    pub(super) fn mark<S: Source>(
        &self,
        file: &PageFile<S>,
        visited: &mut Visited,
    ) -> Result<(), BoltError> {
        header_at(file, visited, &self.place()).map(|_| ())
    }

    /// No page is free that is marked as used, nor free twice.
    pub(super) fn check<S: Source>(
        &self,
        file: &PageFile<S>,
        visited: &mut Visited,
    ) -> Result<(), BoltError> {
        let mut index = 0;
        let mut buffer = Vec::new();
        while index < self.count {
            let ids = (self.count - index).min(IDS_AT_ONCE);
            buffer.resize(as_index(ids * ID_BYTES), 0);
            file.read(self.ids_offset + index * ID_BYTES, &mut buffer)?;
            for id in buffer.chunks_exact(as_index(ID_BYTES)) {
                let id = u64::from_le_bytes(array(id, 0));
                let checked = check_free(index, id, file.pages, visited);
                checked.map_err(|fault| self.place().error(fault))?;
                index += 1;
            }
        }
        Ok(())
    }
}

fn check_free(index: u64, id: u64, pages: u64, visited: &mut Visited) -> Result<(), PageFault> {
    if !(2..pages).contains(&id) {
        return Err(PageFault::FreeOutOfRange { index, id, pages });
    }
    if !visited.mark(id, 1) {
        return Err(PageFault::FreeInUse { index, id });
    }
    Ok(())
}
