//! `etcdserverpb.Lease`.

use super::{Api, lines, proto::etcdserverpb as pb, status::Status};
use crate::{actors::leases::LeaseTime, types::LeaseId};
use tokio::sync::{mpsc, oneshot};

/// Renewals of one stream in flight. Further ones wait unread, so that flow control slows the client down.
const RENEWALS_MAX: usize = 128;

/// A renewal in flight. Only its small result waits for a client that takes no answers, not its task.
type Renewing = oneshot::Receiver<Result<pb::LeaseKeepAliveResponse, Status>>;

impl Api {
    pub async fn lease_grant(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> Result<pb::LeaseGrantResponse, Status> {
        self.about(|| lines::of_lease(request.id, request.ttl));
        let id = (request.id != 0).then_some(LeaseId(request.id));
        let granted = self.requests.grant_lease(id, request.ttl).await?;
        Ok(pb::LeaseGrantResponse {
            header: Some(self.header(granted.revision).into()),
            id: granted.id.0,
            ttl: granted.ttl_secs,
            error: String::new(),
        })
    }

    pub async fn lease_revoke(
        &self,
        request: pb::LeaseRevokeRequest,
    ) -> Result<pb::LeaseRevokeResponse, Status> {
        self.about(|| lines::of_lease(request.id, 0));
        let revision = self.requests.revoke_lease(LeaseId(request.id)).await?;
        let header = Some(self.header(revision).into());
        Ok(pb::LeaseRevokeResponse { header })
    }

    /// One message of `Lease.LeaseKeepAlive`. etcd: the header has the state before the renewal; a lease that does not exist has
    /// the TTL 0.
    pub async fn lease_keep_alive(
        &self,
        request: pb::LeaseKeepAliveRequest,
    ) -> Result<pb::LeaseKeepAliveResponse, Status> {
        self.about(|| lines::of_lease(request.id, 0));
        let header = self.header_now();
        let ttl_secs = self
            .requests
            .keep_alive_in_turn(LeaseId(request.id))
            .await?;
        Ok(pb::LeaseKeepAliveResponse {
            header: Some(header),
            id: request.id,
            ttl: ttl_secs.unwrap_or(0),
        })
    }

    /// Answers the renewals of a stream in order, with many in flight, until the client closes its side.
    pub async fn lease_keep_alives(
        &self,
        mut requests: tonic::Streaming<pb::LeaseKeepAliveRequest>,
        out: mpsc::Sender<Result<pb::LeaseKeepAliveResponse, Status>>,
    ) -> Result<(), Status> {
        let (renewals, mut renewing) = mpsc::channel::<Renewing>(RENEWALS_MAX);
        let read = async move {
            while let Some(request) = next(&mut requests).await? {
                let api = self.clone();
                let (done, renewal) = oneshot::channel();
                tokio::task::spawn_local(async move {
                    drop(done.send(api.lease_keep_alive(request).await));
                });
                if renewals.send(renewal).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let write = async move {
            while let Some(renewal) = renewing.recv().await {
                let response = renewal.await.map_err(|_| Status::canceled())??;
                if out.send(Ok(response)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let both = async { tokio::try_join!(read, write).map(|((), ())| ()) };
        self.unless_stopping(both).await
    }

    /// `Lease.LeaseTimeToLive`. etcd: a lease that does not exist has the TTL -1.
    pub async fn lease_time_to_live(
        &self,
        request: pb::LeaseTimeToLiveRequest,
    ) -> Result<pb::LeaseTimeToLiveResponse, Status> {
        self.about(|| lines::of_lease(request.id, 0));
        let id = LeaseId(request.id);
        let time = self.requests.time_to_live(id, request.keys).await?;
        let time = time.unwrap_or(LeaseTime {
            left_secs: -1,
            ..LeaseTime::default()
        });
        Ok(pb::LeaseTimeToLiveResponse {
            header: Some(self.header_now()),
            id: request.id,
            ttl: time.left_secs,
            granted_ttl: time.ttl_secs,
            keys: time.keys,
        })
    }

    /// `Lease.LeaseLeases`: the leases in the state that this member has applied.
    pub async fn lease_leases(
        &self,
        _: pb::LeaseLeasesRequest,
    ) -> Result<pb::LeaseLeasesResponse, Status> {
        let ids = self.requests.leases().await?;
        let leases = ids.iter().map(|id| pb::LeaseStatus { id: id.0 });
        Ok(pb::LeaseLeasesResponse {
            header: Some(self.header_now()),
            leases: leases.collect(),
        })
    }
}

async fn next<T>(requests: &mut tonic::Streaming<T>) -> Result<Option<T>, Status> {
    let next = requests.message().await;
    next.map_err(|status| Status::from_tonic(&status))
}
