//! Quorate: a strongly consistent, multi-version key-value store for the data that other systems coordinate through.
//!
//! Most users run the program `quorate`, which speaks the etcd v3 API. This library is the same member inside a program of yours,
//! without sockets between the two: [`Node`] starts one on a data directory, on threads of its own.
//!
//! ```
//! use quorate::{
//!     Config, Node,
//!     ext::{KeyValue, Put, RangeQuery},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # actix::System::new().block_on(async {
//! let node = Node::start(&Config {
//!     data_dir: dir.path().join("data"),
//!     ..Config::default()
//! })?;
//! let requests = node.requests();
//!
//! // Each write takes the store's next revision. A new store is at revision 1.
//! let write = |value: &str| Put {
//!     key: "colour".into(),
//!     value: value.to_owned().into(),
//!     ..Put::default()
//! };
//! let first = requests.put(write("blue")).await?;
//! let second = requests.put(write("green")).await?;
//! assert_eq!((first.revision.0, second.revision.0), (2, 3));
//!
//! // A read sees every write that was acknowledged before it. It can also ask for the past.
//! for (revision, expected) in [(0, "green"), (first.revision.0, "blue")] {
//!     let query = RangeQuery {
//!         key: "colour".into(),
//!         revision,
//!         ..RangeQuery::default()
//!     };
//!     let found = requests.range(query).await?;
//!     assert_eq!(KeyValue::decode(&found.kvs[0])?.value, expected);
//! }
//!
//! node.stop().await;
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! # What a member promises
//!
//! - A request is answered once its effect is on disk at a quorum of the members. No crash of this machine undoes it then.
//! - All requests take effect in one order, which the revisions number. A read sees every write that was acknowledged anywhere
//!   before the read began, unless it is marked as serializable; then it sees the state that this member has applied.
//! - A [`Txn`](ext::Txn) compares and then reads or writes, atomically.
//! - A [`Watch`](ext::Watch) yields every change of its range from a revision on: in order, once, whole revisions together.
//! - Keys that are attached to a lease are deleted when the lease ends. [`ext::lock`] and [`ext::election`] build on that.
//! - History is kept until it is compacted ([`CompactHistory`](ext::CompactHistory)).
//!
//! # The parts
//!
//! - [`Config`] has every setting with its default; `config/node.toml` describes them. It names members and certificates where a
//!   member is one of several.
//! - [`Node`] runs on threads of its own. An error of its disk, or a bug, ends the process, since a member that goes on without
//!   one of its parts harms the others; [`Node::start_with`] lets the caller decide otherwise.
//! - [`LocalNode`] runs on the current thread and on a disk that the caller brings: for simulations and tests.
//! - [`ext`] has the types of all requests and answers.
//!
//! The folder `examples` has whole programs: `embedded`, `config_subscriber`, `service_registry`, `leader_worker`. The default
//! feature `bench` includes the load generator of the program; a program that embeds a member turns it off.

mod actors;
mod api;
mod audit;
mod auth;
mod cli;
mod clock;
mod codec;
mod config;
pub mod ext;
mod failpoint;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod import;
mod jwt;
mod kv;
mod local_cluster;
mod log;
mod log_gate;
mod mutation;
mod net;
mod node;
mod raft;
mod services;
mod snapshot_command;
mod storage;
mod tls;
mod types;

pub use config::Config;
pub use node::{LocalNode, Node};

/// Everything else, for the program `quorate` and this package's tests, benchmarks and fuzzers. It changes without notice. The
/// check of the public face (`cfg(face)`, see `check`) leaves it out.
#[doc(hidden)]
#[cfg(not(face))]
pub mod internals {
    use crate::{
        actors::{
            held::HeldBytes, published::Published, request_error::RequestError, requests::Requests,
            watch_calls::WatchCounts, watch_stream::WatchStream,
        },
        auth::{Caller, change::PasswordHash},
        kv::command::{Command, Outcome},
        types::Revision,
    };
    use std::sync::Arc;

    macro_rules! all_of {
        ($($(#[$condition:meta])* $module:ident)*) => {
            $(
                $(#[$condition])*
                pub mod $module {
                    pub use crate::$module::*;
                }
            )*
        };
    }

    all_of! {
        actors
        api
        audit
        auth
        cli
        clock
        codec
        config
        failpoint
        #[cfg(any(test, fuzzing))]
        fuzzing
        import
        jwt
        kv
        local_cluster
        log
        mutation
        net
        node
        raft
        services
        snapshot_command
        storage
        tls
        types
    }

    /// The part of [`Requests`] that tests need and others do not.
    pub trait Inspect {
        /// The newest view, without any promise on how new it is.
        fn published(&self) -> Arc<Published>;

        /// How many watches the member has, and the memory that they take.
        fn count_watches(&self) -> impl Future<Output = Result<WatchCounts, RequestError>> + Send;

        /// Opens a stream of watches.
        fn watch_stream(&self) -> impl Future<Output = Result<WatchStream, RequestError>> + Send;

        /// What the member holds in memory for others.
        fn held(&self) -> HeldBytes;

        /// The same front end on behalf of a caller.
        fn on_behalf(&self, caller: Caller) -> Requests;

        /// Proposes a command that nobody has checked.
        fn propose(
            &self,
            command: &Command,
        ) -> impl Future<Output = Result<Outcome, RequestError>> + Send;

        /// A token for who knows a user's password.
        fn log_in(
            &self,
            name: String,
            password: String,
        ) -> impl Future<Output = Result<(String, Revision), RequestError>> + Send;

        /// The hash of a password.
        fn hash_password(
            &self,
            password: String,
        ) -> impl Future<Output = Result<PasswordHash, RequestError>> + Send;
    }

    impl Inspect for Requests {
        fn published(&self) -> Arc<Published> {
            Self::published(self)
        }

        fn count_watches(&self) -> impl Future<Output = Result<WatchCounts, RequestError>> + Send {
            Self::count_watches(self)
        }

        fn watch_stream(&self) -> impl Future<Output = Result<WatchStream, RequestError>> + Send {
            Self::watch_stream(self)
        }

        fn held(&self) -> HeldBytes {
            Self::held(self)
        }

        fn on_behalf(&self, caller: Caller) -> Requests {
            Self::on_behalf(self, caller)
        }

        fn propose(
            &self,
            command: &Command,
        ) -> impl Future<Output = Result<Outcome, RequestError>> + Send {
            Self::propose(self, command)
        }

        fn log_in(
            &self,
            name: String,
            password: String,
        ) -> impl Future<Output = Result<(String, Revision), RequestError>> + Send {
            Self::log_in(self, name, password, std::net::Ipv4Addr::LOCALHOST.into())
        }

        fn hash_password(
            &self,
            password: String,
        ) -> impl Future<Output = Result<PasswordHash, RequestError>> + Send {
            Self::hash_password(self, password)
        }
    }
}
