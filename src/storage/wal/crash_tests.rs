//! Crashes, disk errors and random damage: seeded, and compared with a model that remembers what was flushed.

use super::tests::{
    BLOCK, CloneDisk, DIR, NONE, entries, entry, name, open, options, put, try_open,
};
use super::*;
use crate::{
    storage::{
        encryption::testing,
        sim_disk::{Fault, SimDisk},
    },
    types::MemberId,
};

/// The log that a crash test expects: the flushed part, and the part appended since.
#[derive(Default)]
struct Model {
    base: u64,
    flushed: Vec<Entry>,
    appended: Vec<Entry>,
    flushed_state: HardState,
    state: HardState,
}

/// A seeded source of choices (an LCG): the same on each run.
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

impl Model {
    fn step(&mut self, wal: &mut Wal, choices: &mut Choices) -> Result<(), WalError> {
        match choices.below(12) {
            0 => wal.prepare_spare(),
            1 => {
                wal.seal()?;
                self.flushed();
                Ok(())
            }
            2 => {
                let through = self.base + choices.below(self.flushed.len() as u64 + 1);
                wal.release(LogIndex(through)).map(|_| ())
            }
            3 if self.appended.len() > 3 => self.append(wal, choices, true),
            4..=8 => self.append(wal, choices, false),
            _ => {
                wal.flush()?;
                self.flushed();
                Ok(())
            }
        }
    }

    fn flushed(&mut self) {
        self.flushed.clone_from(&self.appended);
        self.flushed_state = self.state;
    }

    fn append(
        &mut self,
        wal: &mut Wal,
        choices: &mut Choices,
        replace: bool,
    ) -> Result<(), WalError> {
        let last = wal.last().0;
        // Released entries are committed: only later ones are ever replaced.
        let lowest = lock(&wal.catalog).base().0.max(self.base) + 1;
        let first = if replace && last >= lowest {
            // The log itself flushes all pending entries before it replaces some of them.
            wal.flush()?;
            self.flushed();
            last - choices.below((last - lowest + 1).min(4))
        } else {
            last + 1
        };
        self.state = HardState {
            term: Term(self.state.term.0 + 1),
            vote: Some(MemberId(choices.below(3))),
            commit: LogIndex(0),
        };
        let count = 1 + choices.below(3);
        let lens = [0, 10, 400, 3000, 5000, 20_000, 70_000];
        let new: Vec<Entry> = (first..first + count)
            .map(|index| {
                let len = lens[usize::try_from(choices.below(7)).unwrap()];
                entry(index, self.state.term.0, len)
            })
            .collect();
        self.appended.retain(|entry| entry.index.0 < first);
        self.appended.extend(new.iter().cloned());
        wal.append(&Append {
            snapshot: None,
            hard_state: Some(self.state),
            entries: &new,
        })
    }

    /// Checks that the log holds what was flushed, or that and all that was appended since, which then counts as flushed.
    fn check(&mut self, recovered: &Recovered, seed: u64) {
        let is_flushed = recovered.entries == self.flushed
            && recovered.hard_state.term == self.flushed_state.term;
        let is_appended =
            recovered.entries == self.appended && recovered.hard_state.term == self.state.term;
        assert!(
            is_flushed || is_appended,
            "seed {seed}: log ends at {}, flushed {:?}, appended {:?}",
            recovered.last,
            self.flushed.last().map(|entry| (entry.index, entry.term)),
            self.appended.last().map(|entry| (entry.index, entry.term)),
        );
        if is_flushed {
            self.appended.clone_from(&self.flushed);
            self.state = self.flushed_state;
        } else {
            self.flushed();
        }
    }
}

fn crash_loop(seed: u64, faults: bool) {
    let disk = SimDisk::new(seed);
    let mut choices = Choices(seed);
    let mut model = Model::default();
    for _ in 0..12 {
        let opened = Wal::open(disk.share(), DIR, options(), NONE.max(LogIndex(model.base)));
        let (mut wal, recovered) = match opened {
            Ok(opened) => opened,
            // The fault may occur while the log is opened; the next attempt has none.
            Err(WalError::Io { .. }) if faults => {
                disk.crash();
                continue;
            }
            Err(error) => panic!("seed {seed}: {error}"),
        };
        lock(&wal.catalog).check();
        model.check(&recovered, seed);
        if faults {
            let fault = if choices.below(2) == 0 {
                Fault::Io
            } else {
                Fault::NoSpace
            };
            disk.fail_nth(1 + choices.below(60), fault);
        }
        for _ in 0..choices.below(40) {
            let stepped = model.step(&mut wal, &mut choices);
            assert!(faults || stepped.is_ok(), "seed {seed}: {stepped:?}");
            lock(&wal.catalog).check();
            let base = lock(&wal.catalog).base().0.max(model.base);
            model.base = base;
            model.flushed.retain(|entry| entry.index.0 > base);
            model.appended.retain(|entry| entry.index.0 > base);
            if wal.is_poisoned() {
                break;
            }
            let read = wal.reader().read(LogIndex(base + 1), usize::MAX).unwrap();
            assert_eq!(read, model.flushed, "seed {seed}");
        }
        drop(wal);
        if choices.below(4) == 0 {
            disk.kill_process();
        } else {
            disk.crash();
        }
    }
}

#[test]
fn crashes_lose_nothing_flushed_and_resurrect_nothing_cut() {
    for seed in 0..80 {
        crash_loop(seed, false);
    }
}

#[test]
fn crashes_after_disk_errors_lose_nothing_flushed() {
    for seed in 1000..1080 {
        crash_loop(seed, true);
    }
}

#[test]
fn a_crash_while_the_log_is_created_leaves_a_log_that_opens() {
    for seed in 0..40 {
        let disk = SimDisk::new(seed);
        disk.fail_nth(1 + seed % 8, Fault::Io);
        if let Ok((mut wal, _)) = try_open(&disk, 0) {
            put(&mut wal, &entries(1..=1, 1));
            disk.crash();
            assert_eq!(open(&disk).1.entries, entries(1..=1, 1));
        } else {
            disk.crash();
            let (mut wal, recovered) = open(&disk);
            assert_eq!(recovered.last, NONE);
            put(&mut wal, &entries(1..=1, 1));
        }
    }
}

#[test]
fn random_damage_anywhere_never_panics_and_never_changes_an_entry() {
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let (mut wal, _) = open(&disk);
        for index in 1..=12 {
            put(&mut wal, &[entry(index, 1, 3000)]);
        }
        drop(wal);
        disk.flip_random_bit(&name(1)).unwrap();
        if let Ok((_, recovered)) = try_open(&disk, 0) {
            let expected: Vec<Entry> = (1..=12).map(|index| entry(index, 1, 3000)).collect();
            assert_eq!(recovered.entries, expected, "seed {seed}: an entry was cut");
        }
    }
}

#[test]
fn crashes_and_damage_do_to_an_encrypted_log_what_they_do_to_any() {
    testing::encrypted(crashes_lose_nothing_flushed_and_resurrect_nothing_cut);
    testing::encrypted(crashes_after_disk_errors_lose_nothing_flushed);
    testing::encrypted(a_crash_while_the_log_is_created_leaves_a_log_that_opens);
    testing::encrypted(random_damage_anywhere_never_panics_and_never_changes_an_entry);
}

mod garbage {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn a_file_of_garbage_is_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..20_000),
            keep_header in any::<bool>(),
        ) {
            let disk = SimDisk::new(1);
            drop(open(&disk));
            disk.take_direct(false);
            let mode = OpenMode { create: false, direct: false };
            let file = disk.share().open(&name(1), mode).unwrap();
            file.write_at(if keep_header { BLOCK } else { 0 }, &bytes).unwrap();
            // With the tag at its end the first sector counts as written, and it holds no header.
            let layout = Layout::Tagged { lives: 0 };
            let is_tagged = bytes.get(..512).and_then(|sector| layout.is_written(sector));
            match try_open(&disk, 0) {
                Ok((_, recovered)) => {
                    prop_assert!(recovered.entries.is_empty());
                    prop_assert!(!keep_header || is_tagged != Some(true), "not refused");
                }
                Err(error) => {
                    let is_damaged = matches!(error, WalError::Damaged { .. });
                    let is_expected = !keep_header || is_tagged == Some(true);
                    prop_assert!(is_damaged && is_expected, "{}", error);
                }
            }
        }
    }
}
