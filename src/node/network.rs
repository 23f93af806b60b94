//! How a node reaches its peers: over QUIC, through a network that the caller brings, or not at all.

use crate::{
    actors::peer_hub::{HubPeers, PeerPorts},
    net::{GuestAnswer, Listener, NetError},
    types::Identity,
};
use bytes::Bytes;
use std::{fmt, pin::Pin};

/// The answer to a guest's question, once it comes.
pub type Asked = Pin<Box<dyn Future<Output = Result<GuestAnswer, NetError>>>>;

/// A network in place of sockets: what a simulation brings.
pub trait PeerNetwork: fmt::Debug {
    /// Starts, on the current arbiter, the actor that carries what this member says and passes on what its peers say to `peers`.
    fn attach(&self, identity: Identity, peers: HubPeers) -> PeerPorts;

    /// Asks the member at `address` as a process that is no member; `name` is what it goes by.
    fn ask(&self, name: &str, address: &str, question: Bytes) -> Asked;
}

/// The way to the peers.
pub(super) enum PeerWay<'a> {
    /// There are none, and no socket.
    Alone,
    /// Over QUIC.
    Quic(Box<Listener>),
    /// Through the caller's network.
    Given(&'a dyn PeerNetwork),
}
