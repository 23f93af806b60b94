//! What a member has in every role: term and vote, the log, the membership, and the effects that the next `Ready` returns.

use super::{
    applying::Applying,
    durability::Durability,
    interface::{Config, LogWrite, ReadLog, ReadState, SendSnapshot},
    log::Log,
    membership::{History, Membership},
    message::{Envelope, Message, MessageBody},
    read_index::ReadQueue,
};
use crate::types::{
    Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, SplitMix64, Term,
};
use bytes::Bytes;

/// What the next `Ready` returns, besides what it takes from the log.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) messages: Vec<Envelope>,
    pub(super) reads: Vec<ReadState>,
    pub(super) snapshots: Vec<SendSnapshot>,
    pub(super) log_reads: Vec<ReadLog>,
}

#[derive(Debug)]
pub(super) struct CoreState {
    pub(super) config: Config,
    pub(super) term: Term,
    pub(super) vote: Option<MemberId>,
    pub(super) log: Log,
    pub(super) history: History,
    pub(super) reads: ReadQueue,
    pub(super) applying: Applying,
    pub(super) effects: Effects,
    /// This member must not lead.
    pub(super) leading_forbidden: bool,
    /// Ticks since the start.
    pub(super) now: u64,
    random: SplitMix64,
    durability: Durability,
}

impl CoreState {
    pub(super) fn new(
        config: Config,
        hard_state: HardState,
        log: Log,
        history: History,
        applying: Applying,
    ) -> Self {
        let mut random = SplitMix64::new(config.seed);
        Self {
            reads: ReadQueue::new(config.reads_max, random.next_u64()),
            config,
            term: hard_state.term,
            vote: hard_state.vote,
            log,
            history,
            applying,
            effects: Effects::default(),
            leading_forbidden: false,
            now: 0,
            random,
            durability: Durability::default(),
        }
    }

    pub(super) fn id(&self) -> MemberId {
        self.config.id
    }

    pub(super) fn membership(&self) -> &Membership {
        self.history.current()
    }

    /// Draws an election timeout, in ticks.
    pub(super) fn draw_timeout(&mut self) -> u32 {
        let extra = self.random.next_u64() % u64::from(self.config.election_ticks);
        self.config.election_ticks + u32::try_from(extra).expect("below election_ticks")
    }

    // --- term and vote ---

    /// Enters a newer term, in which no vote is given yet.
    pub(super) fn enter_term(&mut self, term: Term) {
        assert!(
            term > self.term,
            "terms only rise: {term} after {}",
            self.term
        );
        self.term = term;
        self.vote = None;
        self.durability.hard_state_changed();
    }

    pub(super) fn vote_for(&mut self, candidate: MemberId) {
        assert!(
            self.vote.is_none_or(|given| given == candidate),
            "one vote a term: {:?} has that of {}",
            self.vote,
            self.term
        );
        if self.vote.is_none() {
            self.vote = Some(candidate);
            self.durability.hard_state_changed();
        }
    }

    /// Whether the current term and vote would survive a crash.
    pub(super) fn is_hard_state_durable(&self) -> bool {
        self.durability.is_hard_state_durable()
    }

    // --- messages ---

    /// Sends `body` as soon as the current term and vote are durable. Outside elections they are.
    pub(super) fn send(&mut self, to: MemberId, body: MessageBody) {
        if self.is_hard_state_durable() {
            self.send_now(to, body);
        } else {
            let term = self.term;
            self.durability.hold(to, Message { term, body });
        }
    }

    /// Sends `body` at once, although the current term may not be durable: the message promises nothing.
    pub(super) fn send_now(&mut self, to: MemberId, body: MessageBody) {
        let message = Message {
            term: self.term,
            body,
        };
        self.effects.messages.push(Envelope { to, message });
    }

    // --- the log ---

    /// Appends an entry of this term. The caller leads it.
    pub(super) fn append_own(&mut self, kind: EntryKind, data: Bytes) -> LogPosition {
        let id = LogPosition::new(self.term, self.log.last().index.next());
        self.log.push(Entry {
            term: id.term,
            index: id.index,
            kind,
            data,
        });
        id
    }

    /// Appends an entry that a leader sent, after `step` has checked its form.
    pub(super) fn append_received(&mut self, entry: Entry) {
        if entry.kind == EntryKind::Membership {
            let membership = Membership::decode(&entry.data);
            let membership = membership.expect("step() refuses what does not decode");
            self.history.append(entry.index, membership);
        }
        self.log.push(entry);
    }

    /// Drops the entries from `from` on: the leader has others there.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        self.log.truncate(from);
        self.history.truncate(from);
        self.durability.truncated(self.log.last().index);
    }

    /// Entries up to `index` are committed.
    pub(super) fn commit_to(&mut self, index: LogIndex) {
        if self.log.commit_to(index) {
            self.history.commit(index);
        }
    }

    // --- durability ---

    /// The next write, if there is anything to write.
    pub(super) fn take_persist(&mut self) -> Option<LogWrite> {
        if !self.durability.needs_write() && !self.log.has_unsubmitted() {
            return None;
        }
        let (seq, reset) = self.durability.begin_write(self.log.last().index);
        let hard_state = HardState {
            term: self.term,
            vote: self.vote,
            commit: self.log.commit(),
        };
        Some(LogWrite {
            seq,
            reset,
            entries: self.log.submit(),
            hard_state,
        })
    }

    /// The write `seq` and all before it are durable.
    pub(super) fn persisted(&mut self, seq: u64) {
        if let Some(stable) = self.durability.persisted(seq) {
            self.log.stable_to(stable);
        }
        self.durability
            .release_held(self.term, &mut self.effects.messages);
    }

    // --- the state machine ---

    /// Committed and durable entries that the state machine should apply next.
    pub(super) fn take_committed(&mut self) -> Vec<Entry> {
        let bytes_max = self.config.applying_bytes_max;
        self.applying
            .take_committed(&self.log, bytes_max, &mut self.effects.log_reads)
    }

    /// A snapshot at `id` has replaced the state machine, durably.
    pub(super) fn snapshot_installed(&mut self, id: LogPosition, membership: Membership) {
        if self.log.contains(id) {
            // The entries after it stay. Those before may not be durable yet, but no member needs them.
            self.commit_to(id.index);
            if self.applying.awaits_snapshot() {
                self.history.rebase(id.index, membership);
            }
        } else {
            self.log.reset(id);
            self.history = History::new(id.index, membership);
            self.durability.log_replaced(id);
        }
        self.applying = Applying::new(id.index, false);
    }

    /// Asserts the invariants of this type and its parts.
    pub(super) fn check(&self) {
        self.log.check();
        self.applying
            .check(self.log.commit(), self.log.start().index);
        self.durability.check();
        assert!(
            self.log.last().term <= self.term,
            "an entry of a newer term makes that term the current one"
        );
    }
}
