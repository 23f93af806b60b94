//! Drives the real etcdctl.

use crate::tools;
use serde_json::Value;
use std::{env, process::Stdio, time::Duration};
use tokio::{
    process::{Child, Command},
    time::sleep,
};

/// How long a test waits for something that must happen soon: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pause between two attempts.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) good: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert!(self.good, "etcdctl failed: {self:?}");
        self.stdout
    }

    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(!self.good, "etcdctl should have failed: {self:?}");
        self.stderr
    }

    pub(crate) fn json(self) -> Value {
        let stdout = self.ok();
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error} in {stdout}"))
    }
}

/// Starts `etcdctl` against the member at this port, with its output on a pipe. It is killed when the child is dropped.
pub(crate) fn start_etcdctl(port: u16, args: &[&str]) -> Child {
    let mut command = command(&[port]);
    command.args(args).stdout(Stdio::piped());
    command.spawn().expect("etcdctl starts")
}

/// `etcdctl` with the addresses of the members.
fn command(ports: &[u16]) -> Command {
    let endpoints: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    let mut command = Command::new(tools::etcdctl());
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("ETCDCTL_") {
            command.env_remove(name);
        }
    }
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        // Longer than the servers' own timeout, so that the answer is theirs.
        .arg("--command-timeout=20s")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs `etcdctl` against the members at these ports.
pub(crate) async fn etcdctl(ports: &[u16], args: &[&str]) -> Output {
    let output = command(ports)
        .args(args)
        .output()
        .await
        .expect("etcdctl runs");
    // Go's protobuf prints one space or two between the fields of a message, so that no program relies on either.
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace("  alarm:", " alarm:");
    Output {
        good: output.status.success(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Runs `etcdctl` until it succeeds and its output satisfies the condition.
pub(crate) async fn eventually(
    ports: &[u16],
    args: &[&str],
    wanted: impl Fn(&str) -> bool,
) -> String {
    let start = quorate::internals::clock::now();
    loop {
        let output = etcdctl(ports, args).await;
        if output.good && wanted(&output.stdout) {
            return output.stdout;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{args:?} still gives {output:?}"
        );
        sleep(POLL).await;
    }
}

/// The statuses of these members, in the order of the ports.
pub(crate) async fn statuses(ports: &[u16]) -> Vec<Value> {
    let mut found = Vec::new();
    for port in ports {
        // A member that starts refuses calls.
        let status = eventually(&[*port], &["endpoint", "status", "-w", "json"], |_| true).await;
        let status: Value = serde_json::from_str(&status).expect("JSON");
        found.push(status[0]["Status"].clone());
    }
    found
}

/// The position in `ports` of the leader that all of them follow, once they agree.
pub(crate) async fn leader(ports: &[u16]) -> usize {
    let start = quorate::internals::clock::now();
    loop {
        let found = statuses(ports).await;
        let leaders: Vec<&Value> = found.iter().map(|status| &status["leader"]).collect();
        let own = |status: &Value| status["header"]["member_id"].clone();
        let agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        let at = found.iter().position(|status| own(status) == *leaders[0]);
        if let (true, Some(at)) = (agreed, at) {
            return at;
        }
        assert!(start.elapsed() < PATIENCE, "no leader in {found:?}");
        sleep(POLL).await;
    }
}

/// Waits until these members have the same history.
pub(crate) async fn same_history(ports: &[u16]) {
    let start = quorate::internals::clock::now();
    loop {
        let output = etcdctl(ports, &["endpoint", "hashkv", "-w", "json"]).await;
        if output.good {
            let hashes: Value = serde_json::from_str(&output.stdout).expect("JSON");
            let hashes = hashes.as_array().expect("one for each member").clone();
            let state = |entry: &Value| {
                let hash = &entry["HashKV"];
                (hash["header"]["revision"].clone(), hash["hash"].clone())
            };
            if hashes.iter().all(|entry| state(entry) == state(&hashes[0])) {
                assert_eq!(hashes.len(), ports.len(), "one for each member");
                return;
            }
        }
        assert!(start.elapsed() < PATIENCE, "they differ: {}", output.stdout);
        sleep(POLL).await;
    }
}

/// How many keys begin with `prefix`, by the count of the member at `port`.
pub(crate) async fn keys(port: u16, prefix: &str) -> usize {
    let args = ["get", prefix, "--prefix", "--keys-only"];
    let listed = eventually(&[port], &args, |_| true).await;
    listed.lines().filter(|line| !line.is_empty()).count()
}
