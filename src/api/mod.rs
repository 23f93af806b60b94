//! The etcd v3 API: proto in, domain calls, proto out.
//!
//! A connection enters at [`listen`], which hands it to one of the API arbiters, where it stays ([`authority`] repairs a fault
//! of old clients on the way). [`grpc`] reads a call's message
//! and [`http`] the few plain paths; both end in a method of [`Api`], which takes a generated request and gives an
//! [`reply::Encoded`] answer or a [`status::Status`], and knows nothing of what carries them:
//!
//! ```text
//! listen → grpc → kv, watch, maintenance → convert → actors::requests → reply → body
//!        ↘ http ↗                                              ↘ status ↗
//! ```
//!
//! Of tonic only the generated clients are used. The server side of gRPC is small — a prefix of five bytes, a handful of headers,
//! a status in the trailers —, its exact texts are part of the API, and answers that are spliced from stored bytes would have
//! to be copied once more to pass through tonic's encoder.

pub mod authority;
pub mod body;
pub mod convert;
pub mod grpc;
pub mod http;
pub mod incoming;
pub mod kv;
pub mod listen;
pub mod maintenance;
pub mod proto;
pub mod reply;
pub mod status;
pub mod watch;

use crate::{
    actors::requests::{Identity, Requests},
    types::Revision,
};
use listen::Phase;
use reply::Header;
use tokio::sync::watch::Receiver;

/// The etcd release whose API and behaviour this is: clients pick their ways by it.
pub const ETCD_VERSION: &str = "3.7.0";

/// What a client may send beyond the largest replicated request, in bytes: as much as etcd allows.
const RECEIVE_SLACK_BYTES: usize = 512 * 1024;

/// How the cluster knows this member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberNames {
    /// Its name.
    pub name: String,
    /// Where the other members reach it.
    pub peer_urls: Vec<String>,
    /// Where clients reach it.
    pub client_urls: Vec<String>,
}

/// The calls of the API, on one API arbiter.
#[derive(Clone, Debug)]
pub struct Api {
    requests: Requests,
    identity: Identity,
    names: MemberNames,
    phase: Receiver<Phase>,
}

impl Api {
    /// The API of a node; `phase` says when it stops, which ends the calls that would not end by themselves.
    pub fn new(requests: Requests, names: MemberNames, phase: Receiver<Phase>) -> Self {
        let identity = requests.identity();
        Self {
            requests,
            identity,
            names,
            phase,
        }
    }

    /// The longest message a client may send, in bytes.
    pub fn receive_bytes_max(&self) -> usize {
        self.requests
            .limits()
            .request_bytes_max
            .saturating_add(RECEIVE_SLACK_BYTES)
    }

    /// The header of an answer.
    fn header(&self, revision: Revision) -> Header {
        Header {
            cluster: self.identity.cluster,
            member: self.identity.member,
            revision,
            term: self.requests.term(),
        }
    }
}
