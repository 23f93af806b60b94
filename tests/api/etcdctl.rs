//! The real etcdctl, driven as a user would: simple and json output.

use crate::support::{CtlOutput, Server, etcdctl};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

async fn ctl(server: &Server, args: &[&str]) -> CtlOutput {
    etcdctl(server, args, "").await
}

fn base64(text: &str) -> String {
    STANDARD.encode(text)
}

/// Checks that a header has ids and a term, and removes them: they differ from run to run.
fn without_ids(mut value: Value) -> Value {
    let header = value["header"].as_object_mut().expect("a header");
    for field in ["cluster_id", "member_id", "raft_term"] {
        let number = header
            .remove(field)
            .unwrap_or_else(|| panic!("a header has {field}"));
        assert!(
            number.as_u64().is_some_and(|number| number > 0),
            "{field} is {number}"
        );
    }
    value
}

#[tokio::test]
async fn put_get_del_in_simple_output() {
    let server = Server::start().await;
    assert_eq!(
        ctl(&server, &["put", "greeting", "hello"]).await.ok(),
        "OK\n"
    );
    assert_eq!(
        ctl(&server, &["put", "greetings", "all"]).await.ok(),
        "OK\n"
    );
    assert_eq!(
        etcdctl(&server, &["put", "from-stdin"], "piped").await.ok(),
        "OK\n"
    );
    assert_eq!(
        ctl(&server, &["get", "greeting"]).await.ok(),
        "greeting\nhello\n"
    );
    assert_eq!(
        ctl(&server, &["get", "from-stdin", "--print-value-only"])
            .await
            .ok(),
        "piped\n"
    );
    let prefixed = ctl(&server, &["get", "greet", "--prefix"]).await.ok();
    assert_eq!(prefixed, "greeting\nhello\ngreetings\nall\n");
    let keys = ctl(&server, &["get", "", "--from-key", "--keys-only"])
        .await
        .ok();
    assert_eq!(keys, "from-stdin\n\ngreeting\n\ngreetings\n\n");
    let sorted = [
        "get",
        "g",
        "--prefix",
        "--order=DESCEND",
        "--sort-by=VALUE",
        "--limit=1",
    ];
    assert_eq!(ctl(&server, &sorted).await.ok(), "greeting\nhello\n");
    let previous = ctl(&server, &["put", "--prev-kv", "greeting", "bye"])
        .await
        .ok();
    assert_eq!(previous, "OK\ngreeting\nhello\n");
    assert_eq!(
        ctl(&server, &["get", "greeting", "--rev=2"]).await.ok(),
        "greeting\nhello\n"
    );
    assert_eq!(ctl(&server, &["get", "absent"]).await.ok(), "");
    let deleted = ctl(&server, &["del", "--prev-kv", "greeting", "h"])
        .await
        .ok();
    assert_eq!(deleted, "2\ngreeting\nbye\ngreetings\nall\n");
    assert_eq!(ctl(&server, &["del", "greeting"]).await.ok(), "0\n");
}

#[tokio::test]
async fn put_get_del_in_json() {
    let server = Server::start().await;
    let put = ctl(&server, &["put", "k", "v", "-w", "json"]).await.json();
    assert_eq!(without_ids(put), json!({"header": {"revision": 2}}));
    let get = ctl(&server, &["get", "k", "-w", "json"]).await.json();
    let kv = json!({
        "key": base64("k"), "create_revision": 2, "mod_revision": 2, "version": 1, "value": base64("v"),
    });
    assert_eq!(
        without_ids(get),
        json!({"header": {"revision": 2}, "kvs": [kv], "count": 1})
    );
    let more = ctl(&server, &["put", "l", "w", "--prev-kv", "-w", "json"])
        .await
        .json();
    assert_eq!(without_ids(more), json!({"header": {"revision": 3}}));
    let limited = ctl(&server, &["get", "", "--prefix", "--limit=1", "-w", "json"])
        .await
        .json();
    let limited = without_ids(limited);
    assert_eq!(
        (&limited["more"], &limited["count"]),
        (&json!(true), &json!(2))
    );
    let deleted = ctl(&server, &["del", "k", "--prev-kv", "-w", "json"])
        .await
        .json();
    assert_eq!(
        without_ids(deleted),
        json!({"header": {"revision": 4}, "deleted": 1, "prev_kvs": [kv]})
    );
    let nothing = ctl(&server, &["get", "k", "-w", "json"]).await.json();
    assert_eq!(without_ids(nothing), json!({"header": {"revision": 4}}));
}

#[tokio::test]
async fn fields_output() {
    let server = Server::start().await;
    ctl(&server, &["put", "k", "v"]).await.ok();
    let fields = ctl(&server, &["get", "k", "-w", "fields"]).await.ok();
    assert!(
        fields.contains("\"Revision\" : 2\n") && fields.contains("\"Count\" : 1\n"),
        "{fields}"
    );
}

#[tokio::test]
async fn txn_in_both_outputs() {
    let server = Server::start().await;
    ctl(&server, &["put", "user", "bad"]).await.ok();
    let input = "value(\"user\") = \"bad\"\n\nput user good\nget user\n\nput result failed\n\n";
    let simple = etcdctl(&server, &["txn"], input).await.ok();
    assert_eq!(simple, "SUCCESS\n\nOK\n\nuser\ngood\n");
    let simple = etcdctl(&server, &["txn"], input).await.ok();
    assert_eq!(simple, "FAILURE\n\nOK\n");
    let input = "mod(\"new\") = \"0\"\ncreate(\"new\") = \"0\"\nversion(\"new\") = \"0\"\n\nput new 1\n\n\n";
    let answer = etcdctl(&server, &["txn", "-w", "json"], input).await.json();
    let answer = without_ids(answer);
    assert_eq!(
        (&answer["header"]["revision"], &answer["succeeded"]),
        (&json!(5), &json!(true))
    );
    // The texts of etcdctl 3.4 and of later versions differ; none of them sends a request.
    let put = &answer["responses"][0]["Response"];
    let put = put.get("response_put").or(put.get("ResponsePut"));
    assert_eq!(put, Some(&json!({"header": {"revision": 5}})), "{answer}");
}

#[tokio::test]
async fn compaction_and_what_it_takes_away() {
    let server = Server::start().await;
    for value in ["1", "2", "3"] {
        ctl(&server, &["put", "k", value]).await.ok();
    }
    assert_eq!(
        ctl(&server, &["compaction", "3"]).await.ok(),
        "compacted revision 3\n"
    );
    assert_eq!(ctl(&server, &["get", "k", "--rev=3"]).await.ok(), "k\n2\n");
    let physical = ctl(&server, &["compaction", "--physical", "4"]).await.ok();
    assert_eq!(physical, "compacted revision 4\n");
    let refused = ctl(&server, &["get", "k", "--rev=3"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    let text = "etcdserver: mvcc: required revision has been compacted";
    assert!(refused.stderr.contains(text), "{refused:?}");
}

#[tokio::test]
async fn errors_end_with_code_1_and_etcds_text() {
    let server = Server::start().await;
    let cases: [(&[&str], &str); 4] = [
        (&["put", "", "v"], "etcdserver: key is not provided"),
        (
            &["put", "--ignore-value", "absent"],
            "etcdserver: key not found",
        ),
        (
            &["put", "--lease=123", "k", "v"],
            "etcdserver: requested lease not found",
        ),
        (
            &["get", "k", "--rev=99"],
            "etcdserver: mvcc: required revision is a future revision",
        ),
    ];
    for (args, text) in cases {
        let refused = ctl(&server, args).await;
        assert_eq!(refused.code, 1, "{args:?}: {refused:?}");
        assert!(refused.stderr.contains(text), "{args:?}: {refused:?}");
    }
}

#[tokio::test]
async fn endpoint_status_and_health() {
    let server = Server::start().await;
    let endpoint = format!("127.0.0.1:{}", server.client_port());
    let simple = ctl(&server, &["endpoint", "status"]).await.ok();
    let columns: Vec<_> = simple.trim_end().split(", ").collect();
    assert_eq!(columns[0], endpoint, "{simple}");
    // Since 3.6 there are four more in front of these: the stored version, the bytes in use, their share and the quota.
    let at = if columns.len() > 10 { 8 } else { 4 };
    assert_eq!(
        (columns[at], columns[at + 1]),
        ("true", "false"),
        "leads and is no learner: {simple}"
    );
    let status = ctl(&server, &["endpoint", "status", "-w", "json"])
        .await
        .json();
    assert_eq!(status[0]["Endpoint"], endpoint.as_str(), "{status}");
    let status = &status[0]["Status"];
    assert_eq!(status["leader"], status["header"]["member_id"], "{status}");
    if status["version"] == "3.7.3" {
        assert_eq!(status["storageVersion"], "3.7.0", "{status}");
    }
    assert!(
        status["dbSize"].as_i64().unwrap() > 0 && status["raftIndex"].as_i64().unwrap() > 0,
        "{status}"
    );

    let health = ctl(&server, &["endpoint", "health"]).await;
    let said = format!("{}{}", health.stdout, health.stderr);
    assert_eq!(health.code, 0, "{said}");
    let text = format!("{endpoint} is healthy: successfully committed proposal: took = ");
    assert!(said.starts_with(&text), "{said}");
    let health = ctl(&server, &["endpoint", "health", "-w", "json"])
        .await
        .json();
    assert_eq!(
        (&health[0]["endpoint"], &health[0]["health"]),
        (&json!(endpoint), &json!(true))
    );
    assert_eq!(ctl(&server, &["alarm", "list"]).await.ok(), "");
}
