//! Implements tonic's trait for `etcdserverpb.Maintenance`.

use super::{Answer, Calls, answer};
use crate::api::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DowngradeRequest, DowngradeResponse, HashKvRequest,
    HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    StatusRequest, StatusResponse, maintenance_server::Maintenance,
};
use tonic::Request;

#[tonic::async_trait]
impl Maintenance for Calls {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Answer<AlarmResponse> {
        answer(self.0.alarm(request.into_inner()).await)
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        answer(self.0.status(request.into_inner()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Answer<HashResponse> {
        answer(self.0.hash(request.into_inner()).await)
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Answer<HashKvResponse> {
        answer(self.0.hash_kv(request.into_inner()).await)
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        answer(self.0.move_leader(request.into_inner()).await)
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        answer(self.0.downgrade(request.into_inner()).await)
    }
}
