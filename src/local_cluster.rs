//! `quorate cluster`: a whole cluster on this machine in one command, for trying things out.
//!
//! Each member is a process of its own, so that one can be killed and started again by hand. Certificates, configuration, data
//! and logs are in one folder. A second run goes on with the members that the folder holds, as their files configure them.
//!
//! A folder can grow: the members it has are started, and each further one is added and then started. A run that is
//! cut short at any step leaves what the next one goes on with: the founders are those that the first member's file names, a
//! member that the cluster lists is not added again, and one that has data is started with the founders.
//!
//! Members do not outlive the command that started them, also when it is killed: see [`end_with`].

use crate::{
    api::cluster_client::{self, CallError, proto::Member},
    config::{ClientAddress, Config, ConfigError, Sources},
    net::cert,
    tls::TlsError,
};
use clap::Args;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// The most members of a cluster.
const MEMBERS_MAX: u16 = 9;
/// How many members a new folder gets.
const MEMBERS: u16 = 3;
/// The first member's ports, for clients and for members.
const PORTS: (u16, u16) = (2379, 2380);
/// The lines of its log that are shown of a member that has ended.
const LAST_LINES: usize = 3;

/// How often it is checked which members still run.
const LOOK: Duration = Duration::from_millis(200);

/// What members listen on here.
const HOST: &str = "127.0.0.1";

/// `quorate cluster`: runs several members on this machine.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The folder for certificates, configuration, data and logs
    #[arg(long, value_name = "DIR", default_value = "quorate-cluster")]
    dir: PathBuf,
    /// How many members the cluster has: a new one 3 if not given, an existing one as many as before or more
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MEMBERS_MAX)))]
    members: Option<u16>,
    /// The first member's port for clients, 2379 if not given; the others' follow in steps of 10
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    client_port: Option<u16>,
    /// The first member's port for members, 2380 if not given; the others' follow in steps of 10
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    peer_port: Option<u16>,
}

/// Why the cluster does not run.
#[derive(Debug, thiserror::Error)]
pub enum LocalClusterError {
    /// The folder, a file in it, or a process.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        what: String,
        /// The error of the system.
        source: io::Error,
    },
    #[error(transparent)]
    Cert(#[from] TlsError),
    /// A member's configuration in the folder.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The folder holds members that were made with other flags.
    #[error(
        "{flag} {asked} differs from {file}, which has {stored}: leave the flag out to go on with the members in this folder, or \
         give another --dir"
    )]
    SettingDiffers {
        flag: &'static str,
        asked: String,
        /// The file, or the folder.
        file: String,
        stored: String,
    },
    /// All members have ended by themselves.
    #[error("no member runs any more; their logs are in {0}")]
    AllEnded(String),
}

struct Local {
    name: String,
    /// Where clients connect, as its configuration says.
    client: String,
    /// Where other members find it, as the cluster lists it.
    peer_url: String,
    /// It is not of the founders, and has not begun to run.
    joins: bool,
    config: PathBuf,
    log: PathBuf,
    /// Where the log of this run begins in the file.
    log_start: u64,
    child: Option<Child>,
}

/// Makes what is missing in the folder, starts the members, and stops them on Ctrl-C.
pub fn run(args: &ClusterArgs) -> Result<(), LocalClusterError> {
    let dir = &args.dir;
    fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let dir = &fs::canonicalize(dir).map_err(failed("find", dir))?;
    let program = std::env::current_exe().map_err(failed("find", Path::new("this program")))?;
    if !dir.join(cert::CA_FILE).exists() {
        cert::make_ca(dir, VALID_DAYS)?;
    }
    let mut members = Vec::new();
    let founders = founders(args, dir)?;
    for n in 0..size(args, dir, founders)? {
        let mut member = prepare(args, dir, n, founders)?;
        if !member.joins {
            member.child = Some(start(&program, &member)?);
        }
        members.push(member);
    }
    print_how_to_use(&program, dir, &members);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed("start", Path::new("a runtime")))?;
    let ended = runtime.block_on(look_after(&program, &mut members, dir));
    stop(&mut members);
    ended
}

const VALID_DAYS: u32 = 3_650;

fn name(n: u16) -> String {
    format!("n{}", n + 1)
}

fn config_file(dir: &Path, n: u16) -> PathBuf {
    dir.join(format!("{}.toml", name(n)))
}

fn load(file: PathBuf) -> Result<Config, ConfigError> {
    Config::load(Sources {
        file: Some(file),
        ..Sources::default()
    })
}

/// How many members formed the cluster, as the first one's file says; in a new folder, as many as asked for.
fn founders(args: &ClusterArgs, dir: &Path) -> Result<u16, LocalClusterError> {
    let first = config_file(dir, 0);
    if !first.exists() {
        return Ok(args.members.unwrap_or(MEMBERS));
    }
    let initial = load(first)?.cluster.initial.len();
    Ok(u16::try_from(initial).unwrap_or(MEMBERS_MAX).max(1))
}

/// How many members there are: those in the folder, or more if asked for.
fn size(args: &ClusterArgs, dir: &Path, founders: u16) -> Result<u16, LocalClusterError> {
    let further = (founders..MEMBERS_MAX).take_while(|n| config_file(dir, *n).exists());
    let stored = further.last().map_or(founders, |last| last + 1);
    match args.members {
        Some(asked) if asked < stored => Err(LocalClusterError::SettingDiffers {
            flag: "--members",
            asked: asked.to_string(),
            file: dir.display().to_string(),
            stored: format!("{stored} members"),
        }),
        Some(asked) => Ok(asked),
        None => Ok(stored),
    }
}

/// Certificate and configuration of a member, made unless they are there.
fn prepare(
    args: &ClusterArgs,
    dir: &Path,
    n: u16,
    founders: u16,
) -> Result<Local, LocalClusterError> {
    let name = name(n);
    let certificate = dir.join(format!("{name}.pem"));
    if !certificate.exists() {
        cert::make_member(dir, dir, &name, &[HOST.to_owned()], VALID_DAYS)?;
    }
    let file = config_file(dir, n);
    if !file.exists() {
        let text = configuration(first_ports(args, dir)?, dir, n, founders);
        // Whole or not at all: the next run uses what is there without checks.
        let unfinished = dir.join(format!("{name}.toml.new"));
        fs::write(&unfinished, text).map_err(failed("write", &unfinished))?;
        fs::rename(&unfinished, &file).map_err(failed("write", &file))?;
    }
    let config = load(file.clone())?;
    let client = config.client.listen.iter().find_map(ClientAddress::tcp);
    let ports = [
        ("--client-port", args.client_port, client.map(|at| at.port)),
        ("--peer-port", args.peer_port, Some(config.peer.listen.port)),
    ];
    for (flag, asked, stored) in ports {
        let stored = stored.unwrap_or_default();
        if let Some(asked) = asked.filter(|asked| asked + 10 * n != stored) {
            return Err(LocalClusterError::SettingDiffers {
                flag,
                asked: asked.to_string(),
                file: file.display().to_string(),
                stored: format!("port {stored} for {name}"),
            });
        }
    }
    let log = dir.join(format!("{name}.log"));
    Ok(Local {
        client: config.client.listen[0].to_string(),
        peer_url: format!("{}://{}", config.peer.tls.scheme(), config.peer_advertise()),
        joins: n >= founders && !config.data_dir.exists(),
        config: file,
        log_start: fs::metadata(&log).map_or(0, |file| file.len()),
        log,
        name,
        child: None,
    })
}

/// The first member's ports, for clients and for members: as its file has them, or, in a new folder, as asked for.
fn first_ports(args: &ClusterArgs, dir: &Path) -> Result<(u16, u16), LocalClusterError> {
    let first = config_file(dir, 0);
    if first.exists() {
        let config = load(first)?;
        let client = config.client.listen.iter().find_map(ClientAddress::tcp);
        let client = client.map_or(PORTS.0, |address| address.port);
        return Ok((client, config.peer.listen.port));
    }
    let asked = (args.client_port, args.peer_port);
    Ok((asked.0.unwrap_or(PORTS.0), asked.1.unwrap_or(PORTS.1)))
}

fn configuration(ports: (u16, u16), dir: &Path, n: u16, founders: u16) -> String {
    let peer = |n: u16| format!("{HOST}:{}", ports.1 + 10 * n);
    let client = ports.0 + 10 * n;
    let initial: Vec<String> = (0..founders.max(n + 1))
        .map(|n| format!("\"{}={}\"", name(n), peer(n)))
        .collect();
    let state = if n < founders { "new" } else { "existing" };
    let name = name(n);
    let file = |file: String| format!("{:?}", dir.join(file).display().to_string());
    format!(
        "name = \"{name}\"\n\
         data_dir = {}\n\n\
         [client]\nlisten = \"{HOST}:{client}\"\n\n\
         [peer]\nlisten = \"{}\"\ncert = {}\nkey = {}\nca = {}\n\n\
         [cluster]\ninitial = [{}]\nstate = \"{state}\"\n",
        file(name.clone()),
        peer(n),
        file(format!("{name}.pem")),
        file(format!("{name}-key.pem")),
        file(cert::CA_FILE.to_owned()),
        initial.join(", "),
    )
}

fn start(program: &Path, member: &Local) -> Result<Child, LocalClusterError> {
    let path = &member.log;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed("open", path))?;
    Command::new(program)
        .arg("--config")
        .arg(&member.config)
        .arg(format!("--parent={}", process::id()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failed("start", program))
}

/// Lets this process, a member, end in good order once `parent`, which has started it, has ended. The system sends the signal
/// when the thread that started the process ends: that is the main thread of `quorate cluster`.
pub fn end_with(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // Before that line the parent's end gave no signal.
    if getppid().map(Pid::as_raw_pid) == Some(parent) {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "process {parent}, which is to have started this one, is not its parent (any more)"
        )))
    }
}

#[expect(clippy::print_stdout, reason = "output of the command")]
fn print_how_to_use(program: &Path, dir: &Path, members: &[Local]) {
    let started: Vec<&Local> = members.iter().filter(|member| !member.joins).collect();
    let endpoints: Vec<&str> = started.iter().map(|member| &*member.client).collect();
    println!(
        "{} members run; their files and logs are in {}",
        started.len(),
        dir.display()
    );
    println!(
        "  etcdctl --endpoints={} put greeting hello",
        endpoints.join(",")
    );
    println!("Kill one from another terminal, and start it again:");
    for member in started {
        println!("  {}", how_to_kill(program, member));
    }
    println!("Ctrl-C stops all of those that this command started.");
}

fn how_to_kill(program: &Path, member: &Local) -> String {
    format!(
        "{}: kill -9 {}; {} --config {}",
        member.name,
        member.child.as_ref().map_or(0, Child::id),
        program.display(),
        member.config.display()
    )
}

/// Returns once a signal comes, or no member runs any more.
async fn look_after(
    program: &Path,
    members: &mut [Local],
    dir: &Path,
) -> Result<(), LocalClusterError> {
    let listen = |kind| signal(kind).map_err(failed("await", Path::new("signals")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        ended = grow_and_watch(program, members, dir) => ended,
    }
}

/// Returns once no member runs any more.
async fn grow_and_watch(
    program: &Path,
    members: &mut [Local],
    dir: &Path,
) -> Result<(), LocalClusterError> {
    grow(program, members, dir).await?;
    loop {
        pause(members, dir).await?;
    }
}

/// Waits a little, then reports members that have ended. Fails if none runs any more.
#[expect(clippy::print_stdout, reason = "output of the command")]
async fn pause(members: &mut [Local], dir: &Path) -> Result<(), LocalClusterError> {
    tokio::time::sleep(LOOK).await;
    for member in &mut *members {
        let ended = member.child.as_mut().map(Child::try_wait);
        if let Some(Ok(Some(status))) = ended {
            member.child = None;
            println!("{} has ended: {status}; its last words:", member.name);
            for line in last_lines(member) {
                println!("  {line}");
            }
        }
    }
    if members.iter().all(|member| member.child.is_none()) {
        return Err(LocalClusterError::AllEnded(dir.display().to_string()));
    }
    Ok(())
}

/// Adds the members that have not begun to run, one after the other, and starts each.
#[expect(clippy::print_stdout, reason = "output of the command")]
async fn grow(program: &Path, members: &mut [Local], dir: &Path) -> Result<(), LocalClusterError> {
    for at in 0..members.len() {
        if !members[at].joins {
            continue;
        }
        let mut printed = String::new();
        loop {
            let added = add(members, &members[at].peer_url).await;
            let Err(error) = added.map_err(|error| error.to_string()) else {
                break;
            };
            if error != printed {
                println!("{} cannot be added yet: {error}", members[at].name);
                printed = error;
            }
            pause(members, dir).await?;
        }
        members[at].child = Some(start(program, &members[at])?);
        members[at].joins = false;
        println!("{}", how_to_kill(program, &members[at]));
        // Until it has started, or has ended, which is reported.
        while members[at].child.is_some() && !has_started(members, &members[at].peer_url).await {
            pause(members, dir).await?;
        }
        if members[at].child.is_some() {
            println!("{} has joined", members[at].name);
        }
    }
    Ok(())
}

/// Lists the members at the first of ours that answers; gives its address, too.
async fn list(members: &[Local]) -> Result<(&str, Vec<Member>), CallError> {
    let mut failure = None;
    for member in members.iter().filter(|member| member.child.is_some()) {
        match cluster_client::members(&member.client).await {
            Ok(listed) => return Ok((member.client.as_str(), listed)),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| CallError::Refused("no member runs".to_owned())))
}

/// Adds a member, unless the cluster lists it: an earlier run may have added it.
async fn add(members: &[Local], peer_url: &str) -> Result<(), CallError> {
    let (address, listed) = list(members).await?;
    if listed.iter().any(|known| is_at(known, peer_url)) {
        return Ok(());
    }
    cluster_client::add_member(address, peer_url.to_owned()).await
}

fn is_at(member: &Member, peer_url: &str) -> bool {
    member.peer_ur_ls.iter().any(|url| url == peer_url)
}

/// Whether the cluster lists a member as started: then it has said where its clients connect.
async fn has_started(members: &[Local], peer_url: &str) -> bool {
    let started = |known: &Member| is_at(known, peer_url) && !known.client_ur_ls.is_empty();
    let listed = list(members).await;
    listed.is_ok_and(|(_, listed)| listed.iter().any(started))
}

/// The last lines that a member logged in this run.
fn last_lines(member: &Local) -> Vec<String> {
    let text = fs::read(&member.log).unwrap_or_default();
    let start = usize::try_from(member.log_start).unwrap_or(usize::MAX);
    let text = String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let last = lines.len().saturating_sub(LAST_LINES);
    lines[last..].iter().map(ToString::to_string).collect()
}

/// Asks the members to end, and waits until they have.
fn stop(members: &mut [Local]) {
    for child in members.iter().filter_map(|member| member.child.as_ref()) {
        if let Some(id) = Pid::from_raw(child.id().cast_signed()) {
            // One that has just ended needs no signal.
            kill_process(id, Signal::TERM).unwrap_or_default();
        }
    }
    for mut child in members.iter_mut().filter_map(|member| member.child.take()) {
        // An error means that it cannot be waited for, so it is not ours any more.
        drop(child.wait());
    }
}

fn failed(action: &'static str, what: &Path) -> impl Fn(io::Error) -> LocalClusterError {
    let what = what.display().to_string();
    move |source| LocalClusterError::Io {
        action,
        what: what.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClusterState, PeerTls};

    fn args(dir: &Path) -> ClusterArgs {
        ClusterArgs {
            dir: dir.to_owned(),
            members: None,
            client_port: None,
            peer_port: None,
        }
    }

    #[test]
    fn flags_that_differ_from_what_the_folder_holds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        cert::make_ca(dir, VALID_DAYS).unwrap();
        let asked = ClusterArgs {
            members: Some(2),
            client_port: Some(5_000),
            ..args(dir)
        };
        assert_eq!(founders(&asked, dir).unwrap(), 2);
        assert_eq!(size(&asked, dir, 2).unwrap(), 2);
        for n in 0..2 {
            let client = format!("127.0.0.1:{}", 5_000 + 10 * n);
            let member = prepare(&asked, dir, n, 2).unwrap();
            assert_eq!((member.client, member.joins), (client, false));
        }
        assert_eq!(size(&args(dir), dir, 2).unwrap(), 2, "what is there");
        let second = prepare(&args(dir), dir, 1, 2).unwrap();
        assert_eq!(second.client, "127.0.0.1:5010", "what really listens");
        let fewer = ClusterArgs {
            members: Some(1),
            ..args(dir)
        };
        let refused = size(&fewer, dir, 2).unwrap_err().to_string();
        assert!(refused.contains("which has 2 members"), "{refused}");
        let moved = ClusterArgs {
            client_port: Some(6_000),
            ..args(dir)
        };
        let refused = prepare(&moved, dir, 1, 2).err().unwrap().to_string();
        assert!(refused.contains("port 5010 for n2"), "{refused}");
    }

    #[test]
    fn a_folder_grows_and_a_run_cut_short_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        cert::make_ca(dir, VALID_DAYS).unwrap();
        let two = ClusterArgs {
            members: Some(2),
            client_port: Some(5_000),
            ..args(dir)
        };
        // A first run that came to the first member only.
        prepare(&two, dir, 0, 2).unwrap();
        assert_eq!(founders(&args(dir), dir).unwrap(), 2, "as its file says");
        assert_eq!(size(&args(dir), dir, 2).unwrap(), 2);
        prepare(&args(dir), dir, 1, 2).unwrap();
        let four = ClusterArgs {
            members: Some(4),
            ..args(dir)
        };
        assert_eq!(founders(&four, dir).unwrap(), 2);
        assert_eq!(size(&four, dir, 2).unwrap(), 4);
        let third = prepare(&four, dir, 2, 2).unwrap();
        assert!(third.joins, "it is added first");
        assert_eq!(third.client, "127.0.0.1:5020", "ports follow the first's");
        assert_eq!(third.peer_url, "https://127.0.0.1:2400");
        let config = load(third.config).unwrap();
        assert_eq!(config.cluster.initial.len(), 3, "those before it");
        assert_eq!(config.cluster.state, ClusterState::Existing);
        assert_eq!(size(&args(dir), dir, 2).unwrap(), 3, "what is there");
        fs::create_dir(config.data_dir).unwrap();
        let started = prepare(&args(dir), dir, 2, 2).unwrap();
        assert!(!started.joins, "it has data, so it was added");
    }

    #[test]
    fn a_member_that_ends_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        cert::make_ca(dir.path(), VALID_DAYS).unwrap();
        let log = dir.path().join("n1.log");
        fs::write(&log, "of an earlier run\n").unwrap();
        let member = prepare(&args(dir.path()), dir.path(), 0, 3).unwrap();
        assert_eq!(last_lines(&member), [] as [String; 0]);
        fs::write(&log, "of an earlier run\n1\n2\n3\n\nquorate: it fails\n").unwrap();
        assert_eq!(last_lines(&member), ["2", "3", "quorate: it fails"]);
    }

    #[test]
    fn the_configuration_it_writes_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        cert::make_ca(dir.path(), VALID_DAYS).unwrap();
        let second = prepare(&args, dir.path(), 1, 3).unwrap();
        let config = Config::load(Sources {
            file: Some(second.config),
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(config.name, "n2");
        assert_eq!(config.client.listen[0].to_string(), "127.0.0.1:2389");
        assert_eq!(config.peer.listen.to_string(), "127.0.0.1:2390");
        assert_eq!(config.cluster.initial.len(), 3);
        assert!(
            matches!(config.peer.tls, PeerTls::Files { .. }),
            "authenticated"
        );
    }
}
