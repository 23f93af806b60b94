//! Generated messages, clients and servers of the etcd v3 API, one module per protobuf package.
//!
//! The source is `proto/`, which `build.rs` compiles. KV and Watch have no generated server: `quorate::api` splices their
//! answers from stored bytes. In `quorate`, only `api` uses these types, so that everything below it is independent of them.

pub mod codec;
pub mod wire_types;

pub use generated::{authpb, etcdserverpb, healthpb, mvccpb, v3electionpb, v3lockpb};

/// One module per package, side by side: generated code refers to its neighbours by `super::`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::missing_assert_message,
    clippy::unwrap_used,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code follows its generator's style, and the generator changes between releases"
)]
mod generated {
    pub mod authpb {
        include!(concat!(env!("OUT_DIR"), "/api/authpb.rs"));
    }
    pub mod etcdserverpb {
        include!(concat!(env!("OUT_DIR"), "/api/etcdserverpb.rs"));
    }
    pub mod healthpb {
        include!(concat!(env!("OUT_DIR"), "/api/grpc.health.v1.rs"));
    }
    pub mod mvccpb {
        include!(concat!(env!("OUT_DIR"), "/api/mvccpb.rs"));
    }
    pub mod v3electionpb {
        include!(concat!(env!("OUT_DIR"), "/api/v3electionpb.rs"));
    }
    pub mod v3lockpb {
        include!(concat!(env!("OUT_DIR"), "/api/v3lockpb.rs"));
    }
}
