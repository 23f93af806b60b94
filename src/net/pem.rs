//! PEM files of certificates and keys, read and checked.

use super::error::TlsError;
use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{fmt, path::Path, sync::Arc};

/// The cryptography that connections between members use.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates in a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(pem(path, &"there is no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(pem(path, &error)),
    }
}

/// The first private key in a file.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| pem(path, &error))
}

/// The authorities whose certificates are in a file.
pub(super) fn authority(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for cert in certificates(path)? {
        roots.add(cert).map_err(|error| TlsError::Authority {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
    }
    Ok(roots)
}

/// Refuses a certificate that the authority in file `ca` did not sign.
pub(super) fn check_signed(cert: &CertificateDer<'_>, ca: &Path) -> Result<(), TlsError> {
    let roots = authority(ca)?;
    let algorithms = provider().signature_verification_algorithms;
    let checked = ParsedCertificate::try_from(cert).and_then(|cert| {
        verify_server_cert_signed_by_trust_anchor(
            &cert,
            &roots,
            &[],
            UnixTime::now(),
            algorithms.all,
        )
    });
    match checked {
        // A certificate made to have ended already is signed nevertheless.
        Ok(())
        | Err(rustls::Error::InvalidCertificate(rustls::CertificateError::ExpiredContext {
            ..
        })) => Ok(()),
        Err(error) => Err(TlsError::Authority {
            path: ca.to_owned(),
            problem: format!("it is not the one that the key beside it signs for ({error})"),
        }),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    };
    std::fs::read(path).map_err(failed)
}

fn pem(path: &Path, problem: &dyn fmt::Display) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
