//! What can be wrong with certificates and keys. Each error names the file.

use rustls::{AlertDescription, CertificateError, Error, ExtendedKeyPurpose, OtherError};
use std::{io, path::PathBuf};

/// Why certificates cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A file is not PEM, or lacks what it should hold.
    #[error("{path}: {problem}")]
    Pem { path: PathBuf, problem: String },
    /// The files that a setting names cannot be used.
    #[error("{setting}: {source}")]
    Setting {
        /// The key of the configuration.
        setting: &'static str,
        /// What is wrong with them.
        source: Box<TlsError>,
    },
    /// The certificate, key and authority do not fit together.
    #[error("certificate {path}: {source}")]
    Rejected { path: PathBuf, source: Error },
    /// The authority's certificates cannot verify anybody.
    #[error("certificate authority {path}: {problem}")]
    Authority { path: PathBuf, problem: String },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The thread that looks at files could not start.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A private key is not private, and a setting says that it must be.
    #[error("{path}: every user of this machine may read this private key: chmod o= {path}")]
    ReadableKey { path: PathBuf },
    /// A certificate with these values would be of no use.
    #[error("--{flag} {value:?}: must be {allowed}")]
    Request {
        flag: &'static str,
        value: String,
        allowed: &'static str,
    },
}

impl TlsError {
    /// The same error, with the setting that names the file.
    pub(crate) fn in_setting(setting: &'static str) -> impl Fn(Self) -> Self {
        move |source| Self::Setting {
            setting,
            source: Box::new(source),
        }
    }
}

/// Why a handshake failed, in words.
pub fn reason(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(why)) if is_authority(why) => format!(
            "its certificate is refused: it is an authority's (CA:TRUE), even if it is in the list of authorities: {REMEDY}"
        ),
        Error::InvalidCertificate(CertificateError::InvalidPurposeContext { presented, .. })
            if presented.contains(&any_purpose()) =>
        {
            format!(
                "its certificate is refused: it is for any purpose (anyExtendedKeyUsage) and names neither a client's nor a \
                 server's: {REMEDY}"
            )
        }
        Error::InvalidCertificate(CertificateError::Other(why)) => {
            format!("its certificate is refused: {why}")
        }
        Error::InvalidCertificate(CertificateError::Revoked) => {
            "its certificate is refused: it was revoked".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "its certificate is refused: none of the authorities signed it".to_owned()
        }
        // Without the time of the verification, since a line that is equal to the last one is logged once a minute.
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate is refused: it has expired".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is refused: it is not valid yet".to_owned(),
        Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "its certificate is refused: it is of another kind, a server's where a client's is needed or the reverse".to_owned(),
        Error::InvalidCertificate(why) => format!("its certificate is refused: {why}"),
        Error::AlertReceived(alert) => refusal(*alert),
        Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
        other => other.to_string(),
    }
}

/// What makes a certificate that is taken.
const REMEDY: &str = "make one with `quorate cert` (with another tool: CA:FALSE, and the extended key usage clientAuth or \
                      serverAuth)";

fn is_authority(why: &OtherError) -> bool {
    let why = why.0.downcast_ref::<webpki::Error>();
    matches!(why, Some(webpki::Error::CaUsedAsEndEntity))
}

/// `anyExtendedKeyUsage`.
fn any_purpose() -> ExtendedKeyPurpose {
    ExtendedKeyPurpose::Other(vec![2, 5, 29, 37, 0])
}

/// Why the other side ended a handshake, as far as it says.
fn refusal(alert: AlertDescription) -> String {
    let why = match alert {
        AlertDescription::UnknownCA => {
            "it does not know the authority of this member's certificate"
        }
        AlertDescription::BadCertificate => "this member's certificate is not good for it",
        AlertDescription::CertificateExpired => "this member's certificate has expired",
        AlertDescription::CertificateRevoked => "this member's certificate was revoked",
        AlertDescription::CertificateRequired => "it wants a certificate",
        AlertDescription::ProtocolVersion => "it speaks other versions of TLS",
        AlertDescription::HandshakeFailure => "it has no cipher suite in common with this member",
        AlertDescription::NoApplicationProtocol => "it speaks neither HTTP/2 nor HTTP/1.1",
        _ => "it says no more",
    };
    format!("it refuses this member: {why} ({alert:?})")
}
