//! `etcdserverpb.Auth` as tonic serves it. The other methods have no implementation yet.

use super::{Answer, Calls, answer};
use crate::api::proto::etcdserverpb::{
    AuthRoleListRequest, AuthRoleListResponse, AuthStatusRequest, AuthStatusResponse,
    AuthUserListRequest, AuthUserListResponse, AuthenticateRequest, AuthenticateResponse,
    auth_server::Auth,
};
use tonic::Request;

#[tonic::async_trait]
impl Auth for Calls {
    async fn auth_status(&self, _: Request<AuthStatusRequest>) -> Answer<AuthStatusResponse> {
        answer(Ok(self.0.auth_status()))
    }

    async fn authenticate(&self, _: Request<AuthenticateRequest>) -> Answer<AuthenticateResponse> {
        answer(self.0.authenticate())
    }

    async fn user_list(&self, _: Request<AuthUserListRequest>) -> Answer<AuthUserListResponse> {
        answer(Ok(self.0.user_list()))
    }

    async fn role_list(&self, _: Request<AuthRoleListRequest>) -> Answer<AuthRoleListResponse> {
        answer(Ok(self.0.role_list()))
    }
}
