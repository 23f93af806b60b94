//! gRPC clients of one member: leases, locks and elections.

use crate::ctl::etcdctl;
use quorate::internals::api::proto::{etcdserverpb as pb, v3electionpb as ep, v3lockpb as lp};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tonic::{
    Response, Status, Streaming,
    codegen::tokio_stream::{Stream, StreamExt as _},
    transport::{Channel, Endpoint},
};

/// How long a test waits for something that must happen soon: generous, for a loaded machine and a debug build.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Clients of the member at one port, over one connection that is made when it is first used.
#[derive(Clone, Debug)]
pub(crate) struct Clients {
    pub(crate) kv: pb::kv_client::KvClient<Channel>,
    pub(crate) watch: pb::watch_client::WatchClient<Channel>,
    pub(crate) leases: pb::lease_client::LeaseClient<Channel>,
    pub(crate) locks: lp::lock_client::LockClient<Channel>,
    pub(crate) elections: ep::election_client::ElectionClient<Channel>,
}

impl Clients {
    pub(crate) fn of(port: u16) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"));
        let channel = endpoint.expect("a valid URI").connect_lazy();
        Self {
            kv: pb::kv_client::KvClient::new(channel.clone()),
            watch: pb::watch_client::WatchClient::new(channel.clone()),
            leases: pb::lease_client::LeaseClient::new(channel.clone()),
            locks: lp::lock_client::LockClient::new(channel.clone()),
            elections: ep::election_client::ElectionClient::new(channel),
        }
    }

    /// Grants a lease; zero lets the member choose its id.
    pub(crate) async fn grant(&self, id: i64, ttl: i64) -> i64 {
        let grant = pb::LeaseGrantRequest { ttl, id };
        let granted = self.leases.clone().lease_grant(grant).await;
        granted.expect("a lease").into_inner().id
    }

    pub(crate) async fn revoke(&self, id: i64) -> Result<pb::LeaseRevokeResponse, Status> {
        let revoke = pb::LeaseRevokeRequest { id };
        let revoked = self.leases.clone().lease_revoke(revoke).await;
        revoked.map(Response::into_inner)
    }

    pub(crate) async fn time_to_live(
        &self,
        id: i64,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        let ask = pb::LeaseTimeToLiveRequest { id, keys: true };
        let time = self.leases.clone().lease_time_to_live(ask).await;
        time.map(Response::into_inner)
    }

    pub(crate) async fn list(&self) -> Vec<i64> {
        let mut leases = self.leases.clone();
        let list = leases.lease_leases(pb::LeaseLeasesRequest {}).await;
        let list = list.expect("a list").into_inner();
        list.leases.into_iter().map(|lease| lease.id).collect()
    }

    /// Opens a stream of renewals.
    pub(crate) async fn renewals(&self) -> Result<Renewals, Status> {
        let (send, receive) = mpsc::channel(1_024);
        let mut leases = self.leases.clone();
        let answers = leases.lease_keep_alive(Sent(receive)).await?.into_inner();
        Ok(Renewals { send, answers })
    }

    /// Renews once; zero stands for a lease that is gone.
    pub(crate) async fn renew(&self, id: i64) -> Result<i64, Status> {
        let mut renewals = self.renewals().await?;
        renewals.send(id).await;
        Ok(renewals.next().await?.ttl)
    }

    pub(crate) async fn put(&self, key: &str, lease: i64) -> Result<i64, Status> {
        let put = pb::PutRequest {
            key: key.to_owned().into(),
            value: "v".into(),
            lease,
            ..pb::PutRequest::default()
        };
        let done = self.kv.clone().put(put).await?.into_inner();
        Ok(done.header.map_or(0, |header| header.revision))
    }

    /// The keys with this prefix, as all members agree.
    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let mut range_end = prefix.as_bytes().to_vec();
        *range_end.last_mut().expect("a prefix") += 1;
        let range = pb::RangeRequest {
            key: prefix.to_owned().into(),
            range_end: range_end.into(),
            keys_only: true,
            ..pb::RangeRequest::default()
        };
        let found = self.kv.clone().range(range).await.expect("a range");
        let text = |kv: quorate::internals::api::proto::mvccpb::KeyValue| {
            String::from_utf8_lossy(&kv.key).into_owned()
        };
        found.into_inner().kvs.into_iter().map(text).collect()
    }

    /// Takes a lock; the answer has its key.
    pub(crate) async fn lock(&self, name: &str, lease: i64) -> Result<lp::LockResponse, Status> {
        let name = name.to_owned().into();
        let mut locks = self.locks.clone();
        let locked = locks.lock(lp::LockRequest { name, lease }).await;
        locked.map(Response::into_inner)
    }

    pub(crate) async fn campaign(
        &self,
        name: &str,
        lease: i64,
        value: &str,
    ) -> Result<ep::LeaderKey, Status> {
        let campaign = ep::CampaignRequest {
            name: name.to_owned().into(),
            lease,
            value: value.to_owned().into(),
        };
        let won = self.elections.clone().campaign(campaign).await?;
        Ok(won.into_inner().leader.expect("it names the leader"))
    }

    pub(crate) async fn proclaim(&self, leader: &ep::LeaderKey, value: &str) -> Result<(), Status> {
        let proclaim = ep::ProclaimRequest {
            leader: Some(leader.clone()),
            value: value.to_owned().into(),
        };
        let proclaimed = self.elections.clone().proclaim(proclaim).await;
        proclaimed.map(drop)
    }

    pub(crate) async fn resign(&self, leader: &ep::LeaderKey) -> Result<(), Status> {
        let leader = Some(leader.clone());
        let mut elections = self.elections.clone();
        let resigned = elections.resign(ep::ResignRequest { leader }).await;
        resigned.map(drop)
    }

    pub(crate) async fn observe(&self, name: &str) -> Streaming<ep::LeaderResponse> {
        let name = name.to_owned().into();
        let mut elections = self.elections.clone();
        let observing = elections.observe(ep::LeaderRequest { name }).await;
        observing.expect("a stream").into_inner()
    }
}

/// A stream of renewals and its answers.
#[derive(Debug)]
pub(crate) struct Renewals {
    send: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    pub(crate) answers: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Renewals {
    /// A stream that has ended takes no more; its answers say why.
    pub(crate) async fn send(&self, id: i64) {
        let sent = self.send.send(pb::LeaseKeepAliveRequest { id }).await;
        sent.unwrap_or_default();
    }

    pub(crate) async fn next(&mut self) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let next = timeout(PATIENCE, self.answers.next()).await;
        next.expect("an answer in time")
            .expect("the stream goes on")
    }
}

/// What a test sends, as a stream.
struct Sent<T>(mpsc::Receiver<T>);

impl<T> Stream for Sent<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}

/// The value of the next leader that an observer receives.
pub(crate) async fn next_leader(observed: &mut Streaming<ep::LeaderResponse>) -> String {
    let next = timeout(PATIENCE, observed.next()).await;
    let next = next.expect("a leader in time").expect("the stream goes on");
    let kv = next.expect("a leader").kv.expect("it has a key");
    String::from_utf8_lossy(&kv.value).into_owned()
}

/// Waits until the queue has this many candidates.
pub(crate) async fn in_line(port: u16, name: &str, count: usize) {
    let start = quorate::internals::clock::now();
    loop {
        let args = ["get", name, "--prefix", "--keys-only"];
        let listed = etcdctl(&[port], &args).await.ok();
        let found = listed.lines().filter(|line| !line.is_empty()).count();
        if found == count {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{found} of {count} in {name}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
