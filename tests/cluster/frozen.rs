//! A member that is stopped by a signal answers nothing, and its connections stay open. Nobody waits for it longer than until
//! there is another leader, and nothing is done twice when it goes on.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::Channel;

/// How long something that must happen soon is waited for: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// Puts at each member.
const PUTS: usize = 20;

type Kv = pb::kv_client::KvClient<Channel>;

async fn connect(port: u16) -> Channel {
    let address = format!("http://127.0.0.1:{port}");
    let endpoint = Channel::from_shared(address).expect("a valid URI");
    endpoint.connect().await.expect("it listens")
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..pb::PutRequest::default()
    }
}

#[tokio::test]
async fn calls_through_followers_of_a_frozen_leader_succeed_with_the_next_and_happen_once() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let led = leader(&ports).await;
    let others = [(led + 1) % 3, (led + 2) % 3].map(|at| ports[at]);
    let channels = [connect(others[0]).await, connect(others[1]).await];
    // Each has sent something to the leader before.
    for channel in &channels {
        let warm = Kv::new(channel.clone()).put(put("warm")).await;
        warm.expect("there is a leader");
    }
    cluster.members[led].freeze();
    let mut calls = tokio::task::JoinSet::new();
    for (own, channel) in channels.iter().enumerate() {
        for n in 0..PUTS {
            let mut kv = Kv::new(channel.clone());
            let key = format!("f{own}-{n}");
            calls.spawn(async move { (kv.put(put(&key)).await.map(drop), Some(key)) });
        }
        let mut kv = Kv::new(channel.clone());
        let range = pb::RangeRequest {
            key: "warm".into(),
            ..pb::RangeRequest::default()
        };
        calls.spawn(async move { (kv.range(range).await.map(drop), None) });
        let mut lease = pb::lease_client::LeaseClient::new(channel.clone());
        let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
        calls.spawn(async move { (lease.lease_grant(grant).await.map(drop), None) });
        let mut members = pb::cluster_client::ClusterClient::new(channel.clone());
        let list = pb::MemberListRequest { linearizable: true };
        calls.spawn(async move { (members.member_list(list).await.map(drop), None) });
    }
    let mut unknown = Vec::new();
    let answered = async {
        while let Some(call) = calls.join_next().await {
            let (outcome, key) = call.expect("no panic");
            // On a busy machine the next leader may take longer to elect than a call lasts.
            if let Err(status) = outcome {
                assert_eq!(status.message(), "etcdserver: request timed out");
                unknown.extend(key);
            }
        }
    };
    timeout(PATIENCE, answered).await.expect("all are answered");
    cluster.members[led].thaw();
    same_history(&ports).await;
    let back = &ports[led..=led];
    for key in &unknown {
        // A write that timed out may have happened.
        let found = eventually(back, &["get", key, "--keys-only"], |_| true).await;
        if found.is_empty() {
            eventually(back, &["put", key, "v"], |_| true).await;
        }
    }
    same_history(&ports).await;
    for port in &ports {
        let mut kv = Kv::new(connect(*port).await);
        let range = pb::RangeRequest {
            key: "f".into(),
            range_end: "g".into(),
            ..pb::RangeRequest::default()
        };
        let found = kv.range(range).await.expect("it serves").into_inner();
        assert_eq!(found.kvs.len(), 2 * PUTS);
        let twice = found.kvs.iter().find(|kv| kv.version != 1);
        assert_eq!(twice, None, "nothing was written twice");
    }
}

#[tokio::test]
async fn a_frozen_follower_holds_up_nobody_and_a_leader_that_was_frozen_follows() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let led = leader(&ports).await;
    let frozen = (led + 1) % 3;
    cluster.members[frozen].freeze();
    let others = [led, (led + 2) % 3].map(|at| ports[at]);
    for (n, port) in others.iter().enumerate() {
        etcdctl(&[*port], &["put", &format!("k{n}"), "v"])
            .await
            .ok();
        etcdctl(&[*port], &["get", "k0"]).await.ok();
        etcdctl(&[*port], &["lease", "grant", "600"]).await.ok();
        etcdctl(&[*port], &["member", "list"]).await.ok();
    }
    cluster.members[frozen].thaw();
    same_history(&ports).await;
    let led = leader(&ports).await;
    cluster.members[led].freeze();
    let others = [(led + 1) % 3, (led + 2) % 3].map(|at| ports[at]);
    etcdctl(&others, &["put", "other", "leader"]).await.ok();
    leader(&others).await;
    cluster.members[led].thaw();
    // It learns of the next leader, and serves through it.
    let put = ["put", "through", "the former leader"];
    eventually(&ports[led..=led], &put, |_| true).await;
    same_history(&ports).await;
}
