//! [`Inbox`], which the owner of a hub implements: it receives everything that arrives from peers.

use super::{
    requests::{PeerRequest, Responder},
    snapshot::IncomingSnapshot,
};
use crate::{raft::Message, types::MemberId};
use bytes::Bytes;
use std::pin::Pin;

/// A question of a process that is no member.
#[derive(Debug)]
pub struct GuestQuestion {
    /// The name in its hello. Where members are authenticated, its certificate contains this name.
    pub name: String,
    pub question: Bytes,
    pub responder: Responder,
}

/// Completes once the receiver has taken what was delivered.
pub type Delivery = Pin<Box<dyn Future<Output = ()>>>;

/// Receives everything that peers send. A peer's stream is not read on until a delivery completes: this is the backpressure that
/// bounds memory.
pub trait Inbox {
    /// Consensus messages of one stream, in order.
    fn messages(&self, from: MemberId, messages: Vec<Message>) -> Delivery;
    /// Requests to serve. The delivery completes once they are queued, not once they are answered.
    fn requests(&self, requests: Vec<PeerRequest>) -> Delivery;
    /// A question of a process that is no member. The delivery completes once it is queued, not once it is answered.
    fn guest(&self, question: GuestQuestion) -> Delivery;
    /// A snapshot to receive. The delivery completes once the transfer has begun.
    fn snapshot(&self, incoming: IncomingSnapshot) -> Delivery;
    /// A member is connected that was not before, or that spoke another version: both sides speak this one.
    fn connected(&self, id: MemberId, version: u16);
    /// A member is no longer connected.
    fn disconnected(&self, id: MemberId);
    /// Messages to a connected member were dropped because its send queue is full.
    fn dropped(&self, id: MemberId);
    /// The dialled member refused this one, with this [`Refusal::code`](super::Refusal::code) and text.
    fn refused(&self, by: MemberId, code: u64, text: &str);
}
