//! Several members as real processes, driven by the real etcdctl: they form a cluster, serve everywhere, and lose nothing when
//! one of them dies.

mod ctl;
mod life;
mod membership;
mod refusals;
mod serving;
mod snapshot;
mod support;
