//! Each workload of `quorate bench`, briefly, against a real etcd: it must finish without errors and count.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: what cannot be unwrapped fails the test"
)]

#[path = "api/support/ports.rs"]
mod ports;
#[path = "support/tools.rs"]
mod tools;

use ports::free_port;
use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
};

/// A server on free ports with its own data directory; killed at the end.
struct Server {
    process: Child,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn etcd() -> Self {
        Self::start("http", &[], |_| ())
    }

    /// Starts an etcd that clients reach by `scheme`; `reach` are the flags of `quorate bench` for that.
    fn start(scheme: &str, reach: &[&str], settings: impl FnOnce(&mut Command)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let (client, peer) = (free_port(), free_port());
        let (endpoint, peer) = (
            format!("{scheme}://127.0.0.1:{client}"),
            format!("http://127.0.0.1:{peer}"),
        );
        let mut command = etcd_command(data.path(), &endpoint, &peer);
        settings(&mut command);
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run etcd: {error}"));
        let server = Self {
            process,
            endpoint,
            _data: data,
        };
        let output = server.bench(&[&["wait", "--duration", "60"], reach].concat());
        assert!(
            output.status.success(),
            "etcd does not answer: {}",
            stderr(&output)
        );
        server
    }

    /// Runs a workload on little data, so that it is over at once.
    fn bench(&self, line: &[&str]) -> Output {
        bench(&self.endpoint, line)
    }

    /// Runs a workload that must succeed; returns its JSON.
    fn measure(&self, line: &[&str]) -> String {
        let pid = self.process.id().to_string();
        let small = [
            "--keys",
            "200",
            "--server-pid",
            &pid,
            "--output",
            "json",
            "--quiet",
        ];
        let output = self.bench(&[line, &small].concat());
        let json = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{line:?} failed: {json}{}",
            stderr(&output)
        );
        json
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn etcd_command(data: &Path, client: &str, peer: &str) -> Command {
    let mut command = Command::new(tools::etcd());
    command
        .arg("--data-dir")
        .arg(data)
        .args(["--name", "a", "--logger", "zap"]);
    command.args([
        "--listen-client-urls",
        client,
        "--advertise-client-urls",
        client,
    ]);
    command.args([
        "--listen-peer-urls",
        peer,
        "--initial-advertise-peer-urls",
        peer,
    ]);
    command.args(["--initial-cluster", &format!("a={peer}")]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn bench(endpoint: &str, line: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quorate"))
        .arg("bench")
        .args(line)
        .args(["--endpoints", endpoint])
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A figure of the JSON report.
fn figure(json: &str, name: &str) -> f64 {
    let (_, rest) = json
        .split_once(&format!("\"{name}\":"))
        .unwrap_or_else(|| panic!("no {name} in {json}"));
    let end = rest.find([',', '}']).expect("an object has an end");
    rest[..end]
        .parse()
        .unwrap_or_else(|_| panic!("{name} is no number in {json}"))
}

#[test]
fn every_load_runs_without_errors_and_counts_what_it_did() {
    let etcd = Server::etcd();
    let limited = ["--requests", "300", "--warmup", "0", "--clients", "8"];
    for line in [
        &["put"][..],
        &["get"],
        &[
            "get",
            "--serializable",
            "--threads",
            "2",
            "--connections",
            "4",
        ],
        &["scan", "--limit", "50"],
        &["count"],
        &["cas"],
        &["lease-grant"],
        &["lease-keepalive"],
        &["fill"],
        &["put", "--rate", "5000"],
    ] {
        let json = etcd.measure(&[line, &limited].concat());
        let done = figure(&json, "operations");
        assert!(
            (done - 300.0).abs() < 0.5,
            "{line:?} did {done} of 300 operations: {json}"
        );
        assert!(figure(&json, "p50_us") > 0.0, "{line:?} took time: {json}");
        assert!(
            figure(&json, "p50_us") <= figure(&json, "max_us"),
            "{line:?} in order: {json}"
        );
        assert!(
            figure(&json, "server_resident_mib") > 1.0,
            "{line:?} sees the server: {json}"
        );
    }
}

#[test]
fn the_kubernetes_mix_runs_every_kind_of_request_and_its_watches_see_the_writes() {
    let etcd = Server::etcd();
    let line = [
        "k8s",
        "--requests",
        "3000",
        "--warmup",
        "0",
        "--clients",
        "8",
        "--streams",
        "4",
    ];
    let json = etcd.measure(&line);
    let kinds = [
        "create",
        "update",
        "delete",
        "get",
        "list",
        "count",
        "consistent",
        "lease",
        "event",
    ];
    for kind in kinds {
        let done = figure(&json, &format!("{kind}_operations"));
        assert!(done > 0.0, "no {kind} in {json}");
    }
}

#[test]
fn puts_go_on_while_leases_end() {
    let etcd = Server::etcd();
    let line = [
        "lease-expiry",
        "--leases",
        "200",
        "--lease-ttl",
        "5",
        "--warmup",
        "0",
        "--duration",
        "10",
        "--clients",
        "4",
    ];
    let json = etcd.measure(&line);
    for kind in ["quiet", "ending"] {
        let done = figure(&json, &format!("{kind}_operations"));
        assert!(done > 0.0, "no {kind} in {json}");
    }
}

#[test]
fn every_watcher_gets_every_event() {
    let etcd = Server::etcd();
    let line = [
        "watch-fanout",
        "--duration",
        "1",
        "--clients",
        "2",
        "--watchers",
        "20",
        "--streams",
        "3",
    ];
    // An event that never came would be an error, and `measure` takes none.
    let json = etcd.measure(&line);
    let (puts, events) = (
        figure(&json, "put_operations"),
        figure(&json, "delivery_operations"),
    );
    assert!(puts > 0.0, "the writers wrote: {json}");
    assert!(
        events > puts,
        "there are more deliveries than writes: {json}"
    );
}

#[test]
fn a_load_can_log_in() {
    let etcd = Server::etcd();
    let user = ["--user", "bench:secret"];
    etcd.measure(&[&["enable-auth"][..], &user].concat());
    let limited = ["--requests", "60", "--warmup", "0", "--clients", "4"];
    let json = etcd.measure(&[&["put"][..], &user, &limited].concat());
    assert!((figure(&json, "operations") - 60.0).abs() < 0.5, "{json}");
    etcd.measure(&[&["get"][..], &user, &limited].concat());
    let json = etcd.measure(&[&["login"][..], &user, &limited].concat());
    for kind in ["login", "put"] {
        let done = figure(&json, &format!("{kind}_operations"));
        assert!(done > 0.0, "no {kind} in {json}");
    }
    let output = etcd.bench(&["put", "--requests", "1"]);
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(report.contains("user name is empty"), "without: {report}");
    let output = etcd.bench(&["put", "--requests", "1", "--user", "bench:wrong"]);
    assert!(stderr(&output).contains("authentication failed"), "wrong");
}

#[test]
fn a_load_goes_over_mutual_tls() {
    let certs = tempfile::tempdir().unwrap();
    let file = |name: &str| certs.path().join(name).to_str().unwrap().to_owned();
    let folder = file("");
    for line in [
        &["ca", "--dir", &folder][..],
        &["server", "--ca", &folder, "--host", "127.0.0.1"],
        &["client", "--ca", &folder, "--name", "bench"],
    ] {
        let mut made = Command::new(env!("CARGO_BIN_EXE_quorate"));
        assert!(
            made.arg("cert")
                .args(line)
                .output()
                .unwrap()
                .status
                .success(),
            "{line:?}"
        );
    }
    let files = ["ca.pem", "bench.pem", "bench-key.pem"].map(file);
    let shown = [
        "--cacert", &files[0], "--cert", &files[1], "--key", &files[2],
    ];
    let server = ["ca.pem", "server.pem", "server-key.pem"].map(file);
    let etcd = Server::start("https", &shown, |command| {
        command.args(["--trusted-ca-file", &server[0], "--client-cert-auth"]);
        command.args(["--cert-file", &server[1], "--key-file", &server[2]]);
    });
    let limited = ["--requests", "60", "--warmup", "0", "--clients", "4"];
    let user = ["--user", "bench:secret"];
    for line in [
        &[&["put"][..], &shown, &limited].concat(),
        &[&["get"][..], &shown, &limited].concat(),
        &[&["enable-auth"][..], &shown, &user].concat(),
        &[
            &["k8s", "--duration", "1", "--warmup", "0"][..],
            &shown,
            &user,
        ]
        .concat(),
        &[&["put"][..], &shown, &limited, &user].concat(),
        &[&["login"][..], &shown, &limited, &user].concat(),
    ] {
        etcd.measure(line);
    }
    let port = etcd.endpoint.trim_start_matches("https://");
    for (endpoint, line, named) in [
        (
            &*etcd.endpoint,
            &["put", "--cacert", &files[0]][..],
            "first error: connection: ",
        ),
        (port, &["put"], "first error: connection: "),
        (&etcd.endpoint, &["put"], "https:// needs --cacert FILE"),
        (
            port,
            &[&["put", "--cacert", &files[1]], &shown[2..]].concat(),
            "UnknownIssuer",
        ),
    ] {
        let output = bench(endpoint, &[line, &["--requests", "1"]].concat());
        let report = String::from_utf8_lossy(&output.stdout);
        let said = format!("{report}{}", stderr(&output));
        assert!(
            !output.status.success() && said.contains(named),
            "{line:?}: {said}"
        );
    }
}

#[test]
fn history_is_replayed_from_the_first_revision() {
    let etcd = Server::etcd();
    let json = etcd.measure(&["watch-history"]);
    assert!(figure(&json, "operations") >= 200.0, "all events: {json}");
}

#[test]
fn idle_connections_are_counted() {
    let etcd = Server::etcd();
    let json = etcd.measure(&["idle-connections", "--connections", "20"]);
    assert!(
        (figure(&json, "operations") - 20.0).abs() < 0.5,
        "twenty connections: {json}"
    );
    assert!(
        json.contains("server_kib_per_connection"),
        "their memory: {json}"
    );
}

#[test]
fn the_machine_is_measured_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let output = bench(
        "127.0.0.1:1",
        &["machine", "--dir", dir, "--output", "json"],
    );
    assert!(
        output.status.success(),
        "measuring failed: {}",
        stderr(&output)
    );
    let json = String::from_utf8_lossy(&output.stdout);
    assert!(
        figure(&json, "fdatasync_4k_p50_us") > 0.0,
        "a disk takes time: {json}"
    );
    assert!(
        figure(&json, "loopback_p50_us") > 0.0,
        "a round trip takes time: {json}"
    );
}

#[test]
fn errors_of_the_server_make_the_run_fail_and_are_told_once() {
    let etcd = Server::etcd();
    // etcd refuses requests above 1.5 MiB; the key makes this one larger.
    let big = [
        "put",
        "--value-bytes",
        "1572864",
        "--key-bytes",
        "65536",
        "--prefix",
        "big/",
    ];
    let limits = [
        "--requests",
        "4",
        "--clients",
        "2",
        "--warmup",
        "0",
        "--output",
        "json",
    ];
    let output = etcd.bench(&[&big[..], &limits].concat());
    let json = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "errors make the run fail: {json}");
    assert!(
        (figure(&json, "errors") - 4.0).abs() < 0.5,
        "each refusal is counted: {json}"
    );
    assert!(
        json.contains("grpc status"),
        "the first one's text is in it: {json}"
    );
    assert!(
        stderr(&output).contains("4 errors"),
        "and summed up: {}",
        stderr(&output)
    );
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let nobody = format!("127.0.0.1:{}", free_port());
    for line in [&["put"][..], &["wait", "--duration", "0.05"]] {
        let output = bench(&nobody, line);
        assert!(!output.status.success(), "{line:?} cannot succeed");
        assert!(
            stderr(&output).contains(&nobody),
            "names the address: {}",
            stderr(&output)
        );
    }
}
