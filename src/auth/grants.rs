//! What a user may read and write: the permissions of all roles, merged to disjoint intervals.
//!
//! They are compiled once after a change; a check is a binary search and allocates nothing.

use super::change::Permission;
use std::ops::Bound;

/// An interval of keys, as sets of keys take it.
pub type Interval<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// What is done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Read,
    Write,
}

/// An interval of keys, from `start` up to, not including, `end`; without an end it holds every later key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

/// Disjoint intervals that do not touch, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spans(Vec<Span>);

/// The intervals that a user may read, and those that the user may write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    read: Spans,
    write: Spans,
}

impl Grants {
    /// Merges permissions.
    pub fn compile<'a>(permissions: impl Iterator<Item = &'a Permission>) -> Self {
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in permissions {
            let span = Span::of(&permission.key, &permission.range_end);
            match permission.kind {
                Permission::READ => read.push(span),
                Permission::WRITE => write.push(span),
                Permission::READ_WRITE => {
                    read.push(span.clone());
                    write.push(span);
                }
                _ => {}
            }
        }
        Self {
            read: Spans::merge(read),
            write: Spans::merge(write),
        }
    }

    /// Whether all keys of a request's range may be read.
    pub fn may_read(&self, key: &[u8], range_end: &[u8]) -> bool {
        self.read.cover(key, range_end)
    }

    /// Whether all keys of a request's range may be written.
    pub fn may_write(&self, key: &[u8], range_end: &[u8]) -> bool {
        self.write.cover(key, range_end)
    }

    /// The intervals that hold all keys without this right, ascending.
    pub fn gaps(&self, right: Right) -> impl ExactSizeIterator<Item = Interval<'_>> {
        match right {
            Right::Read => self.read.gaps(),
            Right::Write => self.write.gaps(),
        }
    }
}

impl Span {
    fn of(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            // The next key.
            [] => Some([key, &[0]].concat()),
            [0] => None,
            _ => Some(range_end.to_vec()),
        };
        Self {
            start: key.to_vec(),
            end,
        }
    }

    fn ends_after(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end.as_slice() > key)
    }
}

impl Spans {
    fn merge(mut spans: Vec<Span>) -> Self {
        spans.sort_unstable();
        let mut merged: Vec<Span> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if last.end.as_ref().is_none_or(|end| *end >= span.start) => {
                    if let (Some(end), Some(later)) = (&mut last.end, &span.end) {
                        if *later > *end {
                            end.clone_from(later);
                        }
                    } else {
                        last.end = None;
                    }
                }
                Some(_) | None => merged.push(span),
            }
        }
        Self(merged)
    }

    /// What is before, between and after them. Nothing is after an interval without end.
    fn gaps(&self) -> impl ExactSizeIterator<Item = Interval<'_>> {
        let endless = self.0.last().is_some_and(|span| span.end.is_none());
        let gaps = self.0.len() + usize::from(!endless);
        (0..gaps).map(|at| {
            let before = at.checked_sub(1).and_then(|at| self.0[at].end.as_deref());
            let after = self.0.get(at).map(|span| &span.start[..]);
            let start = before.map_or(Bound::Unbounded, Bound::Included);
            (start, after.map_or(Bound::Unbounded, Bound::Excluded))
        })
    }

    fn cover(&self, key: &[u8], range_end: &[u8]) -> bool {
        let after = self.0.partition_point(|span| span.start.as_slice() <= key);
        let Some(span) = after.checked_sub(1).map(|at| &self.0[at]) else {
            return false;
        };
        match range_end {
            [] => span.ends_after(key),
            [0] => span.end.is_none(),
            // etcd: a range that ends at or before its first key holds none, and needs the right to that key.
            _ if range_end <= key => span.ends_after(key),
            _ => {
                let end = span.end.as_ref();
                end.is_none_or(|end| end.as_slice() >= range_end)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::RangeBounds;

    /// All keys of up to three letters of a small alphabet, ascending.
    fn keys() -> Vec<Vec<u8>> {
        let alphabet = [0_u8, 1, b'a', b'b', 255];
        let mut keys = vec![Vec::new()];
        let mut all = Vec::new();
        for _ in 0..3 {
            keys = keys
                .iter()
                .flat_map(|key: &Vec<u8>| alphabet.iter().map(|byte| [&key[..], &[*byte]].concat()))
                .collect();
            all.extend(keys.clone());
        }
        all.sort();
        all
    }

    fn holds(key: &[u8], start: &[u8], end: &[u8]) -> bool {
        match end {
            [] => key == start,
            [0] => key >= start,
            _ => key >= start && key < end,
        }
    }

    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop::sample::select(vec![0_u8, 1, b'a', b'b', 255]);
        prop::collection::vec(byte, 1..3)
    }

    fn any_end() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![Just(vec![]), Just(vec![0]), any_key()]
    }

    /// As etcd admits permissions: with an end it is after the key, or there is none.
    fn any_permission() -> impl Strategy<Value = Permission> {
        (any_key(), any_end(), 0..4_i32)
            .prop_filter("the range makes sense", |(key, end, _)| {
                end.is_empty() || *end == [0] || key < end
            })
            .prop_map(|(key, range_end, kind)| Permission {
                kind,
                key,
                range_end,
            })
    }

    proptest! {
        #[test]
        fn intervals_decide_as_a_list_of_all_keys_does(
            permissions in prop::collection::vec(any_permission(), 0..8),
            key in any_key(),
            end in any_end(),
        ) {
            prop_assume!(end.is_empty() || end == [0] || key < end);
            let grants = Grants::compile(permissions.iter());
            let all = keys();
            let allowed = |kinds: [i32; 2]| {
                let granted = |one: &[u8]| {
                    permissions.iter().any(|grant| {
                        kinds.contains(&grant.kind) && holds(one, &grant.key, &grant.range_end)
                    })
                };
                let asked = all.iter().filter(|one| holds(one, &key, &end));
                // A range without end also holds what comes after every key of the list.
                let tail = end != [0]
                    || permissions.iter().any(|grant| {
                        kinds.contains(&grant.kind) && grant.range_end == [0]
                    });
                tail && asked.clone().all(|one| granted(one))
            };
            // What the list cannot see: keys longer than three letters between two of its keys.
            let implied = |found: bool, listed: bool| !found || listed;
            prop_assert!(implied(grants.may_read(&key, &end), allowed([0, 2])));
            prop_assert!(implied(grants.may_write(&key, &end), allowed([1, 2])));
            if end.is_empty() {
                prop_assert_eq!(grants.may_read(&key, &end), allowed([0, 2]));
                prop_assert_eq!(grants.may_write(&key, &end), allowed([1, 2]));
            }
        }

        /// The other direction: a range is covered if repeated steps from its first key on, each to the greatest end of a
        /// permission that holds the place reached, come to its end.
        #[test]
        fn ranges_are_covered_exactly_if_permissions_follow_each_other_to_their_end(
            permissions in prop::collection::vec(any_permission(), 0..8),
            key in any_key(),
            end in any_end(),
        ) {
            prop_assume!(end == [0] || key < end);
            let grants = Grants::compile(permissions.iter());
            for (kinds, found) in [
                ([0, 2], grants.may_read(&key, &end)),
                ([1, 2], grants.may_write(&key, &end)),
            ] {
                let mut place = Some(key.clone());
                for _ in 0..=permissions.len() {
                    let Some(now) = place.clone() else { break };
                    for grant in permissions.iter().filter(|grant| kinds.contains(&grant.kind)) {
                        if !holds(&now, &grant.key, &grant.range_end) {
                            continue;
                        }
                        let next = match &grant.range_end[..] {
                            [] => Some([&grant.key[..], &[0]].concat()),
                            [0] => None,
                            end => Some(end.to_vec()),
                        };
                        place = match (place, next) {
                            (Some(place), Some(next)) => Some(place.max(next)),
                            _ => None,
                        };
                    }
                }
                let expected = match (&place, &end[..]) {
                    (None, _) => true,
                    (Some(_), [0]) => false,
                    (Some(place), end) => place.as_slice() >= end,
                };
                prop_assert_eq!(found, expected, "{:?} {:?} {:?}", permissions, key, end);
            }
        }
    }

    proptest! {
        #[test]
        fn gaps_hold_the_keys_that_may_not_be_read_or_written(
            permissions in prop::collection::vec(any_permission(), 0..8),
        ) {
            let grants = Grants::compile(permissions.iter());
            for key in keys() {
                for (right, may) in [
                    (Right::Read, grants.may_read(&key, b"")),
                    (Right::Write, grants.may_write(&key, b"")),
                ] {
                    let in_gap = grants.gaps(right).any(|gap| RangeBounds::<[u8]>::contains(&gap, &key[..]));
                    prop_assert_eq!(in_gap, !may, "{:?} {:?} {:?}", permissions, key, right);
                }
            }
        }
    }

    fn read(key: &str, range_end: &str) -> Permission {
        Permission {
            kind: Permission::READ,
            key: key.into(),
            range_end: range_end.into(),
        }
    }

    #[test]
    fn intervals_that_touch_are_one_and_gaps_stay() {
        let grants = Grants::compile([read("p", "q"), read("q", "r"), read("s", "")].iter());
        for (key, end, expected) in [
            ("p", "r", true),
            ("p", "q\0", true),
            ("q", "", true),
            ("r", "", false),
            ("p", "s", false),
            ("s", "", true),
            ("s", "s\0", true),
            ("s", "s\0\0", false),
            ("s", "t", false),
            ("s", "\0", false),
            ("o", "p", false),
            ("o", "r", false),
            ("q", "p", true),
            ("q", "q", true),
            ("t", "p", false),
        ] {
            let found = grants.may_read(key.as_bytes(), end.as_bytes());
            assert_eq!(found, expected, "{key:?} to {end:?}");
            assert!(!grants.may_write(key.as_bytes(), end.as_bytes()));
        }
        let all = Grants::compile([read("\0", "\0"), read("a", "b")].iter());
        assert!(all.may_read(b"\0", b"\0") && all.may_read(b"x", b"") && all.may_read(b"x", b"\0"));
        let from = Grants::compile([read("m", "\0"), read("n", "z")].iter());
        assert!(from.may_read(b"z", b"\0") && !from.may_read(b"l", b"\0"));
    }
}
