//! Users, roles and tokens on three members: alike everywhere, through restarts, changes of the leader and snapshots.

use crate::{
    ctl::{etcdctl, eventually, leader},
    snapshot::{IN_PLACE, fill, said},
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tonic::{Code, Request, Status, transport::Channel};

/// Simple tokens that end soon.
const SHORT: (&str, &str) = ("QUORATE_AUTH_TOKEN_TTL_SECS", "6");

/// How long something that must happen is waited for.
const PATIENCE: Duration = Duration::from_mins(2);

const ROOT: &str = "--user=root:secret";
const U: &str = "--user=u:pass";

/// Connects with the first call, which fails while nobody listens.
fn channel(port: u16) -> Channel {
    let address = format!("http://127.0.0.1:{port}");
    let endpoint = tonic::transport::Endpoint::from_shared(address).expect("an address");
    endpoint.connect_lazy()
}

async fn log_in(port: u16) -> String {
    log_in_as(port, "u", "pass").await
}

async fn log_in_as(port: u16, name: &str, password: &str) -> String {
    let mut auth = pb::auth_client::AuthClient::new(channel(port));
    let request = pb::AuthenticateRequest {
        name: name.into(),
        password: password.into(),
    };
    let answer = auth.authenticate(request).await.expect("the password");
    answer.into_inner().token
}

async fn put(port: u16, token: &str, key: &str) -> Result<(), Status> {
    let mut request = Request::new(pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..Default::default()
    });
    let value = token.parse().expect("a token is ASCII");
    request.metadata_mut().insert("token", value);
    let mut kv = pb::kv_client::KvClient::new(channel(port));
    kv.put(request).await.map(drop)
}

/// A token that was good stays so; the member may have to find its leader, or the token's entry, first.
async fn put_eventually(port: u16, token: &str, key: &str) {
    for _ in 0..600 {
        match put(port, token, key).await {
            Ok(()) => return,
            Err(status) => assert_ne!(status.code(), Code::PermissionDenied, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{port} does not take {key}");
}

/// Reads what this member has, without the others.
async fn read_here(port: u16, token: &str) -> Result<(), Status> {
    let mut request = Request::new(pb::RangeRequest {
        key: "a/1".into(),
        serializable: true,
        ..Default::default()
    });
    let value = token.parse().expect("a token is ASCII");
    request.metadata_mut().insert("token", value);
    let mut kv = pb::kv_client::KvClient::new(channel(port));
    kv.range(request).await.map(drop)
}

/// Three members that forget their log, with authentication on. `u` may read and write what begins with `a`.
async fn prepared() -> (Cluster, usize) {
    prepared_with(&[]).await
}

/// The same with further settings.
async fn prepared_with(settings: &[(&str, &str)]) -> (Cluster, usize) {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.env = vec![
            ("QUORATE_AUTH_BCRYPT_COST".into(), "4".into()),
            ("QUORATE_STORAGE_LOG_KEEP_ENTRIES".into(), "100".into()),
        ];
        let settings = settings.iter();
        member
            .env
            .extend(settings.map(|(name, value)| ((*name).into(), (*value).into())));
        member.start();
    }
    let ports = cluster.ports();
    let led_by = leader(&ports).await;
    let all: [&[&str]; 7] = [
        &["user", "add", "root:secret"],
        &["user", "add", "u:pass"],
        &["role", "add", "root"],
        &["role", "add", "r"],
        &[
            "role",
            "grant-permission",
            "r",
            "readwrite",
            "a",
            "--prefix",
        ],
        &["user", "grant-role", "u", "r"],
        &["user", "grant-role", "root", "root"],
    ];
    for args in all {
        etcdctl(&ports, args).await.ok();
    }
    // While everybody may write: enough for the log to forget its beginning.
    fill(&ports, "a/", 300).await;
    etcdctl(&ports, &["auth", "enable"]).await.ok();
    (cluster, led_by)
}

#[tokio::test]
async fn users_and_tokens_are_the_clusters() {
    let (mut cluster, led_by) = prepared().await;
    let ports = cluster.ports();
    // On each member alike.
    for port in &ports {
        let at = [*port];
        eventually(&at, &[U, "put", "a/1", "v"], |_| true).await;
        let denied = etcdctl(&at, &[U, "put", "b/1", "v"]).await.refused();
        assert!(denied.contains("permission denied"), "{denied}");
        let nobody = etcdctl(&at, &["get", "a/1"]).await.refused();
        assert!(nobody.contains("user name is empty"), "{nobody}");
    }
    // A token is good on every member, also under another leader.
    let token = log_in(ports[led_by]).await;
    for port in &ports {
        put_eventually(*port, &token, "a/2").await;
    }
    cluster.members[led_by].stop().await;
    let others: Vec<u16> = ports
        .iter()
        .copied()
        .filter(|port| *port != ports[led_by])
        .collect();
    for port in &others {
        put_eventually(*port, &token, "a/3").await;
        let denied = put(*port, &token, "b/3").await.expect_err("not granted");
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
    cluster.members[led_by].start();
    put_eventually(ports[led_by], &token, "a/4").await;

    // All at once, without warning.
    for member in &mut cluster.members {
        member.kill().await;
    }
    for member in &mut cluster.members {
        member.start();
    }
    for port in &ports {
        put_eventually(*port, &token, "a/5").await;
        let list = eventually(&[*port], &[ROOT, "user", "list"], |_| true).await;
        assert_eq!(list, "root\nu\n");
    }
    joins_by_snapshot(&mut cluster, &token).await;
}

/// Adds a member without a vote, `n4`, which gets users, roles and tokens by snapshot.
async fn add_learner(cluster: &mut Cluster, settings: &[(&'static str, &str)]) -> usize {
    let ports = cluster.ports();
    let new = cluster.prepare("n4").await;
    for &(name, value) in settings {
        cluster.members[new].set(name, value);
    }
    let peer = format!("http://127.0.0.1:{}", cluster.members[new].peer);
    let peer = peer.replace("http:", "https:");
    let add = [
        ROOT,
        "member",
        "add",
        "n4",
        "--learner",
        &format!("--peer-urls={peer}"),
    ];
    eventually(&ports, &add, |_| true).await;
    let initial = cluster.initial();
    let joins = &mut cluster.members[new];
    joins.args.push(format!("--initial-cluster={initial}"));
    joins.args.push("--initial-cluster-state=existing".into());
    joins.start();
    said(&cluster.members[new], IN_PLACE, 1).await;
    new
}

async fn joins_by_snapshot(cluster: &mut Cluster, token: &str) {
    let ports = cluster.ports();
    let new = add_learner(cluster, &[]).await;
    let at = [cluster.members[new].client];
    let nobody = etcdctl(&at, &["get", "a/5", "--consistency=s"])
        .await
        .refused();
    assert!(nobody.contains("user name is empty"), "{nobody}");
    let named = |list: &str| list.contains("n4");
    let list = eventually(&ports, &[ROOT, "member", "list"], named).await;
    let id = list.lines().find(|line| line.contains("n4"));
    let id = id
        .and_then(|line| line.split(',').next())
        .expect("n4")
        .to_owned();
    eventually(&ports, &[ROOT, "member", "promote", &id], |_| true).await;
    put_eventually(at[0], token, "a/6").await;
    let hashes = [ROOT, "endpoint", "hashkv"];
    eventually(&at, &hashes, |_| true).await;
}

/// Nothing but an entry of the log ended it, and there is none.
#[tokio::test]
async fn a_token_ends_on_a_member_that_has_lost_the_others() {
    let (mut cluster, led_by) = prepared_with(&[SHORT]).await;
    let ports = cluster.ports();
    let token = log_in(ports[led_by]).await;
    read_here(ports[led_by], &token).await.expect("it is good");
    for at in (0..3).filter(|at| *at != led_by) {
        cluster.members[at].kill().await;
    }
    let ends = async {
        loop {
            match read_here(ports[led_by], &token).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(status) => break status,
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ends).await;
    let refusal = ended.expect("the token ends");
    assert_eq!(refusal.code(), Code::Unauthenticated, "{refusal}");
}

/// Nothing renewed it.
#[tokio::test]
async fn a_token_that_is_used_at_a_learner_alone_lives_on() {
    let (mut cluster, led_by) = prepared_with(&[SHORT]).await;
    let led_by = cluster.ports()[led_by];
    let new = add_learner(&mut cluster, &[SHORT]).await;
    let at = cluster.members[new].client;
    let known = async {
        loop {
            let token = log_in(led_by).await;
            // The learner may have to get the token's entry first, and on a busy machine the token may have ended by then.
            for _ in 0..20 {
                if read_here(at, &token).await.is_ok() {
                    return token;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let known = tokio::time::timeout(PATIENCE, known).await;
    let token = known.expect("the learner gets a token's entry");
    // More than three times as long as it lives unused.
    for _ in 0..200 {
        read_here(at, &token).await.expect("it is in use");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn signed_tokens_are_good_on_every_member_and_end_on_every_member() {
    let keys = tempfile::tempdir().expect("a directory");
    let secret = keys.path().join("secret");
    std::fs::write(&secret, "the same on all members").expect("a file");
    let option = format!("jwt,sign-method=HS256,priv-key={}", secret.display());
    let (mut cluster, led_by) = prepared_with(&[("QUORATE_AUTH_TOKEN", &option)]).await;
    let ports = cluster.ports();
    let token = log_in(ports[led_by]).await;
    assert_eq!(token.split('.').count(), 3, "a JWT");
    for port in &ports {
        // A member that is behind refuses it, and does not make anybody wait.
        put_eventually(*port, &token, "a/1").await;
        let denied = put(*port, &token, "b/1").await.expect_err("not granted");
        assert_eq!(denied.code(), Code::PermissionDenied);
    }
    cluster.members[led_by].kill().await;
    cluster.members[led_by].start();
    for port in &ports {
        put_eventually(*port, &token, "a/2").await;
    }
    // A new password ends it, whichever member is asked: the command is judged in the log.
    let root = log_in_as(ports[0], "root", "secret").await;
    let mut change = Request::new(pb::AuthUserChangePasswordRequest {
        name: "u".into(),
        password: "another".into(),
        ..Default::default()
    });
    let value = root.parse().expect("a token is ASCII");
    change.metadata_mut().insert("token", value);
    let mut auth = pb::auth_client::AuthClient::new(channel(ports[0]));
    auth.user_change_password(change).await.expect("root may");
    for port in &ports {
        let refused = put(*port, &token, "a/3").await.expect_err("it has ended");
        assert_eq!(
            refused.message(),
            "etcdserver: revision of auth store is old"
        );
    }
    let token = log_in_as(ports[led_by], "u", "another").await;
    for port in &ports {
        put_eventually(*port, &token, "a/4").await;
    }
}
