//! The connection between a follower and its leader breaks and comes back, and the leader stays: calls that were under way
//! through the follower are answered as soon as there is a connection again, and happen once.
//!
//! The time that a call may take is 25 seconds here, since it grows with the election timeout.

use crate::{
    ctl::{leader, same_history, statuses},
    network::{Drops, Network},
    support::Cluster,
};
use quorate::internals::api::proto::etcdserverpb as pb;
use std::time::Duration;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

const PATIENCE: Duration = Duration::from_mins(1);
/// So long that a cut ends a connection and no leadership.
const ELECTION_MS: &str = "10000";
/// Puts in each round.
const PUTS: usize = 20;

type Kv = pb::kv_client::KvClient<Channel>;

async fn connect(port: u16) -> Kv {
    let address = format!("http://127.0.0.1:{port}");
    let endpoint = Channel::from_shared(address).expect("a valid URI");
    Kv::new(endpoint.connect().await.expect("it listens"))
}

fn put(key: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        ..pb::PutRequest::default()
    }
}

/// How often a member has lost the connection to the one with this name.
fn losses(log: &str, name: &str) -> usize {
    let of = format!("({name}, ");
    let lost = |line: &&str| line.contains(&of) && line.contains("WARN");
    log.lines().filter(lost).count()
}

#[tokio::test]
async fn calls_whose_connection_to_the_leader_breaks_succeed_when_it_is_back_and_happen_once() {
    let mut cluster = Cluster::new_on(Network::relay(3).await).await;
    for member in &mut cluster.members {
        member.set("QUORATE_RAFT_ELECTION_MS", ELECTION_MS);
        member.start();
    }
    let ports = cluster.ports();
    let led = leader(&ports).await;
    let follower = (led + 1) % 3;
    let term = statuses(&ports).await[follower]["raftTerm"].clone();
    let mut kv = connect(ports[follower]).await;
    kv.put(put("warm")).await.expect("there is a leader");
    // What the follower sends is lost; what the leader answers is; both are.
    let rounds = [
        vec![(follower, led)],
        vec![(led, follower)],
        vec![(follower, led), (led, follower)],
    ];
    for (round, cuts) in rounds.iter().enumerate() {
        let name = &cluster.members[led].name;
        let before = losses(&cluster.members[follower].log(), name);
        let network = cluster.network.as_ref().expect("it was given one");
        for (from, to) in cuts {
            network.cut(*from, *to);
        }
        let mut calls = JoinSet::new();
        for n in 0..PUTS {
            let mut kv = kv.clone();
            calls.spawn(async move { kv.put(put(&format!("k{round}-{n}"))).await.map(drop) });
        }
        let lost = async {
            while losses(&cluster.members[follower].log(), name) == before {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, lost).await.expect("the connection ends");
        network.heal(Drops::Some);
        while let Some(call) = calls.join_next().await {
            let outcome = call.expect("no panic");
            outcome.expect("the same leader answers once it is connected again");
        }
    }
    assert_eq!(
        statuses(&ports).await[follower]["raftTerm"],
        term,
        "the leader stayed"
    );
    same_history(&ports).await;
    for port in &ports {
        let range = pb::RangeRequest {
            key: "k".into(),
            range_end: "l".into(),
            ..pb::RangeRequest::default()
        };
        let found = connect(*port).await.range(range).await;
        let found = found.expect("it serves").into_inner();
        assert_eq!(found.kvs.len(), rounds.len() * PUTS);
        let twice = found.kvs.iter().find(|kv| kv.version != 1);
        assert_eq!(twice, None, "nothing was written twice");
    }
}
