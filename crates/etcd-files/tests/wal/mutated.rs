//! Logs of which some bytes are anything: reading them ends, with entries in order or with an error.

use crate::writer::{File, Log};
use proptest::{
    collection::vec,
    prelude::{Just, ProptestConfig, Strategy, any},
    prop_assert, prop_assert_eq, prop_oneof, proptest,
    sample::Index,
};
use quorate_etcd_files::{
    messages::{
        AlarmMember, Command, ConfState, Entry, KeyValue, Lease, Member, Role, User, decode_value,
        from_json,
    },
    wal::Snapshots,
};

/// What a step writes.
#[derive(Clone, Debug)]
enum Step {
    /// An entry so many indices before the next.
    Entry {
        back: u64,
        bytes: usize,
    },
    Commit,
    Snapshot,
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0_u64..4, 0_usize..1_500).prop_map(|(back, bytes)| Step::Entry { back, bytes }),
        2 => Just(Step::Commit),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Cut),
    ];
    vec(step, 0..40)
}

/// Index, term and data.
type Entries = Vec<(u64, u64, Vec<u8>)>;

/// The log, and the entries that count: at first, and after each entry that was written.
fn log(steps: &[Step]) -> (Log, Vec<Entries>) {
    let mut log = Log::new();
    let mut history = vec![Entries::new()];
    let mut entries = Entries::new();
    let mut commit = 0;
    for (step, term) in steps.iter().zip(1..) {
        let last = entries.last().map_or(0, |entry| entry.0);
        match step {
            Step::Entry { back, bytes } => {
                let index = (last + 1).saturating_sub(*back).max(commit + 1);
                let data = vec![u8::try_from(term).unwrap(); *bytes];
                entries.retain(|entry| entry.0 < index);
                log.entry(index, term, &data);
                entries.push((index, term, data));
                history.push(entries.clone());
            }
            Step::Commit => {
                commit = last;
                log.state(term, commit);
            }
            Step::Snapshot => {
                let committed = entries.iter().find(|entry| entry.0 == commit);
                if let Some((index, term, _)) = committed {
                    log.snapshot(*index, *term);
                }
            }
            Step::Cut => log.cut(last + 1),
        }
    }
    (log, history)
}

/// Sets bytes, flips a bit near the beginning of a frame, moves the end, or writes zeros from some place on.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, Vec<u8>),
    /// The frame, the byte within it, the bit. The length and the kind stand there, which no checksum covers.
    Flip(Index, usize, u32),
    Truncate(Index),
    Zero(Index),
}

fn damages() -> impl Strategy<Value = Vec<(Index, Damage)>> {
    let damage = prop_oneof![
        4 => (any::<Index>(), vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Damage::Set(at, bytes)),
        4 => (any::<Index>(), 0_usize..12, 0_u32..8)
            .prop_map(|(frame, byte, bit)| Damage::Flip(frame, byte, bit)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => any::<Index>().prop_map(Damage::Zero),
    ];
    vec((any::<Index>(), damage), 1..6)
}

fn damage(file: &mut File, damage: &Damage) {
    let File { bytes, frames, .. } = file;
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match damage {
        Damage::Set(at, new) => {
            let at = at.index(length);
            let count = new.len().min(length - at);
            bytes[at..at + count].copy_from_slice(&new[..count]);
        }
        Damage::Flip(frame, byte, bit) => {
            let at = frames[frame.index(frames.len())] + byte;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
        }
        Damage::Truncate(at) => bytes.truncate(at.index(length)),
        Damage::Zero(at) => bytes[at.index(length)..].fill(0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whole_logs_are_read_as_they_were_written(steps in steps(), zeros in 0_usize..2_000) {
        let (mut log, history) = log(&steps);
        log.preallocate(zeros);
        let content = log.read().unwrap();
        prop_assert_eq!(Some(&content.entries), history.last());
        prop_assert!(content.wal.torn_tail().is_none(), "it is whole");
    }

    #[test]
    fn damaged_logs_end_well(steps in steps(), damages in damages()) {
        let (mut log, history) = log(&steps);
        for (file, what) in &damages {
            let file = file.index(log.files.len());
            damage(&mut log.files[file], what);
        }
        if let Ok(content) = log.read() {
            // The log ends earlier at most, as if the rest had never been written.
            prop_assert!(history.contains(&content.entries), "{:?}", content.entries);
            let whole = history.last() == Some(&content.entries);
            // Where the end is missing from some frame on, nothing tells that there was one.
            let ends = |damage: &Damage| matches!(damage, Damage::Truncate(_) | Damage::Zero(_));
            let may_end = damages.iter().any(|(_, damage)| ends(damage));
            let told = content.wal.torn_tail().is_some();
            prop_assert!(whole || told || may_end, "{:?}", content.entries);
        }
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in vec(any::<u8>(), 0..400)) {
        for kind in 0..4 {
            let entry = Entry { kind, term: 1, index: 1, data: bytes.clone().into() };
            drop(Command::decode(&entry));
        }
        drop(decode_value::<KeyValue>("value", &bytes));
        drop(decode_value::<User>("value", &bytes));
        drop(decode_value::<Role>("value", &bytes));
        drop(decode_value::<Lease>("value", &bytes));
        drop(decode_value::<AlarmMember>("value", &bytes));
        drop(from_json::<Member>("value", &bytes));
        drop(from_json::<ConfState>("value", &bytes));
    }

    #[test]
    fn any_bytes_are_a_snapshot_file_or_a_broken_one(bytes in vec(any::<u8>(), 0..200)) {
        let directory = tempfile::tempdir().unwrap();
        let name = "0000000000000001-0000000000000001.snap";
        std::fs::write(directory.path().join(name), &bytes).unwrap();
        let found = Snapshots::read(directory.path()).unwrap();
        prop_assert_eq!(found.whole.len() + found.broken.len(), 1);
    }
}
