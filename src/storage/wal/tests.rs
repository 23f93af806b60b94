//! The log as a whole: round trips, replacement, reuse, torn tails, damage, crashes. On a simulated disk, and where it
//! matters on files too.

use super::*;
use crate::{
    storage::{
        encryption::testing,
        real_disk::RealDisk,
        sim_disk::{Fault, SimDisk},
    },
    types::{ClusterId, EntryKind, Identity, MemberId},
};

pub(super) const IDENTITY: Identity = Identity {
    cluster: ClusterId(0xc1),
    member: MemberId(0xd1),
};
pub(super) const DIR: &str = "wal";
pub(super) const BLOCK: u64 = DIRECT_ALIGN as u64;
pub(super) const NONE: LogIndex = LogIndex(0);

pub(super) fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 16 * BLOCK,
        free_segments_max: 2,
        ..WalOptions::new(IDENTITY, 0x5a17)
    }
}

pub(super) fn entry(index: u64, term: u64, len: usize) -> Entry {
    let fill = u8::try_from((index * 7 + term) % 251).unwrap();
    Entry {
        term: Term(term),
        index: LogIndex(index),
        kind: EntryKind::Command,
        data: vec![fill; len].into(),
    }
}

pub(super) fn entries(indexes: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    indexes.map(|index| entry(index, term, 100)).collect()
}

pub(super) fn hard_state(term: u64, commit: u64) -> HardState {
    HardState {
        term: Term(term),
        vote: Some(MemberId(term % 3)),
        commit: LogIndex(commit),
    }
}

pub(super) fn try_open(disk: &impl CloneDisk, after: u64) -> Result<(Wal, Recovered), WalError> {
    Wal::open(disk.share(), DIR, options(), LogIndex(after))
}

pub(super) fn open(disk: &impl CloneDisk) -> (Wal, Recovered) {
    let (wal, recovered) = try_open(disk, 0).unwrap();
    lock(&wal.catalog).check();
    (wal, recovered)
}

/// Lets a test body run on either kind of disk.
pub(super) trait CloneDisk {
    fn share(&self) -> Arc<dyn Disk>;
}

impl CloneDisk for SimDisk {
    fn share(&self) -> Arc<dyn Disk> {
        testing::share(Arc::new(self.clone()))
    }
}

impl CloneDisk for Arc<RealDisk> {
    fn share(&self) -> Arc<dyn Disk> {
        testing::share(Arc::<RealDisk>::clone(self))
    }
}

pub(super) fn on_both_disks(body: impl Fn(&dyn Fn() -> Arc<dyn Disk>)) {
    let sim = SimDisk::new(1);
    body(&|| sim.share());
    sim.take_direct(false);
    let buffered = SimDisk::new(2);
    buffered.take_direct(false);
    body(&|| buffered.share());
    let dir = tempfile::tempdir().unwrap();
    let real = Arc::new(RealDisk::open(dir.path()).unwrap());
    body(&|| real.share());
}

impl CloneDisk for &dyn Fn() -> Arc<dyn Disk> {
    fn share(&self) -> Arc<dyn Disk> {
        self()
    }
}

pub(super) fn put(wal: &mut Wal, entries: &[Entry]) {
    let append = Append {
        entries,
        ..Append::default()
    };
    wal.append(&append).unwrap();
    wal.flush().unwrap();
}

pub(super) fn name(segment: u64) -> String {
    format!("{DIR}/{}", SegmentId(segment).live_name())
}

#[test]
fn what_was_flushed_is_there_after_reopening() {
    on_both_disks(|disk| {
        let (mut wal, recovered) = open(&disk);
        assert!(recovered.created);
        assert_eq!(recovered.last, NONE);
        wal.append(&Append {
            hard_state: Some(hard_state(2, 3)),
            entries: &entries(1..=5, 2),
            snapshot: None,
        })
        .unwrap();
        put(&mut wal, &entries(6..=200, 2)); // crosses segments
        put(&mut wal, &[entry(201, 2, 0), entry(202, 3, 40_000)]);
        assert!(wal.stats().batches >= 2);
        drop(wal);
        let (wal, recovered) = open(&disk);
        let mut expected = entries(1..=200, 2);
        expected.extend([entry(201, 2, 0), entry(202, 3, 40_000)]);
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.hard_state, hard_state(2, 3));
        assert_eq!(recovered.last, LogIndex(202));
        assert_eq!(recovered.cut, None);
        assert!(!recovered.created);
        assert_eq!(wal.last(), LogIndex(202));
        drop(wal);
        let (_, recovered) = try_open(&disk, 200).unwrap();
        assert_eq!(recovered.entries, expected[200..]);
    });
}

#[test]
fn all_appends_between_flushes_share_one_write_and_one_sync() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let before = disk.operations();
    for index in 1..=20 {
        wal.append(&Append {
            entries: &entries(index..=index, 1),
            hard_state: Some(hard_state(1, index - 1)),
            snapshot: None,
        })
        .unwrap();
    }
    assert_eq!(disk.operations(), before);
    wal.flush().unwrap();
    assert_eq!(disk.operations(), before + 2);
    wal.flush().unwrap();
    assert_eq!(disk.operations(), before + 2, "nothing to flush");
    assert_eq!(wal.stats().batches, 1);
}

#[test]
fn an_entry_the_log_has_replaces_it_and_all_after_it() {
    on_both_disks(|disk| {
        let (mut wal, _) = open(&disk);
        put(&mut wal, &entries(1..=10, 1));
        put(&mut wal, &entries(8..=9, 2));
        // Pending entries are replaced too, also with a hard state between.
        let first = entries(10..=12, 2);
        let second = entries(9..=9, 3);
        for entries in [&first, &second] {
            let hard_state = Some(hard_state(entries[0].term.0, 5));
            let append = Append {
                entries,
                hard_state,
                snapshot: None,
            };
            wal.append(&append).unwrap();
        }
        wal.flush().unwrap();
        let mut expected = entries(1..=7, 1);
        expected.extend(entries(8..=8, 2));
        expected.extend(entries(9..=9, 3));
        lock(&wal.catalog).check();
        assert_eq!(wal.reader().read(LogIndex(1), 1 << 20).unwrap(), expected);
        drop(wal);
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.hard_state, hard_state(3, 5));
    });
}

#[test]
fn a_snapshot_mark_voids_the_log_before_it() {
    on_both_disks(|disk| {
        let (mut wal, _) = open(&disk);
        put(&mut wal, &entries(1..=10, 1));
        let mark = LogPosition {
            index: LogIndex(500),
            term: Term(4),
        };
        wal.append(&Append {
            snapshot: Some(mark),
            hard_state: Some(hard_state(4, 500)),
            entries: &entries(501..=502, 4),
        })
        .unwrap();
        wal.flush().unwrap();
        drop(wal);
        let early = try_open(&disk, 499);
        assert!(matches!(early, Err(WalError::StartsTooLate { .. })));
        let (wal, recovered) = try_open(&disk, 500).unwrap();
        assert_eq!(recovered.snapshot, Some(mark));
        assert_eq!(recovered.entries, entries(501..=502, 4));
        assert_eq!(recovered.base, LogIndex(500));
        let released = wal.reader().read(LogIndex(500), 1);
        assert!(matches!(released, Err(WalError::Released { .. })));
        assert_eq!(wal.reader().bounds(), Some((LogIndex(501), LogIndex(502))));
    });
}

#[test]
fn a_commit_past_the_log_is_not_believed() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    wal.append(&Append {
        hard_state: Some(hard_state(1, 9)),
        entries: &entries(1..=3, 1),
        snapshot: None,
    })
    .unwrap();
    wal.flush().unwrap();
    drop(wal);
    assert_eq!(open(&disk).1.hard_state.commit, LogIndex(3));
}

#[test]
fn batches_too_large_for_a_segment_get_a_larger_one() {
    on_both_disks(|disk| {
        let (mut wal, _) = open(&disk);
        put(&mut wal, &entries(1..=2, 1));
        let huge = entry(3, 1, 300_000);
        put(&mut wal, std::slice::from_ref(&huge));
        put(&mut wal, &entries(4..=5, 1));
        let mut expected = entries(1..=2, 1);
        expected.push(huge);
        expected.extend(entries(4..=5, 1));
        assert_eq!(wal.reader().read(LogIndex(1), 1 << 20).unwrap(), expected);
        drop(wal);
        let (mut wal, recovered) = open(&disk);
        assert_eq!(recovered.entries, expected);
        put(&mut wal, &entries(6..=6, 1));
        wal.release(LogIndex(5)).unwrap();
        assert!(wal.stats().free_segments <= 1, "a larger file is not kept");
    });
}

#[test]
fn a_group_too_large_for_one_batch_is_split() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let large: Vec<Entry> = (1..=5).map(|index| entry(index, 1, 3_000_000)).collect();
    put(&mut wal, &large);
    assert_eq!(wal.stats().batches, 3);
    drop(wal);
    assert_eq!(open(&disk).1.entries, large);
}

#[test]
fn released_segments_are_reused_and_their_leftovers_never_count() {
    on_both_disks(|disk| {
        let (mut wal, _) = open(&disk);
        let mut last = 0;
        for round in 0..40_u64 {
            wal.append(&Append {
                hard_state: Some(hard_state(1, round)),
                ..Append::default()
            })
            .unwrap();
            let next: Vec<Entry> = (last + 1..=last + 9)
                .map(|index| entry(index, 1, 900))
                .collect();
            for entry in &next {
                put(&mut wal, std::slice::from_ref(entry));
            }
            last += 9;
            wal.prepare_spare().unwrap();
            wal.release(LogIndex(last - 3)).unwrap();
            lock(&wal.catalog).check();
            let stats = wal.stats();
            assert!(stats.segments + stats.free_segments <= 5, "{stats:?}");
        }
        assert!(wal.active.id > SegmentId(20));
        assert_eq!(disk().list(DIR).unwrap().len(), {
            let stats = wal.stats();
            stats.segments + stats.free_segments
        });
        drop(wal);
        let (_, recovered) = try_open(&disk, last - 3).unwrap();
        let expected: Vec<Entry> = (last - 2..=last)
            .map(|index| entry(index, 1, 900))
            .collect();
        assert_eq!(recovered.entries, expected);
        assert_eq!(recovered.hard_state, hard_state(1, 39));
        assert_eq!(recovered.cut, None, "leftovers are no torn tail");
    });
}

#[test]
fn a_reused_segment_holding_forged_batches_is_not_believed() {
    // A client stores bytes that would be the next batch, but it does not know the salt.
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let mut data = vec![0; 3 * DIRECT_ALIGN];
    // The bytes of a batch in its first block, which has eight sectors with a tag each.
    let in_first_block = 8 * 511;
    let forged_at = in_first_block - batch::HEADER_BYTES - ENTRY_HEADER_BYTES;
    let forged = BatchHeader {
        batch: BatchId(1),
        ..wal.blank_header(SegmentId(1))
    };
    forged.encode(wal.salt + 1, &mut data[forged_at..]);
    let bait = Entry {
        data: data.into(),
        ..entry(1, 1, 0)
    };
    put(&mut wal, &[bait]);
    drop(wal);
    let file = disk
        .share()
        .open(
            &name(1),
            OpenMode {
                create: false,
                direct: true,
            },
        )
        .unwrap();
    let (zeros, start) = aligned_zeros(DIRECT_ALIGN);
    file.write_at(BLOCK, &zeros[start..start + DIRECT_ALIGN])
        .unwrap();
    file.sync_data().unwrap();
    // The seal behind it is gone too, so that only the forged batch could be found damaged.
    for byte in 0..BLOCK {
        disk.set_byte(&name(1), 5 * BLOCK + byte, 0);
    }
    assert_eq!(open(&disk).1.last, NONE);
}

#[test]
fn readers_get_what_fits_and_say_what_is_gone() {
    on_both_disks(|disk| {
        let (mut wal, _) = open(&disk);
        for index in 1..=100 {
            put(&mut wal, &[entry(index, 1, 1000)]);
        }
        let reader = wal.reader();
        let all = reader.read(LogIndex(1), usize::MAX).unwrap();
        let expected: Vec<Entry> = (1..=100).map(|index| entry(index, 1, 1000)).collect();
        assert_eq!(all, expected);
        assert_eq!(reader.read(LogIndex(42), 3000).unwrap(), expected[41..44]);
        assert_eq!(reader.read(LogIndex(42), 3999).unwrap(), expected[41..44]);
        assert_eq!(reader.read(LogIndex(42), 0).unwrap(), expected[41..42]);
        assert!(reader.read(LogIndex(101), 10).unwrap().is_empty());
        wal.release(LogIndex(50)).unwrap();
        let (first, last) = reader.bounds().unwrap();
        assert!(LogIndex(1) < first && first <= LogIndex(51) && last == LogIndex(100));
        let gone = reader.read(LogIndex(1), 10).unwrap_err();
        assert!(matches!(gone, WalError::Released { first: f, .. } if f == first));
        let rest = reader.read(first, usize::MAX).unwrap();
        assert_eq!(rest, expected[usize::try_from(first.0 - 1).unwrap()..]);
    });
}

#[test]
fn readers_on_another_thread_never_see_a_mixture() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    put(&mut wal, &entries(1..=4, 1));
    let reader = wal.reader();
    let thread = std::thread::spawn(move || {
        for _ in 0..300 {
            let read = reader.read(LogIndex(1), usize::MAX).unwrap();
            let terms: Vec<Term> = read.iter().map(|entry| entry.term).collect();
            assert!(
                terms[1..].windows(2).all(|pair| pair[0] == pair[1]),
                "{terms:?}"
            );
        }
    });
    for term in 2..150 {
        put(&mut wal, &entries(2..=4, term));
    }
    thread.join().unwrap();
}

#[test]
fn the_batch_after_a_seal_takes_its_place_also_in_the_next_segment() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    for index in 1..=40 {
        let len = if index % 3 == 0 { 30_000 } else { 50 };
        put(&mut wal, &[entry(index, 1, len)]);
        wal.seal().unwrap();
        wal.seal().unwrap();
        wal.prepare_spare().unwrap();
    }
    drop(wal);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.last, LogIndex(40));
    assert_eq!(recovered.cut, None);
}

#[test]
fn missing_foreign_newer_and_unknown_segments_are_refused() {
    let made = || {
        let disk = SimDisk::new(1);
        let (mut wal, _) = open(&disk);
        for index in 1..=40 {
            put(&mut wal, &[entry(index, 1, 5000)]);
        }
        assert!(wal.active.id > SegmentId(3));
        disk
    };
    let disk = made();
    disk.remove(&name(2)).unwrap();
    let missing = try_open(&disk, 0).unwrap_err();
    assert!(matches!(
        missing,
        WalError::MissingSegment {
            segment: SegmentId(2),
            ..
        }
    ));
    assert!(missing.to_string().contains(&name(2)), "{missing}");

    let disk = made();
    disk.remove(&name(1)).unwrap();
    let missing = try_open(&disk, 0).unwrap_err();
    assert!(
        matches!(missing, WalError::StartsTooLate { .. }),
        "{missing}"
    );

    let other = Identity {
        member: MemberId(0xd2),
        ..IDENTITY
    };
    let options = WalOptions {
        identity: other,
        ..options()
    };
    let foreign = Wal::open(made().share(), DIR, options, NONE).unwrap_err();
    assert!(matches!(foreign, WalError::Foreign { .. }), "{foreign}");
    assert!(foreign.to_string().contains("member d1"), "{foreign}");

    let disk = made();
    disk.flip_bit(&name(3), 9, 0);
    let damaged = try_open(&disk, 0).unwrap_err();
    assert!(matches!(
        damaged,
        WalError::Damaged {
            segment: SegmentId(3),
            offset: 0,
            ..
        }
    ));
}

#[test]
fn any_failed_operation_of_a_flush_poisons_the_log_for_good() {
    for fault in [Fault::Io, Fault::NoSpace] {
        for nth in 1..=2 {
            let disk = SimDisk::new(nth);
            let (mut wal, _) = open(&disk);
            put(&mut wal, &entries(1..=3, 1));
            let more = entries(4..=4, 1);
            let append = Append {
                entries: &more,
                ..Append::default()
            };
            wal.append(&append).unwrap();
            disk.fail_nth(nth, fault);
            let error = wal.flush().unwrap_err();
            assert!(matches!(error, WalError::Io { .. }), "{error}");
            assert!(error.to_string().contains(&name(1)), "{error}");
            assert!(wal.is_poisoned());
            assert!(matches!(wal.flush(), Err(WalError::Poisoned)));
            assert!(matches!(wal.append(&append), Err(WalError::Poisoned)));
            assert!(matches!(wal.seal(), Err(WalError::Poisoned)));
            assert!(matches!(wal.prepare_spare(), Err(WalError::Poisoned)));
            assert!(matches!(wal.release(LogIndex(1)), Err(WalError::Poisoned)));
            assert_eq!(wal.reader().bounds(), Some((LogIndex(1), LogIndex(3))));
            disk.crash();
            let (_, recovered) = open(&disk);
            assert_eq!(recovered.entries[..3], entries(1..=3, 1));
        }
    }
}

#[test]
fn a_batch_whose_sync_failed_counts_only_once_it_is_written_again() {
    for seed in 0..60 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = open(&disk);
        let all = entries(1..=3, 1);
        let append = Append {
            entries: &all,
            ..Append::default()
        };
        wal.append(&append).unwrap();
        disk.fail_nth(2, Fault::Io);
        assert!(wal.flush().is_err());
        // The process restarts on the running machine, which still shows the bytes; then the machine dies.
        disk.kill_process();
        let (_, seen) = open(&disk);
        assert_eq!(seen.entries, all);
        disk.crash();
        assert_eq!(open(&disk).1.entries, all, "seed {seed}");
    }
}

#[test]
fn a_full_disk_while_preparing_leaves_the_log_usable() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    put(&mut wal, &entries(1..=3, 1));
    disk.fail_nth(2, Fault::NoSpace);
    assert!(wal.prepare_spare().is_err());
    assert!(!wal.is_poisoned());
    put(&mut wal, &entries(4..=4, 1));
    wal.prepare_spare().unwrap();
    drop(wal);
    assert_eq!(open(&disk).1.entries, entries(1..=4, 1));
}

#[test]
fn an_encrypted_log_does_what_any_log_does() {
    testing::encrypted(what_was_flushed_is_there_after_reopening);
    testing::encrypted(an_entry_the_log_has_replaces_it_and_all_after_it);
    testing::encrypted(a_snapshot_mark_voids_the_log_before_it);
    testing::encrypted(batches_too_large_for_a_segment_get_a_larger_one);
    testing::encrypted(a_group_too_large_for_one_batch_is_split);
    testing::encrypted(released_segments_are_reused_and_their_leftovers_never_count);
    testing::encrypted(readers_get_what_fits_and_say_what_is_gone);
    testing::encrypted(the_batch_after_a_seal_takes_its_place_also_in_the_next_segment);
    testing::encrypted(any_failed_operation_of_a_flush_poisons_the_log_for_good);
    testing::encrypted(a_batch_whose_sync_failed_counts_only_once_it_is_written_again);
    testing::encrypted(a_full_disk_while_preparing_leaves_the_log_usable);
}
