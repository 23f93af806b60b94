//! Files that are changed at random, thousands of times: whatever they say, reading them ends without a panic.

use crate::support::{
    Contents, Hand, PAGE, branch, bucket, leaf, leaf_of, numbered, with_hash, write,
};
use proptest::{collection::vec, prelude::*};
use quorate_etcd_files::bolt::fuzz;
use std::sync::LazyLock;

static SAMPLES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(samples);

/// Files of every kind of page.
fn samples() -> Vec<Vec<u8>> {
    let mut items = numbered(200, 30);
    items.insert(b"z".to_vec(), vec![b'z'; 3_000]);
    let contents = [
        (b"a".to_vec(), items),
        (b"b".to_vec(), numbered(3, 5)),
        (b"c".to_vec(), numbered(0, 0)),
    ];
    let written = write(&Contents::from(contents), 1_024);
    let inline = [bucket(0), leaf(0, &[(0, b"k", b"v"), (0, b"l", b"")])].concat();
    let tree = branch(2, &[("a", 3), ("c", 4)]);
    let root = leaf(5, &[(1, b"b", &bucket(2)), (1, b"i", &inline)]);
    let mut freelist = leaf(6, &[]);
    freelist[8] = 16;
    let hand = Hand {
        pages: vec![
            tree,
            leaf_of(3, &["a", "b"]),
            leaf_of(4, &["c", "d"]),
            root,
            freelist,
        ],
        root: 5,
        freelist: 6,
    };
    vec![written, hand.file()]
}

#[derive(Debug, Clone)]
enum Change {
    Flip {
        at: usize,
        bit: u8,
    },
    Put {
        at: usize,
        bytes: Vec<u8>,
    },
    /// Copies a part of one page to the same place in another.
    CopyPage {
        from: usize,
        to: usize,
        bytes: usize,
    },
    Truncate {
        bytes: usize,
    },
}

fn change() -> impl Strategy<Value = Change> {
    // Most of what matters is at the beginning of a page.
    let at = (0..40_usize, prop_oneof![0..16_usize, 0..120_usize, 0..PAGE])
        .prop_map(|(page, at)| page * PAGE + at);
    let number = prop_oneof![
        (0..8_u64).prop_map(|number| number.to_le_bytes().to_vec()),
        Just(vec![0xff; 4]),
        vec(any::<u8>(), 1..8),
    ];
    prop_oneof![
        4 => (at.clone(), 0..8_u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        4 => (at.clone(), number).prop_map(|(at, bytes)| Change::Put { at, bytes }),
        2 => (0..40_usize, 0..40_usize, 1..PAGE)
            .prop_map(|(from, to, bytes)| Change::CopyPage { from, to, bytes }),
        1 => at.prop_map(|bytes| Change::Truncate { bytes }),
    ]
}

fn apply(file: &mut Vec<u8>, change: &Change) {
    let length = file.len().max(1);
    match change {
        Change::Flip { at, bit } => {
            if let Some(byte) = file.get_mut(at % length) {
                *byte ^= 1 << bit;
            }
        }
        Change::Put { at, bytes } => {
            for (at, byte) in (at % length..).zip(bytes) {
                if let Some(place) = file.get_mut(at) {
                    *place = *byte;
                }
            }
        }
        Change::CopyPage { from, to, bytes } => {
            let pages = (file.len() / PAGE).max(1);
            let (from, to) = (from % pages * PAGE, to % pages * PAGE);
            if let Some(part) = file.get(from..from + bytes) {
                let part = part.to_vec();
                file[to..to + bytes].copy_from_slice(&part);
            }
        }
        Change::Truncate { bytes } => file.truncate(bytes % length),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn changed_files_are_read_without_a_panic(
        changes in vec(change(), 1..6),
        which in 0..2_usize,
        right_hash in any::<bool>(),
        meta_kept in prop::bool::weighted(0.9),
    ) {
        let original = &SAMPLES[which];
        let mut file = original[..original.len() - 32].to_vec();
        for change in &changes {
            apply(&mut file, change);
        }
        if meta_kept && file.len() >= 2 * PAGE {
            file[..2 * PAGE].copy_from_slice(&original[..2 * PAGE]);
        }
        fuzz(&if right_hash { with_hash(file) } else { file });
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..5_000)) {
        fuzz(&bytes);
    }
}
