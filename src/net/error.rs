//! Errors between members: one enum for each thing that a caller does.
//!
//! The side that refuses a connection closes it with a [`Refusal`]'s code and text, so both sides can log the reason. All other
//! errors stay on the side where they occurred.

use crate::{
    tls::TlsError,
    types::{ClusterId, MemberId},
};
use std::{fmt, io};

/// Why a connection to, or from, a peer is refused or ended on purpose. Its text reads the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The member is stopping. Dial again later.
    #[error("member {} stops", .0.hex())]
    Stopping(MemberId),
    /// No protocol version is common. The side with the older ones must be upgraded.
    #[error(
        "no common peer protocol version: {theirs}, {ours}; upgrade {}",
        older(theirs, ours)
    )]
    Version { theirs: Versions, ours: Versions },
    /// The peer is of another cluster: an address or a data directory is wrong.
    #[error("member {} belongs to cluster {:x}, not to cluster {:x}", .id.hex(), .theirs.0, .ours.0)]
    Cluster {
        id: MemberId,
        theirs: ClusterId,
        ours: ClusterId,
    },
    /// The id is not in the membership: never added, removed, or not known here yet.
    #[error("member {} ({name:?}) is not known in this cluster", .id.hex())]
    UnknownMember {
        id: MemberId,
        /// The name that came with it.
        name: String,
    },
    /// Another member answers at this address.
    #[error("member {} was dialled, and member {} answers at its address", .expected.hex(), .found.hex())]
    OtherMember {
        /// The member that was dialled.
        expected: MemberId,
        /// The member that answered.
        found: MemberId,
    },
    /// Two processes have the same member id: a data directory was copied, or an address leads back to its own member.
    #[error("two processes bear member id {}: one of them runs on a copied data directory", .0.hex())]
    DuplicateMember(MemberId),
    /// The membership has another name for this id.
    #[error("member {} is called {known:?} in the membership, not {claimed:?}", .id.hex())]
    Name {
        id: MemberId,
        /// The name in the membership.
        known: String,
        /// The name in the hello.
        claimed: String,
    },
    /// The certificate was issued for another name.
    #[error("the certificate of member {} names {named:?}, not {claimed:?}", .id.hex())]
    Certificate {
        /// The id in the hello.
        id: MemberId,
        /// The names in the certificate.
        named: Vec<String>,
        /// The name in the hello.
        claimed: String,
    },
    /// The two members are connected already, and both keep that connection.
    #[error("members {} and {} are connected already", .0.hex(), .1.hex())]
    Connected(MemberId, MemberId),
    /// The peer violated the protocol.
    #[error("protocol error: {0}")]
    Malformed(String),
    /// The member was removed, or its address changed.
    #[error("member {} is no longer in this cluster", .0.hex())]
    Removed(MemberId),
}

/// The versions of the peer protocol that a member speaks.
#[cfg_attr(face, expect(unnameable_types, reason = "a part of `Refusal`"))]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The member's name; empty if its hello could not be read so far.
    pub name: String,
    pub low: u16,
    pub high: u16,
}

impl Versions {
    fn who(&self) -> String {
        match self.name.as_str() {
            "" => "the other side".to_owned(),
            name => format!("member {name:?}"),
        }
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { low, high, .. } = self;
        write!(f, "{} speaks {low} to {high}", self.who())
    }
}

/// Names the side that must be upgraded.
fn older(theirs: &Versions, ours: &Versions) -> String {
    if theirs.high < ours.high {
        theirs
    } else {
        ours
    }
    .who()
}

impl Refusal {
    /// The code that the connection is closed with.
    pub fn code(&self) -> u32 {
        match self {
            Self::Stopping(_) => 1,
            Self::Version { .. } => 2,
            Self::Cluster { .. } => 3,
            Self::UnknownMember { .. } => 4,
            Self::OtherMember { .. } => 5,
            Self::DuplicateMember(_) => 6,
            Self::Name { .. } => 7,
            Self::Certificate { .. } => 8,
            Self::Connected(..) => Self::CONNECTED,
            Self::Malformed(_) => 10,
            Self::Removed(_) => 11,
        }
    }

    /// The code of [`Refusal::Connected`], which is no failure.
    pub(super) const CONNECTED: u32 = 9;
}

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The address to listen on cannot be used.
    #[error("cannot listen for peers on {address}: {source}")]
    Listen { address: String, source: io::Error },
    /// Certificates are missing or wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot resolve {address}: {source}")]
    Resolve { address: String, source: io::Error },
    /// The name resolves to no address that this member's socket can reach.
    #[error("{address} has no address that the listening socket can reach")]
    NoAddress { address: String },
    /// The dial could not start.
    #[error("cannot dial {address}: {source}")]
    Dial {
        address: String,
        source: quinn::ConnectError,
    },
    /// The connection failed or ended: silence, a TLS alert, a reset.
    #[error("{}", ended(.0))]
    Connection(quinn::ConnectionError),
    #[error("the handshake was not over in time")]
    HandshakeTimeout,
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error("refused by the peer: {text}")]
    RefusedByPeer { code: u64, text: String },
    /// A stream ended before its connection did.
    #[error("the peer ended stream {0}")]
    StreamEnded(&'static str),
}

/// TLS alerts about certificates (RFC 8446, 6).
const BAD: u8 = 42;
const UNSUPPORTED: u8 = 43;
const REVOKED: u8 = 44;
const EXPIRED: u8 = 45;
const UNKNOWN: u8 = 46;
const UNKNOWN_CA: u8 = 48;
const REQUIRED: u8 = 116;
/// What QUIC adds to the number of an alert.
const ALERTS: u64 = 0x100;

/// Why a connection ended. Where a certificate was refused, the text says whose, and what is wrong with it.
fn ended(error: &quinn::ConnectionError) -> String {
    let (code, reason, ours) = match error {
        quinn::ConnectionError::TransportError(own) => (own.code, own.reason.clone(), true),
        quinn::ConnectionError::ConnectionClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason).into_owned();
            (close.error_code, reason, false)
        }
        other => return format!("connection: {other}"),
    };
    let (refused, ca) = if ours {
        ("its certificate is refused", "peer.ca")
    } else {
        ("it refuses this member's certificate", "its peer.ca")
    };
    let alert = u64::from(code).checked_sub(ALERTS);
    let why = match alert.and_then(|alert| u8::try_from(alert).ok()) {
        Some(UNKNOWN_CA) => format!("no authority in {ca} signed it ({reason})"),
        // Without the library's text, which has the time: a text that was logged is not logged again.
        Some(EXPIRED) => "it has expired, or is not valid yet".to_owned(),
        Some(REVOKED) => format!("it was revoked ({reason})"),
        Some(UNSUPPORTED) => {
            format!("it is of another kind than `quorate cert member` makes ({reason})")
        }
        Some(REQUIRED) => "it was not shown".to_owned(),
        Some(BAD | UNKNOWN) => reason,
        Some(_) | None => return format!("connection: {error}"),
    };
    format!("{refused}: {why}")
}

impl From<quinn::ConnectionError> for NetError {
    fn from(error: quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::ApplicationClosed(close) => Self::RefusedByPeer {
                code: close.error_code.into_inner(),
                text: String::from_utf8_lossy(&close.reason).into_owned(),
            },
            other => Self::Connection(other),
        }
    }
}

impl From<quinn::WriteError> for NetError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::ConnectionLost(error) => error.into(),
            quinn::WriteError::Stopped(_)
            | quinn::WriteError::ClosedStream
            | quinn::WriteError::ZeroRttRejected => Self::StreamEnded("to it"),
        }
    }
}

impl From<quinn::ReadError> for NetError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::ConnectionLost(error) => error.into(),
            quinn::ReadError::Reset(_)
            | quinn::ReadError::ClosedStream
            | quinn::ReadError::IllegalOrderedRead
            | quinn::ReadError::ZeroRttRejected => Self::StreamEnded("from it"),
        }
    }
}

impl From<quinn::ReadExactError> for NetError {
    fn from(error: quinn::ReadExactError) -> Self {
        match error {
            quinn::ReadExactError::FinishedEarly(_) => Self::StreamEnded("from it, too early"),
            quinn::ReadExactError::ReadError(error) => error.into(),
        }
    }
}

/// Why a forwarded request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// There is no connection to the member. Nothing was sent.
    #[error("member {} cannot be reached", .0.hex())]
    Unreachable(MemberId),
    /// Too many requests to the member are in flight, or its send queue is full. Nothing was sent.
    #[error("too many requests are on their way to member {}", .0.hex())]
    Overloaded(MemberId),
    /// The member speaks an older version of the peer protocol, which does not have the request. Nothing was sent.
    #[error("member {} speaks a version of the peer protocol that does not have this request", .0.hex())]
    NotSpoken(MemberId),
    /// The request is longer than a frame may be. Nothing was sent.
    #[error("a request of {0} bytes is too long to forward")]
    TooLarge(usize),
    /// The member has too many requests in flight, and did not begin this one.
    #[error("the other member has too many requests under way")]
    PeerOverloaded,
    /// The connection ended first. The request may have been carried out.
    #[error("the connection to the other member was lost")]
    Lost,
    /// The member ended the request without an answer. It may have been carried out.
    #[error("the other member gave no answer")]
    Abandoned,
}

/// Why a snapshot did not arrive. Every transfer that fails starts again from its beginning.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There is no connection to the member.
    #[error("member {} cannot be reached", .0.hex())]
    Unreachable(MemberId),
    /// The header or a chunk is empty or too long.
    #[error("a snapshot part of {0} bytes cannot be sent")]
    PartSize(usize),
    /// The connection or the other side's task ended.
    #[error("the snapshot transfer was interrupted: {0}")]
    Interrupted(String),
    /// A chunk's bytes are not those that were sent.
    #[error("a snapshot chunk at offset {offset} is damaged")]
    Damaged {
        /// Where the chunk begins.
        offset: u64,
    },
    /// The receiver refused it, or could not store it.
    #[error("the receiver refused the snapshot: {0}")]
    Refused(String),
}
