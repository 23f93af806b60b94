//! The index and the state machine: the cost of applying a batch, and of lookups.

use crate::{VALUE_BYTES, key, scattered};
use bytes::Bytes;
use divan::{Bencher, black_box, counter::ItemsCount};
use quorate::internals::{
    codec::Blob,
    kv::{
        KeyRange,
        command::{Command, EncodedKv, Put},
        index::{Index, Snapshot},
        machine::{LoadedState, Machine},
        records::{ReadError, Records},
    },
    types::{LeaseId, LogIndex, LogPosition, RecordKind, Rev, Revision, Term},
};

const SIZES: [u64; 2] = [10_000, 1_000_000];

/// An index with this many keys, inserted in order.
fn filled(keys: u64) -> Index {
    let mut index = Index::new();
    for number in 0..keys {
        index.put(key(number).as_bytes(), rev(number + 2), LeaseId(0));
    }
    index
}

fn rev(major: u64) -> Rev {
    Rev::new(Revision(major.cast_signed()), 0)
}

/// Overwrites 64 keys and publishes a snapshot, which a reader keeps until the next.
#[divan::bench(args = SIZES)]
fn index_insert_64_and_publish(bencher: Bencher<'_, '_>, keys: u64) {
    let mut index = filled(keys);
    let mut published = index.snapshot();
    let mut next = keys + 2;
    let mut order = scattered(keys);
    bencher
        .counter(ItemsCount::new(64_u64))
        .with_inputs(|| {
            let batch = order.by_ref().take(64);
            batch
                .map(|number| Bytes::from(key(number)))
                .collect::<Vec<_>>()
        })
        .bench_local_refs(|batch| {
            for key in batch {
                index.put(key, rev(next), LeaseId(0));
                next += 1;
            }
            published = index.snapshot();
        });
    drop(published);
}

#[divan::bench(args = SIZES)]
fn index_get(bencher: Bencher<'_, '_>, keys: u64) {
    let index = filled(keys);
    let mut order = scattered(keys).map(key);
    bencher
        .with_inputs(|| order.next().unwrap_or_default())
        .bench_local_refs(|key| index.get(key.as_bytes()).is_some());
}

/// Looks up 64 keys that are known together, as the applier does with a batch.
#[divan::bench(args = SIZES)]
fn index_warm_and_get_64(bencher: Bencher<'_, '_>, keys: u64) {
    let index = filled(keys);
    let mut order = scattered(keys).map(key);
    bencher
        .counter(ItemsCount::new(64_u64))
        .with_inputs(|| order.by_ref().take(64).collect::<Vec<_>>())
        .bench_local_refs(|batch| {
            index.prefetch(batch.iter().map(String::as_bytes));
            for key in batch {
                black_box(index.get(key.as_bytes()));
            }
        });
}

#[divan::bench(args = SIZES)]
fn index_range_of_100(bencher: Bencher<'_, '_>, keys: u64) {
    let index = filled(keys);
    let mut order = scattered(keys - 100);
    bencher
        .counter(ItemsCount::new(100_u64))
        .with_inputs(|| between(order.next().unwrap_or_default(), 100))
        .bench_local_refs(|range| {
            for found in index.live(range) {
                black_box(found);
            }
        });
}

#[divan::bench(args = SIZES)]
fn index_count_of_half(bencher: Bencher<'_, '_>, keys: u64) {
    let index = filled(keys);
    let mut order = scattered(keys / 2);
    bencher
        .with_inputs(|| between(order.next().unwrap_or_default(), keys / 2))
        .bench_local_refs(|range| index.count(range));
}

fn between(from: u64, keys: u64) -> KeyRange {
    KeyRange::from_wire(&key(from).into(), &key(from + keys).into())
}

/// Applies this many puts, updates the index and publishes: the work of the applier and the index for one batch.
#[divan::bench(args = [1, 64, 500])]
fn applier_batch(bencher: Bencher<'_, '_>, puts: u64) {
    let mut index = filled(10_000);
    let loaded = LoadedState {
        revision: Revision(10_002),
        ..LoadedState::default()
    };
    let mut machine = Machine::new(loaded, index.snapshot());
    let mut log = LogIndex(0);
    let mut order = scattered(10_000);
    bencher
        .counter(ItemsCount::new(puts))
        .with_inputs(|| {
            let keys = order.by_ref().take(usize::try_from(puts).unwrap());
            keys.map(put).collect::<Vec<_>>()
        })
        .bench_local_refs(|commands| apply(commands, &mut machine, &mut index, &mut log));
}

fn put(number: u64) -> Command {
    Command::Put(Put {
        key: Blob(key(number).into()),
        value: Blob(vec![7; VALUE_BYTES].into()),
        ..Put::default()
    })
}

fn apply(commands: &[Command], machine: &mut Machine, index: &mut Index, log: &mut LogIndex) {
    for command in commands {
        *log = log.next();
        let at = LogPosition {
            index: *log,
            term: Term(1),
        };
        black_box(machine.apply(command, at, &Nothing, None).unwrap().is_ok());
    }
    for change in machine.take_changes().keys {
        assert_eq!(change.kind, RecordKind::Put, "nothing else was proposed");
        index.put(&change.key, change.rev, change.lease);
    }
    let snapshot: Snapshot = index.snapshot();
    machine.published(snapshot, machine.revision());
}

/// Stored records, which a put never reads.
struct Nothing;

impl Records for Nothing {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        unreachable!("a put without conditions reads no record, here {rev:?}")
    }
}
