//! The storage layer of Kubernetes' API server against a member with mutual TLS and authentication, whose user is named by the
//! server's certificate, and against a real etcd in the same setting.
//!
//! `tests/etcd/kubernetes` is the program, which `tests/etcd/build` compiles. Without Go there is nothing to run.

use crate::{
    programs::{self, Guarded, Kind},
    tools,
};
use std::path::{Path, PathBuf};
use tokio::process::Command;

#[expect(
    clippy::print_stderr,
    reason = "a skipped test must be visible in the output"
)]
fn program() -> Option<PathBuf> {
    let program = tools::kubernetes();
    if program.is_none() {
        eprintln!("note: skipped: Go is not installed, so Kubernetes' storage layer is not tested");
    }
    program
}

async fn run(kind: Kind, program: &Path) -> Result<Vec<String>, String> {
    let mut server = Guarded::start(kind, &["root", "kube-apiserver", "stranger"], 300).await;
    let mut command = Command::new(program);
    command
        .arg(format!("-endpoint={}", server.secure()))
        .arg(format!("-certificates={}", server.certificates().display()));
    // etcd lets a watch go on whose user may not read its range any more.
    if matches!(kind, Kind::Quorate) {
        command.arg("-watches-end");
    }
    programs::run(&mut command, async |ask, n| server.obey(ask, n).await).await
}

#[tokio::test]
async fn kubernetes_stores_its_objects_as_a_user_with_a_certificate() {
    let Some(program) = program() else { return };
    let lines = run(Kind::Quorate, &program).await;
    let lines = lines.unwrap_or_else(|why| panic!("{why}"));
    assert!(lines.len() > 15, "only {lines:?}");
}

#[tokio::test]
async fn a_real_etcd_passes_the_same_tests_of_kubernetes() {
    let Some(program) = program() else { return };
    let lines = programs::one_of_three(async || run(Kind::Etcd, &program).await).await;
    assert!(lines.len() > 15, "only {lines:?}");
}
