//! The etcd data model, pure.
pub mod index;
pub mod key_range;
pub mod runs;
