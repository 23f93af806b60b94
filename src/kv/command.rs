//! The requests and answers of the store.
//!
//! The replicated log carries [`Command`]s; a [`RangeQuery`] alone never goes through the log. Keys, values and
//! stored `KeyValue`s are shared byte buffers: nothing here copies them. etcd's request messages are the model, and the
//! field meanings are theirs (`key`/`range_end` as in [`super::KeyRange::from_wire`]).

use super::{
    KvError,
    lease::{LeaseChange, LeaseMark},
};
use crate::{
    auth::{Caller, Change},
    codec::Blob,
    types::{LeaseId, LogIndex, MemberId, Revision, Term},
};
use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

/// A command of the replicated log. The same sequence of commands gives the same state on every member.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub enum Command {
    Put(Put),
    /// Delete the keys of a range.
    DeleteRange(DeleteRange),
    /// Compare, then run one of two lists of operations.
    Txn(Txn),
    /// Give up the history before a revision.
    Compact(Compact),
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
    /// Change users, roles, permissions or tokens.
    Auth(Change),
    /// A command on behalf of a caller, who must be allowed it when it is applied.
    Checked(Checked),
}

/// A command on behalf of a caller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct Checked {
    pub caller: Caller,
    pub command: Box<Command>,
}

impl Command {
    /// The command itself, without its caller.
    pub fn unchecked(&self) -> &Self {
        match self {
            Self::Checked(checked) => checked.command.unchecked(),
            Self::Put(_)
            | Self::DeleteRange(_)
            | Self::Txn(_)
            | Self::Compact(_)
            | Self::GrantLease(_)
            | Self::RevokeLease(_)
            | Self::SetAlarm(_)
            | Self::ExpireLeases(_)
            | Self::CheckpointLeases(_)
            | Self::RenewLeases(_)
            | Self::Auth(_) => self,
        }
    }

    /// The command, if a client names keys in it.
    pub fn on_keys(&self) -> Option<KeyCommand<'_>> {
        match self.unchecked() {
            Self::Put(put) => Some(KeyCommand::Put(put)),
            Self::DeleteRange(delete) => Some(KeyCommand::DeleteRange(delete)),
            Self::Txn(txn) => Some(KeyCommand::Txn(txn)),
            Self::Compact(_)
            | Self::GrantLease(_)
            | Self::RevokeLease(_)
            | Self::SetAlarm(_)
            | Self::ExpireLeases(_)
            | Self::CheckpointLeases(_)
            | Self::RenewLeases(_)
            | Self::Auth(_)
            | Self::Checked(_) => None,
        }
    }

    /// Keys that it probably reads or writes, for prefetching: results do not depend on them.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let (one, txn) = match self.on_keys() {
            Some(KeyCommand::Put(put)) => (Some(put.key.0.as_ref()), None),
            Some(KeyCommand::DeleteRange(delete)) => (Some(delete.key.0.as_ref()), None),
            Some(KeyCommand::Txn(txn)) => (None, Some(txn.keys())),
            None => (None, None),
        };
        one.into_iter().chain(txn.into_iter().flatten())
    }

    /// Whether applying it can grow the database: refused while a member is out of space.
    pub fn takes_space(&self) -> bool {
        match self.on_keys() {
            Some(KeyCommand::Put(_)) => true,
            Some(KeyCommand::Txn(txn)) => txn.puts(),
            Some(KeyCommand::DeleteRange(_)) => false,
            None => matches!(self.unchecked(), Self::GrantLease(_)),
        }
    }
}

/// A command in which a client names keys.
#[derive(Clone, Copy, Debug)]
pub enum KeyCommand<'a> {
    Put(&'a Put),
    DeleteRange(&'a DeleteRange),
    Txn(&'a Txn),
}

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
    pub range_end: Blob,
    /// At most so many results; zero or less is no limit.
    pub limit: i64,
    /// The revision to read at; zero or less is the newest.
    pub revision: i64,
    pub sort_order: SortOrder,
    pub sort_target: SortTarget,
    /// Answer from this member's own state, which may be behind, without asking the leader.
    pub serializable: bool,
    pub keys_only: bool,
    /// Answer with the number of keys alone.
    pub count_only: bool,
    /// Inclusive bounds on the revisions of the results; zero is no bound.
    pub filter: RevisionFilter,
}

/// Inclusive bounds on a result's revisions; zero is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct RevisionFilter {
    pub min_mod: i64,
    pub max_mod: i64,
    pub min_create: i64,
    pub max_create: i64,
}

impl RevisionFilter {
    /// Whether it lets everything through.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a key with these revisions passes.
    pub fn admits(&self, create: Revision, modified: Revision) -> bool {
        self.admits_modified(modified) && within(self.min_create, self.max_create, create)
    }

    /// Whether a key that was modified at this revision passes, unless its creation decides otherwise.
    pub fn admits_modified(&self, modified: Revision) -> bool {
        within(self.min_mod, self.max_mod, modified)
    }

    /// Whether it looks at the revision of a key's creation.
    pub fn needs_create(&self) -> bool {
        (self.min_create, self.max_create) != (0, 0)
    }
}

fn within(min: i64, max: i64, revision: Revision) -> bool {
    (min == 0 || revision.0 >= min) && (max == 0 || revision.0 <= max)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum SortOrder {
    /// By key; any other target is sorted ascending, after the limit has cut.
    #[default]
    None,
    Ascend,
    Descend,
    /// A value that the protobuf enum does not have; refused by [`super::check`].
    Unknown,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum SortTarget {
    #[default]
    Key,
    /// The number of puts since creation.
    Version,
    Create,
    Mod,
    Value,
    /// A value that the protobuf enum does not have; refused by [`super::check`].
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

#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub enum TxnOp {
    Range(RangeQuery),
    Put(Put),
    /// Delete the keys of a range.
    DeleteRange(DeleteRange),
    Txn(Txn),
    /// An operation without a request; refused by [`super::check`].
    Empty,
}

/// One condition on a key, or on every key of a range.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
#[bincode(decode_context = "crate::codec::Shared")]
pub struct Compare {
    /// First key of the range.
    pub key: Blob,
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
    Greater,
    Less,
    NotEqual,
    /// etcd: a relation that the protobuf enum does not have always holds.
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
    /// etcd: a target that the protobuf enum does not have compares as equal.
    Unknown,
}

/// Gives up the history before `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Compact {
    /// Reads below it fail from now on.
    pub revision: Revision,
}

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
    pub id: LeaseId,
}

/// Ends leases whose time is up by the proposer's countdown, in this order. Deleting the keys of one lease takes one revision.
/// The command has no effect if the term of its entry is not the term it names, nor on leases that are gone.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ExpireLeases {
    /// The term the proposer led in when it counted.
    pub term: Term,
    pub leases: Vec<LeaseMark>,
}

/// Stores how much time leases have left, for members that start from the database. It has an effect under the same conditions as
/// [`ExpireLeases`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CheckpointLeases {
    /// The term the proposer led in when it counted.
    pub term: Term,
    /// The leases, with the seconds each has left; zero stands for its whole time to live.
    pub leases: Vec<(LeaseMark, i64)>,
}

/// Gives leases all of their time again: every member counts each from when it applies this. It has an effect under the same
/// conditions as [`ExpireLeases`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RenewLeases {
    /// The term the proposer led in.
    pub term: Term,
    /// The leases, ascending and without duplicates.
    pub leases: Vec<LeaseMark>,
}

/// What an alarm says about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum AlarmKind {
    /// A client says that it has no space.
    NoSpace,
    /// The members' states differ and no majority agrees: no member serves.
    Corrupt,
    /// Its state differs from that of a majority: it does not serve, the others do. Clients see it as [`AlarmKind::Corrupt`].
    StateDiffers,
    /// Its database reached the quota. It ends this alarm by itself. Clients see it as [`AlarmKind::NoSpace`].
    QuotaReached,
}

/// Raises an alarm, or takes it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SetAlarm {
    pub member: MemberId,
    pub kind: AlarmKind,
    /// Raise (true) or take back (false).
    pub raised: bool,
}

/// What a command did. `revision` is the store's revision afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Put(PutDone),
    DeleteRange(DeleteRangeDone),
    Txn(TxnDone),
    /// Answer to [`Command::Compact`]: the history before it is gone for readers; it is removed afterwards.
    Compact {
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
        /// How many leases it changed. The others were gone, or the entry is not of the term that the command names.
        leases: usize,
        deleted: usize,
    },
    Renewals {
        revision: Revision,
        /// Which of the leases were gone, ascending; `None` if the entry is of another term than it names: then it had no effect.
        gone: Option<Vec<LeaseId>>,
    },
    Alarm {
        revision: Revision,
        /// Whether the alarm existed (taking back), or exists now (raising).
        found: bool,
    },
    Auth {
        revision: Revision,
        /// The index of the log entry: the number of a token that it issued.
        index: LogIndex,
    },
}

/// A stored `mvccpb.KeyValue`, encoded.
pub type EncodedKv = Bytes;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeDone {
    /// The store's revision when the query ran (not the revision read at).
    pub revision: Revision,
    /// The results, in order, as stored (or without the value, if asked). If there are
    /// [`COPIED_MIN`](super::range::COPIED_MIN) or more, they are copies, which keep nothing else in memory.
    pub kvs: Vec<EncodedKv>,
    /// Whether the limit cut results off.
    pub more: bool,
    /// Keys in the range at the revision read at, whatever the limit and the filters.
    pub count: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutDone {
    /// The revision of the write.
    pub revision: Revision,
    /// The key before it, if asked for and present.
    pub prev: Option<EncodedKv>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRangeDone {
    /// The revision of the write, or the store's revision if nothing was deleted.
    pub revision: Revision,
    pub deleted: i64,
    /// The keys before it, ascending, if asked for.
    pub prevs: Vec<EncodedKv>,
}

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
    Range(RangeDone),
    Put(PutDone),
    DeleteRange(DeleteRangeDone),
    Txn(TxnDone),
}

/// What applying a command gives: an outcome, or the refusal that every member gives alike.
pub type Verdict = Result<Outcome, KvError>;

impl RangeQuery {
    /// About how many bytes it takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.range_end.len()
    }
}

impl Compare {
    fn bytes(&self) -> usize {
        let value = match &self.operand {
            Operand::Value(value) => value.len(),
            Operand::Version(_)
            | Operand::Create(_)
            | Operand::Mod(_)
            | Operand::Lease(_)
            | Operand::Unknown => 0,
        };
        size_of::<Self>() + self.key.len() + self.range_end.len() + value
    }
}

impl Txn {
    /// About how many bytes it takes, if it only reads.
    pub fn read_bytes(&self) -> usize {
        let compares: usize = self.compares.iter().map(Compare::bytes).sum();
        let ranges = self.branches().map(|op| match op {
            TxnOp::Range(query) => query.bytes(),
            TxnOp::Put(_) | TxnOp::DeleteRange(_) | TxnOp::Txn(_) | TxnOp::Empty => 0,
        });
        compares + ranges.sum::<usize>()
    }

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

    /// Whether either branch has a put, at any depth: such a transaction takes space.
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
