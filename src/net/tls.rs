//! TLS between members: certificates and keys, read from files, and again when the files change.
//!
//! Both sides authenticate with a certificate of the cluster's authority. A peer's identity is the member's name in the
//! certificate, which is compared with its hello (`hello`), not the host, since members move. Only TLS 1.3 is spoken, without
//! session resumption: each new connection uses the certificates that are valid then.

use super::{
    cert,
    error::TlsError,
    pem::{authority, certificates, private_key, provider},
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
};
use std::{fmt, path::PathBuf, sync::Arc, time::SystemTime};

/// The application protocol of peers in the TLS handshake.
const ALPN: &[u8] = b"quorate-peer";
/// The server name in the TLS handshake, which is not checked.
pub(super) const SERVER_NAME: &str = "quorate";

/// How members authenticate each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSecurity {
    /// Not at all; connections are encrypted.
    Insecure,
    /// By certificates.
    Files(TlsFiles),
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The member's certificate chain.
    pub cert: PathBuf,
    /// The member's private key.
    pub key: PathBuf,
    /// The authority's certificates.
    pub ca: PathBuf,
}

/// What new connections use.
#[derive(Clone)]
pub(super) struct TlsConfigs {
    pub(super) server: Arc<QuicServerConfig>,
    pub(super) client: Arc<QuicClientConfig>,
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConfigs")
    }
}

impl PeerSecurity {
    /// Whether member `name` can use it: the files can be read, fit together, and the certificate names this member.
    pub fn check(&self, name: &str) -> Result<(), TlsError> {
        self.load(name)?;
        let Self::Files(files) = self else {
            return Ok(());
        };
        let named = certificates(&files.cert)?
            .first()
            .map(names)
            .unwrap_or_default();
        if is_named(&named, name) {
            return Ok(());
        }
        let found = named.join(", ");
        let what = format!("it is the certificate of {found:?}, not of member {name:?}");
        Err(TlsError::Pem {
            path: files.cert.clone(),
            problem: what,
        })
    }

    /// The configurations for member `name`, from the files as they are now.
    pub(super) fn load(&self, name: &str) -> Result<TlsConfigs, TlsError> {
        match self {
            Self::Insecure => insecure(name),
            Self::Files(files) => files.load(),
        }
    }
}

impl TlsFiles {
    fn load(&self) -> Result<TlsConfigs, TlsError> {
        let roots = Arc::new(authority(&self.ca)?);
        let chain = certificates(&self.cert)?;
        let rejected = |source| TlsError::Rejected {
            path: self.cert.clone(),
            source,
        };
        let provider = provider();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| TlsError::Authority {
                    path: self.ca.clone(),
                    problem: error.to_string(),
                })?;
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(rejected)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private_key(&self.key)?)
            .map_err(rejected)?;
        let verifier = Arc::new(AuthorityVerifier {
            roots: Some(roots),
            algorithms: provider.signature_verification_algorithms,
        });
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(rejected)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, private_key(&self.key)?)
            .map_err(rejected)?;
        Ok(finished(server, client))
    }

    /// Modification times and lengths of the files: if they change, the files are read again.
    fn stamps(&self) -> [Option<(SystemTime, u64)>; 3] {
        [&self.cert, &self.key, &self.ca].map(|path| {
            let data = std::fs::metadata(path).ok()?;
            Some((data.modified().ok()?, data.len()))
        })
    }
}

/// Detects that certificate files changed. Blocks on the file system.
#[derive(Debug)]
pub(super) struct TlsWatch {
    security: PeerSecurity,
    name: String,
    seen: [Option<(SystemTime, u64)>; 3],
}

impl TlsWatch {
    /// Reads the files and their modification times.
    pub(super) fn open(
        security: PeerSecurity,
        name: String,
    ) -> Result<(Self, TlsConfigs), TlsError> {
        // Taken before the files are read, so that a change in between is detected later.
        let seen = stamps(&security);
        let configs = security.load(&name)?;
        Ok((
            Self {
                security,
                name,
                seen,
            },
            configs,
        ))
    }

    /// The new configurations, if the files changed since the last look. After an error the caller keeps the old ones, and the
    /// files are read again once they change again.
    pub(super) fn look(&mut self) -> Option<Result<TlsConfigs, TlsError>> {
        let now = stamps(&self.security);
        if now == self.seen {
            return None;
        }
        self.seen = now;
        Some(self.security.load(&self.name))
    }
}

fn stamps(security: &PeerSecurity) -> [Option<(SystemTime, u64)>; 3] {
    match security {
        PeerSecurity::Insecure => [None; 3],
        PeerSecurity::Files(files) => files.stamps(),
    }
}

fn insecure(name: &str) -> Result<TlsConfigs, TlsError> {
    let (cert, key) = cert::unsigned(name)?;
    let rejected = |source| TlsError::Rejected {
        path: "(made for this start)".into(),
        source,
    };
    let provider = provider();
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(rejected)?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .map_err(rejected)?;
    let verifier = Arc::new(AuthorityVerifier {
        roots: None,
        algorithms: provider.signature_verification_algorithms,
    });
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(rejected)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(finished(server, client))
}

fn finished(mut server: rustls::ServerConfig, mut client: rustls::ClientConfig) -> TlsConfigs {
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    let (server, client) = (
        QuicServerConfig::try_from(server),
        QuicClientConfig::try_from(client),
    );
    match (server, client) {
        (Ok(server), Ok(client)) => TlsConfigs {
            server: Arc::new(server),
            client: Arc::new(client),
        },
        (server, client) => unreachable!(
            "the provider has the cipher suite that QUIC begins with: {:?} {:?}",
            server.err(),
            client.err()
        ),
    }
}

/// The names in a certificate: its member URIs, or, if it has none, its DNS names.
pub(super) fn names(cert: &CertificateDer<'_>) -> Vec<String> {
    let Ok(cert) = webpki::EndEntityCert::try_from(cert) else {
        return Vec::new();
    };
    let uris = cert
        .valid_uri_names()
        .filter(|uri| cert::is_member_uri(uri));
    let uris: Vec<String> = uris.map(str::to_owned).collect();
    if uris.is_empty() {
        cert.valid_dns_names().map(str::to_owned).collect()
    } else {
        uris
    }
}

/// Whether names from [`names`] name member `name`.
pub(super) fn is_named(names: &[String], name: &str) -> bool {
    let uri = cert::member_uri(name);
    names.iter().any(|found| {
        if cert::is_member_uri(found) {
            *found == uri
        } else {
            found == name
        }
    })
}

#[cfg(test)]
pub(super) fn names_in_file(path: &std::path::Path) -> Result<Vec<String>, TlsError> {
    Ok(names(&certificates(path)?[0]))
}

/// Accepts a dialled member's certificate if the authority signed it, whatever host it names; any certificate if there is no
/// authority.
#[derive(Debug)]
struct AuthorityVerifier {
    roots: Option<Arc<RootCertStore>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let cert = ParsedCertificate::try_from(cert)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &cert,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("peers speak TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn files(dir: &Path, name: &str) -> TlsFiles {
        TlsFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}-key.pem")),
            ca: dir.join(cert::CA_FILE),
        }
    }

    fn made() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        cert::make_ca(dir.path(), 1).unwrap();
        for name in ["n1", "n2"] {
            cert::make_member(dir.path(), dir.path(), name, &["localhost".to_owned()], 1).unwrap();
        }
        dir
    }

    #[test]
    fn the_member_uri_counts_and_hosts_do_not() {
        let dir = made();
        let names = names_in_file(&files(dir.path(), "n1").cert).unwrap();
        assert!(is_named(&names, "n1"), "{names:?}");
        assert!(!is_named(&names, "n2"), "{names:?}");
        assert!(
            !is_named(&names, "localhost"),
            "a host is no member: {names:?}"
        );
        assert!(
            is_named(&["n3".to_owned()], "n3"),
            "a foreign certificate names by its DNS name"
        );
    }

    #[test]
    fn bad_files_are_named() {
        let dir = made();
        let mut mixed = files(dir.path(), "n1");
        mixed.key = files(dir.path(), "n2").key;
        let error = mixed.load().unwrap_err().to_string();
        assert!(error.contains("n1.pem"), "{error}");
        let mut none = files(dir.path(), "n1");
        none.ca = dir.path().join("missing.pem");
        let error = none.load().unwrap_err().to_string();
        assert!(
            error.starts_with("cannot read") && error.contains("missing.pem"),
            "{error}"
        );
        let mut empty = files(dir.path(), "n1");
        empty.cert = files(dir.path(), "n1").key;
        let error = empty.load().unwrap_err().to_string();
        assert!(error.contains("no certificate"), "{error}");
        std::fs::write(
            dir.path().join("bad.pem"),
            "-----BEGIN CERTIFICATE-----\n!\n",
        )
        .unwrap();
        empty.cert = dir.path().join("bad.pem");
        assert!(matches!(empty.load(), Err(TlsError::Pem { .. })));
    }

    #[test]
    fn a_change_is_noticed_once_and_a_bad_one_reported_once() {
        let dir = made();
        let files = files(dir.path(), "n1");
        let security = PeerSecurity::Files(files.clone());
        let (mut watch, _) = TlsWatch::open(security, "n1".to_owned()).unwrap();
        assert!(watch.look().is_none(), "nothing changed");
        std::fs::write(&files.cert, "broken").unwrap();
        assert!(
            watch.look().is_some_and(|read| read.is_err()),
            "a bad file is reported"
        );
        assert!(watch.look().is_none(), "once");
        std::fs::remove_file(&files.cert).unwrap();
        std::fs::remove_file(&files.key).unwrap();
        cert::make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap();
        assert!(
            watch.look().is_some_and(|read| read.is_ok()),
            "a good one is taken"
        );
    }
}
