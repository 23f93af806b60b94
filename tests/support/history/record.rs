//! Recording: who asked what when, and what came of it.

use super::model::{Answer, Refusal, Request, Revision};
use std::fmt;

/// One request of one client. A retry is another request.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) client: u64,
    /// Who was asked: a member, or one life of it if what it shows may go back when it restarts.
    pub(crate) member: u64,
    /// When it was called.
    pub(crate) called: u64,
    /// When it returned; of an unknown outcome, when the client gave up: it may still happen later.
    pub(crate) returned: u64,
    pub(crate) request: Request,
    pub(crate) outcome: Outcome,
}

/// What came of a request.
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
    /// Notes a request before it is sent.
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

    /// Notes what came of it.
    pub(crate) fn returned(&mut self, id: OpId, now: u64, outcome: Outcome) {
        let op = &mut self.ops[id.0];
        assert!(op.called <= now, "a request returns after it was called");
        assert!(op.returned == u64::MAX, "a request returns once: {op}");
        op.returned = now;
        op.outcome = outcome;
    }

    /// Notes which member, or which life of it, turned out to answer.
    pub(crate) fn answered_by(&mut self, id: OpId, member: u64) {
        self.ops[id.0].member = member;
    }

    /// Everything noted so far.
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
