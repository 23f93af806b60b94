//! Several members as real processes, driven by the real etcdctl: they form a cluster, serve everywhere, and lose nothing when
//! one of them dies.

mod clients;
mod ctl;
mod lease;
mod lease_load;
mod life;
mod lock;
mod membership;
mod refusals;
mod serving;
mod support;
