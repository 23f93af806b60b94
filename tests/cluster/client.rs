//! A client of one member over gRPC, and the questions tests ask of all of them.

use crate::{
    history::{Answer, Event, Request, Revision},
    wire,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::{net::SocketAddr, time::Duration};
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

/// How long a test waits for something that must happen soon: generous, for a loaded machine and a debug build.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// Pause between two attempts.
const POLL: Duration = Duration::from_millis(100);
/// A connection attempt within one machine that takes longer has failed.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// What a member answered: the header's revision, and the rest.
pub(crate) type Answered = Result<(Revision, Answer), Status>;

/// A connection to one member. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    channel: Channel,
    kv: pb::kv_client::KvClient<Channel>,
}

fn revision(header: Option<pb::ResponseHeader>) -> Revision {
    header.expect("every answer has a header").revision
}

impl Client {
    /// `None` if no process listens there, or it does not answer.
    pub(crate) async fn connect(address: SocketAddr) -> Option<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("a valid URI");
        let connected = timeout(CONNECT_MAX, endpoint.connect()).await;
        let channel = connected.ok()?.ok()?;
        let kv =
            pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        Some(Self { channel, kv })
    }

    /// Connects to a member that runs, or is about to.
    pub(crate) async fn must_connect(address: SocketAddr) -> Self {
        let start = quorate::internals::clock::now();
        loop {
            if let Some(client) = Self::connect(address).await {
                return client;
            }
            assert!(start.elapsed() < PATIENCE, "nobody listens at {address}");
            sleep(POLL).await;
        }
    }

    /// Sends a request of a history.
    pub(crate) async fn ask(&self, request: &Request) -> Answered {
        let mut kv = self.kv.clone();
        match request {
            Request::Range(asked) => {
                let answer = kv.range(wire::range(asked)).await?.into_inner();
                Ok((revision(answer.header), wire::ranged(answer)))
            }
            Request::Put(asked) => {
                let answer = kv.put(wire::put(asked)).await?.into_inner();
                Ok((revision(answer.header), wire::stored(answer)))
            }
            Request::DeleteRange(asked) => {
                let answer = kv.delete_range(wire::delete(asked)).await?.into_inner();
                Ok((revision(answer.header), wire::deleted(answer)))
            }
            Request::Txn(asked) => {
                let answer = kv.txn(wire::txn(asked)).await?.into_inner();
                Ok((revision(answer.header), wire::decided(answer)))
            }
            Request::Compact(_) | Request::RevokeLease(_) => Err(Status::invalid_argument(
                "no workload of real clusters sends this",
            )),
        }
    }

    async fn status(&self) -> Result<pb::StatusResponse, Status> {
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(self.channel.clone());
        let answer = maintenance.status(pb::StatusRequest {}).await;
        answer.map(tonic::Response::into_inner)
    }

    #[cfg(feature = "failpoints")]
    pub(crate) async fn revision(&self) -> Result<Revision, Status> {
        Ok(revision(self.status().await?.header))
    }

    #[cfg(feature = "failpoints")]
    pub(crate) async fn compact(&self, revision: Revision) -> Result<(), Status> {
        let request = pb::CompactionRequest {
            revision,
            physical: false,
        };
        self.kv.clone().compact(request).await.map(drop)
    }

    async fn hash(&self) -> Result<(Revision, u32), Status> {
        let mut maintenance = pb::maintenance_client::MaintenanceClient::new(self.channel.clone());
        let answer = maintenance.hash_kv(pb::HashKvRequest { revision: 0 });
        let answer = answer.await?.into_inner();
        Ok((revision(answer.header), answer.hash))
    }

    /// Every revision from `first` to `last` with its events, as a watch delivers them.
    pub(crate) async fn events(
        &self,
        first: Revision,
        last: Revision,
    ) -> Vec<(Revision, Vec<Event>)> {
        let mut watch = pb::watch_client::WatchClient::new(self.channel.clone())
            .max_decoding_message_size(usize::MAX);
        let create = pb::WatchCreateRequest {
            key: "\0".into(),
            range_end: "\0".into(),
            start_revision: first,
            ..pb::WatchCreateRequest::default()
        };
        let create = pb::WatchRequest {
            request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)),
        };
        // The stream of requests must not end before that of answers.
        let requests = tokio_stream::iter([create]).chain(tokio_stream::pending());
        let mut answers = watch.watch(requests).await.expect("a watch").into_inner();
        let mut found: Vec<(Revision, Vec<Event>)> = Vec::new();
        while found.last().map_or(first.max(2) - 1, |(at, _)| *at) < last {
            let answer = timeout(PATIENCE, answers.message()).await;
            let answer = answer
                .expect("history comes")
                .expect("a watch")
                .expect("goes on");
            assert!(
                !answer.canceled,
                "the watch ended: {}",
                answer.cancel_reason
            );
            for event in answer.events {
                let at = event
                    .kv
                    .as_ref()
                    .expect("an event has its key")
                    .mod_revision;
                let event = wire::event(event);
                match found.last_mut() {
                    Some((newest, events)) if *newest == at => events.push(event),
                    Some(_) | None => found.push((at, vec![event])),
                }
            }
        }
        found
    }
}

/// Waits until all of these follow one leader; returns its position.
pub(crate) async fn leader(members: &[SocketAddr]) -> usize {
    let start = quorate::internals::clock::now();
    loop {
        let mut statuses = Vec::new();
        for address in members {
            if let Some(client) = Client::connect(*address).await
                && let Ok(status) = client.status().await
            {
                statuses.push((status.header.expect("a header").member_id, status.leader));
            }
        }
        if statuses.len() == members.len() && statuses.iter().all(|(_, l)| *l == statuses[0].1) {
            let at = statuses.iter().position(|(id, leader)| id == leader);
            if let Some(at) = at {
                return at;
            }
        }
        assert!(
            start.elapsed() < PATIENCE,
            "no common leader in {statuses:?}"
        );
        sleep(POLL).await;
    }
}

/// Waits until all these members have one history, and returns its revision and hash.
pub(crate) async fn agreed(members: &[SocketAddr]) -> (Revision, u32) {
    let start = quorate::internals::clock::now();
    loop {
        let mut hashes = Vec::new();
        for address in members {
            let client = Client::connect(*address).await;
            let hash = match &client {
                Some(client) => client.hash().await.map_err(|status| status.to_string()),
                None => Err("nobody listens".to_owned()),
            };
            hashes.push(hash);
        }
        if let Ok(first) = hashes[0].clone()
            && hashes.iter().all(|hash| *hash == hashes[0])
        {
            return first;
        }
        assert!(start.elapsed() < PATIENCE, "they still differ: {hashes:?}");
        sleep(POLL).await;
    }
}

/// Whether an error promises that the request had no effect, whatever the request was.
pub(crate) fn certainly_not_done(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted | Code::Unimplemented
    )
}
