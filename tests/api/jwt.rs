//! JSON Web Tokens: what etcd makes of them too, and what Quorate promises beyond.

use crate::{
    auth::{ReceiverStream, by, enabled, log_in, quick},
    support::{Client, Kind, Server, Setup, etcdctl, get, note, only_quorate_has, put, refused},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL};
use pb::watch_request::RequestUnion;
use quorate::internals::api::proto::{authpb, etcdserverpb as pb};
use std::{fs, path::Path, process::Command, time::Duration};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::{Code, Status, Streaming};

/// Runs `openssl` in a directory.
fn openssl(dir: &Path, script: &str) {
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let mut command = Command::new("openssl");
        let run = command.args(line.split(' ')).current_dir(dir).output();
        let run = run.expect("these tests need openssl");
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{line}: {said}");
    }
}

/// `key.pem` and `key.pub` for each way to sign.
pub(crate) fn keys(method: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let make = match &method[..2] {
        "RS" | "PS" => "genrsa -out key.pem 2048",
        "ES" if method == "ES256" => {
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem"
        }
        "ES" => "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem",
        "Ed" => "genpkey -algorithm ed25519 -out key.pem",
        _ => "rand -out key.pem 64",
    };
    openssl(dir.path(), make);
    if !method.starts_with("HS") {
        openssl(dir.path(), "pkey -in key.pem -pubout -out key.pub");
    }
    dir
}

/// `auth.token` in etcd's notation.
pub(crate) fn option(method: &str, keys: &Path, private: bool) -> String {
    let file = |name: &str| keys.join(name).display().to_string();
    let mut options = vec![format!("jwt,sign-method={method},ttl=10m")];
    if private {
        options.push(format!("priv-key={}", file("key.pem")));
    }
    if !method.starts_with("HS") {
        options.push(format!("pub-key={}", file("key.pub")));
    }
    options.join(",")
}

async fn start(kind: Kind, option: &str) -> Server {
    let setup = match kind {
        Kind::Quorate => {
            let mut setup = quick();
            setup.env.push(("QUORATE_AUTH_TOKEN".into(), option.into()));
            setup
        }
        Kind::Etcd => Setup {
            args: vec!["--bcrypt-cost=4".into(), format!("--auth-token={option}")],
            ..Setup::default()
        },
    };
    let mut server = Server::new(kind, setup);
    server.restart().await;
    server
}

async fn put_by(client: &Client, token: &str, key: &'static str) -> Result<(), Status> {
    let mut kv = client.kv.clone();
    kv.put(by(token, put(key, "v"))).await.map(drop)
}

/// What a call by this token gets.
async fn outcome(client: &Client, token: &str) -> String {
    match put_by(client, token, "a1").await {
        Ok(()) => "done".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

/// A token with this header and these claims, signed by RS256 with `key.pem`.
pub(crate) fn rs256(dir: &Path, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(claims));
    fs::write(dir.join("message"), &message).unwrap();
    openssl(dir, "dgst -sha256 -sign key.pem -out signature message");
    let signature = fs::read(dir.join("signature")).unwrap();
    format!("{message}.{}", BASE64URL.encode(signature))
}

pub(crate) const RS256: &str = r#"{"alg":"RS256","typ":"JWT"}"#;

#[tokio::test]
async fn tokens_go_from_etcd_to_quorate_and_back() {
    for method in ["RS256", "PS384", "ES256", "ES384", "HS512", "EdDSA"] {
        let keys = keys(method);
        let option = option(method, keys.path(), true);
        let (ours, theirs) =
            tokio::join!(start(Kind::Quorate, &option), start(Kind::Etcd, &option));
        let clients = [enabled(&ours).await, enabled(&theirs).await];
        let tokens = [
            log_in(&clients[0], "u").await,
            log_in(&clients[1], "u").await,
        ];
        for (client, token) in clients
            .iter()
            .flat_map(|client| tokens.iter().map(move |token| (client, token)))
        {
            put_by(client, token, "a1").await.unwrap();
            let denied = put_by(client, token, "b1").await;
            refused(
                denied,
                Code::PermissionDenied,
                "etcdserver: permission denied",
            );
        }
        // As in etcd, but for our own claim.
        let claims = |token: &str| {
            let claims = BASE64URL.decode(token.split('.').nth(1).unwrap()).unwrap();
            let mut claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
            let end = claims["exp"].take().as_u64().unwrap();
            claims.as_object_mut().unwrap().remove("cluster");
            (claims, end)
        };
        let [our, their] = tokens.map(|token| claims(&token));
        assert_eq!(our.0, their.0, "{method}");
        assert!(our.1.abs_diff(their.1) <= 60, "ten minutes, both");
    }
}

#[tokio::test]
async fn bad_tokens_get_what_etcd_gives_them() {
    let dir = keys("RS256");
    let option = option("RS256", dir.path(), true);
    let (ours, theirs) = tokio::join!(start(Kind::Quorate, &option), start(Kind::Etcd, &option));
    let (our, their) = (enabled(&ours).await, enabled(&theirs).await);
    let claims = r#"{"username":"u","revision":9,"exp":9999999999}"#;
    let good = rs256(dir.path(), RS256, claims);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let unsigned = |alg: &str, signature: &str| {
        let header = BASE64URL.encode(format!(r#"{{"alg":"{alg}"}}"#));
        format!("{header}.{}.{signature}", BASE64URL.encode(claims))
    };
    let signed = |claims: &str| rs256(dir.path(), RS256, claims);
    let revision = {
        let status = our.auth.clone().auth_status(pb::AuthStatusRequest {}).await;
        status.unwrap().into_inner().auth_revision
    };
    let tokens = [
        signed(&format!(r#"{{"username":"u","revision":{revision}}}"#)),
        signed(&format!(r#"{{"username":"nobody","revision":{revision}}}"#)),
        signed(r#"{"username":"u","revision":1}"#),
        signed(&format!(
            r#"{{"username":"u","revision":{revision},"exp":1}}"#
        )),
        signed(&format!(
            r#"{{"username":"u","revision":{revision},"nbf":9999999999}}"#
        )),
        signed(r#"{"username":"u"}"#),
        signed(r#"{"revision":7}"#),
        signed(r#"{"username":7,"revision":7}"#),
        signed("[]"),
        rs256(dir.path(), r#"{"alg":"RS512"}"#, claims),
        rs256(dir.path(), r#"{"typ":"JWT"}"#, claims),
        unsigned("none", ""),
        unsigned("None", ""),
        unsigned("HS256", signature),
        unsigned("RS256", signature),
        message.to_owned(),
        format!("{message}."),
        format!("{good}.x"),
        format!("{good}="),
        "a.b.c".to_owned(),
        "..".to_owned(),
        "LJGLyuyZkmEocWcv.1548".to_owned(),
    ];
    for token in &tokens {
        let (ours, theirs) = tokio::join!(outcome(&our, token), outcome(&their, token));
        assert_eq!(ours, theirs, "{token}");
    }
    assert_eq!(
        outcome(&our, &tokens[0]).await,
        "done",
        "the table has a good one"
    );
    // From the future: etcd lets it write, and not read; here it can do neither.
    let ahead = format!(r#"{{"username":"u","revision":{}}}"#, revision + 1);
    let ahead = signed(&ahead);
    let text = "etcdserver: revision of auth store is old";
    for client in [&our, &their] {
        let read = client.kv.clone().range(by(&ahead, get("a1"))).await;
        refused(read.map(drop), Code::InvalidArgument, text);
    }
    let write = put_by(&our, &ahead, "a1").await;
    refused(write, Code::InvalidArgument, text);
    put_by(&their, &ahead, "a1").await.unwrap();
    let confused = signed_with_public_key(dir.path(), claims);
    for client in [&our, &their] {
        let outcome = outcome(client, &confused).await;
        assert_eq!(outcome, "Unauthenticated: etcdserver: invalid auth token");
    }
}

/// The public key as a secret: the classic confusion of algorithms.
fn signed_with_public_key(dir: &Path, claims: &str) -> String {
    let header = BASE64URL.encode(r#"{"alg":"HS256"}"#);
    let message = format!("{header}.{}", BASE64URL.encode(claims));
    fs::write(dir.join("message"), &message).unwrap();
    let public = fs::read(dir.join("key.pub")).unwrap();
    let hex: Vec<String> = public.iter().map(|byte| format!("{byte:02x}")).collect();
    let hex = hex.concat();
    let sign = format!("dgst -sha256 -mac HMAC -macopt hexkey:{hex} -binary -out mac message");
    openssl(dir, &sign);
    let mac = fs::read(dir.join("mac")).unwrap();
    format!("{message}.{}", BASE64URL.encode(mac))
}

#[tokio::test]
async fn a_token_ends_with_its_user_and_its_password_and_with_nothing_else() {
    if only_quorate_has("a JWT that survives changes of others") {
        return;
    }
    let dir = keys("HS256");
    let mut server = start(Kind::Quorate, &option("HS256", dir.path(), true)).await;
    let client = enabled(&server).await;
    let (root, u) = (log_in(&client, "root").await, log_in(&client, "u").await);
    let mut auth = client.auth.clone();
    let grant = pb::AuthRoleGrantPermissionRequest {
        name: "r".into(),
        perm: Some(authpb::Permission {
            perm_type: 2,
            key: "c".into(),
            range_end: bytes::Bytes::new(),
        }),
    };
    auth.role_grant_permission(by(&root, grant)).await.unwrap();
    put_by(&client, &u, "c").await.unwrap();
    let change = pb::AuthUserChangePasswordRequest {
        name: "u".into(),
        password: "another".into(),
        ..Default::default()
    };
    auth.user_change_password(by(&root, change)).await.unwrap();
    let text = "etcdserver: revision of auth store is old";
    refused(put_by(&client, &u, "c").await, Code::InvalidArgument, text);
    let mut kv = client.kv.clone();
    let read = kv.range(by(&u, get("c"))).await;
    refused(read.map(drop), Code::InvalidArgument, text);
    // Administration too, where etcd does not look.
    let own = pb::AuthUserGetRequest { name: "u".into() };
    let own = auth.user_get(by(&u, own)).await;
    refused(own.map(drop), Code::InvalidArgument, text);
    put_by(&client, &root, "c").await.unwrap();

    // Nothing is stored of a token, so a restart changes nothing.
    server.kill().await;
    server.restart().await;
    let client = server.client().await;
    put_by(&client, &root, "c").await.unwrap();
    let mut auth = client.auth.clone();
    let delete = pb::AuthUserDeleteRequest { name: "u".into() };
    auth.user_delete(by(&root, delete)).await.unwrap();
    refused(put_by(&client, &u, "c").await, Code::InvalidArgument, text);
    put_by(&client, &root, "c").await.unwrap();
}

#[tokio::test]
async fn a_public_key_alone_takes_tokens_and_issues_none() {
    let dir = keys("RS256");
    let server = start(Kind::target(), &option("RS256", dir.path(), false)).await;
    let client = enabled(&server).await;
    let request = |password: &str| pb::AuthenticateRequest {
        name: "u".into(),
        password: password.into(),
    };
    let mut auth = client.auth.clone();
    let refusal = auth.authenticate(request("u's secret")).await;
    let text = "auth: token signing attempted with verify-only key";
    refused(refusal.map(drop), Code::Unknown, text);
    let wrong = auth.authenticate(request("wrong")).await;
    let text = "etcdserver: authentication failed, invalid user ID or password";
    refused(wrong.map(drop), Code::InvalidArgument, text);
    let status = auth.auth_status(pb::AuthStatusRequest {}).await;
    let revision = status.unwrap().into_inner().auth_revision;
    let root = rs256(
        dir.path(),
        RS256,
        &format!(r#"{{"username":"root","revision":{revision}}}"#),
    );
    put_by(&client, &root, "a1").await.unwrap();

    // etcd: expiry of leases needs a token, which cannot be made, so leases live for ever.
    if server.kind() == Kind::Etcd {
        note("skipped: leases do not expire with a public key only");
        return;
    }
    let address = format!("http://127.0.0.1:{}", server.client_port());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    let mut leases = pb::lease_client::LeaseClient::new(endpoint.connect().await.unwrap());
    let grant = pb::LeaseGrantRequest { ttl: 1, id: 7 };
    leases.lease_grant(by(&root, grant)).await.unwrap();
    let attached = pb::PutRequest {
        lease: 7,
        ..put("a/leased", "v")
    };
    let mut kv = client.kv.clone();
    kv.put(by(&root, attached)).await.unwrap();
    loop {
        let read = kv.range(by(&root, get("a/leased"))).await.unwrap();
        if read.into_inner().kvs.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn keys_are_taken_up_when_their_files_change() {
    if only_quorate_has("keys that are read again") {
        return;
    }
    let dir = keys("ES256");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let mut setup = quick();
    setup.env.extend([
        ("QUORATE_AUTH_TOKEN".into(), "jwt".into()),
        ("QUORATE_AUTH_JWT_SIGN_METHOD".into(), "ES256".into()),
        ("QUORATE_AUTH_JWT_PRIVATE_KEY".into(), file("key.pem")),
        ("QUORATE_AUTH_JWT_PUBLIC_KEYS".into(), file("key.pub")),
    ]);
    let server = Server::start_with(setup).await;
    let client = enabled(&server).await;
    let old = log_in(&client, "u").await;
    // A file that is no key changes nothing, and is named.
    fs::write(file("key.pem"), "nonsense").unwrap();
    while !server
        .log()
        .contains(&format!("{} cannot be used", file("key.pem")))
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    put_by(&client, &old, "a1").await.unwrap();
    let issued = log_in(&client, "u").await;
    put_by(&client, &issued, "a1").await.unwrap();

    // The new key signs, and the old one still verifies.
    let new = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out new.pem";
    openssl(dir.path(), new);
    openssl(dir.path(), "pkey -in new.pem -pubout -out new.pub");
    fs::rename(file("new.pem"), file("key.pem")).unwrap();
    let taken_up = "the keys of JWT have changed";
    while server.log().matches(taken_up).count() < 1 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let new = log_in(&client, "u").await;
    for token in [&old, &new] {
        put_by(&client, token, "a1").await.unwrap();
    }
    // Then it does not any more.
    fs::rename(file("new.pub"), file("key.pub")).unwrap();
    while server.log().matches(taken_up).count() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    put_by(&client, &new, "a1").await.unwrap();
    let text = "etcdserver: invalid auth token";
    refused(
        put_by(&client, &old, "a1").await,
        Code::Unauthenticated,
        text,
    );
    assert!(!server.log().contains(&new) && !server.log().contains(&old));
}

/// A stream of watches and one of renewals that one token has opened.
struct Streams {
    asked: mpsc::Sender<pb::WatchRequest>,
    watches: Streaming<pb::WatchResponse>,
    renew: mpsc::Sender<pb::LeaseKeepAliveRequest>,
    renewed: Streaming<pb::LeaseKeepAliveResponse>,
}

impl Streams {
    /// Opens both with a watch and a renewal. The watch is on `a2`.
    async fn open(server: &Server, client: &Client, token: &str) -> Self {
        let (asked, requests) = mpsc::channel(8);
        asked.send(create("a2")).await.unwrap();
        let requests = by(token, ReceiverStream(requests));
        let watches = client.watch.clone().watch(requests).await.unwrap();
        let mut watches = watches.into_inner();
        let created = watches.message().await.unwrap().unwrap();
        assert!(created.created && !created.canceled, "{created:?}");

        let address = format!("http://127.0.0.1:{}", server.client_port());
        let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
        let mut leases = pb::lease_client::LeaseClient::new(endpoint.connect().await.unwrap());
        let grant = pb::LeaseGrantRequest { ttl: 60, id: 7 };
        leases.lease_grant(by(token, grant)).await.unwrap();
        let (renew, requests) = mpsc::channel(8);
        renew.send(RENEWAL).await.unwrap();
        let requests = by(token, ReceiverStream(requests));
        let renewed = leases.lease_keep_alive(requests).await.unwrap();
        let mut renewed = renewed.into_inner();
        assert_eq!(renewed.message().await.unwrap().unwrap().ttl, 60);
        Self {
            asked,
            watches,
            renew,
            renewed,
        }
    }

    /// The token that opened them is good no more, and another one, `root`'s, writes what the first watch sees.
    async fn are_refused_what_is_new(&mut self, client: &Client, root: &str) {
        self.asked.send(create("a3")).await.unwrap();
        let refusal = self.watches.message().await.unwrap().unwrap();
        assert!(refusal.created && refusal.canceled, "{refusal:?}");
        let text = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
        assert_eq!((&*refusal.cancel_reason, refusal.watch_id), (text, -1));
        put_by(client, root, "a2").await.unwrap();
        let seen = self.watches.message().await.unwrap().unwrap();
        assert_eq!((seen.watch_id, seen.events.len()), (0, 1), "it goes on");

        self.renew.send(RENEWAL).await.unwrap();
        let refusal = self.renewed.message().await;
        let text = "etcdserver: invalid auth token";
        refused(refusal.map(drop), Code::Unauthenticated, text);
    }
}

const RENEWAL: pb::LeaseKeepAliveRequest = pb::LeaseKeepAliveRequest { id: 7 };

fn create(key: &'static str) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest {
        key: key.into(),
        ..Default::default()
    };
    pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    }
}

/// Waits until a token is good no more.
async fn ended(client: &Client, token: &str) {
    let ends = async {
        while put_by(client, token, "a1").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_mins(2), ends).await;
    ended.expect("the token ends");
}

/// The stream kept the caller that it had at first.
#[tokio::test]
async fn a_stream_gets_nothing_new_once_its_token_has_ended() {
    let dir = keys("HS256");
    let option = option("HS256", dir.path(), true).replace("ttl=10m", "ttl=8s");
    let server = start(Kind::target(), &option).await;
    let client = enabled(&server).await;
    let token = log_in(&client, "u").await;
    let mut streams = Streams::open(&server, &client, &token).await;
    ended(&client, &token).await;
    let root = log_in(&client, "root").await;
    streams.are_refused_what_is_new(&client, &root).await;
}

#[tokio::test]
async fn a_stream_gets_nothing_new_once_its_key_is_withdrawn() {
    if only_quorate_has("keys that are read again") {
        return;
    }
    let dir = keys("HS256");
    let server = start(Kind::Quorate, &option("HS256", dir.path(), true)).await;
    let client = enabled(&server).await;
    let token = log_in(&client, "u").await;
    let mut streams = Streams::open(&server, &client, &token).await;
    openssl(dir.path(), "rand -out new.pem 64");
    fs::rename(dir.path().join("new.pem"), dir.path().join("key.pem")).unwrap();
    ended(&client, &token).await;
    let root = log_in(&client, "root").await;
    streams.are_refused_what_is_new(&client, &root).await;
}

#[tokio::test]
async fn no_signed_token_reaches_the_log() {
    if only_quorate_has("the setting in variables") {
        return;
    }
    let keys = keys("ES256");
    let mut setup = quick();
    let option = option("ES256", keys.path(), true);
    setup.env.push(("QUORATE_AUTH_TOKEN".into(), option));
    setup.env.push(("QUORATE_LOG_LEVEL".into(), "trace".into()));
    let server = Server::start_with(setup).await;
    let client = enabled(&server).await;
    let token = log_in(&client, "u").await;
    put_by(&client, &token, "a1").await.unwrap();
    put_by(&client, &token, "b1").await.unwrap_err();
    let forged = format!("{token}plantedsignature");
    put_by(&client, &forged, "a1").await.unwrap_err();
    let log = server.log();
    assert!(log.len() > 100, "something is logged");
    let parts: Vec<&str> = token.split('.').collect();
    let key = fs::read_to_string(keys.path().join("key.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    for planted in [parts[1], parts[2], "plantedsignature", key] {
        assert!(!log.contains(planted), "{planted:?} in the log:\n{log}");
    }
}

#[tokio::test]
async fn etcdctl_logs_in_by_jwt() {
    let dir = keys("EdDSA");
    let server = start(Kind::target(), &option("EdDSA", dir.path(), true)).await;
    enabled(&server).await;
    let ctl = async |args: &[&str]| etcdctl(&server, args, "").await;
    let u = "--user=u:u's secret";
    assert_eq!(ctl(&[u, "put", "a1", "v"]).await.ok(), "OK\n");
    assert_eq!(ctl(&[u, "get", "a1"]).await.ok(), "a1\nv\n");
    let denied = ctl(&[u, "put", "b1", "v"]).await;
    assert!(denied.stderr.contains("permission denied"), "{denied:?}");
    let lock = ctl(&[u, "lock", "a/lock", "true"]).await;
    assert_eq!(lock.code, 0, "{lock:?}");
}

#[tokio::test]
async fn a_key_that_others_can_read_is_warned_about() {
    if only_quorate_has("a warning about keys that others can read") {
        return;
    }
    let dir = keys("HS256");
    let file = dir.path().join("key.pem");
    for (mode, warned) in [(0o644, true), (0o600, false)] {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(&file, permissions).unwrap();
        let server = start(Kind::Quorate, &option("HS256", dir.path(), true)).await;
        let hint = format!("chmod 600 {}", file.display());
        assert_eq!(server.log().contains(&hint), warned, "{mode:o}");
    }
}

#[tokio::test]
async fn a_token_of_another_cluster_is_refused() {
    if only_quorate_has("the cluster in a token") {
        return;
    }
    let dir = keys("HS256");
    let option = option("HS256", dir.path(), true);
    let one = start(Kind::Quorate, &option).await;
    // Ids of clusters follow from their token and members.
    let mut setup = quick();
    setup.args.push("--initial-cluster-token=another".into());
    setup.env.push(("QUORATE_AUTH_TOKEN".into(), option));
    let other = Server::start_with(setup).await;
    let (here, there) = (enabled(&one).await, enabled(&other).await);
    let token = log_in(&there, "u").await;
    put_by(&there, &token, "a1").await.unwrap();
    let text = "etcdserver: invalid auth token";
    refused(
        put_by(&here, &token, "a1").await,
        Code::Unauthenticated,
        text,
    );
}

#[tokio::test]
async fn a_start_with_a_bad_key_names_its_file() {
    let server = Server::new(Kind::Quorate, quick());
    let mut command = server.command();
    command.env(
        "QUORATE_AUTH_TOKEN",
        "jwt,sign-method=RS256,pub-key=/nowhere/key.pub",
    );
    let exit = crate::support::run_to_exit(command).await;
    assert!(!exit.status.success());
    assert!(exit.output.contains("/nowhere/key.pub"), "{}", exit.output);
}
