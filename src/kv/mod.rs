//! The etcd data model, pure.
pub mod key_range;
pub mod runs;
