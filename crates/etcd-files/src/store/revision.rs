//! The keys of the bucket `key`, which also are the values of compactions in `meta`.

use super::error::ItemFault;
use std::fmt;

const SEPARATOR: u8 = b'_';
const TOMBSTONE: u8 = b't';
const BYTES: usize = 17;

/// When a record was written: the revision of its transaction, and its number within that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// At least 1.
    pub main: i64,
    pub sub: u32,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

/// A revision as a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct RevisionKey {
    bytes: [u8; BYTES + 1],
    length: usize,
}

impl RevisionKey {
    pub(super) fn new(revision: Revision, tombstone: bool) -> Self {
        let mut bytes = [TOMBSTONE; BYTES + 1];
        bytes[..8].copy_from_slice(&revision.main.to_be_bytes());
        bytes[8] = SEPARATOR;
        bytes[9..BYTES].copy_from_slice(&u64::from(revision.sub).to_be_bytes());
        let length = BYTES + usize::from(tombstone);
        Self { bytes, length }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Reads a key: the revision, and whether it is that of a deletion.
pub(super) fn parse(key: &[u8]) -> Result<(Revision, bool), ItemFault> {
    let (main, sub, mark) = split(key)?;
    if let Some(found) = mark.filter(|mark| *mark != TOMBSTONE) {
        return Err(ItemFault::RevisionMark { found });
    }
    let out_of_range = ItemFault::RevisionRange { main, sub };
    match (i64::try_from(main), u32::try_from(sub)) {
        (Ok(main @ 1..), Ok(sub)) => Ok((Revision { main, sub }, mark.is_some())),
        _ => Err(out_of_range),
    }
}

/// Reads the revision of a compaction, which can be 0.
pub(super) fn parse_compaction(value: &[u8]) -> Result<i64, ItemFault> {
    let (main, sub, mark) = split(value)?;
    match (i64::try_from(main), sub, mark) {
        (Ok(main), 0, None) => Ok(main),
        _ => Err(ItemFault::RevisionRange { main, sub }),
    }
}

/// The two numbers, and the byte behind them.
fn split(key: &[u8]) -> Result<(u64, u64, Option<u8>), ItemFault> {
    let wrong_length = ItemFault::RevisionLength { bytes: key.len() };
    let Some((main, rest)) = key.split_first_chunk() else {
        return Err(wrong_length);
    };
    let (separator, sub, mark) = match rest {
        [separator, sub @ ..] if sub.len() == 8 => (separator, sub, None),
        [separator, sub @ .., mark] if sub.len() == 8 => (separator, sub, Some(*mark)),
        _ => return Err(wrong_length),
    };
    if *separator != SEPARATOR {
        return Err(ItemFault::RevisionSeparator { found: *separator });
    }
    let sub = sub.iter().fold(0, |sub, byte| sub << 8 | u64::from(*byte));
    Ok((u64::from_be_bytes(*main), sub, mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_they_were_written() {
        for main in [1, 2, 255, 256, i64::MAX] {
            for (sub, tombstone) in [(0, false), (7, true), (u32::MAX, false)] {
                let revision = Revision { main, sub };
                let key = RevisionKey::new(revision, tombstone);
                let read = parse(key.as_slice()).expect("a revision");
                assert_eq!(read, (revision, tombstone));
            }
        }
        let key = RevisionKey::new(Revision { main: 258, sub: 3 }, true);
        assert_eq!(key.as_slice(), b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
    }

    #[test]
    fn what_is_no_revision_is_refused() {
        let main = |main| RevisionKey::new(Revision { main, sub: 0 }, false);
        for main in [main(0), main(-1)] {
            let refused = parse(main.as_slice());
            assert!(matches!(refused, Err(ItemFault::RevisionRange { .. })));
        }
        let mut key = main(5).as_slice().to_vec();
        assert!(parse_compaction(&key).is_ok());
        key[12] = 1;
        assert!(matches!(parse(&key), Err(ItemFault::RevisionRange { .. })));
        assert!(parse_compaction(&key).is_err());
        key[8] = b'-';
        let separator = parse(&key);
        assert!(matches!(
            separator,
            Err(ItemFault::RevisionSeparator { found: b'-' })
        ));
        key[8] = b'_';
        key.push(b'x');
        assert!(matches!(
            parse(&key),
            Err(ItemFault::RevisionMark { found: b'x' })
        ));
        for bytes in [0, 7, 8, 9, 16, 19] {
            let refused = parse(&vec![b'_'; bytes]);
            assert!(
                matches!(refused, Err(ItemFault::RevisionLength { .. })),
                "{bytes}"
            );
        }
        assert_eq!(
            parse_compaction(main(0).as_slice()).expect("etcd allows it"),
            0
        );
    }
}
