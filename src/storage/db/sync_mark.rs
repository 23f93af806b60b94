//! A mark that a sync failed, so that the next start writes the database's bytes again.
//!
//! After a failed sync the file still reads back as written, from the page cache, while some of it may never reach the disk: the
//! kernel considers it written, and a later sync does not write it again. The process ends at once, but the next one reads the
//! same cache, finds the newest commit complete, continues from it, and reuses the pages of the commit before. If power is lost
//! then, neither commit is complete, and the database cannot be opened.
//!
//! So a mark beside the database says whether a sync has failed. If so, the next open writes every byte again and syncs, before
//! anything else. The mark itself need not be durable: it is in the same cache, and once that is lost, reads return what the disk
//! has.

use crate::storage::disk::{Disk, DiskFile, OpenMode};
use std::{io, sync::Arc};

/// The mark's file name, in the database's directory.
const NAME: &str = "synced";
/// All syncs succeeded.
const SOUND: u8 = b'1';
/// A sync failed, or it is unknown.
const DOUBTFUL: u8 = b'0';
/// Bytes that are written again at a time.
const CHUNK_BYTES: usize = 1024 * 1024;

/// The mark: one byte of a file of its own.
#[derive(Clone, Debug)]
pub(super) struct SyncMark(Arc<dyn DiskFile>);

impl SyncMark {
    /// The mark of the databases in the directory of `database`.
    pub(super) fn open(disk: &dyn Disk, database: &str) -> io::Result<Self> {
        let name = match database.rsplit_once('/') {
            Some((dir, _)) => format!("{dir}/{NAME}"),
            None => NAME.to_owned(),
        };
        let mode = OpenMode {
            create: true,
            direct: false,
        };
        Ok(Self(disk.open(&name, mode)?))
    }

    /// A sync has failed.
    pub(super) fn doubt(&self) {
        // If this fails too, nothing else can be done.
        self.0.write_at(0, &[DOUBTFUL]).unwrap_or_default();
    }

    /// Writes and syncs all bytes of `database` again, unless the mark says that all syncs succeeded.
    pub(super) fn settle(&self, database: &dyn DiskFile) -> io::Result<()> {
        let mut found = [DOUBTFUL];
        if !self.0.is_empty()? {
            self.0.read_at(0, &mut found)?;
        }
        if found == [SOUND] {
            return Ok(());
        }
        write_again(database)?;
        self.0.write_at(0, &[SOUND])
    }
}

fn write_again(file: &dyn DiskFile) -> io::Result<()> {
    let len = file.len()?;
    file.set_len(len)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < len {
        let left = usize::try_from(len - at).unwrap_or(usize::MAX);
        let part = &mut chunk[..left.min(CHUNK_BYTES)];
        file.read_at(at, part)?;
        file.write_at(at, part)?;
        at += part.len() as u64;
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FILE, OWNER, batch, dump, expected};
    use super::super::{Db, DbOptions};
    use crate::storage::sim_disk::{Fault, SimDisk};

    /// So many records to a commit that some pages of it are not touched by the next.
    const WIDTH: u32 = 150;

    /// A sync fails, the process comes back, goes on, and the machine loses power.
    #[test]
    fn a_database_outlives_a_failed_sync_and_a_loss_of_power_after_it() {
        let mut failed = 0;
        for seed in 0..12 {
            for nth in 1..40 {
                let disk = SimDisk::new(seed);
                let open = || Db::open(&disk, FILE, DbOptions::default(), OWNER);
                let mut db = open().unwrap();
                for index in 1..=3 {
                    db.commit(&batch(index, WIDTH)).unwrap();
                }
                disk.fail_nth(nth, Fault::Io);
                let first = (4..=9).find(|index| db.commit(&batch(*index, WIDTH)).is_err());
                failed += u32::from(first.is_some());
                disk.kill_process();
                drop(db);
                let mut db = open().unwrap();
                let next = db.applied().index.0 + 1;
                for index in next..next + 3 {
                    db.commit(&batch(index, WIDTH)).unwrap();
                }
                let newest = next + 2;
                // Some of a commit under way, but not all.
                disk.fail_nth(1 + seed % 5, Fault::Io);
                drop(db.commit(&batch(newest + 1, WIDTH)));
                disk.crash();
                drop(db);
                let db = open().unwrap_or_else(|error| panic!("seed {seed}, {nth}: {error}"));
                let applied = db.applied().index.0;
                assert!(
                    applied >= newest,
                    "seed {seed}, {nth}: {applied} of {newest}"
                );
                assert_eq!(
                    dump(&db).unwrap(),
                    expected(applied, WIDTH),
                    "seed {seed}, {nth}"
                );
            }
        }
        assert!(failed > 100, "only {failed} commits failed");
    }
}
