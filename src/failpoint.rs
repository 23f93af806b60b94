//! Places where a test can crash or delay a real member.
//!
//! They are compiled in with the feature `failpoints` only; without it `hit` does nothing. With it, the variable `FAILPOINTS`
//! says what happens where, in the syntax of the `fail` crate: `FAILPOINTS='after-wal-write=20*off->return'` crashes the process
//! the 21st time it has written to its log and not synced yet; `before-apply=1%sleep(1000)` delays one batch in a hundred by a
//! second, and with `return(1000)` the log tells of each delay. A crash is an abort: no destructor runs, nothing is flushed.
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
    /// Entries that are no longer in memory are about to be read from the log's files.
    BeforeLogRead,
    /// Committed entries are about to be applied.
    BeforeApply,
    /// They are applied, and not visible to reads yet.
    AfterApply,
    /// A record is about to be read from the database: for a client, for applying an entry, or for the answer to a write.
    BeforeStoredRead,
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
    /// A data directory is marked as unfinished, and holds nothing else.
    AfterUnfinishedMark,
    /// A first start has made database and log, and is about to write the file `member`.
    BeforeMemberWrite,
    /// A first start has written the file `member`, and the mark is still there.
    AfterMemberWrite,
    /// This member has recorded that another one begins, or that it takes part itself, and has not answered yet.
    AfterStartRecorded,
    /// A refill has put the database aside.
    AfterDatabaseAside,
    /// A refill has made the database that awaits a snapshot, and the request is still there.
    AfterRefillDatabase,
    /// `quorate recover` has copied database and log.
    AfterRecoveryCopy,
    /// `quorate recover` has made everything, and the mark is still there.
    BeforeRecoveryEnd,
    /// `quorate restore` has written the whole database beside its final place.
    AfterRestoreFill,
    /// `quorate restore` has made everything, and the mark is still there.
    BeforeRestoreEnd,
}

impl FailPoint {
    /// Those of a running member, in the order a write meets them.
    pub const RUNNING: [Self; 30] = [
        Self::BeforeWalWrite,
        Self::AfterWalWrite,
        Self::BeforeWalSync,
        Self::AfterWalSync,
        Self::BeforeHardState,
        Self::AfterHardState,
        Self::BeforeLogRead,
        Self::BeforeApply,
        Self::AfterApply,
        Self::BeforeStoredRead,
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

    /// Those of commands and starts that change a data directory in several steps.
    pub const DIRECTORY: [Self; 10] = [
        Self::AfterUnfinishedMark,
        Self::BeforeMemberWrite,
        Self::AfterMemberWrite,
        Self::AfterStartRecorded,
        Self::AfterDatabaseAside,
        Self::AfterRefillDatabase,
        Self::AfterRecoveryCopy,
        Self::BeforeRecoveryEnd,
        Self::AfterRestoreFill,
        Self::BeforeRestoreEnd,
    ];

    pub fn all() -> impl Iterator<Item = Self> {
        Self::RUNNING.into_iter().chain(Self::DIRECTORY)
    }

    /// Its name in `FAILPOINTS`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeWalWrite => "before-wal-write",
            Self::AfterWalWrite => "after-wal-write",
            Self::BeforeWalSync => "before-wal-sync",
            Self::AfterWalSync => "after-wal-sync",
            Self::BeforeHardState => "before-hard-state",
            Self::AfterHardState => "after-hard-state",
            Self::BeforeLogRead => "before-log-read",
            Self::BeforeApply => "before-apply",
            Self::AfterApply => "after-apply",
            Self::BeforeStoredRead => "before-stored-read",
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
            Self::AfterUnfinishedMark => "after-unfinished-mark",
            Self::BeforeMemberWrite => "before-member-write",
            Self::AfterMemberWrite => "after-member-write",
            Self::AfterStartRecorded => "after-start-recorded",
            Self::AfterDatabaseAside => "after-database-aside",
            Self::AfterRefillDatabase => "after-refill-database",
            Self::AfterRecoveryCopy => "after-recovery-copy",
            Self::BeforeRecoveryEnd => "before-recovery-end",
            Self::AfterRestoreFill => "after-restore-fill",
            Self::BeforeRestoreEnd => "before-restore-end",
        }
    }
}

/// Does what `FAILPOINTS` says about `point`.
#[cfg(feature = "failpoints")]
#[expect(clippy::disallowed_methods, reason = "it is to block its thread")]
pub(crate) fn hit(point: FailPoint) {
    fail::fail_point!(point.name(), |millis: Option<String>| {
        let Some(millis) = millis.and_then(|millis| millis.parse().ok()) else {
            tracing::error!("failpoint {}: crash", point.name());
            std::process::abort()
        };
        tracing::warn!("failpoint {}: held for {millis} ms", point.name());
        std::thread::sleep(std::time::Duration::from_millis(millis));
    });
}

/// The name, in `FAILPOINTS`, of what makes a member behave as one that speaks version 1 of the peer protocol only.
#[cfg(feature = "failpoints")]
const FIRST_PEER_VERSION: &str = "first-peer-version";

/// The name, in `FAILPOINTS`, of what keeps a member from publishing its name and client URLs.
#[cfg(feature = "failpoints")]
const NEVER_PUBLISHES: &str = "never-publishes";

/// Whether this member does not publish its name and client URLs: others know by that that it has started.
#[cfg(feature = "failpoints")]
pub(crate) fn never_publishes() -> bool {
    fail::fail_point!(NEVER_PUBLISHES, |_| true);
    false
}

/// Without the feature it does.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) const fn never_publishes() -> bool {
    false
}

/// Whether this member behaves as one that speaks version 1 of the peer protocol only, so that tests have members of two
/// versions.
#[cfg(feature = "failpoints")]
pub(crate) fn speaks_first_peer_version() -> bool {
    fail::fail_point!(FIRST_PEER_VERSION, |_| true);
    false
}

/// Without the feature it does not.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) const fn speaks_first_peer_version() -> bool {
    false
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
        let known = FailPoint::all().any(|point| point.name() == name)
            || [FIRST_PEER_VERSION, NEVER_PUBLISHES].contains(&name.as_str());
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
        let names: BTreeSet<_> = FailPoint::all().map(FailPoint::name).collect();
        assert_eq!(names.len(), FailPoint::all().count(), "{names:?}");
    }

    #[test]
    fn the_document_counts_them() {
        let document = include_str!("../docs/reliability.md");
        let (running, directory) = (FailPoint::RUNNING.len(), FailPoint::DIRECTORY.len());
        for said in [
            format!("compiles in {} places", running + directory),
            format!("{running} are in a running member"),
            format!("{directory} are in starts and"),
            format!("a crash at each of {} places", running - 1),
            format!("at {} of its {running} places", running - 1),
        ] {
            assert!(
                document.contains(&said),
                "docs/reliability.md lacks: {said}"
            );
        }
    }
}
