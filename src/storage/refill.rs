//! The request for a refill: a small file in the data directory, which the next start finds.
//!
//! A member whose database is damaged, or differs from the others', writes the file and stops; an operator may write it too, with
//! any content. The next start puts the database aside and waits for a leader's snapshot. Log, term, vote and identity stay, so
//! that the member loses no vote and no entry that it acknowledged.

use super::disk::{Disk, OpenMode};
use std::io;

/// The file's name in the data directory.
pub const REFILL: &str = "refill";

/// The longest reason that is stored; the rest is cut off.
const REASON_BYTES_MAX: usize = 4_096;

/// Requests a refill at the next start, durably. The next start logs the reason.
pub fn request(disk: &dyn Disk, reason: &str) -> io::Result<()> {
    let mode = OpenMode {
        create: true,
        direct: false,
    };
    let file = disk.open(REFILL, mode)?;
    let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
    file.set_len(0)?;
    file.write_at(0, reason)?;
    file.sync_data()?;
    disk.sync_dir("")
}

/// The reason, if a refill is requested.
pub fn requested(disk: &dyn Disk) -> io::Result<Option<String>> {
    if !disk.list("")?.iter().any(|name| name == REFILL) {
        return Ok(None);
    }
    let mode = OpenMode {
        create: false,
        direct: false,
    };
    let file = disk.open(REFILL, mode)?;
    let length = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    let mut reason = vec![0; length.min(REASON_BYTES_MAX)];
    file.read_at(0, &mut reason)?;
    Ok(Some(String::from_utf8_lossy(&reason).trim().to_owned()))
}

/// Removes the request: the refill is done, or will be done without it.
pub fn granted(disk: &dyn Disk) -> io::Result<()> {
    disk.remove(REFILL)?;
    disk.sync_dir("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim_disk::SimDisk;

    #[test]
    fn a_wish_outlives_a_crash_until_it_is_granted() {
        let disk = SimDisk::new(1);
        assert_eq!(requested(&disk).unwrap(), None);
        request(&disk, "it differs").unwrap();
        disk.crash();
        assert_eq!(requested(&disk).unwrap().as_deref(), Some("it differs"));
        request(&disk, "again").unwrap();
        assert_eq!(requested(&disk).unwrap().as_deref(), Some("again"));
        granted(&disk).unwrap();
        disk.crash();
        assert_eq!(requested(&disk).unwrap(), None);
    }

    #[test]
    fn an_operator_s_empty_file_counts() {
        let disk = SimDisk::new(1);
        let mode = OpenMode {
            create: true,
            direct: false,
        };
        disk.open(REFILL, mode).unwrap();
        assert_eq!(requested(&disk).unwrap().as_deref(), Some(""));
    }
}
