//! Opens redb's file so that redb verifies all of it, with the layers that find later damage.

use super::{
    DbOptions,
    error::{Damage, DbError, from_io, from_redb},
    guard::Guard,
    sync_mark::SyncMark,
};
use crate::storage::{
    backend::DiskBackend,
    disk::{Disk, DiskFile, OpenMode},
};
use redb::Database;
use std::sync::Arc;

/// Opens the file; redb verifies and repairs it. If `existing`, the file was created before, so an empty one is damaged.
pub(super) fn open_redb(
    disk: &dyn Disk,
    name: &str,
    file: &Arc<str>,
    options: DbOptions,
    existing: bool,
) -> Result<(Database, Arc<dyn DiskFile>), DbError> {
    let io = |source| from_io(file, source);
    let mode = OpenMode {
        create: !existing,
        direct: false,
    };
    let disk_file = disk.open(name, mode).map_err(io)?;
    if existing && disk_file.is_empty().map_err(io)? {
        return Err(DbError::Damaged {
            file: file.clone(),
            damage: Damage::Pages("the file is empty".to_owned()),
        });
    }
    let mark = SyncMark::open(disk, name).map_err(io)?;
    mark.rewrite_unless_sound(&*disk_file, name).map_err(io)?;
    let backend = DiskBackend::new(disk_file.clone());
    let backend = Guard::new(backend, move || mark.record_failed_sync());
    let redb = Database::builder()
        .set_cache_size(options.cache_bytes)
        .create_with_backend(backend)
        .map_err(|error| from_redb(file, error))?;
    Ok((redb, disk_file))
}
