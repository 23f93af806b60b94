//! One record of the bucket `key`: a key as a transaction left it. The rules here need no other record.

use super::{
    error::{ItemFault, StoreError},
    names::KEY,
    revision::{self, Revision},
};
use crate::{
    bolt::{Items, Source},
    messages::{KeyValue, MessageError},
};
use bytes::Bytes;
use prost::Message;
use std::iter::FusedIterator;

/// A record that was read and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub main: i64,
    pub sub: u32,
    /// The key was deleted.
    pub tombstone: bool,
    /// The encoded `KeyValue`, empty in the mark of a bumped revision.
    pub kv: Bytes,
    /// What `kv` decodes to; it shares the bytes.
    pub key_value: KeyValue,
}

impl Record {
    pub fn revision(&self) -> Revision {
        let Self { main, sub, .. } = *self;
        Revision { main, sub }
    }

    /// Whether this is not a key, but the mark of a bumped revision.
    pub fn is_bump(&self) -> bool {
        self.kv.is_empty()
    }

    pub fn as_record_ref(&self) -> RecordRef<'_> {
        RecordRef {
            main: self.main,
            sub: self.sub,
            tombstone: self.tombstone,
            kv: &self.kv,
        }
    }

    pub(super) fn error(&self, fault: ItemFault) -> StoreError {
        error(self.revision(), fault)
    }
}

/// A record that is written. `kv` is not verified again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordRef<'a> {
    pub main: i64,
    pub sub: u32,
    pub tombstone: bool,
    pub kv: &'a [u8],
}

/// The error of the record at this revision.
pub(super) fn error(revision: Revision, fault: ItemFault) -> StoreError {
    StoreError::Item {
        bucket: KEY,
        key: format!("revision {revision}"),
        fault,
    }
}

/// Verifies that revisions ascend. The keys of a bucket do, but a put and a deletion of the same revision have different keys.
#[derive(Debug, Default)]
pub(super) struct Ascending {
    previous: Option<Revision>,
}

impl Ascending {
    pub(super) fn next(&mut self, revision: Revision) -> Result<(), StoreError> {
        match self.previous.replace(revision) {
            Some(Revision { main, sub }) if revision <= (Revision { main, sub }) => {
                Err(error(revision, ItemFault::RevisionOrder { main, sub }))
            }
            _ => Ok(()),
        }
    }
}

/// All records in the order of their revisions. Ends after an error. In memory is one of them, beside what [`Items`] holds.
#[derive(Debug)]
pub struct Records<'a, S> {
    items: Option<Items<'a, S>>,
    ascending: Ascending,
    /// Where values are encoded again.
    scratch: Vec<u8>,
}

impl<'a, S: Source> Records<'a, S> {
    pub(super) fn new(items: Option<Items<'a, S>>) -> Self {
        Self {
            items,
            ascending: Ascending::default(),
            scratch: Vec::new(),
        }
    }

    fn read(&mut self) -> Result<Option<Record>, StoreError> {
        let Some((key, value)) = self.items.as_mut().and_then(Iterator::next).transpose()? else {
            return Ok(None);
        };
        let parsed = revision::parse(&key);
        let (revision, tombstone) = parsed.map_err(|fault| StoreError::item(KEY, &key, fault))?;
        self.ascending.next(revision)?;
        let kv = Bytes::from(value);
        let decoded = decode(revision, tombstone, &kv, &mut self.scratch);
        Ok(Some(Record {
            main: revision.main,
            sub: revision.sub,
            tombstone,
            key_value: decoded.map_err(|fault| error(revision, fault))?,
            kv,
        }))
    }
}

impl<S: Source> Iterator for Records<'_, S> {
    type Item = Result<Record, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if !matches!(read, Ok(Some(_))) {
            self.items = None;
        }
        read.transpose()
    }
}

impl<S: Source> FusedIterator for Records<'_, S> {}

fn decode(
    revision: Revision,
    tombstone: bool,
    kv: &Bytes,
    scratch: &mut Vec<u8>,
) -> Result<KeyValue, ItemFault> {
    const WHAT: &str = "KeyValue";
    if kv.is_empty() {
        // etcd: `etcdutl snapshot restore --bump-revision` writes this record.
        return if tombstone || revision.sub != 0 {
            Err(ItemFault::EmptyValue)
        } else {
            Ok(KeyValue::default())
        };
    }
    let malformed = |source| MessageError::Malformed { what: WHAT, source };
    let key_value = KeyValue::decode(kv.clone()).map_err(malformed)?;
    scratch.clear();
    if key_value.encode(scratch).is_err() || scratch != kv {
        let bytes = kv.len();
        return Err(ItemFault::NotCanonical { what: WHAT, bytes });
    }
    if key_value.key.is_empty() {
        return Err(ItemFault::EmptyKey);
    }
    if tombstone {
        check_tombstone(&key_value)?;
    } else {
        check_put(revision.main, &key_value)?;
    }
    Ok(key_value)
}

fn check_tombstone(key_value: &KeyValue) -> Result<(), ItemFault> {
    let KeyValue {
        key: _,
        create_revision,
        mod_revision,
        version,
        value,
        lease,
    } = key_value;
    let numbers = [create_revision, mod_revision, version, lease];
    if numbers != [&0; 4] || !value.is_empty() {
        return Err(ItemFault::TombstoneFields);
    }
    Ok(())
}

fn check_put(main: i64, key_value: &KeyValue) -> Result<(), ItemFault> {
    let KeyValue {
        create_revision: create,
        mod_revision,
        version,
        ..
    } = *key_value;
    if mod_revision != main {
        return Err(ItemFault::ModRevision {
            found: mod_revision,
        });
    }
    // A transaction puts a key once, so that each version after the first has a revision of its own. The first condition
    // keeps the difference from overflowing.
    let possible = (1..=main).contains(&create)
        && version >= 1
        && version - 1 <= main - create
        && (version == 1) == (create == main);
    if !possible {
        return Err(ItemFault::Version {
            version,
            create,
            main,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(main: i64, create_revision: i64, version: i64) -> Result<KeyValue, ItemFault> {
        let key_value = KeyValue {
            key: "k".into(),
            create_revision,
            mod_revision: 9,
            version,
            ..KeyValue::default()
        };
        decode_at(main, false, key_value.encode_to_vec())
    }

    fn decode_at(main: i64, tombstone: bool, kv: Vec<u8>) -> Result<KeyValue, ItemFault> {
        let revision = Revision { main, sub: 0 };
        decode(revision, tombstone, &kv.into(), &mut Vec::new())
    }

    #[test]
    fn a_version_fits_the_revisions() {
        for (create, version) in [(9, 1), (8, 2), (1, 9), (1, 2)] {
            put(9, create, version).expect("possible");
        }
        let impossible = [
            (9, 2),
            (8, 1),
            (8, 3),
            (10, 1),
            (0, 9),
            (-1, 3),
            (8, 0),
            (8, -1),
        ];
        for (create, version) in impossible.into_iter().chain([(i64::MIN, i64::MIN)]) {
            let fault = put(9, create, version).expect_err("impossible");
            assert!(matches!(fault, ItemFault::Version { .. }), "{fault}");
        }
        let fault = put(10, 9, 1).expect_err("another revision");
        assert!(matches!(fault, ItemFault::ModRevision { found: 9 }));
    }

    #[test]
    fn values_are_encoded_as_etcd_does() {
        decode_at(5, true, b"\x0a\x01k".to_vec()).expect("a deletion");
        decode_at(5, false, Vec::new()).expect("a bump");
        let fault =
            |tombstone, kv: &[u8]| decode_at(5, tombstone, kv.to_vec()).expect_err("a fault");
        assert!(matches!(fault(true, b""), ItemFault::EmptyValue));
        assert!(matches!(fault(true, b"\x0a\x02k"), ItemFault::Message(_)));
        assert!(matches!(
            fault(true, b"\x0a\x01k\x10\x01"),
            ItemFault::TombstoneFields
        ));
        assert!(matches!(fault(true, b"\x10\x01"), ItemFault::EmptyKey));
        // A zero that is encoded, a field that is not known, and the key given twice.
        for kv in [b"\x0a\x01k\x10\x00", b"\x0a\x01k\x40\x01"] {
            assert!(matches!(fault(true, kv), ItemFault::NotCanonical { .. }));
        }
        let twice = fault(true, b"\x0a\x01k\x0a\x01k");
        assert!(matches!(twice, ItemFault::NotCanonical { .. }));
    }
}
