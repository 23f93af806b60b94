//! Bytes that survive a crash: the write-ahead log, the database of revisions, and the disk under both.
//!
//! Nothing here knows Raft's rules or the data model; it stores entries and records it does not look into.

pub mod backend;
pub mod db;
pub mod disk;
pub mod member;
pub mod real_disk;
pub mod refill;
pub mod sim_disk;
pub mod wal;
