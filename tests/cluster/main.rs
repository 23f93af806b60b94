//! Several members as real processes, driven by the real etcdctl: they form a cluster, serve everywhere, and lose nothing when
//! one of them dies.
//!
//! `crash`, `partition` and `growth` disturb clusters under load, and `tests/support/history` checks every request of that load.
//! They read
//!
//! - `QUORATE_TEST_SEED`: what happens, and what clients ask. It is printed; the machine's timing is not in it;
//! - `QUORATE_TEST_CRASH_SECS`: how long `crash` goes on;
//! - `QUORATE_TEST_NETWORK`: `hosts` for network namespaces and nothing else, `relay` for none.

mod answers;
mod auth;
mod certificates;
#[path = "../support/children.rs"]
mod children;
mod client;
mod clients;
#[cfg(feature = "failpoints")]
mod compaction;
mod crash;
mod ctl;
mod damage;
mod deadlines;
mod descriptors;
mod directory;
mod embedded;
mod encryption;
mod etcd;
#[cfg(feature = "failpoints")]
mod failpoints;
mod frozen;
mod go_client;
mod growth;
mod hashkv;
#[path = "../support/history/mod.rs"]
mod history;
mod hostile;
mod hosts;
mod import;
mod jetcd;
mod kubernetes;
mod lease;
mod lease_load;
mod life;
mod local_cluster;
mod lock;
#[cfg(feature = "failpoints")]
mod log_reads;
mod membership;
mod memory_cap;
mod network;
mod old_format;
mod partition;
mod procfile;
mod programs;
mod quorum_recovery;
mod reconfig;
mod reconnect;
mod record;
mod refill;
mod refusals;
mod relay;
mod restore;
mod rolling;
mod scene;
mod serving;
mod snapshot;
#[cfg(feature = "failpoints")]
mod stale;
mod stall;
mod standing;
mod start_lines;
mod state;
#[cfg(feature = "failpoints")]
mod stored_reads;
mod support;
#[path = "../support/tools.rs"]
mod tools;
#[cfg(feature = "failpoints")]
mod versions;
mod watch;
mod wire;
mod workload;
