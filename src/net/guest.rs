//! Questions of processes that are not members yet: one that joins asks a member for its own id and the cluster's.
//!
//! A guest authenticates with a certificate of the cluster's authority as members do, sends a hello with member id 0, asks one
//! question and gets one answer. It is never connected as a member, and none of its bytes reach consensus.

use super::{
    codec::VERSION_HIGH,
    error::{NetError, Refusal},
    hello::{self, Hello},
    inbox::{GuestQuestion, Inbox},
    requests::Responder,
    settings,
    tls::{PeerSecurity, SERVER_NAME},
};
use crate::types::{ClusterId, Identity, MemberId};
use bytes::Bytes;
use quinn::{Connection, Endpoint};
use std::{net::SocketAddr, sync::Arc};

/// The largest question, and the largest answer.
const GUEST_BYTES_MAX: usize = 1024 * 1024;

/// The member id in a guest's hello.
pub(super) const GUEST: MemberId = MemberId(0);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAnswer {
    /// The cluster of the member that answers.
    pub cluster: ClusterId,
    pub member: MemberId,
    pub answer: Bytes,
}

/// Asks the member at `address`, `HOST:PORT`, a question as guest `name`. Works on any tokio runtime.
pub async fn ask(
    security: &PeerSecurity,
    name: &str,
    address: &str,
    question: Bytes,
    pacing: &settings::Pacing,
) -> Result<GuestAnswer, NetError> {
    let asked = tokio::time::timeout(pacing.handshake_timeout, async {
        let found = tokio::net::lookup_host(address)
            .await
            .map_err(|source| NetError::Resolve {
                address: address.to_owned(),
                source,
            })?;
        let mut last = NetError::NoAddress {
            address: address.to_owned(),
        };
        for found in found {
            match ask_at(security, name, found, question.clone(), pacing).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    });
    asked.await.map_err(|_| NetError::HandshakeTimeout)?
}

async fn ask_at(
    security: &PeerSecurity,
    name: &str,
    address: SocketAddr,
    question: Bytes,
    pacing: &settings::Pacing,
) -> Result<GuestAnswer, NetError> {
    let any = if address.is_ipv6() {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    let any: SocketAddr = any.parse().unwrap_or(address);
    let failed = |source| NetError::Listen {
        address: any.to_string(),
        source,
    };
    let endpoint = Endpoint::client(any).map_err(failed)?;
    let mut config = quinn::ClientConfig::new(security.load(name)?.client);
    config.transport_config(Arc::new(settings::transport(pacing)));
    let connecting = endpoint.connect_with(config, address, SERVER_NAME);
    let connecting = connecting.map_err(|source| NetError::Dial {
        address: address.to_string(),
        source,
    })?;
    let connection = connecting.await?;
    let nobody = Identity {
        cluster: ClusterId(0),
        member: GUEST,
    };
    let ours = Hello::new(nobody, VERSION_HIGH, 0, name.to_owned());
    let theirs = hello::initiate(&connection, &ours, async |_| Ok(())).await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&question).await?;
    send.finish().unwrap_or_default();
    let answer = receive.read_to_end(GUEST_BYTES_MAX).await;
    let answer = answer.map_err(|_| match connection.close_reason() {
        Some(reason) => reason.into(),
        None => NetError::StreamEnded("with its answer"),
    })?;
    connection.close(0_u8.into(), b"answered");
    endpoint.wait_idle().await;
    Ok(GuestAnswer {
        cluster: theirs.cluster,
        member: theirs.member,
        answer: answer.into(),
    })
}

/// Reads a guest's one question, passes it to the inbox, and sends the answer back.
pub(super) async fn serve(
    connection: &Connection,
    name: String,
    inbox: &dyn Inbox,
) -> Result<(), NetError> {
    let (mut send, mut receive) = connection.accept_bi().await?;
    let question = receive.read_to_end(GUEST_BYTES_MAX).await;
    let malformed = |what: String| hello::refuse(connection, Refusal::Malformed(what));
    let question = question.map_err(|error| malformed(format!("a guest's question: {error}")))?;
    let (responder, mut answer) = Responder::detached();
    inbox
        .guest(GuestQuestion {
            name,
            question: question.into(),
            responder,
        })
        .await;
    let Some((_, Some(answer))) = answer.recv().await else {
        return Err(malformed("the question was not answered".to_owned()));
    };
    send.write_all(&answer).await?;
    send.finish().unwrap_or_default();
    // The guest closes the connection once it has the answer.
    connection.closed().await;
    Ok(())
}
