//! A segment's number, and the names of its file.

use std::fmt;

const LIVE_SUFFIX: &str = ".seg";
const FREE_SUFFIX: &str = ".free";

/// A segment's number. Numbers are never used twice: a reused file gets a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl SegmentId {
    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The name of its file while the log needs it.
    pub(super) fn live_name(self) -> String {
        format!("{:016x}{LIVE_SUFFIX}", self.0)
    }

    /// The name of its file once it waits to be reused.
    pub(super) fn free_name(self) -> String {
        format!("{:016x}{FREE_SUFFIX}", self.0)
    }

    /// The number in a live segment's name.
    pub(super) fn from_live_name(name: &str) -> Option<Self> {
        Self::from_name(name, LIVE_SUFFIX)
    }

    /// The number in a waiting segment's name.
    pub(super) fn from_free_name(name: &str) -> Option<Self> {
        Self::from_name(name, FREE_SUFFIX)
    }

    fn from_name(name: &str, suffix: &str) -> Option<Self> {
        let digits = name.strip_suffix(suffix)?;
        let id = Self(u64::from_str_radix(digits, 16).ok()?);
        // One spelling for each number: `1.seg` is not a segment.
        (format!("{:016x}{suffix}", id.0) == name).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(SegmentId(0x1f).live_name(), "000000000000001f.seg");
        for good in [SegmentId(0), SegmentId(0x1f), SegmentId(u64::MAX)] {
            assert_eq!(SegmentId::from_live_name(&good.live_name()), Some(good));
            assert_eq!(SegmentId::from_free_name(&good.free_name()), Some(good));
            assert_eq!(SegmentId::from_live_name(&good.free_name()), None);
        }
        for bad in ["1.seg", "000000000000001F.seg", "+00000000000001f.seg", "x"] {
            assert_eq!(SegmentId::from_live_name(bad), None, "{bad}");
        }
    }
}
