//! A client of the calls that grow a cluster, for `quorate cluster`: it lists members and adds one. Each call has a connection of
//! its own.

pub use super::proto::etcdserverpb as proto;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use std::{io, time::Duration};
use tokio::{net::TcpStream, time::timeout};

/// How long a member may take: longer than its own limit for a change of the membership.
const CALL_MAX: Duration = Duration::from_secs(20);
/// The longest answer that is read, in bytes; no list of members is longer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// gRPC: the prefix of each message, a flag for compression and the length.
pub(super) const PREFIX_BYTES: usize = 5;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No process listens there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The member's address for clients.
        address: String,
        /// The error of the system.
        source: io::Error,
    },
    #[error("the connection to {address} ended: {source}")]
    Broken {
        /// The member's address for clients.
        address: String,
        source: h2::Error,
    },
    #[error("{0}")]
    Refused(String),
    /// The response is malformed.
    #[error("{0} does not answer as a member does")]
    Garbled(String),
    /// The call took longer than `CALL_MAX`.
    #[error("{0} does not answer")]
    Silent(String),
}

/// Lists the members with a linearizable read.
pub async fn members(address: &str) -> Result<Vec<proto::Member>, CallError> {
    let request = proto::MemberListRequest { linearizable: true };
    let answer: proto::MemberListResponse = call(address, "MemberList", &request).await?;
    Ok(answer.members)
}

/// Adds a voter, which other members reach at `peer_url`.
pub async fn add_member(address: &str, peer_url: String) -> Result<(), CallError> {
    let request = proto::MemberAddRequest {
        peer_ur_ls: vec![peer_url],
        is_learner: false,
    };
    let answer = call::<proto::MemberAddResponse>(address, "MemberAdd", &request).await;
    answer.map(drop)
}

async fn call<A: Message + Default>(
    address: &str,
    method: &str,
    request: &impl Message,
) -> Result<A, CallError> {
    let answer = timeout(CALL_MAX, exchange(address, method, frame(request))).await;
    let mut message = answer.map_err(|_| CallError::Silent(address.to_owned()))??;
    let garbled = || CallError::Garbled(address.to_owned());
    if message.len() < PREFIX_BYTES {
        return Err(garbled());
    }
    A::decode(message.split_off(PREFIX_BYTES)).map_err(|_| garbled())
}

pub(super) fn frame(request: &impl Message) -> Bytes {
    let len = request.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + len);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    frame.put(Bytes::from(request.encode_to_vec()));
    frame.freeze()
}

/// Sends one message, and gives the bytes that come back.
async fn exchange(address: &str, method: &str, message: Bytes) -> Result<Bytes, CallError> {
    let socket = TcpStream::connect(address).await;
    let socket = socket.map_err(|source| CallError::Connect {
        address: address.to_owned(),
        source,
    })?;
    let broken = |source| CallError::Broken {
        address: address.to_owned(),
        source,
    };
    let garbled = || CallError::Garbled(address.to_owned());
    let (client, connection) = h2::client::handshake(socket).await.map_err(broken)?;
    let exchange = async {
        let mut client = client.ready().await.map_err(broken)?;
        let head = http::Request::post(format!("http://{address}/etcdserverpb.Cluster/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let head = head.map_err(|_| garbled())?;
        let (response, mut body) = client.send_request(head, false).map_err(broken)?;
        body.send_data(message, true).map_err(broken)?;
        let (head, mut body) = response.await.map_err(broken)?.into_parts();
        let mut answer = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
            let len = data.len();
            body.flow_control().release_capacity(len).map_err(broken)?;
            if answer.len() + len > ANSWER_BYTES_MAX {
                return Err(garbled());
            }
            answer.put(data);
        }
        let trailers = body.trailers().await.map_err(broken)?;
        // A response that is an error and has no message has its status in the headers.
        let fields = trailers.unwrap_or(head.headers);
        let text = |name: &'static str| fields.get(name).and_then(|value| value.to_str().ok());
        match text("grpc-status") {
            Some("0") => Ok(answer.freeze()),
            Some(_) => Err(CallError::Refused(
                text("grpc-message").unwrap_or_default().to_owned(),
            )),
            None => Err(garbled()),
        }
    };
    tokio::select! {
        biased;
        done = exchange => done,
        ended = connection => Err(match ended {
            Err(source) => broken(source),
            Ok(()) => garbled(),
        }),
    }
}
