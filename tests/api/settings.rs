//! Flags, environment and file: which takes precedence, and the errors for invalid settings.

use crate::support::{
    Exit, Kind, Server, Setup, get, only_quorate_has, op_get, put, refused, run_to_exit, txn,
};
use std::{fs, time::Duration};
use tonic::Code;

fn setup(args: &[&str], env: &[(&str, &str)]) -> Setup {
    Setup {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Setup::default()
    }
}

/// The start must fail, and its message must have all `parts`.
async fn refuses(setup: Setup, parts: &[&str]) {
    let server = Server::new(Kind::Quorate, setup.clone());
    let Exit { status, output } = run_to_exit(server.command()).await;
    assert!(
        !status.success(),
        "{setup:?} must be refused; output:\n{output}"
    );
    assert!(!output.contains("panicked at"), "{setup:?}:\n{output}");
    let unchanged = matches!(status.code(), Some(2 | 4));
    assert!(unchanged, "starting it again is of no use: {status}");
    for part in parts {
        assert!(
            output.contains(part),
            "{setup:?}: expected `{part}` in:\n{output}"
        );
    }
    assert!(
        !server.data_dir().exists(),
        "{setup:?}: a refused start leaves no data directory"
    );
}

#[tokio::test]
async fn bad_flags_are_named() {
    if only_quorate_has("its flags") {
        return;
    }
    refuses(setup(&["--no-such-flag"], &[]), &["--no-such-flag"]).await;
    refuses(setup(&["stray"], &[]), &["stray"]).await;
    refuses(setup(&["--config"], &[]), &["--config"]).await;
    refuses(
        setup(&["--initial-cluster-state", "old"], &[]),
        &["old", "new", "existing"],
    )
    .await;
    refuses(setup(&["--initial-cluster", "n1"], &[]), &["n1"]).await;
    refuses(
        setup(&["--config", "/no/such/node.toml"], &[]),
        &["/no/such/node.toml"],
    )
    .await;
}

#[tokio::test]
async fn bad_variables_are_named() {
    if only_quorate_has("its variables") {
        return;
    }
    refuses(
        setup(&[], &[("QUORATE_NO_SUCH_KEY", "1")]),
        &["QUORATE_NO_SUCH_KEY"],
    )
    .await;
    let parts = ["QUORATE_RAFT_HEARTBEAT_MS", "fast"];
    refuses(setup(&[], &[("QUORATE_RAFT_HEARTBEAT_MS", "fast")]), &parts).await;
    let parts = ["QUORATE_LIMITS_TXN_OPS_MAX", "65537", "65536"];
    refuses(
        setup(&[], &[("QUORATE_LIMITS_TXN_OPS_MAX", "65537")]),
        &parts,
    )
    .await;
    let parts = [
        "QUORATE_AUTO_COMPACTION_MODE",
        "often",
        "periodic",
        "revision",
    ];
    refuses(
        setup(&[], &[("QUORATE_AUTO_COMPACTION_MODE", "often")]),
        &parts,
    )
    .await;
}

#[tokio::test]
async fn bad_keys_in_a_file_are_named() {
    if only_quorate_has("its file") {
        return;
    }
    let cases: [(&str, &[&str]); 7] = [
        ("[raft]\nhartbeat_ms = 100\n", &["hartbeat_ms"]),
        ("colour = \"blue\"\n", &["colour"]),
        ("[no_such_table]\nkey = 1\n", &["no_such_table"]),
        (
            "[limits]\ntxn_ops_max = 0\n",
            &["limits.txn_ops_max", "0", "65536"],
        ),
        (
            "[limits]\ntxn_ops_max = \"many\"\n",
            &["limits.txn_ops_max", "many"],
        ),
        (
            "[cluster]\nstate = \"old\"\n",
            &["cluster.state", "old", "new", "existing"],
        ),
        (
            "[raft]\nelection_ms = 100\n",
            &["raft.election_ms", "100", "heartbeat"],
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (number, (text, parts)) in cases.iter().enumerate() {
        let file = dir.path().join(format!("{number}.toml"));
        fs::write(&file, text).unwrap();
        refuses(setup(&["--config", file.to_str().unwrap()], &[]), parts).await;
    }
    let file = dir.path().join("broken.toml");
    fs::write(&file, "name = \"unclosed\n[raft").unwrap();
    refuses(
        setup(&["--config", file.to_str().unwrap()], &[]),
        &[file.to_str().unwrap()],
    )
    .await;
}

#[tokio::test]
async fn the_environment_overrides_the_file_and_flags_override_both() {
    if only_quorate_has("its order of settings") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let text = "name = \"file\"\n[client]\nlisten = \"127.0.0.1:1\"\n[limits]\ntxn_ops_max = 3\nrequest_bytes_max = 4096\n";
    fs::write(&file, text).unwrap();
    let env = [
        ("QUORATE_LIMITS_TXN_OPS_MAX", "5"),
        ("QUORATE_CLIENT_LISTEN", "127.0.0.1:2"),
    ];
    // The test harness sets the ports by flags, so an answer shows that flags take precedence.
    let server = Server::start_with(setup(&["--config", file.to_str().unwrap()], &env)).await;
    let client = server.client().await;
    let gets = |count| txn(vec![], vec![op_get(get("k")); count], vec![]);
    client.txn(gets(5)).await.unwrap();
    let text = "etcdserver: too many operations in txn request";
    refused(client.txn(gets(6)).await, Code::InvalidArgument, text);
    let outcome = client.put(put("k", vec![b'v'; 4096])).await;
    refused(
        outcome,
        Code::InvalidArgument,
        "etcdserver: request is too large",
    );
    let outcome = client.put(put("k", vec![b'v'; 600_000])).await.unwrap_err();
    assert_eq!(
        outcome.code(),
        Code::ResourceExhausted,
        "the frame limit follows: {outcome:?}"
    );
}

#[tokio::test]
async fn the_start_says_where_it_is_and_what_to_try() {
    if only_quorate_has("its log") {
        return;
    }
    let server = Server::start().await;
    let address = format!("127.0.0.1:{}", server.client_port());
    let dir = server.data_dir().to_str().unwrap().to_owned();
    let hints = |log: &str| -> Vec<String> {
        log.lines()
            .filter(|line| line.contains("etcdctl") && line.contains(&address))
            .map(str::to_owned)
            .collect()
    };
    // It serves a moment before it logs that.
    let start = quorate::internals::clock::now();
    while hints(&server.log()).is_empty() && start.elapsed() < Duration::from_secs(20) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let log = server.log();
    let lines = hints(&log);
    assert_eq!(lines.len(), 1, "one line says it:\n{log}");
    assert!(lines[0].contains(&dir), "{}", lines[0]);
}

#[tokio::test]
async fn logs_are_json_on_request() {
    if only_quorate_has("its log") {
        return;
    }
    let server = Server::start_with(setup(&[], &[("QUORATE_LOG_FORMAT", "json")])).await;
    let log = server.log();
    assert!(!log.is_empty(), "the start is logged");
    for line in log.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
        assert!(value.is_object(), "{line}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    if only_quorate_has("its text") {
        return;
    }
    let first = Server::start().await;
    let address = format!("127.0.0.1:{}", first.client_port());
    let second = Server::new(Kind::Quorate, setup(&["--client-listen", &address], &[]));
    let Exit { status, output } = run_to_exit(second.command()).await;
    assert!(
        !status.success(),
        "two servers on one port; output:\n{output}"
    );
    assert!(output.contains(&address), "{output}");
}
