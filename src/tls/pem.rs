//! PEM files of certificates and keys, read and checked.

use super::error::TlsError;
use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{Error as PemError, PemObject},
    },
};
use std::{
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};
use webpki::KeyUsage;

/// The longest file of certificates, or of a key: some hundred authorities.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The cryptography of all connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path, FILE_BYTES_MAX)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(pem(path, &"there is no certificate in it")),
        Ok(found) => Ok(found),
        Err(error) => Err(not_pem(path, &error)),
    }
}

/// The first private key in a file.
pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read(path, FILE_BYTES_MAX)?;
    let found = PrivateKeyDer::from_pem_slice(&text);
    found.map_err(|error| match &error {
        PemError::NoItemsFound if holds(&text, b"BEGIN ENCRYPTED PRIVATE KEY") => {
            let file = path.display();
            let problem = format!(
                "its private key is encrypted, and nobody could enter the password: openssl pkey -in {file} -out PLAIN-FILE"
            );
            pem(path, &problem)
        }
        error => not_pem(path, error),
    })
}

fn holds(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|found| found == wanted)
}

fn not_pem(path: &Path, error: &PemError) -> TlsError {
    match error {
        // The library names the section in numbers.
        PemError::MissingSectionEnd { end_marker } => {
            let section = String::from_utf8_lossy(end_marker);
            pem(
                path,
                &format!("the section {section} has no end: the file is incomplete"),
            )
        }
        PemError::IllegalSectionStart { .. } => {
            pem(path, &"a line that should begin a section is damaged")
        }
        PemError::Base64Decode(_) => pem(
            path,
            &"what stands between BEGIN and END is damaged: it is no Base64",
        ),
        PemError::NoItemsFound => pem(path, &"there is no private key in it (PEM)"),
        other => pem(path, other),
    }
}

/// What is wrong with a private key that every user of the machine may read. Kubernetes mounts secrets so unless told otherwise;
/// whoever may use the group, such as Debian's `ssl-cert`, is the operator's choice.
pub(super) fn readable_key(path: &Path) -> Result<Option<TlsError>, TlsError> {
    let mode = std::fs::metadata(path).map_err(|source| unreadable(path, source))?;
    let of_others = mode.permissions().mode() & 0o007;
    Ok((of_others != 0).then(|| TlsError::ReadableKey {
        path: path.to_owned(),
    }))
}

/// The authorities' certificates in a file, and what trusts them.
pub(crate) fn authorities(
    path: &Path,
) -> Result<(Vec<CertificateDer<'static>>, RootCertStore), TlsError> {
    let found = certificates(path)?;
    let mut roots = RootCertStore::empty();
    for cert in &found {
        roots.add(cert.clone()).map_err(|_| TlsError::Authority {
            path: path.to_owned(),
            problem: "a certificate in it cannot be read (X.509, version 3)".to_owned(),
        })?;
    }
    Ok((found, roots))
}

/// What trusts the authorities in a file.
fn trust(path: &Path) -> Result<RootCertStore, TlsError> {
    authorities(path).map(|(_, roots)| roots)
}

/// Refuses a certificate that the authority in file `ca` did not sign.
pub(crate) fn check_signed(cert: &CertificateDer<'_>, ca: &Path) -> Result<(), TlsError> {
    let roots = trust(ca)?;
    let algorithms = provider().signature_verification_algorithms.all;
    let failed = |error: webpki::Error| TlsError::Authority {
        path: ca.to_owned(),
        problem: format!("it is not the one that the key beside it signs for ({error})"),
    };
    let cert = webpki::EndEntityCert::try_from(cert).map_err(failed)?;
    let checked = |usage| {
        let (roots, now) = (&roots.roots, UnixTime::now());
        let path = cert.verify_for_usage(algorithms, roots, &[], now, usage, None, None);
        match path.map(drop) {
            // A certificate made to have ended already is signed nevertheless.
            Err(webpki::Error::CertExpired { .. }) => Ok(()),
            other => other,
        }
    };
    checked(KeyUsage::server_auth())
        .or_else(|_| checked(KeyUsage::client_auth()))
        .map_err(failed)
}

/// The bytes of a file, which has at most so many.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, TlsError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|source| unreadable(path, source))?;
    let mut file = file.take(bytes_max + 1);
    file.read_to_end(&mut bytes)
        .map_err(|source| unreadable(path, source))?;
    if bytes.len() as u64 > bytes_max {
        return Err(pem(path, &format!("it is longer than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        action: "read",
        path: path.to_owned(),
        source,
    }
}

fn pem(path: &Path, problem: &dyn fmt::Display) -> TlsError {
    TlsError::Pem {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_words() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("x.pem");
        let said = |text: &str| {
            std::fs::write(&path, text).expect("written");
            let (cert, key) = (certificates(&path), private_key(&path));
            let texts = [
                cert.map(drop).expect_err("it is no certificate"),
                key.map(drop).expect_err("it is no key"),
            ];
            texts.map(|error| error.to_string())
        };
        let begin = "-----BEGIN CERTIFICATE-----\n";
        for (text, certificate, key) in [
            (
                "",
                "there is no certificate in it",
                "there is no private key in it",
            ),
            (
                "-----BEGIN CERTIFICATE\nAA==\n",
                "should begin a section is damaged",
                "should begin a section is damaged",
            ),
            (
                &format!("{begin}!!!!\n-----END CERTIFICATE-----\n"),
                "is no Base64",
                "is no Base64",
            ),
            (
                &format!("{begin}AA==\n"),
                "the section CERTIFICATE has no end: the file is incomplete",
                "the file is incomplete",
            ),
            (
                "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "there is no certificate in it",
                "its private key is encrypted",
            ),
        ] {
            let [found_certificate, found_key] = said(text);
            assert!(
                found_certificate.contains(certificate),
                "{text}: {found_certificate}"
            );
            assert!(found_key.contains(key), "{text}: {found_key}");
        }
    }
}
