//! Members of a real etcd cluster as child processes, to compare with and to check the tests themselves.

use crate::{children, support::free_port, tools};
use rustix::process::{Pid, Signal, kill_process};
use std::{env, net::Ipv4Addr, path::PathBuf, process::Stdio};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A cluster of the real etcd.
#[derive(Debug)]
pub(crate) struct Etcd {
    folder: TempDir,
    /// Flags of every member.
    args: Vec<String>,
    /// Ports for clients and for members, and the process if it runs.
    members: Vec<(u16, u16, Option<Child>)>,
    /// A further port for clients, with TLS, of the only member.
    secure: Option<u16>,
}

impl Etcd {
    pub(crate) fn start(size: usize) -> Self {
        Self::start_with(size, &[])
    }

    /// The same, with further flags.
    pub(crate) fn start_with(size: usize, args: &[&str]) -> Self {
        Self::prepare_and_start(size, args, None)
    }

    /// One member that also listens with TLS at this port; the flags have its certificate.
    pub(crate) fn start_guarded(secure: u16, args: &[&str]) -> Self {
        Self::prepare_and_start(1, args, Some(secure))
    }

    fn prepare_and_start(size: usize, args: &[&str], secure: Option<u16>) -> Self {
        let members = (0..size).map(|_| (free_port(), free_port(), None));
        let mut etcd = Self {
            folder: tempfile::tempdir().expect("a temporary directory"),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            members: members.collect(),
            secure,
        };
        for n in 0..size {
            etcd.start_member(n);
        }
        etcd
    }

    /// The client ports, in order.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|(client, ..)| *client).collect()
    }

    /// The data directory of a member.
    pub(crate) fn data_dir(&self, n: usize) -> PathBuf {
        self.folder.path().join(format!("n{n}"))
    }

    /// Starts the process of a member that does not run.
    pub(crate) fn start_member(&mut self, n: usize) {
        let url = |port: u16| format!("http://{}:{port}", Ipv4Addr::LOCALHOST);
        let initial = self.members.iter().enumerate();
        let initial: Vec<_> = initial
            .map(|(n, (_, peer, _))| format!("n{n}={}", url(*peer)))
            .collect();
        let data_dir = self.data_dir(n);
        let (client, peer, child) = &mut self.members[n];
        assert!(child.is_none(), "it runs");
        let secure = self
            .secure
            .map(|port| format!(",https://{}:{port}", Ipv4Addr::LOCALHOST));
        let clients = url(*client) + secure.as_deref().unwrap_or_default();
        let mut command = Command::new(tools::etcd());
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        let started = command
            .arg(format!("--name=n{n}"))
            .arg("--data-dir")
            .arg(data_dir)
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={}", url(*peer)))
            .arg(format!("--initial-advertise-peer-urls={}", url(*peer)))
            .arg(format!("--initial-cluster={}", initial.join(",")))
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        *child = Some(started.expect("etcd starts"));
    }

    /// `kill -9`.
    pub(crate) async fn kill(&mut self, n: usize) {
        let mut child = self.members[n].2.take().expect("a running member");
        child.kill().await.expect("the child can be killed");
    }

    /// `kill -TERM`, and waits for the end.
    pub(crate) async fn stop(&mut self, n: usize) {
        let mut child = self.members[n].2.take().expect("a running member");
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let id = id.and_then(Pid::from_raw).expect("a running member");
        kill_process(id, Signal::TERM).expect("it takes signals");
        child.wait().await.expect("the child can be waited for");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for (.., child) in &mut self.members {
            if let Some(child) = child {
                children::end(child);
            }
        }
    }
}
