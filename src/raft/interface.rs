//! The values that the caller of consensus passes in and gets back: configuration and what the disk contained, a
//! [`Ready`], and the errors.

use super::{
    membership::{Membership, MembershipError},
    message::Envelope,
};
use crate::types::{Entry, HardState, LogIndex, LogPosition, MemberId, Term};

/// Settings of a [`RaftCore`](super::RaftCore). The caller defines the length of a tick; all members must use the same.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member; not zero.
    pub id: MemberId,
    /// A follower campaigns when it has received nothing from a leader for its election timeout, which is drawn at random
    /// from one to two times this. More than `heartbeat_ticks`.
    pub election_ticks: u32,
    /// A leader sends heartbeats this often. At least 1.
    pub heartbeat_ticks: u32,
    /// The seed of all random numbers. Must differ between members and between runs.
    pub seed: u64,
    /// Bytes of entries in flight to one follower before the leader waits for replies.
    pub inflight_bytes_max: usize,
    /// Bytes of entries in one append.
    pub append_bytes_max: usize,
    /// Bytes of proposed but not committed entries before proposals are refused.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries cached in memory that are also in the WAL.
    pub cached_bytes_max: usize,
    /// Bytes of entries in [`Ready::committed`] that are not reported applied.
    pub applying_bytes_max: usize,
    /// Reads that may wait for an index.
    pub reads_max: usize,
    /// Ask for pre-votes before a campaign, so that a member that cannot win does not disturb a leader.
    pub pre_vote: bool,
    /// A leader steps down when no quorum replies to it, and members refuse votes while they have a recent leader.
    pub check_quorum: bool,
}

impl Config {
    /// Settings for member `id` that suit ticks of 100 ms (etcd's default timeouts).
    pub fn new(id: MemberId, seed: u64) -> Self {
        Self {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            seed,
            inflight_bytes_max: 16 << 20,
            append_bytes_max: 1 << 20,
            uncommitted_bytes_max: 64 << 20,
            cached_bytes_max: 32 << 20,
            applying_bytes_max: 16 << 20,
            reads_max: 100_000,
            pre_vote: true,
            check_quorum: true,
        }
    }

    /// The most that [`RaftCore::held`](super::RaftCore::held) can be, if no entry is larger than `entry_bytes_max`. Beyond what
    /// is cached, the log keeps entries that are not committed or not durable: those that a leader admits, and those that are in
    /// flight to a follower.
    pub fn held_max(&self, entry_bytes_max: usize) -> HeldEntries {
        let in_flight = self.inflight_bytes_max + self.append_bytes_max.max(entry_bytes_max);
        HeldEntries {
            log: self.cached_bytes_max + self.uncommitted_bytes_max + in_flight + entry_bytes_max,
            applying: self.applying_bytes_max + entry_bytes_max,
            in_flight,
        }
    }
}

/// Bytes of entries that consensus holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldEntries {
    /// The newest part of the log.
    pub log: usize,
    /// In [`Ready::committed`] and not reported applied.
    pub applying: usize,
    /// Sent to one follower and not acknowledged; of the follower with the most.
    pub in_flight: usize,
}

/// What a member finds on its disks when it starts. `InitialState::default()` for one that starts for the first time, with
/// `membership` set if it bootstraps the cluster (empty if it joins one).
#[derive(Clone, Debug, Default)]
pub struct InitialState {
    /// The last hard state in the WAL.
    pub hard_state: HardState,
    /// The last index that the state machine has durably applied.
    pub applied: LogIndex,
    /// The membership at `applied`, stored in the same transaction as that.
    pub membership: Membership,
    /// The WAL has every entry after this one. If the WAL ends before `applied`, or has another term at
    /// `applied` than the state machine, a snapshot was installed and the crash came before the WAL
    /// was reset: then the WAL's entries are ignored, and this is `applied` with its term.
    pub start: LogPosition,
    /// The first entry of each term among those after `start` that are not in `entries`. Empty if all are.
    pub evicted_terms: Vec<LogPosition>,
    /// The WAL's entries up to its end: consecutive, starting at `applied + 1` or before, and always including the last one.
    /// The more there are, the fewer WAL reads a lagging follower causes.
    pub entries: Vec<Entry>,
    /// The state machine's database is lost: `applied` is an entry that is committed according to the log, `membership` the
    /// newest known. Until a snapshot is installed, the member votes and appends entries, but applies none and does not campaign.
    pub awaits_snapshot: bool,
}

/// Why a member cannot start from an [`InitialState`]: the configuration is wrong, or the disks contain what this program
/// never writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitialStateError {
    /// The configuration makes no sense.
    #[error("raft configuration: {0}")]
    Config(&'static str),
    /// Entries are missing between what is applied and the first one given.
    #[error("the log continues at {first} but the state machine has applied only {applied}")]
    Gap {
        /// The first entry given.
        first: LogIndex,
        applied: LogIndex,
    },
    /// Entries do not follow each other.
    #[error("log entry {found} cannot follow {after}")]
    Disorder {
        /// The offending entry.
        found: LogPosition,
        /// The one before it.
        after: LogPosition,
    },
    /// The log ends before what was applied or committed: durable entries are lost.
    #[error("the log ends at {last} before applied {applied} or committed {commit}")]
    Lost {
        /// The end of the log.
        last: LogIndex,
        applied: LogIndex,
        /// The hard state's commit index.
        commit: LogIndex,
    },
    /// A membership entry is damaged.
    #[error("membership entry {index}: {source}")]
    Membership {
        index: LogIndex,
        /// Why it does not decode.
        source: MembershipError,
    },
}

/// Everything the caller has to do after giving input. **Order**: take one `Ready` after another and
///
/// 1. give `persist` to the WAL writer, before that of any later `Ready`; call
///    [`persisted`](super::RaftCore::persisted) with its `seq` when it is durable. The steps below need not wait for that:
///    consensus itself holds back what must wait;
/// 2. send `messages`, in any order;
/// 3. apply `committed`, in order, and report progress with [`applied`](super::RaftCore::applied). They are
///    durable here, so the state machine's disk is never ahead of this member's own log;
/// 4. serve `reads`, each once the state machine has applied its index;
/// 5. start `snapshots`, begin `log_reads`, and publish `status`.
///
/// The module's documentation has this loop in code.
#[derive(Debug, Default)]
pub struct Ready {
    /// What to write to the WAL.
    pub persist: Option<LogWrite>,
    /// What to send to other members now.
    pub messages: Vec<Envelope>,
    /// What to apply now: consecutive entries, each once.
    pub committed: Vec<Entry>,
    pub reads: Vec<ReadState>,
    /// Members that need a snapshot. Answer each with `snapshot_sent` or `snapshot_failed`.
    pub snapshots: Vec<SendSnapshot>,
    /// Entries to read from the WAL, on another thread: consensus does not wait for them. Answer each with `log_read`.
    pub log_reads: Vec<ReadLog>,
    /// Role, term or leader, if one of them changed.
    pub status: Option<Status>,
}

impl Ready {
    pub(super) fn is_empty(&self) -> bool {
        self.persist.is_none()
            && self.messages.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.snapshots.is_empty()
            && self.log_reads.is_empty()
            && self.status.is_none()
    }
}

/// A write to the WAL. A crash may leave a prefix of it, in the order reset, entries, hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogWrite {
    /// Consecutive numbers; a report for one covers all before it.
    pub seq: u64,
    /// Drop the whole log first: a snapshot at this entry, already durable, replaced it.
    pub reset: Option<LogPosition>,
    /// Consecutive entries. If the WAL has an entry at the first index, these replace it and all after it.
    pub entries: Vec<Entry>,
    /// Always complete, even if it did not change.
    pub hard_state: HardState,
}

/// The answer to a [`read_index`](super::RaftCore::read_index). Each accepted read gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// What the caller passed to `read_index`.
    pub context: u64,
    /// The index that must be applied before the read is served.
    pub outcome: Result<LogIndex, ReadLost>,
}

/// No leader confirmed the read in time. Asking again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no leader confirmed the read within two election timeouts")]
pub struct ReadLost;

/// A member needs entries that were released, so it needs a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendSnapshot {
    pub to: MemberId,
    /// The leader's term, to be sent with the snapshot.
    pub term: Term,
}

/// Who needs the entries that are read from the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    Apply,
    Peer(MemberId),
}

/// A request to read entries from the WAL. All of them are durable and committed, so they never change. The answer has entries
/// from `from` on: at least one, none after `to`, and about `bytes_max` bytes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLog {
    /// Who needs them; repeated in the answer.
    pub reader: Reader,
    /// The first index; repeated in the answer.
    pub from: LogIndex,
    pub to: LogIndex,
    /// Counted as [`entry_bytes`](super::entry_bytes) does.
    pub bytes_max: usize,
}

/// The WAL has dropped the requested entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log entries were released")]
pub struct Released;

/// The WAL returned other entries than were written. The member must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entries read from {from} are not those that were written")]
pub struct LogReadError {
    /// The first index of the read.
    pub from: LogIndex,
}

/// A member's role in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Follows a leader, or waits for one.
    Follower,
    /// Has asked for pre-votes, without entering a new term.
    PreCandidate,
    /// Has asked for votes in a new term.
    Candidate,
    Leader,
}

/// Role, term and leader of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    pub role: RoleName,
    pub term: Term,
    /// The leader of the term, if known; the member itself if it leads.
    pub leader: Option<MemberId>,
}

/// How far replication to a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: MemberId,
    /// Its log is durable, and equals the leader's, up to here.
    pub matched: LogIndex,
    /// It needs, or is being sent, a snapshot.
    pub in_snapshot: bool,
    /// It has entries of the leader's term, and gets new ones as they are appended.
    pub current: bool,
    /// The tick at which its last reply arrived, as counted by [`RaftCore::now`](super::RaftCore::now); zero before the first.
    pub replied_at: u64,
}

/// Why a proposal was not accepted. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader accepts proposals; try `leader`.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<MemberId>,
    },
    /// Too many bytes wait to be committed; retry later.
    #[error("{bytes} bytes of proposals wait to be committed")]
    TooMuchUncommitted { bytes: usize },
    /// Leadership is being transferred; retry at the next leader.
    #[error("leadership is being transferred to {}", .to.hex())]
    Transferring { to: MemberId },
}

/// Why a membership change was not accepted. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It was refused like any proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The change does not fit the membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Another change, or the leader's first entry, is not committed; retry later.
    #[error("an earlier change is not committed yet")]
    Unsettled,
    /// The learner's log is behind; retry later.
    #[error("learner {} has not caught up", .0.hex())]
    LearnerNotReady(MemberId),
}

/// Why a read was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The maximum number of reads is waiting; retry later.
    #[error("{0} reads wait already")]
    TooMany(usize),
}

/// Why leadership is not transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// Only the leader can.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<MemberId>,
    },
    /// Only voters can lead.
    #[error("member {} does not vote", .0.hex())]
    NotVoter(MemberId),
}

/// Why a message was dropped. The sender is faulty, or this member lost data; an operator must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The sender has this member's id, or zero.
    #[error("a message came from member id {}, which cannot be", .0.hex())]
    Sender(MemberId),
    /// The append's entries are not consecutive, their terms fall or are newer than the message's, or a membership entry does
    /// not decode.
    #[error("malformed entry {index} in an append")]
    Entry {
        /// The first bad entry.
        index: LogIndex,
    },
    /// Two members claim to lead the same term: a member voted twice in it.
    #[error("{} claims to lead term {term}, which {} leads", .claims.hex(), .leads.hex())]
    SecondLeader {
        term: Term,
        claims: MemberId,
        /// The leader known so far.
        leads: MemberId,
    },
    /// The leader has committed entries that this member acknowledged and does not have: it lost durable data.
    #[error("the leader counts on entry {commit}, but the log here ends at {last}")]
    EntriesLost {
        /// The commit index that the leader sent.
        commit: LogIndex,
        /// The end of this member's log.
        last: LogIndex,
    },
    /// A follower acknowledged an entry that the leader does not have.
    #[error("acknowledged entry {matched} is beyond the leader's end {last}")]
    BeyondEnd {
        /// The acknowledged index.
        matched: LogIndex,
        /// The end of the leader's log.
        last: LogIndex,
    },
}

/// A snapshot that must not replace this member's state, since it is no newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot at {snapshot} is no newer than what is committed here, {commit}")]
pub struct SnapshotRefused {
    pub snapshot: LogPosition,
    pub commit: LogIndex,
}
