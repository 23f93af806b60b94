//! Decodes `TxnRequest`, however deep transactions nest in it, as long as their number and depth are allowed.
//!
//! The protobuf library decodes at most 100 levels of messages, which are 50 levels of transactions; etcd accepts 128. So a
//! deeper message is split at its nested transactions, and the library decodes the parts between them.

use super::{
    proto::{etcdserverpb as pb, wire_types},
    status::Status,
};
use crate::kv::encoded_txn::{self, FAILURE, Fields, NESTED, SUCCESS};
use bytes::Bytes;
use prost::{DecodeError, Message};

/// Levels of transactions that the library decodes: two messages each, and one for what is in the last.
const LIBRARY_LEVELS_MAX: usize = 45;

/// Checks the size of a transaction, then decodes it.
pub(super) fn decode(message: Bytes, ops_max: usize) -> Result<pb::TxnRequest, Status> {
    let levels = encoded_txn::check(&message, ops_max)?;
    let decoded = if levels <= LIBRARY_LEVELS_MAX {
        wire_types::decode(message)
    } else {
        deep(&message)
    };
    decoded.map_err(|error| Status::malformed_message(&error))
}

/// Recursive, as deep as [`encoded_txn::check`] allows.
fn deep(message: &[u8]) -> Result<pb::TxnRequest, DecodeError> {
    let mut txn = pb::TxnRequest::default();
    let mut fields = Fields::new(message);
    while let Some((number, content)) = fields.next() {
        match number {
            SUCCESS => txn.success.push(operation(content)?),
            FAILURE => txn.failure.push(operation(content)?),
            // Compares, and unknown fields.
            _ => txn.merge(fields.last_field())?,
        }
    }
    // The library reports what cannot be split into fields.
    txn.merge(fields.rest())?;
    Ok(txn)
}

fn operation(message: &[u8]) -> Result<pb::RequestOp, DecodeError> {
    let mut fields = Fields::new(message);
    match (fields.next(), fields.rest()) {
        (Some((NESTED, txn)), []) => Ok(pb::RequestOp {
            request: Some(pb::request_op::Request::RequestTxn(deep(txn)?)),
        }),
        _ => wire_types::decode(Bytes::copy_from_slice(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> pb::RequestOp {
        let put = pb::PutRequest {
            key: key.into(),
            value: "value".into(),
            ..pb::PutRequest::default()
        };
        pb::RequestOp {
            request: Some(pb::request_op::Request::RequestPut(put)),
        }
    }

    fn chain(levels: usize) -> pb::TxnRequest {
        let compare = pb::Compare {
            key: "k".into(),
            ..pb::Compare::default()
        };
        let mut txn = pb::TxnRequest::default();
        for _ in 1..levels {
            let nested = pb::RequestOp {
                request: Some(pb::request_op::Request::RequestTxn(txn)),
            };
            txn = pb::TxnRequest {
                compare: vec![compare.clone()],
                success: vec![put("before"), nested, put("after")],
                failure: vec![put("otherwise")],
            };
        }
        txn
    }

    fn decoded(message: Vec<u8>) -> Option<pb::TxnRequest> {
        decode(message.into(), 128).ok()
    }

    #[test]
    fn all_depths_are_decoded_alike() {
        for levels in [1, 2, LIBRARY_LEVELS_MAX, LIBRARY_LEVELS_MAX + 1, 60, 128] {
            let txn = chain(levels);
            let bytes = txn.encode_to_vec();
            assert_eq!(decoded(bytes.clone()), Some(txn.clone()), "{levels} levels");
            assert_eq!(deep(&bytes).ok(), Some(txn), "{levels} levels");
            let mut more = bytes.clone();
            more.extend_from_slice(b"\x78\x01"); // an unknown field
            assert!(decoded(more).is_some(), "{levels} levels");
            let cut = &bytes[..bytes.len().saturating_sub(1)];
            assert_eq!(decoded(cut.to_vec()).is_some(), levels == 1);
        }
        assert_eq!(decoded(chain(129).encode_to_vec()), None);
    }
}
