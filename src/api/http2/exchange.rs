//! One call on its stream: the request as it comes in, the answer as it goes out.

use crate::api::{
    Front,
    body::{Body, error_headers, success_trailers},
    grpc, http,
    payload::Payload,
    reply::{Encoded, PREFIX_BYTES},
    status::Status,
};
use ::http::{HeaderMap, HeaderValue, Request, Response, header::CONTENT_TYPE};
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, server::SendResponse};
use http_body::{Body as _, Frame};
use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::time::{Instant, timeout_at};

/// Answers up to this size are handed to the HTTP/2 library at once; longer ones as the client's window has room.
const SMALL_ANSWER_BYTES: usize = 16 * 1024;

/// A hot call under way.
pub(super) struct Call {
    pub(super) respond: SendResponse<Payload>,
    pub(super) deadline: Option<Instant>,
}

/// What a client sends with a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    /// Looked at and put back.
    first: Option<Bytes>,
    stream: RecvStream,
}

impl RequestBody {
    /// The body that comes over a stream.
    pub(super) fn new(stream: RecvStream) -> Self {
        Self {
            first: None,
            stream,
        }
    }

    /// The call's message, if all of it is there in one piece and nothing is wrong with it. Otherwise the body is as before.
    pub(super) fn poll_message(
        &mut self,
        context: &mut Context<'_>,
        bytes_max: usize,
    ) -> Option<Bytes> {
        let Poll::Ready(Some(Ok(data))) = self.stream.poll_data(context) else {
            return None;
        };
        let len = data.get(..PREFIX_BYTES).and_then(|mut prefix| {
            let len = grpc::message_len(&mut prefix).ok()?;
            (len <= bytes_max && len <= data.len() - PREFIX_BYTES).then_some(len)
        });
        let Some(len) = len else {
            self.first = Some(data);
            return None;
        };
        self.release(data.len());
        Some(data.slice(PREFIX_BYTES..PREFIX_BYTES + len))
    }

    /// The client may send as much again.
    fn release(&mut self, len: usize) {
        // It cannot fail: so much was received.
        drop(self.stream.flow_control().release_capacity(len));
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let data = match self.first.take() {
            Some(data) => data,
            None => match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => data,
                // A client that gives up its call says no more.
                Some(Err(error))
                    if matches!(
                        error.reason(),
                        Some(h2::Reason::NO_ERROR | h2::Reason::CANCEL)
                    ) =>
                {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers say nothing in a request.
                None => return Poll::Ready(None),
            },
        };
        self.release(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }
}

/// Answers a request that gets a task of its own, unless the client gives it up.
pub(super) async fn carry(
    front: Rc<Front>,
    request: Request<RequestBody>,
    mut respond: SendResponse<Payload>,
) {
    let mut answering = pin!(async move {
        if grpc::is_grpc(request.headers()) {
            grpc::answer(front, request).await
        } else {
            http::answer(&front.api, request.method(), request.uri()).await
        }
    });
    let response = poll_fn(|context| {
        if respond.poll_reset(context).is_ready() {
            return Poll::Ready(None);
        }
        answering.as_mut().poll(context).map(Some)
    });
    if let Some(response) = response.await {
        send(respond, response).await;
    }
}

/// Answers a hot call that takes longer than others should wait.
pub(super) fn aside(
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

/// Sends the answer of a hot call. A client that has gone does not matter.
pub(super) fn answer(mut respond: SendResponse<Payload>, answered: Result<Encoded, Status>) {
    let encoded = match answered {
        Ok(encoded) => encoded.into_frame(),
        Err(status) => {
            drop(respond.send_response(head(error_headers(&status)), true));
            return;
        }
    };
    let Ok(mut stream) = respond.send_response(head(HeaderMap::with_capacity(1)), false) else {
        return;
    };
    if encoded.remaining() <= SMALL_ANSWER_BYTES {
        drop(stream.send_data(encoded, false));
        drop(stream.send_trailers(success_trailers()));
    } else {
        tokio::task::spawn_local(pour(stream, Body::Message(Encoded::from_frame(encoded))));
    }
}

fn head(mut headers: HeaderMap) -> Response<()> {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

async fn send(mut respond: SendResponse<Payload>, response: Response<Body>) {
    let (head, body) = response.into_parts();
    let whole = body.is_end_stream();
    if let Ok(stream) = respond.send_response(Response::from_parts(head, ()), whole)
        && !whole
    {
        pour(stream, body).await;
    }
}

/// Sends a body as the client takes it, until it ends or the client gives it up.
async fn pour(mut stream: SendStream<Payload>, mut body: Body) {
    loop {
        let frame = poll_fn(|context| {
            if stream.poll_reset(context).is_ready() {
                return Poll::Ready(None);
            }
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
                Ok(data) => send_data(&mut stream, data, body.is_end_stream()).await,
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

/// Sends bytes in pieces as large as the client's window has room for.
async fn send_data(
    stream: &mut SendStream<Payload>,
    mut data: Payload,
    last: bool,
) -> Result<(), h2::Error> {
    if !data.has_remaining() && last {
        return stream.send_data(data, true);
    }
    while data.has_remaining() {
        stream.reserve_capacity(data.remaining());
        let room = match stream.capacity() {
            0 => match poll_fn(|context| stream.poll_capacity(context)).await {
                Some(room) => room?,
                None => return Err(h2::Reason::CANCEL.into()),
            },
            room => room,
        };
        let piece = data.split_to(room.min(data.remaining()));
        stream.send_data(piece, last && !data.has_remaining())?;
    }
    Ok(())
}
