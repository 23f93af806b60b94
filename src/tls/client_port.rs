//! What new connections of the client port use: made of files, and made anew when the files change.
//!
//! A thread looks at the files and publishes; whoever accepts a connection takes what is newest. There is no session resumption,
//! so that each connection is checked by what is in force when it is made.

use super::{
    crl::Revoked,
    error::TlsError,
    expiry::ExpiryLog,
    files::FileWatch,
    names::AllowedNames,
    own::{OwnFiles, ShownTo},
    pem::{authorities, certificates, private_key, provider},
    verifier::NamedVerifier,
};
use crate::clock;
use rustls::{
    CipherSuite, SignatureAlgorithm, SupportedCipherSuite,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::sync::watch;

/// What clients and this port may speak, the preferred first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// The pause between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The TLS of a client port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTlsSettings {
    /// The certificate chain (PEM).
    pub cert: PathBuf,
    /// The private key (PEM).
    pub key: PathBuf,
    /// What clients must show, if anything.
    pub clients: Option<ClientChecks>,
    /// Which versions are spoken.
    pub tls12: bool,
    /// See `tls12`.
    pub tls13: bool,
    /// The cipher suites, by IANA's names.
    pub suites: Vec<&'static str>,
    /// A private key that everybody may read is an error.
    pub refuse_readable_keys: bool,
}

/// What clients must show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientChecks {
    /// The authorities (PEM).
    pub ca: PathBuf,
    /// Certificates that were revoked (PEM or DER).
    pub crl: Option<PathBuf>,
    /// Nobody gets in without a certificate.
    pub required: bool,
    /// The common name of a certificate is a user.
    pub are_users: bool,
    /// Which of the authorities' certificates are taken.
    pub allowed: AllowedNames,
}

/// What new connections use. Clones share it.
#[derive(Clone)]
pub struct ClientTls {
    newest: watch::Receiver<Arc<rustls::ServerConfig>>,
    /// The common name of a client's certificate is a user.
    pub names_are_users: bool,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// The thread that looks at the files. It ends when this is dropped.
#[derive(Debug)]
pub struct ClientTlsKeeper {
    look: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Loaded {
    /// How many authorities are trusted to sign clients' certificates.
    authorities: usize,
    config: Arc<rustls::ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
}

impl ClientTls {
    /// Reads the files, and goes on looking at them.
    pub fn open(settings: ClientTlsSettings) -> Result<(Self, ClientTlsKeeper), TlsError> {
        let files = FileWatch::new(settings.files());
        let Loaded { config, chain, .. } = settings.load(None)?;
        let mut expiry = ExpiryLog::new("the certificate of the client port", &settings.cert);
        expiry.took(&chain);
        expiry.look(clock::unix_time().as_secs());
        let clients = settings.clients.as_ref();
        let names_are_users = clients.is_some_and(|clients| clients.are_users);
        let (publish, newest) = watch::channel(config);
        let (look, asked) = mpsc::sync_channel(1);
        let keeping = move || keep(&settings, files, chain, expiry, &publish, &asked);
        let thread = thread::Builder::new().name("quorate-tls".to_owned());
        let thread = thread.spawn(keeping).map_err(TlsError::Thread)?;
        let keeper = ClientTlsKeeper {
            look: Some(look),
            thread: Some(thread),
        };
        let tls = Self {
            newest,
            names_are_users,
        };
        Ok((tls, keeper))
    }

    /// What a connection that is made now uses.
    pub fn newest(&self) -> Arc<rustls::ServerConfig> {
        self.newest.borrow().clone()
    }
}

impl ClientTlsKeeper {
    /// Looks at the files at once.
    pub fn look_now(&self) {
        if let Some(look) = &self.look {
            // A look that is asked for already is enough.
            look.try_send(()).unwrap_or_default();
        }
    }
}

impl Drop for ClientTlsKeeper {
    fn drop(&mut self) {
        drop(self.look.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that looks at certificates has panicked");
        }
    }
}

fn keep(
    settings: &ClientTlsSettings,
    mut files: FileWatch,
    mut in_force: Vec<CertificateDer<'static>>,
    mut expiry: ExpiryLog,
    publish: &watch::Sender<Arc<rustls::ServerConfig>>,
    asked: &mpsc::Receiver<()>,
) {
    loop {
        let at_once = match asked.recv_timeout(LOOK_EVERY) {
            Ok(()) => true,
            Err(mpsc::RecvTimeoutError::Timeout) => false,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        if files.look(at_once) {
            match settings.load(in_force.first()) {
                Ok(loaded) => {
                    let Loaded {
                        authorities,
                        config,
                        chain,
                    } = loaded;
                    publish.send_replace(config);
                    expiry.took(&chain);
                    in_force = chain;
                    tracing::info!(
                        "new certificates of the client port are in force for new connections; authorities in client.ca, all of \
                         them trusted: {authorities}"
                    );
                }
                Err(error) => {
                    files.failed();
                    tracing::error!(
                        "the certificates of the client port changed and cannot be used; the old ones stay: {error}"
                    );
                }
            }
        }
        expiry.look(clock::unix_time().as_secs());
    }
}

impl ClientTlsSettings {
    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.cert.clone(), self.key.clone()];
        if let Some(clients) = &self.clients {
            files.push(clients.ca.clone());
            files.extend(clients.crl.clone());
        }
        files
    }

    /// Reads the files; `in_force` is the certificate that they would replace.
    fn load(&self, in_force: Option<&CertificateDer<'_>>) -> Result<Loaded, TlsError> {
        let own = OwnFiles {
            shown_to: ShownTo::Clients,
            cert: &self.cert,
            key: &self.key,
            refuse_readable_key: self.refuse_readable_keys,
        };
        own.check(in_force)?;
        let chain = certificates(&self.cert).map_err(TlsError::in_setting("client.cert"))?;
        let key = private_key(&self.key).map_err(TlsError::in_setting("client.key"))?;
        let rejected = |source| TlsError::Rejected {
            path: self.cert.clone(),
            source,
        };
        let provider = Arc::new(self.provider());
        self.check_suites(&provider, &key)?;
        let versions = [(self.tls13, &TLS13), (self.tls12, &TLS12)];
        let versions: Vec<_> = versions
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, it)| it)
            .collect();
        let builder = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(rejected)?;
        let (builder, authorities) = match &self.clients {
            Some(clients) => {
                let (verifier, authorities) = clients.verifier()?;
                (builder.with_client_cert_verifier(verifier), authorities)
            }
            None => (builder.with_no_client_auth(), 0),
        };
        let mut config = builder
            .with_single_cert(chain.clone(), key)
            .map_err(rejected)?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Loaded {
            authorities,
            config: Arc::new(config),
            chain,
        })
    }

    /// Refuses a key with which no suite can be used. Those of TLS 1.3 take any.
    fn check_suites(
        &self,
        provider: &CryptoProvider,
        key: &PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let rejected = |source| TlsError::Rejected {
            path: self.cert.clone(),
            source,
        };
        let key = provider.key_provider.load_private_key(key.clone_key());
        let key = key.map_err(rejected)?;
        let fits = |suite: &SupportedCipherSuite| match suite {
            SupportedCipherSuite::Tls12(suite) => key.choose_scheme(suite.sign).is_some(),
            SupportedCipherSuite::Tls13(_) => true,
        };
        if provider.cipher_suites.iter().any(fits) {
            return Ok(());
        }
        let (kind, start) = match key.algorithm() {
            SignatureAlgorithm::RSA => ("RSA", "TLS_ECDHE_RSA_"),
            SignatureAlgorithm::ECDSA => ("ECDSA", "TLS_ECDHE_ECDSA_"),
            _ => ("Ed25519", "TLS_ECDHE_ECDSA_"),
        };
        Err(TlsError::in_setting("tls.cipher_suites")(TlsError::Pem {
            path: self.cert.clone(),
            problem: format!(
                "no client could connect: the certificate's key is {kind}, and none of {} can be used with it. Add a suite that \
                 begins with {start}, set tls.max_version to 1.3, or give a certificate of the other kind",
                self.suites.join(", ")
            ),
        }))
    }

    fn provider(&self) -> CryptoProvider {
        let mut provider = CryptoProvider::clone(&provider());
        let asked = |suite: &SupportedCipherSuite| {
            iana_name(suite.suite())
                .is_some_and(|name| self.suites.iter().any(|asked| *asked == name))
        };
        provider.cipher_suites.retain(asked);
        provider
    }
}

impl ClientChecks {
    /// What checks them, and how many authorities it trusts.
    fn verifier(&self) -> Result<(Arc<dyn ClientCertVerifier>, usize), TlsError> {
        let of_ca = TlsError::in_setting("client.ca");
        let (certificates, roots) = authorities(&self.ca).map_err(&of_ca)?;
        let revoked = Revoked::load(self.crl.as_deref(), &certificates);
        let revoked = revoked.map_err(TlsError::in_setting("client.crl"))?;
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        let builder = if self.required {
            builder
        } else {
            builder.allow_unauthenticated()
        };
        let signed = builder.build().map_err(|error| {
            of_ca(TlsError::Authority {
                path: self.ca.clone(),
                problem: error.to_string(),
            })
        })?;
        let verifier = Arc::new(NamedVerifier {
            signed,
            revoked,
            allowed: self.allowed.clone(),
        });
        Ok((verifier, certificates.len()))
    }
}

/// IANA's name of a suite; the TLS library has its own for those of TLS 1.3.
fn iana_name(suite: CipherSuite) -> Option<String> {
    let name = suite.as_str()?;
    Some(match name.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
        SanType, date_time_ymd,
    };
    use rustls::pki_types::UnixTime;
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        path::Path,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tracing::{Event, Level, Subscriber};
    use tracing_subscriber::{
        Layer,
        layer::{Context, SubscriberExt},
    };

    /// A self-signed certificate `NAME.pem` and its key, for a server until `change` says otherwise; it returns the certificate.
    fn make(dir: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) -> String {
        make_with(&KeyPair::generate().unwrap(), dir, name, change)
    }

    fn make_with(
        key: &KeyPair,
        dir: &Path,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> String {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2100, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let made = params.self_signed(key).unwrap();
        let key_file = dir.join(format!("{name}-key.pem"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(dir.join(format!("{name}.pem")), made.pem()).unwrap();
        made.pem()
    }

    fn settings(dir: &Path, name: &str) -> ClientTlsSettings {
        ClientTlsSettings {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}-key.pem")),
            clients: None,
            tls12: true,
            tls13: true,
            suites: crate::config::SUITES.to_vec(),
            refuse_readable_keys: true,
        }
    }

    fn ended(params: &mut CertificateParams) {
        params.not_after = date_time_ymd(2021, 1, 1);
    }

    fn early(params: &mut CertificateParams) {
        params.not_before = date_time_ymd(2099, 1, 1);
    }

    /// Counts errors in the log.
    struct Errors(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Errors {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            if *event.metadata().level() == Level::ERROR {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn each_signal_reads_files_again_that_could_not_be_used() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        make(dir, "own", |_| {});
        let settings = settings(dir, "own");
        let files = FileWatch::new(settings.files());
        let Loaded { config, chain, .. } = settings.load(None).unwrap();
        let expiry = ExpiryLog::new("a certificate", &settings.cert);
        let (publish, _newest) = watch::channel(config);
        let (look, asked) = mpsc::sync_channel(3);
        for _ in 0..3 {
            look.send(()).unwrap();
        }
        drop(look);
        fs::write(&settings.cert, "broken").unwrap();
        let errors = Arc::new(AtomicUsize::new(0));
        let log = tracing_subscriber::registry().with(Errors(errors.clone()));
        tracing::subscriber::with_default(log, || {
            keep(&settings, files, chain, expiry, &publish, &asked);
        });
        assert_eq!(errors.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn dates_do_not_stop_a_start() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        make(dir, "ended", ended);
        make(dir, "early", early);
        let own = make(dir, "crossed", |_| {});
        let extra = make(dir, "extra", ended);
        fs::write(dir.join("crossed.pem"), own + &extra).unwrap();
        for name in ["ended", "early", "crossed"] {
            let opened = ClientTls::open(settings(dir, name));
            opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// The libraries here make no RSA keys.
    fn rsa_key() -> KeyPair {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["genpkey", "-quiet", "-algorithm", "RSA"]);
        let made = openssl.output().expect("openssl is there");
        assert!(made.status.success(), "{made:?}");
        KeyPair::from_pem(str::from_utf8(&made.stdout).unwrap()).unwrap()
    }

    #[test]
    fn suites_that_no_client_could_use_with_the_certificate_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let only = |kind: &str| {
            let mut settings = settings(dir, "own");
            settings.tls13 = false;
            let start = format!("TLS_ECDHE_{kind}_");
            settings.suites.retain(|suite| suite.starts_with(&start));
            settings
        };
        for (key, kind, other) in [
            (KeyPair::generate().unwrap(), "ECDSA", "RSA"),
            (
                KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(),
                "Ed25519",
                "RSA",
            ),
            (rsa_key(), "RSA", "ECDSA"),
        ] {
            make_with(&key, dir, "own", |_| {});
            let wrong = only(other);
            let error = wrong.load(None).map(drop).unwrap_err().to_string();
            for part in [
                "tls.cipher_suites: ".to_owned(),
                format!(
                    "the certificate's key is {kind}, and none of {}",
                    wrong.suites.join(", ")
                ),
            ] {
                assert!(error.contains(&part), "{error}");
            }
            let fitting = only(if kind == "RSA" { "RSA" } else { "ECDSA" });
            fitting.load(None).map(drop).unwrap();
            let mut newest = wrong;
            newest.tls13 = true;
            newest.suites.push("TLS_AES_128_GCM_SHA256");
            newest.load(None).map(drop).unwrap();
        }
    }

    #[test]
    fn a_certificate_that_fits_no_suite_does_not_replace_one_that_does() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        make(dir, "own", |_| {});
        let mut settings = settings(dir, "own");
        settings.tls13 = false;
        settings.suites.retain(|suite| suite.contains("ECDSA"));
        let files = FileWatch::new(settings.files());
        let Loaded { config, chain, .. } = settings.load(None).unwrap();
        let before = Arc::clone(&config);
        let expiry = ExpiryLog::new("the certificate", &settings.cert);
        let (publish, newest) = watch::channel(config);
        make_with(&rsa_key(), dir, "own", |_| {});
        let (look, asked) = mpsc::sync_channel(1);
        look.send(()).unwrap();
        drop(look);
        let errors = Arc::new(AtomicUsize::new(0));
        let log = tracing_subscriber::registry().with(Errors(Arc::clone(&errors)));
        tracing::subscriber::with_default(log, || {
            keep(&settings, files, chain, expiry, &publish, &asked);
        });
        assert_eq!(errors.load(Ordering::Relaxed), 1, "it is said");
        assert!(Arc::ptr_eq(&newest.borrow(), &before), "the old one stays");
    }

    #[test]
    fn what_clients_may_take_does_not_stop_a_start() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        make(dir, "authority", |params| {
            params.extended_key_usages = Vec::new();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        });
        make(dir, "any", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        });
        make(dir, "member", |params| {
            let uri = "quorate://member/n1".try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
            let client = ExtendedKeyUsagePurpose::ClientAuth;
            params.extended_key_usages.push(client);
        });
        for name in ["authority", "any", "member"] {
            let opened = ClientTls::open(settings(dir, name));
            opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        make(dir, "user", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        });
        let refused = |settings| ClientTls::open(settings).unwrap_err().to_string();
        let error = refused(settings(dir, "user"));
        assert!(error.contains("it is a client's certificate"), "{error}");
        let mut mixed = settings(dir, "any");
        mixed.key = settings(dir, "member").key;
        let error = refused(mixed);
        assert!(error.contains("it is not the key of"), "{error}");
    }

    /// What the log says of a client that shows this certificate, where `ca` are the authorities.
    fn refusal(ca: &Path, own: &CertificateDer<'_>) -> String {
        let checks = ClientChecks {
            ca: ca.to_owned(),
            crl: None,
            required: true,
            are_users: false,
            allowed: AllowedNames::default(),
        };
        let now = UnixTime::since_unix_epoch(clock::unix_time());
        let verified = checks
            .verifier()
            .unwrap()
            .0
            .verify_client_cert(own, &[], now);
        crate::tls::reason(&verified.expect_err("it is refused"))
    }

    #[test]
    fn clients_certificates_that_etcd_takes_are_refused_with_the_remedy() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let key = KeyPair::generate().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let made = authority.self_signed(&key).unwrap();
        let ca = dir.join("ca.pem");
        fs::write(&ca, made.pem()).unwrap();
        let remedy = "make one with `quorate cert`";
        let text = refusal(&ca, made.der());
        assert!(text.contains("CA:TRUE") && text.contains(remedy), "{text}");
        let issuer = Issuer::new(authority, &key);
        let of_client = |usages| {
            let key = KeyPair::generate().unwrap();
            let mut client = CertificateParams::new(Vec::new()).unwrap();
            client.extended_key_usages = usages;
            client.signed_by(&key, &issuer).unwrap()
        };
        let any = of_client(vec![ExtendedKeyUsagePurpose::Any]);
        let text = refusal(&ca, any.der());
        assert!(
            text.contains("anyExtendedKeyUsage") && text.contains(remedy),
            "{text}"
        );
        let server = of_client(vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let text = refusal(&ca, server.der());
        assert!(text.contains("of another kind"), "{text}");
    }

    #[test]
    fn the_names_of_suites_are_those_that_can_be_set() {
        let suites = &provider().cipher_suites;
        let names = suites.iter().map(|suite| iana_name(suite.suite()).unwrap());
        assert_eq!(names.collect::<Vec<_>>(), crate::config::SUITES);
    }
}
