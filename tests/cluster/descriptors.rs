//! Members that may open few files: however many connections clients leave idle, none of them costs a member a file.

use crate::{
    ctl::{etcdctl, leader, same_history},
    snapshot::{IN_PLACE, fill_with, follower, said},
    support::Cluster,
};
use quorate::internals::storage::descriptors::raise_limit;
use std::net::Ipv4Addr;
use tokio::net::{TcpSocket, TcpStream};

/// What a member may open. Beside its files it has room for some hundred connections.
const OPEN_FILES: u32 = 200;

/// More idle connections to each member than it may open files, all from one address.
async fn idle_connections(ports: &[u16]) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for port in ports {
        for _ in 0..OPEN_FILES + 100 {
            let socket = TcpSocket::new_v4().expect("a socket");
            let from = (Ipv4Addr::new(127, 0, 0, 9), 0);
            socket.bind(from.into()).expect("an address");
            let to = (Ipv4Addr::LOCALHOST, *port);
            // One that is refused is closed at once, or later.
            if let Ok(stream) = socket.connect(to.into()).await {
                idle.push(stream);
            }
        }
    }
    idle
}

/// Writes 20 MB, over several segments of the log, and more than the log keeps.
async fn write(ports: &[u16], prefix: &str) {
    let long = ["--clients=2", "--value-bytes=100000"];
    fill_with(ports, prefix, 200, &long).await;
}

#[tokio::test]
async fn idle_connections_cost_no_member_its_files() {
    raise_limit();
    let mut cluster = Cluster::new(3).await;
    for member in &mut cluster.members {
        member.open_files = Some(OPEN_FILES);
        let set = |name: &str, value: &str| (format!("QUORATE_STORAGE_{name}"), value.to_owned());
        member.env = vec![
            set("LOG_KEEP_ENTRIES", "100"),
            set("LOG_KEEP_BYTES", "8388608"),
            set("SNAPSHOT_BYTES_PER_SEC", "33554432"),
        ];
        member.start();
    }
    let ports = cluster.ports();
    leader(&ports).await;
    let mut idle = vec![idle_connections(&ports).await];
    write(&ports, "first/").await;
    etcdctl(&ports[..1], &["compact", "150", "--physical"])
        .await
        .ok();
    same_history(&ports).await;

    // A member that was away needs a snapshot, and has too many connections before it has that.
    let away = follower(&cluster).await;
    cluster.members[away].kill().await;
    let mut alive = ports.clone();
    alive.remove(away);
    write(&alive, "second/").await;
    cluster.members[away].start();
    idle.push(idle_connections(&ports[away..=away]).await);
    said(&cluster.members[away], IN_PLACE, 1).await;
    idle.push(idle_connections(&ports[away..=away]).await);
    write(&ports, "third/").await;
    same_history(&ports).await;
    for member in &mut cluster.members {
        assert!(member.runs(), "{}", member.name);
        let log = member.log();
        assert!(!log.contains("Too many open files"), "{log}");
        assert!(
            log.contains("too many client connections from 127.0.0.9"),
            "the idle connections have met their share: {log}"
        );
    }
    drop(idle);
    etcdctl(&ports, &["put", "after", "v"]).await.ok();
}
