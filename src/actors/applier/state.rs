//! The replicated state as of the newest applied entry, and how entries change it.

use super::{
    super::{
        apply_messages::CommittedEntry,
        consensus::PROPOSAL_HEADER_BYTES,
        members::{Members, MembersError},
    },
    answers::Answer,
    incoming::Prefetched,
};
use crate::{
    codec::{self, CodecError},
    failpoint::{FailPoint, hit},
    kv::{
        answer_reads::AnswerReads,
        command::{AlarmKind, Command, EncodedKv, Verdict},
        machine::{Changes, Machine},
        range::RevisionWindow,
        records::{ReadError, Records},
        tail::{self, Tail},
    },
    mutation::{Mutation, mutated},
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
        /// Which entry.
        index: LogIndex,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The entry does not hold a membership.
    #[error("log entry {index} holds no membership: {source}")]
    Membership {
        /// Which entry.
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
        Ok(Self { committed, command })
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
}

/// The state after the entry at `applied`.
#[derive(Debug)]
pub(super) struct State {
    pub(super) machine: Machine,
    pub(super) applied: LogPosition,
    /// What of it is published as it is.
    pub(super) shared: Shared,
    /// The newest compaction that the database was found to have begun. Earlier versions could remove records before they stored
    /// that the log had decided so: such a database lacks history that its state does not know to be compacted.
    begun_compaction: Revision,
}

impl State {
    pub(super) fn new(
        machine: Machine,
        applied: LogPosition,
        members: Arc<Members>,
        begun_compaction: Revision,
    ) -> Self {
        let alarms = Arc::new(machine.alarms().clone());
        Self {
            machine,
            applied,
            shared: Shared { alarms, members },
            begun_compaction,
        }
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
        changes
    }

    /// Applies the next entry. If a caller waits for it, its answer comes back.
    pub(super) fn apply(
        &mut self,
        entry: DecodedEntry,
        past: &Past<'_>,
    ) -> Result<Option<Answer>, ApplyError> {
        let DecodedEntry { committed, command } = entry;
        let CommittedEntry { entry, reply } = committed;
        assert_eq!(
            entry.index,
            self.applied.index.next(),
            "entries are applied in log order, each once"
        );
        self.applied = entry.position();
        let mut reads = AnswerReads::default();
        let answer = reply.is_some().then_some(&mut reads);
        let verdict = if let Some(command) = &command {
            Some(self.apply_command(command, past, answer)?)
        } else {
            self.machine.pass(self.applied);
            None
        };
        if entry.kind == EntryKind::Membership {
            self.take_membership(&entry)?;
        }
        let answer = |(reply, verdict)| Answer {
            reply,
            verdict,
            reads,
        };
        Ok(reply.zip(verdict).map(answer))
    }

    fn apply_command(
        &mut self,
        command: &Command,
        past: &Past<'_>,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ApplyError> {
        let at = self.applied;
        if mutated(Mutation::ApplyTwice) && at.index.0.is_multiple_of(61) {
            drop(self.machine.apply(command, at, past, None)?);
        }
        Ok(self.machine.apply(command, at, past, answer)?)
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

/// Where the records are that the machine has given out: published, applied but not published, read ahead, or in the database.
pub(super) struct Past<'a> {
    pub(super) tail: &'a Tail,
    /// Oldest first.
    pub(super) unpublished: Vec<tail::RecordBatch>,
    pub(super) prefetched: &'a Prefetched,
    pub(super) stored: &'a DbReader,
}

impl Past<'_> {
    /// A record, if it is in memory.
    pub(super) fn in_memory(&self, rev: Rev) -> Option<&EncodedKv> {
        if let Some(record) = self.tail.get(rev) {
            return Some(&record.kv);
        }
        let mut batches = self.unpublished.iter();
        let record = batches.find_map(|batch| tail::find(batch, rev));
        record.map_or_else(|| self.prefetched.get(rev), |record| Some(&record.kv))
    }
}

impl Records for Past<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.in_memory(rev) {
            Some(kv) => Ok(kv.clone()),
            None => self.stored.get(rev),
        }
    }
}
