//! The owner of a data directory: a small file with the member's identity, written once, at the end of its first start.
//!
//! It contains the format of the whole directory, so that an older program refuses a newer directory before it writes to it.

use super::disk::{Disk, OpenMode};
use crate::{
    codec::{self, CodecError},
    types::Identity,
};
use bincode::{Decode, Encode};
use std::io;

/// The file's name.
const FILE: &str = "member";
/// The file under construction.
const UNFINISHED: &str = "member.new";
/// The newest directory format this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"QUORATE\0";
/// Magic, version, payload length, CRC32C of all that and the payload.
const HEADER_BYTES: usize = 20;
const PAYLOAD_BYTES_MAX: u32 = 64 * 1024;

/// Whose a data directory is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    /// The member.
    pub identity: Identity,
    /// The name it had when it was made.
    pub name: String,
}

/// Why the identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// The disk failed.
    #[error("cannot {action} file {FILE} of the data directory: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// The directory was written by a newer version of this program. Start that one.
    #[error(
        "the data directory has format {found}, newer than {FORMAT_VERSION}, the newest this version reads: start the \
         version that wrote it"
    )]
    NewerFormat {
        /// The format found.
        found: u32,
    },
    /// The file is not what was written.
    #[error(
        "file {FILE} of the data directory is damaged ({what}): restore it from a backup, or, in a cluster with a healthy \
         majority, remove this member, delete its data directory and add it anew"
    )]
    Damaged {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Its content does not decode.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Reads the owner; `None` if the directory has no such file.
pub fn read(disk: &dyn Disk) -> Result<Option<Owner>, MemberError> {
    let present = disk
        .list("")
        .map_err(io_error("list"))?
        .iter()
        .any(|name| name == FILE);
    if !present {
        return Ok(None);
    }
    let mode = OpenMode {
        create: false,
        direct: false,
    };
    let file = disk.open(FILE, mode).map_err(io_error("open"))?;
    let mut header = [0; HEADER_BYTES];
    let len = file.len().map_err(io_error("read"))?;
    if len < HEADER_BYTES as u64 {
        return Err(MemberError::Damaged {
            what: "it is too short",
        });
    }
    file.read_at(0, &mut header).map_err(io_error("read"))?;
    let number = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if header[..8] != MAGIC {
        return Err(MemberError::Damaged {
            what: "it does not begin as it should",
        });
    }
    let (found, payload_len, checksum) = (number(8), number(12), number(16));
    if found > FORMAT_VERSION {
        return Err(MemberError::NewerFormat { found });
    }
    if payload_len > PAYLOAD_BYTES_MAX || len < HEADER_BYTES as u64 + u64::from(payload_len) {
        return Err(MemberError::Damaged {
            what: "its length is wrong",
        });
    }
    let mut payload = vec![0; payload_len as usize];
    file.read_at(HEADER_BYTES as u64, &mut payload)
        .map_err(io_error("read"))?;
    if crc32c::crc32c_append(crc32c::crc32c(&header[..16]), &payload) != checksum {
        return Err(MemberError::Damaged {
            what: "its checksum is wrong",
        });
    }
    Ok(Some(codec::decode("member identity", &payload)?))
}

/// Writes the owner of a new directory, atomically and durably.
pub fn write(disk: &dyn Disk, owner: &Owner) -> Result<(), MemberError> {
    let payload = codec::encode(owner);
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(
        &u32::try_from(payload.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &payload);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&payload);
    let mode = OpenMode {
        create: true,
        direct: false,
    };
    let file = disk.open(UNFINISHED, mode).map_err(io_error("create"))?;
    file.set_len(0).map_err(io_error("write"))?;
    file.write_at(0, &bytes).map_err(io_error("write"))?;
    file.sync_data().map_err(io_error("sync"))?;
    disk.rename(UNFINISHED, FILE).map_err(io_error("rename"))?;
    disk.sync_dir("").map_err(io_error("sync"))
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> MemberError {
    move |source| MemberError::Io { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::real_disk::RealDisk;
    use crate::types::{ClusterId, MemberId};

    fn owner() -> Owner {
        Owner {
            identity: Identity {
                cluster: ClusterId(7),
                member: MemberId(9),
            },
            name: "n1".to_owned(),
        }
    }

    fn flip(disk: &RealDisk, at: u64) {
        let file = disk
            .open(
                FILE,
                OpenMode {
                    create: false,
                    direct: false,
                },
            )
            .unwrap();
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        file.write_at(at, &[byte[0] ^ 1]).unwrap();
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        assert_eq!(
            read(&disk).unwrap(),
            None,
            "a new directory has no identity"
        );
        write(&disk, &owner()).unwrap();
        assert_eq!(read(&disk).unwrap(), Some(owner()));
    }

    #[test]
    fn a_flipped_bit_anywhere_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        write(&disk, &owner()).unwrap();
        let len = disk
            .open(
                FILE,
                OpenMode {
                    create: false,
                    direct: false,
                },
            )
            .unwrap()
            .len()
            .unwrap();
        for at in 0..len {
            flip(&disk, at);
            let refused = matches!(
                read(&disk),
                Err(MemberError::Damaged { .. } | MemberError::NewerFormat { .. })
            );
            assert!(refused, "byte {at}");
            flip(&disk, at);
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(dir.path()).unwrap();
        write(&disk, &owner()).unwrap();
        let file = disk
            .open(
                FILE,
                OpenMode {
                    create: false,
                    direct: false,
                },
            )
            .unwrap();
        file.write_at(8, &(FORMAT_VERSION + 1).to_le_bytes())
            .unwrap();
        let error = read(&disk).unwrap_err();
        assert!(
            matches!(error, MemberError::NewerFormat { found: 2 }),
            "{error}"
        );
    }
}
