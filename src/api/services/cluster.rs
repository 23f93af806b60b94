//! Implements tonic's trait for `etcdserverpb.Cluster`.

use super::{Answer, Calls, answer};
use crate::api::proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server::Cluster,
};
use tonic::Request;

#[tonic::async_trait]
impl Cluster for Calls {
    async fn member_add(&self, request: Request<MemberAddRequest>) -> Answer<MemberAddResponse> {
        answer(self.0.member_add(request.into_inner()).await)
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Answer<MemberRemoveResponse> {
        answer(self.0.member_remove(request.into_inner()).await)
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Answer<MemberUpdateResponse> {
        answer(self.0.member_update(request.into_inner()).await)
    }

    async fn member_list(&self, request: Request<MemberListRequest>) -> Answer<MemberListResponse> {
        answer(self.0.member_list(request.into_inner()).await)
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Answer<MemberPromoteResponse> {
        answer(self.0.member_promote(request.into_inner()).await)
    }
}
