//! Locks and elections, built from leases and transactions alone: everything they keep is ordinary keys.
//!
//! [`queue`] is what both share: candidates queue in the order of the revisions that created their keys; [`lock`] and
//! [`election`] are two interfaces to it. Names and order of the keys are those of etcd's own services and of the recipes in its
//! client libraries, so all of them can share a queue. [`messages`] offers the same as actor messages.
//! `docs/leases.md` says what a lock guarantees, and what it does not.

pub mod election;
pub mod lock;
pub mod messages;
pub mod queue;
