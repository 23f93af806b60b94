//! Several members as real processes, driven by the real etcdctl: they form a cluster, serve everywhere, and lose nothing when
//! one of them dies.

mod client;
mod clients;
mod ctl;
mod follow;
mod guarantees;
mod history;
mod lease;
mod lease_load;
mod life;
mod lock;
mod membership;
mod refusals;
mod serving;
mod storm;
mod support;
mod watch;
