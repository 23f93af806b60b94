//! Helpers to write histories briefly.

use crate::history::{
    Answer, Checked, DeleteRange, Event, KeyValue, OpId, Outcome, Put, Range, Recorder, Refusal,
    Replay, Request, Revision, Txn, TxnOp, Violation, check,
};
use bytes::Bytes;

/// The result of a check.
pub(crate) type Judgement = Result<Checked, Vec<Violation>>;

/// A history under construction: the true revisions, and the requests.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) replay: Replay,
    pub(crate) recorder: Recorder,
}

impl Script {
    /// The next revision of the true history is what `request` does.
    pub(crate) fn truth(mut self, request: &Request) -> Self {
        let newest = self.replay.newest();
        let (events, _) = self.replay.run(request, newest);
        self.replay
            .push(newest + 1, events)
            .expect("a possible revision");
        self
    }

    /// The next revision of the true history has these events.
    pub(crate) fn events(mut self, events: Vec<Event>) -> Self {
        let next = self.replay.newest() + 1;
        self.replay.push(next, events).expect("possible events");
        self
    }

    pub(crate) fn call(&mut self, member: u64, time: (u64, u64), request: Request) -> OpId {
        self.recorder.call(time.0, member, time.0, request)
    }

    /// A request that member 1 acknowledged at a revision, with the answer that is right there.
    pub(crate) fn done(self, time: (u64, u64), revision: Revision, request: Request) -> Self {
        self.done_by(1, time, revision, request)
    }

    /// As [`Script::done`], by another member.
    pub(crate) fn done_by(
        self,
        member: u64,
        time: (u64, u64),
        revision: Revision,
        request: Request,
    ) -> Self {
        let (events, as_write) = self.replay.run(&request, revision - 1);
        let (_, as_read) = self.replay.run(&request, revision);
        let answer = if events.is_empty() { as_read } else { as_write };
        self.said(member, time, revision, request, answer)
    }

    /// A request that changed nothing, acknowledged by member 1 at a revision.
    pub(crate) fn idle(self, time: (u64, u64), revision: Revision, request: Request) -> Self {
        let (_, answer) = self.replay.run(&request, revision);
        self.said(1, time, revision, request, answer)
    }

    /// A request that a member acknowledged at a revision with this answer.
    pub(crate) fn said(
        mut self,
        member: u64,
        time: (u64, u64),
        revision: Revision,
        request: Request,
        answer: Answer,
    ) -> Self {
        let id = self.call(member, time, request);
        let outcome = Outcome::Done { revision, answer };
        self.recorder.returned(id, time.1, outcome);
        self
    }

    /// A request that failed for certain.
    pub(crate) fn failed(mut self, time: (u64, u64), request: Request, refusal: Refusal) -> Self {
        let id = self.call(1, time, request);
        self.recorder.returned(id, time.1, Outcome::Failed(refusal));
        self
    }

    /// A request whose outcome nobody knows.
    pub(crate) fn unknown(mut self, time: (u64, u64), request: Request) -> Self {
        let id = self.call(1, time, request);
        self.recorder.returned(id, time.1, Outcome::Unknown);
        self
    }

    pub(crate) fn judge(&self) -> Judgement {
        check(self.recorder.ops(), &self.replay)
    }
}

pub(crate) fn put(key: &'static str, value: &'static str) -> Request {
    Request::Put(put_op(key, value))
}

pub(crate) fn put_op(key: &'static str, value: &'static str) -> Put {
    Put {
        key: key.into(),
        value: value.into(),
        ..Put::default()
    }
}

pub(crate) fn leased(key: &'static str, lease: i64) -> Request {
    let op = put_op(key, "leased");
    Request::Put(Put { lease, ..op })
}

pub(crate) fn delete(key: &'static str) -> Request {
    Request::DeleteRange(DeleteRange {
        key: key.into(),
        ..DeleteRange::default()
    })
}

pub(crate) fn get(key: &'static str) -> Request {
    Request::Range(get_op(key))
}

pub(crate) fn get_op(key: &'static str) -> Range {
    Range {
        key: key.into(),
        ..Range::default()
    }
}

pub(crate) fn get_at(key: &'static str, revision: Revision) -> Request {
    let op = get_op(key);
    Request::Range(Range { revision, ..op })
}

pub(crate) fn serializable(key: &'static str) -> Request {
    Request::Range(Range {
        serializable: true,
        ..get_op(key)
    })
}

/// A transaction without a condition.
pub(crate) fn all_of(ops: Vec<TxnOp>) -> Request {
    Request::Txn(Txn {
        success: ops,
        ..Txn::default()
    })
}

/// The event of a key's first put.
pub(crate) fn created(key: &'static str, value: &'static str, revision: Revision) -> Event {
    Event::Put(KeyValue {
        key: key.into(),
        create_revision: revision,
        mod_revision: revision,
        version: 1,
        value: value.into(),
        lease: 0,
    })
}

/// The answer to a get of one key.
pub(crate) fn got(kv: Option<KeyValue>) -> Answer {
    let kvs: Vec<KeyValue> = kv.into_iter().collect();
    Answer::Range {
        count: kvs.len(),
        kvs,
        more: false,
    }
}

pub(crate) fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Asserts that there are violations and that the first is of this kind, and returns it. Others may follow from it.
pub(crate) fn found(judgement: Judgement, kind: &str) -> Violation {
    let violations = judgement.expect_err("a violation");
    let first = violations.into_iter().next().expect("one at least");
    let shown = format!("{first:?}");
    assert!(shown.starts_with(kind), "not {kind}, but {first}");
    first
}
