//! Locks and elections, built from leases and transactions alone: everything they keep is ordinary keys.
//!
//! [`queue`] is what both share: candidates stand in line by the revision that created their keys. [`lock`] and [`election`] give
//! it their names. Key names and order are those of etcd's own services and of the recipes in its client libraries, so all
//! of them can stand in one line. `docs/leases.md` says what a lock guarantees, and what it does not.

pub mod election;
pub mod lock;
pub mod queue;
