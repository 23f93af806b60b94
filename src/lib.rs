//! Quorate: a strongly consistent, multi-version key-value store for coordination.
pub mod bench;
pub mod codec;
pub mod kv;
pub mod raft;
pub mod storage;
pub mod types;
