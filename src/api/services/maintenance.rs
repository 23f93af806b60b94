//! Implements tonic's trait for `etcdserverpb.Maintenance`.

use super::{Answer, Calls, answer, stream};
use crate::api::proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, DowngradeRequest, DowngradeResponse, HashKvRequest,
    HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest, MoveLeaderResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
    maintenance_server::Maintenance,
};
use tonic::{Request, codegen::BoxStream};

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

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Answer<BoxStream<SnapshotResponse>> {
        let api = self.0.clone();
        answer(Ok(stream(|out| async move {
            api.streamed(api.snapshot(&out)).await
        })))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Answer<MoveLeaderResponse> {
        answer(self.0.move_leader(request.into_inner()).await)
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Answer<DowngradeResponse> {
        answer(self.0.downgrade(request.into_inner()).await)
    }
}
