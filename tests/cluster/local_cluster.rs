//! `quorate cluster`: a folder of members grows, also when it is interrupted in between; flags that differ from what it holds are
//! refused; a member that does not come up is reported; members end with the command.

use crate::{
    children,
    ctl::{etcdctl, eventually},
    support::quorate,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, File},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};
use tokio::{
    process::Child,
    time::{sleep, timeout},
};

/// How long something that must happen soon is waited for.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long the members of a test that failed may take to end.
const STOP_MAX: Duration = Duration::from_secs(20);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Ports handed out so far, in steps: above those of all other tests, and below the range that the kernel hands out.
static NEXT: AtomicU16 = AtomicU16::new(0);
const FIRST: u16 = 20_000;
const STEP: u16 = 50;
const STEPS: u16 = 200;

/// The command `quorate cluster`. When a test fails, its members end, too.
struct Running {
    child: Child,
    dir: PathBuf,
}

impl Running {
    fn id(&self) -> Option<Pid> {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) {
        let id = self.id().expect("it runs");
        kill_process(id, signal).expect("it takes signals");
    }

    /// The processes of its members: their configuration is in its folder.
    fn members(&self) -> Vec<Pid> {
        let dir = fs::canonicalize(&self.dir).unwrap_or_else(|_| self.dir.clone());
        let config = format!("{}/", dir.display());
        let processes = fs::read_dir("/proc").expect("Linux has it");
        let id = |process: fs::DirEntry| {
            let line = fs::read(process.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split('\0');
            words.find(|word| *word == "--config")?;
            let ours = words.next()?.starts_with(&config);
            let id = process.file_name().to_str()?.parse().ok()?;
            ours.then(|| Pid::from_raw(id))?
        };
        processes.filter_map(|process| id(process.ok()?)).collect()
    }
}

impl Drop for Running {
    #[expect(
        clippy::disallowed_methods,
        reason = "the test is over, and a drop cannot wait otherwise"
    )]
    fn drop(&mut self) {
        let Some(id) = self.id() else { return };
        // It may have ended by itself, as its members may below.
        kill_process(id, Signal::INT).unwrap_or_default();
        let start = quorate::internals::clock::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < STOP_MAX {
            std::thread::sleep(POLL);
        }
        children::end(&mut self.child);
        for member in self.members() {
            kill_process(member, Signal::KILL).unwrap_or_default();
        }
    }
}

fn run(dir: &Path, args: &[&str]) -> Running {
    let log = File::options()
        .create(true)
        .append(true)
        .open(dir.with_extension("log"));
    let child = quorate()
        .arg("cluster")
        .arg("--dir")
        .arg(dir)
        .args(args)
        .stdout(log.expect("the log opens"))
        .spawn()
        .expect("the program starts");
    Running {
        child,
        dir: dir.to_owned(),
    }
}

/// Ends it as Ctrl-C does.
async fn stop(mut cluster: Running) {
    cluster.signal(Signal::INT);
    let ended = timeout(PATIENCE, cluster.child.wait()).await;
    let status = ended.expect("it ends").expect("it can be waited for");
    assert!(status.success(), "{status}");
}

/// Waits until `is` so, while the cluster runs.
async fn until(dir: &Path, cluster: &mut Running, what: &str, is: impl Fn() -> bool) {
    let start = quorate::internals::clock::now();
    while !is() {
        let said = || fs::read_to_string(dir.with_extension("log")).unwrap_or_default();
        let ended = cluster.child.try_wait().expect("it can be waited for");
        assert!(ended.is_none(), "{ended:?}: {}", said());
        assert!(start.elapsed() < PATIENCE, "never: {what}; {}", said());
        sleep(POLL).await;
    }
}

/// A port from which on five in steps of ten are free.
fn first_port() -> u16 {
    let is_free = |port| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    };
    let start = u16::try_from(process::id() % u32::from(STEPS)).expect("below the count");
    let tried = (0..STEPS).map(|_| NEXT.fetch_add(1, Ordering::Relaxed));
    let mut ports = tried.map(|n| FIRST + STEP * ((start + n) % STEPS));
    let found = ports.find(|port| (0..5).all(|n| is_free(port + 10 * n)));
    found.expect("there are many")
}

#[tokio::test]
async fn a_cluster_grows_from_one_member_to_three_whenever_it_is_interrupted() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let dir = &folder.path().join("cluster");
    let (client, peer) = (first_port(), first_port());
    let ports = [client, client + 10, client + 20];
    let asked = [
        format!("--client-port={client}"),
        format!("--peer-port={peer}"),
    ];
    let mut cluster = run(dir, &["--members=1", &asked[0], &asked[1]]);
    eventually(&ports[..1], &["put", "k", "v"], |_| true).await;
    stop(cluster).await;

    // It listens to signals once it says something of a member that joins. Usually a member cannot be added at once, since nobody
    // serves yet; but the first may serve sooner, and then a step is left out.
    let said = |text: &str| {
        let log = fs::read_to_string(dir.with_extension("log"));
        log.unwrap_or_default().contains(text)
    };
    let steps = [
        "n2 cannot be added yet",
        "n2 has joined",
        "n3 cannot be added yet",
        "n3 has joined",
    ];
    // A run that is interrupted once the last member has begun finds it with data, and says nothing of it.
    let begun = || dir.join("n3").join("member").exists();
    let mut done = 0;
    while done < steps.len() && !begun() {
        fs::remove_file(dir.with_extension("log")).expect("what the run before said");
        cluster = run(dir, &["--members=3"]);
        let newest = || (done..steps.len()).rev().find(|&step| said(steps[step]));
        let further = || newest().is_some() || begun();
        until(dir, &mut cluster, steps[done], further).await;
        done = newest().map_or(done, |step| step + 1);
        stop(cluster).await;
    }
    // Without the flag it goes on with what the folder holds.
    cluster = run(dir, &[]);
    let all = |list: &str| {
        let started = |port: &u16| list.contains(&format!(", http://127.0.0.1:{port}, false"));
        list.lines().count() == 3 && ports.iter().all(started)
    };
    eventually(&ports[..1], &["member", "list"], all).await;
    for port in ports {
        let kept = etcdctl(&[port], &["get", "k", "--print-value-only"]).await;
        assert_eq!(kept.ok(), "v\n", "at {port}");
    }
    stop(cluster).await;
}

/// A folder of its own for a cluster, and the flags for its ports.
fn folder() -> (tempfile::TempDir, PathBuf, u16, [String; 2]) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let dir = folder.path().join("cluster");
    let (client, peer) = (first_port(), first_port());
    let flags = [
        format!("--client-port={client}"),
        format!("--peer-port={peer}"),
    ];
    (folder, dir, client, flags)
}

fn said(dir: &Path) -> String {
    fs::read_to_string(dir.with_extension("log")).unwrap_or_default()
}

#[tokio::test]
async fn a_cluster_of_three_grows_to_five_and_refuses_other_flags() {
    let (_folder, dir, client, flags) = folder();
    let ports: Vec<u16> = (0..5).map(|n| client + 10 * n).collect();
    let mut cluster = run(&dir, &[&flags[0], &flags[1]]);
    eventually(&ports[..3], &["put", "k", "v"], |_| true).await;
    stop(cluster).await;

    cluster = run(&dir, &["--members=5"]);
    for joined in ["n4 has joined", "n5 has joined"] {
        until(&dir, &mut cluster, joined, || said(&dir).contains(joined)).await;
    }
    let voters = |list: &str| list.matches(", started, ").count() == 5;
    eventually(&ports, &["member", "list"], voters).await;
    for port in &ports {
        let kept = |text: &str| text == "v\n";
        eventually(&[*port], &["get", "k", "--print-value-only"], kept).await;
    }
    stop(cluster).await;

    let other = format!("--client-port={}", client + 1);
    for (flag, holds) in [("--members=4", "5 members"), (&other, "port")] {
        let command = quorate()
            .args(["cluster", flag, "--dir"])
            .arg(&dir)
            .output();
        let ended = command.await.expect("the program starts");
        assert!(!ended.status.success(), "{flag} is refused");
        let reason = String::from_utf8_lossy(&ended.stderr).into_owned();
        let name = flag.split('=').next().unwrap_or_default();
        assert!(reason.contains(name), "{reason}");
        assert!(reason.contains(holds), "{reason}");
    }
}

#[tokio::test]
async fn a_member_that_does_not_come_up_is_reported_with_its_reason() {
    let (_folder, dir, client, flags) = folder();
    let taken = client + 10;
    let other = TcpListener::bind(("127.0.0.1", taken)).expect("it was free");
    let mut cluster = run(&dir, &[&flags[0], &flags[1]]);
    let reported = || said(&dir).contains("n2 has ended") && said(&dir).contains("in use");
    until(&dir, &mut cluster, "n2 is reported", reported).await;
    assert!(said(&dir).contains(&taken.to_string()), "{}", said(&dir));
    stop(cluster).await;
    drop(other);
}

#[tokio::test]
async fn members_end_when_the_command_is_killed() {
    let (_folder, dir, client, flags) = folder();
    let ports = [client, client + 10, client + 20];
    let mut cluster = run(&dir, &[&flags[0], &flags[1]]);
    eventually(&ports, &["put", "k", "v"], |_| true).await;
    assert_eq!(cluster.members().len(), 3, "they run");
    cluster.child.kill().await.expect("it can be killed");
    let start = quorate::internals::clock::now();
    while !cluster.members().is_empty() {
        assert!(start.elapsed() < PATIENCE, "{:?}", cluster.members());
        sleep(POLL).await;
    }
}
