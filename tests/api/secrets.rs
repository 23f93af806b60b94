//! What clients store and what protects it reaches no log, whatever is called and however it is refused: values, names of locks,
//! passwords, the keys of TLS and of encryption.

use crate::{
    auth::{by, enabled, log_in, quick},
    support::{
        Kind, Server, compare, get, only_quorate_has, op_get, op_put, ports, put, run_to_exit, txn,
    },
};
use pb::compare::{CompareResult, TargetUnion};
use quorate::internals::api::proto::{etcdserverpb as pb, v3electionpb as ep, v3lockpb as lp};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tonic::transport::Endpoint;

/// The key of the encryption, in hexadecimal.
const KEY: &str = "5e0a1b77c4d2983f6e51a0bb2c7d48f95e0a1b77c4d2983f6e51a0bb2c7d48f9";

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found
}

/// Puts and reads, in a transaction too, by a user, by nobody and by a bad token.
async fn use_keys(server: &Server, u: &str) {
    let client = server.client().await;
    let mut kv = client.kv.clone();
    let value = || "planted value";
    let operand = TargetUnion::Value("planted operand".into());
    let request = txn(
        vec![compare("a1", CompareResult::Equal, operand)],
        vec![op_put(put("a1", "planted success"))],
        vec![op_put(put("a1", "planted failure")), op_get(get("a1"))],
    );
    for token in [u, "plantedtoken.7"] {
        for key in ["a1", "b/planted"] {
            drop(kv.put(by(token, put(key, value()))).await);
            drop(kv.range(by(token, get(key))).await);
        }
        drop(kv.txn(by(token, request.clone())).await);
    }
    assert!(kv.put(put("a1", value())).await.is_err(), "nobody");
    // Refused for what it says itself.
    let twice = vec![op_put(put("a2", value())), op_put(put("a2", value()))];
    let outcome = kv.txn(by(u, txn(vec![], twice, vec![]))).await;
    assert!(outcome.is_err(), "a key twice");
    let unknown = pb::PutRequest {
        lease: 99,
        ..put("a1", value())
    };
    assert!(kv.put(by(u, unknown)).await.is_err(), "no such lease");
    let stored = kv.range(by(u, get("a1"))).await.unwrap().into_inner();
    assert_eq!(stored.kvs[0].value, "planted failure");
}

/// A lock and an election, with a right and without one.
async fn use_queues(server: &Server, u: &str) {
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    let mut locks = lp::lock_client::LockClient::new(channel.clone());
    let mut elections = ep::election_client::ElectionClient::new(channel);
    for (name, allowed) in [("a/planted lock", true), ("b/planted lock", false)] {
        let (name, lease) = (name.into(), 0);
        let locked = locks.lock(by(u, lp::LockRequest { name, lease })).await;
        assert_eq!(locked.is_ok(), allowed);
    }
    let campaign = |name: &'static str| ep::CampaignRequest {
        name: name.into(),
        lease: 0,
        value: "planted candidate".into(),
    };
    let won = elections.campaign(by(u, campaign("a/planted election")));
    let leader = won.await.unwrap().into_inner().leader;
    assert!(elections.campaign(by(u, campaign("b/e"))).await.is_err());
    for token in [u, "plantedtoken.7"] {
        let proclaim = ep::ProclaimRequest {
            leader: leader.clone(),
            value: "planted proclamation".into(),
        };
        let proclaimed = elections.proclaim(by(token, proclaim)).await;
        assert_eq!(proclaimed.is_ok(), token == u);
    }
}

#[tokio::test]
async fn what_is_planted_comes_up_in_no_log() {
    if only_quorate_has("encryption at rest") {
        return;
    }
    let server = Server::new(Kind::Quorate, quick());
    let key = server.home().join("key");
    fs::write(&key, KEY).unwrap();
    // The command does not have the key in it: it is the output that is secret.
    let command = format!("cat {}", key.display());
    let listen = format!(
        "http://127.0.0.1:{},https://127.0.0.1:{}",
        server.client_port(),
        ports::free_port()
    );
    let mut server = server.also(&["--client-listen", &listen]).with_env(&[
        ("QUORATE_LOG_LEVEL", "trace"),
        ("QUORATE_CLIENT_AUTO_TLS", "true"),
        ("QUORATE_ENCRYPTION_KEY_COMMAND", command.as_str()),
    ]);
    server.restart().await;
    let client = enabled(&server).await;
    let u = log_in(&client, "u").await;
    use_keys(&server, &u).await;
    use_queues(&server, &u).await;
    server.kill().await;
    server.restart().await;
    let log = server.log();
    assert!(log.len() > 100, "something is logged");
    let own = fs::read_to_string(server.data_dir().join("client-tls/key.pem")).unwrap();
    let own = own.lines().filter(|line| !line.starts_with('-'));
    let secrets = own.chain([KEY, "planted", "'s secret", u.split('.').next().unwrap()]);
    for secret in secrets {
        assert!(!log.contains(secret), "{secret:?} in the log:\n{log}");
    }
    for file in files_in(server.data_dir()) {
        let bytes = fs::read(&file).unwrap();
        for secret in [KEY, "planted", "'s secret"] {
            let found = bytes
                .windows(secret.len())
                .any(|at| at == secret.as_bytes());
            assert!(!found, "{secret:?} in {file:?}");
        }
    }
}

/// What the command prints may be a key but for one letter.
#[tokio::test]
async fn a_key_that_cannot_be_used_is_not_shown() {
    if only_quorate_has("encryption at rest") {
        return;
    }
    for printed in ["planted", &KEY[1..], &KEY.replace('5', "g")] {
        let server = Server::new(Kind::Quorate, quick());
        let key = server.home().join("key");
        fs::write(&key, printed).unwrap();
        let command = format!("cat {}", key.display());
        let ways = [
            ("QUORATE_ENCRYPTION_KEY_COMMAND", command),
            ("QUORATE_ENCRYPTION_KEY_FILE", key.display().to_string()),
        ];
        for (name, value) in ways {
            let mut start = server.command();
            start.env(name, value).env("QUORATE_LOG_LEVEL", "trace");
            let exit = run_to_exit(start).await;
            assert!(!exit.status.success(), "{name}: {exit:?}");
            let shown = exit.output + &server.log();
            assert!(!shown.contains(printed), "{name} {printed}:\n{shown}");
        }
    }
}
