//! A data directory of an earlier version opens: `tests/data/directory-v1.tar.gz`, kept from the version before the first change
//! of a format (directory, log and database of format 1).
//!
//! It is that of a member that was killed: 19 revisions (`k/a` to `k/e` three times, `k/e` deleted), compacted at 7, a lease
//! with a key, and a learner that never started.

use crate::{
    ctl::{etcdctl, eventually},
    support::Cluster,
};
use std::{fs, process::Command};

const DIRECTORY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/data/directory-v1.tar.gz"
);
const LEASE: &str = "6b7d8d8ab8df023d";
const LEARNER: &str = "676b83a613680666, unstarted";
/// What `etcdctl endpoint hashkv` said before the member was killed.
const HASH: &str = "2300742872";

#[tokio::test]
async fn a_directory_of_the_first_version_opens_with_all_it_has() {
    let mut cluster = Cluster::new(1).await;
    let port = cluster.ports()[0];
    let unpacked = Command::new("tar")
        .arg("-xzf")
        .arg(DIRECTORY)
        .arg("-C")
        .arg(cluster.folder())
        .status();
    assert!(unpacked.is_ok_and(|status| status.success()), "{DIRECTORY}");
    let folder = cluster.members[0].data_dir();
    fs::rename(cluster.folder().join("data"), folder).expect("the directory moves");

    for newest in ["19", "20"] {
        cluster.members[0].start();
        let at = [port];
        eventually(&at, &["endpoint", "health"], |_| true).await;
        let got = |key, revision| async move {
            let revision = format!("--rev={revision}");
            let args = ["get", key, "--print-value-only", &revision];
            etcdctl(&at, &args).await
        };
        assert_eq!(got("k/a", 0).await.ok(), "v3\n");
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
        assert_eq!(status["header"]["revision"].to_string(), newest);
        if newest == "19" {
            let hash = etcdctl(&at, &["endpoint", "hashkv"]).await.ok();
            assert!(hash.contains(HASH), "{hash}");
            let put = ["put", "after", "v"];
            assert_eq!(etcdctl(&at, &put).await.ok(), "OK\n");
        }
        cluster.members[0].stop().await;
    }
}
