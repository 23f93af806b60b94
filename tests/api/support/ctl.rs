//! Drives the real etcdctl as a user would.

use super::{server::Server, tools};
use std::{env, process::Stdio};
use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, Command},
};

/// What etcdctl printed, and its exit code.
#[derive(Debug)]
pub(crate) struct CtlOutput {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CtlOutput {
    /// The JSON on standard output.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "etcdctl failed: {self:?}");
        self.stdout
    }
}

/// Runs `etcdctl args…` against `server`, with `input` on its standard input.
pub(crate) async fn etcdctl(server: &Server, args: &[&str], input: &str) -> CtlOutput {
    outcome(start_etcdctl(server, args), input).await
}

/// Runs `etcdctl args…` against an endpoint as it is given to it.
pub(crate) async fn etcdctl_at(endpoint: &str, args: &[&str]) -> CtlOutput {
    outcome(start_etcdctl_at(endpoint, args), "").await
}

async fn outcome(mut child: Child, input: &str) -> CtlOutput {
    let mut stdin = child.stdin.take().expect("a pipe to etcdctl");
    // etcdctl may end without reading: then the pipe is broken, and its exit code is the better report.
    if let Err(error) = stdin.write_all(input.as_bytes()).await {
        assert_eq!(
            error.kind(),
            std::io::ErrorKind::BrokenPipe,
            "writing to etcdctl: {error}"
        );
    }
    drop(stdin);
    let output = child.wait_with_output().await.expect("etcdctl ends");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("etcdctl prints UTF-8");
    CtlOutput {
        code: output.status.code().expect("etcdctl is not killed"),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// Starts `etcdctl args…` against `server`. It is killed when the child is dropped.
pub(crate) fn start_etcdctl(server: &Server, args: &[&str]) -> Child {
    start_etcdctl_at(&format!("127.0.0.1:{}", server.client_port()), args)
}

/// Starts `etcdctl args…` against an endpoint as it is given to it. It is killed when the child is dropped.
pub(crate) fn start_etcdctl_at(endpoint: &str, args: &[&str]) -> Child {
    let mut command = Command::new(tools::etcdctl());
    for (name, _) in
        env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCDCTL_"))
    {
        command.env_remove(name);
    }
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoint}"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command.spawn().expect("etcdctl starts")
}
