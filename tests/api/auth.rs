//! Users, roles and tokens: what clients rely on, and what Quorate promises beyond etcd.

use crate::support::{
    Client, Difference, Server, Setup, etcdctl,
    frames::{END_HEADERS, END_STREAM, FrameConnection, HEADERS, call_headers, encode},
    get, only_quorate_has, put, refused,
};
use quorate::internals::api::proto::{authpb, etcdserverpb as pb};
use std::time::Duration;
use tokio::task::JoinSet;
use tonic::{Code, Request};

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

/// A client with authentication on: root and `u`, who may read and write `a` to `b`.
pub(crate) async fn enabled(server: &Server) -> Client {
    let client = server.client().await;
    let mut auth = client.auth.clone();
    for (name, password) in [("root", "root's secret"), ("u", "u's secret")] {
        let user = pb::AuthUserAddRequest {
            name: name.into(),
            password: password.into(),
            ..Default::default()
        };
        auth.user_add(user).await.unwrap();
    }
    let role = |name: &str| pb::AuthRoleAddRequest { name: name.into() };
    auth.role_add(role("r")).await.unwrap();
    let permission = authpb::Permission {
        perm_type: 2,
        key: "a".into(),
        range_end: "b".into(),
    };
    let grant = pb::AuthRoleGrantPermissionRequest {
        name: "r".into(),
        perm: Some(permission),
    };
    auth.role_grant_permission(grant).await.unwrap();
    for (user, role) in [("root", "root"), ("u", "r")] {
        let grant = pb::AuthUserGrantRoleRequest {
            user: user.into(),
            role: role.into(),
        };
        auth.user_grant_role(grant).await.unwrap();
    }
    auth.auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    client
}

pub(crate) async fn log_in(client: &Client, name: &str) -> String {
    let request = pb::AuthenticateRequest {
        name: name.into(),
        password: format!("{name}'s secret"),
    };
    let answer = client.auth.clone().authenticate(request).await.unwrap();
    answer.into_inner().token
}

pub(crate) fn by<T>(token: &str, message: T) -> Request<T> {
    named("token", token, message)
}

fn named<T>(name: &'static str, token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(name, token.parse().unwrap());
    request
}

/// Fewer rounds of bcrypt, since debug builds are slow.
pub(crate) fn quick() -> Setup {
    let cost = ("QUORATE_AUTH_BCRYPT_COST".into(), "4".into());
    Setup {
        env: vec![cost],
        ..Setup::default()
    }
}

#[tokio::test]
async fn a_token_is_good_under_each_name_and_after_a_restart() {
    if only_quorate_has("a token that survives a restart") {
        return;
    }
    let mut server = Server::start_with(quick()).await;
    let client = enabled(&server).await;
    let token = log_in(&client, "u").await;
    let mut kv = client.kv.clone();
    for (name, text) in [
        ("token", token.clone()),
        ("token", format!("Bearer {token}")),
        ("authorization", token.clone()),
        ("authorization", format!("Bearer {token}")),
    ] {
        kv.put(named(name, &text, put("a1", "v"))).await.unwrap();
    }
    for text in [format!("bearer {token}"), format!("{token}0"), "x".into()] {
        let outcome = kv.put(by(&text, put("a1", "v"))).await;
        let text = "etcdserver: invalid auth token";
        refused(outcome.map(drop), Code::Unauthenticated, text);
    }
    for graceful in [true, false] {
        if graceful {
            server.signal(rustix::process::Signal::TERM);
            server.stopped().await;
        } else {
            server.kill().await;
        }
        server.restart().await;
        let mut kv = server.client().await.kv;
        kv.put(by(&token, put("a1", "v"))).await.unwrap();
        let outcome = kv.put(by(&token, put("b1", "v"))).await;
        let text = "etcdserver: permission denied";
        refused(outcome.map(drop), Code::PermissionDenied, text);
    }
}

#[tokio::test]
async fn tokens_end_after_their_time_unless_they_are_used() {
    if only_quorate_has("the setting in variables") {
        return;
    }
    let mut setup = quick();
    setup
        .env
        .push(("QUORATE_AUTH_TOKEN_TTL_SECS".into(), "1".into()));
    let server = Server::start_with(setup).await;
    let client = enabled(&server).await;
    let (used, idle) = (log_in(&client, "u").await, log_in(&client, "u").await);
    let mut kv = client.kv.clone();
    let idle_ends = async {
        // Asking is a use: only an ended token stays unknown, so look at longer and longer intervals.
        let mut pause = Duration::from_secs(2);
        loop {
            tokio::time::sleep(pause).await;
            match client.kv.clone().range(by(&idle, get("a1"))).await {
                Ok(_) => pause += Duration::from_secs(1),
                Err(status) => return status,
            }
        }
    };
    let use_on = async {
        loop {
            kv.range(by(&used, get("a1"))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let status: tonic::Status = tokio::select! {
        status = idle_ends => status,
        () = use_on => unreachable!("it goes on"),
    };
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_permission_that_is_taken_away_ends_its_watches_alone() {
    if only_quorate_has("the end of a watch with its permission") {
        return;
    }
    let server = Server::start_with(quick()).await;
    let client = enabled(&server).await;
    let (root, token) = (log_in(&client, "root").await, log_in(&client, "u").await);
    let grant = |key: &str| pb::AuthRoleGrantPermissionRequest {
        name: "r".into(),
        perm: Some(authpb::Permission {
            perm_type: 0,
            key: key.to_owned().into(),
            range_end: bytes::Bytes::new(),
        }),
    };
    let mut auth = client.auth.clone();
    let asked = by(&root, grant("x"));
    auth.role_grant_permission(asked).await.unwrap();
    let create = |key: &str, end: &str| pb::WatchRequest {
        request_union: Some(pb::watch_request::RequestUnion::CreateRequest(
            pb::WatchCreateRequest {
                key: key.to_owned().into(),
                range_end: end.to_owned().into(),
                ..Default::default()
            },
        )),
    };
    let (send, requests) = tokio::sync::mpsc::channel(8);
    for (key, end) in [("a", "b"), ("x", ""), ("x", "\0"), ("a", "\0")] {
        send.send(create(key, end)).await.unwrap();
    }
    let requests = ReceiverStream(requests);
    let answers = client.watch.clone().watch(by(&token, requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut next = async || answers.message().await.unwrap().unwrap();
    for id in 0..2 {
        let created = next().await;
        assert!(created.created && !created.canceled && created.watch_id == id);
    }
    for _ in 0..2 {
        let refusal = next().await;
        assert!(
            refusal.created && refusal.canceled,
            "from the key on: all of it"
        );
        let text = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert_eq!(refusal.cancel_reason, text);
    }
    let mut kv = client.kv.clone();
    kv.put(by(&root, put("a1", "1"))).await.unwrap();
    assert_eq!(next().await.events.len(), 1);
    let revoke = pb::AuthRoleRevokePermissionRequest {
        role: "r".into(),
        key: "a".into(),
        range_end: "b".into(),
    };
    auth.role_revoke_permission(by(&root, revoke))
        .await
        .unwrap();
    kv.put(by(&root, put("a1", "secret"))).await.unwrap();
    kv.put(by(&root, put("x", "2"))).await.unwrap();
    let over = next().await;
    assert!(over.canceled && over.watch_id == 0 && over.events.is_empty());
    assert_eq!(over.cancel_reason, "etcdserver: permission denied");
    let other = next().await;
    assert_eq!((other.watch_id, other.events.len()), (1, 1), "it goes on");
    drop(send);
}

#[tokio::test]
async fn turning_it_on_ends_what_nobody_proved() {
    if only_quorate_has("the end of watches without a user") {
        return;
    }
    let server = Server::start_with(quick()).await;
    let client = server.client().await;
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let create = pb::WatchCreateRequest {
        key: "a1".into(),
        ..Default::default()
    };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request_union = Some(create);
    send.send(pb::WatchRequest { request_union }).await.unwrap();
    let answers = client.watch.clone().watch(ReceiverStream(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    assert!(answers.message().await.unwrap().unwrap().created);
    let client = enabled(&server).await;
    let over = answers.message().await.unwrap().unwrap();
    assert!(over.canceled, "{over:?}");
    let text = "etcdserver: user name is empty";
    let outcome = client.put(put("a1", "v")).await;
    refused(outcome, Code::InvalidArgument, text);
    refused(client.range(get("a1")).await, Code::InvalidArgument, text);
}

#[tokio::test]
async fn no_secret_reaches_the_log() {
    if only_quorate_has("the setting in variables") {
        return;
    }
    let mut setup = quick();
    setup.env.push(("QUORATE_LOG_LEVEL".into(), "trace".into()));
    let mut server = Server::start_with(setup).await;
    let client = enabled(&server).await;
    let token = log_in(&client, "u").await;
    let wrong = pb::AuthenticateRequest {
        name: "u".into(),
        password: "planted wrong password".into(),
    };
    let outcome = client.auth.clone().authenticate(wrong).await;
    let text = "etcdserver: authentication failed, invalid user ID or password";
    refused(outcome.map(drop), Code::InvalidArgument, text);
    let mut kv = client.kv.clone();
    kv.put(by(&token, put("a1", "planted value")))
        .await
        .unwrap();
    let outcome = kv
        .put(by("plantedtoken.77", put("a1", "planted value")))
        .await;
    assert!(outcome.is_err());
    // Some clients send the URL that they were given as their authority.
    let url = b"http://root:planted@127.0.0.1:2379";
    let head = call_headers("/etcdserverpb.KV/Range", url);
    let head = encode(HEADERS, END_HEADERS | END_STREAM, 1, &head);
    let mut connection = FrameConnection::connect(server.client_port()).await;
    connection.send(&head).await.unwrap();
    connection.next(1).await.expect("an answer");
    server.kill().await;
    server.restart().await;
    let (secret, _) = token.split_once('.').unwrap();
    let log = server.log();
    assert!(log.len() > 100, "something is logged");
    let authority = "a request's authority is not a host";
    assert!(log.contains(authority), "its length is logged:\n{log}");
    for planted in ["u's secret", "root's secret", "planted", secret, "$2a$"] {
        assert!(!log.contains(planted), "{planted:?} in the log:\n{log}");
    }
    // Nor does any file hold a password or a token that can be used.
    let mut files = vec![server.data_dir().to_owned()];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            files.extend(entries.map(|entry| entry.unwrap().path()));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for planted in ["u's secret", "planted wrong", "plantedtoken", secret] {
            let found = bytes
                .windows(planted.len())
                .any(|at| at == planted.as_bytes());
            assert!(!found, "{planted:?} in {path:?}");
        }
    }
}

#[tokio::test]
async fn a_password_has_at_most_72_bytes() {
    let server = Server::start().await;
    let client = server.client().await;
    let add = |name: &str, bytes: usize| pb::AuthUserAddRequest {
        name: name.into(),
        password: "p".repeat(bytes),
        ..Default::default()
    };
    let mut auth = client.auth.clone();
    auth.user_add(add("fits", 72)).await.unwrap();
    let outcome = auth.user_add(add("long", 73)).await;
    let text = "bcrypt: password length exceeds 72 bytes";
    refused(outcome.map(drop), Code::Unknown, text);
}

/// It is refused where it is to be set, and compared where it is tried; the connection and the member go on.
#[tokio::test]
async fn a_password_of_10_kb_is_answered_as_by_etcd() {
    let server = Server::start().await;
    let client = server.client().await;
    let add = |name: &str, bytes: usize| pb::AuthUserAddRequest {
        name: name.into(),
        password: "p".repeat(bytes),
        ..Default::default()
    };
    let mut auth = client.auth.clone();
    auth.user_add(add("fits", 72)).await.unwrap();
    let outcome = auth.user_add(add("long", 10_000)).await;
    let text = "bcrypt: password length exceeds 72 bytes";
    refused(outcome.map(drop), Code::Unknown, text);
    let client = enabled(&server).await;
    let mut auth = client.auth.clone();
    let log_in = |name: &str, letter: &str| pb::AuthenticateRequest {
        name: name.into(),
        password: letter.repeat(10_000),
    };
    let text = "etcdserver: authentication failed, invalid user ID or password";
    for (name, letter) in [("fits", "q"), ("u", "p"), ("nobody", "p")] {
        let outcome = auth.authenticate(log_in(name, letter)).await;
        refused(outcome.map(drop), Code::InvalidArgument, text);
    }
    // etcd: of a password that is tried, bcrypt reads 72 bytes.
    auth.authenticate(log_in("fits", "p")).await.unwrap();
    let change = pb::AuthUserChangePasswordRequest {
        name: "fits".into(),
        password: "p".repeat(10_000),
        ..Default::default()
    };
    let root = crate::auth::log_in(&client, "root").await;
    let outcome = auth.user_change_password(by(&root, change)).await;
    let text = "bcrypt: password length exceeds 72 bytes";
    refused(outcome.map(drop), Code::Unknown, text);
}

#[tokio::test]
async fn who_may_not_set_a_password_takes_no_place_where_they_are_hashed() {
    let server = Server::start().await;
    let client = enabled(&server).await;
    let u = log_in(&client, "u").await;
    let mut calls = JoinSet::new();
    // Far more than may wait for a hash.
    for number in 0..150 {
        let (mut auth, u) = (client.auth.clone(), u.clone());
        let (name, password) = (format!("user {number}"), "secret".to_owned());
        if number % 2 == 0 {
            let add = pb::AuthUserAddRequest {
                name,
                password,
                ..Default::default()
            };
            calls.spawn(async move { auth.user_add(by(&u, add)).await.map(drop) });
        } else {
            let name = "u".into();
            let change = pb::AuthUserChangePasswordRequest {
                name,
                password,
                ..Default::default()
            };
            calls.spawn(async move { auth.user_change_password(by(&u, change)).await.map(drop) });
        }
    }
    while let Some(outcome) = calls.join_next().await {
        let text = "etcdserver: permission denied";
        refused(outcome.unwrap(), Code::PermissionDenied, text);
    }
}

#[tokio::test]
async fn etcdctl_logs_in() {
    let server = Server::start().await;
    let ctl = async |args: &[&str]| etcdctl(&server, args, "").await;
    ctl(&["user", "add", "root:secret"]).await.ok();
    ctl(&["user", "grant-role", "root", "root"]).await;
    ctl(&["user", "add", "u:pass"]).await.ok();
    ctl(&["role", "add", "r"]).await.ok();
    ctl(&[
        "role",
        "grant-permission",
        "r",
        "readwrite",
        "a",
        "--prefix",
    ])
    .await
    .ok();
    ctl(&["user", "grant-role", "u", "r"]).await.ok();
    ctl(&["auth", "enable"]).await.ok();
    let (root, u) = ("--user=root:secret", "--user=u:pass");
    assert_eq!(ctl(&[u, "put", "a1", "v"]).await.ok(), "OK\n");
    assert_eq!(ctl(&[u, "get", "a1"]).await.ok(), "a1\nv\n");
    let denied = ctl(&[u, "put", "b1", "v"]).await;
    assert!(denied.stderr.contains("permission denied"), "{denied:?}");
    let nobody = ctl(&["get", "a1"]).await;
    assert!(nobody.stderr.contains("user name is empty"), "{nobody:?}");
    let wrong = ctl(&["--user=u:wrong", "get", "a1"]).await;
    assert!(wrong.stderr.contains("authentication failed"), "{wrong:?}");
    let role = ctl(&[root, "role", "get", "r"]).await.ok();
    assert!(role.contains("[a, b)"), "{role}");
    let lock = ctl(&[u, "lock", "a/lock", "true"]).await;
    assert_eq!(lock.code, 0, "{lock:?}");
    let lock = ctl(&[u, "lock", "b/lock", "true"]).await;
    assert_ne!(lock.code, 0, "{lock:?}");
    ctl(&[root, "auth", "disable"]).await.ok();
    assert_eq!(ctl(&["get", "a1"]).await.ok(), "a1\nv\n");
}

/// Requests as they are sent into a channel.
pub(crate) struct ReceiverStream<T>(pub(crate) tokio::sync::mpsc::Receiver<T>);

impl<T> tokio_stream::Stream for ReceiverStream<T> {
    type Item = T;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<T>> {
        self.0.poll_recv(context)
    }
}
