//! Ranges of keys, as the etcd API writes them: a key and a `range_end`.
//!
//! Keys sort as unsigned bytes. This file interprets the three forms of `range_end`. Each call decides whether an empty or
//! backward range is an error (reads and deletes find nothing, watches are refused).

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

/// Where a range stops, for ranges that are compared by their ends.
#[cfg_attr(face, expect(unnameable_types, reason = "a part of `KeyRange`"))]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    Before(Bytes),
    /// After every key.
    Never,
}

/// A set of neighbouring keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key it can hold.
    pub start: Bytes,
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

    /// Its key and range end, as in requests. The range of every key begins with the smallest one.
    pub fn wire(&self) -> (&[u8], &[u8]) {
        let start = match self.start.as_ref() {
            [] => &[0],
            start => start,
        };
        let end = match &self.end {
            RangeEnd::Single => &[][..],
            RangeEnd::Before(end) => end,
            RangeEnd::Unbounded => &[0],
        };
        (start, end)
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

    /// The keys from `start` on that come before `stop`.
    pub fn until(start: Bytes, stop: Stop) -> Self {
        let end = match stop {
            Stop::Before(end) => RangeEnd::Before(end),
            Stop::Never => RangeEnd::Unbounded,
        };
        Self { start, end }
    }

    pub fn stop(&self) -> Stop {
        match &self.end {
            RangeEnd::Single => Stop::Before(self.after(&self.start).start),
            RangeEnd::Before(end) => Stop::Before(end.clone()),
            RangeEnd::Unbounded => Stop::Never,
        }
    }

    /// The part of the range after `key`, which must be in the range.
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

    /// The fewest ranges that hold the same keys as `ranges`, ascending.
    pub fn disjoint(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.retain(|range| !range.is_empty_range());
        ranges.sort_by(|one, other| one.start.cmp(&other.start));
        let mut all: Vec<Self> = Vec::new();
        for range in ranges {
            match all.last_mut() {
                Some(last) if last.stop().is_at_or_after(&range.start) => {
                    let stop = last.stop().max(range.stop());
                    *last = Self::until(last.start.clone(), stop);
                }
                Some(_) | None => all.push(range),
            }
        }
        all
    }

    /// Whether some key could be in both ranges.
    pub fn overlaps(&self, other: &Self) -> bool {
        // Two non-empty intervals meet exactly if one of them holds the other's first key.
        !self.is_empty_range()
            && !other.is_empty_range()
            && (self.contains(&other.start) || other.contains(&self.start))
    }
}

impl Stop {
    /// Whether a range that stops here has no gap before one that starts with `key`.
    pub fn is_at_or_after(&self, key: &[u8]) -> bool {
        !self.is_passed_by(key) || matches!(self, Self::Before(end) if end == key)
    }

    /// Whether `key` comes after every key of a range that stops here.
    pub fn is_passed_by(&self, key: &[u8]) -> bool {
        matches!(self, Self::Before(end) if end.as_ref() <= key)
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

    #[test]
    fn ranges_that_meet_are_joined() {
        let joined = |ranges: Vec<KeyRange>| KeyRange::disjoint(ranges);
        let some = vec![
            range(b"m", b"p"),
            range(b"a", b"c"),
            range(b"z", b"y"),
            range(b"c", b""),
            range(b"b", b"d"),
            range(b"n", b"o"),
            range(b"q", b""),
        ];
        let expected = [range(b"a", b"d"), range(b"m", b"p"), range(b"q", b"")];
        assert_eq!(joined(some), expected);
        let endless = vec![range(b"c", b"\0"), range(b"a", b"d"), range(b"e", b"f")];
        assert_eq!(joined(endless), [range(b"a", b"\0")]);
    }
}
