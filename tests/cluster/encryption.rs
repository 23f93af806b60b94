//! Members with encryption at rest: nothing of what clients store can be read in their directories, also after snapshots between
//! them, rotations, a quorum recovery, and after encryption was turned on; and a key that is wrong or gone is refused.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    snapshot::{IN_PLACE, fill, follower, said},
    support::{Cluster, Member, quorate},
};
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// What clients store contains this; each kind of thing has one of its own.
/// The variable that names the key file.
const VARIABLE: &str = "QUORATE_ENCRYPTION_KEY_FILE";

const PLANTED: [&str; 8] = [
    "planted-key",
    "planted-value",
    "planted-leased",
    "planted-user",
    "planted-role",
    "planted-range",
    "before/",
    "while/",
];

const PLAIN_IS_THERE: &str = "the log has segments from before encryption was turned on";
const PLAIN_IS_GONE: &str = "the log has no segments from before encryption was turned on any more";

fn key_of(fill: u8) -> String {
    format!("{fill:02x}").repeat(32)
}

/// A member whose key is in a file, which is returned.
fn with_key(member: &mut Member, fill: u8) -> PathBuf {
    let path = member.data_dir().with_extension("key");
    fs::write(&path, key_of(fill)).expect("a key file");
    member.set("QUORATE_ENCRYPTION_KEY_FILE", path.to_str().expect("UTF-8"));
    path
}

/// Members with keys of their own, the last one from a command, that keep little of their log.
async fn encrypted(size: u8) -> Cluster {
    let mut cluster = Cluster::new(usize::from(size)).await;
    for (member, fill) in cluster.members.iter_mut().zip(1..) {
        member.set("QUORATE_STORAGE_LOG_KEEP_ENTRIES", "100");
        if size > 1 && fill == size {
            let command = format!("echo '# from a service'; echo {}", key_of(fill));
            member.set("QUORATE_ENCRYPTION_KEY_COMMAND", &command);
        } else {
            with_key(member, fill);
        }
        member.start();
    }
    leader(&cluster.ports()).await;
    cluster
}

/// Stores one thing of each kind.
async fn plant(ports: &[u16]) {
    let lease = etcdctl(ports, &["lease", "grant", "6000"]).await.ok();
    let lease = lease.split_whitespace().nth(1).expect("an id").to_owned();
    let lease = format!("--lease={lease}");
    let commands: [&[&str]; 6] = [
        &["put", "planted-key", "planted-value"],
        &["put", "planted-leased", "planted-value", &lease],
        &["role", "add", "planted-role"],
        &[
            "role",
            "grant-permission",
            "planted-role",
            "readwrite",
            "planted-range",
        ],
        &["user", "add", "planted-user:planted-value"],
        &["user", "grant-role", "planted-user", "planted-role"],
    ];
    for command in commands {
        etcdctl(ports, command).await.ok();
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let each = paths.flat_map(|path| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    });
    each.collect()
}

/// Which planted texts are in which files of a directory.
fn leaks(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for path in files(folder) {
        let bytes = match fs::read(&path) {
            // The member runs, and has removed it since.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            read => read.expect("a file"),
        };
        // Other bytes become replacement characters. A search for bytes takes minutes in a debug build.
        let readable = String::from_utf8_lossy(&bytes);
        for text in PLANTED {
            if readable.contains(text) {
                found.push(format!("{text} in {}", path.display()));
            }
        }
    }
    found
}

#[track_caller]
fn no_leaks(cluster: &Cluster) {
    for member in &cluster.members {
        let found = leaks(&member.data_dir());
        assert!(found.is_empty(), "{found:?}");
    }
}

#[tokio::test]
async fn three_members_store_nothing_that_can_be_read_also_after_a_snapshot_between_them() {
    let mut cluster = encrypted(3).await;
    let ports = cluster.ports();
    plant(&ports).await;
    fill(&ports, "before/", 200).await;
    same_history(&ports).await;
    let away = follower(&cluster).await;
    cluster.members[away].kill().await;
    no_leaks(&cluster);

    let mut alive = ports.clone();
    alive.remove(away);
    fill(&alive, "while/", 2_000).await;
    fs::write(cluster.members[away].data_dir().join("refill"), "").expect("the wish");
    cluster.members[away].start();
    said(&cluster.members[away], IN_PLACE, 1).await;
    same_history(&ports).await;
    assert_eq!(keys(ports[away], "while/").await, 2_000);
    let aside = cluster.members[away]
        .data_dir()
        .join("db/revisions.redb.aside");
    assert!(aside.exists(), "what was put aside is looked through too");
    no_leaks(&cluster);

    for member in &mut cluster.members {
        member.kill().await;
        member.start();
    }
    same_history(&ports).await;
    let user = eventually(&ports, &["user", "get", "planted-user"], |_| true).await;
    assert!(user.contains("planted-role"), "{user}");
    no_leaks(&cluster);
}

#[tokio::test]
async fn a_key_is_replaced_while_clients_write_and_then_only_the_new_one_opens() {
    let mut cluster = encrypted(1).await;
    let ports = cluster.ports();
    plant(&ports).await;
    let member = &mut cluster.members[0];
    let path = member.data_dir().with_extension("key");
    for turn in 1..=2_u8 {
        let writing = fill(&ports, "while/", 500);
        let (new, old) = (
            key_of(10 + turn),
            if turn == 1 { key_of(1) } else { key_of(11) },
        );
        fs::write(path.with_extension("new"), format!("{new}\n{old}\n")).expect("the new file");
        fs::rename(path.with_extension("new"), &path).expect("it replaces the old one");
        let wrapped = said(
            member,
            "the data keys are wrapped by the key",
            usize::from(turn),
        );
        tokio::join!(writing, wrapped);
    }
    fill(&ports, "before/", 100).await;
    // What cannot be used changes nothing.
    fs::write(&path, "planted-nonsense").expect("a broken file");
    said(member, "the key in force stays so", 1).await;
    assert!(
        !member.log().contains("planted-nonsense"),
        "{}",
        member.log()
    );
    fill(&ports, "before/", 100).await;
    member.kill().await;
    let refusal = member.refusal().await;
    assert!(refusal.contains("line 1 is no key"), "{refusal}");
    assert!(leaks(&member.data_dir()).is_empty());

    fs::write(&path, key_of(1)).expect("the first key");
    let refusal = member.refusal().await;
    assert!(refusal.contains("is encrypted under the key"), "{refusal}");
    fs::write(&path, key_of(12)).expect("the newest key");
    member.start();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    assert_eq!(keys(ports[0], "while/").await, 500);
    for fill in [1, 11, 12] {
        assert!(!member.log().contains(&key_of(fill)), "no key is logged");
    }
}

#[tokio::test]
async fn a_start_without_the_key_or_with_a_command_that_fails_is_refused() {
    let mut cluster = encrypted(1).await;
    let ports = cluster.ports();
    plant(&ports).await;
    let member = &mut cluster.members[0];
    member.kill().await;
    let path = member.data_dir().with_extension("key");
    member.set("QUORATE_ENCRYPTION_KEY_FILE", "");
    let refusal = member.refusal().await;
    assert!(
        refusal.contains("encrypted (it holds keyring), but encryption is off"),
        "{refusal}"
    );
    member.set(
        "QUORATE_ENCRYPTION_KEY_COMMAND",
        "echo planted-secret >&2; exit 7",
    );
    let refusal = member.refusal().await;
    assert!(
        refusal.contains("it ended with exit status: 7"),
        "{refusal}"
    );
    member.set("QUORATE_ENCRYPTION_KEY_COMMAND", "");
    member.set("QUORATE_ENCRYPTION_KEY_FILE", "/no/such/key");
    let refusal = member.refusal().await;
    assert!(
        refusal.contains("encryption.key_file /no/such/key: No such file"),
        "{refusal}"
    );
    member.set("QUORATE_ENCRYPTION_KEY_FILE", path.to_str().expect("UTF-8"));
    member.start();
    let got = eventually(&ports, &["get", "planted-key"], |_| true).await;
    assert!(got.contains("planted-value"), "{got}");
}

#[tokio::test]
async fn encryption_is_turned_on_for_a_member_that_has_data() {
    let mut cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    plant(&ports).await;
    fill(&ports, "before/", 300).await;
    let member = &mut cluster.members[0];
    member.stop().await;
    let found = leaks(&member.data_dir());
    for text in ["planted-key", "planted-value", "planted-user", "before/"] {
        let database = |found: &String| found.starts_with(text) && found.contains("/db/");
        assert!(found.iter().any(database), "{text}: {found:?}");
    }
    with_key(member, 1);
    member.start();
    said(member, "encryption was turned on: ", 1).await;
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    assert_eq!(keys(ports[0], "before/").await, 300);
    fill(&ports, "while/", 100).await;
    member.kill().await;
    let found = leaks(&member.data_dir());
    let log = |found: &String| found.contains("/wal/") && !found.starts_with("while/");
    assert!(found.iter().all(log), "only the log from before: {found:?}");
    member.set("QUORATE_STORAGE_LOG_KEEP_ENTRIES", "100");
    member.start();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    assert_eq!(keys(ports[0], "while/").await, 100);
    // Until the log from before is gone, each start says that it is there.
    fill(&ports, "after/", 300).await;
    said(member, PLAIN_IS_GONE, 1).await;
    member.kill().await;
    assert_eq!(leaks(&member.data_dir()), [] as [String; 0]);
    member.start();
    eventually(&ports, &["endpoint", "health"], |_| true).await;
    for (text, times) in [
        ("encryption was turned on: ", 1),
        (PLAIN_IS_THERE, 2),
        (PLAIN_IS_GONE, 1),
    ] {
        assert_eq!(member.log().matches(text).count(), times, "{text}");
    }
}

#[tokio::test]
async fn a_quorum_recovery_of_an_encrypted_member_is_encrypted() {
    let mut cluster = encrypted(3).await;
    let ports = cluster.ports();
    plant(&ports).await;
    fill(&ports, "before/", 200).await;
    same_history(&ports).await;
    for member in &mut cluster.members {
        member.kill().await;
    }
    let (old, new) = (
        cluster.members[0].data_dir(),
        cluster.folder().join("alone"),
    );
    let recover = |into: &Path| {
        let mut run = quorate();
        run.arg("recover")
            .arg("--data-dir")
            .arg(&old)
            .arg("--into")
            .arg(into);
        run
    };
    let refused = recover(&new).output().await.expect("the program starts");
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    for way in ["--encryption-key-file", VARIABLE] {
        assert!(text.contains(way), "{text}");
    }
    assert!(!text.contains("encryption.key_file"), "{text}");
    let key = old.with_extension("key");
    let second = cluster.folder().join("by-variable");
    let by_variable = recover(&second).env(VARIABLE, &key).output().await;
    // The flag counts, not the variable.
    let by_flag = recover(&new)
        .env(VARIABLE, "/no/such/key")
        .arg("--encryption-key-file")
        .arg(&key)
        .output()
        .await;
    for done in [by_variable, by_flag] {
        let done = done.expect("the program starts");
        assert!(done.status.success(), "{done:?}");
    }
    assert_eq!(leaks(&second), [] as [String; 0]);
    assert_eq!(leaks(&new), [] as [String; 0]);
    let own = &mut cluster.members[0];
    own.args.push(format!("--data-dir={}", new.display()));
    own.start();
    let got = eventually(&ports[..1], &["get", "planted-key"], |_| true).await;
    assert!(got.contains("planted-value"), "{got}");
    assert_eq!(keys(ports[0], "before/").await, 200);
    assert_eq!(leaks(&new), [] as [String; 0]);
}
