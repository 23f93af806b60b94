//! The etcd v3 API: proto in, domain calls, proto out.

pub mod proto;
