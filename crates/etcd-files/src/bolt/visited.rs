//! Which pages were read already: one bit each, so that a file whose pages lead back to themselves is refused.

/// The bits that are allocated at once: 4 KiB, for 128 MiB of a file.
const CHUNK_PAGES: u64 = 1 << 15;
const CHUNK_WORDS: usize = 512;

/// A set of pages. Its memory is allocated where pages are marked: a short file that claims many pages costs little.
#[derive(Debug)]
pub(crate) struct Visited {
    chunks: Vec<Option<Box<[u64; CHUNK_WORDS]>>>,
}

impl Visited {
    /// None of `pages` pages is marked.
    pub(super) fn new(pages: u64) -> Self {
        let mut chunks = Vec::new();
        let wanted = pages.div_ceil(CHUNK_PAGES);
        chunks.resize_with(usize::try_from(wanted).unwrap_or(usize::MAX), || None);
        Self { chunks }
    }

    /// Marks the `count` pages from `first` on. False if one of them was marked before. The caller has checked that the set was
    /// made for so many.
    pub(super) fn mark(&mut self, first: u64, count: u64) -> bool {
        (first..first + count).all(|page| self.mark_one(page))
    }

    fn mark_one(&mut self, page: u64) -> bool {
        let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let chunk = self.chunks[place(page / CHUNK_PAGES)]
            .get_or_insert_with(|| Box::new([0; CHUNK_WORDS]));
        let word = &mut chunk[place(page % CHUNK_PAGES / 64)];
        let bit = 1 << (page % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_marked_once() {
        let mut visited = Visited::new(CHUNK_PAGES * 2 + 1);
        assert!(visited.mark(0, 1));
        assert!(visited.mark(CHUNK_PAGES - 2, 4), "across two chunks");
        assert!(visited.mark(CHUNK_PAGES * 2, 1), "the last page");
        assert!(!visited.mark(CHUNK_PAGES + 1, 1));
        assert!(!visited.mark(CHUNK_PAGES - 3, 2), "overlaps a run");
        assert!(visited.mark(63, 2), "across two words");
        assert!(!visited.mark(64, 1));
    }
}
