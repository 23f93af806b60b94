//! Implements tonic's trait for `etcdserverpb.Lease`.

use super::{Answer, Calls, answer, stream};
use crate::api::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_server::Lease,
};
use tonic::{Request, Streaming, codegen::BoxStream};

#[tonic::async_trait]
impl Lease for Calls {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Answer<LeaseGrantResponse> {
        answer(self.0.lease_grant(request.into_inner()).await)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Answer<LeaseRevokeResponse> {
        answer(self.0.lease_revoke(request.into_inner()).await)
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Answer<BoxStream<LeaseKeepAliveResponse>> {
        let (api, renewals) = (self.0.clone(), request.into_inner());
        answer(Ok(stream(|out| async move {
            api.streamed(api.lease_keep_alives(renewals, out)).await
        })))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Answer<LeaseTimeToLiveResponse> {
        answer(self.0.lease_time_to_live(request.into_inner()).await)
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Answer<LeaseLeasesResponse> {
        answer(self.0.lease_leases(request.into_inner()).await)
    }
}
