//! The services that tonic serves, on the same port and under the same rules as the thin layer in [`grpc`].
//!
//! [`Services::new`] is the table: a service is one line there, and a file beside this one that implements its generated
//! trait for `Calls`. The calls themselves are methods of [`Api`] and know nothing of tonic; these files unwrap requests
//! and wrap answers. Of tonic the generated servers and the codec are used; connections stay with [`listen`](super::listen).
//!
//! etcd: what a client is told about a bad request must not depend on who serves the call. So framing is checked before
//! tonic sees it (`incoming`), deadlines are kept behind it (`outgoing`), and a method without an implementation is
//! refused as one that does not exist.

mod cluster;
mod election;
mod health;
mod incoming;
mod lease;
mod lock;
mod maintenance;
mod outgoing;

use super::{
    Api,
    body::Body,
    grpc,
    proto::{
        etcdserverpb::{
            cluster_server::ClusterServer, lease_server::LeaseServer,
            maintenance_server::MaintenanceServer,
        },
        healthpb::health_server::HealthServer,
        v3electionpb::election_server::ElectionServer,
        v3lockpb::lock_server::LockServer,
    },
    status::Status,
};
use bytes::Bytes;
use http::{Request, Response};
use incoming::Incoming;
pub use outgoing::Outgoing;
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

/// The methods that take a stream. Any other call needs a message.
const STREAM_TAKERS: [&str; 1] = ["/etcdserverpb.Lease/LeaseKeepAlive"];

/// What the generated traits are implemented for.
#[derive(Clone, Debug)]
struct Calls(Api);

/// What the generated traits have their methods return.
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// A call of a service, whichever.
type Call = Box<dyn Fn(Request<TonicBody>) -> BoxFuture<Response<TonicBody>, Infallible>>;

/// The services, by name.
pub struct Services {
    table: Vec<(&'static str, Call)>,
    bytes_max: usize,
}

impl Services {
    /// The services of an API arbiter.
    pub fn new(api: &Api) -> Self {
        let calls = Arc::new(Calls(api.clone()));
        let bytes_max = api.receive_bytes_max();
        // `max_decoding_message_size`: the limit is kept before tonic's own, which must not be the smaller one.
        macro_rules! serve {
            ($server:ident) => {
                entry($server::from_arc(calls.clone()).max_decoding_message_size(bytes_max))
            };
        }
        let table = vec![
            serve!(MaintenanceServer),
            serve!(ClusterServer),
            serve!(HealthServer),
            serve!(LeaseServer),
            serve!(LockServer),
            serve!(ElectionServer),
        ];
        Self { table, bytes_max }
    }

    /// Answers an admitted call.
    pub async fn answer<B>(
        &self,
        request: Request<B>,
        deadline: Option<Instant>,
    ) -> Result<Response<Body>, Status>
    where
        B: http_body::Body<Data = Bytes> + Unpin + Send + 'static,
    {
        let path = request.uri().path().to_owned();
        let (service, method) = grpc::split_path(&path)?;
        let entry = self.table.iter().find(|(name, _)| *name == service);
        let (_, call) = entry.ok_or_else(|| Status::unknown_service(service))?;
        let needs_message = !STREAM_TAKERS.contains(&path.as_str());
        let request =
            request.map(|body| TonicBody::new(Incoming::new(body, self.bytes_max, needs_message)));
        let answering = call(request);
        let Ok(response) = match deadline {
            Some(deadline) => timeout_at(deadline, answering)
                .await
                .map_err(|_| Status::deadline_exceeded())?,
            None => answering.await,
        };
        if let Some(status) = own_status(&response) {
            return Err(status);
        }
        if is_unimplemented(&response) {
            return Err(Status::unknown_method(method, service));
        }
        Ok(response.map(|body| Body::Tonic(Box::new(Outgoing::new(body, deadline)))))
    }
}

impl fmt::Debug for Services {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.table.iter().map(|(name, _)| name);
        out.debug_list().entries(names).finish()
    }
}

/// A line of the table.
fn entry<S>(service: S) -> (&'static str, Call)
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
    let call = move |request| service.clone().call(request);
    (S::NAME, Box::new(call))
}

/// The refusal by one of our own calls, or of the framing, as it was before tonic carried it.
fn own_status(response: &Response<TonicBody>) -> Option<Status> {
    Status::carried_by(response.extensions().get::<tonic::Status>()?)
}

/// Whether the generated code has refused the call: nobody implements the method.
fn is_unimplemented(response: &Response<TonicBody>) -> bool {
    let code = response.headers().get(tonic::Status::GRPC_STATUS);
    code.is_some_and(|code| tonic::Code::from_bytes(code.as_bytes()) == tonic::Code::Unimplemented)
}

/// Wraps what a call gave.
fn answer<T>(given: Result<T, Status>) -> Answer<T> {
    Ok(tonic::Response::new(given?))
}

/// Any number of messages. The call runs on its own and ends with the client's interest.
fn stream<T, F>(call: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> BoxStream<T>
where
    T: Send + 'static,
    F: Future<Output = Result<(), Status>> + 'static,
{
    Box::pin(Messages(grpc::run(None, call)))
}

/// The messages of a call that runs on its own.
struct Messages<T>(mpsc::Receiver<Result<T, Status>>);

impl<T> Stream for Messages<T> {
    type Item = Result<T, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.poll_recv(context);
        next.map(|message| message.map(|message| message.map_err(tonic::Status::from)))
    }
}

impl Status {
    /// The refusal that tonic carried, or what tonic itself found wrong with a stream.
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
    use crate::api::{grpc::testing::Pieces, proto::etcdserverpb as pb, status::Code};
    use pb::maintenance_server::Maintenance;
    use prost::Message;
    use std::future::poll_fn;

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
            table: vec![entry(MaintenanceServer::new(Sample))],
            bytes_max: BYTES_MAX,
        }
    }

    async fn call(path: &str, sent: &[u8]) -> Result<Response<Body>, Status> {
        let request = Request::post(path)
            .body(Pieces::of(sent, sent.len().max(1)))
            .unwrap();
        services().answer(request, None).await
    }

    fn frame(message: &impl Message) -> Vec<u8> {
        grpc::testing::frame(&message.encode_to_vec())
    }

    #[tokio::test]
    async fn what_nobody_implements_is_unknown() {
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
        let request = Request::post(format!("/{SERVICE}/Hash")).body(Silent(pieces));
        let deadline = Instant::now() + std::time::Duration::from_secs(1);
        let refused = services().answer(request.unwrap(), Some(deadline)).await;
        assert_eq!(refused.unwrap_err(), Status::deadline_exceeded());
    }

    /// A client that sends nothing and does not leave.
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
