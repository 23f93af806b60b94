//! Logs that a crash has cut, and logs that are damaged otherwise.

use crate::writer::{Content, ENTRY, File, Log, METADATA};
use prost::Message;
use quorate_etcd_files::{
    messages::{Entry, HardState, Record},
    wal::{FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX, WalError},
};
use std::fs;

/// Two files with entries 1 to 5, the last of 2,000 bytes, all of them committed but the last.
fn log() -> Log {
    let mut log = Log::new();
    for index in 1..=4 {
        log.entry(index, 1, format!("entry {index}").as_bytes());
        log.state(1, index - 1);
        if index == 2 {
            log.cut(3);
        }
    }
    log.entry(5, 1, &[0xab; 2_000]);
    log
}

/// The frame that is written last.
fn last_frame(file: &File) -> std::ops::Range<usize> {
    *file.frames.last().unwrap()..file.bytes.len()
}

/// The log must be read as if its last entry had never been written.
fn assert_cut(log: &Log, why: &str) {
    let content = log.read().unwrap_or_else(|error| panic!("{why}: {error}"));
    assert_eq!(content.indices(), [1, 2, 3, 4], "{why}");
    let torn = content
        .wal
        .torn_tail()
        .unwrap_or_else(|| panic!("{why}: no torn tail"));
    let file = log.files.last().unwrap();
    assert_eq!(torn.offset, last_frame(file).start as u64, "{why}");
    assert!(torn.file.ends_with(&file.name), "{why}: {torn:?}");
    assert!(torn.lost_bytes > 0, "{why}: {torn:?}");
}

#[test]
fn a_file_that_ends_within_its_last_frame_is_cut() {
    let log = log();
    for end in last_frame(&log.files[1]).skip(1) {
        let mut torn = log.clone();
        torn.last().bytes.truncate(end);
        if torn.last().bytes[last_frame(&log.files[1]).start..]
            .iter()
            .all(|byte| *byte == 0)
        {
            continue;
        }
        assert_cut(&torn, &format!("{end} bytes"));
    }
}

#[test]
fn a_frame_whose_last_sectors_were_not_written_is_cut() {
    let log = log();
    let frame = last_frame(&log.files[1]);
    for sector in (0..frame.end)
        .step_by(512)
        .filter(|start| frame.contains(start))
    {
        let mut torn = log.clone();
        torn.last().bytes[sector..].fill(0);
        torn.preallocate(4_096);
        assert_cut(&torn, &format!("zeros from {sector} on"));
        let mut hole = log.clone();
        let end = (sector + 512).min(frame.end);
        hole.last().bytes[sector..end].fill(0);
        assert_cut(&hole, &format!("zeros from {sector} to {end}"));
    }
}

// The rule knows only whole sectors: zeros from within a sector on are damage, unless a whole one follows.
#[test]
fn zeros_from_any_place_on_cut_the_log_or_are_an_error() {
    let log = log();
    let whole = log.read().unwrap().entries;
    let frame = last_frame(&log.files[1]);
    for start in frame {
        let mut torn = log.clone();
        torn.last().bytes[start..].fill(0);
        torn.preallocate(1_024);
        match torn.read() {
            Ok(content) => assert!(
                content.entries == whole || content.entries == whole[..4],
                "zeros from {start} on: {:?}",
                content.indices()
            ),
            Err(error) => assert!(
                matches!(
                    error,
                    WalError::BadChecksum { .. } | WalError::Malformed { .. }
                ),
                "zeros from {start} on: {error}"
            ),
        }
    }
}

#[test]
fn bytes_behind_the_zeros_that_end_the_log_are_lost_and_told() {
    let mut log = log();
    let end = log.last().bytes.len() as u64;
    log.preallocate(2_000);
    log.last()
        .bytes
        .extend(b"a later sector of a write that was cut");
    let content = log.read().unwrap();
    assert_eq!(content.indices(), [1, 2, 3, 4, 5]);
    let torn = content.wal.torn_tail().unwrap();
    assert_eq!((torn.offset, torn.lost_bytes), (end, 2_038));
}

#[test]
fn only_the_last_file_may_be_torn() {
    let mut log = log();
    let cut = log.files[0].bytes.len() - 3;
    log.files[0].bytes.truncate(cut);
    let name = &log.files[0].name;
    let refused = log.read();
    assert!(
        matches!(&refused, Err(WalError::CutShort { file, .. }) if file.ends_with(name)),
        "{refused:?}"
    );
    // Without its last frame the file ends well, but the next one goes on from another checksum.
    let last = *log.files[0].frames.last().unwrap();
    log.files[0].bytes.truncate(last);
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::BrokenChain { offset: 0, .. })),
        "{refused:?}"
    );
}

/// What a single damaged byte may lead to: an error, the same entries, or a log that ends earlier and says so.
fn assert_noticed(log: &Log, whole: &Content, what: &str) {
    let Ok(content) = log.read() else { return };
    if content.wal.torn_tail().is_some() {
        let indices = content.indices();
        assert!(
            whole.entries.starts_with(&content.entries),
            "{what}: {indices:?}"
        );
    } else {
        assert_eq!(content.entries, whole.entries, "{what}");
        assert_eq!(content.wal.hard_state(), whole.wal.hard_state(), "{what}");
        assert!(content.wal.snapshots().eq(whole.wal.snapshots()), "{what}");
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let mut all_committed = log();
    all_committed.state(1, 5);
    for mut log in [log(), all_committed] {
        log.preallocate(40);
        flip_every_bit(&log);
    }
}

fn flip_every_bit(log: &Log) {
    let whole = log.read().unwrap();
    for number in 0..2 {
        let length = log.files[number].bytes.len();
        for position in 0..length {
            // The long entry is the same everywhere.
            let in_the_long_entry = number == 1 && (700..length - 200).contains(&position);
            if in_the_long_entry && position % 97 != 0 {
                continue;
            }
            for bit in 0..8 {
                let mut flipped = log.clone();
                flipped.files[number].bytes[position] ^= 1 << bit;
                assert_noticed(
                    &flipped,
                    &whole,
                    &format!("file {number}, {position}, bit {bit}"),
                );
            }
        }
    }
}

// A checksum does not cover the kind of its record: kind 3 is one bit from kind 2.
#[test]
fn a_hard_state_that_became_an_entry_replaces_none() {
    let state = |vote, commit| {
        let state = HardState {
            term: 1,
            vote,
            commit,
        };
        state.encode_to_vec()
    };
    // No vote: term 0. The last record: a term that is far ahead. Before others: their terms fall, or it is committed.
    let mut log = log();
    log.record(ENTRY, state(0, 5));
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::TermTooLow { index: 5, .. })),
        "{refused:?}"
    );
    let mut log = self::log();
    log.record(ENTRY, state(METADATA.node_id, 5));
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::TermAhead { index: 5, .. })),
        "{refused:?}"
    );
    let mut committed = log.clone();
    committed.state(1, 5);
    let refused = committed.read();
    assert!(
        matches!(refused, Err(WalError::CommittedTerm { index: 5, .. })),
        "{refused:?}"
    );
    log.entry(6, 1, b"");
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::TermTooLow { index: 6, .. })),
        "{refused:?}"
    );
}

#[test]
fn a_missing_file_is_named() {
    let mut log = log();
    log.cut(6);
    let directory = log.saved();
    fs::remove_file(directory.path().join(&log.files[1].name)).unwrap();
    let refused = crate::writer::read(directory.path());
    let Err(WalError::MissingSegment {
        found,
        previous,
        wanted,
    }) = refused
    else {
        panic!("{refused:?}");
    };
    assert!(found.ends_with(&log.files[2].name), "{found:?}");
    assert_eq!((previous, wanted), (0, 1));
    let empty = tempfile::tempdir().unwrap();
    let refused = crate::writer::read(empty.path());
    assert!(
        matches!(refused, Err(WalError::NoSegment { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_first_file_without_content_is_an_error() {
    for length in [0, 4_096] {
        let mut log = log();
        log.files[0].bytes = vec![0; length];
        let refused = log.read();
        assert!(
            matches!(refused, Err(WalError::NoHead { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_file_of_another_log_breaks_the_chain() {
    let mut other = Log::new();
    other.entry(1, 9, b"another");
    other.cut(2);
    let mut log = log();
    log.files[1].bytes.clone_from(&other.files[1].bytes);
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::BrokenChain { offset: 0, .. })),
        "{refused:?}"
    );
}

#[test]
fn entries_must_follow_each_other() {
    let mut log = log();
    log.entry(7, 1, b"");
    let refused = log.read();
    assert!(
        matches!(
            refused,
            Err(WalError::NotContiguous {
                last: 5,
                found: 7,
                ..
            })
        ),
        "{refused:?}"
    );
    let mut log = Log::new();
    log.entry(0, 1, b"");
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::NotContiguous { found: 0, .. })),
        "{refused:?}"
    );
}

#[test]
fn committed_entries_stay_and_hard_states_do_not_go_back() {
    let mut log = log();
    log.entry(3, 2, b"");
    let refused = log.read();
    assert!(
        matches!(
            refused,
            Err(WalError::ReplacesCommitted {
                index: 3,
                commit: 3,
                ..
            })
        ),
        "{refused:?}"
    );
    for (term, commit) in [(0, 3), (1, 2)] {
        let mut log = self::log();
        log.state(term, commit);
        let refused = log.read();
        assert!(
            matches!(refused, Err(WalError::StateGoesBack { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn a_commit_beyond_the_last_entry_is_an_error() {
    let mut log = log();
    log.state(1, 9);
    let refused = log.read();
    assert!(
        matches!(
            refused,
            Err(WalError::MissingEntries {
                last: 9,
                has_last: 5,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn lengths_are_checked_before_memory_is_taken() {
    for length in [FRAME_BYTES_MAX + 1, 1 << 40, (1 << 56) - 1] {
        let mut log = log();
        let start = log.last().bytes.len() as u64;
        log.last().bytes.extend(length.to_le_bytes());
        log.last().bytes.extend([1; 100]);
        // The last file: torn, as etcd sees it.
        let content = log.read().unwrap();
        assert_eq!(content.wal.torn_tail().unwrap().offset, start);
        log.files.push(File {
            name: format!("{:016x}-{:016x}.wal", 2, 6),
            ..File::default()
        });
        let refused = log.read();
        assert!(
            matches!(refused, Err(WalError::CutShort { .. })),
            "{refused:?}"
        );
    }
    // A sparse file that has room for the frame.
    let log = log();
    let directory = log.saved();
    let path = directory.path().join(&log.files[1].name);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let start = log.files[1].bytes.len() as u64;
    std::os::unix::fs::FileExt::write_all_at(&file, &(FRAME_BYTES_MAX + 8).to_le_bytes(), start)
        .unwrap();
    file.set_len(2 * FRAME_BYTES_MAX).unwrap();
    let refused = crate::writer::read(directory.path());
    assert!(
        matches!(refused, Err(WalError::FrameTooLong { offset, .. }) if offset == start),
        "{refused:?}"
    );
}

#[test]
fn records_that_no_etcd_writes_are_errors() {
    let entry = Entry {
        index: 6,
        term: 1,
        ..Entry::default()
    };
    let unknown_field = [entry.encode_to_vec(), vec![5 << 3, 1]].concat();
    let cases: [(i64, Vec<u8>, &str); 8] = [
        (0, Vec::new(), "unknown kind 0"),
        (6, Vec::new(), "unknown kind 6"),
        (ENTRY, unknown_field, "field 5"),
        (3, entry.encode_to_vec(), "lower than before"),
        (ENTRY, vec![0xff], "not a valid entry"),
        (1, vec![1 << 3, 1], "another member's"),
        (5, vec![0xff], "not a valid note of a snapshot"),
        (5, vec![0; PAYLOAD_BYTES_MAX + 1], "at most 65536"),
    ];
    for (kind, data, message) in cases {
        let mut log = log();
        log.record(kind, data);
        let error = log.read().unwrap_err().to_string();
        assert!(error.contains(message), "{kind}: {error}");
        assert!(error.contains("offset"), "{kind}: {error}");
    }
}

#[test]
fn a_log_says_whose_it_is() {
    let mut log = Log::new();
    let second = log.files[0].frames[1];
    log.files[0].bytes.truncate(second);
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::NoMetadata { .. })),
        "{refused:?}"
    );
    log.files[0].bytes.clear();
    log.frame(&Record {
        kind: 1,
        crc: crc32c::crc32c(b""),
        ..Record::default()
    });
    let refused = log.read();
    assert!(
        matches!(refused, Err(WalError::NoHead { .. })),
        "{refused:?}"
    );
}
