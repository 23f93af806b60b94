//! jetcd, etcd's client for Java, against a member with users, roles and mutual TLS, and against a real etcd in the same setting.
//!
//! `tests/jetcd` is the program, which `tests/jetcd/build` compiles. Without Java and Maven there is nothing to run.

use crate::{
    programs::{self, Guarded, Kind},
    tools::{self, etcd_version},
};
use tokio::process::Command;

/// Seconds after which a token ends that nobody uses: longer than a test waits, and as short as can be.
const LONG: u32 = 300;
const SHORT: u32 = 1;

#[expect(
    clippy::print_stderr,
    reason = "a skipped test must be visible in the output"
)]
fn skipped(why: &str) {
    eprintln!("note: skipped: {why}");
}

fn classes() -> Option<String> {
    let classes = tools::jetcd();
    if classes.is_none() {
        skipped("Java or Maven is not installed, so jetcd is not tested");
    }
    classes
}

/// Runs the program against two members, the second of which has tokens that end soon.
async fn run(kind: Kind, classes: &str) -> Result<Vec<String>, String> {
    let mut server = Guarded::start(kind, &["root", "alice", "stranger"], LONG).await;
    let brief = Guarded::start(kind, &[], SHORT).await;
    // Somebody else's authority, and alice's name.
    server.cert(&["ca", "--dir", "other"]).await;
    server
        .cert(&["client", "--ca", "other", "--name", "alice"])
        .await;
    let mut command = Command::new("java");
    command
        // It runs for seconds: what takes time to make it fast does not pay.
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx512m"])
        .args(["-cp", classes, "quorate.Main"])
        .arg(format!("--plain={}", server.plain()))
        .arg(format!("--secure={}", server.secure()))
        .arg(format!("--brief={}", brief.plain()))
        .arg(format!(
            "--certificates={}",
            server.certificates().display()
        ));
    programs::run(&mut command, async |ask, n| server.obey(ask, n).await).await
}

#[tokio::test]
async fn jetcd_works_with_users_roles_and_mutual_tls() {
    let Some(classes) = classes() else { return };
    let lines = run(Kind::Quorate, &classes).await;
    let lines = lines.unwrap_or_else(|why| panic!("{why}"));
    assert!(lines.len() > 35, "only {lines:?}");
}

#[tokio::test]
async fn a_real_etcd_passes_the_same_tests_of_jetcd() {
    let Some(classes) = classes() else { return };
    if etcd_version() < (3, 7) {
        return skipped("what an etcd before 3.7 answers is not compared");
    }
    let lines = programs::one_of_three(async || run(Kind::Etcd, &classes).await).await;
    assert!(lines.len() > 35, "only {lines:?}");
}
