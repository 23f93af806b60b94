//! A directory with encryption: what is in its files, keys that are wrong or gone, copies that are continued, rotation. On the
//! real log and the real database, on a simulated disk.

use super::{EncryptedDisk, EncryptionError, KEYRING, require_plain, sealer::Algorithm, testing};
use crate::{
    storage::{
        db::{CommitBatch, Db, DbOptions},
        disk::{DIRECT_ALIGN, Disk, OpenMode},
        sim_disk::{Fault, SimDisk},
        wal::{Append, Recovered, Wal, WalError, WalOptions},
    },
    types::{
        ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId, Record, RecordKind,
        Rev, Revision, Term,
    },
};
use std::{collections::BTreeSet, sync::Arc};

pub(super) const DATABASE: &str = "db/revisions.redb";
const LOG: &str = "wal";
pub(super) const OWNER: Identity = Identity {
    cluster: ClusterId(7),
    member: MemberId(8),
};
/// What clients store: it must be in no file.
const SECRET: &str = "the-launch-code-is-0000";

pub(super) const OPEN: OpenMode = OpenMode {
    create: false,
    direct: false,
};

pub(super) fn shared(disk: &SimDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

fn wal_options() -> WalOptions {
    WalOptions {
        segment_bytes: 16 * DIRECT_ALIGN as u64,
        free_segments_max: 2,
        ..WalOptions::new(OWNER, 3)
    }
}

pub(super) fn open_wal(disk: &Arc<dyn Disk>) -> Result<(Wal, Recovered), WalError> {
    Wal::open(disk.clone(), LOG, wal_options(), LogIndex(0))
}

pub(super) fn open_db(disk: &dyn Disk) -> Db {
    Db::open(disk, DATABASE, DbOptions::default(), OWNER).unwrap()
}

fn text(index: u64) -> String {
    format!("{SECRET} {index} ").repeat(30)
}

pub(super) fn entry(index: u64) -> Entry {
    Entry {
        term: Term(1),
        index: LogIndex(index),
        kind: EntryKind::Command,
        data: text(index).into(),
    }
}

pub(super) fn log(wal: &mut Wal, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        let append = Append {
            entries: &[entry(index)],
            ..Append::default()
        };
        wal.append(&append).unwrap();
        wal.flush().unwrap();
    }
}

fn store(db: &mut Db, indexes: std::ops::RangeInclusive<u64>) {
    for index in indexes {
        let record = Record {
            rev: Rev::new(Revision(i64::try_from(index).unwrap() + 1), 0),
            kind: RecordKind::Put,
            kv: text(index).into(),
        };
        let batch = CommitBatch {
            records: vec![[record].into()],
            applied: LogPosition {
                index: LogIndex(index),
                term: Term(1),
            },
            meta: vec![("secret", Some(text(index).into_bytes()))],
            ..CommitBatch::default()
        };
        db.commit(&batch).unwrap();
    }
}

/// Writes to log and database of an encrypted directory, both of which are closed then.
pub(super) fn write(disk: &Arc<dyn Disk>, indexes: std::ops::RangeInclusive<u64>) {
    let mut db = open_db(&**disk);
    let (mut wal, _) = open_wal(disk).unwrap();
    log(&mut wal, indexes.clone());
    store(&mut db, indexes);
    wal.seal().unwrap();
}

/// Fails unless log and database hold all up to `last`.
pub(super) fn check(disk: &Arc<dyn Disk>, last: u64) {
    let (wal, recovered) = open_wal(disk).unwrap();
    let expected: Vec<Entry> = (1..=last).map(entry).collect();
    assert_eq!(recovered.entries, expected);
    assert_eq!(
        wal.reader().read(LogIndex(1), usize::MAX).unwrap(),
        expected
    );
    let db = open_db(&**disk);
    let mut found = Vec::new();
    db.load(|record| found.push(record.kv.to_vec())).unwrap();
    let expected: Vec<Vec<u8>> = (1..=last).map(|index| text(index).into_bytes()).collect();
    assert_eq!(found, expected);
}

pub(super) fn names(disk: &SimDisk) -> Vec<String> {
    let dirs = ["", "db/", "wal/"];
    let all = dirs.iter().flat_map(|dir| {
        let names = disk.list(dir.trim_end_matches('/')).unwrap();
        names.into_iter().map(move |name| format!("{dir}{name}"))
    });
    all.collect()
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// The files in which some part of the secret can be read.
pub(super) fn leaks(disk: &SimDisk) -> Vec<String> {
    let mut names = names(disk);
    names.retain(|name| contains(&disk.contents(name).unwrap(), &SECRET.as_bytes()[..12]));
    names
}

/// A copy of all files, as a backup has them.
pub(super) fn copy(disk: &SimDisk) -> SimDisk {
    let copy = SimDisk::new(99);
    let mode = OpenMode {
        create: true,
        ..OPEN
    };
    for name in names(disk) {
        let file = copy.open(&name, mode).unwrap();
        file.write_at(0, &disk.contents(&name).unwrap()).unwrap();
        file.sync_data().unwrap();
    }
    for dir in ["", "db", "wal"] {
        copy.sync_dir(dir).unwrap();
    }
    copy
}

#[test]
fn what_is_stored_is_found_again_and_in_no_file() {
    let plain = SimDisk::new(1);
    write(&shared(&plain), 1..=40);
    let found = leaks(&plain);
    assert!(found.iter().any(|name| name == DATABASE), "{found:?}");
    assert!(
        found.iter().any(|name| name.starts_with("wal/")),
        "{found:?}"
    );

    for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
        let disk = SimDisk::new(1);
        let open = || testing::try_open(shared(&disk), testing::wrapping(&[1]), algorithm);
        let opened: Arc<dyn Disk> = open().unwrap().0;
        assert!(
            names(&disk).is_empty(),
            "nothing is written before it is needed"
        );
        write(&opened, 1..=40);
        assert!(names(&disk).iter().any(|name| name == KEYRING));
        assert_eq!(leaks(&disk), Vec::<String>::new(), "{algorithm:?}");
        disk.crash();
        let opened: Arc<dyn Disk> = open().unwrap().0;
        check(&opened, 40);
        assert_eq!(leaks(&disk), Vec::<String>::new(), "{algorithm:?}");
    }
}

#[test]
fn a_wrong_or_missing_key_is_refused_by_name_and_changes_nothing() {
    let disk = SimDisk::new(1);
    let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
    write(&opened, 1..=5);
    drop(opened);
    let id = |fill| testing::wrapping(&[fill]).first().0.to_string();
    let before: Vec<_> = names(&disk)
        .iter()
        .map(|name| disk.contents(name))
        .collect();
    let wrong = testing::try_open(shared(&disk), testing::wrapping(&[2]), Algorithm::Aes256Gcm);
    let text = wrong.unwrap_err().to_string();
    assert!(text.contains(&format!("under the key {}", id(1))), "{text}");
    assert!(text.contains(&id(2)), "{text}");
    let off = require_plain(&disk).unwrap_err();
    assert!(
        off.to_string()
            .contains("encryption is off: set encryption.key_file"),
        "{off}"
    );
    let after: Vec<_> = names(&disk)
        .iter()
        .map(|name| disk.contents(name))
        .collect();
    assert_eq!(before, after);

    disk.remove(KEYRING).unwrap();
    for what in [DATABASE, "wal/0000000000000001.seg"] {
        let lost = testing::try_open(shared(&disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm);
        let text = lost.unwrap_err().to_string();
        assert!(
            text.contains("keyring of the data directory is missing"),
            "{text}"
        );
        assert!(text.contains(what), "{text}");
        let off = require_plain(&disk).unwrap_err();
        assert!(matches!(off, EncryptionError::NoKey { .. }), "{off}");
        if what == DATABASE {
            disk.remove(DATABASE).unwrap();
        }
    }
    require_plain(&SimDisk::new(1)).unwrap();
}

#[test]
fn files_of_other_names_are_not_opened() {
    let disk = SimDisk::new(1);
    let mode = OpenMode {
        create: true,
        ..OPEN
    };
    let segment: &[u8] = b"QUORWAL\0\x03\0\0\0";
    for (name, bytes) in [("db/notes", &b"QUORPAGE"[..]), ("wal/notes", segment)] {
        disk.open(name, mode).unwrap().write_at(0, bytes).unwrap();
        require_plain(&disk).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for (name, bytes) in [
        ("wal/0000000000000001.free", segment),
        ("db/revisions.redb.aside", b"QUORPAGE"),
    ] {
        disk.open(name, mode).unwrap().write_at(0, bytes).unwrap();
        let refused = require_plain(&disk).unwrap_err().to_string();
        assert!(refused.contains(name), "{refused}");
    }
}

#[test]
fn another_directory_s_files_are_damaged_here() {
    let (one, other) = (SimDisk::new(1), SimDisk::new(2));
    for disk in [&one, &other] {
        write(&(testing::open(shared(disk), &[1]) as Arc<dyn Disk>), 1..=3);
    }
    let segment = "wal/0000000000000001.seg";
    let bytes = other.contents(segment).unwrap();
    one.take_direct(false);
    one.open(segment, OPEN)
        .unwrap()
        .write_at(0, &bytes)
        .unwrap();
    let disk: Arc<dyn Disk> = testing::open(shared(&one), &[1]);
    let error = open_wal(&disk).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
    assert!(error.contains("cannot be decrypted"), "{error}");
}

#[test]
fn a_flipped_bit_in_the_keyring_is_found() {
    let disk = SimDisk::new(1);
    write(
        &(testing::open(shared(&disk), &[1]) as Arc<dyn Disk>),
        1..=3,
    );
    let sound = disk.contents(KEYRING).unwrap();
    let file = disk.open(KEYRING, OPEN).unwrap();
    for bit in (0..sound.len() * 8).step_by(7) {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        file.write_at(0, &bytes).unwrap();
        let opened =
            testing::try_open(shared(&disk), testing::wrapping(&[1]), Algorithm::Aes256Gcm);
        let text = opened.unwrap_err().to_string();
        assert!(
            text.starts_with("file keyring of the data directory is damaged"),
            "{text}"
        );
    }
}

/// The salts and counters of all seals in the pages and the log: each is in the file as 48 bytes that begin with a small key id,
/// so they are taken from where the formats have them.
fn nonces(disk: &SimDisk) -> BTreeSet<Vec<u8>> {
    let pages = disk.contents(DATABASE).unwrap();
    let pages = pages.chunks(4_608).skip(1).map(|page| page[..32].to_vec());
    let mut found: BTreeSet<Vec<u8>> = pages
        .filter(|seal| seal.iter().any(|byte| *byte != 0))
        .collect();
    for name in names(disk).iter().filter(|name| name.starts_with("wal/")) {
        let segment = disk.contents(name).unwrap();
        for block in segment.chunks(DIRECT_ALIGN).skip(1) {
            let encrypted = block.starts_with(b"QWB\x01") && block[4] & 8 != 0;
            if encrypted {
                found.insert(block[96..128].to_vec());
            }
        }
    }
    found
}

#[test]
fn a_copy_that_is_put_back_and_continued_uses_no_nonce_that_the_original_used() {
    let disk = SimDisk::new(1);
    write(
        &(testing::open(shared(&disk), &[1]) as Arc<dyn Disk>),
        1..=10,
    );
    let backup = copy(&disk);
    let before = nonces(&backup);
    assert!(before.len() > 10, "{}", before.len());
    // Both go on from the same bytes, with other texts.
    let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
    write(&opened, 11..=30);
    let restored: Arc<dyn Disk> = testing::open(shared(&backup), &[1]);
    write(&restored, 11..=25);
    check(&opened, 30);
    check(&restored, 25);
    let (original, copied) = (nonces(&disk), nonces(&backup));
    let original: BTreeSet<_> = original.difference(&before).collect();
    let copied: BTreeSet<_> = copied.difference(&before).collect();
    assert!(original.len() > 10 && copied.len() > 10, "both wrote");
    let both: Vec<_> = original.intersection(&copied).collect();
    assert!(both.is_empty(), "used twice: {both:?}");
    // What the one wrote cannot be moved into the other: the same place, the same data key, and other texts.
    let salts = |found: &BTreeSet<&Vec<u8>>| -> BTreeSet<Vec<u8>> {
        found.iter().map(|nonce| nonce[8..24].to_vec()).collect()
    };
    assert!(salts(&original).is_disjoint(&salts(&copied)));
}

#[test]
fn rotation_while_writing_loses_nothing_and_the_old_key_is_not_needed_any_more() {
    let disk = SimDisk::new(1);
    let opened = testing::open(shared(&disk), &[1]);
    let dynamic: Arc<dyn Disk> = opened.clone();
    let mut db = open_db(&*dynamic);
    let (mut wal, _) = open_wal(&dynamic).unwrap();
    let mut next = 1;
    for fill in 2..=6 {
        log(&mut wal, next..=next + 4);
        store(&mut db, next..=next + 4);
        next += 5;
        let wrapped = opened.wrapped_by();
        assert_eq!(
            opened.rotate(testing::wrapping(&[fill - 1, fill])).unwrap(),
            None
        );
        let id = opened.rotate(testing::wrapping(&[fill, fill - 1])).unwrap();
        assert_eq!(id, Some(opened.wrapped_by()));
        assert_ne!(Some(wrapped), id);
        assert_eq!(opened.rotate(testing::wrapping(&[fill])).unwrap(), None);
    }
    log(&mut wal, next..=next + 4);
    store(&mut db, next..=next + 4);
    drop((wal, db, dynamic, opened));
    disk.crash();
    let old = testing::try_open(
        shared(&disk),
        testing::wrapping(&[1, 5]),
        Algorithm::Aes256Gcm,
    );
    let old = old.unwrap_err().to_string();
    assert!(old.contains("is encrypted under the key"), "{old}");
    let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[6]);
    check(&opened, next + 4);
    let ids: BTreeSet<u8> = nonces(&disk).iter().map(|seal| seal[0]).collect();
    assert!(ids.contains(&6), "the newest data key encrypts: {ids:?}");
}

#[test]
fn a_start_with_another_first_key_or_algorithm_wraps_anew_and_makes_a_data_key() {
    let disk = SimDisk::new(1);
    write(
        &(testing::open(shared(&disk), &[1]) as Arc<dyn Disk>),
        1..=3,
    );
    write(
        &(testing::open(shared(&disk), &[2, 1]) as Arc<dyn Disk>),
        4..=6,
    );
    let wrapping = testing::wrapping(&[2]);
    let opened = testing::try_open(shared(&disk), wrapping, Algorithm::ChaCha20Poly1305);
    let opened: Arc<dyn Disk> = opened.unwrap().0;
    write(&opened, 7..=9);
    check(&opened, 9);
    let ids: BTreeSet<u8> = nonces(&disk).iter().map(|seal| seal[0]).collect();
    assert!(ids.is_superset(&[1, 2, 3].into()), "{ids:?}");
}

/// The machine loses power, or the process ends: by turns.
pub(super) fn end(disk: &SimDisk, turn: u64) {
    if turn.is_multiple_of(2) {
        disk.crash();
    } else {
        disk.kill_process();
    }
}

#[test]
fn a_rotation_that_is_cut_short_anywhere_leaves_a_directory_that_one_of_the_keys_opens() {
    for (step, seed) in (1..).flat_map(|step| (0..8).map(move |seed| (step, seed))) {
        let disk = SimDisk::new(seed);
        let opened = testing::open(shared(&disk), &[1]);
        write(&(opened.clone() as Arc<dyn Disk>), 1..=3);
        let before = disk.operations();
        disk.fail_nth(step, Fault::Death);
        let rotated = opened.rotate(testing::wrapping(&[2, 1]));
        if disk.operations() - before < step {
            assert!(step > 4, "a rotation has several operations, not {step}");
            return;
        }
        assert!(rotated.is_err(), "operation {step}");
        end(&disk, seed);
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[2, 1]);
        check(&opened, 3);
        write(&opened, 4..=4);
        // The keyring was used, so its name has to be durable.
        disk.crash();
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[2]);
        check(&opened, 4);
    }
}

#[test]
fn a_rotation_without_the_key_in_force_is_refused() {
    let disk = SimDisk::new(1);
    let opened = testing::open(shared(&disk), &[1]);
    write(&(opened.clone() as Arc<dyn Disk>), 1..=3);
    let before = disk.contents(KEYRING);
    let text = opened.rotate(testing::wrapping(&[2, 3])).unwrap_err();
    let text = text.to_string();
    for fill in [1, 2, 3] {
        let id = testing::wrapping(&[fill]).first().0.to_string();
        assert!(text.contains(&id), "{text}");
    }
    assert_eq!(disk.contents(KEYRING), before, "nothing was written");
    assert!(opened.rotate(testing::wrapping(&[2, 1])).unwrap().is_some());
}

/// A rotation failed after the rename, and the operator put the old key back: the keyring stayed wrapped by the new one.
#[test]
fn after_a_rotation_that_failed_the_key_that_is_given_then_is_the_one_that_opens() {
    for step in 1.. {
        let disk = SimDisk::new(step);
        let opened = testing::open(shared(&disk), &[1]);
        write(&(opened.clone() as Arc<dyn Disk>), 1..=3);
        let before = disk.operations();
        disk.fail_nth(step, Fault::Io);
        let rotated = opened.rotate(testing::wrapping(&[2, 1]));
        if disk.operations() - before < step {
            assert!(step > 4, "a rotation has several operations, not {step}");
            return;
        }
        assert!(rotated.is_err(), "operation {step}");
        opened.rotate(testing::wrapping(&[1])).unwrap();
        assert_eq!(opened.rotate(testing::wrapping(&[1])).unwrap(), None);
        write(&(opened.clone() as Arc<dyn Disk>), 4..=4);
        disk.kill_process();
        let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[1]);
        check(&opened, 4);
    }
}

#[test]
fn data_keys_are_bounded_and_rotation_goes_on_without_new_ones() {
    let disk = SimDisk::new(1);
    let opened = testing::open(shared(&disk), &[1]);
    opened.sealer().unwrap();
    for turn in 0..300_u32 {
        let fill = u8::try_from(turn % 2).unwrap() + 2;
        opened
            .rotate(testing::wrapping(&[fill, 5 - fill, 1]))
            .unwrap();
    }
    drop(opened);
    let size = disk.contents(KEYRING).unwrap().len();
    assert_eq!(size, 16 + 256 * 80 + 4);
    let opened: Arc<dyn Disk> = testing::open(shared(&disk), &[3]);
    write(&opened, 1..=3);
    check(&opened, 3);
}

#[test]
fn a_sibling_reads_what_was_copied_to_it() {
    let (old, new) = (SimDisk::new(1), SimDisk::new(2));
    write(
        &(testing::open(shared(&old), &[1]) as Arc<dyn Disk>),
        1..=10,
    );
    let before: Vec<_> = names(&old).iter().map(|name| old.contents(name)).collect();
    let from = EncryptedDisk::open_to_read(shared(&old), testing::wrapping(&[2, 1])).unwrap();
    let into = from.sibling(shared(&new));
    let mode = OpenMode {
        create: true,
        ..OPEN
    };
    for name in names(&old).iter().filter(|name| *name != KEYRING) {
        let file = from.open(name, OPEN).unwrap();
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(0, &mut bytes).unwrap();
        into.open(name, mode).unwrap().write_at(0, &bytes).unwrap();
    }
    drop(into);
    check(&(testing::open(shared(&new), &[2]) as Arc<dyn Disk>), 10);
    assert_eq!(leaks(&new), Vec::<String>::new());
    let after: Vec<_> = names(&old).iter().map(|name| old.contents(name)).collect();
    assert_eq!(before, after, "the old directory is only read");
    let error = EncryptedDisk::open_to_read(shared(&SimDisk::new(3)), testing::wrapping(&[1]));
    assert!(error.unwrap_err().to_string().contains("is not encrypted"));
}
