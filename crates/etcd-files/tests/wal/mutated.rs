//! Logs of which some bytes are anything: reading them ends, with entries in order or with an error.

use crate::writer::Log;
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

/// The log, and the indices and terms of the entries that count.
fn log(steps: &[Step]) -> (Log, Vec<(u64, u64)>) {
    let mut log = Log::new();
    let mut entries: Vec<(u64, u64)> = Vec::new();
    let mut commit = 0;
    for (step, term) in steps.iter().zip(1..) {
        let last = entries.last().map_or(0, |entry| entry.0);
        match step {
            Step::Entry { back, bytes } => {
                let index = (last + 1).saturating_sub(*back).max(commit + 1);
                entries.retain(|entry| entry.0 < index);
                entries.push((index, term));
                log.entry(index, term, &vec![7; *bytes]);
            }
            Step::Commit => {
                commit = last;
                log.state(term, commit);
            }
            Step::Snapshot if commit == 0 => {}
            Step::Snapshot => log.snapshot(commit, term),
            Step::Cut => log.cut(last + 1),
        }
    }
    (log, entries)
}

/// Sets bytes, moves the end, or writes zeros from some place on.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, Vec<u8>),
    Truncate(Index),
    Zero(Index),
}

fn damages() -> impl Strategy<Value = Vec<(Index, Damage)>> {
    let damage = prop_oneof![
        4 => (any::<Index>(), vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Damage::Set(at, bytes)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => any::<Index>().prop_map(Damage::Zero),
    ];
    vec((any::<Index>(), damage), 1..6)
}

fn damage(bytes: &mut Vec<u8>, damage: &Damage) {
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
        Damage::Truncate(at) => bytes.truncate(at.index(length)),
        Damage::Zero(at) => bytes[at.index(length)..].fill(0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whole_logs_are_read_as_they_were_written(steps in steps(), zeros in 0_usize..2_000) {
        let (mut log, entries) = log(&steps);
        log.preallocate(zeros);
        let content = log.read().unwrap();
        let read: Vec<_> = content.entries.iter().map(|(index, term, _)| (*index, *term)).collect();
        prop_assert_eq!(read, entries);
        prop_assert!(content.wal.torn_tail().is_none(), "it is whole");
    }

    #[test]
    fn damaged_logs_end_well(steps in steps(), damages in damages()) {
        let (mut log, _) = log(&steps);
        for (file, what) in &damages {
            let file = file.index(log.files.len());
            damage(&mut log.files[file].bytes, what);
        }
        if let Ok(content) = log.read() {
            let indices = content.indices();
            prop_assert!(indices.is_sorted_by(|one, next| one + 1 == *next), "{:?}", indices);
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
