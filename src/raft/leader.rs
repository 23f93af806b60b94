//! A leader: appends proposals, replicates them, commits what a quorum has, and confirms by heartbeats that it still leads.

use super::{
    interface::{ChangeError, PeerStatus, ProposeError, ReadLog, Reader, SendSnapshot, StepError},
    log::{ENTRY_OVERHEAD_BYTES, Slice, entry_bytes},
    membership::{Membership, MembershipChange},
    message::MessageBody,
    progress::{Progress, ReplicationState},
    quorum::{agreed, majority},
    read_index::Rounds,
    state::CoreState,
};
use crate::{
    mutation::{Mutation, mutated},
    types::{Entry, EntryKind, LogIndex, LogPosition, MemberId},
};
use bytes::Bytes;
use std::collections::BTreeMap;

/// For how many election timeouts at most a leader tries to send a removed member the entry that removed it.
const REMOVAL_TIMEOUTS: u32 = 4;

/// What only a leader has. All of it concerns its term.
#[derive(Debug)]
pub(super) struct Leader {
    /// Every other member, and removed ones until they have the entry that removed them.
    peers: BTreeMap<MemberId, Progress>,
    /// The first entry of this leader's term. Only entries from here on are committed by counting (Raft paper, 5.4.2).
    first_own: LogIndex,
    uncommitted_bytes: usize,
    heartbeat_elapsed: u32,
    /// Ticks since the last quorum check.
    quorum_elapsed: u32,
    transfer: Option<Transfer>,
    rounds: Rounds,
}

/// A transfer of leadership under way.
#[derive(Debug)]
struct Transfer {
    to: MemberId,
    elapsed_ticks: u32,
    /// `TimeoutNow` was sent within the last heartbeat interval.
    requested: bool,
}

impl Leader {
    /// Begins to lead: appends the entry whose commitment will commit those of earlier terms.
    pub(super) fn new(state: &mut CoreState) -> Self {
        let last = state.log.last().index;
        let mut leader = Self {
            peers: BTreeMap::new(),
            first_own: last.next(),
            uncommitted_bytes: state.log.bytes_between(state.log.commit(), last),
            heartbeat_elapsed: 0,
            quorum_elapsed: 0,
            transfer: None,
            rounds: Rounds::default(),
        };
        leader.sync_peers(state);
        leader.append(state, EntryKind::Noop, Bytes::new());
        leader
    }

    fn append(&mut self, state: &mut CoreState, kind: EntryKind, data: Bytes) -> LogPosition {
        self.uncommitted_bytes += data.len() + ENTRY_OVERHEAD_BYTES;
        state.append_own(kind, data)
    }

    /// Brings `peers` in line with the membership in force.
    fn sync_peers(&mut self, state: &CoreState) {
        let (own, membership) = (state.id(), state.membership());
        let last = state.log.last().index;
        for id in membership.ids().filter(|&id| id != own) {
            let peer = self.peers.entry(id).or_insert_with(|| Progress::new(last));
            if peer.removal_ticks.is_some() {
                *peer = Progress::new(last);
            }
        }
        let removal_ticks = state.config.election_ticks.saturating_mul(REMOVAL_TIMEOUTS);
        for (&id, peer) in &mut self.peers {
            if !membership.contains(id) && peer.removal_ticks.is_none() {
                peer.removal_ticks = Some(removal_ticks);
            }
        }
    }

    // --- proposals ---

    fn check_admission(&self, state: &CoreState, bytes: usize) -> Result<(), ProposeError> {
        if let Some(transfer) = &self.transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        // On a slow disk entries may be committed long before they are durable here: they stay in memory until then.
        let waiting = self.uncommitted_bytes.max(state.log.pinned_bytes());
        if waiting > 0 && waiting.saturating_add(bytes) > state.config.uncommitted_bytes_max {
            return Err(ProposeError::TooMuchUncommitted { bytes: waiting });
        }
        Ok(())
    }

    pub(super) fn propose(
        &mut self,
        state: &mut CoreState,
        data: Bytes,
    ) -> Result<LogPosition, ProposeError> {
        self.check_admission(state, data.len() + ENTRY_OVERHEAD_BYTES)?;
        Ok(self.append(state, EntryKind::Command, data))
    }

    pub(super) fn propose_membership(
        &mut self,
        state: &mut CoreState,
        change: &MembershipChange,
    ) -> Result<LogPosition, ChangeError> {
        let after = state.membership().with(change)?;
        if state.history.is_changing() || !self.has_committed(state) {
            return Err(ChangeError::Unsettled);
        }
        if let MembershipChange::Promote { id } = change
            && !self.has_caught_up(state, *id)
        {
            return Err(ChangeError::LearnerNotReady(*id));
        }
        let data = after.encode();
        self.check_admission(state, data.len() + ENTRY_OVERHEAD_BYTES)?;
        let id = self.append(state, EntryKind::Membership, data);
        state.history.append(id.index, after);
        self.sync_peers(state);
        Ok(id)
    }

    /// Whether `id` has the whole log but for entries in flight: it replied recently, and needs neither older entries nor a
    /// snapshot.
    fn has_caught_up(&self, state: &CoreState, id: MemberId) -> bool {
        self.peers.get(&id).is_some_and(|peer| {
            peer.replied_within(state.config.election_ticks, state.now)
                && peer.is_current()
                && peer.matched >= self.first_own
                && peer.may_send(state.config.inflight_bytes_max)
        })
    }

    /// Whether an entry of this term is committed. Before that the commit index may be lower than what earlier leaders
    /// acknowledged.
    fn has_committed(&self, state: &CoreState) -> bool {
        state.log.commit() >= self.first_own || mutated(Mutation::CommitOldTerm)
    }

    // --- commit ---

    /// The largest value that a majority of the voters has reached: `own` for this member, `peer` of each other one.
    fn agreed<T: Ord + Copy + Default>(
        &self,
        state: &CoreState,
        own: T,
        peer: impl Fn(&Progress) -> T,
    ) -> T {
        let voters = state.membership().voters();
        let reached = voters.map(|(id, _)| {
            if id == state.id() {
                own
            } else {
                self.peers.get(&id).map_or_else(T::default, &peer)
            }
        });
        agreed(reached).unwrap_or_default()
    }

    /// Commits the entries that a quorum has, durably. True if that committed this leader's own removal.
    pub(super) fn advance_commit(&mut self, state: &mut CoreState) -> bool {
        let before = state.log.commit();
        let index = self.agreed(state, state.log.stable(), |peer| peer.matched);
        // Entries of earlier terms are committed only together with one of this term (Raft paper, figure 8).
        let own = index >= self.first_own || mutated(Mutation::CommitOldTerm);
        if index <= before || !own {
            return false;
        }
        self.uncommitted_bytes -= state.log.bytes_between(before, index);
        state.commit_to(index);
        !state.history.is_changing() && !state.membership().is_voter(state.id())
    }

    /// Sends the last messages of a leader whose removal is committed: the commit index to the other members, and to the most
    /// up-to-date of them the request to campaign.
    pub(super) fn announce_resignation(&mut self, state: &mut CoreState) {
        let commit = state.log.commit();
        for (&id, peer) in &self.peers {
            state.send(
                id,
                MessageBody::Commit {
                    commit: commit.min(peer.matched),
                },
            );
        }
        if let Some(to) = self.best_successor(state) {
            state.send(to, MessageBody::TimeoutNow);
        }
    }

    /// The most up-to-date voter that replied within an election timeout and replicates; of several, the one that replied last:
    /// one that has just died still counts.
    fn best_successor(&self, state: &CoreState) -> Option<MemberId> {
        let ticks = state.config.election_ticks;
        let voters = self.peers.iter().filter(|(id, peer)| {
            state.membership().is_voter(**id)
                && peer.replied_within(ticks, state.now)
                && peer.is_replicating()
        });
        voters
            .max_by_key(|(_, peer)| (peer.matched, peer.replied_at))
            .map(|(&id, _)| id)
    }

    // --- time ---

    /// One tick passed. True if no quorum replied for an election timeout: step down.
    pub(super) fn tick(&mut self, state: &mut CoreState) -> bool {
        self.heartbeat_elapsed += 1;
        if self.heartbeat_elapsed >= state.config.heartbeat_ticks {
            self.broadcast_heartbeat(state);
        }
        self.tick_transfer(state);
        self.peers.retain(|_, peer| match &mut peer.removal_ticks {
            Some(0) => false,
            Some(ticks) => {
                *ticks -= 1;
                true
            }
            None => true,
        });
        self.quorum_elapsed += 1;
        if self.quorum_elapsed < state.config.election_ticks {
            return false;
        }
        self.quorum_elapsed = 0;
        let step_down = !self.check_quorum_active(state) && state.config.check_quorum;
        if step_down {
            self.start_successor(state);
        }
        step_down
    }

    /// If only the inbound connections are broken, this still reaches the most up-to-date voter, which then campaigns at once
    /// instead of waiting for its election timeout.
    fn start_successor(&self, state: &mut CoreState) {
        let voters = self.peers.iter();
        let voters = voters.filter(|(id, _)| state.membership().is_voter(**id));
        if let Some((&to, _)) = voters.max_by_key(|(_, peer)| peer.matched) {
            state.send(to, MessageBody::TimeoutNow);
        }
    }

    fn tick_transfer(&mut self, state: &CoreState) {
        if let Some(transfer) = &mut self.transfer {
            transfer.elapsed_ticks += 1;
            if transfer
                .elapsed_ticks
                .is_multiple_of(state.config.heartbeat_ticks)
            {
                transfer.requested = false;
            }
            if transfer.elapsed_ticks >= state.config.election_ticks {
                self.transfer = None;
            }
        }
    }

    /// Whether a quorum has replied since the last call.
    fn check_quorum_active(&mut self, state: &CoreState) -> bool {
        let is_active = |(id, _): (MemberId, _)| {
            id == state.id() || self.peers.get(&id).is_some_and(|peer| peer.active)
        };
        let voters = state.membership().voters().count();
        let active = state
            .membership()
            .voters()
            .filter(|&voter| is_active(voter))
            .count();
        for peer in self.peers.values_mut() {
            peer.active = false;
        }
        active >= majority(voters)
    }

    fn broadcast_heartbeat(&mut self, state: &mut CoreState) {
        self.heartbeat_elapsed = 0;
        let (commit, round) = (state.log.commit(), self.rounds.last());
        for (&id, peer) in &mut self.peers {
            let commit = commit.min(peer.matched);
            peer.commit_sent = peer.commit_sent.max(commit);
            state.send(id, MessageBody::Heartbeat { commit, round });
        }
    }

    // --- replies ---

    /// `from` has everything up to `matched`, durably. Returns what [`Self::advance_commit`] does.
    pub(super) fn on_append_reply(
        &mut self,
        state: &mut CoreState,
        from: MemberId,
        matched: LogIndex,
    ) -> Result<bool, StepError> {
        let last = state.log.last().index;
        if matched > last {
            return Err(StepError::BeyondEnd { matched, last });
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            return Ok(false);
        };
        peer.replied(state.now);
        let new = peer.acknowledged(matched, state.log.start().index);
        Ok(new && self.advance_commit(state))
    }

    pub(super) fn on_append_rejected(
        &mut self,
        state: &mut CoreState,
        from: MemberId,
        rejected: LogIndex,
        hint: LogPosition,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.replied(state.now);
        let possible = match hint.term.0 {
            0 => LogPosition::new(hint.term, hint.index),
            _ => state.log.last_possible_match(hint),
        };
        peer.rejected(rejected, possible);
    }

    pub(super) fn on_heartbeat_reply(&mut self, state: &mut CoreState, from: MemberId, round: u64) {
        let last_round = self.rounds.last();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.replied(state.now);
        if peer.heartbeat_answered(round.min(last_round)) {
            send_append(state, from, peer, Vec::new());
        }
        self.close_round(state);
    }

    // --- reads ---

    /// The follower `from` asks for a read index.
    pub(super) fn on_read_index(&mut self, from: MemberId, round: u64) {
        if self.peers.contains_key(&from) {
            self.rounds.queried(from, round);
        }
    }

    /// Opens a read round if reads wait. With no other voter the round is confirmed at once.
    fn open_round(&mut self, state: &mut CoreState) {
        if !self.has_committed(state) {
            return;
        }
        if self.rounds.open(&mut state.reads, state.log.commit()) {
            self.broadcast_heartbeat(state);
            self.close_round(state);
        }
    }

    fn close_round(&mut self, state: &mut CoreState) {
        if !self.rounds.is_open() {
            return;
        }
        let confirmed = self.agreed(state, self.rounds.last(), |peer| peer.round);
        if let Some(round) = self.rounds.close(confirmed) {
            let index = round.index;
            state
                .reads
                .answer(round.reads, index, &mut state.effects.reads);
            for (to, round) in round.followers {
                state.send(to, MessageBody::ReadIndexReply { round, index });
            }
        }
    }

    /// Puts the reads that were not answered back into the queue.
    pub(super) fn requeue_reads(&mut self, state: &mut CoreState) {
        state
            .reads
            .put_back(std::mem::take(&mut self.rounds).into_reads());
    }

    // --- transfer ---

    /// Transfers leadership to the voter `to` once its log equals this one; gives up after an election timeout.
    pub(super) fn transfer(&mut self, to: MemberId) {
        if self
            .transfer
            .as_ref()
            .is_none_or(|transfer| transfer.to != to)
        {
            self.transfer = Some(Transfer {
                to,
                elapsed_ticks: 0,
                requested: false,
            });
        }
    }

    /// Transfers leadership to the most up-to-date voter, if one is active. Returns its id, or that of a transfer under way.
    pub(super) fn transfer_to_best(&mut self, state: &CoreState) -> Option<MemberId> {
        if let Some(transfer) = &self.transfer {
            return Some(transfer.to);
        }
        let to = self.best_successor(state)?;
        self.transfer(to);
        Some(to)
    }

    fn request_transfer(&mut self, state: &mut CoreState) {
        let last = state.log.last().index;
        if let Some(transfer) = &mut self.transfer
            && !transfer.requested
            && self
                .peers
                .get(&transfer.to)
                .is_some_and(|peer| peer.matched == last)
        {
            transfer.requested = true;
            state.send(transfer.to, MessageBody::TimeoutNow);
        }
    }

    // --- replication ---

    /// Adds to the next `Ready`: appends for every member that may be sent some, in as few messages as possible; new commit
    /// indexes; heartbeats of a read round.
    pub(super) fn prepare_ready(&mut self, state: &mut CoreState) {
        self.open_round(state);
        let change = state.history.current_index();
        self.peers.retain(|&id, peer| {
            replicate(state, id, peer);
            peer.removal_ticks.is_none() || peer.commit_sent < change
        });
        self.request_transfer(state);
    }

    /// Whether entries from `from` on were requested from the WAL for `id`, and are still needed.
    pub(super) fn is_reading(&self, id: MemberId, from: LogIndex) -> bool {
        self.peers
            .get(&id)
            .is_some_and(|peer| peer.reading == Some(from))
    }

    /// The WAL returned the entries for `id`; None if it has released them.
    pub(super) fn on_log_read(
        &mut self,
        state: &mut CoreState,
        id: MemberId,
        from: LogIndex,
        entries: Option<Vec<Entry>>,
    ) {
        let Some(peer) = self.peers.get_mut(&id) else {
            return;
        };
        peer.reading = None;
        match entries {
            Some(entries) if peer.next == from && peer.may_send(usize::MAX) => {
                send_append(state, id, peer, entries);
            }
            Some(_) => {}
            None => request_snapshot(state, id, peer),
        }
    }

    pub(super) fn on_snapshot_sent(&mut self, id: MemberId, through: LogIndex, last: LogIndex) {
        if let Some(peer) = self.peers.get_mut(&id)
            && matches!(peer.replication, ReplicationState::Snapshot)
        {
            peer.probe_from(through.min(last).next());
        }
    }

    pub(super) fn on_snapshot_failed(&mut self, id: MemberId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && matches!(peer.replication, ReplicationState::Snapshot)
        {
            // The next try waits until the member replies to a heartbeat.
            peer.replication = ReplicationState::Probe { waiting: true };
        }
    }

    pub(super) fn on_unreachable(&mut self, id: MemberId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.unreachable();
        }
    }

    // --- observers ---

    pub(super) fn in_flight_bytes(&self) -> usize {
        let peers = self.peers.values();
        peers.map(Progress::in_flight_bytes).max().unwrap_or(0)
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.iter().map(|(&id, peer)| PeerStatus {
            id,
            matched: peer.matched,
            in_snapshot: matches!(peer.replication, ReplicationState::Snapshot),
            current: peer.is_current() && peer.matched >= self.first_own,
            replied_at: peer.replied_at,
        })
    }

    pub(super) fn check(&self, state: &CoreState) {
        assert!(
            state.is_hard_state_durable(),
            "a leader was elected with its own vote durable"
        );
        let last = state.log.last().index;
        for peer in self.peers.values() {
            peer.check(last);
        }
        let waiting = state.log.bytes_between(state.log.commit(), last);
        assert_eq!(
            self.uncommitted_bytes, waiting,
            "uncommitted bytes are counted"
        );
        let expected: &Membership = state.membership();
        for id in expected.ids().filter(|&id| id != state.id()) {
            assert!(
                self.peers.contains_key(&id),
                "the leader knows the progress of every member"
            );
        }
    }
}

/// Sends `id` the entries that it may be sent, and the commit index if it does not have it.
fn replicate(state: &mut CoreState, id: MemberId, peer: &mut Progress) {
    while peer.may_send(state.config.inflight_bytes_max)
        && (peer.is_probing() || peer.next <= state.log.last().index)
    {
        let bytes_max = state.config.append_bytes_max;
        let last = state.log.last().index;
        match state.log.slice(peer.next, last, bytes_max) {
            Slice::InMemory(entries) => send_append(state, id, peer, entries),
            Slice::Evicted => {
                let to = state.log.stable().min(state.log.commit());
                let from = peer.next;
                peer.reading = Some(from);
                state.effects.log_reads.push(ReadLog {
                    reader: Reader::Peer(id),
                    from,
                    to,
                    bytes_max,
                });
            }
            Slice::Released if peer.replied_within(state.config.election_ticks, state.now) => {
                request_snapshot(state, id, peer);
            }
            Slice::Released => break,
        }
    }
    let commit = state.log.commit().min(peer.matched);
    if peer.is_replicating() && commit > peer.commit_sent {
        peer.commit_sent = commit;
        state.send(id, MessageBody::Commit { commit });
    }
}

fn request_snapshot(state: &mut CoreState, to: MemberId, peer: &mut Progress) {
    peer.replication = ReplicationState::Snapshot;
    peer.reading = None;
    state.effects.snapshots.push(SendSnapshot {
        to,
        term: state.term,
    });
}

/// Sends `entries`, which begin at the peer's next index. Without entries the append is a probe.
fn send_append(state: &mut CoreState, id: MemberId, peer: &mut Progress, entries: Vec<Entry>) {
    let before = LogIndex(peer.next.0 - 1);
    let Some(term) = state.log.term(before) else {
        request_snapshot(state, id, peer);
        return;
    };
    let prev = LogPosition::new(term, before);
    let commit = state.log.commit();
    let last = entries.last().map_or(before, |entry| entry.index);
    let bytes = entries.iter().map(entry_bytes).sum();
    state.send(
        id,
        MessageBody::Append {
            prev,
            commit,
            entries,
        },
    );
    peer.sent(last, bytes);
}
