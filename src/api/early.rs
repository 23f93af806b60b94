//! Answers at the client port while a member starts and cannot serve yet: probes get 503, gRPC calls `Unavailable`, both with the
//! reason why startup waits. So an operator sees more than a refused connection. A startup that waits for no other member is
//! short: clients that connect meanwhile are served at its end.
//!
//! This runs on a thread of its own, since startup may block its thread for long. Its connections are closed when the member
//! begins to serve; the listening socket stays open, so connections that were not accepted yet are served then.

use super::{
    http::{health_body, refusal},
    serving::Failure,
    status::Status,
    trailers,
};
use ::http::{HeaderValue, Request, Response, StatusCode, header::CONTENT_TYPE};
use bytes::Bytes;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    cell::Cell,
    convert::Infallible,
    io,
    net::TcpListener as StdListener,
    rc::Rc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::{oneshot, watch},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

/// Open connections; further ones are closed.
const CONNECTIONS_MAX: usize = 256;

/// How long a connection may last. Requests are answered at once, so no client needs longer.
const CONNECTION_MAX: Duration = Duration::from_secs(10);

/// How long accepting pauses after an error.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the first bytes of an HTTP/2 connection begin.
const HTTP2: &[u8] = b"PRI";

/// Answers at the client port until it is ended or dropped.
#[derive(Debug)]
pub struct EarlyServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EarlyServer {
    /// Starts answering on a copy of `listener` once `waits_for`, the reason why startup waits, is not empty.
    pub fn start(listener: &StdListener, waits_for: watch::Receiver<String>) -> io::Result<Self> {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let body = move || {
            let all = LocalSet::new();
            let serving = all.run_until(async move {
                tokio::select! {
                    accepted = accept(listener, waits_for) => {
                        if let Err(error) = accepted {
                            tracing::warn!(%error, "cannot answer at the client port before the start has ended");
                        }
                    }
                    // It is dropped together with its sender.
                    _ = stopped => {}
                }
            });
            runtime.block_on(serving);
        };
        let thread = thread::Builder::new().name("quorate-early".to_owned());
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread.spawn(body)?),
        })
    }

    /// Ends all connections, and returns when no more are accepted.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for EarlyServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that answered before the start had ended has panicked");
        }
    }
}

async fn accept(listener: StdListener, mut waits_for: watch::Receiver<String>) -> io::Result<()> {
    let waits = waits_for.wait_for(|what| !what.is_empty()).await.is_ok();
    if !waits {
        return Ok(());
    }
    let listener = TcpListener::from_std(listener)?;
    let open = Rc::new(Cell::new(0));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        if open.get() >= CONNECTIONS_MAX {
            continue;
        }
        let (open, waits_for) = (open.clone(), waits_for.clone());
        open.set(open.get() + 1);
        spawn_local(async move {
            let served = timeout(CONNECTION_MAX, serve(stream, waits_for)).await;
            if let Ok(Err(error)) = served {
                tracing::debug!(error, "an early connection failed");
            }
            open.set(open.get() - 1);
        });
    }
}

async fn serve(stream: TcpStream, waits_for: watch::Receiver<String>) -> Result<(), Failure> {
    let mut first = [0; HTTP2.len()];
    loop {
        stream.readable().await?;
        let read = stream.peek(&mut first).await?;
        if read == first.len() && first == *HTTP2 {
            return serve_http2(stream, &waits_for).await;
        }
        if read == 0 || !HTTP2.starts_with(&first[..read]) {
            break;
        }
        sleep(ACCEPT_PAUSE).await;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let text = probe_text(request.uri().path(), &waits_for.borrow());
        let response = refusal(StatusCode::SERVICE_UNAVAILABLE, &text);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service);
    Ok(connection.await?)
}

async fn serve_http2(
    stream: TcpStream,
    waits_for: &watch::Receiver<String>,
) -> Result<(), Failure> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(100)
        .handshake::<_, Bytes>(stream)
        .await?;
    while let Some(accepted) = connection.accept().await {
        let (request, mut respond) = accepted?;
        let kind = request.headers().get(CONTENT_TYPE);
        let is_grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            respond.send_response(refused(&waits_for.borrow()), true)?;
            continue;
        }
        let text = probe_text(request.uri().path(), &waits_for.borrow());
        let head = refusal(StatusCode::SERVICE_UNAVAILABLE, &text).map(drop);
        respond
            .send_response(head, false)?
            .send_data(format!("{text}\n").into(), true)?;
    }
    Ok(())
}

/// A gRPC response without messages: the error is in its headers.
fn refused(waits_for: &str) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = trailers::failure(&Status::not_started(waits_for));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The answer to a probe.
fn probe_text(path: &str, waits_for: &str) -> String {
    let reason = format!("not started yet: {waits_for}");
    match path {
        "/health" => health_body(false, &reason),
        "/livez" | "/readyz" => format!("[-]started failed: {reason}"),
        _ => reason,
    }
}
