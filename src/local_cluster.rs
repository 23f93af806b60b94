//! `quorate cluster`: a whole cluster on this machine in one command, for trying things out.
//!
//! Each member is a process of its own, so that one can be killed and started again by hand. Certificates, configuration, data
//! and logs are in one folder; a second run goes on with what is there.

use crate::net::{TlsError, cert};
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

/// How often the members are looked after.
const LOOK: Duration = Duration::from_millis(200);

/// What members listen on here.
const HOST: &str = "127.0.0.1";

/// `quorate cluster`: runs several members on this machine.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// The folder for certificates, configuration, data and logs
    #[arg(long, value_name = "DIR", default_value = "quorate-cluster")]
    dir: PathBuf,
    /// How many members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    members: u16,
    /// The first member's port for clients; the others' follow in steps of 10
    #[arg(long, default_value_t = 2379, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    client_port: u16,
    /// The first member's port for members; the others' follow in steps of 10
    #[arg(long, default_value_t = 2380, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    peer_port: u16,
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
    /// All members have ended by themselves.
    #[error("no member runs any more; their logs are in {0}")]
    AllEnded(String),
}

struct Local {
    name: String,
    client: String,
    config: PathBuf,
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
    for n in 0..args.members {
        let mut member = prepare(args, dir, n)?;
        member.child = Some(start(&program, dir, &member)?);
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

/// Certificate and configuration of a member, unless they are there.
fn prepare(args: &ClusterArgs, dir: &Path, n: u16) -> Result<Local, LocalClusterError> {
    let name = name(n);
    let certificate = dir.join(format!("{name}.pem"));
    if !certificate.exists() {
        cert::make_member(dir, dir, &name, &[HOST.to_owned()], VALID_DAYS)?;
    }
    let client = format!("{HOST}:{}", args.client_port + 10 * n);
    let config = dir.join(format!("{name}.toml"));
    if !config.exists() {
        let text = configuration(args, dir, n, &client);
        fs::write(&config, text).map_err(failed("write", &config))?;
    }
    Ok(Local {
        name,
        client,
        config,
        child: None,
    })
}

fn configuration(args: &ClusterArgs, dir: &Path, n: u16, client: &str) -> String {
    let peer = |n: u16| format!("{HOST}:{}", args.peer_port + 10 * n);
    let initial: Vec<String> = (0..args.members)
        .map(|n| format!("\"{}={}\"", name(n), peer(n)))
        .collect();
    let name = name(n);
    let file = |file: String| format!("{:?}", dir.join(file).display().to_string());
    format!(
        "name = \"{name}\"\n\
         data_dir = {}\n\n\
         [client]\nlisten = \"{client}\"\n\n\
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

fn start(program: &Path, dir: &Path, member: &Local) -> Result<Child, LocalClusterError> {
    let path = dir.join(format!("{}.log", member.name));
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(failed("open", &path))?;
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

/// Until a signal comes, or nobody is left.
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
                println!("{} has ended: {status}", member.name);
            }
        }
        if members.iter().all(|member| member.child.is_none()) {
            return Err(LocalClusterError::AllEnded(dir.display().to_string()));
        }
    }
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
    use crate::config::{Config, PeerTls, Sources};

    #[test]
    fn the_configuration_it_writes_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let args = ClusterArgs {
            dir: dir.path().to_owned(),
            members: 3,
            client_port: 2379,
            peer_port: 2380,
        };
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
