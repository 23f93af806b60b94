//! A flipped bit, or a file that lost its end, in one member's database or log: while it runs and at its start. The others go on,
//! no acknowledged write is lost, the member says what is wrong, and gets its data back from the others.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history},
    membership::{id, join},
    snapshot::{IN_PLACE, fill, said},
    support::Cluster,
};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

const DATABASE: &str = "db/revisions.redb";
/// A value that occurs nowhere else.
const MARKER: &str = "a-value-to-be-found-on-the-disk-0b3d5c6f9a";
/// Keys written at a time.
const KEYS: usize = 200;
/// How often a running member must read all its data.
const READS: usize = 100;
/// After so many of these reads its file is damaged once more: the member may have written the marker to another place meanwhile.
const READS_BETWEEN: usize = 20;

/// How a file is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// A bit of the marker flips.
    Bit,
    /// The file ends at the marker.
    End,
}

/// Where the marker is in a file.
fn places(file: &Path) -> Vec<usize> {
    let bytes = fs::read(file).expect("a member's file");
    let all = bytes.windows(MARKER.len()).enumerate();
    let found = all.filter(|(_, window)| *window == MARKER.as_bytes());
    found.map(|(at, _)| at).collect()
}

/// The files of a member's log.
fn log_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("wal")).expect("the log's directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| path.extension().is_some_and(|ext| ext == "seg"))
        .collect()
}

/// Damages a file where the marker is in it; only some bytes are touched, so a process that has it open goes on with it.
fn damage(file: &Path, kind: Damage) {
    let places = places(file);
    let open = || -> File {
        let opened = OpenOptions::new().write(true).read(true).open(file);
        opened.expect("the file")
    };
    match kind {
        Damage::Bit => {
            let file = open();
            for at in places {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at as u64).expect("a byte");
                byte[0] ^= 4;
                file.write_all_at(&byte, at as u64).expect("it is written");
            }
        }
        Damage::End => {
            if let Some(least) = places.first() {
                open().set_len(*least as u64).expect("it is cut");
            }
        }
    }
}

/// Writes the marker, and waits until this member's file has it.
async fn mark(ports: &[u16], file: impl Fn() -> Vec<PathBuf>) -> PathBuf {
    eventually(ports, &["put", "marked", MARKER], |_| true).await;
    for _ in 0..600 {
        if let Some(found) = file().into_iter().find(|path| !places(path).is_empty()) {
            return found;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the marker does not come to the disk");
}

/// Asserts that this member has every acknowledged write.
async fn has_all(port: u16, rounds: usize) {
    for round in 0..rounds {
        assert_eq!(
            keys(port, &format!("{round}/")).await,
            KEYS,
            "of round {round}"
        );
    }
    let marked = eventually(&[port], &["get", "marked", "--print-value-only"], |_| true).await;
    assert_eq!(marked.trim(), MARKER, "the marker is there");
}

/// Damages a member's file, and reads all its data repeatedly until it stops by itself.
async fn stops_when_it_reads(cluster: &mut Cluster, at: usize, file: &Path, kind: Damage) {
    let port = cluster.members[at].client;
    for read in 0..READS {
        if !cluster.members[at].runs() {
            break;
        }
        if read % READS_BETWEEN == 0 {
            damage(file, kind);
        }
        // It may stop before it answers.
        drop(etcdctl(&[port], &["endpoint", "hashkv"]).await);
    }
    let status = cluster.members[at].stopped().await;
    assert!(!status.success(), "it ends as a failure");
}

/// What an operator does about a damaged database: see docs/operations.md.
async fn refill(cluster: &mut Cluster, at: usize, times: usize) {
    let member = &mut cluster.members[at];
    fs::write(member.data_dir().join("refill"), "damaged").expect("the wish");
    member.start();
    said(&cluster.members[at], IN_PLACE, times).await;
}

fn others(cluster: &Cluster, but: usize) -> Vec<u16> {
    let mut ports = cluster.ports();
    ports.remove(but);
    ports
}

/// Asserts that the stopped member names the damage of its database at its start, and refills it while the others go on.
async fn is_refused_and_refilled(cluster: &mut Cluster, at: usize, kind: Damage, round: usize) {
    let refusal = cluster.members[at].refusal().await;
    let named = refusal.contains("revisions.redb is damaged");
    assert!(named, "{kind:?}: it says {refusal}");

    let ports = cluster.ports();
    let others = others(cluster, at);
    leader(&others).await;
    fill(&others, &format!("{round}/"), KEYS).await;
    refill(cluster, at, 1).await;
    same_history(&ports).await;
    has_all(ports[at], round + 1).await;
}

#[tokio::test]
async fn damage_in_the_database_of_a_running_member_stops_it_and_it_is_refilled() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        // The cache is so small that reads go to the disk.
        member.set("QUORATE_STORAGE_DATABASE_CACHE_BYTES", "1048576");
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    fill(&ports, "0/", KEYS).await;
    for (round, kind) in [(1, Damage::Bit), (2, Damage::End)] {
        let at = (leader(&ports).await + round) % 3;
        let folder = cluster.members[at].data_dir();
        let file = mark(&ports, || vec![folder.join(DATABASE)]).await;
        fill(&ports, "pad/", 20_000).await;
        stops_when_it_reads(&mut cluster, at, &file, kind).await;
        let log = cluster.members[at].log();
        assert!(log.contains("revisions.redb is damaged"), "{kind:?}: {log}");
        is_refused_and_refilled(&mut cluster, at, kind, round).await;
        fs::remove_file(folder.join(format!("{DATABASE}.aside"))).expect("the old one is there");
    }
}

#[tokio::test]
async fn damage_in_the_database_of_a_stopped_member_is_named_at_its_start_and_it_is_refilled() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    leader(&ports).await;
    fill(&ports, "0/", KEYS).await;
    for (round, kind) in [(1, Damage::Bit), (2, Damage::End)] {
        let at = (leader(&ports).await + round) % 3;
        let folder = cluster.members[at].data_dir();
        let file = mark(&ports, || vec![folder.join(DATABASE)]).await;
        // Damage in the newest commit alone does no harm: the commit before it and the log have all data.
        fill(&ports, "pad/", 5_000).await;
        cluster.members[at].kill().await;
        damage(&file, kind);
        is_refused_and_refilled(&mut cluster, at, kind, round).await;
    }
}

/// A member whose log is damaged is not refilled: the log has its votes and acknowledgements. A new member replaces it.
async fn is_replaced(kind: Damage, while_it_runs: bool) {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    leader(&ports).await;
    fill(&ports, "0/", KEYS).await;
    let at = (leader(&ports).await + 1) % 3;
    let name = cluster.members[at].name.clone();
    let own_id = id(&ports, &name).await;
    let folder = cluster.members[at].data_dir();
    let file = mark(&ports, || log_files(&folder)).await;
    if while_it_runs {
        damage(&file, kind);
        fill(&ports, "1/", KEYS).await;
        cluster.members[at].kill().await;
    } else {
        cluster.members[at].kill().await;
        damage(&file, kind);
        fill(&others(&cluster, at), "1/", KEYS).await;
    }
    let refusal = cluster.members[at].refusal().await;
    let segment = file.file_name().expect("a name").to_string_lossy();
    for said in [&*segment, "is damaged at byte", "add it anew"] {
        assert!(refusal.contains(said), "{kind:?}, {said:?}: {refusal}");
    }

    let others = others(&cluster, at);
    eventually(&others, &["member", "remove", &own_id], |_| true).await;
    join(&mut cluster, "n4", &others, &[]).await;
    let mut now = others.clone();
    now.push(cluster.ports()[3]);
    same_history(&now).await;
    has_all(now[2], 2).await;
}

#[tokio::test]
async fn a_bit_flipped_in_the_log_of_a_running_member_is_named_and_it_is_replaced() {
    is_replaced(Damage::Bit, true).await;
}

#[tokio::test]
async fn a_bit_flipped_in_the_last_entry_of_a_stopped_member_s_log_is_named_and_it_is_replaced() {
    is_replaced(Damage::Bit, false).await;
}

#[tokio::test]
async fn a_log_that_loses_its_end_while_its_member_runs_is_named_and_it_is_replaced() {
    is_replaced(Damage::End, true).await;
}

#[tokio::test]
async fn a_log_that_lost_its_end_is_named_and_its_member_replaced() {
    is_replaced(Damage::End, false).await;
}
