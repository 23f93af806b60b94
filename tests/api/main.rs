//! What users of the etcd v3 API see, tested over the wire: one file per behaviour.
//!
//! Each test starts a server of its own, on free ports and a temporary directory, so all run in parallel. They
//! need Debian's `etcd-server` and `etcd-client`; a missing one fails the test that needs it. The tests of the
//! `etcd-client` crate need the feature `etcd-client-tests`, and with it `protoc` from `protobuf-compiler`.
//!
//! Variables:
//! - `QUORATE_TEST_TARGET=etcd` runs the shared bodies against the real etcd, to check the tests themselves.
//! - `QUORATE_TEST_ETCD`, `QUORATE_TEST_ETCDCTL`: paths of the programs, if they are not on the `PATH`.
//! - `QUORATE_DIFF_OPS`, `QUORATE_DIFF_WATCH_OPS`, `SEED`: how many operations the differential tests
//!   compare, and from which seed.
//! - `QUORATE_CRASH_ROUNDS`: how often the crash test kills the server.

#![expect(
    clippy::unwrap_used,
    clippy::missing_assert_message,
    reason = "this crate is all tests, of which clippy sees only the functions marked so"
)]

mod support;

mod audit;
mod auth;
mod auth_many;
mod auth_refusals;
mod bad_input;
mod compact;
mod connection;
mod crash;
mod data_dir;
mod delete;
mod differential;
mod differential_auth;
mod differential_leases;
#[cfg(feature = "etcd-client-tests")]
mod etcd_client_crate;
mod etcdctl;
mod etcdctl_beside_etcd;
mod floods;
mod jwt;
mod lease;
mod limits;
mod listen;
mod lock;
mod logins;
mod maintenance;
mod put;
mod quota;
mod range;
mod range_order;
mod range_stream;
mod secrets;
mod settings;
mod shares;
mod shutdown;
mod slow_readers;
mod snapshot;
mod tls;
mod tolerance;
mod transport;
mod txn;
mod txn_compare;
mod txn_rules;
mod watch;
mod watch_fragments;
mod write_answers;
