//! Members are added, promoted and removed.

use crate::{
    ctl::{etcdctl, eventually, leader, same_history},
    support::Cluster,
};

/// Adds a member with the flags given, starts it, and returns its id once it is listed.
pub(crate) async fn join(
    cluster: &mut Cluster,
    name: &str,
    running: &[u16],
    flags: &[&str],
) -> String {
    let at = cluster.prepare(name).await;
    let urls = format!("--peer-urls=http://127.0.0.1:{}", cluster.members[at].peer);
    let mut args = vec!["member", "add", name, &urls];
    args.extend(flags);
    // The leader must have been connected to all for a while.
    // Newer ones print `added as learner to cluster`.
    let is_added = |text: &str| text.contains(" added ") && text.contains("to cluster");
    let added = eventually(running, &args, is_added).await;
    let id = added
        .split_whitespace()
        .nth(1)
        .expect("Member ID added …")
        .to_owned();
    start_added(cluster, at);
    let line = format!("{id}, started, {name}, ");
    eventually(running, &["member", "list"], |list| list.contains(&line)).await;
    id
}

/// Starts a member that the cluster has added.
pub(crate) fn start_added(cluster: &mut Cluster, at: usize) {
    let initial = cluster.initial();
    let member = &mut cluster.members[at];
    member.args.push(format!("--initial-cluster={initial}"));
    member
        .args
        .push("--initial-cluster-state=existing".to_owned());
    member.start();
}

/// The id of the member of this name.
pub(crate) async fn id(ports: &[u16], name: &str) -> String {
    let name = format!(", {name}, ");
    let list = eventually(ports, &["member", "list"], |list| list.contains(&name)).await;
    let line = list.lines().find(|line| line.contains(&name));
    let id = line.and_then(|line| line.split(',').next());
    id.expect("ID, status, name, …").to_owned()
}

#[tokio::test]
async fn a_learner_joins_is_promoted_and_leaves() {
    let mut cluster = Cluster::start(3).await;
    etcdctl(&cluster.ports(), &["put", "k", "v"]).await.ok();
    let running = cluster.ports();
    let id = join(&mut cluster, "n4", &running, &["--learner"]).await;
    let (ports, new) = (cluster.ports(), cluster.ports()[3]);
    same_state_as_a_learner(new).await;
    eventually(&ports[..3], &["member", "promote", &id], |_| true).await;
    let voter = |list: &str| {
        list.lines()
            .any(|line| line.starts_with(&id) && line.ends_with("false"))
    };
    eventually(&ports[..3], &["member", "list"], voter).await;
    let written = eventually(&[new], &["put", "from", "n4"], |_| true).await;
    assert_eq!(written, "OK\n");
    same_history(&ports).await;
    eventually(&ports[..3], &["member", "remove", &id], |_| true).await;
    let status = cluster.members[3].stopped().await;
    assert_eq!(status.code(), Some(3), "as docs/operations.md says");
    let log = cluster.members[3].log();
    assert!(
        log.contains("this member was removed from the cluster"),
        "{log}"
    );
    etcdctl(&ports[..3], &["put", "after", "removal"])
        .await
        .ok();
    let again = etcdctl(&ports[..1], &["member", "remove", &id])
        .await
        .refused();
    assert!(again.contains("etcdserver: member not found"), "{again}");
}

/// etcd: a member without a vote serves its status and serializable ranges.
async fn same_state_as_a_learner(port: u16) {
    let value = |text: &str| text == "k\nv\n";
    eventually(&[port], &["get", "k", "--consistency=s"], value).await;
    let refused = etcdctl(&[port], &["get", "k"]).await.refused();
    assert!(
        refused.contains("rpc not supported for learner"),
        "{refused}"
    );
    let status = etcdctl(&[port], &["endpoint", "status", "-w", "json"])
        .await
        .json();
    assert_eq!(
        status[0]["Status"]["isLearner"], true,
        "it was added as a learner"
    );
}

#[tokio::test]
async fn one_member_grows_to_three_and_its_leader_can_be_removed() {
    let mut cluster = Cluster::start(1).await;
    etcdctl(&cluster.ports(), &["put", "k", "v"]).await.ok();
    for name in ["n2", "n3"] {
        let running = cluster.ports();
        join(&mut cluster, name, &running, &[]).await;
    }
    let ports = cluster.ports();
    same_history(&ports).await;
    let at = leader(&ports).await;
    let id = id(&ports, &cluster.members[at].name).await;
    eventually(&ports, &["member", "remove", &id], |_| true).await;
    cluster.members[at].stopped().await;
    let rest: Vec<u16> = ports
        .iter()
        .copied()
        .filter(|port| *port != ports[at])
        .collect();
    leader(&rest).await;
    let got = eventually(&rest, &["get", "k"], |text| text.contains('v'));
    assert_eq!(got.await, "k\nv\n");
}

#[tokio::test]
async fn a_follower_that_is_asked_to_remove_the_leader_says_when_that_is_done() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    let at = leader(&ports).await;
    let id = id(&ports, &cluster.members[at].name).await;
    let follower = ports[(at + 1) % 3];
    let mut removed = etcdctl(&[follower], &["member", "remove", &id]).await;
    // The leader must have been connected to all for a while.
    while removed.stderr.contains("etcdserver: unhealthy cluster") {
        removed = etcdctl(&[follower], &["member", "remove", &id]).await;
    }
    assert!(removed.ok().contains("removed from cluster"), "{id}");
    cluster.members[at].stopped().await;
    let log = cluster.members[at].log();
    assert!(
        log.contains("removed from the cluster, as was asked for"),
        "{log}"
    );
}

#[tokio::test]
async fn sockets_of_the_file_system_are_accepted_as_peer_urls() {
    let cluster = Cluster::start(1).await;
    let ports = cluster.ports();
    let add = |url: &'static str| ["member", "add", "x", url, "--learner"];
    let accepted = add("--peer-urls=unix://localhost:12345");
    eventually(&ports, &accepted, |text| text.contains(" added ")).await;
    eventually(&ports, &["member", "list"], |list| {
        list.contains("unix://localhost:12345")
    })
    .await;
    let refused = etcdctl(&ports, &accepted).await.refused();
    let text = "etcdserver: Peer URLs already exists";
    assert!(refused.contains(text), "{refused}");
    eventually(&ports, &["put", "k", "v"], |_| true).await;
}

#[tokio::test]
async fn changes_that_make_no_sense_are_refused_as_etcd_does() {
    let cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let taken = format!("--peer-urls=http://127.0.0.1:{}", cluster.members[1].peer);
    let cases: [(&[&str], &str); 4] = [
        (&["member", "remove", "1"], "etcdserver: member not found"),
        (&["member", "promote", "1"], "etcdserver: member not found"),
        (
            &["member", "add", "x", &taken],
            "etcdserver: Peer URLs already exists",
        ),
        (
            &["member", "update", "1", "--peer-urls=http://a:1"],
            "etcdserver: member not found",
        ),
    ];
    for (args, text) in cases {
        for port in &ports {
            let refused = etcdctl(&[*port], args).await.refused();
            assert!(refused.contains(text), "{args:?}: {refused}");
        }
    }
}
