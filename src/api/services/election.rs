//! Implements tonic's trait for `v3electionpb.Election`.

use super::{Answer, Calls, answer, stream};
use crate::api::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse, election_server::Election,
};
use tonic::{Request, codegen::BoxStream};

#[tonic::async_trait]
impl Election for Calls {
    async fn campaign(&self, request: Request<CampaignRequest>) -> Answer<CampaignResponse> {
        answer(self.0.campaign(request.into_inner()).await)
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Answer<ProclaimResponse> {
        answer(self.0.proclaim(request.into_inner()).await)
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Answer<LeaderResponse> {
        answer(self.0.leader(request.into_inner()).await)
    }

    async fn observe(&self, request: Request<LeaderRequest>) -> Answer<BoxStream<LeaderResponse>> {
        let (api, request) = (self.0.clone(), request.into_inner());
        answer(Ok(stream(|out| async move {
            api.streamed(api.observe(request, out)).await
        })))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Answer<ResignResponse> {
        answer(self.0.resign(request.into_inner()).await)
    }
}
