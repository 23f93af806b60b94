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

/// What follows, in the name of a received database, the name of the one that it will replace.
pub(super) const INCOMING: &str = ".incoming";
/// The mark's file name, in the database's directory.
const NAME: &str = "synced";
/// All syncs succeeded.
const SOUND: u8 = b'1';
/// A sync failed, or it is unknown whether one did.
const DOUBTFUL: u8 = b'0';

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

    pub(super) fn record_failed_sync(&self) {
        // If this fails too, nothing else can be done.
        self.0.write_at(0, &[DOUBTFUL]).unwrap_or_default();
    }

    /// Writes and syncs all bytes of `database`, whose file is `name`, again, unless the mark says that all syncs succeeded.
    ///
    /// A snapshot that is being received is in a file beside the database. Its opening says nothing about the database, whose
    /// sync may just have failed, so it leaves the mark as it is.
    pub(super) fn rewrite_unless_sound(
        &self,
        database: &dyn DiskFile,
        name: &str,
    ) -> io::Result<()> {
        let mut found = [DOUBTFUL];
        if !self.0.is_empty()? {
            self.0.read_at(0, &mut found)?;
        }
        if found == [SOUND] {
            return Ok(());
        }
        database.write_again()?;
        if name.contains(INCOMING) {
            return Ok(());
        }
        self.0.write_at(0, &[SOUND])
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Db, DbOptions,
            testing::{FILE, OWNER, batch, dump, expected},
        },
        *,
    };
    use crate::storage::{
        encryption::testing,
        sim_disk::{Fault, SimDisk},
    };
    use std::sync::Arc;

    /// So many records to a commit that some pages of it are not touched by the next.
    const WIDTH: u32 = 150;

    /// A sync fails, the process comes back, goes on, and the machine loses power.
    #[test]
    fn a_database_outlives_a_failed_sync_and_a_loss_of_power_after_it() {
        let mut failed = 0;
        for seed in 0..12 {
            for nth in 1..40 {
                let disk = SimDisk::new(seed);
                let open = || {
                    let disk = testing::share(Arc::new(disk.clone()));
                    Db::open(&*disk, FILE, DbOptions::default(), OWNER)
                };
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

    /// The mark was reset by a snapshot that began between a failed sync and the end of the process.
    #[test]
    fn a_snapshot_that_begins_after_a_failed_sync_leaves_the_mark() {
        let disk = SimDisk::new(1);
        let open = |name| Db::open(&disk, name, DbOptions::default(), OWNER).unwrap();
        drop(open(FILE));
        SyncMark::open(&disk, FILE).unwrap().record_failed_sync();
        drop(open("db/revisions.redb.incoming"));
        assert_eq!(disk.contents("db/synced").unwrap(), [DOUBTFUL]);
        drop(open(FILE));
        assert_eq!(disk.contents("db/synced").unwrap(), [SOUND]);
    }

    /// Writing again changed committed pages where encryption gave each a new ciphertext, so that a part of it destroyed them.
    #[test]
    fn writing_again_can_be_cut_short_anywhere() {
        for (fault, loses_power) in [
            (Fault::Death, false),
            (Fault::Death, true),
            (Fault::Io, false),
            (Fault::Io, true),
        ] {
            for nth in 1.. {
                let disk = SimDisk::new(nth);
                let open = || {
                    let disk = testing::share(Arc::new(disk.clone()));
                    Db::open(&*disk, FILE, DbOptions::default(), OWNER)
                };
                let mut db = open().unwrap();
                for index in 1..=3 {
                    db.commit(&batch(index, WIDTH)).unwrap();
                }
                drop(db);
                let mark = SyncMark::open(&disk, FILE).unwrap();
                mark.record_failed_sync();
                mark.0.sync_data().unwrap();
                let before = disk.operations();
                disk.fail_nth(nth, fault);
                drop(open());
                let failed = disk.operations() - before >= nth;
                if loses_power {
                    disk.crash();
                } else {
                    disk.kill_process();
                }
                let db = open().unwrap_or_else(|error| panic!("{fault:?}, {nth}: {error}"));
                assert_eq!(dump(&db).unwrap(), expected(3, WIDTH), "{fault:?}, {nth}");
                if !failed {
                    assert!(nth > 3, "opening has several operations, not {nth}");
                    break;
                }
            }
        }
    }

    #[test]
    fn so_does_an_encrypted_one() {
        testing::encrypted(a_database_outlives_a_failed_sync_and_a_loss_of_power_after_it);
        testing::encrypted(writing_again_can_be_cut_short_anywhere);
    }
}
