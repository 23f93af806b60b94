//! One call on its HTTP/2 stream: the request as it is received, the response as it is sent.

use super::request_stream::{Prefetched, StreamBody};
use crate::api::{
    frames::Encoded,
    front::Front,
    grpc::{self, Admission},
    http,
    message_reader::MessageReader,
    payload::Payload,
    response_body::ResponseBody,
    status::Status,
    trailers,
};
use ::http::{HeaderMap, HeaderValue, Method, Response, Uri, header::CONTENT_TYPE};
use bytes::Buf;
use h2::{Reason, SendStream, server::SendResponse};
use http_body::Body;
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};
use tokio::time::{Instant, timeout_at};

/// Answers up to this size are handed to the HTTP/2 library at once; longer ones as the client's flow control allows.
const SMALL_ANSWER_BYTES: usize = 16 * 1024;

/// A hot call in flight.
pub(super) struct Call {
    pub(super) respond: SendResponse<Payload>,
    pub(super) deadline: Option<Instant>,
}

/// Answers a call in a task of its own, which ends when the client cancels the call.
pub(super) async fn answer_call(
    front: Rc<Front>,
    uri: Uri,
    admission: Admission,
    messages: MessageReader<StreamBody>,
    mut respond: SendResponse<Payload>,
) {
    let mut prefetched = None;
    let messages = messages.map_body(|body| {
        let (body, buffer) = body.prefetched();
        prefetched = Some(buffer);
        body
    });
    let response = {
        let mut answering = pin!(grpc::answer(front, uri.path(), admission, messages));
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
) {
    let response = http::answer(&front.api, &method, &uri).await;
    send(respond, response, None).await;
}

/// Answers a hot call in a task of its own, because other calls of the connection should not wait for it.
pub(super) fn answer_in_task(
    call: Call,
    answering: impl Future<Output = Result<Encoded, Status>> + 'static,
) {
    tokio::task::spawn_local(async move {
        let Call {
            mut respond,
            deadline,
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
        if let Some(answered) = answered.await {
            answer(respond, answered);
        }
    });
}

/// Sends the answer of a hot call. Sending fails only if the client has gone, so errors are ignored.
pub(super) fn answer(mut respond: SendResponse<Payload>, answered: Result<Encoded, Status>) {
    let encoded = match answered {
        Ok(encoded) => encoded.into_frame(),
        Err(status) => {
            drop(respond.send_response(head(trailers::failure(&status)), true));
            return;
        }
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

/// Sends bytes in pieces that fit the client's flow control window.
async fn send_data(
    stream: &mut SendStream<Payload>,
    mut data: Payload,
    last: bool,
    prefetched: Option<&Prefetched>,
) -> Result<(), h2::Error> {
    if !data.has_remaining() && last {
        return stream.send_data(data, true);
    }
    while data.has_remaining() {
        stream.reserve_capacity(data.remaining());
        let room = match stream.capacity() {
            0 => match poll_fn(|context| {
                fill(prefetched, context);
                stream.poll_capacity(context)
            })
            .await
            {
                Some(room) => room?,
                None => return Err(Reason::CANCEL.into()),
            },
            room => room,
        };
        let piece = data.split_to(room.min(data.remaining()));
        stream.send_data(piece, last && !data.has_remaining())?;
    }
    Ok(())
}
