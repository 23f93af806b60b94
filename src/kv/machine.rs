//! The state machine: committed commands in; outcomes, records to store and key changes out.
//!
//! It holds what every member must agree on: the revision, the compacted revision, leases, alarms, and the keys as of the last
//! applied command. It reads no clock and no random number, so the same commands give the same bytes everywhere.
//!
//! A refused command changes nothing. An accepted one without changes (a delete of nothing) takes no revision. Every other one
//! takes the next revision, and its changes are numbered by sub from 0.

use super::{
    KeyRange, KvError,
    answer_reads::AnswerReads,
    authorize::authorize,
    cleared::Cleared,
    command::{
        AlarmKind, CheckpointLeases, Command, Compact, DeleteRange, DeleteRangeDone, EncodedKv,
        ExpireLeases, GrantLease, OpDone, Outcome, Put, PutDone, RangeDone, RangeQuery,
        RenewLeases, RevokeLease, SetAlarm, Txn, TxnDone, TxnOp, Verdict,
    },
    index::Snapshot,
    judged::Judged,
    keys::{KeyChange, Keys, Pending, Steps},
    lease::{LeaseChange, LeaseRow, LeaseTable},
    range::{self, RevisionWindow},
    record::{self, KeyValue},
    records::{ReadError, Records},
    state_hash::{Effects, StateHash},
    txn::{self, Plan},
    value_reads::{are_at_hand, value_reads},
};
use crate::{
    auth::{AuthState, Change, Row},
    types::{LeaseId, LogPosition, MemberId, Record, RecordKind, Rev, Revision},
};
use bytes::Bytes;
use std::collections::BTreeSet;

/// The replicated state. Invariant: `compacted <= revision`.
#[derive(Debug)]
pub struct Machine {
    keys: Pending,
    leases: LeaseTable,
    alarms: BTreeSet<(MemberId, AlarmKind)>,
    auth: AuthState,
    revision: Revision,
    compacted: Revision,
    /// `None` in a store that an older version wrote: it is not compared.
    hash: Option<StateHash>,
    changes: Changes,
}

/// What has changed since [`Machine::take_changes`] was last called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New records, ascending by revision.
    pub records: Vec<Record>,
    /// The same changes, in the form that the index takes.
    pub keys: Vec<KeyChange>,
    /// What was done to leases, in order.
    pub leases: Vec<LeaseChange>,
    /// Whether the set of alarms changed.
    pub alarms: bool,
    /// The parts of users, roles and tokens that changed, in order.
    pub auth: Vec<Row>,
    /// The newest compaction among the commands.
    pub compacted: Option<Revision>,
}

/// How much has changed so far.
#[derive(Clone, Copy, Debug)]
struct Lens {
    records: usize,
    leases: usize,
    auth: usize,
}

impl Changes {
    fn lens(&self) -> Lens {
        Lens {
            records: self.records.len(),
            leases: self.leases.len(),
            auth: self.auth.len(),
        }
    }
}

/// The replicated state besides keys and records, as the database remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedState {
    pub revision: Revision,
    pub compacted: Revision,
    /// Leases with the keys attached to them.
    pub leases: LeaseTable,
    pub alarms: BTreeSet<(MemberId, AlarmKind)>,
    /// Users, roles and tokens.
    pub auth: AuthState,
    /// The rolling hash, unless an older version wrote the store.
    pub hash: Option<StateHash>,
}

impl Default for LoadedState {
    fn default() -> Self {
        Self {
            revision: Revision::FIRST,
            compacted: Revision::NEVER_COMPACTED,
            leases: LeaseTable::default(),
            alarms: BTreeSet::new(),
            auth: AuthState::default(),
            hash: Some(StateHash::default()),
        }
    }
}

/// One transaction under way: the revision it will have, and how many changes it has made.
struct Writing<'a> {
    major: Revision,
    sub: u32,
    /// What came before it, for reads of old revisions.
    window: RevisionWindow,
    past: &'a dyn Records,
    /// What it has deleted.
    cleared: Cleared,
    /// What its caller's answer needs; `None` if its caller is not at this member.
    answer: Option<&'a mut AnswerReads>,
}

/// Records as a transaction sees them: those of this batch first, then the past.
struct Layered<'a> {
    fresh: &'a [Record],
    past: &'a dyn Records,
}

impl Records for Layered<'_> {
    fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
        match self.fresh.binary_search_by_key(&rev, |record| record.rev) {
            Ok(at) => Ok(self.fresh[at].kv.clone()),
            Err(_) => self.past.get(rev),
        }
    }
}

impl Machine {
    /// A machine that continues from `loaded` and the index snapshot.
    pub fn new(loaded: LoadedState, snapshot: Snapshot) -> Self {
        Self {
            keys: Pending::new(snapshot),
            leases: loaded.leases,
            alarms: loaded.alarms,
            auth: loaded.auth,
            revision: loaded.revision,
            compacted: loaded.compacted,
            hash: loaded.hash,
            changes: Changes::default(),
        }
    }

    /// Brings the index entries of the keys of `commands`, which are applied next, into the processor's caches.
    pub fn prefetch_keys<'a>(&self, commands: impl Iterator<Item = &'a Command>) {
        let keys = commands.flat_map(Command::keys);
        self.keys.snapshot().prefetch(keys);
    }

    /// The records whose values `commands`, which are applied next, depend on: see [`value_reads`]. What a caller may not do now
    /// is left out, so that a caller without rights causes no reads of the database.
    pub fn value_reads<'a>(&self, commands: impl Iterator<Item = &'a Command>) -> BTreeSet<Rev> {
        let allowed = |command: &Command| authorize(&self.auth, &self.leases, command).is_ok();
        value_reads(&self.keys, commands, &allowed)
    }

    /// Whether [`Machine::apply`] finds all records that it reads for `command`, if that is applied next, among those of which
    /// `in_memory` says so, and it reads few. Without it, the command must be judged first ([`Judged::new`]).
    pub fn can_apply(&self, command: &Command, in_memory: &dyn Fn(Rev) -> bool) -> bool {
        if authorize(&self.auth, &self.leases, command).is_err() {
            return true;
        }
        let fresh = &self.changes.records;
        let is_fresh = |rev| {
            fresh
                .binary_search_by_key(&rev, |record| record.rev)
                .is_ok()
        };
        are_at_hand(&self.keys, command, &|rev| is_fresh(rev) || in_memory(rev))
    }

    /// The keys that the next command is applied to.
    pub fn keys(&self) -> &Pending {
        &self.keys
    }

    /// Applies the committed command at log position `at`. `past` reads the records that [`Machine::take_changes`] has given
    /// out. Only what the new state depends on is read: values that are compared or kept.
    ///
    /// If a caller waits here, `answer` notes the reads that complete the outcome ([`AnswerReads::complete`]). Without one,
    /// ranges and previous values are left out of it.
    ///
    /// The inner result is the same on every member. The outer error concerns only this member: it cannot read what it stored,
    /// and must stop.
    pub fn apply(
        &mut self,
        command: &Command,
        at: LogPosition,
        past: &dyn Records,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        self.apply_with(command, at, past, None, answer)
    }

    /// As [`Machine::apply`], with what was found out about the command after the one before it was applied. No record is read.
    pub fn apply_judged(
        &mut self,
        command: &Command,
        at: LogPosition,
        judged: &Judged,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        self.apply_with(command, at, judged, Some(judged), answer)
    }

    fn apply_with(
        &mut self,
        command: &Command,
        at: LogPosition,
        past: &dyn Records,
        judged: Option<&Judged>,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        let before = self.changes.lens();
        let verdict = self.verdict(command, at, past, judged, answer)?;
        self.fold(at, Some(&verdict), before);
        Ok(verdict)
    }

    /// Folds an entry that is no command into the hash.
    pub fn pass(&mut self, at: LogPosition) {
        let before = self.changes.lens();
        self.fold(at, None, before);
    }

    /// The rolling hash after the last entry; `None` in a store that an older version wrote.
    pub fn state_hash(&self) -> Option<StateHash> {
        self.hash
    }

    /// Folds an entry and what it did into the hash. `before` are the numbers of changes before the entry.
    fn fold(&mut self, at: LogPosition, verdict: Option<&Verdict>, before: Lens) {
        let Some(hash) = &mut self.hash else { return };
        hash.fold(
            at,
            &Effects {
                verdict,
                revision: self.revision,
                compacted: self.compacted,
                records: &self.changes.records[before.records..],
                leases: &self.changes.leases[before.leases..],
                alarms: self.alarms.len(),
                auth: &self.changes.auth[before.auth..],
            },
        );
    }

    fn verdict(
        &mut self,
        command: &Command,
        at: LogPosition,
        past: &dyn Records,
        judged: Option<&Judged>,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        let command = match authorize(&self.auth, &self.leases, command) {
            Ok(command) => command,
            Err(refusal) => return Ok(Err(refusal.into())),
        };
        if let Err(refusal) = self.check_alarms(command) {
            return Ok(Err(refusal));
        }
        match command {
            Command::Put(put) => self.apply_put(put, past, answer),
            Command::DeleteRange(delete) => Ok(Ok(self.apply_delete_range(delete, past, answer))),
            Command::Txn(txn) => self.apply_txn(txn, past, judged, answer),
            Command::Compact(compact) => Ok(self.apply_compact(*compact)),
            Command::GrantLease(grant) => Ok(self.apply_grant(*grant, at)),
            Command::RevokeLease(revoke) => Ok(self.apply_revoke(*revoke)),
            Command::SetAlarm(alarm) => Ok(Ok(self.apply_alarm(*alarm))),
            Command::ExpireLeases(expire) => Ok(Ok(self.apply_expiry(expire, at))),
            Command::CheckpointLeases(checkpoint) => Ok(Ok(self.apply_checkpoint(checkpoint, at))),
            Command::RenewLeases(renewals) => Ok(Ok(self.apply_renewals(renewals, at))),
            Command::Auth(change) => Ok(self.apply_auth(change, at)),
            Command::Checked(_) => {
                unreachable!("`authorize` returns the command without its caller")
            }
        }
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    pub fn leases(&self) -> &LeaseTable {
        &self.leases
    }

    pub fn alarms(&self) -> &BTreeSet<(MemberId, AlarmKind)> {
        &self.alarms
    }

    /// Users, roles and tokens.
    pub fn auth(&self) -> &AuthState {
        &self.auth
    }

    /// Takes what the commands since the last call have changed.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The index has published a snapshot that holds every change up to `through`.
    pub fn published(&mut self, snapshot: Snapshot, through: Revision) {
        self.keys.published(snapshot, through);
    }

    fn window(&self) -> RevisionWindow {
        RevisionWindow {
            newest: self.revision,
            compacted: self.compacted,
        }
    }

    fn check_alarms(&self, command: &Command) -> Result<(), KvError> {
        if self.alarms.is_empty() {
            return Ok(());
        }
        let raised = |kind| self.alarms.iter().any(|&(_, raised)| raised == kind);
        // etcd: a renewal is no write.
        let exempt = matches!(
            command,
            Command::SetAlarm(_) | Command::RenewLeases(_) | Command::Auth(_)
        );
        if raised(AlarmKind::Corrupt) && !exempt {
            return Err(KvError::Corrupt);
        }
        let no_space = raised(AlarmKind::NoSpace) || raised(AlarmKind::QuotaReached);
        if no_space && command.takes_space() {
            return Err(KvError::NoSpace);
        }
        Ok(())
    }

    fn apply_put(
        &mut self,
        put: &Put,
        past: &dyn Records,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        if let Err(refusal) = txn::check_put(put, &self.keys, &self.leases) {
            return Ok(Err(refusal));
        }
        let mut writing = self.begin(past, answer);
        let done = self.put(put, &mut writing)?;
        self.end(&writing);
        Ok(Ok(Outcome::Put(done)))
    }

    fn apply_delete_range(
        &mut self,
        delete: &DeleteRange,
        past: &dyn Records,
        answer: Option<&mut AnswerReads>,
    ) -> Outcome {
        let mut writing = self.begin(past, answer);
        let done = self.delete_range(delete, &mut writing);
        self.end(&writing);
        Outcome::DeleteRange(done)
    }

    fn apply_txn(
        &mut self,
        txn: &Txn,
        past: &dyn Records,
        judged: Option<&Judged>,
        answer: Option<&mut AnswerReads>,
    ) -> Result<Verdict, ReadError> {
        let records = Layered {
            fresh: &self.changes.records,
            past,
        };
        let plan = match judged {
            Some(judged) => judged.plan(txn),
            None => Plan::new(txn, &self.keys, &records)?,
        };
        if let Err(refusal) = plan.check(&self.keys, &self.leases, self.window()) {
            return Ok(Err(refusal));
        }
        let mut writing = self.begin(past, answer);
        let mut done = self.run(&plan, &mut writing)?;
        self.end(&writing);
        done.revision = self.revision;
        Ok(Ok(Outcome::Txn(done)))
    }

    fn apply_compact(&mut self, compact: Compact) -> Verdict {
        let asked = compact.revision;
        if asked <= self.compacted {
            return Err(KvError::Compacted {
                asked,
                oldest: self.compacted,
            });
        }
        if asked > self.revision {
            return Err(KvError::FutureRevision {
                asked,
                newest: self.revision,
            });
        }
        self.compacted = asked;
        self.changes.compacted = Some(asked);
        Ok(Outcome::Compact {
            revision: self.revision,
        })
    }

    fn apply_grant(&mut self, grant: GrantLease, at: LogPosition) -> Verdict {
        let (id, row) = (grant.id, LeaseRow::new(grant.ttl_secs, at.index));
        self.leases.grant(id, row)?;
        Ok(self.lease_changed(LeaseChange::Granted { id, row }))
    }

    fn apply_revoke(&mut self, revoke: RevokeLease) -> Verdict {
        self.end_lease(revoke.id)?;
        Ok(self.lease_changed(LeaseChange::Revoked { id: revoke.id }))
    }

    fn apply_expiry(&mut self, expire: &ExpireLeases, at: LogPosition) -> Outcome {
        let (mut leases, mut deleted) = (0, 0);
        for &mark in &expire.leases {
            if self.leases.guarded(mark, expire.term, at).is_none() {
                continue;
            }
            if let Ok(keys) = self.end_lease(mark.id) {
                deleted += keys;
                leases += 1;
                self.changes
                    .leases
                    .push(LeaseChange::Revoked { id: mark.id });
            }
        }
        self.counted_down(leases, deleted)
    }

    fn apply_checkpoint(&mut self, checkpoint: &CheckpointLeases, at: LogPosition) -> Outcome {
        let mut leases = 0;
        for &(mark, remaining_secs) in &checkpoint.leases {
            let Some(lease) = self.leases.guarded(mark, checkpoint.term, at) else {
                continue;
            };
            lease.row.remaining_secs = remaining_secs;
            let (id, row) = (mark.id, lease.row);
            leases += 1;
            self.changes
                .leases
                .push(LeaseChange::Checkpointed { id, row });
        }
        self.counted_down(leases, 0)
    }

    fn apply_renewals(&mut self, renewals: &RenewLeases, at: LogPosition) -> Outcome {
        let mut gone = Vec::new();
        for &mark in &renewals.leases {
            match self.leases.renew(mark, renewals.term, at) {
                Some(change) => self.changes.leases.push(change),
                None => gone.push(mark.id),
            }
        }
        Outcome::Renewals {
            revision: self.revision,
            gone: (renewals.term == at.term).then_some(gone),
        }
    }

    fn counted_down(&self, leases: usize, deleted: usize) -> Outcome {
        Outcome::Countdown {
            revision: self.revision,
            leases,
            deleted,
        }
    }

    /// Deletes a lease and all its keys, in one revision; without keys no revision is taken. Returns the number of keys.
    fn end_lease(&mut self, id: LeaseId) -> Result<usize, KvError> {
        let keys = self.leases.revoke(id)?;
        let major = self.revision.next();
        for (sub, key) in (0..).zip(keys.iter()) {
            self.delete(key, Rev::new(major, sub), LeaseId(0));
        }
        if !keys.is_empty() {
            self.revision = major;
        }
        Ok(keys.len())
    }

    fn lease_changed(&mut self, change: LeaseChange) -> Outcome {
        self.changes.leases.push(change.clone());
        Outcome::Lease {
            revision: self.revision,
            change,
        }
    }

    fn apply_alarm(&mut self, alarm: SetAlarm) -> Outcome {
        let entry = (alarm.member, alarm.kind);
        let found = if alarm.raised {
            self.changes.alarms |= self.alarms.insert(entry);
            true
        } else {
            // Clients see both kinds as one.
            let likewise = match alarm.kind {
                AlarmKind::NoSpace => Some(AlarmKind::QuotaReached),
                AlarmKind::Corrupt => Some(AlarmKind::StateDiffers),
                AlarmKind::StateDiffers | AlarmKind::QuotaReached => None,
            };
            let both = likewise.is_some_and(|kind| self.alarms.remove(&(alarm.member, kind)));
            self.alarms.remove(&entry) || both
        };
        self.changes.alarms |= !alarm.raised && found;
        Outcome::Alarm {
            revision: self.revision,
            found,
        }
    }

    fn apply_auth(&mut self, change: &Change, at: LogPosition) -> Verdict {
        self.auth
            .apply(change, at.index.0, &mut self.changes.auth)?;
        Ok(Outcome::Auth {
            revision: self.revision,
            index: at.index,
        })
    }

    fn begin<'a>(&self, past: &'a dyn Records, answer: Option<&'a mut AnswerReads>) -> Writing<'a> {
        Writing {
            major: self.revision.next(),
            sub: 0,
            window: self.window(),
            past,
            cleared: Cleared::default(),
            answer,
        }
    }

    fn end(&mut self, writing: &Writing<'_>) {
        if writing.sub > 0 {
            self.revision = writing.major;
        }
    }

    fn run(&mut self, plan: &Plan<'_>, writing: &mut Writing<'_>) -> Result<TxnDone, ReadError> {
        let mut nested = plan.nested.iter();
        let mut responses = Vec::with_capacity(plan.ops.len());
        for op in plan.ops {
            responses.push(match op {
                TxnOp::Range(query) => OpDone::Range(self.range(query, writing)),
                TxnOp::Put(put) => OpDone::Put(self.put(put, writing)?),
                TxnOp::DeleteRange(delete) => {
                    OpDone::DeleteRange(self.delete_range(delete, writing))
                }
                TxnOp::Txn(_) => OpDone::Txn(self.run(txn::planned(&mut nested), writing)?),
                TxnOp::Empty => unreachable!("an empty operation is refused before the log"),
            });
        }
        Ok(TxnDone {
            revision: writing.visible(),
            succeeded: plan.succeeded,
            responses,
        })
    }

    /// A range changes nothing, so only the member that has the caller looks at the index for it.
    fn range(&self, query: &RangeQuery, writing: &mut Writing<'_>) -> RangeDone {
        let now = writing.visible();
        let head =
            query.revision <= 0 || writing.sub == 0 && query.revision == writing.window.newest.0;
        if let Some(answer) = &mut writing.answer {
            let at = (!head).then_some(Revision(query.revision));
            answer.note_range(&self.keys, query, at, now);
        }
        RangeDone {
            revision: now,
            ..RangeDone::default()
        }
    }

    fn put(&mut self, put: &Put, writing: &mut Writing<'_>) -> Result<PutDone, ReadError> {
        let before = self.keys.get(&put.key);
        let mut value = put.value.0.clone();
        if let Some(meta) = before.filter(|_| put.ignore_value) {
            let encoded = self.stored(meta.modified, writing.past)?;
            value = range::decode(meta.modified, &encoded)?.value;
        }
        let asked = before.filter(|_| put.prev_kv);
        writing.note_previous(asked.iter().map(|meta| meta.modified));
        let old_lease = before.map_or(LeaseId(0), |meta| meta.lease);
        let lease = if put.ignore_lease {
            old_lease
        } else {
            put.lease
        };
        let rev = writing.next_rev();
        let create_revision = before.map_or(rev.major, |meta| meta.create);
        let kv = record::encode(&record::Fields {
            key: &put.key,
            create_revision,
            mod_revision: rev.major,
            version: before.map_or(0, |meta| meta.version) + 1,
            value: &value,
            lease,
        });
        let key = record::key_of(&kv);
        self.keys.put(&key, rev, lease, before);
        writing.cleared.put(&key);
        self.leases.attach(&key, old_lease, lease);
        self.record(
            Record {
                rev,
                kind: RecordKind::Put,
                kv,
            },
            key,
            lease,
        );
        Ok(PutDone {
            revision: writing.visible(),
            prev: None,
        })
    }

    fn delete_range(&mut self, delete: &DeleteRange, writing: &mut Writing<'_>) -> DeleteRangeDone {
        let range = KeyRange::from_wire(&delete.key, &delete.range_end);
        let steps = Steps::unlimited();
        let found = writing.cleared.take_live(&range, &self.keys, &steps);
        let asked = found.iter().filter(|_| delete.prev_kv);
        writing.note_previous(asked.map(|(_, meta)| meta.modified));
        let mut done = DeleteRangeDone::default();
        for (key, meta) in found {
            self.delete(&key, writing.next_rev(), meta.lease);
            done.deleted += 1;
        }
        done.revision = writing.visible();
        done
    }

    /// Deletes a live key that was attached to `lease`.
    fn delete(&mut self, key: &[u8], rev: Rev, lease: LeaseId) {
        let kv = record::encode_tombstone(key);
        let key = record::key_of(&kv);
        self.keys.delete(&key, rev);
        self.leases.attach(&key, lease, LeaseId(0));
        self.record(
            Record {
                rev,
                kind: RecordKind::Tombstone,
                kv,
            },
            key,
            LeaseId(0),
        );
    }

    fn record(&mut self, record: Record, key: Bytes, lease: LeaseId) {
        self.changes.keys.push(KeyChange {
            key,
            rev: record.rev,
            kind: record.kind,
            lease,
        });
        self.changes.records.push(record);
    }

    fn stored(&self, rev: Rev, past: &dyn Records) -> Result<EncodedKv, ReadError> {
        Layered {
            fresh: &self.changes.records,
            past,
        }
        .get(rev)
    }
}

impl Writing<'_> {
    fn note_previous(&mut self, revs: impl Iterator<Item = Rev>) {
        if let Some(answer) = &mut self.answer {
            answer.note_previous(revs);
        }
    }

    fn next_rev(&mut self) -> Rev {
        let rev = Rev::new(self.major, self.sub);
        self.sub += 1;
        rev
    }

    /// The revision that an operation reports: the transaction's own once it has changed something.
    fn visible(&self) -> Revision {
        if self.sub > 0 {
            self.major
        } else {
            self.window.newest
        }
    }
}

impl LeaseTable {
    /// Attaches a live key read back from the database.
    pub fn restore_key(&mut self, kv: &KeyValue) {
        self.attach(&kv.key, LeaseId(0), kv.lease);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kv::index::Index,
        types::{LogIndex, Term},
    };

    struct NoRecords;

    impl Records for NoRecords {
        fn get(&self, rev: Rev) -> Result<EncodedKv, ReadError> {
            Err(ReadError::not_in_memory(rev))
        }
    }

    #[test]
    fn the_end_of_the_quota_s_alarm_leaves_that_of_a_client_and_a_client_ends_both() {
        let mut machine = Machine::new(LoadedState::default(), Index::new().snapshot());
        let mut index = LogIndex(0);
        let mut apply = |command: &Command| {
            index = index.next();
            let at = LogPosition::new(Term(1), index);
            machine.apply(command, at, &NoRecords, None).unwrap()
        };
        let set = |kind, raised| {
            Command::SetAlarm(SetAlarm {
                member: MemberId(1),
                kind,
                raised,
            })
        };
        let put = Command::Put(Put {
            key: "k".into(),
            ..Put::default()
        });
        apply(&set(AlarmKind::NoSpace, true)).unwrap();
        apply(&set(AlarmKind::QuotaReached, true)).unwrap();
        apply(&set(AlarmKind::QuotaReached, false)).unwrap();
        assert!(matches!(apply(&put), Err(KvError::NoSpace)), "the client's");
        apply(&set(AlarmKind::QuotaReached, true)).unwrap();
        apply(&set(AlarmKind::NoSpace, false)).unwrap();
        apply(&put).unwrap();
        apply(&set(AlarmKind::QuotaReached, true)).unwrap();
        assert!(matches!(apply(&put), Err(KvError::NoSpace)), "the quota's");
        let ended = apply(&set(AlarmKind::NoSpace, false)).unwrap();
        assert!(matches!(ended, Outcome::Alarm { found: true, .. }));
        apply(&put).unwrap();
        assert!(machine.alarms().is_empty());
    }
}
