//! A client of the calls that `quorate snapshot save` makes: a login, and the snapshot of one member.

use super::{
    cluster_client::{CallError, PREFIX_BYTES, frame},
    proto::etcdserverpb as pb,
};
use crate::tls::{self, TlsError};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, HeaderValue, Request};
use prost::Message;
use rustls::{ClientConfig, pki_types::ServerName};
use std::{io, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// How long a connection may take, with its handshakes.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a member may send nothing. Before the first byte it reads its whole database once.
const SILENCE_MAX: Duration = Duration::from_mins(10);
/// Bytes that a member may send before they are read.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// The longest message that is read, in bytes; etcd and Quorate send 32 KiB.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// etcd's answer to a login while authentication is off. Its own clients then call without a token.
const AUTH_IS_OFF: &str = "etcdserver: authentication is not enabled";

/// Why a member cannot be asked, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("endpoint {endpoint}: {problem}")]
    Endpoint {
        endpoint: String,
        problem: &'static str,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("no header can carry this token")]
    Token,
    #[error(transparent)]
    Call(#[from] CallError),
}

/// How a member is reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT` or `unix:///PATH`.
    pub endpoint: String,
    /// The authorities that sign the members' certificates (PEM). With them, `HOST:PORT` means TLS.
    pub authorities: Option<PathBuf>,
    /// The certificate that is shown to members, and its private key (PEM).
    pub shown: Option<(PathBuf, PathBuf)>,
}

/// A connection to a member.
#[derive(Debug)]
pub struct SnapshotClient {
    endpoint: String,
    /// The beginning of URIs.
    base: String,
    requests: SendRequest<Bytes>,
    token: Option<HeaderValue>,
}

/// The messages of a snapshot.
#[derive(Debug)]
pub struct SnapshotAnswer(Answer);

#[derive(Debug)]
pub struct SnapshotPiece {
    pub bytes: Bytes,
    /// Bytes of the image, without its hash, that come after this.
    pub left: u64,
    /// The version of the image; empty from an etcd before 3.6.
    pub version: String,
}

enum Place {
    /// Host and port.
    Tcp(String),
    Unix(PathBuf),
}

struct Route {
    place: Place,
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl SnapshotClient {
    pub async fn connect(access: &Access) -> Result<Self, ClientError> {
        let route = access.route()?;
        let endpoint = access.endpoint.clone();
        let connecting = async {
            let socket = route.connect().await.map_err(|source| CallError::Connect {
                address: endpoint.clone(),
                source,
            })?;
            Builder::new()
                .initial_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .handshake(socket)
                .await
                .map_err(|source| broken(&endpoint, source))
        };
        let connected = timeout(CONNECT_MAX, connecting).await;
        let (requests, connection) =
            connected.map_err(|_| CallError::Silent(endpoint.clone()))??;
        // It ends with the client. Calls report its errors.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self {
            endpoint,
            base: route.base(),
            requests,
            token: None,
        })
    }

    /// Makes further calls on behalf of a user; without effect while authentication is off.
    pub async fn log_in(&mut self, name: &str, password: &str) -> Result<(), ClientError> {
        let request = pb::AuthenticateRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        let mut answer = self
            .call("etcdserverpb.Auth/Authenticate", &request)
            .await?;
        let message = match answer.message().await {
            Err(CallError::Refused(text)) if text == AUTH_IS_OFF => return Ok(()),
            message => message?,
        };
        let garbled = || CallError::Garbled(self.endpoint.clone());
        let message = message.ok_or_else(garbled)?;
        let reply = pb::AuthenticateResponse::decode(message).map_err(|_| garbled())?;
        self.use_token(&reply.token)
    }

    /// Makes further calls with this token.
    pub fn use_token(&mut self, token: &str) -> Result<(), ClientError> {
        let mut token = HeaderValue::from_str(token).map_err(|_| ClientError::Token)?;
        token.set_sensitive(true);
        self.token = Some(token);
        Ok(())
    }

    pub async fn snapshot(&self) -> Result<SnapshotAnswer, ClientError> {
        let path = "etcdserverpb.Maintenance/Snapshot";
        let answer = self.call(path, &pb::SnapshotRequest {}).await?;
        Ok(SnapshotAnswer(answer))
    }

    async fn call(&self, path: &str, request: &impl Message) -> Result<Answer, CallError> {
        let broken = |source| broken(&self.endpoint, source);
        let garbled = || CallError::Garbled(self.endpoint.clone());
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let mut head = Request::post(format!("{}/{path}", self.base))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(token) = &self.token {
            head = head.header("token", token.clone());
        }
        let head = head.body(()).map_err(|_| garbled())?;
        let (response, mut body) = requests.send_request(head, false).map_err(broken)?;
        body.send_data(frame(request), true).map_err(broken)?;
        let response = timeout(SILENCE_MAX, response).await;
        let response = response.map_err(|_| CallError::Silent(self.endpoint.clone()))?;
        let (head, body) = response.map_err(broken)?.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(garbled());
        }
        Ok(Answer {
            endpoint: self.endpoint.clone(),
            head: head.headers,
            body,
            received: BytesMut::new(),
        })
    }
}

impl SnapshotAnswer {
    /// The next message; `None` once the member says that this was all.
    pub async fn next(&mut self) -> Result<Option<SnapshotPiece>, ClientError> {
        let Some(message) = self.0.message().await? else {
            return Ok(None);
        };
        let garbled = || CallError::Garbled(self.0.endpoint.clone());
        let message = pb::SnapshotResponse::decode(message).map_err(|_| garbled())?;
        Ok(Some(SnapshotPiece {
            bytes: message.blob,
            left: message.remaining_bytes,
            version: message.version,
        }))
    }
}

/// The messages of a call, and how it ended.
#[derive(Debug)]
struct Answer {
    endpoint: String,
    head: HeaderMap,
    body: RecvStream,
    /// The beginning of the next message.
    received: BytesMut,
}

impl Answer {
    /// The next message; `None` at the end of a call that succeeded.
    async fn message(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let data = timeout(SILENCE_MAX, self.body.data()).await;
            let data = data.map_err(|_| CallError::Silent(self.endpoint.clone()))?;
            let Some(data) = data else {
                self.end().await?;
                if self.received.is_empty() {
                    return Ok(None);
                }
                return Err(self.garbled());
            };
            let data = data.map_err(|source| broken(&self.endpoint, source))?;
            let released = self.body.flow_control().release_capacity(data.len());
            released.map_err(|source| broken(&self.endpoint, source))?;
            self.received.put(data);
        }
    }

    /// Takes a message that has arrived as a whole.
    fn take(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some(prefix) = self.received.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [is_compressed, length @ ..] = *prefix;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if is_compressed != 0 || length > MESSAGE_BYTES_MAX {
            return Err(self.garbled());
        }
        if self.received.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.received.advance(PREFIX_BYTES);
        Ok(Some(self.received.split_to(length).freeze()))
    }

    /// Reads how the call ended.
    async fn end(&mut self) -> Result<(), CallError> {
        let trailers = timeout(SILENCE_MAX, self.body.trailers()).await;
        let trailers = trailers.map_err(|_| CallError::Silent(self.endpoint.clone()))?;
        let trailers = trailers.map_err(|source| broken(&self.endpoint, source))?;
        // A response that is an error and has no message has its status in the headers.
        let fields = trailers.as_ref().unwrap_or(&self.head);
        let text = |name: &'static str| fields.get(name).and_then(|value| value.to_str().ok());
        match text("grpc-status") {
            Some("0") => Ok(()),
            Some(_) => Err(CallError::Refused(
                text("grpc-message").unwrap_or_default().to_owned(),
            )),
            None => Err(self.garbled()),
        }
    }

    fn garbled(&self) -> CallError {
        CallError::Garbled(self.endpoint.clone())
    }
}

fn broken(endpoint: &str, source: h2::Error) -> CallError {
    CallError::Broken {
        address: endpoint.to_owned(),
        source,
    }
}

impl Access {
    fn bad(&self, problem: &'static str) -> ClientError {
        ClientError::Endpoint {
            endpoint: self.endpoint.clone(),
            problem,
        }
    }

    fn route(&self) -> Result<Route, ClientError> {
        if let Some(path) = self.endpoint.strip_prefix("unix://") {
            return Ok(Route {
                place: Place::Unix(path.into()),
                tls: None,
            });
        }
        let secure = self.endpoint.strip_prefix("https://");
        let plain = self.endpoint.strip_prefix("http://");
        let rest = secure.or(plain).unwrap_or(&self.endpoint);
        let address = rest.strip_suffix('/').unwrap_or(rest);
        let host = address.rsplit_once(':').and_then(|(host, port)| {
            let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
            (is_port && !host.is_empty() && !host.contains('/')).then_some(host)
        });
        let host = host.ok_or_else(|| {
            self.bad("it must be HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:///PATH")
        })?;
        let wants_tls = secure.is_some() || (plain.is_none() && self.authorities.is_some());
        Ok(Route {
            place: Place::Tcp(address.to_owned()),
            tls: wants_tls.then(|| self.tls(host)).transpose()?,
        })
    }

    fn tls(&self, host: &str) -> Result<(Arc<ClientConfig>, ServerName<'static>), ClientError> {
        let Some(authorities) = &self.authorities else {
            return Err(self.bad("TLS needs --cacert, the authority that signed its certificate"));
        };
        let rejected = |path: &PathBuf| {
            let path = path.clone();
            move |source| TlsError::Rejected { path, source }
        };
        let (_, roots) = tls::authorities(authorities)?;
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(rejected(authorities))?
            .with_root_certificates(roots);
        let mut config = match &self.shown {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(tls::certificates(cert)?, tls::private_key(key)?)
                .map_err(rejected(cert))?,
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| self.bad("its host is neither a name nor an IP address"))?;
        Ok((Arc::new(config), name))
    }
}

impl Route {
    async fn connect(&self) -> io::Result<Box<dyn Io>> {
        let address = match &self.place {
            Place::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await?)),
            Place::Tcp(address) => address,
        };
        let socket = TcpStream::connect(address).await?;
        let Some((config, name)) = &self.tls else {
            return Ok(Box::new(socket));
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let secured = connector.connect(name.clone(), socket).await?;
        Ok(Box::new(secured))
    }

    fn base(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.place {
            Place::Tcp(address) => format!("{scheme}://{address}"),
            Place::Unix(_) => format!("{scheme}://localhost"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(endpoint: &str, authorities: Option<&str>) -> Result<String, ClientError> {
        let access = Access {
            endpoint: endpoint.to_owned(),
            authorities: authorities.map(PathBuf::from),
            shown: None,
        };
        access.route().map(|route| route.base())
    }

    #[test]
    fn endpoints_are_what_other_clients_take() {
        for (endpoint, expected) in [
            ("127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://n1:2379/", "http://n1:2379"),
            ("[::1]:2379", "http://[::1]:2379"),
            ("unix:///run/quorate", "http://localhost"),
        ] {
            assert_eq!(route(endpoint, None).unwrap(), expected);
        }
        let with_file = route("http://n1:2379", Some("/no/such/file")).unwrap();
        assert_eq!(with_file, "http://n1:2379", "the scheme decides");
        for bad in [
            "",
            "n1",
            "n1:0",
            "n1:x",
            ":2379",
            "ftp://n1:2379",
            "https://n1",
        ] {
            let refused = route(bad, None);
            assert!(
                matches!(refused, Err(ClientError::Endpoint { .. })),
                "{bad}"
            );
        }
    }

    #[test]
    fn tls_needs_an_authority() {
        let error = route("https://n1:2379", None).unwrap_err().to_string();
        assert!(error.contains("--cacert"), "{error}");
        for endpoint in ["n1:2379", "https://n1:2379"] {
            let error = route(endpoint, Some("/no/such/file")).unwrap_err();
            assert!(matches!(error, ClientError::Tls(_)), "{error}");
        }
    }
}
