//! A data directory of an earlier version opens: `tests/data/directory-v1.tar.gz`, kept from the version before the first change
//! of a format (directory, log and database of format 1).
//!
//! It is that of a member that was killed: 19 revisions (`k/a` to `k/e` three times, `k/e` deleted), compacted at 7, a lease
//! with a key, and a learner that never started.

use crate::{
    ctl::{etcdctl, eventually},
    support::{Cluster, Member},
};
#[cfg(feature = "failpoints")]
use quorate::internals::failpoint::FailPoint;
use std::{
    fs,
    process::Command,
    time::{Duration, SystemTime},
};
use tokio::time::{sleep, timeout};

const DIRECTORY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/directory-v1.tar.gz"
);
const LEASE: &str = "6b7d8d8ab8df023d";
const LEARNER: &str = "676b83a613680666, unstarted";
/// The newest revision, and what `etcdctl endpoint hashkv` said before the member was killed.
const NEWEST: &str = "19";
const HASH: &str = "2300742872";

/// What a member logs once it serves.
const READY: &str = "ready: clients on";
/// How long something that must happen soon is waited for: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// Between two looks at a start that is to be killed: short, so that they differ in how far it is.
const POLL: Duration = Duration::from_millis(1);

/// When a start is killed: once it has logged this, or has written to this file or directory.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Said(&'static str),
    Wrote(&'static str),
}

impl Moment {
    /// When its file was written last.
    fn written(self, member: &Member) -> Option<SystemTime> {
        match self {
            Self::Said(_) => None,
            Self::Wrote(file) => {
                let found = fs::metadata(member.data_dir().join(file));
                found.and_then(|found| found.modified()).ok()
            }
        }
    }

    /// Whether it has come, or the start is over. `before` is when its file had been written before the start.
    fn has_come(self, member: &Member, before: Option<SystemTime>) -> bool {
        let log = member.log();
        let is_now = match self {
            Self::Said(text) => log.contains(text),
            Self::Wrote(_) => self.written(member) != before,
        };
        is_now || log.contains(READY)
    }
}

/// A member that does not run yet, with a copy of the directory.
async fn unpacked() -> Cluster {
    let cluster = Cluster::new(1).await;
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(DIRECTORY)
        .arg("-C")
        .arg(cluster.folder())
        .status();
    assert!(unpacked.is_ok_and(|status| status.success()), "{DIRECTORY}");
    let folder = cluster.members[0].data_dir();
    fs::rename(cluster.folder().join("data"), folder).expect("the directory moves");
    cluster
}

/// Waits until the member serves, and looks for all that the directory had.
async fn has_everything(port: u16, newest: &str) {
    let at = [port];
    eventually(&at, &["endpoint", "health"], |_| true).await;
    let got = |key, revision| async move {
        let revision = format!("--rev={revision}");
        let args = ["get", key, "--print-value-only", &revision];
        etcdctl(&at, &args).await
    };
    assert_eq!(got("k/a", 0).await.ok(), "v3\n", "the newest");
    assert_eq!(got("k/a", 8).await.ok(), "v2\n", "the history");
    assert_eq!(got("k/e", 16).await.ok(), "v3\n", "before its deletion");
    assert_eq!(got("k/e", 0).await.ok(), "", "deleted");
    let refused = got("k/a", 6).await.refused();
    assert!(refused.contains("has been compacted"), "{refused}");
    let members = etcdctl(&at, &["member", "list"]).await.ok();
    assert_eq!(members.lines().count(), 2, "{members}");
    assert!(members.contains(LEARNER), "{members}");
    let args = ["lease", "timetolive", LEASE, "--keys"];
    let lease = etcdctl(&at, &args).await.ok();
    assert!(lease.contains("attached keys([leased])"), "{lease}");
    let status = etcdctl(&at, &["get", "k/a", "-w", "json"]).await.json();
    assert_eq!(
        status["header"]["revision"].to_string(),
        newest,
        "no revision is lost"
    );
    if newest == NEWEST {
        let hash = etcdctl(&at, &["endpoint", "hashkv"]).await.ok();
        assert!(hash.contains(HASH), "{hash}");
    }
}

#[tokio::test]
async fn a_directory_of_the_first_version_opens_with_all_it_has() {
    let mut cluster = unpacked().await;
    let port = cluster.ports()[0];
    for newest in [NEWEST, "20"] {
        cluster.members[0].start();
        has_everything(port, newest).await;
        if newest == NEWEST {
            let put = etcdctl(&[port], &["put", "after", "v"]).await;
            assert_eq!(put.ok(), "OK\n");
        }
        cluster.members[0].stop().await;
    }
}

#[tokio::test]
async fn a_first_start_on_such_a_directory_may_be_killed_at_any_moment() {
    for moment in [
        // At once.
        Moment::Said(""),
        Moment::Wrote("db/revisions.redb"),
        Moment::Wrote("db/synced"),
        Moment::Wrote("wal"),
        Moment::Said(" starting "),
        Moment::Wrote("starts"),
        Moment::Said(READY),
    ] {
        let mut cluster = unpacked().await;
        let port = cluster.ports()[0];
        let member = &mut cluster.members[0];
        let before = moment.written(member);
        member.start();
        let comes = async {
            while !moment.has_come(member, before) {
                sleep(POLL).await;
            }
        };
        let came = timeout(PATIENCE, comes).await;
        assert!(came.is_ok(), "{moment:?} never comes:\n{}", member.log());
        member.kill().await;
        member.start();
        has_everything(port, NEWEST).await;
    }
}

/// What every start of a member alone does, in order.
#[cfg(feature = "failpoints")]
const STEPS: [FailPoint; 12] = [
    FailPoint::BeforeHardState,
    FailPoint::AfterHardState,
    FailPoint::BeforeWalWrite,
    FailPoint::AfterWalWrite,
    FailPoint::BeforeWalSync,
    FailPoint::AfterWalSync,
    FailPoint::BeforeApply,
    FailPoint::AfterApply,
    FailPoint::BeforePublish,
    FailPoint::AfterPublish,
    FailPoint::BeforeDbCommit,
    FailPoint::AfterDbCommit,
];

#[cfg(feature = "failpoints")]
#[tokio::test]
async fn a_first_start_on_such_a_directory_may_crash_at_each_of_its_steps() {
    let mut crashes = 0;
    for step in STEPS {
        let mut cluster = unpacked().await;
        let port = cluster.ports()[0];
        let member = &mut cluster.members[0];
        member.set("FAILPOINTS", &format!("{}=return", step.name()));
        member.start();
        let comes = async {
            while member.runs() && !member.log().contains(READY) {
                sleep(POLL).await;
            }
        };
        let came = timeout(PATIENCE, comes).await;
        assert!(came.is_ok(), "{step:?} never comes:\n{}", member.log());
        if member.runs() {
            // It serves, and has not come to this step yet.
            member.kill().await;
        } else {
            member.stopped().await;
            crashes += 1;
        }
        member.unset("FAILPOINTS");
        member.start();
        has_everything(port, NEWEST).await;
    }
    assert!(
        crashes > STEPS.len() / 2,
        "{crashes} of {} steps",
        STEPS.len()
    );
}
