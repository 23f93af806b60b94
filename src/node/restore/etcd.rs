//! What a store of etcd's format holds, as Quorate stores it, in the order of Quorate's database.
//!
//! Records have the same bytes in both. Left out: the mark of a bumped revision, which is no key; what was left of a lease's
//! time, since leases start over; and the membership, versions and downgrades of the cluster that was.

use super::error::RestoreError;
use crate::{
    actors::{leases::TTL_SECS_MAX, load},
    auth::{
        Row,
        change::{PasswordHash, Permission},
        state::imported,
    },
    codec,
    kv::{command::AlarmKind, lease::LeaseRow},
    node::data_directory::RESTORED_AT,
    storage::db::Db,
    types::{LeaseId, MemberId, Record, RecordKind, Rev, Revision},
};
use quorate_etcd_files::{
    bolt::Source,
    messages::{self, User},
    store::{Store, StoreError, Unknown},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A part of the state.
pub(super) enum Item {
    /// Of users and roles.
    Row(String, Vec<u8>),
    Lease(LeaseId, Vec<u8>),
    Record(Record),
}

/// What there is besides items, and how many of them there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// What this compaction gave up is not among the records. A later one may have been decided.
    pub(super) carried_out: Option<Revision>,
    pub(super) alarms: BTreeSet<(MemberId, AlarmKind)>,
    pub(super) records: u64,
    pub(super) leases: u64,
    pub(super) users: u64,
    pub(super) roles: u64,
    /// There is something to store of users and roles.
    pub(super) has_rows: bool,
    /// Marks of bumped revisions.
    pub(super) marks: u64,
}

impl Totals {
    /// Counts what a database holds, after further changes.
    pub(super) fn count_again(&mut self, db: &Db) -> Result<(), RestoreError> {
        let (loaded, _) = load::load_state(db)?;
        self.records = db.usage().records;
        self.leases = loaded.leases.iter().count() as u64;
        self.users = loaded.auth.users().count() as u64;
        self.roles = loaded.auth.roles().count() as u64;
        Ok(())
    }
}

/// Takes the items, one after the other.
type Each<'a> = &'a mut dyn FnMut(Item) -> Result<(), RestoreError>;

/// Calls `each` with all items of the store. In memory are the users and roles, and one of the others.
pub(super) fn visit<S: Source>(store: &Store<S>, each: Each<'_>) -> Result<Totals, RestoreError> {
    let meta = store.meta()?;
    let compacted = meta.compacted();
    let mut totals = Totals {
        revision: Revision(compacted).max(Revision::FIRST),
        compacted: Revision(compacted),
        carried_out: meta.finished_compaction.map(Revision),
        alarms: alarms(store)?,
        records: 0,
        leases: 0,
        users: 0,
        roles: 0,
        has_rows: false,
        marks: 0,
    };
    let rows = rows(store, &mut totals)?;
    totals.has_rows = !rows.is_empty();
    for (name, value) in rows {
        each(Item::Row(name, value))?;
    }
    leases(store, each, &mut totals)?;
    records(store, each, &mut totals)?;
    Ok(totals)
}

fn records<S: Source>(
    store: &Store<S>,
    each: Each<'_>,
    totals: &mut Totals,
) -> Result<(), RestoreError> {
    for record in store.records()? {
        let record = record?;
        let major = Revision(record.main);
        totals.revision = totals.revision.max(major);
        if record.is_bump() {
            totals.marks += 1;
            continue;
        }
        totals.records += 1;
        each(Item::Record(Record {
            rev: Rev::new(major, record.sub),
            kind: if record.tombstone {
                RecordKind::Tombstone
            } else {
                RecordKind::Put
            },
            kv: record.kv,
        }))?;
    }
    Ok(())
}

/// An etcd orders leases by their ids as unsigned numbers, Quorate's database by the signed ones.
fn leases<S: Source>(
    store: &Store<S>,
    each: Each<'_>,
    totals: &mut Totals,
) -> Result<(), RestoreError> {
    for negative in [true, false] {
        for lease in store.leases()? {
            let messages::Lease { id, ttl, .. } = lease?;
            if (id < 0) != negative {
                continue;
            }
            if id == 0 {
                return Err(RestoreError::LeaseId);
            }
            if !(1..=TTL_SECS_MAX).contains(&ttl) {
                return Err(RestoreError::LeaseTime { id, ttl });
            }
            totals.leases += 1;
            let row = LeaseRow::new(ttl, RESTORED_AT.index);
            each(Item::Lease(LeaseId(id), codec::encode(&row)))?;
        }
    }
    Ok(())
}

fn alarms<S: Source>(store: &Store<S>) -> Result<BTreeSet<(MemberId, AlarmKind)>, RestoreError> {
    let mut alarms = BTreeSet::new();
    for alarm in store.alarms()? {
        let alarm = alarm?;
        let kind = if alarm.alarm == messages::AlarmKind::Corrupt as i32 {
            AlarmKind::Corrupt
        } else {
            AlarmKind::NoSpace
        };
        alarms.insert((MemberId(alarm.member_id), kind));
    }
    Ok(alarms)
}

/// The rows of users and roles, if there is anything to store of them.
fn rows<S: Source>(
    store: &Store<S>,
    totals: &mut Totals,
) -> Result<BTreeMap<String, Vec<u8>>, RestoreError> {
    let auth = store.auth()?;
    let enabled = auth.enabled.unwrap_or(false);
    // etcd: a store without a number has this one.
    let revision = auth.revision.unwrap_or(0).max(1);
    let mut rows: Vec<Row> = Vec::new();
    for role in store.roles()? {
        let role = role?;
        let permissions = role.permissions.into_iter().map(|it| Permission {
            kind: it.kind,
            key: it.key.to_vec(),
            range_end: it.range_end.to_vec(),
        });
        let name = text("role", &role.name)?;
        rows.push(imported::role_row(&name, permissions.collect()));
        totals.roles += 1;
    }
    for user in store.users()? {
        rows.push(user_row(user?, revision)?);
        totals.users += 1;
    }
    if enabled || revision > 1 || !rows.is_empty() {
        rows.push(imported::state_row(enabled, revision));
    }
    let stored = rows
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    Ok(stored.collect())
}

fn user_row(user: User, revision: u64) -> Result<Row, RestoreError> {
    let name = text("user", &user.name)?;
    let no_password = user.options.is_some_and(|options| options.no_password);
    let password = (!no_password).then(|| PasswordHash(Arc::from(&user.password[..])));
    let roles = user.roles.into_iter().collect();
    Ok(imported::user_row(&name, password, roles, revision))
}

fn text(what: &'static str, name: &[u8]) -> Result<String, RestoreError> {
    let text = str::from_utf8(name).map(str::to_owned);
    text.map_err(|_| RestoreError::Name {
        what,
        name: name.escape_ascii().to_string(),
    })
}

/// What the store has that is not known here, for people. It does not come along.
pub(super) fn unknown<S: Source>(store: &Store<S>) -> Result<Vec<String>, StoreError> {
    let shown = |unknown| match unknown {
        Unknown::Bucket { name } => format!("bucket \"{}\"", name.escape_ascii()),
        Unknown::Key { bucket, key } => {
            format!("key \"{}\" of bucket \"{bucket}\"", key.escape_ascii())
        }
    };
    Ok(store.unknown()?.into_iter().map(shown).collect())
}
