//! Deliberate bugs: they test the tests.
//!
//! A checker that finds no failure may be unable to find one. So each [`Mutation`] is a bug of a kind that systems like this one
//! have had, and the simulator must find each within a bounded number of seeds (`tests/sim/mutations.rs`). A bug is at a seam
//! where there is one, such as the simulated disk, the WAL writer or the committer, so that the code on the way of a request
//! stays free of it. `docs/reliability.md` has the table.
//!
//! The bugs are compiled in with the feature `mutations` only; without it `mutated` is the constant `false`. With it, a bug is
//! switched on for one thread at a time, which is enough for a simulation and leaves other tests in the same process alone.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// The log is written and not synced.
    SkipSync,
    /// A member acknowledges entries before they are durable.
    AcknowledgeBeforeSync,
    /// The simulated network acknowledges entries in the name of followers that do not have them yet, so that a leader commits
    /// what only it has.
    AcknowledgeBeforeCommit,
    /// A leader counts entries of earlier terms as if they were of its own.
    CommitOldTerm,
    /// Term and vote are not written.
    ForgetVote,
    /// The simulated network delivers some forwarded proposals twice, so that some commands are applied twice.
    ApplyTwice,
    /// One event of some revisions reaches no watcher.
    DropWatchEvent,
    /// The simulated front end resumes a watch one revision late.
    ResumeOneLate,
    /// The simulated network answers a follower's question for a read index by itself, so that the leader is not asked.
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
    /// A command is judged by the state of the member that proposes it, not where it stands in the log.
    RightsOfProposer,
    /// What users may do is not compiled anew when a permission of their roles changes.
    StaleGrants,
    /// The tokens of a removed user stay, and are good again once a user of that name is added.
    TokenOutlivesUser,
    /// The watch hub keeps all recent events, whatever their bytes.
    RecentWithoutBound,
    /// A starting member without data is told that nobody has recorded its beginning, so a voter that lost its disk begins again.
    ForgetBeginnings,
}

impl Mutation {
    pub const ALL: [Self; 22] = [
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
        Self::RightsOfProposer,
        Self::StaleGrants,
        Self::TokenOutlivesUser,
        Self::RecentWithoutBound,
        Self::ForgetBeginnings,
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
pub fn mutated(mutation: Mutation) -> bool {
    PRESENT.get() == Some(mutation)
}

/// Without the feature there are no bugs.
#[cfg(not(feature = "mutations"))]
#[inline]
pub const fn mutated(_: Mutation) -> bool {
    false
}
