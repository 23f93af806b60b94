//! The contents of etcd's database: stores that are put together here, whole and damaged in every way, and those of a real etcd.
//!
//! `HISTORIES=n` runs that many generated histories instead of a few; `SEED=` repeats one of them. `QUORATE_TEST_ETCD` names
//! an etcd of another version, 3.4 to 3.7, that makes the histories.

#![expect(
    clippy::missing_assert_message,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and its helpers are named for what they check"
)]

mod broken;
mod etcd;
mod fuzzing;
mod hashes;
mod history;
mod memory;
mod real;
mod rewriting;
mod round_trip;
mod support;
