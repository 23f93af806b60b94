//! The entries that a log has beyond its database, applied to the database that was made of the latter: by the state machine that
//! applies commands on members, on one thread, and committed in batches.
//!
//! Memory holds what a member's does, the index and the leases, and beside that one batch. Everybody who imports the same
//! directory applies the same commands in the same places, so the results are the same, rolling hash included.

use super::{
    error::{EntryFault, ImportError},
    judge::{self, Etcd, Judged},
    translate::Asked,
};
use crate::{
    actors::load,
    codec,
    kv::{
        command::{AlarmKind, Command, EncodedKv, SetAlarm},
        index::Index as Tree,
        keys::KeyChange,
        lease::LeaseChange,
        machine::{Changes, Machine},
        records::{ReadError, Records},
    },
    storage::db::{CommitBatch, Db, DbReader},
    types::{LeaseId, LogPosition, MemberId, Record, RecordKind, Rev},
};
use std::mem;

/// Records and rows of one commit, in bytes.
const BATCH_BYTES: usize = 4 * 1024 * 1024;
/// What a change takes in memory beside its bytes, about.
const CHANGE_BYTES: usize = 128;

/// What a replay came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Requests that were carried out, whether they changed something or not.
    pub requests: u64,
    /// Requests that were refused, there and here.
    pub refused: u64,
}

/// A replay under way.
pub(super) struct Replay<'a> {
    db: &'a mut Db,
    /// What the database has applied: the log of the new member begins after it, and all that is replayed is before.
    at: LogPosition,
    etcd: Etcd,
    batch_bytes: usize,
    machine: Machine,
    tree: Tree,
    next: Gathered,
    requests: u64,
    refused: u64,
}

/// What the database does not have yet, and what it has.
struct Gathered {
    records: Vec<Record>,
    keys: Vec<KeyChange>,
    leases: Vec<(LeaseId, Option<Vec<u8>>)>,
    rows: Vec<(String, Option<Vec<u8>>)>,
    /// Something else has changed, too.
    has_more: bool,
    bytes: usize,
    stored: DbReader,
}

impl Records for Gathered {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.records.binary_search_by_key(&rev, |record| record.rev) {
            Ok(at) => Ok(self.records[at].kv.clone()),
            Err(_) => self.stored.get(rev),
        }
    }
}

impl Gathered {
    fn new(stored: DbReader) -> Self {
        Self {
            records: Vec::new(),
            keys: Vec::new(),
            leases: Vec::new(),
            rows: Vec::new(),
            has_more: false,
            bytes: 0,
            stored,
        }
    }

    fn add(&mut self, changes: Changes) {
        let Changes {
            records,
            keys,
            leases,
            alarms,
            auth,
            compacted,
        } = changes;
        self.has_more |= alarms || compacted.is_some();
        let of_records = records.iter().map(|record| record.kv.len() + CHANGE_BYTES);
        let of_rows = auth
            .iter()
            .map(|(name, row)| name.len() + row.as_ref().map_or(0, Vec::len) + CHANGE_BYTES);
        self.bytes += of_records.sum::<usize>() + of_rows.sum::<usize>();
        self.bytes += leases.len() * CHANGE_BYTES;
        self.records.extend(records);
        self.keys.extend(keys);
        self.leases.extend(leases.iter().filter_map(lease_row));
        self.rows.extend(auth);
    }

    fn is_empty(&self) -> bool {
        self.bytes == 0 && !self.has_more
    }
}

impl<'a> Replay<'a> {
    /// Loads what `db` holds: the state up to the first entry that is replayed, with all alarms of the etcd.
    pub(super) fn begin(db: &'a mut Db, etcd: Etcd) -> Result<Self, ImportError> {
        let (loaded, tree) = load::load_state(db)?;
        let machine = Machine::new(loaded, tree.snapshot());
        let next = Gathered::new(db.reader()?);
        let at = db.applied();
        Ok(Self {
            db,
            at,
            etcd,
            batch_bytes: BATCH_BYTES,
            machine,
            tree,
            next,
            requests: 0,
            refused: 0,
        })
    }

    /// Applies the request of the entry at `index`.
    pub(super) fn apply(&mut self, asked: Asked, index: u64) -> Result<(), ImportError> {
        let judged = judge::judge(&self.machine, self.etcd, asked);
        match judged.map_err(|fault: EntryFault| ImportError::Entry { index, fault })? {
            Judged::Refused => self.refused += 1,
            Judged::Decide(command) => self.decide(&command)?,
            Judged::Passes(command) => {
                let alarms = self.machine.alarms().iter().copied();
                let raised: Vec<_> = alarms
                    .filter(|(_, kind)| *kind == AlarmKind::NoSpace)
                    .collect();
                self.set_alarms(&raised, false)?;
                self.decide(&command)?;
                self.set_alarms(&raised, true)?;
            }
        }
        if self.next.bytes >= self.batch_bytes {
            self.commit()?;
        }
        Ok(())
    }

    /// Stores what is left.
    pub(super) fn finish(mut self) -> Result<Replayed, ImportError> {
        if !self.next.is_empty() {
            self.commit()?;
        }
        Ok(Replayed {
            requests: self.requests,
            refused: self.refused,
        })
    }

    fn decide(&mut self, command: &Command) -> Result<(), ImportError> {
        if self.run(command)? {
            self.requests += 1;
        } else {
            self.refused += 1;
        }
        Ok(())
    }

    fn set_alarms(
        &mut self,
        alarms: &[(MemberId, AlarmKind)],
        raised: bool,
    ) -> Result<(), ImportError> {
        for &(member, kind) in alarms {
            self.run(&Command::SetAlarm(SetAlarm {
                member,
                kind,
                raised,
            }))?;
        }
        Ok(())
    }

    /// Whether the command was not refused.
    fn run(&mut self, command: &Command) -> Result<bool, ImportError> {
        let verdict = self.machine.apply(command, self.at, &self.next, None)?;
        self.next.add(self.machine.take_changes());
        Ok(verdict.is_ok())
    }

    /// The position stays, so a crash between two commits leaves what looks finished. The caller marks its directory for that.
    fn commit(&mut self) -> Result<(), ImportError> {
        let Gathered {
            records,
            keys,
            leases,
            rows,
            ..
        } = &mut self.next;
        for change in keys.drain(..) {
            match change.kind {
                RecordKind::Put => {
                    self.tree.put(&change.key, change.rev, change.lease);
                }
                RecordKind::Tombstone => {
                    let before = self.tree.delete(&change.key, change.rev);
                    assert!(before.is_some(), "only live keys are deleted");
                }
            }
        }
        let batch = CommitBatch {
            records: vec![mem::take(records).into()],
            applied: self.at,
            meta: load::store_meta(&self.machine),
            leases: mem::take(leases),
            // Of several rows of a name the last one counts.
            rows: mem::take(rows).into_iter().collect(),
        };
        self.db.commit(&batch)?;
        self.machine
            .published(self.tree.snapshot(), self.machine.revision());
        self.next = Gathered::new(self.db.reader()?);
        Ok(())
    }
}

/// What a change does to the stored row of its lease. Nothing else happens to leases here: the log of an etcd has no renewals,
/// and its checkpoints are left out.
fn lease_row(change: &LeaseChange) -> Option<(LeaseId, Option<Vec<u8>>)> {
    match change {
        LeaseChange::Granted { id, row } => Some((*id, Some(codec::encode(row)))),
        LeaseChange::Revoked { id } => Some((*id, None)),
        LeaseChange::Renewed { .. } | LeaseChange::Checkpointed { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::translate::Author, *};
    use crate::{
        kv::{
            command::{Compact, DeleteRange, GrantLease, Put, RevokeLease, Txn, TxnOp},
            machine::LoadedState,
        },
        storage::{db::DbOptions, sim_disk::SimDisk},
        types::{ClusterId, Identity, LogIndex, Revision, Term},
    };
    use std::collections::BTreeSet;

    const ETCD: Etcd = Etcd {
        may_be_3_5: false,
        nested_puts: Some(judge::NestedPuts::Passed),
    };

    const AT: LogPosition = LogPosition {
        index: LogIndex(1),
        term: Term(1),
    };

    /// A database with an empty store, after entry 1.
    fn empty() -> Db {
        let identity = Identity {
            cluster: ClusterId(1),
            member: MemberId(2),
        };
        let disk = SimDisk::new(1);
        let mut db = Db::open(&disk, "db", DbOptions::default(), identity).unwrap();
        let machine = Machine::new(LoadedState::default(), Tree::new().snapshot());
        db.commit(&CommitBatch {
            applied: AT,
            meta: load::store_meta(&machine),
            ..CommitBatch::default()
        })
        .unwrap();
        db
    }

    fn put(key: &'static str, value: &'static str, lease: i64) -> Put {
        Put {
            key: key.into(),
            value: value.into(),
            lease: LeaseId(lease),
            ..Put::default()
        }
    }

    fn alarm(member: u64, kind: AlarmKind) -> Command {
        Command::SetAlarm(SetAlarm {
            member: MemberId(member),
            kind,
            raised: true,
        })
    }

    fn grant(id: i64) -> Command {
        let (id, ttl_secs) = (LeaseId(id), 60);
        Command::GrantLease(GrantLease { id, ttl_secs })
    }

    /// All kinds of changes; the value of `a` is needed after it is in the database.
    fn history() -> Vec<Command> {
        let keep = Put {
            ignore_value: true,
            ..put("a", "", 7)
        };
        vec![
            Command::Put(put("a", "kept", 0)),
            grant(7),
            grant(8),
            Command::Put(put("leased", "x", 8)),
            Command::Put(keep),
            Command::RevokeLease(RevokeLease { id: LeaseId(8) }),
            Command::DeleteRange(DeleteRange {
                key: "nothing".into(),
                ..DeleteRange::default()
            }),
            Command::Compact(Compact {
                revision: Revision(3),
            }),
            // Refused: it was compacted.
            Command::Compact(Compact {
                revision: Revision(3),
            }),
            alarm(5, AlarmKind::NoSpace),
            // Refused, and the next one passes the alarm.
            Command::Put(put("full", "x", 0)),
            Command::Txn(Txn {
                success: vec![TxnOp::Txn(Txn {
                    success: vec![TxnOp::Put(put("nested", "x", 0))],
                    ..Txn::default()
                })],
                ..Txn::default()
            }),
        ]
    }

    fn replayed(
        db: &mut Db,
        commands: Vec<Command>,
        batch_bytes: usize,
    ) -> Result<Replayed, ImportError> {
        let mut replay = Replay::begin(db, ETCD)?;
        replay.batch_bytes = batch_bytes;
        for (index, command) in (10..).zip(commands) {
            let author = Author::default();
            replay.apply(Asked { author, command }, index)?;
        }
        replay.finish()
    }

    /// Everything that the database says of itself.
    fn content(db: &Db) -> (Vec<Record>, LoadedState, LogPosition) {
        let mut records = Vec::new();
        db.load(|record| {
            records.push(Record {
                rev: record.rev,
                kind: record.kind,
                kv: EncodedKv::copy_from_slice(record.kv),
            });
        })
        .unwrap();
        (records, load::load_state(db).unwrap().0, db.applied())
    }

    #[test]
    fn batches_of_any_size_come_to_the_same_state() {
        let mut whole = empty();
        let done = replayed(&mut whole, history(), usize::MAX).unwrap();
        let mut single = empty();
        let again = replayed(&mut single, history(), 1).unwrap();
        assert_eq!(done, again);
        assert_eq!(content(&whole), content(&single));

        // a, leased, a, the end of lease 8, nested.
        assert_eq!((done.requests, done.refused), (10, 2));
        let (records, state, applied) = content(&whole);
        assert_eq!(records.len(), 5);
        assert_eq!(applied, AT, "what was replayed is before the log");
        let kept = crate::kv::record::KeyValue::decode(&records[2].kv).unwrap();
        assert_eq!((&kept.value[..], kept.lease), (&b"kept"[..], LeaseId(7)));
        assert_eq!(
            (state.revision, state.compacted),
            (Revision(6), Revision(3))
        );
        let leases: Vec<_> = state.leases.iter().collect();
        assert_eq!(leases.len(), 1, "{leases:?}");
        assert_eq!(leases[0].1.keys.len(), 1, "{leases:?}");
        let raised = BTreeSet::from([(MemberId(5), AlarmKind::NoSpace)]);
        assert_eq!(state.alarms, raised, "passing it does not end it");
    }

    #[test]
    fn an_entry_without_a_sure_meaning_is_named() {
        let mut db = empty();
        let etcd = Etcd {
            nested_puts: None,
            ..ETCD
        };
        let mut replay = Replay::begin(&mut db, etcd).unwrap();
        let failed = (10..).zip(history()).find_map(|(index, command)| {
            let author = Author::default();
            replay.apply(Asked { author, command }, index).err()
        });
        let text = failed.expect("one has none").to_string();
        assert!(text.starts_with("entry 21 of the etcd's log"), "{text}");
    }
}
