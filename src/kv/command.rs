//! What can be asked of the store, and what it answers.
//!
//! A [`Command`] is what the replicated log carries; a [`RangeQuery`] alone never goes through the log. Keys, values and
//! stored `KeyValue`s are shared byte buffers: nothing here copies them. etcd's request messages are the model, and the
//! field meanings are theirs (`key`/`range_end` as in [`super::KeyRange::from_wire`]).

use super::{KvError, lease::LeaseChange};
use crate::{
    codec::Blob,
    types::{LeaseId, LogIndex, MemberId, Revision, Term},
};
use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

/// A command of the replicated log. The same sequence of commands gives the same state on every member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub enum Command {
    /// Write one key.
    Put(Put),
    /// Delete the keys of a range.
    DeleteRange(DeleteRange),
    /// Compare, then run one of two lists of operations.
    Txn(Txn),
    /// Give up the history before a revision.
    Compact(Compact),
    /// Create a lease.
    GrantLease(GrantLease),
    /// End a lease and delete its keys.
    RevokeLease(RevokeLease),
    /// Raise, or take back, an alarm of a member.
    SetAlarm(SetAlarm),
    /// End leases whose time is up.
    ExpireLeases(ExpireLeases),
    /// Remember how much time leases have left.
    CheckpointLeases(CheckpointLeases),
    /// Give leases all of their time again.
    RenewLeases(RenewLeases),
}

impl Command {
    /// The keys it probably reads or writes first: nothing depends on that.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let (put, delete, txn) = match self {
            Self::Put(put) => (Some(put.key.0.as_ref()), None, None),
            Self::DeleteRange(delete) => (None, Some(delete.key.0.as_ref()), None),
            Self::Txn(txn) => (None, None, Some(txn.keys())),
            Self::Compact(_)
            | Self::GrantLease(_)
            | Self::RevokeLease(_)
            | Self::SetAlarm(_)
            | Self::ExpireLeases(_)
            | Self::CheckpointLeases(_)
            | Self::RenewLeases(_) => (None, None, None),
        };
        let one = put.or(delete);
        one.into_iter().chain(txn.into_iter().flatten())
    }
}

/// Writes one key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct Put {
    /// The key; never empty.
    pub key: Blob,
    /// The value; may be empty.
    pub value: Blob,
    /// The lease to attach the key to; zero detaches it.
    pub lease: LeaseId,
    /// Answer with the key's previous state.
    pub prev_kv: bool,
    /// Keep the current value; the key must exist.
    pub ignore_value: bool,
    /// Keep the current lease; the key must exist.
    pub ignore_lease: bool,
}

/// Deletes every live key of a range.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct DeleteRange {
    /// First key of the range.
    pub key: Blob,
    /// End of the range.
    pub range_end: Blob,
    /// Answer with what was deleted.
    pub prev_kv: bool,
}

/// Which keys to read, at which revision, and in which form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct RangeQuery {
    /// First key of the range.
    pub key: Blob,
    /// End of the range.
    pub range_end: Blob,
    /// At most so many results; zero or less is no limit.
    pub limit: i64,
    /// The revision to read at; zero or less is the newest.
    pub revision: i64,
    /// Direction of the sort.
    pub sort_order: SortOrder,
    /// What the sort compares.
    pub sort_target: SortTarget,
    /// Answer from this member's own state, which may be behind, without asking the leader.
    pub serializable: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Answer with the number of keys alone.
    pub count_only: bool,
    /// Inclusive bounds on the revisions of the results; zero is no bound.
    pub filter: RevisionFilter,
}

/// Inclusive bounds on a result's revisions; zero is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RevisionFilter {
    /// Lowest modification revision.
    pub min_mod: i64,
    /// Highest modification revision.
    pub max_mod: i64,
    /// Lowest creation revision.
    pub min_create: i64,
    /// Highest creation revision.
    pub max_create: i64,
}

impl RevisionFilter {
    /// Whether it lets everything through.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a key with these revisions passes.
    pub fn admits(&self, create: Revision, modified: Revision) -> bool {
        let above = |bound: i64, value: i64| bound == 0 || value >= bound;
        let below = |bound: i64, value: i64| bound == 0 || value <= bound;
        above(self.min_mod, modified.0)
            && below(self.max_mod, modified.0)
            && above(self.min_create, create.0)
            && below(self.max_create, create.0)
    }
}

/// Direction of a sort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum SortOrder {
    /// By key; any other target is sorted ascending, after the limit has cut.
    #[default]
    None,
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
    /// Outside the enum; refused by [`super::check`].
    Unknown,
}

/// What a sort compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum SortTarget {
    /// The key's bytes.
    #[default]
    Key,
    /// The number of puts since creation.
    Version,
    /// The creation revision.
    Create,
    /// The modification revision.
    Mod,
    /// The value's bytes.
    Value,
    /// Outside the enum; refused by [`super::check`].
    Unknown,
}

/// Compares, then runs `success` if all of them hold, `failure` otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct Txn {
    /// All must hold; judged on the state before the transaction.
    pub compares: Vec<Compare>,
    /// Run in order if they do.
    pub success: Vec<TxnOp>,
    /// Run in order if not.
    pub failure: Vec<TxnOp>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub enum TxnOp {
    /// Read.
    Range(RangeQuery),
    /// Write one key.
    Put(Put),
    /// Delete the keys of a range.
    DeleteRange(DeleteRange),
    /// A transaction inside the transaction.
    Txn(Txn),
    /// An operation that names nothing; refused by [`super::check`].
    Empty,
}

/// One condition on a key, or on every key of a range.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct Compare {
    /// First key of the range.
    pub key: Blob,
    /// End of the range.
    pub range_end: Blob,
    /// Which relation must hold between the key's property and `operand`.
    pub relation: Relation,
    /// The property and what it is compared to.
    pub operand: Operand,
}

/// The relation a compare asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Relation {
    /// The property equals the operand.
    Equal,
    /// The property is greater.
    Greater,
    /// The property is less.
    Less,
    /// The property differs.
    NotEqual,
    /// etcd: a result outside the enum holds always.
    Any,
}

/// The property a compare looks at, with the operand it is compared to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub enum Operand {
    /// Number of puts since creation; 0 for a missing key.
    Version(i64),
    /// Creation revision; 0 for a missing key.
    Create(i64),
    /// Modification revision; 0 for a missing key.
    Mod(i64),
    /// The value. No relation holds on a missing key.
    Value(Blob),
    /// The lease; 0 for a missing key.
    Lease(i64),
    /// etcd: a target outside the enum compares as equal.
    Unknown,
}

/// Gives up the history before `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Compact {
    /// Reads below it fail from now on.
    pub revision: Revision,
}

/// Creates a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GrantLease {
    /// Its id, chosen before the command entered the log.
    pub id: LeaseId,
    /// Its time to live, already raised to the minimum.
    pub ttl_secs: i64,
}

/// Ends a lease and deletes its keys in one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RevokeLease {
    /// Which.
    pub id: LeaseId,
}

/// One lease among all that ever bore its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LeaseMark {
    /// Its id.
    pub id: LeaseId,
    /// The log entry that granted it.
    pub granted: LogIndex,
}

/// Ends the leases whose time is up by the proposer's countdown: each lease's keys in one revision, in this order. Without
/// effect unless the entry is of the term it names, and on leases that are gone.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExpireLeases {
    /// The term the proposer led in when it counted.
    pub term: Term,
    /// Which.
    pub leases: Vec<LeaseMark>,
}

/// Remembers how much time leases have left, for members that start with what is stored. Guarded as [`ExpireLeases`] is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CheckpointLeases {
    /// The term the proposer led in when it counted.
    pub term: Term,
    /// Which, with the seconds each has left; zero stands for all of its time.
    pub leases: Vec<(LeaseMark, i64)>,
}

/// Gives leases all of their time again: every member counts each from when it applies this. Guarded as [`ExpireLeases`] is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RenewLeases {
    /// The term the proposer led in.
    pub term: Term,
    /// Which, ascending, each once.
    pub leases: Vec<LeaseMark>,
}

/// What an alarm says about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum AlarmKind {
    /// Its database reached the quota.
    NoSpace,
    /// Something about the cluster's state is wrong, and nobody knows whose is right: nobody serves.
    Corrupt,
    /// Its state differs from a majority's: it does not serve, the others do. Clients see it as [`AlarmKind::Corrupt`].
    Differs,
}

/// Raises an alarm, or takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SetAlarm {
    /// Whose.
    pub member: MemberId,
    /// Which.
    pub kind: AlarmKind,
    /// Raise (true) or take back (false).
    pub raised: bool,
}

/// What a command did. `revision` is the store's revision afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answer to [`Command::Put`].
    Put(PutDone),
    /// Answer to [`Command::DeleteRange`].
    DeleteRange(DeleteRangeDone),
    /// Answer to [`Command::Txn`].
    Txn(TxnDone),
    /// Answer to [`Command::Compact`]: the history before it is gone for readers; its removal goes on behind.
    Compact {
        /// The store's revision.
        revision: Revision,
    },
    /// Answer to the lease commands.
    Lease {
        /// The store's revision afterwards.
        revision: Revision,
        /// What changed in the lease table.
        change: LeaseChange,
    },
    /// Answer to [`Command::ExpireLeases`] and [`Command::CheckpointLeases`].
    Countdown {
        /// The store's revision afterwards.
        revision: Revision,
        /// Leases it had an effect on; the guard held for none of the others.
        leases: usize,
        /// Keys it deleted.
        deleted: usize,
    },
    /// Answer to [`Command::RenewLeases`].
    Renewals {
        /// The store's revision.
        revision: Revision,
        /// Which of the leases were gone, ascending; nothing if the entry is of another term than it names, and did nothing.
        gone: Option<Vec<LeaseId>>,
    },
    /// Answer to [`Command::SetAlarm`].
    Alarm {
        /// The store's revision.
        revision: Revision,
        /// Whether the alarm existed (taking back), or exists now (raising).
        found: bool,
    },
}

/// A stored `mvccpb.KeyValue`, encoded.
pub type EncodedKv = Bytes;

/// Answer to a [`RangeQuery`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeDone {
    /// The store's revision when the query ran (not the revision read at).
    pub revision: Revision,
    /// The results, in order, as stored (or without the value, if asked). [`APART_MIN`](super::range::APART_MIN) and more share
    /// no memory with anything else.
    pub kvs: Vec<EncodedKv>,
    /// Whether the limit cut results off.
    pub more: bool,
    /// Keys in the range at the revision read at, whatever the limit and the filters.
    pub count: i64,
}

/// Answer to a [`Put`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutDone {
    /// The revision of the write.
    pub revision: Revision,
    /// The key before it, if asked for and present.
    pub prev: Option<EncodedKv>,
}

/// Answer to a [`DeleteRange`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeDone {
    /// The revision of the write, or the store's revision if nothing was deleted.
    pub revision: Revision,
    /// How many keys were deleted.
    pub deleted: i64,
    /// The keys before it, ascending, if asked for.
    pub prevs: Vec<EncodedKv>,
}

/// Answer to a [`Txn`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnDone {
    /// The store's revision afterwards.
    pub revision: Revision,
    /// Whether all compares held.
    pub succeeded: bool,
    /// One answer for each operation of the branch that ran.
    pub responses: Vec<OpDone>,
}

/// Answer to one operation of a transaction. Its revision is the one visible right after the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpDone {
    /// Answer to [`TxnOp::Range`].
    Range(RangeDone),
    /// Answer to [`TxnOp::Put`].
    Put(PutDone),
    /// Answer to [`TxnOp::DeleteRange`].
    DeleteRange(DeleteRangeDone),
    /// Answer to [`TxnOp::Txn`].
    Txn(TxnDone),
}

/// What applying a command gives: an outcome, or the refusal that every member gives alike.
pub type Verdict = Result<Outcome, KvError>;

impl Txn {
    /// The keys of the operations that run if the compares hold.
    fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.success.iter().filter_map(|op| match op {
            TxnOp::Range(range) => Some(range.key.0.as_ref()),
            TxnOp::Put(put) => Some(put.key.0.as_ref()),
            TxnOp::DeleteRange(delete) => Some(delete.key.0.as_ref()),
            TxnOp::Txn(_) | TxnOp::Empty => None,
        })
    }

    /// Whether neither branch can write and none nests: such a transaction is served as a read.
    pub fn is_read_only(&self) -> bool {
        self.branches().all(|op| matches!(op, TxnOp::Range(_)))
    }

    /// Whether it is served from local state: a read whose every range asks for that. etcd: a transaction without
    /// any operation counts as well, even with compares.
    pub fn is_serializable(&self) -> bool {
        self.branches()
            .all(|op| matches!(op, TxnOp::Range(range) if range.serializable))
    }

    /// Whether a put stands in either branch, at any depth: such a transaction costs space.
    pub fn puts(&self) -> bool {
        self.branches().any(|op| match op {
            TxnOp::Put(_) => true,
            TxnOp::Txn(inner) => inner.puts(),
            TxnOp::Range(_) | TxnOp::DeleteRange(_) | TxnOp::Empty => false,
        })
    }

    /// The operations of both branches.
    pub fn branches(&self) -> impl Iterator<Item = &TxnOp> {
        self.success.iter().chain(&self.failure)
    }
}

impl Command {
    /// Whether applying it can grow the database: refused while a member is out of space.
    pub fn takes_space(&self) -> bool {
        match self {
            Self::Put(_) | Self::GrantLease(_) => true,
            Self::Txn(txn) => txn.puts(),
            Self::DeleteRange(_)
            | Self::Compact(_)
            | Self::RevokeLease(_)
            | Self::SetAlarm(_)
            | Self::ExpireLeases(_)
            | Self::CheckpointLeases(_)
            | Self::RenewLeases(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_keys_it_goes_to() {
        let blob = |key: &'static str| Blob(Bytes::from_static(key.as_bytes()));
        let put = |key| Put {
            key: blob(key),
            ..Put::default()
        };
        let delete = |key| DeleteRange {
            key: blob(key),
            ..DeleteRange::default()
        };
        let txn = Txn {
            success: vec![
                TxnOp::Put(put("a")),
                TxnOp::Empty,
                TxnOp::DeleteRange(delete("b")),
            ],
            failure: vec![TxnOp::Put(put("c"))],
            ..Txn::default()
        };
        let cases = [
            (Command::Put(put("k")), vec!["k"]),
            (Command::DeleteRange(delete("k")), vec!["k"]),
            (Command::Txn(txn), vec!["a", "b"]),
            (
                Command::Compact(Compact {
                    revision: Revision(2),
                }),
                vec![],
            ),
        ];
        for (command, keys) in cases {
            let keys: Vec<&[u8]> = keys.into_iter().map(str::as_bytes).collect();
            assert_eq!(command.keys().collect::<Vec<_>>(), keys, "{command:?}");
        }
    }
}
