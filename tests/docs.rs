//! The shell commands in README.md and `docs/` run as they stand there, in order, and print what the page says.
//!
//! A fence's info string says what becomes of its block:
//!
//! | info | the block |
//! |---|---|
//! | `sh` | runs; every command succeeds |
//! | `sh servers` | each line runs beside what follows, until the end of the section; it is ready first |
//! | `sh servers stay` | the same, until the end of the page |
//! | `sh stopped` | as `sh`, after all servers were stopped |
//! | `sh norun: REASON` | does not run |
//! | `text prints` | what the block before it printed; `…` stands for anything within a line |
//!
//! Each page has a network namespace and a folder of its own, so commands may use default ports, the addresses 10.0.0.1 to
//! 10.0.0.5, and any file name. There `cargo run --release` is Quorate as it was built for this test, and the configurations of
//! `config/cluster` are at hand, with their paths in the folder.

#[path = "support/tools.rs"]
mod tools;

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

/// How many blocks ran when this was written: a change that leaves out most of them must show.
const BLOCKS_LEAST: usize = 12;

/// The pause between two looks at what is waited for, and how many of them there are: a server that is not ready by then will not
/// be.
const PAUSE: Duration = Duration::from_millis(50);
const LOOKS_MAX: usize = 1_200;

/// What the members print once they serve.
const READY: [&str; 2] = ["ready: clients on", " members run"];

/// A membership change is refused with this until a quorum has been connected for long enough; the page says to try again.
const TRY_AGAIN: &str = "unhealthy cluster";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Runs {
        stopped: bool,
    },
    Servers {
        stay: bool,
    },
    NoRun(String),
    Prints,
    /// No commands.
    Other,
}

impl Kind {
    fn of(info: &str) -> Result<Self, String> {
        if let Some(reason) = info.strip_prefix("sh norun:") {
            let reason = reason.trim();
            return match reason.len() {
                0..10 => Err(format!("`{info}` needs a reason")),
                _ => Ok(Self::NoRun(reason.to_owned())),
            };
        }
        match info {
            "sh" => Ok(Self::Runs { stopped: false }),
            "sh stopped" => Ok(Self::Runs { stopped: true }),
            "sh servers" => Ok(Self::Servers { stay: false }),
            "sh servers stay" => Ok(Self::Servers { stay: true }),
            "text prints" => Ok(Self::Prints),
            "" | "text" | "mermaid" | "rust" | "toml" | "json" | "ini" => Ok(Self::Other),
            _ => Err(format!("unknown info string `{info}`")),
        }
    }
}

/// A fenced block, or the end of a section.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Section,
    Block {
        line: usize,
        kind: Kind,
        text: String,
    },
}

/// The parts of a page, or what is wrong with its fences.
fn parts(page: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut lines = page.lines().zip(1..);
    while let Some((text, line)) = lines.next() {
        if text.starts_with("## ") {
            parts.push(Part::Section);
        }
        let trimmed = text.trim_start();
        let Some(info) = trimmed.strip_prefix("```") else {
            continue;
        };
        let indent = text.len() - trimmed.len();
        let kind = Kind::of(info.trim()).map_err(|error| format!("line {line}: {error}"))?;
        let mut block = String::new();
        loop {
            let Some((text, _)) = lines.next() else {
                return Err(format!("line {line}: the block has no end"));
            };
            if text.trim() == "```" {
                break;
            }
            block.push_str(text.get(indent..).unwrap_or_default());
            block.push('\n');
        }
        if kind == Kind::Other && info.trim().is_empty() && has_commands(&block) {
            return Err(format!(
                "line {line}: commands in a block without an info string"
            ));
        }
        parts.push(Part::Block {
            line,
            kind,
            text: block,
        });
    }
    Ok(parts)
}

fn has_commands(block: &str) -> bool {
    let commands = ["quorate ", "etcdctl ", "cargo ", "./check"];
    block
        .lines()
        .any(|line| commands.iter().any(|command| line.starts_with(command)))
}

/// Whether a line is as the page says; `…` stands for anything.
fn is_like(expected: &str, printed: &str) -> bool {
    let mut pieces = expected.split('…');
    let Some(mut rest) = printed.strip_prefix(pieces.next().unwrap_or_default()) else {
        return false;
    };
    let mut open = false;
    for piece in pieces {
        let Some(at) = rest.find(piece) else {
            return false;
        };
        (rest, open) = (&rest[at + piece.len()..], piece.is_empty());
    }
    open || rest.is_empty()
}

fn compare(expected: &str, printed: &str) -> Result<(), String> {
    let same = expected.lines().count() == printed.lines().count()
        && expected
            .lines()
            .zip(printed.lines())
            .all(|(expected, printed)| is_like(expected, printed));
    if same {
        Ok(())
    } else {
        Err(format!(
            "the page says\n{expected}\nbut it prints\n{printed}"
        ))
    }
}

/// Where a page's commands run.
struct Place {
    home: tempfile::TempDir,
    /// A process that keeps the network namespace.
    keeper: Child,
    servers: Vec<Server>,
}

struct Server {
    child: Child,
    log: PathBuf,
    stays: bool,
}

impl Place {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        let bin = home.path().join(".bin");
        fs::create_dir(&bin).expect("a folder for programs");
        let quorate = env!("CARGO_BIN_EXE_quorate");
        program(&bin.join("quorate"), &format!("exec {quorate} \"$@\""));
        let etcdctl = tools::etcdctl();
        program(
            &bin.join("etcdctl"),
            &format!("exec {} \"$@\"", etcdctl.display()),
        );
        let cargo = format!(
            "[ \"$1 $2\" = 'run --release' ] || {{ echo \"only cargo run --release\" >&2; exit 1; }}\n\
             shift 2; [ \"$1\" = -- ] && shift\nexec {quorate} \"$@\""
        );
        program(&bin.join("cargo"), &cargo);
        for n in 1..=3 {
            let file = format!("n{n}.toml");
            let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/cluster");
            let text = fs::read_to_string(config.join(&file)).expect("the file is there");
            let text = text
                .replace("/etc/quorate/", "certs/")
                .replace("/var/lib/quorate", &format!("data-n{n}"))
                .replace("0.0.0.0", &format!("10.0.0.{n}"));
            fs::write(home.path().join(file), text).expect("the folder takes files");
        }
        let mut set_up = "set -eu; ip link set lo up; ".to_owned();
        for n in 1..=5 {
            write!(set_up, "ip addr add 10.0.0.{n}/32 dev lo; ").expect("a string takes all");
        }
        let mut keeper = Command::new("unshare");
        if !is_root() {
            keeper.arg("--map-root-user");
        }
        keeper.args(["--net", "bash", "-c"]);
        keeper.arg(format!("{set_up} echo up; exec sleep infinity"));
        let mut keeper = keeper
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is part of util-linux");
        let mut up = [0; 3];
        let out = keeper.stdout.as_mut().expect("it is piped");
        out.read_exact(&mut up).expect(
            "this test needs `ip`, and a network namespace: as root, or with user namespaces",
        );
        Self {
            home,
            keeper,
            servers: Vec::new(),
        }
    }

    fn bash(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        if !is_root() {
            command.args(["--user", "--preserve-credentials"]);
        }
        command
            .args(["--net", "--target", &self.keeper.id().to_string()])
            .args(["bash", "-euo", "pipefail", "-c", script]);
        for (name, _) in env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("QUORATE_") || text.starts_with("ETCD") {
                command.env_remove(&name);
            }
        }
        let path = env::var("PATH").unwrap_or_default();
        let bin = self.home.path().join(".bin");
        command
            .current_dir(self.home.path())
            .env("PATH", format!("{}:{path}", bin.display()))
            // Small segments, since each member writes some in advance.
            .env("QUORATE_STORAGE_WAL_SEGMENT_BYTES", "4194304")
            .stdin(Stdio::null());
        command
    }

    /// Runs a block to its end, and gives what it printed.
    fn run(&self, block: &str) -> Result<String, String> {
        let mut looks = 0;
        loop {
            let Output {
                status,
                stdout,
                stderr,
            } = self.bash(block).output().expect("bash runs");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            if status.success() {
                return Ok(text(&stdout));
            }
            let said = text(&stderr);
            if !said.contains(TRY_AGAIN) || looks > LOOKS_MAX {
                return Err(format!("{status}: {}{said}", text(&stdout)));
            }
            looks += 1;
            pause();
        }
    }

    /// Starts each line of a block as a server, and waits until all are ready.
    fn serve(&mut self, block: &str, stays: bool) -> Result<(), String> {
        let first = self.servers.len();
        for line in block.replace("\\\n", " ").lines() {
            let log = self
                .home
                .path()
                .join(format!(".server-{}", self.servers.len()));
            let out = File::create(&log).expect("the folder takes files");
            let err = out.try_clone().expect("a second handle");
            let child = self
                .bash(&format!("exec {line}"))
                .stdout(out)
                .stderr(err)
                .spawn();
            let child = child.expect("bash runs");
            self.servers.push(Server { child, log, stays });
        }
        let mut looks = 0;
        for server in &mut self.servers[first..] {
            loop {
                let log = fs::read_to_string(&server.log).unwrap_or_default();
                if READY.iter().any(|ready| log.contains(ready)) {
                    break;
                }
                let ended = server.child.try_wait().expect("a child can be waited for");
                if ended.is_some() || looks > LOOKS_MAX {
                    return Err(format!("not ready ({ended:?}):\n{log}"));
                }
                looks += 1;
                pause();
            }
        }
        Ok(())
    }

    /// Stops the servers that do not stay, or all of them, as Ctrl-C does; one that does not end is killed, and is an error.
    fn stop(&mut self, all: bool) -> Result<(), String> {
        let (mut stopped, stay): (Vec<_>, Vec<_>) = self
            .servers
            .drain(..)
            .partition(|server| all || !server.stays);
        self.servers = stay;
        for Server { child, .. } in &stopped {
            interrupt(child);
        }
        let (mut looks, mut late) = (0, String::new());
        for Server { child, log, .. } in &mut stopped {
            let mut ended = || child.try_wait().expect("a child can be waited for");
            while ended().is_none() && looks <= LOOKS_MAX {
                looks += 1;
                pause();
            }
            if ended().is_none() {
                child.kill().unwrap_or_default();
                drop(child.wait());
                late += &fs::read_to_string(log).unwrap_or_default();
            }
        }
        if late.is_empty() {
            Ok(())
        } else {
            Err(format!("a server does not stop:\n{late}"))
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.stop(true));
        self.keeper.kill().unwrap_or_default();
        drop(self.keeper.wait());
    }
}

/// A pause between two looks at what is waited for.
#[expect(
    clippy::disallowed_methods,
    reason = "this thread has nothing else to do, and no event loop"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// Whether this may make network namespaces without a user namespace.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn interrupt(child: &Child) {
    let id = rustix::process::Pid::from_raw(child.id().cast_signed()).expect("it is not zero");
    // It may have ended by itself.
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap_or_default();
}

fn program(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/bash\n{script}\n")).expect("the folder takes files");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
}

/// Runs a page, and counts its blocks: those that ran, those that did not.
fn run_page(page: &[Part]) -> Result<(usize, usize), String> {
    let runs = |part: &Part| {
        let Part::Block { kind, .. } = part else {
            return false;
        };
        matches!(kind, Kind::Runs { .. } | Kind::Servers { .. })
    };
    let mut place = page.iter().any(runs).then(Place::new);
    let (mut ran, mut left_out) = (0, 0);
    let mut printed = None;
    for part in page {
        let Part::Block { line, kind, text } = part else {
            if let Some(place) = &mut place {
                place.stop(false)?;
            }
            continue;
        };
        let wrong = |error: String| format!("line {line}: {error}\n{text}");
        let place = place.as_mut();
        match (kind, place) {
            (Kind::Runs { stopped }, Some(place)) => {
                if *stopped {
                    place.stop(true).map_err(wrong)?;
                }
                printed = Some(place.run(text).map_err(wrong)?);
                ran += 1;
            }
            (Kind::Servers { stay }, Some(place)) => {
                place.serve(text, *stay).map_err(wrong)?;
                ran += 1;
            }
            (Kind::Prints, _) => {
                let printed = printed.take().ok_or("no block before it printed this");
                let printed = printed.map_err(|error| wrong(error.to_owned()))?;
                compare(text, &printed).map_err(wrong)?;
            }
            (Kind::NoRun(_), _) => left_out += 1,
            (Kind::Other | Kind::Runs { .. } | Kind::Servers { .. }, _) => {}
        }
    }
    if let Some(place) = &mut place {
        place.stop(true)?;
    }
    Ok((ran, left_out))
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).expect("the docs are there");
    let mut pages: Vec<PathBuf> = docs.map(|entry| entry.expect("it reads").path()).collect();
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    pages.sort();
    pages.insert(0, root.join("README.md"));
    pages
}

#[test]
fn the_commands_of_every_page_run_and_print_what_it_says() {
    let (mut ran, mut left_out, mut wrong) = (0, 0, String::new());
    for page in pages() {
        let text = fs::read_to_string(&page).expect("the page reads");
        let name = page.file_name().unwrap_or_default().to_string_lossy();
        match parts(&text).and_then(|parts| run_page(&parts)) {
            Ok(counts) => (ran, left_out) = (ran + counts.0, left_out + counts.1),
            Err(error) => writeln!(wrong, "{name}: {error}").expect("a string takes all"),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(
        ran >= BLOCKS_LEAST,
        "only {ran} blocks ran, and {left_out} are marked as `norun`"
    );
    assert!(
        left_out <= ran,
        "{left_out} of {} blocks do not run",
        ran + left_out
    );
}

#[test]
fn a_block_whose_command_fails_or_prints_otherwise_is_found() {
    let ran = |page: &str| parts(page).and_then(|parts| run_page(&parts));
    assert_eq!(
        ran("```sh\necho a\n```\n```text prints\na\n```"),
        Ok((1, 0))
    );
    let failed = ran("```sh\nfalse\ntrue\n```").expect_err("it fails");
    assert!(failed.contains("line 1"), "{failed}");
    let other = ran("```sh\necho a\n```\n```text prints\nb\n```").expect_err("it prints a");
    assert!(other.contains("line 4"), "{other}");
}

#[test]
fn fences_are_read_with_their_indent_and_marked() {
    let page = "## One\n\n1. do\n   ```sh\n   echo a\n     b\n   ```\n```sh norun: takes a whole day\nx\n```\n";
    let found = parts(page).expect("the page is right");
    let block = |line, kind, text: &str| Part::Block {
        line,
        kind,
        text: text.to_owned(),
    };
    assert_eq!(
        found,
        [
            Part::Section,
            block(4, Kind::Runs { stopped: false }, "echo a\n  b\n"),
            block(8, Kind::NoRun("takes a whole day".to_owned()), "x\n"),
        ]
    );
    for wrong in [
        "```sh norun:\nx\n```",
        "```sh serves\nx\n```",
        "```sh\nx\n",
        "```\nquorate --help\n```",
    ] {
        assert!(parts(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_ellipsis_stands_for_anything_within_a_line() {
    for (expected, printed, like) in [
        ("a … c", "a b c", true),
        ("a …", "a b c", true),
        ("… c", "a b c", true),
        ("a … b", "a b c", false),
        ("a", "a b", false),
        ("a…b…", "a-b-c", true),
        ("", "a", false),
    ] {
        assert_eq!(is_like(expected, printed), like, "{expected:?} {printed:?}");
    }
}
