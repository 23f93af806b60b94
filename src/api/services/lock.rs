//! Implements tonic's trait for `v3lockpb.Lock`.

use super::{Answer, Calls, answer};
use crate::api::proto::v3lockpb::{
    LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock,
};
use tonic::Request;

#[tonic::async_trait]
impl Lock for Calls {
    async fn lock(&self, request: Request<LockRequest>) -> Answer<LockResponse> {
        answer(self.0.lock(request.into_inner()).await)
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Answer<UnlockResponse> {
        answer(self.0.unlock(request.into_inner()).await)
    }
}
