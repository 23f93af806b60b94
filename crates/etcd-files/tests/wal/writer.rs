//! Writes logs as etcd does, and some as it never would.

use prost::{Message, encoding::encode_varint};
use quorate_etcd_files::{
    messages::{Entry, HardState, Metadata, Record},
    wal::{Wal, WalError},
};
use std::{fs, path::Path};
use tempfile::TempDir;

pub(crate) const METADATA: Metadata = Metadata {
    node_id: 0x8e9e_05c5_2164_694d,
    cluster_id: 0xcdf8_18de_2e80_9b56,
};

// The kinds of records.
pub(crate) const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CHECKSUM: i64 = 4;
const SNAPSHOT: i64 = 5;

/// One file of a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Where each frame begins.
    pub(crate) frames: Vec<usize>,
}

/// A log in memory.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) files: Vec<File>,
    crc: u32,
    state: HardState,
}

impl Log {
    /// A log without entries, as a new member writes it.
    pub(crate) fn new() -> Self {
        let mut log = Self {
            files: Vec::new(),
            crc: 0,
            state: HardState::default(),
        };
        log.begin(0);
        log.snapshot(0, 0);
        log
    }

    /// Begins the next file. `next` is the index of the entry that is to come.
    pub(crate) fn cut(&mut self, next: u64) {
        self.begin(next);
        if self.state != HardState::default() {
            self.record(STATE, self.state.encode_to_vec());
        }
    }

    fn begin(&mut self, next: u64) {
        let sequence = self.files.len();
        self.files.push(File {
            name: format!("{sequence:016x}-{next:016x}.wal"),
            ..File::default()
        });
        self.frame(&Record {
            kind: CHECKSUM,
            crc: self.crc,
            ..Record::default()
        });
        self.record(1, METADATA.encode_to_vec());
    }

    pub(crate) fn entry(&mut self, index: u64, term: u64, data: &[u8]) {
        let entry = Entry {
            kind: 0,
            term,
            index,
            data: data.to_vec().into(),
        };
        self.record(ENTRY, entry.encode_to_vec());
    }

    pub(crate) fn state(&mut self, term: u64, commit: u64) {
        self.state = HardState {
            term,
            vote: METADATA.node_id,
            commit,
        };
        self.record(STATE, self.state.encode_to_vec());
    }

    pub(crate) fn snapshot(&mut self, index: u64, term: u64) {
        // Zeros too, as etcd does.
        let mut snapshot = vec![1 << 3];
        encode_varint(index, &mut snapshot);
        snapshot.push(2 << 3);
        encode_varint(term, &mut snapshot);
        self.record(SNAPSHOT, snapshot);
    }

    /// Any record, with the right checksum.
    pub(crate) fn record(&mut self, kind: i64, data: Vec<u8>) {
        self.crc = crc32c::crc32c_append(self.crc, &data);
        self.frame(&Record {
            kind,
            crc: self.crc,
            data: data.into(),
        });
    }

    /// Any record, in a frame.
    pub(crate) fn frame(&mut self, record: &Record) {
        let content = record.encode_to_vec();
        let padding = content.len().next_multiple_of(8) - content.len();
        let mut header = content.len() as u64;
        if padding > 0 {
            header |= (0x80 | padding as u64) << 56;
        }
        let file = self.last();
        file.frames.push(file.bytes.len());
        file.bytes.extend(header.to_le_bytes());
        file.bytes.extend(content);
        file.bytes.extend(vec![0; padding]);
    }

    /// The file that is written to.
    pub(crate) fn last(&mut self) -> &mut File {
        self.files.last_mut().unwrap()
    }

    /// Adds zeros to the last file, as preallocation does.
    pub(crate) fn preallocate(&mut self, bytes: usize) {
        self.last().bytes.extend(vec![0; bytes]);
    }

    pub(crate) fn write(&self, directory: &Path) {
        for file in &self.files {
            fs::write(directory.join(&file.name), &file.bytes).unwrap();
        }
    }

    /// Writes the log into a directory of its own.
    pub(crate) fn saved(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        self.write(directory.path());
        directory
    }

    /// Writes the log and reads it.
    pub(crate) fn read(&self) -> Result<Content, WalError> {
        read(self.saved().path())
    }
}

/// What is read of a log.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) wal: Wal,
    /// All entries, committed or not: index, term, data.
    pub(crate) entries: Vec<(u64, u64, Vec<u8>)>,
}

impl Content {
    pub(crate) fn indices(&self) -> Vec<u64> {
        self.entries.iter().map(|(index, ..)| *index).collect()
    }
}

/// Reads a log and all entries that it has.
pub(crate) fn read(directory: &Path) -> Result<Content, WalError> {
    let wal = Wal::open(directory)?;
    let mut entries = Vec::new();
    wal.all_after(wal.first_index() - 1, |entry| {
        entries.push((entry.index, entry.term, entry.data.to_vec()));
        Ok::<_, WalError>(())
    })?;
    Ok(Content { wal, entries })
}
