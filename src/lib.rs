//! Quorate: a strongly consistent, multi-version key-value store for coordination.
pub mod actors;
pub mod api;
pub mod cli;
pub mod clock;
pub mod codec;
pub mod config;
pub mod failpoint;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kv;
pub mod local_cluster;
pub mod log;
pub mod mutation;
pub mod net;
pub mod node;
pub mod raft;
pub mod services;
pub mod storage;
pub mod types;

pub use config::Config;
pub use node::{LocalNode, Node};
