//! Implements tonic's trait for `grpc.health.v1.Health`.

use super::{Answer, Calls, answer, stream};
use crate::api::proto::healthpb::{HealthCheckRequest, HealthCheckResponse, health_server::Health};
use tonic::{Request, codegen::BoxStream};

#[tonic::async_trait]
impl Health for Calls {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        answer(self.0.health_check(&request.into_inner()))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Answer<BoxStream<HealthCheckResponse>> {
        let (api, request) = (self.0.clone(), request.into_inner());
        answer(Ok(stream(|out| async move {
            api.streamed(api.health_watch(&request, &out)).await
        })))
    }
}
