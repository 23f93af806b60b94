//! Random operations on so few keys that they affect each other often.

use bytes::Bytes;
use fastrand::Rng;
use quorate::internals::api::proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest, compare::TargetUnion, request_op::Request,
};
use std::ops::RangeInclusive;

const KEYS: [&[u8]; 12] = [
    b"a",
    b"aa",
    b"ab",
    b"b",
    b"ba",
    b"c",
    b"d",
    b"\0",
    b"\0\0",
    b"\xff",
    b"\xff\xff",
    b"e\0f",
];
const VALUES: [&[u8]; 6] = [
    b"",
    b"1",
    b"2",
    b"22",
    b"\0",
    b"a longer value, to have one",
];
const ABOVE_ALL_KEYS: &[u8] = b"\xff\xff\xff";
/// Nested transactions below the outermost one.
const DEPTH_MAX: u8 = 2;

#[derive(Clone, Debug)]
pub(super) enum Operation {
    Range(RangeRequest),
    Put(PutRequest),
    Delete(DeleteRangeRequest),
    Txn(TxnRequest),
    Compact(CompactionRequest),
}

/// Generates operations. It tracks the store's revisions, so that most revisions in requests exist.
#[derive(Debug)]
pub(super) struct Generator {
    random: Rng,
    revision: i64,
    compacted: i64,
}

impl Generator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            revision: 1,
            compacted: -1,
        }
    }

    /// Tracks the effect of a successful operation on the revisions.
    pub(super) fn learn(&mut self, operation: &Operation, revision: i64) {
        self.revision = revision;
        if let Operation::Compact(request) = operation {
            self.compacted = request.revision;
        }
    }

    /// The revisions that can be read.
    pub(super) fn readable(&self) -> RangeInclusive<i64> {
        self.compacted.max(1)..=self.revision
    }

    pub(super) fn next(&mut self) -> Operation {
        match self.random.u8(..100) {
            0..35 => Operation::Put(self.put()),
            35..60 => Operation::Range(self.range()),
            60..68 => Operation::Delete(self.delete()),
            68..98 => Operation::Txn(self.careful_or_wild_txn()),
            _ => Operation::Compact(self.compaction()),
        }
    }

    fn chance(&mut self, percent: u8) -> bool {
        self.random.u8(..100) < percent
    }

    fn key(&mut self) -> Bytes {
        if self.chance(1) {
            return Bytes::new();
        }
        Bytes::from_static(KEYS[self.random.usize(..KEYS.len())])
    }

    fn value(&mut self) -> Bytes {
        Bytes::from_static(VALUES[self.random.usize(..VALUES.len())])
    }

    fn range_end(&mut self) -> Bytes {
        match self.random.u8(..10) {
            0..4 => Bytes::new(),
            4 | 5 => Bytes::from_static(b"\0"),
            6 => Bytes::from_static(b"\0\0"),
            _ => self.key(),
        }
    }

    /// Mostly a revision that can be read, sometimes one just outside.
    fn revision(&mut self) -> i64 {
        match self.random.u8(..20) {
            0..11 => 0,
            11 => -self.random.i64(1..4),
            _ => self
                .random
                .i64((self.compacted - 1).max(1)..=self.revision + 1),
        }
    }

    fn put(&mut self) -> PutRequest {
        let ignore_value = self.chance(6);
        let mut request = PutRequest {
            key: self.key(),
            value: self.value(),
            lease: 0,
            prev_kv: self.chance(40),
            ignore_value,
            ignore_lease: self.chance(6),
        };
        if ignore_value && self.chance(80) {
            request.value = Bytes::new();
        }
        if self.chance(if request.ignore_lease { 20 } else { 3 }) {
            request.lease = self.random.i64(-2..9);
        }
        request
    }

    fn range(&mut self) -> RangeRequest {
        let mut request = RangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            revision: self.revision(),
            serializable: self.chance(30),
            keys_only: self.chance(15),
            count_only: self.chance(10),
            ..Default::default()
        };
        if self.chance(40) {
            request.limit = self.random.i64(-1..7);
        }
        if self.chance(50) {
            request.sort_order = self.random.i32(0..3);
            request.sort_target = self.random.i32(0..5);
        }
        if self.chance(20) {
            self.filter(&mut request);
        }
        if request.keys_only && request.sort_target == 4 {
            // The order of equal values is undefined, and without the values in the answer ties cannot be recognised.
            request.limit = 0;
        }
        request
    }

    fn filter(&mut self, request: &mut RangeRequest) {
        let bound = self
            .random
            .i64((self.revision - 20).max(-1)..=self.revision + 1);
        match self.random.u8(..4) {
            0 => request.min_mod_revision = bound,
            1 => request.max_mod_revision = bound,
            2 => request.min_create_revision = bound,
            _ => request.max_create_revision = bound,
        }
    }

    fn delete(&mut self) -> DeleteRangeRequest {
        DeleteRangeRequest {
            key: self.key(),
            range_end: self.range_end(),
            prev_kv: self.chance(50),
        }
    }

    fn compaction(&mut self) -> CompactionRequest {
        let lowest = self.compacted - 1;
        let revision = match self.random.u8(..4) {
            0 => self.random.i64(lowest..=self.revision + 2),
            // By one revision, so that enough of the history remains.
            _ => self.compacted + (self.revision - self.compacted) / 4,
        };
        CompactionRequest {
            revision,
            physical: self.chance(50),
        }
    }

    /// Random transactions would mostly fail because of duplicate keys, so most are generated without duplicates.
    fn careful_or_wild_txn(&mut self) -> TxnRequest {
        let mut keys = KEYS.to_vec();
        self.random.shuffle(&mut keys);
        let mut writable = self
            .chance(80)
            .then(|| keys.into_iter().map(Bytes::from_static).collect());
        self.txn(DEPTH_MAX, &mut writable)
    }

    fn txn(&mut self, depth: u8, writable: &mut Option<Vec<Bytes>>) -> TxnRequest {
        let compare = (0..self.random.u8(..3)).map(|_| self.compare()).collect();
        let success = (0..self.random.u8(..5))
            .map(|_| self.operation(depth, writable))
            .collect();
        let failure = (0..self.random.u8(..4))
            .map(|_| self.operation(depth, writable))
            .collect();
        TxnRequest {
            compare,
            success,
            failure,
        }
    }

    fn operation(&mut self, depth: u8, writable: &mut Option<Vec<Bytes>>) -> RequestOp {
        if self.chance(1) {
            return RequestOp { request: None };
        }
        let request = match self.random.u8(..10) {
            0..4 => Request::RequestRange(self.range()),
            4..7 => match self.writable_key(writable) {
                Some(key) => Request::RequestPut(PutRequest { key, ..self.put() }),
                None => Request::RequestRange(self.range()),
            },
            7 | 8 => {
                let range = self.delete();
                match (writable.is_some(), self.writable_key(writable)) {
                    (true, Some(key)) => {
                        let range_end = Bytes::new();
                        Request::RequestDeleteRange(DeleteRangeRequest {
                            key,
                            range_end,
                            ..range
                        })
                    }
                    _ => Request::RequestDeleteRange(bounded(range)),
                }
            }
            _ if depth > 0 => Request::RequestTxn(self.txn(depth - 1, writable)),
            _ => Request::RequestRange(self.range()),
        };
        RequestOp {
            request: Some(request),
        }
    }

    /// A key that no other operation of the transaction writes, or any key if duplicates are allowed.
    fn writable_key(&mut self, writable: &mut Option<Vec<Bytes>>) -> Option<Bytes> {
        match writable {
            Some(keys) => keys.pop(),
            None => Some(self.key()),
        }
    }

    fn compare(&mut self) -> Compare {
        let revision = self.random.i64((self.revision - 15).max(0)..=self.revision);
        let operand = match self.random.u8(..12) {
            0..3 => TargetUnion::Version(self.random.i64(-1..5)),
            3 | 4 => TargetUnion::CreateRevision(if self.chance(40) { 0 } else { revision }),
            5 | 6 => TargetUnion::ModRevision(if self.chance(40) { 0 } else { revision }),
            7..10 => TargetUnion::Value(self.value()),
            _ => TargetUnion::Lease(self.random.i64(-1..2)),
        };
        let matching = match operand {
            TargetUnion::Version(_) => 0,
            TargetUnion::CreateRevision(_) => 1,
            TargetUnion::ModRevision(_) => 2,
            TargetUnion::Value(_) => 3,
            TargetUnion::Lease(_) => 4,
        };
        Compare {
            result: self.random.i32(0..4),
            // Sometimes an operand that belongs to another target, or an unknown target.
            target: if self.chance(95) {
                matching
            } else {
                self.random.i32(0..6)
            },
            key: self.key(),
            range_end: if self.chance(30) {
                self.range_end()
            } else {
                Bytes::new()
            },
            target_union: if self.chance(97) { Some(operand) } else { None },
        }
    }
}

/// The same keys without the form "all from this key on", which crashes etcd: see `normalise`.
fn bounded(mut range: DeleteRangeRequest) -> DeleteRangeRequest {
    if range.range_end == b"\0".as_slice() {
        range.range_end = Bytes::from_static(ABOVE_ALL_KEYS);
    }
    range
}
