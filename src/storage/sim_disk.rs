//! A disk in memory that loses unsynced writes, tears writes, flips bits and fails: all from one seed.
//!
//! It is for tests, and lives here because the simulator, the log's tests and the database's share it. It is deterministic: it
//! has no clock, and no entropy but the seed. It guarantees no more than POSIX does: a file's name is durable only after
//! [`Disk::sync_dir`], its bytes only after [`DiskFile::sync_data`], and after a failed sync unsynced bytes may be lost although
//! they still read back and a later sync succeeds.

use super::disk::{DIRECT_ALIGN, Disk, DiskFile, OpenMode};
use crate::{
    mutation::{Mutation, mutated},
    types::SplitMix64,
};
use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The unit of a torn write: after a crash each sector of it is either new or old.
const SECTOR_BYTES: usize = 512;

/// The directory of the log, whose syncs [`Mutation::SkipSync`] leaves out.
const LOG_DIR: &str = "wal";

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An I/O error. A write may be done in part; after a failed sync, unsynced bytes may be lost.
    Io,
    /// No space is left. A write may be done in part.
    NoSpace,
    /// The process dies there: a write may be done in part, and nothing reaches the disk until [`SimDisk::crash`] or
    /// [`SimDisk::kill_process`] says how it died.
    Death,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<DiskState>>,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.state);
        f.debug_struct("SimDisk")
            .field("files", &state.names.keys())
            .field("operations", &state.operations)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct DiskState {
    random: SplitMix64,
    takes_direct: bool,
    /// Counts crashes: file handles opened before the last one fail.
    life: u64,
    /// Writes, syncs and changes of names so far.
    operations: u64,
    /// The operation that will fail, and how.
    fault: Option<(u64, Fault)>,
    /// The process died at an operation.
    dead: bool,
    /// The longest that a write and its sync take, in microseconds.
    micros_max: u64,
    /// How long they take while the disk stalls, in microseconds.
    stalled_micros: u64,
    /// The free space that it reports.
    free_bytes: u64,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_changes: Vec<NameChange>,
}

#[derive(Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<FileChange>,
}

#[derive(Clone, Debug)]
enum FileChange {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Debug)]
struct NameChange {
    removed: Option<String>,
    added: Option<(String, usize)>,
}

fn lock(state: &Mutex<DiskState>) -> MutexGuard<'_, DiskState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn position(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl NameChange {
    fn touches(&self, dir: &str) -> bool {
        let removed = self.removed.as_deref();
        let added = self.added.as_ref().map(|(name, _)| name.as_str());
        removed
            .into_iter()
            .chain(added)
            .any(|name| dir_of(name) == dir)
    }

    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(name) = &self.removed {
            names.remove(name);
        }
        if let Some((name, inode)) = &self.added {
            names.insert(name.clone(), *inode);
        }
    }
}

impl FileChange {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Length(len) => bytes.resize(*len, 0),
            Self::Write { offset, data } => {
                let end = offset + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(data);
            }
        }
    }

    /// The part of a write that `keep` lets through, sector by sector.
    fn apply_sectors(&self, bytes: &mut Vec<u8>, mut keep: impl FnMut() -> bool) {
        let Self::Write { offset, data } = self else {
            if keep() {
                self.apply(bytes);
            }
            return;
        };
        let mut at = 0;
        while at < data.len() {
            let sector_end = (offset + at) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES;
            let end = (sector_end - offset).min(data.len());
            if keep() {
                let data = data[at..end].to_vec();
                let offset = offset + at;
                Self::Write { offset, data }.apply(bytes);
            }
            at = end;
        }
    }
}

impl Inode {
    fn change(&mut self, change: FileChange) {
        change.apply(&mut self.now);
        self.unsynced.push(change);
    }

    /// Whether the file was synced before, and all writes since then are after its first block: that is how the log writes
    /// batches.
    fn is_appended_to(&self) -> bool {
        let behind = |change: &FileChange| matches!(change, FileChange::Write { offset, .. } if *offset >= DIRECT_ALIGN);
        !self.durable.is_empty() && self.unsynced.iter().all(behind)
    }

    fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.durable);
        }
    }
}

impl DiskState {
    /// A number below `limit`, which is not zero.
    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn coin(&mut self) -> bool {
        self.random.next_u64() & 1 == 1
    }

    /// Counts an operation, and says whether it fails.
    fn operation(&mut self) -> Option<Fault> {
        self.operations += 1;
        let (at, fault) = self.fault?;
        if self.operations < at {
            return None;
        }
        self.fault = None;
        self.dead = fault == Fault::Death;
        Some(fault)
    }

    fn require_alive(&self) -> io::Result<()> {
        if self.dead {
            return Err(Fault::Death.error());
        }
        Ok(())
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    fn crash_names(&mut self) {
        let changes = std::mem::take(&mut self.name_changes);
        // Some file systems keep the order of changes, others do not.
        let kept_in_order = self.coin().then(|| self.below(changes.len() + 1));
        for (at, change) in changes.iter().enumerate() {
            let kept = match kept_in_order {
                Some(count) => at < count,
                None => self.coin(),
            };
            if kept {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
    }

    fn crash_inode(&mut self, at: usize) {
        let changes = std::mem::take(&mut self.inodes[at].unsynced);
        let mut bytes = std::mem::take(&mut self.inodes[at].durable);
        for (number, change) in changes.iter().enumerate() {
            let last = number + 1 == changes.len();
            match (self.below(4), change) {
                (0, _) => {}
                (1, _) => change.apply(&mut bytes),
                (2, FileChange::Write { offset, data }) if last => {
                    let kept = self.below(data.len() + 1);
                    let (offset, data) = (*offset, data[..kept].to_vec());
                    FileChange::Write { offset, data }.apply(&mut bytes);
                }
                _ => change.apply_sectors(&mut bytes, || self.coin()),
            }
        }
        self.inodes[at].now.clone_from(&bytes);
        self.inodes[at].durable = bytes;
    }

    /// Fails a change, after doing a part of a write.
    fn fail_change(&mut self, inode: usize, change: &FileChange, fault: Fault) -> io::Error {
        if let FileChange::Write { offset, data } = change {
            let kept = self.below(data.len() + 1);
            let (offset, data) = (*offset, data[..kept].to_vec());
            self.inodes[inode].change(FileChange::Write { offset, data });
        }
        fault.error()
    }

    /// Fails a sync: some of the unsynced changes will be lost in a crash, although they read back now.
    fn fail_sync(&mut self, inode: usize, fault: Fault) -> io::Error {
        if fault == Fault::Death {
            return fault.error();
        }
        let mut changes = std::mem::take(&mut self.inodes[inode].unsynced);
        changes.retain(|_| self.coin());
        self.inodes[inode].unsynced = changes;
        fault.error()
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Io => io::Error::other("simulated I/O error"),
            Self::NoSpace => io::Error::new(io::ErrorKind::StorageFull, "simulated full disk"),
            Self::Death => io::Error::other("the simulated process is dead"),
        }
    }
}

impl SimDisk {
    /// An empty disk that supports direct I/O, and checks its alignment.
    pub fn new(seed: u64) -> Self {
        let state = DiskState {
            random: SplitMix64::new(seed),
            takes_direct: true,
            life: 0,
            operations: 0,
            fault: None,
            dead: false,
            micros_max: 0,
            stalled_micros: 0,
            free_bytes: u64::MAX,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Sets whether files opened from now on may bypass the page cache.
    pub fn take_direct(&self, takes: bool) {
        lock(&self.state).takes_direct = takes;
    }

    /// Sets what it says about its free space. Writes succeed all the same: see [`Fault::NoSpace`].
    pub fn say_free(&self, bytes: u64) {
        lock(&self.state).free_bytes = bytes;
    }

    /// Power is lost and comes back: open files fail, and any part of what was not synced may be lost.
    pub fn crash(&self) {
        let mut state = lock(&self.state);
        state.life += 1;
        state.fault = None;
        state.dead = false;
        state.crash_names();
        for at in 0..state.inodes.len() {
            state.crash_inode(at);
        }
    }

    /// The process is killed and the machine goes on: open files fail, nothing is lost.
    pub fn kill_process(&self) {
        let mut state = lock(&self.state);
        state.life += 1;
        state.fault = None;
        state.dead = false;
    }

    /// Makes the `n`th operation from now on fail (the first is 1): a write, a sync, a change of length or of names.
    pub fn fail_nth(&self, n: u64, fault: Fault) {
        let mut state = lock(&self.state);
        state.fault = Some((state.operations + n.max(1), fault));
    }

    /// Whether the process died at an operation ([`Fault::Death`]).
    pub fn is_dead(&self) -> bool {
        lock(&self.state).dead
    }

    /// No operation fails from now on.
    pub fn forgive(&self) {
        lock(&self.state).fault = None;
    }

    /// From now on a write with its sync takes a random time of at most `most`: see [`Disk::takes`].
    pub fn take_up_to(&self, most: Duration) {
        lock(&self.state).micros_max = micros(most);
    }

    /// From now on a write with its sync takes at least `least`; zero ends the stall.
    pub fn stall(&self, least: Duration) {
        lock(&self.state).stalled_micros = micros(least);
    }

    /// How many operations there were that can fail.
    pub fn operations(&self) -> u64 {
        lock(&self.state).operations
    }

    /// Flips a bit (0 to 7) of the byte at `offset`, in synced data too. False if there is no such byte.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u32) -> bool {
        self.change_byte(name, offset, |byte| byte ^ (1 << (bit % 8)))
    }

    /// Flips a random bit of the file, and returns the offset of its byte. `None` if the file is empty or missing.
    pub fn flip_random_bit(&self, name: &str) -> Option<u64> {
        let (offset, bit) = {
            let mut state = lock(&self.state);
            let inode = *state.names.get(name)?;
            let len = state.inodes[inode].now.len();
            if len == 0 {
                return None;
            }
            (state.below(len) as u64, state.below(8))
        };
        self.flip_bit(name, offset, u32::try_from(bit).unwrap_or(0))
            .then_some(offset)
    }

    /// Sets the byte at `offset`, in synced data too. False if there is no such byte.
    pub fn set_byte(&self, name: &str, offset: u64, value: u8) -> bool {
        self.change_byte(name, offset, |_| value)
    }

    /// Cuts a file to `len` bytes, its synced data too. False if there is no such file.
    pub fn cut(&self, name: &str, len: u64) -> bool {
        let mut state = lock(&self.state);
        let Some(inode) = state.names.get(name).copied() else {
            return false;
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let inode = &mut state.inodes[inode];
        inode.now.truncate(len);
        inode.durable.truncate(len);
        true
    }

    fn change_byte(&self, name: &str, offset: u64, change: impl Fn(u8) -> u8) -> bool {
        let mut state = lock(&self.state);
        let Some(inode) = state.names.get(name).copied() else {
            return false;
        };
        let Ok(at) = usize::try_from(offset) else {
            return false;
        };
        let inode = &mut state.inodes[inode];
        let mut found = false;
        for bytes in [&mut inode.now, &mut inode.durable] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = change(*byte);
                found = true;
            }
        }
        found
    }

    /// The file's bytes as a process would read them now.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let state = lock(&self.state);
        let inode = *state.names.get(name)?;
        Some(state.inodes[inode].now.clone())
    }

    fn changed_names(&self) -> io::Result<MutexGuard<'_, DiskState>> {
        let mut state = lock(&self.state);
        state.require_alive()?;
        match state.operation() {
            Some(fault) => Err(fault.error()),
            None => Ok(state),
        }
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let known = {
            let state = lock(&self.state);
            state.require_alive()?;
            state.names.get(name).copied()
        };
        let inode = match known {
            Some(inode) => inode,
            None if !mode.create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                let mut state = self.changed_names()?;
                state.inodes.push(Inode::default());
                let inode = state.inodes.len() - 1;
                state.change_names(NameChange {
                    removed: None,
                    added: Some((name.to_owned(), inode)),
                });
                inode
            }
        };
        let state = lock(&self.state);
        Ok(Arc::new(SimFile {
            state: Arc::clone(&self.state),
            inode,
            life: state.life,
            direct: mode.direct && state.takes_direct,
            log: dir_of(name) == LOG_DIR,
        }))
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = lock(&self.state);
        let names = state.names.keys().filter(|name| dir_of(name) == dir);
        let names = names.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned());
        Ok(names.collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.changed_names()?;
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change_names(NameChange {
            removed: Some(from.to_owned()),
            added: Some((to.to_owned(), inode)),
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.changed_names()?;
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change_names(NameChange {
            removed: Some(name.to_owned()),
            added: None,
        });
        Ok(())
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.changed_names()?;
        let changes = std::mem::take(&mut state.name_changes);
        for change in changes {
            if change.touches(dir) {
                change.apply(&mut state.durable_names);
            } else {
                state.name_changes.push(change);
            }
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(lock(&self.state).free_bytes)
    }

    fn takes(&self) -> Duration {
        let mut state = lock(&self.state);
        let drawn = match state.micros_max {
            0 => 0,
            most => state.random.next_u64() % most,
        };
        Duration::from_micros(drawn.max(state.stalled_micros))
    }
}

#[derive(Debug)]
struct SimFile {
    state: Arc<Mutex<DiskState>>,
    inode: usize,
    life: u64,
    direct: bool,
    /// Whether it is in the log's directory.
    log: bool,
}

impl SimFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, DiskState>> {
        let state = lock(&self.state);
        if state.life != self.life {
            return Err(Fault::Death.error());
        }
        state.require_alive()?;
        Ok(state)
    }

    fn change(&self, change: FileChange) -> io::Result<()> {
        let mut state = self.alive()?;
        if let Some(fault) = state.operation() {
            return Err(state.fail_change(self.inode, &change, fault));
        }
        state.inodes[self.inode].change(change);
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = position(offset)?;
        let aligned = data.as_ptr().align_offset(DIRECT_ALIGN) == 0
            && data.len().is_multiple_of(DIRECT_ALIGN)
            && offset.is_multiple_of(DIRECT_ALIGN);
        if self.direct && !aligned {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let data = data.to_vec();
        self.change(FileChange::Write { offset, data })
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.alive()?;
        let start = position(offset)?;
        let end = start.checked_add(out.len());
        let found = end.and_then(|end| state.inodes[self.inode].now.get(start..end));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.alive()?;
        if mutated(Mutation::SkipSync) && self.log && state.inodes[self.inode].is_appended_to() {
            return Ok(());
        }
        if let Some(fault) = state.operation() {
            return Err(state.fail_sync(self.inode, fault));
        }
        state.inodes[self.inode].sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.inodes[self.inode].now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(FileChange::Length(position(len)?))
    }

    fn is_direct(&self) -> bool {
        self.direct
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATE: OpenMode = OpenMode {
        create: true,
        direct: false,
    };

    fn read(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
        disk.contents(name)
    }

    #[test]
    fn synced_bytes_under_synced_names_survive_and_others_may_not() {
        let mut fates = [0; 3];
        for seed in 0..200 {
            let disk = SimDisk::new(seed);
            let file = disk.open("d/a", CREATE).unwrap();
            file.write_at(0, &[1; 2048]).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir("d").unwrap();
            file.write_at(0, &[2; 2048]).unwrap();
            disk.open("d/b", CREATE).unwrap();
            disk.crash();
            let kept = read(&disk, "d/a").unwrap();
            assert_eq!(kept.len(), 2048);
            assert!(kept.iter().all(|byte| *byte == 1 || *byte == 2));
            match (kept.contains(&1), kept.contains(&2)) {
                (true, false) => fates[0] += 1,
                (false, true) => fates[1] += 1,
                _ => fates[2] += 1,
            }
            assert!(file.sync_data().is_err(), "handles do not outlive a crash");
        }
        assert!(fates.iter().all(|count| *count > 10), "{fates:?}");
    }

    #[test]
    fn a_seed_gives_the_same_crash_each_time() {
        let crash = |seed| {
            let disk = SimDisk::new(seed);
            let file = disk.open("a", CREATE).unwrap();
            disk.sync_dir("").unwrap();
            file.write_at(3, &[7; 9000]).unwrap();
            file.set_len(7000).unwrap();
            disk.crash();
            disk.contents("a").unwrap()
        };
        assert_eq!(crash(5), crash(5));
        assert!((0..50).any(|seed| crash(seed) != crash(5)));
    }

    #[test]
    fn unsynced_names_may_be_lost() {
        let survives = |seed| {
            let disk = SimDisk::new(seed);
            let file = disk.open("a", CREATE).unwrap();
            file.write_at(0, b"x").unwrap();
            file.sync_data().unwrap();
            disk.crash();
            disk.contents("a").is_some()
        };
        let count = (0..100).filter(|seed| survives(*seed)).count();
        assert!((10..90).contains(&count), "{count}");
    }

    #[test]
    fn after_a_failed_sync_a_second_one_proves_nothing() {
        let lost = |seed| {
            let disk = SimDisk::new(seed);
            let file = disk.open("a", CREATE).unwrap();
            disk.sync_dir("").unwrap();
            file.write_at(0, b"x").unwrap();
            disk.fail_nth(1, Fault::Io);
            assert!(file.sync_data().is_err());
            file.sync_data().unwrap();
            assert_eq!(disk.contents("a").unwrap(), b"x");
            disk.crash();
            disk.contents("a").unwrap().is_empty()
        };
        assert!((0..50).any(lost));
        assert!(!(0..50).all(lost));
    }

    #[test]
    fn the_nth_operation_fails_once() {
        let disk = SimDisk::new(1);
        let file = disk.open("a", CREATE).unwrap();
        disk.fail_nth(2, Fault::NoSpace);
        file.write_at(0, b"one").unwrap();
        let error = file.write_at(3, b"two").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        file.write_at(3, b"two").unwrap();
        assert_eq!(disk.contents("a").unwrap(), b"onetwo");
    }

    #[test]
    fn a_process_that_dies_at_an_operation_does_nothing_more() {
        for power in [false, true] {
            let disk = SimDisk::new(1);
            let file = disk.open("a", CREATE).unwrap();
            disk.sync_dir("").unwrap();
            file.write_at(0, b"one").unwrap();
            disk.fail_nth(1, Fault::Death);
            assert!(file.sync_data().is_err());
            assert!(disk.is_dead());
            assert!(file.write_at(3, b"two").is_err());
            assert!(disk.open("a", CREATE).is_err());
            assert!(disk.rename("a", "b").is_err());
            if power {
                disk.crash();
            } else {
                disk.kill_process();
                assert_eq!(read(&disk, "a").unwrap(), b"one", "the system has it");
            }
            assert!(!disk.is_dead());
            assert!(file.write_at(3, b"two").is_err(), "of the dead process");
            disk.open("a", CREATE).unwrap().write_at(3, b"two").unwrap();
        }
    }

    #[test]
    fn unaligned_direct_writes_are_refused() {
        let disk = SimDisk::new(1);
        let direct = OpenMode {
            create: true,
            direct: true,
        };
        let file = disk.open("a", direct).unwrap();
        assert!(file.is_direct());
        assert!(file.write_at(0, b"short").is_err());
        disk.take_direct(false);
        let file = disk.open("a", direct).unwrap();
        assert!(!file.is_direct());
        file.write_at(0, b"short").unwrap();
    }
}
