//! Where the log ends: torn writes are cut off, damage is refused, and the tags of sectors distinguish the two.

use super::*;
use super::{
    sectors::Layout,
    tests::{
        BLOCK, CloneDisk, DIR, IDENTITY, entry, hard_state, name, on_both_disks, open, put,
        try_open,
    },
};
use crate::storage::{disk::DiskFile, encryption::testing, sim_disk::SimDisk};

const PLAIN: Layout = Layout::Plain { reused: false };

/// Bytes on the disk of a batch with one entry of `len` bytes, tags included and padding not.
fn disk_bytes(len: usize) -> u64 {
    let layout = Layout::Tagged { lives: 0 };
    layout.end_of(batch::HEADER_BYTES + ENTRY_HEADER_BYTES + len) as u64
}

/// A log of three flushed batches of two blocks each, not sealed, and where the last one starts.
fn three_batches(disk: &SimDisk) -> u64 {
    let (mut wal, _) = open(disk);
    let mut start = 0;
    for index in 1..=3 {
        start = wal.offset;
        put(&mut wal, &[entry(index, 1, 5000)]);
    }
    start
}

fn three_entries() -> Vec<Entry> {
    (1..=3).map(|index| entry(index, 1, 5000)).collect()
}

#[test]
fn a_last_batch_torn_at_any_byte_is_cut_whole() {
    let disk = SimDisk::new(1);
    let start = three_batches(&disk);
    let whole = disk.contents(&name(1)).unwrap();
    let used = disk_bytes(5000);
    for torn in 0..used {
        // Few torn places are left out: one run of the loop costs about a millisecond.
        if torn > 200 && torn < used - 100 && torn % 37 != 0 && torn % 512 != 0 {
            continue;
        }
        let disk = SimDisk::new(torn);
        disk.take_direct(false);
        let file = disk
            .share()
            .open(
                &name(1),
                OpenMode {
                    create: true,
                    direct: false,
                },
            )
            .unwrap();
        let mut bytes = whole.clone();
        let at = usize::try_from(start + torn).unwrap();
        bytes[at..].fill(0);
        file.write_at(0, &bytes).unwrap();
        file.sync_data().unwrap();
        disk.share().sync_dir(DIR).unwrap();
        let (mut wal, recovered) = open(&disk);
        assert_eq!(recovered.entries, three_entries()[..2], "torn at {torn}");
        assert_eq!(recovered.cut.is_some(), torn > 0, "torn at {torn}");
        // What was cut never comes back, whatever is written over it.
        put(&mut wal, &[entry(3, 2, 10)]);
        drop(wal);
        disk.crash();
        let (_, recovered) = open(&disk);
        assert_eq!(recovered.entries[2..], [entry(3, 2, 10)], "torn at {torn}");
        assert_eq!(recovered.cut, None, "torn at {torn}");
    }
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_damage_and_is_located() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let mut starts = Vec::new();
    for index in 1..=30 {
        put(&mut wal, &[entry(index, 1, 5000)]);
        let start = wal.offset - 2 * BLOCK;
        starts.push((wal.active.id, start));
    }
    drop(wal);
    let used = disk_bytes(5000);
    for (number, (segment, start)) in starts.iter().take(29).enumerate() {
        for byte in [
            0,
            5,
            9,
            17,
            40,
            60,
            95,
            96,
            104,
            120,
            600,
            4094,
            4096,
            used - 1,
        ] {
            let name = name(segment.0);
            assert!(disk.flip_bit(&name, start + byte, u32::try_from(byte % 8).unwrap()));
            match try_open(&disk, 0) {
                Err(WalError::Damaged {
                    segment: found,
                    offset,
                    ..
                }) => {
                    assert_eq!(
                        (found, offset),
                        (*segment, *start),
                        "batch {number} byte {byte}"
                    );
                }
                other => panic!("batch {number} byte {byte}: {:?}", other.map(|(_, r)| r)),
            }
            disk.flip_bit(&name, start + byte, u32::try_from(byte % 8).unwrap());
        }
    }
    let text = {
        disk.flip_bit(&name(1), BLOCK + 100, 0);
        try_open(&disk, 0).unwrap_err().to_string()
    };
    for part in [
        "wal/0000000000000001.seg",
        "byte 4096",
        "restore a backup",
        "add it anew",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_flipped_bit_in_the_last_batch_is_told_from_a_torn_write_before_it_is_sealed() {
    let used = disk_bytes(5000);
    let places = (0..140).chain([600, 4094, 4096, used - 700, used - 2]);
    for byte in places {
        let disk = SimDisk::new(1);
        let start = three_batches(&disk);
        disk.flip_bit(&name(1), start + byte, u32::try_from(byte % 8).unwrap());
        let damaged = try_open(&disk, 0).map(|(_, recovered)| recovered);
        assert!(
            matches!(&damaged, Err(WalError::Damaged { offset, .. }) if *offset == start),
            "byte {byte}: {damaged:?}"
        );
        let text = damaged.unwrap_err().to_string();
        assert!(text.contains("all of it was written"), "{text}");
    }
}

#[test]
fn flipped_bits_anywhere_in_an_unsealed_last_batch_are_damage() {
    let disk = SimDisk::new(1);
    let start = three_batches(&disk);
    let tag = start + 511;
    disk.flip_bit(&name(1), tag, 2);
    let (_, recovered) = open(&disk);
    assert_eq!(recovered.entries, three_entries(), "a tag is not content");
    // The batch is sealed now. So another log is made, whose last batch is not.
    let disk = SimDisk::new(1);
    let start = three_batches(&disk);
    for (byte, bit) in [(300, 1), (900, 4), (511, 2), (1023, 7)] {
        disk.flip_bit(&name(1), start + byte, bit);
    }
    let damaged = try_open(&disk, 0).map(|(_, recovered)| recovered);
    assert!(
        matches!(&damaged, Err(WalError::Damaged { offset, .. }) if *offset == start),
        "{damaged:?}"
    );
}

#[test]
fn a_torn_write_that_lacks_a_single_bit_is_cut() {
    // The torn sector differs from the whole batch in one bit, and in its tag: only the tag shows that it was not written.
    for old_tag in [0, 0x4b, 0xff] {
        for sector in 0..11 {
            let disk = SimDisk::new(1);
            let start = three_batches(&disk);
            let at = start + sector * 512;
            disk.flip_bit(&name(1), at + 7, 0);
            disk.set_byte(&name(1), at + 511, old_tag);
            let (mut wal, recovered) = open(&disk);
            assert_eq!(recovered.entries, three_entries()[..2], "sector {sector}");
            assert_eq!(recovered.cut.unwrap().offset, start, "sector {sector}");
            // Nothing of it is left that could count as a part of the next batch there, once that is torn.
            put(&mut wal, &[entry(3, 2, 5000)]);
            drop(wal);
            disk.flip_bit(&name(1), at + 7, 0);
            disk.set_byte(&name(1), at + 511, 0);
            assert_eq!(open(&disk).1.last, LogIndex(2), "sector {sector}");
        }
    }
}

#[test]
fn what_a_torn_write_left_never_counts_as_a_part_of_the_next() {
    let disk = SimDisk::new(1);
    let start = three_batches(&disk);
    // Of the third batch only the last of two blocks was written.
    for byte in 0..BLOCK {
        disk.set_byte(&name(1), start + byte, 0);
    }
    let (_, recovered) = open(&disk);
    assert!(recovered.cut.unwrap().bytes >= 2 * BLOCK);
    let after = disk.contents(&name(1)).unwrap();
    let second = usize::try_from(start + BLOCK).unwrap();
    assert!(
        after[second..].iter().all(|byte| *byte == 0),
        "its tags would count"
    );
}

/// Makes a file of a segment of format 1.
fn plain_segment(disk: &dyn Disk, id: SegmentId, file: &str) -> Arc<dyn DiskFile> {
    let mode = OpenMode {
        create: true,
        direct: false,
    };
    let file = disk.open(&format!("{DIR}/{file}"), mode).unwrap();
    let zeros = vec![0; usize::try_from(16 * BLOCK).unwrap()];
    file.write_at(0, &zeros).unwrap();
    let header = SegmentHeader {
        id,
        identity: IDENTITY,
        salt: 77,
        layout: PLAIN,
        encrypted: false,
        bytes: 16 * BLOCK,
    };
    let mut block = vec![0; DIRECT_ALIGN];
    header.encode(&mut block);
    file.write_at(0, &block).unwrap();
    file
}

/// Writes one batch for each entry, as format 1 has them.
fn write_plain(file: &dyn DiskFile, segment: SegmentId, entries: &[Entry]) {
    let (mut offset, mut previous_crc) = (BLOCK, 0);
    for (number, entry) in (0..).zip(entries) {
        let mut payload = batch::entry_header(entry).to_vec();
        payload.extend_from_slice(&entry.data);
        let header = BatchHeader {
            segment,
            batch: BatchId(number),
            previous_crc,
            base: LogIndex(entry.index.0 - 1),
            reset: None,
            hard_state: hard_state(1, 0),
            seal: false,
            encrypted: false,
            entries: 1,
            payload_len: u32::try_from(payload.len()).unwrap(),
            payload_crc: crc32c::crc32c(&payload),
        };
        let mut bytes = vec![0; batch::HEADER_BYTES];
        previous_crc = header.encode(77, &mut bytes);
        bytes.extend_from_slice(&payload);
        file.write_at(offset, &bytes).unwrap();
        offset += header.span(PLAIN);
    }
    file.sync_data().unwrap();
}

#[test]
fn a_log_without_tags_opens_and_goes_on_in_a_segment_with_tags() {
    on_both_disks(|disk| {
        let (plain, free) = (SegmentId(4), SegmentId(3));
        plain_segment(&*disk(), free, &free.free_name());
        let file = plain_segment(&*disk(), plain, &plain.live_name());
        let mut all = vec![entry(1, 1, 700), entry(2, 1, 6000)];
        write_plain(&*file, plain, &all);
        disk().sync_dir(DIR).unwrap();
        let (mut wal, recovered) = open(&disk);
        assert_eq!(recovered.entries, all);
        assert_eq!(wal.stats().free_segments, 0, "a file without tags");
        all.push(entry(3, 1, 10));
        put(&mut wal, &all[2..]);
        assert_eq!(wal.active.id, plain.next());
        assert_eq!(wal.reader().read(LogIndex(1), 1 << 20).unwrap(), all);
        drop(wal);
        let (mut wal, recovered) = open(&disk);
        assert_eq!(recovered.entries, all);
        wal.release(LogIndex(2)).unwrap();
        assert_eq!(wal.stats().free_segments, 0, "a file without tags");
    });
}

#[test]
fn a_file_is_a_segment_as_often_as_there_are_tags() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = open(&disk);
    let mut index = 0;
    let mut most = 0;
    for _ in 0..40 {
        let before = wal.active.id;
        while wal.active.id == before {
            index += 1;
            put(&mut wal, &[entry(index, 1, 5000)]);
        }
        wal.release(LogIndex(index - 1)).unwrap();
        let Layout::Tagged { lives } = wal.active.layout else {
            panic!("segments have tags");
        };
        most = most.max(lives);
    }
    assert_eq!(most, sectors::LIVES - 1);
    drop(wal);
    let (_, recovered) = try_open(&disk, index - 1).unwrap();
    assert_eq!(recovered.last, LogIndex(index));
}

#[test]
fn a_file_that_lost_its_end_is_damage_however_little_was_in_it() {
    for lost in [1, BLOCK, 2 * BLOCK, 3 * BLOCK] {
        let disk = SimDisk::new(1);
        three_batches(&disk);
        let mode = OpenMode {
            create: false,
            direct: false,
        };
        let file = disk.share().open(&name(1), mode).unwrap();
        let left = file.len().unwrap() - lost;
        file.set_len(left).unwrap();
        let damaged = try_open(&disk, 0).map(|(_, recovered)| recovered);
        assert!(
            matches!(&damaged, Err(WalError::Damaged { offset, .. }) if *offset == left),
            "without {lost} bytes: {damaged:?}"
        );
    }
}

#[test]
fn a_seal_tells_damage_in_the_last_batch_from_a_torn_write() {
    let sealed = SimDisk::new(1);
    let start = three_batches(&sealed);
    open(&sealed).0.seal().unwrap();
    sealed.flip_bit(&name(1), start + 300, 1);
    sealed.flip_bit(&name(1), start + 900, 4);
    let damaged = try_open(&sealed, 0);
    assert!(
        matches!(damaged, Err(WalError::Damaged { offset, .. }) if offset == start),
        "{:?}",
        damaged.map(|(_, recovered)| recovered)
    );
}

#[test]
fn torn_writes_and_damage_are_told_apart_in_an_encrypted_log() {
    testing::encrypted(
        a_flipped_bit_in_the_last_batch_is_told_from_a_torn_write_before_it_is_sealed,
    );
    testing::encrypted(what_a_torn_write_left_never_counts_as_a_part_of_the_next);
    testing::encrypted(a_file_is_a_segment_as_often_as_there_are_tags);
    testing::encrypted(a_seal_tells_damage_in_the_last_batch_from_a_torn_write);
    testing::encrypted(a_log_without_tags_opens_and_goes_on_in_a_segment_with_tags);
}
