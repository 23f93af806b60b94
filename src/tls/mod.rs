//! TLS: certificates, keys and lists of revoked certificates from files, what the client port checks, and how all of it changes
//! while the member runs. `docs/tls.md` has the rules.
//!
//! | file | owns |
//! |---|---|
//! | `error` | what can be wrong |
//! | `pem` | reading files |
//! | `der`, `facts` | what a certificate says that the TLS library does not tell |
//! | `names` | which certificates of an authority are taken |
//! | `crl` | revoked certificates |
//! | `files` | noticing that files changed |
//! | `expiry` | saying how long certificates are still valid |
//! | `kind` | which kind a certificate is |
//! | `own` | the checks of the certificate that this member shows |
//! | `made` | what certificates that are made here have in common |
//! | `self_signed` | a certificate that the member makes for itself |
//! | `verifier` | the checks of clients' certificates |
//! | `client_port` | what new connections of the client port use |
//!
//! Connections are others' business: `api` has those of clients, `net` those of members. Only `ring` does the cryptography.

mod client_port;
mod crl;
mod der;
mod error;
mod expiry;
mod facts;
mod files;
mod kind;
mod made;
mod names;
mod own;
mod pem;
mod self_signed;
mod verifier;

pub use client_port::{ClientChecks, ClientTls, ClientTlsKeeper, ClientTlsSettings};
pub use error::{TlsError, reason};
pub use expiry::{ExpiryLog, days_left};
pub use facts::common_name;
pub use names::{AllowedNames, is_valid_for};
pub use self_signed::self_signed;
pub(crate) use {
    crl::Revoked,
    facts::serial_number,
    files::FileWatch,
    kind::{CertificateKind, end_of_key},
    made::{midnight, server_params, today, valid_for},
    names::{MEMBER_URI_START, member_uris},
    own::{OwnFiles, ShownTo, day},
    pem::{authorities, certificates, check_signed, private_key, provider},
    self_signed::CERT_FILE as SELF_SIGNED_FILE,
    verifier::NamedVerifier,
};
