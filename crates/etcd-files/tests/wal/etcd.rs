//! A real etcd, where one was built: `tests/etcd/build` at the root of the repository puts it into the target folder. Elsewhere
//! the variables `QUORATE_TEST_ETCD` and `QUORATE_TEST_ETCDCTL` may name one. Without it the tests that need it say so and pass.

use std::{
    env,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

pub(crate) struct Programs {
    etcd: PathBuf,
    etcdctl: PathBuf,
    etcdutl: Option<PathBuf>,
}

impl Programs {
    /// Finds the programs. `None`, with a line that says so, where they are not.
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    pub(crate) fn find(test: &str) -> Option<Self> {
        let found = program("etcd", "QUORATE_TEST_ETCD")
            .zip(program("etcdctl", "QUORATE_TEST_ETCDCTL"))
            .map(|(etcd, etcdctl)| Self {
                etcd,
                etcdctl,
                etcdutl: program("etcdutl", "QUORATE_TEST_ETCDUTL"),
            });
        if found.is_none() {
            eprintln!("{test} is skipped: no etcd was built, see tests/etcd/build");
        }
        found
    }

    /// The number after `3.` of its version.
    pub(crate) fn minor_version(&self) -> u32 {
        let output = Command::new(&self.etcd).arg("--version").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let minor = text.split('.').nth(1).and_then(|minor| minor.parse().ok());
        minor.unwrap_or_else(|| panic!("no version: {text}"))
    }

    /// Restores a snapshot into a data directory; `false` without an etcdutl.
    pub(crate) fn restore(&self, snapshot: &Path, data: &Path) -> bool {
        let Some(etcdutl) = &self.etcdutl else {
            return false;
        };
        let mut command = Command::new(etcdutl);
        command.args(["snapshot", "restore", "--data-dir"]);
        let output = command.arg(data).arg(snapshot).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
        true
    }

    /// Starts an etcd of one member and waits until it serves.
    pub(crate) fn start(&self, data: &Path, arguments: &[&str]) -> Etcd<'_> {
        let [member] = members(["one"]);
        let cluster = member.in_cluster();
        let mut etcd = self.begin(&member, &cluster, data, arguments);
        etcd.wait_until_ready();
        etcd
    }

    /// Starts a member of a cluster. It serves once most members have started.
    pub(crate) fn begin(
        &self,
        member: &Member,
        cluster: &str,
        data: &Path,
        arguments: &[&str],
    ) -> Etcd<'_> {
        let Member { name, client, peer } = member;
        let catch_up = match self.minor_version() {
            ..=5 => "ETCD_EXPERIMENTAL_SNAPSHOT_CATCHUP_ENTRIES",
            6.. => "ETCD_SNAPSHOT_CATCHUP_ENTRIES",
        };
        let mut child = Command::new(&self.etcd)
            .args(["--name", name, "--data-dir"])
            .arg(data)
            .args([
                "--listen-client-urls",
                client,
                "--advertise-client-urls",
                client,
            ])
            .args([
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
            ])
            .args(["--initial-cluster", cluster])
            .args(arguments)
            // These tests kill processes, not the machine.
            .env("ETCD_UNSAFE_NO_FSYNC", "true")
            // As a variable, since etcd 3.4 refuses a flag that it does not know.
            .env(catch_up, "5")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Etcd {
            programs: self,
            stderr: child.stderr.take(),
            child,
            client: client.clone(),
        }
    }
}

/// The name and the addresses of a member.
pub(crate) struct Member {
    name: &'static str,
    client: String,
    peer: String,
}

impl Member {
    /// Its part of `--initial-cluster`.
    pub(crate) fn in_cluster(&self) -> String {
        format!("{}={}", self.name, self.peer)
    }
}

/// Members with addresses that nobody uses.
pub(crate) fn members<const N: usize>(names: [&'static str; N]) -> [Member; N] {
    let mut listeners = Vec::new();
    let mut address = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        // Kept until all have theirs.
        listeners.push(listener);
        address
    };
    names.map(|name| Member {
        name,
        client: address(),
        peer: address(),
    })
}

fn program(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    Some(target.join("etcd").join(name)).filter(|path| path.is_file())
}

/// Reads the log until it says that clients are served, and goes on reading, so that the process can go on writing.
fn wait_until_ready(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr);
    let mut log = String::new();
    loop {
        let mut line = String::new();
        let read = lines.read_line(&mut line).unwrap();
        assert!(read > 0, "etcd ended:\n{log}");
        if line.contains("ready to serve client requests") || line.contains("serving client") {
            break;
        }
        log.write_str(&line).unwrap();
    }
    thread::spawn(move || lines.read_to_end(&mut Vec::new()));
}

/// A running etcd, which is killed in the end.
pub(crate) struct Etcd<'a> {
    programs: &'a Programs,
    child: Child,
    /// Until it is ready.
    stderr: Option<ChildStderr>,
    client: String,
}

impl Etcd<'_> {
    pub(crate) fn wait_until_ready(&mut self) {
        if let Some(stderr) = self.stderr.take() {
            wait_until_ready(stderr);
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs etcdctl, and returns what it prints.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        self.ctl_with(arguments, b"")
    }

    /// The same, with an input.
    pub(crate) fn ctl_with(&self, arguments: &[&str], input: &[u8]) -> String {
        self.try_ctl(arguments, input, "60s")
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    /// The same for a command that may fail, and for how long it may take.
    pub(crate) fn try_ctl(
        &self,
        arguments: &[&str],
        input: &[u8],
        timeout: &str,
    ) -> Result<String, String> {
        let mut ctl = Command::new(&self.programs.etcdctl)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.client, "--command-timeout", timeout])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input may have ended.
        ctl.stdin.take().unwrap().write_all(input).ok();
        let output = ctl.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(text(output.stderr))
        }
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Ends it in order.
    pub(crate) fn stop(mut self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(status.success(), "kill -TERM {pid}");
        self.child.wait().unwrap();
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        // It has ended already, or a test has failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
