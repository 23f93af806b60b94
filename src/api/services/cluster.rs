//! `etcdserverpb.Cluster` as tonic sees it.

use super::{Answer, Calls, answer};
use crate::api::proto::etcdserverpb::{
    MemberListRequest, MemberListResponse, cluster_server::Cluster,
};
use tonic::Request;

#[tonic::async_trait]
impl Cluster for Calls {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Answer<MemberListResponse> {
        answer(Ok(self.0.member_list(request.into_inner())))
    }
}
