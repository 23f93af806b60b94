//! The etcd v3 API: proto in, domain calls, proto out.
//!
//! A connection enters at [`listen`], which hands it to one of the API arbiters, where it stays. [`wire`] is its socket
//! ([`authority`] repairs a fault of old clients on the way), `http2` drives it: hot calls it begins and answers itself, all
//! others get a task of their own in [`grpc`], which admits them and answers its services or has [`services`] hand them to
//! tonic's generated servers. [`http`] has the few plain paths. All end in a method of [`Api`], which takes a generated
//! request and gives an answer or a [`status::Status`], and knows nothing of what carries them:
//!
//! ```text
//! listen → http2 ──────▶ kv ─────────────▶ actors::requests → reply → body
//!        ↘      ↘ grpc → kv, watch, convert ─▶             ↘ status ↗
//!         ↘        ↘ services → maintenance ─▶
//!          http ─────────────────────────────▶
//! ```
//!
//! The services of the thin layer do not pass through tonic because their answers are spliced from stored bytes: its encoder
//! would copy them once more, and its layers cost about as much as the rest of a call. Who serves a call does not show
//! in what it answers: admission, deadlines, limits, and the texts of refusals are the same.

pub mod authority;
pub mod body;
pub mod cluster;
pub mod concurrency;
pub mod convert;
pub mod grpc;
pub mod http;
mod http2;
pub mod kv;
pub mod lease;
pub mod listen;
pub mod maintenance;
pub mod messages;
pub mod payload;
pub mod proto;
pub mod reply;
pub mod services;
pub mod status;
pub mod watch;
pub mod wire;

use crate::{
    actors::requests::Requests,
    types::{Identity, Revision},
};
use listen::Phase;
use reply::Header;
use services::Services;
use std::rc::Rc;
use tokio::sync::watch::Receiver;

/// The etcd release whose API and behaviour this is: clients pick their ways by it.
pub const ETCD_VERSION: &str = "3.7.0";

/// What a client may send beyond the largest replicated request, in bytes: as much as etcd allows.
const RECEIVE_SLACK_BYTES: usize = 512 * 1024;

/// The calls of the API, on one API arbiter.
#[derive(Clone, Debug)]
pub struct Api {
    requests: Requests,
    identity: Identity,
    phase: Receiver<Phase>,
}

impl Api {
    /// The API of a node; `phase` says when it stops, which ends the calls that would not end by themselves.
    pub fn new(requests: Requests, phase: Receiver<Phase>) -> Self {
        let identity = requests.identity();
        Self {
            requests,
            identity,
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

/// What answers the calls on one API arbiter.
#[derive(Debug)]
pub struct Front {
    /// For the thin layer and plain HTTP.
    pub api: Rc<Api>,
    /// For all other calls.
    pub services: Services,
    /// For connections on which calls wait.
    spare: http2::Spare,
}

impl Front {
    /// Serves `api`.
    pub fn new(api: Api) -> Self {
        let services = Services::new(&api);
        let api = Rc::new(api);
        let spare = http2::Spare::default();
        Self {
            api,
            services,
            spare,
        }
    }
}
