//! What a start says: who the member is, what it waits for, and when it is ready. The same goes to systemd, where it asks for it.

use super::startup::OpenMember;
use crate::{
    actors::{
        members::{ClusterMember, Members},
        requests::Requests,
    },
    config::{Config, HostPort},
};
use rustix::process::{Resource, getrlimit};
use std::{
    env,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram},
    },
    path::PathBuf,
    time::Duration,
};

/// What a member that is not ready waits for is logged so often.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// How often a starting member looks for its leader.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An address outside of this machine, to find the network interface that leads there. Nothing is sent to it.
const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// Logs who the member is, as its data directory says.
pub(super) fn report_start(open: &OpenMember) {
    let limit = getrlimit(Resource::Nofile).current;
    let known = if open.members.iter().next().is_some() {
        &open.members
    } else {
        &open.seed
    };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        member = open.owner.identity.member.hex(),
        name = open.owner.name,
        cluster = format!("{:x}", open.owner.identity.cluster.0),
        members = names(known),
        descriptors = limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string()),
        "starting"
    );
}

fn names(members: &Members) -> String {
    let name = |member: &ClusterMember| {
        let name = match member.info.name.as_str() {
            "" => member.id.hex(),
            name => name.to_owned(),
        };
        if member.learner {
            format!("{name} (learner)")
        } else {
            name
        }
    };
    members.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// Logs that the member is ready once it has a leader and serves a linearizable read; until then, what it waits for.
pub(super) async fn report_ready(requests: Requests, clients: SocketAddr, data_dir: PathBuf) {
    loop {
        match tokio::time::timeout(REPORT_EVERY, serves(&requests)).await {
            Ok(()) => break,
            Err(_) => report_wait(&requests),
        }
    }
    let data = data_dir.display();
    tracing::info!(
        "ready: clients on {clients}, data in {data}; try: etcdctl --endpoints={clients} put greeting hello"
    );
    notify("READY=1");
}

/// Returns once there is a leader and, in a member with a vote, a read index was answered.
async fn serves(requests: &Requests) {
    loop {
        let votes = !requests.is_learner();
        if requests.has_leader() && (!votes || requests.members(true).await.is_ok()) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn report_wait(requests: &Requests) {
    let status = requests.status();
    let published = requests.published();
    let voters = published.members.iter().filter(|member| !member.learner);
    let voters = voters.count();
    match status.leader {
        None => tracing::warn!(
            members = names(&published.members),
            term = status.term.0,
            "not ready: there is no leader; {} of {voters} voters have to be running and reachable",
            voters / 2 + 1,
        ),
        Some(leader) => tracing::warn!(
            leader = leader.hex(),
            applied = status.applied.0,
            commit = status.commit.0,
            "not ready: there is a leader, and this member has not caught up with it yet",
        ),
    }
}

/// Tells systemd, if the service is of a type that waits for it.
pub(super) fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let path = path.to_string_lossy();
    let address = match path.strip_prefix('@') {
        Some(name) => UnixAddress::from_abstract_name(name),
        None => UnixAddress::from_pathname(&*path),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("cannot notify systemd at {path}: {error}");
    }
}

/// The configuration with addresses that others can use: a member that listens on all addresses of its machine advertises the
/// one that leads outside, as etcd does. Logs that such a port is open to everybody.
pub(super) fn with_reachable_addresses(config: &Config) -> Config {
    let mut config = config.clone();
    for name in &config.skipped_variables {
        tracing::info!(
            "environment variable {name} is skipped: Kubernetes sets it for a service, it is no setting"
        );
    }
    let (client, peer) = (config.client.listen.clone(), config.peer.listen.clone());
    if client.is_every_interface() {
        let advertised = advertised(&mut config.client.advertise, &client);
        tracing::warn!(
            "clients on {client}: the port is open to everybody who reaches this machine; clients are told to use {advertised} \
             (client.advertise)"
        );
    }
    if peer.is_every_interface() {
        advertised(&mut config.peer.advertise, &peer);
    }
    config
}

/// Chooses the address to advertise, unless one is set.
fn advertised(set: &mut Option<HostPort>, listen: &HostPort) -> HostPort {
    set.get_or_insert_with(|| HostPort {
        host: outward_address().map_or_else(|| "localhost".to_owned(), |ip| ip.to_string()),
        port: listen.port,
    })
    .clone()
}

/// The address of the interface that leads outside.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTSIDE).ok()?;
    let found = socket.local_addr().ok()?.ip();
    (!found.is_unspecified()).then_some(found)
}
