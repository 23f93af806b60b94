//! TLS between members: certificates and keys, read from files, and again when the files change.
//!
//! Both sides authenticate with a certificate of the cluster's authority. It must be that of the member in the hello
//! ([`is_of_member`]): it names this member, whatever its host, since members move; or, as with etcd's certificates, it names a
//! host of this member's addresses. Only TLS 1.3 is spoken, without session resumption: each new connection uses the certificates
//! that are valid then.

use super::cert;
use crate::{
    clock,
    tls::{
        self, AllowedNames, ExpiryLog, FileWatch, NamedVerifier, OwnFiles, Revoked, ShownTo,
        TlsError, authorities, certificates, is_valid_for, member_uris, private_key, provider,
    },
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
use std::{fmt, path::PathBuf, sync::Arc};

/// The application protocol of peers in the TLS handshake.
const ALPN: &[u8] = b"quorate-peer";
/// The server name in the TLS handshake, which is not checked.
pub(super) const SERVER_NAME: &str = "quorate";

/// How members authenticate each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSecurity {
    /// Not at all; connections are encrypted.
    Insecure,
    Files(TlsFiles),
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The member's certificate chain.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The authority's certificates; while it is replaced, those of both.
    pub ca: PathBuf,
    /// Certificates that were revoked (PEM or DER).
    pub crl: Option<PathBuf>,
    /// Which certificates of the authority are accepted.
    pub allowed: AllowedNames,
    /// Whether a private key that every user of the machine may read is an error.
    pub refuse_readable_keys: bool,
}

/// The TLS settings of new connections; established ones keep theirs.
#[derive(Clone)]
pub(super) struct TlsConfigs {
    pub(super) server: Arc<QuicServerConfig>,
    pub(super) client: Arc<QuicClientConfig>,
    /// How many authorities are trusted; none without certificates.
    pub(super) authorities: usize,
}

impl fmt::Debug for TlsConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsConfigs")
    }
}

impl PeerSecurity {
    /// Checks that member `name`, which others reach at `host`, can use the files: they can be read, they fit together, and other
    /// members will accept the certificate as this member's.
    pub fn check(&self, name: &str, host: &str) -> Result<(), TlsError> {
        self.checked(name, host, None).map(drop)
    }

    /// As [`PeerSecurity::check`], and the configurations from these files, which would replace the certificate `in_force`.
    fn checked(
        &self,
        name: &str,
        host: &str,
        in_force: Option<&CertificateDer<'_>>,
    ) -> Result<TlsConfigs, TlsError> {
        let Self::Files(files) = self else {
            return self.load(name);
        };
        files.check(in_force)?;
        let configs = files.load()?;
        let bad = |problem: String| {
            let path = files.cert.clone();
            TlsError::in_setting("peer.cert")(TlsError::Pem { path, problem })
        };
        let chain = certificates(&files.cert)?;
        let own = &chain[0];
        files
            .allowed
            .check(own)
            .map_err(|error| bad(format!("other members refuse it: {}", tls::reason(&error))))?;
        if is_of_member(own, &files.allowed, name, &[host.to_owned()]) {
            return Ok(configs);
        }
        let found = names(own).join(", ");
        Err(bad(format!(
            "it is the certificate of {found:?}, not of member {name:?}, and not valid for {host:?}: `quorate cert member --name \
             {name}` makes one"
        )))
    }

    /// Which certificates of the authority are accepted.
    pub(super) fn allowed(&self) -> AllowedNames {
        match self {
            Self::Insecure => AllowedNames::default(),
            Self::Files(files) => files.allowed.clone(),
        }
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
    /// Refuses a certificate that no member would take, whatever its name is; `in_force` is the one that it would replace.
    fn check(&self, in_force: Option<&CertificateDer<'_>>) -> Result<(), TlsError> {
        let own = OwnFiles {
            shown_to: ShownTo::Members { ca: &self.ca },
            cert: &self.cert,
            key: &self.key,
            refuse_readable_key: self.refuse_readable_keys,
        };
        own.check(in_force)
    }

    fn load(&self) -> Result<TlsConfigs, TlsError> {
        let of_ca = TlsError::in_setting("peer.ca");
        let (trusted, roots) = authorities(&self.ca).map_err(&of_ca)?;
        let roots = Arc::new(roots);
        let revoked = Revoked::load(self.crl.as_deref(), &trusted);
        let revoked = revoked.map_err(TlsError::in_setting("peer.crl"))?;
        let chain = certificates(&self.cert).map_err(TlsError::in_setting("peer.cert"))?;
        let key = || private_key(&self.key).map_err(TlsError::in_setting("peer.key"));
        let rejected = |source| TlsError::Rejected {
            path: self.cert.clone(),
            source,
        };
        let provider = provider();
        let signed =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| {
                    of_ca(TlsError::Authority {
                        path: self.ca.clone(),
                        problem: error.to_string(),
                    })
                })?;
        let verifier = Arc::new(NamedVerifier {
            signed,
            revoked: revoked.clone(),
            allowed: self.allowed.clone(),
        });
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(rejected)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key()?)
            .map_err(rejected)?;
        let verifier = Arc::new(AuthorityVerifier {
            trusted: Some(Trusted {
                roots,
                revoked,
                allowed: self.allowed.clone(),
            }),
            algorithms: provider.signature_verification_algorithms,
        });
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(rejected)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key()?)
            .map_err(rejected)?;
        Ok(finished(server, client, trusted.len()))
    }

    fn paths(&self) -> Vec<PathBuf> {
        let files = [&self.cert, &self.key, &self.ca].into_iter();
        files.chain(&self.crl).cloned().collect()
    }
}

/// Detects that certificate files changed, and says how long the certificate is valid. Blocks on the file system.
#[derive(Debug)]
pub(super) struct TlsWatch {
    security: PeerSecurity,
    /// Whose certificate it must be: this member's, which others reach at this host.
    name: String,
    host: String,
    files: FileWatch,
    /// The certificate chain of new connections; empty without files.
    in_force: Vec<CertificateDer<'static>>,
    expiry: Option<ExpiryLog>,
}

impl TlsWatch {
    pub(super) fn open(
        security: PeerSecurity,
        name: String,
        host: String,
    ) -> Result<(Self, TlsConfigs), TlsError> {
        let (paths, expiry) = match &security {
            PeerSecurity::Insecure => (Vec::new(), None),
            PeerSecurity::Files(files) => {
                let expiry = ExpiryLog::new("the certificate for other members", &files.cert);
                (files.paths(), Some(expiry))
            }
        };
        let files = FileWatch::new(paths);
        let configs = security.load(&name)?;
        let mut watch = Self {
            security,
            name,
            host,
            files,
            in_force: Vec::new(),
            expiry,
        };
        watch.took();
        watch.log_expiry();
        Ok((watch, configs))
    }

    /// The new configurations, if the files changed and pass the checks of a start. After an error the caller keeps the old ones,
    /// and the files are read again once they change again, and every minute.
    pub(super) fn look(&mut self) -> Option<Result<TlsConfigs, TlsError>> {
        let load = || {
            let in_force = self.in_force.first();
            self.security.checked(&self.name, &self.host, in_force)
        };
        let read = self.files.look(false).then(load);
        match &read {
            Some(Ok(_)) => self.took(),
            Some(Err(_)) => self.files.failed(),
            None => {}
        }
        self.log_expiry();
        read
    }

    fn took(&mut self) {
        if let (Some(expiry), PeerSecurity::Files(files)) = (&mut self.expiry, &self.security) {
            self.in_force = certificates(&files.cert).unwrap_or_default();
            expiry.took(&self.in_force);
        }
    }

    fn log_expiry(&mut self) {
        if let Some(expiry) = &mut self.expiry {
            expiry.look(clock::unix_time().as_secs());
        }
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
        trusted: None,
        algorithms: provider.signature_verification_algorithms,
    });
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(rejected)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(finished(server, client, 0))
}

fn finished(
    mut server: rustls::ServerConfig,
    mut client: rustls::ClientConfig,
    authorities: usize,
) -> TlsConfigs {
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
            authorities,
        },
        (server, client) => unreachable!(
            "the provider has the cipher suite that QUIC begins with: {:?} {:?}",
            server.err(),
            client.err()
        ),
    }
}

/// The names in a certificate: its member URIs, or, if it has none, its DNS names.
fn names(cert: &CertificateDer<'_>) -> Vec<String> {
    let uris = member_uris(cert);
    if !uris.is_empty() {
        return uris;
    }
    let Ok(cert) = webpki::EndEntityCert::try_from(cert) else {
        return Vec::new();
    };
    cert.valid_dns_names().map(str::to_owned).collect()
}

/// Whether a certificate is that of member `name`, which others reach at `hosts`. The authority has signed it, and the lists of
/// allowed names admit it. It must name the member, in a URI or as a DNS name. etcd: a certificate without a member's URI may
/// also name one of the hosts; and if there is a list of allowed names, it need not name either.
pub(super) fn is_of_member(
    cert: &CertificateDer<'_>,
    allowed: &AllowedNames,
    name: &str,
    hosts: &[String],
) -> bool {
    let uris = member_uris(cert);
    if !uris.is_empty() {
        return uris.contains(&cert::member_uri(name));
    }
    allowed.is_set()
        || names(cert).iter().any(|found| found == name)
        || hosts.iter().any(|host| is_valid_for(cert, host))
}

/// As [`names`], for the text of a refusal.
pub(super) fn shown_names(chain: &[CertificateDer<'_>]) -> Vec<String> {
    chain.first().map(names).unwrap_or_default()
}

/// Accepts a dialled member's certificate if the authority signed it, whatever host it names; any certificate if there is no
/// authority.
#[derive(Debug)]
struct AuthorityVerifier {
    trusted: Option<Trusted>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Who signs members' certificates, and which of these are not accepted.
#[derive(Debug)]
struct Trusted {
    roots: Arc<RootCertStore>,
    revoked: Revoked,
    allowed: AllowedNames,
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
        if let Some(trusted) = &self.trusted {
            let parsed = ParsedCertificate::try_from(cert)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trusted.roots,
                intermediates,
                now,
                algorithms,
            )?;
            trusted.revoked.check(cert, intermediates)?;
            trusted.allowed.check(cert)?;
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
            crl: None,
            allowed: AllowedNames::default(),
            refuse_readable_keys: false,
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
        let own = &certificates(&files(dir.path(), "n1").cert).unwrap()[0];
        let hosts = ["localhost".to_owned()];
        let is_of = |name: &str, allowed: &AllowedNames| is_of_member(own, allowed, name, &hosts);
        let any = AllowedNames::default();
        assert!(is_of("n1", &any));
        assert!(!is_of("n2", &any), "also at its host");
        assert!(!is_of("localhost", &any), "a host is no member");
        let named = AllowedNames {
            common_names: vec!["n1".to_owned()],
            hosts: Vec::new(),
        };
        assert!(!is_of("n2", &named), "whatever is allowed");
    }

    #[test]
    fn a_certificate_without_a_member_is_of_who_is_at_its_hosts() {
        let key = rcgen::KeyPair::generate().unwrap();
        let sans = ["n3", "10.0.0.3", "*.etcd.svc"].map(str::to_owned);
        let cert = rcgen::CertificateParams::new(sans)
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let is_of = |name: &str, hosts: &[&str], allowed: &AllowedNames| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            is_of_member(cert.der(), allowed, name, &hosts)
        };
        let any = AllowedNames::default();
        assert!(is_of("n3", &[], &any), "its DNS name is the member's name");
        assert!(is_of("x", &["10.0.0.3"], &any) && is_of("x", &["10.0.0.9", "x.etcd.svc"], &any));
        assert!(!is_of("x", &["10.0.0.4", "x.y.etcd.svc", "etcd.svc"], &any));
        assert!(!is_of("x", &[], &any));
        let listed = AllowedNames {
            common_names: vec!["etcd".to_owned()],
            hosts: Vec::new(),
        };
        assert!(
            is_of("x", &[], &listed),
            "the handshake has checked the list"
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
            error.starts_with("peer.ca: cannot read") && error.contains("missing.pem"),
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
        let error = empty.load().unwrap_err().to_string();
        assert!(error.starts_with("peer.cert: "), "{error}");
    }

    #[test]
    fn a_certificate_that_nobody_would_take_is_refused_with_the_remedy() {
        let (dir, other) = (made(), made());
        let make = |line: &[&str]| {
            let folder = dir.path().to_str().unwrap();
            cert::test_run(&[line, &["--ca", folder]].concat());
        };
        make(&["server", "--host", "localhost"]);
        make(&["client", "--name", "user"]);
        let check = |files: TlsFiles| {
            let checked = PeerSecurity::Files(files).check("n1", "localhost");
            checked.unwrap_err().to_string()
        };
        for (name, text) in [
            (
                "server",
                "it is the certificate of a server only, and members show theirs as server and as client",
            ),
            ("user", "it is the certificate of a client only, and"),
            (
                "ca",
                "it is the certificate of an authority: make one with `quorate cert member`",
            ),
            (
                "n2",
                "it is the certificate of \"quorate://member/n2\", not of member \"n1\"",
            ),
        ] {
            let own = files(dir.path(), name);
            let start = format!("peer.cert: {}: {text}", own.cert.display());
            let error = check(own);
            assert!(error.starts_with(&start), "{error}");
        }
        let mut strange = files(dir.path(), "n1");
        strange.ca = files(other.path(), "n1").ca;
        let error = check(strange);
        let text = format!(
            "none of the authorities in peer.ca, {}/ca.pem, signed it",
            other.path().display()
        );
        assert!(
            error.starts_with("peer.cert: ") && error.contains(&text),
            "{error}"
        );
        let mut mixed = files(dir.path(), "n1");
        mixed.key = files(dir.path(), "n2").key;
        let error = check(mixed);
        assert!(
            error.starts_with("peer.key: ")
                && error.contains("it is not the key of the certificate in "),
            "{error}"
        );
        let good = PeerSecurity::Files(files(dir.path(), "n1"));
        good.check("n1", "elsewhere").unwrap();
    }

    /// A certificate `early` of member n1, not valid before the year 2099.
    fn make_early(dir: &Path) {
        let issuer = cert::issuer(dir).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = cert::member_params("n1", &[]).unwrap();
        params.not_before = rcgen::date_time_ymd(2099, 1, 1);
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let made = params.signed_by(&key, &issuer).unwrap();
        let files = files(dir, "early");
        std::fs::write(files.cert, made.pem()).unwrap();
        std::fs::write(files.key, key.serialize_pem()).unwrap();
    }

    /// Puts certificate and key of `from` in the place of those of `to`.
    fn put(from: &TlsFiles, to: &TlsFiles) {
        std::fs::copy(&from.cert, &to.cert).unwrap();
        std::fs::copy(&from.key, &to.key).unwrap();
    }

    #[test]
    fn dates_do_not_stop_a_start() {
        let (dir, other) = (made(), made());
        make_early(dir.path());
        let old = dir.path().join("old");
        std::fs::create_dir_all(&old).unwrap();
        cert::make_member(dir.path(), &old, "n1", &[], 0).unwrap();
        std::fs::copy(dir.path().join(cert::CA_FILE), old.join(cert::CA_FILE)).unwrap();
        let ended = files(&old, "n1");
        let check = |files: &TlsFiles| PeerSecurity::Files(files.clone()).check("n1", "localhost");
        check(&ended).unwrap();
        check(&files(dir.path(), "early")).unwrap();
        // Beside the own certificate, one that has ended and is not needed.
        let good = files(dir.path(), "n1");
        let chain = [&good.cert, &ended.cert].map(|path| std::fs::read(path).unwrap());
        std::fs::write(&good.cert, chain.concat()).unwrap();
        check(&good).unwrap();
        // Who signed it is checked all the same.
        for mut strange in [ended, files(dir.path(), "early")] {
            strange.ca = files(other.path(), "n1").ca;
            let error = check(&strange).unwrap_err().to_string();
            assert!(
                error.contains("none of the authorities in peer.ca"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_change_to_an_ended_certificate_is_refused_and_to_an_early_one_is_taken() {
        let dir = made();
        let used = files(dir.path(), "n1");
        let old = dir.path().join("old");
        std::fs::create_dir(&old).unwrap();
        cert::make_member(dir.path(), &old, "n1", &[], 0).unwrap();
        make_early(dir.path());
        let security = PeerSecurity::Files(used.clone());
        let (mut watch, _) =
            TlsWatch::open(security.clone(), "n1".to_owned(), String::new()).unwrap();
        let look = |watch: &mut TlsWatch| {
            assert!(watch.look().is_none(), "it may still be written");
            watch.look().expect("a change").map(drop)
        };
        put(&files(&old, "n1"), &used);
        let error = look(&mut watch).unwrap_err().to_string();
        assert!(
            error.starts_with("peer.cert: ") && error.contains("it ended on "),
            "{error}"
        );
        put(&files(dir.path(), "early"), &used);
        look(&mut watch).unwrap();
        // Where the one in force has ended, too, other files that change must not be ignored.
        put(&files(&old, "n1"), &used);
        let (mut watch, _) = TlsWatch::open(security, "n1".to_owned(), String::new()).unwrap();
        let ca = std::fs::read(&used.ca).unwrap();
        std::fs::write(&used.ca, [ca.clone(), ca].concat()).unwrap();
        look(&mut watch).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_noticed_once_and_a_bad_one_reported_every_minute() {
        let dir = made();
        let files = files(dir.path(), "n1");
        let security = PeerSecurity::Files(files.clone());
        let (mut watch, _) = TlsWatch::open(security, "n1".to_owned(), String::new()).unwrap();
        assert!(watch.look().is_none(), "nothing changed");
        std::fs::write(&files.cert, "broken").unwrap();
        assert!(watch.look().is_none(), "it may still be written");
        assert!(
            watch.look().is_some_and(|read| read.is_err()),
            "a bad file is reported"
        );
        assert!(watch.look().is_none(), "once");
        // What could not be read for a reason that has passed is the same file.
        tokio::time::advance(std::time::Duration::from_mins(1)).await;
        assert!(watch.look().is_some_and(|read| read.is_err()));
        assert!(watch.look().is_none(), "once");
        std::fs::remove_file(&files.cert).unwrap();
        std::fs::remove_file(&files.key).unwrap();
        cert::make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap();
        assert!(watch.look().is_none(), "it may still be written");
        assert!(
            watch.look().is_some_and(|read| read.is_ok()),
            "a good one is taken"
        );
    }
}
