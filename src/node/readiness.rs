//! The log lines of a start: which member it is, what it waits for, and when it is ready. systemd gets the same if it asks for
//! it.

use super::{
    data_directory,
    progress::notify,
    questions::Beginning,
    startup::{OpenMember, Plan},
};
use crate::{
    actors::{
        members::{ClusterMember, Members},
        requests::Requests,
    },
    config::{ClientAddress, Config, HostPort, PeerTls},
    storage::disk::Disk,
    types::LogPosition,
};
use rustix::process::{Resource, getrlimit};
use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    time::Duration,
};

/// What a member that is not ready waits for is logged so often.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// How often a starting member looks for its leader.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An address outside of this machine, to find the network interface that leads there. Nothing is sent to it.
const OUTSIDE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// Says at the first start of a restored member from what, and when, it was restored.
pub(super) fn report_restored(disk: &dyn Disk, applied: LogPosition) {
    if applied != data_directory::RESTORED_AT {
        return;
    }
    match data_directory::restored_text(disk) {
        Ok(None) => {}
        Ok(Some(text)) => {
            let text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
            tracing::info!("this data directory was restored: {text}");
        }
        Err(error) => tracing::warn!("cannot tell what was restored: {error}"),
    }
}

/// Logs who the member is, as its data directory says.
pub(super) fn report_start(open: &OpenMember) {
    let limit = getrlimit(Resource::Nofile).current;
    let known = if open.members.iter().next().is_some() {
        &open.members
    } else {
        &open.known_members
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
    let usage = open.db.usage();
    tracing::debug!(
        applied = open.db.applied().index.0,
        revision = open.loaded.revision.0,
        records = usage.records,
        bytes = usage.bytes,
        compacted = open.loaded.compacted.0,
        log_ends_at = open.raft.last().index.0,
        term = open.raft.status().term.0,
        "its data"
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

/// Warns of a member that forms a cluster of its own although it has certificates for others: its cluster was perhaps forgotten.
pub(super) fn report_first_start(config: &Config, plan: &Plan) {
    let forms = matches!(plan.beginning, Some(Beginning::Forms));
    let PeerTls::Files { .. } = config.peer.tls else {
        return;
    };
    if forms && config.cluster.initial.is_empty() {
        tracing::warn!(
            "cluster.initial is empty, so {:?} forms a cluster of its own, of which it is the only member. If it is to be one of \
             several, stop it, delete {}, and start it with the cluster.initial that the others have (--initial-cluster)",
            config.name,
            config.data_dir.display()
        );
    }
}

/// Logs that the member is ready once it has a leader and serves a linearizable read; until then, what it waits for.
/// `etcdctl` is how clients call it on this machine.
pub(super) async fn report_ready(
    requests: Requests,
    clients: String,
    data_dir: PathBuf,
    etcdctl: String,
) {
    loop {
        match tokio::time::timeout(REPORT_EVERY, serves(&requests)).await {
            Ok(()) => break,
            Err(_) => report_wait(&requests),
        }
    }
    let data = data_dir.display();
    tracing::info!(
        "ready: clients on {clients}, data in {data}; try: {etcdctl} put greeting hello"
    );
    notify("READY=1\nSTATUS=ready");
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
    let status = requests.own_status();
    let published = requests.published();
    let voters = published.members.iter().filter(|member| !member.learner);
    let voters = voters.count();
    match status.leader {
        None => {
            tracing::warn!(
                members = names(&published.members),
                term = status.term.0,
                "not ready: there is no leader; {} of {voters} voters have to be running and reachable",
                voters / 2 + 1,
            );
            notify("STATUS=not ready: there is no leader");
        }
        Some(leader) => {
            tracing::warn!(
                leader = leader.hex(),
                applied = status.applied.0,
                commit = status.commit.0,
                "not ready: there is a leader, and this member has not caught up with it yet",
            );
            notify("STATUS=not ready: this member has not caught up with its leader yet");
        }
    }
}

/// Addresses as `etcdctl --endpoints` takes them.
pub(super) fn list(addresses: &[ClientAddress]) -> String {
    let shown = addresses.iter().map(ToString::to_string);
    shown.collect::<Vec<_>>().join(",")
}

/// The configuration with addresses that others can use, of a member that listens for clients on `clients`: one that listens on
/// all addresses of its machine advertises the one that leads outside, as etcd does. Logs that such a port is open to everybody.
pub(super) fn with_reachable_addresses(config: &Config, clients: &[ClientAddress]) -> Config {
    let mut config = config.clone();
    config.client.listen = clients.to_vec();
    for name in &config.skipped_variables {
        tracing::info!(
            "environment variable {name} is skipped: Kubernetes sets it for a service, it is no setting"
        );
    }
    config.client.advertise = advertised_to_clients(&config);
    let ports = clients.iter().filter_map(ClientAddress::tcp);
    let open: Vec<_> = ports.filter(|port| port.is_every_interface()).collect();
    for port in open {
        let advertised = list(&config.client.advertise);
        tracing::warn!(
            "clients on {port}: the port is open to everybody who reaches this machine; clients are told to use {advertised} \
             (client.advertise)"
        );
    }
    let peer = config.peer.listen.clone();
    if peer.is_every_interface() {
        config.peer.advertise.get_or_insert_with(|| outward(&peer));
    }
    config
}

/// The addresses that clients get to connect to, each once: those set, or those listened on, as clients can use them.
fn advertised_to_clients(config: &Config) -> Vec<ClientAddress> {
    let mut advertised = Vec::new();
    for address in config.client_advertise() {
        let reachable = match &address {
            ClientAddress::Tcp(port) if port.is_every_interface() => {
                ClientAddress::Tcp(outward(port))
            }
            ClientAddress::Tls(port) if port.is_every_interface() => {
                ClientAddress::Tls(outward(port))
            }
            ClientAddress::Tcp(_) | ClientAddress::Tls(_) | ClientAddress::Unix(_) => address,
        };
        if !advertised.contains(&reachable) {
            advertised.push(reachable);
        }
    }
    advertised
}

/// The address of this machine's interface that leads outside, for one that means all of them.
fn outward(listen: &HostPort) -> HostPort {
    HostPort {
        host: outward_address().map_or_else(|| "localhost".to_owned(), |ip| ip.to_string()),
        port: listen.port,
    }
}

/// The address of the interface that leads outside.
fn outward_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(OUTSIDE).ok()?;
    let found = socket.local_addr().ok()?.ip();
    (!found.is_unspecified()).then_some(found)
}
