//! The audit log of a running member.

use crate::{
    auth::{ReceiverStream, by, enabled, log_in, quick},
    jwt,
    support::{Client, Server, Setup, get, http_get, only_quorate_has, put, txn},
};
use quorate::internals::api::proto::etcdserverpb as pb;
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;

struct Scene {
    dir: TempDir,
    server: Server,
}

impl Scene {
    async fn start(level: &str) -> Self {
        Self::start_with(level, []).await
    }

    async fn start_with<const N: usize>(level: &str, more: [(String, String); N]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup: Setup = quick();
        let output = format!("file:{}", dir.path().join("audit.log").display());
        setup.env.extend([
            ("QUORATE_AUDIT_OUTPUT".into(), output),
            ("QUORATE_AUDIT_LEVEL".into(), level.into()),
            ("QUORATE_AUTH_FAILED_LOGINS_MAX".into(), "1".into()),
        ]);
        setup.env.extend(more);
        let server = Server::start_with(setup).await;
        Self { dir, server }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    /// Stops the member, which writes all lines first.
    async fn lines(&mut self) -> (String, Vec<Value>) {
        self.server.signal(rustix::process::Signal::TERM);
        assert!(self.server.stopped().await.success(), "a clean stop");
        let text = fs::read_to_string(self.path()).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (text.clone(), lines.collect())
    }
}

/// The answer to a watch of a key.
async fn watches(client: &Client, token: &str, key: &'static str) -> pb::WatchResponse {
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut watch = client.watch.clone();
    let answers = watch.watch(by(token, ReceiverStream(requests))).await;
    let mut answers = answers.unwrap().into_inner();
    let create = pb::WatchCreateRequest {
        key: key.into(),
        ..Default::default()
    };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request_union = Some(create);
    send.send(pb::WatchRequest { request_union }).await.unwrap();
    answers.message().await.unwrap().unwrap()
}

/// Probes have no user, and come every few seconds.
#[tokio::test]
async fn the_health_needs_no_login_and_leaves_no_line() {
    if only_quorate_has("the audit log") {
        return;
    }
    let mut scene = Scene::start("all").await;
    enabled(&scene.server).await;
    let port = scene.server.client_port();
    for path in ["/health", "/health?serializable=true", "/version"] {
        let answer = http_get(port, path).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let (_, lines) = scene.lines().await;
    assert!(!lines.is_empty(), "other calls have lines");
    for line in lines {
        let method = line["method"].as_str().unwrap();
        // The helper that waits for a start reads this key.
        let of_start = method == "/etcdserverpb.KV/Range" && line["key"] == "ready";
        let of_users = method.starts_with("/etcdserverpb.Auth/");
        assert!(of_start || of_users, "{line}");
    }
}

/// Each level has it, since it is a refusal; the stream's own line comes when it ends.
#[tokio::test]
async fn a_watch_that_loses_its_right_has_a_line() {
    if only_quorate_has("the audit log") {
        return;
    }
    let mut scene = Scene::start("auth").await;
    let client = enabled(&scene.server).await;
    let (root, u) = (log_in(&client, "root").await, log_in(&client, "u").await);
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let mut watch = client.watch.clone();
    let answers = watch.watch(by(&u, ReceiverStream(requests))).await;
    let mut answers = answers.unwrap().into_inner();
    let create = pb::WatchCreateRequest {
        key: "a1".into(),
        watch_id: 77,
        ..Default::default()
    };
    let create = pb::watch_request::RequestUnion::CreateRequest(create);
    let request_union = Some(create);
    send.send(pb::WatchRequest { request_union }).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().created);
    let delete = pb::AuthRoleDeleteRequest { role: "r".into() };
    let mut auth = client.auth.clone();
    auth.role_delete(by(&root, delete)).await.unwrap();
    assert!(answers.message().await.unwrap().unwrap().canceled);
    let (_, lines) = scene.lines().await;
    let refused = lines
        .iter()
        .filter(|line| line["method"] == "/etcdserverpb.Watch/Watch" && line["user"] == "u");
    let refused: Vec<_> = refused.collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0]["watch_id"], "77");
    assert_eq!(refused[0]["code"], "PermissionDenied");
    assert_eq!(refused[0]["refused"], "permission denied");
}

/// Calls of several kinds, some of them refused.
async fn calls(server: &Server) -> String {
    let client = enabled(server).await;
    let (root, u) = (log_in(&client, "root").await, log_in(&client, "u").await);
    let mut kv = client.kv.clone();
    kv.put(by(&u, put("a1", "planted value"))).await.unwrap();
    kv.range(by(&u, get("a1"))).await.unwrap();
    assert!(kv.put(by(&u, put("b1", "planted value"))).await.is_err());
    assert!(kv.range(by(&u, get("b1"))).await.is_err());
    assert!(kv.range(by("plantedtoken.77", get("a2"))).await.is_err());
    assert!(kv.put(put("a3", "planted value")).await.is_err());
    let op = |request| pb::RequestOp {
        request: Some(request),
    };
    let writes = vec![op(pb::request_op::Request::RequestPut(put(
        "a4",
        "planted value",
    )))];
    kv.txn(by(&u, txn(vec![], writes, vec![]))).await.unwrap();
    let reads = vec![op(pb::request_op::Request::RequestRange(get("a5")))];
    kv.txn(by(&u, txn(vec![], reads, vec![]))).await.unwrap();
    let mut auth = client.auth.clone();
    for (name, password) in [("u", "planted wrong"), ("planted password", "x")] {
        let request = pb::AuthenticateRequest {
            name: name.into(),
            password: password.into(),
        };
        assert!(auth.authenticate(request.clone()).await.is_err());
        let refusal = auth.authenticate(request).await.unwrap_err();
        assert_eq!(refusal.code(), tonic::Code::ResourceExhausted);
    }
    let change = pb::AuthUserChangePasswordRequest {
        name: "u".into(),
        password: "planted password".into(),
        ..Default::default()
    };
    auth.user_change_password(by(&root, change)).await.unwrap();
    let again = pb::AuthenticateRequest {
        name: "root".into(),
        password: "root's secret".into(),
    };
    let root = auth.authenticate(again).await.unwrap().into_inner().token;
    let grant = pb::AuthUserGrantRoleRequest {
        user: "u".into(),
        role: "r".into(),
    };
    auth.user_grant_role(by(&root, grant)).await.unwrap();
    assert!(watches(&client, &root, "a").await.created);
    assert!(watches(&client, "plantedtoken.9", "c").await.canceled);
    let delete = pb::AuthRoleDeleteRequest { role: "r".into() };
    auth.role_delete(by(&root, delete)).await.unwrap();
    format!("{root} {u}")
}

/// The lines of a method, as key or target, code and reason.
fn of(lines: &[Value], method: &str) -> Vec<String> {
    let lines = lines.iter().filter(|line| {
        let path = line["method"].as_str().unwrap();
        path.ends_with(&format!("/{method}"))
    });
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    lines
        .map(|line| {
            let about = [&line["key"], &line["target_user"], &line["role"]];
            let about = about.into_iter().find(|about| about.is_string());
            format!(
                "{} {} {} {}",
                line["user"].as_str().unwrap_or("nobody"),
                about.map_or("-".into(), text),
                text(&line["code"]),
                text(&line["refused"])
            )
        })
        .collect()
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "most of it is tables")]
async fn every_call_is_there_once_and_no_secret() {
    if only_quorate_has("an audit log") {
        return;
    }
    let mut scene = Scene::start("all").await;
    let tokens = calls(&scene.server).await;
    let (text, lines) = scene.lines().await;
    let put = of(&lines, "Put");
    assert_eq!(
        put,
        [
            "u a1 OK -",
            "u b1 PermissionDenied permission denied",
            "nobody a3 InvalidArgument user name is empty",
        ]
    );
    let range = of(&lines, "Range");
    let range: Vec<_> = range
        .iter()
        .filter(|line| !line.contains(" ready "))
        .collect();
    assert_eq!(
        range,
        [
            "u a1 OK -",
            "u b1 PermissionDenied permission denied",
            "nobody a2 Unauthenticated invalid auth token",
        ]
    );
    assert_eq!(of(&lines, "Txn"), ["u - OK -", "u - OK -"]);
    let wrong = "InvalidArgument authentication failed, invalid user ID or password";
    let bound = "ResourceExhausted too many failed logins, try again later";
    assert_eq!(
        of(&lines, "Authenticate"),
        [
            "nobody root OK -".to_owned(),
            "nobody u OK -".to_owned(),
            format!("nobody u {wrong}"),
            format!("nobody u {bound}"),
            format!("nobody - {wrong}"),
            format!("nobody - {bound}"),
            "nobody root OK -".to_owned(),
        ]
    );
    assert_eq!(of(&lines, "UserChangePassword"), ["root u OK -"]);
    assert_eq!(of(&lines, "UserAdd"), ["nobody root OK -", "nobody u OK -"]);
    let granted = lines.iter().find(|line| line["permission"].is_string());
    let granted = granted.unwrap();
    assert_eq!(granted["permission"], "readwrite");
    assert_eq!(
        (&granted["key"], &granted["range_end"]),
        (&"a".into(), &"b".into())
    );
    assert!(
        of(&lines, "Watch").contains(&"root a OK -".to_owned()),
        "{lines:?}"
    );
    let txn = lines
        .iter()
        .find(|line| line["ops"][0]["op"] == "put")
        .unwrap();
    assert_eq!(
        (&txn["ops"][0]["key"], &txn["compares"]),
        (&"a4".into(), &0.into())
    );
    every_line_is_complete(&lines);
    let secrets = tokens
        .split(' ')
        .map(|token| token.split_once('.').unwrap().0);
    for planted in ["planted", "u's secret", "root's secret", "$2a$"]
        .into_iter()
        .chain(secrets)
    {
        assert!(!text.contains(planted), "{planted:?}");
    }
}

/// What an auditor sorts by.
fn every_line_is_complete(lines: &[Value]) {
    for line in lines {
        assert!(line["ts"].is_string() && line["id"].is_u64(), "{line}");
        assert!(line["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert!(line["duration_us"].is_u64() && line["member"].is_string());
    }
    let written = lines.iter().find(|line| line["key"] == "a1").unwrap();
    assert!(written["revision"].as_i64().unwrap() > 1, "{written}");
}

#[tokio::test]
async fn the_level_leaves_reads_or_all_but_logins_out() {
    if only_quorate_has("an audit log") {
        return;
    }
    for (level, puts, txns) in [("writes", 3, 1), ("auth", 2, 0)] {
        let mut scene = Scene::start(level).await;
        calls(&scene.server).await;
        let (_, lines) = scene.lines().await;
        let watch = of(&lines, "Watch");
        assert_eq!(
            watch,
            ["nobody c Unauthenticated invalid auth token"],
            "{level}"
        );
        let refused = of(&lines, "Range");
        assert!(
            refused.iter().all(|line| !line.contains(" OK ")),
            "{refused:?}"
        );
        let ours = refused.iter().filter(|line| !line.contains(" ready "));
        assert_eq!(ours.count(), 2, "refusals are in it: {refused:?}");
        assert_eq!(of(&lines, "Put").len(), puts, "{level}");
        assert_eq!(of(&lines, "Txn").len(), txns, "{level}");
        assert_eq!(of(&lines, "Authenticate").len(), 7, "{level}");
        assert_eq!(of(&lines, "RoleDelete"), ["root r OK -"], "{level}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_stops_the_start() {
    let server = Server::new(crate::support::Kind::Quorate, quick());
    let mut command = server.command();
    command.env("QUORATE_AUDIT_OUTPUT", "file:/nowhere/audit.log");
    let exit = crate::support::run_to_exit(command).await;
    assert!(!exit.status.success());
    assert!(
        exit.output.contains("/nowhere/audit.log"),
        "{}",
        exit.output
    );
}

/// The signal ended the process, and the lines went on into the moved file.
#[tokio::test]
async fn a_file_that_was_moved_is_begun_anew_on_a_hangup() {
    if only_quorate_has("an audit log") {
        return;
    }
    let mut scene = Scene::start("writes").await;
    let client = scene.server.client().await;
    let mut kv = client.kv.clone();
    kv.put(put("a1", "x")).await.unwrap();
    let moved = scene.dir.path().join("moved.log");
    fs::rename(scene.path(), &moved).unwrap();
    scene.server.signal(rustix::process::Signal::HUP);
    let begun = async {
        while !scene.path().exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let begun = tokio::time::timeout(Duration::from_mins(1), begun).await;
    assert!(begun.is_ok(), "no new file: {}", scene.server.log());
    kv.put(put("a2", "x")).await.unwrap();
    assert_eq!(
        scene.server.log().matches("was moved or deleted").count(),
        1
    );
    let (_, lines) = scene.lines().await;
    assert_eq!(of(&lines, "Put"), ["nobody a2 OK -"]);
    let moved = fs::read_to_string(moved).unwrap();
    assert!(moved.contains(r#""key":"a1""#), "{moved}");
}

/// Calls of an administrator by a name that is no user's: their code is not that of a missing right.
#[tokio::test]
async fn a_caller_that_is_no_user_is_refused_at_each_level() {
    if only_quorate_has("an audit log") {
        return;
    }
    let keys = jwt::keys("RS256");
    let option = jwt::option("RS256", keys.path(), true);
    for level in ["auth", "writes", "all"] {
        let more = [("QUORATE_AUTH_TOKEN".to_owned(), option.clone())];
        let mut scene = Scene::start_with(level, more).await;
        let client = enabled(&scene.server).await;
        let root = log_in(&client, "root").await;
        let (mut auth, mut maintenance) = (client.auth.clone(), client.maintenance.clone());
        let status = auth.auth_status(by(&root, pb::AuthStatusRequest {})).await;
        let revision = status.unwrap().into_inner().auth_revision;
        let claims = format!(r#"{{"username":"gone","revision":{revision}}}"#);
        let gone = &jwt::rs256(keys.path(), jwt::RS256, &claims);
        let user = |name: &str| pb::AuthUserGetRequest { name: name.into() };
        let role = pb::AuthRoleGetRequest { role: "r".into() };
        let refusals = [
            auth.user_list(by(gone, pb::AuthUserListRequest {}))
                .await
                .err(),
            auth.user_get(by(gone, user("u"))).await.err(),
            auth.role_get(by(gone, role)).await.err(),
            auth.role_add(by(gone, pb::AuthRoleAddRequest { name: "x".into() }))
                .await
                .err(),
            maintenance
                .hash_kv(by(gone, pb::HashKvRequest::default()))
                .await
                .err(),
        ];
        for refusal in refusals {
            assert_eq!(refusal.unwrap().code(), tonic::Code::FailedPrecondition);
        }
        // The same text, for who has the right.
        let missing = auth.user_get(by(&root, user("missing"))).await.unwrap_err();
        assert_eq!(missing.message(), "etcdserver: user name not found");
        let (_, lines) = scene.lines().await;
        let refused = "FailedPrecondition user name not found";
        for (method, about) in [
            ("UserList", "-"),
            ("UserGet", "u"),
            ("RoleGet", "r"),
            ("RoleAdd", "x"),
            ("HashKV", "-"),
        ] {
            let found = of(&lines, method);
            let expected = format!("gone {about} {refused}");
            assert!(found.contains(&expected), "{level} {method}: {found:?}");
        }
        let missing = of(&lines, "UserGet").contains(&"root missing FailedPrecondition -".into());
        assert_eq!(missing, level == "all");
    }
}
