//! Clients of etcd in other languages, as programs with tests of their own: how they are run, and the servers that they run
//! against.
//!
//! Such a program prints a line for each of its tests, `ok NAME` or `FAILED NAME: WHY`. Where it writes `kill N` or `start N` it
//! waits for a line: members are processes of its caller. What its tests want is what etcd does, so that it runs against both.

use crate::{
    ctl::eventually,
    etcd::Etcd,
    support::{Cluster, free_port},
};
use std::{fs, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

/// All tests of a program together: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(15);

/// What a program asks of whoever owns the members.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Kill,
    Start,
}

/// Runs a program until it ends. Gives the lines of the tests that passed, or of those that did not.
pub(crate) async fn run(
    command: &mut Command,
    asked: impl AsyncFnMut(Ask, usize),
) -> Result<Vec<String>, String> {
    let ran = judged(command, asked);
    timeout(PATIENCE, ran).await.expect("it ends in time")
}

async fn judged(
    command: &mut Command,
    mut asked: impl AsyncFnMut(Ask, usize),
) -> Result<Vec<String>, String> {
    // Libraries log what they try again, which is only worth reading if a test has failed.
    let logged = tempfile::NamedTempFile::new().expect("a temporary file");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(logged.reopen().expect("it is there"))
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
    let logged = fs::read_to_string(logged.path()).expect("text");
    let logged: Vec<_> = logged.lines().collect();
    Err(format!(
        "{status}, after {} tests, last {after}: {}\nlogged at last:\n{}",
        passed.len(),
        failed.join("\n"),
        logged[logged.len().saturating_sub(20)..].join("\n")
    ))
}

/// The first run of three against a real etcd that passes. On a machine as loaded as the one that runs all tests together, it
/// loses its leader now and then and refuses a call for it; Quorate has one run.
pub(crate) async fn one_of_three(
    against_etcd: impl AsyncFn() -> Result<Vec<String>, String>,
) -> Vec<String> {
    let mut failures = Vec::new();
    loop {
        match against_etcd().await {
            Ok(lines) => return lines,
            Err(why) => failures.push(why),
        }
        assert!(failures.len() < 3, "{}", failures.join("\n"));
    }
}

/// Whose member it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Quorate,
    Etcd,
}

/// One member with two addresses: one in plain text, and one with TLS for clients with certificates, whose names are users.
#[derive(Debug)]
pub(crate) struct Guarded {
    /// Has the certificates, and is the member if it is Quorate's.
    cluster: Cluster,
    etcd: Option<Etcd>,
    plain: u16,
    secure: u16,
}

impl Guarded {
    /// Starts one, with certificates of its authority for clients with these names, and tokens that end after so many seconds.
    pub(crate) async fn start(kind: Kind, names: &[&str], token_secs: u32) -> Self {
        let mut cluster = Cluster::new(1).await;
        cluster.cert(&["server", "--host", "127.0.0.1"]).await;
        for name in names {
            cluster.cert(&["client", "--name", name]).await;
        }
        let folder = cluster.folder().display().to_string();
        let secure = free_port();
        let etcd = match kind {
            Kind::Quorate => {
                let member = &mut cluster.members[0];
                let plain = member.client;
                member.args.extend([
                    format!("--client-listen=http://127.0.0.1:{plain},https://127.0.0.1:{secure}"),
                    format!("--client-cert={folder}/server.pem"),
                    format!("--client-key={folder}/server-key.pem"),
                    format!("--client-ca={folder}/ca.pem"),
                    format!("--auth-token-ttl-secs={token_secs}"),
                    "--auth-bcrypt-cost=4".to_owned(),
                ]);
                member.start();
                None
            }
            // It logs in to itself with its certificate, for which a server's is not enough: a member's is for both.
            Kind::Etcd => Some(Etcd::start_guarded(
                secure,
                &[
                    &format!("--cert-file={folder}/n1.pem"),
                    &format!("--key-file={folder}/n1-key.pem"),
                    &format!("--trusted-ca-file={folder}/ca.pem"),
                    "--client-cert-auth",
                    &format!("--auth-token-ttl={token_secs}"),
                    "--bcrypt-cost=4",
                ],
            )),
        };
        let plain = etcd
            .as_ref()
            .map_or(cluster.members[0].client, |etcd| etcd.ports()[0]);
        let urls = |list: &str| list.contains(&format!("https://127.0.0.1:{secure}"));
        eventually(&[plain], &["member", "list"], urls).await;
        Self {
            cluster,
            etcd,
            plain,
            secure,
        }
    }

    /// The authority's folder.
    pub(crate) fn certificates(&self) -> &Path {
        self.cluster.folder()
    }

    /// Makes further certificates.
    pub(crate) async fn cert(&self, args: &[&str]) {
        self.cluster.cert(args).await;
    }

    pub(crate) fn plain(&self) -> String {
        format!("http://127.0.0.1:{}", self.plain)
    }

    pub(crate) fn secure(&self) -> String {
        format!("https://127.0.0.1:{}", self.secure)
    }

    /// Does what a program asks.
    pub(crate) async fn obey(&mut self, ask: Ask, member: usize) {
        assert_eq!(member, 0, "there is one");
        match (&mut self.etcd, ask) {
            (Some(etcd), Ask::Kill) => etcd.kill(0).await,
            (Some(etcd), Ask::Start) => etcd.start_member(0),
            (None, Ask::Kill) => self.cluster.members[0].kill().await,
            (None, Ask::Start) => self.cluster.members[0].start(),
        }
    }
}
