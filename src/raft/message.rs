//! The messages between members, and what the receiver of each may conclude.
//!
//! Messages may be lost, repeated, delayed and reordered; none depends on an earlier one. The transport
//! authenticates the sender. Follows section 3 of the Raft paper, with etcd's pre-vote and conflict hints.

use crate::types::{Entry, LogIndex, LogPosition, MemberId, Term};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub to: MemberId,
    pub message: Message,
}

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's current term. A newer one makes the receiver a follower in that term ([`MessageBody::PreVote`]
    /// excepted); a message with an older one is late.
    pub term: Term,
    pub body: MessageBody,
}

/// Kind and content of a [`Message`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageBody {
    /// From a member that has received nothing from a leader for its election timeout. It asks whether the receiver would
    /// vote for it in the next term. It changes nothing at the receiver, so a member that rejoins cannot depose a leader.
    PreVote {
        /// The end of the sender's log.
        last: LogPosition,
    },
    /// Answer to [`MessageBody::PreVote`]. Granted proves only that the sender has no recent leader and its log is
    /// no more up to date; it promises nothing and may be granted to many.
    PreVoteReply {
        /// The term in which the asking member would campaign, echoed.
        asked: Term,
        /// Whether the vote would be given.
        granted: bool,
    },
    /// From a candidate whose own term and vote are durable. Granting promises the vote of this term.
    RequestVote {
        /// The end of the candidate's log.
        last: LogPosition,
        /// The leader asked for this campaign ([`MessageBody::TimeoutNow`]), so a recent leader is no reason to refuse.
        transfer: bool,
    },
    /// Answer to [`MessageBody::RequestVote`], sent once the vote is durable. Granted proves that the sender
    /// gives this term's vote to no other candidate.
    Vote {
        /// Whether the vote is given.
        granted: bool,
    },
    /// From the leader: entries that follow `prev`, possibly none (a probe). Proves that the sender leads
    /// the term. The leader may not have the entries on its own disk yet.
    Append {
        /// The entry before the first of `entries` in the leader's log.
        prev: LogPosition,
        /// How far the leader's log is committed; may lie beyond `entries`.
        commit: LogIndex,
        /// Entries with consecutive indexes from `prev.index + 1`.
        entries: Vec<Entry>,
    },
    /// From a follower: its log equals the leader's up to `matched`, and is durable up to there. One reply
    /// may answer many appends.
    AppendReply {
        /// The last durable index known to equal the leader's.
        matched: LogIndex,
    },
    /// From a follower whose log does not contain `prev`.
    AppendRejected {
        /// The index of the `prev` that did not match.
        rejected: LogIndex,
        /// The follower's last entry that may match the leader's; none after it does. Term zero means unknown.
        hint: LogPosition,
    },
    /// From the leader, without a reply: entries that the receiver has acknowledged are committed. If it is lost, the
    /// next append or heartbeat has the same information.
    Commit {
        /// Never beyond what the receiver acknowledged.
        commit: LogIndex,
    },
    /// From the leader, at every heartbeat interval and for each read round. Never waits for a disk.
    Heartbeat {
        /// Never beyond what the receiver acknowledged.
        commit: LogIndex,
        /// The newest read round of this leader.
        round: u64,
    },
    /// Answer to [`MessageBody::Heartbeat`]. Proves that the sender knew no newer term when it received the
    /// heartbeat of `round`, so it had not voted for a newer leader.
    HeartbeatReply {
        /// Echoed.
        round: u64,
    },
    /// From a follower: asks which index must be applied before its waiting reads are served.
    ReadIndex {
        /// Unique for the sender, also over restarts, so that a late answer cannot serve a later read.
        round: u64,
    },
    /// From the leader, once a quorum has confirmed its leadership *after* the query arrived: everything that was
    /// acknowledged to any client before the query is at or below `index`.
    ReadIndexReply {
        /// Echoed.
        round: u64,
        /// The index that must be applied.
        index: LogIndex,
    },
    /// From a leader that transfers leadership or steps down: the receiver campaigns now.
    TimeoutNow,
    /// From a member that received a message from the leader of an older term: a newer term exists.
    StaleTerm,
}

impl MessageBody {
    /// The kind's name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PreVote { .. } => "PreVote",
            Self::PreVoteReply { .. } => "PreVoteReply",
            Self::RequestVote { .. } => "RequestVote",
            Self::Vote { .. } => "Vote",
            Self::Append { .. } => "Append",
            Self::AppendReply { .. } => "AppendReply",
            Self::AppendRejected { .. } => "AppendRejected",
            Self::Commit { .. } => "Commit",
            Self::Heartbeat { .. } => "Heartbeat",
            Self::HeartbeatReply { .. } => "HeartbeatReply",
            Self::ReadIndex { .. } => "ReadIndex",
            Self::ReadIndexReply { .. } => "ReadIndexReply",
            Self::TimeoutNow => "TimeoutNow",
            Self::StaleTerm => "StaleTerm",
        }
    }

    /// Whether only the leader of a term sends this.
    pub(super) fn is_from_leader(&self) -> bool {
        match self {
            Self::Append { .. }
            | Self::Commit { .. }
            | Self::Heartbeat { .. }
            | Self::ReadIndexReply { .. }
            | Self::TimeoutNow => true,
            Self::PreVote { .. }
            | Self::PreVoteReply { .. }
            | Self::RequestVote { .. }
            | Self::Vote { .. }
            | Self::AppendReply { .. }
            | Self::AppendRejected { .. }
            | Self::HeartbeatReply { .. }
            | Self::ReadIndex { .. }
            | Self::StaleTerm => false,
        }
    }
}
