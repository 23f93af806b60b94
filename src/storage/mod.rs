//! Bytes that survive a crash: the write-ahead log, the database of revisions, and the disk under both.
//!
//! Nothing here depends on Raft's rules or the data model: entries and records are stored without being decoded.

pub mod backend;
pub mod db;
pub mod descriptors;
pub mod disk;
pub mod encryption;
pub mod member;
pub mod real_disk;
pub mod refill;
pub mod sim_disk;
pub mod starts;
pub mod value_file;
pub mod wal;
