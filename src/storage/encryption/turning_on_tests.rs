//! Turning encryption on: on the real log and the real database, on a simulated disk.

use super::{
    EncryptedDisk, EncryptionError, KEYRING, TurnedOn,
    pages::encrypted_bytes,
    require_plain,
    sealer::Algorithm,
    testing,
    tests::{
        DATABASE, OPEN, check, end, entry, leaks, log, names, open_db, open_wal, shared, write,
    },
};
use crate::{
    storage::{
        db::{Db, DbError, DbOptions},
        disk::{Disk, DiskFile, OpenMode},
        refill,
        sim_disk::{Fault, SimDisk},
        wal::Append,
    },
    types::{Entry, LogIndex},
};
use std::{cell::RefCell, io, sync::Arc};

const ASIDE: &str = "db/revisions.redb.aside";
const CREATE: OpenMode = OpenMode {
    create: true,
    ..OPEN
};

/// A directory without encryption, all of it durable.
fn plain(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    write(&shared(&disk), 1..=8);
    for dir in ["", "db", "wal"] {
        disk.sync_dir(dir).unwrap();
    }
    disk
}

fn put(disk: &SimDisk, name: &str, bytes: &[u8]) {
    disk.open(name, CREATE).unwrap().write_at(0, bytes).unwrap();
}

fn open(disk: &SimDisk) -> Result<(Arc<EncryptedDisk>, TurnedOn), EncryptionError> {
    testing::try_open(shared(disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm)
}

/// A start without encryption goes on, after what the error of a start has asked for.
fn check_plain(disk: &SimDisk, step: u64) {
    match require_plain(disk) {
        Ok(()) => {}
        Err(EncryptionError::NothingEncrypted) => disk.remove(KEYRING).unwrap(),
        Err(error) => panic!("operation {step}: {error}"),
    }
    require_plain(disk).unwrap();
    check(&shared(disk), 8);
}

#[test]
fn turning_encryption_on_encrypts_the_database_and_ages_the_log_out() {
    let disk = SimDisk::new(1);
    write(&shared(&disk), 1..=20);
    let aside = "db/revisions.redb.aside";
    let mode = OpenMode {
        create: true,
        ..OPEN
    };
    let bytes = disk.contents(DATABASE).unwrap();
    disk.open(aside, mode).unwrap().write_at(0, &bytes).unwrap();
    let (opened, turned_on) =
        testing::try_open(shared(&disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm).unwrap();
    let expected = TurnedOn {
        databases: 2,
        bytes: 2 * bytes.len() as u64,
    };
    assert_eq!(turned_on, expected);
    let opened: Arc<dyn Disk> = opened;
    let left = leaks(&disk);
    assert!(left.iter().all(|name| name.starts_with("wal/")), "{left:?}");
    check(&opened, 20);
    write(&opened, 21..=60);
    check(&opened, 60);
    let (mut wal, _) = open_wal(&opened).unwrap();
    assert!(wal.plain_segments() > 0, "the log from before is there");
    wal.release(LogIndex(40)).unwrap();
    assert_eq!(wal.plain_segments(), 0);
    assert_eq!(
        leaks(&disk),
        Vec::<String>::new(),
        "released segments are removed"
    );
    drop((wal, opened));
    let again = testing::try_open(shared(&disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm);
    assert_eq!(again.unwrap().1, TurnedOn::default());
}

#[test]
fn turning_encryption_on_can_be_cut_short_anywhere() {
    for (step, seed) in (1..).flat_map(|step| (0..8).map(move |seed| (step, seed))) {
        let disk = SimDisk::new(seed);
        write(&shared(&disk), 1..=8);
        for dir in ["", "db", "wal"] {
            disk.sync_dir(dir).unwrap();
        }
        let before = disk.operations();
        disk.fail_nth(step, Fault::Death);
        let opened =
            testing::try_open(shared(&disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm);
        let failed = disk.operations() - before >= step;
        assert_eq!(opened.is_err(), failed, "operation {step}");
        drop(opened);
        end(&disk, seed);
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        check(&opened, 8);
        assert!(
            !leaks(&disk).iter().any(|name| name.starts_with("db")),
            "operation {step}"
        );
        write(&opened, 9..=9);
        // Keyring and database were used, so their names have to be durable.
        disk.crash();
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        check(&opened, 9);
        if !failed {
            return;
        }
    }
}

/// The log began in the segment that is encrypted, behind one without a batch: the next start cut that batch off, and the one
/// after a further batch called the log damaged.
#[test]
fn turning_encryption_on_while_the_log_holds_no_batch_loses_nothing() {
    for (step, seed) in (1..).flat_map(|step| (0..8).map(move |seed| (step, seed))) {
        let disk = SimDisk::new(seed);
        drop((open_db(&disk), open_wal(&shared(&disk)).unwrap()));
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        let (mut wal, _) = open_wal(&opened).unwrap();
        let before = disk.operations();
        disk.fail_nth(step, Fault::Death);
        let mut durable = 0;
        for index in 1..=3 {
            let append = Append {
                entries: &[entry(index)],
                ..Append::default()
            };
            if wal.append(&append).and_then(|()| wal.flush()).is_err() {
                break;
            }
            durable = index;
        }
        let failed = disk.operations() - before >= step;
        drop((wal, opened));
        end(&disk, seed);
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        let (mut wal, recovered) = open_wal(&opened).unwrap();
        let last = recovered.last.0;
        assert!(durable <= last && last <= durable + 1, "operation {step}");
        log(&mut wal, last + 1..=4);
        drop((wal, opened));
        disk.crash();
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        let expected: Vec<Entry> = (1..=4).map(entry).collect();
        assert_eq!(
            open_wal(&opened).unwrap().1.entries,
            expected,
            "operation {step}"
        );
        if !failed {
            assert!(
                step > 8,
                "a new segment and three batches have several operations"
            );
            return;
        }
    }
}

/// The keyring stayed: with the key there was no room, and without it the start was refused.
#[test]
fn where_no_space_is_left_a_start_without_encryption_goes_on() {
    for step in 1.. {
        let disk = plain(step);
        let before = disk.operations();
        disk.fail_nth(step, Fault::NoSpace);
        let opened = open(&disk);
        if disk.operations() - before < step {
            assert!(step > 8, "turning it on has several operations, not {step}");
            return;
        }
        let error = opened.unwrap_err();
        let left = names(&disk);
        let encrypted = disk.contents(DATABASE).unwrap().starts_with(b"QUORPAGE");
        assert!(
            !left.iter().any(|name| name.ends_with(".encrypting")),
            "operation {step}: {left:?}"
        );
        assert_eq!(
            left.contains(&KEYRING.to_owned()),
            encrypted,
            "operation {step}: {left:?}"
        );
        assert!(
            matches!(error, EncryptionError::NoSpace { .. }) || step == 1,
            "operation {step}: {error}"
        );
        end(&disk, step);
        if encrypted && disk.contents(DATABASE).unwrap().starts_with(b"QUORPAGE") {
            let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
            check(&opened, 8);
        } else {
            check_plain(&disk, step);
        }
    }
}

#[test]
fn too_little_room_is_found_before_anything_is_written() {
    let disk = plain(1);
    let bytes = disk.contents(DATABASE).unwrap();
    put(&disk, ASIDE, &bytes);
    let len = bytes.len() as u64;
    let needed = 2 * encrypted_bytes(len) - len;
    disk.say_free(needed - 1);
    let before = names(&disk);
    let error = open(&disk).unwrap_err();
    let (found, text) = (format!("{needed} bytes have to be free"), error.to_string());
    assert!(text.contains(&found), "{text}");
    assert!(text.contains(&format!("{} are", needed - 1)), "{text}");
    assert_eq!(names(&disk), before);
    check_plain(&disk, 0);
    disk.say_free(needed);
    assert_eq!(open(&disk).unwrap().1.databases, 2);
}

#[test]
fn what_interrupted_transfers_left_is_removed_and_not_encrypted() {
    let disk = plain(1);
    let bytes = disk.contents(DATABASE).unwrap();
    let leftovers = ["incoming", "new", "encrypting", "incoming.encrypting"];
    for end in leftovers {
        put(&disk, &format!("{DATABASE}.{end}"), &bytes);
    }
    disk.say_free(encrypted_bytes(bytes.len() as u64));
    assert_eq!(open(&disk).unwrap().1.databases, 1);
    let left = names(&disk);
    let left: Vec<_> = left.iter().filter(|name| name.contains("redb")).collect();
    assert_eq!(left, [DATABASE]);
}

/// Who begins it follows it, and stops it at each part of it; and the process ends while what was made is removed.
#[test]
fn it_can_be_stopped_between_any_two_parts() {
    let whole = SimDisk::new(1);
    write(&shared(&whole), 1..=8);
    let size = whole.contents(DATABASE).unwrap().len();
    for parts in 0..=size.div_ceil(1024 * 1024) {
        for step in 1.. {
            let disk = plain(step);
            let reports = RefCell::new(Vec::new());
            let watch = |done, total| {
                reports.borrow_mut().push((done, total));
                if reports.borrow().len() > parts {
                    disk.fail_nth(step, Fault::Death);
                    return false;
                }
                true
            };
            let (key, way) = (testing::wrapping(&[1]), Algorithm::Aes256Gcm);
            let opened = EncryptedDisk::open(shared(&disk), key, way, &watch);
            let reports = reports.take();
            assert!(reports.is_sorted());
            assert!(reports.iter().all(|(_, total)| *total == size as u64));
            if reports.len() <= parts {
                assert!(opened.is_ok());
                break;
            }
            assert!(matches!(opened, Err(EncryptionError::Stopped)));
            let finished = !disk.is_dead();
            if finished {
                let left = names(&disk);
                assert!(!left.iter().any(|name| name == KEYRING), "{left:?}");
                assert!(
                    !left.iter().any(|name| name.ends_with("encrypting")),
                    "{left:?}"
                );
            }
            end(&disk, step);
            let copy = super::tests::copy(&disk);
            check_plain(&copy, step);
            let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
            check(&opened, 8);
            if finished {
                assert!(step > 3, "removing has several operations, not {step}");
                break;
            }
        }
    }
}

#[test]
fn what_was_cut_short_can_be_read_to_make_a_new_cluster_of_it() {
    let disk = plain(1);
    let (key, way) = (testing::wrapping(&[1]), Algorithm::Aes256Gcm);
    let watch = |_, _| {
        disk.fail_nth(1, Fault::Death);
        false
    };
    EncryptedDisk::open(shared(&disk), key.clone(), way, &watch).unwrap_err();
    disk.kill_process();
    let bytes = disk.contents(DATABASE).unwrap();
    let from = EncryptedDisk::open_to_read(shared(&disk), key).unwrap();
    let file = from.open(DATABASE, OPEN).unwrap();
    let mut found = vec![0; bytes.len()];
    file.read_at(0, &mut found).unwrap();
    assert_eq!(found, bytes);
}

/// A disk one of whose files cannot be read from some byte on.
#[derive(Debug)]
struct Bad {
    disk: SimDisk,
    name: &'static str,
    from: u64,
}

#[derive(Debug)]
struct BadFile(Arc<dyn DiskFile>, u64);

impl Disk for Bad {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(name, mode)?;
        if name == self.name {
            return Ok(Arc::new(BadFile(file, self.from)));
        }
        Ok(file)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
}

impl DiskFile for BadFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.1 {
            return Err(io::Error::other("a bad sector"));
        }
        self.0.read_at(offset, out)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}

#[test]
fn a_database_that_cannot_be_read_and_is_not_needed_does_not_stop_a_start() {
    for from in [0, 5_000] {
        for (name, asked, good) in [
            (ASIDE, false, true),
            (DATABASE, false, false),
            (DATABASE, true, true),
        ] {
            let disk = plain(1);
            let bytes = disk.contents(DATABASE).unwrap();
            put(&disk, ASIDE, &bytes);
            if asked {
                refill::request(&disk, "it is damaged").unwrap();
            }
            let disk = disk.clone();
            let bad: Arc<dyn Disk> = Arc::new(Bad {
                disk: disk.clone(),
                name,
                from,
            });
            let (key, way) = (testing::wrapping(&[1]), Algorithm::Aes256Gcm);
            assert_eq!(require_plain(&*bad).is_ok(), good || from > 0);
            let opened = testing::try_open(bad, key, way);
            assert!(!names(&disk).iter().any(|name| name.ends_with("encrypting")));
            if !good {
                let error = opened.unwrap_err();
                let refused =
                    matches!(&error, EncryptionError::Unreadable { file, .. } if file == name);
                assert!(refused, "{error}");
                // The other one may have been encrypted before.
                continue;
            }
            let (opened, turned_on) = opened.unwrap();
            assert_eq!(turned_on.databases, 1, "{name} from {from}");
            assert!(
                opened.open(name, OPEN).is_err(),
                "it is not taken for an encrypted one"
            );
            assert_eq!(disk.contents(name).unwrap(), bytes);
        }
    }
}

/// It was refused with "only whole pages are encrypted".
#[test]
fn a_database_that_was_cut_off_is_called_damaged() {
    for len in [20, 5_000, 50_000] {
        let disk = plain(1);
        assert!(disk.cut(DATABASE, len));
        let opened: Arc<dyn Disk> = open(&disk).unwrap().0;
        let owner = super::tests::OWNER;
        let found = Db::open(&*opened, DATABASE, DbOptions::default(), owner);
        assert!(
            matches!(found, Err(DbError::Damaged { .. })),
            "{len}: {found:?}"
        );
    }
}
