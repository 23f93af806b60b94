//! TLS to the servers, as etcdctl has it: `--cacert`, and `--cert` with `--key` for mutual TLS.
//!
//! No session is resumed, as with clients in Go by default: each connection costs the server a whole handshake.

use super::{BenchError, args::BenchArgs};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use std::{fmt::Display, io, path::Path, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The one protocol that gRPC takes.
const HTTP2: &[u8] = b"h2";

/// What all TLS connections use; `None` without `--cacert`.
pub(super) fn config(args: &BenchArgs) -> Result<Option<Arc<ClientConfig>>, BenchError> {
    let Some(authority) = &args.cacert else {
        return match (&args.cert, &args.key) {
            (None, None) => Ok(None),
            _ => Err(argument("--cert and --key need --cacert FILE too".into())),
        };
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("cacert", authority)? {
        let added = roots.add(certificate);
        added.map_err(|error| bad_file("cacert", authority, &error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| argument(error.to_string()))?
        .with_root_certificates(roots);
    let mut config = match (&args.cert, &args.key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates("cert", cert)?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|error| bad_file("key", key, &error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad_file("cert", cert, &error))?
        }
        (Some(_), None) => return Err(argument("--cert needs --key FILE too".into())),
        (None, Some(_)) => return Err(argument("--key needs --cert FILE too".into())),
    };
    config.alpn_protocols = vec![HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Some(Arc::new(config)))
}

pub(super) async fn secure(
    config: &Arc<ClientConfig>,
    server: ServerName<'static>,
    socket: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(server, socket).await?;
    match stream.get_ref().1.alpn_protocol() {
        Some(HTTP2) => Ok(stream),
        Some(_) | None => Err(io::Error::other("the server does not offer HTTP/2 (ALPN)")),
    }
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, BenchError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found: Vec<_> = found.map_err(|error| bad_file(flag, path, &error))?;
    if found.is_empty() {
        return Err(bad_file(flag, path, &"there is no certificate in it"));
    }
    Ok(found)
}

fn bad_file(flag: &str, path: &Path, why: &dyn Display) -> BenchError {
    argument(format!("--{flag} {}: {why}", path.display()))
}

fn argument(text: String) -> BenchError {
    BenchError::Argument(text)
}
