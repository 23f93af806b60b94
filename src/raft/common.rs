//! What a member has in every role: its term and vote, the log, the membership, and what waits to leave.
//!
//! Also the two rules that no role may get wrong: what must be durable before a message leaves, and what may
//! be applied.

use super::interface::{Config, Persist, ReadLog, ReadState, Reader, SendSnapshot};
use super::log::{Log, Slice, entry_bytes};
use super::membership::{History, Membership};
use super::message::{Body, Envelope, Message};
use super::read_index::ReadQueue;
use crate::types::{
    Entry, EntryKind, HardState, LogIndex, LogPosition, MemberId, SplitMix64, Term,
};
use bytes::Bytes;
use std::collections::VecDeque;

/// Messages that may wait for the hard state to become durable; more are dropped, as the network might.
const GATED_MAX: usize = 64;

/// Which of the writes given out are durable. Invariant: `done_seq <= last_seq`.
#[derive(Debug, Default)]
struct Durability {
    /// The newest write given out.
    last_seq: u64,
    /// The newest durable one.
    done_seq: u64,
    /// The write that holds, or will hold, the present term and vote.
    hard_state_seq: u64,
    /// Writes not yet durable, each with the last index it makes durable. Lowered when entries that it wrote
    /// are overwritten later: an entry that comes back in a later write is durable only with that one.
    in_flight: VecDeque<(u64, LogIndex)>,
    /// The next write resets the log.
    reset: Option<LogPosition>,
}

/// What was given out to be applied. Invariant: `applied <= handed`.
#[derive(Debug)]
pub(super) struct Applying {
    pub(super) applied: LogIndex,
    handed: LogIndex,
    /// The last index and the bytes of each batch that is not applied yet.
    batches: VecDeque<(LogIndex, usize)>,
    bytes: usize,
    /// Entries from here were asked from the WAL.
    reading: Option<LogIndex>,
    /// Entries that came from the WAL.
    read: Vec<Entry>,
    /// A snapshot is replacing the state machine: nothing may be applied.
    pub(super) installing: bool,
    /// There is no state machine yet: nothing may be applied before a snapshot.
    pub(super) awaiting: bool,
}

/// What waits to leave with the next `Ready`.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub(super) messages: Vec<Envelope>,
    pub(super) reads: Vec<ReadState>,
    pub(super) snapshots: Vec<SendSnapshot>,
    pub(super) log_reads: Vec<ReadLog>,
}

/// See the file's doc.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) config: Config,
    pub(super) term: Term,
    pub(super) vote: Option<MemberId>,
    pub(super) log: Log,
    pub(super) history: History,
    pub(super) reads: ReadQueue,
    pub(super) applying: Applying,
    pub(super) out: Outbox,
    pub(super) random: SplitMix64,
    /// This member must not lead.
    pub(super) barred: bool,
    /// Ticks since the start.
    pub(super) now: u64,
    durability: Durability,
    gated: Vec<(u64, Envelope)>,
}

impl Common {
    pub(super) fn new(
        config: Config,
        hard_state: HardState,
        log: Log,
        history: History,
        applied: LogIndex,
    ) -> Self {
        let mut random = SplitMix64::new(config.seed);
        Self {
            reads: ReadQueue::new(config.reads_max, random.next_u64()),
            config,
            term: hard_state.term,
            vote: hard_state.vote,
            log,
            history,
            applying: Applying {
                applied,
                handed: applied,
                batches: VecDeque::new(),
                bytes: 0,
                reading: None,
                read: Vec::new(),
                installing: false,
                awaiting: false,
            },
            out: Outbox::default(),
            random,
            barred: false,
            now: 0,
            durability: Durability::default(),
            gated: Vec::new(),
        }
    }

    pub(super) fn id(&self) -> MemberId {
        self.config.id
    }

    /// The membership in force.
    pub(super) fn membership(&self) -> &Membership {
        self.history.current()
    }

    /// A fresh election timeout.
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
        self.hard_state_changed();
    }

    /// Gives this term's vote.
    pub(super) fn vote_for(&mut self, candidate: MemberId) {
        assert!(
            self.vote.is_none_or(|given| given == candidate),
            "one vote a term: {:?} has that of {}",
            self.vote,
            self.term
        );
        if self.vote.is_none() {
            self.vote = Some(candidate);
            self.hard_state_changed();
        }
    }

    fn hard_state_changed(&mut self) {
        self.durability.hard_state_seq = self.durability.last_seq + 1;
    }

    /// Whether the present term and vote would survive a crash.
    pub(super) fn hard_state_durable(&self) -> bool {
        self.durability.hard_state_seq <= self.durability.done_seq
    }

    // --- messages ---

    /// Sends `body` once the present term and vote are durable: at once, but for elections.
    pub(super) fn send(&mut self, to: MemberId, body: Body) {
        if self.hard_state_durable() {
            self.send_now(to, body);
            return;
        }
        let same_kind = std::mem::discriminant(&body);
        self.gated.retain(|(_, old)| {
            old.to != to || std::mem::discriminant(&old.message.body) != same_kind
        });
        if self.gated.len() < GATED_MAX {
            let message = Message {
                term: self.term,
                body,
            };
            self.gated
                .push((self.durability.hard_state_seq, Envelope { to, message }));
        }
    }

    /// Sends `body`, which promises nothing, at once.
    pub(super) fn send_now(&mut self, to: MemberId, body: Body) {
        let message = Message {
            term: self.term,
            body,
        };
        self.out.messages.push(Envelope { to, message });
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

    /// Appends an entry that a leader sent; its form was checked.
    pub(super) fn append_received(&mut self, entry: Entry) {
        if entry.kind == EntryKind::Membership {
            let membership = Membership::decode(&entry.data);
            let membership = membership.expect("step() refuses what does not decode");
            self.history.append(entry.index, membership);
        }
        self.log.push(entry);
    }

    /// Drops the entries from `from` on: the leader's differ.
    pub(super) fn truncate(&mut self, from: LogIndex) {
        self.log.truncate(from);
        self.history.truncate(from);
        for (_, last) in &mut self.durability.in_flight {
            *last = (*last).min(self.log.last().index);
        }
    }

    /// Entries up to `index` are committed. True if that is news.
    pub(super) fn commit_to(&mut self, index: LogIndex) -> bool {
        let news = self.log.commit_to(index);
        if news {
            self.history.commit(index);
        }
        news
    }

    // --- durability ---

    /// The next write, if there is anything to write.
    pub(super) fn take_persist(&mut self) -> Option<Persist> {
        let durability = &mut self.durability;
        let hard_state_dirty = durability.hard_state_seq > durability.last_seq;
        if !hard_state_dirty && durability.reset.is_none() && !self.log.has_unhanded() {
            return None;
        }
        durability.last_seq += 1;
        let entries = self.log.hand_out();
        let last = self.log.last().index;
        durability.in_flight.push_back((durability.last_seq, last));
        let commit = self.log.commit();
        let hard_state = HardState {
            term: self.term,
            vote: self.vote,
            commit,
        };
        let reset = durability.reset.take();
        Some(Persist {
            seq: durability.last_seq,
            reset,
            entries,
            hard_state,
        })
    }

    /// The write `seq` and all before it are durable.
    pub(super) fn persisted(&mut self, seq: u64) {
        let durability = &mut self.durability;
        assert!(
            seq <= durability.last_seq,
            "write {seq} is reported durable but only {} were given out",
            durability.last_seq
        );
        durability.done_seq = durability.done_seq.max(seq);
        while let Some(&(written, last)) = durability.in_flight.front() {
            if written > seq {
                break;
            }
            durability.in_flight.pop_front();
            self.log.stable_to(last);
        }
        self.open_gate();
    }

    fn open_gate(&mut self) {
        if self.gated.is_empty() {
            return;
        }
        let (done, term) = (self.durability.done_seq, self.term);
        for (seq, envelope) in std::mem::take(&mut self.gated) {
            if seq > done {
                self.gated.push((seq, envelope));
            } else if envelope.message.term == term {
                self.out.messages.push(envelope);
            }
        }
    }

    // --- applying ---

    /// Committed and durable entries that nobody was given to apply, as far as the bound allows.
    pub(super) fn take_committed(&mut self) -> Vec<Entry> {
        let applying = &mut self.applying;
        if applying.installing || applying.awaiting {
            return Vec::new();
        }
        if !applying.read.is_empty() {
            let entries = std::mem::take(&mut applying.read);
            applying.hand_out(&entries);
            return entries;
        }
        let to = self.log.commit().min(self.log.stable());
        let bytes_max = self
            .config
            .applying_bytes_max
            .saturating_sub(applying.bytes);
        if applying.handed >= to || bytes_max == 0 || applying.reading.is_some() {
            return Vec::new();
        }
        let from = applying.handed.next();
        match self.log.slice(from, to, bytes_max) {
            Slice::InMemory(entries) => {
                applying.hand_out(&entries);
                entries
            }
            Slice::Evicted => {
                applying.reading = Some(from);
                self.out.log_reads.push(ReadLog {
                    reader: Reader::Apply,
                    from,
                    to,
                    bytes_max,
                });
                Vec::new()
            }
            Slice::Released => unreachable!("entries are released only when applied"),
        }
    }

    /// Entries to apply came from the WAL.
    pub(super) fn read_for_apply(&mut self, entries: Vec<Entry>) {
        self.applying.reading = None;
        self.applying.read = entries;
    }

    /// The state machine applied everything up to `index`.
    pub(super) fn applied(&mut self, index: LogIndex) {
        let applying = &mut self.applying;
        assert!(
            index <= applying.handed,
            "entry {index} is reported applied but only {} was given out",
            applying.handed
        );
        applying.applied = applying.applied.max(index);
        while let Some(&(last, bytes)) = applying.batches.front() {
            if last > index {
                break;
            }
            applying.batches.pop_front();
            applying.bytes -= bytes;
        }
    }

    /// A snapshot at `id` is in place of the state machine, and durable.
    pub(super) fn restore(&mut self, id: LogPosition, membership: Membership) {
        if self.log.contains(id) {
            // The entries after it stay; those before may not be durable yet, but nobody needs them.
            self.commit_to(id.index);
            if self.applying.awaiting {
                self.history.rebase(id.index, membership);
            }
        } else {
            self.log.reset(id);
            self.history = History::new(id.index, membership);
            self.durability.reset = Some(id);
            for (_, last) in &mut self.durability.in_flight {
                *last = id.index;
            }
        }
        let applying = &mut self.applying;
        (applying.applied, applying.handed) = (id.index, id.index);
        applying.batches.clear();
        applying.bytes = 0;
        applying.reading = None;
        applying.read.clear();
        (applying.installing, applying.awaiting) = (false, false);
    }

    /// Asserts the invariants of this type and its parts.
    pub(super) fn check(&self) {
        self.log.check();
        let applying = &self.applying;
        assert!(
            applying.applied <= applying.handed,
            "applied entries were given out"
        );
        assert!(
            applying.handed <= self.log.commit(),
            "only committed entries are given out"
        );
        assert!(
            self.log.start().index <= applying.applied,
            "only applied entries are released"
        );
        assert!(
            self.log.last().term <= self.term,
            "entries of newer terms bring their term"
        );
        assert!(
            self.durability.done_seq <= self.durability.last_seq,
            "durable writes were given out"
        );
        assert!(
            self.gated.len() <= GATED_MAX,
            "waiting messages are bounded"
        );
    }
}

impl Applying {
    /// Whether entries from `from` are awaited from the WAL.
    pub(super) fn is_reading(&self, from: LogIndex) -> bool {
        self.reading == Some(from)
    }

    fn hand_out(&mut self, entries: &[Entry]) {
        let Some(last) = entries.last() else { return };
        assert_eq!(
            entries[0].index,
            self.handed.next(),
            "entries apply in order, each once"
        );
        let bytes = entries.iter().map(entry_bytes).sum();
        self.handed = last.index;
        self.batches.push_back((last.index, bytes));
        self.bytes += bytes;
    }
}
