//! gRPC over HTTP/2: from a request's headers and body to a call of [`Api`], and back.
//!
//! Every call is admitted here. The hot ones, in the table in `route`, are answered here as well: their answers are spliced
//! from stored bytes and would have to be copied once more to pass through tonic's encoder. All others go on to
//! [`services`](super::services). HTTP/2 itself is left to whoever calls [`answer`]: any request body will do, so that
//! another transport can come in here.
//!
//! etcd: where the wire is malformed, codes and texts are those of its gRPC library.

use super::{
    Api, Front,
    body::{Body, error_headers},
    kv::{Hot, STREAM_CHUNKS_MAX},
    messages::Messages,
    reply::{Encoded, PREFIX_BYTES},
    status::Status,
};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE, request};
use prost::Message;
use std::{future::poll_fn, pin::Pin, rc::Rc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// The services answered here, as their paths begin.
const THIN: [&str; 2] = ["/etcdserverpb.KV/", "/etcdserverpb.Watch/"];

/// The one call answered here whose requests are a stream.
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// etcd: what a member without a vote answers. Of ranges it serves the serializable ones, which is decided there.
const LEARNER: [&str; 3] = [
    "/etcdserverpb.Maintenance/Status",
    "/etcdserverpb.Maintenance/Snapshot",
    "/etcdserverpb.KV/Range",
];

/// How much of a message that is too large is read over before the client is told.
pub(super) const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Whether a request is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    match kind.strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// Answers a call.
pub async fn answer<B>(front: Rc<Front>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
{
    let answered = match admit(&front.api, request.uri().path(), request.headers()) {
        Ok(deadline) if is_thin(request.uri().path()) => {
            let (parts, body) = request.into_parts();
            let answered = answer_thin(&front.api, &parts, body, deadline).await;
            answered.map(Response::new)
        }
        // Boxed, so that it takes no room in the futures of thin calls.
        Ok(deadline) => Box::pin(front.services.answer(request, deadline)).await,
        Err(status) => Err(status),
    };
    let mut response = answered.unwrap_or_else(|status| {
        let mut response = Response::new(Body::Empty);
        *response.headers_mut() = error_headers(&status);
        response
    });
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn is_thin(path: &str) -> bool {
    THIN.iter().any(|service| path.starts_with(service))
}

async fn answer_thin<B>(
    api: &Rc<Api>,
    parts: &request::Parts,
    mut body: B,
    deadline: Option<Instant>,
) -> Result<Body, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let path = parts.uri.path();
    if path == WATCH {
        let leader_required = requires_leader(&parts.headers);
        return Ok(watch(api.clone(), body, leader_required, deadline));
    }
    let answering = route(api, path, &mut body, deadline);
    match deadline {
        // The call is asked first: one that is answered at once costs no timer.
        Some(deadline) => timeout_at(deadline, answering)
            .await
            .unwrap_or(Err(Status::deadline_exceeded())),
        None => answering.await,
    }
}

/// What the headers ask for, and whether it can be given. Returns the caller's deadline.
pub(super) fn admit(api: &Api, path: &str, headers: &HeaderMap) -> Result<Option<Instant>, Status> {
    if !LEARNER.contains(&path) {
        api.require_vote()?;
    }
    if let Some(encoding) = headers.get("grpc-encoding")
        && encoding != "identity"
    {
        return Err(Status::unknown_encoding(&String::from_utf8_lossy(
            encoding.as_bytes(),
        )));
    }
    if let Some(version) = headers.get("client-api-version")
        && std::str::from_utf8(version.as_bytes()).is_err()
    {
        return Err(Status::invalid_client_version());
    }
    if requires_leader(headers) {
        api.require_leader()?;
    }
    let Some(timeout) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let span = parse_timeout(timeout.as_bytes())
        .ok_or_else(|| Status::malformed_timeout(&String::from_utf8_lossy(timeout.as_bytes())))?;
    // Past what the clock can express there is no deadline.
    Ok(Instant::now().checked_add(span))
}

/// Whether the caller wants no answer from a member that knows no leader.
fn requires_leader(headers: &HeaderMap) -> bool {
    headers
        .get("hasleader")
        .is_some_and(|value| value == "true")
}

/// Any number of messages in, any number out.
fn watch<B>(api: Rc<Api>, body: B, leader_required: bool, deadline: Option<Instant>) -> Body
where
    B: http_body::Body<Data = Bytes> + Unpin + 'static,
{
    let messages = Messages::new(body, api.receive_bytes_max());
    stream(deadline, |out| async move {
        api.watch(messages, leader_required, &out).await
    })
}

/// At most eight digits and a unit.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let well_formed = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    if !well_formed {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(amount * 3600)),
        b'M' => Some(Duration::from_secs(amount * 60)),
        b'S' => Some(Duration::from_secs(amount)),
        b'm' => Some(Duration::from_millis(amount)),
        b'u' => Some(Duration::from_micros(amount)),
        b'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// Every method that is answered here.
async fn route<B>(
    api: &Rc<Api>,
    path: &str,
    body: &mut B,
    deadline: Option<Instant>,
) -> Result<Body, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let max = api.receive_bytes_max();
    if let Some(hot) = Hot::of(path) {
        let message = read_message(body, max).await?;
        return api.call(hot, message).await.map(Body::Message);
    }
    match path {
        "/etcdserverpb.KV/Compact" => unary(body, max, |request| api.compact(request)).await,
        "/etcdserverpb.KV/RangeStream" => {
            let (request, api) = (read(body, max).await?, api.clone());
            Ok(stream(deadline, |out| async move {
                api.range_stream(request, &out).await
            }))
        }
        _ => Err(unknown(path)),
    }
}

/// The refusal of a method that is not in the table, though its service is.
fn unknown(path: &str) -> Status {
    match split_path(path) {
        Ok((service, method)) if is_thin(path) => Status::unknown_method(method, service),
        Ok((service, _)) => Status::unknown_service(service),
        Err(status) => status,
    }
}

/// The service and the method that a path names.
pub(super) fn split_path(path: &str) -> Result<(&str, &str), Status> {
    path.strip_prefix('/')
        .and_then(|rest| rest.rsplit_once('/'))
        .ok_or_else(|| Status::malformed_path(path))
}

/// One message in, one message out.
async fn unary<M, B, F>(body: &mut B, max: usize, call: F) -> Result<Body, Status>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes> + Unpin,
    F: AsyncFnOnce(M) -> Result<Encoded, Status>,
{
    let request = read(body, max).await?;
    call(request).await.map(Body::Message)
}

/// One message in, any number out.
fn stream<F>(
    deadline: Option<Instant>,
    call: impl FnOnce(mpsc::Sender<Result<Encoded, Status>>) -> F,
) -> Body
where
    F: Future<Output = Result<(), Status>> + 'static,
{
    Body::Stream(run(deadline, call))
}

/// Runs a call that gives any number of messages, until it ends, the client loses interest, or the deadline passes.
pub(super) fn run<T, F>(
    deadline: Option<Instant>,
    call: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F,
) -> mpsc::Receiver<Result<T, Status>>
where
    T: 'static,
    F: Future<Output = Result<(), Status>> + 'static,
{
    let (out, messages) = mpsc::channel(STREAM_CHUNKS_MAX);
    let calling = call(out.clone());
    tokio::task::spawn_local(async move {
        let run = async {
            tokio::select! {
                biased;
                ended = calling => ended,
                () = out.closed() => Ok(()),
            }
        };
        let ended = match deadline {
            Some(deadline) => timeout_at(deadline, run)
                .await
                .unwrap_or(Err(Status::deadline_exceeded())),
            None => run.await,
        };
        if let Err(status) = ended {
            // A client that has gone needs no status.
            drop(out.send(Err(status)).await);
        }
    });
    messages
}

/// Reads and decodes a request.
async fn read<M, B>(body: &mut B, max: usize) -> Result<M, Status>
where
    M: Message + Default,
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let message = read_message(body, max).await?;
    M::decode(message).map_err(|error| Status::malformed_message(&error))
}

/// Reads one gRPC message of at most `max` bytes. If it arrived in one piece, it shares the transport's buffer.
pub async fn read_message<B>(body: &mut B, max: usize) -> Result<Bytes, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut received = next_data(body).await?.ok_or_else(Status::no_message)?;
    while received.len() < PREFIX_BYTES {
        let more = next_data(body).await?.ok_or_else(Status::cut_message)?;
        received = [received, more].concat().into();
    }
    let len = message_len(&mut received)?;
    if len > max {
        discard(body, len.saturating_sub(received.len())).await?;
        return Err(Status::received_too_large(len, max));
    }
    if received.len() >= len {
        return Ok(received.split_to(len));
    }
    let mut message = BytesMut::with_capacity(len);
    message.extend_from_slice(&received);
    while message.len() < len {
        let more = next_data(body).await?.ok_or_else(Status::cut_message)?;
        message.extend_from_slice(&more[..more.len().min(len - message.len())]);
    }
    Ok(message.freeze())
}

/// Takes the prefix off and checks it.
pub(super) fn message_len(received: &mut impl Buf) -> Result<usize, Status> {
    match received.get_u8() {
        0 => {}
        1 => return Err(Status::unexpected_compression()),
        format => return Err(Status::unknown_format(format)),
    }
    Ok(usize::try_from(received.get_u32()).unwrap_or(usize::MAX))
}

/// Reads over the rest of a message that is too large. Answering at once would reset the stream under a client that still
/// sends, and some then see a failed transport instead of the answer.
async fn discard<B>(body: &mut B, len: usize) -> Result<(), Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let mut left = len.min(DISCARD_BYTES_MAX);
    while left > 0 {
        let Some(data) = next_data(body).await? else {
            break;
        };
        left = left.saturating_sub(data.len());
    }
    Ok(())
}

/// The next bytes of the body, or nothing at its end.
pub(super) async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, Status>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await;
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
            Some(Err(_)) => return Err(Status::canceled()),
            None => return Ok(None),
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Request bodies for tests.

    use super::*;
    use http_body::Frame;
    use std::{
        collections::VecDeque,
        convert::Infallible,
        task::{Context, Poll},
    };

    /// A request body that arrives in the pieces given.
    pub(in crate::api) struct Pieces(pub(in crate::api) VecDeque<Bytes>);

    impl Pieces {
        pub(in crate::api) fn of(bytes: &[u8], piece: usize) -> Self {
            Self(bytes.chunks(piece).map(Bytes::copy_from_slice).collect())
        }
    }

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
        }
    }

    /// A message behind its prefix.
    pub(in crate::api) fn frame(message: &[u8]) -> Vec<u8> {
        let len = u32::try_from(message.len()).unwrap();
        [&[0], &len.to_be_bytes()[..], message].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::{
        testing::{Pieces, frame},
        *,
    };
    use crate::api::{proto::etcdserverpb as pb, status::Code};
    use std::collections::VecDeque;

    async fn read_pieces(bytes: &[u8], piece: usize) -> Result<Bytes, Status> {
        read_message(&mut Pieces::of(bytes, piece), 100).await
    }

    #[tokio::test]
    async fn a_message_arrives_whole_however_it_is_cut() {
        let message: Vec<u8> = (0..100).collect();
        let mut sent = frame(&message);
        for piece in 1..=sent.len() {
            assert_eq!(
                read_pieces(&sent, piece).await.unwrap(),
                message,
                "in pieces of {piece}"
            );
        }
        sent.extend(frame(b"a second one"));
        for piece in 1..=sent.len() {
            let read = read_pieces(&sent, piece).await.unwrap();
            assert_eq!(
                read, message,
                "what follows the message is not read, in pieces of {piece}"
            );
        }
        assert_eq!(
            read_pieces(&frame(b""), 2).await.unwrap(),
            "",
            "an empty message is one"
        );
    }

    #[tokio::test]
    async fn a_whole_message_is_not_copied() {
        let sent = Bytes::from(frame(b"message"));
        let mut body = Pieces(VecDeque::from([sent.clone()]));
        let read = read_message(&mut body, 100).await.unwrap();
        assert!(
            sent.as_ptr_range().contains(&read.as_ptr()),
            "it shares the transport's buffer"
        );
    }

    #[tokio::test]
    async fn bad_framing_is_named() {
        let refused = async |bytes: &[u8]| read_pieces(bytes, 3).await.unwrap_err();
        assert_eq!(refused(b"").await, Status::no_message());
        assert_eq!(refused(&[0, 0]).await, Status::cut_message());
        assert_eq!(refused(&frame(b"cut")[..7]).await, Status::cut_message());
        assert_eq!(
            refused(&[1, 0, 0, 0, 0]).await,
            Status::unexpected_compression()
        );
        assert_eq!(refused(&[9, 0, 0, 0, 0]).await, Status::unknown_format(9));
        assert_eq!(
            refused(&frame(&[0; 101])).await,
            Status::received_too_large(101, 100)
        );
        let claim = [0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(
            refused(&claim).await,
            Status::received_too_large(4_294_967_295, 100)
        );
    }

    #[tokio::test]
    async fn bytes_that_are_no_message_are_an_internal_error() {
        for bytes in [&b"\x0a\x7fa"[..], b"\x08\x01", b"\x00"] {
            let read: Result<pb::RangeRequest, _> =
                read(&mut Pieces::of(&frame(bytes), 9), 9).await;
            let status = read.unwrap_err();
            assert_eq!(status.code, Code::Internal, "{bytes:?}");
            assert!(
                status
                    .message
                    .starts_with("grpc: error unmarshalling request: "),
                "{status}"
            );
        }
    }

    #[test]
    fn timeouts_are_read_as_grpc_spells_them() {
        let table = [
            ("1H", Some(Duration::from_hours(1))),
            ("2M", Some(Duration::from_mins(2))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("30m", Some(Duration::from_millis(30))),
            ("4u", Some(Duration::from_micros(4))),
            ("0n", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("5", None),
            ("5x", None),
            ("100000000S", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse_timeout(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_unknown_is_named() {
        let table = [
            ("/a.B/C", "unknown service a.B"),
            ("/a/b/c", "unknown service a/b"),
            (
                "/etcdserverpb.KV/C",
                "unknown method C for service etcdserverpb.KV",
            ),
            (
                "/etcdserverpb.KV/",
                "unknown method  for service etcdserverpb.KV",
            ),
            ("/nothing", "malformed method name: \"/nothing\""),
            ("*", "malformed method name: \"*\""),
        ];
        for (path, text) in table {
            let status = unknown(path);
            assert_eq!((status.code, &*status.message), (Code::Unimplemented, text));
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        let kinds = [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ];
        for (kind, expected) in kinds {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()), "none at all");
    }
}
