//! Certificates of all kinds, as other tools make them, and a client that shows them.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConnection, RootCertStore, Stream,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// An authority, and the folder for all that it makes.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub(crate) file: PathBuf,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) serial: u64,
}

static SERIAL: AtomicU64 = AtomicU64::new(1_000);

impl Authority {
    pub(crate) fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).unwrap();
        let file = folder.join(format!("{name}.pem"));
        fs::write(&file, cert.pem()).unwrap();
        Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
            file,
        }
    }

    /// A certificate with these names; `change` makes it unusual.
    pub(crate) fn make(
        &self,
        file: &str,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Made {
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name = DistinguishedName::new();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2040, 1, 1);
        change(&mut params);
        let made = params.signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| self.folder.join(format!("{file}{end}"));
        let (cert, key_file) = (path(".pem"), path("-key.pem"));
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::write(&cert, made.pem()).unwrap();
        private(&key_file);
        Made {
            cert,
            key: key_file,
            serial,
        }
    }

    /// For a server of this machine.
    pub(crate) fn server(&self, file: &str) -> Made {
        self.make(file, &["localhost", "127.0.0.1"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        })
    }

    /// For a client who is a user.
    pub(crate) fn client(&self, user: &str) -> Made {
        self.client_with(user, |_| {})
    }

    pub(crate) fn client_with(
        &self,
        user: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Made {
        self.make(&format!("client-{user}"), &[], |params| {
            params.distinguished_name = named(user);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            change(params);
        })
    }

    /// A list of revoked certificates, in PEM and in DER.
    pub(crate) fn revoke(&self, revoked: &[&Made]) -> (String, Vec<u8>) {
        let entry = |made: &&Made| RevokedCertParams {
            serial_number: SerialNumber::from(made.serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2024, 2, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        (list.pem().unwrap(), list.der().to_vec())
    }
}

pub(crate) fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Replaces a file by another one, as a whole.
pub(crate) fn replace(path: &Path, text: impl AsRef<[u8]>) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    private(&new);
    fs::rename(&new, path).unwrap();
}

/// What a client trusts and shows.
#[derive(Clone, Debug)]
pub(crate) struct Shows {
    pub(crate) ca: PathBuf,
    pub(crate) own: Option<Made>,
    pub(crate) tls12_only: bool,
    pub(crate) alpn: Vec<&'static str>,
}

impl Shows {
    pub(crate) fn new(authority: &Authority, own: Option<&Made>) -> Self {
        Self {
            ca: authority.file.clone(),
            own: own.cloned(),
            tls12_only: false,
            alpn: Vec::new(),
        }
    }

    fn config(&self) -> rustls::ClientConfig {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(&self.ca).unwrap() {
            roots.add(cert.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&rustls::SupportedProtocolVersion] = if self.tls12_only {
            &[&rustls::version::TLS12]
        } else {
            rustls::ALL_VERSIONS
        };
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match &self.own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let cert = CertificateDer::from_pem_file(&own.cert).unwrap();
                let key = PrivateKeyDer::from_pem_file(&own.key).unwrap();
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let alpn = self.alpn.iter().map(|name| name.as_bytes().to_vec());
        config.alpn_protocols = alpn.collect();
        config
    }
}

/// What a server answered, and the certificate that it showed.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) server: CertificateDer<'static>,
    pub(crate) suite: String,
}

/// Asks for `/version` over a new connection.
pub(crate) async fn ask(port: u16, shows: &Shows) -> Result<Answer, String> {
    let shows = shows.clone();
    let asking = tokio::task::spawn_blocking(move || ask_blocking(port, &shows));
    asking.await.unwrap()
}

fn ask_blocking(port: u16, shows: &Shows) -> Result<Answer, String> {
    let name = "127.0.0.1".try_into().unwrap();
    let session = ClientConnection::new(Arc::new(shows.config()), name);
    let mut session = session.map_err(|error| error.to_string())?;
    let mut socket = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    let mut stream = Stream::new(&mut session, &mut socket);
    let request = b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let written = stream.write_all(request).map_err(|error| error.to_string());
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    // The server ends the connection after its alert, so that what follows may fail with another error.
    if let Err(error) = &written
        && error.contains("alert")
    {
        return Err(error.clone());
    }
    match read {
        Err(error) if error.kind() != ErrorKind::UnexpectedEof => return Err(error.to_string()),
        Err(_) | Ok(_) => written?,
    }
    let server = session
        .peer_certificates()
        .and_then(|chain| chain.first().cloned());
    let suite = session
        .negotiated_cipher_suite()
        .map(|suite| format!("{:?}", suite.suite()));
    Ok(Answer {
        text,
        server: server
            .ok_or("the server shows no certificate")?
            .into_owned(),
        suite: suite.unwrap_or_default(),
    })
}

/// Ends TLS on a new connection, and sends so many bytes more in the same piece. Gives back the socket, which stays open.
pub(crate) fn close_and_go_on(port: u16, shows: &Shows, bytes: usize) -> TcpStream {
    let name = "127.0.0.1".try_into().unwrap();
    let mut session = ClientConnection::new(Arc::new(shows.config()), name).unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut socket).unwrap();
    }
    session.send_close_notify();
    let mut piece = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut piece).unwrap();
    }
    piece.resize(piece.len() + bytes, 0x17);
    socket.write_all(&piece).unwrap();
    socket
}
