//! The public face: every input of consensus, and `ready` for its output.
//!
//! Rules common to all roles sit here: terms, senders, changes of role. What a role does with a message sits
//! in its own file.

use super::candidate::Candidate;
use super::common::Common;
use super::follower::Follower;
use super::interface::{
    ChangeError, Config, InitialState, InitialStateError, LogReadError, PeerStatus, ProposeError,
    ReadError, Reader, Ready, Released, RoleName, SnapshotRefused, Status, StepError,
    TransferError,
};
use super::leader::Leader;
use super::membership::{Change, Membership};
use super::message::{Body, Message};
use super::recovery::{check_config, recover_log};
use crate::types::{Entry, EntryKind, LogIndex, LogPosition, MemberId, Term};
use bytes::Bytes;

/// What a member is, with what only that role has.
#[derive(Debug)]
pub(super) enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// One member's consensus: inputs go in, [`Ready`]s come out. See the module's essay.
#[derive(Debug)]
pub struct Node {
    pub(super) common: Common,
    pub(super) role: Role,
    /// What observers were last told.
    told: Option<Status>,
}

impl Node {
    /// A member as its disks left it. A sole voter stands for election at once.
    pub fn new(config: Config, state: InitialState) -> Result<Self, InitialStateError> {
        check_config(&config)?;
        let (applied, awaits_snapshot) = (state.applied, state.awaits_snapshot);
        let mut hard_state = state.hard_state;
        let (log, history) = recover_log(&config, state)?;
        // A torn write may have kept an entry of a newer term and lost the term itself. Nothing was promised
        // in it yet.
        if log.last().term > hard_state.term {
            (hard_state.term, hard_state.vote) = (log.last().term, None);
        }
        let mut common = Common::new(config, hard_state, log, history, applied);
        common.applying.awaiting = awaits_snapshot;
        let role = Role::Follower(Follower::new(&mut common, None));
        let mut node = Self {
            common,
            role,
            told: None,
        };
        if node.common.membership().is_sole_voter(node.common.id()) {
            node.stand(false);
        }
        Ok(node)
    }

    // --- time ---

    /// One tick passed.
    pub fn tick(&mut self) {
        let common = &mut self.common;
        common.now += 1;
        let stand = match &mut self.role {
            Role::Follower(follower) => follower.tick(common),
            Role::Candidate(candidate) => candidate.tick(),
            Role::Leader(leader) => {
                if leader.tick(common) {
                    self.become_follower(self.common.term, None);
                }
                false
            }
        };
        if stand {
            self.stand(false);
        }
        let common = &mut self.common;
        let patience = 2 * u64::from(common.config.election_ticks);
        common
            .reads
            .expire(common.now.saturating_sub(patience), &mut common.out.reads);
    }

    // --- clients ---

    /// Appends a command. It is committed when it comes back from [`Ready::committed`] with the returned id;
    /// if another entry comes with its index, it never will be.
    pub fn propose(&mut self, data: Bytes) -> Result<LogPosition, ProposeError> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose(&mut self.common, data),
            Role::Follower(_) | Role::Candidate(_) => Err(self.not_leader()),
        }
    }

    /// Appends a membership change, in force at once (see [`membership`](super::membership)). The committed
    /// entry's data is the encoded [`Membership`] after it.
    pub fn propose_membership(&mut self, change: &Change) -> Result<LogPosition, ChangeError> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose_membership(&mut self.common, change),
            Role::Follower(_) | Role::Candidate(_) => Err(self.not_leader().into()),
        }
    }

    /// Asks which index a linearizable read must wait for; [`Ready::reads`] answers with `context`.
    pub fn read_index(&mut self, context: u64) -> Result<(), ReadError> {
        self.common.reads.push(context, self.common.now)
    }

    /// Hands leadership to a voter, once it has our whole log. Proposals are refused meanwhile, at most for an
    /// election timeout.
    pub fn transfer_leadership(&mut self, to: MemberId) -> Result<(), TransferError> {
        let leader = self.leader();
        let Role::Leader(role) = &mut self.role else {
            return Err(TransferError::NotLeader { leader });
        };
        if !self.common.membership().is_voter(to) {
            return Err(TransferError::NotVoter(to));
        }
        if to != self.common.id() {
            role.transfer(to);
        }
        Ok(())
    }

    /// This member's disk is too slow to lead: hands leadership to the voter that is closest to it. Tells
    /// which; None if this member does not lead or nobody is in reach. Call again while the disk stalls.
    pub fn report_disk_stall(&mut self) -> Option<MemberId> {
        match &mut self.role {
            Role::Leader(leader) => leader.transfer_to_best(&self.common),
            Role::Follower(_) | Role::Candidate(_) => None,
        }
    }

    /// Bars this member from leading, or lets it again: while barred it does not stand for election, also not when a leader tells
    /// it to, and votes, follows and stores entries as ever. A leader hands leadership to the voter that is closest to it; call
    /// again while it leads, for the other may not take it. A sole voter leads all the same: there is nobody else.
    pub fn bar(&mut self, barred: bool) {
        self.common.barred = barred && !self.common.membership().is_sole_voter(self.common.id());
        if self.common.barred
            && let Role::Leader(leader) = &mut self.role
        {
            leader.transfer_to_best(&self.common);
        }
    }

    /// Stands for election without waiting for the timeout.
    pub fn campaign(&mut self) {
        if !self.is_leader() {
            self.stand(false);
        }
    }

    fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader {
            leader: self.leader(),
        }
    }

    // --- peers ---

    /// Takes a message that the transport proved to come from `from`. After an error the message had no
    /// effect beyond the sender's term; the error is worth a log line.
    pub fn step(&mut self, from: MemberId, message: Message) -> Result<(), StepError> {
        if from == self.common.id() || from == MemberId(0) {
            return Err(StepError::Sender(from));
        }
        let Message { term, body } = message;
        check_entries(term, &body)?;
        if !self.heed_term(from, term, &body) {
            return Ok(());
        }
        if body.is_from_leader() {
            self.follow(from)?;
        }
        match body {
            Body::PreVote { last } => self.on_pre_vote(from, term, last),
            Body::PreVoteReply { asked, granted } => self.on_pre_vote_reply(from, asked, granted),
            Body::RequestVote { last, .. } => self.on_request_vote(from, last),
            Body::Vote { granted } => self.on_vote(from, granted),
            Body::TimeoutNow => self.stand(true),
            Body::StaleTerm => {}
            Body::Append { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::ReadIndexReply { .. } => return self.step_follower(from, body),
            Body::AppendReply { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::ReadIndex { .. } => return self.step_leader(from, &body),
        }
        Ok(())
    }

    /// Compares the sender's term with ours. False if the message is to be dropped.
    fn heed_term(&mut self, from: MemberId, term: Term, body: &Body) -> bool {
        if matches!(body, Body::PreVote { .. }) {
            return true;
        }
        if term > self.common.term {
            // Whoever is cut off from a live leader must not depose it.
            let disruptive = matches!(
                body,
                Body::RequestVote {
                    transfer: false,
                    ..
                }
            );
            if disruptive && self.leader_is_fresh() {
                return false;
            }
            self.become_follower(term, None);
            return true;
        }
        if term < self.common.term {
            if body.is_from_leader() {
                self.common.send(from, Body::StaleTerm);
            } else if matches!(body, Body::RequestVote { .. }) {
                self.common.send(from, Body::Vote { granted: false });
            }
            return matches!(body, Body::PreVoteReply { .. });
        }
        true
    }

    /// `from` says what only the leader of our term says.
    fn follow(&mut self, from: MemberId) -> Result<(), StepError> {
        match &mut self.role {
            Role::Follower(follower) => follower.heard_leader(&self.common, from),
            Role::Candidate(_) => {
                self.become_follower(self.common.term, Some(from));
                Ok(())
            }
            Role::Leader(_) => Err(StepError::SecondLeader {
                term: self.common.term,
                claims: from,
                leads: self.common.id(),
            }),
        }
    }

    fn step_follower(&mut self, from: MemberId, body: Body) -> Result<(), StepError> {
        let Role::Follower(follower) = &mut self.role else {
            unreachable!("whoever hears the leader follows it");
        };
        let common = &mut self.common;
        match body {
            Body::Append {
                prev,
                commit,
                entries,
            } => {
                follower.append(common, from, prev, commit, entries);
            }
            Body::Commit { commit } => follower.committed(common, commit)?,
            Body::Heartbeat { commit, round } => {
                follower.committed(common, commit)?;
                common.send(from, Body::HeartbeatReply { round });
            }
            Body::ReadIndexReply { round, index } => follower.read_answered(common, round, index),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::RequestVote { .. }
            | Body::Vote { .. }
            | Body::AppendReply { .. }
            | Body::AppendRejected { .. }
            | Body::HeartbeatReply { .. }
            | Body::ReadIndex { .. }
            | Body::TimeoutNow
            | Body::StaleTerm => unreachable!("step() sends leaders' messages only"),
        }
        Ok(())
    }

    fn step_leader(&mut self, from: MemberId, body: &Body) -> Result<(), StepError> {
        let Role::Leader(leader) = &mut self.role else {
            return Ok(());
        };
        let common = &mut self.common;
        match *body {
            Body::AppendReply { matched } => {
                if leader.on_append_reply(common, from, matched)? {
                    self.resign();
                }
            }
            Body::AppendRejected { rejected, hint } => {
                leader.on_append_rejected(common, from, rejected, hint);
            }
            Body::HeartbeatReply { round } => leader.on_heartbeat_reply(common, from, round),
            Body::ReadIndex { round } => leader.on_read_index(from, round),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::RequestVote { .. }
            | Body::Vote { .. }
            | Body::Append { .. }
            | Body::Commit { .. }
            | Body::Heartbeat { .. }
            | Body::ReadIndexReply { .. }
            | Body::TimeoutNow
            | Body::StaleTerm => unreachable!("step() sends replies to a leader only"),
        }
        Ok(())
    }

    /// Messages to `peer` may have been lost.
    pub fn unreachable(&mut self, peer: MemberId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_unreachable(peer);
        }
    }

    // --- disk and state machine ---

    /// The write `seq` of [`Ready::persist`], and all before it, are durable.
    pub fn persisted(&mut self, seq: u64) {
        self.common.persisted(seq);
        if let Role::Leader(leader) = &mut self.role {
            if leader.advance_commit(&mut self.common) {
                self.resign();
            }
        } else {
            self.own_vote_durable();
        }
    }

    /// The state machine applied everything up to `index`, which it was given.
    pub fn applied(&mut self, index: LogIndex) {
        self.common.applied(index);
    }

    /// Answers a [`ReadLog`](super::ReadLog); an answer that came too late to matter is dropped. An error
    /// means that the WAL cannot be trusted.
    pub fn log_read(
        &mut self,
        reader: Reader,
        from: LogIndex,
        result: Result<Vec<Entry>, Released>,
    ) -> Result<(), LogReadError> {
        let wanted = match (reader, &self.role) {
            (Reader::Apply, _) => self.common.applying.is_reading(from),
            (Reader::Peer(id), Role::Leader(leader)) => leader.is_reading(id, from),
            (Reader::Peer(_), Role::Follower(_) | Role::Candidate(_)) => false,
        };
        if !wanted {
            return Ok(());
        }
        if let Ok(entries) = &result
            && (entries.is_empty() || !self.common.log.recognises_durable(from, entries))
        {
            return Err(LogReadError { from });
        }
        match (reader, &mut self.role) {
            (Reader::Apply, _) => {
                let entries = result.map_err(|_| LogReadError { from })?;
                self.common.read_for_apply(entries);
            }
            (Reader::Peer(id), Role::Leader(leader)) => {
                leader.on_log_read(&mut self.common, id, from, result.ok());
            }
            (Reader::Peer(_), Role::Follower(_) | Role::Candidate(_)) => {}
        }
        Ok(())
    }

    /// The WAL dropped, or is about to drop, entries up to `through`. More than what is applied stays.
    pub fn log_released(&mut self, through: LogIndex) {
        self.common
            .log
            .release(through.min(self.common.applying.applied));
    }

    // --- snapshots ---

    /// The snapshot for `peer` arrived there and is in place; it holds everything up to `through`.
    pub fn snapshot_sent(&mut self, peer: MemberId, through: LogIndex) {
        let last = self.common.log.last().index;
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_sent(peer, through, last);
        }
    }

    /// The snapshot for `peer` did not arrive. It is asked for again once the peer is heard.
    pub fn snapshot_failed(&mut self, peer: MemberId) {
        if let Role::Leader(leader) = &mut self.role {
            leader.on_snapshot_failed(peer);
        }
    }

    /// A verified snapshot at `id` is about to replace the state machine. Nothing is given out to be applied
    /// until [`snapshot_installed`](Self::snapshot_installed) or
    /// [`snapshot_abandoned`](Self::snapshot_abandoned).
    pub fn snapshot_starts(&mut self, id: LogPosition) -> Result<(), SnapshotRefused> {
        let commit = self.common.log.commit();
        let applying = &self.common.applying;
        let newer = if applying.awaiting {
            id.index >= applying.applied
        } else {
            id.index > commit
        };
        if !newer {
            return Err(SnapshotRefused {
                snapshot: id,
                commit,
            });
        }
        assert!(
            !self.is_leader(),
            "a leader has every committed entry: nobody can send it newer ones"
        );
        if matches!(self.role, Role::Candidate(_)) {
            self.become_follower(self.common.term, None);
        }
        self.common.applying.installing = true;
        Ok(())
    }

    /// Whether there is no state machine before a snapshot is installed: the leader should be asked for one.
    pub fn awaits_snapshot(&self) -> bool {
        self.common.applying.awaiting
    }

    /// The state machine stays as it was.
    pub fn snapshot_abandoned(&mut self) {
        self.common.applying.installing = false;
    }

    /// The state machine was replaced by the snapshot at `id`, durably; `membership` came with it, and
    /// [`snapshot_starts`](Self::snapshot_starts) before it.
    pub fn snapshot_installed(&mut self, id: LogPosition, membership: Membership) {
        assert!(
            self.common.applying.installing,
            "a snapshot starts before it is installed"
        );
        assert!(
            !self.is_leader(),
            "a member that installs a snapshot does not stand for election"
        );
        self.common.restore(id, membership);
        if let Role::Follower(follower) = &mut self.role {
            follower.restored(id.index);
        }
    }

    // --- roles ---

    /// Takes back from the present role what outlives it.
    pub(super) fn leave_role(&mut self) {
        match &mut self.role {
            Role::Follower(follower) => follower.ask_again(&mut self.common),
            Role::Candidate(_) => {}
            Role::Leader(leader) => leader.abandon_reads(&mut self.common),
        }
    }

    /// Follows in `term`, which is ours or newer.
    pub(super) fn become_follower(&mut self, term: Term, leader: Option<MemberId>) {
        self.leave_role();
        if term > self.common.term {
            self.common.enter_term(term);
        }
        assert_eq!(term, self.common.term, "nobody goes back to an older term");
        self.role = Role::Follower(Follower::new(&mut self.common, leader));
    }

    /// Leads the term it stood in.
    pub(super) fn become_leader(&mut self) {
        assert!(
            matches!(&self.role, Role::Candidate(candidate) if !candidate.pre),
            "only a candidate wins"
        );
        assert!(
            self.common.hard_state_durable(),
            "no vote is counted before ours is durable"
        );
        self.role = Role::Leader(Leader::new(&mut self.common));
    }

    /// This leader's removal is committed.
    fn resign(&mut self) {
        if let Role::Leader(leader) = &mut self.role {
            leader.resign(&mut self.common);
            self.become_follower(self.common.term, None);
        }
    }

    // --- output ---

    /// What is to be done now, if anything. Call it after a batch of input, until it returns None.
    pub fn ready(&mut self) -> Option<Ready> {
        match &mut self.role {
            Role::Follower(follower) => follower.settle(&mut self.common),
            Role::Candidate(_) => {}
            Role::Leader(leader) => leader.settle(&mut self.common),
        }
        let committed = self.common.take_committed();
        let persist = self.common.take_persist();
        let out = std::mem::take(&mut self.common.out);
        let status = Some(self.status()).filter(|status| self.told != Some(*status));
        self.told = status.or(self.told);
        self.common.log.evict();
        let ready = Ready {
            persist,
            messages: out.messages,
            committed,
            reads: out.reads,
            snapshots: out.snapshots,
            log_reads: out.log_reads,
            status,
        };
        Some(ready).filter(|ready| !ready.is_empty())
    }

    // --- observers ---

    /// Role, term and leader.
    pub fn status(&self) -> Status {
        let role = match &self.role {
            Role::Follower(_) => RoleName::Follower,
            Role::Candidate(candidate) if candidate.pre => RoleName::PreCandidate,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        };
        Status {
            role,
            term: self.common.term,
            leader: self.leader(),
        }
    }

    /// Who leads our term, if known.
    pub fn leader(&self) -> Option<MemberId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.common.id()),
        }
    }

    /// Whether this member leads, as far as it knows.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// The membership in force: the newest in the log, committed or not.
    pub fn membership(&self) -> &Membership {
        self.common.membership()
    }

    /// How far the log is known to be committed.
    pub fn commit(&self) -> LogIndex {
        self.common.log.commit()
    }

    /// The last entry of the log.
    pub fn last(&self) -> LogPosition {
        self.common.log.last()
    }

    /// The term of the entry at `index`, unless it was released or is not there yet.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.common.log.term(index)
    }

    /// How far a leader has fed the others; nothing elsewhere.
    pub fn peers(&self) -> Vec<PeerStatus> {
        match &self.role {
            Role::Leader(leader) => leader.peers().collect(),
            Role::Follower(_) | Role::Candidate(_) => Vec::new(),
        }
    }

    /// Asserts every invariant; for tests.
    pub fn check(&self) {
        self.common.check();
        match &self.role {
            Role::Leader(leader) => leader.check(&self.common),
            Role::Follower(_) | Role::Candidate(_) => {}
        }
    }
}

/// An append's entries must follow each other, in terms the sender knows, and hold what they say.
fn check_entries(term: Term, body: &Body) -> Result<(), StepError> {
    let Body::Append { prev, entries, .. } = body else {
        return Ok(());
    };
    let mut before = *prev;
    for entry in entries {
        let follows = before.index.0.checked_add(1) == Some(entry.index.0);
        let in_order = before.term <= entry.term && entry.term <= term;
        let sound = entry.kind != EntryKind::Membership || Membership::decode(&entry.data).is_ok();
        if !(follows && in_order && sound) {
            return Err(StepError::Entry { index: entry.index });
        }
        before = entry.position();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{index, voters};
    use super::*;

    fn entry(term: u64, at: u64, kind: EntryKind) -> Entry {
        let data = Bytes::from_static(b"not a membership");
        Entry {
            term: Term(term),
            index: index(at),
            kind,
            data,
        }
    }

    fn started(size: u64) -> Node {
        let state = InitialState {
            membership: voters(1..=size),
            ..InitialState::default()
        };
        Node::new(Config::new(MemberId(1), 1), state).unwrap()
    }

    /// A sole voter that leads, with its first entry committed and applied.
    fn sole_leader(config: Config) -> Node {
        let state = InitialState {
            membership: voters([1]),
            ..InitialState::default()
        };
        let mut node = Node::new(config, state).unwrap();
        settle(&mut node);
        assert!(node.is_leader());
        node
    }

    fn settle(node: &mut Node) -> Vec<Entry> {
        let mut committed = Vec::new();
        while let Some(ready) = node.ready() {
            if let Some(persist) = ready.persist {
                node.persisted(persist.seq);
            }
            committed.extend(ready.committed);
        }
        committed
    }

    fn append(term: u64, entries: Vec<Entry>) -> Message {
        let prev = LogPosition::default();
        let commit = index(0);
        let body = Body::Append {
            prev,
            commit,
            entries,
        };
        Message {
            term: Term(term),
            body,
        }
    }

    #[test]
    fn malformed_appends_are_refused_whole() {
        let mut node = started(3);
        let bad = [
            vec![entry(1, 2, EntryKind::Command)],
            vec![
                entry(2, 1, EntryKind::Command),
                entry(1, 2, EntryKind::Command),
            ],
            vec![entry(9, 1, EntryKind::Command)],
            vec![entry(1, 1, EntryKind::Membership)],
        ];
        for entries in bad {
            let refused = node.step(MemberId(2), append(3, entries.clone()));
            assert!(
                matches!(refused, Err(StepError::Entry { .. })),
                "{entries:?}"
            );
            assert_eq!(node.last(), LogPosition::default());
        }
    }

    #[test]
    fn impossible_senders_are_refused() {
        let mut node = started(3);
        for sender in [MemberId(0), MemberId(1)] {
            let refused = node.step(sender, append(1, Vec::new()));
            assert_eq!(refused, Err(StepError::Sender(sender)));
        }
        node.step(MemberId(2), append(1, Vec::new())).unwrap();
        let refused = node.step(MemberId(3), append(1, Vec::new()));
        let (term, claims, leads) = (Term(1), MemberId(3), MemberId(2));
        assert_eq!(
            refused,
            Err(StepError::SecondLeader {
                term,
                claims,
                leads
            })
        );
    }

    #[test]
    fn a_member_that_lost_what_it_acknowledged_notices() {
        let mut node = started(3);
        let body = Body::Heartbeat {
            commit: index(7),
            round: 0,
        };
        let told = node.step(
            MemberId(2),
            Message {
                term: Term(1),
                body,
            },
        );
        let (commit, last) = (index(7), index(0));
        assert_eq!(told, Err(StepError::EntriesLost { commit, last }));
    }

    #[test]
    fn proposals_beyond_the_bound_are_refused_until_some_commit() {
        let mut config = Config::new(MemberId(1), 1);
        config.uncommitted_bytes_max = 1_000;
        let mut node = sole_leader(config);
        let value = Bytes::from(vec![0; 500]);
        node.propose(value.clone()).unwrap();
        let refused = node.propose(value.clone());
        assert!(matches!(
            refused,
            Err(ProposeError::TooMuchUncommitted { .. })
        ));
        assert_eq!(settle(&mut node).len(), 1);
        node.propose(value).unwrap();
    }

    #[test]
    fn what_is_applying_is_bounded_and_comes_back_from_the_wal() {
        let mut config = Config::new(MemberId(1), 1);
        config.applying_bytes_max = 1_000;
        config.cached_bytes_max = 0;
        let mut node = sole_leader(config);
        node.applied(index(1));
        let mut wal = Vec::new();
        for _ in 0..4 {
            node.propose(Bytes::from(vec![0; 400])).unwrap();
        }
        let mut committed = Vec::new();
        let mut reads = Vec::new();
        for _ in 0..20 {
            while let Some(ready) = node.ready() {
                if let Some(persist) = ready.persist {
                    wal.extend(persist.entries);
                    node.persisted(persist.seq);
                }
                committed.extend(ready.committed);
                reads.extend(ready.log_reads);
            }
            assert!(
                node.last().index == index(5),
                "nothing is appended meanwhile"
            );
            if let Some(read) = reads.pop() {
                let entries = wal
                    .iter()
                    .filter(|e| e.index >= read.from && e.index <= read.to);
                let entries = entries.take(1).cloned().collect();
                node.log_read(read.reader, read.from, Ok(entries)).unwrap();
            } else if let Some(last) = committed.last() {
                node.applied(last.index);
            }
        }
        let applied: Vec<_> = committed.iter().map(|entry| entry.index.0).collect();
        assert_eq!(applied, [2, 3, 4, 5]);
        node.check();
    }

    #[test]
    fn a_read_waits_for_an_entry_of_the_leaders_own_term() {
        let state = InitialState {
            membership: voters([1]),
            ..InitialState::default()
        };
        let mut node = Node::new(Config::new(MemberId(1), 1), state).unwrap();
        node.read_index(7).unwrap();
        let vote = node.ready().unwrap();
        assert!(vote.reads.is_empty(), "it is a candidate");
        node.persisted(vote.persist.unwrap().seq);
        let first = node.ready().unwrap();
        assert!(first.reads.is_empty(), "its first entry is not committed");
        node.persisted(first.persist.unwrap().seq);
        let reads = node.ready().unwrap().reads;
        assert_eq!(reads.len(), 1);
        assert_eq!((reads[0].context, reads[0].outcome), (7, Ok(index(1))));
    }
}
