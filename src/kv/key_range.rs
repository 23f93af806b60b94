//! Ranges of keys, as the etcd API spells them: a key and a `range_end`.
//!
//! Keys sort as unsigned bytes. This file knows the three spellings of `range_end` and nothing else; whether an
//! empty or backward range is an error is up to the call that asks (reads and deletes find nothing, watches refuse).

use bytes::Bytes;

/// Where a range of keys ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// The range holds its start alone.
    Single,
    /// The range ends before this key.
    Before(Bytes),
    /// The range has no end: it holds every key from its start on.
    Unbounded,
}

/// A set of neighbouring keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key it can hold.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

impl KeyRange {
    /// The range that a request's `key` and `range_end` mean.
    pub fn from_wire(key: &Bytes, range_end: &Bytes) -> Self {
        let end = match range_end.as_ref() {
            [] => RangeEnd::Single,
            [0] => RangeEnd::Unbounded,
            _ => RangeEnd::Before(range_end.clone()),
        };
        Self {
            start: key.clone(),
            end,
        }
    }

    /// The range that holds `key` alone.
    pub fn single(key: Bytes) -> Self {
        Self {
            start: key,
            end: RangeEnd::Single,
        }
    }

    /// The range that holds every key.
    pub fn all() -> Self {
        Self {
            start: Bytes::new(),
            end: RangeEnd::Unbounded,
        }
    }

    /// What of the range comes after `key`, which it holds.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> Self {
        let mut start = Vec::with_capacity(key.len() + 1);
        start.extend_from_slice(key);
        start.push(0);
        let end = match &self.end {
            RangeEnd::Single => RangeEnd::Before(start.clone().into()),
            RangeEnd::Before(_) | RangeEnd::Unbounded => self.end.clone(),
        };
        Self {
            start: start.into(),
            end,
        }
    }

    /// Whether it can hold one key at most, its start.
    pub fn is_single(&self) -> bool {
        self.end == RangeEnd::Single
    }

    /// Whether the range holds `key`.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Before(end) => key >= self.start.as_ref() && key < end.as_ref(),
            RangeEnd::Unbounded => key >= self.start.as_ref(),
        }
    }

    /// Whether no key can be in the range, because it ends at or before its start.
    pub fn is_empty_range(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// Whether some key could be in both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        // Two non-empty intervals meet exactly if one of them holds the other's first key.
        !self.is_empty_range()
            && !other.is_empty_range()
            && (self.contains(&other.start) || other.contains(&self.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], end: &'static [u8]) -> KeyRange {
        KeyRange::from_wire(&Bytes::from_static(key), &Bytes::from_static(end))
    }

    #[test]
    fn wire_forms_mean_what_etcd_means() {
        assert_eq!(range(b"k", b"").end, RangeEnd::Single);
        assert_eq!(range(b"k", b"\0").end, RangeEnd::Unbounded);
        assert_eq!(range(b"\0", b"\0").end, RangeEnd::Unbounded);
        assert_eq!(
            range(b"\0", b"\0\0").end,
            RangeEnd::Before(Bytes::from_static(b"\0\0"))
        );
        assert_eq!(
            range(b"k", b"l").end,
            RangeEnd::Before(Bytes::from_static(b"l"))
        );
    }

    #[test]
    fn holds_its_start_but_not_its_end() {
        assert!(range(b"k", b"m").contains(b"k"));
        assert!(range(b"k", b"m").contains(b"l\xff"));
        assert!(!range(b"k", b"m").contains(b"m"));
        assert!(!range(b"k", b"m").contains(b"j"));
        assert!(range(b"k", b"").contains(b"k"));
        assert!(!range(b"k", b"").contains(b"k\0"));
        assert!(range(b"k", b"\0").contains(b"\xff\xff"));
        assert!(!range(b"k", b"\0").contains(b"j\xff"));
        assert!(range(b"\0", b"\0\0").contains(b"\0"));
        assert!(!range(b"\0", b"\0\0").contains(b"\0\0"));
        assert!(KeyRange::all().contains(b"\0"));
    }

    #[test]
    fn a_backward_range_is_empty() {
        assert!(range(b"k", b"k").is_empty_range());
        assert!(range(b"k", b"a").is_empty_range());
        assert!(!range(b"k", b"a").contains(b"b"));
        assert!(!range(b"k", b"k\0").is_empty_range());
        assert!(!range(b"k", b"\0").is_empty_range());
        assert!(!range(b"k", b"").is_empty_range());
    }

    #[test]
    fn overlap_is_mutual_and_needs_a_common_key() {
        let cases = [
            (range(b"a", b"c"), range(b"b", b"d"), true),
            (range(b"a", b"c"), range(b"c", b"d"), false),
            (range(b"a", b"z"), range(b"m", b""), true),
            (range(b"a", b"m"), range(b"m", b""), false),
            (range(b"a", b"\0"), range(b"zzz", b"zzzz"), true),
            (range(b"b", b"\0"), range(b"a", b"b"), false),
            (range(b"b", b""), range(b"b", b""), true),
            (range(b"b", b""), range(b"c", b""), false),
            (range(b"c", b"a"), range(b"a", b"\0"), false),
        ];
        for (one, other, expected) in cases {
            assert_eq!(one.overlaps(&other), expected, "{one:?} and {other:?}");
            assert_eq!(other.overlaps(&one), expected, "{other:?} and {one:?}");
        }
    }
}
