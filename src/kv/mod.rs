//! The etcd data model, pure.
