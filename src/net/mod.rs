//! Members' connections to each other, over QUIC.
//!
//! A [`Hub`] holds at most one connection to each other member of its address book. Both sides dial, with growing pauses; when
//! two connections meet, the one that the lower id dialled stays. Before anything else counts, TLS proves that the peer has a
//! certificate of the cluster's authority, and the hello that it is the member it says it is (`hello`). Then each side opens
//! three lasting streams, a [`Lane`] each, and one more for every snapshot:
//!
//! ```text
//! n1 ── votes ──▶ n2   heartbeats, votes, read rounds: small, never behind anything else
//!    ── log ────▶      appends, their replies
//!    ── requests ▶     forwarded requests, answers, cancellations
//!    ── snapshot ▶     one stream a transfer, answered on the same stream
//! ```
//!
//! What cannot be sent is dropped or refused, never kept without bound: consensus repeats its messages, and callers are told
//! about their requests. `docs/peer-protocol.md` tells the protocol, `docs/format.md` its bytes.
//!
//! | file | owns |
//! |---|---|
//! | `hub` | the address book, dialling, accepting, which connection stays |
//! | `hello` | who speaks |
//! | `link` | one live connection |
//! | `outbox` | what waits to be written |
//! | `frame` | frames of any header and payload |
//! | `codec` | what frames hold; the only file that knows consensus' messages |
//! | `requests` | forwarded requests under way |
//! | `snapshot` | snapshot transfers |
//! | `settings` | who this member is, its socket, QUIC's settings |
//! | `guest` | questions of processes that are not members yet |
//! | `tls`, `cert` | who may connect; making certificates |
//!
//! This module never looks into an entry, a request or a snapshot, decides nothing about consensus, and knows no actor: what
//! arrives goes to an [`Inbox`]. No type of quinn leaves it, so a simulated network can stand in its place.

mod backoff;
pub mod cert;
mod codec;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guest;
mod hello;
mod hub;
mod link;
mod outbox;
mod pem;
mod requests;
mod settings;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;

pub use codec::{Lane, VERSION_HIGH, VERSION_LOW, decode_messages, encode_messages};
pub use error::{ForwardError, NetError, Refusal, SnapshotError, TlsError};
pub use frame::FRAME_BYTES_MAX;
pub use guest::{GuestAnswer, GuestQuestion, ask};
pub use hub::Hub;
pub use requests::{ForwardReply, PeerRequest, REQUEST_BYTES_MAX, Responder, UNDER_WAY_MAX};
pub use settings::{HubSettings, Listener, Pacing, PeerAddress, PeerStats};
pub use snapshot::{CHUNK_BYTES_MAX, IncomingSnapshot, SNAPSHOT_HEADER_BYTES_MAX, SnapshotSender};
pub use tls::{PeerSecurity, TlsFiles};

use crate::{raft::Message, types::MemberId};
use std::pin::Pin;

/// Ends when what was delivered is taken.
pub type Delivery = Pin<Box<dyn Future<Output = ()>>>;

/// Takes what arrives. The peer's stream pauses until a delivery is taken, so the taker bounds what is in memory.
pub trait Inbox {
    /// Consensus messages of one stream, in order.
    fn messages(&self, from: MemberId, messages: Vec<Message>) -> Delivery;
    /// Requests to serve. Taken means queued, not answered.
    fn requests(&self, requests: Vec<PeerRequest>) -> Delivery;
    /// A question of a process that is no member. Taken means queued, not answered.
    fn guest(&self, question: GuestQuestion) -> Delivery;
    /// A snapshot to receive. Taken means begun.
    fn snapshot(&self, incoming: IncomingSnapshot) -> Delivery;
    /// There is a connection to the member; before, there was none.
    fn connected(&self, id: MemberId);
    /// There is no connection to the member any more.
    fn disconnected(&self, id: MemberId);
    /// Messages to a connected member were dropped, for too much waits to be written.
    fn dropped(&self, id: MemberId);
    /// The member dialled refused this one, as [`Refusal::code`] and text tell.
    fn refused(&self, by: MemberId, code: u64, text: &str);
}
