//! The services that tonic serves, on the same port and under the same rules as the services in [`grpc`](super::grpc).
//!
//! [`Services::new`] is the table of services: each has one line there, and a file beside this one that implements its
//! generated trait for `Calls`. The calls themselves are methods of [`Api`] and do not depend on tonic; these files unwrap
//! requests and wrap answers. Only tonic's generated servers and its codec are used; [`listen`](super::listen) owns the
//! connections.
//!
//! etcd: a bad request gets the same error whichever part of the API serves it. So the message reader checks framing before
//! tonic gets a message (`request_body`), [`DeadlineBody`] enforces deadlines on responses, and a method without an
//! implementation gets the same error as one that does not exist.

mod auth;
mod cluster;
mod election;
mod health;
mod lease;
mod lock;
mod maintenance;
mod request_body;

use super::{
    Api,
    deadline_body::DeadlineBody,
    lines::Asker,
    message_reader::MessageReader,
    method,
    proto::{
        etcdserverpb::{
            auth_server::AuthServer, cluster_server::ClusterServer, lease_server::LeaseServer,
            maintenance_server::MaintenanceServer,
        },
        healthpb::health_server::HealthServer,
        v3electionpb::election_server::ElectionServer,
        v3lockpb::lock_server::LockServer,
    },
    response_body::ResponseBody,
    status::Status,
    streaming,
};
use bytes::Bytes;
use http::{Request, Response, Uri};
use request_body::RequestBody;
use std::{
    convert::Infallible,
    error::Error,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tonic::{
    body::Body as TonicBody,
    codegen::{BoxFuture, BoxStream, Service, tokio_stream::Stream},
    server::NamedService,
};

/// Implements the generated traits.
#[derive(Clone, Debug)]
struct Calls(Api);

/// The return type of the generated traits' methods.
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// Calls a method of one service.
type Call = Box<dyn Fn(Request<TonicBody>, Asker) -> BoxFuture<Response<TonicBody>, Infallible>>;

/// The services, by name.
pub struct Services {
    table: Vec<(&'static str, Call)>,
}

impl Services {
    /// The services of an API arbiter.
    pub fn new(api: &Api) -> Self {
        let calls = Arc::new(Calls(api.clone()));
        let bytes_max = api.receive_bytes_max();
        // The message reader enforces the limit; tonic's own, 4 MiB by default, must not be smaller.
        macro_rules! serve {
            ($server:ident) => {{
                let serve =
                    move |calls| $server::from_arc(calls).max_decoding_message_size(bytes_max);
                let calls = calls.clone();
                entry(serve(calls.clone()), move |asker| {
                    serve(Arc::new(Calls(calls.0.asked_by(asker))))
                })
            }};
        }
        let table = vec![
            serve!(AuthServer),
            serve!(MaintenanceServer),
            serve!(ClusterServer),
            serve!(HealthServer),
            serve!(LeaseServer),
            serve!(LockServer),
            serve!(ElectionServer),
        ];
        Self { table }
    }

    /// Answers an admitted call.
    pub async fn answer<B>(
        &self,
        path: &str,
        asker: Asker,
        messages: MessageReader<B>,
        deadline: Option<Instant>,
    ) -> Result<Response<ResponseBody>, Status>
    where
        B: http_body::Body<Data = Bytes, Error: Into<Status>> + Unpin + Send + 'static,
    {
        let (service, name) = method::split(path)?;
        let entry = self.table.iter().find(|(served, _)| *served == service);
        let (_, call) = entry.ok_or_else(|| Status::unknown_service(service))?;
        let needs_message = !method::takes_stream(path);
        let mut request = Request::new(TonicBody::new(RequestBody::new(messages, needs_message)));
        *request.uri_mut() = Uri::try_from(path).map_err(|_| Status::malformed_path(path))?;
        let answering = call(request, asker);
        let Ok(response) = match deadline {
            Some(deadline) => timeout_at(deadline, answering)
                .await
                .map_err(|_| Status::deadline_exceeded())?,
            None => answering.await,
        };
        if let Some(status) = own_status(&response) {
            return Err(method::unread_message(path, status));
        }
        if is_unimplemented(&response) {
            return Err(Status::unknown_method(name, service));
        }
        Ok(response.map(|body| ResponseBody::Tonic(Box::new(DeadlineBody::new(body, deadline)))))
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.table.iter().map(|(name, _)| name);
        out.debug_list().entries(names).finish()
    }
}

const AUTHENTICATE: &str = "/etcdserverpb.Auth/Authenticate";

/// Whether a call needs to know its client in any case: failed logins count by address, and watchers by connection.
fn needs_client(path: &str) -> bool {
    path == AUTHENTICATE || method::is_watching(path)
}

/// One line of the table: `service` for plain callers (see [`Asker::is_plain`]), and `of`, which makes it for others.
fn entry<S>(service: S, of: impl Fn(Asker) -> S + 'static) -> (&'static str, Call)
where
    S: NamedService + Clone + 'static,
    S: Service<
            Request<TonicBody>,
            Response = Response<TonicBody>,
            Error = Infallible,
            Future = BoxFuture<Response<TonicBody>, Infallible>,
        >,
{
    // A generated server is always ready.
    let call = move |request: Request<TonicBody>, asker: Asker| {
        if asker.is_plain() && !needs_client(request.uri().path()) {
            service.clone().call(request)
        } else {
            of(asker).call(request)
        }
    };
    (S::NAME, Box::new(call))
}

/// The error of one of our own calls, or of the message reader, as it was before its conversion to tonic's type.
fn own_status(response: &Response<TonicBody>) -> Option<Status> {
    Status::carried_by(response.extensions().get::<tonic::Status>()?)
}

/// Whether the generated code refused the call because the method has no implementation.
fn is_unimplemented(response: &Response<TonicBody>) -> bool {
    let code = response.headers().get(tonic::Status::GRPC_STATUS);
    code.is_some_and(|code| tonic::Code::from_bytes(code.as_bytes()) == tonic::Code::Unimplemented)
}

fn answer<T>(result: Result<T, Status>) -> Answer<T> {
    Ok(tonic::Response::new(result?))
}

/// A stream of messages. The call runs in a task of its own, which ends when the client drops the stream.
fn stream<T, F>(call: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> BoxStream<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + 'static,
{
    Box::pin(ResponseStream(streaming::run(None, call)))
}

/// The messages of a call that runs in a task of its own.
struct ResponseStream<T>(mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for ResponseStream<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.poll_recv(context);
        next.map(|message| message.map(|message| message.map_err(tonic::Status::from)))
    }
}

impl Status {
    /// Our own error that tonic's type contains; any other error of tonic's streams means that the client has gone.
    pub(super) fn from_tonic(status: &tonic::Status) -> Self {
        Self::carried_by(status).unwrap_or_else(Self::canceled)
    }

    /// The refusal of one of our calls, of the framing, or of the codec.
    fn carried_by(status: &tonic::Status) -> Option<Self> {
        let source = status.source()?;
        let malformed = || source.downcast_ref().map(Self::malformed_message);
        source.downcast_ref().cloned().or_else(malformed)
    }
}

impl From<Status> for tonic::Status {
    fn from(status: Status) -> Self {
        let code = tonic::Code::from(status.code as i32);
        let mut carrier = Self::new(code, status.message.clone());
        carrier.set_source(Arc::new(status));
        carrier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{
            encoding::Encoding,
            message_reader::testing::{self, Pieces},
            proto::etcdserverpb as pb,
            status::Code,
        },
        kv::watch::HolderId,
    };
    use pb::maintenance_server::Maintenance;
    use prost::Message;
    use std::{cell::Cell, future::poll_fn, rc::Rc};

    const BYTES_MAX: usize = 100;
    const SERVICE: &str = "etcdserverpb.Maintenance";

    /// A service with two methods of its own and the generated ones.
    struct Sample;

    #[tonic::async_trait]
    impl Maintenance for Sample {
        async fn hash(&self, request: tonic::Request<pb::HashRequest>) -> Answer<pb::HashResponse> {
            drop(request);
            answer(Err(Status::new(Code::DataLoss, "etcdserver: \"100%\"")))
        }

        async fn snapshot(
            &self,
            _: tonic::Request<pb::SnapshotRequest>,
        ) -> Answer<BoxStream<pb::SnapshotResponse>> {
            answer(Ok(stream(|out| async move {
                for remaining_bytes in 1..3 {
                    let message = pb::SnapshotResponse {
                        remaining_bytes,
                        ..Default::default()
                    };
                    drop(out.send(Ok(message)).await);
                }
                Err(Status::canceled())
            })))
        }
    }

    fn services() -> Services {
        Services {
            table: vec![entry(MaintenanceServer::new(Sample), |_| {
                MaintenanceServer::new(Sample)
            })],
        }
    }

    async fn call(path: &str, sent: &[u8]) -> Result<Response<ResponseBody>, Status> {
        let body = Pieces::of(sent, sent.len().max(1));
        let messages = MessageReader::new(body, Encoding::Identity, BYTES_MAX);
        services()
            .answer(path, Asker::nobody(), messages, None)
            .await
    }

    fn frame(message: &impl Message) -> Vec<u8> {
        testing::frame(&message.encode_to_vec())
    }

    #[tokio::test]
    async fn calls_that_watch_know_whose_watchers_they_create() {
        let holder = Rc::<Cell<Option<HolderId>>>::default();
        let found = holder.clone();
        let (_, call) = entry(MaintenanceServer::new(Sample), move |asker| {
            found.set(asker.holder);
            MaintenanceServer::new(Sample)
        });
        let table = [
            ("/v3lockpb.Lock/Lock", true),
            ("/v3electionpb.Election/Campaign", true),
            ("/v3electionpb.Election/Observe", true),
            ("/v3lockpb.Lock/Unlock", false),
            ("/etcdserverpb.Maintenance/Hash", false),
        ];
        for (path, watches) in table {
            let mut request = Request::new(TonicBody::empty());
            *request.uri_mut() = Uri::from_static(path);
            let asker = Asker {
                holder: Some(HolderId(7)),
                ..Asker::nobody()
            };
            holder.set(None);
            drop(call(request, asker).await);
            assert_eq!(holder.get() == Some(HolderId(7)), watches, "{path}");
        }
    }

    #[tokio::test]
    async fn methods_without_an_implementation_are_unknown() {
        let empty = frame(&pb::StatusRequest::default());
        for method in ["Status", "Defragment", "MoveLeader", "Explode", ""] {
            let refused = call(&format!("/{SERVICE}/{method}"), &empty).await;
            let expected = Status::unknown_method(method, SERVICE);
            assert_eq!(refused.unwrap_err(), expected, "{method}");
        }
        let refused = call("/a.B/C", &empty).await.unwrap_err();
        assert_eq!(refused, Status::unknown_service("a.B"));
        let refused = call("/nothing", &empty).await.unwrap_err();
        assert_eq!(refused, Status::malformed_path("/nothing"));
    }

    #[tokio::test]
    async fn refusals_pass_through_tonic_unchanged() {
        let path = format!("/{SERVICE}/Hash");
        let table: [(&[u8], Status); 5] = [
            (&[0; 5], Status::new(Code::DataLoss, "etcdserver: \"100%\"")),
            (b"", Status::no_message()),
            (&[0, 0, 0, 0, 3, b'c'], Status::cut_message()),
            (&[1, 0, 0, 0, 0], Status::unexpected_compression()),
            (
                &[0, 0, 0, 0, 101],
                Status::received_too_large(101, BYTES_MAX),
            ),
        ];
        for (sent, expected) in table {
            let refused = call(&path, sent).await;
            assert_eq!(refused.unwrap_err(), expected, "{sent:?}");
        }
        let refused = call(&path, &[0, 0, 0, 0, 1, 0]).await.unwrap_err();
        assert_eq!(refused.code, Code::Internal);
        let text = "grpc: error unmarshalling request: ";
        assert!(refused.message.starts_with(text), "{refused}");
    }

    #[tokio::test]
    async fn a_call_with_streamed_answers_has_refusals_of_its_own() {
        let path = format!("/{SERVICE}/Snapshot");
        let table: [(&[u8], &str); 3] = [
            (
                b"",
                "cardinality violation: received no request message from non-client-streaming RPC",
            ),
            (&[0, 0, 0, 0, 3, b'c'], "unexpected EOF"),
            (
                &[0, 0, 0, 0, 1, 0],
                "grpc: failed to unmarshal the received message: ",
            ),
        ];
        for (sent, text) in table {
            let refused = call(&path, sent).await.unwrap_err();
            assert_eq!(refused.code, Code::Internal);
            assert!(refused.message.starts_with(text), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_status() {
        let on_one_thread = tokio::task::LocalSet::new();
        let frames = on_one_thread.run_until(async {
            let sent = frame(&pb::SnapshotRequest::default());
            let response = call(&format!("/{SERVICE}/Snapshot"), &sent).await.unwrap();
            let mut body = response.into_body();
            let mut frames = Vec::new();
            while let Some(Ok(frame)) =
                poll_fn(|context| http_body::Body::poll_frame(Pin::new(&mut body), context)).await
            {
                frames.push(frame);
            }
            frames
        });
        let mut frames = frames.await;
        let trailers = frames.pop().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "1");
        let received: Vec<_> = frames
            .into_iter()
            .flat_map(|frame| frame.into_data().unwrap().into_bytes())
            .collect();
        assert_eq!(received, [0, 0, 0, 0, 2, 16, 1, 0, 0, 0, 0, 2, 16, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_an_end_ends_at_its_deadline() {
        let (_sender, pieces) = mpsc::channel::<Bytes>(1);
        let messages = MessageReader::new(Silent(pieces), Encoding::Identity, BYTES_MAX);
        let deadline = Instant::now() + std::time::Duration::from_secs(1);
        let path = format!("/{SERVICE}/Hash");
        let refused = services()
            .answer(&path, Asker::nobody(), messages, Some(deadline))
            .await;
        assert_eq!(refused.unwrap_err(), Status::deadline_exceeded());
    }

    /// A client that sends no bytes and keeps its stream open.
    struct Silent(mpsc::Receiver<Bytes>);

    impl http_body::Body for Silent {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
            let next = self.0.poll_recv(context);
            next.map(|data| data.map(|data| Ok(http_body::Frame::data(data))))
        }
    }
}
