//! The log of an etcd and the files beside it: logs that a writer of these tests makes, whole and damaged in every way, and logs
//! of a real etcd.

#![expect(
    clippy::missing_assert_message,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers are named for what they check"
)]

mod cluster;
mod damage;
mod etcd;
mod mutated;
mod reading;
mod real;
mod snapshots;
mod writer;
