//! Tests of what crashes, failing disks and flipped bits do to the database.

use super::{
    Damage, Db, DbError, DbOptions, OnDamage,
    testing::{Dump, FILE, MemDisk, OWNER, TINY_CACHE, batch, dump, expected, open, span},
};
use crate::{
    storage::encryption::testing,
    types::{Rev, Revision, SplitMix64},
};
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

const WIDTH: u32 = 12;
const BATCHES: u64 = 40;

/// Commits batches after the last one, up to the first error. Returns whether all succeeded.
fn commit_some(db: &mut Db, batches: u64) -> bool {
    let first = db.applied().index.0 + 1;
    (first..first + batches).all(|index| db.commit(&batch(index, WIDTH)).is_ok())
}

#[test]
fn a_crash_keeps_whole_batches_and_all_that_were_acknowledged() {
    for seed in 0..60 {
        let mut random = SplitMix64::new(seed);
        let mut disk = MemDisk::new();
        let mut acknowledged = 0;
        for round in 0..6 {
            let mut db = open(&disk).unwrap();
            let applied = db.applied().index.0;
            assert!(
                acknowledged <= applied,
                "seed {seed} round {round}: {acknowledged} was acknowledged, {applied} is there"
            );
            assert_eq!(
                dump(&db).unwrap(),
                expected(applied, WIDTH),
                "seed {seed} round {round}"
            );
            disk.fail_after(random.below(60) as u64);
            let fine = commit_some(&mut db, 8);
            acknowledged = db.applied().index.0;
            let refused = db.commit(&batch(acknowledged + 1, WIDTH));
            match (fine, refused) {
                (false, refused) => assert!(
                    matches!(refused, Err(DbError::Poisoned { .. })),
                    "seed {seed}: after an error comes {refused:?}"
                ),
                (true, Ok(())) => acknowledged += 1,
                (true, Err(_)) => {}
            }
            disk = disk.crash(&mut random);
        }
    }
}

#[test]
fn a_crash_while_the_file_is_made_leaves_none_or_a_whole_one() {
    for calls in 0..40 {
        let mut random = SplitMix64::new(calls);
        let disk = MemDisk::new();
        disk.fail_after(calls);
        let opened = open(&disk).is_ok();
        let db = open(&disk.crash(&mut random)).unwrap();
        assert!(
            db.created() || opened || calls > 4,
            "after {calls} calls the file is there already"
        );
        assert_eq!(
            dump(&db).unwrap(),
            expected(0, WIDTH),
            "after {calls} calls"
        );
    }
}

/// A file with freed pages and more than one level of pages, as `close` leaves it.
fn history(close: bool) -> Vec<u8> {
    let disk = MemDisk::new();
    let mut db = open(&disk).unwrap();
    assert!(commit_some(&mut db, BATCHES), "the disk works");
    let left = disk.contents();
    drop(db);
    if close { disk.contents() } else { left }
}

/// Opens a damaged file and works with it. What it serves must be one of the `allowed` states.
fn survive(disk: &MemDisk, allowed: &[(u64, Dump)]) -> Result<u64, DbError> {
    let mut db = open(disk)?;
    let applied = db.applied().index.0;
    let state = allowed.iter().find(|(index, _)| *index == applied);
    let (_, state) = state.expect("applied index is one that was committed");
    assert_eq!(&dump(&db)?, state, "contents at {applied}");
    db.commit(&batch(applied + 1, WIDTH))?;
    db.compact_step(span(Rev::default(), Revision(5), 1000), |_| true)?;
    drop(db);
    let db = open(disk)?;
    assert_eq!(dump(&db)?, expected(applied + 1, WIDTH), "after a commit");
    Ok(applied)
}

/// Flips bits all over a file; each must end in an error that says "damaged", or do no harm.
fn sweep(image: &[u8], seed: u64) -> (usize, usize, usize) {
    let allowed = [BATCHES - 1, BATCHES].map(|index| (index, expected(index, WIDTH)));
    let mut random = SplitMix64::new(seed);
    // With encryption, redb's header is behind the file's own.
    let starts = if testing::is_on() {
        vec![0, 512]
    } else {
        vec![0]
    };
    let headers = starts.into_iter().map(|start| start * 8..(start + 320) * 8);
    let header = headers.flat_map(|bits| bits.step_by(3));
    let blocks = (0..image.len() / 4096).flat_map(|block| {
        let mut bits = vec![block * 4096 * 8, (block * 4096 + 2) * 8];
        bits.extend((0..3).map(|_| block * 4096 * 8 + random.below(4096 * 8)));
        bits
    });
    let (mut fine, mut earlier, mut refused) = (0, 0, 0);
    for bit in header.chain(blocks) {
        let disk = MemDisk::with_file(image.to_vec());
        disk.flip(bit);
        let outcome = catch_unwind(AssertUnwindSafe(|| survive(&disk, &allowed)));
        match outcome.unwrap_or_else(|_| panic!("bit {bit} (byte {}) panics", bit / 8)) {
            Ok(BATCHES) => fine += 1,
            Ok(_) => earlier += 1,
            Err(DbError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
    (fine, earlier, refused)
}

#[test]
fn flipped_bits_in_a_closed_file_do_no_harm_or_are_named() {
    let (fine, earlier, refused) = sweep(&history(true), 1);
    assert!(fine > 0, "free space does not matter");
    assert!(refused > 0, "pages matter");
    println!("closed: {fine} without effect, {earlier} fell back, {refused} refused");
}

#[test]
fn flipped_bits_in_a_file_left_by_a_crash_do_no_harm_or_are_named() {
    let (fine, earlier, refused) = sweep(&history(false), 2);
    assert!(fine > 0, "free space does not matter");
    assert!(refused > 0, "pages matter");
    println!("left: {fine} without effect, {earlier} fell back, {refused} refused");
}

#[test]
fn bits_that_flip_while_the_file_is_open_are_never_served() {
    let image = history(true);
    let mut refused = 0;
    let reported = Arc::new(AtomicUsize::new(0));
    for seed in 0..400 {
        let mut random = SplitMix64::new(seed);
        let disk = MemDisk::with_file(image.clone());
        let mut db = open(&disk).unwrap();
        let counter = reported.clone();
        let on_damage = OnDamage::new(move |_| {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        let reader = db.reader().unwrap().with_on_damage(on_damage);
        disk.flip(random.below(image.len() * 8));
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), DbError> {
            for major in 2..=BATCHES {
                let rev = Rev::new(Revision(i64::try_from(major).unwrap()), 3);
                let found = reader.get_put(rev)?.expect("the put is there");
                assert_eq!(found, super::testing::value(rev.major, 3), "{rev:?}");
            }
            assert_eq!(dump(&db)?, expected(BATCHES, WIDTH), "seed {seed}");
            db.commit(&batch(BATCHES + 1, WIDTH))?;
            db.compact_step(span(Rev::default(), Revision(20), 1000), |r| {
                r.rev.sub % 2 == 0
            })?;
            Ok(())
        }));
        match outcome.unwrap_or_else(|_| panic!("seed {seed} panics")) {
            Ok(()) => {}
            Err(DbError::Damaged { .. }) => refused += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(refused > 0, "no flip was seen");
    let reported = reported.load(Ordering::Relaxed);
    assert!(
        (1..=refused).contains(&reported),
        "{reported} reads reported damage, {refused} flips were seen"
    );
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let image = history(true);
    let cases = [
        Vec::new(),
        image[..100].to_vec(),
        image[..4096].to_vec(),
        image[..image.len() - 4096].to_vec(),
        b"not a database at all".repeat(1000),
        vec![0; image.len()],
    ];
    for bytes in cases {
        let len = bytes.len();
        match open(&MemDisk::with_file(bytes)) {
            Err(DbError::Damaged { file, .. }) => assert_eq!(&*file, FILE, "{len} bytes"),
            other => panic!("{len} bytes: {other:?}"),
        }
    }
}

#[test]
fn a_value_that_changed_in_memory_is_named_not_served() {
    // redb's own checksums are right here: only the record's checksum is written wrong.
    let disk = MemDisk::new();
    let mut db = open(&disk).unwrap();
    db.commit(&batch(1, WIDTH)).unwrap();
    let key = super::format::revision_key(Rev::new(Revision(2), 5), crate::types::RecordKind::Put);
    let transaction = db.redb.begin_write().unwrap();
    let mut table = transaction.open_table(super::format::REVISIONS).unwrap();
    let mut sealed = table.remove(&key).unwrap().unwrap().value().to_vec();
    sealed[10] ^= 4;
    table.insert(&key, sealed.as_slice()).unwrap();
    drop(table);
    transaction.commit().unwrap();
    let text = "db/revisions.redb is damaged: table revisions, revision 2.5: \
                the value does not match its checksum";
    let reader = db.reader().unwrap();
    let check = |error: DbError| {
        assert!(error.to_string().starts_with(text), "{error}");
        let DbError::Damaged { damage, .. } = error else {
            panic!("not damage")
        };
        assert!(matches!(damage, Damage::Checksum { .. }), "{damage}");
    };
    check(reader.get_put(Rev::new(Revision(2), 5)).unwrap_err());
    let all = Rev::default()..Rev::new(Revision(9), 0);
    check(reader.scan(all, |_| ControlFlow::Continue(())).unwrap_err());
    check(dump(&db).unwrap_err());
    check(
        db.compact_step(span(Rev::default(), Revision(9), 99), |_| false)
            .unwrap_err(),
    );
    assert!(
        matches!(db.commit(&batch(2, WIDTH)), Err(DbError::Poisoned { .. })),
        "nothing is written after damage"
    );
}

#[test]
fn records_that_went_missing_are_noticed_at_start() {
    let disk = MemDisk::new();
    let mut db = open(&disk).unwrap();
    db.commit(&batch(1, WIDTH)).unwrap();
    let transaction = db.redb.begin_write().unwrap();
    let mut table = transaction.open_table(super::format::REVISIONS).unwrap();
    drop(table.pop_last().unwrap());
    drop(table);
    transaction.commit().unwrap();
    let error = db.load(|_| ()).unwrap_err().to_string();
    assert!(error.contains("holds 11 records of "), "{error}");
    assert!(error.contains("but 12 records of "), "{error}");
}

#[test]
fn a_newer_format_and_another_identity_are_refused() {
    let disk = MemDisk::new();
    drop(open(&disk).unwrap());
    let mut stranger = OWNER;
    stranger.member.0 += 1;
    let error = Db::open(&disk, FILE, DbOptions::default(), stranger).unwrap_err();
    assert_eq!(
        error.to_string(),
        "db/revisions.redb belongs to member a of cluster c1, not to member b of cluster c1"
    );
    let db = open(&disk).unwrap();
    let transaction = db.redb.begin_write().unwrap();
    let newer = 3u32.to_le_bytes();
    let name = super::format::meta::FORMAT;
    super::put_meta(&db.file, &transaction, name, Some(&newer)).unwrap();
    transaction.delete_table(super::format::REVISIONS).unwrap();
    transaction.commit().unwrap();
    drop(db);
    match Db::open(&disk, FILE, TINY_CACHE, OWNER) {
        Err(DbError::NewerFormat {
            found: 3,
            supported: 2,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn crashes_do_to_an_encrypted_file_what_they_do_to_any() {
    testing::encrypted(a_crash_keeps_whole_batches_and_all_that_were_acknowledged);
    testing::encrypted(a_crash_while_the_file_is_made_leaves_none_or_a_whole_one);
}

#[test]
fn flipped_bits_in_an_encrypted_file_do_no_harm_or_are_named() {
    testing::encrypted(flipped_bits_in_a_closed_file_do_no_harm_or_are_named);
    testing::encrypted(flipped_bits_in_a_file_left_by_a_crash_do_no_harm_or_are_named);
}

#[test]
fn bits_that_flip_while_an_encrypted_file_is_open_are_never_served() {
    testing::encrypted(bits_that_flip_while_the_file_is_open_are_never_served);
}

#[test]
fn truncated_and_foreign_files_are_refused_where_encrypted_ones_belong() {
    testing::encrypted(truncated_and_foreign_files_are_refused);
}
