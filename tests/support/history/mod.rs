//! Records what clients saw of a cluster, and checks it.
//!
//! A [`Recorder`] notes each request with the time it was called, the time it returned, and its [`Outcome`]. A [`Replay`] is the
//! true history: every revision with its events, as a watch from the beginning (or another trusted way) gave them. [`check`]
//! compares the two. This module uses neither the crate nor a runtime nor a wire format: it is an independent model, which does
//! not repeat the crate's mistakes, and the simulator and the tests with real processes share it.
//!
//! # Why no search is needed
//!
//! Whether a history is linearizable is hard to find out in general: which order of the requests explains the answers? Here every
//! answer names a revision, and revisions are the order of all writes. So each acknowledged request has its one place:
//! a write is revision r, a read is right after revision r. What is left to check is that
//!
//! 1. the request, run on the state before its place, does what the true history and its answer say: all of it, nothing else;
//! 2. no revision has two requests, and none of an acknowledged request is missing;
//! 3. real time is kept: if A returned before B was called, B's place is not before A's, and after it if B writes;
//! 4. each revision that no acknowledged request has is explained by a request with an unknown outcome that was called
//!    before anybody saw the revision, each such request explaining one revision at most; or by the end of one lease.
//!    A failed request explains nothing, and neither does a retry: each attempt is a request of its own;
//! 5. the revisions that one member shows never decrease, serializable reads included;
//! 6. history that a compaction gave up is refused from then on, and no other.
//!
//! This is strict: it accepts a history exactly if the revisions in the answers are an order that makes it strictly
//! serializable. It takes O(n log n), so histories of a hundred thousand requests are no trouble.
//!
//! # Time
//!
//! Any unit, as long as one clock stamps all requests. Equal stamps mean no order.

#![allow(
    dead_code,
    unused_imports,
    reason = "each test program uses a part of it"
)]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::struct_field_names, reason = "fields are named as etcd's are")]
#![expect(
    clippy::result_large_err,
    reason = "a violation ends the test, and prints all that is known"
)]

mod check;
mod explain;
mod model;
mod record;
mod replay;
mod violation;

pub(crate) use check::{Checked, check, check_state};
pub(crate) use model::{
    Answer, Compare, DeleteRange, Event, Key, KeyValue, Operand, Put, Range, Refusal, Relation,
    Request, Revision, Txn, TxnOp, Value,
};
pub(crate) use record::{Op, OpId, Outcome, Recorder};
pub(crate) use replay::{LeaseEnd, Replay};
pub(crate) use violation::Violation;
