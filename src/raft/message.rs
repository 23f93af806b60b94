//! What members say to each other, and what hearing it proves.
//!
//! Messages may be lost, repeated, delayed and reordered; each is complete in itself. The transport
//! authenticates the sender. Follows section 3 of the Raft paper, with etcd's pre-vote and conflict hints.

use crate::types::{Entry, LogIndex, LogPosition, MemberId, Term};

/// A message and whom it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The receiver.
    pub to: MemberId,
    /// What it is told.
    pub message: Message,
}

/// A message between two members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's own term. A newer one makes the receiver a follower of that term ([`Body::PreVote`]
    /// excepted); an older one marks the message as late.
    pub term: Term,
    /// What is said.
    pub body: Body,
}

/// What a [`Message`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// From a member that has not heard a leader for its election timeout: would you vote for me in the
    /// next term? It changes nothing at the receiver, so a member that rejoins cannot depose a leader.
    PreVote {
        /// The end of the sender's log.
        last: LogPosition,
    },
    /// Answer to [`Body::PreVote`]. Granted proves only that the replier heard no leader lately and has
    /// no longer log; it promises nothing and may be granted to many.
    PreVoteReply {
        /// The term the sender of the question would stand in, echoed.
        asked: Term,
        /// Whether the vote would be given.
        granted: bool,
    },
    /// From a candidate whose own term and vote are durable. Granting promises the vote of this term.
    RequestVote {
        /// The end of the candidate's log.
        last: LogPosition,
        /// The leader told it to stand ([`Body::TimeoutNow`]): a fresh leader is no reason to refuse.
        transfer: bool,
    },
    /// Answer to [`Body::RequestVote`], sent once the vote is durable. Granted proves that the replier
    /// gives this term's vote to nobody else.
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
    /// From a follower: its log equals the leader's up to `matched`, and that part is durable. One reply
    /// may answer many appends.
    AppendReply {
        /// The last durable index known to equal the leader's.
        matched: LogIndex,
    },
    /// From a follower whose log lacks `prev`.
    AppendRejected {
        /// The index of the `prev` that did not match.
        rejected: LogIndex,
        /// The follower's last entry that could match: none after it does. Term zero means unknown.
        hint: LogPosition,
    },
    /// From the leader, no reply: entries the receiver has acknowledged are now committed. A lost one is
    /// made good by the next append or heartbeat.
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
    /// Answer to [`Body::Heartbeat`]. Proves that the replier had seen no newer term when it got the
    /// heartbeat of `round`, and so that no newer leader had its vote.
    HeartbeatReply {
        /// Echoed.
        round: u64,
    },
    /// From a follower on behalf of its readers: which index must they have applied?
    ReadIndex {
        /// Unique over the sender's life and restarts, so that a late answer cannot serve a later read.
        round: u64,
    },
    /// From the leader, after a quorum confirmed its leadership *after* the question arrived: everything
    /// acknowledged to anybody before the question is at or below `index`.
    ReadIndexReply {
        /// Echoed.
        round: u64,
        /// What the readers must have applied.
        index: LogIndex,
    },
    /// From a leader that hands over: your log equals mine, stand for election now.
    TimeoutNow,
    /// From a member that got a leader's message of an older term: a newer term exists.
    StaleTerm,
}

impl Body {
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

    /// Whether only a term's leader says this to its followers.
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
