//! Members inside one process form a cluster; programs that embed them send actor messages, with the guarantees of the API.

use crate::{clients::PATIENCE, support::free_port};
use actix::Addr;
use bytes::Bytes;
use quorate::{
    Config, Node,
    internals::{
        actors::{
            fail_stop::FailStop,
            store::{
                GrantLease, KeepLeaseAlive, ListLeases, PutKey, ReadLeaseTime, ReadRange,
                RevokeLease, Store,
            },
        },
        clock,
        config::{HostPort, InitialMember, PeerTls},
        kv::command::{Put, RangeQuery},
        node::StartError,
        services::{
            election::{ElectionError, Leadership, Observer},
            lock::LockError,
            messages::{
                Campaign, ObserveLeaders, Proclaim, ReadLeader, ReleaseLock, Resign, TakeLock,
            },
        },
        types::LeaseId,
    },
};
use std::time::Duration;
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

/// Small segments of the log, since each member writes some in advance.
fn small() -> Config {
    let mut config = Config::default();
    config.storage.wal_segment_bytes = 4 << 20;
    config
}

#[tokio::test]
async fn a_start_that_waits_for_others_can_be_cancelled() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut config = small();
    let at = |port| HostPort {
        host: "127.0.0.1".to_owned(),
        port,
    };
    config.peer.tls = PeerTls::Insecure;
    config.name = "n1".to_owned();
    config.data_dir = folder.path().join("n1");
    config.cluster.initial = ["n1", "n2", "n3"]
        .map(|name| InitialMember {
            name: name.to_owned(),
            peer: at(free_port()),
        })
        .to_vec();
    config.peer.listen = config.cluster.initial[0].peer.clone();
    let (cancel, cancelled) = oneshot::channel();
    let data_dir = config.data_dir.clone();
    let starting = tokio::task::spawn_blocking(move || {
        Node::start_unless(&config, FailStop::new(|_| {}), cancelled)
    });
    // It has locked its directory, and asks.
    while !data_dir.join("LOCK").exists() {
        sleep(Duration::from_millis(10)).await;
    }
    drop(cancel);
    let ended = timeout(PATIENCE, starting).await.expect("it ends");
    let ended = ended.expect("no panic");
    assert!(matches!(ended, Err(StartError::Cancelled)), "{ended:?}");
    assert!(!data_dir.join("member").exists(), "it never began");
}

/// Three members without client ports.
async fn start(folder: &TempDir) -> Vec<Node> {
    let at = |port| HostPort {
        host: "127.0.0.1".to_owned(),
        port,
    };
    let ports = [(); 3].map(|()| free_port());
    let mut config = small();
    config.peer.tls = PeerTls::Insecure;
    config.cluster.initial = (1..)
        .zip(ports)
        .map(|(n, port)| InitialMember {
            name: format!("n{n}"),
            peer: at(port),
        })
        .collect();
    let mut nodes = Vec::new();
    for (n, port) in (1..).zip(ports) {
        config.name = format!("n{n}");
        config.data_dir = folder.path().join(&config.name);
        config.peer.listen = at(port);
        let config = config.clone();
        // A member waits for the others while it starts.
        nodes.push(tokio::task::spawn_blocking(move || Node::start(&config)));
    }
    let mut started = Vec::new();
    for node in nodes {
        started.push(node.await.expect("no panic").expect("it starts"));
    }
    started
}

/// Waits until all of them follow one leader; returns its position.
async fn leader(nodes: &[Node]) -> usize {
    let start = clock::now();
    loop {
        let leaders: Vec<_> = nodes
            .iter()
            .map(|node| node.requests().status().expect("its own").leader)
            .collect();
        let agreed = leaders.iter().all(|leader| *leader == leaders[0]);
        let own = |node: &Node| Some(node.identity().member) == leaders[0];
        if let (true, Some(at)) = (agreed, nodes.iter().position(own)) {
            return at;
        }
        assert!(start.elapsed() < PATIENCE, "no leader: {leaders:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn grant(store: &Addr<Store>) -> LeaseId {
    let grant = GrantLease {
        id: None,
        ttl_secs: 600,
    };
    store
        .send(grant)
        .await
        .expect("it lives")
        .expect("a lease")
        .id
}

/// Waits until this many keys begin with `prefix/`.
async fn in_line(store: &Addr<Store>, prefix: &str, count: i64) {
    let start = clock::now();
    loop {
        let query = RangeQuery {
            key: format!("{prefix}/").into(),
            range_end: format!("{prefix}0").into(),
            count_only: true,
            ..RangeQuery::default()
        };
        let done = store
            .send(ReadRange(query))
            .await
            .expect("it lives")
            .expect("a count");
        if done.count == count {
            return;
        }
        assert!(
            start.elapsed() < PATIENCE,
            "{} of {count} in {prefix}",
            done.count
        );
    }
}

async fn next_value(observer: &mut Observer) -> Bytes {
    let next = timeout(PATIENCE, observer.next()).await;
    next.expect("in time").expect("a leader").kv.value
}

#[actix::test]
async fn embedded_members_lease_lock_and_elect_in_messages() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut nodes = start(&folder).await;
    let leads = leader(&nodes).await;
    let leading = nodes.remove(leads);
    let stores = [nodes[0].store(), nodes[1].store(), leading.store()];
    leases(&stores).await;
    let [one, other, _] = &stores;
    let (first, second) = (grant(one).await, grant(other).await);
    locks(&stores, first, second).await;

    let mut observer = one
        .send(ObserveLeaders { name: "E".into() })
        .await
        .expect("it lives")
        .expect("a watch");
    let campaign = |lease, value: &'static str| Campaign {
        name: "E".into(),
        lease,
        value: value.into(),
    };
    let leads: Leadership = one
        .send(campaign(first, "1a"))
        .await
        .expect("it lives")
        .expect("nobody leads");
    assert_eq!(next_value(&mut observer).await, "1a");
    let waits = actix::spawn(other.send(campaign(second, "2a")));
    in_line(one, "E", 2).await;
    // The leader of the cluster stops; the election goes on.
    leading.stop().await;
    let proclaim = |value: &'static str| Proclaim {
        leadership: leads.clone(),
        value: value.into(),
    };
    other
        .send(proclaim("1b"))
        .await
        .expect("it lives")
        .expect("it leads");
    assert_eq!(next_value(&mut observer).await, "1b");
    let resign = Resign {
        leadership: leads.clone(),
    };
    other
        .send(resign)
        .await
        .expect("it lives")
        .expect("it gives up");
    let next = timeout(PATIENCE, waits)
        .await
        .expect("in time")
        .expect("no panic");
    let next = next.expect("it lives").expect("its turn");
    assert!(next.created > leads.created, "the fence");
    assert_eq!(next_value(&mut observer).await, "2a");
    let late = one.send(proclaim("1c")).await.expect("it lives");
    assert!(matches!(late, Err(ElectionError::NotLeader)), "{late:?}");
    other
        .send(RevokeLease { id: second })
        .await
        .expect("it lives")
        .expect("it is there");
    let nobody = one
        .send(ReadLeader { name: "E".into() })
        .await
        .expect("it lives");
    assert!(matches!(nobody, Err(ElectionError::NoLeader)), "{nobody:?}");
    for node in nodes {
        node.stop().await;
    }
}

/// A write that one member acknowledges can be read at the others.
async fn leases(stores: &[Addr<Store>; 3]) {
    let [one, other, third] = stores;
    let id = grant(one).await;
    let put = Put {
        key: "leased".into(),
        value: "v".into(),
        lease: id,
        ..Put::default()
    };
    other
        .send(PutKey(put))
        .await
        .expect("it lives")
        .expect("a put");
    for store in stores {
        let ask = ReadLeaseTime { id, keys: true };
        let time = store.send(ask).await.expect("it lives").expect("an answer");
        let time = time.expect("the lease lives");
        let found = (time.ttl_secs, time.keys);
        assert_eq!(found, (600, vec!["leased".into()]), "any member answers");
        let renewed = store.send(KeepLeaseAlive { id }).await.expect("it lives");
        assert_eq!(renewed.expect("an answer"), Some(600), "at any member");
        let start = clock::now();
        while *store
            .send(ListLeases)
            .await
            .expect("it lives")
            .expect("a list")
            != [id]
        {
            assert!(
                start.elapsed() < PATIENCE,
                "a list is what a member has applied"
            );
        }
    }
    third
        .send(RevokeLease { id })
        .await
        .expect("it lives")
        .expect("it is there");
    let gone = one.send(KeepLeaseAlive { id }).await.expect("it lives");
    assert_eq!(gone.expect("an answer"), None, "it was revoked");
    in_line(other, "leased", 0).await;
}

async fn locks(stores: &[Addr<Store>; 3], first: LeaseId, second: LeaseId) {
    let [one, other, third] = stores;
    let take = |lease| TakeLock {
        name: "L".into(),
        lease,
    };
    let held = one
        .send(take(first))
        .await
        .expect("it lives")
        .expect("it is free");
    let waits = actix::spawn(other.send(take(second)));
    in_line(third, "L", 2).await;
    assert!(!waits.is_finished(), "somebody holds it");
    let release = ReleaseLock { key: held.key };
    third
        .send(release)
        .await
        .expect("it lives")
        .expect("given back");
    let next = timeout(PATIENCE, waits)
        .await
        .expect("in time")
        .expect("no panic");
    let next = next.expect("it lives").expect("its turn");
    assert!(next.created > held.created, "the fence");
    let unknown = one.send(take(LeaseId(404))).await.expect("it lives");
    assert!(matches!(unknown, Err(LockError::Request(_))), "{unknown:?}");
    let release = ReleaseLock { key: next.key };
    third
        .send(release)
        .await
        .expect("it lives")
        .expect("given back");
}
