//! The stored form of a key's state: the protobuf `mvccpb.KeyValue` that clients receive.
//!
//! It is written once, when a change is applied, and from then on moved as bytes: into the database, into range responses,
//! into watch events. Only this module has the encoding. Fields stand in ascending order and zero values are left out, as
//! etcd writes them, so that hashes over the bytes agree with etcd's.

use super::command::EncodedKv;
use crate::types::{LeaseId, Revision};
use bytes::{Buf, BufMut, Bytes};

const KEY: u8 = 1 << 3 | 2;
const CREATE_REVISION: u8 = 2 << 3;
const MOD_REVISION: u8 = 3 << 3;
const VERSION: u8 = 4 << 3;
const VALUE: u8 = 5 << 3 | 2;
const LEASE: u8 = 6 << 3;

/// A key's state, decoded. Its byte strings share the buffer it was decoded from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    pub key: Bytes,
    /// Revision of the put that created this incarnation.
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
    /// Puts since creation, counted from 1.
    pub version: i64,
    pub value: Bytes,
    /// The lease it is attached to, or zero.
    pub lease: LeaseId,
}

/// The bytes are not a `KeyValue`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed stored key-value at byte {at}")]
pub struct RecordError {
    /// Where decoding stopped.
    pub at: usize,
}

impl KeyValue {
    pub fn decode(encoded: &EncodedKv) -> Result<Self, RecordError> {
        let mut kv = Self::default();
        let mut rest = encoded.clone();
        while rest.has_remaining() {
            let at = encoded.len() - rest.remaining();
            kv.decode_field(&mut rest).ok_or(RecordError { at })?;
        }
        Ok(kv)
    }

    fn decode_field(&mut self, rest: &mut Bytes) -> Option<()> {
        match rest.get_u8() {
            KEY => self.key = take_bytes(rest)?,
            CREATE_REVISION => self.create_revision = Revision(take_i64(rest)?),
            MOD_REVISION => self.mod_revision = Revision(take_i64(rest)?),
            VERSION => self.version = take_i64(rest)?,
            VALUE => self.value = take_bytes(rest)?,
            LEASE => self.lease = LeaseId(take_i64(rest)?),
            _ => return None,
        }
        Some(())
    }

    pub fn encode(&self) -> EncodedKv {
        encode(&Fields {
            key: &self.key,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            value: &self.value,
            lease: self.lease,
        })
    }
}

/// A key's state about to be encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fields<'a> {
    pub key: &'a [u8],
    /// Revision of the put that created this incarnation.
    pub create_revision: Revision,
    /// Revision of the last put.
    pub mod_revision: Revision,
    /// Puts since creation.
    pub version: i64,
    pub value: &'a [u8],
    /// The lease, or zero.
    pub lease: LeaseId,
}

/// Encodes a key's state in one allocation of the exact size.
pub fn encode(kv: &Fields<'_>) -> EncodedKv {
    let numbers = [
        kv.create_revision.0,
        kv.mod_revision.0,
        kv.version,
        kv.lease.0,
    ];
    let numbers_len: usize = numbers.iter().map(|&n| number_len(n)).sum();
    let len = bytes_len(kv.key) + bytes_len(kv.value) + numbers_len;
    let mut out = Vec::with_capacity(len);
    put_bytes(&mut out, KEY, kv.key);
    put_number(&mut out, CREATE_REVISION, kv.create_revision.0);
    put_number(&mut out, MOD_REVISION, kv.mod_revision.0);
    put_number(&mut out, VERSION, kv.version);
    put_bytes(&mut out, VALUE, kv.value);
    put_number(&mut out, LEASE, kv.lease.0);
    assert_eq!(
        out.len(),
        len,
        "the length was computed from the same fields"
    );
    out.into()
}

/// The stored form of a deletion: the key alone.
pub fn encode_tombstone(key: &[u8]) -> EncodedKv {
    encode(&Fields {
        key,
        ..Fields::default()
    })
}

/// The key of a stored `KeyValue`, sharing its buffer; empty if there is none.
pub fn key_of(encoded: &EncodedKv) -> Bytes {
    let mut rest = encoded.clone();
    if rest.first() == Some(&KEY) {
        rest.advance(1);
        return take_bytes(&mut rest).unwrap_or_default();
    }
    Bytes::new()
}

/// The key of a stored `KeyValue`, borrowed.
pub fn key_slice(encoded: &[u8]) -> &[u8] {
    let Some((&KEY, mut rest)) = encoded.split_first() else {
        return &[];
    };
    let mut len = 0_usize;
    for shift in (0..usize::BITS).step_by(7) {
        let Some((&byte, after)) = rest.split_first() else {
            return &[];
        };
        rest = after;
        len |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return rest.get(..len).unwrap_or_default();
        }
    }
    &[]
}

/// The revision of the put that created this incarnation of the key; zero in a deletion's record.
pub fn create_revision_of(encoded: &EncodedKv) -> Revision {
    // The code that decodes the whole record reports a field that cannot be read.
    KeyValue::decode(encoded).map_or(Revision(0), |kv| kv.create_revision)
}

/// Bytes of `value` as a protobuf varint.
pub fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value` as a protobuf varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.put_u8(value.to_le_bytes()[0]);
}

fn take_varint(rest: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = rest.first().copied()?;
        rest.advance(1);
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_i64(rest: &mut Bytes) -> Option<i64> {
    take_varint(rest).map(u64::cast_signed)
}

fn take_bytes(rest: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(take_varint(rest)?).ok()?;
    (len <= rest.len()).then(|| rest.split_to(len))
}

fn number_len(value: i64) -> usize {
    if value == 0 {
        0
    } else {
        1 + varint_len(value.cast_unsigned())
    }
}

fn bytes_len(value: &[u8]) -> usize {
    if value.is_empty() {
        0
    } else {
        1 + varint_len(value.len() as u64) + value.len()
    }
}

fn put_number(out: &mut Vec<u8>, tag: u8, value: i64) {
    if value != 0 {
        out.push(tag);
        put_varint(out, value.cast_unsigned());
    }
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    if !value.is_empty() {
        out.push(tag);
        put_varint(out, value.len() as u64);
        out.extend_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_stand_in_etcds_order_without_zeros() {
        let kv = KeyValue {
            key: Bytes::from_static(b"k"),
            create_revision: Revision(2),
            mod_revision: Revision(300),
            version: 1,
            value: Bytes::from_static(b"v"),
            lease: LeaseId(0),
        };
        let expected = [
            0x0a, 1, b'k', 0x10, 2, 0x18, 0xac, 2, 0x20, 1, 0x2a, 1, b'v',
        ];
        assert_eq!(kv.encode().as_ref(), expected, "golden bytes");
        assert_eq!(
            encode_tombstone(b"k").as_ref(),
            [0x0a, 1, b'k'],
            "key alone"
        );
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            key: Vec<u8>, value: Vec<u8>, create: i64, modified: i64, version: i64, lease: i64,
        ) {
            let kv = KeyValue {
                key: key.into(),
                create_revision: Revision(create),
                mod_revision: Revision(modified),
                version,
                value: value.into(),
                lease: LeaseId(lease),
            };
            let encoded = kv.encode();
            prop_assert_eq!(key_of(&encoded), kv.key.clone());
            prop_assert_eq!(key_slice(&encoded), kv.key.as_ref());
            prop_assert_eq!(KeyValue::decode(&encoded), Ok(kv));
        }

        #[test]
        fn any_bytes_decode_or_err(bytes: Vec<u8>) {
            let bytes = Bytes::from(bytes);
            if let Err(error) = KeyValue::decode(&bytes) {
                prop_assert!(error.at < bytes.len());
            }
        }
    }
}
