//! Refill: an operator's request that a member's database is put aside and filled again by a leader's snapshot.
//!
//! ```text
//! refill (a file)           db/revisions.redb                 what the next start does
//! ───────────────────────   ───────────────────────────────   ─────────────────────────────────────────────────────
//! there                     the old one                       puts it aside
//! there                     none (put aside)                  makes one that awaits a snapshot
//! there                     an empty one, the old one aside   makes it one that awaits a snapshot
//! there                     one that awaits a snapshot        removes the file
//! none                      one that awaits a snapshot        waits
//! none                      the snapshot                      nothing
//! ```
//!
//! The log stays, with term and vote, so the member votes and acknowledges entries as before, and no quorum loses anything. It
//! applies nothing, does not campaign and serves no client until the snapshot is installed. A member that lost its log, or its
//! whole directory, cannot be refilled: remove it and add it anew.

use super::{data_directory::PUT_ASIDE, error::StartError};
use crate::{
    actors::{load, members::Members},
    failpoint::{self, FailPoint},
    storage::{
        db::{CommitBatch, Db, DbSite},
        disk::Disk,
        refill,
    },
    types::LogPosition,
};
use bytes::Bytes;

/// Whether the database is to be put aside.
pub(super) fn is_asked_for(disk: &dyn Disk) -> Result<bool, StartError> {
    Ok(refill::requested(disk)
        .map_err(StartError::Refill)?
        .is_some())
}

/// The membership in this member's own database, or in the one that it has put aside; `None` if neither can be read.
pub(super) fn own_members(site: &DbSite) -> Option<Bytes> {
    let stored = |name| read(site, name)?.membership;
    stored(site.name).or_else(|| stored(PUT_ASIDE))
}

/// Whether the database awaits a snapshot already: an earlier start has done all but remove the request.
pub(super) fn is_nearly_done(site: &DbSite) -> bool {
    read(site, site.name).is_some_and(|database| database.awaits)
}

/// Puts the database aside, if that is asked for. `members` is the membership that the new one begins with, encoded.
pub(super) fn put_aside(site: &DbSite, members: Option<&Bytes>) -> Result<(), StartError> {
    let disk = &*site.disk;
    let Some(reason) = refill::requested(disk).map_err(StartError::Refill)? else {
        return Ok(());
    };
    let old = read(site, site.name);
    if old.as_ref().is_some_and(|old| old.awaits) {
        return granted(site);
    }
    let membership = members.ok_or(StartError::RefillUnknown)?;
    let members = Members::decode(membership).map_err(load::LoadStateError::from)?;
    if members.iter().count() < 2 {
        return Err(StartError::RefillAlone);
    }
    tracing::warn!(
        reason,
        aside = PUT_ASIDE,
        "the database is put aside: this member waits for a snapshot"
    );
    // An empty one beside the old one was made by a start that a crash ended: the old one must not be replaced by it.
    let begun = old.is_some_and(|old| old.is_empty) && exists(disk, PUT_ASIDE)?;
    if !begun && exists(disk, site.name)? {
        disk.rename(site.name, PUT_ASIDE)
            .map_err(StartError::Refill)?;
        disk.sync_dir(site.dir()).map_err(StartError::Refill)?;
    }
    failpoint::hit(FailPoint::AfterDatabaseAside);
    let mut db = Db::open(disk, site.name, site.options, site.identity)?;
    db.commit(&CommitBatch {
        applied: db.applied(),
        meta: load::refill_meta(membership),
        ..CommitBatch::default()
    })?;
    drop(db);
    failpoint::hit(FailPoint::AfterRefillDatabase);
    granted(site)
}

/// Removes the request. The process that made the new database may have died before it synced the directory, so this syncs it
/// first: a member that has neither a database nor a request does not start.
fn granted(site: &DbSite) -> Result<(), StartError> {
    site.disk
        .sync_dir(site.dir())
        .and_then(|()| refill::granted(&*site.disk))
        .map_err(StartError::Refill)
}

/// What could be read of a database that may be damaged.
struct Old {
    awaits: bool,
    /// It was created, and nothing was committed to it.
    is_empty: bool,
    membership: Option<Bytes>,
}

fn read(site: &DbSite, name: &str) -> Option<Old> {
    if !exists(&*site.disk, name).ok()? {
        return None;
    }
    let db = Db::open(&*site.disk, name, site.options, site.identity).ok()?;
    let membership = load::membership(&db).ok()?;
    Some(Old {
        awaits: load::awaits_snapshot(&db).ok()?,
        is_empty: membership.is_none() && db.applied() == LogPosition::default(),
        membership,
    })
}

fn exists(disk: &dyn Disk, name: &str) -> Result<bool, StartError> {
    let (dir, base) = name.rsplit_once('/').unwrap_or(("", name));
    let names = disk.list(dir).map_err(StartError::Refill)?;
    Ok(names.iter().any(|name| name == base))
}
