//! The etcd v3 API: protobuf requests in, calls of the domain, protobuf responses out.
//!
//! [`listen`] accepts a connection ([`sockets`]) and hands it to one of the API arbiters, where it stays; one with TLS after its
//! handshake (`handshakes`, `tls_stream`). [`wire`] is its
//! socket ([`authority`] repairs header blocks that the HTTP/2 library would refuse), `http2` drives it. `http2` begins and
//! answers hot calls itself; all others get a task of their own in [`grpc`], which admits them and either answers them or
//! passes them to [`services`], tonic's generated servers. [`http`] has the plain HTTP paths. Every call ends in a method of
//! [`Api`], which takes a generated request, returns a response or a [`status::Status`], and does not depend on the transport:
//!
//! ```text
//! listen → http2 ──────▶ kv ─────────────▶ actors::requests → reply → response_body
//!        ↘      ↘ grpc → kv, watch, convert ─▶             ↘ status ↗
//!         ↘        ↘ services → maintenance ─▶
//!          http ─────────────────────────────▶
//! ```
//!
//! `access` says who may make which call, `lines` gives each call its line in the audit log.
//!
//! KV and Watch bypass tonic because their answers are assembled ("spliced") from stored bytes: tonic's encoder would copy those
//! once more, and its layers cost about as much as the rest of a call. Clients see no difference: admission, deadlines, limits
//! and error texts are the same.

mod access;
pub mod answer_budget;
mod auth;
pub mod authority;
mod client_pools;
pub mod cluster;
pub mod cluster_client;
pub mod concurrency;
mod connection_shares;
pub mod convert;
pub mod deadline_body;
mod downgrade;
pub mod early;
pub mod encoding;
mod frame_budget;
pub mod frames;
pub mod front;
pub mod grpc;
mod handshakes;
pub mod http;
mod http2;
mod huffman;
pub mod kv;
pub mod lease;
mod lines;
pub mod listen;
mod long_range;
pub mod maintenance;
pub mod message_reader;
mod message_room;
mod method;
pub mod payload;
pub mod reply;
pub mod response_body;
pub mod services;
pub mod serving;
mod shares;
pub mod snapshot;
pub mod snapshot_client;
pub mod sockets;
pub mod status;
mod streaming;
mod tls_stream;
mod trailers;
mod txn_message;
pub mod watch;
pub mod wire;

use crate::{
    actors::requests::Requests,
    audit::{Audit, Line},
    auth::Caller,
    types::{Identity, Revision},
};
pub use quorate_proto as proto;
use reply::Header;
use serving::ServingPhase;
use sockets::ClientPeer;
use std::sync::Arc;
use tokio::sync::watch::Receiver;

/// The etcd release whose API and behaviour this is. Some clients choose what they send by it.
pub const ETCD_VERSION: &str = "3.7.3";

/// etcd: the cluster version and the storage version leave out the patch number.
const ETCD_CLUSTER_VERSION: &str = "3.7.0";

/// etcd: how much longer than the largest replicated request a message may be, in bytes.
const RECEIVE_SLACK_BYTES: usize = 512 * 1024;

/// The calls of the API, on one API arbiter.
#[derive(Clone, Debug)]
pub struct Api {
    requests: Requests,
    identity: Identity,
    phase: Receiver<ServingPhase>,
    audit: Option<Audit>,
    /// The client that makes the call, if this value is for one call (see `lines`).
    peer: ClientPeer,
    line: Option<Arc<Line>>,
}

impl Api {
    /// The API of a node. Once `phase` says that the server stops, calls that would wait without limit end.
    pub fn new(requests: &Requests, phase: Receiver<ServingPhase>, audit: Option<Audit>) -> Self {
        let identity = requests.identity();
        Self {
            // A call without credentials has the rights of `Caller::Nobody`, not those of the node.
            requests: requests.on_behalf(Caller::Nobody),
            identity,
            phase,
            audit,
            peer: ClientPeer::Unix,
            line: None,
        }
    }

    /// The longest message a client may send, in bytes.
    pub fn receive_bytes_max(&self) -> usize {
        self.requests
            .limits()
            .request_bytes_max
            .saturating_add(RECEIVE_SLACK_BYTES)
    }

    /// The header of a response that does not depend on one revision.
    fn header_now(&self) -> proto::etcdserverpb::ResponseHeader {
        let revision = self.requests.published().view.window.newest;
        self.header(revision).into()
    }

    fn header(&self, revision: Revision) -> Header {
        if let Some(line) = &self.line {
            line.at(revision.0);
        }
        Header {
            cluster: self.identity.cluster,
            member: self.identity.member,
            revision,
            term: self.requests.term(),
        }
    }
}
