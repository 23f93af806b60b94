//! Bounds on failed logins, as clients meet them.

use crate::{
    auth::{enabled, quick},
    support::{Server, only_quorate_has, refused},
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::net::Ipv4Addr;
use tonic::{Code, Status, transport::Endpoint};

/// Tries a password from an address of this machine.
async fn log_in(server: &Server, from: u8, name: &str, password: &str) -> Result<(), Status> {
    let address = format!("http://127.0.0.1:{}", server.client_port());
    let endpoint = Endpoint::from_shared(address).unwrap();
    let local = Ipv4Addr::new(127, 0, 0, from);
    let channel = endpoint.local_address(Some(local.into())).connect().await;
    let mut auth = pb::auth_client::AuthClient::new(channel.unwrap());
    let request = pb::AuthenticateRequest {
        name: name.into(),
        password: password.into(),
    };
    auth.authenticate(request).await.map(drop)
}

const WRONG: &str = "etcdserver: authentication failed, invalid user ID or password";
const TOO_MANY: &str = "etcdserver: too many failed logins, try again later";

#[tokio::test]
async fn guessing_is_bounded_and_locks_nobody_else_out() {
    if only_quorate_has("a bound on failed logins") {
        return;
    }
    let mut setup = quick();
    // The test may take seconds: three failures, forgotten in ten seconds each.
    let bound = ("QUORATE_AUTH_FAILED_LOGINS_MAX".into(), "3".into());
    setup.env.push(bound);
    let server = Server::start_with(setup).await;
    enabled(&server).await;
    let right = "u's secret";
    let mut failed = 0;
    loop {
        let outcome = log_in(&server, 2, "u", "planted wrong password").await;
        let refusal = outcome.unwrap_err();
        if refusal.message() == TOO_MANY {
            assert_eq!(refusal.code(), Code::ResourceExhausted);
            break;
        }
        refused(Err::<(), _>(refusal), Code::InvalidArgument, WRONG);
        failed += 1;
    }
    assert!(failed >= 3, "{failed} were compared");
    let refusal = log_in(&server, 2, "u", right).await;
    refused(refusal, Code::ResourceExhausted, TOO_MANY);
    log_in(&server, 3, "u", right).await.unwrap();
    log_in(&server, 2, "root", "root's secret").await.unwrap();
    let text = "logins from 127.0.0.2 are refused for now";
    assert_eq!(server.log().matches(text).count(), 1, "once a minute");
    assert!(!server.log().contains("planted"));
}

#[tokio::test]
async fn right_passwords_are_not_bounded() {
    let server = Server::start_with(quick()).await;
    enabled(&server).await;
    for _ in 0..40 {
        log_in(&server, 1, "u", "u's secret").await.unwrap();
    }
    let long = "p".repeat(10_000);
    let refusal = log_in(&server, 1, "u", &long).await;
    refused(refusal, Code::InvalidArgument, WRONG);
    let refusal = log_in(&server, 1, &long, &long).await;
    refused(refusal, Code::InvalidArgument, WRONG);
}
