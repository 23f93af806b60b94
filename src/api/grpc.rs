//! gRPC calls: from a request's headers and messages to a call of [`Api`], and back.
//!
//! Every call is admitted here. The spliced services (see `method`) are answered here too: their answers are assembled from
//! stored bytes, and tonic's encoder would copy those once more. All other calls go to [`services`](super::services). HTTP/2
//! belongs to the caller of [`answer`], which takes any kind of request body, so that another transport can be added.
//!
//! etcd: malformed headers get the codes and texts of etcd's gRPC library.

use super::{
    Api,
    access::CertificateName,
    answer_budget::Budget,
    encoding::Encoding,
    frames::Encoded,
    front::Front,
    kv::Hot,
    lines::{self, Asker},
    message_reader::MessageReader,
    method,
    response_body::ResponseBody,
    sockets::ClientPeer,
    status::Status,
    streaming, trailers,
};
use crate::kv::watch::HolderId;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use std::{rc::Rc, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// The longest headers of a call; the HTTP/2 library refuses twice as many.
pub const METADATA_BYTES_MAX: usize = 1024 * 1024;

/// What HTTP/2 adds to each header's name and value when it counts their size.
const HEADER_ENTRY_BYTES: usize = 32;

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

/// What the headers of an admitted call say.
#[derive(Clone, Debug)]
pub struct Admission {
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
    /// How the caller's messages are encoded.
    pub encoding: Encoding,
    /// Who makes it, and whose watchers the call's watches are.
    pub asker: Asker,
    leader_required: bool,
}

impl Admission {
    /// The same, but the call's watches count against the share of `holder`.
    #[must_use]
    pub fn of(mut self, holder: HolderId) -> Self {
        self.asker.holder = Some(holder);
        self
    }
}

/// Checks whether this member can serve a call of `peer`, and takes from its headers all that is needed later.
pub fn admit(
    api: &Api,
    path: &str,
    headers: &HeaderMap,
    peer: ClientPeer,
    certificate: Option<&CertificateName>,
) -> Result<Admission, Status> {
    let bytes = list_bytes(headers);
    if bytes > METADATA_BYTES_MAX {
        return Err(Status::metadata_too_large(bytes, METADATA_BYTES_MAX));
    }
    if !method::is_served_by_learners(path) && api.require_vote().is_err() {
        let version = headers.get("client-api-version");
        return Err(Status::learner(version.map(HeaderValue::as_bytes)));
    }
    let encoding = Encoding::of(headers)?;
    if let Some(version) = headers.get("client-api-version")
        && std::str::from_utf8(version.as_bytes()).is_err()
    {
        return Err(Status::invalid_client_version());
    }
    let leader_required = headers
        .get("hasleader")
        .is_some_and(|value| value == "true");
    if leader_required {
        api.require_leader()?;
    }
    let deadline = match headers.get("grpc-timeout") {
        None => None,
        Some(timeout) => {
            let span = parse_timeout(timeout.as_bytes()).ok_or_else(|| {
                Status::malformed_timeout(&String::from_utf8_lossy(timeout.as_bytes()))
            })?;
            // A time-out too long for the clock sets no deadline.
            Instant::now().checked_add(span)
        }
    };
    let caller = api.caller(headers, certificate);
    Ok(Admission {
        deadline,
        encoding,
        asker: api.asker(path, caller, certificate, peer),
        leader_required,
    })
}

/// The size of headers as HTTP/2 counts it.
fn list_bytes(headers: &HeaderMap) -> usize {
    let entries = headers.iter();
    entries
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_ENTRY_BYTES)
        .sum()
}

/// Answers an admitted call.
pub async fn answer<B>(
    front: Rc<Front>,
    path: &str,
    admission: Admission,
    messages: MessageReader<B>,
    budget: Arc<Budget>,
) -> Response<ResponseBody>
where
    B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin + Send + 'static,
{
    let line = admission.asker.line.clone();
    let answered = if let Err(status) = front.api.allow(path, &admission.asker.caller) {
        Err(status)
    } else if method::is_spliced(path) {
        let answered = answer_spliced(&front.api, path, admission, messages, budget.clone()).await;
        answered.map(Response::new)
    } else {
        // Boxed, so that it does not make the futures of spliced calls larger.
        let services = &front.services;
        let (asker, deadline) = (admission.asker, admission.deadline);
        Box::pin(services.answer(path, asker, messages, deadline)).await
    };
    if let Some(line) = line
        && (answered.is_err() || !method::answers_stream(path))
    {
        lines::close(&line, answered.as_ref().err());
    }
    let counted = |body| match body {
        ResponseBody::Message(encoded) => ResponseBody::Message(encoded.counted(&budget)),
        other => other,
    };
    let answered = answered.map(|response| response.map(counted));
    let mut response = answered.unwrap_or_else(|status| {
        let mut response = Response::new(ResponseBody::Empty);
        *response.headers_mut() = trailers::failure(&status);
        response
    });
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

async fn answer_spliced<B>(
    api: &Rc<Api>,
    path: &str,
    admission: Admission,
    messages: MessageReader<B>,
    budget: Arc<Budget>,
) -> Result<ResponseBody, Status>
where
    B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin + 'static,
{
    let Admission {
        deadline,
        leader_required,
        asker,
        ..
    } = admission;
    let holder = asker.holder;
    let api = &if asker.is_plain() {
        api.clone()
    } else {
        Rc::new(api.asked_by(asker))
    };
    if path == method::WATCH {
        let api = api.clone();
        return Ok(stream(deadline, |out| async move {
            let watching = api.watch(messages, leader_required, holder, &out);
            api.streamed(watching).await
        }));
    }
    let answering = route(api, path, messages, deadline, budget);
    match deadline {
        // `timeout_at` polls the call first, so one that is ready at once registers no timer.
        Some(deadline) => timeout_at(deadline, answering)
            .await
            .unwrap_or(Err(Status::deadline_exceeded())),
        None => answering.await,
    }
}

/// Parses the `grpc-timeout` header: one to eight digits and a unit.
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

/// Calls the method of a spliced service.
async fn route<B>(
    api: &Rc<Api>,
    path: &str,
    mut messages: MessageReader<B>,
    deadline: Option<Instant>,
    budget: Arc<Budget>,
) -> Result<ResponseBody, Status>
where
    B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin,
{
    if let Some(hot) = Hot::of(path) {
        let message = messages.only_bytes().await?;
        // What follows it is dropped as it comes.
        let room = messages.room.clone();
        drop(messages);
        return api.call(hot, message, &budget, room).await;
    }
    match path {
        "/etcdserverpb.KV/Compact" => {
            let request = messages.only().await?;
            drop(messages);
            api.compact(request).await.map(ResponseBody::Message)
        }
        "/etcdserverpb.KV/RangeStream" => {
            let read = messages.only().await;
            let request = read.map_err(|status| method::unread_message(path, status))?;
            let api = api.clone();
            Ok(stream(deadline, |out| async move {
                api.streamed(api.range_stream(request, &out, &budget)).await
            }))
        }
        _ => Err(method::unknown(path)),
    }
}

fn stream<F>(
    deadline: Option<Instant>,
    call: impl FnOnce(mpsc::Sender<Result<Encoded, Status>>) -> F,
) -> ResponseBody
where
    F: Future<Output = Result<(), Status>> + 'static,
{
    ResponseBody::Stream(streaming::run(deadline, call))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_content_type_tells_grpc_from_other_requests() {
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
