//! Newtypes and small values that every layer shares. They use nothing else of this crate.
//!
//! An integer that means something has a type of its own here, so that a [`Term`] never compiles as a
//! [`LogIndex`].

use bytes::Bytes;
use std::{cmp::Ordering, fmt};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(bincode::Encode, bincode::Decode)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A member of the cluster. Zero is never a member: it stands for "nobody" where the wire has no option.
    MemberId(u64)
}
number! {
    /// A cluster; members of different clusters refuse each other.
    ClusterId(u64)
}
/// Which member of which cluster. Data and connections of another one are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: MemberId,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "member {:x} of cluster {:x}",
            self.member.0, self.cluster.0
        )
    }
}

number! {
    Term(u64)
}
number! {
    /// A position in the Raft log. The first entry has index 1; zero is "before the first".
    LogIndex(u64)
}
number! {
    /// A store revision (etcd's main revision). A fresh store is at 1; every write transaction adds one.
    Revision(i64)
}
number! {
    /// A lease. Zero means "no lease".
    LeaseId(i64)
}
number! {
    /// A span of time, or a point on a member's own monotonic clock, in milliseconds.
    Millis(u64)
}

impl MemberId {
    /// Printed the way etcd prints ids: lower-case hex without a prefix.
    pub fn hex(self) -> String {
        format!("{:x}", self.0)
    }
}

impl LogIndex {
    /// The index after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Revision {
    /// The revision of a store nobody has written to yet.
    pub const FIRST: Self = Self(1);
    /// What etcd reports as the compacted revision of a store that was never compacted.
    pub const NEVER_COMPACTED: Self = Self(-1);

    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A small pseudo-random generator: fast, and the same sequence for the same seed on every machine. Not for secrets.
#[derive(Clone, Copy, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator whose sequence follows from `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let once = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        twice ^ (twice >> 31)
    }

    /// A number below `bound`, which is not zero. Small bounds only: the remainder of a division is slightly uneven.
    pub fn below(&mut self, bound: usize) -> usize {
        let below = self.next_u64() % bound as u64;
        usize::try_from(below).expect("less than a usize")
    }
}

/// One change in the store's history: the revision of its transaction, and its position inside that transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rev {
    /// The transaction's revision.
    pub major: Revision,
    /// Position of this change inside the transaction, counted from 0.
    pub sub: u32,
}

impl Rev {
    /// The change at position `sub` of the transaction at `major`.
    pub fn new(major: Revision, sub: u32) -> Self {
        Self { major, sub }
    }
}

/// What a revision did to its key: the `type` of redb's (major, sub, type) key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    Put,
    Tombstone,
}

/// One stored change: its place in history, what it did, and the protobuf `KeyValue` that clients receive
/// (of a tombstone: a `KeyValue` with the key only).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its place in history.
    pub rev: Rev,
    pub kind: RecordKind,
    /// The encoded `mvccpb.KeyValue`.
    pub kv: Bytes,
}

/// What a log entry carries.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, bincode::Encode, bincode::Decode,
)]
pub enum EntryKind {
    /// The empty entry a new leader appends, so that it can commit what earlier terms left.
    Noop,
    /// A command for the state machine. Raft does not look inside.
    Command,
    /// A membership change, encoded by `raft::membership`.
    Membership,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that appended it.
    pub term: Term,
    pub index: LogIndex,
    pub kind: EntryKind,
    /// The payload; opaque to consensus and to the WAL.
    pub data: Bytes,
}

/// The position of an entry in the log. Two logs that hold an entry at the same position agree on everything up to it.
///
/// The order is the paper's "at least as up to date": by term first, then by index. The fields are encoded in the order of
/// their declaration, which `db.applied` and snapshot headers rely on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, bincode::Encode, bincode::Decode)]
pub struct LogPosition {
    /// The entry's index; zero is "before the first".
    pub index: LogIndex,
    /// The term of the leader that appended it.
    pub term: Term,
}

impl LogPosition {
    /// The position of the entry at `index` that the leader of `term` appended.
    pub fn new(term: Term, index: LogIndex) -> Self {
        Self { index, term }
    }
}

impl Ord for LogPosition {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.term, self.index).cmp(&(other.term, other.index))
    }
}

impl PartialOrd for LogPosition {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@t{}", self.index, self.term)
    }
}

impl Entry {
    pub fn position(&self) -> LogPosition {
        LogPosition::new(self.term, self.index)
    }
}

/// What a member must remember across restarts besides its entries, or it could vote twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bincode::Encode, bincode::Decode)]
pub struct HardState {
    /// The newest term this member has seen.
    pub term: Term,
    /// The candidate it voted for in that term.
    pub vote: Option<MemberId>,
    /// How far it knew the log to be committed. A hint: it may lag, never lead.
    pub commit: LogIndex,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The reference implementation's first numbers (https://prng.di.unimi.it/splitmix64.c).
        let mut random = SplitMix64::new(1_234_567);
        let drawn = [random.next_u64(), random.next_u64(), random.next_u64()];
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn positions_sort_by_term_first() {
        let position = |term, index| LogPosition::new(Term(term), LogIndex(index));
        assert!(position(2, 1) > position(1, 9), "a newer term wins");
        assert!(position(2, 1) < position(2, 2), "then the longer log");
        assert_eq!(position(2, 1).to_string(), "1@t2");
    }
}
