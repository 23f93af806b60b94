//! Places where a test can crash or delay a real member.
//!
//! They are compiled in with the feature `failpoints` only; without it `hit` does nothing. With it, the variable `FAILPOINTS`
//! says what happens where, in the syntax of the `fail` crate: `FAILPOINTS='after-wal-write=20*off->return'` crashes the process
//! the 21st time it has written to its log and not synced yet; `before-apply=1%sleep(1000)` delays one batch in a hundred by a
//! second. A crash is an abort: no destructor runs, nothing is flushed.
//!
//! `docs/reliability.md` says which test goes through all of them.

/// A place in the code. Its name in `FAILPOINTS` is [`FailPoint::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailPoint {
    /// A batch of the write-ahead log is about to be written.
    BeforeWalWrite,
    /// It is written, and not synced.
    AfterWalWrite,
    /// It is about to be synced; with [`FailPoint::AfterWalWrite`], around whatever may come between.
    BeforeWalSync,
    /// It is durable, and not reported.
    AfterWalSync,
    /// A new term or vote is about to be written.
    BeforeHardState,
    /// A new term or vote is durable, and not reported.
    AfterHardState,
    /// Committed entries are about to be applied.
    BeforeApply,
    /// They are applied, and not visible to reads yet.
    AfterApply,
    /// A read view is about to be published.
    BeforePublish,
    /// It is published, and no caller was answered.
    AfterPublish,
    /// A batch is about to be committed to the database.
    BeforeDbCommit,
    /// It is committed, and not reported.
    AfterDbCommit,
    /// A step of a compaction is about to prune the index.
    BeforeIndexPrune,
    /// A step of a compaction is about to remove records.
    BeforeCompactStep,
    /// Records are removed, and the compaction's progress is not reported.
    AfterCompactStep,
    /// Segments of the log are about to be released.
    BeforeWalRelease,
    /// They are released.
    AfterWalRelease,
    /// A membership change is about to be applied.
    BeforeMembershipApply,
    /// It is applied, and not durable beyond the log.
    AfterMembershipApply,
    /// A snapshot is about to be sent.
    BeforeSnapshotSend,
    /// All of it is sent, and the receiver has not reported that it is installed.
    AfterSnapshotSend,
    /// A snapshot is about to be received.
    BeforeSnapshotReceive,
    /// It is received and verified, and not installed.
    AfterSnapshotReceive,
    /// It is about to replace the database.
    BeforeSnapshotSwitch,
    /// It is renamed, and the directory is not synced.
    AfterSnapshotRename,
    /// It is installed, and the log is still the old one.
    AfterSnapshotSwitch,
    /// A watch response is about to be sent.
    BeforeWatchSend,
    /// It is handed to the connection.
    AfterWatchSend,
}

impl FailPoint {
    /// All of them, in the order a write meets them.
    pub const ALL: [Self; 28] = [
        Self::BeforeWalWrite,
        Self::AfterWalWrite,
        Self::BeforeWalSync,
        Self::AfterWalSync,
        Self::BeforeHardState,
        Self::AfterHardState,
        Self::BeforeApply,
        Self::AfterApply,
        Self::BeforePublish,
        Self::AfterPublish,
        Self::BeforeDbCommit,
        Self::AfterDbCommit,
        Self::BeforeIndexPrune,
        Self::BeforeCompactStep,
        Self::AfterCompactStep,
        Self::BeforeWalRelease,
        Self::AfterWalRelease,
        Self::BeforeMembershipApply,
        Self::AfterMembershipApply,
        Self::BeforeSnapshotSend,
        Self::AfterSnapshotSend,
        Self::BeforeSnapshotReceive,
        Self::AfterSnapshotReceive,
        Self::BeforeSnapshotSwitch,
        Self::AfterSnapshotRename,
        Self::AfterSnapshotSwitch,
        Self::BeforeWatchSend,
        Self::AfterWatchSend,
    ];

    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeWalWrite => "before-wal-write",
            Self::AfterWalWrite => "after-wal-write",
            Self::BeforeWalSync => "before-wal-sync",
            Self::AfterWalSync => "after-wal-sync",
            Self::BeforeHardState => "before-hard-state",
            Self::AfterHardState => "after-hard-state",
            Self::BeforeApply => "before-apply",
            Self::AfterApply => "after-apply",
            Self::BeforePublish => "before-publish",
            Self::AfterPublish => "after-publish",
            Self::BeforeDbCommit => "before-db-commit",
            Self::AfterDbCommit => "after-db-commit",
            Self::BeforeIndexPrune => "before-index-prune",
            Self::BeforeCompactStep => "before-compact-step",
            Self::AfterCompactStep => "after-compact-step",
            Self::BeforeWalRelease => "before-wal-release",
            Self::AfterWalRelease => "after-wal-release",
            Self::BeforeMembershipApply => "before-membership-apply",
            Self::AfterMembershipApply => "after-membership-apply",
            Self::BeforeSnapshotSend => "before-snapshot-send",
            Self::AfterSnapshotSend => "after-snapshot-send",
            Self::BeforeSnapshotReceive => "before-snapshot-receive",
            Self::AfterSnapshotReceive => "after-snapshot-receive",
            Self::BeforeSnapshotSwitch => "before-snapshot-switch",
            Self::AfterSnapshotRename => "after-snapshot-rename",
            Self::AfterSnapshotSwitch => "after-snapshot-switch",
            Self::BeforeWatchSend => "before-watch-send",
            Self::AfterWatchSend => "after-watch-send",
        }
    }
}

/// Does what `FAILPOINTS` says about `point`.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(point: FailPoint) {
    fail::fail_point!(point.name(), |_| {
        tracing::error!("failpoint {}: crash", point.name());
        std::process::abort()
    });
}

/// Without the feature it does nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) const fn hit(_: FailPoint) {}

/// Reads `FAILPOINTS`; its actions are in force until the returned value is dropped.
#[cfg(feature = "failpoints")]
pub fn arm() -> impl Drop {
    let armed = fail::FailScenario::setup();
    for (name, action) in fail::list() {
        let known = FailPoint::ALL.iter().any(|point| point.name() == name);
        assert!(known, "FAILPOINTS names {name}, which is no failpoint");
        tracing::warn!("failpoint {name}: {action}");
    }
    armed
}

#[cfg(test)]
mod tests {
    use super::FailPoint;
    use std::collections::BTreeSet;

    #[test]
    fn each_has_a_name_of_its_own() {
        let names: BTreeSet<_> = FailPoint::ALL.map(FailPoint::name).into();
        assert_eq!(names.len(), FailPoint::ALL.len(), "{names:?}");
    }
}
