//! Locks and elections over the wire: etcdctl, and the services that the server runs.

use crate::support::{Server, etcdctl};
use quorate::internals::api::proto::{etcdserverpb as pb, v3electionpb as ep, v3lockpb as lp};
use std::time::Duration;
use tokio::time::timeout;
use tonic::{
    Code,
    codegen::tokio_stream::StreamExt as _,
    transport::{Channel, Endpoint},
};

const LONG: Duration = Duration::from_secs(20);

struct Clients {
    leases: pb::lease_client::LeaseClient<Channel>,
    locks: lp::lock_client::LockClient<Channel>,
    elections: ep::election_client::ElectionClient<Channel>,
}

async fn connect(server: &Server) -> Clients {
    let uri = format!("http://127.0.0.1:{}", server.client_port());
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    Clients {
        leases: pb::lease_client::LeaseClient::new(channel.clone()),
        locks: lp::lock_client::LockClient::new(channel.clone()),
        elections: ep::election_client::ElectionClient::new(channel),
    }
}

impl Clients {
    async fn grant(&mut self, id: i64) -> i64 {
        let grant = pb::LeaseGrantRequest { ttl: 60, id };
        self.leases
            .lease_grant(grant)
            .await
            .unwrap()
            .into_inner()
            .id
    }
}

fn lock(name: &str, lease: i64) -> lp::LockRequest {
    lp::LockRequest {
        name: name.to_owned().into(),
        lease,
    }
}

#[tokio::test]
async fn a_lock_waits_for_its_holder_and_a_cancelled_wait_leaves_no_key() {
    let server = Server::start().await;
    let mut clients = connect(&server).await;
    for id in [0xabc, 0xdef, 0x123] {
        clients.grant(id).await;
    }
    let first = clients
        .locks
        .lock(lock("L", 0xabc))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first.key, "L/abc");
    let again = clients
        .locks
        .lock(lock("L", 0xabc))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(again.key, "L/abc");
    let mut cancelled = tonic::Request::new(lock("L", 0x123));
    cancelled.set_timeout(Duration::from_millis(300));
    let cancelled = clients.locks.clone().lock(cancelled).await;
    assert!(cancelled.is_err(), "{cancelled:?}");
    let mut locks = clients.locks.clone();
    let second = tokio::spawn(async move { locks.lock(lock("L", 0xdef)).await });
    let second_in_line = async {
        loop {
            let keys = etcdctl(&server, &["get", "L/", "--prefix", "--keys-only"], "")
                .await
                .ok();
            if !keys.contains("123") && keys.contains("def") {
                return;
            }
        }
    };
    timeout(LONG, second_in_line)
        .await
        .expect("the waiting key of the cancelled call goes");
    assert!(!second.is_finished());
    let unlock = lp::UnlockRequest { key: first.key };
    clients.locks.unlock(unlock.clone()).await.unwrap();
    let second = timeout(LONG, second).await.unwrap().unwrap().unwrap();
    assert_eq!(second.into_inner().key, "L/def");
    clients
        .locks
        .unlock(unlock)
        .await
        .expect("nothing to unlock is no error");
}

#[tokio::test]
async fn bad_locks_are_refused_with_etcds_text_and_no_code() {
    let server = Server::start().await;
    let mut clients = connect(&server).await;
    let unknown = clients.locks.lock(lock("L", 404)).await.unwrap_err();
    let expected = (Code::Unknown, "etcdserver: requested lease not found");
    assert_eq!((unknown.code(), unknown.message()), expected);
    let lease = clients.grant(0xabc).await;
    let unnamed = clients.locks.lock(lock("", lease)).await.unwrap();
    assert_eq!(unnamed.into_inner().key, "/abc");
    let unlock = lp::UnlockRequest { key: "".into() };
    let keyless = clients.locks.unlock(unlock).await.unwrap_err();
    let expected = (Code::Unknown, "etcdserver: key is not provided");
    assert_eq!((keyless.code(), keyless.message()), expected);
    let own = clients.locks.lock(lock("M", 0)).await.unwrap().into_inner();
    let leases = clients.leases.lease_leases(pb::LeaseLeasesRequest {}).await;
    let ids: Vec<i64> = leases
        .unwrap()
        .into_inner()
        .leases
        .iter()
        .map(|one| one.id)
        .collect();
    let id = ids
        .into_iter()
        .find(|id| *id != lease)
        .expect("a lease was granted");
    assert_eq!(own.key, format!("M/{id:x}"));
}

#[tokio::test]
async fn a_name_too_long_for_a_request_is_refused_and_harms_nobody() {
    let server = Server::start().await;
    let mut clients = connect(&server).await;
    let lease = clients.grant(0xabc).await;
    for bytes in [1_600_000, 4_000_000] {
        let name = "n".repeat(bytes);
        let refused = clients.locks.lock(lock(&name, lease)).await;
        assert!(refused.is_err(), "a lock with a name of {bytes} bytes");
        let campaign = ep::CampaignRequest {
            name: name.into(),
            lease,
            value: "v".into(),
        };
        let refused = clients.elections.campaign(campaign).await;
        assert!(refused.is_err(), "an election with a name of {bytes} bytes");
    }
    let long = "n".repeat(100_000);
    let held = clients.locks.lock(lock(&long, lease)).await.unwrap();
    assert_eq!(held.into_inner().key, format!("{long}/abc"));
}

#[tokio::test]
async fn an_election_from_campaign_to_resign() {
    let server = Server::start().await;
    let mut clients = connect(&server).await;
    let (one, two) = (clients.grant(0xa).await, clients.grant(0xb).await);
    let name = || ep::LeaderRequest { name: "E".into() };
    let nobody = clients.elections.leader(name()).await.unwrap_err();
    assert_eq!(
        (nobody.code(), nobody.message()),
        (Code::Unknown, "election: no leader")
    );
    let campaign = |lease, value: &str| ep::CampaignRequest {
        name: "E".into(),
        lease,
        value: value.to_owned().into(),
    };
    let won = clients
        .elections
        .campaign(campaign(one, "1"))
        .await
        .unwrap();
    let leader = won.into_inner().leader.unwrap();
    assert_eq!((leader.key.as_ref(), leader.lease), (b"E/a".as_ref(), one));
    let mut observed = clients
        .elections
        .observe(name())
        .await
        .unwrap()
        .into_inner();
    let mut values = vec![observed.next().await.unwrap().unwrap().kv.unwrap().value];
    let mut elections = clients.elections.clone();
    let next = campaign(two, "2");
    let next = tokio::spawn(async move { elections.campaign(next).await });
    let proclaim = ep::ProclaimRequest {
        leader: Some(leader.clone()),
        value: "1b".into(),
    };
    clients.elections.proclaim(proclaim.clone()).await.unwrap();
    let resign = ep::ResignRequest {
        leader: Some(leader),
    };
    clients.elections.resign(resign.clone()).await.unwrap();
    clients
        .elections
        .resign(resign)
        .await
        .expect("to resign twice is no error");
    timeout(LONG, next).await.unwrap().unwrap().unwrap();
    let late = clients.elections.proclaim(proclaim).await.unwrap_err();
    assert_eq!(
        (late.code(), late.message()),
        (Code::Unknown, "election: not leader")
    );
    let missing = clients
        .elections
        .resign(ep::ResignRequest { leader: None })
        .await;
    let missing = missing.unwrap_err();
    let expected = (Code::Unknown, "\"leader\" field must be provided");
    assert_eq!((missing.code(), missing.message()), expected);
    for _ in 0..2 {
        values.push(observed.next().await.unwrap().unwrap().kv.unwrap().value);
    }
    assert_eq!(values, ["1", "1b", "2"]);
}

#[tokio::test]
async fn etcdctl_locks_hand_over() {
    let server = Server::start().await;
    let held = etcdctl(&server, &["lock", "L", "echo", "held"], "").await;
    assert_eq!(held.ok(), "held\n");
    // Concurrently: one waits for the other, with a watch of its own.
    let (one, two) = tokio::join!(
        etcdctl(&server, &["lock", "L", "echo", "one"], ""),
        etcdctl(&server, &["lock", "L", "echo", "two"], ""),
    );
    assert_eq!((one.ok().as_str(), two.ok().as_str()), ("one\n", "two\n"));
    let left = etcdctl(&server, &["get", "L", "--prefix", "--keys-only"], "").await;
    assert_eq!(left.ok(), "", "both gave the lock back");
}
