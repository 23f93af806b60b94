//! A member whose database is to be another one: it puts the one it has aside and waits for a snapshot.
//!
//! ```text
//! refill (a file)           db/revisions.redb                 what the next start does
//! ───────────────────────   ───────────────────────────────   ─────────────────────────────────────────────────────
//! there                     the old one                       puts it aside
//! there                     none (put aside)                  makes one that awaits a snapshot
//! there                     one that awaits a snapshot        removes the file
//! none                      one that awaits a snapshot        waits
//! none                      the snapshot                      nothing
//! ```
//!
//! The log stays, with term and vote: so the member votes and acknowledges entries as before, and everything that others count on
//! it for is still there. It applies nothing, stands for no election and serves no client until the snapshot is in place. That is
//! why a member that lost its log, or its directory, cannot be refilled: it has to be removed and added anew.

use super::recover::StartError;
use crate::{
    actors::{members::Members, restore},
    storage::{
        db::{CommitBatch, Db, DbSite},
        disk::Disk,
        refill,
    },
};
use bytes::Bytes;

/// What a database that was put aside is called, after its name.
const ASIDE: &str = ".aside";

/// Whether the database is to be put aside.
pub(super) fn is_asked_for(disk: &dyn Disk) -> Result<bool, StartError> {
    Ok(refill::requested(disk)
        .map_err(StartError::Refill)?
        .is_some())
}

/// Puts the database aside, if that is asked for. `told` is the membership that another member told, if one answered.
pub(super) fn put_aside(site: &DbSite, told: Option<&Bytes>) -> Result<(), StartError> {
    let disk = &*site.disk;
    let Some(reason) = refill::requested(disk).map_err(StartError::Refill)? else {
        return Ok(());
    };
    let aside = format!("{}{ASIDE}", site.name);
    let old = read(site, site.name);
    if old.as_ref().is_some_and(|old| old.awaits) {
        return refill::granted(disk).map_err(StartError::Refill);
    }
    let membership = told
        .cloned()
        .or_else(|| old?.membership)
        .or_else(|| read(site, &aside)?.membership)
        .ok_or(StartError::RefillUnknown)?;
    let members = Members::decode(&membership).map_err(restore::RestoreError::from)?;
    if members.iter().count() < 2 {
        return Err(StartError::RefillAlone);
    }
    tracing::warn!(
        reason,
        aside,
        "the database is put aside: this member waits for a snapshot"
    );
    if exists(disk, site.name)? {
        disk.rename(site.name, &aside).map_err(StartError::Refill)?;
        disk.sync_dir(site.dir()).map_err(StartError::Refill)?;
    }
    let mut db = Db::open(disk, site.name, site.options, site.identity)?;
    db.commit(&CommitBatch {
        applied: db.applied(),
        meta: restore::refill_meta(&membership),
        ..CommitBatch::default()
    })?;
    drop(db);
    refill::granted(disk).map_err(StartError::Refill)
}

/// What a database says that may be damaged.
struct Old {
    awaits: bool,
    membership: Option<Bytes>,
}

fn read(site: &DbSite, name: &str) -> Option<Old> {
    if !exists(&*site.disk, name).ok()? {
        return None;
    }
    let db = Db::open(&*site.disk, name, site.options, site.identity).ok()?;
    Some(Old {
        awaits: restore::awaits_snapshot(&db).ok()?,
        membership: restore::membership(&db).ok()?,
    })
}

fn exists(disk: &dyn Disk, name: &str) -> Result<bool, StartError> {
    let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
    let names = disk.list(dir).map_err(StartError::Refill)?;
    Ok(names.iter().any(|name| name == base))
}
