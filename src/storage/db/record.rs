//! A record as it is read back from table `revisions`, once its checksum and its key were verified.

use super::{
    error::{Damage, DbError},
    format::{KEY_BYTES, parse_revision_key, unseal},
};
use crate::types::{RecordKind, Rev};
use std::sync::Arc;

/// A stored change, borrowed from the page it was read from. Its checksum was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// Its place in history.
    pub rev: Rev,
    pub kind: RecordKind,
    /// The encoded `mvccpb.KeyValue`.
    pub kv: &'a [u8],
}

/// Checks and splits one entry of table `revisions`.
pub(super) fn open_record<'a>(
    file: &Arc<str>,
    key: &[u8; KEY_BYTES],
    sealed: &'a [u8],
) -> Result<RecordRef<'a>, DbError> {
    let damaged = |damage| DbError::Damaged {
        file: file.clone(),
        damage,
    };
    let table = "revisions";
    let parsed = parse_revision_key(key);
    let entry = || match parsed {
        Some((rev, _)) => format!("revision {}.{}", rev.major, rev.sub),
        None => format!("key {key:02x?}"),
    };
    let Some(kv) = unseal(key, sealed) else {
        let entry = entry();
        return Err(damaged(Damage::Checksum { table, entry }));
    };
    let Some((rev, kind)) = parsed else {
        let entry = entry();
        return Err(damaged(Damage::Malformed { table, entry }));
    };
    Ok(RecordRef { rev, kind, kv })
}
