//! A server under test as a child process: Quorate, or the etcd it is compared with.

use super::{
    Difference, children,
    client::{Client, get},
    note, ports, tools,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    env,
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    thread,
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

/// How long a server may take to answer: generous, for a loaded machine and a debug build.
const START_MAX: Duration = Duration::from_mins(1);
const STOP_MAX: Duration = Duration::from_secs(30);
/// The interval at which a starting server is polled.
const POLL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Quorate,
    Etcd,
}

impl Kind {
    /// What the shared test bodies run against: Quorate, unless `QUORATE_TEST_TARGET` says `etcd`.
    pub(crate) fn target() -> Self {
        match env::var("QUORATE_TEST_TARGET").as_deref() {
            Err(_) | Ok("quorate") => Self::Quorate,
            Ok("etcd") => Self::Etcd,
            Ok(other) => panic!("QUORATE_TEST_TARGET={other}: expected quorate or etcd"),
        }
    }
}

/// What a server is started with, beyond its ports and directory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// The limit on open files, instead of the one of the tests.
    pub(crate) open_files: Option<u32>,
}

/// One member with its directory and ports, which outlive the process: it can be killed and started again.
#[derive(Debug)]
pub(crate) struct Server {
    kind: Kind,
    home: TempDir,
    data_dir: PathBuf,
    client_port: u16,
    peer_port: u16,
    setup: Setup,
    child: Option<Child>,
}

impl Server {
    /// Starts the target on a new directory and waits until it answers a range.
    pub(crate) async fn start() -> Self {
        Self::start_kind(Kind::target()).await
    }

    pub(crate) async fn start_kind(kind: Kind) -> Self {
        let mut server = Self::new(kind, Setup::default());
        server.restart().await;
        server
    }

    pub(crate) async fn start_with(setup: Setup) -> Self {
        let mut server = Self::new(Kind::target(), setup);
        server.restart().await;
        server
    }

    /// Directory and ports of a server that does not run yet.
    pub(crate) fn new(kind: Kind, setup: Setup) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        Self {
            kind,
            data_dir: home.path().join("data"),
            home,
            client_port: ports::free_port(),
            peer_port: ports::free_port(),
            setup,
            child: None,
        }
    }

    /// Starts the process on the same directory and ports, and waits until it answers a range.
    pub(crate) async fn restart(&mut self) {
        assert!(
            self.child.is_none(),
            "the last process must be stopped first"
        );
        self.child = Some(self.command().spawn().expect("the server's program starts"));
        let ready = timeout(START_MAX, self.healthy()).await;
        assert!(
            ready.is_ok(),
            "no answer after {START_MAX:?}; log:\n{}",
            self.log()
        );
    }

    async fn healthy(&mut self) {
        loop {
            let child = self.child.as_mut().expect("started above");
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                panic!(
                    "the server stopped at its start with {status}; log:\n{}",
                    self.log()
                );
            }
            let ask = async {
                let client = Client::try_connect(self.client_port).await?;
                match client.range(get("ready")).await {
                    Ok(_) => Some(()),
                    // With authentication on, this says that it serves.
                    Err(status) => status
                        .message()
                        .contains("user name is empty")
                        .then_some(()),
                }
            };
            if let Ok(Some(())) = timeout(Duration::from_secs(2), ask).await {
                return;
            }
            sleep(POLL).await;
        }
    }

    /// `kill -9`: the process cannot write any more.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("a running server");
        child.kill().await.expect("the child can be killed");
    }

    /// Sends a signal without waiting for its effect.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self
            .child
            .as_ref()
            .and_then(Child::id)
            .expect("a running server");
        let id = Pid::from_raw(id.cast_signed()).expect("a process id is not zero");
        kill_process(id, signal).expect("the signal is delivered");
    }

    /// The most memory that the process has had so far, in bytes.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let id = self.child.as_ref().and_then(Child::id);
        let id = id.expect("a running server");
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("Linux has it");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        kib.and_then(|kib| kib.parse::<u64>().ok())
            .expect("a number")
            * 1024
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn stopped(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running server");
        let Ok(status) = timeout(STOP_MAX, child.wait()).await else {
            panic!(
                "still running {STOP_MAX:?} after it should stop; log:\n{}",
                self.log()
            );
        };
        status.expect("the child can be waited for")
    }

    /// The command that starts the process, for tests in which the start fails.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.kind {
            Kind::Quorate => self.quorate(),
            Kind::Etcd => self.etcd(),
        };
        let log = self.log_file();
        command
            .args(&self.setup.args)
            .envs(self.setup.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle on the log"))
            .stderr(log)
            .kill_on_drop(true);
        command
    }

    fn quorate(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_quorate");
        let mut command = match self.setup.open_files {
            None => Command::new(program),
            Some(limit) => limited(limit, program),
        };
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUORATE_"))
        {
            command.env_remove(name);
        }
        command
            .current_dir(self.home.path())
            .arg("--data-dir")
            .arg(self.data_dir())
            .args([
                "--client-listen",
                &format!("127.0.0.1:{}", self.client_port),
            ])
            .args(["--peer-listen", &format!("127.0.0.1:{}", self.peer_port)])
            .args(["--name", "n1"])
            // Small segments, since each test writes some in advance; what is kept for other members takes little of the disk.
            .env("QUORATE_STORAGE_WAL_SEGMENT_BYTES", "4194304")
            .env("QUORATE_STORAGE_LOG_KEEP_BYTES", "16777216");
        command
    }

    /// Short election and heartbeat times, so that a member alone leads at once.
    fn etcd(&self) -> Command {
        let mut command = Command::new(tools::etcd());
        for (name, _) in
            env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD"))
        {
            command.env_remove(name);
        }
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        command
            .current_dir(self.home.path())
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--name", "n1", "--logger", "zap", "--log-outputs", "stderr"])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("n1={peer}")])
            .args(["--heartbeat-interval", "20", "--election-timeout", "100"]);
        command
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.client_port).await
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn client_port(&self) -> u16 {
        self.client_port
    }

    /// Where an etcd says that others reach it.
    pub(crate) fn peer_port(&self) -> u16 {
        self.peer_port
    }

    /// The same program with ports of its own, on a directory that the test chose.
    #[must_use]
    pub(crate) fn on(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.data_dir = data_dir.into();
        self
    }

    /// The same program with further arguments.
    #[must_use]
    pub(crate) fn also(mut self, args: &[&str]) -> Self {
        let args = args.iter().copied().map(str::to_owned);
        self.setup.args.extend(args);
        self
    }

    /// The same program with further environment variables.
    #[must_use]
    pub(crate) fn with_env(mut self, env: &[(&str, &str)]) -> Self {
        let env = env
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        self.setup.env.extend(env);
        self
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory of this server's own, beside its data.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// Whether this is an etcd that has `difference`; then it prints that.
    pub(crate) fn has(&self, difference: Difference) -> bool {
        self.kind == Kind::Etcd && difference.in_etcd()
    }

    /// Everything the process wrote so far, all of its starts together.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.home.path().join("server.log")
    }

    fn log_file(&self) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log opens")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            children::end(child);
        }
        let log = self.log();
        if thread::panicking() {
            if self.kind == Kind::Etcd {
                return; // its log says little about our failure, at length
            }
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            note(&format!(
                "last lines of {:?} on port {}:\n{tail}",
                self.kind, self.client_port
            ));
        } else if self.kind == Kind::Quorate {
            assert!(
                !log.contains("panicked at"),
                "no input may make the server panic:\n{log}"
            );
        }
    }
}

/// A program that may open so many files.
fn limited(open_files: u32, program: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {open_files} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, program]);
    command
}

/// How a process ended, and all it wrote.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
}

/// Runs a command that is expected to end by itself, soon.
pub(crate) async fn run_to_exit(mut command: Command) -> Exit {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = timeout(START_MAX, command.output())
        .await
        .unwrap_or_else(|_| {
            panic!(
                "still running after {START_MAX:?}, though it should have been refused: {command:?}"
            )
        });
    let output = output.expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    Exit {
        status: output.status,
        output: String::from_utf8_lossy(&text).into_owned(),
    }
}
