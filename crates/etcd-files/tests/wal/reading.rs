//! Logs that are whole.

use crate::writer::{Log, METADATA, read};
use quorate_etcd_files::wal::{SnapshotMark, Wal, WalError};
use std::{fs, path::Path};

/// The indices that `committed_after` delivers.
fn committed(wal: &Wal, after: u64) -> Result<Vec<u64>, WalError> {
    let mut indices = Vec::new();
    wal.committed_after(after, |entry| {
        indices.push(entry.index);
        Ok::<_, WalError>(())
    })?;
    Ok(indices)
}

/// Entries 1 to `last` of term 1, in files of three.
fn log_of(last: u64) -> Log {
    let mut log = Log::new();
    for index in 1..=last {
        log.entry(index, 1, format!("entry {index}").as_bytes());
        log.state(1, index.saturating_sub(1));
        if index % 3 == 0 {
            log.cut(index + 1);
        }
    }
    log
}

#[test]
fn a_new_log_has_no_entries() {
    let content = Log::new().read().unwrap();
    assert_eq!(content.wal.metadata(), METADATA);
    assert_eq!(
        (content.wal.first_index(), content.wal.last_index()),
        (1, 0)
    );
    assert_eq!(content.indices(), [] as [u64; 0]);
    assert_eq!(content.wal.torn_tail(), None);
    let start = SnapshotMark { index: 0, term: 0 };
    assert_eq!(content.wal.snapshots().collect::<Vec<_>>(), [start]);
}

#[test]
fn entries_come_in_order_over_several_files() {
    let mut log = log_of(10);
    log.preallocate(4_000);
    assert_eq!(log.files.len(), 4);
    let content = log.read().unwrap();
    assert_eq!(content.indices(), (1..=10).collect::<Vec<_>>());
    assert_eq!(content.entries[4], (5, 1, b"entry 5".to_vec()));
    assert_eq!(content.wal.last_term(), 1);
    assert_eq!(content.wal.torn_tail(), None);
}

#[test]
fn only_committed_entries_are_committed() {
    let directory = log_of(10).saved();
    let wal = Wal::open(directory.path()).unwrap();
    assert_eq!((wal.hard_state().commit, wal.last_index()), (9, 10));
    assert_eq!(committed(&wal, 7).unwrap(), [8, 9]);
    assert_eq!(committed(&wal, 9).unwrap(), [] as [u64; 0]);
    assert_eq!(committed(&wal, u64::MAX).unwrap(), [] as [u64; 0]);
}

#[test]
fn replaced_entries_do_not_count() {
    let mut log = Log::new();
    for index in 1..=5 {
        log.entry(index, 1, b"old");
    }
    log.state(1, 3);
    log.cut(6);
    log.entry(4, 2, b"new");
    log.cut(5);
    log.entry(5, 2, b"new");
    log.entry(6, 2, b"new");
    log.entry(6, 3, b"newest");
    log.state(3, 6);
    let content = log.read().unwrap();
    let expected: [(u64, u64, &[u8]); 6] = [
        (1, 1, b"old"),
        (2, 1, b"old"),
        (3, 1, b"old"),
        (4, 2, b"new"),
        (5, 2, b"new"),
        (6, 3, b"newest"),
    ];
    let expected = expected.map(|(index, term, data)| (index, term, data.to_vec()));
    assert_eq!(content.entries, expected);
    assert_eq!(content.wal.last_term(), 3);
}

#[test]
fn an_old_log_may_lack_its_beginning() {
    let directory = log_of(10).saved();
    let first = directory.path().join(&log_of(10).files[0].name);
    fs::remove_file(first).unwrap();
    let content = read(directory.path()).unwrap();
    assert_eq!(content.indices(), (4..=10).collect::<Vec<_>>());
    let missing = committed(&content.wal, 2);
    assert!(
        matches!(
            missing,
            Err(WalError::MissingEntries {
                first: 3,
                last: 9,
                has_first: 4,
                has_last: 10,
                ..
            })
        ),
        "{missing:?}"
    );
}

#[test]
fn the_log_goes_on_behind_a_snapshot_that_was_received() {
    let mut log = Log::new();
    log.entry(1, 1, b"");
    log.state(1, 1);
    log.snapshot(100, 7);
    log.state(7, 100);
    let content = log.read().unwrap();
    assert_eq!(
        (content.wal.first_index(), content.wal.last_index()),
        (101, 100)
    );
    assert_eq!(content.wal.last_term(), 7);
    assert_eq!(committed(&content.wal, 100).unwrap(), [] as [u64; 0]);
    let missing = committed(&content.wal, 99);
    assert!(
        matches!(missing, Err(WalError::BeforeSnapshot { index: 100, .. })),
        "{missing:?}"
    );
    log.entry(101, 7, b"");
    let content = log.read().unwrap();
    assert_eq!(content.indices(), [101]);
    let newest = content.wal.snapshots().next_back();
    assert_eq!(
        newest,
        Some(SnapshotMark {
            index: 100,
            term: 7
        })
    );
}

/// The log of a leader that was cut off with its entries 50 to 150, and then received the snapshot of index 120 from the others.
/// Its database has the entries up to 49.
fn cut_off() -> Log {
    let mut log = Log::new();
    for index in 1..=150 {
        log.entry(index, 1, b"");
    }
    log.state(1, 49);
    log.snapshot(120, 3);
    log.state(3, 120);
    log
}

#[test]
fn entries_that_a_snapshot_replaced_do_not_count() {
    let mut log = cut_off();
    for last in [120, 121] {
        if last == 121 {
            log.entry(121, 3, b"");
            log.state(3, 121);
        }
        let directory = log.saved();
        let wal = Wal::open(directory.path()).unwrap();
        let refused = committed(&wal, 49);
        let Err(error) = refused else {
            panic!("{refused:?}");
        };
        let named = matches!(
            error,
            WalError::BeforeSnapshot {
                first: 50,
                index: 120,
                term: 3,
                ..
            }
        );
        assert!(named, "{error}");
        let message = error.to_string();
        assert!(message.contains("0000000000000078.snap.db"), "{message}");
        assert_eq!((wal.first_index(), wal.last_index()), (121, last));
        assert_eq!(wal.last_term(), 3);
        let behind = (121..=last).collect::<Vec<_>>();
        assert_eq!(committed(&wal, 120).unwrap(), behind);
    }
}

#[test]
fn entries_before_a_snapshot_of_the_log_itself_count() {
    let mut log = log_of(10);
    log.snapshot(8, 1);
    log.entry(11, 2, b"");
    log.state(2, 11);
    let directory = log.saved();
    let wal = Wal::open(directory.path()).unwrap();
    assert_eq!(committed(&wal, 5).unwrap(), [6, 7, 8, 9, 10, 11]);
}

#[test]
fn a_snapshot_that_is_not_committed_does_not_count() {
    let mut log = Log::new();
    log.entry(1, 1, b"");
    log.state(1, 1);
    log.snapshot(100, 7);
    let content = log.read().unwrap();
    assert_eq!(content.indices(), [1]);
    let newest = content.wal.snapshots().next_back();
    assert_eq!(newest, Some(SnapshotMark { index: 0, term: 0 }));
}

#[test]
fn other_files_are_named_but_not_read() {
    let directory = log_of(1).saved();
    for name in [
        "0.tmp",
        "0000000000000000-0000000000000000.wal.broken",
        "notes",
    ] {
        fs::write(directory.path().join(name), "not a log").unwrap();
    }
    let wal = Wal::open(directory.path()).unwrap();
    let expected = ["0000000000000000-0000000000000000.wal.broken", "notes"];
    assert_eq!(wal.ignored(), expected);
}

#[test]
fn an_error_of_the_visitor_ends_the_visit() {
    let directory = log_of(10).saved();
    let wal = Wal::open(directory.path()).unwrap();
    let mut visited = 0;
    let result = wal.all_after(0, |entry| {
        visited = entry.index;
        if entry.index == 4 {
            let directory = Path::new("enough").to_owned();
            return Err(WalError::Changed { directory });
        }
        Ok(())
    });
    assert!(
        matches!(result, Err(WalError::Changed { .. })),
        "{result:?}"
    );
    assert_eq!(visited, 4);
}

#[test]
fn a_locked_log_is_refused() {
    let log = log_of(4);
    let directory = log.saved();
    let path = directory.path().join(&log.files[1].name);
    let file = fs::File::open(&path).unwrap();
    file.lock().unwrap();
    let refused = Wal::open(directory.path());
    assert!(
        matches!(&refused, Err(WalError::Running { file, .. }) if *file == path),
        "{refused:?}"
    );
    drop(file);
    Wal::open(directory.path()).unwrap();
}

#[test]
fn nothing_is_written() {
    let directory = log_of(4).saved();
    let files = || {
        let entries = fs::read_dir(directory.path()).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let modified = fs::metadata(&path).unwrap().modified().unwrap();
                (fs::read(&path).unwrap(), path, modified)
            })
            .collect();
        files.sort();
        files
    };
    let before = files();
    read(directory.path()).unwrap();
    assert_eq!(files(), before);
}

#[test]
fn memory_does_not_grow_with_the_log() {
    let mut log = Log::new();
    for index in 1..=50_000 {
        log.entry(index, 1, b"a value");
    }
    // Some are replaced, which is what is remembered.
    for index in 1..=1_000 {
        log.entry(index + 49_000, 2, b"a value");
        log.entry(index + 49_001, 2, b"a value");
    }
    let directory = log.saved();
    let mut count = 0;
    let measured = allocation_counter::measure(|| {
        let wal = Wal::open(directory.path()).unwrap();
        wal.all_after(0, |_| {
            count += 1;
            Ok::<_, WalError>(())
        })
        .unwrap();
    });
    assert_eq!(count, 50_001);
    assert!(measured.bytes_max < 400 << 10, "{measured:?}");
}
