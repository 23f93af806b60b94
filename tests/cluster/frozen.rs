//! A member that is stopped by a signal answers nothing, and its connections stay open. Nobody waits for it longer than until
//! there is another leader, and nothing is done twice when it goes on.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{Status, transport::Channel};

/// How long something that must happen soon is waited for: generous, for a loaded machine and a debug build.
const PATIENCE: Duration = Duration::from_mins(1);
/// Puts at each member.
const PUTS: usize = 20;
/// A client's own bound, which is never needed: a member answers with an error after 7 s, as etcd does.
const CALL_MAX: Duration = Duration::from_secs(20);
/// How long a member is frozen at least: longer than the others wait before they elect a leader.
const FROZEN: Duration = Duration::from_secs(3);
/// Clients of each member that call it all the time, and calls that are made at it once there is a leader.
const CALLERS: usize = 4;
const CALLS_LED: usize = 20;

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

/// A call of one of the kinds that need a leader.
async fn call(channel: Channel, kind: usize) -> Result<(), Status> {
    let key = "warm";
    match kind % 4 {
        0 => {
            let range = pb::RangeRequest {
                key: key.into(),
                ..pb::RangeRequest::default()
            };
            Kv::new(channel).range(range).await.map(drop)
        }
        1 => {
            let mut lease = pb::lease_client::LeaseClient::new(channel);
            let grant = pb::LeaseGrantRequest { ttl: 600, id: 0 };
            lease.lease_grant(grant).await.map(drop)
        }
        2 => {
            let mut members = pb::cluster_client::ClusterClient::new(channel);
            let list = pb::MemberListRequest { linearizable: true };
            members.member_list(list).await.map(drop)
        }
        _ => Kv::new(channel).put(put(key)).await.map(drop),
    }
}

/// Makes a call where there is a leader. On a busy machine the leader may change, and then the call is repeated.
async fn succeeds(channel: &Channel, kind: usize, live: &[u16]) {
    let start = quorate::internals::clock::now();
    loop {
        let answer = timeout(CALL_MAX, call(channel.clone(), kind)).await;
        match answer.expect("the member answers, if only with an error") {
            Ok(()) => return,
            Err(status) => assert!(start.elapsed() < PATIENCE, "call {kind}: {status}"),
        }
        leader(live).await;
    }
}

/// Calls one after the other until `ends` says so, and gives how many were answered, or refused by the member. A call that takes
/// so long that its client must end it fails the test.
async fn calls(channel: Channel, ends: watch::Receiver<bool>) -> usize {
    let mut count = 0;
    while matches!(ends.has_changed(), Ok(false)) {
        let answer = timeout(CALL_MAX, call(channel.clone(), count)).await;
        assert!(answer.is_ok(), "call {count} had no answer in {CALL_MAX:?}");
        count += 1;
    }
    count
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
    let mut calls = JoinSet::new();
    for (own, channel) in channels.iter().enumerate() {
        for n in 0..PUTS {
            let mut kv = Kv::new(channel.clone());
            let key = format!("f{own}-{n}");
            calls.spawn(async move { (kv.put(put(&key)).await.map(drop), Some(key)) });
        }
        for kind in 0..3 {
            let channel = channel.clone();
            calls.spawn(async move { (call(channel, kind).await, None) });
        }
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

#[tokio::test]
async fn no_client_has_to_end_a_call_while_a_member_is_frozen_and_a_leader_answers_soon() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    // The leader, and then a follower.
    for distance in [0, 1] {
        let frozen = (leader(&ports).await + distance) % 3;
        let others = [(frozen + 1) % 3, (frozen + 2) % 3].map(|at| ports[at]);
        let (end, ends) = watch::channel(false);
        let mut callers = JoinSet::new();
        for port in others {
            let channel = connect(port).await;
            for _ in 0..CALLERS {
                callers.spawn(calls(channel.clone(), ends.clone()));
            }
        }
        cluster.members[frozen].freeze();
        sleep(FROZEN).await;
        leader(&others).await;
        for port in others {
            let channel = connect(port).await;
            for n in 0..CALLS_LED {
                succeeds(&channel, n, &others).await;
            }
        }
        end.send_replace(true);
        while let Some(answered) = callers.join_next().await {
            let answered = answered.expect("no client had to end its call");
            assert!(answered > 0, "each was answered");
        }
        cluster.members[frozen].thaw();
        same_history(&ports).await;
    }
}
