//! Deliberate bugs: they test the tests.
//!
//! A checker that finds nothing may be blind. So each [`Mutation`] is a bug of a kind that systems like this one have had, at the
//! one place where it would sit; the simulator must find each within a bounded number of seeds (`tests/sim/mutations.rs`), and
//! `docs/reliability.md` has the table.
//!
//! Compiled in by the feature `mutations` alone. Without it `mutated` is the constant `false`, and nothing is left of a bug. With
//! it, a bug is brought in for one thread at a time, which is all that a simulation has; members of other tests in the same
//! process run without.

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The log is written and not synced.
    SkipSync,
    /// A member tells that it has entries before they are durable.
    AcknowledgeBeforeSync,
    /// A leader commits what it has itself, without a quorum.
    AcknowledgeBeforeCommit,
    /// A leader counts entries of earlier terms as if they were of its own.
    CommitOldTerm,
    /// Term and vote are not written.
    ForgetVote,
    /// Some entries are applied twice.
    ApplyTwice,
    /// Of a revision's events, one reaches no watcher.
    DropWatchEvent,
    /// A resumed watch begins one revision late.
    ResumeOneLate,
    /// A linearizable read is served from the newest view, without asking the leader.
    ReadWithoutIndex,
    /// A compaction removes what a read at its own revision needs.
    CompactionOffByOne,
    /// A compaction removes records before the database knows of it.
    CompactBeforeState,
    /// Some deletions do not reach the database.
    LoseTombstone,
    /// A deposed leader goes on counting leases, and what it asks of them is applied.
    DeposedLeaseRevoke,
    /// Some batches are published with the index of the batch before.
    StaleIndex,
    /// Some commits of the database leave out their last record, and move the applied index all the same.
    DatabaseWithoutLastRecord,
    /// A snapshot claims one entry more than it holds.
    SnapshotWithoutLastEntry,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::SkipSync,
        Self::AcknowledgeBeforeSync,
        Self::AcknowledgeBeforeCommit,
        Self::CommitOldTerm,
        Self::ForgetVote,
        Self::ApplyTwice,
        Self::DropWatchEvent,
        Self::ResumeOneLate,
        Self::ReadWithoutIndex,
        Self::CompactionOffByOne,
        Self::CompactBeforeState,
        Self::LoseTombstone,
        Self::DeposedLeaseRevoke,
        Self::StaleIndex,
        Self::DatabaseWithoutLastRecord,
        Self::SnapshotWithoutLastEntry,
    ];
}

#[cfg(feature = "mutations")]
std::thread_local! {
    static PRESENT: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// From now on this thread's members have this bug, or none.
#[cfg(feature = "mutations")]
pub fn mutate(mutation: Option<Mutation>) {
    PRESENT.set(mutation);
}

/// Whether this thread's members have this bug.
#[cfg(feature = "mutations")]
pub(crate) fn mutated(mutation: Mutation) -> bool {
    PRESENT.get() == Some(mutation)
}

/// There are no deliberate bugs here.
#[cfg(not(feature = "mutations"))]
#[inline]
pub(crate) const fn mutated(_: Mutation) -> bool {
    false
}
