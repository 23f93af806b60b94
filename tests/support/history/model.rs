//! Requests and answers, reduced to what a history needs: sorts and filters of ranges are left to other tests.

use bytes::Bytes;

/// A key, or the end of a range: as on the wire, an empty end is a single key, and one zero byte is "from key on".
pub(crate) type Key = Bytes;

pub(crate) type Value = Bytes;

/// A store revision; a fresh store is at 1.
pub(crate) type Revision = i64;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct KeyValue {
    pub(crate) key: Key,
    pub(crate) create_revision: Revision,
    pub(crate) mod_revision: Revision,
    pub(crate) version: i64,
    pub(crate) value: Value,
    /// Zero is none.
    pub(crate) lease: i64,
}

/// One change of a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The key's new state.
    Put(KeyValue),
    /// The key is gone.
    Delete(Key),
}

impl Event {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete(key) => key,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// Give up the history before this revision.
    Compact(Revision),
    /// End a lease and delete its keys in one revision.
    RevokeLease(i64),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) key: Key,
    pub(crate) range_end: Key,
    /// Zero is no limit.
    pub(crate) limit: usize,
    /// Zero is the newest.
    pub(crate) revision: Revision,
    pub(crate) serializable: bool,
    pub(crate) count_only: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) key: Key,
    pub(crate) value: Value,
    pub(crate) lease: i64,
    pub(crate) prev_kv: bool,
    pub(crate) ignore_value: bool,
    pub(crate) ignore_lease: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteRange {
    pub(crate) key: Key,
    pub(crate) range_end: Key,
    pub(crate) prev_kv: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    pub(crate) compares: Vec<Compare>,
    pub(crate) success: Vec<TxnOp>,
    pub(crate) failure: Vec<TxnOp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TxnOp {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Compare {
    pub(crate) key: Key,
    pub(crate) relation: Relation,
    pub(crate) operand: Operand,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// The property compared, with what it is compared to. A missing key has zeros, and no value: nothing holds for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Version(i64),
    Create(Revision),
    Mod(Revision),
    Lease(i64),
    Value(Value),
}

/// What was answered, besides the header's revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Range {
        kvs: Vec<KeyValue>,
        count: usize,
        more: bool,
    },
    Put {
        prev: Option<KeyValue>,
    },
    DeleteRange {
        deleted: usize,
        prevs: Vec<KeyValue>,
    },
    Txn {
        succeeded: bool,
        answers: Vec<Answer>,
    },
    /// A compaction, or a lease's end.
    Done,
}

/// Why a request had no effect, for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It asks for a revision that was compacted away.
    Compacted,
    /// It asks for a revision that does not exist yet.
    Future,
    /// Any other reason: it never entered the log, or every member refuses it.
    NotDone,
}

impl Txn {
    /// Whether neither branch can write, at any depth.
    pub(crate) fn is_read_only(&self) -> bool {
        let reads = |op: &TxnOp| match op {
            TxnOp::Range(_) => true,
            TxnOp::Txn(inner) => inner.is_read_only(),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) => false,
        };
        self.success.iter().chain(&self.failure).all(reads)
    }
}

impl Request {
    /// Whether it is answered from one member's own state, which may be behind. As in etcd, a transaction is if each of its
    /// operations asks for that, and there is nothing else in it.
    pub(crate) fn is_serializable(&self) -> bool {
        let own = |op: &TxnOp| matches!(op, TxnOp::Range(range) if range.serializable);
        match self {
            Self::Range(range) => range.serializable,
            Self::Txn(txn) => txn.success.iter().chain(&txn.failure).all(own),
            Self::Put(_) | Self::DeleteRange(_) | Self::Compact(_) | Self::RevokeLease(_) => false,
        }
    }

    /// The revisions it names: those must not be compacted. Of a transaction, those of both branches.
    pub(crate) fn revisions_read(&self) -> Vec<Revision> {
        fn of(txn: &Txn, found: &mut Vec<Revision>) {
            for op in txn.success.iter().chain(&txn.failure) {
                match op {
                    TxnOp::Range(range) if range.revision > 0 => found.push(range.revision),
                    TxnOp::Txn(inner) => of(inner, found),
                    TxnOp::Range(_) | TxnOp::Put(_) | TxnOp::DeleteRange(_) => {}
                }
            }
        }
        let mut found = Vec::new();
        match self {
            Self::Range(range) if range.revision > 0 => found.push(range.revision),
            Self::Txn(txn) => of(txn, &mut found),
            Self::Range(_)
            | Self::Put(_)
            | Self::DeleteRange(_)
            | Self::Compact(_)
            | Self::RevokeLease(_) => {}
        }
        found
    }
}
