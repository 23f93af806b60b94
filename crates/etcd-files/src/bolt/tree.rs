//! Builds one tree from items that arrive in order.

use super::{
    error::BoltError,
    header::{BRANCH, ELEMENT_BYTES, HEADER_BYTES, LEAF, as_index},
    pager::{LeafElement, Pager, Sink, Value},
};
use std::mem;

/// The least elements of a branch. With only one, bbolt panics ("parent must have at least 2 children") when it deletes below
/// it, so that an etcd would end at its next compaction.
const BRANCH_ELEMENTS_MIN: usize = 2;

/// The leaf that is being filled.
#[derive(Debug, Default)]
struct Leaf {
    elements: Vec<LeafElement>,
    /// Keys and values. The latter are missing if only their lengths are known.
    data: Vec<u8>,
    data_bytes: u64,
    first_key: Vec<u8>,
}

impl Leaf {
    fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.elements.len() * ELEMENT_BYTES) as u64 + self.data_bytes
    }

    fn push(&mut self, element: LeafElement, key: &[u8], value: &impl Value) {
        if self.elements.is_empty() {
            self.first_key.extend_from_slice(key);
        }
        self.elements.push(element);
        self.data_bytes += element.key_bytes as u64 + element.value_bytes;
        self.data.extend_from_slice(key);
        for slice in value.slices() {
            self.data.extend_from_slice(slice);
        }
    }

    /// Emits the page. Returns its number and first key.
    fn emit<S: Sink>(&mut self, pager: &mut Pager<S>) -> Result<(u64, Vec<u8>), BoltError> {
        let (id, padding) = pager.begin(LEAF, self.elements.len(), self.bytes())?;
        let mut position = self.elements.len() * ELEMENT_BYTES;
        for element in self.elements.drain(..) {
            pager.push_leaf_element(element, position);
            // The next element is as much nearer to the data as it is itself long.
            let data = element.key_bytes + as_index(element.value_bytes);
            position = position + data - ELEMENT_BYTES;
        }
        pager.page.extend_from_slice(&self.data);
        pager.end(padding)?;
        self.data.clear();
        self.data_bytes = 0;
        Ok((id, mem::take(&mut self.first_key)))
    }
}

/// The branch that is being filled on one level.
#[derive(Debug, Default)]
struct Branch {
    /// The length of each key, and the page it leads to.
    elements: Vec<(usize, u64)>,
    keys: Vec<u8>,
}

impl Branch {
    fn bytes(&self) -> u64 {
        (HEADER_BYTES + self.elements.len() * ELEMENT_BYTES + self.keys.len()) as u64
    }

    fn push(&mut self, key: &[u8], page: u64) {
        self.elements.push((key.len(), page));
        self.keys.extend_from_slice(key);
    }

    /// Whether one more key has no place, and enough of those that are here can go.
    fn is_full(&self, key: &[u8], page_bytes: u64) -> bool {
        self.bytes() + (ELEMENT_BYTES + key.len()) as u64 > page_bytes
            && self.elements.len() > BRANCH_ELEMENTS_MIN
    }

    /// Emits a page with the first `count` elements. Returns its number and first key.
    fn emit<S: Sink>(
        &mut self,
        pager: &mut Pager<S>,
        count: usize,
    ) -> Result<(u64, Vec<u8>), BoltError> {
        let elements: Vec<(usize, u64)> = self.elements.drain(..count).collect();
        let keys_bytes: usize = elements.iter().map(|(key_bytes, _)| key_bytes).sum();
        let keys: Vec<u8> = self.keys.drain(..keys_bytes).collect();
        let bytes = HEADER_BYTES + count * ELEMENT_BYTES + keys_bytes;
        let (id, padding) = pager.begin(BRANCH, count, bytes as u64)?;
        let mut position = count * ELEMENT_BYTES;
        for (key_bytes, page) in &elements {
            pager.push_u32(position);
            pager.push_u32(*key_bytes);
            pager.page.extend_from_slice(&page.to_le_bytes());
            position = position + key_bytes - ELEMENT_BYTES;
        }
        pager.page.extend_from_slice(&keys);
        pager.end(padding)?;
        let first = elements.first().map_or(0, |(key_bytes, _)| *key_bytes);
        Ok((id, keys[..first].to_vec()))
    }
}

/// A tree whose items arrive in order.
#[derive(Debug, Default)]
pub(super) struct Tree {
    leaf: Leaf,
    /// The branches above the leaves, the lowest first.
    levels: Vec<Branch>,
}

impl Tree {
    /// Adds an item whose key sorts after all before it.
    pub(super) fn push<S: Sink, V: Value>(
        &mut self,
        pager: &mut Pager<S>,
        flags: u32,
        key: &[u8],
        value: &V,
    ) -> Result<(), BoltError> {
        let element = LeafElement {
            flags,
            key_bytes: key.len(),
            value_bytes: value.bytes(),
        };
        let bytes = (ELEMENT_BYTES + key.len()) as u64 + element.value_bytes;
        if self.leaf.bytes() + bytes > pager.page_bytes {
            self.emit_leaf(pager)?;
        }
        if HEADER_BYTES as u64 + bytes > pager.page_bytes {
            let page = emit_large(pager, element, key, value)?;
            return self.push_branch(pager, 0, key, page);
        }
        self.leaf.push(element, key, value);
        Ok(())
    }

    /// Emits the root page of a tree without items.
    pub(super) fn emit_empty<S: Sink>(pager: &mut Pager<S>) -> Result<u64, BoltError> {
        let (page, _) = Leaf::default().emit(pager)?;
        Ok(page)
    }

    fn emit_leaf<S: Sink>(&mut self, pager: &mut Pager<S>) -> Result<(), BoltError> {
        if self.leaf.elements.is_empty() {
            return Ok(());
        }
        let (page, first_key) = self.leaf.emit(pager)?;
        self.push_branch(pager, 0, &first_key, page)
    }

    /// Adds a page to the branch above it. A full branch keeps its last element for the next, which then has two elements at
    /// least.
    fn push_branch<S: Sink>(
        &mut self,
        pager: &mut Pager<S>,
        level: usize,
        key: &[u8],
        page: u64,
    ) -> Result<(), BoltError> {
        if self.levels.len() == level {
            self.levels.push(Branch::default());
        }
        let branch = &mut self.levels[level];
        if branch.is_full(key, pager.page_bytes) {
            let (above, first_key) = branch.emit(pager, branch.elements.len() - 1)?;
            self.push_branch(pager, level + 1, &first_key, above)?;
        }
        self.levels[level].push(key, page);
        Ok(())
    }

    /// Emits all open pages. Returns the root page, `None` if there were no items.
    pub(super) fn finish<S: Sink>(
        mut self,
        pager: &mut Pager<S>,
    ) -> Result<Option<u64>, BoltError> {
        self.emit_leaf(pager)?;
        let mut level = 0;
        while let Some(branch) = self.levels.get_mut(level) {
            let count = branch.elements.len();
            // Only on the highest level can there be a single page, since full branches keep one element and get another.
            if let [(_, only)] = branch.elements[..] {
                return Ok(Some(only));
            }
            let (page, first_key) = branch.emit(pager, count)?;
            level += 1;
            self.push_branch(pager, level, &first_key, page)?;
        }
        Ok(None)
    }
}

/// Emits an item that is longer than a page as a leaf of its own, without a copy of its value.
fn emit_large<S: Sink, V: Value>(
    pager: &mut Pager<S>,
    element: LeafElement,
    key: &[u8],
    value: &V,
) -> Result<u64, BoltError> {
    let bytes = (HEADER_BYTES + ELEMENT_BYTES + key.len()) as u64 + element.value_bytes;
    let (id, padding) = pager.begin(LEAF, 1, bytes)?;
    pager.push_leaf_element(element, ELEMENT_BYTES);
    pager.page.extend_from_slice(key);
    pager.emit()?;
    if S::WRITES {
        for slice in value.slices() {
            pager.sink.write(slice)?;
        }
    }
    pager.end(padding)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::{super::header::Header, *};

    const PAGE_BYTES: u64 = 1_024;

    /// Keeps all pages, and verifies that each begins where its number says.
    struct Pages(Vec<u8>);

    impl Sink for Pages {
        const WRITES: bool = true;

        fn allow(&mut self, _: u64) -> Result<(), BoltError> {
            Ok(())
        }

        fn write(&mut self, bytes: &[u8]) -> Result<(), BoltError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    /// The headers of the pages of a tree, and its root.
    fn build(count: u32, key_bytes: usize, value: &[u8]) -> (Vec<Header>, Option<u64>) {
        let mut pager = Pager::new(Pages(Vec::new()), PAGE_BYTES);
        let mut tree = Tree::default();
        for number in 0..count {
            let key = [&vec![b'k'; key_bytes - 4][..], &number.to_be_bytes()].concat();
            let value: &[&[u8]] = &[value];
            let pushed = tree.push(&mut pager, 0, &key, &value);
            pushed.expect("the sink takes all");
        }
        let root = tree.finish(&mut pager).expect("the sink takes all");
        let bytes = &pager.sink.0;
        let (mut headers, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let header = Header::parse(&bytes[at..]);
            assert_eq!(
                header.id * PAGE_BYTES,
                at as u64 + 2 * PAGE_BYTES,
                "{header:?}"
            );
            at += as_index((u64::from(header.overflow) + 1) * PAGE_BYTES);
            headers.push(header);
        }
        assert_eq!(at, bytes.len(), "the last page is whole");
        (headers, root)
    }

    #[test]
    fn a_tree_without_items_has_no_pages() {
        assert_eq!(build(0, 4, b""), (Vec::new(), None));
    }

    #[test]
    fn a_leaf_takes_items_until_it_is_full() {
        // An element, a key of 4 bytes and a value of 4: 24 bytes, of which 42 fit beside the header.
        for (count, leaves) in [(1, vec![1]), (42, vec![42]), (43, vec![42, 1])] {
            let (headers, root) = build(count, 4, b"four");
            let found = headers.iter().filter(|header| header.flags == LEAF);
            let found: Vec<u16> = found.map(|header| header.count).collect();
            assert_eq!(found, leaves);
            assert_eq!(root, headers.last().map(|header| header.id));
        }
    }

    #[test]
    fn a_full_branch_leaves_two_elements_to_the_last() {
        // Keys of 300 bytes: three fit a branch, whose third goes to the next if there is a fourth.
        for (leaves, branches) in [
            (2, vec![2]),
            (3, vec![3]),
            (4, vec![2, 2, 2]),
            (5, vec![2, 3, 2]),
        ] {
            let (headers, _) = build(leaves, 300, &[0; 600]);
            let found = headers.iter().filter(|header| header.flags == BRANCH);
            let found: Vec<u16> = found.map(|header| header.count).collect();
            assert_eq!(found, branches, "{leaves} leaves");
        }
    }

    #[test]
    fn a_long_item_has_a_leaf_of_its_own() {
        let (headers, root) = build(1, 4, &[0; 2_000]);
        let leaf = Header {
            id: 2,
            flags: LEAF,
            count: 1,
            overflow: 1,
        };
        assert_eq!((headers, root), (vec![leaf], Some(2)));
        // The longest that has no overflow page.
        assert_eq!(build(1, 4, &[0; 1_024 - 36]).0[0].overflow, 0);
        assert_eq!(build(1, 4, &[0; 1_024 - 35]).0[0].overflow, 1);
    }
}
