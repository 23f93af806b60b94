//! Operations of transactions, for tests.

use super::command::{DeleteRange, Put, Txn, TxnOp};
use bytes::Bytes;

pub(super) fn put_op(key: impl Into<Bytes>) -> TxnOp {
    let key: Bytes = key.into();
    TxnOp::Put(Put {
        key: key.into(),
        ..Put::default()
    })
}

pub(super) fn delete_op(key: impl Into<Bytes>, range_end: impl Into<Bytes>) -> TxnOp {
    let (key, range_end): (Bytes, Bytes) = (key.into(), range_end.into());
    TxnOp::DeleteRange(DeleteRange {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: false,
    })
}

pub(super) fn nested(success: Vec<TxnOp>, failure: Vec<TxnOp>) -> TxnOp {
    TxnOp::Txn(Txn {
        compares: Vec::new(),
        success,
        failure,
    })
}
