//! gRPC calls straight on the `h2` crate, over TCP, plain or with TLS.
//!
//! A call costs one HTTP/2 stream and no more: the request head is cloned from a template, the body is bytes
//! the caller encoded, and the reply is handed over as it came in. It never retries and never reconnects: a
//! load generator must show failures, not hide them.
//!
//! The reader of gRPC's frames is its own, not the server's: this crate uses nothing of the library and sees a server as any
//! client does, so that an error in the server's framing shows here instead of cancelling out. It also needs less, since it never
//! sends or accepts compressed messages.

use super::{BenchError, args::Settings, tls, wire::PREFIX_BYTES};
use bytes::{Buf, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, HeaderValue, Request, header};
use std::{future::poll_fn, io, net::SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// HTTP/2 flow control: the bytes a server may send on one stream before we extend its window. A scan of 1000 keys of 1 KiB
/// fits many times.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
/// The same for all streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// The largest reply that is taken: clients of etcd take up to 2 GiB, no workload here asks for a tenth.
const REPLY_BYTES_MAX: usize = 256 << 20;

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered with a gRPC status other than OK.
    #[error("grpc status {code}: {text}")]
    Status { code: String, text: String },
    /// The connection failed; no later call on it can succeed.
    #[error("connection: {0}")]
    Connection(#[from] h2::Error),
    /// The answer is not what the protocol promises.
    #[error("answer: {0}")]
    Answer(&'static str),
    /// The answer is not a well-formed message.
    #[error(transparent)]
    Wire(#[from] super::wire::WireError),
    /// The server answered OK, but the answer cannot be right.
    #[error("wrong answer: {0}")]
    Wrong(String),
}

impl CallError {
    /// Whether later calls on the same connection may succeed.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Connection(_))
    }
}

/// The calls the load generator makes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    Range,
    Put,
    Txn,
    LeaseGrant,
    LeaseKeepAlive,
    Watch,
    Authenticate,
    AuthEnable,
    UserAdd,
    UserGrantRole,
    RoleAdd,
    RoleGrantPermission,
}

impl Method {
    const ALL: [Self; 12] = [
        Self::Range,
        Self::Put,
        Self::Txn,
        Self::LeaseGrant,
        Self::LeaseKeepAlive,
        Self::Watch,
        Self::Authenticate,
        Self::AuthEnable,
        Self::UserAdd,
        Self::UserGrantRole,
        Self::RoleAdd,
        Self::RoleGrantPermission,
    ];

    fn path(self) -> &'static str {
        match self {
            Self::Range => "/etcdserverpb.KV/Range",
            Self::Put => "/etcdserverpb.KV/Put",
            Self::Txn => "/etcdserverpb.KV/Txn",
            Self::LeaseGrant => "/etcdserverpb.Lease/LeaseGrant",
            Self::LeaseKeepAlive => "/etcdserverpb.Lease/LeaseKeepAlive",
            Self::Watch => "/etcdserverpb.Watch/Watch",
            Self::Authenticate => "/etcdserverpb.Auth/Authenticate",
            Self::AuthEnable => "/etcdserverpb.Auth/AuthEnable",
            Self::UserAdd => "/etcdserverpb.Auth/UserAdd",
            Self::UserGrantRole => "/etcdserverpb.Auth/UserGrantRole",
            Self::RoleAdd => "/etcdserverpb.Auth/RoleAdd",
            Self::RoleGrantPermission => "/etcdserverpb.Auth/RoleGrantPermission",
        }
    }
}

/// One connection's sending side. Clones share the connection.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    sender: SendRequest<Bytes>,
    heads: [Request<()>; Method::ALL.len()],
}

impl Channel {
    /// Makes connection number `connection`, whose calls carry the token of the settings. A task on the current `LocalSet` drives
    /// it, until its last channel is dropped.
    pub(super) async fn connect(
        settings: &Settings,
        connection: usize,
    ) -> Result<Self, BenchError> {
        let endpoint = settings.endpoint(connection);
        let address = endpoint.address;
        let failed = |cause| BenchError::Connect { address, cause };
        let socket = TcpStream::connect(address).await.map_err(failed)?;
        socket.set_nodelay(true).map_err(failed)?;
        let (sender, scheme) = match (&endpoint.tls_name, &settings.tls) {
            (Some(name), Some(config)) => {
                let secured = tls::secure(config, name.clone(), socket).await;
                (start(secured.map_err(failed)?).await, "https")
            }
            (Some(_) | None, _) => (start(socket).await, "http"),
        };
        let token = settings.token.as_ref();
        Ok(Self {
            sender: sender.map_err(failed)?,
            heads: Method::ALL.map(|method| head(scheme, address, method, token)),
        })
    }

    async fn open(&mut self, method: Method) -> Result<Call, CallError> {
        poll_fn(|cx| self.sender.poll_ready(cx)).await?;
        let head = self.heads[method as usize].clone();
        let (response, send) = self.sender.send_request(head, false)?;
        Ok(Call { response, send })
    }

    /// Makes a unary call and returns the reply's message.
    pub(super) async fn unary(&mut self, method: Method, body: Bytes) -> Result<Bytes, CallError> {
        let mut reply = Reply::Whole(Bytes::new());
        self.exchange(method, body, |chunk| reply.push(chunk))
            .await?;
        let mut reply = match reply {
            Reply::Whole(bytes) => bytes,
            Reply::Parts(bytes) => bytes.freeze(),
        };
        match message_bytes(&reply)? {
            Some(length) if length + PREFIX_BYTES == reply.len() => {
                reply.advance(PREFIX_BYTES);
                Ok(reply)
            }
            Some(_) | None => Err(CallError::Answer("not exactly one whole message")),
        }
    }

    /// Makes a unary call, and returns only how long the reply's message is.
    pub(super) async fn unary_length(
        &mut self,
        method: Method,
        body: Bytes,
    ) -> Result<usize, CallError> {
        let mut length = 0;
        let mut declared = None;
        self.exchange(method, body, |chunk| {
            if length == 0 {
                declared = message_bytes(&chunk)?;
            }
            length += chunk.len();
            Ok(())
        })
        .await?;
        match declared {
            Some(bytes) if bytes + PREFIX_BYTES == length => Ok(bytes),
            Some(_) | None => Err(CallError::Answer("not exactly one whole message")),
        }
    }

    async fn exchange(
        &mut self,
        method: Method,
        body: Bytes,
        mut each: impl FnMut(Bytes) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let mut call = self.open(method).await?;
        call.send.send_data(body, true)?;
        let (head, mut body) = call.response.await?.into_parts();
        check_head(head.status, &head.headers)?;
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            each(chunk)?;
        }
        match body.trailers().await? {
            Some(trailers) => check_status(&trailers),
            None => Err(CallError::Answer("no trailers, so no status")),
        }
    }

    /// Opens a stream that both sides may send on.
    pub(super) async fn stream(&mut self, method: Method) -> Result<Stream, CallError> {
        let Call { response, send } = self.open(method).await?;
        let receive = Receive::Waiting(response);
        Ok(Stream {
            send,
            receive,
            chunk: Bytes::new(),
            partial: BytesMut::new(),
        })
    }
}

/// Begins HTTP/2.
async fn start<T>(socket: T) -> io::Result<SendRequest<Bytes>>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .enable_push(false)
        .handshake(socket)
        .await
        .map_err(io::Error::other)?;
    // Every call on the connection fails with the connection's error, so nothing needs this task's result.
    drop(tokio::task::spawn_local(connection));
    Ok(sender)
}

struct Call {
    response: ResponseFuture,
    send: h2::SendStream<Bytes>,
}

/// A reply as it comes in: nearly always in one chunk, which is then not copied.
enum Reply {
    Whole(Bytes),
    Parts(BytesMut),
}

impl Reply {
    fn push(&mut self, chunk: Bytes) -> Result<(), CallError> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => *bytes = chunk,
            Self::Whole(bytes) => {
                let mut parts = BytesMut::from(&bytes[..]);
                parts.extend_from_slice(&chunk);
                *self = Self::Parts(parts);
            }
            Self::Parts(parts) if parts.len() + chunk.len() > REPLY_BYTES_MAX => {
                return Err(CallError::Answer("larger than this program takes"));
            }
            Self::Parts(parts) => parts.extend_from_slice(&chunk),
        }
        Ok(())
    }
}

/// A stream of messages in both directions.
pub(super) struct Stream {
    send: h2::SendStream<Bytes>,
    receive: Receive,
    chunk: Bytes,
    partial: BytesMut,
}

enum Receive {
    /// The server sends its head together with its first message.
    Waiting(ResponseFuture),
    Open(h2::RecvStream),
}

impl Stream {
    pub(super) fn send(&mut self, message: Bytes) -> Result<(), CallError> {
        Ok(self.send.send_data(message, false)?)
    }

    /// The next message. The streams here end only by failure, so their end is an error.
    pub(super) async fn next(&mut self) -> Result<Bytes, CallError> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    /// Splits off a whole message, if one is there. One that spans chunks is gathered in `partial`.
    fn take(&mut self) -> Result<Option<Bytes>, CallError> {
        if self.partial.is_empty() {
            if let Some(length) = message_bytes(&self.chunk)?
                && self.chunk.len() >= length + PREFIX_BYTES
            {
                self.chunk.advance(PREFIX_BYTES);
                return Ok(Some(self.chunk.split_to(length)));
            }
            if self.chunk.is_empty() {
                return Ok(None);
            }
        }
        self.partial.extend_from_slice(&self.chunk);
        self.chunk.clear();
        let Some(length) = message_bytes(&self.partial)? else {
            return Ok(None);
        };
        if self.partial.len() < length + PREFIX_BYTES {
            self.partial
                .reserve(length + PREFIX_BYTES - self.partial.len());
            return Ok(None);
        }
        let mut message = self.partial.split_to(length + PREFIX_BYTES).freeze();
        message.advance(PREFIX_BYTES);
        // The rest becomes the current chunk again, so that the messages in it are not copied once more.
        self.chunk = std::mem::take(&mut self.partial).freeze();
        Ok(Some(message))
    }

    async fn receive(&mut self) -> Result<(), CallError> {
        if let Receive::Waiting(response) = &mut self.receive {
            let (head, body) = response.await?.into_parts();
            check_head(head.status, &head.headers)?;
            self.receive = Receive::Open(body);
        }
        let Receive::Open(body) = &mut self.receive else {
            unreachable!("the head was awaited above");
        };
        if let Some(chunk) = body.data().await {
            assert!(
                self.chunk.is_empty(),
                "a chunk is used up before the next one is asked for"
            );
            self.chunk = chunk?;
            body.flow_control().release_capacity(self.chunk.len())?;
            return Ok(());
        }
        if let Some(trailers) = body.trailers().await? {
            check_status(&trailers)?;
        }
        Err(CallError::Answer("the server ended the stream"))
    }
}

fn head(
    scheme: &str,
    address: SocketAddr,
    method: Method,
    token: Option<&HeaderValue>,
) -> Request<()> {
    let mut head = Request::post(format!("{scheme}://{address}{}", method.path()))
        .version(http::Version::HTTP_2)
        .header(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        )
        .header(header::TE, HeaderValue::from_static("trailers"))
        .body(())
        .expect("a socket address and a fixed path make a valid URI");
    if let Some(token) = token {
        head.headers_mut().insert("token", token.clone());
    }
    head
}

/// The length of the message that starts here; `None` while its prefix is not whole.
fn message_bytes(chunk: &[u8]) -> Result<Option<usize>, CallError> {
    let Some((prefix, _)) = chunk.split_first_chunk::<PREFIX_BYTES>() else {
        return Ok(None);
    };
    let [compressed, length @ ..] = *prefix;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(CallError::Answer("compressed, which was not asked for"));
    }
    if length > REPLY_BYTES_MAX {
        return Err(CallError::Answer("larger than this program takes"));
    }
    Ok(Some(length))
}

fn check_head(status: http::StatusCode, headers: &HeaderMap) -> Result<(), CallError> {
    if status != http::StatusCode::OK {
        return Err(CallError::Status {
            code: status.to_string(),
            text: "HTTP status".into(),
        });
    }
    // An error without a message comes as a head alone.
    if headers.contains_key("grpc-status") {
        check_status(headers)
    } else {
        Ok(())
    }
}

fn check_status(trailers: &HeaderMap) -> Result<(), CallError> {
    let text = |name| {
        let value = trailers
            .get(name)
            .map(HeaderValue::as_bytes)
            .unwrap_or_default();
        String::from_utf8_lossy(value).into_owned()
    };
    match trailers.get("grpc-status").map(HeaderValue::as_bytes) {
        Some(b"0") => Ok(()),
        Some(_) => Err(CallError::Status {
            code: text("grpc-status"),
            text: text("grpc-message"),
        }),
        None => Err(CallError::Answer("no grpc-status in the trailers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_other_than_zero_is_an_error_with_its_text() {
        let mut trailers = HeaderMap::new();
        let missing = check_status(&trailers).unwrap_err();
        assert!(
            matches!(missing, CallError::Answer(_)),
            "no status is no success: {missing}"
        );
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        assert!(check_status(&trailers).is_ok(), "zero is success");
        trailers.insert("grpc-status", HeaderValue::from_static("14"));
        trailers.insert(
            "grpc-message",
            HeaderValue::from_static("etcdserver: no leader"),
        );
        let error = check_status(&trailers).unwrap_err().to_string();
        assert_eq!(
            error, "grpc status 14: etcdserver: no leader",
            "code and text"
        );
    }

    #[test]
    fn a_head_without_body_may_carry_the_status() {
        let mut headers = HeaderMap::new();
        assert!(
            check_head(http::StatusCode::OK, &headers).is_ok(),
            "the status comes later"
        );
        headers.insert("grpc-status", HeaderValue::from_static("12"));
        assert!(
            check_head(http::StatusCode::OK, &headers).is_err(),
            "trailers-only error"
        );
        assert!(
            check_head(http::StatusCode::NOT_FOUND, &HeaderMap::new()).is_err(),
            "HTTP error"
        );
    }

    #[test]
    fn a_prefix_is_checked() {
        assert!(
            matches!(message_bytes(b"\0\0\0\0"), Ok(None)),
            "prefix not whole"
        );
        assert!(
            matches!(message_bytes(b"\0\0\0\x01\x02x"), Ok(Some(258))),
            "big-endian length"
        );
        assert!(message_bytes(b"\x01\0\0\0\x01x").is_err(), "compressed");
        assert!(message_bytes(b"\0\xff\xff\xff\xff").is_err(), "4 GiB");
    }

    #[test]
    fn a_reply_in_parts_is_joined() {
        let mut reply = Reply::Whole(Bytes::new());
        for part in [&b"ab"[..], b"cd", b"ef"] {
            reply.push(Bytes::copy_from_slice(part)).unwrap();
        }
        let Reply::Parts(joined) = reply else {
            panic!("three parts cannot be one chunk")
        };
        assert_eq!(&joined[..], b"abcdef", "in order");
    }
}
