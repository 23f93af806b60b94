//! The replicated state as of the newest applied entry, and how entries change it.

use super::{
    super::{
        apply_messages::{Caller, CommittedEntry},
        consensus::PROPOSAL_HEADER_BYTES,
        members::{Members, MembersError},
    },
    answers::Answer,
    incoming::Prefetched,
    noted::Noted,
};
use crate::{
    auth::AuthState,
    codec::{self, CodecError},
    failpoint::{FailPoint, hit},
    kv::{
        command::{AlarmKind, Command, EncodedKv, Verdict},
        judged::Judged,
        machine::{Changes, Machine},
        range::RevisionWindow,
        records::{ReadError, Records},
        state_hash::StateHash,
        tail::{self, Tail},
        value_reads::depends_on_values,
    },
    storage::db::DbReader,
    types::{Entry, EntryKind, LogIndex, LogPosition, MemberId, Rev, Revision},
};
use bytes::Bytes;
use std::{collections::BTreeSet, sync::Arc};

/// Why an entry cannot be applied. Every one of them ends the member: going on would make its state differ.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The entry does not hold what a proposer puts in it.
    #[error("log entry {index} holds no command")]
    Entry {
        index: LogIndex,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The entry does not hold a membership.
    #[error("log entry {index} holds no membership: {source}")]
    Membership {
        index: LogIndex,
        /// What is wrong with it.
        source: MembersError,
    },
    /// A record this member stored cannot be read back.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A committed entry whose command is decoded.
#[derive(Debug)]
pub(super) struct DecodedEntry {
    pub(super) committed: CommittedEntry,
    /// `None` if it is no command.
    pub(super) command: Option<Command>,
    /// Whether it may depend on stored values.
    pub(super) reads_values: bool,
}

impl DecodedEntry {
    pub(super) fn new(committed: CommittedEntry) -> Result<Self, ApplyError> {
        let entry = &committed.entry;
        let mut command = None;
        if entry.kind == EntryKind::Command {
            let start = PROPOSAL_HEADER_BYTES.min(entry.data.len());
            let decoded = codec::decode_shared("log command", &entry.data.slice(start..));
            command = Some(decoded.map_err(|source| ApplyError::Entry {
                index: entry.index,
                source,
            })?);
        }
        let reads_values = command.as_ref().is_some_and(depends_on_values);
        Ok(Self {
            committed,
            command,
            reads_values,
        })
    }

    /// The encoded membership, if that is what the entry changes.
    pub(super) fn membership(&self) -> Option<&Bytes> {
        let entry = &self.committed.entry;
        (entry.kind == EntryKind::Membership).then_some(&entry.data)
    }
}

/// The parts of the state that change seldom and are published with each batch.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) alarms: Arc<BTreeSet<(MemberId, AlarmKind)>>,
    pub(super) members: Arc<Members>,
    pub(super) auth: Arc<AuthState>,
    /// As of the batch that this is published with.
    pub(super) hash: Option<StateHash>,
}

/// The state after the entry at `applied`.
#[derive(Debug)]
pub(super) struct AppliedState {
    pub(super) machine: Machine,
    pub(super) applied: LogPosition,
    /// What of it is published as it is.
    pub(super) shared: Shared,
    /// The newest compaction that the database was found to have begun. Earlier versions could remove records before they stored
    /// that the log had decided so: such a database lacks history that its state does not know to be compacted.
    begun_compaction: Revision,
    /// What the answers hold that wait for their records.
    noted: Noted,
}

impl AppliedState {
    pub(super) fn new(
        machine: Machine,
        applied: LogPosition,
        members: Arc<Members>,
        begun_compaction: Revision,
    ) -> Self {
        let alarms = Arc::new(machine.alarms().clone());
        let auth = Arc::new(machine.auth().clone());
        let hash = machine.state_hash();
        Self {
            machine,
            applied,
            shared: Shared {
                alarms,
                members,
                auth,
                hash,
            },
            begun_compaction,
            noted: Noted::default(),
        }
    }

    /// What the answers hold that wait for their records, in bytes.
    pub(super) fn noted_bytes(&self) -> usize {
        self.noted.bytes()
    }

    /// The bound on [`noted_bytes`](Self::noted_bytes).
    pub(super) fn noted_bytes_max(&self) -> usize {
        self.noted.bytes_max()
    }

    /// The revisions that can be read in this state.
    pub(super) fn window(&self) -> RevisionWindow {
        RevisionWindow {
            newest: self.machine.revision(),
            compacted: self.machine.compacted().max(self.begun_compaction),
        }
    }

    /// Takes what the entries since the last call have changed.
    pub(super) fn take_changes(&mut self) -> Changes {
        let changes = self.machine.take_changes();
        if changes.alarms {
            self.shared.alarms = Arc::new(self.machine.alarms().clone());
        }
        if !changes.auth.is_empty() {
            self.shared.auth = Arc::new(self.machine.auth().clone());
        }
        self.shared.hash = self.machine.state_hash();
        changes
    }

    /// Whether `past` has all records that applying the next entry reads, and they are few.
    pub(super) fn can_apply(&self, next: &DecodedEntry, past: &Past<'_>) -> bool {
        if !next.reads_values {
            return true;
        }
        let in_memory = |rev| past.in_memory(rev).is_some();
        let can_apply = |command| self.machine.can_apply(command, &in_memory);
        next.command.as_ref().is_none_or(can_apply)
    }

    /// Applies the next entry. If a caller waits for it, its answer comes back.
    pub(super) fn apply(
        &mut self,
        entry: DecodedEntry,
        values: Values<'_>,
    ) -> Result<Option<Answer>, ApplyError> {
        let DecodedEntry {
            committed, command, ..
        } = entry;
        let CommittedEntry { entry, caller } = committed;
        assert_eq!(
            entry.index,
            self.applied.index.next(),
            "entries are applied in log order, each once"
        );
        self.applied = entry.position();
        let mut reads = self.noted.begin();
        let answer = caller.is_some().then_some(&mut reads);
        let verdict = if let Some(command) = &command {
            let (machine, at) = (&mut self.machine, self.applied);
            let verdict = match values {
                Values::InMemory(past) => machine.apply(command, at, past, answer),
                Values::Judged(judged) => machine.apply_judged(command, at, judged, answer),
            };
            Some(verdict?)
        } else {
            self.machine.pass(self.applied);
            None
        };
        if entry.kind == EntryKind::Membership {
            self.take_membership(&entry)?;
        }
        let noted = self.noted.count(&reads);
        let answer = |(caller, verdict): (Caller, Verdict)| Answer {
            reply: caller.reply,
            deadline: caller.deadline,
            verdict,
            reads,
            noted,
        };
        Ok(caller.zip(verdict).map(answer))
    }

    fn take_membership(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        hit(FailPoint::BeforeMembershipApply);
        let members = Members::decode(&entry.data).map_err(|source| ApplyError::Membership {
            index: entry.index,
            source,
        })?;
        self.shared.members = Arc::new(members);
        hit(FailPoint::AfterMembershipApply);
        Ok(())
    }
}

/// Where an entry gets the stored values that it depends on.
#[derive(Clone, Copy)]
pub(super) enum Values<'a> {
    /// All of them are here: see [`AppliedState::can_apply`].
    InMemory(&'a Past<'a>),
    /// Another thread has judged it.
    Judged(&'a Judged),
}

/// Records that the machine has given out and the database may not hold yet.
#[derive(Clone)]
pub(super) struct Recent {
    /// Those that are published.
    pub(super) tail: Tail,
    /// Those that are applied and not published, oldest first.
    pub(super) unpublished: Vec<tail::RecordBatch>,
}

impl Recent {
    fn get(&self, rev: Rev) -> Option<&EncodedKv> {
        let mut batches = self.unpublished.iter();
        let unpublished = || batches.find_map(|batch| tail::find(batch, rev));
        let record = self.tail.get(rev).or_else(unpublished)?;
        Some(&record.kv)
    }
}

/// The records that are in memory while entries are applied: recent ones, and those that were read ahead. The database is not
/// among them, so that the applier's thread cannot wait for it.
pub(super) struct Past<'a> {
    pub(super) recent: Recent,
    pub(super) prefetched: &'a Prefetched,
}

impl Past<'_> {
    /// A record, if it is in memory.
    pub(super) fn in_memory(&self, rev: Rev) -> Option<&EncodedKv> {
        let recent = self.recent.get(rev);
        recent.or_else(|| self.prefetched.get(rev))
    }
}

impl Records for Past<'_> {
    /// An error would be a bug, and ends the member: an entry is applied only if all that it reads is here.
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        let kv = self.in_memory(rev).cloned();
        kv.ok_or_else(|| ReadError::not_in_memory(rev))
    }
}

/// All records that the machine has given out, for a thread that may wait for the disk.
pub(super) struct WholePast {
    pub(super) recent: Recent,
    pub(super) stored: DbReader,
}

impl Records for WholePast {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.recent.get(rev) {
            Some(kv) => Ok(kv.clone()),
            None => self.stored.get(rev),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            super::replies::Reply,
            testing::{at, database, entry, put, raw_entry, record, rev},
        },
        *,
    };
    use crate::{
        clock,
        kv::{command::SetAlarm, index::Index, machine::LoadedState},
        raft::Membership,
        types::Record,
    };
    use tokio::sync::oneshot;

    /// An empty store after entry 10.
    fn state(begun_compaction: Revision) -> AppliedState {
        let machine = Machine::new(LoadedState::default(), Index::new().snapshot());
        AppliedState::new(
            machine,
            at(10),
            Arc::new(Members::default()),
            begun_compaction,
        )
    }

    fn decoded(entry: Entry, reply: Option<Reply>) -> DecodedEntry {
        let caller = reply.map(|reply| Caller {
            deadline: clock::now(),
            reply,
        });
        DecodedEntry::new(CommittedEntry { entry, caller }).expect("it holds a command")
    }

    fn recent(tail: &[Record], unpublished: &[Record]) -> Recent {
        let mut recent = Recent {
            tail: Tail::default(),
            unpublished: Vec::new(),
        };
        for record in tail {
            recent.tail.push([record.clone()].into());
        }
        for record in unpublished {
            recent.unpublished.push([record.clone()].into());
        }
        recent
    }

    /// Applies an entry that reads no record.
    fn apply(state: &mut AppliedState, entry: DecodedEntry) -> Result<Option<Answer>, ApplyError> {
        let past = Past {
            recent: recent(&[], &[]),
            prefetched: &Prefetched::default(),
        };
        assert!(state.can_apply(&entry, &past));
        state.apply(entry, Values::InMemory(&past))
    }

    #[test]
    fn a_command_is_answered_to_its_caller_alone() {
        let mut state = state(Revision::NEVER_COMPACTED);
        let (reply, _outcome) = oneshot::channel();
        let own = decoded(entry(11, &put("a")), Some(Reply::Alone(reply)));
        let answer = apply(&mut state, own).expect("applied");
        assert!(answer.is_some_and(|answer| answer.verdict.is_ok()));
        let other = decoded(entry(12, &put("b")), None);
        assert!(apply(&mut state, other).expect("applied").is_none());
        assert_eq!(
            (state.applied, state.window().newest),
            (at(12), Revision(3))
        );
        let changes = state.take_changes();
        assert_eq!((changes.records.len(), changes.keys.len()), (2, 2));
        assert_eq!(state.take_changes().records.len(), 0, "each is taken once");
    }

    #[test]
    fn an_entry_without_a_command_only_moves_the_position() {
        let mut state = state(Revision::NEVER_COMPACTED);
        let noop = decoded(raw_entry(11, EntryKind::Noop, ""), None);
        assert!(apply(&mut state, noop).expect("applied").is_none());
        assert_eq!(
            (state.applied, state.window().newest),
            (at(11), Revision(1))
        );
    }

    #[test]
    #[should_panic(expected = "entries are applied in log order")]
    fn an_entry_is_never_skipped() {
        let mut state = state(Revision::NEVER_COMPACTED);
        drop(apply(&mut state, decoded(entry(12, &put("a")), None)));
    }

    #[test]
    fn what_does_not_decode_is_an_error_with_its_index() {
        for data in ["", "short", "sixteen bytes of header, then no command"] {
            let entry = raw_entry(11, EntryKind::Command, data);
            let decoded = DecodedEntry::new(CommittedEntry {
                entry,
                caller: None,
            });
            let error = decoded.map(|_| ()).expect_err(data);
            assert!(error.to_string().contains("log entry 11"), "{error}");
        }
        let mut state = state(Revision::NEVER_COMPACTED);
        let entry = decoded(raw_entry(11, EntryKind::Membership, "none"), None);
        let error = apply(&mut state, entry)
            .map(|_| ())
            .expect_err("no membership");
        assert!(error.to_string().contains("log entry 11"), "{error}");
    }

    #[test]
    fn members_and_alarms_are_replaced_only_when_they_change() {
        let mut state = state(Revision::NEVER_COMPACTED);
        let before = state.shared.clone();
        apply(&mut state, decoded(entry(11, &put("a")), None)).expect("applied");
        state.take_changes();
        assert!(Arc::ptr_eq(&state.shared.alarms, &before.alarms));
        assert!(Arc::ptr_eq(&state.shared.members, &before.members));
        let alarm = Command::SetAlarm(SetAlarm {
            member: MemberId(1),
            kind: AlarmKind::NoSpace,
            raised: true,
        });
        apply(&mut state, decoded(entry(12, &alarm), None)).expect("applied");
        state.take_changes();
        assert_eq!(state.shared.alarms.len(), 1);
        assert!(before.alarms.is_empty(), "published views keep theirs");
        let membership = Membership::default().encode();
        let changed = decoded(
            raw_entry(13, EntryKind::Membership, membership.clone()),
            None,
        );
        assert_eq!(changed.membership(), Some(&membership));
        apply(&mut state, changed).expect("applied");
        assert!(!Arc::ptr_eq(&state.shared.members, &before.members));
    }

    #[test]
    fn a_compaction_that_the_database_began_hides_history() {
        assert_eq!(state(Revision(7)).window().compacted, Revision(7));
        let never = state(Revision::NEVER_COMPACTED);
        assert_eq!(never.window().compacted, Revision::NEVER_COMPACTED);
    }

    #[test]
    fn a_record_is_found_wherever_it_is() {
        let (_db, stored) = database(&[record(2, "stored")]);
        let (_other, ahead) = database(&[record(3, "prefetched")]);
        let prefetched = Prefetched::default();
        let prefetched = prefetched.read(&ahead.reader, [rev(3)].into());
        let unpublished = [record(5, "older"), record(6, "newer")];
        let recent = recent(&[record(4, "tail")], &unpublished);
        let whole = WholePast {
            recent: recent.clone(),
            stored: stored.reader,
        };
        let past = Past {
            recent,
            prefetched: &prefetched.expect("it exists"),
        };
        for (major, kv) in (3..).zip(["prefetched", "tail", "older", "newer"]) {
            assert_eq!(past.get(rev(major)).expect(kv), kv);
            assert!(past.in_memory(rev(major)).is_some(), "{kv}");
        }
        let error = past.get(rev(2));
        assert!(error.is_err_and(|error| error.is_not_in_memory()));
        for (major, kv) in [(2, "stored"), (4, "tail"), (5, "older"), (6, "newer")] {
            assert_eq!(whole.get(rev(major)).expect(kv), kv);
        }
        assert!(whole.get(rev(7)).is_err(), "a record that nothing holds");
    }
}
