//! The hash of what is restored: it shows that all of it was written, and members whose hashes differ refuse each other.
//!
//! Users and roles, then leases, then records, each in the order of the database; so that it can be computed while a source is
//! read, and again from the database.

use super::error::RestoreError;
use crate::{
    actors::load::Summary,
    auth::state::ROWS,
    kv::command::AlarmKind,
    storage::db::Db,
    types::{LeaseId, RecordKind, Rev},
};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// A SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest([u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Takes all parts of a state, in their order.
#[derive(Default)]
pub(super) struct Digester(Sha256);

impl Digester {
    pub(super) fn row(&mut self, name: &str, value: &[u8]) {
        self.part(b'u', name.as_bytes(), value);
    }

    pub(super) fn lease(&mut self, id: LeaseId, value: &[u8]) {
        self.part(b'l', &id.0.to_be_bytes(), value);
    }

    pub(super) fn record(&mut self, rev: Rev, kind: RecordKind, kv: &[u8]) {
        let mut key = [0; 13];
        key[..8].copy_from_slice(&rev.major.0.to_be_bytes());
        key[8..12].copy_from_slice(&rev.sub.to_be_bytes());
        key[12] = match kind {
            RecordKind::Put => 0,
            RecordKind::Tombstone => 1,
        };
        self.part(b'r', &key, kv);
    }

    /// Lengths are part of the hash, so that no two states give the same bytes.
    fn part(&mut self, kind: u8, key: &[u8], value: &[u8]) {
        self.0.update([kind]);
        for bytes in [key, value] {
            self.0.update((bytes.len() as u64).to_be_bytes());
            self.0.update(bytes);
        }
    }

    pub(super) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// The hash of the users, roles, leases and records in a database. Verifies each.
pub(super) fn of_contents(db: &Db) -> Result<Digest, RestoreError> {
    let mut digester = Digester::default();
    let reader = db.reader()?;
    reader.for_each_meta(|name, value| {
        if name.starts_with(ROWS) {
            digester.row(name, value);
        }
    })?;
    reader.for_each_lease(|id, value| digester.lease(id, value))?;
    reader.for_each(|record| digester.record(record.rev, record.kind, record.kv))?;
    Ok(digester.finish())
}

/// The hash of all that members must agree on, out of that of the contents.
pub(super) fn of_state(contents: Digest, summary: &Summary) -> Digest {
    let mut digester = Digester::default();
    digester.part(b'c', &contents.0, &[]);
    let (revision, compacted) = (summary.revision.0, summary.compacted.0);
    digester.part(b's', &revision.to_be_bytes(), &compacted.to_be_bytes());
    for (member, kind) in &summary.alarms {
        let kind: &[u8] = match kind {
            AlarmKind::NoSpace => b"NOSPACE",
            AlarmKind::Corrupt => b"CORRUPT",
            AlarmKind::StateDiffers => b"differs",
            AlarmKind::QuotaReached => b"quota",
        };
        digester.part(b'a', &member.0.to_be_bytes(), kind);
    }
    digester.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_borders_between_parts_count() {
        let of = |parts: &[(&str, &str)]| {
            let mut digester = Digester::default();
            for (name, value) in parts {
                digester.row(name, value.as_bytes());
            }
            digester.finish()
        };
        assert_eq!(of(&[("a", "b")]), of(&[("a", "b")]));
        assert_ne!(of(&[("a", "b")]), of(&[("ab", "")]));
        assert_ne!(of(&[("a", ""), ("b", "")]), of(&[("b", ""), ("a", "")]));
        assert_eq!(of(&[]).to_string().len(), 64);
    }
}
