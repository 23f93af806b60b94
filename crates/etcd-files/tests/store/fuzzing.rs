//! Stores and files that are changed at random: whatever they say, reading ends without a panic, and what can be read can be
//! written again.

use crate::support::{Raw, file, put, sample};
use proptest::{collection::vec, prelude::*};
use quorate_etcd_files::store::fuzz;
use std::sync::LazyLock;

static SAMPLE: LazyLock<Raw> = LazyLock::new(|| {
    let mut store = sample();
    store.meta.finished_compaction = Some(3);
    store.meta.scheduled_compaction = Some(4);
    for main in 6..30 {
        let value = put("c", main, 6, main - 5, "value");
        store.records.push((main, 0, false, value));
    }
    Raw::of(file(&store))
});

#[derive(Debug, Clone)]
enum Change {
    Flip { at: usize, bit: u8 },
    Put { at: usize, bytes: Vec<u8> },
    Truncate { at: usize },
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0..40_usize;
    prop_oneof![
        4 => (at(), 0..8_u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        3 => (at(), vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Change::Put { at, bytes }),
        1 => at().prop_map(|at| Change::Truncate { at }),
        1 => Just(Change::Remove),
    ]
}

/// Changes the key or the value of an item.
fn apply(raw: &mut Raw, bucket: usize, item: usize, in_key: bool, change: &Change) {
    let buckets = raw.0.len();
    let Some(items) = raw.0.values_mut().nth(bucket % buckets) else {
        return;
    };
    let nth = item % items.len().max(1);
    let Some(key) = items.keys().nth(nth).cloned() else {
        return;
    };
    let value = items.remove(&key).unwrap();
    let (mut key, mut value) = (key, value);
    let bytes = if in_key { &mut key } else { &mut value };
    match change {
        Change::Flip { at, bit } if !bytes.is_empty() => {
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        Change::Flip { .. } => {}
        Change::Put { at, bytes: put } => {
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, put.iter().copied());
        }
        Change::Truncate { at } => bytes.truncate(*at),
        Change::Remove => return,
    }
    if !key.is_empty() {
        items.insert(key, value);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn changed_items_are_read_or_refused(
        changes in vec((0..10_usize, 0..40_usize, any::<bool>(), change()), 1..4)
    ) {
        let mut raw = SAMPLE.clone();
        for (bucket, item, in_key, change) in &changes {
            apply(&mut raw, *bucket, *item, *in_key, change);
        }
        fuzz(&raw.file());
    }

    #[test]
    fn changed_files_are_read_or_refused(
        changes in vec((0..32_usize, 0..300_usize, 0..8_u8), 1..3)
    ) {
        let mut file = SAMPLE.file();
        for (page, at, bit) in changes {
            let at = (page * 4_096 + at) % file.len();
            file[at] ^= 1 << bit;
        }
        fuzz(&file);
    }
}

#[test]
fn a_store_without_faults_is_written_again() {
    fuzz(&SAMPLE.file());
    fuzz(&file(&sample()));
    fuzz(b"");
}
