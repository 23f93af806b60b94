//! What consensus publishes for the rest of the member: who leads, in which term, and how fast the log's disk is.
//!
//! The Raft node alone publishes both values; all other parts read the newest.

use super::request_error::RequestError;
use crate::{
    kv::{KvError, command::AlarmKind},
    types::{LogIndex, MemberId, Term},
};

/// A new latency counts an eighth in the mean.
const MEAN_WEIGHT: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaftStatus {
    /// The leader, if one is known.
    pub leader: Option<MemberId>,
    pub leads: bool,
    pub term: Term,
    /// A committed entry; at most a tick behind the newest.
    pub commit: LogIndex,
    /// Whether this member has no vote.
    pub learner: bool,
    /// Whether this member's state differs from the others', so that it serves nothing.
    pub out: bool,
    /// The alarm of a member at its quota: one of its own, if all members are known to read it.
    pub quota_alarm: AlarmKind,
}

impl RaftStatus {
    /// etcd: a member without a vote serves what it holds itself, and nothing that needs the others.
    pub fn require_vote(&self) -> Result<(), RequestError> {
        if self.learner {
            return Err(RequestError::Learner);
        }
        Ok(())
    }

    /// A member whose state differs from the others' serves nothing of it.
    pub fn require_same_state(&self) -> Result<(), RequestError> {
        if self.out {
            return Err(KvError::Corrupt.into());
        }
        Ok(())
    }
}

/// How fast the write-ahead log's disk is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskHealth {
    /// How long the last write with its sync took, in microseconds; zero before the first.
    pub sync_micros: u64,
    /// The mean over the last ones, each counting an eighth less than the next.
    pub sync_micros_mean: u64,
    /// The longest since the start.
    pub sync_micros_max: u64,
    /// If a write takes longer than it may: how long it has taken so far, in milliseconds, rounded down to the tick.
    pub stalled_ms: Option<u64>,
}

impl DiskHealth {
    /// Counts a write that has ended.
    pub fn took(&mut self, micros: u64) {
        self.sync_micros = micros;
        self.sync_micros_mean = match self.sync_micros_mean {
            0 => micros,
            mean => (mean * (MEAN_WEIGHT - 1) + micros) / MEAN_WEIGHT,
        };
        self.sync_micros_max = self.sync_micros_max.max(micros);
    }
}
