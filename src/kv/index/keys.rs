//! The keys of one node: sorted, in one allocation, with their common prefix stored once.
//!
//! One allocation for all keys saves memory and, when a node is copied for a snapshot, time. Neighbours in a
//! sorted tree have long common prefixes: with the prefix stored once, the keys of a node take a few cache lines, and a search
//! among a million keys has fewer cache misses. Capacity follows the length closely, for there are many small nodes and doubling
//! would waste a third of them.
//!
//! ```text
//! keys  /pods/a  /pods/b/x  /pods/b/y       blob  /pods/ a b/x b/y       ends  7 10 13
//! ```

use super::grow::grow;
use std::{cmp::Ordering, ops::Range};

/// Room for growth that a full blob gets beyond what it needs now.
const SPARE_BYTES: usize = 64;

/// A sorted list of distinct keys.
///
/// Invariant: every key begins with the prefix. The prefix may be shorter than the longest common one: it is computed anew only
/// in a split, and when a key is inserted that does not begin with it.
#[derive(Debug, Default)]
pub(super) struct NodeKeys {
    /// The prefix, then the rest of each key.
    blob: Vec<u8>,
    /// Where the prefix ends.
    prefix: usize,
    /// Where each key's rest ends in `blob`. A node holds less than 4 GiB of keys: requests are limited to far less
    /// than the 64 MiB a key would need for that.
    ends: Vec<u32>,
}

/// A key as a node holds it.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    prefix: &'a [u8],
    rest: &'a [u8],
}

impl Key<'_> {
    /// The key in one piece.
    pub fn to_vec(self) -> Vec<u8> {
        [self.prefix, self.rest].concat()
    }

    /// Puts the key in place of what `key` holds.
    pub fn write_to(self, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix);
        key.extend_from_slice(self.rest);
    }
}

impl Clone for NodeKeys {
    fn clone(&self) -> Self {
        let mut copy = Self {
            prefix: self.prefix,
            ..Self::default()
        };
        grow(&mut copy.blob, self.blob.len(), SPARE_BYTES / 2);
        grow(&mut copy.ends, self.ends.len(), 2);
        copy.blob.extend_from_slice(&self.blob);
        copy.ends.extend_from_slice(&self.ends);
        copy
    }
}

impl NodeKeys {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, i: usize) -> Key<'_> {
        Key {
            prefix: &self.blob[..self.prefix],
            rest: self.rest(i),
        }
    }

    pub(super) fn first(&self) -> Key<'_> {
        self.get(0)
    }

    pub(super) fn last(&self) -> Key<'_> {
        self.get(self.len() - 1)
    }

    /// Where `key` is, or where it would have to go.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (start, rest) = key.split_at(key.len().min(self.prefix));
        match start.cmp(&self.blob[..self.prefix]) {
            Ordering::Less => return Err(0),
            Ordering::Greater => return Err(self.len()),
            Ordering::Equal => {}
        }
        let lead = lead(rest, 0, rest.len());
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            let (start, end) = (self.start(middle), self.ends[middle] as usize);
            let order = self::lead(&self.blob, start, end).cmp(&lead);
            match order.then_with(|| self.blob[start..end].cmp(rest)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// How many keys are below `key`.
    pub(super) fn below(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|i| i)
    }

    pub(super) fn insert(&mut self, i: usize, key: &[u8]) {
        if self.ends.is_empty() {
            self.blob.clear();
            grow(&mut self.blob, key.len(), SPARE_BYTES);
            self.blob.extend_from_slice(key);
            self.prefix = key.len();
        }
        if !key.starts_with(&self.blob[..self.prefix]) {
            self.set_prefix(common(&self.blob[..self.prefix], key));
        }
        let rest = &key[self.prefix..];
        let (start, old_len) = (self.start(i), self.blob.len());
        grow(&mut self.blob, rest.len(), SPARE_BYTES);
        self.blob.resize(old_len + rest.len(), 0);
        self.blob.copy_within(start..old_len, start + rest.len());
        self.blob[start..start + rest.len()].copy_from_slice(rest);
        let added = offset(rest.len());
        for end in &mut self.ends[i..] {
            *end += added;
        }
        grow(&mut self.ends, 1, 4);
        self.ends.insert(i, offset(start) + added);
    }

    pub(super) fn remove(&mut self, i: usize) {
        let (start, end) = (self.start(i), self.start(i + 1));
        self.blob.drain(start..end);
        self.ends.remove(i);
        let removed = offset(end - start);
        for end in &mut self.ends[i..] {
            *end -= removed;
        }
    }

    /// Cuts off the keys from `at` on and returns them.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let right = self.part(at, self.len());
        if at < self.len() {
            *self = self.part(0, at);
        }
        self.blob.shrink_to_fit();
        self.ends.shrink_to_fit();
        right
    }

    /// Adds keys that all lie above those already here.
    pub(super) fn append(&mut self, right: &Self) {
        for key in right.iter() {
            self.insert(self.len(), &key.to_vec());
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Key<'_>> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// The keys from `start` on and before `end`, with the longest prefix there is.
    fn part(&self, start: usize, end: usize) -> Self {
        let mut part = Self::default();
        if start < end {
            let more = common(self.rest(start), self.rest(end - 1));
            part.fill(self, start..end, self.prefix + more);
        }
        part
    }

    /// Makes the prefix another one that all keys begin with.
    fn set_prefix(&mut self, prefix: usize) {
        let mut changed = Self::default();
        changed.fill(self, 0..self.len(), prefix);
        *self = changed;
    }

    /// Takes some keys of `other`, all of which begin with the first `prefix` bytes of the first of them.
    fn fill(&mut self, other: &Self, keys: Range<usize>, prefix: usize) {
        let (start, end) = (other.start(keys.start), other.start(keys.end));
        // Each key loses the bytes that the prefix gains, and the other way round.
        let bytes = (other.prefix + end - start + prefix).saturating_add_signed(
            keys.len().cast_signed() * (other.prefix.cast_signed() - prefix.cast_signed()),
        );
        grow(&mut self.blob, bytes, SPARE_BYTES / 2);
        grow(&mut self.ends, keys.len(), 2);
        let shared = &other.blob[..other.prefix.min(prefix)];
        let given_back = &other.blob[shared.len()..other.prefix];
        let taken = prefix - shared.len();
        self.blob.extend_from_slice(shared);
        self.blob
            .extend_from_slice(&other.rest(keys.start)[..taken]);
        self.prefix = prefix;
        for i in keys {
            self.blob.extend_from_slice(given_back);
            self.blob.extend_from_slice(&other.rest(i)[taken..]);
            self.ends.push(offset(self.blob.len()));
        }
    }

    /// Reads from each cache line, for [`prefetch`](super::prefetch).
    pub(super) fn touch(&self) -> usize {
        let ends = self.ends.iter().step_by(16).map(|end| *end as usize);
        let blob = self.blob.iter().step_by(64).map(|byte| usize::from(*byte));
        ends.sum::<usize>().wrapping_add(blob.sum())
    }

    fn rest(&self, i: usize) -> &[u8] {
        &self.blob[self.start(i)..self.start(i + 1)]
    }

    fn start(&self, i: usize) -> usize {
        i.checked_sub(1)
            .map_or(self.prefix, |before| self.ends[before] as usize)
    }
}

/// The first eight bytes of `blob[start..end]` as a number that is ordered like them. If two of these numbers differ, the keys
/// need no further comparison; behind their node's prefix nearly all differ.
fn lead(blob: &[u8], start: usize, end: usize) -> u64 {
    let eight = match (blob[start..].first_chunk(), blob.last_chunk()) {
        (Some(eight), _) => u64::from_be_bytes(*eight),
        (None, Some(last)) if start < blob.len() => {
            u64::from_be_bytes(*last) << (64 - 8 * (blob.len() - start))
        }
        (None, _) => {
            let shift = |lead, byte: &u8| (lead >> 8) | (u64::from(*byte) << 56);
            blob[start..].iter().rev().fold(0, shift)
        }
    };
    match end - start {
        0 => 0,
        len @ 1..8 => eight & (u64::MAX << (64 - 8 * len)),
        _ => eight,
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("request limits keep a node's keys far below 4 GiB")
}

/// How many bytes two keys have in common at their start.
fn common(left: &[u8], right: &[u8]) -> usize {
    left.iter().zip(right).take_while(|(a, b)| a == b).count()
}

/// The shortest key that separates `left` from `right`: above the one, not above the other.
pub(super) fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    &right[..=common(left, right)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn insert_remove_split_and_append_keep_keys_apart() {
        let mut keys = NodeKeys::default();
        for key in [b"m".as_slice(), b"a", b"", b"zz", b"mm"] {
            let at = keys.search(key).unwrap_err();
            keys.insert(at, key);
        }
        assert_eq!(all(&keys), [b"".as_slice(), b"a", b"m", b"mm", b"zz"]);
        assert_eq!(keys.search(b"mm"), Ok(3));
        assert_eq!(keys.below(b"n"), 4);

        keys.remove(1);
        let right = keys.split_off(2);
        assert_eq!(all(&keys), [b"".as_slice(), b"m"]);
        assert_eq!(all(&right), [b"mm".as_slice(), b"zz"]);
        keys.append(&right);
        assert_eq!(keys.len(), 4);
        assert_eq!(keys.first().to_vec(), b"");
        assert_eq!(keys.last().to_vec(), b"zz");
        assert_eq!(all(&keys.clone()), all(&keys));
    }

    #[test]
    fn a_prefix_is_kept_once_and_follows_the_keys() {
        let mut keys = NodeKeys::default();
        let mut insert = |key: &[u8]| {
            let at = keys.search(key).unwrap_err();
            keys.insert(at, key);
            (keys.prefix, keys.blob.len())
        };
        assert_eq!(insert(b"/pods/b/x"), (9, 9));
        assert_eq!(insert(b"/pods/b/y"), (8, 8 + 2));
        assert_eq!(insert(b"/pods/a"), (6, 6 + 1 + 3 + 3));
        assert_eq!(insert(b"/pods/b/z"), (6, 6 + 1 + 9));
        assert_eq!(insert(b"/pods/b/z1"), (6, 6 + 1 + 9 + 4));
        let right = keys.split_off(1);
        assert_eq!((keys.prefix, keys.blob.len()), (7, 7));
        assert_eq!((right.prefix, right.blob.len()), (8, 8 + 5));
        assert_eq!(all(&keys), [b"/pods/a"]);
        let expected = [&b"/pods/b/x"[..], b"/pods/b/y", b"/pods/b/z", b"/pods/b/z1"];
        assert_eq!(all(&right), expected);
        for (key, place) in [
            (&b""[..], Err(0)),
            (b"/pods", Err(0)),
            (b"/pods/a", Err(0)),
            (b"/pods/b/", Err(0)),
            (b"/pods/b/y", Ok(1)),
            (b"/pods/b/yy", Err(2)),
            (b"/pods/b/z2", Err(4)),
            (b"/pods/c", Err(4)),
            (b"0", Err(4)),
        ] {
            assert_eq!(right.search(key), place, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn is_like_a_list_of_keys(ops in prop::collection::vec((any::<u8>(), key()), 1..80)) {
            let (mut keys, mut model) = (NodeKeys::default(), Vec::<Vec<u8>>::new());
            for (op, key) in ops {
                prop_assert_eq!(keys.search(&key), model.binary_search(&key));
                match model.binary_search(&key) {
                    Err(i) => {
                        keys.insert(i, &key);
                        model.insert(i, key);
                    }
                    Ok(i) if op % 4 == 0 => {
                        let right = keys.split_off(i);
                        prop_assert_eq!(all(&right), model[i..].to_vec());
                        prop_assert_eq!(all(&keys), model[..i].to_vec());
                        keys.append(&right);
                    }
                    Ok(i) => {
                        keys.remove(i);
                        model.remove(i);
                    }
                }
                prop_assert_eq!(all(&keys), model.clone());
                prop_assert_eq!(all(&keys.clone()), model.clone());
            }
        }
    }

    /// Keys that often begin alike.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![3 => Just(b'a'), 1 => Just(b'b')], 0..6)
    }

    fn all(keys: &NodeKeys) -> Vec<Vec<u8>> {
        keys.iter().map(Key::to_vec).collect()
    }

    #[test]
    fn leads_are_ordered_like_what_they_lead() {
        let blob = b"abcdefghijkl";
        assert_eq!(lead(blob, 1, 1), 0);
        assert_eq!(lead(blob, 12, 12), 0);
        assert_eq!(lead(blob, 1, 3), u64::from_be_bytes(*b"bc\0\0\0\0\0\0"));
        assert_eq!(lead(blob, 1, 12), u64::from_be_bytes(*b"bcdefghi"));
        assert_eq!(lead(blob, 8, 11), u64::from_be_bytes(*b"ijk\0\0\0\0\0"));
        assert_eq!(lead(b"abc", 1, 3), u64::from_be_bytes(*b"bc\0\0\0\0\0\0"));
    }

    #[test]
    fn a_separator_is_short_and_separates() {
        let cases: [(&[u8], &[u8], &[u8]); 4] = [
            (b"apple", b"banana", b"b"),
            (b"/pods/a", b"/pods/b/c", b"/pods/b"),
            (b"a", b"a\0\0", b"a\0"),
            (b"", b"xyz", b"x"),
        ];
        for (left, right, expected) in cases {
            assert_eq!(separator(left, right), expected);
            assert!(left < expected && expected <= right);
        }
    }
}
