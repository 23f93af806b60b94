//! Removes the fields of a request whose wire type is not the one of its message.
//!
//! etcd: since 3.7 its protobuf library skips such a field like an unknown one; `prost` refuses the whole message. A request that
//! `prost` refuses is cleaned here and decoded once more, so well-formed requests do not pay for it.

use crate::{etcdserverpb as pb, v3electionpb as ep};
use bytes::{Buf, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{
        DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
    },
};
use std::any::TypeId;

/// Messages nested deeper than this are refused, as `prost` does.
const DEPTH_MAX: usize = 100;

/// Cleans a nested message of one type.
type Clean = fn(Bytes, usize) -> Option<Vec<u8>>;

/// Decodes a request. A field with the wrong wire type is skipped.
pub fn decode<M: Message + Default + 'static>(message: Bytes) -> Result<M, DecodeError> {
    let error = match M::decode(message.clone()) {
        Ok(decoded) => return Ok(decoded),
        Err(error) => error,
    };
    let cleaned = clean::<M>(message, 0).map(|cleaned| M::decode(&cleaned[..]));
    match cleaned {
        Some(Ok(decoded)) => Ok(decoded),
        Some(Err(_)) | None => Err(error),
    }
}

/// `message` without the fields that `M` cannot decode; `None` if it is malformed in another way.
fn clean<M: Message + Default + 'static>(mut rest: Bytes, depth: usize) -> Option<Vec<u8>> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut kept = Vec::with_capacity(rest.len());
    while rest.has_remaining() {
        let field = rest.clone();
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        let mut value = rest.clone();
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
        if !accepts::<M>(tag, wire_type) {
            continue;
        }
        match nested(TypeId::of::<M>(), tag) {
            Some(clean) if wire_type == WireType::LengthDelimited => {
                let len = usize::try_from(decode_varint(&mut value).ok()?).ok()?;
                let cleaned = clean(value.split_to(len), depth + 1)?;
                encode_key(tag, wire_type, &mut kept);
                encode_varint(cleaned.len() as u64, &mut kept);
                kept.extend_from_slice(&cleaned);
            }
            Some(_) | None => kept.extend_from_slice(&field[..field.len() - rest.len()]),
        }
    }
    Some(kept)
}

/// Whether `M` decodes a field with this wire type, or does not know it. Tried out with the shortest value of the type.
fn accepts<M: Message + Default>(tag: u32, wire_type: WireType) -> bool {
    let mut value: &[u8] = match wire_type {
        WireType::Varint | WireType::LengthDelimited => &[0],
        WireType::ThirtyTwoBit => &[0; 4],
        WireType::SixtyFourBit => &[0; 8],
        WireType::StartGroup | WireType::EndGroup => return false,
    };
    let context = DecodeContext::default();
    M::default()
        .merge_field(tag, wire_type, &mut value, context)
        .is_ok()
}

/// The messages inside requests.
fn nested(message: TypeId, tag: u32) -> Option<Clean> {
    let is = |other: TypeId| message == other;
    if is(TypeId::of::<pb::TxnRequest>()) {
        return match tag {
            1 => Some(clean::<pb::Compare>),
            2 | 3 => Some(clean::<pb::RequestOp>),
            _ => None,
        };
    }
    if is(TypeId::of::<pb::RequestOp>()) {
        return match tag {
            1 => Some(clean::<pb::RangeRequest>),
            2 => Some(clean::<pb::PutRequest>),
            3 => Some(clean::<pb::DeleteRangeRequest>),
            4 => Some(clean::<pb::TxnRequest>),
            _ => None,
        };
    }
    if is(TypeId::of::<pb::WatchRequest>()) {
        return match tag {
            1 => Some(clean::<pb::WatchCreateRequest>),
            2 => Some(clean::<pb::WatchCancelRequest>),
            3 => Some(clean::<pb::WatchProgressRequest>),
            _ => None,
        };
    }
    let has_leader_key =
        is(TypeId::of::<ep::ProclaimRequest>()) || is(TypeId::of::<ep::ResignRequest>());
    (has_leader_key && tag == 1).then_some(clean::<ep::LeaderKey>)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned<M: Message + Default + 'static>(bytes: &[u8]) -> Option<M> {
        decode(Bytes::copy_from_slice(bytes)).ok()
    }

    #[test]
    fn mismatched_fields_are_removed_at_every_level() {
        // A varint, four bytes, eight bytes and a group where the key, a string, belongs.
        let noise: &[u8] = b"\x08\x01\x0d1234\x0912345678\x0b\x10\x01\x0c";
        let put = pb::PutRequest {
            key: "k".into(),
            value: "v".into(),
            lease: 7,
            ..Default::default()
        };
        let mut bytes = [noise, &put.encode_to_vec(), noise].concat();
        assert_eq!(cleaned::<pb::PutRequest>(&bytes), Some(put.clone()));
        let nest = |tag: u8, inner: &[u8]| {
            let mut outer = noise[..2].to_vec();
            outer.push(tag << 3 | 2);
            encode_varint(inner.len() as u64, &mut outer);
            outer.extend_from_slice(inner);
            outer
        };
        // A put in an operation of a transaction, and that transaction in an operation of another.
        for tag in [2, 4] {
            bytes = nest(2, &nest(tag, &bytes));
        }
        let txn = cleaned::<pb::TxnRequest>(&bytes).unwrap();
        let inner = match txn.success[0].request.clone().unwrap() {
            pb::request_op::Request::RequestTxn(inner) => inner,
            other => panic!("a transaction, not {other:?}"),
        };
        let op = inner.success[0].request.clone().unwrap();
        assert_eq!(op, pb::request_op::Request::RequestPut(put));
    }

    #[test]
    fn what_is_malformed_stays_so() {
        let table: [&[u8]; 5] = [b"\x0a\x7fa", b"\x08\x80", b"\x00", b"\x0f", b"\x0c"];
        for bytes in table {
            assert_eq!(cleaned::<pb::RangeRequest>(bytes), None, "{bytes:?}");
        }
        let mut deep = Vec::new();
        for _ in 0..1_000 {
            for tag in [0x22_u8, 0x12] {
                let mut outer = vec![tag];
                encode_varint(deep.len() as u64, &mut outer);
                outer.append(&mut deep);
                deep = outer;
            }
        }
        assert_eq!(cleaned::<pb::TxnRequest>(&deep), None, "too deep");
    }
}
