//! `quorate cluster`: a whole cluster on this machine in one command, for trying things out.
//!
//! Each member is a process of its own, so that one can be killed and started again by hand. Certificates, configuration, data
//! and logs are in one folder. A second run goes on with the members that the folder holds, as their files configure them.

use crate::{
    config::{Config, ConfigError, Sources},
    net::{TlsError, cert},
};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
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
    /// How many members a new cluster has; 3 if not given
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
        /// What was being done.
        action: &'static str,
        /// To what.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The certificates.
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
    Differs {
        /// The flag.
        flag: &'static str,
        /// Its value.
        asked: String,
        /// The file, or the folder.
        file: String,
        /// What that has.
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
    for n in 0..size(args, dir)? {
        let mut member = prepare(args, dir, n)?;
        member.child = Some(start(&program, &member)?);
        members.push(member);
    }
    tell(&program, dir, &members);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(failed("start", Path::new("a runtime")))?;
    let ended = runtime.block_on(look_after(&mut members, dir));
    stop(&mut members);
    ended
}

const VALID_DAYS: u32 = 3_650;

fn name(n: u16) -> String {
    format!("n{}", n + 1)
}

/// How many members there are: those in the folder, or, in a new one, as many as asked for.
fn size(args: &ClusterArgs, dir: &Path) -> Result<u16, LocalClusterError> {
    let exists = |n: u16| dir.join(format!("{}.toml", name(n))).exists();
    let stored = (0..MEMBERS_MAX)
        .find(|n| !exists(*n))
        .unwrap_or(MEMBERS_MAX);
    match args.members {
        None if stored == 0 => Ok(MEMBERS),
        Some(asked) if stored == 0 => Ok(asked),
        Some(asked) if asked != stored => Err(LocalClusterError::Differs {
            flag: "--members",
            asked: asked.to_string(),
            file: dir.display().to_string(),
            stored: format!("{stored} members"),
        }),
        Some(_) | None => Ok(stored),
    }
}

/// Certificate and configuration of a member, made unless they are there.
fn prepare(args: &ClusterArgs, dir: &Path, n: u16) -> Result<Local, LocalClusterError> {
    let name = name(n);
    let certificate = dir.join(format!("{name}.pem"));
    if !certificate.exists() {
        cert::make_member(dir, dir, &name, &[HOST.to_owned()], VALID_DAYS)?;
    }
    let file = dir.join(format!("{name}.toml"));
    if !file.exists() {
        let text = configuration(args, dir, n);
        fs::write(&file, text).map_err(failed("write", &file))?;
    }
    let config = Config::load(Sources {
        file: Some(file.clone()),
        ..Sources::default()
    })?;
    let ports = [
        ("--client-port", args.client_port, config.client.listen.port),
        ("--peer-port", args.peer_port, config.peer.listen.port),
    ];
    for (flag, asked, stored) in ports {
        if let Some(asked) = asked.filter(|asked| asked + 10 * n != stored) {
            return Err(LocalClusterError::Differs {
                flag,
                asked: asked.to_string(),
                file: file.display().to_string(),
                stored: format!("port {stored} for {name}"),
            });
        }
    }
    let log = dir.join(format!("{name}.log"));
    Ok(Local {
        client: config.client.listen.to_string(),
        config: file,
        log_start: fs::metadata(&log).map_or(0, |file| file.len()),
        log,
        name,
        child: None,
    })
}

fn configuration(args: &ClusterArgs, dir: &Path, n: u16) -> String {
    let first = args.peer_port.unwrap_or(PORTS.1);
    let peer = |n: u16| format!("{HOST}:{}", first + 10 * n);
    let client = args.client_port.unwrap_or(PORTS.0) + 10 * n;
    let initial: Vec<String> = (0..args.members.unwrap_or(MEMBERS))
        .map(|n| format!("\"{}={}\"", name(n), peer(n)))
        .collect();
    let name = name(n);
    let file = |file: String| format!("{:?}", dir.join(file).display().to_string());
    format!(
        "name = \"{name}\"\n\
         data_dir = {}\n\n\
         [client]\nlisten = \"{HOST}:{client}\"\n\n\
         [peer]\nlisten = \"{}\"\ncert = {}\nkey = {}\nca = {}\n\n\
         [cluster]\ninitial = [{}]\n",
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
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(failed("start", program))
}

#[expect(
    clippy::print_stdout,
    reason = "the command's own words to whoever runs it"
)]
fn tell(program: &Path, dir: &Path, members: &[Local]) {
    let endpoints: Vec<&str> = members.iter().map(|member| &*member.client).collect();
    println!(
        "{} members run; their files and logs are in {}",
        members.len(),
        dir.display()
    );
    println!(
        "  etcdctl --endpoints={} put greeting hello",
        endpoints.join(",")
    );
    println!("Kill one from another terminal, and start it again:");
    for member in members {
        let id = member.child.as_ref().map_or(0, Child::id);
        println!(
            "  {}: kill -9 {id}; {} --config {}",
            member.name,
            program.display(),
            member.config.display()
        );
    }
    println!("Ctrl-C stops all of those that this command started.");
}

/// Returns once a signal comes, or no member runs any more.
#[expect(
    clippy::print_stdout,
    reason = "the command's own words to whoever runs it"
)]
async fn look_after(members: &mut [Local], dir: &Path) -> Result<(), LocalClusterError> {
    let listen = |kind| signal(kind).map_err(failed("await", Path::new("signals")));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
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
    }
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
    use crate::config::PeerTls;

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
        assert_eq!(size(&asked, dir).unwrap(), 2);
        for n in 0..2 {
            let client = format!("127.0.0.1:{}", 5_000 + 10 * n);
            assert_eq!(prepare(&asked, dir, n).unwrap().client, client);
        }
        assert_eq!(size(&args(dir), dir).unwrap(), 2, "what is there");
        let second = prepare(&args(dir), dir, 1).unwrap();
        assert_eq!(second.client, "127.0.0.1:5010", "what really listens");
        let more = ClusterArgs {
            members: Some(5),
            ..args(dir)
        };
        let refused = size(&more, dir).unwrap_err().to_string();
        assert!(refused.contains("which has 2 members"), "{refused}");
        let moved = ClusterArgs {
            client_port: Some(6_000),
            ..args(dir)
        };
        let refused = prepare(&moved, dir, 1).err().unwrap().to_string();
        assert!(refused.contains("port 5010 for n2"), "{refused}");
    }

    #[test]
    fn a_member_that_ends_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        cert::make_ca(dir.path(), VALID_DAYS).unwrap();
        let log = dir.path().join("n1.log");
        fs::write(&log, "of an earlier run\n").unwrap();
        let member = prepare(&args(dir.path()), dir.path(), 0).unwrap();
        assert_eq!(last_lines(&member), [] as [String; 0]);
        fs::write(&log, "of an earlier run\n1\n2\n3\n\nquorate: it fails\n").unwrap();
        assert_eq!(last_lines(&member), ["2", "3", "quorate: it fails"]);
    }

    #[test]
    fn the_configuration_it_writes_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let args = args(dir.path());
        cert::make_ca(dir.path(), VALID_DAYS).unwrap();
        let second = prepare(&args, dir.path(), 1).unwrap();
        let config = Config::load(Sources {
            file: Some(second.config),
            ..Sources::default()
        })
        .unwrap();
        assert_eq!(config.name, "n2");
        assert_eq!(config.client.listen.to_string(), "127.0.0.1:2389");
        assert_eq!(config.peer.listen.to_string(), "127.0.0.1:2390");
        assert_eq!(config.cluster.initial.len(), 3);
        assert!(
            matches!(config.peer.tls, PeerTls::Files { .. }),
            "authenticated"
        );
    }
}
