//! Records requests: which client, when, and with what outcome.

use super::model::{Answer, Refusal, Request, Revision};
use std::fmt;

/// One request of one client. A retry is another request.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) client: u64,
    /// The member that was asked, or one process of it if it may show an older state after a restart.
    pub(crate) member: u64,
    /// When it was called.
    pub(crate) called: u64,
    /// When it returned; of an unknown outcome, when the client gave up: it may still happen later.
    pub(crate) returned: u64,
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Acknowledged, with the header's revision.
    Done { revision: Revision, answer: Answer },
    /// It had no effect and never will.
    Failed(Refusal),
    /// It may have happened, or happen at any later time, once.
    Unknown,
}

/// Which request of a recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpId(usize);

/// Collects requests. Those that are never finished count as unknown.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ops: Vec<Op>,
}

impl Recorder {
    /// Records a request before it is sent.
    pub(crate) fn call(&mut self, client: u64, member: u64, now: u64, request: Request) -> OpId {
        self.ops.push(Op {
            client,
            member,
            called: now,
            returned: u64::MAX,
            request,
            outcome: Outcome::Unknown,
        });
        OpId(self.ops.len() - 1)
    }

    pub(crate) fn returned(&mut self, id: OpId, now: u64, outcome: Outcome) {
        let op = &mut self.ops[id.0];
        assert!(op.called <= now, "a request returns after it was called");
        assert!(op.returned == u64::MAX, "a request returns once: {op}");
        op.returned = now;
        op.outcome = outcome;
    }

    /// Records which member, or which process of it, answered.
    pub(crate) fn answered_by(&mut self, id: OpId, member: u64) {
        self.ops[id.0].member = member;
    }

    /// All requests so far.
    pub(crate) fn ops(&self) -> &[Op] {
        &self.ops
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            client,
            member,
            called,
            returned,
            request,
            outcome,
        } = self;
        write!(
            f,
            "client {client} on member {member}, {called}..{returned}: {request:?} → {outcome:?}"
        )
    }
}
