//! The owner of a data directory: a small file with the member's identity, written once, at the end of its first start.
//!
//! It contains the format of the whole directory, so that an older program refuses a newer directory before it writes to it.

use super::{
    disk::Disk,
    value_file::{ValueFile, ValueFileError},
};
use crate::types::Identity;
use bincode::{Decode, Encode};

/// The newest directory format this program reads, and the one it writes.
pub const FORMAT_VERSION: u32 = 1;

const FILE: ValueFile = ValueFile {
    name: "member",
    unfinished: "member.new",
    magic: *b"QUORATE\0",
    version: FORMAT_VERSION,
};

/// The member that a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Owner {
    pub identity: Identity,
    /// The name it had when it was made.
    pub name: String,
}

/// Reads the owner; `None` if the directory has no such file.
pub fn read(disk: &dyn Disk) -> Result<Option<Owner>, ValueFileError> {
    FILE.read(disk)
}

/// Writes the owner of a new directory, atomically and durably.
pub fn write(disk: &dyn Disk, owner: &Owner) -> Result<(), ValueFileError> {
    FILE.write(disk, owner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        storage::sim_disk::SimDisk,
        types::{ClusterId, MemberId},
    };

    #[test]
    fn what_is_written_is_read_back() {
        let disk = SimDisk::new(1);
        assert_eq!(read(&disk).unwrap(), None, "a new directory is nobody's");
        let owner = Owner {
            identity: Identity {
                cluster: ClusterId(7),
                member: MemberId(9),
            },
            name: "n1".to_owned(),
        };
        write(&disk, &owner).unwrap();
        assert_eq!(read(&disk).unwrap(), Some(owner));
    }
}
