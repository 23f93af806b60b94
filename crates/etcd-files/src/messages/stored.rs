//! Protobufs that are keys or values of the database. Those of its buckets `authUsers` and `authRoles` are in `auth`.

use super::{error::MessageError, kv::AlarmKind};
use bytes::Bytes;
use prost::Message;

/// Longest encoding that `decode_value` takes. A message of many small parts is some thirty times as large in memory. The
/// values of `key` have no such parts, and no such bound: decode them with `KeyValue::decode`.
pub const VALUE_BYTES_MAX: usize = 4 << 20;

/// A value of the bucket `key`. A tombstone has only a key.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    #[prost(int64, tag = "2")]
    pub create_revision: i64,
    #[prost(int64, tag = "3")]
    pub mod_revision: i64,
    #[prost(int64, tag = "4")]
    pub version: i64,
    #[prost(bytes = "bytes", tag = "5")]
    pub value: Bytes,
    #[prost(int64, tag = "6")]
    pub lease: i64,
}

/// A value of the bucket `lease`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Seconds.
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    /// Seconds that were left at the last checkpoint; 0 if there was none.
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// A key of the bucket `alarm`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AlarmMember {
    #[prost(uint64, tag = "1")]
    pub member_id: u64,
    /// An `AlarmKind`.
    #[prost(enumeration = "AlarmKind", tag = "2")]
    pub alarm: i32,
}

/// Decodes a small value, such as a role. `what` names it in the error.
pub fn decode_value<M: Message + Default>(
    what: &'static str,
    value: &[u8],
) -> Result<M, MessageError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(MessageError::TooLong {
            what,
            bytes: value.len(),
            max: VALUE_BYTES_MAX,
        });
    }
    M::decode(value).map_err(|source| MessageError::Malformed { what, source })
}
