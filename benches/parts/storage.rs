//! The write-ahead log and the database, on the disk of `TMPDIR`.

use crate::{VALUE_BYTES, key};
use divan::{Bencher, counter::ItemsCount};
use quorate::internals::{
    kv::record,
    storage::{
        db::{CommitBatch, Db, DbOptions},
        real_disk::RealDisk,
        wal::{Append, Wal, WalOptions},
    },
    types::{
        ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId, Record, RecordKind,
        Rev, Revision, Term,
    },
};
use std::sync::Arc;

const IDENTITY: Identity = Identity {
    cluster: ClusterId(1),
    member: MemberId(1),
};

/// Appends this many entries and syncs once: one turn of the WAL writer.
#[divan::bench(args = [1, 16, 256], sample_count = 50)]
fn wal_append_and_sync(bencher: Bencher<'_, '_>, entries: u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let options = WalOptions::new(IDENTITY, 7);
    let (mut wal, _) = Wal::open(disk, "wal", options, LogIndex(0)).unwrap();
    wal.prepare_spare().unwrap();
    let mut last = LogIndex(0);
    bencher
        .counter(ItemsCount::new(entries))
        .with_inputs(|| {
            let batch = (1..=entries)
                .map(|at| entry(last.0 + at))
                .collect::<Vec<_>>();
            last.0 += entries;
            batch
        })
        .bench_local_values(|entries| {
            let append = Append {
                entries: &entries,
                ..Append::default()
            };
            wal.append(&append).unwrap();
            wal.flush().unwrap();
        });
}

fn entry(index: u64) -> Entry {
    Entry {
        term: Term(1),
        index: LogIndex(index),
        kind: EntryKind::Command,
        data: vec![7; VALUE_BYTES + 64].into(),
    }
}

/// Commits this many records to redb, as the committer does every 100 ms.
#[divan::bench(args = [100, 10_000], sample_count = 20)]
fn redb_batch_commit(bencher: Bencher<'_, '_>, records: i64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(dir.path()).unwrap();
    let mut db = Db::open(&disk, "db", DbOptions::default(), IDENTITY).unwrap();
    let mut last = 0;
    bencher
        .counter(ItemsCount::new(records.unsigned_abs()))
        .with_inputs(|| {
            let batch = CommitBatch {
                records: vec![(1..=records).map(|at| record(last + at)).collect()],
                applied: LogPosition {
                    index: LogIndex((last + records).unsigned_abs()),
                    term: Term(1),
                },
                ..CommitBatch::default()
            };
            last += records;
            batch
        })
        .bench_local_values(|batch| db.commit(&batch).unwrap());
}

fn record(major: i64) -> Record {
    let (key, value) = (key(major.unsigned_abs()), [7; VALUE_BYTES]);
    let fields = record::Fields {
        key: key.as_bytes(),
        create_revision: Revision(major),
        mod_revision: Revision(major),
        version: 1,
        value: &value,
        ..record::Fields::default()
    };
    Record {
        rev: Rev::new(Revision(major), 0),
        kind: RecordKind::Put,
        kv: record::encode(&fields),
    }
}
