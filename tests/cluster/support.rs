//! Members as child processes, with certificates of one authority in one folder.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    env,
    fs::{self, OpenOptions},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{self, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{children, network::Network};

/// Ports below the range the kernel hands out.
static NEXT: AtomicU16 = AtomicU16::new(0);
const STOP_MAX: Duration = Duration::from_mins(1);

/// A port of this machine that is free for TCP and UDP.
pub(crate) fn free_port() -> u16 {
    let start = u16::try_from(process::id() % 200 * 50).expect("below the count");
    for _ in 0..10_000 {
        let port = 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if free {
            return port;
        }
    }
    panic!("no free port")
}

/// Where a member listens, and where it runs.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) client: SocketAddrV4,
    pub(crate) peer: SocketAddrV4,
    /// The address that other members use: that of the relay, if there is one.
    pub(crate) peer_advertise: SocketAddrV4,
    /// The network namespace it runs in; none for this machine's own.
    pub(crate) host: Option<String>,
}

impl Place {
    /// Free ports of this machine.
    fn here() -> Self {
        let at = |port| SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
        let peer = at(free_port());
        Self {
            client: at(free_port()),
            peer,
            peer_advertise: peer,
            host: None,
        }
    }
}

/// One member; its directory and ports outlive the process.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) client: u16,
    pub(crate) peer: u16,
    pub(crate) args: Vec<String>,
    /// Environment variables of every process.
    pub(crate) env: Vec<(String, String)>,
    /// The limit on open files, instead of the one of the tests.
    pub(crate) open_files: Option<u32>,
    place: Place,
    /// Environment variables of this member alone.
    variables: BTreeMap<&'static str, String>,
    child: Option<Child>,
    folder: PathBuf,
}

/// Members, and the folder with their directories and certificates.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) members: Vec<Member>,
    folder: TempDir,
    /// The network between the members; dropped after them.
    pub(crate) network: Option<Network>,
}

/// The program under test.
pub(crate) fn quorate() -> Command {
    quorate_in(None, None)
}

/// The program under test, in a network namespace, or as a process that may open so many files.
fn quorate_in(host: Option<&str>, open_files: Option<u32>) -> Command {
    let program = env!("CARGO_BIN_EXE_quorate");
    let mut command = match (host, open_files) {
        (None, None) => Command::new(program),
        (None, Some(limit)) => {
            let mut command = Command::new("sh");
            let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
            command.args(["-c", &script, program]);
            command
        }
        (Some(host), _) => {
            // `exec`, so that the child process is the member.
            let mut command = Command::new("ip");
            command.args(["netns", "exec", host, program]);
            command
        }
    };
    for (name, _) in env::vars_os() {
        if name.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(name);
        }
    }
    command
        // Small segments, since each member writes some in advance.
        .env("QUORATE_STORAGE_WAL_SEGMENT_BYTES", "4194304")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

impl Cluster {
    /// Starts `size` members that form a cluster.
    pub(crate) async fn start(size: usize) -> Self {
        let mut cluster = Self::new(size).await;
        for member in &mut cluster.members {
            member.start();
        }
        crate::ctl::leader(&cluster.ports()).await;
        cluster
    }

    /// Starts members whose packets to each other go through `network`.
    pub(crate) async fn start_on(network: Network) -> Self {
        let size = network.size();
        let mut cluster = Self::prepared(size, Some(network)).await;
        for member in &mut cluster.members {
            member.start();
        }
        cluster
    }

    /// Members that do not run yet.
    pub(crate) async fn new(size: usize) -> Self {
        Self::prepared(size, None).await
    }

    /// Members that do not run yet, whose packets to each other go through `network`.
    pub(crate) async fn new_on(network: Network) -> Self {
        Self::prepared(network.size(), Some(network)).await
    }

    async fn prepared(size: usize, network: Option<Network>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut cluster = Self {
            members: Vec::new(),
            folder,
            network,
        };
        cluster.cert(&["ca"]).await;
        for n in 1..=size {
            cluster.prepare(&format!("n{n}")).await;
        }
        let initial = cluster.initial();
        for member in &mut cluster.members {
            member.args.push(format!("--initial-cluster={initial}"));
        }
        cluster
    }

    /// Adds a member that does not run, and returns its position.
    pub(crate) async fn prepare(&mut self, name: &str) -> usize {
        self.cert(&["member", "--name", name, "--host", "127.0.0.1"])
            .await;
        let folder = self.folder.path().to_owned();
        let file = |name: String| folder.join(name).display().to_string();
        let network = self.network.as_ref();
        let place = network.map_or_else(Place::here, |network| network.place(self.members.len()));
        self.members.push(Member {
            name: name.to_owned(),
            client: place.client.port(),
            peer: place.peer.port(),
            place,
            variables: BTreeMap::new(),
            args: vec![
                format!("--peer-cert={}", file(format!("{name}.pem"))),
                format!("--peer-key={}", file(format!("{name}-key.pem"))),
                format!("--peer-ca={}", file("ca.pem".to_owned())),
            ],
            env: Vec::new(),
            open_files: None,
            child: None,
            folder: folder.clone(),
        });
        self.members.len() - 1
    }

    /// Makes certificates with the program, in the folder of all.
    pub(crate) async fn cert(&self, args: &[&str]) {
        let made = quorate()
            .current_dir(self.folder.path())
            .arg("cert")
            .args(args)
            .output();
        let made = made.await.expect("the program starts");
        assert!(made.status.success(), "{made:?}");
    }

    /// All members as the flag names them.
    pub(crate) fn initial(&self) -> String {
        let members = self.members.iter();
        let all: Vec<String> = members
            .map(|member| format!("{}={}", member.name, member.place.peer_advertise))
            .collect();
        all.join(",")
    }

    /// Whether a list of members has the client addresses of all of them: they have started and published these.
    pub(crate) fn all_listed(&self, list: &str) -> bool {
        let said =
            |member: &Member| list.contains(&format!(", http://127.0.0.1:{}, ", member.client));
        self.members.iter().all(said)
    }

    /// The folder that holds all of the members'.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where clients connect, in order.
    pub(crate) fn clients(&self) -> Vec<SocketAddr> {
        let members = self.members.iter();
        members.map(|member| member.place.client.into()).collect()
    }

    /// The client ports, in order.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.client).collect()
    }
}

impl Member {
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs", self.name);
        self.child = Some(self.command().spawn().expect("the program starts"));
    }

    /// The process as it would be started.
    pub(crate) fn command(&self) -> Command {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log opens");
        let place = &self.place;
        let mut command = quorate_in(place.host.as_deref(), self.open_files);
        command
            .args(["--name", &self.name])
            .arg(format!(
                "--data-dir={}",
                self.folder.join(&self.name).display()
            ))
            .arg(format!("--client-listen={}", place.client))
            .arg(format!("--peer-listen={}", place.peer))
            .arg(format!("--peer-advertise={}", place.peer_advertise))
            .args(&self.args)
            // What a member keeps for others takes little of the disk.
            .env("QUORATE_STORAGE_LOG_KEEP_BYTES", "16777216")
            .envs(&self.variables)
            .envs(self.env.iter().cloned())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    /// Gives the next process a variable.
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.variables.insert(name, value.to_owned());
    }

    /// Takes the variable back, for the process after this one.
    #[cfg(feature = "failpoints")]
    pub(crate) fn unset(&mut self, name: &'static str) {
        self.variables.remove(name);
    }

    /// Whether the process has not ended yet.
    pub(crate) fn runs(&mut self) -> bool {
        let child = self.child.as_mut().expect("a member that was started");
        matches!(child.try_wait(), Ok(None))
    }

    /// The number of the process.
    pub(crate) fn process(&self) -> u32 {
        let id = self.child.as_ref().and_then(Child::id);
        id.expect("a running member")
    }

    /// The most memory that the process has had so far.
    pub(crate) fn peak_bytes(&self) -> u64 {
        let id = self.process();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("Linux has it");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.and_then(|kib| kib.parse().ok()).expect("a number");
        kib * 1024
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self) {
        let mut child = self.child.take().expect("a running member");
        child.kill().await.expect("the child can be killed");
    }

    /// `kill -STOP`: it keeps its connections and its memory, and does nothing.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// `kill -CONT`.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// `kill -TERM`, and waits for the end.
    pub(crate) async fn stop(&mut self) {
        self.terminate();
        let status = self.stopped().await;
        assert!(status.success(), "{} stops in good order", self.name);
    }

    /// `kill -TERM`.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().and_then(Child::id);
        let id = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        kill_process(id.expect("a running member"), signal).expect("it takes signals");
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn stopped(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running member");
        let status = timeout(STOP_MAX, child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} still runs:\n{}", self.name, self.log()));
        status.expect("the child can be waited for")
    }

    /// Starts the process, which is expected not to come up, and returns its output.
    pub(crate) async fn refusal(&mut self) -> String {
        self.start();
        let status = self.stopped().await;
        let log = self.log();
        assert!(!status.success(), "{} should fail:\n{log}", self.name);
        log
    }

    /// As [`Self::refusal`], where only an operator can help: no supervisor starts it again.
    pub(crate) async fn refusal_for_good(&mut self) -> String {
        self.start();
        let status = self.stopped().await;
        let log = self.log();
        assert_eq!(status.code(), Some(4), "as docs/operations.md says:\n{log}");
        log
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join(format!("{}.log", self.name))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.folder.join(&self.name)
    }
}

impl Drop for Member {
    #[expect(clippy::print_stderr, reason = "the log of a member whose test failed")]
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            children::end(child);
        }
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<_> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            eprintln!("last lines of {}:\n{tail}", self.name);
        } else {
            assert!(
                !log.contains("panicked at"),
                "{} panicked:\n{log}",
                self.name
            );
        }
    }
}
