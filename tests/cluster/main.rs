//! Several members as real processes, driven by the real etcdctl: they form a cluster, serve everywhere, and lose nothing when
//! one of them dies.
//!
//! `crash`, `partition` and `growth` do worse to clusters under load, and have every request of the load judged by
//! `tests/support/history`. They read
//!
//! - `QUORATE_TEST_SEED`: what happens, and what clients ask. It is printed; the machine's timing is not in it;
//! - `QUORATE_TEST_CRASH_SECS`: how long `crash` goes on;
//! - `QUORATE_TEST_NETWORK`: `hosts` for network namespaces and nothing else, `relay` for none.

mod client;
mod clients;
#[cfg(feature = "failpoints")]
mod compaction;
mod crash;
mod ctl;
mod damage;
mod deadlines;
mod embedded;
#[cfg(feature = "failpoints")]
mod failpoints;
mod growth;
mod hashkv;
#[path = "../support/history/mod.rs"]
mod history;
mod hostile;
mod hosts;
mod lease;
mod lease_load;
mod life;
mod lock;
mod membership;
mod network;
mod partition;
mod procfile;
mod record;
mod refill;
mod refusals;
mod relay;
mod scene;
mod serving;
mod snapshot;
mod stall;
mod standing;
mod state;
mod support;
mod survivor;
mod watch;
mod wire;
mod workload;
