//! The etcd data model, pure: commands in; results, records to store and key changes out. No clock, no I/O, no async.
//!
//! # A worked example
//!
//! A fresh store is at revision 1. `put a=1` takes revision 2: the record at (2, 0) holds `a`'s `KeyValue` (created at 2,
//! modified at 2, version 1). A transaction that puts `a=2` and deletes `b` takes revision 3: (3, 0) is the put of `a`
//! (created at 2, version 2), (3, 1) is the tombstone of `b`. Reading at revision 2 still finds `a=1`, because the index knows
//! that `a` had the change (2, 0) before (3, 0). After `compact 3` it does not: revision 2 is refused, the record
//! at (2, 0) goes, and only the newest state at or before 3 of each key stays.
//!
//! # Where things are
//!
//! - [`command`]: requests and answers. [`check`]: what is refused before it enters the log;
//!   [`encoded_txn`]: what is refused before it is decoded.
//! - [`machine`]: applies committed commands; [`answer_reads`]: the reads that only a caller's answer needs;
//!   [`value_reads`]: those that the new state depends on; [`judged`]: a command that waits for them. [`authorize`]: which
//!   commands a caller may give. [`txn`]: the plan of a transaction; `compares`: whether they hold; `cleared`: what it has
//!   deleted. [`range`]: reads; [`pick`]: which keys.
//! - [`index`]: key → metadata and history of revisions. [`keys`]: the view on it, with what is not yet published.
//! - [`hash`]: the hash that etcd's members compare. [`state_hash`]: the hash that Quorate's members compare.
//!   [`record`]: the stored bytes. [`records`]: how they are read. [`view`]: what readers get.
//! - [`lease`]: leases, as the log decides them. [`lease_clock`]: when they are due, on each member.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod answer_reads;
pub mod authorize;
pub mod check;
mod cleared;
pub mod command;
mod compares;
mod copied;
pub mod encoded_txn;
mod error;
#[cfg(any(test, fuzzing))]
mod generated;
pub mod hash;
pub mod index;
pub mod judged;
mod key_range;
pub mod keys;
pub mod lease;
pub mod lease_clock;
#[cfg(test)]
mod lease_cluster_model;
#[cfg(test)]
mod lease_model;
pub mod machine;
#[cfg(any(test, fuzzing))]
pub mod machine_model;
pub mod pick;
pub mod range;
pub mod record;
pub mod records;
pub mod retention;
pub mod runs;
pub mod state_hash;
pub mod tail;
#[cfg(test)]
mod testing;
pub mod txn;
pub mod value_reads;
pub mod view;
pub mod watch;
mod write_set;

pub use error::KvError;
pub use key_range::{KeyRange, RangeEnd};
