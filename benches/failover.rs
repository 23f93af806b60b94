//! How long writes stop when the leader dies: three members of Quorate and three of etcd, with the same timeouts, in turn.
//!
//! Each round finds the leader, kills it with `kill -9`, and starts a new put every few milliseconds, at the other two members
//! in turn, each on a connection that was open before. The time until the first of them is acknowledged is the round's figure.
//! Then the member is started again, and the next round begins when all three follow one leader and have the same revision.
//!
//! With `--rolling` a round restarts every member in turn with SIGTERM, the leader first, while two clients put one key after the
//! other: one that begins at the leader, and one at a follower. A client whose connection ends goes on at the next member. The
//! longest put of each client is the round's figure.
//!
//! ```text
//! cargo bench --bench failover -- --rolling                       # stopped in good order instead of killed
//! cargo bench --bench failover                                    # both built and run as released
//! cargo bench --profile dev --bench failover -- --quorate target/release/quorate --write docs/operations.md
//! ```

#[path = "../tests/api/support/ports.rs"]
mod ports;
#[path = "../tests/support/tools.rs"]
mod tools;

use clap::Parser;
use ports::free_port;
use quorate::internals::api::proto::etcdserverpb as pb;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::transport::{Channel, Endpoint};

/// Pause between two puts while nobody leads: the resolution of a figure.
const PROBE: Duration = Duration::from_millis(5);
/// A put without an answer after this time has failed.
const PROBE_MAX: Duration = Duration::from_secs(10);
/// Pause between two queries of a cluster that starts.
const POLL: Duration = Duration::from_millis(100);
/// The longest a cluster may take to come back.
const PATIENCE: Duration = Duration::from_mins(1);
/// A round begins at a random time after the cluster is whole, so that it does not follow the beat of the heartbeats.
const SETTLE_MILLIS: std::ops::Range<u64> = 500..1_500;
const MEMBERS: usize = 3;
/// The first and last line of the part of the page that this program writes.
const BEGIN: &str = "<!-- benches/failover.rs writes from here -->";
const END: &str = "<!-- to here -->";
const BEGIN_ROLLING: &str = "<!-- benches/failover.rs --rolling writes from here -->";
const END_ROLLING: &str = "<!-- up to here -->";

/// Any failure of the setup ends the program: only the failover is measured.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, Parser)]
struct Arguments {
    /// How often the leader is killed, or all members are restarted
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    #[arg(long, default_value = env!("CARGO_BIN_EXE_quorate"))]
    quorate: PathBuf,
    #[arg(long, default_value_os_t = tools::etcd())]
    etcd: PathBuf,
    #[arg(long, default_value_t = 100)]
    heartbeat_ms: u64,
    #[arg(long, default_value_t = 1000)]
    election_ms: u64,
    /// Restart all members in turn instead of killing the leader
    #[arg(long)]
    rolling: bool,
    /// A page with the two lines that this program writes between
    #[arg(long)]
    write: Option<PathBuf>,
    /// The flag that `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Etcd,
    Quorate,
}

struct Member {
    kind: Kind,
    name: String,
    client: u16,
    peer: u16,
    child: Option<Child>,
}

struct Cluster<'a> {
    arguments: &'a Arguments,
    kind: Kind,
    folder: tempfile::TempDir,
    members: Vec<Member>,
}

impl Member {
    fn initial(&self) -> String {
        let scheme = if self.kind == Kind::Etcd {
            "http://"
        } else {
            ""
        };
        format!("{}={scheme}127.0.0.1:{}", self.name, self.peer)
    }

    fn command(&self, arguments: &Arguments, initial: &str, folder: &Path) -> Command {
        let (client, peer) = (
            format!("127.0.0.1:{}", self.client),
            format!("127.0.0.1:{}", self.peer),
        );
        let data = folder.join(&self.name);
        let mut command;
        if self.kind == Kind::Etcd {
            command = Command::new(&arguments.etcd);
            for (flag, value) in [
                ("--listen-client-urls", &client),
                ("--advertise-client-urls", &client),
                ("--listen-peer-urls", &peer),
                ("--initial-advertise-peer-urls", &peer),
            ] {
                command.arg(format!("{flag}=http://{value}"));
            }
            command
                .arg(format!("--heartbeat-interval={}", arguments.heartbeat_ms))
                .arg(format!("--election-timeout={}", arguments.election_ms));
        } else {
            command = Command::new(&arguments.quorate);
            command
                .arg(format!("--client-listen={client}"))
                .arg(format!("--peer-listen={peer}"))
                .arg("--peer-insecure")
                .env(
                    "QUORATE_RAFT_HEARTBEAT_MS",
                    arguments.heartbeat_ms.to_string(),
                )
                .env(
                    "QUORATE_RAFT_ELECTION_MS",
                    arguments.election_ms.to_string(),
                );
        }
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--initial-cluster={initial}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn connect(&self) -> Option<Channel> {
        let uri = format!("http://127.0.0.1:{}", self.client);
        Endpoint::from_shared(uri).ok()?.connect().await.ok()
    }

    async fn status(&self) -> Option<pb::StatusResponse> {
        let channel = self.connect().await?;
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(channel);
        let status = timeout(POLL * 10, maintenance.status(pb::StatusRequest {})).await;
        Some(status.ok()?.ok()?.into_inner())
    }
}

impl<'a> Cluster<'a> {
    fn start(kind: Kind, arguments: &'a Arguments) -> Result<Self, Failure> {
        let mut members = Vec::new();
        for n in 1..=MEMBERS {
            members.push(Member {
                kind,
                name: format!("n{n}"),
                client: free_port(),
                peer: free_port(),
                child: None,
            });
        }
        let folder = tempfile::tempdir()?;
        let mut cluster = Self {
            arguments,
            kind,
            folder,
            members,
        };
        for at in 0..MEMBERS {
            cluster.run(at)?;
        }
        Ok(cluster)
    }

    fn run(&mut self, at: usize) -> Result<(), Failure> {
        let initial: Vec<String> = self.members.iter().map(Member::initial).collect();
        let folder = self.folder.path();
        let member = &self.members[at];
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{}.log", member.name)))?;
        let mut command = member.command(self.arguments, &initial.join(","), folder);
        self.members[at].child = Some(command.stderr(log).spawn()?);
        Ok(())
    }

    /// Waits until all follow one leader and have the same revision, and gives the leader's position.
    async fn whole(&self) -> Result<usize, Failure> {
        let start = quorate::internals::clock::now();
        loop {
            let mut statuses = Vec::new();
            for member in &self.members {
                statuses.extend(member.status().await);
            }
            let state = |status: &pb::StatusResponse| {
                let header = status.header.unwrap_or_default();
                (status.leader, header.revision, header.member_id)
            };
            let all: Vec<(u64, i64, u64)> = statuses.iter().map(state).collect();
            let same = |other: &(u64, i64, u64)| (other.0, other.1) == (all[0].0, all[0].1);
            if all.len() == MEMBERS
                && all.iter().all(same)
                && let Some(leader) = all.iter().position(|(leader, _, own)| leader == own)
            {
                return Ok(leader);
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("the members do not agree: {all:?}").into());
            }
            sleep(POLL).await;
        }
    }

    /// Kills the leader, and gives the time until the next acknowledged write.
    async fn round(&mut self) -> Result<Duration, Failure> {
        let leader = self.whole().await?;
        sleep(Duration::from_millis(fastrand::u64(SETTLE_MILLIS))).await;
        let mut channels = Vec::new();
        for (at, member) in self.members.iter().enumerate() {
            if at != leader {
                channels.push(member.connect().await.ok_or("a member does not answer")?);
            }
        }
        let child = self.members[leader].child.take();
        let start = quorate::internals::clock::now();
        child.ok_or("the leader does not run")?.kill().await?;
        let time = first_ack(&channels, start).await?;
        self.run(leader)?;
        self.whole().await?;
        Ok(time)
    }
}

/// A client that puts without a pause until it is told to end.
struct Client {
    stop: Arc<AtomicBool>,
    /// None if a put was not acknowledged at all.
    longest: tokio::task::JoinHandle<Option<Duration>>,
}

impl Client {
    /// Puts without a pause, first at the member at `own`.
    fn start(channels: Vec<Channel>, own: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let end = stop.clone();
        let longest = tokio::spawn(async move {
            let (mut at, mut longest) = (own, Duration::ZERO);
            while !end.load(Ordering::Relaxed) {
                let start = quorate::internals::clock::now();
                loop {
                    let mut kv = pb::kv_client::KvClient::new(channels[at].clone());
                    let put = pb::PutRequest {
                        key: "rolling".into(),
                        value: "x".into(),
                        ..pb::PutRequest::default()
                    };
                    if let Ok(Ok(_)) = timeout(PROBE_MAX, kv.put(put)).await {
                        break;
                    }
                    at = (at + 1) % channels.len();
                    if start.elapsed() > PATIENCE {
                        return None;
                    }
                }
                longest = longest.max(start.elapsed());
            }
            Some(longest)
        });
        Self { stop, longest }
    }

    async fn end(self) -> Result<Duration, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.longest.await?;
        Ok(longest.ok_or("no member acknowledges a put")?)
    }
}

impl Cluster<'_> {
    /// Restarts all members, and gives the longest put of a client of the leader, and of one of a follower.
    async fn rolling_round(&mut self) -> Result<[Duration; 2], Failure> {
        let leader = self.whole().await?;
        let mut channels = Vec::new();
        for member in &self.members {
            let uri = format!("http://127.0.0.1:{}", member.client);
            channels.push(Endpoint::from_shared(uri)?.connect_lazy());
        }
        let clients = [
            Client::start(channels.clone(), leader),
            Client::start(channels, (leader + 1) % MEMBERS),
        ];
        sleep(Duration::from_millis(fastrand::u64(SETTLE_MILLIS))).await;
        for turn in 0..MEMBERS {
            let at = (leader + turn) % MEMBERS;
            self.terminate(at).await?;
            self.run(at)?;
            self.serving(at).await?;
        }
        let mut longest = [Duration::ZERO; 2];
        for (client, longest) in clients.into_iter().zip(&mut longest) {
            *longest = client.end().await?;
        }
        self.whole().await?;
        Ok(longest)
    }

    /// Waits until a member follows a leader.
    async fn serving(&self, at: usize) -> Result<(), Failure> {
        let start = quorate::internals::clock::now();
        while start.elapsed() < PATIENCE {
            let status = self.members[at].status().await;
            if status.is_some_and(|status| status.leader != 0) {
                return Ok(());
            }
            sleep(POLL).await;
        }
        Err("a member does not come back".into())
    }

    async fn terminate(&mut self, at: usize) -> Result<(), Failure> {
        let mut child = self.members[at].child.take().ok_or("it does not run")?;
        let id = i32::try_from(child.id().ok_or("it has ended")?)?;
        let id = Pid::from_raw(id).ok_or("no process")?;
        kill_process(id, Signal::TERM)?;
        child.wait().await?;
        Ok(())
    }
}

async fn first_ack(channels: &[Channel], start: tokio::time::Instant) -> Result<Duration, Failure> {
    let (sender, mut done) = mpsc::unbounded_channel();
    let mut probes = JoinSet::new();
    for channel in channels.iter().cycle() {
        let mut kv = pb::kv_client::KvClient::new(channel.clone());
        let sender = sender.clone();
        probes.spawn(async move {
            let put = pb::PutRequest {
                key: "failover".into(),
                value: "x".into(),
                ..pb::PutRequest::default()
            };
            if let Ok(Ok(_)) = timeout(PROBE_MAX, kv.put(put)).await {
                // Only the first one is waited for.
                sender.send(start.elapsed()).unwrap_or_default();
            }
        });
        if let Ok(Some(time)) = timeout(PROBE, done.recv()).await {
            return Ok(time);
        }
        if start.elapsed() > PATIENCE {
            break;
        }
    }
    Err("nobody serves".into())
}

fn row(name: &str, times: &mut [Duration]) -> String {
    times.sort();
    let millis = |time: Duration| time.as_millis();
    let (middle, last) = (times.len() / 2, times.len() - 1);
    let median = (times[(times.len() - 1) / 2] + times[middle]) / 2;
    format!(
        "| {name} | {} | {} | {} | {} |",
        times.len(),
        millis(times[0]),
        millis(median),
        millis(times[last])
    )
}

/// The first line of what a program says about its version.
async fn version(program: &Path) -> Result<String, Failure> {
    let said = Command::new(program).arg("--version").output().await?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(said.lines().next().unwrap_or("no version").to_owned())
}

async fn table(
    arguments: &Arguments,
    all: &mut [(Kind, Vec<Duration>)],
) -> Result<String, Failure> {
    let mut table = String::new();
    writeln!(
        table,
        "| three members of | rounds | least ms | median ms | most ms |"
    )?;
    writeln!(table, "|---|---|---|---|---|")?;
    for (kind, times) in all {
        let program = if *kind == Kind::Etcd {
            &arguments.etcd
        } else {
            &arguments.quorate
        };
        let name = version(program).await?;
        writeln!(table, "{}", row(&name, times))?;
    }
    let (beat, election) = (arguments.heartbeat_ms, arguments.election_ms);
    writeln!(
        table,
        "\nHeartbeat {beat} ms, election timeout {election} ms; `kill -9` of the leader until the first acknowledged put at \
         one of the other two.\nBoth clusters ran at the same time and took turns: etcd, Quorate, etcd, …"
    )?;
    Ok(table)
}

/// The figures of `--rolling`.
async fn rolling(arguments: &Arguments) -> Result<String, Failure> {
    let mut clusters = Vec::new();
    for kind in [Kind::Etcd, Kind::Quorate] {
        clusters.push((Cluster::start(kind, arguments)?, [Vec::new(), Vec::new()]));
    }
    for _ in 1..=arguments.rounds {
        for (cluster, times) in &mut clusters {
            let longest = cluster.rolling_round().await?;
            for (times, longest) in times.iter_mut().zip(longest) {
                times.push(longest);
            }
        }
    }
    let mut table = String::new();
    writeln!(
        table,
        "| longest put during a restart of | rounds | least ms | median ms | most ms |"
    )?;
    writeln!(table, "|---|---|---|---|---|")?;
    for (cluster, times) in &mut clusters {
        let program = if cluster.kind == Kind::Etcd {
            &arguments.etcd
        } else {
            &arguments.quorate
        };
        let name = version(program).await?;
        for (times, client) in times.iter_mut().zip(["the leader", "a follower"]) {
            writeln!(
                table,
                "{}",
                row(&format!("{name}, client of {client}"), times)
            )?;
        }
    }
    let (beat, election) = (arguments.heartbeat_ms, arguments.election_ms);
    writeln!(
        table,
        "\nHeartbeat {beat} ms, election timeout {election} ms; SIGTERM to each of three members in turn, the leader first, \
         while two clients put.\nBoth clusters ran at the same time and took turns."
    )?;
    Ok(table)
}

/// Replaces the text between the two lines.
fn write_page(page: &Path, [begins, ends]: [&str; 2], table: &str) -> Result<(), Failure> {
    let text = fs::read_to_string(page)?;
    let place = text.find(begins).zip(text.find(ends));
    let (begin, end) = place.ok_or_else(|| format!("{}: no `{begins}`", page.display()))?;
    let (before, after) = (&text[..begin + begins.len()], &text[end..]);
    fs::write(page, format!("{before}\n\n{table}\n{after}"))?;
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it prints what it measures"
)]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    if arguments.rolling {
        let table = rolling(&arguments).await?;
        println!("{table}");
        if let Some(page) = &arguments.write {
            write_page(page, [BEGIN_ROLLING, END_ROLLING], &table)?;
        }
        return Ok(());
    }
    let mut clusters = Vec::new();
    for kind in [Kind::Etcd, Kind::Quorate] {
        clusters.push((Cluster::start(kind, &arguments)?, Vec::new()));
    }
    for round in 1..=arguments.rounds {
        for (cluster, times) in &mut clusters {
            let time = cluster.round().await?;
            let name = if cluster.kind == Kind::Etcd {
                "etcd"
            } else {
                "Quorate"
            };
            eprintln!("round {round}, {name}: {time:?}");
            times.push(time);
        }
    }
    let mut all: Vec<(Kind, Vec<Duration>)> = Vec::new();
    for (cluster, times) in clusters {
        all.push((cluster.kind, times));
    }
    let table = table(&arguments, &mut all).await?;
    println!("{table}");
    if let Some(page) = &arguments.write {
        write_page(page, [BEGIN, END], &table)?;
    }
    Ok(())
}
