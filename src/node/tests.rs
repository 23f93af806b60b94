//! Each change of a data directory, cut short at each operation of the disk: the next start completes it, or refuses the
//! directory and leaves it as it is. And the sets of files that no step leaves, each refused by name.

use super::{
    at_rest,
    data_directory::{self, Contents, LOG, PUT_ASIDE, UNFINISHED_RECOVERY},
    error::StartError,
    progress::Progress,
    quorum_recovery::recover_into,
    startup::{self, OpenMember},
};
use crate::{
    LocalNode, Node,
    actors::{fail_stop::FailStop, load},
    clock,
    config::{Config, EncryptionKey, HostPort, InitialMember, PeerTls},
    kv::command::{Put, RangeQuery},
    storage::{
        db::{Db, DbOptions},
        disk::{Disk, DiskFile, OpenMode},
        encryption::{EncryptedDisk, KEYRING, testing},
        member,
        real_disk::RealDisk,
        refill,
        sim_disk::{Fault, SimDisk},
        starts,
        wal::Append,
    },
    types::{Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, Term},
};
use bytes::Bytes;
use std::{
    io,
    sync::{Arc, Mutex, mpsc},
};

/// Keys that the member under test has.
const KEYS: i64 = 20;

fn alone() -> Config {
    let mut config = Config::default();
    config.storage.wal_segment_bytes = 1 << 20;
    if testing::is_on() {
        let key = format!("echo {}", "09".repeat(32));
        config.encryption.key = Some(EncryptionKey::Command(key));
    }
    config
}

/// One of two members, so that it could be refilled.
fn one_of_two() -> Config {
    let mut config = alone();
    let host = |n| HostPort {
        host: format!("n{n}"),
        port: 2380,
    };
    config.name = "n1".to_owned();
    config.peer.tls = PeerTls::Insecure;
    config.peer.advertise = Some(host(1));
    config.cluster.initial = [1, 2]
        .map(|n| InitialMember {
            name: format!("n{n}"),
            peer: host(n),
        })
        .into();
    config
}

fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// The disks of a quorum recovery.
fn pair(old: &SimDisk, new: &SimDisk) -> (Arc<dyn Disk>, Arc<dyn Disk>) {
    if !testing::is_on() {
        return (shared(old), shared(new));
    }
    let old = EncryptedDisk::open_to_read(shared(old), testing::wrapping(&[9])).unwrap();
    let new = old.sibling(shared(new));
    (old, new)
}

/// Starts the member, as far as its actors.
fn open(config: &Config, disk: &SimDisk) -> Result<OpenMember, StartError> {
    let (disk, _) = at_rest::open(config, at_rest::Keys::read(config)?, shared(disk))?;
    let plan = startup::plan_alone(config, &disk)?;
    startup::open(config, &disk, plan)
}

/// A disk with the data of a stopped member.
fn with_history() -> SimDisk {
    let disk = SimDisk::new(1);
    let shared = shared(&disk);
    clock::paused_system().block_on(async move {
        let fail_stop = FailStop::new(|reason| panic!("{reason}"));
        let node = LocalNode::start(&alone(), &shared, &fail_stop).unwrap();
        for n in 0..KEYS {
            let put = Put {
                key: format!("k{n}").into(),
                value: "v".into(),
                ..Put::default()
            };
            node.requests().put(put).await.unwrap();
        }
        node.stop().await;
    });
    disk.kill_process();
    disk
}

/// How many keys a member serves that starts on the disk.
fn keys_served(disk: &SimDisk) -> i64 {
    let shared = shared(disk);
    clock::paused_system().block_on(async move {
        let fail_stop = FailStop::new(|reason| panic!("{reason}"));
        let node = LocalNode::start(&alone(), &shared, &fail_stop).unwrap();
        let all = RangeQuery {
            key: "k".into(),
            range_end: "l".into(),
            count_only: true,
            ..RangeQuery::default()
        };
        node.requests().range(all).await.unwrap().count
    })
}

/// The process ends, or the machine loses power: by turns.
fn crash(disk: &SimDisk, turn: u64) {
    if turn.is_multiple_of(2) {
        disk.crash();
    } else {
        disk.kill_process();
    }
}

#[test]
fn a_first_start_that_is_cut_short_anywhere_is_done_again() {
    let whole = open(&alone(), &SimDisk::new(1)).unwrap().owner;
    for step in 1.. {
        let disk = SimDisk::new(step);
        disk.fail_nth(step, Fault::Io);
        drop(open(&alone(), &disk));
        if disk.operations() < step {
            assert!(step > 20, "a first start has many operations, not {step}");
            return;
        }
        crash(&disk, step);
        let again = open(&alone(), &disk)
            .unwrap_or_else(|error| panic!("operation {step}: the next start fails: {error}"));
        assert_eq!(again.owner, whole, "operation {step}");
        drop(again);
        disk.crash();
        let found = data_directory::inspect(&disk).unwrap();
        assert!(
            matches!(found, Contents::Member(member) if member == whole),
            "operation {step}: it is durable"
        );
    }
}

#[test]
fn a_first_start_that_was_cut_short_leaves_nothing_to_a_corrected_one() {
    let mut corrected = Config {
        name: "other".to_owned(),
        ..alone()
    };
    if testing::is_on() {
        let key = format!("echo {}", "0a".repeat(32));
        corrected.encryption.key = Some(EncryptionKey::Command(key));
    }
    for step in (2..).step_by(3) {
        let disk = SimDisk::new(step);
        disk.fail_nth(step, Fault::Io);
        if open(&alone(), &disk).is_ok() {
            return;
        }
        crash(&disk, step);
        if matches!(data_directory::inspect(&disk), Ok(Contents::Member(_))) {
            continue;
        }
        let formed = open(&corrected, &disk)
            .unwrap_or_else(|error| panic!("operation {step}: the corrected start fails: {error}"));
        assert_eq!(formed.owner.name, "other");
    }
}

#[test]
fn a_quorum_recovery_that_is_cut_short_anywhere_is_refused_or_complete() {
    let old = with_history();
    let Contents::Member(owner) = data_directory::inspect(&old).unwrap() else {
        panic!("the old directory is complete")
    };
    for step in 1.. {
        let new = SimDisk::new(step);
        new.fail_nth(step, Fault::Io);
        let (from, into) = pair(&old, &new);
        let done = recover_into(&*from, owner.clone(), &into, "recover A B").is_ok();
        crash(&new, step);
        let refused = match data_directory::inspect(&new) {
            Err(error) => error.to_string(),
            Ok(Contents::Member(member)) => {
                assert_ne!(
                    member.identity.cluster, owner.identity.cluster,
                    "operation {step}"
                );
                assert_eq!(keys_served(&new), KEYS, "operation {step}");
                if done {
                    return;
                }
                continue;
            }
            Ok(Contents::New) => {
                let names = new.list("").unwrap();
                let marked = names.iter().any(|name| name == UNFINISHED_RECOVERY);
                assert!(!marked, "operation {step}: nothing was made yet: {names:?}");
                assert!(!done, "a recovery that succeeds is durable: {names:?}");
                continue;
            }
        };
        assert!(!done, "a recovery that succeeds is complete: {refused}");
        assert!(
            refused.contains("run that command again"),
            "operation {step}: {refused}"
        );
        let start = open(&alone(), &new).map(|open| open.owner);
        assert!(start.is_err(), "operation {step}: it starts: {start:?}");
    }
}

/// A member with a log, whose database is to be put aside.
fn to_be_refilled() -> SimDisk {
    let disk = SimDisk::new(1);
    let mut opened = open(&one_of_two(), &disk).unwrap();
    let entry = Entry {
        term: Term(1),
        index: LogIndex(1),
        kind: EntryKind::Noop,
        data: Bytes::new(),
    };
    let hard_state = HardState {
        term: Term(1),
        vote: None,
        commit: LogIndex(1),
    };
    let append = Append {
        snapshot: None,
        hard_state: Some(hard_state),
        entries: &[entry],
    };
    opened.wal.append(&append).unwrap();
    opened.wal.flush().unwrap();
    drop(opened);
    refill::request(&disk, "a test").unwrap();
    disk
}

#[test]
fn a_refill_that_is_cut_short_anywhere_goes_on_and_keeps_the_old_database() {
    for step in 1.. {
        let disk = to_be_refilled();
        let identity = member::read(&disk).unwrap().unwrap().identity;
        let before = disk.operations();
        disk.fail_nth(step, Fault::Io);
        drop(open(&one_of_two(), &disk));
        let failed = disk.operations() - before >= step;
        for turn in step..step + 2 {
            crash(&disk, turn);
            let again = open(&one_of_two(), &disk)
                .unwrap_or_else(|error| panic!("operation {step}: the next start fails: {error}"));
            assert!(again.awaits_snapshot, "operation {step}");
            assert_eq!(again.known_members.iter().count(), 2, "operation {step}");
        }
        let config = one_of_two();
        let keys = at_rest::Keys::read(&config).unwrap();
        let (opened, _) = at_rest::open(&config, keys, shared(&disk)).unwrap();
        let kept = Db::open(&*opened, PUT_ASIDE, DbOptions::default(), identity).unwrap();
        let members = load::membership(&kept).unwrap();
        assert!(members.is_some(), "operation {step}: the old one is kept");
        assert!(refill::requested(&disk).unwrap().is_none(), "it is granted");
        if !failed {
            return;
        }
    }
}

/// The log said `remove this member`, until it held an entry after the snapshot and the commit index that is stored with it.
#[test]
fn a_member_whose_log_has_just_begun_after_a_snapshot_can_be_refilled_again() {
    let disk = to_be_refilled();
    let mut opened = open(&one_of_two(), &disk).unwrap();
    let snapshot = LogPosition::new(Term(2), LogIndex(7));
    let append = Append {
        snapshot: Some(snapshot),
        ..Append::default()
    };
    opened.wal.append(&append).unwrap();
    opened.wal.flush().unwrap();
    drop(opened);
    refill::request(&disk, "once more").unwrap();
    for turn in 0..2 {
        let again = open(&one_of_two(), &disk)
            .unwrap_or_else(|error| panic!("start {turn} after the snapshot fails: {error}"));
        assert!(again.awaits_snapshot, "start {turn}");
        assert_eq!(again.raft.last(), snapshot, "start {turn}");
        assert_eq!(again.raft.commit(), snapshot.index, "start {turn}");
    }
}

/// The process ended between the rename of `starts` and its sync. The next one read the new file and answered from it, and a loss
/// of power brought the old one back.
#[test]
fn what_a_start_has_read_in_a_small_file_outlives_a_loss_of_power() {
    for (step, seed) in (1..).flat_map(|step| (0..8).map(move |seed| (step, seed))) {
        let disk = SimDisk::new(seed);
        let mut new = open(&one_of_two(), &disk).unwrap().starts;
        new.recorded.insert(MemberId(77));
        disk.fail_nth(step, Fault::Death);
        let written = starts::write(&shared(&disk), &new).is_ok();
        disk.kill_process();
        let read = open(&one_of_two(), &disk).unwrap().starts;
        disk.crash();
        assert_eq!(starts::read(&disk).unwrap(), read, "operation {step}");
        if written {
            assert!(step > 5, "a write has several operations, not {step}");
            return;
        }
    }
}

/// The key was replaced while a first start waited for other members. What it wrote was wrapped by the old key.
#[test]
fn a_first_start_wraps_with_the_key_that_is_there_when_it_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config {
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    let (old, new) = ("01".repeat(32), "02".repeat(32));
    let looked = dir.path().join("looked");
    // Another key from the second look on.
    let command = format!(
        "mkdir {} 2>/dev/null && echo {old} || echo {new}",
        looked.display()
    );
    config.encryption.key = Some(EncryptionKey::Command(command));
    let node = Node::start(&config).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(node.stop());
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.data_dir).unwrap());
    EncryptedDisk::open_to_read(disk, testing::wrapping(&[2])).unwrap();
}

/// A disk that waits for a sign before it makes, or renames, the file of a database that is being encrypted.
#[derive(Debug)]
struct Gated {
    disk: SimDisk,
    at_rename: bool,
    reached: mpsc::Sender<()>,
    open: Mutex<mpsc::Receiver<()>>,
}

impl Gated {
    fn pass(&self, name: &str, at_rename: bool) {
        if name.ends_with(".encrypting") && at_rename == self.at_rename {
            self.reached.send(()).unwrap_or_default();
            self.open.lock().unwrap().recv().unwrap();
        }
    }
}

impl Disk for Gated {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        self.pass(name, false);
        self.disk.open(name, mode)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.pass(from, true);
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

/// It once blocked the start's thread: signals were ignored and progress was not reported.
#[test]
fn encrypting_a_database_reports_itself_and_ends_with_the_start() {
    for ends_early in [true, false] {
        let disk = with_history();
        let (reached, is_there) = mpsc::channel();
        let (pass, open) = mpsc::channel();
        let gated: Arc<dyn Disk> = Arc::new(Gated {
            disk: disk.clone(),
            at_rename: !ends_early,
            reached,
            open: Mutex::new(open),
        });
        let mut config = alone();
        config.encryption.key = Some(EncryptionKey::Command(format!("echo {}", "09".repeat(32))));
        let keys = at_rest::Keys::read(&config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.unwrap();
        let progress = Progress::default();
        runtime.block_on(async {
            let mut said = progress.follow();
            let reports =
                said.wait_for(|said| said.starts_with("the database is being encrypted, "));
            let opening = at_rest::open_in_background(&config, keys, gated, &progress);
            tokio::pin!(opening);
            let there = async {
                if ends_early {
                    while is_there.try_recv().is_err() {
                        tokio::task::yield_now().await;
                    }
                } else {
                    drop(reports.await.unwrap());
                }
            };
            tokio::select! {
                _ = &mut opening => panic!("it waits for a sign"),
                () = there => {}
            }
            if !ends_early {
                pass.send(()).unwrap();
                opening.await.unwrap();
            }
        });
        // Nobody waits any more when it goes on.
        pass.send(()).unwrap_or_default();
        drop(runtime);
        let names = names(&disk);
        assert!(
            !names.iter().any(|name| name.ends_with(".encrypting")),
            "{names:?}"
        );
        let encrypted = names.iter().any(|name| name.ends_with(KEYRING));
        assert_eq!(encrypted, !ends_early, "{names:?}");
        if ends_early {
            assert_eq!(keys_served(&disk), KEYS);
        }
    }
}

#[track_caller]
fn refused(disk: &SimDisk, words: &[&str]) {
    // Twice: a refusal that made files would be accepted the second time.
    for turn in 0..2 {
        let before = names(disk);
        let error = match open(&alone(), disk) {
            Ok(open) => panic!("start {turn} accepts it as {:?}", open.owner),
            Err(error) => error.to_string(),
        };
        for word in words {
            assert!(error.contains(word), "start {turn}: {word} in {error}");
        }
        assert_eq!(before, names(disk), "a refusal changes nothing");
    }
}

fn names(disk: &SimDisk) -> Vec<String> {
    let dirs = ["", "db", "wal", "wal.before"];
    let all = dirs.iter().flat_map(|dir| {
        let names = disk.list(dir).unwrap().into_iter();
        names.map(move |name| format!("{dir}/{name}"))
    });
    all.collect()
}

fn remove_all(disk: &SimDisk, dir: &str) {
    for name in disk.list(dir).unwrap() {
        disk.remove(&format!("{dir}/{name}")).unwrap();
    }
}

#[test]
fn sets_of_files_that_no_step_leaves_are_refused_by_name() {
    let lost = "remove this member, delete its data directory and add it anew";
    let disk = with_history();
    disk.remove("member").unwrap();
    refused(
        &disk,
        &[
            "a database (db) and a log (wal)",
            "no file named member",
            lost,
        ],
    );
    remove_all(&disk, LOG);
    refused(&disk, &["holds a database (db), but no file named member"]);

    let disk = with_history();
    disk.remove("member").unwrap();
    remove_all(&disk, "db");
    refused(&disk, &["holds a log (wal), but no file named member"]);

    let disk = with_history();
    remove_all(&disk, "db");
    refused(&disk, &["its database is missing", lost]);
    remove_all(&disk, LOG);
    refused(&disk, &["its database is missing", lost]);

    let disk = with_history();
    remove_all(&disk, LOG);
    refused(&disk, &["its log is missing", lost]);

    // What a `quorate recover` of an earlier version left when it was killed.
    let disk = with_history();
    disk.remove("member").unwrap();
    for name in disk.list(LOG).unwrap() {
        disk.rename(&format!("{LOG}/{name}"), &format!("wal.before/{name}"))
            .unwrap();
    }
    refused(
        &disk,
        &["the copy of a log (wal.before)", "quorate recover"],
    );
}

#[test]
fn a_member_that_waits_for_a_snapshot_is_no_source_of_a_quorum_recovery() {
    let disk = to_be_refilled();
    drop(open(&one_of_two(), &disk).unwrap());
    let owner = member::read(&disk).unwrap().unwrap();
    let into = SimDisk::new(2);
    let error = recover_into(&disk, owner, &shared(&into), "recover").unwrap_err();
    assert!(
        error.to_string().contains("waits for a snapshot"),
        "{error}"
    );
}

#[test]
fn a_directory_of_another_program_is_refused_before_anything_is_written() {
    let refuses = |make: &dyn Fn(&std::path::Path), words: &str| {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        let before = count();
        let error = data_directory::require_own(dir.path()).unwrap_err();
        assert!(error.to_string().contains(words), "{words} in {error}");
        assert_eq!(count(), before, "it is left as it was");
    };
    let etcd = |dir: &std::path::Path| {
        std::fs::create_dir_all(dir.join("member/snap")).unwrap();
        std::fs::create_dir_all(dir.join("member/wal")).unwrap();
    };
    refuses(&etcd, "the data of an etcd member");
    let other = |dir: &std::path::Path| {
        std::fs::write(dir.join("notes.txt"), "mine").unwrap();
        std::fs::write(dir.join("table.db"), "mine").unwrap();
    };
    refuses(&other, "\"notes.txt\" and 1 other names");
    refuses(
        &|dir| std::fs::create_dir(dir.join("member")).unwrap(),
        "a directory named member",
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::write(dir.path().join("LOCK"), "").unwrap();
    data_directory::require_own(dir.path()).unwrap();
    data_directory::require_own(&dir.path().join("none")).unwrap();
}

/// The other member's database was encrypted, under a key that it does not have, before its name was compared.
#[test]
fn a_directory_of_another_member_is_refused_before_it_is_encrypted() {
    let disk = SimDisk::new(1);
    drop(open(&alone(), &disk).unwrap());
    let names = ["member", "db/revisions.redb"];
    let before = names.map(|name| disk.contents(name).unwrap());
    let mut other = Config {
        name: "other".to_owned(),
        ..alone()
    };
    let key = format!("echo {}", "0a".repeat(32));
    other.encryption.key = Some(EncryptionKey::Command(key));
    let refused = open(&other, &disk).map(|open| open.owner).unwrap_err();
    assert!(
        matches!(refused, StartError::OtherMember { .. }),
        "{refused}"
    );
    assert_eq!(names.map(|name| disk.contents(name).unwrap()), before);
    let top = disk.list("").unwrap();
    assert!(!top.iter().any(|name| name == KEYRING), "{top:?}");
}

#[test]
fn a_start_a_refill_or_a_recovery_of_an_encrypted_directory_that_is_cut_short_anywhere_is_done_again()
 {
    testing::encrypted(a_first_start_that_is_cut_short_anywhere_is_done_again);
    testing::encrypted(a_first_start_that_was_cut_short_leaves_nothing_to_a_corrected_one);
    testing::encrypted(a_quorum_recovery_that_is_cut_short_anywhere_is_refused_or_complete);
    testing::encrypted(a_refill_that_is_cut_short_anywhere_goes_on_and_keeps_the_old_database);
    testing::encrypted(sets_of_files_that_no_step_leaves_are_refused_by_name);
}
