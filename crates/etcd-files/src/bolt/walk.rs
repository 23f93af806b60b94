//! Walks through a bucket's tree in key order.
//!
//! A walk through any bytes ends, and reads little more than the file's length: each page is read once at most, since [`Visited`]
//! refuses it the second time, and the elements of a page do not overlap. It holds a page for each level, and levels are bounded,
//! since a chain of branches with one element each would otherwise be as deep as the file has pages.

use super::{
    error::{BoltError, PageFault},
    page::{Element, Page, Place, Root},
    source::{PageFile, Source},
    visited::Visited,
};
use std::{cmp::Ordering, mem};

/// More levels than any sound file has: with two elements in each branch, 32 levels reach four thousand million pages.
const DEPTH_MAX: usize = 32;

/// What the elements of a tree's leaves are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holds {
    Buckets,
    Items,
}

#[derive(Debug)]
struct Frame {
    page: Page,
    /// The element to visit next.
    next: usize,
    /// The keys and values of the elements visited end before this byte of the page.
    taken: u64,
}

impl Frame {
    /// Moves to the next element, which exists, and reads its key.
    fn visit<S: Source>(
        &mut self,
        file: &PageFile<S>,
        part: &str,
        key: &mut Vec<u8>,
    ) -> Result<Element, BoltError> {
        let element = self.page.element(self.next, self.taken);
        let element = element.map_err(|fault| self.page.place(part).error(fault))?;
        self.next += 1;
        self.taken = element.end();
        key.clear();
        self.page
            .copy(file, element.start, element.key_bytes, key)?;
        Ok(element)
    }
}

#[derive(Debug)]
pub(super) struct Walk<'a, S> {
    file: &'a PageFile<S>,
    /// Errors name it.
    part: String,
    holds: Holds,
    root: Option<Root>,
    /// The page of each level, the root first.
    stack: Vec<Frame>,
    /// The last key that was visited, of a branch or a leaf. No later key sorts before it.
    key: Vec<u8>,
    /// The key that is read, until it is known to sort after that.
    next_key: Vec<u8>,
}

impl<'a, S: Source> Walk<'a, S> {
    pub(super) fn new(file: &'a PageFile<S>, part: String, root: Root, holds: Holds) -> Self {
        Self {
            file,
            part,
            holds,
            root: Some(root),
            stack: Vec::new(),
            key: Vec::new(),
            next_key: Vec::new(),
        }
    }

    /// The next element of a leaf; [`Walk::key`] and [`Walk::value`] have its bytes. After an error the caller stops.
    pub(super) fn next(&mut self, visited: &mut Visited) -> Result<Option<Element>, BoltError> {
        if let Some(root) = self.root.take() {
            self.enter(visited, root)?;
        }
        while let Some(frame) = self.stack.last_mut() {
            if frame.next == frame.page.count {
                self.stack.pop();
                continue;
            }
            let is_branch = frame.page.is_branch;
            let element = frame.visit(self.file, &self.part, &mut self.next_key)?;
            self.verify_order(&element)?;
            mem::swap(&mut self.key, &mut self.next_key);
            if !is_branch {
                self.verify_kind(&element)?;
                return Ok(Some(element));
            }
            self.enter(visited, Root::Page(element.child))?;
        }
        Ok(None)
    }

    /// The key of the element that was returned last.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The first bytes of the value of the element that was returned last.
    pub(super) fn value(&self, element: &Element, bytes: usize) -> Result<Vec<u8>, BoltError> {
        let mut value = Vec::with_capacity(bytes);
        if let Some(frame) = self.stack.last() {
            let start = element.value_start();
            frame.page.copy(self.file, start, bytes, &mut value)?;
        }
        Ok(value)
    }

    /// An error about the page whose element was returned last.
    pub(super) fn error(&self, fault: PageFault) -> BoltError {
        let (page, offset) = self.position();
        let part = &self.part;
        Place { part, page, offset }.error(fault)
    }

    /// The number and offset of the page whose element was returned last.
    pub(super) fn position(&self) -> (u64, u64) {
        let page = self.stack.last().map(|frame| &frame.page);
        page.map_or((0, 0), |page| (page.number, page.offset))
    }

    fn enter(&mut self, visited: &mut Visited, root: Root) -> Result<(), BoltError> {
        if self.stack.len() == DEPTH_MAX {
            return Err(self.error(PageFault::TooDeep { max: DEPTH_MAX }));
        }
        let page = Page::read(self.file, visited, &self.part, root)?;
        let taken = page.table_end();
        self.stack.push(Frame {
            page,
            next: 0,
            taken,
        });
        Ok(())
    }

    /// The first key of a page may equal the key of the branch that leads to it; all others sort after all before them. So the
    /// keys of a bucket ascend strictly, and those below an element of a branch sort before the key of the next.
    fn verify_order(&self, element: &Element) -> Result<(), BoltError> {
        let index = element.index;
        match (self.next_key.cmp(&self.key), index) {
            (Ordering::Greater, _) | (Ordering::Equal, 0) => Ok(()),
            (Ordering::Less, 0) => Err(self.error(PageFault::BelowBranch)),
            (Ordering::Less | Ordering::Equal, _) => Err(self.error(PageFault::KeyOrder { index })),
        }
    }

    fn verify_kind(&self, element: &Element) -> Result<(), BoltError> {
        let index = element.index;
        match (self.holds, element.is_bucket) {
            (Holds::Buckets, true) | (Holds::Items, false) => Ok(()),
            (Holds::Buckets, false) => Err(self.error(PageFault::NotABucket { index })),
            (Holds::Items, true) => Err(self.error(PageFault::Nested { index })),
        }
    }
}
