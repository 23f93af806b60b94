//! The values that cross the border of consensus: configuration and what the disk held on the way in, a
//! [`Ready`] on the way out, and the errors.

use super::membership::{Membership, MembershipError};
use super::message::Envelope;
use crate::types::{Entry, HardState, LogIndex, LogPosition, MemberId, Term};

/// Settings of a [`Node`](super::Node). A tick is what the caller makes it; all members must agree on its length.
#[derive(Clone, Debug)]
pub struct Config {
    /// This member; not zero.
    pub id: MemberId,
    /// A follower stands for election after hearing no leader for this long; each wait is drawn anew from
    /// one to two times this. More than `heartbeat_ticks`.
    pub election_ticks: u32,
    /// A leader sends heartbeats this often. At least 1.
    pub heartbeat_ticks: u32,
    /// Where randomness comes from. Must differ from member to member and from run to run.
    pub seed: u64,
    /// Bytes of entries on their way to one follower before the leader waits for replies.
    pub inflight_bytes_max: usize,
    /// Bytes of entries in one append.
    pub append_bytes_max: usize,
    /// Bytes of proposed but not committed entries before proposals are refused.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries kept in memory although the WAL has them.
    pub cached_bytes_max: usize,
    /// Bytes of entries given out to be applied and not reported applied.
    pub applying_bytes_max: usize,
    /// Reads that may wait for an index.
    pub reads_max: usize,
    /// Ask before standing, so that a member that cannot win does not disturb a leader.
    pub pre_vote: bool,
    /// A leader that hears no quorum steps down, and votes are refused while a leader is fresh.
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
}

/// What a member finds on its disks when it starts; `InitialState::default()` for one that starts anew, plus
/// its `membership` if it bootstraps the cluster (left empty if it joins one).
#[derive(Clone, Debug, Default)]
pub struct InitialState {
    /// The last hard state in the WAL.
    pub hard_state: HardState,
    /// What the state machine has durably applied.
    pub applied: LogIndex,
    /// The membership at `applied`: stored with it, in the same transaction.
    pub membership: Membership,
    /// The WAL has every entry after this one. If the WAL ends before `applied`, or holds another term at
    /// `applied` than the state machine does, a snapshot was installed and the crash came before the WAL
    /// was reset: then its entries are void, and this is `applied` with its term.
    pub start: LogPosition,
    /// The first entry of each term among those after `start` that are not in `entries`. Empty if all are.
    pub evicted_terms: Vec<LogPosition>,
    /// The WAL's entries up to its end: consecutive, from `applied + 1` at the latest, and its last one in any
    /// case. The more, the fewer reads a lagging follower costs.
    pub entries: Vec<Entry>,
    /// The state machine's disk is gone: `applied` is an entry of which the log knows that it was committed, `membership` the
    /// newest known. The member votes and takes entries; it applies none, and does not stand, until a snapshot is installed.
    pub awaits_snapshot: bool,
}

/// Why a member cannot start from an [`InitialState`]. The disks hold what this program never writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InitialStateError {
    /// The configuration makes no sense.
    #[error("raft configuration: {0}")]
    Config(&'static str),
    /// Entries are missing between what is applied and the first one given.
    #[error("the log continues at {first} but the state machine stands at {applied}")]
    Gap {
        /// The first entry given.
        first: LogIndex,
        /// The applied index.
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
        /// The applied index.
        applied: LogIndex,
        /// The hard state's commit index.
        commit: LogIndex,
    },
    /// A membership entry is damaged.
    #[error("membership entry {index}: {source}")]
    Membership {
        /// Where.
        index: LogIndex,
        /// What is wrong with it.
        source: MembershipError,
    },
}

/// Everything the caller has to do after giving input. **Order**: take one `Ready` after another and
///
/// 1. hand `persist` to the WAL writer, before any later `Ready`'s; call
///    [`persisted`](super::Node::persisted) with its `seq` when it is durable. Nothing below waits for that:
///    what must, consensus holds back itself until then;
/// 2. send `messages`, in any order;
/// 3. apply `committed`, in order, and report progress with [`applied`](super::Node::applied). They are
///    durable here, so the state machine's disk is never ahead of this member's own log;
/// 4. serve `reads`, each once the state machine has applied its index;
/// 5. start `snapshots`, read `log_reads`, tell observers of `status`.
#[derive(Debug, Default)]
pub struct Ready {
    /// What must become durable.
    pub persist: Option<Persist>,
    /// What may leave now.
    pub messages: Vec<Envelope>,
    /// What may be applied now: consecutive, each entry once.
    pub committed: Vec<Entry>,
    /// Reads that have their answer.
    pub reads: Vec<ReadState>,
    /// Members that need a snapshot. Answer with `snapshot_sent` or `snapshot_failed`.
    pub snapshots: Vec<SendSnapshot>,
    /// Entries wanted from the WAL. Answer each with `log_read`.
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

/// A write to the WAL, all of it or, after a crash, a prefix in the order reset, entries, hard state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persist {
    /// Consecutive; a report for one covers all before it.
    pub seq: u64,
    /// Forget the whole log first: a snapshot at this entry, already durable, took its place.
    pub reset: Option<LogPosition>,
    /// Consecutive entries. If the first is not past the WAL's end, it replaces what is there from it on.
    pub entries: Vec<Entry>,
    /// Always whole, also where it did not change.
    pub hard_state: HardState,
}

/// The answer to a [`read_index`](super::Node::read_index). Each accepted read gets exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadState {
    /// Whose answer.
    pub context: u64,
    /// The index that must be applied before the read is served.
    pub outcome: Result<LogIndex, ReadLost>,
}

/// No leader confirmed the read in time. Asking again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no leader confirmed the read within two election timeouts")]
pub struct ReadLost;

/// A member's log is so far behind that only a snapshot helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendSnapshot {
    /// The member.
    pub to: MemberId,
    /// The leader's term, to go with the snapshot.
    pub term: Term,
}

/// For whom entries are read from the WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The state machine.
    Apply,
    /// A follower.
    Peer(MemberId),
}

/// Entries wanted from the WAL, all durable: from `from`, through `to` at most, about `bytes_max`, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLog {
    /// For whom; goes into the answer.
    pub reader: Reader,
    /// The first index; goes into the answer.
    pub from: LogIndex,
    /// The last index.
    pub to: LogIndex,
    /// Where to stop, counted as [`entry_bytes`](super::entry_bytes) does.
    pub bytes_max: usize,
}

/// The WAL dropped the entries it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log entries were released")]
pub struct Released;

/// The WAL returned entries that are not the log's. Its bytes cannot be trusted: the member must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("log entries read from {from} are not those that were written")]
pub struct LogReadError {
    /// Where the read began.
    pub from: LogIndex,
}

/// What a member is in its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Follows, or waits for, a leader.
    Follower,
    /// Asks whether it could win.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

/// What observers want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What this member is.
    pub role: RoleName,
    /// Its term.
    pub term: Term,
    /// Whom it follows; itself if it leads.
    pub leader: Option<MemberId>,
}

/// How far the leader has fed a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The member.
    pub id: MemberId,
    /// Durable there, and equal, up to here.
    pub matched: LogIndex,
    /// Heard from within the last election timeout.
    pub active: bool,
    /// Needs, or is being sent, a snapshot.
    pub in_snapshot: bool,
}

/// Why a proposal was not accepted. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Only the leader takes proposals; try `leader`.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if one is known.
        leader: Option<MemberId>,
    },
    /// Too many bytes wait to be committed; retry later.
    #[error("{bytes} bytes of proposals wait to be committed")]
    TooMuchUncommitted {
        /// How many wait.
        bytes: usize,
    },
    /// Leadership is being handed over; retry at the next leader.
    #[error("leadership is being transferred to {}", .to.hex())]
    Transferring {
        /// The next leader.
        to: MemberId,
    },
}

/// Why a membership change was not accepted. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// As for any proposal.
    #[error(transparent)]
    Propose(#[from] ProposeError),
    /// The change does not fit the membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Another change, or the leader's first entry, is not committed; retry later.
    #[error("an earlier change is not committed yet")]
    Unsettled,
    /// The learner lags; retry later.
    #[error("learner {} has not caught up", .0.hex())]
    LearnerNotReady(MemberId),
}

/// Why a read was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// As many reads as may wait do; retry later.
    #[error("{0} reads wait already")]
    TooMany(usize),
}

/// Why leadership is not handed over.
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

/// Why a message was dropped. The sender is broken, or this member lost its disk; neither passes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// The sender bears our id, or zero.
    #[error("a message came from member id {}, which cannot be", .0.hex())]
    Sender(MemberId),
    /// The append's entries are not consecutive, of falling or too new terms, or hold no membership where
    /// they should.
    #[error("malformed entry {index} in an append")]
    Entry {
        /// The first bad entry.
        index: LogIndex,
    },
    /// Two members claim to lead one term: one of them voted twice.
    #[error("{} claims to lead term {term}, which {} leads", .claims.hex(), .leads.hex())]
    SecondLeader {
        /// The term.
        term: Term,
        /// The sender.
        claims: MemberId,
        /// The leader known so far.
        leads: MemberId,
    },
    /// The leader says we acknowledged entries that we do not have: this member lost durable data.
    #[error("the leader counts on entry {commit}, but the log here ends at {last}")]
    EntriesLost {
        /// What is committed on the strength of our word.
        commit: LogIndex,
        /// The end of our log.
        last: LogIndex,
    },
    /// A follower acknowledged an entry that the leader does not have.
    #[error("acknowledged entry {matched} is beyond the leader's end {last}")]
    BeyondEnd {
        /// What it claims to have.
        matched: LogIndex,
        /// The end of our log.
        last: LogIndex,
    },
}

/// A snapshot that must not replace this member's state, for it is no newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot at {snapshot} is no newer than what is committed here, {commit}")]
pub struct SnapshotRefused {
    /// The snapshot.
    pub snapshot: LogPosition,
    /// How far this member is.
    pub commit: LogIndex,
}
