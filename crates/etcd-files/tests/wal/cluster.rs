//! Logs of a real cluster: one with entries that were replaced, one with a snapshot that was received.

use crate::etcd::{Etcd, Member, Programs, members};
use quorate_etcd_files::wal::{DataDirectory, Snapshots, Wal, WalError};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Three members; those that run.
struct Cluster<'a> {
    programs: &'a Programs,
    arguments: &'a [&'a str],
    members: [Member; 3],
    running: [Option<Etcd<'a>>; 3],
    directory: TempDir,
}

impl<'a> Cluster<'a> {
    fn start(programs: &'a Programs, arguments: &'a [&'a str]) -> Self {
        let mut cluster = Self {
            programs,
            arguments,
            members: members(["one", "two", "three"]),
            running: [None, None, None],
            directory: tempfile::tempdir().unwrap(),
        };
        cluster.start_members(&[0, 1, 2]);
        cluster
    }

    fn start_members(&mut self, numbers: &[usize]) {
        let all = self.members.each_ref().map(Member::in_cluster).join(",");
        for number in numbers {
            let member = &self.members[*number];
            let data = self.data(*number);
            let etcd = self.programs.begin(member, &all, &data, self.arguments);
            self.running[*number] = Some(etcd);
        }
        for etcd in self.running.iter_mut().flatten() {
            etcd.wait_until_ready();
        }
    }

    fn data(&self, number: usize) -> PathBuf {
        self.directory.path().join(number.to_string())
    }

    fn member(&self, number: usize) -> &Etcd<'a> {
        self.running[number].as_ref().unwrap()
    }

    fn kill(&mut self, number: usize) {
        self.running[number].take().unwrap().kill();
    }

    /// The leader, and the others.
    fn roles(&self) -> (usize, [usize; 2]) {
        let is_leader = |number: &usize| {
            let status = self
                .member(*number)
                .ctl(&["endpoint", "status", "-w", "fields"]);
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name));
                line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
            };
            let leader = field("\"Leader\"");
            leader.is_some() && leader == field("\"MemberID\"")
        };
        let leader = (0..3).find(is_leader).unwrap();
        (leader, [(leader + 1) % 3, (leader + 2) % 3])
    }

    /// Reads all logs, which must agree.
    fn read(&self) -> [Log; 3] {
        let logs = [0, 1, 2].map(|number| Log::read(&self.data(number)));
        for log in &logs {
            for other in &logs {
                log.assert_agrees_with(other);
            }
        }
        logs
    }
}

/// The committed entries of a member: index, term and data.
struct Log {
    wal: Wal,
    entries: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Log {
    fn read(data: &Path) -> Self {
        let data = DataDirectory::look(data).unwrap();
        let wal = Wal::open(&data.wal).unwrap();
        let mut entries = BTreeMap::new();
        wal.committed_after(wal.first_index() - 1, |entry| {
            entries.insert(entry.index, (entry.term, entry.data.to_vec()));
            Ok::<_, WalError>(())
        })
        .unwrap();
        Self { wal, entries }
    }

    fn assert_agrees_with(&self, other: &Self) {
        for (index, entry) in &self.entries {
            if let Some(same) = other.entries.get(index) {
                assert_eq!(entry, same, "entry {index}");
            }
        }
    }

    fn has(&self, text: &str) -> bool {
        self.entries.values().any(|(_, data)| contains(data, text))
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

#[test]
fn entries_that_were_never_committed_are_replaced() {
    let Some(programs) = Programs::find("a log with replaced entries") else {
        return;
    };
    let mut cluster = Cluster::start(&programs, &[]);
    let (leader, [one, other]) = cluster.roles();
    cluster.member(leader).ctl(&["put", "key", "before"]);
    // The leader appends a request that no one else gets.
    cluster.kill(one);
    cluster.kill(other);
    let lost = cluster
        .member(leader)
        .try_ctl(&["put", "key", "never-committed"], b"", "500ms");
    assert!(lost.is_err(), "{lost:?}");
    cluster.kill(leader);
    cluster.start_members(&[one, other]);
    for number in 0..5 {
        cluster
            .member(one)
            .ctl(&["put", "key", &format!("after-{number}")]);
    }
    cluster.start_members(&[leader]);
    let value = cluster
        .member(leader)
        .ctl(&["get", "key", "--print-value-only"]);
    assert_eq!(value, "after-4\n");
    for number in [leader, one, other] {
        cluster.kill(number);
    }

    let old = &cluster.read()[leader];
    assert!(old.has("before") && old.has("after-3"), "{:?}", old.entries);
    assert!(!old.has("never-committed"), "{:?}", old.entries);
    let path = cluster.data(leader).join("member/wal");
    let file = path.join("0000000000000000-0000000000000000.wal");
    assert!(
        contains(&fs::read(file).unwrap(), "never-committed"),
        "it was in the log"
    );
}

#[test]
fn a_member_that_received_a_snapshot_has_a_log_from_there_on() {
    let Some(programs) = Programs::find("a log with a snapshot") else {
        return;
    };
    // It always keeps 5,000 entries for a member that lags behind.
    if programs.minor_version() < 5 {
        return;
    }
    let arguments = ["--snapshot-count", "20"];
    let mut cluster = Cluster::start(&programs, &arguments);
    let (leader, [behind, other]) = cluster.roles();
    cluster.kill(behind);
    for number in 0..250 {
        cluster
            .member(leader)
            .ctl(&["put", &format!("key{number}"), "value"]);
    }
    cluster.start_members(&[behind]);
    cluster.member(behind).ctl(&["put", "last", "value"]);
    for number in [leader, behind, other] {
        cluster.kill(number);
    }

    let logs = cluster.read();
    let [leader, behind_log] = [leader, behind].map(|number| &logs[number]);
    assert_eq!(leader.wal.first_index(), 1);
    let first = behind_log.wal.first_index();
    assert!(first > 100, "{:?}", behind_log.wal);
    let found = Snapshots::read(&cluster.data(behind).join("member/snap")).unwrap();
    assert_eq!(found.broken, []);
    let mut marks = found.whole.iter().map(|file| file.mark.index);
    assert!(marks.any(|index| index + 1 == first), "{found:?}");
    assert_eq!(found.newest_noted(&behind_log.wal), found.newest());
    assert_eq!(found.newest().unwrap().conf_state.voters.len(), 3);
}

#[test]
fn a_member_that_went_on_alone_has_a_log() {
    let Some(programs) = Programs::find("a log of --force-new-cluster") else {
        return;
    };
    let mut cluster = Cluster::start(&programs, &[]);
    // etcd: what the member did not know to be committed is discarded, so the first of these is kept.
    for value in ["before", "and", "later"] {
        cluster.member(0).ctl(&["put", "key", value]);
    }
    for number in 0..3 {
        cluster.kill(number);
    }
    let data = cluster.data(0);
    let member = &cluster.members[0];
    let arguments = ["--force-new-cluster"];
    let mut alone = programs.begin(member, &member.in_cluster(), &data, &arguments);
    alone.wait_until_ready();
    for number in 0..3 {
        alone.ctl(&["put", "key", &format!("alone-{number}")]);
    }
    alone.kill();
    let log = Log::read(&data);
    assert!(log.has("before") && log.has("alone-1"), "{:?}", log.entries);
}
