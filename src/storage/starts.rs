//! A small file in the data directory: which members have begun to take part in consensus, as far as this one has recorded it,
//! and whether this one has begun.
//!
//! A voter whose disk was lost looks like one that never ran. So the members that form a cluster record each other's beginning,
//! durably, before any of them votes or acknowledges an entry. `docs/data-directory.md` has the protocol.

use super::{
    disk::Disk,
    value_file::{ValueFile, ValueFileError},
};
use crate::types::{MemberId, Term};
use bincode::{Decode, Encode};
use std::{collections::BTreeSet, sync::Arc};

/// The file's name in the data directory.
pub const STARTS: &str = "starts";
/// The file under construction.
pub const STARTS_UNFINISHED: &str = "starts.new";

const FILE: ValueFile = ValueFile {
    name: STARTS,
    unfinished: STARTS_UNFINISHED,
    magic: *b"QRTSTART",
    version: 1,
};

/// How a member came to its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Origin {
    /// It is one of those that formed the cluster.
    Formed,
    /// It was added to a cluster that ran.
    Joined,
    /// A version that kept no such records made the directory. The member counts as one without records.
    Earlier,
    /// `quorate restore` made it, for one of those that form the cluster, and the others were not asked yet whether this member
    /// has taken part before.
    Restored,
    /// It was restored, and enough of the others had not seen it begin.
    RestoredAndAsked,
}

impl Origin {
    /// The term that a member has which has never taken part.
    pub fn first_term(self) -> Term {
        match self {
            Self::Formed | Self::Joined | Self::Earlier => Term(0),
            Self::Restored | Self::RestoredAndAsked => Term(1),
        }
    }
}

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Starts {
    pub origin: Origin,
    /// Whether this member takes part in consensus: enough others have recorded that it begins.
    pub begun: bool,
    /// The members that this one has recorded.
    pub recorded: BTreeSet<MemberId>,
}

impl Starts {
    /// The content for a member that has recorded nobody yet.
    pub fn new(origin: Origin, begun: bool) -> Self {
        Self {
            origin,
            begun,
            recorded: BTreeSet::new(),
        }
    }
}

/// Reads the file. A directory without it was made by an earlier version, whose members begin at once.
pub fn read(disk: &dyn Disk) -> Result<Starts, ValueFileError> {
    let found = FILE.read(disk)?;
    Ok(found.unwrap_or_else(|| Starts::new(Origin::Earlier, true)))
}

/// Writes the file, atomically and durably.
pub fn write(disk: &Arc<dyn Disk>, starts: &Starts) -> Result<(), ValueFileError> {
    FILE.write(&**disk, starts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim_disk::SimDisk;

    #[test]
    fn what_is_written_is_read_back_and_no_file_is_one_of_an_earlier_version() {
        let disk = SimDisk::new(1);
        let earlier = read(&disk).unwrap();
        assert_eq!(earlier, Starts::new(Origin::Earlier, true));
        let some = Starts {
            origin: Origin::Formed,
            begun: false,
            recorded: [MemberId(3), MemberId(9)].into(),
        };
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        write(&shared, &some).unwrap();
        assert_eq!(read(&disk).unwrap(), some);
    }
}
