//! etcd's Go client with all its packages, and the recipes on top of it, against members as processes.
//!
//! `tests/etcd/client` is the program: it prints a line for each of its tests, and asks for members to be killed and started. The
//! same program runs against a real etcd, which checks the tests themselves. Without Go there is nothing to run.

use crate::{
    ctl::eventually,
    etcd::Etcd,
    programs::{self, Ask},
    support::Cluster,
    tools::{self, etcd_version},
};
use std::{path::Path, time::Duration};
use tokio::process::Command;

#[expect(
    clippy::print_stderr,
    reason = "a skipped test must be visible in the output"
)]
fn program() -> Option<std::path::PathBuf> {
    let program = tools::go_client();
    if program.is_none() {
        eprintln!("note: skipped: Go is not installed, so there is no Go client to test with");
    }
    program
}

/// Runs the program with these arguments until it ends.
async fn run(
    program: &Path,
    ports: &[u16],
    args: &[&str],
    asked: impl AsyncFnMut(Ask, usize),
) -> Result<Vec<String>, String> {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut command = Command::new(program);
    command.arg(format!("-endpoints={}", endpoints.join(",")));
    programs::run(command.args(args), asked).await
}

#[tokio::test]
async fn the_go_client_finds_all_that_it_needs() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    let args = ["-leases=5000", "-watches=9000"];
    let members = &mut cluster.members;
    let ran = run(&program, &ports, &args, async |ask, n| match ask {
        Ask::Kill => members[n].kill().await,
        Ask::Start => members[n].start(),
    });
    let lines = ran.await.unwrap_or_else(|why| panic!("{why}"));
    assert!(lines.len() > 30, "only {lines:?}");
}

/// The same over mutual TLS, but for the tests that kill members.
#[tokio::test]
async fn the_go_client_works_over_mutual_tls() {
    let Some(program) = program() else { return };
    let mut cluster = Cluster::new(1).await;
    let made = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>();
    let folder = cluster.folder().display().to_string();
    cluster.cert(&["server", "--host", "127.0.0.1"]).await;
    cluster.cert(&["client", "--name", "root"]).await;
    let member = &mut cluster.members[0];
    let port = member.client;
    member.args.extend(made(&[
        &format!("--client-listen=https://127.0.0.1:{port}"),
        &format!("--client-cert={folder}/server.pem"),
        &format!("--client-key={folder}/server-key.pem"),
        &format!("--client-ca={folder}/ca.pem"),
    ]));
    member.start();
    while !member.log().contains("ready: clients on https://") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = member.log();
    let attempt = format!(
        "try: etcdctl --endpoints=https://127.0.0.1:{port} --cacert={folder}/ca.pem --cert=CERT-FILE --key=KEY-FILE put"
    );
    assert!(log.contains(&attempt), "{attempt}:\n{log}");
    let args = made(&[
        &format!("-cacert={folder}/ca.pem"),
        &format!("-cert={folder}/root.pem"),
        &format!("-key={folder}/root-key.pem"),
        "-leases=500",
        "-watches=500",
        "-run=^(put-get|ranges|transactions|range-stream|large|errors|lease$|watch|session|mutex|election|stm|queue|barrier)",
    ]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ports = [port];
    let ran = run(&program, &ports, &args, async |ask, n| {
        panic!("no test asks for member {n} to be disturbed: {ask:?}")
    });
    let lines = ran.await.unwrap_or_else(|why| panic!("{why}"));
    assert!(lines.len() > 10, "only {lines:?}");
}

/// A secret that signs tokens, and `auth.token` in etcd's notation.
fn signed_tokens() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("secret");
    std::fs::write(&file, [b'k'; 64]).expect("the secret is written");
    let file = file.display();
    let option = format!("jwt,sign-method=HS256,ttl=10m,priv-key={file}");
    (folder, option)
}

/// The tests of users once more with signed tokens, which a client gets anew after `revision of auth store is old`.
const OF_USERS: &[&str] = &["-run=^auth-"];

#[tokio::test]
async fn the_go_client_logs_in_again_for_a_signed_token() {
    let Some(program) = program() else { return };
    let (_folder, option) = signed_tokens();
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.set("QUORATE_AUTH_TOKEN", &option);
        member.start();
    }
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    let ran = run(&program, &ports, OF_USERS, async |ask, n| {
        panic!("no test asks for member {n} to be disturbed: {ask:?}")
    });
    let lines = ran.await.unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(lines.len(), 4, "{lines:?}");
}

#[tokio::test]
async fn so_it_does_at_a_real_etcd() {
    let Some(program) = program() else { return };
    let lines = programs::one_of_three(async || {
        let (_folder, option) = signed_tokens();
        let etcd = Etcd::start_with(3, &[&format!("--auth-token={option}")]);
        let ports = etcd.ports();
        eventually(&ports, &["endpoint", "health"], |_| true).await;
        run(&program, &ports, OF_USERS, async |ask, n| {
            panic!("no test asks for member {n} to be disturbed: {ask:?}")
        })
        .await
    });
    let lines = lines.await;
    assert_eq!(lines.len(), 4, "{lines:?}");
}

/// Runs the program once against three members of a real etcd.
async fn against_etcd(program: &Path) -> Result<Vec<String>, String> {
    let mut etcd = Etcd::start(3);
    let ports = etcd.ports();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    run(
        program,
        &ports,
        &["-leases=1000", "-watches=1000"],
        async |ask, n| match ask {
            Ask::Kill => etcd.kill(n).await,
            Ask::Start => etcd.start_member(n),
        },
    )
    .await
}

/// The tests themselves hold: what they want is what etcd does.
#[tokio::test]
async fn a_real_etcd_passes_the_same_tests_of_the_go_client() {
    let Some(program) = program() else { return };
    assert!(etcd_version() >= (3, 7), "Go is installed, so etcd is 3.7");
    let lines = programs::one_of_three(async || against_etcd(&program).await).await;
    assert!(lines.len() > 30, "only {lines:?}");
}
