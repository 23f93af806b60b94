//! The snapshot files beside the database.

use crate::writer::Log;
use prost::Message;
use quorate_etcd_files::{
    messages::{ConfState, Snapshot, SnapshotFrame, SnapshotMetadata},
    wal::{SnapshotMark, Snapshots, Wal},
};
use std::{fs, path::Path};

fn encoded(index: u64, term: u64) -> Vec<u8> {
    let conf_state = ConfState {
        voters: vec![index],
        ..ConfState::default()
    };
    let snapshot = Snapshot {
        data: br#"{"Root":{}}"#.as_slice().into(),
        metadata: Some(SnapshotMetadata {
            conf_state: Some(conf_state),
            index,
            term,
        }),
    };
    let data = snapshot.encode_to_vec();
    let frame = SnapshotFrame {
        crc: crc32c::crc32c(&data),
        data: data.into(),
    };
    frame.encode_to_vec()
}

fn write(directory: &Path, term: u64, index: u64, content: &[u8]) {
    let name = format!("{term:016x}-{index:016x}.snap");
    fs::write(directory.join(name), content).unwrap();
}

#[test]
fn the_newest_whole_file_wins() {
    let directory = tempfile::tempdir().unwrap();
    for (term, index) in [(1, 10), (2, 30), (2, 20)] {
        write(directory.path(), term, index, &encoded(index, term));
    }
    write(directory.path(), 3, 40, &encoded(40, 3)[..20]);
    fs::write(directory.path().join("db"), "").unwrap();
    fs::write(directory.path().join("0000000000000028.snap.db"), "").unwrap();
    let found = Snapshots::read(directory.path()).unwrap();
    let newest = found.newest().unwrap();
    assert_eq!(newest.mark, SnapshotMark { index: 30, term: 2 });
    assert_eq!(newest.conf_state.voters, [30]);
    assert_eq!(found.whole.len(), 3);
    assert_eq!(found.broken.len(), 1);
    assert!(
        found.broken[0]
            .path
            .ends_with("0000000000000003-0000000000000028.snap"),
        "{found:?}"
    );
    let received = directory.path().join("0000000000000028.snap.db");
    assert_eq!(found.received, [(40, received)]);
}

#[test]
fn a_file_counts_only_with_a_note_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    for index in [10, 20, 30] {
        write(directory.path(), 1, index, &encoded(index, 1));
    }
    let mut log = Log::new();
    for index in 1..=25 {
        log.entry(index, 1, b"");
    }
    log.state(1, 25);
    log.snapshot(10, 1);
    log.snapshot(20, 1);
    log.snapshot(30, 1);
    let saved = log.saved();
    let wal = Wal::open(saved.path()).unwrap();
    let found = Snapshots::read(directory.path()).unwrap();
    let newest = found.newest_noted(&wal).unwrap();
    assert_eq!(newest.mark.index, 20, "that of 30 is not committed");
}

#[test]
fn damage_is_reported() {
    let whole = encoded(10, 1);
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cases: [(&[u8], &str); 4] = [
        (b"", "it is empty"),
        (&flipped, "the checksum is"),
        (b"not a snapshot", ""),
        (&encoded(11, 1), "it is of index 11 and term 1"),
    ];
    for (content, reason) in cases {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 1, 10, content);
        let found = Snapshots::read(directory.path()).unwrap();
        assert_eq!(found.whole, []);
        assert!(found.broken[0].reason.contains(reason), "{found:?}");
    }
    for end in 0..whole.len() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 1, 10, &whole[..end]);
        let found = Snapshots::read(directory.path()).unwrap();
        assert_eq!(
            (found.whole.len(), found.broken.len()),
            (0, 1),
            "{end} bytes"
        );
    }
}
