//! What the tests of the applier's values share.

use super::{super::consensus::PROPOSAL_HEADER_BYTES, visible::Database};
use crate::{
    codec,
    kv::command::{Command, Put},
    storage::{
        db::{CommitBatch, Db, DbOptions},
        sim_disk::SimDisk,
    },
    types::{
        ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId, Record, RecordKind,
        Rev, Revision, Term,
    },
};
use bytes::Bytes;

pub(super) fn at(index: u64) -> LogPosition {
    LogPosition {
        index: LogIndex(index),
        term: Term(1),
    }
}

/// The entry at `index` with a command in it, as a proposer writes it.
pub(super) fn entry(index: u64, command: &Command) -> Entry {
    let data = [vec![0; PROPOSAL_HEADER_BYTES], codec::encode(command)].concat();
    raw_entry(index, EntryKind::Command, data)
}

pub(super) fn raw_entry(index: u64, kind: EntryKind, data: impl Into<Bytes>) -> Entry {
    Entry {
        term: Term(1),
        index: LogIndex(index),
        kind,
        data: data.into(),
    }
}

pub(super) fn put(key: &str) -> Command {
    Command::Put(Put {
        key: key.to_owned().into(),
        value: "v".into(),
        ..Put::default()
    })
}

pub(super) fn rev(major: i64) -> Rev {
    Rev::new(Revision(major), 0)
}

/// The record of the put at revision `major`; `kv` stands for its content.
pub(super) fn record(major: i64, kv: &'static str) -> Record {
    Record {
        rev: rev(major),
        kind: RecordKind::Put,
        kv: kv.into(),
    }
}

/// A database with these records, and its reader, which needs it.
pub(super) fn database(records: &[Record]) -> (Db, Database) {
    let identity = Identity {
        cluster: ClusterId(1),
        member: MemberId(1),
    };
    let opened = Db::open(&SimDisk::new(1), "db", DbOptions::default(), identity);
    let mut db = opened.expect("an empty disk");
    db.commit(&CommitBatch {
        applied: at(1),
        records: vec![records.into()],
        ..CommitBatch::default()
    })
    .expect("the disk has no faults");
    let database = Database {
        reader: db.reader().expect("the disk has no faults"),
        file_bytes: 3,
        used_bytes: 2,
    };
    (db, database)
}
