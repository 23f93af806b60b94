//! A real etcd, where one was built: `tests/etcd/build` at the root of the repository puts it into the target folder. Without it
//! the tests that need it say so and pass. Requests go through its JSON gateway, since a process for each would take too long.

use serde_json::{Value, json};
use std::{
    cell::RefCell,
    env,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

pub(crate) struct Programs {
    etcd: PathBuf,
    /// One of an older version.
    old: Option<PathBuf>,
    ctl: PathBuf,
    utl: PathBuf,
}

impl Programs {
    /// `None`, with a line that says so, where they are not.
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    pub(crate) fn find(test: &str) -> Option<Self> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
        let programs = ["etcd", "etcdctl", "etcdutl"].map(|name| target.join("etcd").join(name));
        if !programs.iter().all(|path| path.is_file()) {
            eprintln!("{test} is skipped: no etcd was built, see tests/etcd/build");
            return None;
        }
        let [etcd, ctl, utl] = programs;
        let old = env::var_os("QUORATE_TEST_ETCD").map(PathBuf::from);
        Some(Self {
            etcd,
            old,
            ctl,
            utl,
        })
    }

    pub(crate) fn etcdutl(&self, arguments: &[&str], file: &Path) -> String {
        run(Command::new(&self.utl).args(arguments).arg(file))
    }

    pub(crate) fn etcdutl_json(&self, arguments: &[&str], file: &Path) -> Value {
        let arguments = [arguments, &["-w", "json"]].concat();
        serde_json::from_str(&self.etcdutl(&arguments, file)).unwrap()
    }

    /// Restores a snapshot for a member of this address.
    pub(crate) fn restore(&self, file: &Path, data: &Path, address: &Address, more: &[&str]) {
        let data = data.to_str().unwrap();
        let mut arguments = vec!["snapshot", "restore", "--data-dir", data];
        let flags = address.flags();
        arguments.extend(flags.iter().map(String::as_str));
        arguments.extend(more);
        self.etcdutl(&arguments, file);
    }

    pub(crate) fn has_old(&self) -> bool {
        self.old.is_some()
    }

    /// Starts an etcd of one member, and waits until it serves.
    pub(crate) fn start(&self, data: &Path, address: &Address) -> Etcd<'_> {
        self.start_program(&self.etcd, data, address)
    }

    /// The same with the older version, if there is one.
    pub(crate) fn start_old(&self, data: &Path, address: &Address) -> Etcd<'_> {
        let program = self.old.as_ref().unwrap_or(&self.etcd);
        self.start_program(program, data, address)
    }

    fn start_program(&self, program: &Path, data: &Path, address: &Address) -> Etcd<'_> {
        let client = format!("http://{}", address.client);
        let mut child = Command::new(program)
            .arg("--data-dir")
            .arg(data)
            .args(address.flags())
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &format!("http://{}", address.peer)])
            .args(["--bcrypt-cost", "4"])
            // These tests kill processes, not the machine.
            .env("ETCD_UNSAFE_NO_FSYNC", "true")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let etcd = Etcd {
            programs: self,
            child,
            client: address.client.clone(),
            token: RefCell::default(),
        };
        wait_until_ready(stderr);
        // The gateway connects to the server it belongs to; until then it answers that nobody is there.
        let get = json!({"key": base64(b"k")});
        let is_there = |answer: Result<_, Value>| !answer.is_err_and(|error| error["code"] == 14);
        assert!((0..1_000).any(|_| is_there(etcd.post("kv/range", &get))));
        etcd
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Where a member is to be found.
pub(crate) struct Address {
    client: String,
    peer: String,
}

impl Address {
    /// An address that nobody uses.
    pub(crate) fn new() -> Self {
        let listeners = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [client, peer] = listeners.map(|listener| listener.local_addr().unwrap().to_string());
        Self { client, peer }
    }

    /// The flags that restoring and starting have in common.
    fn flags(&self) -> Vec<String> {
        vec![
            "--name=one&only".into(),
            format!("--initial-advertise-peer-urls=http://{}", self.peer),
            format!("--initial-cluster=one&only=http://{}", self.peer),
        ]
    }
}

/// Reads the log until it says that clients are served, and goes on reading, so that the process can go on writing.
fn wait_until_ready(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr);
    let mut log = String::new();
    while !log.contains("ready to serve client requests") {
        let read = lines.read_line(&mut log).unwrap();
        assert!(read > 0, "etcd ended:\n{log}");
    }
    thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
}

/// A running etcd, which is killed in the end.
pub(crate) struct Etcd<'a> {
    programs: &'a Programs,
    child: Child,
    client: String,
    /// Sent with every request once there is one.
    token: RefCell<Option<String>>,
}

impl Etcd<'_> {
    /// One request of the gateway. An error is what etcd answers.
    pub(crate) fn post(&self, path: &str, request: &Value) -> Result<Value, Value> {
        let body = request.to_string();
        let token = self.token.borrow();
        let authorization = token
            .as_ref()
            .map_or_else(String::new, |token| format!("Authorization: {token}\r\n"));
        // Version 1.0, so that the answer comes in one piece.
        let request = format!(
            "POST /v3/{path} HTTP/1.0\r\n{authorization}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.client).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        // Where a version lacks a call, the answer is a plain text.
        let value = serde_json::from_str(body).unwrap_or(Value::Null);
        if head.lines().next().unwrap().contains(" 200 ") {
            Ok(value)
        } else {
            Err(value)
        }
    }

    /// The same for a request that succeeds. The header of the answer is left out.
    pub(crate) fn ask(&self, path: &str, request: &Value) -> Value {
        let answer = self.post(path, request);
        let mut answer = answer.unwrap_or_else(|error| panic!("{path} {request}: {error}"));
        answer.as_object_mut().unwrap().remove("header");
        answer
    }

    /// The same for a call that old versions lack: then it is `null`.
    pub(crate) fn ask_if_there(&self, path: &str) -> Value {
        let answer = self.post(path, &json!({}));
        let mut answer = answer.unwrap_or_default();
        answer.as_object_mut().map(|answer| answer.remove("header"));
        answer
    }

    /// Requests after this are those of the user `root`.
    pub(crate) fn log_in(&self) {
        let answer = self.ask(
            "auth/authenticate",
            &json!({"name": "root", "password": "secret"}),
        );
        let token = answer["token"].as_str().unwrap().to_owned();
        self.token.replace(Some(token));
    }

    pub(crate) fn is_logged_in(&self) -> bool {
        self.token.borrow().is_some()
    }

    pub(crate) fn save(&self, file: &Path) {
        let mut command = Command::new(&self.programs.ctl);
        command.args(["--endpoints", &self.client]);
        // On a busy machine the defaults may not do.
        command.args(["--command-timeout", "60s", "--dial-timeout", "30s"]);
        if self.is_logged_in() {
            command.args(["--user", "root:secret"]);
        }
        run(command.args(["snapshot", "save"]).arg(file));
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        // It has ended already, or a test has failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Base64, as JSON has bytes.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | usize::from(three.get(at).copied().unwrap_or(0))
        });
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            let shown = digit <= three.len();
            text.push(if shown { DIGITS[value].into() } else { '=' });
        }
    }
    text
}

#[test]
fn base64_is_that_of_the_rfc() {
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
    ] {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}
