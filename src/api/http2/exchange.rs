//! One call on its HTTP/2 stream: the request as it is received, the response as it is sent.

use super::request_stream::{Prefetched, StreamBody};
use crate::{
    api::{
        answer_budget::{Budget, SMALL_ANSWER_BYTES, STALL_BYTES},
        frames::Encoded,
        front::Front,
        grpc::{self, Admission},
        http, lines,
        message_reader::MessageReader,
        payload::Payload,
        response_body::ResponseBody,
        shares::Held,
        status::Status,
        trailers,
    },
    audit::Line,
};
use ::http::{HeaderMap, HeaderValue, Method, Response, Uri, header::CONTENT_TYPE};
use bytes::Buf;
use h2::{Reason, SendStream, server::SendResponse};
use http_body::Body;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, timeout, timeout_at};

/// How often a long answer whose client takes nothing is checked against [`Budget::stall_max`].
const STALL_CHECK: Duration = Duration::from_secs(1);

/// A hot call in flight.
pub(super) struct Call {
    pub(super) respond: SendResponse<Payload>,
    pub(super) deadline: Option<Instant>,
    /// Whether it has proposed a command, whose outcome comes through the inbox.
    pub(super) proposed: bool,
    /// Its line in the audit log.
    pub(super) line: Option<Arc<Line>>,
}

impl Call {
    /// Sends the answer.
    pub(super) fn answer(self, answered: Result<Encoded, Status>, budget: &Arc<Budget>) {
        self.close_line(answered.as_ref().err());
        answer(self.respond, answered, budget);
    }

    /// Sends an error in place of an answer.
    pub(super) fn refuse(self, status: &Status) {
        self.close_line(Some(status));
        refuse(self.respond, status);
    }

    fn close_line(&self, error: Option<&Status>) {
        if let Some(line) = &self.line {
            lines::close(line, error);
        }
    }
}

impl Call {
    /// The number of its stream, under which its result comes.
    pub(super) fn number(&self) -> u64 {
        self.respond.stream_id().as_u32().into()
    }
}

/// Answers a call in a task of its own, which ends when the client cancels the call. It counts as a call of its connection until
/// then.
pub(super) async fn answer_call(
    front: Rc<Front>,
    uri: Uri,
    admission: Admission,
    messages: MessageReader<StreamBody>,
    mut respond: SendResponse<Payload>,
    budget: Arc<Budget>,
    held: Held,
) {
    let mut prefetched = None;
    let messages = messages.map_body(|body| {
        let (body, buffer) = body.prefetched();
        prefetched = Some(buffer);
        body
    });
    let response = {
        let mut answering = pin!(grpc::answer(front, uri.path(), admission, messages, budget));
        poll_fn(|context| {
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            fill(prefetched.as_ref(), context);
            answering.as_mut().poll(context).map(Some)
        })
        .await
    };
    if let Some(response) = response {
        send(respond, response, prefetched).await;
    }
    drop(held);
}

fn fill(prefetched: Option<&Prefetched>, context: &mut Context<'_>) {
    if let Some(prefetched) = prefetched {
        prefetched.poll_fill(context);
    }
}

/// Answers a plain HTTP request in a task of its own.
pub(super) async fn answer_plain(
    front: Rc<Front>,
    method: Method,
    uri: Uri,
    respond: SendResponse<Payload>,
    held: Held,
) {
    let response = http::answer(&front.api, &method, &uri).await;
    send(respond, response, None).await;
    drop(held);
}

/// Answers a hot call in a task of its own, because other calls of the connection should not wait for it.
pub(super) fn answer_in_task(
    call: Call,
    answering: impl Future<Output = Result<ResponseBody, Status>> + 'static,
) {
    tokio::task::spawn_local(async move {
        let Call {
            mut respond,
            deadline,
            line,
            ..
        } = call;
        let mut answering = pin!(async move {
            match deadline {
                Some(deadline) => timeout_at(deadline, answering)
                    .await
                    .unwrap_or(Err(Status::deadline_exceeded())),
                None => answering.await,
            }
        });
        let answered = poll_fn(|context| {
            if respond.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            answering.as_mut().poll(context).map(Some)
        });
        let Some(answered) = answered.await else {
            return;
        };
        if let Some(line) = &line {
            lines::close(line, answered.as_ref().err());
        }
        let body = match answered {
            Ok(body) => body,
            Err(status) => return refuse(respond, &status),
        };
        let sending = respond.send_response(head(HeaderMap::with_capacity(1)), false);
        if let Ok(stream) = sending {
            send_body(stream, body, None).await;
        }
    });
}

/// Sends an error in place of an answer.
pub(super) fn refuse(mut respond: SendResponse<Payload>, status: &Status) {
    drop(respond.send_response(head(trailers::failure(status)), true));
}

/// Sends the answer of a hot call. Sending fails only if the client has gone, so errors are ignored.
fn answer(
    mut respond: SendResponse<Payload>,
    answered: Result<Encoded, Status>,
    budget: &Arc<Budget>,
) {
    let encoded = match answered {
        Ok(encoded) => encoded.counted(budget).into_frame(),
        Err(status) => return refuse(respond, &status),
    };
    let Ok(mut stream) = respond.send_response(head(HeaderMap::with_capacity(1)), false) else {
        return;
    };
    if encoded.remaining() <= SMALL_ANSWER_BYTES {
        drop(stream.send_data(encoded, false));
        drop(stream.send_trailers(trailers::success()));
    } else {
        let body = ResponseBody::Message(Encoded::from_frame(encoded));
        tokio::task::spawn_local(send_body(stream, body, None));
    }
}

fn head(mut headers: HeaderMap) -> Response<()> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

async fn send(
    mut respond: SendResponse<Payload>,
    response: Response<ResponseBody>,
    prefetched: Option<Prefetched>,
) {
    let (head, body) = response.into_parts();
    let whole = body.is_end_stream();
    if let Ok(stream) = respond.send_response(Response::from_parts(head, ()), whole)
        && !whole
    {
        send_body(stream, body, prefetched).await;
    }
}

/// Sends a body as the client's flow control allows, until it ends or the client cancels the call.
///
/// It fills `prefetched` meanwhile: the call may still read messages.
async fn send_body(
    mut stream: SendStream<Payload>,
    mut body: ResponseBody,
    prefetched: Option<Prefetched>,
) {
    loop {
        let frame = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
            fill(prefetched.as_ref(), context);
            let Poll::Ready(frame) = Pin::new(&mut body).poll_frame(context) else {
                return Poll::Pending;
            };
            Poll::Ready(Some(frame))
        });
        let sent = match frame.await {
            None => return,
            Some(None) => {
                drop(stream.send_data(Payload::default(), true));
                return;
            }
            Some(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    send_data(&mut stream, data, body.is_end_stream(), prefetched.as_ref()).await
                }
                Err(trailers) => {
                    drop(stream.send_trailers(trailers.into_trailers().unwrap_or_default()));
                    return;
                }
            },
        };
        if sent.is_err() || body.is_end_stream() {
            return;
        }
    }
}

/// Sends bytes in pieces that fit the client's flow control window. If a client takes too little of a long answer for too long,
/// the stream is reset with a reason that gRPC maps to `ResourceExhausted`.
async fn send_data(
    stream: &mut SendStream<Payload>,
    mut data: Payload,
    last: bool,
    prefetched: Option<&Prefetched>,
) -> Result<(), h2::Error> {
    if !data.has_remaining() && last {
        return stream.send_data(data, true);
    }
    let mut pace = Pace::default();
    while data.has_remaining() {
        stream.reserve_capacity(data.remaining());
        let room = match stream.capacity() {
            0 => {
                let wait = poll_fn(|context| {
                    fill(prefetched, context);
                    stream.poll_capacity(context)
                });
                match pace.wait(wait, || data.stall_max()).await {
                    Ok(Some(room)) => room?,
                    Ok(None) => return Err(Reason::CANCEL.into()),
                    Err(Stalled) => {
                        tracing::debug!("a client does not take its answer");
                        stream.send_reset(Reason::ENHANCE_YOUR_CALM);
                        return Err(Reason::ENHANCE_YOUR_CALM.into());
                    }
                }
            }
            room => room,
        };
        pace.took(room);
        let piece = data.split_to(room.min(data.remaining()));
        stream.send_data(piece, last && !data.has_remaining())?;
    }
    Ok(())
}

/// The client takes too little for too long.
struct Stalled;

/// How fast a client takes an answer.
#[derive(Default)]
struct Pace {
    /// When the current part of [`STALL_BYTES`] first waited for the client's window; `None` if it has not.
    since: Option<Instant>,
    /// Bytes of this part that the client has taken.
    bytes: usize,
}

impl Pace {
    /// Waits until the client's window has room. Fails after `stall_max`, which is called again at each check, since it may
    /// change.
    async fn wait<T>(
        &mut self,
        room: impl Future<Output = T>,
        stall_max: impl Fn() -> Option<Duration>,
    ) -> Result<T, Stalled> {
        if stall_max().is_none() {
            return Ok(room.await);
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        let mut room = pin!(room);
        loop {
            if let Ok(room) = timeout(STALL_CHECK, &mut room).await {
                return Ok(room);
            }
            if stall_max().is_some_and(|max| since.elapsed() >= max) {
                return Err(Stalled);
            }
        }
    }

    fn took(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= STALL_BYTES {
            *self = Self::default();
        }
    }
}
