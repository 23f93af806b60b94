//! Maintenance.Status, Alarm, Hash and Downgrade, the gRPC health check, and plain HTTP on the same port.

use crate::support::{Difference, Kind, Server, http_get, only_quorate_has, refused};
use quorate::internals::api::proto::{
    etcdserverpb::{
        AlarmRequest, DowngradeRequest, HashKvRequest, HashRequest, alarm_request,
        downgrade_request::DowngradeAction,
    },
    healthpb::{HealthCheckRequest, health_check_response::ServingStatus},
};
use tonic::Code;

#[tokio::test]
async fn status_describes_the_member() {
    let server = Server::start().await;
    let client = server.client().await;
    let revision = client.must_put("k", "v").await;
    let status = client.status().await;
    let header = status.header.unwrap();
    assert_eq!(header.revision, revision);
    assert_eq!(status.leader, header.member_id, "alone, it leads");
    assert_eq!(status.raft_term, header.raft_term);
    assert!(status.raft_term > 0 && status.raft_index > 0, "{status:?}");
    assert!(status.raft_applied_index <= status.raft_index, "{status:?}");
    assert!(status.db_size > 0, "etcdctl divides by it");
    assert!(status.db_size_in_use <= status.db_size, "{status:?}");
    assert!(!status.is_learner && status.errors.is_empty(), "{status:?}");
    let parts: Vec<_> = status
        .version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap())
        .collect();
    assert_eq!(
        parts.len(),
        3,
        "clients parse {} as a semantic version",
        status.version
    );
    if server.kind() == Kind::Quorate {
        assert_eq!(status.version, "3.7.3");
        assert_eq!(status.storage_version, "3.7.0", "it names no patch");
        assert!(status.db_size_quota > 0, "{status:?}");
        assert!(
            !status.downgrade_info.as_ref().unwrap().enabled,
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn indexes_in_status_grow_with_each_write() {
    let server = Server::start().await;
    let client = server.client().await;
    let before = client.status().await;
    for _ in 0..3 {
        client.must_put("k", "v").await;
    }
    let after = client.status().await;
    assert!(
        after.raft_index >= before.raft_index + 3,
        "{before:?} {after:?}"
    );
    assert!(
        after.raft_applied_index >= before.raft_applied_index + 3,
        "{before:?} {after:?}"
    );
}

#[tokio::test]
async fn there_are_no_alarms() {
    let server = Server::start().await;
    let client = server.client().await;
    for alarm in 0..3 {
        let action = alarm_request::AlarmAction::Get.into();
        let request = AlarmRequest {
            action,
            member_id: 0,
            alarm,
        };
        let answer = client
            .maintenance
            .clone()
            .alarm(request)
            .await
            .unwrap()
            .into_inner();
        assert!(answer.alarms.is_empty(), "{answer:?}");
        if !server.has(Difference::AlarmHeader) {
            assert_eq!(answer.header.unwrap().revision, 1);
        }
    }
}

#[tokio::test]
async fn the_health_check_knows_the_empty_name_alone() {
    let server = Server::start().await;
    let mut health = server.client().await.health;
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = health.check(check("")).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::Serving);
    for other in ["etcdserverpb.KV", "nobody"] {
        refused(
            health.check(check(other)).await,
            Code::NotFound,
            "unknown service",
        );
    }
}

#[tokio::test]
async fn http_version_and_health_answer_on_the_client_port() {
    let server = Server::start().await;
    let version = http_get(server.client_port(), "/version").await;
    assert_eq!(version.status, 200, "{version:?}");
    assert!(
        version.head.contains("content-type: application/json"),
        "{version:?}"
    );
    let body: serde_json::Value = serde_json::from_str(&version.body).unwrap();
    if server.kind() == Kind::Quorate {
        assert_eq!(
            body,
            serde_json::json!({"etcdserver": "3.7.3", "etcdcluster": "3.7.0", "storage": "3.7.0"})
        );
    } else {
        assert!(
            body["etcdserver"].is_string() && body["etcdcluster"].is_string(),
            "{body}"
        );
    }

    let health = http_get(server.client_port(), "/health").await;
    assert_eq!(health.status, 200, "{health:?}");
    let body: serde_json::Value = serde_json::from_str(&health.body).unwrap();
    assert_eq!(body["health"], "true");
    if server.kind() == Kind::Quorate {
        assert_eq!(health.body.trim_end(), r#"{"health":"true","reason":""}"#);
    }
    let nowhere = http_get(server.client_port(), "/no/such/page").await;
    assert_eq!(
        (nowhere.status, nowhere.body.trim_end()),
        (404, "404 page not found")
    );
}

#[tokio::test]
async fn a_hash_up_to_a_negative_revision_has_no_records() {
    let server = Server::start().await;
    let client = server.client().await;
    client.must_put("k", "v").await;
    let mut maintenance = client.maintenance.clone();
    for revision in [-1, -5, i64::MIN + 1] {
        let request = HashKvRequest { revision };
        let answer = maintenance.hash_kv(request).await.unwrap().into_inner();
        assert_eq!(answer.hash, crc32c::crc32c(b"key"), "{revision}");
        assert_eq!(answer.header.unwrap().revision, 2, "{revision}");
    }
}

#[tokio::test]
async fn a_hash_is_that_of_all_history() {
    let server = Server::start().await;
    let client = server.client().await;
    let mut maintenance = client.maintenance.clone();
    let mut before = None;
    for value in ["one", "two"] {
        let revision = client.must_put("k", value).await;
        let answer = maintenance.hash(HashRequest {}).await.unwrap().into_inner();
        assert_eq!(answer.header.unwrap().revision, revision);
        assert_ne!(before.replace(answer.hash), Some(answer.hash), "{value}");
        if server.kind() == Kind::Quorate {
            let of_history = maintenance.hash_kv(HashKvRequest { revision: 0 }).await;
            assert_eq!(of_history.unwrap().into_inner().hash, answer.hash);
        }
    }
}

fn downgrade(action: DowngradeAction, version: &str) -> DowngradeRequest {
    DowngradeRequest {
        action: action.into(),
        version: version.to_owned(),
    }
}

#[tokio::test]
async fn whether_a_version_could_be_downgraded_to_is_answered_as_by_etcd() {
    let server = Server::start().await;
    if server.has(Difference::Downgrade) {
        return;
    }
    let client = server.client().await;
    let revision = client.must_put("k", "v").await;
    let mut maintenance = client.maintenance.clone();
    for action in [DowngradeAction::Validate, DowngradeAction::Enable] {
        for version in ["", "3", "3.x", "v3.6", "3.6-rc", "3.6.0.0"] {
            refused(
                maintenance.downgrade(downgrade(action, version)).await,
                Code::InvalidArgument,
                "etcdserver: wrong downgrade target version format",
            );
        }
        for version in ["3.5", "3.5.30", "3.7", "3.7.0", "4.6", "3.8"] {
            refused(
                maintenance.downgrade(downgrade(action, version)).await,
                Code::InvalidArgument,
                "etcdserver: invalid downgrade target version",
            );
        }
    }
    for (action, version) in [
        (DowngradeAction::Validate, "3.6"),
        (DowngradeAction::Validate, "3.6.0"),
        (DowngradeAction::Validate, "3.6.17-rc.1+b"),
        (DowngradeAction::Cancel, ""),
    ] {
        let answer = maintenance.downgrade(downgrade(action, version)).await;
        let answer = answer.unwrap().into_inner();
        assert_eq!(answer.version, "3.7", "{version}");
        assert_eq!(answer.header.unwrap().revision, revision);
    }
    let unknown = DowngradeRequest {
        action: 9,
        version: "3.6".to_owned(),
    };
    refused(
        maintenance.downgrade(unknown).await,
        Code::Unknown,
        "etcdserver: unknown method",
    );
}

#[tokio::test]
async fn a_downgrade_is_refused_and_leaves_nothing_behind() {
    if only_quorate_has("no release before its own") {
        return;
    }
    let server = Server::start().await;
    let client = server.client().await;
    let mut maintenance = client.maintenance.clone();
    let enable = downgrade(DowngradeAction::Enable, "3.6");
    let refusal = maintenance.downgrade(enable).await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    let text = refusal.message();
    assert!(text.contains("restore the data there"), "{text}");
    let info = client.status().await.downgrade_info.unwrap();
    assert!(!info.enabled, "{info:?}");
    let check = downgrade(DowngradeAction::Validate, "3.6");
    maintenance.downgrade(check).await.unwrap();
}
