//! Any member serves everything, and all answer the same.

use crate::{
    ctl::{etcdctl, eventually, keys, leader, same_history, statuses},
    support::Cluster,
};

#[tokio::test]
async fn each_member_serves_put_get_and_txn() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    for (n, port) in ports.iter().enumerate() {
        let (key, value) = (format!("k{n}"), format!("v{n}"));
        etcdctl(&[*port], &["put", &key, &value]).await.ok();
        // A linearizable read sees it at every member.
        for reader in &ports {
            let got = etcdctl(&[*reader], &["get", &key, "--print-value-only"]).await;
            assert_eq!(got.ok().trim(), value, "{key} at {reader}");
        }
    }
    for port in &ports {
        let deleted = etcdctl(&[*port], &["del", "nothing"]).await.ok();
        assert_eq!(deleted.trim(), "0");
        assert_eq!(keys(*port, "k").await, 3);
    }
    same_history(&ports).await;
}

#[tokio::test]
async fn members_and_statuses_agree() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let mut lists = Vec::new();
    for port in &ports {
        let all = |list: &str| cluster.all_listed(list);
        lists.push(eventually(&[*port], &["member", "list"], all).await);
    }
    assert_eq!(lists[0], lists[1]);
    assert_eq!(lists[0], lists[2]);
    for member in &cluster.members {
        let line = format!(
            "{}, https://127.0.0.1:{}, http://127.0.0.1:{}, false",
            member.name, member.peer, member.client
        );
        assert!(lists[0].contains(&line), "{line} in {}", lists[0]);
    }
    let all = etcdctl(
        &ports[..1],
        &["endpoint", "status", "--cluster", "-w", "json"],
    )
    .await;
    assert_eq!(all.json().as_array().expect("a list").len(), 3);
    let found = statuses(&ports).await;
    let ids = |field: &str| -> Vec<String> {
        let mut ids: Vec<String> = found
            .iter()
            .map(|s| s["header"][field].to_string())
            .collect();
        ids.sort();
        ids.dedup();
        ids
    };
    assert_eq!(ids("cluster_id").len(), 1, "one cluster");
    assert_eq!(ids("member_id").len(), 3, "three members");
}

#[tokio::test]
async fn leadership_moves_where_it_is_told() {
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        // A busy machine alone must not cause an election.
        member.set("QUORATE_RAFT_ELECTION_MS", "5000");
        member.start();
    }
    let ports = cluster.ports();
    let first = leader(&ports).await;
    let next = (first + 1) % 3;
    let id = statuses(&ports).await[next]["header"]["member_id"]
        .as_u64()
        .expect("an id");
    let to = format!("{id:x}");
    let refused = etcdctl(&[ports[next]], &["move-leader", &to])
        .await
        .refused();
    assert!(
        refused.contains("no leader endpoint") || refused.contains("not leader"),
        "{refused}"
    );
    etcdctl(&[ports[first]], &["move-leader", &to]).await.ok();
    assert_eq!(leader(&ports).await, next);
    etcdctl(&[ports[first]], &["put", "after", "move"])
        .await
        .ok();
}

#[tokio::test]
async fn leases_are_renewed_at_any_member() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    for (n, port) in ports.iter().enumerate() {
        let granted = etcdctl(&[*port], &["lease", "grant", "600"]).await.ok();
        let id = granted
            .split_whitespace()
            .nth(1)
            .expect("lease ID granted …");
        let key = format!("leased{n}");
        let lease = format!("--lease={id}");
        etcdctl(&[*port], &["put", &key, "v", &lease]).await.ok();
        for member in &ports {
            let renewed = etcdctl(&[*member], &["lease", "keep-alive", "--once", id]).await;
            assert!(renewed.ok().contains("keepalived with TTL(600)"), "{id}");
            let left = etcdctl(&[*member], &["lease", "timetolive", "--keys", id])
                .await
                .ok();
            assert!(left.contains(&format!("attached keys([{key}])")), "{left}");
        }
        etcdctl(&ports[..1], &["lease", "revoke", id]).await.ok();
        assert_eq!(keys(*port, &key).await, 0, "revoked");
    }
}
