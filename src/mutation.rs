//! Deliberate bugs: they test the tests.
//!
//! A checker that finds no failure may be unable to find one. So each [`Mutation`] is a bug of a kind that systems like this one
//! have had, and the simulator must find each within a bounded number of seeds (`tests/sim/mutations.rs`). A bug is at a seam
//! where there is one, such as the simulated disk, the WAL writer or the committer, so that the code on the way of a request
//! stays free of it. `docs/reliability.md` has the table.
//!
//! The bugs are compiled in with the feature `mutations` only; without it `mutated` is the constant `false`. With it, a bug is
//! switched on for one thread at a time, which is enough for a simulation and leaves other tests in the same process alone.

/// A deliberate bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The log is written and not synced.
    SkipSync,
    /// A member acknowledges entries before they are durable.
    AcknowledgeBeforeSync,
    /// A leader commits entries that only it has, without a quorum.
    AcknowledgeBeforeCommit,
    /// A leader counts entries of earlier terms as if they were of its own.
    CommitOldTerm,
    /// Term and vote are not written.
    ForgetVote,
    /// Some entries are applied twice.
    ApplyTwice,
    /// One event of some revisions reaches no watcher.
    DropWatchEvent,
    /// A resumed watch begins one revision late.
    ResumeOneLate,
    /// A linearizable read is served from the newest view, without asking the leader.
    ReadWithoutIndex,
    /// A compaction removes records that a read at its own revision needs.
    CompactionOffByOne,
    /// A compaction removes records before the database knows of it.
    CompactBeforeState,
    /// Some deletions do not reach the database.
    LoseTombstone,
    /// A deposed leader continues to count leases down, and its requests to end them are applied.
    DeposedLeaseRevoke,
    /// Some batches are published with the index of the batch before.
    StaleIndex,
    /// Some commits of the database leave out their last record, and move the applied index all the same.
    DatabaseWithoutLastRecord,
    /// A snapshot claims one entry more than it contains.
    SnapshotWithoutLastEntry,
    /// A starting member takes what any one member says for confirmed by a quorum.
    TrustFirstAnswer,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 17] = [
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
        Self::TrustFirstAnswer,
    ];
}

#[cfg(feature = "mutations")]
std::thread_local! {
    static PRESENT: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

/// Switches a bug on for this thread's members, or all off.
#[cfg(feature = "mutations")]
pub fn mutate(mutation: Option<Mutation>) {
    PRESENT.set(mutation);
}

/// Whether this thread's members have this bug.
#[cfg(feature = "mutations")]
pub(crate) fn mutated(mutation: Mutation) -> bool {
    PRESENT.get() == Some(mutation)
}

/// Without the feature there are no bugs.
#[cfg(not(feature = "mutations"))]
#[inline]
pub(crate) const fn mutated(_: Mutation) -> bool {
    false
}
