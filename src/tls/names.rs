//! Which certificates of an authority are taken: those with certain common names, or for certain hosts.

use super::facts::Facts;
use rustls::{
    CertificateError, OtherError,
    pki_types::{CertificateDer, ServerName},
};
use std::sync::Arc;

/// What the URI that names a member begins with.
pub(crate) const MEMBER_URI_START: &str = "quorate://member/";

/// The members that a certificate names, as URIs.
pub(crate) fn member_uris(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
        return Vec::new();
    };
    let uris = certificate.valid_uri_names();
    let uris = uris.filter(|uri| uri.starts_with(MEMBER_URI_START));
    uris.map(str::to_owned).collect()
}

/// Which certificates of an authority are taken; all if both lists are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedNames {
    pub common_names: Vec<String>,
    /// Hosts, for one of which a certificate must be valid.
    pub hosts: Vec<String>,
}

/// Why a certificate of the authority is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotTaken {
    /// Its name is not in the list.
    #[error("its common name is {0:?}, which is not allowed here")]
    CommonName(String),
    /// It is for other hosts.
    #[error("it is valid for none of the hosts {0:?}")]
    Host(Vec<String>),
    #[error("it was revoked")]
    Revoked,
}

impl From<NotTaken> for rustls::Error {
    fn from(why: NotTaken) -> Self {
        let why = match why {
            NotTaken::Revoked => CertificateError::Revoked,
            NotTaken::CommonName(_) | NotTaken::Host(_) => {
                CertificateError::Other(OtherError(Arc::new(why)))
            }
        };
        Self::InvalidCertificate(why)
    }
}

impl AllowedNames {
    /// Whether there is a list.
    pub fn is_set(&self) -> bool {
        !self.common_names.is_empty() || !self.hosts.is_empty()
    }

    /// Refuses a certificate that the lists do not allow.
    pub(crate) fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if !self.common_names.is_empty() {
            let name = Facts::of(certificate).and_then(|facts| facts.common_name());
            let name = name.unwrap_or_default();
            if !self.common_names.contains(&name) {
                return Err(NotTaken::CommonName(name).into());
            }
        }
        let fits = |host: &String| is_valid_for(certificate, host);
        if !self.hosts.is_empty() && !self.hosts.iter().any(fits) {
            return Err(NotTaken::Host(self.hosts.clone()).into());
        }
        Ok(())
    }
}

/// Whether a certificate is valid for a host name or an IP address.
pub fn is_valid_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let (Ok(certificate), Ok(host)) = (
        webpki::EndEntityCert::try_from(certificate),
        ServerName::try_from(host),
    ) else {
        return false;
    };
    certificate.verify_is_valid_for_subject_name(&host).is_ok()
}
