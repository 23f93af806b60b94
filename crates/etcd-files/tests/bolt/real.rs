//! Files of a real etcd: its snapshots and its database are read, and `etcdutl` and etcd accept what we write.
//!
//! `tests/etcd/build` puts the programs into `etcd/` of the target folder. Where they are missing, these tests say so and pass.

use crate::support::{Contents, Items, check, read, write};
use prost::Message;
use quorate_etcd_files::bolt::Image;
use std::{
    env,
    fs::{self, File},
    io::{self, BufRead, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
};

/// What etcd stores of a key.
#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(int64, tag = "2")]
    create_revision: i64,
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(int64, tag = "4")]
    version: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
    #[prost(int64, tag = "6")]
    lease: i64,
}

/// A program of etcd, if it was built.
fn program(name: &str) -> Option<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"),
        PathBuf::from,
    );
    let path = target.join("etcd").join(name);
    path.exists().then_some(path)
}

/// All three programs, or a word about the test that is skipped.
struct Programs {
    etcd: PathBuf,
    ctl: PathBuf,
    utl: PathBuf,
}

impl Programs {
    #[expect(clippy::print_stderr, reason = "a test that is skipped says so")]
    fn find() -> Option<Self> {
        let found = ["etcd", "etcdctl", "etcdutl"].map(program);
        let [Some(etcd), Some(ctl), Some(utl)] = found else {
            eprintln!("skipped: tests/etcd/build has not built etcd, etcdctl and etcdutl");
            return None;
        };
        Some(Self { etcd, ctl, utl })
    }

    fn etcdutl(&self, arguments: &[&str]) -> String {
        run(Command::new(&self.utl).args(arguments))
    }

    /// CRC-32C over the names of all buckets, their keys and values, as `etcdutl` computes it.
    fn status(&self, file: &Path) -> serde_json::Value {
        let text = self.etcdutl(&["snapshot", "status", shown(file), "-w", "json"]);
        serde_json::from_str(&text).expect("etcdutl prints JSON")
    }

    fn restore(&self, file: &Path, data: &Path) {
        self.etcdutl(&[
            "snapshot",
            "restore",
            shown(file),
            "--data-dir",
            shown(data),
        ]);
    }
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// A running etcd of one member, which ends with the test.
struct Etcd {
    process: Child,
    etcdctl: PathBuf,
    endpoint: String,
}

impl Etcd {
    /// Starts etcd and waits until it serves clients.
    fn start(programs: &Programs, data: &Path) -> Self {
        // The ports are free until the listeners are dropped, and are not given again soon.
        let [client, peer] = [(), ()].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [client, peer] = [client, peer].map(|listener| {
            let address = listener.local_addr().expect("an address");
            format!("http://{address}")
        });
        let mut process = Command::new(&programs.etcd)
            .args(["--data-dir", shown(data), "--log-level", "info"])
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args(["--listen-peer-urls", &peer])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("etcd starts");
        wait_until_ready(process.stderr.take().expect("it is piped"));
        Self {
            process,
            etcdctl: programs.ctl.clone(),
            endpoint: client,
        }
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        run(&mut self.ctl_command(arguments))
    }

    fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.etcdctl);
        let common = ["--endpoints", &self.endpoint, "--command-timeout", "60s"];
        command.args(common).args(arguments);
        command
    }

    fn put_large(&self, key: &str, value: &[u8], scratch: &Path) {
        fs::write(scratch, value).expect("writes");
        let input = File::open(scratch).expect("opens");
        run(self.ctl_command(&["put", key]).stdin(input));
    }

    /// Stops etcd as an operator would, so that its files are complete.
    fn stop(mut self) {
        let id = self.process.id().to_string();
        run(Command::new("kill").args(["-TERM", &id]));
        self.process.wait().expect("it ends");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn wait_until_ready(stderr: ChildStderr) {
    let mut lines = BufReader::new(stderr);
    let mut log = String::new();
    while !log.contains("ready to serve client requests") {
        let bytes = lines.read_line(&mut log).expect("it logs text");
        assert!(bytes > 0, "etcd ended: {log}");
    }
    // It would wait if nobody read what it logs.
    thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
}

fn hash(contents: &Contents) -> u64 {
    let parts = contents.iter().flat_map(|(name, items)| {
        let items = items.iter().flat_map(|(key, value)| [key, value]);
        [name].into_iter().chain(items)
    });
    parts
        .fold(0, |hash, part| crc32c::crc32c_append(hash, part))
        .into()
}

/// The live keys of a `key` bucket. A revision that deletes ends with `t`.
fn live(items: &Items) -> Items {
    let mut live = Items::new();
    for (revision, stored) in items {
        let stored = KeyValue::decode(stored.as_slice()).expect("a KeyValue");
        if revision.ends_with(b"t") {
            live.remove(&stored.key);
        } else {
            live.insert(stored.key, stored.value);
        }
    }
    live
}

fn fill(etcd: &Etcd, scratch: &Path) {
    for number in 0..60 {
        etcd.ctl(&["put", &format!("k/{number:03}"), &"v".repeat(number * 10)]);
    }
    for bytes in [3_000, 5_000, 20_000, 1_000_000] {
        etcd.put_large(&format!("large/{bytes}"), &vec![b'L'; bytes], scratch);
    }
    etcd.ctl(&["del", "k/001"]);
    etcd.ctl(&["lease", "grant", "1000"]);
    etcd.ctl(&["user", "add", "root:secret"]);
    etcd.ctl(&["role", "add", "reader"]);
}

fn assert_filled(contents: &Contents) {
    let key = &contents[b"key".as_slice()];
    assert_eq!(key.len(), 65, "64 puts and a deletion");
    let live = live(key);
    assert_eq!(live.len(), 63);
    assert_eq!(live[b"k/059".as_slice()], "v".repeat(590).into_bytes());
    assert_eq!(live[b"large/1000000".as_slice()], vec![b'L'; 1_000_000]);
    assert_eq!(contents[b"lease".as_slice()].len(), 1);
    assert_eq!(contents[b"authUsers".as_slice()].len(), 1);
    assert!(contents[b"meta".as_slice()].contains_key(b"consistent_index".as_slice()));
}

#[test]
fn files_of_etcd_are_read() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let etcd = Etcd::start(&programs, &data);
    fill(&etcd, &folder.path().join("value"));
    let snapshot = folder.path().join("snapshot.db");
    etcd.ctl(&["snapshot", "save", shown(&snapshot)]);
    etcd.stop();

    let before = fs::read(&snapshot).expect("reads");
    let image = Image::open(File::open(&snapshot).expect("opens")).expect("a database");
    image.verify_hash().expect("the right hash");
    let checked = image.check().expect("no fault");
    let contents = read(&image).expect("reads");
    assert_eq!(checked.buckets, contents.len() as u64);
    assert_filled(&contents);
    let status = programs.status(&snapshot);
    assert_eq!(status["hash"], hash(&contents));
    assert_eq!(
        fs::read(&snapshot).expect("reads"),
        before,
        "it is not changed"
    );

    let database = File::open(data.join("member/snap/db")).expect("opens");
    let image = Image::open(database).expect("a database");
    assert!(!image.has_hash());
    image.check().expect("no fault");
    assert_filled(&read(&image).expect("reads"));

    // What we write of the same contents is the same to etcdutl.
    let written = folder.path().join("written.db");
    fs::write(&written, write(&contents, 4_096)).expect("writes");
    let ours = programs.status(&written);
    for field in ["hash", "revision", "totalKey", "version"] {
        assert_eq!(ours[field], status[field], "{field}");
    }
    programs.restore(&written, &folder.path().join("restored"));
}

/// What etcd needs to start, with this many keys.
fn minimal(keys: i64) -> Contents {
    let key = |number: i64| {
        // The first write of an etcd has revision 2.
        let revision = number + 2;
        let stored = KeyValue {
            key: format!("k/{number:06}").into_bytes(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            value: format!("value {number}").into_bytes(),
            lease: 0,
        };
        let name = [&revision.to_be_bytes()[..], b"_", &[0; 8]].concat();
        (name, stored.encode_to_vec())
    };
    let meta = [
        (&b"consistent_index"[..], 10_u64.to_be_bytes().to_vec()),
        (b"term", 2_u64.to_be_bytes().to_vec()),
        (
            b"confState",
            br#"{"voters":[1],"auto_leave":false}"#.to_vec(),
        ),
        (b"storageVersion", b"3.6.0".to_vec()),
    ];
    let auth = [
        (&b"authEnabled"[..], vec![0]),
        (b"authRevision", 1_u64.to_be_bytes().to_vec()),
    ];
    let owned = |items: &[(&[u8], Vec<u8>)]| -> Items {
        let items = items.iter();
        items
            .map(|(key, value)| (key.to_vec(), value.clone()))
            .collect()
    };
    let mut contents = Contents::from([
        (b"key".to_vec(), (0..keys).map(key).collect()),
        (b"meta".to_vec(), owned(&meta)),
        (b"auth".to_vec(), owned(&auth)),
        (
            b"cluster".to_vec(),
            owned(&[(b"clusterVersion", b"3.6.0".to_vec())]),
        ),
    ]);
    for empty in [
        "lease",
        "authUsers",
        "authRoles",
        "alarm",
        "members",
        "members_removed",
    ] {
        contents.insert(empty.as_bytes().to_vec(), Items::new());
    }
    contents
}

#[test]
fn etcd_accepts_what_is_written() {
    let Some(programs) = Programs::find() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let contents = minimal(20_000);
    let bytes = write(&contents, 4_096);
    assert_eq!(check(&bytes), 20_000 + 4 + 2 + 1);
    let file = folder.path().join("written.db");
    fs::write(&file, bytes).expect("writes");
    let status = programs.status(&file);
    assert_eq!(status["hash"], hash(&contents));
    assert_eq!(status["revision"], 20_001);
    assert_eq!(status["totalKey"], 20_000);
    assert_eq!(status["version"], "3.6.0");
    let data = folder.path().join("restored");
    programs.restore(&file, &data);
    let database = data.join("member/snap/db");
    serve(&Etcd::start(&programs, &data));

    // bbolt has deleted and merged pages that we wrote.
    let image = Image::open(File::open(database).expect("opens")).expect("a database");
    image.check().expect("no fault");
    let live = live(&read(&image).expect("reads")[b"key".as_slice()]);
    assert_eq!(live.len(), 1_001);
}

/// Reads, deletes and compacts.
fn serve(etcd: &Etcd) {
    let count = || {
        let text = etcd.ctl(&["get", "k/", "--prefix", "--count-only", "-w", "fields"]);
        let field = |name: &str| {
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(&format!("\"{name}\" : ")));
            value.and_then(|value| value.parse::<u64>().ok())
        };
        (field("Count"), field("Revision"))
    };
    assert_eq!(count(), (Some(20_000), Some(20_001)));
    assert_eq!(
        etcd.ctl(&["get", "k/012345", "--print-value-only"]),
        "value 12345\n"
    );
    etcd.ctl(&["put", "new", "value"]);
    etcd.ctl(&["del", "k/001", "k/020"]);
    assert_eq!(count(), (Some(1_000), Some(20_003)));
    etcd.ctl(&["compaction", "20003", "--physical"]);
    etcd.ctl(&["endpoint", "hashkv"]);
    etcd.ctl(&["defrag"]);
    assert_eq!(count(), (Some(1_000), Some(20_003)));
}

/// With this many keys, branches that are filled one after the other would leave a single element to the last. etcdutl accepts
/// such a file, but an etcd that compacts below that branch ends with "parent must have at least 2 children".
#[test]
fn etcd_compacts_below_the_last_branch() {
    const KEYS: i64 = 7_896;
    let Some(programs) = Programs::find() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("written.db");
    fs::write(&file, write(&minimal(KEYS), 4_096)).expect("writes");
    let data = folder.path().join("restored");
    programs.restore(&file, &data);
    let etcd = Etcd::start(&programs, &data);
    etcd.ctl(&["put", &format!("k/{:06}", KEYS - 1), "new"]);
    let revision = (KEYS + 2).to_string();
    etcd.ctl(&["compaction", &revision, "--physical"]);
    etcd.ctl(&["put", "after", "the compaction"]);
}
