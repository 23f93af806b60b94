//! A leader: takes proposals, feeds the others, commits what a quorum has, confirms that it still leads.

use super::common::Common;
use super::interface::{
    ChangeError, PeerStatus, ProposeError, ReadLog, Reader, SendSnapshot, StepError,
};
use super::log::{ENTRY_OVERHEAD_BYTES, Slice, entry_bytes};
use super::membership::{Change, Membership};
use super::message::Body;
use super::progress::{Pace, Progress};
use super::quorum::{agreed, majority};
use super::read_index::Rounds;
use crate::mutation::{Mutation, mutated};
use crate::types::{Entry, EntryKind, LogIndex, LogPosition, MemberId};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A removed member is told so for at most this many election timeouts.
const LEAVING_TIMEOUTS: u32 = 4;

/// What only a leader has. All of it concerns its term.
#[derive(Debug)]
pub(super) struct Leader {
    /// Every other member, and removed ones until they know.
    peers: BTreeMap<MemberId, Progress>,
    /// The entry this leader began with; only from here on does counting commit (Raft paper, 5.4.2).
    first_own: LogIndex,
    uncommitted_bytes: usize,
    heartbeat_elapsed: u32,
    quorum_elapsed: u32,
    transfer: Option<Transfer>,
    rounds: Rounds,
}

/// Leadership being handed over.
#[derive(Debug)]
struct Transfer {
    to: MemberId,
    elapsed: u32,
    /// It was told to stand.
    told: bool,
}

impl Leader {
    /// Takes over: appends the entry that will commit what earlier terms left.
    pub(super) fn new(common: &mut Common) -> Self {
        let last = common.log.last().index;
        let mut leader = Self {
            peers: BTreeMap::new(),
            first_own: last.next(),
            uncommitted_bytes: common.log.bytes_between(common.log.commit(), last),
            heartbeat_elapsed: 0,
            quorum_elapsed: 0,
            transfer: None,
            rounds: Rounds::default(),
        };
        leader.sync_peers(common);
        leader.append(common, EntryKind::Noop, Bytes::new());
        leader
    }

    fn append(&mut self, common: &mut Common, kind: EntryKind, data: Bytes) -> LogPosition {
        self.uncommitted_bytes += data.len() + ENTRY_OVERHEAD_BYTES;
        common.append_own(kind, data)
    }

    /// Brings `peers` in line with the membership in force.
    fn sync_peers(&mut self, common: &Common) {
        let (own, membership) = (common.id(), common.membership());
        let last = common.log.last().index;
        for id in membership.ids().filter(|&id| id != own) {
            let peer = self.peers.entry(id).or_insert_with(|| Progress::new(last));
            if peer.leaving_ticks.is_some() {
                *peer = Progress::new(last);
            }
        }
        let patience = common
            .config
            .election_ticks
            .saturating_mul(LEAVING_TIMEOUTS);
        for (&id, peer) in &mut self.peers {
            if !membership.contains(id) && peer.leaving_ticks.is_none() {
                peer.leaving_ticks = Some(patience);
            }
        }
    }

    // --- proposals ---

    fn refuse(&self, common: &Common, bytes: usize) -> Result<(), ProposeError> {
        if let Some(transfer) = &self.transfer {
            return Err(ProposeError::Transferring { to: transfer.to });
        }
        let waiting = self.uncommitted_bytes;
        if waiting > 0 && waiting.saturating_add(bytes) > common.config.uncommitted_bytes_max {
            return Err(ProposeError::TooMuchUncommitted { bytes: waiting });
        }
        Ok(())
    }

    pub(super) fn propose(
        &mut self,
        common: &mut Common,
        data: Bytes,
    ) -> Result<LogPosition, ProposeError> {
        self.refuse(common, data.len() + ENTRY_OVERHEAD_BYTES)?;
        Ok(self.append(common, EntryKind::Command, data))
    }

    pub(super) fn propose_membership(
        &mut self,
        common: &mut Common,
        change: &Change,
    ) -> Result<LogPosition, ChangeError> {
        let after = common.membership().with(change)?;
        if common.history.is_changing() || !self.has_committed(common) {
            return Err(ChangeError::Unsettled);
        }
        if let Change::Promote { id } = change
            && !self.has_caught_up(common, *id)
        {
            return Err(ChangeError::LearnerNotReady(*id));
        }
        let data = after.encode();
        self.refuse(common, data.len() + ENTRY_OVERHEAD_BYTES)?;
        let id = self.append(common, EntryKind::Membership, data);
        common.history.append(id.index, after);
        self.sync_peers(common);
        Ok(id)
    }

    /// Whether `id` keeps pace: heard from lately, and everything but the newest is on its way or there.
    fn has_caught_up(&self, common: &Common, id: MemberId) -> bool {
        self.peers.get(&id).is_some_and(|peer| {
            peer.active
                && peer.is_replicating()
                && peer.reading.is_none()
                && peer.matched >= self.first_own
                && peer.may_send(common.config.inflight_bytes_max)
        })
    }

    /// Whether an entry of this term is committed: only then is the commit index known to be no older than
    /// what earlier leaders acknowledged.
    fn has_committed(&self, common: &Common) -> bool {
        common.log.commit() >= self.first_own || mutated(Mutation::CommitOldTerm)
    }

    // --- commit ---

    /// What each voter has reached: `own` for this member, `peer` for the others.
    fn agreed<T: Ord + Copy + Default>(
        &self,
        common: &Common,
        own: T,
        peer: impl Fn(&Progress) -> T,
    ) -> T {
        let voters = common.membership().voters();
        let reached = voters.map(|(id, _)| {
            if id == common.id() {
                own
            } else {
                self.peers.get(&id).map_or_else(T::default, &peer)
            }
        });
        agreed(reached).unwrap_or_default()
    }

    /// Commits what a quorum has durable. True if this leader's own removal was among it.
    pub(super) fn advance_commit(&mut self, common: &mut Common) -> bool {
        let before = common.log.commit();
        let mut index = self.agreed(common, common.log.stable(), |peer| peer.matched);
        if mutated(Mutation::AcknowledgeBeforeCommit) {
            index = common.log.stable();
        }
        // Entries of earlier terms commit only along with one of ours (figure 8).
        let own = index >= self.first_own || mutated(Mutation::CommitOldTerm);
        if index <= before || !own {
            return false;
        }
        self.uncommitted_bytes -= common.log.bytes_between(before, index);
        common.commit_to(index);
        !common.history.is_changing() && !common.membership().is_voter(common.id())
    }

    /// The last words of a leader whose removal is committed: tells the others, and who should lead.
    pub(super) fn resign(&mut self, common: &mut Common) {
        let commit = common.log.commit();
        for (&id, peer) in &self.peers {
            common.send(
                id,
                Body::Commit {
                    commit: commit.min(peer.matched),
                },
            );
        }
        if let Some(to) = self.best_successor(common) {
            common.send(to, Body::TimeoutNow);
        }
    }

    fn best_successor(&self, common: &Common) -> Option<MemberId> {
        let voters = self.peers.iter().filter(|(id, peer)| {
            common.membership().is_voter(**id) && peer.active && peer.is_replicating()
        });
        voters
            .max_by_key(|(_, peer)| peer.matched)
            .map(|(&id, _)| id)
    }

    // --- time ---

    /// One tick passed. True if no quorum was heard for an election timeout: step down.
    pub(super) fn tick(&mut self, common: &mut Common) -> bool {
        self.heartbeat_elapsed += 1;
        if self.heartbeat_elapsed >= common.config.heartbeat_ticks {
            self.broadcast_heartbeat(common);
        }
        self.tick_transfer(common);
        self.peers.retain(|_, peer| match &mut peer.leaving_ticks {
            Some(0) => false,
            Some(ticks) => {
                *ticks -= 1;
                true
            }
            None => true,
        });
        self.quorum_elapsed += 1;
        if self.quorum_elapsed < common.config.election_ticks {
            return false;
        }
        self.quorum_elapsed = 0;
        let deposed = !self.heard_quorum(common) && common.config.check_quorum;
        if deposed {
            self.name_successor(common);
        }
        deposed
    }

    /// Who hears no quorum may still be heard: the others then need not wait until they miss it.
    fn name_successor(&self, common: &mut Common) {
        let voters = self.peers.iter();
        let voters = voters.filter(|(id, _)| common.membership().is_voter(**id));
        if let Some((&to, _)) = voters.max_by_key(|(_, peer)| peer.matched) {
            common.send(to, Body::TimeoutNow);
        }
    }

    fn tick_transfer(&mut self, common: &Common) {
        if let Some(transfer) = &mut self.transfer {
            transfer.elapsed += 1;
            if transfer
                .elapsed
                .is_multiple_of(common.config.heartbeat_ticks)
            {
                transfer.told = false;
            }
            if transfer.elapsed >= common.config.election_ticks {
                self.transfer = None;
            }
        }
    }

    /// Whether a quorum was heard since the last call.
    fn heard_quorum(&mut self, common: &Common) -> bool {
        let heard = |(id, _): (MemberId, _)| {
            id == common.id() || self.peers.get(&id).is_some_and(|peer| peer.active)
        };
        let voters = common.membership().voters().count();
        let active = common
            .membership()
            .voters()
            .filter(|&voter| heard(voter))
            .count();
        for peer in self.peers.values_mut() {
            peer.active = false;
        }
        active >= majority(voters)
    }

    fn broadcast_heartbeat(&mut self, common: &mut Common) {
        self.heartbeat_elapsed = 0;
        let (commit, round) = (common.log.commit(), self.rounds.last());
        for (&id, peer) in &mut self.peers {
            let commit = commit.min(peer.matched);
            peer.commit_sent = peer.commit_sent.max(commit);
            common.send(id, Body::Heartbeat { commit, round });
        }
    }

    // --- replies ---

    /// `from` has everything up to `matched`. True as for [`Self::advance_commit`].
    pub(super) fn on_append_reply(
        &mut self,
        common: &mut Common,
        from: MemberId,
        matched: LogIndex,
    ) -> Result<bool, StepError> {
        let last = common.log.last().index;
        if matched > last {
            return Err(StepError::BeyondEnd { matched, last });
        }
        let Some(peer) = self.peers.get_mut(&from) else {
            return Ok(false);
        };
        peer.active = true;
        let news = peer.acknowledged(matched, common.log.start().index);
        Ok(news && self.advance_commit(common))
    }

    pub(super) fn on_append_rejected(
        &mut self,
        common: &mut Common,
        from: MemberId,
        rejected: LogIndex,
        hint: LogPosition,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.active = true;
        let possible = match hint.term.0 {
            0 => LogPosition::new(hint.term, hint.index),
            _ => common.log.last_possible_match(hint),
        };
        peer.rejected(rejected, possible);
    }

    pub(super) fn on_heartbeat_reply(&mut self, common: &mut Common, from: MemberId, round: u64) {
        let last_round = self.rounds.last();
        let Some(peer) = self.peers.get_mut(&from) else {
            return;
        };
        peer.active = true;
        if peer.heartbeat_answered(round.min(last_round)) {
            send_append(common, from, peer, Vec::new());
        }
        self.close_round(common);
    }

    // --- reads ---

    /// `from` asks for its readers.
    pub(super) fn on_read_index(&mut self, from: MemberId, round: u64) {
        if self.peers.contains_key(&from) {
            self.rounds.ask(from, round);
        }
    }

    /// Opens and, where this voter is alone, closes read rounds.
    fn settle_reads(&mut self, common: &mut Common) {
        if !self.has_committed(common) {
            return;
        }
        if self.rounds.open(&mut common.reads, common.log.commit()) {
            self.broadcast_heartbeat(common);
            self.close_round(common);
        }
    }

    fn close_round(&mut self, common: &mut Common) {
        if !self.rounds.is_open() {
            return;
        }
        let confirmed = self.agreed(common, self.rounds.last(), |peer| peer.round);
        if let Some(round) = self.rounds.close(confirmed) {
            let index = round.index;
            common
                .reads
                .answer(round.reads, index, &mut common.out.reads);
            for (to, round) in round.askers {
                common.send(to, Body::ReadIndexReply { round, index });
            }
        }
    }

    /// Gives back the readers that were not answered.
    pub(super) fn abandon_reads(&mut self, common: &mut Common) {
        common
            .reads
            .put_back(std::mem::take(&mut self.rounds).into_reads());
    }

    // --- transfer ---

    /// Hands leadership to `to`, a voter, once its log equals ours; gives up after an election timeout.
    pub(super) fn transfer(&mut self, to: MemberId) {
        if self
            .transfer
            .as_ref()
            .is_none_or(|transfer| transfer.to != to)
        {
            self.transfer = Some(Transfer {
                to,
                elapsed: 0,
                told: false,
            });
        }
    }

    /// Hands leadership to the voter that needs least to lead, if one is in reach.
    pub(super) fn transfer_to_best(&mut self, common: &Common) -> Option<MemberId> {
        if let Some(transfer) = &self.transfer {
            return Some(transfer.to);
        }
        let to = self.best_successor(common)?;
        self.transfer(to);
        Some(to)
    }

    fn settle_transfer(&mut self, common: &mut Common) {
        let last = common.log.last().index;
        if let Some(transfer) = &mut self.transfer
            && !transfer.told
            && self
                .peers
                .get(&transfer.to)
                .is_some_and(|peer| peer.matched == last)
        {
            transfer.told = true;
            common.send(transfer.to, Body::TimeoutNow);
        }
    }

    // --- feeding ---

    /// Prepares what goes out with the next `Ready`: appends for whoever may be sent some, in as few messages
    /// as possible; news of commits; read rounds.
    pub(super) fn settle(&mut self, common: &mut Common) {
        self.settle_reads(common);
        let change = common.history.current_index();
        self.peers.retain(|&id, peer| {
            feed(common, id, peer);
            peer.leaving_ticks.is_none() || peer.commit_sent < change
        });
        self.settle_transfer(common);
    }

    /// Whether entries from `from` are awaited from the WAL for `id`.
    pub(super) fn is_reading(&self, id: MemberId, from: LogIndex) -> bool {
        self.peers
            .get(&id)
            .is_some_and(|peer| peer.reading == Some(from))
    }

    /// Entries for `id` came from the WAL, or are gone from it.
    pub(super) fn on_log_read(
        &mut self,
        common: &mut Common,
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
                send_append(common, id, peer, entries);
            }
            Some(_) => {}
            None => ask_for_snapshot(common, id, peer),
        }
    }

    pub(super) fn on_snapshot_sent(&mut self, id: MemberId, through: LogIndex, last: LogIndex) {
        if let Some(peer) = self.peers.get_mut(&id)
            && matches!(peer.pace, Pace::Snapshot)
        {
            peer.probe_from(through.min(last).next());
        }
    }

    pub(super) fn on_snapshot_failed(&mut self, id: MemberId) {
        if let Some(peer) = self.peers.get_mut(&id)
            && matches!(peer.pace, Pace::Snapshot)
        {
            // Not before it is heard again.
            peer.pace = Pace::Probe { waiting: true };
        }
    }

    pub(super) fn on_unreachable(&mut self, id: MemberId) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.unreachable();
        }
    }

    // --- observers ---

    pub(super) fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.iter().map(|(&id, peer)| PeerStatus {
            id,
            matched: peer.matched,
            active: peer.active,
            in_snapshot: matches!(peer.pace, Pace::Snapshot),
        })
    }

    pub(super) fn check(&self, common: &Common) {
        assert!(
            common.hard_state_durable(),
            "a leader was elected by durable votes"
        );
        let last = common.log.last().index;
        for peer in self.peers.values() {
            peer.check(last);
        }
        let waiting = common.log.bytes_between(common.log.commit(), last);
        assert_eq!(
            self.uncommitted_bytes, waiting,
            "uncommitted bytes are counted"
        );
        let expected: &Membership = common.membership();
        for id in expected.ids().filter(|&id| id != common.id()) {
            assert!(
                self.peers.contains_key(&id),
                "every member has its progress"
            );
        }
    }
}

/// Sends `id` what it may be sent.
fn feed(common: &mut Common, id: MemberId, peer: &mut Progress) {
    while peer.may_send(common.config.inflight_bytes_max)
        && (peer.is_probing() || peer.next <= common.log.last().index)
    {
        let bytes_max = common.config.append_bytes_max;
        let last = common.log.last().index;
        match common.log.slice(peer.next, last, bytes_max) {
            Slice::InMemory(entries) => send_append(common, id, peer, entries),
            Slice::Evicted => {
                let to = common.log.stable().min(common.log.commit());
                let from = peer.next;
                peer.reading = Some(from);
                common.out.log_reads.push(ReadLog {
                    reader: Reader::Peer(id),
                    from,
                    to,
                    bytes_max,
                });
            }
            Slice::Released if peer.active => ask_for_snapshot(common, id, peer),
            Slice::Released => break,
        }
    }
    let commit = common.log.commit().min(peer.matched);
    if peer.is_replicating() && commit > peer.commit_sent {
        peer.commit_sent = commit;
        common.send(id, Body::Commit { commit });
    }
}

fn ask_for_snapshot(common: &mut Common, to: MemberId, peer: &mut Progress) {
    peer.pace = Pace::Snapshot;
    peer.reading = None;
    common.out.snapshots.push(SendSnapshot {
        to,
        term: common.term,
    });
}

/// Sends `entries`, which begin at the peer's next index; none makes it a probe.
fn send_append(common: &mut Common, id: MemberId, peer: &mut Progress, entries: Vec<Entry>) {
    let before = LogIndex(peer.next.0 - 1);
    let Some(term) = common.log.term(before) else {
        ask_for_snapshot(common, id, peer);
        return;
    };
    let prev = LogPosition::new(term, before);
    let commit = common.log.commit();
    let last = entries.last().map_or(before, |entry| entry.index);
    let bytes = entries.iter().map(entry_bytes).sum();
    common.send(
        id,
        Body::Append {
            prev,
            commit,
            entries,
        },
    );
    peer.sent(last, bytes);
}
