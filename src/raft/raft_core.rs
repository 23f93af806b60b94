//! The public face of consensus: clock ticks, clients' requests, [`ready`](RaftCore::ready) for the output, and what
//! observers may ask.
//!
//! The other inputs are in files of their own: `step` takes peers' messages, `reports` what disk and state machine report.
//! `election` and `transitions` change roles.

use super::{
    applying::Applying,
    candidate::Candidate,
    follower::Follower,
    interface::{
        ChangeError, Config, HeldEntries, InitialState, InitialStateError, PeerStatus,
        ProposeError, ReadError, Ready, RoleName, Status, TransferError,
    },
    leader::Leader,
    membership::{Membership, MembershipChange},
    startup::{check_config, load_log},
    state::CoreState,
};
use crate::types::{LogIndex, LogPosition, MemberId, Term};
use bytes::Bytes;

/// A member's role, with what only that role has.
#[derive(Debug)]
pub(super) enum Role {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Leader),
}

/// One member's consensus: inputs go in, [`Ready`]s come out. See the module's essay.
#[derive(Debug)]
pub struct RaftCore {
    pub(super) state: CoreState,
    pub(super) role: Role,
    /// The status that the last `Ready` with one returned.
    returned_status: Option<Status>,
}

impl RaftCore {
    /// A member that starts with what its disks hold. If it is the only voter, it campaigns at once.
    pub fn new(config: Config, initial: InitialState) -> Result<Self, InitialStateError> {
        check_config(&config)?;
        let applying = Applying::new(initial.applied, initial.awaits_snapshot);
        let mut hard_state = initial.hard_state;
        let (log, history) = load_log(&config, initial)?;
        // A torn write may have kept an entry of a newer term and lost the term itself. Nothing was promised in that term yet.
        if log.last().term > hard_state.term {
            (hard_state.term, hard_state.vote) = (log.last().term, None);
        }
        let mut state = CoreState::new(config, hard_state, log, history, applying);
        let role = Role::Follower(Follower::new(&mut state, None));
        let mut core = Self {
            state,
            role,
            returned_status: None,
        };
        if core.state.membership().is_sole_voter(core.state.id()) {
            core.start_campaign(false);
        }
        Ok(core)
    }

    // --- time ---

    pub fn tick(&mut self) {
        let state = &mut self.state;
        state.now += 1;
        let campaign = match &mut self.role {
            Role::Follower(follower) => follower.tick(state),
            Role::Candidate(candidate) => candidate.tick(),
            Role::Leader(leader) => {
                if leader.tick(state) {
                    self.become_follower(self.state.term, None);
                }
                false
            }
        };
        if campaign {
            self.start_campaign(false);
        }
        let state = &mut self.state;
        let age_max = 2 * u64::from(state.config.election_ticks);
        let oldest = state.now.saturating_sub(age_max);
        state.reads.expire(oldest, &mut state.effects.reads);
    }

    // --- clients ---

    /// Appends a command. It is committed when [`Ready::committed`] contains an entry with the returned id; if another
    /// entry comes with its index, the command will never be committed.
    pub fn propose(&mut self, data: Bytes) -> Result<LogPosition, ProposeError> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose(&mut self.state, data),
            Role::Follower(_) | Role::Candidate(_) => Err(self.not_leader()),
        }
    }

    /// Appends a membership change, in force at once (see [`membership`](super::membership)). The committed
    /// entry's data is the encoded [`Membership`] after the change.
    pub fn propose_membership(
        &mut self,
        change: &MembershipChange,
    ) -> Result<LogPosition, ChangeError> {
        match &mut self.role {
            Role::Leader(leader) => leader.propose_membership(&mut self.state, change),
            Role::Follower(_) | Role::Candidate(_) => Err(self.not_leader().into()),
        }
    }

    /// Asks which index a linearizable read must wait for; [`Ready::reads`] answers with `context`.
    pub fn read_index(&mut self, context: u64) -> Result<(), ReadError> {
        self.state.reads.push(context, self.state.now)
    }

    /// Transfers leadership to the voter `to`, once its log equals this leader's. Until then proposals are refused, for an
    /// election timeout at most.
    pub fn transfer_leadership(&mut self, to: MemberId) -> Result<(), TransferError> {
        let leader = self.leader();
        let Role::Leader(role) = &mut self.role else {
            return Err(TransferError::NotLeader { leader });
        };
        if !self.state.membership().is_voter(to) {
            return Err(TransferError::NotVoter(to));
        }
        if to != self.state.id() {
            role.transfer(to);
        }
        Ok(())
    }

    /// This member should not lead on: its disk is too slow, or it is about to stop. Transfers leadership to the most up-to-date
    /// voter that is active, and returns its id. None if this member does not lead, or no other voter is active. A transfer may
    /// fail, so call this again for as long as the reason lasts.
    pub fn yield_leadership(&mut self) -> Option<MemberId> {
        match &mut self.role {
            Role::Leader(leader) => leader.transfer_to_best(&self.state),
            Role::Follower(_) | Role::Candidate(_) => None,
        }
    }

    /// Forbids this member to lead, or allows it again. While forbidden it does not campaign, even if a leader asks it to;
    /// it votes, follows and stores entries as before. A leader transfers leadership to the most up-to-date active voter;
    /// that may fail, so call this again for as long as it leads. A sole voter keeps leading: it is a quorum by itself.
    pub fn forbid_leading(&mut self, forbidden: bool) {
        let sole_voter = self.state.membership().is_sole_voter(self.state.id());
        self.state.leading_forbidden = forbidden && !sole_voter;
        if self.state.leading_forbidden
            && let Role::Leader(leader) = &mut self.role
        {
            leader.transfer_to_best(&self.state);
        }
    }

    /// Campaigns without waiting for the election timeout.
    pub fn campaign(&mut self) {
        if !self.is_leader() {
            self.start_campaign(false);
        }
    }

    fn not_leader(&self) -> ProposeError {
        ProposeError::NotLeader {
            leader: self.leader(),
        }
    }

    // --- output ---

    /// What is to be done now, if anything. Call it after a batch of input, until it returns None.
    pub fn ready(&mut self) -> Option<Ready> {
        match &mut self.role {
            Role::Follower(follower) => follower.prepare_ready(&mut self.state),
            Role::Candidate(_) => {}
            Role::Leader(leader) => leader.prepare_ready(&mut self.state),
        }
        let committed = self.state.take_committed();
        let persist = self.state.take_persist();
        let effects = std::mem::take(&mut self.state.effects);
        let status = Some(self.status()).filter(|status| self.returned_status != Some(*status));
        self.returned_status = status.or(self.returned_status);
        self.state.log.evict();
        let ready = Ready {
            persist,
            messages: effects.messages,
            committed,
            reads: effects.reads,
            snapshots: effects.snapshots,
            log_reads: effects.log_reads,
            status,
        };
        Some(ready).filter(|ready| !ready.is_empty())
    }

    // --- observers ---

    pub fn status(&self) -> Status {
        let role = match &self.role {
            Role::Follower(_) => RoleName::Follower,
            Role::Candidate(candidate) if candidate.is_pre_candidate() => RoleName::PreCandidate,
            Role::Candidate(_) => RoleName::Candidate,
            Role::Leader(_) => RoleName::Leader,
        };
        Status {
            role,
            term: self.state.term,
            leader: self.leader(),
        }
    }

    /// The leader of the current term, if known.
    pub fn leader(&self) -> Option<MemberId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Candidate(_) => None,
            Role::Leader(_) => Some(self.state.id()),
        }
    }

    /// Whether this member has the role of leader. A newer leader may exist already.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// Ticks since the start.
    pub fn now(&self) -> u64 {
        self.state.now
    }

    /// The membership in force: the newest in the log, committed or not.
    pub fn membership(&self) -> &Membership {
        self.state.membership()
    }

    /// Bytes of entries in memory.
    pub fn held(&self) -> HeldEntries {
        HeldEntries {
            log: self.state.log.cached_bytes(),
            applying: self.state.applying.bytes(),
            in_flight: match &self.role {
                Role::Leader(leader) => leader.in_flight_bytes(),
                Role::Follower(_) | Role::Candidate(_) => 0,
            },
        }
    }

    /// Bounds on [`RaftCore::held`]: see [`Config::held_max`].
    pub fn held_max(&self, entry_bytes_max: usize) -> HeldEntries {
        self.state.config.held_max(entry_bytes_max)
    }

    /// How far the log is known to be committed.
    pub fn commit(&self) -> LogIndex {
        self.state.log.commit()
    }

    /// The last entry of the log.
    pub fn last(&self) -> LogPosition {
        self.state.log.last()
    }

    /// The term of the entry at `index`, unless it was released or is not there yet.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.state.log.term(index)
    }

    /// How far replication to each other member is; empty unless this member leads.
    pub fn peers(&self) -> Vec<PeerStatus> {
        match &self.role {
            Role::Leader(leader) => leader.peers().collect(),
            Role::Follower(_) | Role::Candidate(_) => Vec::new(),
        }
    }

    /// Asserts every invariant; for tests.
    pub fn check(&self) {
        self.state.check();
        match &self.role {
            Role::Leader(leader) => leader.check(&self.state),
            Role::Follower(_) | Role::Candidate(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        message::{Message, MessageBody},
        testing::{index, voters},
    };
    use super::*;
    use crate::types::Entry;

    /// A sole voter that leads, with its first entry committed and applied.
    fn sole_leader(config: Config) -> RaftCore {
        let state = InitialState {
            membership: voters([1]),
            ..InitialState::default()
        };
        let mut node = RaftCore::new(config, state).unwrap();
        settle(&mut node);
        assert!(node.is_leader());
        node
    }

    fn settle(node: &mut RaftCore) -> Vec<Entry> {
        let mut committed = Vec::new();
        while let Some(ready) = node.ready() {
            if let Some(persist) = ready.persist {
                node.persisted(persist.seq);
            }
            committed.extend(ready.committed);
        }
        committed
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

    /// The other two voters commit what the leader's own disk has not stored yet, so that the leader has to keep it in memory.
    #[test]
    fn entries_that_wait_for_a_slow_disk_count_against_the_bound() {
        let mut config = Config::new(MemberId(1), 1);
        (config.cached_bytes_max, config.uncommitted_bytes_max) = (0, 1_000);
        config.pre_vote = false;
        let state = InitialState {
            membership: voters([1, 2, 3]),
            ..InitialState::default()
        };
        let mut node = RaftCore::new(config, state).unwrap();
        for _ in 0..30 {
            node.tick();
            settle(&mut node);
        }
        let receive = |node: &mut RaftCore, from, body| {
            let term = node.status().term;
            node.step(MemberId(from), Message { term, body }).unwrap();
        };
        receive(&mut node, 2, MessageBody::Vote { granted: true });
        settle(&mut node);
        assert!(node.is_leader());
        let value = Bytes::from(vec![0; 400]);
        let (mut seq, mut refused) = (0, 0);
        for _ in 0..6 {
            refused += u32::from(node.propose(value.clone()).is_err());
            while let Some(ready) = node.ready() {
                seq = ready.persist.map_or(seq, |persist| persist.seq);
            }
            let matched = node.last().index;
            for from in [2, 3] {
                receive(&mut node, from, MessageBody::AppendReply { matched });
            }
        }
        assert_eq!(node.commit(), node.last().index, "the others have it");
        assert_eq!(refused, 4, "two fit");
        node.persisted(seq);
        settle(&mut node);
        node.propose(value).unwrap();
        node.check();
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
        let mut node = RaftCore::new(Config::new(MemberId(1), 1), state).unwrap();
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
