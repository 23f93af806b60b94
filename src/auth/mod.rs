//! Users, roles, permissions and tokens, pure: changes in; refusals, and rows to store, out. No clock, no I/O, no entropy.
//!
//! Everything here is replicated state: a [`Change`] is a command of the log, applied alike on every member, and a check of a
//! [`Caller`] at a log position gives the same answer on every member. `docs/auth.md` has the design. The rules and the texts of
//! refusals are those of etcd 3.7.3 (`server/auth/store.go`, `server/etcdserver/apply/auth.go`).
//!
//! - [`state`]: the state, how changes change it, and the rows that store it. [`check`]: who may do what.
//! - [`grants`]: what a user may read and write, as disjoint intervals. [`tokens`]: which tokens are good.
//! - [`change`]: the commands. [`caller`]: on whose behalf a request is made.
//!
//! Hashes of passwords are made and compared elsewhere (`actors::passwords`): here they are bytes. A token is known by the
//! digest of its secret part, so that no file or log holds a token that can be used.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod caller;
pub mod change;
pub mod check;
mod error;
pub mod grants;
pub mod state;
pub mod tokens;

pub use caller::Caller;
pub use change::Change;
pub use error::AuthError;
pub use state::{AuthState, Row};

/// The user, and the role, that may do everything. etcd: the same names.
pub const ROOT: &str = "root";
