//! The keys of one node: sorted, in one piece of memory.
//!
//! One allocation instead of one a key saves both memory and, when a node is copied for a snapshot, time.
//! Capacity follows the length closely, for there are many small nodes and doubling would waste a third of them.

use super::grow;

/// Room for growth that a full blob gets beyond what it needs now.
const SPARE_BYTES: usize = 128;

/// A sorted list of distinct keys.
#[derive(Debug, Default)]
pub(super) struct Keys {
    blob: Vec<u8>,
    /// Where each key ends in `blob`. A node holds less than 4 GiB of keys: requests are limited to far less
    /// than the 64 MiB a key would need for that.
    ends: Vec<u32>,
}

impl Clone for Keys {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        grow(&mut copy.blob, self.blob.len(), SPARE_BYTES / 2);
        grow(&mut copy.ends, self.ends.len(), 2);
        copy.append(self);
        copy
    }
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, i: usize) -> &[u8] {
        &self.blob[self.start(i)..self.start(i + 1)]
    }

    pub(super) fn first(&self) -> &[u8] {
        self.get(0)
    }

    pub(super) fn last(&self) -> &[u8] {
        self.get(self.len() - 1)
    }

    /// Where `key` is, or where it would have to go.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.get(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// How many keys are below `key`.
    pub(super) fn below(&self, key: &[u8]) -> usize {
        self.search(key).unwrap_or_else(|i| i)
    }

    pub(super) fn insert(&mut self, i: usize, key: &[u8]) {
        let (start, old_len) = (self.start(i), self.blob.len());
        grow(&mut self.blob, key.len(), SPARE_BYTES);
        self.blob.resize(old_len + key.len(), 0);
        self.blob.copy_within(start..old_len, start + key.len());
        self.blob[start..start + key.len()].copy_from_slice(key);
        let added = offset(key.len());
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
        let start = self.start(at);
        let mut right = Self {
            blob: self.blob.split_off(start),
            ends: self.ends.split_off(at),
        };
        let removed = offset(start);
        for end in &mut right.ends {
            *end -= removed;
        }
        self.blob.shrink_to_fit();
        self.ends.shrink_to_fit();
        right
    }

    /// Adds keys that all lie above those already here.
    pub(super) fn append(&mut self, right: &Self) {
        let base = offset(self.blob.len());
        grow(&mut self.blob, right.blob.len(), 0);
        self.blob.extend_from_slice(&right.blob);
        grow(&mut self.ends, right.ends.len(), 0);
        self.ends.extend(right.ends.iter().map(|end| base + end));
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }

    fn start(&self, i: usize) -> usize {
        i.checked_sub(1)
            .map_or(0, |before| self.ends[before] as usize)
    }
}

fn offset(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("request limits keep a node's keys far below 4 GiB")
}

/// The shortest key that separates `left` from `right`: above the one, not above the other.
pub(super) fn separator<'a>(left: &[u8], right: &'a [u8]) -> &'a [u8] {
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    &right[..=common]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn insert_remove_split_and_append_keep_keys_apart() {
        let mut keys = Keys::default();
        for key in [b"m".as_slice(), b"a", b"", b"zz", b"mm"] {
            let at = keys.search(key).unwrap_err();
            keys.insert(at, key);
        }
        let all: Vec<&[u8]> = keys.iter().collect();
        assert_eq!(all, [b"".as_slice(), b"a", b"m", b"mm", b"zz"]);
        assert_eq!(keys.search(b"mm"), Ok(3));
        assert_eq!(keys.below(b"n"), 4);

        keys.remove(1);
        let right = keys.split_off(2);
        assert_eq!(keys.iter().collect::<Vec<_>>(), [b"".as_slice(), b"m"]);
        assert_eq!(right.iter().collect::<Vec<_>>(), [b"mm".as_slice(), b"zz"]);
        keys.append(&right);
        assert_eq!(
            (keys.len(), keys.first(), keys.last()),
            (4, &b""[..], &b"zz"[..])
        );
        assert_eq!(
            keys.clone().iter().collect::<Vec<_>>(),
            keys.iter().collect::<Vec<_>>()
        );
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
