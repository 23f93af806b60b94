//! What kinds of certificates there are, as `quorate cert` makes them, and what else is asked of those that are there.

use super::{facts::Facts, names::member_uris};
use rustls::pki_types::CertificateDer;
use std::fmt;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CertificateKind {
    /// It signs others.
    Authority,
    /// A member shows it to others.
    Member,
    /// A member shows it to clients.
    Server,
    Client,
}

impl CertificateKind {
    /// The kind of a certificate; `None` if it is none of these.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let facts = Facts::of(certificate)?;
        let usages = facts.usages();
        let named = !member_uris(certificate).is_empty();
        match (usages.server, usages.client) {
            _ if facts.is_authority() => Some(Self::Authority),
            (true, true) if named => Some(Self::Member),
            (true, false) => Some(Self::Server),
            (false, true) => Some(Self::Client),
            (true, true) | (false, false) => None,
        }
    }
}

impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Authority => "an authority's certificate",
            Self::Member => "a member's certificate",
            Self::Server => "a certificate for the port of clients",
            Self::Client => "a client's certificate",
        })
    }
}

/// When the certificate of a key ends, in seconds since 1970; `None` if none of these is the key's.
pub(crate) fn end_of_key(certificates: &[CertificateDer<'_>], key: &[u8]) -> Option<i64> {
    let facts = certificates.iter().filter_map(|cert| Facts::of(cert));
    let own = facts.filter(|facts| facts.key.1 == key);
    own.map(|facts| facts.not_after).max()
}
