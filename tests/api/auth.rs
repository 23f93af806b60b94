//! Authentication is off, and the calls that clients make first about it say so.

use crate::support::{Difference, Server, refused};
use quorate::internals::api::proto::etcdserverpb as pb;
use tonic::Code;

#[tokio::test]
async fn calls_about_authentication_say_that_it_is_off() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let mut auth = client.auth.clone();
    let users = auth.user_list(pb::AuthUserListRequest {}).await.unwrap();
    let users = users.into_inner();
    assert_eq!(users.users.len(), 0);
    assert_eq!(users.header.unwrap().revision, 2);
    let roles = auth.role_list(pb::AuthRoleListRequest {}).await.unwrap();
    assert_eq!(roles.into_inner().roles.len(), 0);
    let asked = pb::AuthenticateRequest {
        name: "root".to_owned(),
        password: "secret".to_owned(),
    };
    let text = "etcdserver: authentication is not enabled";
    let outcome = auth.authenticate(asked).await;
    refused(outcome.map(|_| ()), Code::FailedPrecondition, text);
    if !server.has(Difference::AuthStatus) {
        let status = auth.auth_status(pb::AuthStatusRequest {}).await.unwrap();
        let status = status.into_inner();
        assert_eq!((status.enabled, status.auth_revision), (false, 1));
    }
}
