//! A small file in the data directory that holds one value: read as a whole, and replaced as a whole by a rename.
//!
//! `docs/format.md` has the bytes. The formats of `member` and `starts` are two `ValueFile`s.

use super::disk::{Disk, OpenMode};
use crate::codec::{self, CodecError};
use bincode::{Decode, Encode};
use std::io;

/// Magic, version, payload length, CRC32C of all that and the payload.
const HEADER_BYTES: usize = 20;
/// Where the checksum is.
const CHECKSUM_AT: usize = 16;
const PAYLOAD_BYTES_MAX: u32 = 64 * 1024;

/// One such file: its names, and the format that this version writes.
#[derive(Debug)]
pub(super) struct ValueFile {
    pub(super) name: &'static str,
    /// The file under construction.
    pub(super) unfinished: &'static str,
    pub(super) magic: [u8; 8],
    /// The newest format that this version reads, and the one it writes.
    pub(super) version: u32,
}

/// Why such a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ValueFileError {
    #[error("cannot {action} file {file} of the data directory: {source}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        file: &'static str,
        /// The error of the disk.
        source: io::Error,
    },
    /// A newer version of this program wrote it. Start that one.
    #[error(
        "file {file} of the data directory has format {found}, newer than {known}, the newest this version reads: start the \
         version that wrote it"
    )]
    NewerFormat {
        file: &'static str,
        found: u32,
        known: u32,
    },
    /// The file has changed since it was written.
    #[error(
        "file {file} of the data directory is damaged ({what}): restore it from a backup, or, in a cluster with a healthy \
         majority, remove this member, delete its data directory and add it anew"
    )]
    Damaged {
        file: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Its content does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl ValueFile {
    /// Reads the value; `None` if there is no such file.
    pub(super) fn read<T: Decode<()>>(&self, disk: &dyn Disk) -> Result<Option<T>, ValueFileError> {
        let names = disk.list("").map_err(self.failed("list"))?;
        if !names.iter().any(|name| name == self.name) {
            return Ok(None);
        }
        let mode = OpenMode {
            create: false,
            direct: false,
        };
        let file = disk.open(self.name, mode).map_err(self.failed("open"))?;
        let length = file.len().map_err(self.failed("read"))?;
        if length < HEADER_BYTES as u64 {
            return Err(self.damaged("it is too short"));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(0, &mut header).map_err(self.failed("read"))?;
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if header[..8] != self.magic {
            return Err(self.damaged("its first bytes are wrong"));
        }
        let (found, payload_bytes, checksum) = (number(8), number(12), number(CHECKSUM_AT));
        if found > self.version {
            return Err(ValueFileError::NewerFormat {
                file: self.name,
                found,
                known: self.version,
            });
        }
        if payload_bytes > PAYLOAD_BYTES_MAX
            || length < HEADER_BYTES as u64 + u64::from(payload_bytes)
        {
            return Err(self.damaged("its length is wrong"));
        }
        let mut payload = vec![0; payload_bytes as usize];
        file.read_at(HEADER_BYTES as u64, &mut payload)
            .map_err(self.failed("read"))?;
        if sum(&header[..CHECKSUM_AT], &payload) != checksum {
            return Err(self.damaged("its checksum is wrong"));
        }
        Ok(Some(codec::decode(self.name, &payload)?))
    }

    /// Writes the value, atomically and durably.
    pub(super) fn write<T: Encode>(
        &self,
        disk: &dyn Disk,
        value: &T,
    ) -> Result<(), ValueFileError> {
        let payload = codec::encode(value);
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        assert!(
            length <= PAYLOAD_BYTES_MAX,
            "file {} would not be read back: {length} bytes",
            self.name
        );
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        let checksum = sum(&bytes, &payload);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&payload);
        let mode = OpenMode {
            create: true,
            direct: false,
        };
        let file = disk
            .open(self.unfinished, mode)
            .map_err(self.failed("create"))?;
        file.set_len(0).map_err(self.failed("write"))?;
        file.write_at(0, &bytes).map_err(self.failed("write"))?;
        file.sync_data().map_err(self.failed("sync"))?;
        disk.rename(self.unfinished, self.name)
            .map_err(self.failed("rename"))?;
        disk.sync_dir("").map_err(self.failed("sync"))
    }

    fn damaged(&self, what: &'static str) -> ValueFileError {
        ValueFileError::Damaged {
            file: self.name,
            what,
        }
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> ValueFileError {
        let file = self.name;
        move |source| ValueFileError::Io {
            action,
            file,
            source,
        }
    }
}

/// The checksum of a file whose header begins with `header`.
fn sum(header: &[u8], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(header), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        disk::DiskFile,
        sim_disk::{Fault, SimDisk},
    };
    use std::sync::Arc;

    const FILE: ValueFile = ValueFile {
        name: "value",
        unfinished: "value.new",
        magic: *b"QRTVALUE",
        version: 3,
    };

    type Value = (u64, String);

    fn value(text: &str) -> Value {
        (7, text.to_owned())
    }

    fn open(disk: &SimDisk) -> Arc<dyn DiskFile> {
        let mode = OpenMode {
            create: false,
            direct: false,
        };
        disk.open(FILE.name, mode).unwrap()
    }

    fn read(disk: &SimDisk) -> Result<Option<Value>, ValueFileError> {
        FILE.read(disk)
    }

    #[test]
    fn what_is_written_outlives_a_loss_of_power() {
        let disk = SimDisk::new(1);
        assert_eq!(read(&disk).unwrap(), None);
        FILE.write(&disk, &value("one")).unwrap();
        disk.crash();
        assert_eq!(read(&disk).unwrap(), Some(value("one")));
        FILE.write(&disk, &value("a longer one")).unwrap();
        disk.crash();
        assert_eq!(read(&disk).unwrap(), Some(value("a longer one")));
    }

    #[test]
    fn a_write_that_is_cut_short_anywhere_leaves_the_old_value_or_the_new() {
        for step in 1.. {
            let disk = SimDisk::new(step);
            FILE.write(&disk, &value("old")).unwrap();
            let before = disk.operations();
            disk.fail_nth(step, Fault::Io);
            let written = FILE.write(&disk, &value("new")).is_ok();
            let all = disk.operations() - before < step;
            disk.crash();
            let found = read(&disk).unwrap().unwrap();
            assert!(
                found == value("new") || (found == value("old") && !written),
                "{step}: {found:?}"
            );
            if all {
                assert!(step > 5, "a write has several operations");
                return;
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let disk = SimDisk::new(1);
        FILE.write(&disk, &value("one")).unwrap();
        let file = open(&disk);
        for at in 0..file.len().unwrap() {
            let mut byte = [0];
            file.read_at(at, &mut byte).unwrap();
            file.write_at(at, &[byte[0] ^ 1]).unwrap();
            let refused = matches!(
                read(&disk),
                Err(ValueFileError::Damaged { .. } | ValueFileError::NewerFormat { .. })
            );
            assert!(refused, "byte {at}");
            file.write_at(at, &byte).unwrap();
        }
        assert_eq!(read(&disk).unwrap(), Some(value("one")));
    }

    #[test]
    fn a_lost_end_is_found() {
        let disk = SimDisk::new(1);
        FILE.write(&disk, &value("one")).unwrap();
        let file = open(&disk);
        for length in (0..file.len().unwrap()).rev() {
            file.set_len(length).unwrap();
            let found = read(&disk);
            assert!(
                matches!(found, Err(ValueFileError::Damaged { .. })),
                "{length} bytes: {found:?}"
            );
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let disk = SimDisk::new(1);
        FILE.write(&disk, &value("one")).unwrap();
        open(&disk).write_at(8, &4_u32.to_le_bytes()).unwrap();
        let error = read(&disk).unwrap_err();
        let newer = ValueFileError::NewerFormat {
            file: "value",
            found: 4,
            known: 3,
        };
        assert_eq!(error.to_string(), newer.to_string());
    }
}
