//! Members' connections to each other, over QUIC.
//!
//! A [`Hub`] holds at most one connection to each other known member. Both sides dial, with growing pauses; if both succeed, the
//! connection that the lower id dialled stays. In the handshake, TLS proves that the peer has a certificate of the cluster's
//! authority, and the hello names the member, which the certificate must confirm (`hello`). Then each side opens three lasting
//! streams, a [`Lane`] each, and one more for every snapshot:
//!
//! ```text
//! n1 ── votes ──▶ n2   heartbeats, votes, read rounds: small, and sent first
//!    ── log ────▶      appends, their replies
//!    ── requests ▶     forwarded requests, answers, cancellations
//!    ── snapshot ▶     one stream a transfer, answered on the same stream
//! ```
//!
//! Every queue is bounded. Raft messages that find no room are dropped, since Raft sends them again; a request that finds no room
//! fails. `docs/peer-protocol.md` describes the protocol, `docs/format.md` its bytes.
//!
//! | file | owns |
//! |---|---|
//! | `hub` | the known members, dialling, accepting, which connection stays |
//! | `admission` | which handshakes begin when there are more than slots |
//! | `hello` | the handshake: versions, cluster, member |
//! | `inbox` | the receiver of everything that arrives |
//! | `link` | one open connection |
//! | `send_queues` | send queues |
//! | `frame` | frames of any header and payload |
//! | `codec` | the contents of frames; the only file that depends on Raft's messages |
//! | `requests` | forwarded requests in flight |
//! | `snapshot` | snapshot transfers |
//! | `settings` | this member's identity, its socket, QUIC's settings |
//! | `guest` | questions of processes that are not members yet |
//! | `tls`, `cert`, `cert_names`, `cert_files` | who may connect; making certificates, for whom, and their files |
//!
//! This module never decodes an entry, a request or a snapshot, decides nothing about consensus, and depends on no actor:
//! everything that arrives goes to an [`Inbox`]. No type of quinn is public here, so a simulated network can replace it.

mod admission;
mod backoff;
pub mod cert;
mod cert_files;
mod cert_names;
mod codec;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod guest;
mod hello;
mod hub;
mod inbox;
mod link;
mod requests;
mod send_queues;
mod settings;
mod snapshot;
#[cfg(test)]
mod tests;
mod tls;

pub use codec::{Lane, VERSION_HIGH, VERSION_LOW, decode_messages, encode_messages};
pub use error::{ForwardError, NetError, Refusal, SnapshotError, Versions};
pub use frame::FRAME_BYTES_MAX;
pub use guest::{GuestAnswer, ask};
pub use hub::Hub;
pub use inbox::{Delivery, GuestQuestion, Inbox};
pub use requests::{ForwardReply, PeerRequest, REQUEST_BYTES_MAX, Responder, UNDER_WAY_MAX};
pub use settings::{HubSettings, Listener, Pacing, PeerAddress, PeerStats};
pub use snapshot::{CHUNK_BYTES_MAX, IncomingSnapshot, SNAPSHOT_HEADER_BYTES_MAX, SnapshotSender};
pub use tls::{PeerSecurity, TlsFiles};
