//! etcd's Go client with all its packages, and the recipes on top of it, against members as processes.
//!
//! `tests/etcd/client` is the program: it prints a line for each of its tests, and asks for members to be killed and started. The
//! same program runs against a real etcd, which checks the tests themselves. Without Go there is nothing to run.

use crate::{
    ctl::eventually,
    etcd::Etcd,
    support::Cluster,
    tools::{self, etcd_version},
};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

/// All of its tests together: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(15);

/// What the program asks of whoever owns the members.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Kill,
    Start,
}

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

/// Runs the program with these arguments until it ends. Gives the lines of the tests that passed, or of those that did not.
async fn run(
    program: &Path,
    ports: &[u16],
    args: &[&str],
    mut asked: impl AsyncFnMut(Ask, usize),
) -> Result<Vec<String>, String> {
    let endpoints: Vec<_> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut child = Command::new(program)
        .arg(format!("-endpoints={}", endpoints.join(",")))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    let output = child.stdout.take().expect("a pipe");
    let mut output = BufReader::new(output).lines();
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    while let Some(line) = output.next_line().await.expect("text") {
        let (what, member) = line.split_once(' ').unwrap_or_default();
        let ask = match what {
            "kill" => Ask::Kill,
            "start" => Ask::Start,
            "ok" => {
                passed.push(line);
                continue;
            }
            _ => {
                failed.push(line);
                continue;
            }
        };
        asked(ask, member.parse().expect("the number of a member")).await;
        input.write_all(b"\n").await.expect("it waits for this");
    }
    let status = child.wait().await.expect("it ends");
    if status.success() && failed.is_empty() {
        return Ok(passed);
    }
    let after = passed.last().map_or("nothing", String::as_str);
    Err(format!(
        "{status}, after {} tests, last {after}: {}",
        passed.len(),
        failed.join("\n")
    ))
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
    let lines = timeout(PATIENCE, ran)
        .await
        .expect("it ends in time")
        .unwrap_or_else(|why| panic!("{why}"));
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
    let lines = timeout(PATIENCE, ran)
        .await
        .expect("it ends in time")
        .unwrap_or_else(|why| panic!("{why}"));
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
    let lines = timeout(PATIENCE, ran)
        .await
        .expect("it ends in time")
        .unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(lines.len(), 4, "{lines:?}");
}

/// As all the tests: one run of three suffices.
#[tokio::test]
async fn so_it_does_at_a_real_etcd() {
    let Some(program) = program() else { return };
    let mut failures = Vec::new();
    while failures.len() < 3 {
        let (_folder, option) = signed_tokens();
        let etcd = Etcd::start_with(3, &[&format!("--auth-token={option}")]);
        let ports = etcd.ports();
        eventually(&ports, &["endpoint", "health"], |_| true).await;
        let ran = run(&program, &ports, OF_USERS, async |ask, n| {
            panic!("no test asks for member {n} to be disturbed: {ask:?}")
        });
        match timeout(PATIENCE, ran).await.expect("it ends in time") {
            Ok(lines) => {
                assert_eq!(lines.len(), 4, "{lines:?}");
                return;
            }
            Err(why) => failures.push(why),
        }
    }
    panic!("{}", failures.join("\n"));
}

/// Runs the program once against three members of a real etcd.
async fn against_etcd(program: &Path) -> Result<Vec<String>, String> {
    let mut etcd = Etcd::start(3);
    let ports = etcd.ports();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    let ran = run(
        program,
        &ports,
        &["-leases=1000", "-watches=1000"],
        async |ask, n| match ask {
            Ask::Kill => etcd.kill(n).await,
            Ask::Start => etcd.start_member(n),
        },
    );
    timeout(PATIENCE, ran).await.expect("it ends in time")
}

/// The tests themselves hold: what they want is what etcd does. On a machine as loaded as the one that runs all tests together,
/// a real etcd loses its leader now and then and refuses a call for it, so one run of three suffices here; Quorate has one run.
#[tokio::test]
async fn a_real_etcd_passes_the_same_tests_of_the_go_client() {
    let Some(program) = program() else { return };
    assert!(etcd_version() >= (3, 7), "Go is installed, so etcd is 3.7");
    let mut failures = Vec::new();
    let lines = loop {
        match against_etcd(&program).await {
            Ok(lines) => break lines,
            Err(why) => failures.push(why),
        }
        assert!(failures.len() < 3, "{}", failures.join("\n"));
    };
    assert!(lines.len() > 30, "only {lines:?}");
}
