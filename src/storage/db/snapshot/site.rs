//! Where a member's database is, and how a new one that was written beside it takes its place.

use super::super::{
    Db, DbOptions,
    error::{DbError, from_io},
    sync_mark::INCOMING,
};
use crate::{
    failpoint::{FailPoint, hit},
    storage::disk::Disk,
    types::Identity,
};
use std::sync::Arc;

/// Where a member's database is, and its identity.
#[derive(Clone, Debug)]
pub struct DbSite {
    pub disk: Arc<dyn Disk>,
    pub name: &'static str,
    pub options: DbOptions,
    pub identity: Identity,
}

impl DbSite {
    pub(super) fn incoming(&self) -> String {
        format!("{}{INCOMING}", self.name)
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &'static str {
        self.name.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Removes what an interrupted transfer left.
    pub fn discard_incoming(&self) -> Result<(), DbError> {
        remove_leftover(&*self.disk, self.name)
    }

    /// Installs a database that was written beside this one: one rename replaces the old file, durably. If the old one is open,
    /// it can still be read.
    pub fn switch(&self, mut received: Db) -> Result<Db, DbError> {
        let file: Arc<str> = self.name.into();
        let io = |source| from_io(&file, source);
        hit(FailPoint::BeforeSnapshotSwitch);
        let renamed = self.disk.rename(&self.incoming(), self.name);
        renamed.map_err(io)?;
        hit(FailPoint::AfterSnapshotRename);
        self.disk.sync_dir(self.dir()).map_err(io)?;
        hit(FailPoint::AfterSnapshotSwitch);
        received.file = file;
        Ok(received)
    }
}

/// Removes what an interrupted transfer left beside the database `name`.
pub(in super::super) fn remove_leftover(disk: &dyn Disk, name: &str) -> Result<(), DbError> {
    let leftover = format!("{name}{INCOMING}");
    let (dir, base) = leftover.rsplit_once('/').unwrap_or(("", &leftover));
    let file: Arc<str> = leftover.as_str().into();
    let io = |source| from_io(&file, source);
    if disk.list(dir).map_err(io)?.iter().any(|name| name == base) {
        disk.remove(&leftover).map_err(io)?;
    }
    Ok(())
}
